"""Stand-in for the segment editor widget: its programming interface on the real editor logic, no brushes on views."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtWidgets
from PySide6.QtCore import Signal

from .mrml_widgets import SceneWidget, qMRMLSegmentsTableView
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
    """Chosen segmentation, segment, source volume and effect are kept in the editor node, undo in a real history."""

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
        self.shortcutsInstalled = self.viewsObserved = False
        self._editor: Any = None
        self._effects: list[str] = []
        self._history: Any = None
        self._segments = qMRMLSegmentsTableView()
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(QtWidgets.QLabel("Segment editor (painting needs Slicer)"))
        layout.addWidget(self._segments)
        self._segments.selectionChanged.connect(self._selected)

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        self._editor = node

    def mrmlSegmentEditorNode(self) -> Any:
        return self._editor

    def setSegmentationNode(self, node: Any) -> None:
        self._node().SetAndObserveSegmentationNode(node)
        self._segments.setSegmentationNode(node)
        self._history = None
        if node is not None:
            self._history = slicer.vtkSegmentationHistory()
            self._history.SetSegmentation(node.GetSegmentation())
            self._history.SetMaximumNumberOfStates(self.maximumNumberOfUndoStates)
        self.segmentationNodeChanged.emit(node)

    def segmentationNode(self) -> Any:
        return self._node().GetSegmentationNode()

    def setSourceVolumeNode(self, node: Any) -> None:
        self._node().SetAndObserveSourceVolumeNode(node)
        self.sourceVolumeNodeChanged.emit(node)

    def sourceVolumeNode(self) -> Any:
        return self._node().GetSourceVolumeNode()

    def setCurrentSegmentID(self, identity: str) -> None:
        self._node().SetSelectedSegmentID(identity)
        self._segments.setSelectedSegmentIDs([identity])
        self.currentSegmentIDChanged.emit(identity)

    def currentSegmentID(self) -> str:
        return str(self._node().GetSelectedSegmentID() or "")

    def setEffectNameOrder(self, names: list[str]) -> None:
        self._effects = list(names)

    def availableEffectNames(self) -> list[str]:
        return list(self._effects)

    def setActiveEffectByName(self, name: str) -> None:
        self._node().SetActiveEffectName(name)

    def activeEffect(self) -> Effect | None:
        name = self._node().GetActiveEffectName()
        return Effect(name, self._node()) if name else None

    def saveStateForUndo(self) -> None:
        self._history.SaveState()

    def undo(self) -> None:
        self._history.RestorePreviousState()

    def redo(self) -> None:
        self._history.RestoreNextState()

    def installKeyboardShortcuts(self, parent: Any = None) -> None:
        self.shortcutsInstalled = True

    def uninstallKeyboardShortcuts(self) -> None:
        self.shortcutsInstalled = False

    def setupViewObservations(self) -> None:
        self.viewsObserved = True

    def removeViewObservations(self) -> None:
        self.viewsObserved = False

    def updateWidgetFromMRML(self) -> None:
        self._segments.refresh()

    def _node(self) -> Any:
        if self._editor is None:
            raise RuntimeError("setMRMLSegmentEditorNode comes first")
        return self._editor

    def _selected(self, *_: Any) -> None:
        chosen = self._segments.selectedSegmentIDs()
        if self._editor is not None and len(chosen) == 1 and chosen[0] != self.currentSegmentID():
            self._editor.SetSelectedSegmentID(chosen[0])
            self.currentSegmentIDChanged.emit(chosen[0])


CLASSES = {"qMRMLSegmentEditorWidget": qMRMLSegmentEditorWidget}
