"""The case store: cases, answers, revisions, states, what stays out of it, versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from case_fixtures import SHAPE, hounsfield, lesion, make_store, write_ct, write_mask
from conftest import REPOSITORY
from synthetic_dicom import small_chest, write_series

from COVIDLesionSegLib.cases import Store, is_store
from COVIDLesionSegLib.cases.layout import VERSION
from COVIDLesionSegLib.errors import GridMismatchError, InputError, ReadError
from COVIDLesionSegLib.imaging import Geometry, LabelVolume, read_labels
from COVIDLesionSegLib.measurement import dice
from COVIDLesionSegLib.resources import load_json


@pytest.fixture
def store(tmp_path) -> Store:
    return make_store(tmp_path)


# --- the life of a case ----------------------------------------------------------------------------------------------


def test_a_case_goes_from_new_to_approved(store):
    def state() -> str:
        return store.case("case-0001").state

    assert state() == "new"
    store.set_prediction("case-0001", np.roll(lesion(1), 2, 2), {"id": "coplenet", "weights_sha256": "ab"})
    assert state() == "predicted"
    with store.open("case-0001", "anna") as session:
        assert state() == "in work"
        assert session.start_from == "the prediction of coplenet"
        session.save(lesion(1))
    assert state() == "corrected"
    store.approve("case-0001", "chief")
    assert state() == "approved"
    store.exclude("case-0001", "motion")
    assert state() == "excluded"
    store.include("case-0001")
    assert state() == "approved"
    # a later revision needs approval of its own
    store.save_revision("case-0001", lesion(2), "anna")
    assert state() == "corrected"
    assert store.counts() == {"corrected": 1, "new": 2}
    assert [case.id for case in store.cases("new")] == ["case-0002", "case-0003"]


def test_a_revision_says_who_how_long_from_which_answer_and_how_far_from_it(store):
    answer = np.roll(lesion(1), 2, 2)
    store.set_prediction("case-0001", answer, "old-model")
    store.set_prediction("case-0001", np.roll(answer, 1, 2), "new-model", uncertainty={"tta_entropy": 0.25})
    with store.open("case-0001", "anna") as session:
        first = session.save(lesion(1), comment="consolidation added")
    second = store.save_revision("case-0001", lesion(2), "bert", seconds=312.4)
    assert (first.number, second.number) == (1, 2)
    assert (first.rater, first.prediction, first.model) == ("anna", 2, "new-model")
    assert first.dice_to_prediction == pytest.approx(dice(np.roll(answer, 1, 2), lesion(1)), abs=1e-6)
    assert first.lesion_ml == pytest.approx(lesion(1).sum() * 0.8 * 0.8 * 2.5 / 1000)
    assert (second.seconds, first.comment) == (312.4, "consolidation added")
    case = store.case("case-0001")
    assert case.raters == ("anna", "bert")
    assert case.latest("anna") == first
    assert case.label_revision == second
    path = store.revision_path(case, first)
    assert path.name == "case-0001_r001_anna.seg.nrrd"
    assert read_labels(path).names == {1: "lesion"}
    assert store.set_label("case-0001", 1).label_revision == first
    assert store.approve("case-0001", "chief", revision=1).approved == 1


def test_every_answer_still_tells_which_model_made_it(store):
    for model in ("first", "second"):
        store.set_prediction("case-0001", lesion(1), {"id": model, "weights_sha256": "cd"}, record={"model": model})
    assert [p.model_id for p in store.case("case-0001").predictions] == ["first", "second"]
    assert [store.run_record("case-0001", number) for number in (1, 2)] == [{"model": "first"}, {"model": "second"}]
    assert store.read_prediction("case-0001", 1).mask().sum() == lesion(1).sum()


def test_a_session_begins_with_the_raters_own_last_revision(store):
    store.save_revision("case-0001", lesion(1), "anna")
    store.save_revision("case-0001", lesion(2), "bert")
    with store.open("case-0001", "anna") as session:
        assert session.start_from == "revision 1 of anna"
    with store.open("case-0001", "carl") as session:
        assert session.start_from == "revision 2 of bert"
        assert np.array_equal(session.start_mask.mask(), lesion(2))


def test_a_segmentation_with_several_labels_keeps_them_and_all_are_lesion(store):
    grid = store.case("case-0001").ct.geometry
    array = lesion(1).astype(np.uint8)
    array[2] *= 2
    names = {1: "ground-glass opacity", 2: "consolidation"}
    revision = store.save_revision("case-0001", LabelVolume(array, grid, names), "anna")
    again = store.read_revision("case-0001", 1)
    assert again.names == names
    assert np.array_equal(again.array, array)
    assert revision.lesion_ml == pytest.approx(lesion(1).sum() * grid.voxel_ml)


def test_a_case_without_lesion_counts_when_somebody_says_so(store):
    empty = np.zeros(SHAPE, bool)
    with pytest.raises(InputError, match="The mask of case-0001 is empty; save it as 'no lesion'"):
        store.save_revision("case-0001", empty, "anna")
    with pytest.raises(InputError, match=r"holds .* mL; empty the mask first"):
        store.save_revision("case-0001", lesion(1), "anna", no_lesion=True)
    assert store.case("case-0001").state == "new"
    store.set_prediction("case-0001", empty, "m")
    revision = store.save_revision("case-0001", empty, "anna", no_lesion=True)
    assert revision.lesion_free
    assert revision.dice_to_prediction == 1
    assert store.case("case-0001").lesion_ml == 0
    assert not store.read_revision("case-0001").mask().any()
    assert store.check().findings == ()


# --- what is refused -------------------------------------------------------------------------------------------------


def shifted(store: Store) -> LabelVolume:
    grid = store.case("case-0001").ct.geometry
    moved = Geometry(grid.size, grid.spacing, (grid.origin[0] + 5, *grid.origin[1:]), grid.direction)
    return LabelVolume(lesion(1).astype(np.uint8), moved)


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (shifted, GridMismatchError, "not on the grid of the CT of case-0001: origin 5 mm apart"),
        (lambda store: lesion(1)[1:], GridMismatchError, r"has the shape \(5, 24, 28\)"),
        (lambda store: lesion(1) * 0.5, InputError, "no labels"),
        (lambda store: -lesion(1).astype(int), InputError, "no labels"),
        (lambda store: np.where(lesion(1), np.nan, 0), InputError, "no labels"),
    ],
    ids=["another origin", "another size", "probability", "negative", "NaN"],
)
def test_a_mask_that_does_not_fit_is_refused_everywhere(store, mask, error, words):
    mask = mask(store)
    with store.open("case-0001", "anna") as session:
        for save in (
            session.save,
            session.autosave,
            lambda m: store.save_revision("case-0001", m, "anna"),
            lambda m: store.set_prediction("case-0001", m, "x"),
        ):
            with pytest.raises(error, match=words):
                save(mask)
    assert store.case("case-0001").state == "new"


@pytest.mark.parametrize("rater", ["", "Dr. Müller", "a/b", "x" * 41, "../up", "consensus", "Consensus", "-a"])
def test_a_rater_that_can_be_no_file_name_is_refused(store, rater):
    with pytest.raises(InputError, match=r"is not allowed|is kept for"):
        store.save_revision("case-0001", lesion(1), rater)


@pytest.mark.parametrize("case_id", ["case-0009", "case-1", "../case-0001", "", "anna"])
def test_a_case_that_is_not_there_is_named(store, case_id):
    with pytest.raises(InputError, match="There is no case"):
        store.case(case_id)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda store: store.approve("case-0001", "chief"), "has no revision to approve"),
        (lambda store: store.exclude("case-0001", " "), "Say why"),
        (lambda store: store.set_label("case-0001", 3), "has no revision '3'"),
        (lambda store: store.read_revision("case-0001"), "has no revision"),
        (lambda store: store.read_prediction("case-0001"), "has no prediction"),
        (lambda store: store.set_prediction("case-0001", lesion(1), "m", uncertainty={"x": np.inf}), "not finite"),
        (lambda store: store.consensus("case-0001"), "nobody; agreement and consensus need two"),
        (lambda store: Store.create(store.folder), "is not empty"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(store, act, words):
    with pytest.raises(InputError, match=words):
        act(store)


# --- the CT ----------------------------------------------------------------------------------------------------------


def test_a_copied_ct_has_the_same_voxels_and_grid(store, tmp_path):
    volume = store.read_ct("case-0002")
    assert np.array_equal(volume.array, hounsfield(2))
    assert volume.name == "case-0002"
    assert volume.geometry.difference(store.case("case-0002").ct.geometry) == ""
    shutil.rmtree(tmp_path / "cts")
    assert Store(store.folder).read_ct("case-0002").array.shape == SHAPE


def test_a_ct_is_taken_in_once_whatever_its_format(store, tmp_path):
    for name in ("again.nii.gz", "again.nrrd", "again.mha"):
        with pytest.raises(InputError, match="in the store already, as case-0002"):
            store.add(write_ct(tmp_path / name, 2))
    assert len(store.cases()) == 3


def test_a_referenced_ct_stays_where_it_is_and_is_verified(store, tmp_path):
    path = write_ct(tmp_path / "elsewhere" / "ct.nii.gz", 7)
    case = store.add(path, patient="seven", copy=False)
    assert case.ct.storage == "referenced"
    assert not list(store.layout.case(case.id).glob("ct*"))
    assert np.array_equal(store.read_ct(case.id).array, hounsfield(7))
    assert store.check().findings == ()

    path.rename(tmp_path / "moved.nii.gz")
    with pytest.raises(ReadError, match="is not where it was"):
        store.read_ct(case.id)
    assert not store.check().is_sound
    report = store.check(find=tmp_path)
    assert [(finding.kind, finding.where) for finding in report.findings] == [("repaired", case.id)]
    assert np.array_equal(store.read_ct(case.id).array, hounsfield(7))

    write_ct(tmp_path / "moved.nii.gz", 8)
    with pytest.raises(ReadError, match="has changed since it was added"):
        store.read_ct(case.id)
    report = store.check()
    assert "has changed since it was saved" in report.findings[0].text


def test_a_referenced_dicom_folder_is_verified_slice_by_slice(store, tmp_path):
    folder = tmp_path / "dicom"
    write_series(folder, small_chest())
    case = store.add(folder, copy=False)
    assert store.read_ct(case.id).array.shape == case.ct.geometry.shape
    assert store.check().findings == ()
    next(path for path in sorted(folder.iterdir())).unlink()
    assert not store.check().is_sound
    with pytest.raises(ReadError, match="has changed"):
        store.read_ct(case.id)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"copy": False, "rescale": (1, 0)}, "can't be referenced"),
        ({"lungs": lesion(1)[1:]}, "lung mask has the shape"),
    ],
)
def test_a_ct_that_cannot_be_taken_in_leaves_nothing(store, tmp_path, arguments, words):
    path = write_ct(tmp_path / "ct.nii.gz", 9)
    with pytest.raises(InputError, match=words):
        store.add(path, **arguments)
    assert sorted(p.name for p in store.layout.cases.iterdir()) == ["case-0001", "case-0002", "case-0003"]


def test_lungs_come_from_a_file_or_from_the_first_run(store, tmp_path):
    path = write_ct(tmp_path / "ct.nii.gz", 9)
    lungs = hounsfield(9) < -600
    case = store.add(path, lungs=write_mask(tmp_path / "lungs.nii.gz", lungs, path))
    assert case.lungs.source == "given"
    assert np.array_equal(store.read_lungs(case.id).mask(), lungs)
    assert store.read_lungs("case-0001") is None
    store.set_prediction("case-0001", lesion(1), "m", lungs=lungs.astype(np.uint8))
    assert store.case("case-0001").lungs.source == "found"
    assert store.check().findings == ()


def test_a_prediction_keeps_its_probability_and_notices_a_damaged_one(store):
    from COVIDLesionSegLib.inference.levels import ProbabilityLevels, levels_of

    probability = np.where(lesion(1), np.float32(0.8), np.float32(0.1))
    levels = ProbabilityLevels.of(levels_of(probability, 0.5), 0.5)
    plain = store.set_prediction("case-0001", lesion(1), "m")
    kept = store.set_prediction("case-0001", lesion(1), "m", levels=levels)
    assert store.read_levels("case-0001", plain.number) is None
    assert np.array_equal(store.read_levels("case-0001", kept.number).levels, levels.levels)
    assert store.check().findings == ()
    path = store.levels_path(store.case("case-0001"), kept)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ReadError, match="has changed since it was saved"):
        store.read_levels("case-0001", kept.number)
    assert "probability.npz" in " ".join(str(finding) for finding in store.check().findings)
    path.unlink()
    with pytest.raises(ReadError, match=r"probability\.npz"):
        store.read_levels("case-0001", kept.number)
    with pytest.raises(GridMismatchError, match="probability is of a CT"):
        store.set_prediction("case-0002", lesion(2), "m", levels=ProbabilityLevels.of(levels.levels[:1], 0.5))


# --- what stays out --------------------------------------------------------------------------------------------------


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().decode("latin-1")
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_no_identity_enters_the_store_unless_asked_for(tmp_path):
    folder = tmp_path / "DOE_JANE_19500101"
    write_series(folder, small_chest(), PatientName="DOE^JANE", PatientID="MRN-4711", PatientBirthDate="19500101")
    store = Store.create(tmp_path / "store")
    case = store.add(folder)
    store.set_prediction(case.id, case_mask(case), "m")
    store.save_revision(case.id, case_mask(case), "anna")
    for name, text in texts(store.folder).items():
        for secret in ("DOE", "JANE", "MRN-4711", "1950"):
            assert secret not in text, name
            assert secret not in name
    # the same patient ID gives the same key in this store, and another one elsewhere
    assert case.patient == store.patient_key("MRN-4711")
    assert Store.create(tmp_path / "other").patient_key("MRN-4711") != case.patient


def case_mask(case) -> np.ndarray:
    mask = np.zeros(case.ct.geometry.shape, bool)
    mask[1:3, 4:9, 4:9] = True
    return mask


def test_identity_that_was_asked_for_and_places_lie_in_private_alone(tmp_path):
    folder = tmp_path / "DOE_JANE"
    write_series(folder, small_chest(), PatientName="DOE^JANE", PatientID="MRN-4711")
    store = Store.create(tmp_path / "store")
    store.add(folder, copy=False, keep_identity=True)
    for name, text in texts(store.folder).items():
        if not name.startswith("private/"):
            assert "MRN-4711" not in text and "DOE" not in text, name
    identity = json.loads(store.layout.identity_file("case-0001").read_text())
    assert identity["PatientID"] == "MRN-4711"
    assert "PatientName" not in identity
    # without the private folder the store is still one, but can't be added to
    shutil.rmtree(store.folder / "private")
    assert Store(store.folder).cases()[0].id == "case-0001"
    with pytest.raises(ReadError, match="private folder is missing"):
        store.add(write_ct(tmp_path / "ct.nii.gz", 1))


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "words"), [(1, "Update COVIDLesionSeg"), (-1, "Make a new store and import")])
def test_a_store_of_another_version_is_refused_and_left_alone(store, step, words):
    file = store.folder / "store.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "version": VERSION + step}))
    before = texts(store.folder)
    with pytest.raises(InputError, match=rf"has version {VERSION + step}.* works with version {VERSION}\. {words}"):
        Store(store.folder)
    assert is_store(store.folder)
    assert texts(store.folder) == before


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": "covid-lesion-seg case store"}', b"half"])
def test_what_is_no_store_is_refused(tmp_path, content):
    (tmp_path / "store.json").write_bytes(content)
    with pytest.raises(ReadError):
        Store(tmp_path)
    with pytest.raises(ReadError, match="no case store"):
        Store(tmp_path / "nothing")
    assert not is_store(tmp_path / "nothing")


def test_the_rule_of_the_gate_follows_its_schema():
    jsonschema.validate(load_json("Gate.json"), load_json("Gate.schema.json"))


def test_the_page_about_the_store_names_its_version_and_all_its_files(store):
    page = (REPOSITORY / "docs" / "case-store.md").read_text(encoding="utf-8")
    assert f"version {VERSION}" in page
    for name in vars(store.layout).values():
        if isinstance(name, Path) and name != store.folder:
            assert name.name in page, name.name
