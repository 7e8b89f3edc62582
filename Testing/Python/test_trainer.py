"""The trainer learns, stops, resumes to the same bits, and says what is wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import REPOSITORY
from training_fixtures import tiny_config, write_cases

from COVIDLesionSegLib.cli.train import describe
from COVIDLesionSegLib.errors import CancelledError, InputError, OutputError, ReadError
from COVIDLesionSegLib.learning import Trainer, fine_tune
from COVIDLesionSegLib.learning import step as step_module
from COVIDLesionSegLib.learning.data import TrainingCase, load_split
from COVIDLesionSegLib.learning.log import read_log
from COVIDLesionSegLib.learning.randomness import Purpose
from COVIDLesionSegLib.learning.trainer import DivergedError
from COVIDLesionSegLib.learning.training_data import selection_patients
from COVIDLesionSegLib.learning.validation import with_clean_statistics
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
    assert result.validation.dice > 0.8
    assert result.card.metrics["validation"]["cases"]["dora"]["dice"] == pytest.approx(result.validation.dice)
    loaded = load_checkpoint(result.model)
    assert loaded.card.preprocessing.lung_crop_margin == 2
    # the frozen split holds the hashes and keeps the patient out
    split = load_split(tmp_path / "split.json")
    assert split.sets == {"anna": "train", "bert": "train", "cleo": "train", "dora": "validation"}
    assert set(split.hashes["anna"]) == {"image", "lesion", "lungs"}


def test_it_leaves_a_log_that_says_what_the_framework_did(cases, tmp_path):
    Trainer(tiny_config(cases, data={"selection_patients": ("cleo",)}), tmp_path / "run", tmp_path).run()
    entries = read_log(tmp_path / "run")
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert [entry["step"] for entry in steps] == list(range(8))
    assert {"student_loss", "teacher_loss", "lambda", "alpha", "beta", "frozen_fraction", "waiting_seconds"} <= set(
        steps[5]
    )
    assert steps[0]["beta"] is None
    assert steps[5]["lambda"] in (pytest.approx(0.1), pytest.approx(0.01))
    assert [e["step"] for e in entries if e["kind"] == "selection"] == [4, 8]
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
        Trainer(config, tmp_path / "parts", tmp_path).run(cancelled=lambda: calls.append(1) or len(calls) > 5)
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


@pytest.mark.parametrize("moment", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 20))])
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
        ({"run": {"threads": 2}}, "threads: 1 -> 2"),
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
    config = tiny_config(cases, data={"selection_patients": ("cleo",)})
    Trainer(config, tmp_path / "run", tmp_path).run()
    before = (tmp_path / "run" / "log.jsonl").read_text()
    Trainer(config, tmp_path / "run", tmp_path).run(resume=True)
    assert '"selection"' in before.splitlines()[-1]
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


def test_a_state_of_another_version_is_a_sentence(cases, tmp_path):
    Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "run", tmp_path).run()
    file = tmp_path / "run" / "state.pt"
    torch.save({**torch.load(file, weights_only=True), "version": 1}, file)
    with pytest.raises(InputError, match="has version 1; this program reads 3"):
        Trainer(tiny_config(cases, run={"steps": 2}), tmp_path / "run", tmp_path).run(resume=True)


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


def test_a_run_that_is_resumed_with_no_step_left_and_no_choice_chooses(cases, tmp_path):
    data = {"selection_patients": ("cleo",)}
    config = tiny_config(cases, data=data, run={"steps": 40, "validation_interval": 40})
    asked = iter(range(100))
    with pytest.raises(CancelledError, match="Stopped at step 6"):
        Trainer(config, tmp_path / "run", tmp_path).run(cancelled=lambda: next(asked) >= 10)
    shorter = replace(config, run=replace(config.run, steps=4))
    result = Trainer(shorter, tmp_path / "run", tmp_path).run(resume=True)
    assert (result.best_step, result.selection.counted) == (6, 1) and result.model.exists()


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
        cases,
        data={"selection_patients": ("cleo",)},
        run={"steps": 40, "validation_interval": 2, "patience": 4},
        optimizer={"learning_rate": 1e-12},
    )
    result = Trainer(config, tmp_path / "run", tmp_path).run()
    assert result.stopped == "no improvement"
    assert result.steps < 40


def test_where_nobody_validates_everyone_trains_and_the_last_step_is_kept(cases, tmp_path):
    data = {"validation_share": 0.0, "validation_patients": ()}
    config = tiny_config(cases, data=data, run={"steps": 6, "validation_interval": 2})
    result = Trainer(config, tmp_path / "run", tmp_path).run()
    assert set(load_split(tmp_path / "split.json").sets.values()) == {"train"}
    assert (result.best_step, result.chosen, result.selection.counted, result.validation.counted) == (
        6,
        "teacher",
        0,
        0,
    )
    assert describe(result.validation.to_dict()) == "nobody judged, so no figure"
    assert not [entry for entry in read_log(tmp_path / "run") if entry["kind"] == "selection"]
    teacher = weights(tmp_path / "run")[1]
    model = load_checkpoint(result.model)
    assert model.card.metrics["chosen"] == "teacher"
    assert equal(dict(model.network.named_parameters()), {k: teacher[k] for k, _ in model.network.named_parameters()})
    # a longer run replaces it; the frozen split is still one in which nobody judges
    longer = replace(config, run=replace(config.run, steps=8))
    assert Trainer(longer, tmp_path / "run", tmp_path).run(resume=True).best_step == 8
    with pytest.raises(InputError, match="leaves no case for validation"):
        Trainer(tiny_config(cases), tmp_path / "other", tmp_path).run()


def test_reweighting_trains(cases, tmp_path):
    config = tiny_config(
        cases,
        data={"lesion_free_share": 0.0, "foreground_share": 1.0},
        optimizer={"learning_rate": 1e-9},
        ensembling={"enabled": False},
        reweighting={"enabled": True, "warm_up": 1, "percentile": 50.0},
    )
    Trainer(config, tmp_path / "run", tmp_path).run()
    kept = [entry["kept"] for entry in read_log(tmp_path / "run") if entry["kind"] == "step"]
    assert kept[0] == 4
    assert min(kept) < 4


def test_a_step_that_keeps_no_slice_teaches_nothing_and_goes_on(cases, tmp_path):
    config = tiny_config(
        cases,
        data={"lesion_free_share": 0.0, "foreground_share": 1.0},
        run={"batch_size": 1},
        loss={"name": "cross_entropy"},
        optimizer={"learning_rate": 1e-9},
        ensembling={"enabled": False},
        reweighting={"enabled": True, "warm_up": 1, "percentile": 20.0},
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
    drawn = [{place for step in range(20) for place in t.data.pseudo.chosen(step)} for t in (whole, part)]
    assert drawn[0] - drawn[1] == {("a", 1), ("a", 2)}
    assert whole.data.sha256 != part.data.sha256


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
    first = Trainer(tiny_config(cases, run={"steps": 20}), tmp_path / "first", tmp_path).run()
    rewrite_card(first.model, replace(first.card, keep_inside_lungs_mm=7.0, smooth_across_slices_mm=1.0))
    config = tiny_config(
        cases,
        data={"selection_patients": ("cleo",)},
        optimizer={"learning_rate": 2e-3},
        run={"steps": 40, "validation_interval": 20},
    )
    model = fine_tune(first.model, cases, config, tmp_path / "tuned")
    assert (model.card.keep_inside_lungs_mm, model.card.smooth_across_slices_mm) == (7.0, 1.0)
    metrics = model.card.metrics
    assert metrics["base"]["cases"].keys() == metrics["validation"]["cases"].keys() == {"dora"}
    assert metrics["validation"]["dice"] > metrics["base"]["dice"]
    assert [step for step, _ in metrics["curves"]["teacher_dice"]] == [20, 40]
    assert json.loads((tmp_path / "tuned" / "result.json").read_text())["validation"] == metrics["validation"]


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


def test_the_validation_patient_chooses_nothing(cases, tmp_path):
    """Other labels of the patient who judges change the judgment, and nothing that was learned, chosen or kept."""
    other = tmp_path / "other"
    shutil.copytree(cases, other)
    mask = sitk.ReadImage(str(other / "dora_lesion.nii.gz"))
    turned = sitk.GetImageFromArray(sitk.GetArrayFromImage(mask)[:, ::-1, ::-1].copy())
    turned.CopyInformation(mask)
    sitk.WriteImage(turned, str(other / "dora_lesion.nii.gz"))
    results = []
    for number, folder in enumerate((cases, other)):
        config = tiny_config(
            folder,
            data={"selection_patients": ("cleo",), "split": f"split{number}.json"},
            run={"steps": 12, "validation_interval": 2},
        )
        results.append(Trainer(config, tmp_path / str(number), tmp_path).run())
    one, two = results
    assert (one.best_step, one.chosen, one.selection) == (two.best_step, two.chosen, two.selection)
    assert one.card.weights_sha256 == two.card.weights_sha256
    assert one.validation != two.validation
    assert one.selection.cases.keys() == {"cleo"}
    assert one.card.metrics["selection"]["dice"] == one.selection.dice


def test_those_who_choose_train_nothing(cases, tmp_path):
    trainer = Trainer(tiny_config(cases, data={"selection_patients": ("cleo",)}), tmp_path / "run", tmp_path)
    assert (trainer.data.train, trainer.data.selection, trainer.data.validation) == (
        ["anna", "bert"],
        ["cleo"],
        ["dora"],
    )
    assert {case for step in range(20) for case, _ in trainer.data.source.chosen(step)} == {"anna", "bert"}


def test_one_of_five_patients_chooses_and_of_four_nobody(tmp_path):
    def patients(*names):
        return [TrainingCase(name, name, tmp_path, tmp_path) for name in names]

    data = tiny_config("unused", data={"validation_patients": ()}).data
    assert selection_patients(patients(*"abcd"), data) == set()
    chosen = selection_patients(patients(*"abcde"), data)
    assert len(chosen) == 1
    # more patients later: who has chosen goes on, one joins at most
    assert len(selection_patients(patients(*"abcdefghij"), data)) == 2
    assert len(selection_patients(patients(*"abcdef"), data) | chosen) <= 2
    # whoever trains by other cases can't choose
    assert not selection_patients(patients(*"abcde"), data, chosen)
    with pytest.raises(InputError, match="zoe are not among the training patients"):
        selection_patients(patients("a"), replace(data, selection_patients=("zoe",)))
    with pytest.raises(InputError, match="leave at least one to train on"):
        selection_patients(patients("a"), replace(data, selection_patients=("a",)))


def test_a_case_is_not_replayed_while_it_trains(cases, tmp_path):
    manifest = tmp_path / "replay.csv"
    files = ",".join(f"{cases / 'anna'}_{role}.nii.gz" for role in ("ct", "lesion", "lungs"))
    manifest.write_text(f"id,patient,ct,lesion,lungs\nanna,anna,{files}\n")
    config = tiny_config(cases, data={"pseudo_cases": str(manifest)}, run={"pseudo_batch_size": 2})
    with pytest.raises(InputError, match=r"case anna is in data.cases and in data.pseudo_cases"):
        Trainer(config, tmp_path / "run", tmp_path).run()


def test_every_image_of_a_step_has_noise_of_its_own(cases, tmp_path, monkeypatch):
    """Pseudo-labeled slices take their places behind the labeled ones of the global batch."""
    manifest = tmp_path / "more.csv"
    files = ",".join(f"{cases / 'anna'}_{role}.nii.gz" for role in ("ct", "lesion", "lungs"))
    manifest.write_text(f"id,patient,ct,lesion,lungs\nother,anna,{files}\n")
    seen = []
    noise = step_module.gaussian_noise

    def watched(seed, purpose, number, places, *more):
        seen.append((purpose, list(places)))
        return noise(seed, purpose, number, places, *more)

    monkeypatch.setattr(step_module, "gaussian_noise", watched)
    config = tiny_config(cases, data={"pseudo_cases": str(manifest)}, run={"steps": 1, "pseudo_batch_size": 3})
    Trainer(config, tmp_path / "run", tmp_path).run()
    assert seen == [(Purpose.STUDENT_NOISE, [*range(7)]), (Purpose.TEACHER_NOISE, [*range(7)])]


def test_fine_tuning_keeps_the_bases_statistics_and_a_new_training_estimates_its_own(cases, tmp_path):
    first = Trainer(tiny_config(cases, run={"steps": 4}), tmp_path / "first", tmp_path)
    result = first.run()
    base = load_checkpoint(result.model).network
    statistics = {name: value for name, value in base.named_buffers() if "running" in name}
    # the teacher's own follow the student's with delay
    assert not equal(statistics, {name: weights(tmp_path / "first")[1][name] for name in statistics})
    config = tiny_config(
        cases, network={"arguments": {}, "base_model": str(result.model)}, optimizer={"learning_rate": 1e-3}
    )
    tuned = load_checkpoint(Trainer(config, tmp_path / "tuned", tmp_path).run().model).network
    assert equal(statistics, {name: value for name, value in tuned.named_buffers() if "running" in name})
    assert not equal(dict(base.named_parameters()), dict(tuned.named_parameters()))


def test_clean_statistics_are_those_of_the_images():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5), torch.nn.BatchNorm2d(3)
    )
    with torch.no_grad():
        network[1].running_mean.fill_(7.0)
    batches = [torch.rand(2, 1, 9, 9), 3 * torch.rand(1, 1, 17, 9)]
    settled = with_clean_statistics(network, batches)
    values = torch.cat([network[0](batch).movedim(1, 0).flatten(1) for batch in batches], dim=1)
    assert torch.allclose(settled[1].running_mean, values.mean(1), atol=1e-5)
    assert torch.allclose(settled[1].running_var, values.var(1, unbiased=False), atol=1e-5)
    assert network[1].running_mean.tolist() == [7.0] * 3
    assert not any(module.training for module in settled.modules())
    # without batch norms there is nothing to settle
    assert with_clean_statistics(network[0], batches) is network[0]
