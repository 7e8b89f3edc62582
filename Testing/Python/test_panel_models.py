"""The page Settings: models (verify, download, import, remove, choose), PyTorch and settings, each by a click."""

from __future__ import annotations

import sys
import types

import pytest
from fake_worker import HOLD
from panel_fixtures import let_run, said, wait_for, wait_for_words

from COVIDLesionSegLib.errors import ModelError
from COVIDLesionSegLib.models.catalog import ModelEntry
from COVIDLesionSegLib.worker.protocol import Failure


@pytest.fixture
def page(panel):
    panel.show("settings")
    return panel.settings.ui


def choose(page, panel, model):
    ids = list(panel.settings.models._entries)
    page.modelList.setCurrentRow(ids.index(model))


def own_model(models_folder, name="tuned-one"):
    """A model file of the user's, recorded as installed."""
    from COVIDLesionSegLib.models.catalog import INSTALLED, write_record

    models_folder.mkdir(parents=True, exist_ok=True)
    file = models_folder / f"{name}.safetensors"
    file.write_bytes(b"weights")
    write_record(
        models_folder,
        ModelEntry(name, "Tuned", "coplenet", INSTALLED, file, license="mine", origin="trained", sha256=None),
    )
    return file


def test_all_models_are_listed_with_status_and_terms(page, panel):
    texts = [page.modelList.item(row).text() for row in range(page.modelList.count)]
    assert "COPLE-Net, trained on COVID-19-CT-Seg\ncomes with the extension, taken by default" in texts
    assert any("can be downloaded" in text for text in texts)
    # it is no choice: it finds no lesions
    assert "lungs-ctseg" not in panel.settings.models._entries and "lungs-ctseg" not in panel.segment._models
    choose(page, panel, "coplenet-uestc-monai")
    card = page.modelBrowser.toPlainText()
    assert "none stated" in card and "Wang G." in card and "How to get it" in card
    assert page.downloadButton.isEnabled() and not page.verifyButton.isEnabled() and not page.removeButton.isEnabled()
    choose(page, panel, "coplenet-ctseg")
    assert page.verifyButton.isEnabled() and not page.removeButton.isEnabled() and not page.downloadButton.isEnabled()


def test_behind_a_prefix_a_model_of_ones_own_is_a_file(slicer_gui, models_folder):
    from COVIDLesionSegLib.models import ModelRegistry
    from COVIDLesionSegLib.panel.run import modelForWorker
    from COVIDLesionSegLib.worker import WorkerSettings

    file, registry = own_model(models_folder), ModelRegistry()
    here, far = WorkerSettings(), WorkerSettings(prefix=("ssh", "gpu-box"))
    stored = "/store/models/m-1/model.safetensors"
    for model, on_this, on_other in (
        ("tuned-one", "tuned-one", str(file)),
        ("coplenet-ctseg", "coplenet-ctseg", "coplenet-ctseg"),
        (stored, stored, stored),
        ("", None, "coplenet-ctseg"),
    ):
        assert modelForWorker(model, here, registry) == on_this
        assert modelForWorker(model, far, registry) == on_other
    registry.set_default("tuned-one")
    assert modelForWorker("", far, registry) == str(file)


def test_nothing_is_fetched_without_a_press(panel, worker, page):
    let_run(0.1)
    assert not worker.asked and not worker.children, "no process, either"


def test_a_model_is_verified(page, panel, worker):
    page.verifyButton.click()
    assert not page.verifyButton.isEnabled()
    wait_for_words(panel, "coplenet-ctseg is as it should be")
    assert page.verifyButton.isEnabled() and not page.settingsProgress.isVisible()


def test_a_damaged_model_is_named(page, panel, worker):
    def refuse(*_):
        raise ModelError("coplenet-ctseg.safetensors was changed or damaged and is not used.")

    worker.tasks["verify_model"] = refuse
    page.verifyButton.click()
    wait_for_words(panel, "Problem: coplenet-ctseg.safetensors was changed")


def test_a_download_shows_progress_and_can_be_cancelled(page, panel, worker):
    worker.tasks["download_model"] = lambda *_: HOLD
    choose(page, panel, "coplenet-uestc-monai")
    page.downloadButton.click()
    wait_for(lambda: page.settingsProgress.isVisible() and page.settingsProgress.maximum > 0, "progress")
    assert page.settingsCancelButton.isVisible()
    page.settingsCancelButton.click()
    wait_for_words(panel, "Cancelled.")
    assert not page.settingsProgress.isVisible()


def test_a_downloaded_model_can_be_chosen_at_once(page, panel, worker, models_folder):
    def download(parameters, arrays):
        own_model(models_folder)
        return {"card": {"id": "tuned-one", "weights_sha256": "ab" * 32}}, {}

    worker.tasks["download_model"] = download
    choose(page, panel, "coplenet-uestc-monai")
    page.downloadButton.click()
    wait_for_words(panel, "was downloaded")
    assert panel.segment.ui.modelCombo.findData("tuned-one") >= 0


def test_a_file_is_imported(page, panel, worker, tmp_path):
    worker.tasks["import_model"] = lambda parameters, arrays: (
        {"card": {"id": parameters["model"], "weights_sha256": "cd" * 32}},
        {},
    )
    assert not page.modelImportButton.isEnabled()
    page.modelPath.setProperty("currentPath", str(tmp_path / "model.pt"))
    page.modelIdEdit.text = " mine "
    page.modelImportButton.click()
    wait_for_words(panel, "mine was imported")
    assert worker.named("import_model")[0].parameters == {"file": str(tmp_path / "model.pt"), "model": "mine"}


def test_behind_a_prefix_the_models_of_this_computer_are_changed_here(page, panel, worker, shared_session, tmp_path):
    from COVIDLesionSegLib.worker import WorkerSettings

    shared_session._given = WorkerSettings(python="/far/python", prefix=("ssh", "far"))
    shared_session.restart()
    worker.tasks["import_model"] = lambda *_: ({"card": {"id": "mine", "weights_sha256": "cd" * 32}}, {})
    page.modelPath.setProperty("currentPath", str(tmp_path / "model.pt"))
    page.modelImportButton.click()
    wait_for_words(panel, "mine was imported")
    assert worker.named("import_model")[0].parameters["file"] == str(tmp_path / "model.pt")
    command = worker.children[-1].command
    assert "ssh" not in command and "/far/python" not in command


def test_a_model_is_removed_after_a_question_and_another_one_taken_by_default(page, panel, models_folder, answers):
    file = own_model(models_folder)
    panel.session.modelsChanged.emit()
    choose(page, panel, "tuned-one")
    page.defaultButton.click()
    assert "taken by default now" in said(panel)
    assert panel.session.registry.default() == "tuned-one"
    answers.next = False
    page.removeButton.click()
    assert "The file of tuned-one is deleted" in answers.asked[0] and file.exists()
    answers.next = True
    page.removeButton.click()
    assert "tuned-one was removed" in said(panel) and not file.exists()
    assert panel.session.registry.default() == "coplenet-ctseg"
    assert panel.segment.ui.modelCombo.findData("tuned-one") < 0


def test_a_file_that_vanished_is_shown_as_damaged(page, panel, models_folder):
    own_model(models_folder).unlink()
    panel.session.modelsChanged.emit()
    choose(page, panel, "tuned-one")
    assert "damaged" in page.modelList.currentItem().text() and "is gone" in page.modelBrowser.toPlainText()
    assert page.removeButton.isEnabled() and not page.verifyButton.isEnabled()


# ---- PyTorch --------------------------------------------------------------------------------------------------------


def test_the_page_says_what_there_is(page, panel):
    assert page.torchLabel.text == "Not looked at yet."
    page.torchCheckButton.click()
    wait_for(lambda: "PyTorch 2.13.0 (processor only)" in page.torchLabel.text, "the doctor")


def test_pytorch_comes_through_its_extension(page, panel, worker, monkeypatch):
    page.installButton.click()
    assert "The PyTorch extension is not installed" in said(panel)
    calls = []
    page.torchCheckButton.click()
    panel.store._newClient()
    wait_for(lambda: "PyTorch 2.13.0" in page.torchLabel.text, "a child")

    def install(**options):
        calls.append((options, any(child.is_running for child in worker.children)))
        return types.ModuleType("torch")

    logic = types.SimpleNamespace(installTorch=install)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=lambda: logic))
    count = len(worker.children)
    page.installButton.click()
    # a new child sees what was installed
    wait_for(lambda: len(worker.children) > count, "the new child")
    assert calls == [({"askConfirmation": True}, False)], "no child holds a library while it is replaced"


def test_nothing_is_installed_during_a_run(page, panel, ct, worker, monkeypatch):
    worker.tasks["segment"] = lambda *_: HOLD
    panel.segment.ui.applyButton.click()
    wait_for(lambda: worker.named("segment"), "the run")
    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace())
    page.installButton.click()
    assert "before installing" in said(panel) and panel.session.run.busy


def decline_torch():
    return {"PyTorchUtils": types.SimpleNamespace(PyTorchUtilsLogic=lambda: types.SimpleNamespace(installTorch=_none))}


def _none(**_):
    return None


def decline_packages():
    def decline(*_, **__):
        raise RuntimeError("User declined package installation")

    return {"slicer.packaging": types.SimpleNamespace(load_requirements=lambda file: [file], pip_ensure=decline)}


@pytest.mark.parametrize(
    ("modules", "button"), [(decline_torch, "installButton"), (decline_packages, "packagesButton")]
)
def test_a_declined_installation_is_no_failure(modules, button, page, panel, monkeypatch):
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    getattr(page, button).click()
    wait_for_words(panel, "Nothing was installed.")
    assert "failed" not in said(panel)


def test_a_failed_installation_is_a_sentence(page, panel, monkeypatch):
    def fail(**_):
        raise RuntimeError("no network")

    logic = types.SimpleNamespace(installTorch=fail)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=lambda: logic))
    page.installButton.click()
    wait_for_words(panel, "The installation failed: no network")


def test_packages_come_through_slicers_packaging(page, panel, monkeypatch):
    calls = []
    packaging = types.SimpleNamespace(
        load_requirements=lambda file: [file],
        pip_ensure=lambda requirements, requester: calls.append((requirements, requester)),
    )
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    page.packagesButton.click()
    wait_for(lambda: calls, "the call")
    (requirements, requester) = calls[0]
    assert requirements[0].endswith("requirements.txt") and requester == "COVIDLesionSeg"


def test_settings_are_kept_and_start_the_worker_anew(page, panel, worker, slicer_gui, tmp_path):
    from COVIDLesionSegLib.panel.session import readSettings

    page.torchCheckButton.click()
    wait_for(lambda: worker.children, "a child")
    first = worker.children[0]
    page.prefixEdit.text = "ssh 'open"
    page.workerButton.click()
    assert "can't be understood" in said(panel)
    page.prefixEdit.text = "ssh -o 'BatchMode yes' box"
    page.idleSpin.setValue(30)
    page.workerButton.click()
    settings = readSettings()
    assert settings.prefix == ("ssh", "-o", "BatchMode yes", "box") and settings.idle_seconds == 1800
    wait_for(lambda: not first.is_running and len(worker.children) > 1, "the new child")
    page.prefixEdit.text = ""
    page.pythonPath.setProperty("currentPath", "/opt/python/bin/python3")
    page.workerButton.click()
    settings = readSettings()
    assert settings.python == "/opt/python/bin/python3" and settings.environment, "not Slicer's own environment"
    for name in ("python", "prefix", "idleMinutes"):
        slicer_gui.app.settings().remove(f"COVIDLesionSeg/{name}")


@pytest.mark.parametrize("python", ["", "/far/python3"])
def test_a_command_prefix_gets_the_environment_from_before_slicer(slicer_gui, monkeypatch, python):
    import slicer

    from COVIDLesionSegLib.panel.session import readSettings

    before = {"PATH": "/usr/bin"}
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: before)
    values = {"COVIDLesionSeg/prefix": "ssh box", "COVIDLesionSeg/python": python, "COVIDLesionSeg/idleMinutes": "30"}
    for name, value in values.items():
        slicer_gui.app.settings().setValue(name, value)
    try:
        settings = readSettings()
    finally:
        for name in values:
            slicer_gui.app.settings().remove(name)
    assert settings.environment == before and settings.prefix == ("ssh", "box")
    assert settings.python == (python or None) and settings.idle_seconds == 1800
    here = settings.on_this_machine()
    assert here.environment is None, "the child here is Slicer's own interpreter"
    assert readSettings().environment is None


def test_a_missing_pytorch_is_said_once_something_is_to_be_computed(panel, ct, worker):
    for task in ("doctor", "segment"):
        worker.tasks[task] = lambda *_: Failure(1, "torch_missing", "PyTorch is needed.", action="set_up_pytorch")
    panel.settings.ui.torchCheckButton.click()
    wait_for(lambda: panel.messages.ui.torchButton.isVisible(), "the button")
    assert "PyTorch is needed." in panel.segment.ui.deviceLabel.text
    panel.segment.ui.applyButton.click()
    wait_for(lambda: said(panel).count("PyTorch is needed.") == 2, "the run's end")


def test_a_run_that_waits_says_so(panel, ct, worker):
    worker.tasks["doctor"] = lambda *_: HOLD
    panel.settings.ui.torchCheckButton.click()
    wait_for(lambda: worker.named("doctor"), "the look at the devices")
    panel.segment.ui.applyButton.click()
    wait_for(lambda: "Waiting for the worker" in panel.segment.ui.phaseLabel.text, "the words")


@pytest.mark.parametrize("name", ["Model.PT", "weights.bin", "weights"])
def test_a_model_file_of_any_name_can_be_imported(name, page, panel, tmp_path):
    """The worker looks what it is; a name that the field takes for none would be a dead end."""
    page.modelPath.setProperty("currentPath", str(tmp_path / name))
    assert page.modelImportButton.isEnabled()
    page.modelPath.setProperty("currentPath", "")
    assert not page.modelImportButton.isEnabled()
