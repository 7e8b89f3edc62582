"""The stand-in for Slicer: what real module code asks of the application works in it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

SHAPE = (6, 8, 10)


@pytest.fixture
def ct(scene, slicer_core):
    voxels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return slicer_core.util.addVolumeFromArray(voxels, name="CT")


@pytest.fixture
def lesion_mask():
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:4, 3:6, 4:9] = 1
    return mask


@pytest.fixture
def segmentation_with_lesion(ct, lesion_mask, scene, slicer_core):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Lesions")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(ct)
    node.GetSegmentation().AddEmptySegment("lesion", "lesion", [0.9, 0.3, 0.2])
    slicer_core.util.updateSegmentBinaryLabelmapFromArray(lesion_mask, node, "lesion", ct)
    return node


def hierarchy_of(scene, slicer_core):
    return slicer_core.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


def test_second_boot_changes_nothing(scene, slicer_core):
    import host

    assert host.boot() is scene is slicer_core.mrmlScene is slicer_core.app.mrmlScene()


def test_segments_travel_as_arrays(segmentation_with_lesion, ct, lesion_mask, slicer_core):
    back = slicer_core.util.arrayFromSegmentBinaryLabelmap(segmentation_with_lesion, "lesion", ct)
    np.testing.assert_array_equal(back, lesion_mask)


def test_a_surface_can_be_made(segmentation_with_lesion):
    assert segmentation_with_lesion.CreateClosedSurfaceRepresentation()


def test_a_node_that_was_hidden_too_late_has_an_item_and_loses_it(scene, slicer_core, capfd):
    for _ in range(20):
        # the next one may lie where this one was, and an item that stayed would be taken for its own
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        node.SetHideFromEditors(True)
        assert hierarchy_of(scene, slicer_core).GetItemByDataNode(node)
        scene.RemoveNode(node)
        assert hierarchy_of(scene, slicer_core).GetNumberOfItems() == 0
        del node
    assert "DataNodeCache" not in capfd.readouterr().err


def test_nodes_get_and_lose_their_hierarchy_items(ct, scene, slicer_core):
    assert hierarchy_of(scene, slicer_core).GetItemByDataNode(ct)
    scene.RemoveNode(ct)
    assert hierarchy_of(scene, slicer_core).GetNumberOfItems() == 0


def test_hidden_nodes_get_no_item(scene, slicer_core):
    node = slicer_core.vtkMRMLTableNode()
    node.SetHideFromEditors(True)
    scene.AddNode(node)
    assert not hierarchy_of(scene, slicer_core).GetItemByDataNode(node)


def test_a_scene_bundle_comes_back(segmentation_with_lesion, ct, lesion_mask, scene, slicer_core, tmp_path):
    util = slicer_core.util
    assert util.saveScene(str(tmp_path / "scene.mrb"))
    scene.Clear(False)
    assert not util.getNodesByClass("vtkMRMLScalarVolumeNode")
    util.loadScene(str(tmp_path / "scene.mrb"))
    volume, segmentation = util.getNode("CT"), util.getNode("Lesions")
    back = util.arrayFromSegmentBinaryLabelmap(segmentation, "lesion", volume)
    np.testing.assert_array_equal(back, lesion_mask)
    assert hierarchy_of(scene, slicer_core).GetItemByDataNode(segmentation)


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.nii.gz", "ct.mha"])
def test_volumes_are_saved_and_loaded(ct, slicer_core, tmp_path, name):
    util = slicer_core.util
    assert util.saveNode(ct, str(tmp_path / name), {})
    again = util.loadVolume(str(tmp_path / name), {})
    np.testing.assert_array_equal(util.arrayFromVolume(again), util.arrayFromVolume(ct))


def test_segmentations_are_saved_and_loaded(segmentation_with_lesion, slicer_core, tmp_path):
    file = str(tmp_path / "lesions.seg.nrrd")
    assert slicer_core.util.saveNode(segmentation_with_lesion, file, {})
    again = slicer_core.util.loadSegmentation(file, {})
    assert again.GetSegmentation().GetSegment("lesion").GetName() == "lesion"


def test_a_missing_file_is_an_error(scene, slicer_core, tmp_path):
    with pytest.raises(RuntimeError):
        slicer_core.util.loadVolume(str(tmp_path / "absent.nrrd"), {})


def test_registered_modules_are_found(slicer_core):
    import host

    host.register_module("Example", path="/somewhere/Example.py")
    assert slicer_core.util.modulePath("Example") == "/somewhere/Example.py"
    assert "Example" in slicer_core.app.moduleManager().modulesNames()


def test_rendering_pauses_pair_up(slicer_core):
    with slicer_core.util.RenderBlocker():
        assert slicer_core.app.isRenderPaused()
    assert not slicer_core.app.isRenderPaused()
    with pytest.raises(RuntimeError):
        slicer_core.app.resumeRender()


def test_what_the_host_does_not_know_is_an_error(slicer_core):
    with pytest.raises(AttributeError):
        slicer_core.app.noSuchMethod()
    with pytest.raises(AttributeError):
        _ = slicer_core.modules.nosuchmodule


def test_it_boots_in_a_process_of_its_own_without_complaint(slicer_core):
    code = "import host; host.boot(); import slicer; slicer.mrmlScene.AddNewNodeByClass('vtkMRMLScalarVolumeNode')"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "Testing", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
