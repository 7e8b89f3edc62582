"""The tab that finds lesions: the journey, its choices, and rough use. The worker's answers come from functions."""

from __future__ import annotations

import numpy as np
import pytest
from fake_worker import DIE, GARBAGE, HOLD, segment_by_threshold
from panel_fixtures import VOXEL_ML, add_ct, apply_and_wait, brush, chest, let_run, said, settle, wait_for

from COVIDLesionSegLib.errors import DeviceError, ModelError
from COVIDLesionSegLib.worker.protocol import Failure


@pytest.fixture
def parameters(panel, mrml):
    return mrml.moduleParameters()


def test_a_ct_becomes_segments(panel, ct, mrml, worker, scene):
    segmentation = apply_and_wait(panel)
    assert np.array_equal(mrml.lesionMask(segmentation, ct), chest()[1])
    assert mrml.recordOf(segmentation).model["name"] == "fake"
    assert mrml.volumeOf(segmentation) is ct
    assert segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    lungs = mrml.moduleParameters().lungSegmentation
    assert lungs.GetSegmentation().GetSegmentIDs() == ("right_lung", "left_lung")
    asked = worker.named("segment")[0]
    assert asked.parameters["device"] == "auto" and asked.parameters["model"] is None
    assert "Done" in said(panel) and "mL" in said(panel)
    assert panel.segment.ui.applyButton.isEnabled() and not panel.segment.ui.cancelButton.isVisible()


def test_a_second_run_refills_the_first_ones_nodes(panel, ct, mrml, scene):
    first = apply_and_wait(panel)
    apply_and_wait(panel)
    count = scene.GetNumberOfNodes()
    assert apply_and_wait(panel) is first
    assert scene.GetNumberOfNodes() == count


def test_the_choices_reach_the_worker(panel, ct, worker, mrml):
    ui = panel.segment.ui
    for check in (ui.ttaCheck, ui.probabilityCheck, ui.uncertaintyCheck, ui.limitCheck, ui.smoothCheck):
        check.click()
    ui.marginSpin.value = 5.0
    ui.smoothingSpin.value = 1.5
    ui.minimumSpin.value = 0.25
    ui.viewCombo.setCurrentIndex(1)
    ui.deviceCombo.setCurrentIndex(ui.deviceCombo.findData("cpu"))
    segmentation = apply_and_wait(panel)
    asked = worker.named("segment")[0].parameters
    assert (asked["tta"], asked["probability"], asked["uncertainty"], asked["device"]) == (True, True, "entropy", "cpu")
    assert asked["postprocessing"] == {
        "threshold": None,
        "minimum_volume_ml": 0.25,
        "keep_inside_lungs_mm": 5.0,
        "smooth_across_slices_mm": 1.5,
    }
    assert mrml.segmentsWithRole(segmentation) == ["ground_glass_opacity", "consolidation"]
    parameters = mrml.moduleParameters()
    assert parameters.probabilityVolume is not None and parameters.uncertaintyVolume is not None


def test_chosen_lungs_are_sent_and_left_alone(panel, ct, worker, mrml):
    lungs = np.zeros(chest()[0].shape, np.uint8)
    lungs[4:-4, 14:-14, 10:34], lungs[4:-4, 14:-14, 46:70] = 1, 2
    node = mrml.showLungs(ct, lungs)
    ui = panel.segment.ui
    ui.lungsCombo.setCurrentIndex(1)
    assert ui.lungSelector.isVisible()
    ui.lungSelector.setCurrentNode(node)
    apply_and_wait(panel)
    assert np.array_equal(worker.named("segment")[0].arrays["lungs"], lungs)
    assert mrml.moduleParameters().lungSegmentation is node


def test_corrected_lungs_are_not_overwritten(panel, ct, mrml, parameters):
    apply_and_wait(panel)
    found = parameters.lungSegmentation
    apply_and_wait(panel)
    assert parameters.lungSegmentation is found and "corrected lungs" not in said(panel)
    corrected = mrml.segmentMask(found, "left_lung", ct)
    corrected[:6] = False
    mrml.writeSegment(found, "left_lung", corrected, ct)
    apply_and_wait(panel)
    assert np.array_equal(mrml.segmentMask(found, "left_lung", ct), corrected)
    assert parameters.lungSegmentation is not found and mrml.volumeOf(parameters.lungSegmentation) is ct
    assert "The corrected lungs stay as they are" in said(panel)


def test_lungs_that_are_to_be_chosen_and_are_not(panel, ct, worker):
    panel.segment.ui.lungsCombo.setCurrentIndex(1)
    panel.segment.ui.applyButton.click()
    assert "No lung segmentation is chosen" in said(panel) and not worker.named("segment")


def test_progress_is_shown_and_cancel_answers(panel, ct, worker, mrml):
    worker.tasks["segment"] = lambda *_: HOLD
    ui = panel.segment.ui
    ui.applyButton.click()
    wait_for(lambda: "Finding lesions" in ui.phaseLabel.text, "progress")
    assert not ui.applyButton.isEnabled() and ui.progressBar.isVisible()
    assert "%" in ui.phaseLabel.text
    ui.cancelButton.click()
    wait_for(lambda: not panel.session.run.busy, "the cancel", seconds=1)
    assert "Cancelled." in said(panel)
    assert mrml.moduleParameters().lesionSegmentation is None
    assert ui.applyButton.isEnabled() and not ui.progressBar.isVisible() and not ui.cancelButton.isVisible()
    del worker.tasks["segment"]
    assert apply_and_wait(panel) is not None


def test_a_double_click_on_apply_is_one_run(panel, ct, worker):
    button = panel.segment.ui.applyButton
    button.click()
    button.click()
    wait_for(lambda: not panel.session.run.busy, "the end")
    assert len(worker.named("segment")) == 1 and "Done" in said(panel)


def test_a_run_that_is_on_refuses_a_second_one(panel, ct):
    from COVIDLesionSegLib.errors import InputError
    from COVIDLesionSegLib.panel.run import Choices

    panel.segment.ui.applyButton.click()
    with pytest.raises(InputError, match="already running"):
        panel.session.run.start(ct, Choices())


def test_two_panels_show_the_same_run(panel, open_panel, ct, worker):
    other = open_panel()
    worker.tasks["segment"] = lambda *_: HOLD
    panel.segment.ui.applyButton.click()
    wait_for(lambda: "%" in other.segment.ui.phaseLabel.text, "progress in the other")
    other.segment.ui.cancelButton.click()
    wait_for(lambda: not panel.session.run.busy, "the cancel", seconds=1)
    assert "Cancelled." in said(panel) and "Cancelled." in said(other)
    assert other.segment.ui.inputSelector.currentNode() is ct


def test_switching_models_in_the_middle_counts_for_the_next_run(panel, ct, worker, mrml, parameters):
    worker.tasks["segment"] = lambda *_: HOLD
    parameters.model = "coplenet-ctseg"
    panel.segment.ui.applyButton.click()
    wait_for(lambda: worker.named("segment"), "the request")
    parameters.model = "another-one"
    held = worker.named("segment")[0]
    worker.children[0].release(*segment_by_threshold(held.parameters, held.arrays))
    wait_for(lambda: not panel.session.run.busy, "the end")
    assert mrml.recordOf(mrml.moduleParameters().lesionSegmentation).model["id"] == "coplenet-ctseg"
    assert parameters.model == "another-one"


# ---- from the CT to the figures on one page -------------------------------------------------------------------------


def test_the_ct_that_is_loaded_is_chosen_already(open_panel, mrml, scene):
    shown, later = add_ct("shown"), add_ct("loaded later")
    scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode").SetBackgroundVolumeID(shown.GetID())
    panel = open_panel()
    assert panel.segment.ui.inputSelector.currentNode() is shown
    assert panel.segment.ui.applyButton.isEnabled()
    mrml.moduleParameters().inputVolume = later
    panel.enter()
    assert panel.segment.ui.inputSelector.currentNode() is later, "a choice is left alone"


def test_a_ct_that_is_loaded_while_the_module_is_in_view_is_chosen(panel, scene, mrml):
    scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    node = add_ct()
    wait_for(lambda: panel.segment.ui.inputSelector.currentNode() is node, "the choice")


def test_the_result_stands_in_five_lines_and_follows_edits(panel, ct, worker):
    ui = panel.segment.ui
    assert not ui.resultButton.isVisible()
    node = apply_and_wait(panel)
    settle(panel)
    lines = lines_of(ui.resultLabel.text)
    assert list(lines) == ["Lesion", "Of the lungs", "By HU", "Severity", "Warnings"]
    ml = chest()[1].sum() * VOXEL_ML
    assert lines["Lesion"] == f"{ml:.3g} mL in 2 lesions"
    assert "right" in lines["Of the lungs"] and lines["Of the lungs"].count("%") == 3
    assert lines["By HU"].count("mL") == 2 and "of 24" in lines["Severity"] and lines["Warnings"] == "none"
    brush(panel, node, np.s_[4:6, 20:30, 50:60])
    settle(panel)
    assert lines_of(ui.resultLabel.text)["Lesion"] == f"{(chest()[1].sum() + 200) * VOXEL_ML:.3g} mL in 3 lesions"
    for name, page in (("Correct", "correct"), ("Measure", "measure"), ("Export", "measure")):
        panel.show("segment")
        getattr(ui, f"go{name}Button").click()
        assert panel.current == page
    assert not panel.measure.ui.exportButton.collapsed


def lines_of(text):
    """The rows of the table: name -> text."""
    import re

    cells = [re.sub("<[^>]*>|&nbsp;", "", cell) for cell in re.findall("<td>(.*?)</td>", text)]
    return dict(zip(cells[::2], cells[1::2], strict=True))


def test_surfaces_rest_while_lesions_are_edited(panel, ct, mrml):
    node = apply_and_wait(panel)
    button = panel.segment.ui.show3DButton
    assert button.segmentationNode() is node and mrml.isIn3D(node)
    panel.show("correct")
    assert not mrml.isIn3D(node)
    panel.show("segment")
    assert mrml.isIn3D(node) and button.checked
    button.click()
    assert not mrml.isIn3D(node)
    panel.show("correct")
    panel.show("segment")
    assert not mrml.isIn3D(node), "what was switched off stays off"
    mrml.removeNode(node)
    assert button.segmentationNode() is None


# ---- input that can't be used ---------------------------------------------------------------------------------------


def test_without_a_ct_there_is_nothing_to_apply(panel):
    assert not panel.segment.ui.applyButton.isEnabled()
    panel.segment.onApply()
    assert "No CT is chosen" in said(panel)


def unusable_nodes(scene, mrml):
    import slicer

    label = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6), np.uint8), nodeClassName="vtkMRMLLabelMapVolumeNode")
    vector = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6, 3)), nodeClassName="vtkMRMLVectorVolumeNode")
    warped = add_ct("warped")
    transform = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    warped.SetAndObserveTransformNodeID(transform.GetID())
    frame = add_ct("frame")
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    for index in range(2):
        sequence.SetDataNodeAtValue(add_ct("copy"), str(index))
    browser.AddSynchronizedSequenceNode(sequence)
    browser.AddProxyNode(frame, sequence, False)
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    return {
        "label map": label,
        "color or vector": vector,
        "not linear": warped,
        "sequence of 2 volumes": frame,
        "holds no voxels": empty,
    }


def test_what_is_no_ct_is_refused_with_the_reason(panel, scene, mrml, parameters, worker):
    for reason, node in unusable_nodes(scene, mrml).items():
        parameters.inputVolume = node
        assert reason in panel.segment.ui.inputProblem.text, reason
        assert not panel.segment.ui.applyButton.isEnabled()
        panel.segment.onApply()
        assert reason in said(panel)
    assert not worker.named("segment")


def test_hounsfield_units_are_the_workers_to_judge(panel, ct, worker):
    from COVIDLesionSegLib.errors import IntensityError

    def refuse(*_):
        raise IntensityError("The voxel values are not Hounsfield units.", "Give the scale.")

    worker.tasks["segment"] = refuse
    panel.segment.ui.applyButton.click()
    wait_for(lambda: not panel.session.run.busy, "the end")
    assert "Problem: The voxel values are not Hounsfield units. Give the scale." in said(panel)


# ---- the worker fails -----------------------------------------------------------------------------------------------


def _raise(error):
    def function(*_):
        raise error

    return function


def failures():
    return [
        (lambda *_: DIE, "Problem: ", "reportButton"),
        (lambda *_: GARBAGE, "Problem: ", "reportButton"),
        (lambda *_: Failure(1, "disk_full", "The disk is full.", "Free some space."), "disk is full", "reportButton"),
        (
            lambda *_: Failure(1, "torch_missing", "PyTorch is needed.", action="set_up_pytorch"),
            "PyTorch",
            "torchButton",
        ),
        (lambda *_: Failure(1, "memory", "Not enough memory.", action="use_cpu"), "memory", "cpuButton"),
        (_raise(DeviceError("There is no cuda:3.")), "no cuda:3", "reportButton"),
        (_raise(ModelError("The file is gone.")), "The file is gone", "reportButton"),
    ]


@pytest.mark.parametrize(("task", "words", "button"), failures(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_failure_becomes_a_sentence_and_a_button(task, words, button, panel, ct, worker, mrml):
    worker.tasks["segment"] = task
    panel.segment.ui.applyButton.click()
    wait_for(lambda: not panel.session.run.busy, "the end")
    assert words in said(panel)
    assert getattr(panel.messages.ui, button).isVisible()
    assert mrml.moduleParameters().lesionSegmentation is None
    del worker.tasks["segment"]
    assert apply_and_wait(panel) is not None


def test_the_button_leads_to_the_processor(panel, ct, worker, parameters):
    worker.tasks["segment"] = lambda *_: Failure(1, "memory", "Not enough memory.", action="use_cpu")
    panel.segment.ui.applyButton.click()
    wait_for(lambda: not panel.session.run.busy, "the end")
    del worker.tasks["segment"]
    panel.messages.ui.cpuButton.click()
    wait_for(lambda: parameters.lesionSegmentation is not None, "the second run")
    assert worker.named("segment")[1].parameters["device"] == "cpu"
    assert not panel.messages.ui.cpuButton.isVisible()


def test_the_button_leads_to_the_set_up_page(panel, ct, worker):
    worker.tasks["doctor"] = lambda *_: (
        {"devices": None, "smoke_test": {"passed": False, "problem": "PyTorch can't be loaded; install it."}},
        {},
    )
    panel.session.devices.ask(again=True)
    wait_for(lambda: panel.messages.ui.torchButton.isVisible(), "the button")
    panel.messages.ui.torchButton.click()
    assert panel.current == "settings"
    assert "PyTorch can't be loaded" in panel.settings.ui.torchLabel.text
    assert "PyTorch can't be loaded" in panel.segment.ui.deviceLabel.text


def test_the_diagnostic_report_is_for_the_clipboard(panel, ct, worker, slicer_gui):
    ct.SetName("Doe^Jane")
    worker.tasks["segment"] = lambda *_: DIE
    panel.segment.ui.applyButton.click()
    wait_for(lambda: not panel.session.run.busy, "the end")
    panel.messages.ui.reportButton.click()
    text = slicer_gui.app.clipboard().text()
    assert "request segment" in text and "Doe" not in text


# ---- models and devices ---------------------------------------------------------------------------------------------


def test_the_device_says_what_it_will_be_and_why(panel, ct, parameters):
    assert "the first run tells" in panel.segment.ui.deviceLabel.text
    apply_and_wait(panel)
    wait_for(lambda: "built without CUDA" in panel.segment.ui.deviceLabel.text, "the doctor")
    parameters.device = "cuda:2"
    assert "no cuda:2 here" in panel.segment.ui.deviceLabel.text


def test_the_model_shows_its_license_until_it_is_used_and_in_its_card(panel, open_panel, ct):
    ui = panel.segment.ui
    assert "research only" in ui.licenseLabel.text and ui.licenseLabel.isVisible()
    apply_and_wait(panel)
    panel.exit()
    panel.enter()
    assert not ui.licenseLabel.isVisible()
    assert "research only" in ui.cardBrowser.toPlainText()
    card = ui.cardBrowser.toPlainText()
    assert "COVID-19-CT-Seg" in card and "Wang G." in card and "Measured" in card


def test_a_model_that_was_removed_is_named_so(panel, parameters, mrml):
    parameters.model = "my-tuned-one"
    panel.enter()
    assert "not here any more" in panel.segment.ui.modelCombo.currentText
    assert parameters.model == "my-tuned-one"


def test_settings_of_an_older_version_do_no_harm(open_panel, mrml, slicer_gui):
    node = mrml.moduleParameters().parameterNode
    for name, text in {
        "device": "gpu0",
        "lesionView": '"rainbow"',
        "consolidationFrom": '"dense"',
        "findLungs": "yes",
        "model": "plain text",
        "unknown": "1",
    }.items():
        node.SetParameter(name, text)
    slicer_gui.app.settings().setValue("COVIDLesionSeg/idleMinutes", "soon")
    slicer_gui.app.settings().setValue("COVIDLesionSeg/prefix", "ssh 'open")
    from COVIDLesionSegLib.panel.session import readSettings

    assert readSettings().prefix == () and readSettings().idle_seconds == 900
    panel = open_panel()
    ui = panel.segment.ui
    assert ui.viewCombo.currentIndex == 0 and ui.consolidationSpin.value == -300
    assert ui.deviceCombo.currentText == "gpu0" and node.GetParameter("unknown") == "1"
    for name in ("idleMinutes", "prefix"):
        slicer_gui.app.settings().remove(f"COVIDLesionSeg/{name}")


# ---- long use -------------------------------------------------------------------------------------------------------


def _runs(panel, count):
    resource = pytest.importorskip("resource", reason="the memory of a process is asked for as only POSIX can")
    for _ in range(count):
        apply_and_wait(panel)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.long)])
def test_run_after_run_nothing_grows(count, panel, ct, scene, worker):
    _runs(panel, 2)
    nodes = scene.GetNumberOfNodes()
    memory = _runs(panel, 1)
    later = _runs(panel, count)
    assert scene.GetNumberOfNodes() == nodes
    assert later - memory < 30_000, "kB"
    worker.asked.clear()


def test_panels_come_and_go(open_panel, shared_session, scene):
    for _ in range(3):
        one = open_panel()
        one.cleanup()
    assert not shared_session._users and not shared_session.client("lesions").running
    let_run()
