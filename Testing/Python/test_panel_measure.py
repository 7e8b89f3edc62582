"""The tab that measures: figures that follow edits, the reference, an earlier study, charts and maps."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
from fake_worker import DIE, HOLD, segment_by_threshold
from panel_fixtures import (
    SPACING,
    VOXEL_ML,
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

from COVIDLesionSegLib.worker import Request, transport
from COVIDLesionSegLib.worker import protocol as p


@pytest.fixture
def parameters(panel, mrml):
    return mrml.moduleParameters()


def figures(panel):
    """What the list shows: name -> value."""
    table = panel.measure.ui.figureTable
    return {table.item(row, 0).text().partition("\n")[0]: table.item(row, 1).text() for row in range(table.rowCount)}


def test_figures_and_tables_are_there_after_a_run(panel, segmentation, parameters):
    wait_for(lambda: not panel.measure.ui.stateLabel.text, "rest")
    shown = figures(panel)
    ml = chest()[1].sum() * VOXEL_ML
    assert float(shown["Lesion volume"].split()[0]) == pytest.approx(ml, rel=0.01)
    assert shown["Lesion volume"].endswith("mL") and shown["Mean HU of the lesion"].endswith("HU")
    assert shown["Number of lesions"] == "2" and shown["Lung involved"].endswith("%")
    table = parameters.measurementTable
    assert "[mL]" in table.GetColumnTitle("lesion_volume")
    assert parameters.lesionTable.GetNumberOfRows() == 2
    assert panel.measure.ui.tableView.mrmlTableNode() is table
    panel.measure.ui.tableCombo.setCurrentIndex(1)
    assert panel.measure.ui.tableView.mrmlTableNode() is parameters.lesionTable


def test_from_apply_to_the_table_the_ct_is_read_and_written_once(panel, ct, worker, monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(transport.tempfile, "tempdir", str(tmp_path))
    written = []

    def write_array(path, array):
        written.append(array)
        yield from whole(path, array)

    whole = transport.write_array
    monkeypatch.setattr(transport, "write_array", write_array)
    apply_and_wait(panel)
    panel.show("measure")
    settle(panel)
    hu = chest()[0]
    for task in ("segment", "open"):
        np.testing.assert_array_equal(worker.named(task)[0].arrays["volume"], hu)
    assert [array.nbytes for array in written if array.dtype == hu.dtype] == [hu.nbytes]
    # other voxels travel, and what was written before is gone
    changed = hu.copy()
    changed[0, 0, 0] += 1
    slicer.util.updateVolumeFromArray(ct, changed)
    wait_for(lambda: len(worker.named("open")) == 2, "the changed CT")
    settle(panel)
    np.testing.assert_array_equal(worker.named("open")[1].arrays["volume"], changed)
    assert len(list(tmp_path.glob("*/array.npy"))) == 1
    slicer.mrmlScene.RemoveNode(ct)
    let_run()
    assert not list(tmp_path.glob("*/array.npy"))


def test_voxels_that_were_changed_in_place_are_measured_anew(panel, segmentation, worker, ct):
    settle(panel)
    opened = len(worker.named("open"))
    ct.SetName("another name")
    settle(panel)
    assert len(worker.named("open")) == opened
    slicer.util.arrayFromVolume(ct)[0, 0, 0] += 1
    slicer.util.arrayFromVolumeModified(ct)
    wait_for(lambda: len(worker.named("open")) == opened + 1, "the changed CT")
    assert worker.named("open")[-1].arrays["volume"][0, 0, 0] == chest()[0][0, 0, 0] + 1


def test_every_figure_explains_itself(panel, segmentation):
    table = panel.measure.ui.figureTable
    tips = {table.item(row, 0).text(): table.item(row, 0).toolTip() for row in range(table.rowCount)}
    assert "times the volume of a voxel" in tips["Lesion volume"] and "Unit: mL." in tips["Lesion volume"]
    assert all(len(tip) > 20 for tip in tips.values())


def test_the_table_follows_an_edit_and_only_the_box_travels(panel, segmentation, worker, ct, mrml):
    box = np.s_[4:6, 20:30, 50:60]
    before = worker.named("update")
    brush(panel, segmentation, box)
    wait_for(lambda: len(worker.named("update")) > len(before), "the update")
    settle(panel)
    asked = worker.named("update")[-1]
    assert asked.parameters["box"] == [[4, 6], [20, 30], [50, 60]]
    assert asked.arrays["lesion"].shape == (2, 10, 10)
    assert len(worker.named("open")) == 1
    wait_for(lambda: not panel.measure.ui.stateLabel.text, "rest")
    ml = (chest()[1].sum() + 200) * VOXEL_ML
    assert panel.session.live.quantities["lesion_volume"]["value"] == pytest.approx(ml)
    assert figures(panel)["Number of lesions"] == "3"


def test_many_strokes_become_few_updates_and_the_last_one_counts(panel, segmentation, worker, ct, mrml):
    for x in range(44, 60):
        brush(panel, segmentation, np.s_[4:6, 20:24, x : x + 1])
    settle(panel)
    assert len(worker.named("update")) <= 4
    ml = mrml.lesionMask(segmentation, ct).sum() * VOXEL_ML
    assert panel.session.live.quantities["lesion_volume"]["value"] == pytest.approx(ml)


def test_the_reference_is_compared_and_follows(panel, segmentation, ct, mrml, parameters):
    from COVIDLesionSegLib.measurement import evaluate

    truth = np.roll(chest()[1], 2, axis=2)
    reference = add_reference(ct, mrml, truth)
    choose_reference(panel, reference)
    expected = evaluate(chest()[1], truth, SPACING)
    found = panel.session.live.evaluation
    for name in ("dice", "relative_volume_error", "hausdorff_distance_95"):
        assert found[name]["value"] == pytest.approx(expected[name]["value"])
        assert found[name]["status"] == "ok"
    assert figures(panel)["HD95"].endswith("mm")
    assert parameters.comparisonTable.GetNumberOfRows() > 8
    brush(panel, segmentation, np.s_[:, :, :], erase=True)
    settle(panel)
    assert panel.session.live.evaluation["dice"]["status"] == "prediction_empty"
    assert figures(panel)["HD95"].startswith("\N{INFINITY}")
    mrml.removeNode(reference)
    wait_for(lambda: not panel.session.live.evaluation and not panel.session.live.busy, "no comparison")
    settle(panel)
    assert "HD95" not in figures(panel)


def test_a_study_that_was_being_read_when_one_looked_away_is_measured_on_return(
    panel, segmentation, ct, mrml, parameters
):
    live, read = panel.session.live, []
    reading = live._read
    live._read = lambda: read.append(1) or reading()
    parameters.referenceSegmentation = add_reference(ct, mrml, np.roll(chest()[1], 2, axis=2))
    wait_for(lambda: read, "the lesions to be read")
    panel.show("cases")
    panel.show("measure")
    wait_for(lambda: live.evaluation and not live.busy, "the comparison")


def test_one_segment_can_be_measured_alone(panel, ct, mrml, parameters):
    panel.segment.ui.viewCombo.setCurrentIndex(2)
    node = apply_and_wait(panel)
    panel.show("measure")
    settle(panel)
    combo = panel.measure.ui.lesionCombo
    combo.setCurrentIndex(combo.findData("lesion_2"))
    wait_for(lambda: figures(panel).get("Number of lesions") == "1", "the figures of one")
    ml = mrml.segmentMask(node, "lesion_2", ct).sum() * VOXEL_ML
    assert panel.session.live.quantities["lesion_volume"]["value"] == pytest.approx(ml)


def test_errors_are_shown_as_segments(panel, segmentation, ct, mrml, parameters):
    truth = np.roll(chest()[1], 2, axis=2)
    choose_reference(panel, add_reference(ct, mrml, truth))
    panel.measure.ui.errorsButton.click()
    wait_for(lambda: parameters.errorSegmentation is not None, "the error map")
    node = parameters.errorSegmentation
    ids = node.GetSegmentation().GetSegmentIDs()
    assert len(ids) == 3
    masks = {i: mrml.segmentMask(node, i, ct) for i in ids}
    assert sum(mask.sum() for mask in masks.values()) == (truth | chest()[1]).sum()


def test_charts_are_made_and_follow(panel, segmentation, ct, parameters):
    import slicer

    panel.measure.ui.histogramButton.click()
    wait_for(lambda: parameters.histogramChart is not None, "the histogram")
    panel.measure.ui.zonesButton.click()
    wait_for(lambda: parameters.zoneChart is not None, "the zones")
    table = parameters.histogramChart.GetNthPlotSeriesNode(0).GetTableNode()

    def total():
        return sum(slicer.util.arrayFromTableColumn(table, name).sum() for name in ("ground_glass", "consolidation"))

    assert total() == pytest.approx(chest()[1].sum() * VOXEL_ML)
    brush(panel, segmentation, np.s_[4:6, 20:30, 50:60])
    settle(panel)
    wait_for(lambda: total() == pytest.approx((chest()[1].sum() + 200) * VOXEL_ML), "the chart after the edit")


def test_the_probability_map_can_be_laid_over_the_ct(panel, ct, scene, parameters):
    import slicer

    find(panel, "probabilityCheck").click()
    composite = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    apply_and_wait(panel)
    panel.show("measure")
    maps = find(panel, "mapCombo")
    assert [maps.itemText(index) for index in range(maps.count)] == ["none", "Lesion probability"]
    assert not find(panel, "opacitySlider").enabled
    maps.setCurrentIndex(1)
    assert composite.GetForegroundVolumeID() == parameters.probabilityVolume.GetID()
    assert composite.GetForegroundOpacity() == 0.5
    (legend,) = slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode")
    assert legend.GetVisibility() and legend.GetTitleText() == parameters.probabilityVolume.GetName()
    find(panel, "legendCheck").click()
    assert not legend.GetVisibility() and composite.GetForegroundVolumeID()
    find(panel, "legendCheck").click()
    assert legend.GetVisibility()
    find(panel, "opacitySlider").setValue(80)
    assert composite.GetForegroundOpacity() == 0.8
    maps.setCurrentIndex(0)
    assert not composite.GetForegroundVolumeID() and not legend.GetVisibility()


def test_a_reference_says_on_which_ct_it_was_made(panel, ct, mrml):
    panel.show("measure")
    label = find(panel, "referenceLabel")
    find(panel, "referenceSelector").setCurrentNode(add_reference(ct, mrml, chest()[1]))
    assert label.text == "This reference was made on the chosen CT."
    other = add_reference(add_ct("of another patient"), mrml, chest()[1])
    find(panel, "referenceSelector").setCurrentNode(other)
    assert label.text == "This reference was made on another CT: of another patient."


def test_an_earlier_study_gives_the_change(panel, segmentation, ct, mrml, parameters):
    hu, lesion = chest()
    smaller = lesion.copy()
    smaller[12:16, 30:36, 50:58] = False
    earlier = add_ct("earlier", hu)
    node = mrml.showLesions(earlier, smaller)
    lungs = mrml.lungsFromSegmentation(parameters.lungSegmentation, ct)
    mrml.showFoundLungs(earlier, lungs)
    ui = panel.measure.ui
    assert not ui.compareButton.isEnabled()
    ui.earlierSelector.setCurrentNode(earlier)
    ui.earlierSegmentationSelector.setCurrentNode(node)
    ui.compareButton.click()
    wait_for(lambda: parameters.changeTable is not None, "the change", seconds=60)
    assert "1 new" in ui.changeLabel.text and "mL" in ui.changeLabel.text
    ui.tableCombo.setCurrentIndex(3)
    assert ui.tableView.mrmlTableNode() is parameters.changeTable


def of_patient(node, identity):
    """Put a CT under a DICOM patient, as Slicer's DICOM module does."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), f"patient of {node.GetName()}")
    hierarchy.SetItemAttribute(patient, "DICOM.PatientID", identity)
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), patient)


@pytest.mark.parametrize("why", ["patient IDs", "chests"])
def test_two_patients_are_compared_only_where_the_reader_says_so(
    why, panel, segmentation, ct, mrml, parameters, worker, answers
):
    from COVIDLesionSegLib.errors import TwoPatientsError

    hu, lesion = chest()
    earlier = add_ct("earlier", hu)
    parameters.update(earlierVolume=earlier, earlierSegmentation=mrml.showLesions(earlier, lesion))
    if why == "patient IDs":
        of_patient(ct, "A")
        of_patient(earlier, "B")
    else:

        def refuse_unless_assumed(values, _arrays):
            if not values.get("assume_same_patient"):
                raise TwoPatientsError("The two studies are hardly of one patient: their vessels differ.", "A hint.")
            child = worker.children[-1]
            return child._own("compare")(values, _arrays)

        worker.tasks["compare"] = refuse_unless_assumed
    answers.next = False
    panel.measure.ui.compareButton.click()
    wait_for(lambda: answers.asked and not panel.session.tools.busy, "the question")
    settle(panel)
    assert len(answers.asked) == 1 and parameters.changeTable is None
    assert "A hint." not in said(panel) and "A" not in answers.asked[0].split()
    answers.next = True
    panel.measure.ui.compareButton.click()
    wait_for(lambda: parameters.changeTable is not None, "the change", seconds=60)
    assert panel.session.tools.comparison["same_patient"]["assumed"]
    assert worker.named("compare")[-1].parameters["assume_same_patient"] is True


@pytest.mark.parametrize("task", ["compare", "error_map"])
def test_an_answer_that_comes_after_another_ct_was_chosen_is_not_shown(
    task, panel, segmentation, ct, mrml, parameters, worker, monkeypatch
):
    choose_reference(panel, add_reference(ct, mrml, np.roll(chest()[1], 2, axis=2)))
    parameters.update(earlierVolume=ct, earlierSegmentation=segmentation)
    worker.tasks[task] = lambda *_: HOLD
    ui, tools, cancelled = panel.measure.ui, panel.session.tools, []
    (ui.compareButton if task == "compare" else ui.errorsButton).click()
    wait_for(lambda: worker.named(task), "the request")
    # the answer is on its way already
    monkeypatch.setattr(Request, "cancel", lambda request: cancelled.append(request.task))
    panel.segment.ui.inputSelector.setCurrentNode(add_ct("second"))
    assert task in cancelled and not tools.busy and not ui.changeLabel.text
    asked = worker.named(task)[0]
    child = next(child for child in worker.children if child._held is not None)
    del worker.tasks[task]
    child.release(*child._own(task)(asked.parameters, asked.arrays))
    let_run()
    assert not tools.comparison and parameters.errorSegmentation is None and parameters.changeTable is None


# ---- rough use ------------------------------------------------------------------------------------------------------


def test_nothing_is_measured_while_nobody_looks(panel, ct, worker):
    panel.show("settings")
    apply_and_wait(panel)
    assert not worker.named("open")
    panel.show("measure")
    settle(panel)
    panel.show("settings")
    count = len(worker.asked)
    brush(panel, panel.correct.editor.segmentationNode(), np.s_[4:6, 20:30, 50:60])
    wait_for(lambda: True)
    assert len(worker.asked) == count
    panel.show("measure")
    settle(panel)
    assert panel.session.live.quantities["lesion_count"]["value"] == 3


@pytest.mark.parametrize("what", ["reference", "lungs", "transform", "nothing"])
def test_what_was_changed_while_nobody_looked_is_measured_anew(
    what, panel, segmentation, ct, mrml, parameters, scene, worker
):
    import slicer

    live = panel.session.live
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    for node in (ct, segmentation, parameters.lungSegmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    reference = add_reference(ct, mrml, chest()[1])
    choose_reference(panel, reference)
    wait_for(lambda: live.evaluation and not live.busy, "the comparison")
    count, place = len(worker.named("open")), live.lesions[0]["centroid_lps_mm"]
    panel.show("settings")
    if what == "reference":
        mrml.writeSegment(reference, "expert", np.roll(chest()[1], 6, axis=2), ct)
    elif what == "lungs":
        mrml.writeSegment(parameters.lungSegmentation, "left_lung", np.zeros_like(chest()[1]), ct)
    elif what == "transform":
        shift = np.eye(4)
        shift[2, 3] = 50
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(shift))
    panel.show("cases")
    panel.show("measure")
    if what == "nothing":
        let_run()
        assert len(worker.named("open")) == count, "the same study is not sent again"
        return
    wait_for(lambda: len(worker.named("open")) > count and live.evaluation and not live.busy, "the figures")
    if what == "reference":
        assert live.evaluation["dice"]["value"] < 0.9
    if what == "transform":
        assert live.lesions[0]["centroid_lps_mm"][2] == pytest.approx(place[2] + 50, abs=0.1)


def test_a_child_that_dies_is_given_the_study_again(panel, segmentation, worker):
    worker.tasks["update"] = lambda *_: DIE
    brush(panel, segmentation, np.s_[4:6, 20:30, 50:60])
    wait_for(lambda: worker.named("update") and not panel.session.live.busy, "the death")
    assert panel.session.live.stateText()
    del worker.tasks["update"]
    brush(panel, segmentation, np.s_[4:6, 20:30, 60:64])
    settle(panel)
    assert len(worker.named("open")) == 2
    ml = (chest()[1].sum() + 280) * VOXEL_ML
    assert panel.session.live.quantities["lesion_volume"]["value"] == pytest.approx(ml)


@pytest.mark.parametrize("what", ["inputVolume", "lesionSegmentation", "measurementTable", "lungSegmentation"])
def test_deleting_what_is_measured_does_no_harm(what, panel, segmentation, mrml, parameters):
    mrml.removeNode(getattr(parameters, what))
    live = panel.session.live
    wait_for(lambda: not live.busy, "rest")
    if what in ("inputVolume", "lesionSegmentation"):
        assert "Nothing to measure" in live.stateText() and not live.quantities
    else:
        brush(panel, segmentation, np.s_[4:6, 20:30, 50:60])
        settle(panel)
        assert parameters.measurementTable is not None
        assert live.quantities["lesion_count"]["value"] == 3


def test_a_scene_closed_while_figures_are_on_their_way(panel, segmentation, scene):
    brush(panel, segmentation, np.s_[4:6, 20:30, 50:60])
    scene.Clear(False)
    live = panel.session.live
    wait_for(lambda: not live.busy, "rest")
    assert not live.quantities and not panel.measure.ui.saveButton.isEnabled()


def test_a_foreign_segmentation_of_one_segment_is_measured(panel, ct, mrml, parameters):
    parameters.lesionSegmentation = add_reference(ct, mrml, chest()[1])
    panel.show("measure")
    settle(panel)
    assert panel.session.live.quantities["lesion_count"]["value"] == 2
    assert "\N{EN DASH}" in figures(panel)["Lung involved"]


def test_a_segmentation_of_many_foreign_segments_asks_for_one(panel, ct, mrml, parameters):
    node = add_reference(ct, mrml, chest()[1])
    node.GetSegmentation().AddEmptySegment("two", "two")
    parameters.lesionSegmentation = node
    panel.show("measure")
    wait_for(lambda: panel.session.live.stateText() and not panel.session.live.busy, "the question")
    assert "Choose the segment" in panel.measure.ui.stateLabel.text
    parameters.lesionSegmentId = "expert"
    settle(panel)
    assert panel.session.live.quantities["lesion_count"]["value"] == 2


def test_two_panels_share_one_measurement(panel, open_panel, segmentation, worker):
    other = open_panel()
    other.show("measure")
    brush(panel, segmentation, np.s_[4:6, 20:30, 50:60])
    settle(panel)
    assert figures(panel) == figures(other)
    assert len(worker.named("open")) == 1


def test_doubtful_lungs_are_said_beside_the_figures_and_in_the_messages(panel, worker, mrml):
    from COVIDLesionSegLib.imaging import LungQuality, assess_lungs

    hu = chest()[0]
    # a white left lung, which the worker of these tests doesn't find
    hu[3:-3, 12:-12, 44:72] = 40
    node = add_ct(array=hu)
    quality = assess_lungs(mrml.volumeFromNode(node), (hu < -500).view(np.uint8))
    assert quality == LungQuality.from_json(quality.to_json()) and quality.is_doubtful
    panel.segment.ui.inputSelector.setCurrentNode(node)
    apply_and_wait(panel)
    panel.show("measure")
    settle(panel)
    line = "Lungs doubtful: The left lung is missing."
    wait_for(lambda: panel.measure.ui.stateLabel.text == line, "the line")
    table = panel.measure.ui.figureTable
    shown = [table.item(row, 0).text() for row in range(table.rowCount)]
    assert "Lung involved\n(the lung mask is doubtful)" in shown and "Lesion volume" in shown
    assert figures(panel)["Lung involved"].endswith("%")
    table = mrml.moduleParameters().measurementTable
    assert "the lung mask is doubtful" in table.GetCellText(0, table.GetColumnIndex("remarks"))


def test_what_the_worker_warns_of_does_not_hide_the_way_back(panel, ct, worker):
    apply_and_wait(panel)
    worker.tasks["segment"] = lambda *_: HOLD
    panel.segment.onApply()
    wait_for(lambda: len(worker.named("segment")) == 2, "the second run")
    child = next(child for child in worker.children if child.kind == "lesions")
    line = "Lungs doubtful: The left lung is missing. Therefore the whole body was searched."
    child._say(p.Note(child._held.id, line))
    asked = worker.named("segment")[-1]
    child.release(*segment_by_threshold(asked.parameters, asked.arrays))
    wait_for(lambda: not panel.session.run.busy, "the end")
    assert line in said(panel)
    assert panel.messages.ui.undoButton.isVisible()
