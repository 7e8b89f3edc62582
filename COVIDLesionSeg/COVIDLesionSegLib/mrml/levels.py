"""The probability of a result in levels, kept beside its segmentation for corrections by a click."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import slicer

from ..documents import parse_json
from ..errors import COVIDLesionSegError
from ..inference import ProbabilityLevels
from .nodes import addNode, matrix_of_array, nodesOfClass, removeNode, requireNode
from .segmentations import SEGMENTATION
from .volumes import gridOfNode, local_grid

_REFERENCE = "COVIDLesionSeg.Levels"
_PLACE = "COVIDLesionSeg.LevelsPlace"
_VOLUME = "vtkMRMLScalarVolumeNode"


def keepLevels(segmentationNode: Any, volumeNode: Any, levels: ProbabilityLevels | None) -> Any:
    """Keep the probability that a result was made from, in place of an earlier result's.

    Args:
        segmentationNode: the result.
        volumeNode: the CT.
        levels: of the result; None forgets those of the result before.

    Returns:
        The hidden volume node with the levels, which is saved with the scene; or None.

    Raises:
        InputError: a node that is not what it should be.
        GridMismatchError: the levels are of another CT.
    """
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    node = segmentationNode.GetNodeReference(_REFERENCE)
    if levels is None:
        removeNode(node)
        return None
    levels.require_shape(gridOfNode(volumeNode).shape)
    if node is None:
        node = addNode(_VOLUME, "Probability of the network")
        node.SetHideFromEditors(True)
        segmentationNode.SetNodeReferenceID(_REFERENCE, node.GetID())
    slicer.util.updateVolumeFromArray(node, levels.levels)
    node.SetIJKToRASMatrix(matrix_of_array(local_grid(volumeNode).cropped(levels.box).ijk_to_ras))
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    node.SetAttribute(_PLACE, json.dumps(levels.described()))
    return node


def levelsOf(segmentationNode: Any, volumeNode: Any) -> ProbabilityLevels | None:
    """The probability that a result was made from, without a copy; None where none was kept, or another CT's.

    Raises:
        InputError: a node that is not what it should be.
    """
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    node = segmentationNode.GetNodeReference(_REFERENCE)
    if node is None or node.GetImageData() is None:
        return None
    try:
        place = parse_json(node.GetAttribute(_PLACE) or "", _PLACE)
        levels = ProbabilityLevels.rebuilt(slicer.util.arrayFromVolume(node).view(np.ndarray), place)
        levels.require_shape(gridOfNode(volumeNode).shape)
    except (COVIDLesionSegError, ValueError):
        # a scene that was edited by hand or by another program; the result can be corrected without it
        return None
    return levels


def removeLostLevels() -> None:
    """Remove kept probabilities whose segmentation was deleted."""
    used = {node.GetNodeReferenceID(_REFERENCE) for node in nodesOfClass(SEGMENTATION)}
    for node in nodesOfClass(_VOLUME):
        if node.GetAttribute(_PLACE) and node.GetID() not in used:
            removeNode(node)
