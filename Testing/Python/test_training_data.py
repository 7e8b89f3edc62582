"""Cases to train on, the frozen split and the store of their slices."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from training_fixtures import WINDOW, hashes_of, write_cases, write_pictures

from COVIDLesionSegLib.errors import InputError, ReadError
from COVIDLesionSegLib.learning.data import TrainingCase, load_split, make_split, read_cases, save_split
from COVIDLesionSegLib.learning.store import open_store

# ---- cases and split ----------------------------------------------------------------------------------------------


def test_a_manifest_lists_cases_with_and_without_lesion(tmp_path):
    write_cases(tmp_path, ("anna", "bert"))
    manifest = tmp_path / "cases.csv"
    manifest.write_text(
        "id,patient,ct,lesion,lungs\n"
        "a1,anna,anna_ct.nii.gz,anna_lesion.nii.gz,anna_lungs.nii.gz\n"
        "b1,bert,bert_ct.nii.gz,none,\n"
    )
    found = read_cases(manifest)
    assert [(case.id, case.patient, case.lesion is None) for case in found] == [
        ("a1", "anna", False),
        ("b1", "bert", True),
    ]


def test_picture_folders_are_cases(tmp_path):
    found = read_cases(write_pictures(tmp_path / "set"))
    assert [case.kind for case in found] == ["picture"] * 4


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "anna_lesion.nii.gz").unlink(), "have ct but no lesion"),
        (lambda folder: (folder / "anna_ct.nii.gz").unlink(), "have lesion but no ct"),
    ],
)
def test_a_mask_without_ct_or_the_reverse_is_refused(tmp_path, spoil, words):
    write_cases(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=words):
        read_cases(tmp_path)


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_no_cases_is_a_sentence(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError):
        read_cases(tmp_path / place)


def test_split_is_by_patient(tmp_path):
    both = [TrainingCase(f"{p}{n}", p, tmp_path, tmp_path) for p in "abcde" for n in range(3)]
    split = make_split(both, share=0.4, seed=1)
    assert sorted(split.sets.values()).count("validation") == 2
    validation = split.cases(both, "validation")
    assert len(validation) == 6
    assert not {case.patient for case in validation} & {case.patient for case in split.cases(both, "train")}
    assert make_split(both, share=0.4, seed=1) == split


@pytest.mark.parametrize(
    ("patients", "lesions", "validation", "words"),
    [
        (["a"], [True], (), "one patient only"),
        (["a", "b"], [False, False], (), "nothing to learn"),
        (["a", "b"], [True, True], ("c",), "not among"),
        (["a", "b"], [True, True], ("a", "b"), "at least one to train on"),
    ],
)
def test_impossible_splits_are_sentences(tmp_path, patients, lesions, validation, words):
    some = [TrainingCase(p, p, tmp_path, tmp_path if x else None) for p, x in zip(patients, lesions, strict=True)]
    with pytest.raises(InputError, match=words):
        make_split(some, validation)


def test_a_patient_on_both_sides_is_refused(cases, tmp_path):
    path = tmp_path / "split.json"
    save_split(make_split(cases, ("dora",)), path)
    assert load_split(path).sets["dora"] == "validation"
    path.write_text(path.read_text().replace('"anna": "train"', '"dora": "train"'))
    with pytest.raises(InputError, match="stands on one side only"):
        load_split(path)


@pytest.mark.parametrize("content", ["", "{}", '{"version": 1, "patients": {"a": "judge"}, "sha256": {}}'])
def test_files_that_are_no_split(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ReadError):
        load_split(tmp_path / "s.json")


# ---- store ----------------------------------------------------------------------------------------------------------


def test_the_store_holds_the_lungs_box_in_hu(cases, a_store):
    stored = a_store.cases["anna"]
    assert stored.shape == (6, 40, 50)
    assert stored.lesion_slices == (1, 2, 3, 4)
    ct = sitk.GetArrayFromImage(sitk.ReadImage(str(next(c for c in cases if c.id == "anna").image)))
    assert np.array_equal(a_store.image("anna"), ct[:, 4:44, 3:53])
    assert a_store.windowed("anna", np.int16([-1400, -650, 100]), *WINDOW) == pytest.approx([0, 0.5, 1])


def test_a_store_is_built_once_and_built_again_when_damaged(cases, tmp_path):
    first = open_store(cases, hashes_of(cases), tmp_path, margin=2)
    stamp = (first.folder / "index.json").stat().st_mtime_ns
    calls = []
    open_store(cases, hashes_of(cases), tmp_path, margin=2, progress=lambda *event: calls.append(event))
    assert calls == []
    with (first.folder / "labels.u8").open("r+b") as file:
        file.write(b"\x01\x01\x01")
    again = open_store(cases, hashes_of(cases), tmp_path, margin=2)
    assert (again.folder / "index.json").stat().st_mtime_ns != stamp
    assert again.label("anna").ravel()[:3].tolist() == [0, 0, 0]


def test_pictures_are_stored_and_resized(tmp_path):
    found = read_cases(write_pictures(tmp_path / "set"))
    store = open_store(found, hashes_of(found), tmp_path / "store", None, (32, 32))
    assert store.image("0").shape == (1, 32, 32)
    assert set(np.unique(store.label("0"))) == {0, 1}
    # Pillow averages where a picture shrinks, so that noise does not stay
    averaged = Image.open(tmp_path / "set/images/0.png").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(store.image("0")[0], np.asarray(averaged), atol=1)
    assert store.windowed("0", np.int16([0, 255]), *WINDOW) == pytest.approx([0, 1])


def test_a_lesion_that_resizing_loses_is_a_slice_without_lesion(tmp_path):
    folder = write_pictures(tmp_path / "set")
    speck = np.zeros((40, 56), dtype=np.uint8)
    speck[7, 9] = 255
    sitk.WriteImage(sitk.GetImageFromArray(speck), str(folder / "masks" / "2.png"))
    found = read_cases(folder)
    store = open_store(found, hashes_of(found), tmp_path / "store", None, (16, 16))
    assert [case.lesion_slices for case in store.cases.values()] == [(0,), (0,), (), (0,)]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda mask: mask[:-1], "Case anna: .*lesion mask is not on the grid"),
        (lambda mask: mask * 0, "Case anna: its lesion mask is empty"),
    ],
)
def test_cases_that_cannot_be_used_are_named(tmp_path, spoil, words):
    folder = write_cases(tmp_path / "cases", ("anna", "bert"))
    image = sitk.ReadImage(str(folder / "anna_lesion.nii.gz"))
    changed = sitk.GetImageFromArray(spoil(sitk.GetArrayFromImage(image)))
    changed.SetSpacing(image.GetSpacing())
    sitk.WriteImage(changed, str(folder / "anna_lesion.nii.gz"))
    found = read_cases(folder)
    with pytest.raises(InputError, match=words):
        open_store(found, hashes_of(found), tmp_path / "store")
    assert not any((tmp_path / "store").iterdir())
