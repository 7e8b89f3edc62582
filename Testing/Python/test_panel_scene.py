"""The panel while the scene changes under it: deleted nodes, loaded and closed scenes, another patient's CT."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from fake_worker import HOLD, segment_by_threshold
from panel_fixtures import (
    add_ct,
    add_reference,
    apply_and_wait,
    brush,
    chest,
    choose_reference,
    find,
    let_run,
    said,
    settle,
    wait_for,
)

SELECTORS = {
    "inputSelector": "inputVolume",
    "segmentationSelector": "lesionSegmentation",
    "referenceSelector": "referenceSegmentation",
    "earlierSelector": "earlierVolume",
    "earlierSegmentationSelector": "earlierSegmentation",
}


@pytest.fixture
def parameters(panel, mrml):
    return mrml.moduleParameters()


# ---- a node is deleted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_deleted_node_is_not_replaced_by_its_neighbor(selector, panel, ct, mrml, parameters, capfd):
    neighbors = [add_ct("first"), add_ct("second"), add_ct("third")]
    if "Volume" not in SELECTORS[selector]:
        neighbors = [add_reference(node, mrml, chest()[1]) for node in neighbors]
    find(panel, selector).setCurrentNode(neighbors[1])
    assert getattr(parameters, SELECTORS[selector]) is neighbors[1]
    mrml.removeNode(neighbors[1])
    let_run()
    assert getattr(parameters, SELECTORS[selector]) is None
    assert find(panel, selector).currentNode() is None
    assert "DataNodeCache" not in capfd.readouterr().err, "a node that goes is not touched any more"


def test_a_deleted_region_of_interest_is_not_replaced_by_another(panel, ct, scene, mrml):
    regions = [scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name) for name in ("one", "two")]
    find(panel, "roiSelector").setCurrentNode(regions[0])
    mrml.removeNode(regions[0])
    assert find(panel, "roiSelector").currentNode() is None


def test_lungs_that_were_chosen_and_deleted_are_not_replaced_by_the_lesions(panel, ct, mrml, parameters):
    apply_and_wait(panel)
    find(panel, "lungsCombo").setCurrentIndex(1)
    mrml.removeNode(parameters.lungSegmentation)
    let_run()
    assert parameters.lungSegmentation is None and find(panel, "lungSelector").currentNode() is None


# ---- a scene is loaded or closed ------------------------------------------------------------------------------------


@pytest.fixture
def scene_file(panel, ct, mrml, tmp_path):
    """A scene with a result, in a file."""
    import slicer

    apply_and_wait(panel)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    return str(tmp_path / "scene.mrb")


@pytest.mark.parametrize("when", ["into the module", "before the module is entered"])
def test_after_a_scene_is_loaded_the_editor_has_its_segmentation_and_undoes(when, panel, scene_file, mrml):
    import slicer

    if when == "before the module is entered":
        panel.exit()
        slicer.mrmlScene.Clear(False)
    slicer.util.loadScene(scene_file)
    if when == "before the module is entered":
        panel.enter()
    panel.show("correct")
    parameters, editor = mrml.moduleParameters(), find(panel, "editor")
    assert editor.segmentationNode() is parameters.lesionSegmentation is not None
    assert editor.sourceVolumeNode() is parameters.inputVolume is not None
    assert editor.currentSegmentID() == "lesion" and editor.isEnabled()
    before = mrml.lesionMask(parameters.lesionSegmentation, parameters.inputVolume)
    brush(panel, parameters.lesionSegmentation, np.s_[4:6, 20:30, 50:60])
    editor.undo()
    assert np.array_equal(mrml.lesionMask(parameters.lesionSegmentation, parameters.inputVolume), before)


def test_a_batch_of_another_module_leaves_the_editor_its_segmentation(panel, ct, scene, mrml):
    lesions = apply_and_wait(panel)
    with slicer_batch(scene):
        others = [add_reference(ct, mrml, chest()[1]) for _ in range(2)]
    mrml.removeNode(others[0])
    assert find(panel, "editor").segmentationNode() is lesions
    assert find(panel, "editor").sourceVolumeNode() is ct


@contextlib.contextmanager
def slicer_batch(scene):
    scene.StartState(scene.BatchProcessState)
    yield
    scene.EndState(scene.BatchProcessState)


def test_the_editor_gets_its_node_before_its_scene(open_panel, capfd):
    open_panel()
    assert "segment editor" not in capfd.readouterr().err


# ---- another patient's CT is chosen ---------------------------------------------------------------------------------


def test_nothing_of_one_patient_stays_with_another_and_all_comes_back(panel, ct, scene, mrml, parameters):
    find(panel, "probabilityCheck").click()
    lesions = apply_and_wait(panel)
    panel.show("measure")
    settle(panel)
    find(panel, "lungsCombo").setCurrentIndex(1)
    reference, earlier = add_reference(ct, mrml, chest()[1]), add_ct("earlier")
    choose_reference(panel, reference)
    find(panel, "earlierSelector").setCurrentNode(earlier)
    find(panel, "earlierSegmentationSelector").setCurrentNode(lesions)
    find(panel, "mapCombo").setCurrentIndex(1)
    composite = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    composite.SetForegroundVolumeID(parameters.probabilityVolume.GetID())
    find(panel, "histogramButton").click()
    wait_for(lambda: parameters.histogramChart is not None, "the chart")
    first = {name: getattr(parameters, name) for name in mrml.OF_A_CT if not name.endswith("Id")}
    assert sum(node is not None for node in first.values()) == 10
    find(panel, "inputSelector").setCurrentNode(add_ct("of another patient"))
    assert {name: getattr(parameters, name) for name in first} == dict.fromkeys(first)
    assert find(panel, "mapCombo").count == 1 and not composite.GetForegroundVolumeID()
    for name in ("lungSelector", "referenceSelector", "earlierSelector", "earlierSegmentationSelector"):
        assert find(panel, name).currentNode() is None, name
    assert find(panel, "tableView").mrmlTableNode() is None
    find(panel, "applyButton").click()
    assert "No lung segmentation is chosen" in said(panel), "the first patient's lungs are not taken"
    find(panel, "inputSelector").setCurrentNode(ct)
    assert {name: getattr(parameters, name) for name in first} == first


def test_what_belongs_to_a_ct_is_saved_with_the_scene(panel, ct, mrml, parameters, tmp_path):
    import slicer

    lesions = apply_and_wait(panel)
    parameters.referenceSegmentation = add_reference(ct, mrml, chest()[1])
    find(panel, "inputSelector").setCurrentNode(add_ct("second"))
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    name = lesions.GetName()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert mrml.moduleParameters().lesionSegmentation is None
    find(panel, "inputSelector").setCurrentNode(slicer.util.getNode("CT"))
    assert mrml.moduleParameters().lesionSegmentation.GetName() == name
    assert mrml.moduleParameters().referenceSegmentation.GetName() == "reference"


def test_a_result_for_a_ct_that_is_not_in_view_waits_there(panel, ct, worker, mrml, parameters):
    find(panel, "probabilityCheck").click()
    worker.tasks["segment"] = lambda *_: HOLD
    find(panel, "applyButton").click()
    wait_for(lambda: worker.named("segment"), "the request")
    find(panel, "inputSelector").setCurrentNode(add_ct("second"))
    asked = worker.named("segment")[0]
    worker.children[0].release(*segment_by_threshold(asked.parameters, asked.arrays))
    wait_for(lambda: not panel.session.run.busy, "the end")
    assert parameters.probabilityVolume is None and parameters.lesionSegmentation is None
    find(panel, "inputSelector").setCurrentNode(ct)
    assert np.array_equal(mrml.lesionMask(parameters.lesionSegmentation, ct), chest()[1])
    assert parameters.probabilityVolume is not None and mrml.volumeOf(parameters.lungSegmentation) is ct
