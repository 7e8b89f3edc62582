"""The nodes of the case that is open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import mrml
from ..imaging import Geometry, Volume
from ..inference import RunRecord

Mask = NDArray[np.bool_]


class CaseScene:
    """CT, lungs and lesions of one case in the scene; each method reads or writes one node.

    Attributes:
        volumeNode: the CT, or None.
        lungNode: the lungs, or None.
        segmentationNode: the lesions, or None.
    """

    def __init__(self) -> None:
        self.volumeNode: Any = None
        self.lungNode: Any = None
        self.segmentationNode: Any = None
        self._hidden: list[Any] = []

    def showVolume(self, array: NDArray[Any], geometry: Geometry, name: str) -> None:
        """Show the CT, and nothing that belongs to another one."""
        self.volumeNode = mrml.nodeFromVolume(Volume(array, geometry, name), name)
        mrml.nameCase(self.volumeNode, name)
        self._hidden = mrml.hideOthers(self.volumeNode)
        mrml.showInViews(self.volumeNode)

    def showLungs(self, lungs: NDArray[Any]) -> None:
        """Show the lungs."""
        self.lungNode = mrml.showFoundLungs(self.volumeNode, lungs)

    def showLesions(self, mask: Mask, record: Mapping[str, Any] | None) -> None:
        """Show lesions in a new segmentation; the record says which model made them."""
        self.segmentationNode = mrml.showLesions(self.volumeNode, mask)
        if record:
            mrml.attachRecord(self.segmentationNode, RunRecord.from_json(record))

    def keepAnswer(self) -> None:
        """Remember what is shown as the model's answer, so that parts of it can be restored."""
        mrml.keepPrediction(self.segmentationNode)

    def write(self, mask: Mask, undo: mrml.UndoStates | None = None) -> None:
        """Put other lesions in place of those that are shown; ``undo`` saves the state before."""
        if undo is not None:
            undo.saveStateForUndo()
        identity = mrml.segmentsWithRole(self.segmentationNode)[0]
        mrml.writeSegment(self.segmentationNode, identity, mask, self.volumeNode)

    def choose(self) -> None:
        """Let all tabs work on the case."""
        mrml.moduleParameters().update(
            inputVolume=self.volumeNode,
            lesionSegmentation=self.segmentationNode,
            lungSegmentation=self.lungNode,
            referenceSegmentation=None,
            lesionSegmentId="",
            referenceSegmentId="",
        )

    def mask(self) -> Mask:
        """All lesion segments as they are now, bool (z, y, x); nothing where they were deleted."""
        if not mrml.segmentsWithRole(self.segmentationNode):
            return np.zeros(mrml.gridOfNode(self.volumeNode).shape, bool)
        return mrml.lesionMask(self.segmentationNode, self.volumeNode)

    @property
    def voxelMl(self) -> float:
        """Volume of a voxel, mL."""
        return mrml.gridOfNode(self.volumeNode).voxel_ml

    def isAnswer(self, mask: Mask) -> bool:
        """Whether a mask is the model's answer."""
        node = self.segmentationNode
        return mrml.hasPrediction(node) and np.array_equal(mask, mrml.predictionMask(node, self.volumeNode))

    def otherSegments(self) -> list[str]:
        """Names of the segments that are no lesion segments of ours."""
        segmentation = self.segmentationNode.GetSegmentation()
        ours = mrml.segmentsWithRole(self.segmentationNode)
        return [segmentation.GetSegment(i).GetName() for i in segmentation.GetSegmentIDs() if i not in ours]

    def isGone(self) -> bool:
        """Whether somebody has removed CT or lesions from the scene."""
        return any(node is not None and node.GetScene() is None for node in (self.volumeNode, self.segmentationNode))

    def remove(self) -> None:
        """Take the nodes out of the scene; what was hidden for them is visible again."""
        made = [] if self.volumeNode is None else mrml.moduleParameters().madeFrom(self.volumeNode)
        for node in (*made, self.segmentationNode, self.lungNode, self.volumeNode):
            mrml.removeNode(node)
        mrml.removeLostPredictions()
        for node in self._hidden:
            if node.GetScene() is not None and node.GetDisplayNode() is not None:
                node.GetDisplayNode().SetVisibility(True)
        self._hidden = []
