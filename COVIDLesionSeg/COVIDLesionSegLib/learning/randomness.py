"""Every random draw of a training comes from (seed, purpose, step, index), never from a generator carried along.

An interrupted training, a loader with other workers, or the same batch split over other ranks therefore draws the same
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What a draw is for; draws for different purposes are independent."""

    ORDER = 0
    CROP = 1
    AUGMENTATION = 2
    STUDENT_NOISE = 3
    TEACHER_NOISE = 4
    DROPOUT = 5
    INITIALIZATION = 6
    LABEL_NOISE = 7


def draw(seed: int, purpose: Purpose, *where: int) -> np.random.Generator:
    """Generator for one draw.

    Args:
        seed: the training's seed, >= 0.
        purpose: what it is for.
        where: what makes it unique, e.g. step and sample, each >= 0.

    Returns:
        A generator that depends on the arguments alone.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(purpose), *where])))


def draw_integer(seed: int, purpose: Purpose, *where: int) -> int:
    """A seed for generators of other libraries, e.g. dropout's; arguments as for :func:`draw`."""
    return int(draw(seed, purpose, *where).integers(2**63 - 1))


def gaussian_noise(
    seed: int,
    purpose: Purpose,
    step: int,
    samples: Sequence[int],
    shape: tuple[int, ...],
    sd: float,
    clip: float | None,
    varies: bool = False,
) -> NDArray[np.float32]:
    """Gaussian noise for the samples of a batch.

    Args:
        seed: the training's seed.
        purpose: student's or teacher's noise.
        step: training step.
        samples: each image's place in the global batch; a rank passes its own.
        shape: of one image, (C, H, W).
        sd: standard deviation.
        clip: largest absolute value, or None.
        varies: draw each image's standard deviation from [0, sd).

    Returns:
        float32 (len(samples), *shape).
    """
    noise = np.empty((len(samples), *shape), dtype=np.float32)
    for row, sample in zip(noise, samples, strict=True):
        generator = draw(seed, purpose, step, sample)
        generator.standard_normal(dtype=np.float32, out=row)
        row *= np.float32(sd * generator.random() if varies else sd)
    return noise if clip is None else np.clip(noise, -clip, clip, out=noise)
