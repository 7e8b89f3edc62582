"""The AI result, kept beside a segmentation that people edit, so that it can be reset to it, wholly or in part."""

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

_REFERENCE = "COVIDLesionSeg.Prediction"
_ATTRIBUTE = "COVIDLesionSeg.IsPrediction"


def keepPrediction(segmentationNode: Any) -> Any:
    """Remember the lesion segments as they are now in a hidden segmentation, in place of an earlier result.

    Args:
        segmentationNode: with lesion segments of this extension.

    Returns:
        The hidden segmentation node; it is saved with the scene.

    Raises:
        InputError: no segmentation, or deleted.
    """
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    prediction = _prediction(segmentationNode)
    if prediction is None:
        prediction = addNode(SEGMENTATION, "AI result", hidden=True)
        prediction.SetAttribute(_ATTRIBUTE, "1")
        segmentationNode.SetNodeReferenceID(_REFERENCE, prediction.GetID())
    prediction.SetAndObserveTransformNodeID(segmentationNode.GetTransformNodeID())
    kept, current = prediction.GetSegmentation(), segmentationNode.GetSegmentation()
    kept.RemoveAllSegments()
    for identity in segmentsWithRole(segmentationNode):
        kept.CopySegmentFromSegmentation(current, identity, False)
    return prediction


def hasPrediction(segmentationNode: Any) -> bool:
    """Whether this segmentation's AI result is remembered."""
    return segmentationNode is not None and _prediction(segmentationNode) is not None


def predictionMask(segmentationNode: Any, volumeNode: Any) -> NDArray[np.bool_]:
    """The AI result, all its segments together.

    Returns:
        bool (z, y, x) on the CT's grid.

    Raises:
        InputError: no AI result is remembered, or a node that is not what it should be.
    """
    prediction = _require_prediction(segmentationNode)
    identities = prediction.GetSegmentation().GetSegmentIDs()
    if not identities:
        raise InputError("The AI result has no segments.", "Segment the CT again.")
    return segmentsMask(prediction, identities, volumeNode)


def resetToPrediction(
    segmentationNode: Any, volumeNode: Any, region: NDArray[np.bool_] | None = None, undo: UndoStates | None = None
) -> None:
    """Reset the segmentation to the AI result, everywhere or inside a region; edits elsewhere stay.

    Args:
        segmentationNode: the edited segmentation.
        volumeNode: the CT.
        region: bool (z, y, x) on the CT's grid; None is everywhere.
        undo: saves the state before.

    Raises:
        InputError: no AI result is remembered, or a node that is not what it should be.
        GridMismatchError: the region is not on the CT's grid.
    """
    prediction = _require_prediction(segmentationNode)
    requireLabelmaps(segmentationNode)
    if region is not None:
        gridOfNode(volumeNode).require_shape(region, "region")
    if undo is not None:
        undo.saveStateForUndo()
    segmentation, kept = segmentationNode.GetSegmentation(), prediction.GetSegmentation()
    # surfaces once at the end instead of after each segment
    surfaces = segmentation.ContainsRepresentation("Closed surface")
    if surfaces:
        segmentationNode.RemoveClosedSurfaceRepresentation()
    # a segment that was deleted comes back; lesion segments that the AI result lacks are emptied inside the region
    for identity in dict.fromkeys([*kept.GetSegmentIDs(), *segmentsWithRole(segmentationNode)]):
        if kept.GetSegment(identity) is None:
            given = None
        elif segmentation.GetSegment(identity) is None:
            segmentation.CopySegmentFromSegmentation(kept, identity, False)
            if region is not None:
                inside = segmentMask(prediction, identity, volumeNode) & region
                writeSegment(segmentationNode, identity, inside, volumeNode)
            continue
        else:
            given = segmentMask(prediction, identity, volumeNode)
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


def removeLostPredictions() -> None:
    """Remove remembered AI results, and kept probabilities, whose segmentation was deleted."""
    predictions = [node for node in nodesOfClass(SEGMENTATION) if node.GetAttribute(_ATTRIBUTE)]
    used = {node.GetNodeReferenceID(_REFERENCE) for node in nodesOfClass(SEGMENTATION)}
    for prediction in predictions:
        if prediction.GetID() not in used:
            removeNode(prediction)
    removeLostLevels()


def _prediction(segmentationNode: Any) -> Any:
    return segmentationNode.GetNodeReference(_REFERENCE)


def _require_prediction(segmentationNode: Any) -> Any:
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    prediction = _prediction(segmentationNode)
    if prediction is None or not isinstance(prediction, slicer.vtkMRMLSegmentationNode):
        raise InputError("There is no AI result to reset to.", "Segment the CT first.")
    return prediction
