"""The stand-in of slicer.parameterNodeWrapper: nothing is asked here that Slicer's own does not pass as well."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated

import pytest


@pytest.fixture
def node(scene):
    return scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")


@pytest.fixture
def wrapped(slicer_gui, node):
    """A wrapper with a member of each kind."""
    import slicer
    from slicer.parameterNodeWrapper import Choice, Decimals, Default, Minimum, WithinRange, parameterNodeWrapper

    class Example:
        model = "coplenet"
        lungs = "chosen"
        threshold = 0.5

        def doubled(self):
            return 2 * self.steps

    # given here, since texts of annotations are looked up in the file's names
    Example.__annotations__ = {
        "ct": slicer.vtkMRMLScalarVolumeNode,
        "name": str,
        "model": str,
        "lungs": Annotated[str, Choice(["found", "chosen"])],
        "steps": Annotated[int, WithinRange(1, 99), Default(10)],
        "threshold": Annotated[float, WithinRange(0.0, 1.0), Decimals(3)],
        "margin": Annotated[float, Minimum(0.0)],
        "smooth": bool,
    }
    return parameterNodeWrapper(Example)(node)


@pytest.fixture
def widgets(slicer_gui, scene):
    """A form with a widget for each member, which says which in a property."""
    import ctk
    import qt
    import slicer

    form = qt.QWidget()
    layout = qt.QVBoxLayout(form)
    made = {
        "ct": slicer.qMRMLNodeComboBox(),
        "name": qt.QLineEdit(),
        "lungs": qt.QComboBox(),
        "steps": qt.QSpinBox(),
        "threshold": ctk.ctkSliderWidget(),
        "margin": qt.QDoubleSpinBox(),
        "smooth": qt.QCheckBox(),
    }
    made["ct"].noneEnabled = True
    made["ct"].setMRMLScene(scene)
    for name, widget in made.items():
        widget.setProperty("SlicerParameterName", name)
        layout.addWidget(widget)
    yield SimpleNamespace(form=form, **made)
    form.deleteLater()


def texts(node):
    return {name: node.GetParameter(name) for name in node.GetParameterNames()}


def test_defaults_are_written_at_once(wrapped, node):
    assert (wrapped.model, wrapped.lungs, wrapped.steps, wrapped.threshold) == ("coplenet", "chosen", 10, 0.5)
    assert (wrapped.ct, wrapped.name, wrapped.margin, wrapped.smooth) == (None, "", 0.0, False)
    assert wrapped.doubled() == 20 and wrapped.parameterNode is node
    assert texts(node) == {
        "ct": "",
        "name": "",
        "model": "coplenet",
        "lungs": "chosen",
        "steps": "10",
        "threshold": "0.5",
        "margin": "0",
        "smooth": "False",
    }


def test_values_are_kept_as_slicer_keeps_them(wrapped, node, scene):
    ct = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    wrapped.ct, wrapped.threshold, wrapped.smooth = ct, 0.25, True
    wrapped.setValue("steps", 7)
    assert node.GetNodeReference("ct") is wrapped.ct is ct
    assert texts(node) | {"threshold": "0.25", "smooth": "True", "steps": "7", "ct": ""} == texts(node)
    again = type(wrapped)(node)
    assert (again.ct, again.threshold, again.smooth, again.getValue("steps")) == (ct, 0.25, True, 7)
    assert type(again.margin) is float and type(again.steps) is int
    scene.RemoveNode(ct)
    assert wrapped.ct is None
    wrapped.ct = None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ct", "CT"),
        ("name", None),
        ("name", 5),
        ("lungs", "lobes"),
        ("steps", 100),
        ("steps", 2.5),
        ("threshold", -0.1),
        ("margin", -1.0),
        ("smooth", 1),
    ],
)
def test_what_is_not_allowed_is_refused_and_changes_nothing(wrapped, node, name, value):
    before = texts(node)
    with pytest.raises((TypeError, ValueError)):
        setattr(wrapped, name, value)
    assert texts(node) == before


def test_a_wrong_member_is_an_error(wrapped, slicer_core, node):
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    for action in (lambda: wrapped.getValue("x"), lambda: wrapped.setValue("x", 1), lambda: wrapped.dataType("x")):
        with pytest.raises(ValueError, match="x"):
            action()
    with pytest.raises(ValueError, match="Modified"):
        parameterNodeWrapper(type("Bad", (), {"Modified": None}))
    with pytest.raises(Exception, match="serializer"):
        parameterNodeWrapper(type("Bad", (), {"__annotations__": {"what": bytes}}))(node)


def test_what_others_write_is_seen_after_the_event_only(wrapped, node):
    node.SetParameter("steps", "33")
    assert wrapped.steps == 33
    was = node.StartModify()
    node.SetParameter("steps", "44")
    wrapped.smooth = True
    assert (wrapped.steps, wrapped.smooth) == (33, True)
    node.EndModify(was)
    assert wrapped.steps == 44
    node.SetParameter("threshold", "9")
    assert wrapped.threshold == 9, "values are validated when they are set, not when they are read"
    node.UnsetParameter("steps")
    assert wrapped.steps == 10 and node.GetParameter("steps") == "10"


def test_observers_find_the_new_value(wrapped):
    seen = []
    tag = wrapped.AddObserver("ModifiedEvent", lambda *_: seen.append(wrapped.steps))
    wrapped.steps = 12
    wrapped.steps = 12
    wrapped.RemoveObserver(tag)
    wrapped.steps = 13
    assert seen == [12]


def test_a_wrapper_that_nobody_holds_hears_nothing(wrapped, node, slicer_core):
    before = type(wrapped)(node)
    before.steps = 3
    del before
    node.SetParameter("steps", "4")
    assert wrapped.steps == 4


def test_a_form_is_connected_by_its_widgets_properties(wrapped, widgets, scene):
    ct = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    wrapped.steps, wrapped.ct = 20, ct
    tag = wrapped.connectGui(widgets.form)
    # from the node
    assert (widgets.steps.value, widgets.steps.minimum, widgets.steps.maximum) == (20, 1, 99)
    assert (widgets.threshold.value, widgets.threshold.maximum, widgets.threshold.decimals) == (0.5, 1.0, 3)
    assert [widgets.lungs.itemText(index) for index in range(widgets.lungs.count)] == ["found", "chosen"]
    assert widgets.lungs.currentIndex == 1 and widgets.ct.currentNode() is ct
    assert widgets.ct.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    wrapped.name, wrapped.smooth, wrapped.margin = "x", True, 5.0
    assert (widgets.name.text, widgets.smooth.checked, widgets.margin.value) == ("x", True, 5.0)
    # from the widgets
    widgets.steps.setValue(44)
    widgets.threshold.setValue(0.125)
    widgets.margin.setValue(1.5)
    widgets.name.setText("y")
    widgets.smooth.setChecked(False)
    widgets.lungs.setCurrentIndex(0)
    widgets.ct.setCurrentNode(None)
    assert (wrapped.steps, wrapped.threshold, wrapped.margin, wrapped.name) == (44, 0.125, 1.5, "y")
    assert (wrapped.smooth, wrapped.lungs, wrapped.ct) == (False, "found", None)
    wrapped.disconnectGui(tag)
    widgets.steps.setValue(45)
    wrapped.smooth = True
    assert wrapped.steps == 44 and not widgets.smooth.checked
    wrapped.disconnectGui(tag)


def test_widgets_are_connected_by_name(wrapped, widgets):
    tag = wrapped.connectParametersToGui({"steps": widgets.steps, "model": widgets.name})
    widgets.steps.setValue(5)
    wrapped.model = "caresunet"
    assert wrapped.steps == 5 and widgets.name.text == "caresunet"
    wrapped.disconnectGui(tag)
    assert wrapped.connectGui(SimpleNamespace(steps=widgets.steps)) != tag
    assert wrapped.connectGui(SimpleNamespace()) is not None


def test_two_widgets_of_a_member_follow_each_other(wrapped, widgets):
    import qt

    other = qt.QSpinBox()
    for widget in (widgets.steps, other):
        wrapped.connectParametersToGui({"steps": widget})
    events = []
    wrapped.AddObserver("ModifiedEvent", lambda *_: events.append(wrapped.steps))
    other.setValue(31)
    assert widgets.steps.value == wrapped.steps == 31
    assert events == [31], "what is shown is not written back"


def test_a_widget_that_a_member_can_not_have_is_an_error(wrapped, widgets):
    import qt

    class SpinBox(qt.QSpinBox):
        """Another class than those that are known."""

    for mapping in (
        {"threshold": widgets.steps},
        {"model": qt.QComboBox()},
        {"steps": SpinBox()},
        {"name": qt.QSlider()},
    ):
        with pytest.raises(RuntimeError):
            wrapped.connectParametersToGui(mapping)
    with pytest.raises(ValueError, match="x"):
        wrapped.connectParametersToGui({"x": widgets.steps})


def test_a_combo_box_whose_entries_carry_the_values(wrapped):
    import qt

    from COVIDLesionSegLib.panel.forms import DataConnector

    combo = qt.QComboBox()
    for text, value in (("COPLE-Net", "coplenet"), ("CARes-UNet", "caresunet")):
        combo.addItem(text, value)
    tag = wrapped.connectParametersToGui({"model": DataConnector(combo)})
    combo.setCurrentIndex(1)
    assert wrapped.model == "caresunet"
    wrapped.model = "coplenet"
    assert combo.currentText == "COPLE-Net"
    wrapped.model = "removed"
    assert combo.currentIndex == -1 and wrapped.model == "removed"
    wrapped.disconnectGui(tag)
    combo.setCurrentIndex(0)
    assert wrapped.model == "removed"


def test_a_serializer_of_ones_own_decides_what_is_written(slicer_gui, node, scene):
    import slicer
    from slicer.parameterNodeWrapper import IsInstance, NodeSerializer, parameterNodeWrapper

    class Follower(NodeSerializer):
        def write(self, parameterNode, name, value):  # noqa: N803
            super().write(parameterNode, name, value)
            parameterNode.SetParameter("name", "" if value is None else value.GetName())

    class Example:
        pass

    kind = slicer.vtkMRMLScalarVolumeNode
    Example.__annotations__ = {"name": str, "ct": Annotated[kind, Follower(), IsInstance(kind)]}
    wrapped = parameterNodeWrapper()(Example)(node)
    combo = slicer.qMRMLNodeComboBox()
    combo.noneEnabled = True
    combo.setMRMLScene(scene)
    wrapped.connectParametersToGui({"ct": combo})
    combo.setCurrentNode(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT"))
    assert wrapped.name == "CT"
    with pytest.raises(TypeError):
        wrapped.ct = node
    combo.deleteLater()
