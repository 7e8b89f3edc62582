"""The probability of a result in levels, kept beside its segmentation for corrections by a click."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from ..documents import parse_json
from ..errors import COVIDLesionSegError, InputError
from ..imaging.masks import Box
from ..inference.levels import MOST_SENSITIVE, ProbabilityLevels
from .nodes import addNode, attachRecord, matrix_of_array, nodesOfClass, recordOf, removeNode, requireNode
from .segmentations import SEGMENTATION, UndoStates, segmentsMask, segmentsWithRole, showLesions, viewOf, voxelCount
from .volumes import gridOfNode, local_grid, volumeFromNode

_REFERENCE = "COVIDLesionSeg.Levels"
_PLACE = "COVIDLesionSeg.LevelsPlace"
_SHOWN = "COVIDLesionSeg.Sensitivity"
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
        node = addNode(_VOLUME, "Probability of the network", hidden=True)
    slicer.util.updateVolumeFromArray(node, levels.levels)
    node.SetIJKToRASMatrix(matrix_of_array(local_grid(volumeNode).cropped(levels.box).ijk_to_ras))
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    node.SetAttribute(_PLACE, json.dumps(levels.described()))
    node.SetAttribute(_SHOWN, None)
    # last, since it tells that the probability is there
    segmentationNode.SetNodeReferenceID(_REFERENCE, node.GetID())
    segmentationNode.Modified()
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


def redrawAt(
    segmentationNode: Any,
    volumeNode: Any,
    sensitivity: int,
    *,
    undo: UndoStates | None = None,
    consolidationFrom: float | None = None,
) -> tuple[Box, NDArray[np.bool_]]:
    """Draw a whole result anew, as the run would have found it at another threshold; its run record says so.

    Args:
        segmentationNode: the result; its view (one segment, by attenuation, one by one) stays.
        volumeNode: the CT.
        sensitivity: see :class:`..inference.ProbabilityLevels`.
        undo: saves the state before.
        consolidationFrom: HU from which lesion counts as consolidation; None takes the catalog's.

    Returns:
        Where the probability is kept, (z, y, x), and the lesions in that box, bool.

    Raises:
        InputError: no probability is kept, or a node that is not what it should be.
    """
    levels = levelsOf(segmentationNode, volumeNode)
    if levels is None:
        raise InputError("The probability of this result is not kept.", "Run the model on the CT again.")
    view = viewOf(segmentationNode)
    volume = None if view == "lesion" else volumeFromNode(volumeNode, check=False)
    spacing = gridOfNode(volumeNode).spacing_zyx
    mask = levels.result_inside(sensitivity, spacing, _minimum_volume(segmentationNode))
    showLesions(
        volumeNode,
        mask,
        box=levels.box,
        view=view,
        segmentationNode=segmentationNode,
        volume=volume,
        undo=undo,
        consolidationFrom=consolidationFrom,
    )
    _remember(segmentationNode, levels, sensitivity)
    return levels.box, mask


def drawnSensitivity(segmentationNode: Any) -> int:
    """The sensitivity at which a result was drawn last; 0 for the AI result itself."""
    node = segmentationNode.GetNodeReference(_REFERENCE)
    text = "" if node is None else node.GetAttribute(_SHOWN) or ""
    known = text.removeprefix("-").isdecimal() and abs(int(text)) <= MOST_SENSITIVE
    return int(text) if known else 0


def unedited(segmentationNode: Any, volumeNode: Any) -> bool:
    """Whether the lesions are what a run has found, at the sensitivity at which they were drawn last or at the run's.

    The second is remembered where somebody has taken the first back.

    Raises:
        InputError: as :func:`redrawAt`.
    """
    levels = levelsOf(segmentationNode, volumeNode)
    if levels is None or not segmentsWithRole(segmentationNode):
        return False
    spacing, minimum = gridOfNode(volumeNode).spacing_zyx, _minimum_volume(segmentationNode)
    for sensitivity in dict.fromkeys((drawnSensitivity(segmentationNode), 0)):
        if _is_drawn(segmentationNode, volumeNode, levels.result_in_parts(sensitivity, spacing, minimum)):
            _remember(segmentationNode, levels, sensitivity)
            return True
    return False


def _is_drawn(segmentationNode: Any, volumeNode: Any, parts: Iterator[tuple[Box, NDArray[np.bool_]]]) -> bool:
    """Whether the lesion segments are what a result says, part by part, so that no large array is made."""
    segments, count = segmentsWithRole(segmentationNode), 0
    for box, found in parts:
        if not np.array_equal(segmentsMask(segmentationNode, segments, volumeNode, box), found):
            return False
        count += int(np.count_nonzero(found))
    # else some lies where the run has found nothing
    return count == sum(voxelCount(segmentationNode, identity) for identity in segments)


def _remember(segmentationNode: Any, levels: ProbabilityLevels, sensitivity: int) -> None:
    """Say with the result at which threshold it is drawn."""
    record = recordOf(segmentationNode)
    if record is not None:
        settings = {**record.postprocessing, "threshold": levels.threshold_at(sensitivity)}
        attachRecord(segmentationNode, replace(record, postprocessing=settings))
    segmentationNode.GetNodeReference(_REFERENCE).SetAttribute(_SHOWN, str(sensitivity))


def _minimum_volume(segmentationNode: Any) -> float:
    """The run's, mL."""
    record = recordOf(segmentationNode)
    return 0.0 if record is None else float(record.postprocessing.get("minimum_volume_ml") or 0.0)


def removeLostLevels() -> None:
    """Remove kept probabilities whose segmentation was deleted."""
    used = {node.GetNodeReferenceID(_REFERENCE) for node in nodesOfClass(SEGMENTATION)}
    for node in nodesOfClass(_VOLUME):
        if node.GetAttribute(_PLACE) and node.GetID() not in used:
            removeNode(node)
