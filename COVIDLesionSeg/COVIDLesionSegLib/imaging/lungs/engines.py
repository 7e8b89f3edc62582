"""What finds lungs, by name, and the one call that gives lungs together with their verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..volume import LabelVolume, Volume
from .finder import Progress, find_lungs
from .masks import LEFT, lungs_from_mask, sides_by_name
from .quality import DOUBTFUL, LungFinding, LungQuality, assess_lungs

CLASSICAL, NONE = "classical", "none"


def _nowhere(volume: Volume, *_: Any) -> NDArray[np.uint8]:
    """No lungs: for a CT in which none can be found, so that all of the body is searched for lesions."""
    return np.zeros(volume.array.shape, np.uint8)


ENGINES: dict[str, Callable[..., NDArray[np.uint8]]] = {CLASSICAL: find_lungs, NONE: _nowhere}


@dataclass(frozen=True, eq=False)
class LocatedLungs:
    """Lungs with their verdict.

    Attributes:
        labels: uint8 (z, y, x) on the CT's grid, 1 right lung and 2 left lung.
        quality: whether they can be trusted, and why not.
    """

    labels: NDArray[np.uint8]
    quality: LungQuality


def judged_lungs(labels: LabelVolume, volume: Volume) -> LocatedLungs:
    """Lungs that somebody else made, as right and left and judged.

    Raises:
        GridMismatchError, LungsNotFoundError, InputError: as :func:`.lungs_from_mask` says.
    """
    lungs = lungs_from_mask(labels, volume)
    sided = bool(sides_by_name(labels.names)) or bool((lungs == LEFT).any())
    return LocatedLungs(lungs, assess_lungs(volume, lungs, sided=sided))


def locate_lungs(
    volume: Volume,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    *,
    engine: str = CLASSICAL,
) -> LocatedLungs:
    """Find the lungs and judge what was found.

    Args:
        volume: a CT, HU.
        progress: called as ``progress("lungs", done, total)``.
        cancelled: asked between the steps; True stops.
        engine: name of what finds them, one of :data:`ENGINES`.

    Raises:
        InputError: an engine that is not known.
        LungsNotFoundError, IntensityError, CancelledError: as the engine says.
    """
    if engine not in ENGINES:
        raise InputError(f"The lung engine {engine!r} is not known; known are {', '.join(ENGINES)}.")
    labels = ENGINES[engine](volume, progress, cancelled)
    if engine == NONE:
        finding = LungFinding("not_looked_for", None, None, "1", "No lungs were looked for.")
        return LocatedLungs(labels, LungQuality(DOUBTFUL, engine, (finding,)))
    return LocatedLungs(labels, assess_lungs(volume, labels, engine))
