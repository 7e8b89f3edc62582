"""The network's own answer, kept beside a segmentation that people edit, so that parts of it can be restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from ..errors import InputError
from .nodes import addNode, nodesOfClass, removeNode, requireNode
from .segmentations import SEGMENTATION, UndoStates, lesionMask, segmentMask, segmentsWithRole, writeSegment

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
    mask: NDArray[np.bool_] | None = None
    for identity in answer.GetSegmentation().GetSegmentIDs():
        part = segmentMask(answer, identity, volumeNode)
        mask = part if mask is None else mask | part
    if mask is None:
        raise InputError("The network's answer has no segments.", "Segment the CT again.")
    return mask


def isEdited(segmentationNode: Any, volumeNode: Any) -> bool:
    """Whether the lesions are not what the network answered.

    Raises:
        InputError: no answer is remembered, or a node that is not what it should be.
    """
    return not np.array_equal(answerMask(segmentationNode, volumeNode), lesionMask(segmentationNode, volumeNode))


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
    if undo is not None:
        undo.saveStateForUndo()
    segmentation = segmentationNode.GetSegmentation()
    kept = answer.GetSegmentation()
    here = set(segmentation.GetSegmentIDs())
    # a segment that was deleted comes back; lesion segments that the answer has not are emptied inside the region
    for identity in dict.fromkeys([*kept.GetSegmentIDs(), *segmentsWithRole(segmentationNode)]):
        answered = identity in kept.GetSegmentIDs()
        if identity not in here:
            segmentation.CopySegmentFromSegmentation(kept, identity, False)
            edited = None
        else:
            edited = segmentMask(segmentationNode, identity, volumeNode)
        given = segmentMask(answer, identity, volumeNode) if answered else np.zeros_like(edited)
        if region is None:
            restored = given
        else:
            restored = given & region
            if edited is not None:
                restored |= edited & ~region
        writeSegment(segmentationNode, identity, restored, volumeNode)


def removeLostAnswers() -> None:
    """Remove remembered answers whose segmentation was deleted."""
    answers = [node for node in nodesOfClass(SEGMENTATION) if node.GetAttribute(_ATTRIBUTE)]
    used = {node.GetNodeReferenceID(_REFERENCE) for node in nodesOfClass(SEGMENTATION)}
    for answer in answers:
        if answer.GetID() not in used:
            removeNode(answer)


def _answer(segmentationNode: Any) -> Any:
    return segmentationNode.GetNodeReference(_REFERENCE)


def _require_answer(segmentationNode: Any) -> Any:
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    answer = _answer(segmentationNode)
    if answer is None or not isinstance(answer, slicer.vtkMRMLSegmentationNode):
        raise InputError("There is no answer of the network to restore.", "Segment the CT first.")
    return answer
