"""The trainer learns, stops, resumes to the same bits, and says what is wrong."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from training_fixtures import tiny_config, write_cases

from COVIDLesionSegLib.cli.train import describe
from COVIDLesionSegLib.errors import CancelledError, InputError, OutputError, ReadError
from COVIDLesionSegLib.learning import Trainer, fine_tune
from COVIDLesionSegLib.learning.data import load_split
from COVIDLesionSegLib.learning.log import read_log
from COVIDLesionSegLib.learning.trainer import DivergedError
from COVIDLesionSegLib.models import load_checkpoint
from COVIDLesionSegLib.models.card import rewrite_card


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("cases"))


def weights(folder):
    state = torch.load(folder / "state.pt", weights_only=True)
    return state["network"], state["ensembling"]["teacher"] if state["ensembling"] else {}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_learns(cases, tmp_path):
    config = tiny_config(
        cases,
        network={"arguments": {"channels": [4, 8, 16, 32, 64], "dropout": [0] * 5}},
        optimizer={"learning_rate": 3e-3},
        run={"steps": 80, "validation_interval": 20, "batch_size": 8},
        ensembling={"enabled": False},
    )
    result = Trainer(config, tmp_path / "run", tmp_path).run()
    assert result.best.dice > 0.8
    assert result.card.metrics["validation"]["cases"]["dora"]["dice"] == pytest.approx(result.best.dice)
    loaded = load_checkpoint(result.model)
    assert loaded.card.preprocessing.lung_crop_margin == 2
    # the frozen split holds the hashes and keeps the patient out
    split = load_split(tmp_path / "split.json")
    assert split.sets == {"anna": "train", "bert": "train", "cleo": "train", "dora": "validation"}
    assert set(split.hashes["anna"]) == {"image", "lesion", "lungs"}


def test_it_leaves_a_log_that_says_what_the_framework_did(cases, tmp_path):
    Trainer(tiny_config(cases), tmp_path / "run", tmp_path).run()
    entries = read_log(tmp_path / "run")
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert [entry["step"] for entry in steps] == list(range(8))
    assert {"student_loss", "teacher_loss", "lambda", "alpha", "beta", "frozen_fraction", "waiting_seconds"} <= set(
        steps[5]
    )
    assert steps[0]["beta"] is None
    assert steps[5]["lambda"] in (pytest.approx(0.1), pytest.approx(0.01))
    assert [e["step"] for e in entries if e["kind"] == "validation"] == [4, 8]
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert len(rows) == 8
    doubtful = list(csv.DictReader((tmp_path / "run" / "doubtful_labels.csv").open()))
    assert [float(row["score"]) for row in doubtful] == sorted((float(row["score"]) for row in doubtful), reverse=True)
    assert "visits" in doubtful[0]["reason"]


@pytest.mark.parametrize(
    "tables", [{}, {"optimizer": {"name": "ranger", "learning_rate": 1e-2}}], ids=["adam", "ranger"]
)
def test_interrupted_and_resumed_it_ends_with_the_same_bits(cases, tmp_path, tables):
    config = tiny_config(cases, **tables)
    Trainer(config, tmp_path / "whole", tmp_path).run()

    calls = []
    with pytest.raises(CancelledError, match="--resume"):
        Trainer(config, tmp_path / "parts", tmp_path).run(cancelled=lambda: calls.append(1) or len(calls) > 12)
    Trainer(config, tmp_path / "parts", tmp_path).run(resume=True)
    for one, other in zip(weights(tmp_path / "whole"), weights(tmp_path / "parts"), strict=True):
        assert equal(one, other)
    assert [e["step"] for e in read_log(tmp_path / "parts") if e["kind"] == "step"] == list(range(8))
    best = [load_checkpoint(tmp_path / name / "best.safetensors") for name in ("whole", "parts")]
    assert best[0].card.weights_sha256 == best[1].card.weights_sha256
    assert (tmp_path / "whole/doubtful_labels.csv").read_text() == (tmp_path / "parts/doubtful_labels.csv").read_text()


RUN = """
import sys
sys.path[:0] = [{library!r}, {tests!r}]
from pathlib import Path
from training_fixtures import tiny_config
from COVIDLesionSegLib.learning import Trainer
Trainer(tiny_config(Path({cases!r}), run={{"steps": 12}}), Path({folder!r}), Path({base!r})).run(resume=True)
"""


def start(cases, folder, base):
    library, tests = REPOSITORY / "COVIDLesionSeg", REPOSITORY / "Testing" / "Python"
    code = RUN.format(library=str(library), tests=str(tests), cases=str(cases), folder=str(folder), base=str(base))
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("moment", [*range(2), *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 20))])
def test_killed_at_a_random_moment_and_resumed_it_ends_with_the_same_bits(cases, tmp_path, tmp_path_factory, moment):
    base = tmp_path_factory.getbasetemp() / "whole"
    if not (base / "run" / "result.json").exists():
        assert start(cases, base / "run", base).wait() == 0
    seconds = np.random.default_rng(moment).uniform(0, 2.5)
    process = start(cases, tmp_path / "run", tmp_path)
    while not (tmp_path / "run" / "log.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(cases, tmp_path / "run", tmp_path).wait() == 0
    for one, other in zip(weights(base / "run"), weights(tmp_path / "run"), strict=True):
        assert equal(one, other)
    left = {path.name for path in (tmp_path / "run").rglob("*") if ".part." in path.name}
    assert not left or seconds < 2.5, left


def test_sigterm_ends_cleanly_and_can_be_resumed(cases, tmp_path):
    process = start(cases, tmp_path / "run", tmp_path)
    while not read_log(tmp_path / "run"):
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) != 0
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert 0 < state["step"] <= 12
    assert start(cases, tmp_path / "run", tmp_path).wait() == 0


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"loss": {"name": "dice"}}, "loss.name"),
        ({"run": {"seed": 5}}, "run.seed"),
        ({"run": {"threads": 2}}, "run.threads"),
    ],
)
def test_a_resumed_run_must_be_the_same_run(cases, tmp_path, tables, words):
    Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "run", tmp_path).run()
    with pytest.raises(InputError, match=words):
        Trainer(tiny_config(cases, **tables), tmp_path / "run", tmp_path).run(resume=True)


def test_a_run_can_be_extended(cases, tmp_path):
    Trainer(tiny_config(cases), tmp_path / "whole", tmp_path).run()
    Trainer(tiny_config(cases, run={"steps": 4}), tmp_path / "longer", tmp_path).run()
    Trainer(tiny_config(cases), tmp_path / "longer", tmp_path).run(resume=True)
    assert equal(weights(tmp_path / "whole")[0], weights(tmp_path / "longer")[0])


def test_resuming_a_finished_run_keeps_its_log(cases, tmp_path):
    Trainer(tiny_config(cases), tmp_path / "run", tmp_path).run()
    before = (tmp_path / "run" / "log.jsonl").read_text()
    Trainer(tiny_config(cases), tmp_path / "run", tmp_path).run(resume=True)
    assert '"validation"' in before.splitlines()[-1]
    assert (tmp_path / "run" / "log.jsonl").read_text() == before


def test_changed_data_are_refused(tmp_path):
    cases = write_cases(tmp_path / "cases")
    Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "run", tmp_path).run()
    write_cases(tmp_path / "cases", ("anna",), slices=7)
    with pytest.raises(InputError, match="case anna changed since the split was frozen"):
        Trainer(tiny_config(cases), tmp_path / "run", tmp_path).run(resume=True)


def test_new_patients_are_added_to_training(tmp_path):
    cases = write_cases(tmp_path / "cases")
    Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "run", tmp_path).run()
    write_cases(tmp_path / "cases", ("anna", "bert", "cleo", "dora", "emil"))
    Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "next", tmp_path).run()
    assert load_split(tmp_path / "split.json").sets["emil"] == "train"
    with pytest.raises(InputError, match="training data differ"):
        Trainer(tiny_config(cases), tmp_path / "run", tmp_path).run(resume=True)


def test_a_loss_that_is_not_finite_stops_with_a_diagnosis(cases, tmp_path):
    config = tiny_config(cases, optimizer={"learning_rate": 1e30}, run={"validation_interval": 100})
    with pytest.raises(DivergedError, match="not finite at step"):
        Trainer(config, tmp_path / "run", tmp_path).run()
    if (tmp_path / "run" / "state.pt").exists():
        state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
        assert state["step"] <= 8


def test_an_existing_run_is_not_overwritten(cases, tmp_path):
    Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "run", tmp_path).run()
    with pytest.raises(InputError, match="holds a training already"):
        Trainer(tiny_config(cases), tmp_path / "run", tmp_path).run()


def test_a_damaged_state_is_a_sentence(cases, tmp_path):
    Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "run", tmp_path).run()
    (tmp_path / "run" / "state.pt").write_bytes(b"PK not a state")
    with pytest.raises(ReadError, match="can't be read"):
        Trainer(tiny_config(cases), tmp_path / "run", tmp_path).run(resume=True)


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as only POSIX can")
def test_a_full_disk_keeps_the_last_good_state(cases, tmp_path):
    import resource

    Trainer(tiny_config(cases, run={"steps": 4}), tmp_path / "run", tmp_path).run()
    good = (tmp_path / "run" / "state.pt").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, before[1]))
    try:
        with pytest.raises(OutputError, match=r"state\.pt could not be written"):
            Trainer(tiny_config(cases), tmp_path / "run", tmp_path).run(resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "run" / "state.pt").read_bytes() == good


def test_a_run_that_is_resumed_with_no_step_left_and_no_judgment_judges(cases, tmp_path):
    config = tiny_config(cases, run={"steps": 40, "validation_interval": 40})
    asked = iter(range(100))
    with pytest.raises(CancelledError, match="Stopped at step 6"):
        Trainer(config, tmp_path / "run", tmp_path).run(cancelled=lambda: next(asked) >= 10)
    shorter = replace(config, run=replace(config.run, steps=4))
    result = Trainer(shorter, tmp_path / "run", tmp_path).run(resume=True)
    assert (result.best_step, result.best.counted) == (6, 1) and result.model.exists()


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"run": {"batch_size": 500}}, "only 18 slices"),
        ({"data": {"validation_patients": ("zoe",)}}, "zoe are not among"),
        ({"data": {"cases": "nowhere"}}, "not there"),
        ({"data": {"cases": ""}}, "names no training data"),
        ({"network": {"arguments": {"chanels": 3}}}, "chanels"),
        ({"loss": {"arguments": {"gama": 3}}}, "gama"),
    ],
)
def test_bad_settings_are_sentences(cases, tmp_path, tables, words):
    with pytest.raises((InputError, ReadError), match=words):
        Trainer(tiny_config(cases, **tables), tmp_path / "run", tmp_path).run()


def test_early_stop(cases, tmp_path):
    config = tiny_config(
        cases, run={"steps": 40, "validation_interval": 2, "patience": 4}, optimizer={"learning_rate": 1e-12}
    )
    result = Trainer(config, tmp_path / "run", tmp_path).run()
    assert result.stopped == "no improvement"
    assert result.steps < 40


def test_where_nobody_validates_everyone_trains_and_the_last_step_is_kept(cases, tmp_path):
    data = {"validation_share": 0.0, "validation_patients": ()}
    config = tiny_config(cases, data=data, run={"steps": 6, "validation_interval": 2})
    result = Trainer(config, tmp_path / "run", tmp_path).run()
    assert set(load_split(tmp_path / "split.json").sets.values()) == {"train"}
    assert (result.best_step, result.best.counted) == (6, 0)
    assert describe(result.best.to_dict()) == "nobody judged, so no figure"
    assert not [entry for entry in read_log(tmp_path / "run") if entry["kind"] == "validation"]
    teacher = weights(tmp_path / "run")[1]
    model = load_checkpoint(result.model)
    assert model.card.metrics["chosen"] == "teacher"
    assert equal({key: value for key, value in model.network.state_dict().items() if key in teacher}, teacher)
    # a longer run replaces it; the frozen split is still one in which nobody judges
    longer = replace(config, run=replace(config.run, steps=8))
    assert Trainer(longer, tmp_path / "run", tmp_path).run(resume=True).best_step == 8
    with pytest.raises(InputError, match="leaves no case for validation"):
        Trainer(tiny_config(cases), tmp_path / "other", tmp_path).run()


def test_reweighting_trains(cases, tmp_path):
    config = tiny_config(
        cases, ensembling={"enabled": False}, reweighting={"enabled": True, "warm_up": 1, "percentile": 10.0}
    )
    Trainer(config, tmp_path / "run", tmp_path).run()
    kept = [entry["kept"] for entry in read_log(tmp_path / "run") if entry["kind"] == "step"]
    assert kept[0] == 4
    assert min(kept) < 4


def test_a_step_that_keeps_no_slice_teaches_nothing_and_goes_on(cases, tmp_path):
    config = tiny_config(
        cases,
        run={"batch_size": 1},
        loss={"name": "cross_entropy"},
        ensembling={"enabled": False},
        reweighting={"enabled": True, "warm_up": 1, "percentile": 1.0},
    )
    result = Trainer(config, tmp_path / "run", tmp_path).run()
    steps = [entry for entry in read_log(tmp_path / "run") if entry["kind"] == "step"]
    assert result.steps == len(steps) == 8
    assert 0 in [entry["kept"] for entry in steps]
    assert all(np.isfinite(entry["loss"]) for entry in steps)


def test_pseudo_labels_of_those_who_judge_are_refused_and_slices_left_out_are_never_drawn(cases, tmp_path):
    manifest, list_file = tmp_path / "pseudo.csv", tmp_path / "excluded.csv"
    header = "id,patient,ct,lesion,lungs\n"

    def row(name, patient, files):
        return (
            f"{name},{patient},{cases / files}_ct.nii.gz,{cases / files}_lesion.nii.gz,{cases / files}_lungs.nii.gz\n"
        )

    config = tiny_config(cases, data={"pseudo_cases": str(manifest)}, run={"steps": 2, "pseudo_batch_size": 2})
    for judge in (row("x", "dora", "anna"), row("x", "somebody", "dora")):
        manifest.write_text(header + row("a", "anna", "anna") + judge)
        with pytest.raises(InputError, match="case x belongs to a validation patient"):
            Trainer(config, tmp_path / "refused", tmp_path).run()
    manifest.write_text(header + row("a", "anna", "anna"))
    whole = Trainer(config, tmp_path / "run", tmp_path)
    list_file.write_text("case,slice\na,1\na,2\nb,1\n")
    part = Trainer(
        replace(config, data=replace(config.data, excluded_slices=str(list_file))), tmp_path / "run", tmp_path
    )
    drawn = [{place for step in range(20) for place in t._data().pseudo.chosen(step)} for t in (whole, part)]
    assert drawn[0] - drawn[1] == {("a", 1), ("a", 2)}
    assert whole._data().sha256 != part._data().sha256


def test_label_noise_is_measured_and_stays_out_of_validation(cases, tmp_path):
    clean = Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "clean", tmp_path)
    clean.run()
    config = tiny_config(cases, run={"steps": 2}, label_noise={"kind": "dilation", "strength": 2.0})
    result = Trainer(config, tmp_path / "run", tmp_path).run()
    noise = result.card.metrics["label_noise"]
    assert {row["case"] for row in noise} == {"anna", "bert", "cleo"}
    assert all(0.3 < row["dice_to_clean"] <= 1 for row in noise)
    assert min(row["dice_to_clean"] for row in noise) < 1


def test_fine_tuning_tells_before_and_after(cases, tmp_path):
    first = Trainer(tiny_config(cases, run={"steps": 4}), tmp_path / "first", tmp_path).run()
    rewrite_card(first.model, replace(first.card, keep_inside_lungs_mm=7.0, smooth_across_slices_mm=1.0))
    config = tiny_config(cases, run={"steps": 40, "validation_interval": 20})
    model = fine_tune(first.model, cases, config, tmp_path / "tuned")
    assert (model.card.keep_inside_lungs_mm, model.card.smooth_across_slices_mm) == (7.0, 1.0)
    metrics = model.card.metrics
    assert metrics["base"]["cases"].keys() == metrics["validation"]["cases"].keys() == {"dora"}
    assert metrics["validation"]["dice"] > metrics["base"]["dice"]
    assert [step for step, _ in metrics["curves"]["teacher_dice"]] == [20, 40]
    assert json.loads((tmp_path / "tuned" / "result.json").read_text())["best"]["dice"] == metrics["validation"]["dice"]


def test_a_fine_tuned_model_sees_slices_as_its_base_does(cases, tmp_path):
    config = tiny_config(cases, run={"steps": 2}, data={"resize": (48, 32), "margin": 3})
    first = Trainer(config, tmp_path / "first", tmp_path).run()
    assert first.card.preprocessing.resize == (48, 32)
    tuned = fine_tune(first.model, cases, tiny_config(cases, run={"steps": 2}), tmp_path / "tuned")
    assert tuned.card.preprocessing == first.card.preprocessing
    log = (tmp_path / "tuned" / "config.toml").read_text()
    assert "resize = [48, 32]" in log and "margin = 3" in log


def test_a_base_model_of_another_network_is_refused(cases, tmp_path):
    first = Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "first", tmp_path).run()
    config = tiny_config(cases, network={"name": "caresunet", "arguments": {}, "base_model": str(first.model)})
    with pytest.raises(InputError, match=r"coplenet|COPLE"):
        Trainer(config, tmp_path / "run", tmp_path).run()
