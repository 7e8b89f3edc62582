"""Cases to train on, the frozen split and the store of their slices."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from file_faults import small_disk
from PIL import Image
from training_fixtures import hashes_of, write_cases, write_pictures

from COVIDLesionSegLib.errors import InputError, OutputError, ReadError
from COVIDLesionSegLib.learning import store as store_module
from COVIDLesionSegLib.learning.data import TrainingCase, load_split, make_split, read_cases, save_split
from COVIDLesionSegLib.learning.store import open_store
from COVIDLesionSegLib.learning.validation import judge_case
from COVIDLesionSegLib.measurement import hausdorff_distance_95

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


def prepared(cases, hashes, folder, **options):
    """Open a store; which cases had to be made."""
    calls = []
    store = open_store(cases, hashes, folder, margin=2, progress=lambda *event: calls.append(event), **options)
    return store, len(calls)


def test_each_case_is_stored_once_and_a_damaged_one_again(cases, tmp_path):
    hashes = hashes_of(cases)
    assert prepared(cases, hashes, tmp_path)[1] == 4
    assert prepared(cases, hashes, tmp_path)[1] == 0
    damaged = next(tmp_path.glob("*/labels.u8"))
    before = damaged.read_bytes()
    with damaged.open("r+b") as file:
        file.write(b"\x01\x01\x01")
    assert prepared(cases, hashes, tmp_path)[1] == 1
    assert damaged.read_bytes() == before
    # a copied folder has other times, and is checked by hash
    shutil.copytree(tmp_path, tmp_path.with_name("copy"), copy_function=shutil.copyfile)
    assert prepared(cases, hashes, tmp_path.with_name("copy"))[1] == 0


def test_what_nobody_asks_for_any_more_is_removed(cases, tmp_path):
    prepared(cases[:2], hashes_of(cases), tmp_path)
    old, young = sorted(tmp_path.iterdir())
    rests = [tmp_path / f".0000000{number}.part.{old.name}" for number in (1, 2)]
    for rest in rests:
        rest.mkdir()
        (rest / "images.i16").touch()
    for path in (old / "index.json", rests[0]):
        os.utime(path, (0, 0))
    store_module.remove_unused(tmp_path, 7)
    assert sorted(tmp_path.iterdir()) == [rests[1], young]


def test_a_full_disk_leaves_no_half_entry(cases):
    with small_disk(1) as place:
        (place / "filler").write_bytes(bytes(1000 << 10))
        with pytest.raises(OutputError, match="disk is full"):
            prepared(cases[:1], hashes_of(cases), place / "slices")
        assert not list((place / "slices").iterdir())


def test_a_corrected_label_makes_one_entry_anew(tmp_path):
    folder = write_cases(tmp_path / "cases", ("anna", "bert", "cleo"))
    found = read_cases(folder)
    prepared(found, hashes_of(found), tmp_path / "store")
    mask = sitk.ReadImage(str(folder / "bert_lesion.nii.gz"))
    sitk.WriteImage(mask * 0 + sitk.Cast(mask > 0, mask.GetPixelID()) * 2, str(folder / "bert_lesion.nii.gz"))
    store, made = prepared(found, hashes_of(found), tmp_path / "store")
    assert made == 1
    assert store.cases["bert"].patient == "bert"


def test_another_process_opens_what_was_made_and_reads_no_case(cases, tmp_path, monkeypatch):
    hashes = hashes_of(cases)
    with pytest.raises(OutputError, match=r"anna .* gone"):
        open_store(cases, hashes, tmp_path, margin=2, build=False)
    first = open_store(cases, hashes, tmp_path, margin=2)
    for name in ("_prepare", "sha256_file"):
        monkeypatch.setattr(store_module, name, None)
    assert np.array_equal(open_store(cases, hashes, tmp_path, margin=2, build=False).image("anna"), first.image("anna"))


def test_a_case_that_judges_is_cut_as_the_predictor_cuts_it(tmp_path):
    """Lesion beside the lungs does not widen the crop, and still counts as missed."""
    folder = write_cases(tmp_path / "cases", ("anna",), slices=6)
    mask = sitk.ReadImage(str(folder / "anna_lesion.nii.gz"))
    array = sitk.GetArrayFromImage(mask)
    array[2, 0:2, 52:56] = 1
    outside = sitk.GetImageFromArray(array)
    outside.CopyInformation(mask)
    sitk.WriteImage(outside, str(folder / "anna_lesion.nii.gz"))
    found = read_cases(folder)
    trains, judges = (
        open_store(found, hashes_of(found), tmp_path / "s", 2, (16, 32), ids) for ids in (set(), {"anna"})
    )
    assert trains.cases["anna"].shape == trains.cases["anna"].label_shape == (6, 16, 32)
    # a case that trains shows all of its lesions
    whole = open_store(found, hashes_of(found), tmp_path / "s", 2).cases["anna"]
    assert (whole.shape, whole.label_shape) == ((6, 44, 53), (6, 44, 53))
    stored = judges.cases["anna"]
    assert (stored.shape, stored.label_shape, stored.corner) == ((6, 40, 50), (6, 48, 56), (0, 4, 3))
    assert np.array_equal(judges.label("anna"), array)
    probability = np.zeros(stored.label_shape, dtype=np.float32)
    probability[stored.box] = judges.label("anna")[stored.box]
    row = judge_case(probability, judges, "anna")
    assert row["dice"] == pytest.approx(2 * (array.sum() - 8) / (2 * array.sum() - 8))
    assert row["hd95_mm"] == hausdorff_distance_95(probability > 0.5, array != 0, (2.0, 1.0, 1.0))


def test_pictures_are_stored_and_resized(tmp_path):
    found = read_cases(write_pictures(tmp_path / "set"))
    store = open_store(found, hashes_of(found), tmp_path / "store", None, (32, 32))
    assert store.image("0").shape == (1, 32, 32)
    assert set(np.unique(store.label("0"))) == {0, 1}
    # Pillow averages where a picture shrinks, so that noise does not stay
    averaged = Image.open(tmp_path / "set/images/0.png").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(store.image("0")[0], np.asarray(averaged), atol=1)


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
    assert not list(tmp_path.glob("store/*"))
