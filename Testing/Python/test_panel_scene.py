"""The panel while the scene changes under it: deleted nodes, loaded and closed scenes, another patient's CT."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from panel_fixtures import add_ct, add_reference, apply_and_wait, brush, chest, find, let_run

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
def test_a_deleted_node_is_not_replaced_by_its_neighbor(selector, panel, ct, mrml, parameters):
    neighbors = [add_ct("first"), add_ct("second"), add_ct("third")]
    if "Volume" not in SELECTORS[selector]:
        neighbors = [add_reference(node, mrml, chest()[1]) for node in neighbors]
    find(panel, selector).setCurrentNode(neighbors[1])
    assert getattr(parameters, SELECTORS[selector]) is neighbors[1]
    mrml.removeNode(neighbors[1])
    let_run()
    assert getattr(parameters, SELECTORS[selector]) is None
    assert find(panel, selector).currentNode() is None


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
    panel.tabs.setCurrentIndex(1)
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
