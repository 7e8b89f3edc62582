"""Stand-ins for qMRML widgets on the real scene: node selectors, segments, views of tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Qt, Signal

from .pythonqt import add_setters, setting

_SURFACES = "Closed surface"
_SEGMENT_EVENTS = ("SegmentAdded", "SegmentRemoved", "SegmentModified", "SegmentsOrderModified")


class Observations:
    """VTK observers of a widget that go away together, at the latest when Qt deletes the widget.

    Args:
        owner: the widget.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        made: list[tuple[Any, int]] = []
        self._made = made
        # Qt holds the list: without it the observed node's wrapper, the observers and the widget are a circle that
        # Python collects while the scene keeps the node and calls what is gone
        owner.destroyed.connect(lambda *_ignored: _remove(made))

    def add(self, thing: Any, event: Any, action: Any, priority: float = 0.0) -> None:
        """Call an action without arguments."""

        def call(_caller: Any, _event: str) -> None:
            if shiboken6.isValid(self._owner):
                action()

        self._made.append((thing, thing.AddObserver(event, call, priority)))

    def add_with_node(self, thing: Any, event: Any, action: Any, priority: float) -> None:
        """Call an action with the node that the event is about."""

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def call(_caller: Any, _event: str, node: Any) -> None:
            if shiboken6.isValid(self._owner):
                action(node)

        self._made.append((thing, thing.AddObserver(event, call, priority)))

    def clear(self) -> None:
        _remove(self._made)


def _remove(made: list[tuple[Any, int]]) -> None:
    for thing, tag in made:
        thing.RemoveObserver(tag)
    made.clear()


class SceneWidget(QtWidgets.QWidget):
    """What widgets on a scene share: they refresh when nodes come and go."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._scene_observations = Observations(self)

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene_observations.clear()
        self._scene = scene
        if scene is not None:
            for event in self._events():
                self._scene_observations.add(scene, event, self.refresh)
        self.refresh()
        self.mrmlSceneChanged.emit(scene)

    def _events(self) -> tuple[int, ...]:
        """The scene's events after which everything is shown anew."""
        events = slicer.vtkMRMLScene
        return events.NodeAddedEvent, events.NodeRemovedEvent, events.EndCloseEvent, events.EndImportEvent

    def refresh(self) -> None:
        """Show what the scene holds now."""

    def _setting_changed(self) -> None:
        self.refresh()


class qMRMLWidget(SceneWidget):  # noqa: N801
    """A widget that hands its scene on, which in Slicer connections in the .ui file do."""

    def setMRMLScene(self, scene: Any) -> None:
        super().setMRMLScene(scene)
        for child in self.findChildren(SceneWidget):
            child.setMRMLScene(scene)


class qSlicerWidget(qMRMLWidget):  # noqa: N801
    """Base of module panels."""


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):  # noqa: N801
    """Panel of a scripted module; it has its layout from the beginning."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        QtWidgets.QVBoxLayout(self)

    def reload(self) -> None:
        """Make the module's widget object anew, from its file as it is loaded now."""
        name = self.name.removesuffix("ModuleWidget")
        widget = getattr(sys.modules[name], f"{name}Widget")(self)
        setattr(slicer.modules, f"{name}Widget", widget)
        widget.setup()


@add_setters
class qMRMLNodeComboBox(SceneWidget):  # noqa: N801
    """Chooses one of the scene's nodes of given classes."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeAddedByUser = Signal(object)
    nodeActivated = Signal(object)

    nodeTypes = setting("QStringList", "nodeTypes", [])
    hideChildNodeTypes = setting("QStringList", "hideChildNodeTypes", [])
    showChildNodeTypes = setting(bool, "showChildNodeTypes", True)
    showHidden = setting(bool, "showHidden", False)
    noneEnabled = setting(bool, "noneEnabled", False)
    noneDisplay = setting(str, "noneDisplay", "None")
    addEnabled = setting(bool, "addEnabled", True)
    removeEnabled = setting(bool, "removeEnabled", True)
    editEnabled = setting(bool, "editEnabled", False)
    renameEnabled = setting(bool, "renameEnabled", False)
    selectNodeUponCreation = setting(bool, "selectNodeUponCreation", True)
    baseName = setting(str, "baseName", "")

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._combo = QtWidgets.QComboBox()
        self._shown = ""
        self._renames: dict[str, Observations] = {}
        _fill(self, self._combo)
        self._combo.currentIndexChanged.connect(lambda _: self._announce())

    def setMRMLScene(self, scene: Any) -> None:
        super().setMRMLScene(scene)
        if scene is not None:
            events = slicer.vtkMRMLScene
            # what Slicer's model of the scene does: before all others when a node comes, after them when one goes
            observe = self._scene_observations.add_with_node
            observe(scene, events.NodeAddedEvent, self._node_added, 10.0)
            observe(scene, events.NodeAboutToBeRemovedEvent, self._node_goes, -10.0)

    def _events(self) -> tuple[int, ...]:
        events = slicer.vtkMRMLScene
        return events.EndCloseEvent, events.EndImportEvent

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self.currentNodeId()) if self._scene and self.currentNodeId() else None

    def currentNodeId(self) -> str:
        return str(self._combo.itemData(self._combo.currentIndex) or "")

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentNodeID("" if node is None else node.GetID())

    def setCurrentNodeID(self, identity: str) -> None:
        # a node that can't be chosen leaves nothing chosen, as in Slicer
        self._combo.setCurrentIndex(self._combo.findData(identity or ""))

    currentNodeID = Property(str, currentNodeId, setCurrentNodeID)

    def nodeCount(self) -> int:
        return len(self._nodes())

    def nodeFromIndex(self, index: int) -> Any:
        return self._nodes()[index]

    def addNode(self, class_name: str = "") -> Any:
        node = self._scene.AddNewNodeByClass(class_name or self.nodeTypes[0], self.baseName)
        self.nodeAddedByUser.emit(node)
        self.setCurrentNode(node)
        return node

    def refresh(self) -> None:
        nodes = self._nodes()
        for observations in self._renames.values():
            observations.clear()
        self._renames = {}
        self._combo.blockSignals(True)
        self._combo.clear()
        if self.noneEnabled:
            self._combo.addItem(self.noneDisplay, "")
        for node in nodes:
            self._offer(node)
        self._combo.setCurrentIndex(max(self._combo.findData(self._shown), 0) if self._combo.count else -1)
        self._combo.blockSignals(False)
        self._announce()

    def _offer(self, node: Any) -> None:
        self._combo.addItem(node.GetName(), node.GetID())
        identity = node.GetID()
        observations = self._renames[identity] = Observations(self)
        observations.add(node, "ModifiedEvent", lambda: self._node_changed(identity))

    def _node_added(self, node: Any) -> None:
        if not self._scene.IsImporting() and not self._scene.IsClosing() and self._offers(node):
            self._offer(node)

    def _node_goes(self, node: Any) -> None:
        """The row goes, and Qt's combo box moves to the one that takes its place, or to the last."""
        index = self._combo.findData(node.GetID())
        if index < 0 or self._scene.IsClosing():
            return
        self._renames.pop(node.GetID()).clear()
        self._combo.removeItem(index)

    def _node_changed(self, identity: str) -> None:
        """Another name moves the row, and the chosen node is told again."""
        node, index = self._scene.GetNodeByID(identity), self._combo.findData(identity)
        if node is not None and index >= 0 and node.GetName() != self._combo.itemText(index):
            self._combo.setItemText(index, node.GetName())
            if identity == self._shown:
                self.currentNodeChanged.emit(node)

    def _nodes(self) -> list[Any]:
        if self._scene is None:
            return []
        nodes = [self._scene.GetNthNode(index) for index in range(self._scene.GetNumberOfNodes())]
        return [node for node in nodes if self._offers(node)]

    def _offers(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        if any(node.IsA(kind) for kind in self.hideChildNodeTypes):
            return False
        if not self.showChildNodeTypes:
            return node.GetClassName() in self.nodeTypes
        return any(node.IsA(kind) for kind in self.nodeTypes)

    def _announce(self) -> None:
        identity = self.currentNodeId()
        if identity != self._shown:
            self._shown = identity
            self.currentNodeChanged.emit(self.currentNode())
            self.currentNodeIDChanged.emit(identity)


class SegmentationWidget(SceneWidget):
    """What widgets on one segmentation share."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._segmentation_node: Any = None
        self._segment_observations = Observations(self)

    def segmentationNode(self) -> Any:
        return self._segmentation_node

    def setSegmentationNode(self, node: Any) -> None:
        self._segment_observations.clear()
        self._segmentation_node = node
        if node is not None:
            for event in _SEGMENT_EVENTS:
                number = getattr(slicer.vtkSegmentation, event)
                self._segment_observations.add(node.GetSegmentation(), number, self.refresh)
        self.refresh()

    def refresh(self) -> None:
        if self._segmentation_node is not None and self._segmentation_node.GetScene() is None:
            self._segment_observations.clear()
            self._segmentation_node = None
        self._show_segments()

    def _show_segments(self) -> None:
        """Show the segments of :meth:`segmentationNode`."""

    def _segments(self) -> list[tuple[str, Any]]:
        if self._segmentation_node is None:
            return []
        segmentation = self._segmentation_node.GetSegmentation()
        return [(identity, segmentation.GetSegment(identity)) for identity in segmentation.GetSegmentIDs()]


@add_setters
class qMRMLSegmentsTableView(SegmentationWidget):  # noqa: N801
    """Segments with visibility, color and name."""

    selectionChanged = Signal(object, object)
    segmentAboutToBeModified = Signal(str)

    selectionMode = setting(int, "selectionMode", 3)
    headerVisible = setting(bool, "headerVisible", True)
    visibilityColumnVisible = setting(bool, "visibilityColumnVisible", True)
    colorColumnVisible = setting(bool, "colorColumnVisible", True)
    opacityColumnVisible = setting(bool, "opacityColumnVisible", True)
    statusColumnVisible = setting(bool, "statusColumnVisible", False)
    readOnly = setting(bool, "readOnly", False)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._busy = False
        self._table = QtWidgets.QTableWidget(0, 3)
        self._table.setHorizontalHeaderLabels(["", "", "Name"])
        self._table.horizontalHeader().setStretchLastSection(True)
        self._table.setColumnWidth(0, 24)
        self._table.setColumnWidth(1, 30)
        self._table.verticalHeader().hide()
        self._table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        _fill(self, self._table)
        self._table.itemChanged.connect(self._item_changed)
        self._table.itemSelectionChanged.connect(lambda: self._busy or self.selectionChanged.emit(None, None))

    def selectedSegmentIDs(self) -> tuple[str, ...]:
        rows = sorted({index.row() for index in self._table.selectedIndexes()})
        return tuple(self._identity(row) for row in rows)

    def setSelectedSegmentIDs(self, identities: Sequence[str]) -> None:
        self._table.clearSelection()
        for row in range(self._table.rowCount):
            if self._identity(row) in identities:
                self._table.selectRow(row)

    def clearSelection(self) -> None:
        self._table.clearSelection()

    def _identity(self, row: int) -> str:
        return str(self._table.item(row, 0).data(Qt.ItemDataRole.UserRole))

    def _show_segments(self) -> None:
        self._busy = True
        segments = self._segments()
        display = self._segmentation_node.GetDisplayNode() if self._segmentation_node is not None else None
        self._table.setRowCount(len(segments))
        for row, (identity, segment) in enumerate(segments):
            eye = QtWidgets.QTableWidgetItem()
            eye.setData(Qt.ItemDataRole.UserRole, identity)
            visible = display is None or display.GetSegmentVisibility(identity)
            eye.setCheckState(Qt.CheckState.Checked if visible else Qt.CheckState.Unchecked)
            color = QtWidgets.QTableWidgetItem()
            color.setBackground(QtGui.QColor.fromRgbF(*segment.GetColor()))
            for column, item in enumerate((eye, color, QtWidgets.QTableWidgetItem(segment.GetName()))):
                self._table.setItem(row, column, item)
        self._busy = False

    def _item_changed(self, item: QtWidgets.QTableWidgetItem) -> None:
        if self._busy:
            return
        identity = self._identity(item.row())
        if item.column() == 2:
            self._segmentation_node.GetSegmentation().GetSegment(identity).SetName(item.text())
        elif item.column() == 0:
            visible = item.checkState() == Qt.CheckState.Checked
            self._segmentation_node.GetDisplayNode().SetSegmentVisibility(identity, visible)


@add_setters
class qMRMLSegmentationShow3DButton(QtWidgets.QPushButton):  # noqa: N801
    """Makes and shows the surfaces of a segmentation, or removes them; it follows the segmentation."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._observations = Observations(self)
        self.setText("Show 3D")
        self.setCheckable(True)
        self.toggled.connect(self._toggled)
        self._setting_changed()

    locked = setting(bool, "locked", False)

    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        if node is self._node:
            return
        self._observations.clear()
        self._node = node
        if node is not None:
            for event in ("SegmentAdded", "SegmentRemoved", "ContainedRepresentationNamesModified"):
                number = getattr(slicer.vtkSegmentation, event)
                self._observations.add(node.GetSegmentation(), number, self._setting_changed)
        self._setting_changed()

    def _toggled(self, wanted: bool) -> None:
        if self._node is None:
            return
        segmentation = self._node.GetSegmentation()
        if not wanted:
            if segmentation.GetSourceRepresentationName() != _SURFACES:
                segmentation.RemoveRepresentation(_SURFACES)
        elif segmentation.CreateRepresentation(_SURFACES) and self._node.GetDisplayNode() is not None:
            self._node.GetDisplayNode().SetPreferredDisplayRepresentationName3D(_SURFACES)

    def _setting_changed(self) -> None:
        if self._node is None:
            self.setEnabled(False)
            return
        segmentation = self._node.GetSegmentation()
        has_labelmaps = segmentation.GetSourceRepresentationName() != _SURFACES
        self.setEnabled(not self.locked and segmentation.GetNumberOfSegments() > 0 and has_labelmaps)
        blocked = self.blockSignals(True)
        self.setChecked(segmentation.ContainsRepresentation(_SURFACES))
        self.blockSignals(blocked)


class qMRMLTableView(QtWidgets.QTableView):  # noqa: N801
    """Shows a table node; read only."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._observations = Observations(self)

    def setMRMLScene(self, scene: Any) -> None:
        """The node brings its scene."""

    def mrmlTableNode(self) -> Any:
        return self._node

    def setMRMLTableNode(self, node: Any) -> None:
        self._observations.clear()
        self._node = node
        if node is not None:
            self._observations.add(node, "ModifiedEvent", self.refresh)
        self.refresh()

    def refresh(self) -> None:
        model = QtGui.QStandardItemModel(self)
        node = self._node
        if node is not None:
            names = [node.GetColumnName(column) for column in range(node.GetNumberOfColumns())]
            model.setHorizontalHeaderLabels([node.GetColumnTitle(name) or name for name in names])
            for row in range(node.GetNumberOfRows()):
                texts = [node.GetCellText(row, column) for column in range(len(names))]
                model.appendRow([QtGui.QStandardItem(text) for text in texts])
        self.setModel(model)


CLASSES = {
    cls.__name__: cls
    for cls in (
        qMRMLNodeComboBox,
        qMRMLSegmentationShow3DButton,
        qMRMLSegmentsTableView,
        qMRMLTableView,
        qMRMLWidget,
        qSlicerScriptedLoadableModuleWidget,
        qSlicerWidget,
    )
}


def _fill(widget: QtWidgets.QWidget, *children: QtWidgets.QWidget) -> None:
    layout = QtWidgets.QVBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    for child in children:
        layout.addWidget(child)


__all__ = ["CLASSES", "Observations", "QtCore", "SceneWidget", "SegmentationWidget"]
