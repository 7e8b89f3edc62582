"""``evaluate``: one case and a manifest, grids that differ, label maps, and exit statuses."""

from __future__ import annotations

import csv
import errno
import json

import numpy as np
import pytest

from COVIDLesionSegLib.cli import evaluate as evaluate_command
from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.imaging import Geometry, LabelVolume, write_labels
from COVIDLesionSegLib.measurement import evaluate

GRID = Geometry((24, 20, 12), (1.0, 1.0, 2.5), (-12.0, -10.0, 0.0))


def box(z, y, x, label=1):
    array = np.zeros(GRID.shape, np.uint8)
    array[slice(*z), slice(*y), slice(*x)] = label
    return array


@pytest.fixture
def masks(tmp_path):
    """Files: reference, shifted (by one voxel), empty, labeled (1 and 2), thicker (other spacing), moved (by 3 mm)."""
    reference = box((3, 8), (5, 12), (6, 14))
    labeled = box((3, 8), (5, 12), (6, 14), 2)
    labeled[0, 0, 0] = 1
    arrays = {
        "reference": (reference, GRID),
        "shifted": (box((3, 8), (5, 12), (7, 15)), GRID),
        "empty": (reference * 0, GRID),
        "labeled": (labeled, GRID),
        "thicker": (reference, Geometry(GRID.size, (1.0, 1.0, 3.0), GRID.origin)),
        "moved": (reference, Geometry(GRID.size, GRID.spacing, (-9.0, -10.0, 0.0))),
    }
    for name, (array, geometry) in arrays.items():
        write_labels(LabelVolume(array, geometry), tmp_path / f"{name}.nii.gz")
    return tmp_path


def run(folder, *arguments):
    return main(["evaluate", *(str(folder / a) if str(a).endswith((".gz", ".csv")) else str(a) for a in arguments)])


def table(path):
    with path.open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def test_one_case_prints_what_evaluate_measures(masks, capsys):
    assert run(masks, "shifted.nii.gz", "reference.nii.gz", "--json", "-o", masks / "table.csv") == 0
    result = json.loads(capsys.readouterr().out)
    expected = evaluate(box((3, 8), (5, 12), (7, 15)), box((3, 8), (5, 12), (6, 14)), GRID.spacing_zyx)
    assert result["quantities"] == {name: dict(entry) for name, entry in expected.items()}
    assert result["resampled"] is False
    row = table(masks / "table.csv")["shifted"]
    assert float(row["dice"]) == pytest.approx(0.875)
    assert float(row["hausdorff_distance_95 [mm]"]) == pytest.approx(1.0)
    assert run(masks, "shifted.nii.gz", "reference.nii.gz") == 0
    assert "Dice" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        ("thicker.nii.gz", ["spacing (1, 1, 3) against (1, 1, 2.5) mm", "up to 5.5 mm apart", "allowed: 0.05 mm"]),
        ("moved.nii.gz", ["origin 3 mm apart", "--resample"]),
    ],
)
def test_other_grid_is_refused_with_its_difference_and_size(masks, capsys, prediction, words):
    assert run(masks, prediction, "reference.nii.gz") == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert error.count("\n") == 1


def test_resampling_happens_only_on_request(masks, capsys):
    assert run(masks, "moved.nii.gz", "reference.nii.gz", "--resample", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["resampled"] is True
    # 3 mm of 8 are shifted out
    assert result["quantities"]["dice"]["value"] == pytest.approx(5 / 8)
    assert run(masks, "shifted.nii.gz", "reference.nii.gz", "--resample", "--json") == 0
    assert json.loads(capsys.readouterr().out)["resampled"] is False


def test_label_map_with_several_labels_needs_a_choice(masks, capsys):
    assert run(masks, "labeled.nii.gz", "reference.nii.gz") == 2
    assert "holds several labels: 1, 2. Choose one with --label." in capsys.readouterr().err
    assert run(masks, "labeled.nii.gz", "reference.nii.gz", "--prediction-label", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["quantities"]["dice"]["value"] == 1.0
    assert run(masks, "labeled.nii.gz", "labeled.nii.gz", "--label", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["label"] == 2


def test_empty_masks_have_their_statuses(masks, capsys):
    assert run(masks, "empty.nii.gz", "reference.nii.gz", "--json") == 0
    values = json.loads(capsys.readouterr().out)["quantities"]
    assert values["dice"] == {"value": 0.0, "unit": "1", "status": "prediction_empty"}
    assert values["hausdorff_distance_95"] == {"value": "Infinity", "unit": "mm", "status": "prediction_empty"}
    assert run(masks, "empty.nii.gz", "empty.nii.gz", "--json") == 0
    values = json.loads(capsys.readouterr().out)["quantities"]
    assert values["dice"]["value"] == 1.0
    assert values["hausdorff_distance_95"] == {"value": None, "unit": "mm", "status": "both_empty"}


@pytest.fixture
def manifest(masks):
    rows = ["id,prediction,reference", "good,shifted.nii.gz,reference.nii.gz", "missed,empty.nii.gz,reference.nii.gz"]
    rows += ["other grid,thicker.nii.gz,reference.nii.gz", "gone,none.nii.gz,reference.nii.gz"]
    (masks / "cases.csv").write_text("\n".join(rows))
    return masks


@pytest.mark.parametrize("workers", [1, 2])
def test_manifest_goes_on_after_bad_cases_and_says_which(manifest, capsys, workers):
    status = run(manifest, "--manifest", "cases.csv", "-o", "table.csv", "--workers", workers, "--quiet")
    printed = capsys.readouterr()
    assert status == 3
    assert "2 done, 2 failed" in printed.err
    assert "failed other grid: The prediction is not on the grid of the reference" in printed.err
    assert "failed gone:" in printed.err
    rows = table(manifest / "table.csv")
    assert list(rows) == ["good", "missed", "other grid", "gone"]
    assert float(rows["good"]["dice"]) == pytest.approx(0.875)
    assert rows["missed"]["hausdorff_distance_95 [mm]"] == "inf"
    assert rows["gone"]["status"].startswith("failed: ")
    assert rows["gone"]["dice"] == ""
    # the summary tells how many count, and why one does not
    assert "HD95 [mm]" in printed.out
    assert "1 of 2 cases (1 out: infinite, the prediction is empty)" in printed.out


def test_manifest_resumes_and_counts_cases_done_before(manifest, capsys):
    assert run(manifest, "--manifest", "cases.csv", "-o", "table.csv", "--workers", 1, "--quiet") == 3
    write_labels(LabelVolume(box((3, 8), (5, 12), (6, 14)), GRID), manifest / "none.nii.gz")
    capsys.readouterr()
    arguments = ("--manifest", "cases.csv", "-o", "table.csv", "--workers", 1, "--quiet", "--resume", "--json")
    assert run(manifest, *arguments) == 3
    printed = capsys.readouterr()
    assert "1 done, 2 skipped (done before), 1 failed" in printed.err
    document = json.loads(printed.out)
    assert [case["case"] for case in document["cases"]] == ["good", "missed", "gone"]
    dice = next(row for row in document["summary"] if row["group"] == "all" and row["quantity"] == "dice")
    assert (dice["n"], dice["mean"]) == (3, pytest.approx((0.875 + 0 + 1) / 3))
    assert document["failed"][0]["case"] == "other grid"
    assert float(table(manifest / "table.csv")["gone"]["dice"]) == 1.0


def test_long_table_has_a_row_for_each_quantity(manifest):
    assert run(manifest, "shifted.nii.gz", "reference.nii.gz", "-o", manifest / "long.csv", "--long") == 0
    with (manifest / "long.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["quantity"] for row in rows} >= {"dice", "hausdorff_distance_95"}
    assert all(row["status"] == "ok" for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shifted.nii.gz"], "Give PREDICTION and REFERENCE"),
        ([], "Give PREDICTION and REFERENCE"),
        (["shifted.nii.gz", "reference.nii.gz", "--manifest", "cases.csv"], "and not both"),
        (["--manifest", "cases.csv", "--resume"], "--resume needs -o"),
        (["shifted.nii.gz", "reference.nii.gz", "--resume"], "--resume is for a --manifest"),
        (["nothing.nii.gz", "reference.nii.gz"], "nothing.nii.gz does not exist"),
        (["--manifest", "none.csv"], "is not there"),
        (["--manifest", "cases.csv", "--workers", "0"], "workers is 0"),
        (["shifted.nii.gz", "reference.nii.gz", "-o", "reference.nii.gz"], "reference.nii.gz is an input"),
        (["--manifest", "cases.csv", "-o", "cases.csv"], "cases.csv is an input"),
        (["--manifest", "cases.csv", "-o", "empty.nii.gz"], "empty.nii.gz is an input"),
    ],
)
def test_bad_usage_gets_one_sentence_and_status_2(manifest, capsys, arguments, words):
    before = {path: path.read_bytes() for path in manifest.iterdir()}
    assert run(manifest, *arguments) == 2
    assert {path: path.read_bytes() for path in manifest.iterdir()} == before
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert words in error[0]


def test_an_error_of_the_system_is_one_sentence_too(masks, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "shifted.nii.gz")

    monkeypatch.setattr(evaluate_command, "_evaluate", refuse)
    assert run(masks, "shifted.nii.gz", "reference.nii.gz") == 2
    assert capsys.readouterr().err == "error: shifted.nii.gz: Permission denied.\n"
