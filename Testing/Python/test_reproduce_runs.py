"""Runs of a table: plans, resuming, failures, and what is written of seeds, means and tests."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from reproduction_fixtures import TINY, TINY_VOLUMES, options_for, reproduce, rows_of

from COVIDLesionSegLib.errors import CancelledError
from COVIDLesionSegLib.learning import TrainingConfig
from COVIDLesionSegLib.learning.log import read_log
from COVIDLesionSegLib.learning.trainer import Trainer
from COVIDLesionSegLib.reproduction import study
from COVIDLesionSegLib.reproduction.catalog import load_table
from COVIDLesionSegLib.reproduction.figures import Outcome, false_lesion, figures
from COVIDLesionSegLib.reproduction.planning import Cell
from COVIDLesionSegLib.reproduction.study import Study
from COVIDLesionSegLib.reproduction.writing import write_table


@pytest.mark.parametrize("overhead", [0.0, 0.2])
@pytest.mark.parametrize("per_voxel", [1e-6, 1e-4])
def test_an_estimate_is_not_misled_by_the_overhead_of_a_small_step(monkeypatch, overhead, per_voxel):
    measured = []

    def pretended(config, network, device, autocast, count, size, steps):
        measured.append(count * math.prod(size))
        return [overhead + per_voxel * measured[-1]] * steps

    monkeypatch.setattr(study, "step_seconds", pretended)
    data = {"cases": "cases.csv", "crop": [160, 160]}
    changes = {"ensembling": {"enabled": False}, "run": {"batch_size": 30}}
    config = TrainingConfig.from_dict({"data": data, **changes})
    row = load_table("tmi-3").row("dice")
    estimate = study.seconds_per_step(row, config, 8, torch.device("cpu"))
    whole = 30 * 160 * 160
    # what is measured last is long, or a whole step
    assert overhead + per_voxel * measured[-1] >= 0.3 or measured[-1] == whole
    # the overhead is in the estimate at most as often as steps of the last size make a whole one
    assert overhead + per_voxel * whole <= estimate + 1e-9
    assert estimate <= per_voxel * whole + overhead * whole / measured[-1] + 1e-9
    assert sum(measured) * per_voxel < 4 * max(0.3, per_voxel * 2 * 64 * 64)


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
    assert reproduce("med-phys-fig7", pictures, tmp_path, *tiny) == 0
    with pytest.raises(AssertionError, match="trained again"):
        reproduce("med-phys-1", pictures, tmp_path, *tiny[:-4], "--rows", "caresunet", "--seeds", "1")


def test_finished_cells_are_collected_without_training(pictures, tmp_path, monkeypatch, capsys):
    tiny = [*TINY, "--resize", "32"]
    assert reproduce("med-phys-1", pictures, tmp_path, *tiny, "--rows", "caresunet", "--seeds", "1") == 0
    monkeypatch.setattr(Trainer, "run", None)
    capsys.readouterr()
    assert reproduce("med-phys-1", pictures, tmp_path, *tiny, "--rows", "unet", "caresunet", "--collect") == 0
    assert "1 of 6 cells" in capsys.readouterr().out
    text = (tmp_path / "med-phys-1.md").read_text(encoding="utf-8")
    assert "| caresunet-seed1 | " in text
    assert "| CARes-UNet | 0, 2 | not trained yet | `covid-lesion-seg reproduce med-phys-1 " in text
    assert "| U-Net | 0, 1, 2 | not trained yet | " in text
    with pytest.raises(SystemExit, match="2"):
        reproduce("med-phys-1", pictures, tmp_path, "--collect", "--plan")


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


def test_a_cell_that_fails_says_why_and_the_others_go_on(pictures, tmp_path, capsys):
    tiny = [*TINY, "--resize", "32", "--rows", "caresunet", "semi-caresunet", "--seeds", "0"]
    assert reproduce("med-phys-1", pictures, tmp_path, *tiny) == 3
    assert "semi-caresunet-seed0 failed: Of 4 pseudo-labels 0 were accepted" in capsys.readouterr().err
    text = (tmp_path / "med-phys-1.md").read_text(encoding="utf-8")
    assert "| semi-CARes-UNet | 0 | failed: Of 4 pseudo-labels 0 were accepted" in text


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
