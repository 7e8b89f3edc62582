"""``covid-lesion-seg cases``: every action, what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from case_fixtures import SHAPE, decision, hounsfield, lesion, make_store, write_ct, write_mask, write_model

from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.cli import main


@pytest.fixture
def cases(tmp_path, capsys):
    """Runs ``cases ACTION STORE ...`` on a store with three cases; returns (status, standard output, error)."""
    store = make_store(tmp_path)

    def call(action: str, *arguments: object) -> tuple[int, str, str]:
        status = main(["cases", action, str(store.folder), *map(str, arguments)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    call.store = store
    call.folder = tmp_path
    return call


def mask_file(folder: Path, number: int) -> Path:
    return write_mask(folder / f"mask{number}.nii.gz", lesion(number), folder / "cts" / f"{number}.nii.gz")


def test_a_store_is_made_filled_and_listed(cases, tmp_path, capsys):
    target = tmp_path / "made"
    assert main(["cases", "create", str(target)]) == 0
    assert main(["cases", "create", str(target)]) == 2
    assert "is not empty" in capsys.readouterr().err
    ct = write_ct(tmp_path / "Doe_Jane.nii.gz", 9)
    lungs = write_mask(tmp_path / "lungs.nii.gz", hounsfield(9) < -600, ct)
    assert main(["cases", "add", str(target), str(ct), "--patient", "Jane", "--lungs", str(lungs)]) == 0
    assert capsys.readouterr().out.startswith("case-0001: ")
    assert main(["cases", "add", str(target), str(ct)]) == 2
    assert "in the store already, as case-0001" in capsys.readouterr().err
    other = write_ct(tmp_path / "10.nii.gz", 10)
    assert main(["cases", "add", str(target), str(ct), str(other), "--json"]) == 3
    shown = json.loads(capsys.readouterr().out)
    assert list(shown["done"].values()) == ["case-0002"] and len(shown["failed"]) == 1
    assert main(["cases", "list", str(target)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 new"


def test_a_mask_is_submitted_shown_and_approved(cases):
    store = cases.store
    store.set_prediction("case-0001", np.roll(lesion(1), 1, 2), "toy", uncertainty={"tta_entropy": 0.123})
    status, out, _ = cases("next", "--rater", "anna")
    assert (status, out.splitlines()[0].split(":")[0]) == (0, "case-0001")
    status, out, _ = cases("submit", "case-0001", mask_file(cases.folder, 1), "--rater", "anna", "--seconds", 90)
    assert status == 0
    assert out.startswith("case-0001: saved as revision 1, 0.1 mL, Dice 0.8")
    assert store.case("case-0001").lock is None
    status, out, _ = cases("show", "case-0001")
    assert "prediction 1: toy, 0.1 mL, tta_entropy 0.123" in out
    assert "revision 1: anna, 0.1 mL, 90 s, Dice 0.8" in out and "drafted by toy (label)" in out
    assert cases("approve", "case-0001", "--by", "chief")[0] == 0
    assert "(label, approved)" in cases("show", "case-0001")[1]
    assert cases("note", "case-0001", "typical")[0] == 0
    status, out, _ = cases("list", "--state", "approved")
    assert out.splitlines()[1].split() == ["case-0001", "approved", "0.1", "0.123", "1", "-", "typical"]
    listed = json.loads(cases("list", "--json")[1])
    assert [case["state"] for case in listed] == ["approved", "new", "new"]
    assert json.loads(cases("show", "case-0001", "--json")[1])["revisions"][0]["rater"] == "anna"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["case-0001", "--rater", "anna"], "Give a mask, or --no-lesion"),
        (["case-0009", "MASK", "--rater", "anna"], "There is no case 'case-0009'"),
        (["case-0001", "MASK", "--rater", "a b"], "rater 'a b' is not allowed"),
        (["case-0001", "EMPTY", "--rater", "anna"], "is empty; save it as 'no lesion'"),
        (["case-0001", "OTHER", "--rater", "anna"], "not on the grid of the CT of case-0001"),
    ],
)
def test_what_cannot_be_submitted_ends_with_status_2_and_one_line(cases, arguments, words):
    files = {
        "MASK": mask_file(cases.folder, 1),
        "EMPTY": write_mask(cases.folder / "e.nii.gz", np.zeros(SHAPE, bool), cases.folder / "cts" / "1.nii.gz"),
        "OTHER": write_mask(cases.folder / "o.nii.gz", lesion(1), shifted_ct(cases.folder)),
    }
    status, out, err = cases("submit", *(files.get(word, word) for word in arguments))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert words in err
    assert cases.store.case("case-0001").lock is None


def shifted_ct(folder: Path) -> Path:
    import SimpleITK as sitk

    path = write_ct(folder / "shifted.nii.gz", 1)
    image = sitk.ReadImage(str(path))
    image.SetOrigin((0, 0, 0))
    sitk.WriteImage(image, str(path))
    return path


def test_no_lesion_label_exclude_unlock(cases):
    assert cases("submit", "case-0001", "--no-lesion", "--rater", "anna")[0] == 0
    assert "no lesion" in cases("show", "case-0001")[1]
    assert cases("label", "case-0001", "1")[1] == "case-0001 trains with its label 1.\n"
    assert cases("exclude", "case-0002", "--reason", "motion")[0] == 0
    assert json.loads(cases("next", "--rater", "anna", "--json")[1])["case"] == "case-0003"
    assert cases("include", "case-0002")[1] == "case-0002 is new again.\n"
    session = cases.store.open("case-0002", "bert")
    status, out, _ = cases("next", "--rater", "anna", "--by", "age")
    assert out.splitlines()[0].startswith("case-0003") and "skipped: case-0002 is open: bert" in out
    status, out, err = cases("submit", "case-0002", mask_file(cases.folder, 2), "--rater", "anna")
    assert status == 2 and "is open: bert" in err
    assert "case-0002 was open: bert" in cases("unlock", "case-0002")[1]
    session.close()
    for case in ("case-0002", "case-0003"):
        cases("exclude", case, "--reason", "x")
    assert cases("next", "--rater", "anna")[1] == "Nothing waits.\n"


def test_import_export_and_check(cases):
    source = cases.folder / "data"
    ct = write_ct(source / "7_ct.nii.gz", 7)
    write_mask(source / "7_lesion.nii.gz", lesion(7), ct)
    write_ct(source / "1_ct.nii.gz", 1)
    status, out, _ = cases("import", source, "--rater", "expert", "--approve")
    assert status == 0
    assert out.splitlines() == ["case-0004: 7", "case-0001 was there already: 1"]
    status, out, _ = cases("export", cases.folder / "raw", "--name", "Lesions")
    assert (status, out) == (0, f"Wrote {cases.folder / 'raw' / 'Dataset501_Lesions'}.\n")
    status, out, _ = cases("check")
    assert status == 0 and out.splitlines()[-1] == "The store is sound."
    (cases.store.layout.case("case-0001") / "ct.nrrd").unlink()
    status, out, _ = cases("check", "--json")
    report = json.loads(out)
    assert status == 3 and not report["is_sound"]
    assert [finding["where"] for finding in report["findings"]] == ["case-0001"]


def test_split_review_and_agreement(cases):
    store = cases.store
    for number in (1, 2, 3):
        store.save_revision(f"case-000{number}", lesion(number), "anna")
    assert "not frozen yet" in cases("split")[1]
    status, out, _ = cases("split", "--freeze", "--validation", "case-0002")
    assert status == 0 and "validation" in out and "freeze: by command" in out
    status, _, err = cases("split", "--freeze")
    assert status == 2 and "frozen already" in err
    assert cases("split", "--move", "case-0001", "validation", "--by", "chief", "--reason", "wanted")[0] == 0
    assert json.loads(cases("split", "--json")[1])["history"][-1]["why"] == "wanted"

    rows = [{"case": "case-0003", "slice": 2, "score": 1.0, "reason": "loss above the threshold"}]
    store.review.add(rows, {"case-0003": store.case("case-0003").label_revision.sha256}, 1)
    assert cases("review")[1].splitlines()[0] == "case-0003 slice 2: 1.00, loss above the threshold"
    assert cases("review", "--decide", "case-0003", 2, "right", "--by", "anna")[0] == 0
    assert cases("review")[1] == "0 on the list.\n"
    assert "[right, anna]" in cases("review", "--all")[1]
    status, _, err = cases("review", "--decide", "case-0003", "two", "right", "--by", "anna")
    assert status == 2 and "whole number" in err

    assert cases("agreement")[1] == "No case was saved by two raters yet.\n"
    store.save_revision("case-0001", np.roll(lesion(1), 1, 1), "bert")
    status, out, _ = cases("agreement")
    assert "case-0001 anna - bert: Dice 0.800, HD95 0.8 mm" in out
    status, out, _ = cases("agreement", "case-0001", "--consensus", "--json")
    assert status == 0 and {"anna - bert", "anna - consensus"} <= set(json.loads(out)["summary"])
    assert store.case("case-0001").label == "consensus"
    status, _, err = cases("agreement", "case-0002")
    assert status == 2 and "two or more raters" in err


def test_models_are_shown_chosen_and_overridden(cases, monkeypatch):
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(cases.folder / "registry"))
    store = cases.store
    model = store.models.add(
        write_model(cases.folder / "m.safetensors"), "toy", 1, split={"text": ""}, trained_on={"name": "cases"}
    ).id
    status, _, err = cases("models", "--default", model, "--by", "anna")
    assert status == 2 and "was not validated" in err
    store.models.record_gate(model, decision(model, "old", [0.1], [0.9]))
    status, _, err = cases("models", "--default", model, "--by", "anna")
    assert status == 2 and f"{model} failed validation against old" in err
    assert cases("models", "--override", model, "accept", "--by", "chief", "--reason", "better on vessels")[0] == 0
    status, out, _ = cases("models", "--default", model, "--by", "chief")
    assert out.splitlines()[0] == f"active: {model}"
    assert "chief accepted it despite failed validation: better on vessels." in out
    assert cases("models", "--default", "coplenet-ctseg", "--by", "chief", "--reason", "back")[0] == 0
    assert Store(store.folder).models.default() == "coplenet-ctseg"
    shown = json.loads(cases("models", "--json")[1])
    assert [act["model"] for act in shown["history"]] == ["coplenet-ctseg", model, "coplenet-ctseg"]
    assert cases("rounds")[1] == "Nothing was trained here yet.\n"


def test_a_folder_that_is_no_store_is_named(tmp_path, capsys):
    assert main(["cases", "list", str(tmp_path)]) == 2
    assert "is no case store" in capsys.readouterr().err
