"""Stand-in for the segment editor widget: its programming interface on the real editor logic, no brushes on views."""

from __future__ import annotations

import sys
from typing import Any

import slicer
from PySide6 import QtWidgets
from PySide6.QtCore import Signal

from .mrml_widgets import Observations, SceneWidget, qMRMLNodeComboBox, qMRMLSegmentsTableView
from .pythonqt import add_setters, setting


class Effect:
    """An effect as far as a module asks for it: a name and parameters."""

    def __init__(self, name: str, editor_node: Any) -> None:
        self.name = name
        self._node = editor_node

    def parameter(self, name: str) -> str:
        return str(self._node.GetAttribute(f"{self.name}.{name}") or "")

    def setParameter(self, name: str, value: Any) -> None:
        self._node.SetAttribute(f"{self.name}.{name}", str(value))


@add_setters
class qMRMLSegmentEditorWidget(SceneWidget):  # noqa: N801
    """Chosen segmentation, segment, source volume and effect are kept in the editor node, undo in a real history.

    As Slicer's: what is shown is what the two selectors have, nothing follows the editor node during a batch, and at a
    batch's end the editor node takes the selectors' nodes. Reading a scene is a batch.
    """

    segmentationNodeChanged = Signal(object)
    sourceVolumeNodeChanged = Signal(object)
    currentSegmentIDChanged = Signal(str)

    maximumNumberOfUndoStates = setting(int, "maximumNumberOfUndoStates", 10)
    segmentationNodeSelectorVisible = setting(bool, "segmentationNodeSelectorVisible", True)
    sourceVolumeNodeSelectorVisible = setting(bool, "sourceVolumeNodeSelectorVisible", True)
    switchToSegmentationsButtonVisible = setting(bool, "switchToSegmentationsButtonVisible", True)
    unorderedEffectsVisible = setting(bool, "unorderedEffectsVisible", True)
    autoShowSourceVolumeNode = setting(bool, "autoShowSourceVolumeNode", True)
    undoEnabled = setting(bool, "undoEnabled", True)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._editor: Any = None
        self._editor_observations = Observations(self)
        self._effects: tuple[str, ...] = ()
        # what is shown now
        self._segmentation: Any = None
        self._source: Any = None
        self._segment = ""
        self._history: Any = None
        self._segments = qMRMLSegmentsTableView()
        self._segmentation_selector = _selector("vtkMRMLSegmentationNode")
        self._source_selector = _selector("vtkMRMLScalarVolumeNode")
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(QtWidgets.QLabel("Segment editor (painting needs Slicer)"))
        for widget in (self._segmentation_selector, self._source_selector, self._segments):
            layout.addWidget(widget)
        self._segments.selectionChanged.connect(self._selected)
        self._segmentation_selector.currentNodeChanged.connect(self.setSegmentationNode)
        self._source_selector.currentNodeChanged.connect(self.setSourceVolumeNode)

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        for selector in (self._segmentation_selector, self._source_selector):
            selector.setMRMLScene(scene)
        super().setMRMLScene(scene)
        if scene is not None:
            if self._editor is None:
                print("qMRMLSegmentEditorWidget: Invalid segment editor parameter set node", file=sys.stderr)
            self._scene_observations.add(scene, scene.EndBatchProcessEvent, self._batch_ended)
            self._scene_observations.add(scene, scene.EndCloseEvent, self.updateWidgetFromMRML)
            self.updateWidgetFromMRML()

    def _events(self) -> tuple[int, ...]:
        return ()

    def _setting_changed(self) -> None:
        self._segmentation_selector.setVisible(self.segmentationNodeSelectorVisible)
        self._source_selector.setVisible(self.sourceVolumeNodeSelectorVisible)

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        if node is self._editor:
            return
        self._editor_observations.clear()
        self._editor = node
        if node is not None:
            self._editor_observations.add(node, "ModifiedEvent", self.updateWidgetFromMRML)
        self.updateWidgetFromMRML()

    def mrmlSegmentEditorNode(self) -> Any:
        return self._editor

    def setSegmentationNode(self, node: Any) -> None:
        if self._editor is None:
            print("qMRMLSegmentEditorWidget: need to set segment editor node first", file=sys.stderr)
        elif self._editor.GetSegmentationNode() is not node:
            self.setActiveEffectByName("")
            self._editor.SetAndObserveSegmentationNode(node)

    def segmentationNode(self) -> Any:
        return self._segmentation_selector.currentNode()

    def setSourceVolumeNode(self, node: Any) -> None:
        if self._editor is not None and self._editor.GetSourceVolumeNode() is not node:
            self._editor.SetAndObserveSourceVolumeNode(node)

    def sourceVolumeNode(self) -> Any:
        return self._source_selector.currentNode()

    def setCurrentSegmentID(self, identity: str) -> None:
        if self._editor is not None:
            self._editor.SetSelectedSegmentID(identity)

    def currentSegmentID(self) -> str:
        return "" if self._editor is None else str(self._editor.GetSelectedSegmentID() or "")

    def setEffectNameOrder(self, names: list[str]) -> None:
        self._effects = tuple(names)

    def availableEffectNames(self) -> tuple[str, ...]:
        return self._effects

    def setActiveEffectByName(self, name: str) -> None:
        if self._editor is not None:
            self._editor.SetActiveEffectName(name)

    def activeEffect(self) -> Effect | None:
        name = "" if self._editor is None else self._editor.GetActiveEffectName()
        return Effect(name, self._editor) if name else None

    def saveStateForUndo(self) -> None:
        if self._history is not None:
            self._history.SaveState()

    def undo(self) -> None:
        if self._history is not None:
            self._history.RestorePreviousState()

    def redo(self) -> None:
        if self._history is not None:
            self._history.RestoreNextState()

    def installKeyboardShortcuts(self, parent: Any = None) -> None:
        """There are none."""

    def uninstallKeyboardShortcuts(self) -> None:
        """There are none."""

    def setupViewObservations(self) -> None:
        """There are no views."""

    def removeViewObservations(self) -> None:
        """There are no views."""

    def updateWidgetFromMRML(self) -> None:
        """Show what the editor node says, unless a batch is on."""
        if self._editor is None or self._scene is None or self._scene.IsBatchProcessing():
            return
        self._show_segmentation(self._editor.GetSegmentationNode())
        self._show_source(self._editor.GetSourceVolumeNode())
        identity = self.currentSegmentID()
        if identity != self._segment:
            self._segment = identity
            self._segments.setSelectedSegmentIDs([identity] if identity else [])
            self.currentSegmentIDChanged.emit(identity)
        self._segments.refresh()

    def _show_segmentation(self, node: Any) -> None:
        _choose_silently(self._segmentation_selector, node)
        if node is self._segmentation:
            return
        self._segmentation = node
        self._segments.setSegmentationNode(node)
        self._history = None
        if node is not None:
            self._history = slicer.vtkSegmentationHistory()
            self._history.SetSegmentation(node.GetSegmentation())
            self._history.SetMaximumNumberOfStates(self.maximumNumberOfUndoStates)
            reference = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
            self._source_selector.setCurrentNode(reference)
            segments = node.GetSegmentation()
            if segments.GetNumberOfSegments():
                self._editor.SetSelectedSegmentID(segments.GetNthSegmentID(0))
        self.segmentationNodeChanged.emit(node)

    def _show_source(self, node: Any) -> None:
        if node is not self._source and self._editor.GetSegmentationNode() is not None:
            self._source = node
            _choose_silently(self._source_selector, node)
            self.sourceVolumeNodeChanged.emit(node)

    def _batch_ended(self) -> None:
        self.setSegmentationNode(self.segmentationNode())
        self.setSourceVolumeNode(self.sourceVolumeNode())
        self.updateWidgetFromMRML()

    def _selected(self, *_: Any) -> None:
        chosen = self._segments.selectedSegmentIDs()
        if self._editor is not None and len(chosen) == 1 and chosen[0] != self.currentSegmentID():
            self._editor.SetSelectedSegmentID(chosen[0])


def _selector(class_name: str) -> qMRMLNodeComboBox:
    selector = qMRMLNodeComboBox()
    selector.nodeTypes, selector.noneEnabled = (class_name,), True
    return selector


def _choose_silently(selector: qMRMLNodeComboBox, node: Any) -> None:
    if selector.currentNode() is not node:
        blocked = selector.blockSignals(True)
        selector.setCurrentNode(node)
        selector.blockSignals(blocked)


CLASSES = {"qMRMLSegmentEditorWidget": qMRMLSegmentEditorWidget}
