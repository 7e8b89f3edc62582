"""Nothing that happens to an open case costs work: crashes, closed scenes, a full disk, another rater."""

from __future__ import annotations

import numpy as np
import pytest
from panel_case_fixtures import SIZE, corrected, draw, is_at_rest, open_next, renew, rest, scene_mask
from panel_fixtures import SPACING, chest, find, said, wait_for, wait_for_words

pytestmark = pytest.mark.usefixtures("forgotten_choices")


@pytest.fixture
def recovered(page, store):
    """Work that was left unsaved in case-0001, brought back as the case is opened again."""
    open_next(page)
    drawn = corrected()
    draw(drawn)
    page.choose("aside")
    wait_for(lambda: not page.work.caseId and is_at_rest(page), "the close")
    assert store.case("case-0001").unsaved == ("anna",)
    assert open_next(page) == "case-0001", "what was left unsaved comes first"
    return drawn


def test_a_recovery_can_be_refused_after_a_question(page, panel, store, recovered, answers):
    assert "You left unsaved work" in page.work.reason
    assert np.array_equal(scene_mask(), recovered) and "; edited" in page.ui.caseLabel.text
    answers.next = False
    page.choose("discard")
    rest(page)
    assert "is removed from the store" in answers.asked[0]
    assert np.array_equal(scene_mask(), recovered) and store.case("case-0001").unsaved == ("anna",)
    answers.next = True
    page.choose("discard")
    wait_for(lambda: not page.work.recovered, "the restart")
    rest(page)
    assert np.array_equal(scene_mask(), chest()[1]) and not page.work.isEdited
    assert store.case("case-0001").unsaved == ()
    find(panel, "editor").undo()
    assert np.array_equal(scene_mask(), recovered) and page.work.isEdited, "it is work again"


def test_no_lesion_asks_before_recovered_work_is_erased(page, panel, store, recovered, answers):
    answers.next = False
    page.ui.noLesionButton.click()
    rest(page)
    ml = recovered.sum() * np.prod(SPACING) / 1000
    assert f"{ml:.1f} mL of lesion that somebody has drawn" in answers.asked[0]
    assert np.array_equal(scene_mask(), recovered)
    assert store.case("case-0001").latest("anna") is None and store.case("case-0001").unsaved == ("anna",)
    answers.next = True
    page.ui.noLesionButton.click()
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    rest(page)
    assert store.case("case-0001").latest("anna").lesion_free and not scene_mask().any()
    find(panel, "editor").undo()
    assert np.array_equal(scene_mask(), recovered) and page.work.isEdited
    page.choose("aside")
    wait_for(lambda: not page.work.caseId and is_at_rest(page), "the close")
    assert np.array_equal(store.autosaves.mask(store.autosaves.read("case-0001", "anna")).mask(), recovered)


@pytest.mark.parametrize("segments", ["none are left", "several came"])
def test_unsaved_work_is_discarded_whatever_became_of_the_lesions_segment(segments, page, store, recovered, answers):
    from COVIDLesionSegLib import mrml

    parameters = mrml.moduleParameters()
    node = parameters.lesionSegmentation
    if segments == "none are left":
        node.GetSegmentation().RemoveAllSegments()
    else:
        mrml.showLesions(parameters.inputVolume, chest()[1][::-1], segmentationNode=node, view="attenuation")
    page.choose("discard")
    wait_for(lambda: not page.work.recovered, "the restart")
    rest(page)
    assert np.array_equal(scene_mask(), chest()[1]) and not page.work.isEdited


@pytest.mark.parametrize("way", ["the scene is closed", "the lesions are deleted", "the CT is deleted"])
def test_strokes_of_the_last_seconds_are_kept_when_their_nodes_go(way, page, panel, store, scene):
    from COVIDLesionSegLib import mrml

    open_next(page)
    drawn = corrected()
    draw(drawn)
    parameters = mrml.moduleParameters()
    if way == "the scene is closed":
        scene.Clear(False)
    else:
        mrml.removeNode(parameters.inputVolume if "CT" in way else parameters.lesionSegmentation)
    wait_for(lambda: not page.work.caseId and is_at_rest(page), "the close")
    assert np.array_equal(store.autosaves.mask(store.autosaves.read("case-0001", "anna")).mask(), drawn)
    assert "its nodes were removed" in said(panel) and "are gone" not in said(panel)
    assert store.case("case-0001").lock is None


def test_closing_the_panel_keeps_the_edits_and_the_case_is_free(open_panel, page, store):
    open_next(page)
    drawn = corrected()
    draw(drawn)
    page.work.close()
    found = store.case("case-0001")
    assert found.unsaved == ("anna",) and found.lock is None
    with store.open("case-0001", "anna") as session:
        assert np.array_equal(session.start_mask.mask(), drawn)


def test_closing_the_scene_closes_the_case(page, panel, store, scene):
    open_next(page)
    scene.Clear(0)
    wait_for(lambda: not page.work.caseId and is_at_rest(page), "the close")
    assert "its nodes were removed" in said(panel) and store.case("case-0001").lock is None
    assert open_next(page) == "case-0002" or page.work.caseId == "case-0001"


def test_a_save_that_fails_leaves_everything_open(page, panel, store, monkeypatch):
    from COVIDLesionSegLib.cases import Store
    from COVIDLesionSegLib.errors import OutputError

    open_next(page)
    drawn = corrected()
    draw(drawn)

    def full(*_arguments, **_options):
        raise OutputError("The disk is full.")

    monkeypatch.setattr(Store, "save_revision", full)
    page.ui.saveNextButton.click()
    wait_for_words(panel, "The disk is full.")
    rest(page)
    assert page.work.caseId == "case-0001" and page.work.isOpen and np.array_equal(scene_mask(), drawn)
    monkeypatch.undo()
    page.ui.saveCaseButton.click()
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    rest(page)
    assert not page.work.isEdited


def test_a_prediction_that_is_cancelled_opens_the_case_empty(page, panel, store, worker):
    from fake_worker import HOLD

    worker.tasks["segment"] = lambda *_: HOLD
    page.ui.openNextButton.click()
    wait_for(lambda: page.work.state == "predicting" and page.work.progress is not None, "the prediction")
    wait_for(lambda: page.ui.caseCancelButton.isVisibleTo(page.form), "the button")
    page.ui.caseCancelButton.click()
    wait_for(lambda: page.work.isOpen, "the case")
    assert not scene_mask().any() and "without an AI result" in said(panel)
    assert store.case("case-0001").prediction is None


def test_a_case_that_was_taken_over_is_said_once_and_saved_all_the_same(page, panel, store):
    open_next(page)
    store.unlock("case-0001")
    with store.open("case-0001", "bert"):
        renew(page)
        rest(page)
        assert said(panel).count("took it over") == 1
        renew(page)
        draw(corrected())
        page.ui.saveNextButton.click()
        wait_for(lambda: page.work.caseId == "case-0002" and is_at_rest(page), "the next case")
        assert store.case("case-0001").latest("anna") is not None
        assert store.case("case-0001").lock.owner == "bert"


def test_a_scene_that_is_closed_while_a_revision_is_written(page, panel, store, scene):
    open_next(page)
    page.ui.saveCaseButton.click()
    wait_for(lambda: page.work.state == "saving", "the save")
    scene.Clear(0)
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    rest(page)
    assert page.work.state == "" and not page.work.caseId and store.case("case-0001").lock is None


# ---- leaving an edited case -----------------------------------------------------------------------------------------


def change_reader(page):
    page.name_reader("bert")


def exclude(page):
    page.ui.noteEdit.setText("motion")
    page.choose("exclude")


def to_the_second(page):
    page.ui.caseList.setCurrentRow(1)
    page.choose("open")


WAYS_OUT = {
    "aside": lambda page: page.choose("aside"),
    "next": lambda page: page.ui.openNextButton.click(),
    "another": to_the_second,
    "exclude": exclude,
    "reader": change_reader,
}


@pytest.fixture
def full_disk(monkeypatch):
    """Function that fills the disk, as far as autosaves are concerned."""
    from COVIDLesionSegLib.cases.work import Autosaves
    from COVIDLesionSegLib.errors import OutputError

    def full(*_arguments, **_options):
        raise OutputError("The disk is full.")

    return lambda: monkeypatch.setattr(Autosaves, "write", full)


@pytest.mark.parametrize("way", WAYS_OUT.values(), ids=WAYS_OUT)
def test_a_case_whose_edits_can_not_be_kept_stays_open(way, page, panel, store, full_disk):
    open_next(page)
    drawn = corrected()
    draw(drawn)
    full_disk()
    way(page)
    wait_for_words(panel, "case-0001 stays open, because its edits could not be kept.")
    rest(page)
    assert "The disk is full." in said(panel)
    assert (page.work.caseId, page.work.state) == ("case-0001", "open") and np.array_equal(scene_mask(), drawn)
    assert store.case("case-0001").lock.owner == "anna" and not store.case("case-0001").exclusion
    assert page.ui.readerEdit.text == page.store.reader == "anna"


@pytest.mark.parametrize("way", WAYS_OUT.values(), ids=WAYS_OUT)
def test_edits_are_kept_before_a_case_is_left(way, page, store):
    open_next(page)
    drawn = corrected()
    draw(drawn)
    way(page)
    wait_for(lambda: page.work.caseId != "case-0001" and is_at_rest(page), "the close")
    rest(page)
    assert store.case("case-0001").unsaved == ("anna",) and store.case("case-0001").lock is None
    assert np.array_equal(store.autosaves.mask(store.autosaves.read("case-0001", "anna")).mask(), drawn)


def test_strokes_that_come_while_a_case_is_closed_are_kept(page, store):
    open_next(page)
    draw(corrected())
    page.choose("aside")
    wait_for(lambda: page.work.state == "closing", "the close")
    later = np.zeros(SIZE, bool)
    later[9:11, 20:24, 14:20] = True
    draw(later)
    wait_for(lambda: not page.work.caseId, "the close")
    rest(page)
    assert np.array_equal(store.autosaves.mask(store.autosaves.read("case-0001", "anna")).mask(), later)


def test_slicer_ends_before_a_case_that_is_put_aside_is_written(page, store):
    open_next(page)
    drawn = corrected()
    draw(drawn)
    page.choose("aside")
    page.work.close()
    found = store.case("case-0001")
    assert found.unsaved == ("anna",) and found.lock is None
    assert np.array_equal(store.autosaves.mask(store.autosaves.read("case-0001", "anna")).mask(), drawn)


def test_a_case_that_is_edited_while_it_is_saved_stays_open(page, panel, store):
    open_next(page)
    first = corrected()
    draw(first)
    page.ui.saveNextButton.click()
    wait_for(lambda: page.work.state == "saving", "the save")
    later = np.zeros(SIZE, bool)
    later[9:11, 20:24, 14:20] = True
    draw(later)
    wait_for_words(panel, "case-0001 was edited while it was saved")
    rest(page)
    assert page.work.caseId == "case-0001" and page.work.isEdited and np.array_equal(scene_mask(), later)
    assert np.array_equal(store.read_revision("case-0001").mask(), first)
    assert store.case("case-0001").lock.owner == "anna"
    page.ui.saveNextButton.click()
    wait_for(lambda: page.work.caseId == "case-0002" and is_at_rest(page), "the next case")
    assert np.array_equal(store.read_revision("case-0001").mask(), later)
    assert store.case("case-0001").lock is None


def test_a_renewal_that_fails_is_tried_again(page, panel, store, monkeypatch):
    from COVIDLesionSegLib.cases.work import WorkLocks
    from COVIDLesionSegLib.errors import OutputError

    def busy(*_arguments):
        raise OutputError("Another program is changing case-0001.")

    open_next(page)
    with monkeypatch.context() as patch:
        patch.setattr(WorkLocks, "renew", busy)
        renew(page)
        wait_for_words(panel, "Another program is changing")
    rest(page)
    before = store.locks._values("case-0001")["renewals"]
    renew(page)
    wait_for(lambda: store.locks._values("case-0001")["renewals"] > before, "the renewal")
    rest(page)
    page.choose("aside")
    rest(page)
    assert store.case("case-0001").lock is None
