"""The work with cases through the panel: work list, the model's answer, corrections, saving. No network."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from panel_case_fixtures import SIZE, corrected, draw, is_at_rest, open_next, rest, scene_mask
from panel_fixtures import add_ct, chest, find, let_run, said, wait_for, wait_for_words

pytestmark = pytest.mark.usefixtures("forgotten_choices")


@pytest.fixture
def parameters(page):
    from COVIDLesionSegLib import mrml

    return mrml.moduleParameters


def test_the_list_shows_states_and_progress(page, store):
    assert [page.ui.caseList.item(i).text().split()[:2] for i in range(3)] == [
        [f"case-000{n}", "new"] for n in (1, 2, 3)
    ]
    assert page.ui.workProgress.format == "0 of 3 corrected"
    assert page.ui.storeState.text == "3 new"
    store.exclude("case-0002", "motion")
    page.choose("refresh")
    wait_for(lambda: "excluded" in page.ui.storeState.text, "the refresh")
    page.ui.stateCombo.setCurrentIndex(page.ui.stateCombo.findData("excluded"))
    assert page.ui.caseList.count == 1 and "motion" in page.ui.caseList.item(0).text()


def test_predict_correct_save_next(page, panel, store, worker, parameters):
    """The journey of an annotator; the model answers each case first."""
    assert open_next(page) == "case-0001"
    assert len(worker.named("segment")) == 1
    assert store.case("case-0001").prediction is not None
    assert store.case("case-0001").state == "in work" and store.case("case-0001").lock.owner == "anna"
    first_ct, first_lesions = parameters().inputVolume, parameters().lesionSegmentation
    assert np.array_equal(scene_mask(), chest()[1])
    assert "is open" in said(panel) and "not edited" in page.ui.caseLabel.text
    wanted = corrected()
    draw(wanted)
    assert "edited" in page.ui.caseLabel.text and page.work.isEdited
    time.sleep(0.2)  # time spent is kept to a tenth of a second
    page.ui.saveNextButton.click()
    wait_for(lambda: page.work.caseId == "case-0002" and is_at_rest(page), "the next case")
    revision = store.case("case-0001").latest("anna")
    assert np.array_equal(store.read_revision("case-0001").mask(), wanted)
    assert revision.dice_to_prediction == pytest.approx(2 * wanted.sum() / (wanted.sum() + chest()[1].sum()), abs=1e-6)
    assert 0.2 <= revision.seconds < 60
    assert store.case("case-0001").state == "corrected" and store.case("case-0001").lock is None
    assert first_ct.GetScene() is None and first_lesions.GetScene() is None, "the first case's nodes stay behind"
    assert page.ui.workProgress.format == "1 of 3 corrected"
    assert "saved as revision 1 of anna" in said(panel) and "Dice" in said(panel)


def test_three_cases_take_a_click_each_and_no_change_of_pages(page, panel, store, mrml):
    """Reset, no lesion, save and next: what is clicked is counted."""
    clicks = []

    def click(name):
        wait_for(lambda: find(panel, name).isVisible() and find(panel, name).isEnabled(), name)
        clicks.append(name)
        find(panel, name).click()
        let_run(0.01)

    def opened(case):
        wait_for(lambda: page.work.caseId == case and page.work.isOpen and is_at_rest(page), case)
        assert panel.current == "correct", "a case is corrected where it was opened"

    click("openNextButton")
    opened("case-0001")
    result, wanted = scene_mask(), corrected()
    draw(np.zeros(SIZE, bool))
    find(panel, "regionCombo").setCurrentIndex(find(panel, "regionCombo").findData("all"))
    click("resetButton")
    wait_for_words(panel, "Reset to the AI result")
    assert np.array_equal(scene_mask(), result)
    draw(wanted)
    click("saveNextButton")
    opened("case-0002")
    click("noLesionButton")
    wait_for(lambda: store.case("case-0002").latest("anna") is not None and is_at_rest(page), "the revision")
    click("saveNextButton")
    opened("case-0003")
    click("saveCaseButton")
    wait_for(lambda: store.case("case-0003").latest("anna") is not None and is_at_rest(page), "the revision")
    # besides the reset: one to begin, one for each case, one more for the case without lesion
    assert len(clicks) == 1 + 1 + 3 + 1, clicks
    assert [len(store.case(f"case-000{number}").revisions) for number in (1, 2, 3)] == [1, 1, 1]
    assert np.array_equal(store.read_revision("case-0001").mask(), wanted)
    assert store.case("case-0002").latest("anna").lesion_free
    assert "2 of 3 corrected" in find(panel, "caseTitle").text, "the third is still open"


def test_which_model_answered_is_told_when_the_case_is_opened_again(page, store):
    from COVIDLesionSegLib import mrml

    open_next(page)
    page.choose("aside")
    rest(page)
    assert not page.work.caseId and store.case("case-0001").lock is None
    page.ui.caseList.setCurrentRow(0)
    page.choose("open")
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "the case")
    node = mrml.moduleParameters().lesionSegmentation
    assert mrml.recordOf(node).model["name"] == "fake" and mrml.hasPrediction(node)
    assert page.work.startFrom.startswith("the prediction of")


def test_a_case_that_somebody_has_open_is_passed_over_and_can_be_taken_over(page, panel, store, answers):
    with store.open("case-0001", "bert"):
        assert open_next(page) == "case-0002"
        assert "case-0001 is open: bert" in said(panel)
        rest(page)
        page.ui.caseList.setCurrentRow(0)
        page.choose("open")
        wait_for(lambda: "Take another case" in said(panel), "the refusal")
        rest(page)
        page.choose("refresh")
        rest(page)
        answers.next = False
        page.choose("takeOver")
        rest(page)
        assert "case-0001 is open elsewhere (bert" in answers.asked[0] and not page.work.caseId
        answers.next = True
        page.choose("takeOver")
        wait_for(lambda: page.work.caseId == "case-0001" and page.work.isOpen, "the case")
        assert store.case("case-0001").lock.owner == "anna"


def test_edits_are_kept_after_a_while_without_being_asked_for(page, store, monkeypatch):
    from COVIDLesionSegLib.panel import case

    monkeypatch.setattr(case, "AUTOSAVE_MS", 30)
    open_next(page)
    draw(corrected())
    wait_for(lambda: store.case("case-0001").unsaved == ("anna",), "the autosave")


def test_a_true_negative_is_saved_on_purpose_only(page, panel, store, answers):
    open_next(page)
    page.ui.noLesionButton.click()
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    rest(page)
    assert store.case("case-0001").latest("anna").lesion_free and not scene_mask().any()
    drawn = np.zeros(SIZE, bool)
    drawn[9:11, 20:24, 14:20] = True
    draw(drawn)
    answers.next = False
    page.ui.noLesionButton.click()
    rest(page)
    assert "are erased" in answers.asked[0] and len(answers.asked) == 1 and scene_mask().any()
    draw(np.zeros(SIZE, bool))
    page.ui.saveCaseButton.click()
    wait_for_words(panel, "save it as 'no lesion'")
    rest(page)
    assert page.work.isOpen and len(store.case("case-0001").revisions) == 1


def test_approve_and_exclude_with_a_note(page, panel, store):
    open_next(page)
    page.ui.saveCaseButton.click()
    rest(page)
    wait_for(lambda: page.entries["approve"].isEnabled(), "the overview")
    page.choose("approve")
    wait_for(lambda: store.case("case-0001").approved == 1, "the approval")
    assert store.case("case-0001").approved_by == "anna"
    rest(page)
    page.ui.caseList.setCurrentRow(1)
    page.choose("exclude")
    assert "Say in the note why" in said(panel)
    page.ui.noteEdit.setText("motion artifacts")
    page.choose("exclude")
    wait_for(lambda: store.case("case-0002").state == "excluded", "the exclusion")
    rest(page)
    assert page.entries["exclude"].text == "Re-include"
    page.choose("exclude")
    wait_for(lambda: store.case("case-0002").state == "new", "the return")
    rest(page)
    page.choose("note")
    wait_for(lambda: store.case("case-0002").note == "motion artifacts", "the note")


def test_messages_name_no_patient(page, panel, store, tmp_path):
    open_next(page)
    page.ui.saveCaseButton.click()
    rest(page)
    assert "Patient" not in said(panel)
    assert "Patient" not in json.dumps(page.store.overview)


def test_what_belongs_to_another_ct_is_hidden_while_a_case_is_open(page, panel, store):
    from COVIDLesionSegLib import mrml

    other = mrml.showLesions(add_ct("other"), chest()[1])
    seen_before = mrml.showLesions(add_ct("hidden"), chest()[1])
    seen_before.GetDisplayNode().SetVisibility(False)
    open_next(page)
    case = mrml.moduleParameters().lesionSegmentation
    assert case.GetDisplayNode().GetVisibility() and not other.GetDisplayNode().GetVisibility()
    page.choose("aside")
    wait_for(lambda: not page.work.isOpen, "the case to be closed")
    assert other.GetDisplayNode().GetVisibility() and not seen_before.GetDisplayNode().GetVisibility()


def test_the_error_map_of_a_case_goes_with_it(page, panel, store):
    from COVIDLesionSegLib import mrml

    open_next(page)
    parameters, live = mrml.moduleParameters(), panel.session.live
    reference = mrml.createSegmentation(parameters.inputVolume, "reference")
    reference.GetSegmentation().AddEmptySegment("expert", "expert")
    mrml.writeSegment(reference, "expert", chest()[1], parameters.inputVolume)
    parameters.referenceSegmentation = reference
    panel.show("measure")
    wait_for(lambda: live.evaluation and not live.busy, "the comparison")
    panel.measure.ui.errorsButton.click()
    wait_for(lambda: parameters.errorSegmentation is not None, "the error map")
    page.choose("aside")
    wait_for(lambda: not page.work.isOpen, "the case to be closed")
    assert parameters.errorSegmentation is None


def test_an_emptied_path_of_the_store_lets_go_of_the_store(page, panel, store):
    open_next(page)
    find(panel, "storePath").setProperty("currentPath", "")
    wait_for(lambda: not find(panel, "caseList").count, "the empty list")
    rest(page)
    assert store.case("case-0001").lock is None and "Choose the folder" in find(panel, "storeState").text
    assert not find(panel, "openNextButton").isEnabled()


@pytest.mark.parametrize(
    ("field", "button"),
    [("addPath", "addFolderButton"), ("importPath", "importButton"), ("exportPath", "storeExportButton")],
)
def test_without_a_path_there_is_nothing_to_add_or_write(field, button, page, panel, tmp_path):
    wait_for(lambda: not page.store.busy, "rest")
    for path in (str(tmp_path), ""):
        getattr(page.ui, field).setProperty("currentPath", path)
        assert getattr(page.ui, button).isEnabled() == bool(path)
