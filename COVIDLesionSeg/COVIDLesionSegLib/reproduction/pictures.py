"""Pictures of slices brought to one scale of grey: public sets mix windows, and a network takes one for a lesion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_path
from ..learning.data import TrainingCase
from ..learning.store import read_picture

# where the upper percentile goes; bone and what else is brighter keeps the rest
_BRIGHT = 230


def normalize(picture: NDArray[np.uint8], low: float, high: float) -> NDArray[np.uint8]:
    """Stretch a picture so that two of its own percentiles are alike in every picture.

    Args:
        picture: (H, W), 0 ... 255.
        low: percentile that becomes 0.
        high: percentile that becomes 230.

    Returns:
        (H, W), 0 ... 255.
    """
    dark, bright = np.percentile(picture, [low, high])
    stretched = (picture.astype(np.float64) - dark) / max(bright - dark, 1.0) * _BRIGHT
    return np.clip(np.rint(stretched), 0, 255).astype(np.uint8)


def normalized_cases(
    cases: Sequence[TrainingCase],
    percentiles: Sequence[float],
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[TrainingCase, ...]:
    """The cases with pictures that were normalized; those are written once.

    Args:
        cases: of pictures.
        percentiles: the lower and the upper one.
        folder: gets ``<id>.png``.
        progress: called as progress("normalizing pictures", done, total).
    """
    import SimpleITK as sitk

    found = []
    for number, case in enumerate(cases):
        path = folder / f"{case.id}.png"
        if not path.exists() or path.stat().st_mtime < case.image.stat().st_mtime:
            with atomic_path(path) as temporary:
                picture = normalize(read_picture(case.image), percentiles[0], percentiles[1])
                sitk.WriteImage(sitk.GetImageFromArray(picture), str(temporary))
        found.append(replace(case, image=path))
        if progress is not None:
            progress("normalizing pictures", number + 1, len(cases))
    return tuple(found)
