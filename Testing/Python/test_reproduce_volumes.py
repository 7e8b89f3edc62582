"""Tables of volumes filled on tiny made-up data: label noise, folds, splits by patient, measures of slices."""

from __future__ import annotations

import json

import pytest
from reproduction_fixtures import PATIENTS, TINY, TINY_VOLUMES, options_for, reproduce, rows_of
from training_fixtures import write_cases

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.reproduction.catalog import load_table
from COVIDLesionSegLib.reproduction.figures import Outcome
from COVIDLesionSegLib.reproduction.planning import Cell
from COVIDLesionSegLib.reproduction.study import Study
from COVIDLesionSegLib.reproduction.writing import write_table


def test_a_table_of_volumes_with_label_noise_and_folds(volumes, tmp_path, capsys):
    noise = ["--label-noise", "dilation:2", "--folds", "2", "--rows", "dice", "full", "--seeds", "0"]
    assert reproduce("tmi-3", volumes, tmp_path, *TINY_VOLUMES, *noise) == 0
    assert "4 of 4 cells" in capsys.readouterr().out
    text = (tmp_path / "tmi-3.md").read_text(encoding="utf-8")
    assert "## Label errors dilation2" in text
    assert "2-fold cross-validation instead of the paper's split" in text
    # Fig. 9 is of the rows of Table IV
    assert "## By lesion volume\n" in text
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
    assert prepared.config.data.selection_fraction > 0
    # frozen: asked again, in another process with another seed, the same
    again = Study(load_table("tmi-4"), options_for(volumes, tmp_path, rows=("dice",), crop=(32, 32), seeds=(7,)))
    assert again.prepare(again.cells[0]).part.sha256 == prepared.part.sha256


def test_a_given_split_is_kept_and_a_patient_on_both_sides_refused(volumes, tmp_path):
    for side, patients in (("train", PATIENTS[:3]), ("validation", PATIENTS[3:4]), ("test", PATIENTS[4:])):
        write_cases(tmp_path / "given" / side, patients)
    study = Study(load_table("tmi-3"), options_for(tmp_path / "given", tmp_path / "out", crop=(32, 32)))
    prepared = study.prepare(study.cells[0])
    assert [case.patient for case in prepared.part.test] == ["emil"]
    assert prepared.config.data.selection_patients == ("dora",)
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
