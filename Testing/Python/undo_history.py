"""Undo for segmentations that tests change: states as the segment editor of Slicer keeps them."""

from __future__ import annotations

from typing import Any

import slicer

from COVIDLesionSegLib.mrml.nodes import requireNode
from COVIDLesionSegLib.mrml.segmentations import SEGMENTATION

_EDITOR_TAG = "COVIDLesionSeg"


class UndoHistory:
    """States of a segmentation, oldest dropped first.

    Where Slicer's segment editor widget shows the segmentation, pass that widget to :func:`showLesions` instead: it has
    the same methods, and its own undo button then takes the result back.

    Args:
        segmentation_node: the segmentation.
        volume_node: the CT.
        states: how many are kept.

    Raises:
        InputError: a node that is not what it should be.
    """

    def __init__(self, segmentation_node: Any, volume_node: Any, states: int = 10) -> None:
        requireNode(segmentation_node, SEGMENTATION, "segmentation")
        requireNode(volume_node, "vtkMRMLScalarVolumeNode", "CT")
        self._node = segmentation_node
        self._history = slicer.vtkSegmentationHistory()
        self._history.SetSegmentation(segmentation_node.GetSegmentation())
        self._history.SetMaximumNumberOfStates(states)
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self._logic.SetMRMLScene(segmentation_node.GetScene())
        self._logic.SetSegmentEditorNode(_editor_node())
        self._logic.SetSegmentationNode(segmentation_node)
        self._logic.SetSourceVolumeNode(volume_node)
        self._logic.SetSegmentationHistory(self._history)

    @property
    def logic(self) -> Any:
        """The vtkSlicerSegmentEditorLogic, for edits with the editor's own means."""
        return self._logic

    def saveStateForUndo(self) -> None:
        """Remember the segmentation as it is."""
        self._require_node()
        self._history.SaveState()

    def canUndo(self) -> bool:
        """Whether there is an earlier state."""
        return bool(self._history.IsRestorePreviousStateAvailable())

    def canRedo(self) -> bool:
        """Whether there is a later state."""
        return bool(self._history.IsRestoreNextStateAvailable())

    def undo(self) -> bool:
        """Go back to the state before; False if there is none."""
        self._require_node()
        return self.canUndo() and bool(self._history.RestorePreviousState())

    def redo(self) -> bool:
        """Go forward again; False if there is nothing to redo."""
        self._require_node()
        return self.canRedo() and bool(self._history.RestoreNextState())

    def clear(self) -> None:
        """Forget all states and free their memory."""
        self._history.RemoveAllStates()

    def _require_node(self) -> None:
        requireNode(self._node, SEGMENTATION, "segmentation")


def _editor_node() -> Any:
    """One for all histories, so that the scene does not fill with them."""
    scene = slicer.mrmlScene
    node = scene.GetSingletonNode(_EDITOR_TAG, "vtkMRMLSegmentEditorNode")
    if node is None:
        node = slicer.vtkMRMLSegmentEditorNode()
        node.SetSingletonTag(_EDITOR_TAG)
        node = scene.AddNode(node)
    return node
