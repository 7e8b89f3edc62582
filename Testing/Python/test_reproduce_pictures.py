"""Tables of pictures filled on tiny made-up data: who trains and is tested, intensities, pseudo-labels, curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reproduction_fixtures import TINY, options_for, reproduce, rows_of

from COVIDLesionSegLib.learning import CAResLoss
from COVIDLesionSegLib.learning.pseudo_labels import picture_logits
from COVIDLesionSegLib.learning.store import read_picture, read_picture_mask
from COVIDLesionSegLib.models import Preprocessing, load_checkpoint
from COVIDLesionSegLib.reproduction.catalog import load_table
from COVIDLesionSegLib.reproduction.pictures import normalize
from COVIDLesionSegLib.reproduction.planning import reductions
from COVIDLesionSegLib.reproduction.study import Study


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


def slice_picture(lung, tissue, padding=0):
    """A body in black or filled surroundings: lungs with vessels, airways and a half-dense lesion, some bone."""
    picture = np.full((96, 96), padding, dtype=np.float64)
    picture[4:92, 4:92] = tissue
    picture[20:70, 10:44] = picture[20:70, 52:86] = lung
    picture[30:36, 46:50] = max(lung - 20, 1)  # airway, darker than the lungs
    picture[24:44, 12:36] = (lung + tissue) / 2  # lesion
    picture[50:54, 56:80] = tissue  # vessels
    picture[74:86, 40:56] = min(tissue + 50, 255)  # bone
    noise = np.random.default_rng(0).normal(0, 0.02 * (tissue - lung), picture.shape)
    return np.clip(np.rint(picture + noise * (picture > padding)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("lung", "tissue", "padding"), [(15, 100, 0), (80, 230, 0), (60, 200, 60), (1, 255, 0)])
def test_pictures_of_several_windows_become_alike(lung, tissue, padding):
    usual = normalize(slice_picture(40, 200), 30, 200)
    other = normalize(slice_picture(lung, tissue, padding), 30, 200)
    for part in (np.s_[56:70, 12:40], np.s_[26:42, 14:34], np.s_[8:18, 8:88]):  # lung, lesion, soft tissue
        assert np.median(other[part]) == pytest.approx(np.median(usual[part]), abs=5)
    assert np.median(usual[56:70, 12:40]) == pytest.approx(30, abs=3)
    assert np.median(usual[8:18, 8:88]) == pytest.approx(200, abs=3)


def test_lungs_mostly_of_ground_glass_keep_its_gray():
    usual = slice_picture(40, 200)
    diseased = slice_picture(40, 200)
    # ground glass in two thirds of both lungs, with its own grain
    opacity = np.random.default_rng(1).normal(110, 6, diseased.shape)
    diseased[20:54, 10:44] = diseased[20:54, 52:86] = opacity[20:54, 10:44]
    done = normalize(diseased, 30, 200)
    assert np.median(done[56:70, 12:40]) == pytest.approx(np.median(normalize(usual, 30, 200)[56:70, 12:40]), abs=4)
    assert np.median(done[22:50, 12:42]) > 80


def test_pictures_without_peaks_are_normalized_too():
    for picture in (np.zeros((8, 8)), np.full((8, 8), 9), np.full((8, 8), 255), np.eye(8) * 255):
        done = normalize(picture.astype(np.uint8), 30, 200)
        assert done.dtype == np.uint8
        assert done.shape == (8, 8)
    assert set(np.unique(normalize((np.eye(8) * 255).astype(np.uint8), 30, 200))) == {30, 200}


def test_pictures_stay_as_they_are_if_that_is_asked(pictures, tmp_path):
    table = load_table("med-phys-1")
    changed = Study(table, options_for(pictures, tmp_path / "changed", rows=("caresunet",), resize=(32, 32)))
    kept = Study(table, options_for(pictures, tmp_path / "kept", rows=("caresunet",), keep_intensities=True))
    assert kept.cases.training[0].image.is_relative_to(pictures)
    assert changed.cases.training[0].image.is_relative_to(tmp_path)
    assert changed.cases.training[0].lesion == kept.cases.training[0].lesion
    said = reductions(table, kept.options, [table.row("caresunet")])
    assert said[-1] == "pictures as they are instead of normalized"


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


def test_curves_of_training_and_testing_loss(pictures, tmp_path):
    tiny = [*TINY, "--resize", "32", "--rows", "caresunet", "--seeds", "0", "--keep-intensities"]
    assert reproduce("med-phys-fig10", pictures, tmp_path, *tiny) == 0
    (row,) = rows_of(tmp_path / "med-phys-fig10-curves.csv")
    assert row["epoch"] == "1" and float(row["training loss"]) > 0
    # the same loss, of the network after the last step, on the pictures that are tested
    (cell,) = (tmp_path / "cells").iterdir()
    network = load_checkpoint(cell / "run" / "best.safetensors").network.eval()
    losses = []
    for image in sorted((pictures / "test" / "images").iterdir()):
        logits = picture_logits(network, Preprocessing(resize=(32, 32)), read_picture(image), torch.device("cpu"))
        (mask,) = (pictures / "test" / "masks").glob(f"{image.stem}.*")
        label = torch.from_numpy((read_picture_mask(mask) != 0).astype(np.int64))[None]
        losses.append(float(CAResLoss()(logits, label)))
    assert float(row["testing loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    pytest.importorskip("matplotlib")
    assert (tmp_path / "med-phys-fig10-curves.png").read_bytes().startswith(b"\x89PNG")
