"""Tables filled on tiny made-up data: training, testing, resuming, what is written, what can't be had."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from training_fixtures import write_cases

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.errors import CancelledError, InputError
from COVIDLesionSegLib.learning.distributed import Ranks
from COVIDLesionSegLib.learning.log import read_log
from COVIDLesionSegLib.learning.sampling import BatchSource
from COVIDLesionSegLib.learning.trainer import Trainer
from COVIDLesionSegLib.learning.training_data import TrainingData
from COVIDLesionSegLib.reproduction import baselines
from COVIDLesionSegLib.reproduction.catalog import load_table, networks
from COVIDLesionSegLib.reproduction.efficiency import build, cost
from COVIDLesionSegLib.reproduction.figures import Outcome, false_lesion, figures
from COVIDLesionSegLib.reproduction.pictures import normalize
from COVIDLesionSegLib.reproduction.planning import Cell, Options, reductions
from COVIDLesionSegLib.reproduction.study import Study
from COVIDLesionSegLib.reproduction.writing import write_table

PATIENTS = ("anna", "bert", "cleo", "dora", "emil")
TINY = ["--width", "2", "--steps", "2", "--device", "cpu", "--precision", "float32", "--quiet"]
TINY_VOLUMES = [*TINY, "--crop", "32", "--set", "run.batch_size=4", "run.validation_interval=1"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """The layout of COVID-SemiSeg: 6 training, 3 test and 4 unlabeled slices with a bright disk."""
    folder = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 6), ("test", 3), ("unlabelled", 4)):
        for number in range(count):
            generator = np.random.default_rng([number, count])
            rows, columns = np.mgrid[:56, : 44 + 2 * number]
            disk = (rows - 24) ** 2 + (columns - 20) ** 2 < (6 + number) ** 2
            grey = 60 + 120 * disk + generator.normal(0, 8, disk.shape)
            image = (folder / part / "images" if part != "unlabelled" else folder / part) / f"{number}.png"
            _write(image, grey.clip(0, 255))
            if part != "unlabelled":
                _write(folder / part / "masks" / f"{number}.png", 255 * disk)
    return folder


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("volumes"), PATIENTS)


def _write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(path))


def reproduce(table, data, output, *arguments):
    return main(["reproduce", table, "--data", str(data), "-o", str(output), *arguments])


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def options_for(data, output, **changed):
    settings = {"width": 2, "steps": 2, "device": "cpu", "precision": "float32", "seeds": (0,)}
    return Options(data, output, **(settings | changed))


def test_a_table_of_pictures(pictures, tmp_path, capsys):
    tiny = [*TINY, "--resize", "32", "--rows", "caresunet", "segnet", "--seeds", "0", "1"]
    assert reproduce("med-phys-1", pictures, tmp_path, *tiny) == 0
    assert "2 of 4 cells" in capsys.readouterr().out
    text = (tmp_path / "med-phys-1.md").read_text(encoding="utf-8")
    assert "**Not the paper's protocol: base width 2 instead of 64, 2 steps instead of 1200 epochs" in text
    assert "resize 32 x 32 instead of 256 x 256" in text
    assert "| CARes-UNet | 0.731 ± 0.11 |" in text
    assert "| SegNet | 0.645 ± 0.16 | - |" in text
    assert "| SegNet | 0, 1 | no library that is kept up offers SegNet | nothing |" in text
    assert "6 cases train, 3 are tested" in text
    assert "the last step" in text
    table = rows_of(tmp_path / "med-phys-1.csv")
    ours = [row for row in table if row["row"] == "caresunet"]
    assert {row["reading"] for row in ours} == {
        f"{what}/{convention}" for what in ("probability", "mask") for convention in ("inf_net", "empty_is_right")
    }
    assert {row["metric"] for row in ours} == {metric.key for metric in load_table("med-phys-1").metrics}
    assert all(row["seeds"] == "2" and row["values"] == "6" and row["SD over seeds"] for row in ours)
    assert next(row for row in table if row["row"] == "segnet")["missing because"].startswith("no library")
    cells = rows_of(tmp_path / "med-phys-1-cells.csv")
    assert {(row["row"], row["seed"], row["steps"], row["precision"]) for row in cells} == {
        ("caresunet", "0", "2", "float32"),
        ("caresunet", "1", "2", "float32"),
    }


def test_the_test_slices_train_nothing_and_folds_leave_them_alone(pictures, tmp_path):
    table = load_table("med-phys-1")
    study = Study(table, options_for(pictures, tmp_path, rows=("caresunet",), resize=(32, 32)))
    part = study.prepare(study.cells[0]).part
    assert {case.image.parent.name for case in part.training} == {"train"}
    assert {case.image.parent.name for case in part.test} == {"test"}
    study = Study(table, options_for(pictures, tmp_path, rows=("caresunet",), resize=(32, 32), folds=2))
    parts = [study.prepare(cell).part for cell in study.cells]
    assert all(case.image.parent.name == "train" for part in parts for case in (*part.training, *part.test))
    tested = [case.id for part in parts for case in part.test]
    assert sorted(tested) == [str(number) for number in range(6)]
    assert all(not {c.id for c in part.training} & {c.id for c in part.test} for part in parts)


def test_pictures_of_two_windows_become_alike():
    generator = np.random.default_rng(0)
    bright = generator.integers(20, 240, (60, 50)).astype(np.uint8)
    dark = np.rint(bright * 0.45).astype(np.uint8)
    first, second = normalize(bright, 2, 95), normalize(dark, 2, 95)
    assert np.abs(first.astype(int) - second).max() <= 2
    assert np.percentile(first, [2, 95]) == pytest.approx([0, 230], abs=1)
    flat = np.full((4, 4), 9, dtype=np.uint8)
    assert not normalize(flat, 2, 95).any()


def test_pictures_stay_as_they_are_if_that_is_asked(pictures, tmp_path):
    table = load_table("med-phys-1")
    changed = Study(table, options_for(pictures, tmp_path / "changed", rows=("caresunet",), resize=(32, 32)))
    kept = Study(table, options_for(pictures, tmp_path / "kept", rows=("caresunet",), keep_intensities=True))
    assert kept.cases.training[0].image.is_relative_to(pictures)
    assert changed.cases.training[0].image.is_relative_to(tmp_path)
    assert changed.cases.training[0].lesion == kept.cases.training[0].lesion
    said = reductions(table, kept.options, [table.row("caresunet")])
    assert said[-1] == "pictures as they are instead of normalized"


def test_a_finished_cell_is_not_trained_again(pictures, tmp_path, monkeypatch):
    tiny = [*TINY, "--resize", "32", "--rows", "caresunet", "--seeds", "0"]
    assert reproduce("med-phys-1", pictures, tmp_path, *tiny) == 0
    before = (tmp_path / "med-phys-1.csv").read_text(encoding="utf-8")
    assert not list(tmp_path.rglob("state.pt"))

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(Trainer, "run", refuse)
    assert reproduce("med-phys-1", pictures, tmp_path, *tiny) == 0
    assert (tmp_path / "med-phys-1.csv").read_text(encoding="utf-8") == before
    # the same row in another table is the same cell
    assert reproduce("med-phys-fig8", pictures, tmp_path, *tiny) == 0
    with pytest.raises(AssertionError, match="trained again"):
        reproduce("med-phys-1", pictures, tmp_path, *tiny[:-4], "--rows", "caresunet", "--seeds", "1")


def test_a_killed_run_goes_on_to_the_same_figures(pictures, tmp_path):
    table = load_table("med-phys-1")
    settings = {"rows": ("caresunet",), "resize": (32, 32), "steps": 6, "changes": {"run": {"checkpoint_interval": 2}}}
    whole = Study(table, options_for(pictures, tmp_path / "whole", **settings))
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 4

    broken = Study(table, options_for(pictures, tmp_path / "broken", **settings), cancelled=stop)
    with pytest.raises(CancelledError):
        broken.run(broken.cells[0])
    assert broken.finished(broken.cells[0]) is None
    broken.cancelled = None
    resumed = broken.run(broken.cells[0])
    folder = broken.prepare(broken.cells[0]).folder / "run"
    steps = [entry["step"] for entry in read_log(folder) if entry["kind"] == "step"]
    assert steps == list(range(6)), "the resumed run began anew"
    assert resumed["slices"] == whole.run(whole.cells[0])["slices"]
    assert len(resumed["curve"]) == 3


def test_an_interrupted_command_leaves_its_table(pictures, tmp_path, monkeypatch, capsys):
    run = Trainer.run

    def stop_at_second_seed(self, *arguments, **named):
        if self.config.run.seed == 1:
            raise CancelledError("Stopped at step 1 of 2; the state is saved.")
        return run(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "run", stop_at_second_seed)
    tiny = [*TINY, "--resize", "32", "--rows", "caresunet", "--seeds", "0", "1"]
    assert reproduce("med-phys-1", pictures, tmp_path, *tiny) == 130
    text = (tmp_path / "med-phys-1.md").read_text(encoding="utf-8")
    assert "| CARes-UNet | 1 | not trained yet | `covid-lesion-seg reproduce med-phys-1 " in text
    assert "--rows caresunet --seeds 1 --steps 2 --width 2 --resize 32 32" in text
    assert {row["seeds"] for row in rows_of(tmp_path / "med-phys-1.csv")} == {"1"}


def test_the_semi_supervised_row_learns_from_its_teachers_labels(pictures, tmp_path):
    table = load_table("med-phys-1")
    settings = {"rows": ("semi-caresunet",), "resize": (32, 32), "steps": 4}
    study = Study(table, options_for(pictures, tmp_path, **settings, changes={"pseudo_labels": {"threshold": 10.0}}))
    result = study.run(study.cells[0])
    assert result["facts"] == {"pseudo_labels_accepted": 4, "pseudo_labels_total": 4}
    assert (result["config"]["run"]["batch_size"], result["config"]["run"]["pseudo_batch_size"]) == (2, 2)
    assert sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "cells").iterdir()) == [
        "caresunet-seed0",
        "semi-caresunet-seed0",
    ]


def test_a_cell_that_fails_says_why_and_the_others_go_on(pictures, tmp_path, capsys):
    tiny = [*TINY, "--resize", "32", "--rows", "caresunet", "semi-caresunet", "--seeds", "0"]
    assert reproduce("med-phys-1", pictures, tmp_path, *tiny) == 3
    assert "semi-caresunet-seed0 failed: Of 4 pseudo-labels 0 were accepted" in capsys.readouterr().err
    text = (tmp_path / "med-phys-1.md").read_text(encoding="utf-8")
    assert "| semi-CARes-UNet | 0 | failed: Of 4 pseudo-labels 0 were accepted" in text


def test_a_table_of_volumes_with_label_noise_and_folds(volumes, tmp_path, capsys):
    noise = ["--label-noise", "dilation:2", "--folds", "2", "--rows", "dice", "full", "--seeds", "0"]
    assert reproduce("tmi-3", volumes, tmp_path, *TINY_VOLUMES, *noise) == 0
    assert "4 of 4 cells" in capsys.readouterr().out
    text = (tmp_path / "tmi-3.md").read_text(encoding="utf-8")
    assert "## Label errors dilation2" in text
    assert "2-fold cross-validation instead of the paper's split" in text
    assert "Fig. 9 of the paper shows these as a graphic" in text
    assert "| against Dice loss, no self-ensembling: p of paired t-test / Wilcoxon |" in text
    assert "* p < 0.05 against the first row, as published." in text
    assert "spoilt labels to the given ones 0." in text
    rows = rows_of(tmp_path / "tmi-3.csv")
    assert {row["label errors"] for row in rows} == {"dilation2"}
    # every patient is tested once
    assert {row["values"] for row in rows} == {"5"}
    full = [row for row in rows if row["row"] == "full" and row["metric"] == "dice"]
    assert all(row["pairs"] == "5" for row in full)
    groups = rows_of(tmp_path / "tmi-3-groups.csv")
    assert {row["lesion volume group"] for row in groups} == {"A"}


def test_patients_of_a_split_stay_on_their_side(volumes, tmp_path):
    study = Study(load_table("tmi-3"), options_for(volumes, tmp_path, rows=("dice",), crop=(32, 32)))
    prepared = study.prepare(study.cells[0])
    training, tested = ({case.patient for case in cases} for cases in (prepared.part.training, prepared.part.test))
    assert training | tested == set(PATIENTS)
    assert not training & tested
    assert prepared.config.data.validation_share > 0
    # frozen: asked again, in another process with another seed, the same
    again = Study(load_table("tmi-4"), options_for(volumes, tmp_path, rows=("dice",), crop=(32, 32), seeds=(7,)))
    assert again.prepare(again.cells[0]).part.sha256 == prepared.part.sha256


def test_a_given_split_is_kept_and_a_patient_on_both_sides_refused(volumes, tmp_path):
    for side, patients in (("train", PATIENTS[:3]), ("validation", PATIENTS[3:4]), ("test", PATIENTS[4:])):
        write_cases(tmp_path / "given" / side, patients)
    study = Study(load_table("tmi-3"), options_for(tmp_path / "given", tmp_path / "out", crop=(32, 32)))
    prepared = study.prepare(study.cells[0])
    assert [case.patient for case in prepared.part.test] == ["emil"]
    assert prepared.config.data.validation_patients == ("dora",)
    write_cases(tmp_path / "given" / "test", PATIENTS[:1])
    with pytest.raises(InputError, match=r"The patient anna stands in train/ and in test/"):
        Study(load_table("tmi-3"), options_for(tmp_path / "given", tmp_path / "out"))


@pytest.mark.long
def test_label_update_and_reweighting(volumes, tmp_path):
    rows = ["--rows", "reweighting", "label-update", "--seeds", "0"]
    assert reproduce("tmi-4", volumes, tmp_path, *TINY_VOLUMES, *rows) == 0
    members = list(tmp_path.rglob("member-*"))
    assert len(members) == 5
    assert {row["row"] for row in rows_of(tmp_path / "tmi-4.csv")} == {"reweighting", "label-update"}


def test_slice_measures_of_volumes_count_the_slices_without_lesion(volumes, tmp_path):
    tiny = [*TINY, "--resize", "32", "--rows", "caresunet", "--seeds", "0", "--set", "run.batch_size=4"]
    assert reproduce("med-phys-2", volumes, tmp_path, *tiny) == 0
    cell = json.loads(next(tmp_path.rglob("cell.json")).read_text(encoding="utf-8"))
    assert len(cell["volumes"]) == 1
    assert len(cell["slices"]) == 6
    assert len({frozenset(reading) for reading in cell["slices"].values()}) == 1
    table = load_table("med-phys-2")
    outcome = Outcome(Cell(table.row("caresunet"), 0), cell)

    def written():
        options = options_for(volumes, tmp_path, rows=("caresunet",))
        return write_table(table, options, [outcome])[0].read_text(encoding="utf-8")

    for scores in cell["slices"].values():
        for what in ("probability", "mask"):
            scores[f"{what}/empty_is_right"] = dict(scores[f"{what}/inf_net"])
    text = written()
    assert "the same figures by both conventions" in text
    assert "convention inf_net" not in text
    # a network that finds nothing where nothing is
    free = next(scores for case, scores in cell["slices"].items() if case.endswith(":0"))
    free["mask/empty_is_right"]["dice"] = 1.0
    text = written()
    assert "convention inf_net: Dice, sensitivity and specificity are 0" in text
    assert "convention empty_is_right: the same, but where mask and prediction are both empty" in text


@pytest.mark.long
def test_a_plan_trains_nothing_and_says_what_is_there(volumes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "run", None)
    rows = ["--rows", "nnunet-2d", "espnetv2", "coplenet", "--seeds", "0", "1"]
    assert reproduce("tmi-2", volumes, tmp_path, *TINY_VOLUMES, *rows, "--plan", "--json") == 0
    planned = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert planned["espnetv2-seed0"]["status"].startswith("can't: no library")
    assert planned["coplenet-seed1"]["status"] == "to do"
    assert planned["coplenet-seed1"]["steps"] == 2
    assert planned["nnunet-2d-seed0"]["seconds"] > 0
    assert not list(tmp_path.rglob("cell.json"))
    assert reproduce("tmi-2", volumes, tmp_path, *TINY_VOLUMES, *rows, "--plan") == 0
    assert "4 to train, about" in capsys.readouterr().out


def test_a_network_of_another_library_is_trained_tested_and_kept(volumes, tmp_path, monkeypatch):
    library = SimpleNamespace(AttentionUnet=lambda *_, **__: torch.nn.Conv2d(1, 2, 3, padding=1))
    monkeypatch.setattr(baselines, "_library", lambda source: library)
    arguments = ["--rows", "attention-unet", "--seeds", "0"]
    assert reproduce("tmi-2", volumes, tmp_path, *TINY_VOLUMES, *arguments) == 0
    dice = next(entry for entry in rows_of(tmp_path / "tmi-2.csv") if entry["metric"] == "dice")
    assert 0 <= float(dice["mean"]) <= 100
    tensors = torch.load(next(tmp_path.rglob("best.pt")), weights_only=True)
    assert set(tensors) == {"body.weight", "body.bias"}


def test_patches_are_planes_changed_alike(volumes, tmp_path):
    changes = {"run": {"batch_size": 4}}
    settings = {"rows": ("coplenet",), "crop": (32, 32), "changes": changes}
    study = Study(load_table("tmi-2"), options_for(volumes, tmp_path, **settings))
    config = study.prepare(study.cells[0]).config
    window = (1500.0, -650.0)
    data = TrainingData(config, tmp_path, tmp_path / "run", window, Ranks())
    drawn = {}
    for depth in (1, 3):
        cut = replace(config.data, depth=depth)
        source = BatchSource(data.store, data.train, 4, cut, config.augmentation, window, seed=0)
        drawn[depth] = source.batch(0)
    assert drawn[3].images.shape == (4, 1, 3, 32, 32)
    assert drawn[3].labels.shape == (4, 3, 32, 32)
    np.testing.assert_array_equal(drawn[3].images[:, :, 1], drawn[1].images)
    np.testing.assert_array_equal(drawn[3].labels[:, 1], drawn[1].labels)


@pytest.mark.long
@pytest.mark.parametrize("row", ["nnunet-2d", "nnunet-3d", "attention-unet"])
def test_networks_of_monai(row, volumes, tmp_path):
    pytest.importorskip("monai")
    assert reproduce("tmi-2", volumes, tmp_path, *TINY_VOLUMES, "--rows", row, "--seeds", "0") == 0
    dice = next(entry for entry in rows_of(tmp_path / "tmi-2.csv") if entry["metric"] == "dice")
    assert 0 <= float(dice["mean"]) <= 100
    assert list(tmp_path.rglob("best.pt"))


@pytest.mark.parametrize(
    "key", ["scse-unet", "linknet-xception", "fpn-efficientnet-b1", "pspnet-vgg13", "unet-resnet34", "fcn"]
)
def test_networks_of_other_libraries(key):
    network = networks()[key]
    reason = baselines.absent(network)
    if reason:
        pytest.skip(reason)
    made = baselines.make_network(network).eval()
    with torch.inference_mode():
        assert made(torch.zeros(1, 1, 50, 70)).shape == (1, 2, 50, 70)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'monai'", name="monai"), "the package monai is not installed"),
        (RuntimeError("operator torchvision::nms does not exist\nmore"), "does not load here (operator torchvision"),
    ],
)
def test_a_missing_package_is_a_missing_row_with_its_command(error, said, volumes, tmp_path, monkeypatch):
    def refuse(name):
        raise error

    baselines._library.cache_clear()
    monkeypatch.setattr(baselines, "importlib", SimpleNamespace(import_module=refuse))
    try:
        assert reproduce("tmi-1", volumes, tmp_path, *TINY_VOLUMES, "--rows", "dice", "--seeds", "0") == 0
    finally:
        baselines._library.cache_clear()
    text = (tmp_path / "tmi-1.md").read_text(encoding="utf-8")
    assert said in text
    assert "`pip install 'covid-lesion-seg[baselines]'" in text
    assert "| Dice | 77.89 ± 11.74 | - |" in text


def test_a_baseline_takes_sides_of_any_size():
    body = torch.nn.Conv2d(1, 2, 1)
    made = baselines.Baseline(body, (32, 32))
    x = torch.rand(1, 1, 40, 75)
    torch.testing.assert_close(made(x), body(x))


def test_curves_of_the_training_loss(pictures, tmp_path):
    tiny = [*TINY, "--resize", "32", "--rows", "caresunet", "--seeds", "0"]
    assert reproduce("med-phys-fig10", pictures, tmp_path, *tiny) == 0
    rows = rows_of(tmp_path / "med-phys-fig10-curves.csv")
    assert [row["epoch"] for row in rows] == ["1"]
    assert float(rows[0]["loss"]) > 0
    pytest.importorskip("matplotlib")
    assert (tmp_path / "med-phys-fig10-curves.png").read_bytes().startswith(b"\x89PNG")


def test_parameters_and_multiply_adds_are_those_of_the_network():
    found = cost(build(networks()["coplenet"], None), (64, 64), torch.device("cpu"))
    assert found.parameters == 10_521_666
    # 11.063 G for 256 x 256, convolutions alone
    assert found.macs == pytest.approx(11.063e9 / 16, rel=1e-3)
    assert found.seconds > 0


@pytest.mark.long
def test_the_efficiency_table(tmp_path, capsys):
    arguments = ["--rows", "caresunet", "segnet", "coplenet", "--width", "4", "--resize", "64", "--quiet"]
    assert main(["reproduce", "med-phys-4", "-o", str(tmp_path), *arguments, "--device", "cpu"]) == 0
    text = (tmp_path / "med-phys-4.md").read_text(encoding="utf-8")
    assert "base width 4" in text
    assert "| SegNet | not found | - | not found | - | not found | - | missing: no library" in text
    rows = {row["row"]: row for row in rows_of(tmp_path / "med-phys-4.csv")}
    assert float(rows["caresunet"]["Time of a slice [ms]"]) > 0
    assert rows["segnet"]["missing because"].startswith("no library")


def test_the_table_names_seeds_hardware_and_library(pictures, tmp_path):
    table = load_table("med-phys-1")
    study = Study(table, options_for(pictures, tmp_path, rows=("caresunet",), resize=(32, 32)))
    outcome = Outcome(study.cells[0], study.run(study.cells[0]))
    text = write_table(table, study.options, [outcome])[0].read_text(encoding="utf-8")
    for said in ("- Seeds: 0.", "thread(s), float32, PyTorch", "- Library: ", "training [s]"):
        assert said in text


def test_means_spreads_and_tests_are_what_they_say():
    """Three cases, two seeds, worked out by hand."""
    table = load_table("tmi-3")
    values = {("dice", 0): (0.5, 0.6, 0.7), ("dice", 1): (0.6, 0.7, 0.8), ("full", 0): (0.7, 0.9, 0.8)}
    outcomes = []
    for (row, seed), dices in values.items():
        volumes_ = {
            f"case{number}": {
                "dice": {"value": value},
                "relative_volume_error": {"value": None if number else 0.1},
                "hausdorff_distance_95": {"value": "Infinity" if number else 4.0},
                "reference_volume": {"value": (20.0, 50.0, 300.0)[number]},
            }
            for number, value in enumerate(dices)
        }
        # a volume without lesion, in which a network that finds nothing has a Dice of 1
        volumes_["normal"] = {
            "dice": {"value": 1.0},
            "relative_volume_error": {"value": None},
            "hausdorff_distance_95": {"value": None},
            "reference_volume": {"value": 0.0},
            "prediction_volume": {"value": 0.25},
        }
        outcomes.append(Outcome(Cell(table.row(row), seed), {"volumes": volumes_}))
    found = {(figure.row.id, figure.metric.key): figure for figure in figures(table, outcomes)}
    baseline, full = found["dice", "dice"], found["full", "dice"]
    assert (baseline.mean, baseline.sd_cases) == pytest.approx((0.65, np.std([0.5, 0.6, 0.7])))
    assert baseline.sd_seeds == pytest.approx(np.std([0.6, 0.7], ddof=1))
    assert (baseline.seeds, baseline.counted, baseline.total, baseline.pairs) == (2, 6, 6, 0)
    # the baseline's cases over its seeds: 0.55, 0.65, 0.75; differences 0.15, 0.25, 0.05
    differences = np.array([0.15, 0.25, 0.05])
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(3))
    assert full.pairs == 3
    assert full.t_p == pytest.approx(1 - t / np.sqrt(t**2 + 2))  # Student's t with two degrees of freedom
    assert full.wilcoxon_p == pytest.approx(2 / 2**3)
    assert np.isnan(full.sd_seeds)
    distance = found["full", "hausdorff_distance_95"]
    assert (distance.mean, distance.counted, distance.total) == (4.0, 1, 3)
    assert false_lesion(outcomes[0].result) == [0.25]
    groups = figures(table, outcomes, grouped=True)
    assert {(f.group, f.mean) for f in groups if f.row.id == "full" and f.metric.key == "dice"} == {
        ("A", 0.7),
        ("B", 0.9),
        ("C", 0.8),
    }
