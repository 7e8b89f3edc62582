"""What the module does in Slicer besides its panel: start-up, reload, and its own test."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from .. import mrml
from ..imaging import Geometry, Volume
from ..mrml.sample_data import registerSampleData
from .process import QtProcess

if TYPE_CHECKING:
    from .logic import LesionLogic


def registerAtStartup() -> None:
    """Offer the sample data and the terminology; both want modules that may be made after this one."""
    mrml.loadTerminology()
    registerSampleData(QtProcess)


def forgetLibrary() -> None:
    """Let the next import of the library read all its files again."""
    package = __name__.split(".")[0]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def measureKnownLesions(logic: LesionLogic) -> tuple[float, float]:
    """The module's own test: measure a box-shaped lesion of known volume in a CT that is put into the scene.

    Returns:
        The measured and the true volume, mL.
    """
    geometry = Geometry((64, 48, 20), (0.8, 0.8, 2.5))
    hu = np.full(geometry.shape, -850, np.int16)
    mask = np.zeros(geometry.shape, bool)
    mask[5:12, 10:30, 20:45] = True
    hu[mask] = -500
    volumeNode = mrml.nodeFromVolume(Volume(hu, geometry, "self-test"))
    try:
        figures = logic.measure(volumeNode, mrml.showLesions(volumeNode, mask))
    finally:
        logic.close()
    return float(figures["lesion_volume"]["value"]), float(mask.sum() * geometry.voxel_ml)
