"""The network's own answer, kept beside a segmentation that people edit, so that parts of it can be restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.masks import bounding_box
from .levels import removeLostLevels
from .nodes import addNode, nodesOfClass, removeNode, requireNode
from .segmentations import (
    SEGMENTATION,
    UndoStates,
    requireLabelmaps,
    segmentMask,
    segmentsMask,
    segmentsWithRole,
    writeSegment,
)
from .volumes import gridOfNode

_REFERENCE = "COVIDLesionSeg.Answer"
_ATTRIBUTE = "COVIDLesionSeg.IsAnswer"


def keepAnswer(segmentationNode: Any) -> Any:
    """Remember the lesion segments as they are now in a hidden segmentation, in place of an earlier answer.

    Args:
        segmentationNode: with lesion segments of this extension.

    Returns:
        The hidden segmentation node; it is saved with the scene.

    Raises:
        InputError: no segmentation, or deleted.
    """
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    answer = _answer(segmentationNode)
    if answer is None:
        answer = addNode(SEGMENTATION, "Answer of the network")
        answer.SetHideFromEditors(True)
        answer.SetAttribute(_ATTRIBUTE, "1")
        segmentationNode.SetNodeReferenceID(_REFERENCE, answer.GetID())
    answer.SetAndObserveTransformNodeID(segmentationNode.GetTransformNodeID())
    kept, current = answer.GetSegmentation(), segmentationNode.GetSegmentation()
    kept.RemoveAllSegments()
    for identity in segmentsWithRole(segmentationNode):
        kept.CopySegmentFromSegmentation(current, identity, False)
    return answer


def hasAnswer(segmentationNode: Any) -> bool:
    """Whether the network's answer to this segmentation is remembered."""
    return segmentationNode is not None and _answer(segmentationNode) is not None


def answerMask(segmentationNode: Any, volumeNode: Any) -> NDArray[np.bool_]:
    """The network's answer, all its segments together.

    Returns:
        bool (z, y, x) on the CT's grid.

    Raises:
        InputError: no answer is remembered, or a node that is not what it should be.
    """
    answer = _require_answer(segmentationNode)
    identities = answer.GetSegmentation().GetSegmentIDs()
    if not identities:
        raise InputError("The network's answer has no segments.", "Segment the CT again.")
    return segmentsMask(answer, identities, volumeNode)


def restoreAnswer(
    segmentationNode: Any, volumeNode: Any, region: NDArray[np.bool_] | None = None, undo: UndoStates | None = None
) -> None:
    """Put the network's answer back, everywhere or inside a region; edits elsewhere stay.

    Args:
        segmentationNode: the edited segmentation.
        volumeNode: the CT.
        region: bool (z, y, x) on the CT's grid; None is everywhere.
        undo: saves the state before.

    Raises:
        InputError: no answer is remembered, or a node that is not what it should be.
        GridMismatchError: the region is not on the CT's grid.
    """
    answer = _require_answer(segmentationNode)
    requireLabelmaps(segmentationNode)
    if region is not None:
        gridOfNode(volumeNode).require_shape(region, "region")
    if undo is not None:
        undo.saveStateForUndo()
    segmentation, kept = segmentationNode.GetSegmentation(), answer.GetSegmentation()
    # surfaces once at the end instead of after each segment
    surfaces = segmentation.ContainsRepresentation("Closed surface")
    if surfaces:
        segmentationNode.RemoveClosedSurfaceRepresentation()
    # a segment that was deleted comes back; lesion segments that the answer has not are emptied inside the region
    for identity in dict.fromkeys([*kept.GetSegmentIDs(), *segmentsWithRole(segmentationNode)]):
        if kept.GetSegment(identity) is None:
            given = None
        elif segmentation.GetSegment(identity) is None:
            segmentation.CopySegmentFromSegmentation(kept, identity, False)
            if region is not None:
                inside = segmentMask(answer, identity, volumeNode) & region
                writeSegment(segmentationNode, identity, inside, volumeNode)
            continue
        else:
            given = segmentMask(answer, identity, volumeNode)
        edited = segmentMask(segmentationNode, identity, volumeNode)
        writeSegment(segmentationNode, identity, _restored(edited, given, region), volumeNode)
    if surfaces:
        segmentationNode.CreateClosedSurfaceRepresentation()


def _restored(
    edited: NDArray[np.bool_], given: NDArray[np.bool_] | None, region: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """The edited mask, which may be changed in place, with the given one in the region."""
    if given is None:
        given = np.zeros_like(edited)
    if region is None:
        return given
    # a region is a small part of the CT
    box = bounding_box(region, least=1)
    np.copyto(edited[box], given[box], where=region[box])
    return edited


def removeLostAnswers() -> None:
    """Remove remembered answers, and kept probabilities, whose segmentation was deleted."""
    answers = [node for node in nodesOfClass(SEGMENTATION) if node.GetAttribute(_ATTRIBUTE)]
    used = {node.GetNodeReferenceID(_REFERENCE) for node in nodesOfClass(SEGMENTATION)}
    for answer in answers:
        if answer.GetID() not in used:
            removeNode(answer)
    removeLostLevels()


def _answer(segmentationNode: Any) -> Any:
    return segmentationNode.GetNodeReference(_REFERENCE)


def _require_answer(segmentationNode: Any) -> Any:
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    answer = _answer(segmentationNode)
    if answer is None or not isinstance(answer, slicer.vtkMRMLSegmentationNode):
        raise InputError("There is no answer of the network to restore.", "Segment the CT first.")
    return answer
