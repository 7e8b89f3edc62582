"""Clicks in MRML: points that are placed, segments changed in a box, the probability that stays with a result."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from panel_fixtures import SHAPE, add_ct, chest

from COVIDLesionSegLib.errors import GridMismatchError, InputError
from COVIDLesionSegLib.inference.levels import ProbabilityLevels, levels_of


@pytest.fixture
def mrml(scene):
    from COVIDLesionSegLib import mrml

    return mrml


@pytest.fixture
def ct(mrml):
    return add_ct()


@pytest.fixture
def lesions(mrml, ct):
    return mrml.showLesions(ct, chest()[1])


def levels(value=0.3):
    probability = np.zeros(SHAPE, np.float32)
    probability[4:20, 10:50, 10:70] = value
    return ProbabilityLevels.of(levels_of(probability, 0.5), 0.5)


# ---- segments -------------------------------------------------------------------------------------------------------

BOX = (slice(5, 15), slice(18, 30), slice(12, 32))
PART = np.zeros((10, 12, 20), bool)
PART[2:7, 3:9, 4:18] = True


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_box_of_a_segment_is_changed_and_all_else_stays(mrml, ct, lesions, add, layers):
    segmentation = lesions.GetSegmentation()
    mine = np.zeros(SHAPE, bool)
    mine[6:16, 22:26, 16:40] = True
    if layers == 1:
        mine &= ~chest()[1]
    segmentation.AddEmptySegment("mine", "mine")
    mrml.writeSegment(lesions, "mine", mine, ct)
    # segments of a file share a labelmap
    segmentation.CollapseBinaryLabelmaps(False)
    assert segmentation.GetNumberOfLayers() == layers
    expected = mrml.segmentMask(lesions, "lesion", ct)
    mrml.changeSegment(lesions, "lesion", BOX, PART, ct, add=add)
    expected[BOX] = expected[BOX] | PART if add else expected[BOX] & ~PART
    assert np.array_equal(mrml.segmentMask(lesions, "lesion", ct), expected)
    assert np.array_equal(mrml.segmentMask(lesions, "mine", ct), mine)


def test_voxels_come_into_an_empty_segment_and_go_from_none(mrml, ct, lesions):
    lesions.GetSegmentation().AddEmptySegment("new", "new")
    mrml.changeSegment(lesions, "new", BOX, PART, ct, add=False)
    assert not mrml.segmentMask(lesions, "new", ct).any()
    mrml.changeSegment(lesions, "new", BOX, PART, ct, add=True)
    found = mrml.segmentMask(lesions, "new", ct)
    assert np.array_equal(found[BOX], PART) and found.sum() == PART.sum()
    everything = tuple(slice(0, n) for n in SHAPE)
    mrml.changeSegment(lesions, "new", everything, np.ones(SHAPE, bool), ct, add=False)
    assert not mrml.segmentMask(lesions, "new", ct).any()
    mrml.changeSegment(lesions, "new", BOX, PART, ct, add=True)
    assert mrml.segmentMask(lesions, "new", ct).sum() == PART.sum()


@pytest.mark.parametrize("move", [(3.0, -1.5, 2.5), (0.4, 0.2, 1.1)], ids=["other indices", "other voxels"])
def test_a_segment_of_another_grid_is_changed_in_the_ct_s_voxels(mrml, ct, scene, move):
    from COVIDLesionSegLib.imaging import Geometry, Volume

    shifted = Geometry(SHAPE[::-1], (1.5, 1.5, 2.5), np.add((-60.0, -48.0, -30.0), move))
    other = mrml.nodeFromVolume(Volume(chest()[0], shifted, "other"), "other")
    node = mrml.showLesions(other, chest()[1])
    before = mrml.segmentMask(node, "lesion", ct)
    mrml.changeSegment(node, "lesion", BOX, PART, ct, add=True)
    before[BOX] |= PART
    assert np.array_equal(mrml.segmentMask(node, "lesion", ct), before)
    mrml.changeSegment(node, "lesion", BOX, PART, ct, add=False)
    before[BOX] &= ~PART
    assert np.array_equal(mrml.segmentMask(node, "lesion", ct), before)


def test_what_can_not_be_changed_is_refused(mrml, ct, lesions):
    with pytest.raises(InputError, match="not there any more"):
        mrml.changeSegment(lesions, "gone", BOX, PART, ct, add=True)
    with pytest.raises(GridMismatchError):
        mrml.changeSegment(lesions, "lesion", BOX, PART[1:], ct, add=True)


def test_a_box_of_segments_and_lungs_is_read_as_the_whole_would_be(mrml, ct, lesions):
    whole = mrml.lesionMask(lesions, ct)
    assert np.array_equal(mrml.segmentsMask(lesions, ["lesion"], ct, BOX), whole[BOX])
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[3:-3, 12:-12, 8:36], lungs[3:-3, 12:-12, 44:72] = 1, 2
    node = mrml.showFoundLungs(ct, lungs)
    assert np.array_equal(mrml.lungsInside(node, ct, BOX), lungs[BOX] != 0)


def test_lesion_goes_to_the_segments_that_its_hu_say(mrml, ct):
    from COVIDLesionSegLib.imaging import Geometry, Volume

    hu = chest()[0]
    volume = Volume(hu, Geometry(SHAPE[::-1], (1.5, 1.5, 2.5), (-60.0, -48.0, -30.0)), "CT")
    node = mrml.showLesions(ct, chest()[1], view="attenuation", volume=volume)
    box = (slice(6, 16), slice(8, 30), slice(10, 32))
    new = np.ones((10, 22, 22), bool) & ~chest()[1][box]
    assert mrml.viewOf(node) == "attenuation"
    mrml.addLesion(node, "consolidation", box, new, ct)
    whole = chest()[1].copy()
    whole[box] |= new
    assert np.array_equal(mrml.segmentMask(node, "consolidation", ct), whole & (hu >= -300))
    assert np.array_equal(mrml.segmentMask(node, "ground_glass_opacity", ct), whole & (hu < -300))


# ---- the probability ------------------------------------------------------------------------------------------------


def test_the_probability_stays_with_its_result_through_a_scene_file(mrml, ct, lesions, scene, tmp_path):
    import slicer

    kept = levels()
    node = mrml.keepLevels(lesions, ct, kept)
    assert node.GetHideFromEditors() and np.array_equal(mrml.levelsOf(lesions, ct).levels, kept.levels)
    assert mrml.levelsOf(lesions, add_ct("small", chest()[0][:5])) is None
    file = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(file)
    scene.Clear(False)
    slicer.util.loadScene(file)
    ct, lesions = slicer.util.getNode("CT"), slicer.util.getNode("COVID-19 lesions")
    found = mrml.levelsOf(lesions, ct)
    assert np.array_equal(found.levels, kept.levels) and found.described() == kept.described()
    mrml.removeNode(lesions)
    mrml.removeLostPredictions()
    assert not [n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if n.GetHideFromEditors()]


def test_another_result_takes_its_place_or_forgets_it(mrml, ct, lesions):
    first = mrml.keepLevels(lesions, ct, levels())
    other = levels(0.8)
    assert mrml.keepLevels(lesions, ct, other) is first
    assert np.array_equal(mrml.levelsOf(lesions, ct).levels, other.levels)
    mrml.keepLevels(lesions, ct, None)
    assert mrml.levelsOf(lesions, ct) is None and first.GetScene() is None
    with pytest.raises(GridMismatchError):
        mrml.keepLevels(lesions, ct, ProbabilityLevels.of(levels().levels, 0.5))


def test_a_damaged_place_counts_as_no_probability(mrml, ct, lesions):
    node = mrml.keepLevels(lesions, ct, levels())
    for text in ("", "{", '{"box": 1}', "[]"):
        node.SetAttribute("COVIDLesionSeg.LevelsPlace", text)
        assert mrml.levelsOf(lesions, ct) is None


# ---- points and the wheel -------------------------------------------------------------------------------------------


@pytest.fixture
def placement(mrml):
    told = SimpleNamespace(points=[], ended=0)

    def ended():
        told.ended += 1

    told.tool = mrml.PointPlacement(lambda point: told.points.append(point.tolist()), ended)
    yield told
    told.tool.stop()


def interaction():
    import slicer

    return slicer.app.applicationLogic().GetInteractionNode()


def markups():
    import slicer

    return slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")


def test_points_are_told_and_taken_away_and_nothing_stays(placement):
    assert not placement.tool.isOn
    placement.tool.start()
    (node,) = markups()
    assert interaction().GetCurrentInteractionMode() == interaction().Place and interaction().GetPlaceModePersistence()
    assert not node.GetSaveWithScene() and node.GetHideFromEditors()
    node.AddControlPointWorld(1.0, -2.0, 3.5)
    node.AddControlPointWorld(4.0, 5.0, 6.0)
    assert placement.points == [[1.0, -2.0, 3.5], [4.0, 5.0, 6.0]]
    placement.tool.clear()
    assert node.GetNumberOfControlPoints() == 0
    placement.tool.stop()
    assert interaction().GetCurrentInteractionMode() == interaction().ViewTransform
    assert markups() == [] and placement.ended == 0


def test_whoever_takes_the_mouse_over_ends_placing(placement, scene):
    import slicer

    placement.tool.start()
    interaction().SwitchToViewTransformMode()
    assert placement.ended == 1 and not placement.tool.isOn and markups() == []
    placement.tool.start()
    other = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "theirs")
    selection = slicer.app.applicationLogic().GetSelectionNode()
    selection.SetActivePlaceNodeID(other.GetID())
    # their placing goes on
    assert placement.ended == 2 and markups() == [other]
    assert interaction().GetCurrentInteractionMode() == interaction().Place
    interaction().SwitchToViewTransformMode()
    placement.tool.start()
    scene.Clear(False)
    assert placement.ended == 3 and not placement.tool.isOn


def test_the_voxel_under_a_point_follows_grid_and_transform(mrml, ct, scene):
    import vtk

    to_ras = mrml.gridOfNode(ct).ijk_to_ras
    assert mrml.voxelAt(ct, (to_ras @ [20.4, 30.6, 10.0, 1])[:3]) == (10, 31, 20)
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 15.0)
    transform.SetMatrixTransformToParent(matrix)
    ct.SetAndObserveTransformNodeID(transform.GetID())
    moved = np.add((to_ras @ [20, 30, 10, 1])[:3], (15, 0, 0))
    assert mrml.voxelAt(ct, moved) == (10, 30, 20)
    for outside in ([-0.6, 0, 0], [0, 64, 0], [0, 0, 24.5]):
        with pytest.raises(InputError, match="outside the CT"):
            mrml.voxelAt(ct, (mrml.gridOfNode(ct).ijk_to_ras @ [*outside, 1])[:3])


def test_the_wheel_is_taken_while_shift_is_held_only(mrml, views_with_wheel):
    turned, scrolled = [], []
    listener = mrml.WheelListener(turned.append)
    listener.start()
    interactor = views_with_wheel["Yellow"]
    interactor.AddObserver("MouseWheelForwardEvent", lambda *_: scrolled.append(1))
    for shift in (1, 0, 1):
        interactor.SetShiftKey(shift)
        interactor.InvokeEvent("MouseWheelForwardEvent")
    interactor.InvokeEvent("MouseWheelBackwardEvent")
    assert turned == [1, 1, -1] and scrolled == [1]
    listener.stop()
    interactor.InvokeEvent("MouseWheelForwardEvent")
    assert turned == [1, 1, -1] and scrolled == [1, 1]
