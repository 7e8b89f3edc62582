"""The module's own test inside Slicer: small, on a synthetic CT, without PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import mrml
from ..imaging import Geometry, Volume

if TYPE_CHECKING:
    from .logic import LesionLogic


def measureKnownLesions(logic: LesionLogic) -> tuple[float, float]:
    """Measure a box-shaped lesion of known volume in a CT that is put into the scene.

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
