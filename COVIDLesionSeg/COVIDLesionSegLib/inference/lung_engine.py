"""Which engine finds lungs: the network where PyTorch and its weights are, the classical finder elsewhere.

PyTorch is loaded when the network is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from .. import imaging
from ..errors import InputError, LungsNotFoundError
from ..imaging.lungs.engines import CLASSICAL, NETWORK, LocatedLungs, register_engine
from ..imaging.lungs.finder import Progress
from ..imaging.lungs.quality import DOUBTFUL
from ..imaging.volume import Volume
from ..models.catalog import ModelEntry, read_catalog
from ..resources import resource


def lung_network() -> ModelEntry:
    """The lung network that comes with this program, from ``Resources/LungModels.json``."""
    (entry,) = read_catalog(resource("LungModels.json"))
    return entry


def default_lung_engine() -> tuple[str, str]:
    """The engine that finds lungs where none is chosen, and why, as a sentence."""
    if find_spec("torch") is None:
        return CLASSICAL, "The lung network needs PyTorch, which is not installed."
    entry = lung_network()
    if not entry.is_usable:
        return CLASSICAL, f"The weights of the lung network are not here ({entry.file_name})."
    return NETWORK, "The lung network and PyTorch are here."


def locate_lungs(
    volume: Volume,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    *,
    engine: str | None = None,
) -> LocatedLungs:
    """Find the lungs and judge what was found.

    Args:
        volume: a CT, HU.
        progress: called as ``progress("lungs", done, total)``.
        cancelled: asked between the steps; True stops.
        engine: as for :func:`.imaging.locate_lungs`; None takes the default engine. Where that is the network, and it
            finds no lungs or doubtful ones, the classical finder's stand: it is the better one in dense consolidation.

    Raises:
        InputError, LungsNotFoundError, IntensityError, CancelledError: as :func:`.imaging.locate_lungs` does.
    """
    register_engine(NETWORK, _by_network)
    if engine is not None:
        return imaging.locate_lungs(volume, progress, cancelled, engine=engine)
    engine, _ = default_lung_engine()
    if engine == CLASSICAL:
        return imaging.locate_lungs(volume, progress, cancelled, engine=CLASSICAL)
    try:
        located = imaging.locate_lungs(volume, progress, cancelled, engine=engine)
    except LungsNotFoundError:
        return imaging.locate_lungs(volume, progress, cancelled, engine=CLASSICAL)
    if not located.quality.is_doubtful:
        return located
    try:
        classical = imaging.locate_lungs(volume, progress, cancelled, engine=CLASSICAL)
    except LungsNotFoundError:
        return located
    # that two finders disagree makes the better one's lungs doubtful, too
    disagreement = tuple(finding for finding in located.quality.findings if finding.check == "finder_dice")
    if disagreement:
        findings = (*classical.quality.findings, *disagreement)
        classical = replace(classical, quality=replace(classical.quality, verdict=DOUBTFUL, findings=findings))
    return classical


def _by_network(
    volume: Volume, progress: Progress | None = None, cancelled: Callable[[], bool] | None = None
) -> NDArray[np.uint8]:
    try:
        from .lungs import find_lungs_by_network
    except ImportError as error:
        raise InputError(
            "The lung engine network needs PyTorch, which is not installed.",
            f"Install PyTorch, choose the lung engine {CLASSICAL}, or give a lung mask.",
        ) from error
    return find_lungs_by_network(volume, progress, cancelled)
