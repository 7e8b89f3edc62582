"""The work with cases through the panel: store, work list, corrections, crashes, review, raters, files. No network."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from panel_fixtures import add_ct, apply_and_wait, chest, let_run, said, wait_for, wait_for_words

SIZE = (24, 64, 80)


def another_chest(number: int) -> np.ndarray:
    """The chest with other noise, so that it is another CT."""
    return (chest()[0] + np.random.default_rng(number).integers(-2, 3, SIZE)).astype(np.int16)


@pytest.fixture
def store(tmp_path):
    """A store with three CTs, each of another patient."""
    from COVIDLesionSegLib.cases import Store
    from COVIDLesionSegLib.cases.adding import add_case
    from COVIDLesionSegLib.imaging import Geometry, Volume

    made = Store.create(tmp_path / "store")
    geometry = Geometry((80, 64, 24), (1.5, 1.5, 2.5), (-60.0, -48.0, -30.0))
    for number in range(3):
        volume = Volume(another_chest(number), geometry, "CT", {"format": "test"})
        add_case(made, "CT", f"Patient {number}", volume=volume)
    return made


@pytest.fixture(autouse=True)
def forgotten_choices(slicer_gui):
    """Nothing that one test has chosen is remembered in the next."""
    names = [f"COVIDLesionSeg/{name}" for name in ("caseStore", "rater", "caseOrder", "caseAgain")]
    for name in names:
        slicer_gui.app.settings().remove(name)
    yield
    for name in names:
        slicer_gui.app.settings().remove(name)


@pytest.fixture
def page(panel, store):
    """The work with cases, with that store chosen."""
    found = panel.learn.cases
    found.ui.raterEdit.setText("anna")
    found.list._onRater()
    found.ui.storePath.setProperty("currentPath", str(store.folder))
    wait_for(lambda: found.store.cases, "the overview")
    return found


@pytest.fixture
def parameters(page):
    from COVIDLesionSegLib import mrml

    return mrml.moduleParameters


def is_at_rest(page) -> bool:
    return page.work.state in ("", "open") and page.store._client is not None and not page.store._client.busy


def rest(page) -> None:
    let_run(0.01)
    wait_for(lambda: is_at_rest(page), "rest")


def open_next(page) -> str:
    page.ui.nextButton.click()
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "an open case")
    return page.work.caseId


def scene_mask() -> np.ndarray:
    from COVIDLesionSegLib import mrml

    parameters = mrml.moduleParameters()
    return mrml.lesionMask(parameters.lesionSegmentation, parameters.inputVolume)


def draw(mask: np.ndarray) -> None:
    """What an annotator does in the segment editor."""
    from COVIDLesionSegLib import mrml

    parameters = mrml.moduleParameters()
    node = parameters.lesionSegmentation
    mrml.writeSegment(node, mrml.segmentsWithRole(node)[0], mask, parameters.inputVolume)


def corrected() -> np.ndarray:
    mask = scene_mask()
    mask[:, :, :40] = False
    return mask


def test_a_store_is_made_and_remembered(panel, tmp_path, slicer_gui):
    page = panel.learn.cases
    folder = tmp_path / "new store"
    page.ui.storePath.setProperty("currentPath", str(folder))
    assert page.ui.createButton.isVisibleTo(page.form) and page.ui.createButton.enabled
    page.ui.createButton.click()
    wait_for(lambda: page.store.folder == str(folder), "the store")
    wait_for(lambda: "No case yet" in page.ui.storeState.text, "the overview")
    assert not page.ui.createButton.isVisibleTo(page.form)
    assert slicer_gui.app.settings().value("COVIDLesionSeg/caseStore") == str(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    page.ui.storePath.setProperty("currentPath", str(tmp_path / "full"))
    assert not page.ui.createButton.enabled, "a folder that holds something else becomes no store"


def test_the_list_shows_states_and_progress(page, store):
    assert [page.ui.caseList.item(i).text().split()[:2] for i in range(3)] == [
        [f"case-000{n}", "new"] for n in (1, 2, 3)
    ]
    assert page.ui.workProgress.format == "0 of 3 corrected"
    assert page.ui.storeState.text == "3 new"
    store.exclude("case-0002", "motion")
    page.ui.refreshButton.click()
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


def test_which_model_answered_is_told_when_the_case_is_opened_again(page, store):
    from COVIDLesionSegLib import mrml

    open_next(page)
    page.ui.asideButton.click()
    rest(page)
    assert not page.work.caseId and store.case("case-0001").lock is None
    page.ui.caseList.setCurrentRow(0)
    page.ui.openButton.click()
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "the case")
    node = mrml.moduleParameters().lesionSegmentation
    assert mrml.recordOf(node).model["name"] == "fake" and mrml.hasAnswer(node)
    assert page.work.startFrom.startswith("the answer of")


def test_a_case_that_somebody_has_open_is_passed_over_and_can_be_taken_over(page, panel, store):
    with store.open("case-0001", "bert"):
        assert open_next(page) == "case-0002"
        assert "case-0001 is open: bert" in said(panel)
        rest(page)
        page.ui.caseList.setCurrentRow(0)
        page.ui.openButton.click()
        wait_for(lambda: "Take another case" in said(panel), "the refusal")
        rest(page)
        page.ui.refreshButton.click()
        rest(page)
        page.ui.takeOverButton.click()
        wait_for(lambda: page.work.caseId == "case-0001" and page.work.isOpen, "the case")
        assert store.case("case-0001").lock.owner == "anna"


def test_a_crash_costs_no_work_and_the_recovery_can_be_refused(page, panel, store):
    open_next(page)
    drawn = corrected()
    draw(drawn)
    page.work.autosave()
    rest(page)
    assert store.case("case-0001").unsaved == ("anna",)
    # the program is killed: nothing says good-bye, the lock stays until its process is gone
    page.work._hold.token = ""
    page.work._hold.begin()
    page.work._leave()
    store.unlock("case-0001")
    assert open_next(page) == "case-0001", "what was left unsaved comes first"
    assert "You left unsaved work" in page.work.reason
    assert np.array_equal(scene_mask(), drawn) and page.work.isEdited
    assert page.ui.restartButton.isVisibleTo(page.form)
    page.ui.restartButton.click()
    wait_for(lambda: not page.work.recovered, "the restart")
    rest(page)
    assert np.array_equal(scene_mask(), chest()[1]) and not page.work.isEdited
    assert store.case("case-0001").unsaved == ()


def test_closing_the_panel_keeps_the_edits_and_the_case_is_free(open_panel, page, store):
    open_next(page)
    drawn = corrected()
    draw(drawn)
    page.close()
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


def test_edits_are_kept_after_a_while_without_being_asked_for(page, store, monkeypatch):
    from COVIDLesionSegLib.panel import case_hold

    monkeypatch.setattr(case_hold, "AUTOSAVE_MS", 30)
    open_next(page)
    draw(corrected())
    wait_for(lambda: store.case("case-0001").unsaved == ("anna",), "the autosave")


def test_a_true_negative_is_saved_on_purpose_only(page, panel, store):
    open_next(page)
    page.ui.noLesionButton.click()
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    rest(page)
    assert store.case("case-0001").latest("anna").lesion_free and not scene_mask().any()
    drawn = np.zeros(SIZE, bool)
    drawn[9:11, 20:24, 14:20] = True
    draw(drawn)
    page.ui.noLesionButton.click()
    assert "Erase them before" in said(panel) and scene_mask().any()
    draw(np.zeros(SIZE, bool))
    page.ui.saveButton.click()
    wait_for_words(panel, "save it as 'no lesion'")
    rest(page)
    assert page.work.isOpen and len(store.case("case-0001").revisions) == 1


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
    page.ui.saveButton.click()
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    rest(page)
    assert not page.work.isEdited


def test_approve_and_exclude_with_a_note(page, panel, store):
    open_next(page)
    page.ui.saveButton.click()
    rest(page)
    wait_for(lambda: page.ui.approveButton.enabled, "the overview")
    page.ui.approveButton.click()
    wait_for(lambda: store.case("case-0001").approved == 1, "the approval")
    assert store.case("case-0001").approved_by == "anna"
    rest(page)
    page.ui.caseList.setCurrentRow(1)
    page.ui.excludeButton.click()
    assert "Say in the note why" in said(panel)
    page.ui.noteEdit.setText("motion artifacts")
    page.ui.excludeButton.click()
    wait_for(lambda: store.case("case-0002").state == "excluded", "the exclusion")
    rest(page)
    assert page.ui.excludeButton.text == "Take in again"
    page.ui.excludeButton.click()
    wait_for(lambda: store.case("case-0002").state == "new", "the return")
    rest(page)
    page.ui.noteButton.click()
    wait_for(lambda: store.case("case-0002").note == "motion artifacts", "the note")


def test_a_prediction_that_is_cancelled_opens_the_case_empty(page, panel, store, worker):
    from fake_worker import HOLD

    worker.tasks["segment"] = lambda *_: HOLD
    page.ui.nextButton.click()
    wait_for(lambda: page.work.state == "predicting" and page.work.progress is not None, "the prediction")
    wait_for(lambda: page.ui.caseCancelButton.isVisibleTo(page.form), "the button")
    page.ui.caseCancelButton.click()
    wait_for(lambda: page.work.isOpen, "the case")
    assert not scene_mask().any() and "without an answer" in said(panel)
    assert store.case("case-0001").prediction is None


def test_the_ct_of_the_scene_becomes_a_case(page, panel, store, worker):
    node = add_ct(array=another_chest(99))
    panel.segment.ui.inputSelector.setCurrentNode(node)
    apply_and_wait(panel)
    page.ui.patientEdit.setText("Patient 0")
    page.ui.addSceneButton.click()
    wait_for_words(panel, "1 cases were added")
    case = store.case("case-0004")
    assert case.patient == store.case("case-0001").patient and case.lungs is not None
    assert np.array_equal(store.read_prediction("case-0004").mask(), chest()[1])
    assert "Patient 0" not in "".join(p.read_text() for p in store.folder.rglob("*.json"))
    rest(page)
    page.ui.addSceneButton.click()
    wait_for_words(panel, "1 were there already")


def test_a_folder_of_cts_is_added_and_pairs_are_imported(page, panel, store, tmp_path):
    from case_fixtures import lesion, write_ct, write_mask

    for number in (1, 2):
        ct = write_ct(tmp_path / "cts" / f"{number}.nii.gz", number)
    (tmp_path / "cts" / "3.nii.gz").write_bytes(b"no image")
    page.ui.addPath.setProperty("currentPath", str(tmp_path / "cts"))
    page.ui.addFolderButton.click()
    wait_for_words(panel, "2 cases were added, 0 were there already, 1 were left out")
    rest(page)
    ct = write_ct(tmp_path / "pairs" / "x_ct.nii.gz", 7)
    write_mask(tmp_path / "pairs" / "x_lesion.nii.gz", lesion(7), ct)
    page.ui.importPath.setProperty("currentPath", str(tmp_path / "pairs"))
    page.ui.importButton.click()
    wait_for_words(panel, "1 cases were added, 0 were there already, 0 were left out")
    assert store.case("case-0006").latest("anna").kind == "import"
    rest(page)
    page.ui.exportPath.setProperty("currentPath", str(tmp_path / "out"))
    page.ui.exportButton.click()
    wait_for_words(panel, "Written: Dataset501_COVIDLesion")
    assert (tmp_path / "out" / "Dataset501_COVIDLesion" / "dataset.json").is_file()
    rest(page)
    page.ui.checkButton.click()
    wait_for_words(panel, "The store is sound.")
    next((store.folder / "cases" / "case-0006" / "revisions").rglob("*.seg.nrrd")).write_bytes(b"broken")
    rest(page)
    page.ui.checkButton.click()
    wait_for_words(panel, "Something is broken.")
    assert "case-0006" in page.ui.reportLabel.text


@pytest.fixture
def reviewed(store):
    """Two labels, with two doubtful slices each."""
    hashes = {}
    for name in ("case-0001", "case-0002"):
        hashes[name] = store.save_revision(name, chest()[1], "bert").sha256
    rows = [
        {"case": name, "slice": index, "score": score, "reason": "the loss stayed high"}
        for name, index, score in (("case-0002", 9, 0.9), ("case-0001", 12, 0.8), ("case-0001", 13, 0.7))
    ]
    store.review.add(rows, hashes, 1)
    return store


def test_doubtful_labels_are_looked_at_and_decided(reviewed, page, panel, scene, slicer_gui):
    from COVIDLesionSegLib.mrml import nodes

    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    ui = page.ui
    assert ui.reviewList.item(0).text() == "case-0002, slice 9: the loss stayed high"
    page.review.jumpToNext()
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "the case")
    assert page.work.caseId == "case-0002"
    view = next(node for node in nodes.nodesOfClass("vtkMRMLSliceNode"))
    assert view.GetSliceToRAS().GetElement(2, 3) == pytest.approx(-30 + 9 * 2.5)
    ui.rightButton.click()
    wait_for(lambda: ui.reviewList.count == 2, "the decision")
    rest(page)
    ui.reviewList.setCurrentRow(1)
    ui.fixButton.click()
    wait_for(lambda: ui.reviewList.count == 1, "the decision")
    decided = {(i.case, i.slice): (i.decision, i.by) for i in reviewed.review.items(True)}
    assert decided == {("case-0002", 9): ("right", "anna"), ("case-0001", 13): ("fix", "anna")}
    rest(page)
    assert open_next(page) == "case-0001" and "fix it" in page.work.reason
    assert "slices 13" in ui.caseLabel.text
    ui.decidedCheck.click()
    assert ui.reviewList.count == 3 and "[to be fixed, anna]" in ui.reviewList.item(2).text()


def test_raters_are_compared_and_their_consensus_trains(page, panel, store):
    other = chest()[1].copy()
    other[8:10] = False
    for rater, mask in (("anna", chest()[1]), ("bert", other), ("cleo", chest()[1])):
        store.save_revision("case-0001", mask, rater)
    page.ui.refreshButton.click()
    wait_for(lambda: page.ui.raterList.count == 1, "the raters")
    page.ui.agreementButton.click()
    wait_for(lambda: "bert - cleo" in page.ui.agreementBrowser.toPlainText(), "the table")
    rest(page)
    page.ui.raterList.setCurrentRow(0)
    page.ui.consensusButton.click()
    wait_for_words(panel, "The consensus of case-0001")
    case = store.case("case-0001")
    assert case.label == "consensus" and case.label_revision.kind == "consensus"
    rest(page)
    assert "the consensus trains" in page.ui.raterList.item(0).text()
    page.ui.latestButton.click()
    wait_for(lambda: store.case("case-0001").label == "latest", "the choice")


def test_a_patient_changes_sides_with_a_reason_that_is_kept(page, panel, store):
    ui = page.ui
    assert not ui.moveCombo.enabled and not ui.moveButton.enabled, "nobody judges yet"
    for number in (1, 2, 3):
        store.save_revision(f"case-000{number}", chest()[1], "bert")
    store.split.freeze(["case-0003"])
    page.store.refresh()
    wait_for(lambda: page.store.overview["frozen"], "the overview")
    texts = [ui.moveCombo.itemText(row) for row in range(ui.moveCombo.count)]
    assert texts == ["case-0001, trains", "case-0002, trains", "case-0003, judges"]
    ui.moveCombo.setCurrentIndex(1)
    assert ui.moveButton.text == "Let the patient judge" and not ui.moveButton.enabled
    ui.moveReasonEdit.setText("same hospital as case-0003")
    assert not ui.moveButton.enabled, "a reason alone is no consent"
    ui.moveCheck.setChecked(True)
    ui.moveButton.click()
    wait_for_words(panel, "case-0002: the patient only judges from now on.")
    assert store.split.side(store.case("case-0002")) == "validation"
    act = store.split.history()[-1]
    assert (act["act"], act["by"], act["from"], act["to"]) == ("move", "anna", "train", "validation")
    assert act["why"] == "same hospital as case-0003"
    rest(page)
    assert ui.moveCombo.currentText == "case-0002, judges" and ui.moveButton.text == "Let the patient train"
    assert not ui.moveCheck.checked and not ui.moveReasonEdit.text and not ui.moveButton.enabled


def test_the_last_patient_of_a_side_stays_there(page, panel, store):
    for number in (1, 2):
        store.save_revision(f"case-000{number}", chest()[1], "bert")
    store.split.freeze(["case-0001"])
    page.store.refresh()
    wait_for(lambda: page.store.overview["frozen"], "the overview")
    page.ui.moveReasonEdit.setText("by mistake")
    page.ui.moveCheck.setChecked(True)
    page.ui.moveButton.click()
    wait_for_words(panel, "would leave nobody for validation")
    assert len(store.split.history()) == 1 and page.ui.moveReasonEdit.text == "by mistake"


def test_a_store_of_an_older_version_is_brought_up_to_date(panel, slicer_gui, tmp_path):
    from case_fixtures import make_store
    from case_store_faults import as_version_1

    from COVIDLesionSegLib.cases import Store

    store = make_store(tmp_path)
    store.save_revision("case-0001", lesion_of("case-0001"), "bert")
    store.save_revision("case-0002", lesion_of("case-0002"), "bert")
    store.split.freeze(["case-0002"])
    sides = store.split.sides()
    as_version_1(store.folder)
    page = panel.learn.cases
    page.ui.filesButton.collapsed = False
    assert not page.ui.migrateButton.isVisibleTo(page.form)
    page.ui.storePath.setProperty("currentPath", str(store.folder))
    wait_for(lambda: page.ui.migrateButton.isVisibleTo(page.form), "the offer")
    assert "version 1" in page.ui.migrateLabel.text and "older version" in page.ui.storeState.text
    assert not page.ui.migrateButton.enabled and not page.ui.checkButton.enabled and not page.store.overview
    page.ui.migrateCheck.setChecked(True)
    page.ui.migrateButton.click()
    wait_for_words(panel, "The store is up to date.")
    wait_for(lambda: page.store.cases, "the overview")
    assert Store(store.folder).split.sides() == sides
    assert not page.ui.migrateButton.isVisibleTo(page.form) and page.ui.checkButton.enabled


def lesion_of(case: str) -> np.ndarray:
    from case_fixtures import lesion

    return lesion(int(case[-1]))


def test_a_second_rater_gets_what_the_first_has_saved(page, store):
    store.save_revision("case-0001", chest()[1], "bert")
    for name in ("case-0002", "case-0003"):
        store.exclude(name, "not now")
    page.ui.nextButton.click()
    rest(page)
    assert not page.work.caseId
    page.ui.againCheck.click()
    assert open_next(page) == "case-0001"


def test_going_back_to_an_earlier_model_and_against_the_gate(page, panel, store, tmp_path):
    from case_fixtures import write_model

    from COVIDLesionSegLib.cases.gate import CaseFigures, decide

    good, bad = CaseFigures(0.8, 0.1, 5.0, 10.0, 11.0), CaseFigures(0.6, 0.3, 9.0, 7.0, 11.0)
    for number, figures in ((1, good), (2, bad)):
        file = write_model(tmp_path / f"{number}.safetensors", weights_sha256=f"{number}" * 64)
        made = store.models.add(file, "base", number, split={}, trained_on={"name": "x"})
        decision = decide("base", made.id, {"case-0001": good}, {"case-0001": figures}, {"text": "One patient judges."})
        store.models.record_gate(made.id, decision)
    first, second = [model.id for model in store.models.list()]
    store.models.set_default(first, "gate")
    page.ui.refreshButton.click()
    ui = page.ui
    wait_for(lambda: ui.storeModelList.count == 3, "the models")
    assert "answers now" in ui.storeModelList.item(1).text()
    ui.storeModelList.setCurrentRow(2)
    shown = ui.gateBrowser.toPlainText()
    assert "did not pass" in shown and "0.8 → 0.6" in shown and "One patient judges." in shown
    assert not ui.useButton.enabled and not ui.overrideButton.enabled
    ui.overrideEdit.setText("better at the bases")
    ui.overrideButton.click()
    wait_for_words(panel, f"{second} answers from now on.")
    gate = store.models.get(second).gate
    assert (gate.override, gate.override_by, gate.override_reason) == ("accepted", "anna", "better at the bases")
    rest(page)
    ui.storeModelList.setCurrentRow(0)
    ui.useButton.click()
    wait_for(lambda: store.models.default() == store.models.history()[0]["model"], "the way back")
    assert [act["by"] for act in store.models.history()[1:]] == ["gate", "anna", "anna"]


def test_the_keyboard_is_enough(page, panel, store, reviewed_keys):
    press = reviewed_keys
    press("Alt+O")
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "the case")
    draw(corrected())
    press("Alt+S")
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    rest(page)
    press("Alt+D")
    wait_for(lambda: page.work.caseId == "case-0002" and page.work.isOpen, "the next case")
    keys = [shortcut.key.toString() for shortcut in page._shortcuts]
    taken = [s.key.toString() for holder in (panel, panel.segment, panel.correct) for s in holder._shortcuts]
    assert not set(keys) & set(taken)
    # from field to field in the order of the work
    order = ["storePath", "raterEdit", "caseList", "orderCombo", "nextButton", "saveButton", "noteEdit"]
    places = {w.objectName: i for i, w in enumerate(focus_chain(page.form)) if w.objectName in order}
    assert sorted(places, key=places.get) == order


def focus_chain(form):
    widget, chain = form.nextInFocusChain(), []
    while widget is not form and len(chain) < 2000:
        chain.append(widget)
        widget = widget.nextInFocusChain()
    return [widget for widget in chain if form.isAncestorOf(widget)]


@pytest.fixture
def reviewed_keys(page):
    import qt

    let_run(0.02)

    def press(keys):
        for shortcut in page._shortcuts:
            if shortcut.key.toString() == qt.QKeySequence(keys).toString() and shortcut.isEnabled():
                assert shortcut.parent().inherits("QTabWidget")
                shortcut.activated.emit()
                return
        pytest.fail(f"no shortcut {keys}")

    return press


def test_a_thousand_cases_are_listed_at_once(page, store, slicer_gui):
    import time

    case = next(iter(page.store.cases.values()))
    many = [{**case, "id": f"case-{n:04d}"} for n in range(1, 1001)]
    page.store.overview = {**page.store.overview, "cases": many, "counts": {"new": 1000}}
    begun = time.perf_counter()
    page.store.changed.emit()
    took = time.perf_counter() - begun
    assert page.ui.caseList.count == 1000
    print(f"a thousand cases shown in {1000 * took:.0f} ms")


def test_a_case_that_was_taken_over_is_said_once_and_saved_all_the_same(page, panel, store):
    open_next(page)
    store.unlock("case-0001")
    with store.open("case-0001", "bert"):
        page.work._hold._renew()
        rest(page)
        assert said(panel).count("took it over") == 1
        page.work._hold._renew()
        draw(corrected())
        page.ui.saveNextButton.click()
        wait_for(lambda: page.work.caseId == "case-0002" and is_at_rest(page), "the next case")
        assert store.case("case-0001").latest("anna") is not None
        assert store.case("case-0001").lock.owner == "bert"


def test_a_scene_that_is_closed_while_a_revision_is_written(page, panel, store, scene):
    open_next(page)
    page.ui.saveButton.click()
    scene.Clear(0)
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    rest(page)
    assert page.work.state == "" and not page.work.caseId and store.case("case-0001").lock is None


def test_another_store_waits_until_a_case_is_open(page, panel, tmp_path, store):
    from COVIDLesionSegLib.cases import Store

    other = Store.create(tmp_path / "other")
    page.ui.nextButton.click()
    page.ui.storePath.setProperty("currentPath", str(other.folder))
    assert "Wait a moment" in said(panel) and page.ui.storePath.currentPath == str(store.folder)
    rest(page)
    page.ui.storePath.setProperty("currentPath", str(other.folder))
    wait_for(lambda: page.store.folder == str(other.folder), "the other store")
    rest(page)
    assert not page.work.caseId and store.case("case-0001").lock is None


def test_settings_of_another_computer_do_not_reach_the_store(shared_session, slicer_gui, monkeypatch):
    """Behind a command prefix the store's child still runs here."""
    from COVIDLesionSegLib.panel.store_client import StoreClient
    from COVIDLesionSegLib.worker import WorkerSettings

    shared_session._given = WorkerSettings(python="/far/python", prefix=("ssh", "far"))
    client = StoreClient(shared_session)
    client._folder = "/somewhere"
    client.refresh()
    assert client._client.settings.prefix == () and client._client.settings.python is None
    client.close()


def test_the_model_of_a_store_travels_with_the_request(page, store, tmp_path, worker):
    """Its path means nothing on another computer."""
    from case_fixtures import write_model

    from COVIDLesionSegLib.cases.gate import CaseFigures, decide
    from COVIDLesionSegLib.worker import Client

    made = store.models.add(write_model(tmp_path / "m.safetensors"), "base", 1, split={}, trained_on={"name": "x"})
    figures = {"case-0001": CaseFigures(0.8, 0.1, 5.0, 10.0, 11.0)}
    store.models.record_gate(made.id, decide("base", made.id, figures, figures, {}))
    store.models.set_default(made.id, "gate")
    page.store.refresh()
    wait_for(lambda: page.store.overview["default"] == made.id, "the overview")
    asked = []

    def request(client, task, parameters=None, arrays=None, **more):
        if task == "segment":
            asked.append((parameters["model"], more["files"]))
        return ask(client, task, parameters, arrays, **more)

    ask = Client.request
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "request", request)
        open_next(page)
    assert asked == [(str(store.folder / "models" / made.id / "model.safetensors"), ("model",))]


def test_messages_name_no_patient(page, panel, store, tmp_path):
    open_next(page)
    page.ui.saveButton.click()
    rest(page)
    assert "Patient" not in said(panel)
    assert "Patient" not in json.dumps(page.store.overview)


GROUPS = ("workListButton", "addButton", "tuneButton", "reviewButton", "ratersButton", "filesButton")


def test_everything_fits_into_320_pixels(page, reviewed):
    open_next(page)
    for name in GROUPS:
        getattr(page.ui, name).collapsed = False
    let_run(0.02)
    assert page.form.minimumSizeHint().width() <= 320 - 24
    # unfolding shows nothing that has no meaning now
    hidden = (
        "createButton",
        "storeProgress",
        "caseProgress",
        "restartButton",
        "predictCancelButton",
        "tuneProgress",
        "resumeButton",
        "gateBrowser",
        "overrideButton",
        "agreementBrowser",
        "reportLabel",
        "migrateButton",
    )
    assert [name for name in hidden if getattr(page.ui, name).isVisibleTo(page.form)] == []


def test_every_word_of_the_forms_code_can_be_translated(open_panel, monkeypatch):
    from COVIDLesionSegLib.panel import adding_page, review_page, store_files_page, tuning_page, work_list

    for module in (adding_page, review_page, store_files_page, tuning_page, work_list):
        monkeypatch.setattr(module, "_", lambda text: f"«{text}»")
    ui = open_panel().learn.cases.ui
    for combo in (ui.stateCombo, ui.orderCombo, ui.layoutCombo):
        assert all("«" in combo.itemText(index) for index in range(combo.count))
    assert "«" in ui.storeState.text


def test_what_belongs_to_another_ct_is_hidden_while_a_case_is_open(page, panel, store):
    from COVIDLesionSegLib import mrml

    other = mrml.showLesions(add_ct("other"), chest()[1])
    seen_before = mrml.showLesions(add_ct("hidden"), chest()[1])
    seen_before.GetDisplayNode().SetVisibility(False)
    open_next(page)
    case = mrml.moduleParameters().lesionSegmentation
    assert case.GetDisplayNode().GetVisibility() and not other.GetDisplayNode().GetVisibility()
    page.ui.asideButton.click()
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
    panel.tabs.setCurrentIndex(2)
    wait_for(lambda: live.evaluation and not live.busy, "the comparison")
    panel.measure.ui.errorsButton.click()
    wait_for(lambda: parameters.errorSegmentation is not None, "the error map")
    page.ui.asideButton.click()
    wait_for(lambda: not page.work.isOpen, "the case to be closed")
    assert parameters.errorSegmentation is None
