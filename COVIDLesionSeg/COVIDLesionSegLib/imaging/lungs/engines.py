"""What finds lungs, by name, and the one call that gives lungs together with their verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CancelledError, InputError, LungsNotFoundError
from ..volume import LabelVolume, Volume
from .finder import Progress, find_lungs
from .masks import LEFT, RIGHT, lungs_by_side, lungs_from_mask, sides_by_name
from .quality import DOUBTFUL, LungFinding, LungQuality, assess_lungs

Engine = Callable[[Volume, Progress | None, Callable[[], bool] | None], NDArray[np.uint8]]

CLASSICAL, LUNGMASK, NETWORK, NONE = "classical", "lungmask", "network", "none"
# The network of lungmask that was trained on sick lungs of many kinds, and its labels.
_LUNGMASK_MODEL = "R231"


def _nowhere(volume: Volume, *_: Any) -> NDArray[np.uint8]:
    """No lungs: for a CT in which none can be found, so that all of the body is searched for lesions."""
    return np.zeros(volume.array.shape, np.uint8)


def _by_lungmask(
    volume: Volume, progress: Progress | None = None, cancelled: Callable[[], bool] | None = None
) -> NDArray[np.uint8]:
    """Right and left lung by the package lungmask, which downloads its weights when they are used for the first time.

    Raises:
        InputError: lungmask is not installed, or its weights can't be had.
        LungsNotFoundError: it found no lungs.
        CancelledError: ``cancelled`` said True before it began; it can't be stopped later.
    """
    try:
        from lungmask import LMInferer
    except ImportError as error:
        raise InputError(
            "The lung engine lungmask needs the package lungmask, which is not installed.",
            'Install it with pip install "covid-lesion-seg[lungs]"; it downloads its weights (about 100 MB) when it is '
            "used for the first time.",
        ) from error
    if cancelled is not None and cancelled():
        raise CancelledError("Finding the lungs was stopped.")
    view = volume.geometry.axial_view()
    try:
        inferer = LMInferer(modelname=_LUNGMASK_MODEL, tqdm_disable=True)
    except OSError as error:  # urllib's errors are among them
        raise InputError(
            f"The weights of lungmask could not be downloaded or read: {error}.",
            "It fetches them from the network when it is used for the first time; connect once, or choose another "
            "lung engine.",
        ) from error
    if progress is not None:
        progress("lungs", 1, 2)
    # slices from the feet up, rows to the back, columns to the left: the frame that its network learned in
    found = np.asarray(inferer.apply(np.ascontiguousarray(view.apply(volume.array))), np.uint8)
    if not found.any():
        raise LungsNotFoundError(f"lungmask found no lungs in {volume.name}.", "Give a lung mask.")
    if progress is not None:
        progress("lungs", 2, 2)
    return lungs_by_side(np.ascontiguousarray(view.restore(found)), {1: RIGHT, 2: LEFT}, volume.geometry)


def _no_network(*_: Any) -> NDArray[np.uint8]:
    raise InputError(
        "The lung engine network needs a network for lungs, and none is known here.",
        f"Choose another lung engine ({CLASSICAL}, {LUNGMASK}), or give a lung mask.",
    )


#: name -> what finds lungs; :func:`register_engine` adds to it.
ENGINES: dict[str, Engine] = {
    CLASSICAL: find_lungs,
    LUNGMASK: _by_lungmask,
    NETWORK: _no_network,
    NONE: _nowhere,
}


def register_engine(name: str, engine: Engine) -> None:
    """Make an engine known: rooms on higher floors, which may use networks, call this for theirs.

    Args:
        name: how it is chosen; replaces an engine of this name.
        engine: called as ``engine(volume, progress, cancelled)``; returns uint8 (z, y, x) on the volume's grid, 1 right
            lung and 2 left lung, and raises what :func:`locate_lungs` does.
    """
    ENGINES[name] = engine


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
        InputError: an engine that is not known, or not installed.
        LungsNotFoundError, IntensityError, CancelledError: as the engine says.
    """
    if engine not in ENGINES:
        raise InputError(f"The lung engine {engine!r} is not known; known are {', '.join(ENGINES)}.")
    labels = ENGINES[engine](volume, progress, cancelled)
    if engine == NONE:
        finding = LungFinding("not_looked_for", None, None, "1", "No lungs were looked for.")
        return LocatedLungs(labels, LungQuality(DOUBTFUL, engine, (finding,)))
    return LocatedLungs(labels, assess_lungs(volume, labels, engine))
