"""Finding lungs by the classical finder, or by the network where somebody asks for it.

PyTorch is loaded when the network is used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .. import imaging
from ..errors import InputError
from ..imaging.lungs.engines import CLASSICAL, NETWORK, LocatedLungs, register_engine
from ..imaging.lungs.finder import Progress
from ..imaging.volume import Volume
from ..models.catalog import ModelEntry, read_catalog
from ..resources import resource


def lung_network() -> ModelEntry:
    """The lung network that comes with this program, from ``Resources/LungModels.json``."""
    (entry,) = read_catalog(resource("LungModels.json"))
    return entry


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
        engine: as for :func:`.imaging.locate_lungs`; None takes the classical finder, which is the better one in dense
            consolidation and in thick slices (docs/lung-model.md).

    Raises:
        InputError, LungsNotFoundError, IntensityError, CancelledError: as :func:`.imaging.locate_lungs` does.
    """
    register_engine(NETWORK, _by_network)
    return imaging.locate_lungs(volume, progress, cancelled, engine=engine or CLASSICAL)


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
