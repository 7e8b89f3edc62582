"""Correct by a click: what a user clicks in a view, the sliders, the wheel, and the editor's undo."""

from __future__ import annotations

import numpy as np
import pytest
from panel_case_fixtures import open_next, rest, scene_mask
from panel_fixtures import add_ct, apply_and_wait, brush, chest, find, let_run, said, wait_for

FIRST, SECOND = np.s_[8:14, 20:34, 14:26], np.s_[12:16, 30:36, 50:58]
# what the network misses: 0.4 of probability in lung of about 0.02
MISSED = np.s_[10:13, 40:46, 60:66]
AT_MISSED, AT_FIRST, IN_AIR = (11, 43, 63), (11, 30, 20), (6, 16, 50)


def chest_with_missed_lesion():
    hu = chest()[0].copy()
    hu[MISSED] = -760
    return hu


@pytest.fixture
def ct(panel):
    node = add_ct(array=chest_with_missed_lesion())
    panel.segment.ui.inputSelector.setCurrentNode(node)
    return node


@pytest.fixture
def segmentation(panel, ct):
    """The result; the group in view."""
    node = apply_and_wait(panel)
    panel.show("correct")
    group(panel).ui.thresholdSlider.setValue(at(panel, 0.3))
    return node


def group(panel):
    return panel.correct.clicks


def at(panel, probability):
    """The place of a slider."""
    from COVIDLesionSegLib import mrml

    parameters = mrml.moduleParameters()
    return mrml.levelsOf(parameters.lesionSegmentation, parameters.inputVolume).sensitivity_of(probability)


def click(panel, ct, voxel):
    """What a click in a view does: the point that follows the mouse is placed."""
    import slicer

    from COVIDLesionSegLib import mrml

    z, y, x = voxel
    selection = slicer.app.applicationLogic().GetSelectionNode()
    node = slicer.mrmlScene.GetNodeByID(selection.GetActivePlaceNodeID())
    node.AddControlPointWorld(*(mrml.gridOfNode(ct).ijk_to_ras @ [x, y, z, 1])[:3])
    settled(panel)
    assert node.GetNumberOfDefinedControlPoints() == 0


def settled(panel):
    wait_for(lambda: not group(panel).busy, "the answer to the click")


def press(panel, name):
    find(panel, name).click()


def lesions(segmentation, ct):
    from COVIDLesionSegLib import mrml

    return mrml.lesionMask(segmentation, ct)


def state(panel):
    return group(panel).ui.clickLabel.text


def is_placing():
    import slicer

    interaction = slicer.app.applicationLogic().GetInteractionNode()
    return interaction.GetCurrentInteractionMode() == interaction.Place


def without(*parts):
    mask = chest()[1]
    for part in parts:
        mask[part] = False
    return mask


def with_missed():
    mask = chest()[1]
    mask[MISSED] = True
    return mask


# ---- remove ---------------------------------------------------------------------------------------------------------


def test_remove_takes_the_lesion_under_the_click_and_each_click_is_one_undo(panel, segmentation, ct):
    press(panel, "removeLesionButton")
    assert is_placing() and "Click on a lesion" in state(panel)
    click(panel, ct, AT_FIRST)
    assert np.array_equal(lesions(segmentation, ct), without(FIRST))
    assert "Removed a lesion of 5.67 mL" in state(panel)
    click(panel, ct, (13, 33, 53))
    assert not lesions(segmentation, ct).any()
    panel.correct.editor.undo()
    assert np.array_equal(lesions(segmentation, ct), without(FIRST))
    find(panel, "undoClickButton").click()
    assert np.array_equal(lesions(segmentation, ct), chest()[1])


def test_a_click_beside_a_lesion_means_it_and_one_far_off_means_none(panel, segmentation, ct):
    press(panel, "removeLesionButton")
    click(panel, ct, (11, 30, 40))
    assert "no lesion under the click" in state(panel)
    assert np.array_equal(lesions(segmentation, ct), chest()[1])
    click(panel, ct, (11, 30, 27))
    assert np.array_equal(lesions(segmentation, ct), without(FIRST))


def test_a_click_outside_the_ct_is_said(panel, segmentation, ct):
    press(panel, "removeLesionButton")
    click(panel, ct, (-3, 10, 10))
    assert "outside the CT" in said(panel)
    assert np.array_equal(lesions(segmentation, ct), chest()[1])


def test_a_lesion_goes_from_all_its_segments_and_from_no_other(panel, ct, mrml):
    panel.segment.ui.viewCombo.setCurrentIndex(1)
    node = apply_and_wait(panel)
    panel.show("correct")
    mine = np.zeros_like(chest()[1])
    mine[9:12, 22:30, 10:24] = True
    node.GetSegmentation().AddEmptySegment("mine", "mine")
    mrml.writeSegment(node, "mine", mine, ct)
    assert mrml.segmentMask(node, "consolidation", ct).any()
    press(panel, "removeLesionButton")
    click(panel, ct, AT_FIRST)
    assert not mrml.segmentMask(node, "consolidation", ct).any()
    assert np.array_equal(lesions(node, ct), without(FIRST))
    assert np.array_equal(mrml.segmentMask(node, "mine", ct), mine)


# ---- add ------------------------------------------------------------------------------------------------------------


def test_add_grows_the_lesion_that_was_missed(panel, segmentation, ct, mrml):
    segments = segmentation.GetSegmentation()
    mine = np.zeros_like(chest()[1])
    mine[10:12, 38:44, 58:64] = True
    segments.AddEmptySegment("mine", "mine")
    mrml.writeSegment(segmentation, "mine", mine, ct)
    segments.CollapseBinaryLabelmaps(False)
    press(panel, "addLesionButton")
    click(panel, ct, AT_MISSED)
    assert np.array_equal(lesions(segmentation, ct), with_missed())
    assert np.array_equal(mrml.segmentMask(segmentation, "mine", ct), mine)
    assert "Added 0.607 mL" in state(panel)
    panel.correct.editor.undo()
    assert np.array_equal(lesions(segmentation, ct), chest()[1])


def test_slider_wheel_and_keys_change_what_was_added_until_the_next_click(
    panel, segmentation, ct, views_with_wheel, slicer_gui
):
    slider = find(panel, "thresholdSlider")
    press(panel, "addLesionButton")
    click(panel, ct, AT_MISSED)
    slider.setValue(at(panel, 0.01))
    settled(panel)
    flooded = lesions(segmentation, ct)
    assert flooded.sum() > 5000 and flooded[MISSED].all() and not flooded[:, :, :40][~chest()[1][:, :, :40]].any()
    slider.setValue(at(panel, 0.45))
    settled(panel)
    assert np.array_equal(lesions(segmentation, ct), chest()[1]) and "nothing is added" in state(panel)
    slider.setValue(at(panel, 0.39))
    settled(panel)
    assert np.array_equal(lesions(segmentation, ct), with_missed())
    place = slider.value
    red = views_with_wheel["Red"]
    red.SetShiftKey(1)
    red.InvokeEvent("MouseWheelBackwardEvent")
    settled(panel)
    assert slider.value == place - 2 and np.array_equal(lesions(segmentation, ct), chest()[1])
    red.InvokeEvent("MouseWheelForwardEvent")
    settled(panel)
    assert slider.value == place and np.array_equal(lesions(segmentation, ct), with_missed())
    # all of it is one step; the lesion of the click before stays as it is
    click(panel, ct, (11, 35, 50))
    slider.setValue(at(panel, 0.45))
    settled(panel)
    assert np.array_equal(lesions(segmentation, ct), with_missed())
    panel.correct.editor.undo()
    panel.correct.editor.undo()
    assert np.array_equal(lesions(segmentation, ct), chest()[1])


def test_what_somebody_paints_ends_the_growth(panel, segmentation, ct):
    press(panel, "addLesionButton")
    click(panel, ct, AT_MISSED)
    brush(panel, segmentation, np.s_[5:7, 20:24, 60:64])
    painted = lesions(segmentation, ct)
    find(panel, "thresholdSlider").setValue(at(panel, 0.01))
    settled(panel)
    assert np.array_equal(lesions(segmentation, ct), painted)


def test_where_nothing_can_be_added_it_is_said_and_no_undo_step_is_made(panel, segmentation, ct):
    press(panel, "addLesionButton")
    for voxel, words in (((11, 43, 2), "outside the lungs"), (IN_AIR, "hardly any lesion")):
        click(panel, ct, voxel)
        assert words in state(panel)
        assert np.array_equal(lesions(segmentation, ct), chest()[1])
    find(panel, "insideCheck").setChecked(False)
    click(panel, ct, (11, 43, 2))
    assert "sees no lesion here" in state(panel)
    press(panel, "removeLesionButton")
    click(panel, ct, AT_FIRST)
    panel.correct.editor.undo()
    assert np.array_equal(lesions(segmentation, ct), chest()[1])


def test_a_click_on_what_the_threshold_leaves_out_lowers_it(panel, segmentation, ct):
    slider = find(panel, "thresholdSlider")
    slider.setValue(at(panel, 0.45))
    press(panel, "addLesionButton")
    click(panel, ct, AT_MISSED)
    assert np.array_equal(lesions(segmentation, ct), with_missed())
    assert slider.value == pytest.approx(at(panel, 0.2), abs=2)


def test_added_lesion_goes_into_the_chosen_segment_or_the_one_of_its_hu(panel, ct, mrml):
    combo = panel.segment.ui.viewCombo
    combo.setCurrentIndex(combo.findData("separate"))
    node = apply_and_wait(panel)
    panel.show("correct")
    find(panel, "thresholdSlider").setValue(at(panel, 0.3))
    panel.correct.editor.setCurrentSegmentID("lesion_2")
    press(panel, "addLesionButton")
    click(panel, ct, AT_MISSED)
    assert mrml.segmentMask(node, "lesion_2", ct)[MISSED].all()
    assert not mrml.segmentMask(node, "lesion_1", ct)[MISSED].any()
    combo.setCurrentIndex(combo.findData("attenuation"))
    node = apply_and_wait(panel)
    panel.correct.editor.setCurrentSegmentID("consolidation")
    click(panel, ct, AT_MISSED)
    assert mrml.segmentMask(node, "ground_glass_opacity", ct)[MISSED].all()


def test_clicks_hit_the_voxel_under_a_transform(panel, segmentation, ct, scene):
    import slicer
    import vtk

    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    for row, value in enumerate((15.0, -8.0, 33.0)):
        matrix.SetElement(row, 3, value)
    transform.SetMatrixTransformToParent(matrix)
    parameters = __import__("COVIDLesionSegLib.mrml", fromlist=["mrml"]).moduleParameters()
    for node in (ct, segmentation, parameters.lungSegmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    press(panel, "addLesionButton")
    click(panel, ct, AT_MISSED)
    assert np.array_equal(lesions(segmentation, ct), with_missed())
    assert isinstance(ct, slicer.vtkMRMLScalarVolumeNode)


# ---- the whole result -----------------------------------------------------------------------------------------------


def test_sensitivity_draws_the_result_anew_and_is_one_undo(panel, segmentation, ct, mrml):
    slider, label = find(panel, "sensitivitySlider"), find(panel, "sensitivityLabel")
    assert slider.value == 0 and label.text == "50 %"
    slider.setValue(at(panel, 0.39))
    settled(panel)
    assert np.array_equal(lesions(segmentation, ct), with_missed())
    assert "Lesion above" in state(panel)
    assert mrml.recordOf(segmentation).postprocessing["threshold"] == pytest.approx(0.39, abs=0.01)
    slider.setValue(-127)
    settled(panel)
    assert not lesions(segmentation, ct).any()
    find(panel, "undoClickButton").click()
    assert np.array_equal(lesions(segmentation, ct), chest()[1])
    wait_for(lambda: slider.value == 0, "the slider")
    assert label.text == "50 %" and mrml.recordOf(segmentation).postprocessing["threshold"] == 0.5
    slider.setValue(at(panel, 0.39))
    settled(panel)
    slider.setValue(0)
    settled(panel)
    assert np.array_equal(lesions(segmentation, ct), chest()[1])
    assert mrml.recordOf(segmentation).postprocessing["threshold"] == 0.5


def test_an_edited_result_keeps_its_sensitivity(panel, segmentation, ct):
    slider = find(panel, "sensitivitySlider")
    slider.setValue(at(panel, 0.39))
    settled(panel)
    brush(panel, segmentation, np.s_[5:7, 20:24, 60:64])
    edited = lesions(segmentation, ct)
    slider.setValue(90)
    settled(panel)
    assert np.array_equal(lesions(segmentation, ct), edited) and "was edited" in state(panel)
    assert slider.value == at(panel, 0.39)
    panel.correct.editor.undo()
    slider.setValue(0)
    settled(panel)
    assert np.array_equal(lesions(segmentation, ct), chest()[1])


@pytest.mark.parametrize("view", ["attenuation", "separate"])
def test_a_redrawn_result_keeps_its_view_and_its_smallest_volume(panel, ct, mrml, view):
    combo = panel.segment.ui.viewCombo
    combo.setCurrentIndex(combo.findData(view))
    mrml.moduleParameters().minimumVolume = 1.5
    node = apply_and_wait(panel)
    assert mrml.recordOf(node).postprocessing["minimum_volume_ml"] == 1.5
    panel.show("correct")
    before = set(mrml.segmentsWithRole(node))
    slider = find(panel, "sensitivitySlider")
    # the fake worker leaves small lesions in, so what it has found counts as edited
    mrml.writeSegment(node, sorted(before)[-1], mrml.segmentMask(node, sorted(before)[-1], ct) & without(SECOND), ct)
    slider.setValue(at(panel, 0.39))
    settled(panel)
    now = lesions(node, ct)
    assert np.array_equal(now, without(SECOND)) and mrml.viewOf(node) == view


def test_surfaces_are_made_again_when_the_hand_rests(panel, segmentation, ct, mrml, monkeypatch):
    from COVIDLesionSegLib.panel import click_correction

    monkeypatch.setattr(click_correction, "_REST_MS", 100)
    has = segmentation.GetSegmentation().ContainsRepresentation
    assert has("Closed surface")
    press(panel, "removeLesionButton")
    click(panel, ct, AT_FIRST)
    assert not has("Closed surface")
    click(panel, ct, (13, 33, 53))
    wait_for(lambda: has("Closed surface"), "the surfaces")


# ---- where the probability is ---------------------------------------------------------------------------------------


def test_without_a_probability_only_remove_works_and_the_group_says_what_to_do(panel, segmentation, ct, mrml):
    mrml.keepLevels(segmentation, ct, None)
    mrml.moduleParameters().parameterNode.Modified()
    ui = group(panel).ui
    assert not ui.addLesionButton.enabled and not ui.sensitivitySlider.enabled and ui.removeLesionButton.enabled
    press(panel, "removeLesionButton")
    click(panel, ct, AT_FIRST)
    assert np.array_equal(lesions(segmentation, ct), without(FIRST))
    press(panel, "removeLesionButton")
    assert "run the model on the CT" in state(panel)


def test_another_ct_ends_the_tool_and_has_its_own_probability(panel, segmentation, ct, mrml):
    press(panel, "addLesionButton")
    second = add_ct("second")
    panel.segment.ui.inputSelector.setCurrentNode(second)
    ui = group(panel).ui
    assert not is_placing() and not ui.addLesionButton.checked and not ui.removeLesionButton.enabled
    assert "Segment a CT first" in state(panel)
    panel.segment.ui.inputSelector.setCurrentNode(ct)
    assert ui.addLesionButton.enabled
    press(panel, "addLesionButton")
    click(panel, ct, AT_MISSED)
    assert np.array_equal(lesions(segmentation, ct), with_missed())


def test_placing_ends_with_the_tab_the_scene_and_the_button(panel, segmentation, scene):
    press(panel, "addLesionButton")
    panel.show("measure")
    assert not is_placing()
    panel.show("correct")
    press(panel, "addLesionButton")
    press(panel, "removeLesionButton")
    assert is_placing() and not find(panel, "addLesionButton").checked
    press(panel, "removeLesionButton")
    assert not is_placing()
    press(panel, "removeLesionButton")
    scene.Clear(False)
    let_run()
    assert not is_placing() and not find(panel, "removeLesionButton").checked
    assert not find(panel, "removeLesionButton").enabled


def test_a_second_run_replaces_the_probability_and_is_not_edited(panel, segmentation, ct, mrml):
    slider = find(panel, "sensitivitySlider")
    slider.setValue(at(panel, 0.39))
    settled(panel)
    panel.show("segment")
    apply_and_wait(panel)
    panel.show("correct")
    assert slider.value == 0
    slider.setValue(at(panel, 0.39))
    settled(panel)
    assert np.array_equal(lesions(segmentation, ct), with_missed())


# ---- a case of the store --------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    from COVIDLesionSegLib.cases import Store
    from COVIDLesionSegLib.imaging import Geometry, Volume

    made = Store.create(tmp_path / "store")
    geometry = Geometry((80, 64, 24), (1.5, 1.5, 2.5), (-60.0, -48.0, -30.0))
    made.add("CT", "Patient 1", volume=Volume(chest_with_missed_lesion(), geometry, "CT", {"format": "test"}))
    return made


def corrected_by_clicks(panel, page):
    from COVIDLesionSegLib import mrml

    ct = mrml.moduleParameters().inputVolume
    panel.show("correct")
    find(panel, "thresholdSlider").setValue(at(panel, 0.3))
    press(panel, "addLesionButton")
    click(panel, ct, AT_MISSED)
    press(panel, "removeLesionButton")
    click(panel, ct, AT_FIRST)
    page.ui.saveCaseButton.click()
    rest(page)


def test_an_opened_case_is_corrected_by_clicks_when_it_is_fresh_and_when_it_comes_back(panel, page, store):
    case = open_next(page)
    expected = with_missed() & without(FIRST) | (with_missed() & ~chest()[1])
    corrected_by_clicks(panel, page)
    assert np.array_equal(store.read_revision(case, 1).mask(), expected)
    assert store.read_levels(case, 1) is not None and store.check().findings == ()
    page.choose("aside")
    rest(page)
    # the model is not run again: its probability comes out of the store
    asked = len(panel.session._clients)
    page.ui.caseList.setCurrentRow(0)
    page.choose("open")
    rest(page)
    assert np.array_equal(scene_mask(), expected) and len(panel.session._clients) == asked
    find(panel, "thresholdSlider").setValue(at(panel, 0.3))
    panel.show("correct")
    press(panel, "addLesionButton")
    from COVIDLesionSegLib import mrml

    click(panel, mrml.moduleParameters().inputVolume, AT_FIRST)
    assert np.array_equal(scene_mask(), with_missed())
