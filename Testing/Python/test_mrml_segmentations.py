"""Masks to segments and back, on the real segmentation classes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from COVIDLesionSegLib.errors import GridMismatchError, InputError
from COVIDLesionSegLib.imaging import Geometry, Volume, segment_style

SHAPE = (12, 20, 24)
TILT = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]) @ np.array(
    [[0.96, -0.28, 0], [-0.28, -0.96, 0], [0, 0, -1]]
)
GRID = Geometry(SHAPE[::-1], (0.7, 0.8, 2.5), (12.5, -33.25, 400.125), tuple(TILT.ravel()))


@pytest.fixture
def mrml(scene):
    from COVIDLesionSegLib.mrml import segmentations

    return segmentations


@pytest.fixture
def hounsfield():
    return np.random.default_rng(1).integers(-1000, 100, SHAPE).astype(np.int16)


@pytest.fixture
def ct(mrml, hounsfield):
    from COVIDLesionSegLib.mrml.volumes import nodeFromVolume

    return nodeFromVolume(Volume(hounsfield, GRID))


@pytest.fixture
def three_lesions():
    mask = np.zeros(SHAPE, bool)
    mask[1:3, 2:4, 2:5] = True  # 12 voxels
    mask[6:10, 10:15, 5:12] = True  # 140
    mask[8, 3:5, 20:24] = True  # 8, at the border
    return mask


@pytest.fixture
def lungs():
    labels = np.zeros(SHAPE, np.uint8)
    labels[0:11, 1:19, 1:12] = 1
    labels[0:11, 1:19, 12:24] = 2
    return labels


@pytest.fixture
def study(ct):
    """Subject hierarchy item of a study that the CT is put under."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    item = hierarchy.CreateStudyItem(patient, "study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(ct), item)
    return item


def ids(node):
    return list(node.GetSegmentation().GetSegmentIDs())


def names(node):
    return [node.GetSegmentation().GetSegment(i).GetName() for i in ids(node)]


def terminology(node, identity):
    import slicer
    import vtk

    value = vtk.reference("")
    node.GetSegmentation().GetSegment(identity).GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), value)
    return str(value)


def test_a_mask_comes_back_exactly_on_an_oblique_grid(mrml, ct, three_lesions, slicer_core):
    node = mrml.showLesions(ct, three_lesions)
    back = mrml.segmentMask(node, "lesion", ct)
    assert back.dtype == bool
    np.testing.assert_array_equal(back, three_lesions)
    np.testing.assert_array_equal(slicer_core.util.arrayFromSegmentBinaryLabelmap(node, "lesion", ct), three_lesions)


def test_a_left_handed_grid_comes_back_exactly(mrml, three_lesions, hounsfield):
    from COVIDLesionSegLib.mrml.volumes import nodeFromVolume

    left_handed = Geometry(GRID.size, GRID.spacing, GRID.origin, tuple((TILT @ np.diag([1, 1, -1])).ravel()))
    ct = nodeFromVolume(Volume(hounsfield, left_handed))
    np.testing.assert_array_equal(mrml.segmentMask(mrml.showLesions(ct, three_lesions), "lesion", ct), three_lesions)


def test_the_segment_has_name_color_and_terminology(mrml, ct, three_lesions):
    node = mrml.showLesions(ct, three_lesions)
    style = segment_style("lesion")
    segment = node.GetSegmentation().GetSegment("lesion")
    assert segment.GetName() == "lesion"
    np.testing.assert_allclose(segment.GetColor(), style.color)
    assert terminology(node, "lesion") == style.terminology_entry != ""


def test_no_name_of_a_created_node_holds_the_cts(mrml, ct, three_lesions, scene):
    ct.SetName("DOE^JANE")
    before = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}
    mrml.showLesions(ct, three_lesions)
    nodes = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]
    assert not [n.GetName() for n in nodes if n.GetID() not in before and "DOE" in (n.GetName() or "")]


def study_of(node):
    """Subject hierarchy item of a node's study; 0 where it is under none."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelStudy()
    return hierarchy.GetItemAncestorAtLevel(hierarchy.GetItemByDataNode(node), level)


def test_the_segmentation_stands_under_the_cts_study_and_on_its_grid(mrml, ct, study, three_lesions):
    node = mrml.showLesions(ct, three_lesions)
    assert study_of(node) == study_of(ct) == study
    role = node.GetReferenceImageGeometryReferenceRole()
    assert node.GetNodeReference(role) is ct


def test_a_ct_outside_a_study_keeps_its_segmentation_beside_it(mrml, ct, three_lesions):
    assert study_of(mrml.showLesions(ct, three_lesions)) == 0


def test_the_ai_result_that_is_kept_shows_in_no_list(mrml, ct, three_lesions):
    import slicer

    from COVIDLesionSegLib.mrml import hasPrediction, keepPrediction, predictionMask

    node = mrml.showLesions(ct, three_lesions)
    kept = keepPrediction(node)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    assert kept.GetHideFromEditors() and not hierarchy.GetItemByDataNode(kept), (
        "the data tree looks once, when it comes"
    )
    assert hasPrediction(node) and not hasPrediction(kept)
    np.testing.assert_array_equal(predictionMask(node, ct), three_lesions)


def test_lesions_by_attenuation(mrml, ct, three_lesions, hounsfield):
    node = mrml.showLesions(ct, three_lesions, view="attenuation")
    assert ids(node) == ["ground_glass_opacity", "consolidation"]
    assert names(node) == ["ground-glass opacity (below -300 HU)", "consolidation (from -300 HU)"]
    dense = mrml.segmentMask(node, "consolidation", ct)
    np.testing.assert_array_equal(dense, three_lesions & (hounsfield >= -300))
    light = mrml.segmentMask(node, "ground_glass_opacity", ct)
    np.testing.assert_array_equal(light, three_lesions & (hounsfield < -300))
    np.testing.assert_array_equal(mrml.lesionMask(node, ct), three_lesions)


def test_another_limit_of_attenuation(mrml, ct, three_lesions, hounsfield):
    node = mrml.showLesions(ct, three_lesions, view="attenuation", consolidationFrom=-500)
    assert "from -500 HU" in names(node)[1]
    dense = mrml.segmentMask(node, "consolidation", ct)
    np.testing.assert_array_equal(dense, three_lesions & (hounsfield >= -500))


def test_lesions_one_by_one_largest_first(mrml, ct, three_lesions):
    node = mrml.showLesions(ct, three_lesions, view="separate")
    masks = [mrml.segmentMask(node, i, ct) for i in ids(node)]
    assert [int(m.sum()) for m in masks] == [140, 12, 8]
    np.testing.assert_array_equal(np.logical_or.reduce(masks), three_lesions)
    assert names(node)[0] == f"lesion 1 ({140 * GRID.voxel_ml:.3g} mL)"
    colors = [node.GetSegmentation().GetSegment(i).GetColor() for i in ids(node)]
    assert len(set(colors)) == 3
    assert {terminology(node, i) for i in ids(node)} == {segment_style("lesion").terminology_entry}


def test_many_lesions_leave_the_smaller_ones_together(mrml, ct):
    mask = np.zeros(SHAPE, bool)
    for z, y, x in itertools.product(range(0, 12, 4), range(0, 20, 4), range(0, 24, 6)):
        mask[z, y, x : x + (2 if z == 0 and y == 0 else 1)] = True
    node = mrml.showLesions(ct, mask, view="separate")
    assert len(ids(node)) == 31
    assert names(node)[-1].startswith("30 smaller lesions")
    np.testing.assert_array_equal(mrml.lesionMask(node, ct), mask)


@pytest.mark.parametrize("view", ["lesion", "attenuation", "separate"])
def test_a_result_that_is_known_in_a_box_is_shown_as_the_whole_one(mrml, ct, three_lesions, view):
    whole = mrml.showLesions(ct, three_lesions, view=view)
    z, y, x = (np.flatnonzero(three_lesions.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    box = tuple(slice(max(int(side[0]) - 1, 0), int(side[-1]) + 1) for side in (z, y, x))
    assert np.prod([side.stop - side.start for side in box]) < three_lesions.size
    node = mrml.showLesions(ct, three_lesions[box], box=box, view=view)
    assert mrml.segmentsWithRole(node) == mrml.segmentsWithRole(whole)
    for identity in mrml.segmentsWithRole(whole):
        names = [shown.GetSegmentation().GetSegment(identity).GetName() for shown in (node, whole)]
        assert names[0] == names[1]
        expected = mrml.segmentMask(whole, identity, ct)
        np.testing.assert_array_equal(mrml.segmentMask(node, identity, ct), expected)
    with pytest.raises(GridMismatchError, match="lesion mask"):
        mrml.showLesions(ct, three_lesions, box=box, view=view)
    # where no probability was kept at all, there is no lesion
    none = (slice(3, 3),) * 3
    mrml.showLesions(ct, three_lesions[none], box=none, view=view, segmentationNode=node)
    assert not mrml.lesionMask(node, ct).any()


@pytest.mark.parametrize("view", ["lesion", "attenuation", "separate"])
def test_no_lesion_is_an_empty_segment(mrml, ct, view):
    node = mrml.showLesions(ct, np.zeros(SHAPE, bool), view=view)
    assert ids(node)
    assert not mrml.lesionMask(node, ct).any()


def test_lungs_and_lesions_overlap_in_one_segmentation(mrml, ct, three_lesions, lungs):
    node = mrml.showLungs(ct, lungs)
    mrml.showLesions(ct, three_lesions, segmentationNode=node)
    assert ids(node) == ["right_lung", "left_lung", "lesion"]
    for identity, expected in (("right_lung", lungs == 1), ("left_lung", lungs == 2), ("lesion", three_lesions)):
        np.testing.assert_array_equal(mrml.segmentMask(node, identity, ct), expected)


def test_a_new_result_replaces_only_segments_of_its_role(mrml, ct, three_lesions, lungs):
    node = mrml.showLungs(ct, lungs)
    mrml.showLesions(ct, three_lesions, segmentationNode=node, view="separate")
    own = node.GetSegmentation().AddEmptySegment("mine", "my segment", [0, 1, 0])
    drawn = np.zeros(SHAPE, bool)
    drawn[7, 11:13, 6:9] = True  # inside a lesion
    mrml.writeSegment(node, own, drawn, ct)
    smaller = three_lesions & (np.arange(SHAPE[2]) < 8)
    mrml.showLesions(ct, smaller, segmentationNode=node)
    assert ids(node) == ["right_lung", "left_lung", "mine", "lesion"]
    np.testing.assert_array_equal(mrml.segmentMask(node, "mine", ct), drawn)
    np.testing.assert_array_equal(mrml.segmentMask(node, "right_lung", ct), lungs == 1)
    np.testing.assert_array_equal(mrml.segmentMask(node, "lesion", ct), smaller)


def test_a_users_segment_called_lesion_is_left_alone(mrml, ct, three_lesions):
    node = mrml.createSegmentation(ct)
    node.GetSegmentation().AddEmptySegment("lesion", "lesion", [0, 1, 0])
    mrml.showLesions(ct, three_lesions, segmentationNode=node)
    assert len(ids(node)) == 2
    assert not mrml.segmentMask(node, "lesion", ct).any()
    np.testing.assert_array_equal(mrml.lesionMask(node, ct), three_lesions)


def test_the_users_color_and_the_3d_surface_survive_a_new_result(mrml, ct, three_lesions):
    node = mrml.showLesions(ct, three_lesions)
    node.GetSegmentation().GetSegment("lesion").SetColor(0, 0, 1)
    mrml.showIn3D(node)
    mrml.showLesions(ct, three_lesions[::-1].copy(), segmentationNode=node)
    assert node.GetSegmentation().GetSegment("lesion").GetColor() == (0, 0, 1)
    surface = node.GetSegmentation().GetSegment("lesion").GetRepresentation("Closed surface")
    assert surface.GetNumberOfPolys() > 0
    mrml.showIn3D(node, False)
    assert not node.GetSegmentation().ContainsRepresentation("Closed surface")


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("slices", [1, 12])
@pytest.mark.parametrize("view", ["lesion", "attenuation"])
def test_a_result_without_lesions_is_shown_in_3d_without_a_complaint(mrml, hounsfield, view, slices, smooth, capfd):
    from COVIDLesionSegLib.mrml.volumes import nodeFromVolume

    grid = GRID.cropped((slice(0, slices), slice(None), slice(None)))
    ct = nodeFromVolume(Volume(hounsfield[:slices], grid))
    node = mrml.showLesions(ct, np.zeros(grid.shape, bool), view=view)
    mrml.showIn3D(node, smooth=smooth)
    assert "ERR" not in capfd.readouterr().err
    assert not mrml.lesionMask(node, ct).any()
    # and what is drawn afterwards is there
    drawn = np.zeros(grid.shape, bool)
    drawn[0, 5:9, 5:9] = True
    mrml.writeSegment(node, ids(node)[0], drawn, ct)
    np.testing.assert_array_equal(mrml.lesionMask(node, ct), drawn)


def test_undo_brings_the_edited_segments_back(mrml, ct, three_lesions):
    from undo_history import UndoHistory

    node = mrml.showLesions(ct, three_lesions)
    edited = three_lesions.copy()
    edited[0] = True
    mrml.writeSegment(node, "lesion", edited, ct)
    history = UndoHistory(node, ct)
    assert not history.canUndo()
    mrml.showLesions(ct, three_lesions, segmentationNode=node, view="separate", undo=history)
    assert len(ids(node)) == 3
    assert history.undo()
    assert ids(node) == ["lesion"]
    np.testing.assert_array_equal(mrml.segmentMask(node, "lesion", ct), edited)
    assert history.redo()
    assert len(ids(node)) == 3
    assert not history.redo()


def test_nothing_is_saved_where_nothing_is_replaced(mrml, ct, three_lesions):
    from undo_history import UndoHistory

    node = mrml.createSegmentation(ct)
    history = UndoHistory(node, ct)
    mrml.showLesions(ct, three_lesions, segmentationNode=node, undo=history)
    assert not history.canUndo()


def test_an_edit_through_the_segment_editor_is_read_back(mrml, ct, three_lesions):
    from undo_history import UndoHistory
    from vtk.util.numpy_support import vtk_to_numpy

    node = mrml.showLesions(ct, three_lesions)
    history = UndoHistory(node, ct)
    logic = history.logic
    logic.GetSegmentEditorNode().SetSelectedSegmentID("lesion")
    logic.UpdateReferenceGeometryImage()
    logic.ResetModifierLabelmapToDefault()
    stroke = logic.GetModifierLabelmap()
    drawn = np.zeros(SHAPE, bool)
    drawn[5, 5:8, 5:8] = True
    vtk_to_numpy(stroke.GetPointData().GetScalars())[:] = drawn.ravel()
    stroke.Modified()
    logic.SaveStateForUndo()
    logic.ModifySegmentByLabelmap(node, "lesion", stroke, logic.ModificationModeAdd, False, False)
    np.testing.assert_array_equal(mrml.segmentMask(node, "lesion", ct), three_lesions | drawn)
    history.undo()
    np.testing.assert_array_equal(mrml.segmentMask(node, "lesion", ct), three_lesions)


def test_under_a_linear_transform_the_mask_stays_on_the_ct(mrml, ct, three_lesions, scene, slicer_core):
    turn = np.array([[0, -1, 0, 10], [1, 0, 0, -20], [0, 0, 1, 30], [0, 0, 0, 1.0]])
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer_core.util.vtkMatrixFromArray(turn))
    ct.SetAndObserveTransformNodeID(transform.GetID())
    node = mrml.showLesions(ct, three_lesions)
    np.testing.assert_array_equal(mrml.segmentMask(node, "lesion", ct), three_lesions)
    converter, painted = slicer_core.vtkSegmentationConverter, slicer_core.vtkOrientedImageData()
    grid = node.GetSegmentation().GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
    converter.DeserializeImageGeometry(grid, painted, False)
    np.testing.assert_allclose(painted.GetOrigin(), GRID.ijk_to_ras[:3, 3], atol=1e-3)
    ct.HardenTransform()
    np.testing.assert_array_equal(mrml.segmentMask(node, "lesion", ct), three_lesions)
    with pytest.raises(InputError, match="different transforms"):
        mrml.showLesions(ct, three_lesions, segmentationNode=node)


def test_a_segment_on_another_grid_is_resampled_to_the_nearest_voxel(mrml, ct, scene):
    from COVIDLesionSegLib.mrml.volumes import nodeFromVolume

    fine = Geometry((48, 40, 24), (0.35, 0.4, 1.25), _center_of_finer(GRID), GRID.direction)
    array = np.zeros(fine.shape, bool)
    array[4:10, 8:20, 6:30] = True
    other = nodeFromVolume(Volume(np.zeros(fine.shape, np.int16), fine), "fine")
    node = mrml.showLesions(other, array)
    expected = np.zeros(SHAPE, bool)
    expected[2:5, 4:10, 3:15] = True
    np.testing.assert_array_equal(mrml.segmentMask(node, "lesion", ct), expected)


def _center_of_finer(grid):
    """Origin of the grid of half the spacing that fills the same box, moved by a hair so that no center is a tie."""
    return tuple((grid.ijk_to_lps @ np.array([-0.25 + 0.01, -0.25 + 0.01, -0.25 + 0.01, 1]))[:3])


def test_a_segment_that_reaches_out_of_the_ct_is_cut(mrml, ct, three_lesions):
    from COVIDLesionSegLib.mrml.volumes import nodeFromVolume

    node = mrml.showLesions(ct, three_lesions)
    box = (slice(7, 12), slice(0, 12), slice(8, 24))
    part = nodeFromVolume(Volume(np.zeros((5, 12, 16), np.int16), GRID.cropped(box)), "part")
    np.testing.assert_array_equal(mrml.segmentMask(node, "lesion", part), three_lesions[box])


def test_a_segmentation_of_surfaces_can_be_a_reference(mrml, ct, three_lesions, scene):
    node = mrml.showLesions(ct, three_lesions)
    mrml.showIn3D(node)
    node.SetSourceRepresentationToClosedSurface()
    node.GetSegmentation().RemoveRepresentation("Binary labelmap")
    back = mrml.segmentMask(node, "lesion", ct)
    overlap = 2 * (back & three_lesions).sum() / (back.sum() + three_lesions.sum())
    assert overlap > 0.6  # smoothed surfaces of small boxes


def test_nothing_is_written_over_the_surfaces_of_a_segmentation(mrml, ct, three_lesions):
    node = mrml.showLesions(ct, three_lesions)
    mrml.showIn3D(node)
    node.SetSourceRepresentationToClosedSurface()
    for write in (
        lambda: mrml.showLesions(ct, three_lesions, segmentationNode=node),
        lambda: mrml.writeSegment(node, "lesion", three_lesions, ct),
        lambda: mrml.showIn3D(node, False),
    ):
        with pytest.raises(InputError, match="keeps its segments as closed surface; a result needs"):
            write()
    assert node.GetClosedSurfaceInternalRepresentation("lesion").GetNumberOfPoints() > 0


def test_faults_are_sentences(mrml, ct, three_lesions, scene):
    node = mrml.showLesions(ct, three_lesions)
    with pytest.raises(GridMismatchError, match="same grid"):
        mrml.showLesions(ct, three_lesions[1:])
    with pytest.raises(InputError, match="no view"):
        mrml.showLesions(ct, three_lesions, view="lobes")
    with pytest.raises(InputError, match="not there any more"):
        mrml.segmentMask(node, "gone", ct)
    with pytest.raises(InputError, match="no lesion segments"):
        mrml.lesionMask(mrml.createSegmentation(ct), ct)
    scene.RemoveNode(node)
    with pytest.raises(InputError, match="segmentation was deleted"):
        mrml.showLesions(ct, three_lesions, segmentationNode=node)
    scene.RemoveNode(ct)
    with pytest.raises(InputError, match="CT was deleted"):
        mrml.showLesions(ct, three_lesions)


def test_everything_survives_a_scene_bundle(mrml, ct, study, three_lesions, lungs, scene, slicer_core, tmp_path):
    node = mrml.showLungs(ct, lungs)
    mrml.showLesions(ct, three_lesions, segmentationNode=node, view="attenuation")
    slicer_core.util.saveScene(str(tmp_path / "scene.mrb"))
    scene.Clear(False)
    with pytest.raises(InputError, match="deleted, or its scene was closed"):
        mrml.lesionMask(node, ct)
    slicer_core.util.loadScene(str(tmp_path / "scene.mrb"))
    ct, node = slicer_core.util.getNode("CT"), slicer_core.util.getNode("COVID-19 lesions")
    assert mrml.segmentsWithRole(node, "lungs") == ["right_lung", "left_lung"]
    np.testing.assert_array_equal(mrml.lesionMask(node, ct), three_lesions)
    np.testing.assert_array_equal(mrml.segmentMask(node, "left_lung", ct), lungs == 2)
    assert terminology(node, "consolidation") == segment_style("consolidation").terminology_entry
    assert study_of(node) == study_of(ct) != 0
    mrml.showLesions(ct, three_lesions, segmentationNode=node)
    assert ids(node) == ["right_lung", "left_lung", "lesion"]


def test_fifty_results_leave_no_nodes_behind(mrml, ct, three_lesions, scene):
    from undo_history import UndoHistory

    node = mrml.showLesions(ct, three_lesions)
    history = UndoHistory(node, ct)
    count = scene.GetNumberOfNodes()
    for turn in range(50):
        UndoHistory(node, ct)
        mrml.showLesions(ct, three_lesions, segmentationNode=node, view=("lesion", "separate")[turn % 2], undo=history)
    assert scene.GetNumberOfNodes() == count
