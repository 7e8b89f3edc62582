"""Data sets taken into a store, and a store's labels handed to nnU-Net."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from case_fixtures import SHAPE, hounsfield, lesion, make_store, write_ct, write_mask
from synthetic_dicom import small_chest, write_series

from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.errors import CancelledError, InputError, ReadError
from COVIDLesionSegLib.imaging import read_labels, read_volume


def pairs(folder: Path) -> Path:
    for number, name in ((1, "Meyer"), (2, "Schmidt")):
        ct = write_ct(folder / f"{name}_ct.nii.gz", number)
        write_mask(folder / f"{name}_lesion.nii.gz", lesion(number), ct)
    write_mask(folder / "Meyer_lungs.nii.gz", hounsfield(1) < -600, folder / "Meyer_ct.nii.gz")
    write_ct(folder / "Vogel_ct.nrrd", 3)
    return folder


def folders(folder: Path) -> Path:
    for number, name in ((1, "Meyer"), (2, "Schmidt")):
        ct = write_ct(folder / "images" / f"{name}.nii.gz", number)
        write_mask(folder / "labels" / f"{name}.nii.gz", lesion(number), ct)
    write_ct(folder / "images" / "Vogel.nii.gz", 3)
    return folder


def nnunet(folder: Path) -> Path:
    for number, name in ((1, "Meyer"), (2, "Schmidt")):
        ct = write_ct(folder / "imagesTr" / f"{name}_0000.nii.gz", number)
        write_mask(folder / "labelsTr" / f"{name}.nii.gz", lesion(number), ct)
    write_ct(folder / "imagesTr" / "Vogel_0000.nii.gz", 3)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def monai_label(folder: Path) -> Path:
    for number, name in ((1, "Meyer"), (2, "Schmidt"), (3, "Vogel")):
        ct = write_ct(folder / f"{name}.nii.gz", number)
        write_mask(folder / "labels" / "original" / f"{name}.nii.gz", np.roll(lesion(number), 1, 2), ct)
        if number < 3:
            write_mask(folder / "labels" / "final" / f"{name}.nii.gz", lesion(number), ct)
    (folder / "datastore_v2.json").write_text(json.dumps({"name": "x", "description": "", "objects": {}}))
    return folder


def manifest(folder: Path) -> Path:
    pairs(folder)
    rows = [
        "Meyer,Meyer_ct.nii.gz,Meyer_lesion.nii.gz,P1",
        "Schmidt,Schmidt_ct.nii.gz,Schmidt_lesion.nii.gz,P1",
        "Vogel,Vogel_ct.nrrd,,P2",
    ]
    (folder / "cases.csv").write_text("\n".join(["id,ct,lesion,patient", *rows]))
    return folder / "cases.csv"


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.mark.parametrize("make", [pairs, folders, nnunet, monai_label, manifest])
def test_a_data_set_becomes_cases_with_the_experts_masks_as_first_revisions(store, tmp_path, make):
    report = store.import_cases(make(tmp_path / "data"), rater="expert")
    assert dict(report.done) == {"Meyer": "case-0001", "Schmidt": "case-0002", "Vogel": "case-0003"}
    assert not report.failed and not report.known
    for number in (1, 2):
        case = store.case(f"case-000{number}")
        assert case.state == "corrected"
        assert np.array_equal(store.read_revision(case.id).mask(), lesion(number))
        assert np.array_equal(store.read_ct(case.id).array, hounsfield(number))
        assert (case.revisions[0].rater, case.revisions[0].kind) == ("expert", "import")
        if make is monai_label:
            assert case.prediction.model_id == "unknown"
            assert 0 < case.revisions[0].dice_to_prediction < 1
    assert store.case("case-0003").state == ("predicted" if make is monai_label else "new")
    patients = {case.patient for case in store.cases()}
    assert len(patients) == (2 if make is manifest else 3)
    for path in store.folder.rglob("*"):
        assert "Meyer" not in path.name
        if path.is_file():
            assert b"Meyer" not in path.read_bytes()
    assert store.check().findings == ()


def test_an_import_is_run_again_to_take_in_what_is_new(store, tmp_path):
    source = pairs(tmp_path / "data")
    store.import_cases(source)
    ct = write_ct(source / "Weber_ct.nii.gz", 4)
    write_mask(source / "Weber_lesion.nii.gz", lesion(4), ct)
    report = store.import_cases(source, approve=True)
    assert dict(report.done) == {"Weber": "case-0004"}
    assert dict(report.known) == {"Meyer": "case-0001", "Schmidt": "case-0002", "Vogel": "case-0003"}
    assert [case.state for case in store.cases()] == ["corrected", "corrected", "new", "approved"]


def test_the_masks_of_cts_that_the_store_has_without_any_are_taken_in(store, tmp_path):
    source = monai_label(tmp_path / "data")
    for name in ("Meyer", "Schmidt", "Vogel"):
        store.add(source / f"{name}.nii.gz")
    store.set_prediction("case-0002", lesion(2), "toy")
    report = store.import_cases(source, rater="expert", approve=True)
    assert dict(report.done) == {"Meyer": "case-0001", "Schmidt": "case-0002"}
    assert dict(report.known) == {"Vogel": "case-0003"} and not report.failed
    assert [case.state for case in store.cases()] == ["approved", "approved", "new"]
    assert np.array_equal(store.read_revision("case-0001").mask(), lesion(1))
    # an answer that is there already is not pushed aside
    assert [case.prediction.model_id for case in store.cases() if case.prediction] == ["unknown", "toy"]
    assert not store.import_cases(source, rater="expert").done
    assert len(store.case("case-0001").revisions) == 1


def test_an_import_that_was_ended_before_a_mask_was_saved_goes_on(store, tmp_path, monkeypatch):
    source = pairs(tmp_path / "data")

    def ended(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save_revision", ended)
        with pytest.raises(KeyboardInterrupt):
            store.import_cases(source)
    assert store.case("case-0001").state == "new"
    assert set(store.import_cases(source).done) == {"Meyer", "Schmidt", "Vogel"}
    assert [case.state for case in store.cases()] == ["corrected", "corrected", "new"]


def test_equal_voxels_on_another_grid_get_no_mask(store, tmp_path):
    source = pairs(tmp_path / "data")
    store.add(source / "Meyer_ct.nii.gz")
    for role in ("ct", "lesion"):
        image = sitk.ReadImage(str(source / f"Meyer_{role}.nii.gz"))
        image.SetSpacing((0.8, 0.8, 5.0))
        sitk.WriteImage(image, str(source / f"Meyer_{role}.nii.gz"))
    (source / "Meyer_lungs.nii.gz").unlink()
    report = store.import_cases(source)
    assert "not on the grid of the CT of case-0001" in report.failed["Meyer"]
    assert store.case("case-0001").revisions == ()


def test_cts_of_one_patient_are_known_by_their_dicom_patient_id(store, tmp_path):
    for number, (name, patient) in enumerate((("before", "MRN-1"), ("after", "MRN-1"), ("third", ""))):
        write_series(tmp_path / "data" / name, small_chest() + number, PatientID=patient)
    rows = ["before,before,", "after,after,", "third,third,"]
    (tmp_path / "data" / "cases.csv").write_text("\n".join(["id,ct,patient", *rows]))
    assert len(store.import_cases(tmp_path / "data" / "cases.csv").done) == 3
    first, second, third = (case.patient for case in store.cases())
    assert first == second == store.patient_key("MRN-1")
    assert third == store.patient_key("third")
    # what the manifest says comes first
    again = Store.create(tmp_path / "again")
    (tmp_path / "data" / "cases.csv").write_text("id,ct,patient\nbefore,before,P1\n")
    again.import_cases(tmp_path / "data" / "cases.csv")
    assert again.case("case-0001").patient == again.patient_key("P1")


def test_what_does_not_fit_is_left_out_and_does_not_stop_the_others(store, tmp_path):
    source = pairs(tmp_path / "data")
    shape = (7, *SHAPE[1:])
    write_mask(source / "Meyer_lesion.nii.gz", lesion(1, shape), write_ct(tmp_path / "other.nii.gz", 1, shape))
    (source / "Schmidt_lesion.nii.gz").write_bytes(b"damaged")
    report = store.import_cases(source)
    assert dict(report.done) == {"Vogel": "case-0001"}
    assert "not on the grid of the CT" in report.failed["Meyer"]
    assert "damaged" in report.failed["Schmidt"]
    assert len(store.cases()) == 1


def test_an_empty_mask_is_no_lesion_only_when_that_is_said(store, tmp_path):
    source = pairs(tmp_path / "data")
    write_mask(source / "Meyer_lesion.nii.gz", np.zeros(SHAPE, bool), source / "Meyer_ct.nii.gz")
    report = store.import_cases(source)
    assert "Its mask is empty" in report.failed["Meyer"]
    report = store.import_cases(source, empty_is_lesion_free=True)
    assert store.case(report.done["Meyer"]).latest().lesion_free


def test_a_manifest_says_that_a_case_has_no_lesion(store, tmp_path):
    pairs(tmp_path / "data")
    (tmp_path / "data" / "cases.csv").write_text("ct,lesion\nVogel_ct.nrrd,none\n")
    report = store.import_cases(tmp_path / "data" / "cases.csv")
    assert store.case(report.done["Vogel_ct"]).latest().lesion_free


def test_several_labels_need_a_choice(store, tmp_path):
    source = nnunet(tmp_path / "data")
    description = json.loads((source / "dataset.json").read_text())
    description["labels"] = {"background": 0, "lung": 1, "lesion": 2}
    (source / "dataset.json").write_text(json.dumps(description))
    both = (hounsfield(1) < -600).astype(np.uint8)
    both[lesion(1)] = 2
    image = source / "imagesTr" / "Meyer_0000.nii.gz"
    write_mask(source / "labelsTr" / "Meyer.nii.gz", both, image)
    with pytest.raises(InputError, match=r"several labels \(lung: 1, lesion: 2\)"):
        store.import_cases(source)
    report = store.import_cases(source, label=2, empty_is_lesion_free=True)
    assert np.array_equal(store.read_revision(report.done["Meyer"]).mask(), lesion(1))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda folder: folder / "nothing", ReadError, "is not there"),
        (lambda folder: folder, ReadError, "no CT was found"),
        (lambda folder: write_mask_alone(folder), ReadError, r"1 masks have no CT \(Meyer\)"),
        (lambda folder: other_names(folder), ReadError, r"1 masks have no CT \(Meyer_mask\)"),
        (lambda folder: two_channels(folder), InputError, "several channels"),
    ],
    ids=["nothing there", "empty folder", "mask without CT", "masks of other names", "two channels"],
)
def test_what_is_no_data_set_is_refused(store, tmp_path, make, error, words):
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(error, match=words):
        store.import_cases(make(folder))


def write_mask_alone(folder: Path) -> Path:
    write_mask(folder / "Meyer_lesion.nii.gz", lesion(1), write_ct(folder.parent / "ct.nii.gz", 1))
    return folder


def other_names(folder: Path) -> Path:
    write_mask(folder / "masks" / "Meyer_mask.nii.gz", lesion(1), write_ct(folder / "images" / "Meyer.nii.gz", 1))
    return folder


def two_channels(folder: Path) -> Path:
    for channel in ("0000", "0001"):
        write_ct(folder / "imagesTr" / f"Meyer_{channel}.nii.gz", 1)
    return folder


def test_an_unknown_layout_is_named(store, tmp_path):
    with pytest.raises(InputError, match="layout 'bids' is unknown"):
        store.import_cases(tmp_path, layout="bids")


def test_an_import_can_be_stopped_and_keeps_what_is_done(store, tmp_path):
    source = pairs(tmp_path / "data")
    with pytest.raises(CancelledError, match="Stopped after 1 of 3 cases; run the import again"):
        store.import_cases(source, cancelled=lambda: len(store.cases()) > 0)
    assert len(store.import_cases(source).done) == 2


def test_references_are_taken_in_without_copies(store, tmp_path):
    store.import_cases(pairs(tmp_path / "data"), copy=False)
    assert {case.ct.storage for case in store.cases()} == {"referenced"}
    assert not list(store.folder.rglob("ct.nrrd"))
    assert np.array_equal(store.read_ct("case-0001").array, hounsfield(1))


# --- out -------------------------------------------------------------------------------------------------------------


def test_the_labels_go_to_nnunet_with_the_frozen_split(tmp_path):
    store = make_store(tmp_path)
    for number in (1, 2, 3):
        store.save_revision(f"case-000{number}", lesion(number), "anna")
    store.split.freeze(["case-0002"])
    target = store.export_nnunet(tmp_path / "raw", 7, "Lesions")
    assert target == tmp_path / "raw" / "Dataset007_Lesions"
    description = json.loads((target / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "lesion": 1}
    assert (description["numTraining"], description["file_ending"]) == (3, ".nii.gz")
    assert json.loads((target / "splits_final.json").read_text()) == [
        {"train": ["case-0001", "case-0003"], "val": ["case-0002"]}
    ]
    for number in (1, 2, 3):
        volume = read_volume(target / "imagesTr" / f"case-000{number}_0000.nii.gz")
        labels = read_labels(target / "labelsTr" / f"case-000{number}.nii.gz")
        assert np.array_equal(volume.array, hounsfield(number))
        assert np.array_equal(labels.mask(), lesion(number))
        assert labels.geometry.difference(volume.geometry) == ""
    # and back again
    again = Store.create(tmp_path / "again")
    assert len(again.import_cases(target).done) == 3


def test_an_export_that_cannot_be_is_refused(tmp_path):
    store = make_store(tmp_path)
    with pytest.raises(InputError, match="nothing to export"):
        store.export_nnunet(tmp_path)
    store.save_revision("case-0001", lesion(1), "anna")
    for number, name in ((0, "x"), (1000, "x"), (5, "a/b")):
        with pytest.raises(InputError, match="no name of nnU-Net's"):
            store.export_nnunet(tmp_path, number, name)
    with pytest.raises(CancelledError, match="nothing was written"):
        store.export_nnunet(tmp_path / "raw", cancelled=lambda: True)
    assert not list((tmp_path / "raw").iterdir())
    store.export_nnunet(tmp_path / "raw")
    with pytest.raises(InputError, match="is there already"):
        store.export_nnunet(tmp_path / "raw")
