"""What an engineer asks of `train` and `fine-tune`: settings, lists, folds, followers, a run taken up elsewhere."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from training_fixtures import tiny_config, write_cases

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.imports import import_class
from COVIDLesionSegLib.learning import Trainer, TrainingCallback, TrainingConfig, cross_validate, fine_tune
from COVIDLesionSegLib.learning import step as step_module
from COVIDLesionSegLib.learning.config import RegularizationSettings
from COVIDLesionSegLib.learning.distributed import Ranks
from COVIDLesionSegLib.learning.fine_tuning import default_config
from COVIDLesionSegLib.learning.log import read_log
from COVIDLesionSegLib.learning.losses import DiceLoss
from COVIDLesionSegLib.learning.sampling import ahead
from COVIDLesionSegLib.learning.step import DivergedError, TrainingStep
from COVIDLesionSegLib.learning.validation import WorstSlices
from COVIDLesionSegLib.models import load_checkpoint
from COVIDLesionSegLib.networks import create_network
from COVIDLesionSegLib.resources import resource


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def a_run(cases, tmp_path_factory):
    """A folder with the finished run of four steps that others resume or start from."""
    folder = tmp_path_factory.mktemp("first")
    Trainer(tiny_config(cases, run={"steps": 4}), folder / "run", folder).run()
    return folder


# ---- settings -------------------------------------------------------------------------------------------------------


def test_the_printed_configuration_is_the_one_that_trains(cases, tmp_path, capsys):
    (tmp_path / "my.toml").write_text(tiny_config(cases).to_toml())
    words = ["train", str(tmp_path / "my.toml"), "--set", "loss.name=dice", "augmentation.rotation.degrees=3"]
    words += ["--set", "run.steps=7", "--steps", "2"]
    assert main([*words, "--print-config"]) == 0
    printed = tmp_path / "whole.toml"
    printed.write_text(capsys.readouterr().out)
    config = TrainingConfig.from_toml(printed)
    assert (config.loss.name, config.augmentation.rotation.degrees, config.run.steps) == ("dice", 3.0, 2)
    assert main([*words, "-o", str(tmp_path / "run"), "--quiet"]) == 0
    assert TrainingConfig.from_toml(tmp_path / "run" / "config.toml") == config
    assert main(["train", str(printed), "-o", str(tmp_path / "again"), "--quiet"]) == 0
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["network"] for name in ("run", "again")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_fine_tune_prints_what_the_base_model_brings(cases, a_run, tmp_path, capsys):
    model = a_run / "run" / "best.safetensors"
    words = ["fine-tune", str(cases), "--model", str(model), "--set", "optimizer.learning_rate=0.5", "--print-config"]
    assert main(words) == 0
    (tmp_path / "whole.toml").write_text(capsys.readouterr().out)
    config = TrainingConfig.from_toml(tmp_path / "whole.toml")
    # the card's margin, not the default of 8
    assert (config.data.margin, config.optimizer.learning_rate, config.run.steps) == (2, 0.5, 300)
    assert config.network.base_model == str(model.resolve())


@pytest.mark.parametrize("model", ["lungs-ctseg", str(resource("Models/lungs-ctseg.safetensors"))], ids=["id", "file"])
def test_the_network_for_lungs_is_no_base_model(cases, tmp_path, capsys, model):
    assert main(["fine-tune", str(cases), "--model", model, "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "finds lungs, not lesions: it can't be used as a lesion model. Choose a lesion model" in said
    assert not list(tmp_path.glob("run/*.safetensors"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "Name a configuration"),
        (["train", "tmi-3/ful", "-o", "x"], "did you mean tmi-3/full?"),
        (["train", "tmi-3/dice"], "Name the folder of the run with -o"),
        (["train", "tmi-3/dice", "--set", "run.step=1", "los.name=x", "--print-config"], "has 2 errors"),
        (["train", "tmi-3/dice", "-o", "x", "--callback", "json:JSONDecoder"], "is no callback"),
        (["train", "tmi-3/dice", "-o", "x", "--callback", "no_such_module:X"], "can't be imported"),
        (["train", "tmi-3/dice", "-o", "x", "--callback", "json"], "is no import path"),
    ],
)
def test_what_is_wrong_ends_with_status_2(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_lists_name_what_a_configuration_may(capsys):
    assert main(["train", "--list"]) == 0
    text = capsys.readouterr().out
    for words in (
        "losses:",
        "noise_robust_dice",
        "(gamma=1.5",
        "caresunet",
        "ranger",
        "one_cycle",
        "tmi-3/full",
    ):
        assert words in text
    assert "Rotation in the plane of the slice. (degrees=10.0)" in text
    assert main(["train", "--list", "optimizers"]) == 0
    assert capsys.readouterr().out.split() == ["optimizers:", "adam", "sgd", "ranger"]


# ---- folds ----------------------------------------------------------------------------------------------------------


def test_folds_judge_every_patient_once_and_end_with_a_table(cases, tmp_path, capsys):
    (tmp_path / "my.toml").write_text(tiny_config(cases, run={"steps": 2, "validation_interval": 2}).to_toml())
    words = ["train", str(tmp_path / "my.toml"), "-o", str(tmp_path / "runs"), "--folds", "2", "--quiet"]
    assert main(words) == 0
    table = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "runs" / "folds.csv").open()))
    assert [row["case"] for row in rows] == ["anna", "bert", "cleo", "dora"]
    assert sorted(row["fold"] for row in rows) == ["1", "1", "2", "2"]
    for fold in (1, 2):
        run = tmp_path / "runs" / f"fold-{fold}"
        validation = json.loads((run / "result.json").read_text())["validation"]["cases"]
        assert set(validation) == {row["case"] for row in rows if row["fold"] == str(fold)}
        sides = json.loads((run / "split.json").read_text())["patients"]
        assert {name for name, side in sides.items() if side == "validation"} == set(validation)
        for case, values in validation.items():
            (row,) = [row for row in rows if row["case"] == case]
            assert float(row["dice"]) == pytest.approx(values["dice"])
    assert (tmp_path / "runs" / "folds.md").read_text() == table
    assert "| case | fold | Dice | RVE | HD95 [mm] |" in table and table.splitlines()[-1].startswith("| mean |")
    mean = np.mean([float(row["dice"]) for row in rows])
    assert f"{mean:.3f} (4 cases)" in table
    # with --resume a finished fold is not trained again
    before = (tmp_path / "runs" / "fold-1" / "state.pt").stat().st_mtime_ns
    assert main([*words, "--resume", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (tmp_path / "runs" / "fold-1" / "state.pt").stat().st_mtime_ns == before
    assert found["means"]["dice"] == {"mean": pytest.approx(mean), "counted": 4, "cases": 4}


def test_means_of_folds_say_what_they_count():
    from COVIDLesionSegLib.learning.several import CrossValidation

    rows = (
        {"case": "a", "fold": 1, "dice": 0.0, "rve": 1.0, "hd95_mm": math.inf},
        {"case": "b", "fold": 2, "dice": 1.0, "rve": 0.0, "hd95_mm": 3.0},
        {"case": "c", "fold": 2, "false_ml": 0.25},
    )
    table = CrossValidation((), rows).table()
    assert (
        table.splitlines()[-1] == "| mean | | 0.500 (2 cases) | 0.500 (2 cases) | 3.0 (1 of 2 cases) | 0.25 (1 cases) |"
    )
    assert "| a | 1 | 0.000 | 1.000 | inf |  |" in table


@pytest.mark.parametrize(("folds", "words"), [(1, "no cross-validation"), (5, "5 folds need as many patients")])
def test_folds_that_can_not_be(cases, tmp_path, folds, words):
    with pytest.raises(InputError, match=words):
        cross_validate(tiny_config(cases), tmp_path, tmp_path, folds)


# ---- a run taken up elsewhere ---------------------------------------------------------------------------------------


def test_a_run_goes_on_at_another_place_with_other_intervals_and_says_so(cases, a_run, tmp_path):
    """Data, split and cache under other names, other intervals: the numbers are those of a run that stayed."""
    shutil.copytree(cases, tmp_path / "moved")
    shutil.copytree(a_run, tmp_path / "there")
    moved = tiny_config(
        tmp_path / "moved",
        data={"cache": "cache", "split": "run/../split.json"},
        run={"checkpoint_interval": 7, "validation_interval": 3, "patience": 99, "workers": 2},
    )
    Trainer(moved, tmp_path / "there" / "run", tmp_path / "there").run(resume=True)
    Trainer(tiny_config(cases), tmp_path / "stayed", tmp_path).run()
    states = [torch.load(tmp_path / p / "state.pt", weights_only=True)["network"] for p in ("there/run", "stayed")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    (entry,) = [entry for entry in read_log(tmp_path / "there" / "run") if entry["kind"] == "resumed"]
    assert entry["step"] == 4
    told = {note.split()[2].rstrip(":") for note in entry["notes"]}
    assert told == {
        *("data.cases", "data.cache", "data.split", "run.checkpoint_interval", "run.validation_interval"),
        *("run.patience", "run.workers"),
    }
    assert json.loads((tmp_path / "there" / "run" / "result.json").read_text())["resumed"] == [entry]


def test_another_machine_is_refused_where_the_same_bits_are_promised_and_noted_where_not(cases, a_run, tmp_path):
    shutil.copytree(a_run, tmp_path / "there")
    state = torch.load(tmp_path / "there" / "run" / "state.pt", weights_only=True)
    state["environment"]["torch"] = "0.1"
    torch.save(state, tmp_path / "there" / "run" / "state.pt")
    run = tmp_path / "there" / "run"
    with pytest.raises(InputError, match=r"not give the same bits \(torch: 0.1 -> .*run.deterministic = false"):
        Trainer(tiny_config(cases), run, tmp_path / "there").run(resume=True)
    # a GPU promises nothing: a run that began on one goes on here
    state["environment"]["device"] = "cuda"
    torch.save(state, run / "state.pt")
    Trainer(tiny_config(cases), run, tmp_path / "there").run(resume=True)
    (entry,) = [entry for entry in read_log(run) if entry["kind"] == "resumed"]
    assert any("device: cuda -> cpu" in note for note in entry["notes"])


def test_another_base_model_is_another_run(cases, a_run, tmp_path):
    base = shutil.copy(a_run / "run" / "best.safetensors", tmp_path / "base.safetensors")
    config = tiny_config(cases, network={"base_model": str(base), "arguments": {}}, run={"steps": 2})
    Trainer(config, tmp_path / "run", tmp_path).run()
    # the same weights under another name are the same base
    moved = shutil.copy(base, tmp_path / "moved.safetensors")
    longer = replace(config, run=replace(config.run, steps=3))
    Trainer(replace(longer, network=replace(config.network, base_model=str(moved))), tmp_path / "run", tmp_path).run(
        True
    )
    Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "other", tmp_path).run()
    other = replace(config.network, base_model=str(tmp_path / "other" / "best.safetensors"))
    with pytest.raises(InputError, match="data differ from those that the run began with"):
        Trainer(replace(longer, network=other), tmp_path / "run", tmp_path).run(resume=True)


# ---- followers ------------------------------------------------------------------------------------------------------


class Follower(TrainingCallback):
    """Remembers what it is told; what docs/extending.md shows is made like it."""

    def __init__(self):
        self.told = []

    def on_start(self, folder, config):
        self.told.append(("start", folder, config["run"]["steps"]))

    def on_step(self, step, figures):
        self.told.append(("step", step, figures))

    def on_judgment(self, step, stage, judgments, images):
        self.told.append((stage, step, judgments, images))

    def on_end(self, result):
        self.told.append(("end", result))


def test_a_follower_sees_steps_judgments_and_the_worst_slices(cases, tmp_path):
    follower = Follower()
    config = tiny_config(cases, data={"selection_patients": ("cleo",)})
    result = Trainer(config, tmp_path / "run", tmp_path, callbacks=[follower]).run()
    assert [entry[0] for entry in follower.told] == [
        *("start", *["step"] * 4, "selection", *["step"] * 4, "selection", "validation", "end")
    ]
    steps = [entry for entry in follower.told if entry[0] == "step"]
    assert [entry[1] for entry in steps] == list(range(8))
    assert all(math.isfinite(value) for entry in steps for value in entry[2].values())
    # beta is not known yet
    assert "beta" not in steps[0][2] and "beta" in steps[-1][2]
    _, step, judgments, images = follower.told[-2]
    assert step == 8 and judgments[result.chosen] == result.validation.to_dict()
    assert set(judgments[result.chosen]["cases"]["dora"]) == {"dice", "rve", "hd95_mm"}
    assert images and all(title.startswith("dora slice ") for title in images)
    assert follower.told[-1][1] == json.loads((tmp_path / "run" / "result.json").read_text())


def test_the_worst_slices_are_shown_with_both_borders(cases, tmp_path):
    trainer = Trainer(tiny_config(cases), tmp_path / "run", tmp_path)
    store = trainer.data.store
    worst = WorstSlices(store, (1500.0, -650.0), count=3)
    stored = store.cases["dora"]
    label = store.label("dora").astype(np.float32)
    # the network misses slice 2, moves the lesion of slice 3 by two columns, and finds the others
    label[2] = 0
    label[3] = np.roll(label[3], 2, axis=1)
    worst.add("dora", label)
    images = worst.images(Ranks())
    assert list(images)[:2] == ["dora slice 2", "dora slice 3"] and len(images) == 3
    missed, moved = images["dora slice 2"], images["dora slice 3"]
    assert missed.shape == (*stored.shape[1:], 3) and missed.dtype == np.uint8
    # the border of 10 x 9 pixels; the rest is gray
    green, magenta = (0, 255, 0), (255, 0, 255)
    assert [(missed == color).all(axis=2).sum() for color in (green, magenta)] == [34, 0]
    assert [(moved == color).all(axis=2).sum() for color in (green, magenta)] == [34 - 14, 34]
    gray = ~((missed == green).all(axis=2))
    assert (missed[gray].min(axis=1) == missed[gray].max(axis=1)).all()


def test_a_follower_that_fails_is_named_and_left_behind(cases, tmp_path, caplog):
    class Broken(Follower):
        def on_step(self, step, figures):
            raise ConnectionError("no server")

    broken, follower = Broken(), Follower()
    Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "run", tmp_path, callbacks=[broken, follower]).run()
    assert [entry[0] for entry in broken.told] == ["start"]
    assert [entry[0] for entry in follower.told] == ["start", "step", "step", "validation", "end"]
    (record,) = [r for r in caplog.records if "Broken" in r.message]
    assert "on_step (ConnectionError: no server); the training goes on without it" in record.message


def test_tensorboard_gets_scalars_of_every_case_and_images(cases, tmp_path, monkeypatch):
    """The package is not installed here: a stand-in with the writer's own names takes what it would get."""
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(("open", folder))

        def add_scalar(self, tag, value, step):
            written.append((tag, step))
            assert isinstance(value, int | float)

        def add_image(self, tag, image, step, dataformats):
            assert dataformats == "HWC" and image.ndim == 3
            written.append((tag, step))

        def flush(self): ...

        def close(self):
            written.append(("close", None))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    config = tiny_config(cases, data={"selection_patients": ("cleo",)}, run={"steps": 4})
    result = Trainer(config, tmp_path / "run", tmp_path).run()
    assert written[0] == ("open", str(tmp_path / "run")) and written[-1] == ("close", None)
    for tag in (
        *("train/loss", "selection/dice/student", "selection/dice/teacher", "selection_cases/cleo/dice/student"),
        *(f"validation_cases/dora/{name}/{result.chosen}" for name in ("dice", "rve")),
    ):
        assert tag in {entry[0] for entry in written}, tag
    assert any(str(entry[0]).startswith("validation/dora slice ") for entry in written)


def test_the_follower_that_the_docs_show_feeds_mlflow(cases, tmp_path, monkeypatch):
    """The example itself, with a stand-in for the package that keeps its functions' names and arguments."""
    told = []
    mlflow = types.ModuleType("mlflow")
    mlflow.log_params = lambda params: told.append(("params", params["run.steps"], params["loss.name"]))
    mlflow.log_metrics = lambda metrics, step: told.append((tuple(metrics), step))
    mlflow.log_image = lambda image, artifact_file: told.append((artifact_file, image.shape[2]))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    (example,) = [block for block in page.split("```python\n")[1:] if block.startswith("import mlflow")]
    code = example.split("```")[0]
    assert len([line for line in code.splitlines() if line.startswith("    ")]) <= 10
    names: dict = {}
    exec(code, names)
    config = tiny_config(cases, run={"steps": 2, "validation_interval": 2})
    Trainer(config, tmp_path / "run", tmp_path, callbacks=[names["MLflow"]()]).run()
    assert told[0] == ("params", 2, "noise_robust_dice")
    assert ("student_loss" in told[1][0], told[1][1], told[2][1]) == (True, 0, 1)
    assert (("validation_dice_teacher",), 2) in told
    assert any(str(entry[0]).startswith("validation-2-dora slice ") and entry[1] == 3 for entry in told)


def test_a_follower_is_named_on_the_command_line(cases, tmp_path, monkeypatch):
    (tmp_path / "my_followers.py").write_text(
        "from COVIDLesionSegLib.learning import TrainingCallback\n\n"
        "class Touch(TrainingCallback):\n"
        "    def on_end(self, result):\n"
        f"        open({str(tmp_path / 'touched')!r}, 'w').write(result['chosen'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my.toml").write_text(tiny_config(cases, run={"steps": 1}).to_toml())
    words = ["train", str(tmp_path / "my.toml"), "-o", str(tmp_path / "run"), "--quiet", "--resume"]
    # --resume starts where nothing is
    assert main([*words, "--callback", "my_followers:Touch"]) == 0
    assert (tmp_path / "touched").read_text() == "teacher"


def test_what_an_import_path_names_must_be_of_its_kind():
    assert import_class("COVIDLesionSegLib.learning.losses:DiceLoss", torch.nn.Module, "loss") is DiceLoss
    for path, words in (
        ("os:system", "is no loss: a class derived from torch.nn.modules.module.Module"),
        ("COVIDLesionSegLib.learning.losses:Nothing", "can't be imported"),
        ("a/b:c", "is no import path"),
    ):
        with pytest.raises(InputError, match=words):
            import_class(path, torch.nn.Module, "loss")


# ---- the step: batches ahead, float16, the hold on the base model -------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_come_in_order_whoever_prepares_them(workers):
    assert list(ahead(lambda step: step * 2, range(3, 20), workers)) == list(range(6, 40, 2))
    assert list(ahead(lambda step: step, range(0), workers)) == []

    def fails(step):
        if step == 4:
            raise InputError("step 4")
        return step

    seen = []
    with pytest.raises(InputError, match="step 4"):
        seen.extend(step for step in ahead(fails, range(10), workers))
    early = ahead(lambda step: step, range(100), workers)
    assert next(early) == 0
    early.close()


def a_step(autocast=None, **tables):
    torch.manual_seed(0)
    config = tiny_config("unused", optimizer={"learning_rate": 1e-3}, **tables)
    network = create_network("coplenet", channels=[2, 4, 8, 16, 32], dropout=[0] * 5)
    return TrainingStep(network, config, torch.device("cpu"), autocast)


def a_batch(count=4):
    images = np.random.default_rng(0).random((count, 1, 32, 32), dtype=np.float32)
    return images, (images[:, 0] > 0.7).astype(np.uint8), range(count)


def test_float16_falls_back_to_a_smaller_scale_and_then_to_float32():
    step = a_step(torch.float16)
    # a scale by which every gradient overflows
    step._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=0.5)
    before = {name: value.clone() for name, value in step.network.state_dict().items()}
    entry = step.run(0, *a_batch()).entry
    assert entry["overflows"] == step_module._FLOAT16_ATTEMPTS
    assert math.isfinite(entry["student_loss"])
    after = step.network.state_dict()
    assert not torch.equal(before["output.weight"], after["output.weight"])
    assert all(torch.isfinite(value).all() for value in after.values())
    # each attempt that failed left the batch norms as they were: one update of them
    assert int(after["input.first.norm.num_batches_tracked"]) == 1
    # the scale has become smaller; one at which nothing overflows needs no second attempt
    assert step._scaler.get_scale() == 2.0**37
    step._scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert step.run(1, *a_batch()).entry["overflows"] == 0


def test_a_loss_that_overflows_in_float16_is_computed_in_float32(monkeypatch):
    step = a_step(torch.float16)
    seen, forward = [], step.network.forward

    def overflowing(x):
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(x) * (math.inf if seen[-1] else 1.0)

    step.network.forward = overflowing
    entry = step.run(0, *a_batch()).entry
    assert seen == [True, False] and entry["overflows"] == 1 and math.isfinite(entry["loss"])
    # what is not finite in float32 either ends the training
    step.network.forward = lambda x: forward(x) * math.nan
    with pytest.raises(DivergedError, match="loss is not finite at step 1"):
        step.run(1, *a_batch())


@pytest.mark.parametrize("name", ["weights", "predictions"])
def test_regularization_holds_a_training_to_its_base(name):
    """The further it may go the further it goes; what it is held by is what grows less."""
    distances = []
    for weight in (0.0, 100.0):
        step = a_step(
            regularization={"name": name, "weight": weight}, ensembling={"enabled": False}, network={"base_model": "x"}
        )
        begun = {key: value.detach().clone() for key, value in step.network.named_parameters()}
        entries = [step.run(number, *a_batch()).entry for number in range(12)]
        assert entries[0]["distance_to_base"] == pytest.approx(0, abs=1e-6)
        far = (
            sum(
                float((value.detach() - begun[key].detach()).square().sum())
                for key, value in step.network.named_parameters()
            )
            / 2
        )
        distances.append((entries[-1]["distance_to_base"], far))
        if weight == 0:
            # it is told, and counts for nothing
            assert entries[-1]["loss"] == pytest.approx(entries[-1]["student_loss"])
        else:
            told = entries[-1]["student_loss"] + weight * entries[-1]["distance_to_base"]
            assert entries[-1]["loss"] == pytest.approx(told, rel=1e-5)
    free, held = distances
    assert held[0] < free[0] / 3
    assert held[1] < free[1] or name == "predictions"


def test_regularization_needs_a_base(cases, tmp_path, a_run):
    config = tiny_config(cases, regularization={"name": "weights"})
    with pytest.raises(InputError, match="there is no base model to hold to"):
        Trainer(config, tmp_path / "run", tmp_path)
    tuned = replace(config, run=replace(config.run, steps=3), regularization=RegularizationSettings("predictions", 0.5))
    model = fine_tune(a_run / "run" / "best.safetensors", cases, tuned, tmp_path / "tuned")
    assert model.card.metrics["config"]["regularization"] == {
        "name": "predictions",
        "weight": 0.5,
        "base_share": 0.0,
    }
    steps = [entry for entry in read_log(tmp_path / "tuned") if entry["kind"] == "step"]
    assert all(entry["distance_to_base"] is not None for entry in steps)
    assert load_checkpoint(tmp_path / "tuned" / "best.safetensors").card.metrics["validation"]["counted"] == 1


def test_a_base_is_kept_where_it_can_not_be_replayed(cases, a_run, tmp_path):
    def share(data=None, network=None, base_share=-1.0):
        tables = {"data": data or {}, "network": network or {}, "run": {"pseudo_batch_size": 2 if data else 0}}
        return TrainingConfig.from_dict({**tables, "regularization": {"base_share": base_share}}).base_share

    base = {"base_model": "coplenet-ctseg"}
    assert (share(), share(network=base), share({"pseudo_cases": "replay.csv"}, base)) == (0.0, 0.85, 0.0)
    # what fine-tune does by itself, and train does not
    assert default_config().regularization.base_share == -1 and TrainingConfig().regularization.base_share == 0
    assert (share(network=base, base_share=0.0), share(network=base, base_share=0.25)) == (0.0, 0.25)
    # the model is the average of the base and of the network that was trained
    file = a_run / "run" / "best.safetensors"
    config = tiny_config(cases, ensembling={"enabled": False}, run={"steps": 3}, regularization={"base_share": 0.25})
    model = fine_tune(file, cases, config, tmp_path / "tuned")
    begun = load_checkpoint(file).network.state_dict()
    trained = torch.load(tmp_path / "tuned" / "state.pt", weights_only=True)["network"]
    for name, value in model.network.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, 0.25 * begun[name] + 0.75 * trained[name], atol=1e-6), name
    assert not torch.allclose(trained["output.weight"], begun["output.weight"], atol=1e-4)
