"""The store behind the panel's work with cases: made, filled, exported, brought up to date; its models."""

from __future__ import annotations

import numpy as np
import pytest
from fake_worker import HOLD
from panel_case_fixtures import Annotating, another_chest, corrected, draw, open_next, renew, rest
from panel_fixtures import add_ct, apply_and_wait, chest, wait_for, wait_for_words

pytestmark = pytest.mark.usefixtures("forgotten_choices")


def test_a_store_is_made_and_remembered(panel, tmp_path, slicer_gui):
    panel.show("cases")
    page = Annotating(panel)
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
    page.ui.storeExportButton.click()
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


def lesion_of(case: str) -> np.ndarray:
    from case_fixtures import lesion

    return lesion(int(case[-1]))


def test_another_store_waits_until_a_case_is_open(page, panel, tmp_path, store):
    from COVIDLesionSegLib.cases import Store

    other = Store.create(tmp_path / "other")
    page.ui.openNextButton.click()
    page.ui.storePath.setProperty("currentPath", str(other.folder))
    wait_for_words(panel, "Wait a moment")
    assert page.ui.storePath.currentPath == str(store.folder)
    rest(page)
    page.ui.storePath.setProperty("currentPath", str(other.folder))
    wait_for(lambda: page.store.folder == str(other.folder), "the other store")
    rest(page)
    assert not page.work.caseId and store.case("case-0001").lock is None


def test_a_new_store_waits_until_the_open_case_is_put_aside(page, panel, tmp_path, store):
    folder = tmp_path / "new"
    page.ui.openNextButton.click()
    page.ui.storePath.setProperty("currentPath", str(folder))
    page.ui.createButton.click()
    wait_for_words(panel, "Wait a moment")
    assert not folder.exists()
    rest(page)
    drawn = corrected()
    draw(drawn)
    page.ui.createButton.click()
    wait_for(lambda: page.store.folder == str(folder), "the store")
    rest(page)
    assert not page.work.caseId and page.ui.storePath.currentPath == str(folder)
    assert store.case("case-0001").lock is None
    assert np.array_equal(store.autosaves.mask(store.autosaves.read("case-0001", "anna")).mask(), drawn)


def test_a_case_belongs_to_the_store_that_it_was_opened_from(page, tmp_path, store):
    from COVIDLesionSegLib.cases import Store

    open_next(page)
    draw(corrected())
    page.store.choose(str(Store.create(tmp_path / "other").folder))
    rest(page)
    renew(page)
    page.work.autosave()
    rest(page)
    assert store.case("case-0001").unsaved == ("anna",) and store.locks._values("case-0001")["renewals"] > 0
    page.ui.saveNextButton.click()
    wait_for(lambda: page.work.caseId != "case-0001", "the close")
    rest(page)
    assert store.case("case-0001").latest("anna") is not None and store.case("case-0001").lock is None


def test_a_save_does_not_wait_for_what_takes_long(page, store, worker, tmp_path):
    open_next(page)
    worker.tasks["store_add"] = lambda *_: HOLD
    page.ui.addPath.setProperty("currentPath", str(tmp_path))
    page.ui.addFolderButton.click()
    wait_for(lambda: page.store.progress is not None, "the long work")
    page.ui.saveCaseButton.click()
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    assert page.store.busy
    page.ui.storeCancelButton.click()
    rest(page)


def test_settings_of_another_computer_do_not_reach_the_store(shared_session, slicer_gui, monkeypatch):
    """Behind a command prefix the store's child still runs here."""
    from COVIDLesionSegLib.panel.store_client import StoreClient
    from COVIDLesionSegLib.worker import WorkerSettings

    shared_session._given = WorkerSettings(python="/far/python", prefix=("ssh", "far"))
    client = StoreClient(shared_session)
    client._folder = "/somewhere"
    client.refresh()
    wait_for(lambda: client._client, "the look into the store")
    assert client._client.settings.prefix == () and client._client.settings.python is None
    client.close()


def test_going_back_to_an_earlier_model_and_against_the_gate(page, panel, store, tmp_path):
    from case_fixtures import decision, write_model

    for number, dice in ((1, 0.8), (2, 0.6)):
        file = write_model(tmp_path / f"{number}.safetensors", weights_sha256=f"{number}" * 64)
        made = store.models.add(file, "base", number, split={}, trained_on={"name": "x"})
        store.models.record_gate(made.id, decision(made.id, "base", [dice], [0.8], split={"text": "One patient."}))
    first, second = [model.id for model in store.models.list()]
    store.models.set_default(first, "gate")
    page.choose("refresh")
    ui = page.ui
    wait_for(lambda: ui.storeModelList.count == 3, "the models")
    assert "active" in ui.storeModelList.item(1).text()
    ui.storeModelList.setCurrentRow(2)
    shown = ui.gateBrowser.toPlainText()
    assert "failed validation" in shown and "0.8 → 0.6" in shown and "One patient." in shown
    assert not ui.useButton.enabled and not ui.overrideButton.enabled
    ui.overrideEdit.setText("better at the bases")
    ui.overrideButton.click()
    wait_for_words(panel, f"{second} is the active model now.")
    gate = store.models.get(second).gate
    assert (gate.override, gate.override_by, gate.override_reason) == ("accepted", "anna", "better at the bases")
    rest(page)
    ui.storeModelList.setCurrentRow(0)
    ui.useButton.click()
    wait_for(lambda: store.models.default() == store.models.history()[0]["model"], "the way back")
    assert [act["by"] for act in store.models.history()[1:]] == ["gate", "anna", "anna"]


def test_an_estimate_is_of_the_settings_that_it_was_asked_for(page, panel, store, monkeypatch):
    from COVIDLesionSegLib.panel import training
    from COVIDLesionSegLib.worker.jobs import Job, JobStatus

    states, asked = [JobStatus("running")], []
    monkeypatch.setattr(training, "start_job", lambda where, task, given, _: asked.append((task, given)) or Job(where))
    monkeypatch.setattr(Job, "status", lambda job: states[-1])
    monkeypatch.setattr(Job, "task", "estimate")
    monkeypatch.setattr(Job, "remove", lambda job: None)
    store.save_revision("case-0001", chest()[1], "anna")
    ui = page.ui
    ui.startButton.click()
    ui.stepsSpin.setValue(ui.stepsSpin.value + 500)
    states.append(JobStatus("done", result={"text": "About 3 minutes."}))
    wait_for_words(panel, "About 3 minutes.")
    rest(page)
    assert "About 3 minutes." not in ui.trainState.text
    states.append(JobStatus("running"))
    ui.startButton.click()
    assert [task for task, _ in asked] == ["estimate", "estimate"], "nothing is trained before it is said how long"
    assert asked[1][1]["steps"] == asked[0][1]["steps"] + 500
    panel.train.helper.follow(None)


def test_the_model_of_a_store_travels_with_the_request(page, store, tmp_path, worker):
    """Its path means nothing on another computer."""
    from case_fixtures import decision, write_model

    from COVIDLesionSegLib.worker import Client

    made = store.models.add(write_model(tmp_path / "m.safetensors"), "base", 1, split={}, trained_on={"name": "x"})
    store.models.record_gate(made.id, decision(made.id, "base", [0.8], [0.8]))
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
