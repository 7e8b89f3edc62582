"""The tab that corrects: the editor's choices, going from lesion to lesion, the network's answer, undo."""

from __future__ import annotations

import numpy as np
import pytest
from panel_fixtures import add_ct, apply_and_wait, brush, chest, find, let_run, said, wait_for, wait_for_words


@pytest.fixture
def segmentation(panel, ct):
    """The lesions, found; the page Correct in view; figures measured."""
    node = apply_and_wait(panel)
    panel.show("correct")
    wait_for(lambda: panel.session.live.lesions and not panel.session.live.busy, "the figures")
    return node


def test_our_segment_and_ct_are_chosen(panel, segmentation, ct):
    editor = panel.correct.editor
    assert editor.segmentationNode() is segmentation
    assert editor.sourceVolumeNode() is ct
    assert editor.currentSegmentID() == "lesion"
    assert {"Paint", "Erase", "Threshold", "Islands"} <= set(editor.availableEffectNames())
    assert not editor.segmentationNodeSelectorVisible and not editor.sourceVolumeNodeSelectorVisible


def test_brushes_and_shortcuts_work_while_the_tab_is_in_view_only(panel, segmentation, slicer_gui, monkeypatch):
    editor, calls = panel.correct.editor, []
    for name in (
        "installKeyboardShortcuts",
        "uninstallKeyboardShortcuts",
        "setupViewObservations",
        "removeViewObservations",
    ):
        monkeypatch.setattr(slicer_gui.qMRMLSegmentEditorWidget, name, lambda *_, name=name: calls.append(name))
    editor.setActiveEffectByName("Paint")
    panel.show("measure")
    assert calls == ["uninstallKeyboardShortcuts", "removeViewObservations"] and editor.activeEffect() is None
    panel.show("correct")
    assert calls[2:] == ["setupViewObservations", "installKeyboardShortcuts"]
    panel.exit()
    assert calls[4:] == calls[:2]


def test_without_a_segmentation_the_tab_says_what_to_do(panel, ct):
    panel.show("correct")
    assert panel.correct.ui.editorStateLabel.isVisible() and not panel.correct.editor.isEnabled()
    panel.correct.goToLesion(1)
    assert "no measured lesions" in said(panel)


def test_all_views_jump_from_lesion_to_lesion(panel, segmentation, scene, ct, mrml):
    import slicer

    views = []
    for name in ("Red", "Yellow", "Green"):
        node = slicer.vtkMRMLSliceNode()
        node.SetLayoutName(name)
        node.SetSingletonTag(name)
        views.append(scene.AddNode(node))
    camera = scene.AddNewNodeByClass("vtkMRMLCameraNode")
    away = np.subtract(camera.GetPosition(), camera.GetFocalPoint())
    ui = panel.correct.ui
    assert "2 lesions" in ui.lesionLabel.text
    lesions = panel.session.live.lesions
    forward, back = ui.nextLesionButton, ui.previousLesionButton
    for button, index in ((forward, 0), (forward, 1), (forward, 0), (back, 1)):
        button.click()
        left, posterior, superior = lesions[index]["centroid_lps_mm"]
        target = (-left, -posterior, superior)
        assert f"Lesion {index + 1} of 2" in ui.lesionLabel.text
        for view in views:
            matrix = view.GetSliceToRAS()
            center = [matrix.GetElement(row, 3) for row in range(3)]
            assert np.allclose(center, target, atol=1e-4), view.GetLayoutName()
        assert np.allclose(camera.GetFocalPoint(), target)
        assert np.allclose(np.subtract(camera.GetPosition(), camera.GetFocalPoint()), away)


def test_the_way_back_begins_with_the_last_lesion_and_stays_among_those_that_are_left(panel, segmentation):
    ui, live = panel.correct.ui, panel.session.live
    ui.previousLesionButton.click()
    assert "Lesion 2 of 2" in ui.lesionLabel.text
    live.quantities = {**live.quantities, "lesions": {**live.quantities["lesions"], "value": live.lesions[:1]}}
    panel.correct.showLesions()
    assert "Lesion 1 of 1" in ui.lesionLabel.text


def test_the_answer_comes_back_in_one_lesion_only(panel, segmentation, ct, mrml):
    answer = chest()[1]
    first, second = np.s_[9:12, 22:30, 16:24], np.s_[13:15, 31:35, 52:56]
    brush(panel, segmentation, first, erase=True)
    brush(panel, segmentation, second, erase=True)
    wait_for(lambda: not panel.session.live.busy, "the figures")
    edited = mrml.lesionMask(segmentation, ct)
    assert edited.sum() == answer.sum() - 3 * 8 * 8 - 2 * 4 * 4
    panel.correct.ui.nextLesionButton.click()
    panel.correct.ui.resetButton.click()
    wait_for_words(panel, "Reset to the AI result")
    now = mrml.lesionMask(segmentation, ct)
    assert now[first].all() and not now[second].any()
    panel.messages.ui.undoButton.click()
    assert np.array_equal(mrml.lesionMask(segmentation, ct), edited)


def test_the_answer_comes_back_in_the_slice_in_view(panel, segmentation, ct, scene, mrml):
    import slicer

    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    view = slicer.vtkMRMLSliceNode()
    view.SetLayoutName("Red")
    view.SetSingletonTag("Red")
    view = scene.AddNode(view)
    view.SetOrientation("Axial")
    answer = chest()[1]
    brush(panel, segmentation, np.s_[:, :, :40], erase=True)
    z = 10
    ras = (mrml.gridOfNode(ct).ijk_to_ras @ [20, 25, z, 1])[:3]
    view.JumpSliceByCentering(*ras)
    ui = panel.correct.ui
    ui.regionCombo.setCurrentIndex(ui.regionCombo.findData("slice"))
    ui.resetButton.click()
    wait_for_words(panel, "Reset to the AI result")
    now = mrml.lesionMask(segmentation, ct)
    assert np.array_equal(now[z], answer[z])
    assert not now[:z, :, :40].any() and not now[z + 1 :, :, :40].any()


def test_the_answer_comes_back_in_a_region_of_interest(panel, segmentation, ct, scene, mrml):
    answer = chest()[1]
    brush(panel, segmentation, np.s_[:, :, :], erase=True)
    ui = panel.correct.ui
    ui.regionCombo.setCurrentIndex(ui.regionCombo.findData("roi"))
    assert ui.roiSelector.isVisible()
    ui.resetButton.click()
    wait_for_words(panel, "No region of interest is chosen")
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    to_ras = mrml.gridOfNode(ct).ijk_to_ras
    low, high = (to_ras @ [14, 20, 8, 1])[:3], (to_ras @ [20, 27, 11, 1])[:3]
    roi.SetCenter(*((low + high) / 2))
    roi.SetSize(*np.abs(high - low))
    ui.roiSelector.setCurrentNode(roi)
    ui.resetButton.click()
    wait_for_words(panel, "Reset to the AI result")
    expected = np.zeros_like(answer)
    expected[8:12, 20:28, 14:21] = True
    assert np.array_equal(mrml.lesionMask(segmentation, ct), answer & expected)


def test_everything_comes_back_segment_by_segment(panel, ct, mrml):
    panel.segment.ui.viewCombo.setCurrentIndex(2)
    node = apply_and_wait(panel)
    before = {i: mrml.segmentMask(node, i, ct) for i in mrml.segmentsWithRole(node)}
    assert set(before) == {"lesion_1", "lesion_2"}
    mrml.writeSegment(node, "lesion_1", np.zeros_like(before["lesion_1"]), ct)
    node.GetSegmentation().RemoveSegment("lesion_2")
    ui = panel.correct.ui
    ui.regionCombo.setCurrentIndex(ui.regionCombo.findData("all"))
    ui.resetButton.click()
    wait_for_words(panel, "Reset to the AI result")
    for identity, mask in before.items():
        assert np.array_equal(mrml.segmentMask(node, identity, ct), mask), identity


def test_undo_brings_back_the_edited_segment_that_a_result_replaced(panel, segmentation, ct, mrml):
    brush(panel, segmentation, np.s_[4:6, 20:30, 50:60])
    edited = mrml.lesionMask(segmentation, ct)
    panel.show("segment")
    apply_and_wait(panel)
    assert np.array_equal(mrml.lesionMask(segmentation, ct), chest()[1])
    assert "undo brings them back" in said(panel) and panel.messages.ui.undoButton.isVisible()
    panel.messages.ui.undoButton.click()
    assert np.array_equal(mrml.lesionMask(segmentation, ct), edited)


def test_figures_follow_undo_and_redo(panel, segmentation, ct, mrml):
    live, editor = panel.session.live, find(panel, "editor")
    before = live.quantities["lesion_volume"]["value"]
    brush(panel, segmentation, np.s_[4:6, 20:30, 50:60])
    wait_for(lambda: not live.busy and live.quantities["lesion_volume"]["value"] > before, "the edit's figures")
    edited = live.quantities["lesion_volume"]["value"]
    editor.undo()
    wait_for(lambda: live.quantities["lesion_volume"]["value"] == before, "the figures after undo")
    editor.redo()
    wait_for(lambda: live.quantities["lesion_volume"]["value"] == edited, "the figures after redo")


def test_the_answer_survives_a_scene_file_and_goes_with_its_segmentation(
    panel, segmentation, ct, mrml, tmp_path, scene
):
    import slicer

    brush(panel, segmentation, np.s_[:, :, :40], erase=True)
    file = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(file)
    slicer.util.loadScene(file)
    let_run()
    parameters = mrml.moduleParameters()
    node, volume = parameters.lesionSegmentation, parameters.inputVolume
    assert np.array_equal(mrml.predictionMask(node, volume), chest()[1])
    assert not mrml.lesionMask(node, volume)[:, :, :40].any()
    answers = [n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if n.GetHideFromEditors()]
    assert len(answers) == 1
    mrml.removeNode(node)
    let_run()
    assert not [n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if n.GetHideFromEditors()]


def test_a_closed_scene_leaves_a_tab_that_works_again(panel, segmentation, scene, mrml):
    scene.Clear(False)
    let_run()
    assert panel.correct.editor.segmentationNode() is None
    second = add_ct("second")
    panel.segment.ui.inputSelector.setCurrentNode(second)
    node = apply_and_wait(panel)
    assert panel.correct.editor.segmentationNode() is node
    assert panel.correct.editor.sourceVolumeNode() is second
