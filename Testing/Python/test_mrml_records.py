"""Run records, maps and settings in the scene."""

from __future__ import annotations

import numpy as np
import pytest

from COVIDLesionSegLib.errors import GridMismatchError, InputError
from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.inference.record import RunRecord
from COVIDLesionSegLib.measurement import error_map

SHAPE = (6, 8, 10)


@pytest.fixture
def ct(scene):
    from COVIDLesionSegLib.mrml.volumes import nodeFromVolume

    voxels = np.random.default_rng(0).integers(-1000, 100, SHAPE).astype(np.int16)
    return nodeFromVolume(Volume(voxels, Geometry(SHAPE[::-1], (0.7, 0.7, 3.0))))


@pytest.fixture
def record():
    return RunRecord(
        input={"voxels_sha256": "00", "source": {}, "warnings": ['a "quoted"; odd: %41 <text> & more\nü']},
        model={"id": "coplenet-ctseg"},
        device={"used": "cpu"},
        parameters={"box": [[0, 1], [2, 3], [4, 5]]},
        postprocessing={"threshold": 0.5},
        seconds={"network": 1.25},
        warnings=("one slice only",),
    )


@pytest.fixture
def probability():
    return np.random.default_rng(1).random(SHAPE, np.float32)


def reopened(slicer_core, folder):
    """Save the scene, close it, open it again."""
    slicer_core.util.saveScene(str(folder / "scene.mrb"))
    slicer_core.mrmlScene.Clear(False)
    slicer_core.util.loadScene(str(folder / "scene.mrb"))
    return slicer_core.util


def test_a_record_survives_with_its_node(ct, record, slicer_core, tmp_path):
    from COVIDLesionSegLib.mrml.nodes import attachRecord, recordOf

    assert recordOf(ct) is None
    attachRecord(ct, record)
    assert recordOf(ct).to_json() == record.to_json()
    assert recordOf(reopened(slicer_core, tmp_path).getNode("CT")).to_json() == record.to_json()


def test_a_damaged_record_is_an_error(ct, record):
    from COVIDLesionSegLib.mrml.nodes import RECORD_ATTRIBUTE, attachRecord, recordOf

    ct.SetAttribute(RECORD_ATTRIBUTE, "{")
    with pytest.raises(InputError, match="run record"):
        recordOf(ct)
    with pytest.raises(InputError, match="No result is chosen"):
        attachRecord(None, record)


def test_a_probability_map_is_shown_from_0_to_1_and_survives(ct, probability, slicer_core, tmp_path):
    from COVIDLesionSegLib.mrml.maps import showProbability

    node = showProbability(ct, probability)
    assert node.GetName() == "Lesion probability"
    node = reopened(slicer_core, tmp_path).getNode("Lesion probability")
    np.testing.assert_array_equal(slicer_core.util.arrayFromVolume(node), probability)
    display = node.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0, 1)
    assert display.GetApplyThreshold() and display.GetLowerThreshold() == pytest.approx(0.05)
    colors = display.GetColorNode()
    assert colors.GetName().startswith("Lesion probability colors")
    brightness = [sum(colors.GetLookupTable().GetTableValue(i)[:3]) for i in range(0, 256, 15)]
    assert brightness == sorted(brightness)


def test_a_map_is_filled_again_without_new_nodes(ct, probability, scene):
    from COVIDLesionSegLib.mrml.maps import showProbability, showUncertainty

    node = showProbability(ct, probability)
    showUncertainty(ct, probability)
    count = scene.GetNumberOfNodes()
    for _ in range(5):
        assert showProbability(ct, probability, node) is node
    assert scene.GetNumberOfNodes() == count


@pytest.mark.parametrize("values", [-0.1, 1.1, np.nan])
def test_values_that_are_no_probabilities_are_refused(ct, values):
    from COVIDLesionSegLib.mrml.maps import showProbability

    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        showProbability(ct, np.full(SHAPE, values, np.float32))
    with pytest.raises(GridMismatchError):
        showProbability(ct, np.zeros((2, 2, 2), np.float32))


def test_errors_become_three_segments(ct, scene):
    from COVIDLesionSegLib.mrml.maps import showErrors
    from COVIDLesionSegLib.mrml.segmentations import segmentMask

    prediction, reference = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    prediction[2:4, 2:6, 2:6] = reference[3:5, 2:6, 2:6] = True
    node = showErrors(ct, error_map(prediction, reference))
    assert showErrors(ct, error_map(prediction, reference), node) is node
    assert list(node.GetSegmentation().GetSegmentIDs()) == ["true_positive", "false_positive", "false_negative"]
    np.testing.assert_array_equal(segmentMask(node, "false_positive", ct), prediction & ~reference)
    np.testing.assert_array_equal(segmentMask(node, "true_positive", ct), prediction & reference)


@pytest.fixture
def parameters(scene):
    from COVIDLesionSegLib.mrml.parameters import moduleParameters

    return moduleParameters()


def test_there_is_one_parameter_node(parameters, scene):
    from COVIDLesionSegLib.mrml.parameters import moduleParameters

    assert moduleParameters().parameterNode is parameters.parameterNode
    nodes = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
    assert len([node for node in nodes if node.GetAttribute("ModuleName") == "COVIDLesionSeg"]) == 1


@pytest.mark.parametrize(
    ("name", "default", "value"),
    [
        ("model", "", 'a "model"; 1'),
        ("testTimeAugmentation", False, True),
        ("consolidationFrom", -300.0, -250.5),
        ("lesionView", "lesion", "separate"),
    ],
)
def test_settings_are_typed_and_survive(parameters, slicer_core, tmp_path, name, default, value):
    from COVIDLesionSegLib.mrml.parameters import moduleParameters

    assert getattr(parameters, name) == default
    setattr(parameters, name, value)
    reopened(slicer_core, tmp_path)
    again = getattr(moduleParameters(), name)
    assert again == value and type(again) is type(value)


@pytest.mark.parametrize(
    ("name", "stored", "expected"),
    [
        ("device", "cuda", "cuda"),
        ("findLungs", "False", False),
        ("consolidationFrom", "-500", -500.0),
        ("consolidationFrom", "much", -300.0),
        ("consolidationFrom", "nan", -300.0),
        ("consolidationFrom", "99999", -300.0),
        ("lesionView", "lobes", "lesion"),
        ("lesionView", "attenuation", "attenuation"),
    ],
)
def test_settings_of_another_version_do_no_harm(scene, slicer_core, name, stored, expected):
    from COVIDLesionSegLib.mrml.parameters import MODULE_NAME, moduleParameters

    node = slicer_core.vtkMRMLScriptedModuleNode()
    node.SetSingletonTag(MODULE_NAME)
    scene.AddNode(node).SetParameter(name, stored)
    node.SetParameter("ofAnotherVersion", "7")
    assert getattr(moduleParameters(), name) == expected
    moduleParameters().update(model="x")
    assert node.GetParameter("ofAnotherVersion") == "7"


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", 5), ("findLungs", 1), ("consolidationFrom", "0"), ("consolidationFrom", 1e6), ("lesionView", "lobes")],
)
def test_a_setting_of_another_type_is_an_error(parameters, name, value):
    before = getattr(parameters, name)
    with pytest.raises(InputError, match=name):
        parameters.update(**{name: value})
    with pytest.raises((TypeError, ValueError)):
        setattr(parameters, name, value)
    assert getattr(parameters, name) == before


def test_references_follow_the_scene(parameters, ct, scene):
    assert parameters.inputVolume is None
    parameters.inputVolume = ct
    assert parameters.inputVolume is ct
    with pytest.raises(InputError, match="lesionSegmentation"):
        parameters.update(lesionSegmentation=ct)
    scene.RemoveNode(ct)
    assert parameters.inputVolume is None
    with pytest.raises(InputError, match="was deleted"):
        parameters.update(inputVolume=ct)
    parameters.inputVolume = None


def test_several_settings_make_one_event(parameters):
    events = []
    parameters.AddObserver("ModifiedEvent", lambda *_: events.append(1))
    parameters.update(model="a", device="cpu", findLungs=False)
    assert len(events) == 1
    with pytest.raises(InputError, match="no setting 'colour'"):
        parameters.update(colour=1)


@pytest.mark.parametrize("with_singletons", [False, True])
def test_after_a_scene_was_closed_the_parameters_start_over(parameters, scene, with_singletons):
    from COVIDLesionSegLib.mrml.parameters import moduleParameters

    parameters.model = "a"
    scene.Clear(with_singletons)
    assert moduleParameters().model == ""
    assert moduleParameters().parameterNode.GetScene() is scene


def test_a_ct_that_is_chosen_again_brings_what_belongs_to_it(parameters, ct, scene):
    from COVIDLesionSegLib.mrml.segmentations import createSegmentation

    other = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    mine, reference = createSegmentation(ct), createSegmentation(ct)
    parameters.update(referenceSegmentId="a", lesionSegmentation=mine, inputVolume=ct)
    parameters.referenceSegmentation = reference
    parameters.inputVolume = other
    assert parameters.lesionSegmentation is parameters.referenceSegmentation is None
    assert parameters.referenceSegmentId == ""
    parameters.keepWith(ct, referenceSegmentId="b")
    parameters.inputVolume = ct
    assert (parameters.lesionSegmentation, parameters.referenceSegmentation) == (mine, reference)
    assert parameters.referenceSegmentId == "b"
    parameters.release(ct)
    assert parameters.inputVolume is parameters.lesionSegmentation is None and parameters.referenceSegmentId == ""


def test_references_come_back_with_a_scene_for_who_holds_the_parameters(parameters, ct, slicer_core, tmp_path):
    from COVIDLesionSegLib.mrml.parameters import moduleParameters

    parameters.inputVolume = ct
    reopened(slicer_core, tmp_path)
    assert moduleParameters() is parameters and parameters.inputVolume.GetName() == "CT"


def test_all_who_hold_the_parameters_hold_the_same(parameters, scene):
    """Each object reads the whole node at every change: a new one at every call would read it a hundred times."""
    from COVIDLesionSegLib.mrml.parameters import moduleParameters

    assert moduleParameters() is parameters
