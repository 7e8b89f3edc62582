"""Qt as Slicer's Python has it, on PySide6: as strict, and with the widgets on the real scene."""

from __future__ import annotations

import sys

import numpy as np
import pytest

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Example</class><widget class="qMRMLWidget" name="Example"><layout class="QVBoxLayout">
<item><widget class="qMRMLNodeComboBox" name="inputSelector">
<property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
<property name="noneEnabled"><bool>true</bool></property></widget></item>
<item><widget class="ctkCollapsibleButton" name="settings"><property name="text"><string>Settings</string></property>
<layout class="QVBoxLayout"><item><widget class="ctkSliderWidget" name="threshold">
<property name="maximum"><double>1.0</double></property><property name="value"><double>0.5</double></property>
</widget></item></layout></widget></item>
<item><widget class="QPushButton" name="apply"><property name="text"><string>Apply</string></property></widget></item>
<item><widget class="qMRMLVolumeThresholdWidget" name="unknown"/></item>
</layout></widget><customwidgets/></ui>
"""
MODULE = """
import slicer
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin

class Example(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "Example"

class ExampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = ExampleLogic()
        form = slicer.util.loadUI(self.resourcePath("UI/Example.ui"))
        self.layout.addWidget(form)
        self.ui = slicer.util.childWidgetVariables(form)
        form.setMRMLScene(slicer.mrmlScene)
        self.ui.apply.connect("clicked(bool)", self.onApply)
        self.ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onInput)
        self.onInput(None)

    def onInput(self, node):
        self.ui.apply.enabled = node is not None

    def onApply(self, checked=False):
        parameters = self.logic.getParameterNode()
        parameters.SetParameter("threshold", str(self.ui.threshold.value))

class ExampleLogic(ScriptedLoadableModuleLogic):
    pass
"""


@pytest.fixture
def qt(slicer_gui):
    return sys.modules["qt"]


@pytest.fixture
def ctk(slicer_gui):
    return sys.modules["ctk"]


@pytest.fixture
def util(slicer_gui):
    return slicer_gui.util


@pytest.fixture
def volume(scene, util):
    return util.addVolumeFromArray(np.zeros((4, 5, 6), np.int16), name="volume")


@pytest.fixture
def segmentation(volume, scene):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name in ("one", "two"):
        node.GetSegmentation().AddEmptySegment(name, name, [1, 0, 0])
    return node


def test_properties_are_attributes(qt):
    button = qt.QPushButton("Apply")
    assert (button.text, button.enabled, button.isEnabled()) == ("Apply", True, True)
    button.enabled = False
    button.text = "Cancel"
    assert (button.text, button.isEnabled()) == ("Cancel", False)
    button.setEnabled(True)
    assert button.enabled
    button.name = "apply"
    assert button.objectName == "apply"


def faults(qt, slicer):
    button, combo = qt.QPushButton(), qt.QComboBox()
    return {
        "calling a property": (TypeError, lambda: button.text()),
        "calling a number": (TypeError, lambda: combo.count()),
        "an unknown property": (AttributeError, lambda: button.caption),
        "a new attribute": (AttributeError, lambda: setattr(button, "caption", "x")),
        "a value of the wrong type": (AttributeError, lambda: setattr(combo, "iconSize", "large")),
        "calling a size": (TypeError, lambda: button.sizeHint()),
        "an argument by keyword": (ValueError, lambda: button.setText("x", text="x")),
        "a slot that can't be called": (TypeError, lambda: button.connect("clicked()", "onApply")),
        "an enum with a number": (TypeError, lambda: qt.Qt.Checked == 2),
        "a number with an enum": (TypeError, lambda: qt.QProcess.NotRunning != 0),
        "a signal of one's own": (AttributeError, lambda: qt.Signal),
        "what the application has not": (AttributeError, lambda: slicer.app.beep()),
    }


def test_what_pythonqt_refuses_is_refused(qt, slicer_gui):
    for fault, (error, action) in faults(qt, slicer_gui).items():
        with pytest.raises(error):
            action()
            print(fault)


def test_an_unknown_signal_is_a_line_and_no_error(qt, capfd):
    from host.pythonqt import failed_connections

    before = list(failed_connections)
    assert qt.QPushButton().connect("klicked()", print) is False
    assert qt.QPushButton().connect("clicked(int)", print) is False
    assert capfd.readouterr().err.count("has no signal") == 2
    assert failed_connections[len(before) :] == [("QPushButton", "klicked()"), ("QPushButton", "clicked(int)")]
    failed_connections[:] = before


def test_setters_convert_as_pythonqt_does(qt):
    label, spin, check = qt.QLabel("text"), qt.QSpinBox(), qt.QCheckBox()
    label.setText(5)
    spin.setValue(2.7)
    check.setChecked(1)
    assert (label.text, spin.value, check.checked) == ("5", 2, True)
    label.setText(None)
    check.setChecked(None)
    assert (label.text, check.checked) == ("", False)


def test_lists_are_tuples_and_sizes_are_attributes(qt, slicer_gui):
    widget = qt.QWidget()
    layout = qt.QVBoxLayout(widget)
    for text in ("one", "another"):
        layout.addWidget(qt.QPushButton(text))
    assert isinstance(widget.children(), tuple) and len(widget.children()) == 3
    assert widget.minimumSizeHint.height() > 20 and widget.sizeHint.width() >= widget.minimumSizeHint.width()
    selector = slicer_gui.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLVolumeNode"]
    assert selector.nodeTypes == ("vtkMRMLVolumeNode",)


def test_slicers_own_single_shot_keeps_its_timers(qt, slicer_gui):
    seen, before = [], len(slicer_gui.app.moduleManager().children())
    qt.QTimer.singleShot(0, lambda: seen.append("shot"))
    while not seen:
        slicer_gui.app.processEvents()
    assert len(slicer_gui.app.moduleManager().children()) == before + 1


def test_enums_compare_by_name(qt):
    assert qt.Qt.Checked == qt.Qt.Checked
    assert qt.Qt.Checked != qt.Qt.Unchecked
    assert {qt.QProcess.Running: "runs"}[qt.QProcess.Running] == "runs"
    assert qt.QProcess().state() == qt.QProcess.NotRunning


def test_signals_connect_by_text_and_by_name(qt):
    button, seen = qt.QPushButton(), []
    button.connect("clicked(bool)", lambda *arguments: seen.append("text"))
    button.clicked.connect(lambda: seen.append("name"))
    button.click()
    assert seen == ["text", "name"]
    line, other = qt.QLineEdit(), qt.QLineEdit()
    line.connect("textChanged(QString)", other, "setText(QString)")
    line.text = "to the other"
    assert other.text == "to the other"


def test_timers_and_processes_work(qt, slicer_gui):
    seen = []
    qt.QTimer.singleShot(0, lambda: seen.append("shot"))
    process = qt.QProcess()
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: seen.append((code, status)))
    process.connect("readyReadStandardOutput()", lambda: seen.append(process.readAllStandardOutput().data()))
    process.start(sys.executable, ["-c", "print('done', end='')"])
    assert process.waitForFinished(20000)
    slicer_gui.app.processEvents()
    assert {"shot", b"done", (0, qt.QProcess.NormalExit)} <= set(seen)


def test_settings_are_the_tests_own(qt, slicer_gui, util):
    slicer_gui.app.settings().setValue("Example/answer", 42)
    assert util.settingsValue("Example/answer", 0, converter=int) == 42
    assert slicer_gui.app.settings().fileName().startswith(slicer_gui.app.temporaryPath)


def test_node_selector_follows_the_scene(slicer_gui, scene, util, segmentation):
    selector, seen = slicer_gui.qMRMLNodeComboBox(), []
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.noneEnabled = True
    selector.setMRMLScene(scene)
    selector.connect("currentNodeChanged(vtkMRMLNode*)", seen.append)
    assert selector.nodeCount() == 1 and selector.currentNode() is None
    label = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "label")
    assert selector.nodeCount() == 2
    selector.showChildNodeTypes = False
    assert selector.nodeCount() == 1
    selector.setCurrentNode(util.getNode("volume"))
    assert seen == [util.getNode("volume")]
    selector.setCurrentNode(label)  # is not on offer
    assert selector.currentNode() is None
    selector.setCurrentNode(util.getNode("volume"))
    scene.Clear(False)
    assert selector.currentNode() is None and seen[-1] is None


def test_node_selector_moves_to_the_neighbor_before_a_node_is_gone(slicer_gui, scene, util):
    selector, seen = slicer_gui.qMRMLNodeComboBox(), []
    selector.nodeTypes, selector.noneEnabled = ["vtkMRMLScalarVolumeNode"], True
    selector.setMRMLScene(scene)
    one, two, three = (util.addVolumeFromArray(np.zeros((1, 1, 1), np.int16), name=name) for name in "abc")
    selector.setCurrentNode(two)
    selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: seen.append((node, two.GetScene() is not None)))
    scene.AddObserver(scene.NodeAboutToBeRemovedEvent, lambda *_: seen.append("observers of the scene come first"))
    scene.RemoveNode(two)
    assert seen == ["observers of the scene come first", (three, True)]
    scene.RemoveNode(three)
    assert seen[-1][0] is one, "the last row's neighbor is the one before"
    scene.RemoveNode(one)
    assert seen[-1][0] is None


def test_node_selector_tells_a_renamed_node_again(slicer_gui, scene, volume):
    selector, seen = slicer_gui.qMRMLNodeComboBox(), []
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.setMRMLScene(scene)
    selector.connect("currentNodeChanged(vtkMRMLNode*)", seen.append)
    assert selector.currentNode() is volume, "without None the first node is chosen"
    volume.SetName("renamed")
    assert seen == [volume]


def test_segments_table_shows_and_changes_segments(slicer_gui, segmentation):
    table, seen = slicer_gui.qMRMLSegmentsTableView(), []
    table.connect("selectionChanged(QItemSelection,QItemSelection)", lambda *_: seen.append(table.selectedSegmentIDs()))
    table.setSegmentationNode(segmentation)
    table.setSelectedSegmentIDs(["two"])
    assert seen[-1] == ("two",)
    table._table.item(1, 2).setText("second")
    assert segmentation.GetSegmentation().GetSegment("two").GetName() == "second"
    segmentation.GetSegmentation().RemoveSegment("one")
    assert table._table.rowCount == 1


@pytest.fixture
def editor(slicer_gui, scene):
    """A segment editor with its node, then its scene."""
    widget = slicer_gui.qMRMLSegmentEditorWidget()
    widget.setMRMLSegmentEditorNode(scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
    widget.setMRMLScene(scene)
    yield widget
    widget.setMRMLScene(None)


def test_segment_editor_keeps_its_state_in_the_node_and_undoes(editor, segmentation, volume, scene):
    editor.setSegmentationNode(segmentation)
    assert editor.segmentationNode() is segmentation
    assert editor.sourceVolumeNode() is volume, "the segmentation's reference"
    assert editor.currentSegmentID() == "one", "the first segment"
    editor.setCurrentSegmentID("two")
    editor.setActiveEffectByName("Paint")
    assert editor.mrmlSegmentEditorNode().GetSelectedSegmentID() == editor.currentSegmentID() == "two"
    assert editor.activeEffect().name == "Paint"
    editor.saveStateForUndo()
    segmentation.GetSegmentation().RemoveSegment("one")
    editor.undo()
    assert list(segmentation.GetSegmentation().GetSegmentIDs()) == ["one", "two"]


def test_at_a_batchs_end_the_segment_editor_node_takes_what_the_selectors_have(editor, segmentation, volume, scene):
    scene.StartState(scene.BatchProcessState)
    editor.setSegmentationNode(segmentation)
    assert editor.segmentationNode() is None, "nothing is shown during a batch"
    scene.EndState(scene.BatchProcessState)
    assert editor.segmentationNode() is editor.mrmlSegmentEditorNode().GetSegmentationNode() is None


def test_segment_editor_without_its_node_complains_and_does_nothing(slicer_gui, scene, segmentation, capfd):
    widget = slicer_gui.qMRMLSegmentEditorWidget()
    widget.setMRMLScene(scene)
    widget.setSegmentationNode(segmentation)
    assert capfd.readouterr().err.count("segment editor") == 2 and widget.segmentationNode() is None
    widget.setMRMLScene(None)


def test_table_view_shows_the_node(slicer_gui, scene):
    import vtk

    node = scene.AddNewNodeByClass("vtkMRMLTableNode")
    view = slicer_gui.qMRMLTableView()
    view.setMRMLTableNode(node)
    column = vtk.vtkDoubleArray()
    column.SetName("volume")
    column.InsertNextValue(2.5)
    node.AddColumn(column)
    node.SetColumnTitle("volume", "Volume [mL]")
    model = view.model()
    assert model.horizontalHeaderItem(0).text() == "Volume [mL]"
    assert model.item(0, 0).text() == "2.5"


def test_ctk_widgets_keep_their_values(ctk):
    slider = ctk.ctkSliderWidget()
    seen = []
    slider.connect("valueChanged(double)", seen.append)
    slider.minimum, slider.maximum, slider.value = -10.0, 10.0, 2.5
    assert (slider.value, seen) == (2.5, [2.5])
    path = ctk.ctkPathLineEdit()
    path.connect("currentPathChanged(QString)", seen.append)
    path.currentPath = "/data"
    assert seen[-1] == "/data"
    button = ctk.ctkCollapsibleButton("Settings")
    button.connect("contentsCollapsed(bool)", seen.append)
    button.collapsed = True
    assert seen[-1] is True and not button.checked


def test_a_collapsible_button_is_a_button(ctk, qt):
    button, seen = ctk.ctkCollapsibleButton("Settings"), []
    assert isinstance(button, qt.QAbstractButton) and button.text == "Settings"
    inside = qt.QLabel(button)
    button.connect("toggled(bool)", lambda checked: seen.append(("toggled", checked)))
    button.connect("contentsCollapsed(bool)", lambda collapsed: seen.append(("collapsed", collapsed)))
    button.connect("clicked(bool)", lambda checked: seen.append(("clicked", checked)))
    button.click()
    assert sorted(seen) == [("clicked", False), ("collapsed", True), ("toggled", False)]
    assert button.collapsed and inside.isHidden()
    button.collapsed = False
    assert button.checked and not inside.isHidden()


def test_a_fitted_browser_asks_for_the_height_of_its_text_on_hidden_pages_too(ctk, qt, slicer_gui):
    """A tab widget takes the highest page's, whatever page is shown."""
    from host.scripted import show_panel

    def panel(text):
        tabs, browser = qt.QTabWidget(), ctk.ctkFittedTextBrowser()
        browser.setPlainText(text)
        tabs.addTab(qt.QLabel("first"), "first")
        page = qt.QWidget()
        qt.QVBoxLayout(page).addWidget(browser)
        tabs.addTab(page, "second")
        return show_panel(tabs)

    windows = [panel("word " * count) for count in (1, 2000)]
    slicer_gui.app.processEvents()
    short, long = (window.widget().height for window in windows)
    assert short <= 800 and long > 1200, (short, long)
    browser = ctk.ctkFittedTextBrowser()
    browser.setPlainText("word " * 100)
    assert browser.heightForWidth(200) > browser.heightForWidth(400) > 0
    for window in windows:
        window.close()
        window.deleteLater()


def test_the_3d_button_makes_and_removes_surfaces(slicer_gui, segmentation):
    button = slicer_gui.qMRMLSegmentationShow3DButton()
    assert not button.enabled
    button.setSegmentationNode(segmentation)
    contains = segmentation.GetSegmentation().ContainsRepresentation
    assert button.enabled and not button.checked
    button.click()
    assert button.checked and contains("Closed surface")
    segmentation.RemoveClosedSurfaceRepresentation()
    assert not button.checked, "it follows the segmentation"
    button.locked = True
    assert not button.enabled
    button.setSegmentationNode(None)


def test_a_path_field_tells_valid_paths_only(ctk):
    field, seen = ctk.ctkPathLineEdit(), []
    field.connect("currentPathChanged(QString)", seen.append)
    field.connect("validInputChanged(bool)", seen.append)
    field.currentPath = "/data"
    field.currentPath = ""
    assert seen == ["/data", True, False]
    field.nameFilters = ("Models (*.pt *.pth)", "All files (*)")
    for path in ("model.PT", "model.tar", "model.pth"):
        field.currentPath = path
    assert seen[3:] == ["model.pth", True]


@pytest.fixture
def module_file(tmp_path):
    (tmp_path / "Resources" / "UI").mkdir(parents=True)
    (tmp_path / "Resources" / "UI" / "Example.ui").write_text(UI)
    (tmp_path / "Example.py").write_text(MODULE)
    return tmp_path / "Example.py"


def test_a_module_is_loaded_and_driven(slicer_gui, module_file, scene, util):
    from host.gui import inert_widgets
    from host.scripted import load_module

    inert_widgets.clear()
    loaded = load_module(module_file)
    ui = loaded.widget.ui
    assert inert_widgets == {"qMRMLVolumeThresholdWidget"}
    assert not ui.apply.enabled
    ui.inputSelector.setCurrentNode(util.addVolumeFromArray(np.zeros((2, 2, 2), np.int16)))
    assert ui.apply.enabled
    ui.threshold.value = 0.75
    ui.apply.click()
    assert loaded.widget.logic.getParameterNode().GetParameter("threshold") == "0.75"
    assert util.modulePath("Example") == str(module_file)
    assert slicer_gui.modules.ExampleWidget is loaded.widget


def test_a_panel_can_be_looked_at(slicer_gui, module_file, qt, tmp_path):
    from host.scripted import load_module

    panel = load_module(module_file).panel
    panel.resize(320, 240)
    panel.show()
    slicer_gui.app.processEvents()
    picture = panel.grab()
    assert picture.save(str(tmp_path / "panel.png"))
    image = picture.toImage()
    colors = {image.pixel(x, y) for x in range(0, image.width(), 2) for y in range(0, image.height(), 2)}
    assert len(colors) > 10
    panel.close()
