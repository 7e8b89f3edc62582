"""The whole loop with a network that learns in seconds: through the panel, from the console, with real processes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from panel_fixtures import let_run
from scripted_annotator import Annotator
from training_fixtures import PATIENTS, tiny_config, write_cases

STEPS = 10


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """An installation whose default model is a tiny network, random but for a bias that makes it find something."""
    from COVIDLesionSegLib.models import ModelCard, ModelRegistry, Preprocessing, save_model
    from COVIDLesionSegLib.networks import create_network

    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("installation")
    torch.manual_seed(0)
    network = create_network("coplenet", channels=[2, 4, 8, 16, 32], dropout=[0, 0, 0.1, 0.1, 0.1])
    card = ModelCard("tiny", "Tiny", "coplenet", preprocessing=Preprocessing(lung_crop_margin=2))
    save_model(network.eval(), card, folder / "tiny.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVIDLESIONSEG_MODELS", str(folder / "models"))
        patch.setenv("OMP_NUM_THREADS", "1")
        registry = ModelRegistry()
        registry.register(folder / "tiny.safetensors", card)
        registry.set_default("tiny")
        yield folder


@pytest.fixture
def settings_file(tmp_path) -> Path:
    """Training settings of steps that take milliseconds."""
    config = tiny_config(Path("unused"), data={"validation_patients": (), "selection_fraction": 0.34, "cases": ""})
    config = replace(config, network=replace(config.network, arguments={}))
    (tmp_path / "tiny.toml").write_text(config.to_toml(), encoding="utf-8")
    return tmp_path / "tiny.toml"


@pytest.fixture
def data(tmp_path) -> Path:
    return write_cases(tmp_path / "data")


@pytest.fixture
def panel(tiny_model, tmp_path, scene, slicer_gui, monkeypatch):
    """A panel with real processes, whose jobs lie in a folder of their own."""
    from scripted_annotator import module_panel

    # another start of Slicer finds the jobs beside the models
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tiny_model / "models"))
    with module_panel() as panel:
        yield panel
    slicer_gui.app.settings().remove("COVIDLesionSeg/caseStore")
    slicer_gui.app.settings().remove("COVIDLesionSeg/rater")
    let_run(0.05)


def expert(data: Path, number: int) -> np.ndarray:
    from COVIDLesionSegLib.imaging import read_labels

    return read_labels(data / f"{PATIENTS[number - 1]}_lesion.nii.gz").mask()


def test_an_annotator_corrects_trains_reviews_and_trains_again(panel, data, settings_file, tmp_path, slicer_gui):
    from COVIDLesionSegLib import mrml
    from COVIDLesionSegLib.cases import Store
    from COVIDLesionSegLib.panel import TrainingLogic

    folder = tmp_path / "store"
    annotator = Annotator(panel, "anna")
    annotator.make_store(folder)
    for patient in PATIENTS:
        # with lungs, which these small chests are too small to find
        Store(folder).add(data / f"{patient}_ct.nii.gz", patient, lungs=data / f"{patient}_lungs.nii.gz")
    annotator.page.store.refresh()
    annotator.rest()

    def correct(case: str, answer: np.ndarray) -> np.ndarray:
        assert answer.shape == (6, 48, 56)
        mask = expert(data, int(case[-4:]))
        if case == "case-0002":
            # a label that is wrong in one slice
            mask[3] = np.roll(mask[3], 15, axis=1)
        return mask

    assert annotator.correct_waiting(correct) == [f"case-000{n}" for n in (1, 2, 3, 4)]
    store = Store(folder)
    assert {case.state for case in store.cases()} == {"corrected"}
    assert all(case.prediction.model_id == "tiny" for case in store.cases())
    assert np.array_equal(store.read_revision("case-0001").mask(), expert(data, 1))

    status = annotator.fine_tune(STEPS, "case-0004", settings_file)
    assert status.state == "done", status.error
    assert "Press Start" in annotator.said
    gate = status.result["gate"]
    assert set(gate["cases"]) == {"case-0004"} and (gate["old"], gate["new"]) == ("tiny", status.result["model"])
    assert [point[0] for point in status.curves["loss"]] == list(range(STEPS))
    assert {"student_dice", "teacher_dice"} <= set(status.curves)
    annotator.ui.curvesButton.click()
    loss, dice = panel.train._charts
    table = loss.GetNthPlotSeriesNode(0).GetTableNode()
    assert table.GetNumberOfRows() == STEPS and dice.GetNumberOfPlotSeriesNodes() == 2
    split = store.split.sides()
    assert list(split.values()).count("validation") == 1

    # whatever the gate said, a person can use the model, and go back
    models = annotator.page.store.overview["models"]
    assert [model["id"] for model in models] == [gate["new"]]
    ui = annotator.ui
    row = ui.storeModelList.count - 1
    ui.storeModelList.setCurrentRow(row)
    if not gate["passed"]:
        ui.overrideEdit.setText("to see the second round")
        ui.overrideButton.click()
        annotator.rest()
    assert store.models.default() == gate["new"]
    assert "case-0004" in ui.gateBrowser.toPlainText()

    # the review list comes from the trainer; one entry more, so that there is one whatever it found
    label = store.case("case-0002").label_revision.sha256
    store.review.add([{"case": "case-0002", "slice": 3, "score": 9.0, "reason": "moved"}], {"case-0002": label}, 1)
    annotator.page.store.refresh()
    annotator.rest()
    listed = [(item["case"], item["slice"]) for item in panel.cases._items]
    annotator.decide(listed.index(("case-0002", 3)), "fix")
    (decided,) = annotator.review(lambda *_: "right", at_most=1)
    left = {(item.case, item.slice) for item in store.review.items()}
    assert left == {*listed} - {("case-0002", 3), decided[:2]}
    assert [item.decision for item in store.review.items(True)].count("fix") == 1
    # what is to be fixed comes first, and is fixed
    assert annotator.correct_waiting(lambda case, _: expert(data, int(case[-4:])), at_most=1) == ["case-0002"]
    assert not store.case("case-0002").slices_to_fix()

    again = annotator.fine_tune(STEPS, "", settings_file, ask=False)
    assert again.state == "done", again.error
    assert again.result["round"] == 2 and store.split.sides() == split
    record = store.training.rounds()[1]
    assert record["plan"]["fresh"] == ["case-0002"] and set(record["plan"]["replayed"]) == {"case-0001", "case-0003"}
    assert record["by"] == "anna"
    # another start of Slicer finds what was trained
    jobs = TrainingLogic().jobs(folder, "fine_tune")
    assert len(jobs) == 2 and jobs[0].status().result["round"] == 2
    # the model that answers is the store's, and every answer says so
    ui.storeModelList.setCurrentRow(ui.storeModelList.count - 2)
    if store.models.default() != gate["new"]:
        ui.useButton.click()
        annotator.rest()
    more = write_cases(tmp_path / "more", (*PATIENTS, "emil"))
    Store(folder).add(more / "emil_ct.nii.gz", "emil", lungs=more / "emil_lungs.nii.gz")
    annotator.page.store.refresh()
    annotator.rest()
    # the validation case comes first, to be read without the prediction that drafted its label
    ui.openNextButton.click()
    annotator.rest()
    assert panel.correct.work.caseId == "case-0004" and panel.correct.work.startFrom == "an empty mask"
    assert "without any model's prediction" in ui.caseLabel.text
    ui.noLesionButton.click()
    annotator.rest()
    assert store.case("case-0004").latest().drafts == () and store.case("case-0004").revisions[0].drafts == (1,)
    ui.openNextButton.click()
    annotator.rest()
    assert mrml.recordOf(mrml.moduleParameters().lesionSegmentation).model["id"] == gate["new"]
    assert store.case("case-0005").prediction.model_id == gate["new"]


@pytest.mark.long
def test_a_training_is_found_again_by_the_next_panel_and_its_cancel_keeps_the_best(
    panel, data, settings_file, tmp_path
):
    from scripted_annotator import module_panel

    from COVIDLesionSegLib.cases import Store

    store = Store.create(tmp_path / "store")
    for number, patient in enumerate(PATIENTS, start=1):
        lungs = data / f"{patient}_lungs.nii.gz"
        case = store.add(data / f"{patient}_ct.nii.gz", patient, lungs=lungs)
        store.save_revision(case.id, expert(data, number), "anna")
    annotator = Annotator(panel, "anna")
    annotator.make_store(store.folder)
    ui, tuning = annotator.ui, annotator.panel.train
    text = settings_file.read_text(encoding="utf-8")
    settings_file.write_text(text.replace("validation_interval = 4", "validation_interval = 1"), encoding="utf-8")
    ui.configPath.setProperty("currentPath", str(settings_file))
    ui.stepsSpin.setValue(100_000)
    # its estimate was seen
    tuning._estimated = tuning._wanted()
    ui.startButton.click()
    annotator.wait(lambda: tuning.watch.status.curves.get("teacher_dice"), "a validation")
    assert ui.trainProgress.isVisibleTo(panel.train.form) and ui.trainCancelButton.enabled
    # a second start of Slicer
    with module_panel() as second:
        later = Annotator(second, "anna")
        later.wait(lambda: second.store.overview, "the remembered store")
        assert "A fine-tuning of this store is on." in later.said
        assert second.train.watch.isActive
        second.train.ui.trainCancelButton.click()
        later.wait(lambda: not second.train.watch.isActive, "the end", 30)
        assert second.train.watch.status.state == "cancelled"
    (kept,) = store.models.list()
    assert kept.id.endswith("-stopped") and kept.gate is None
    annotator.wait(lambda: not tuning.watch.isActive, "the end")
    annotator.rest()
    annotator.wait(lambda: ui.storeModelList.count == 1, "the list")
    ui.storeModelList.setCurrentRow(0)
    assert not ui.useButton.enabled and ui.resumeButton.isVisibleTo(panel.train.form)
    assert ui.validateButton.enabled


def test_the_console_example_runs(tiny_model, slicer_gui, tmp_path, settings_file, monkeypatch, capsys):
    """Twelve lines; only the number of steps and the settings are others, so that it takes seconds."""
    from COVIDLesionSegLib.panel.training import TrainingLogic
    from host.scripted import load_module

    load_module(REPOSITORY / "COVIDLesionSeg" / "COVIDLesionSeg.py").widget.cleanup()
    monkeypatch.chdir(tmp_path)
    write_cases(tmp_path / "my-data")
    code = (REPOSITORY / "Testing" / "Python" / "console_loop_example.py").read_text(encoding="utf-8")
    lines = [line for line in code.splitlines() if line and not line.startswith(('"""', "from "))]
    assert len(lines) <= 12
    begin = TrainingLogic.fineTune

    def quickly(self, cases, *arguments, **options):
        return begin(self, cases, *arguments, **{**options, "steps": STEPS, "config": settings_file, "device": "cpu"})

    monkeypatch.setattr(TrainingLogic, "fineTune", quickly)
    begun = time.monotonic()
    exec(compile(code, "console_loop_example.py", "exec"), {"correct": lambda ct, mask: mask})
    words = capsys.readouterr().out
    assert ("True" in words or "False" in words) and "Mean Dice" in words and "'tiny'" in words
    print(f"{time.monotonic() - begun:.1f} s")
