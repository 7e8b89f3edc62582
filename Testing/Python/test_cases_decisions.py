"""What the store decides: who trains and judges, which case is next, which model may stay, which labels to look at."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from case_fixtures import SHAPE, decision, figures, lesion, make_store, write_ct, write_mask, write_model
from conftest import REPOSITORY
from safetensors.numpy import load_file, save_file
from synthetic_dicom import small_chest, write_series

from COVIDLesionSegLib.cases import Store, center_ras
from COVIDLesionSegLib.cases.gate import CaseFigures, GateDecision, GateRule, decide
from COVIDLesionSegLib.cases.queue import ORDERS
from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.codec import from_json, to_json
from COVIDLesionSegLib.errors import InputError, ModelError
from COVIDLesionSegLib.models import read_card
from COVIDLesionSegLib.models.card import rewrite_card, tensors_sha256
from COVIDLesionSegLib.resources import load_json


@pytest.fixture
def store(tmp_path) -> Store:
    return make_store(tmp_path, 4)


def labeled(store: Store, *numbers: int) -> Store:
    for number in numbers:
        store.save_revision(f"case-000{number}", lesion(number), "anna")
    return store


# --- the split -------------------------------------------------------------------------------------------------------


def test_the_split_is_frozen_by_patient_and_new_patients_train(store, tmp_path):
    labeled(store, 1, 2, 3)
    sides = store.split.freeze(["case-0002"], by="chief")
    judges = store.case("case-0002").patient
    assert [patient for patient, side in sides.items() if side == "validation"] == [judges]
    labeled(store, 4)
    new = store.case("case-0004").patient
    assert store.split.side(store.case("case-0004")) == "train"
    assert store.split.extend() == [new]
    assert store.split.extend() == []
    assert Store(store.folder).split.sides() == {**sides, new: "train"}
    assert [act["act"] for act in store.split.history()] == ["freeze", "add"]
    with pytest.raises(InputError, match="frozen already"):
        store.split.freeze()


def test_a_store_names_the_patients_who_choose_and_they_train_nothing(store, capsys):
    labeled(store, 1, 2, 3, 4)
    with pytest.raises(InputError, match="not frozen yet"):
        store.split.choose_by(["case-0002"], "chief")
    store.split.freeze(["case-0001"])
    assert store.split.choosers() == set()
    with pytest.raises(InputError, match="validates, and can't choose as well"):
        store.split.choose_by(["case-0001"], "chief")
    with pytest.raises(InputError, match="would be left to train"):
        store.split.choose_by(["case-0002", "case-0003", "case-0004"], "chief")
    chooser = store.case("case-0003").patient
    command = ["cases", "split", str(store.folder), "--choose", "case-0003", "--by", "chief", "--reason", "typical"]
    assert main(command) == 0
    assert f"{chooser}  case-0003 (chooses)" in capsys.readouterr().out
    assert store.split.choosers() == {chooser}
    assert store.split.history()[-1]["why"] == "typical"
    plan = store.training.plan()
    assert plan.choosers == (chooser,)
    assert plan.fresh == ("case-0002", "case-0004") and plan.cases["case-0003"] == "train"
    # who validates doesn't choose
    store.split.move("case-0003", "validation", "chief", "a second opinion")
    assert store.split.choosers() == set()
    store.split.choose_by(["case-0002"], "chief")
    store.split.choose_by([], "chief")
    assert store.split.choosers() == set() and store.training.plan().fresh == ("case-0002", "case-0004")


def test_a_second_case_of_a_validation_patient_never_trains(tmp_path):
    store = Store.create(tmp_path / "store")
    for number, patient in enumerate(("one", "two", "one"), start=1):
        store.add(write_ct(tmp_path / f"{number}.nii.gz", number), patient=patient)
    labeled(store, 1, 2)
    store.split.freeze(["case-0001"])
    labeled(store, 3)
    assert store.training.plan().cases == {"case-0001": "validation", "case-0002": "train", "case-0003": "validation"}


def test_moving_a_patient_is_recorded_and_said_on_the_card(store):
    labeled(store, 1, 2, 3)
    store.split.freeze(["case-0001"])
    before = store.split.statement([store.case("case-0001")])
    assert before["text"].startswith("Figures stand on 1 case of 1 patient kept from training since 20")
    assert before["text"].endswith("no patient was moved since.")
    store.split.move("case-0002", "validation", "chief", "more judges")
    assert store.split.side(store.case("case-0002")) == "validation"
    after = store.split.statement([store.case("case-0001"), store.case("case-0002")])
    assert after["text"].endswith("patients were moved 1 time since.")
    assert (after["moves"][0]["by"], after["moves"][0]["why"]) == ("chief", "more judges")
    assert before["sha256"] != after["sha256"]
    for arguments, words in (
        (("case-0002", "validation", "chief", "again"), "on the validation side already"),
        (("case-0003", "validation", "chief", "all"), "would leave nobody for train"),
        (("case-0003", "test", "chief", "x"), "side 'test' is unknown"),
        (("case-0003", "train", "chief", " "), "Say why"),
        (("nobody", "train", "chief", "x"), "neither a patient's key nor the id"),
    ):
        with pytest.raises(InputError, match=words):
            store.split.move(*arguments)


@pytest.mark.parametrize(
    ("numbers", "validation", "words"),
    [
        ((1,), (), "one patient only"),
        ((), (), "one patient only"),
        ((1, 2), ("case-0001", "case-0002"), "leave at least one to train on"),
        ((1, 2), ("case-0004",), "neither a patient's key nor"),
    ],
)
def test_a_split_that_cannot_be_is_refused_and_not_frozen(store, numbers, validation, words):
    labeled(store, *numbers)
    with pytest.raises(InputError, match=words):
        store.split.freeze(validation)
    assert not store.split.is_frozen


def test_only_cases_without_lesion_are_nothing_to_learn_from(store):
    for number in (1, 2):
        store.save_revision(f"case-000{number}", np.zeros(SHAPE, bool), "anna", no_lesion=True)
    with pytest.raises(InputError, match="nothing to learn"):
        store.split.freeze()


def test_excluded_cases_neither_train_nor_judge(store):
    labeled(store, 1, 2, 3)
    store.split.freeze(["case-0001"])
    store.exclude("case-0003", "motion")
    assert set(store.training.plan().cases) == {"case-0001", "case-0002"}
    store.exclude("case-0001", "motion")
    with pytest.raises(InputError, match="No validation case has a label"):
        store.training.plan()
    store.include("case-0001")
    store.exclude("case-0002", "motion")
    with pytest.raises(InputError, match="No training case has a label"):
        store.training.plan()


# --- whose a case is -------------------------------------------------------------------------------------------------


def test_a_patient_who_is_a_files_name_is_warned_about(tmp_path, caplog):
    """A follow-up in another file counts as another patient, and would stand on the other side."""
    store = Store.create(tmp_path / "store")
    for number, name in enumerate(("smith_march", "smith_may", "jones"), start=1):
        ct = write_ct(tmp_path / "pairs" / f"{name}_ct.nii.gz", number)
        write_mask(tmp_path / "pairs" / f"{name}_lesion.nii.gz", lesion(number), ct)
    report = store.import_cases(tmp_path / "pairs")
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("3 cases of 3 are known by a file's name only: a follow-up")
    assert {case.patient_from for case in store.cases()} == {"name"}
    jones, march, may = (store.case(f"case-000{number}") for number in (1, 2, 3))
    sides = store.split.freeze([march.id])
    assert "may stand on both sides" in caplog.text
    # this is the leak that the warning is about
    assert (sides[march.patient], sides[may.patient]) == ("validation", "train")
    assert store.split.statement([march])["warning"].startswith("3 cases of 3")
    assert any("known by a file's name only" in note for note in store.training.plan().notes)
    store.split.set_patient(may.id, march.id, "chief")
    assert store.case(may.id).patient == march.patient and Store(store.folder).case(may.id).is_named
    assert store.training.plan().cases == {jones.id: "train", march.id: "validation", may.id: "validation"}
    act = store.split.history()[-1]
    assert (act["act"], act["by"], act["case"], act["to"]) == ("patient", "chief", may.id, march.patient)
    # earlier figures no longer compare
    assert store.split.statement([march, store.case(may.id)])["moves"] == [act]
    assert store.check().findings == ()
    # what was named is rebuilt with its patient
    store.layout.case_file(may.id).unlink()
    assert store.case(may.id).patient == march.patient
    with pytest.raises(InputError, match="Say whose case-0003 is"):
        store.split.set_patient(may.id, " ", "chief")


def test_a_manifests_column_keeps_a_follow_up_on_its_patients_side(tmp_path):
    store = Store.create(tmp_path / "store")
    lines = ["id,patient,ct,lesion"]
    for number, (name, patient) in enumerate((("a1", "Smith"), ("a2", " Smith "), ("b1", "Jones")), start=1):
        ct = write_ct(tmp_path / f"{name}_ct.nii.gz", number)
        write_mask(tmp_path / f"{name}_lesion.nii.gz", lesion(number), ct)
        lines.append(f"{name},{patient},{name}_ct.nii.gz,{name}_lesion.nii.gz")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    report = store.import_cases(tmp_path / "cases.csv")
    assert report.warnings == () and {case.patient_from for case in store.cases()} == {"given"}
    sides = store.split.freeze(["case-0001"])
    assert len(sides) == 2
    assert store.training.plan().cases == {"case-0001": "validation", "case-0002": "validation", "case-0003": "train"}


def test_the_dicom_patient_id_counts_and_joins_what_was_named_otherwise(tmp_path, caplog):
    store = Store.create(tmp_path / "store")
    added = []
    for number, (patient_id, given) in enumerate(
        (("123", "Smith"), ("123", None), ("456", None), ("123", "Jones")), start=1
    ):
        folder = tmp_path / f"series-{number}"
        chest = small_chest()
        chest[number] += number
        write_series(folder, chest, PatientID=patient_id)
        added.append(store.add(folder, given))
    first, second, third, fourth = added
    assert second.patient == first.patient and second.patient_from == "dicom"
    assert third.patient != first.patient
    # a person's word counts more, and is doubted
    assert fourth.patient != first.patient and fourth.patient_from == "given"
    assert "The DICOM PatientID of this CT is that of case-0001, case-0002" in caplog.text
    assert len(caplog.records) == 1


# --- the queue -------------------------------------------------------------------------------------------------------


def test_the_next_case_comes_in_the_wanted_order_with_its_reason(store):
    for number, entropy, disagreement, size in ((1, 0.1, 0.6, 2), (2, 0.4, 0.1, 9), (3, 0.2, 0.3, 4)):
        mask = np.zeros(SHAPE, bool)
        mask[1, :size, :size] = True
        values = {"tta_entropy": entropy, "disagreement": disagreement}
        store.set_prediction(f"case-000{number}", mask, "m", uncertainty=values)
    found = {order: store.next("anna", order, seed=3) for order in ORDERS}
    assert {order: suggestion.case.id for order, suggestion in found.items() if order != "random"} == {
        "uncertainty": "case-0002",
        "disagreement": "case-0001",
        "lesion-size": "case-0002",
        "age": "case-0001",
    }
    reasons = {order: suggestion.reason for order, suggestion in found.items()}
    assert reasons["uncertainty"] == (
        "The most uncertain of 3 waiting predictions: entropy under test-time augmentation 0.400 bit."
    )
    assert reasons["disagreement"].endswith("student and teacher overlap with Dice 0.40.")
    assert reasons["lesion-size"] == "The largest lesion of those that wait: 0.1 mL."
    assert reasons["age"].startswith("The longest waiting: added 20")
    assert reasons["random"] == "Drawn at random from 4 waiting cases."
    assert {store.next("anna", "random", seed=seed).case.id for seed in range(20)} == {c.id for c in store.cases()}
    assert all(suggestion.waiting == 4 for suggestion in found.values())


def test_without_any_uncertainty_the_longest_waiting_comes_first(store):
    found = store.next("anna")
    assert found.case.id == "case-0001"
    assert found.reason.startswith("No uncertainty is known")


def test_what_was_saved_waits_for_a_second_rater_only_when_asked_for(store):
    labeled(store, 1, 2, 3, 4)
    assert store.next("bert") is None
    assert store.next("anna", states=("corrected",)) is None
    assert store.next("bert", "age", states=("corrected",)).case.id == "case-0001"
    with pytest.raises(InputError, match="order 'size' is unknown"):
        store.next("bert", "size")


# --- the review ------------------------------------------------------------------------------------------------------


def listed(store: Store) -> None:
    rows = [
        {"case": "case-0001", "slice": 2, "score": 1.5, "reason": "loss above the threshold in 4 of 4 visits"},
        {"case": "case-0002", "slice": 3, "score": 1.2, "reason": "loss above the threshold in 3 of 4 visits"},
        {"case": "case-0002", "slice": 1, "score": 0.9, "reason": "teacher and label overlap with Dice 0.10"},
        {"case": "case-0002", "slice": 4, "score": 0.1, "reason": "nothing"},
    ]
    labels = {name: store.case(name).label_revision.sha256 for name in ("case-0001", "case-0002")}
    store.review.add(rows, labels, 1)


def test_decisions_about_labels_are_remembered_and_used(store):
    labeled(store, 1, 2, 3)
    store.split.freeze(["case-0003"])
    listed(store)
    assert [(item.case, item.slice) for item in store.review.items()] == [
        ("case-0001", 2),
        ("case-0002", 3),
        ("case-0002", 1),
    ]
    store.review.decide("case-0001", 2, "right", "anna")
    store.review.decide("case-0002", 3, "fix", "anna", "the vessel is not lesion")
    assert [(item.case, item.slice) for item in store.review.items()] == [("case-0002", 1)]
    decided = store.review.items(decided=True)
    assert [(item.decision, item.by) for item in decided] == [("right", "anna"), ("fix", "anna")]
    # the next training leaves the slice out, and the case comes to the front of the queue
    plan = store.training.plan()
    assert plan.excluded == (("case-0002", 3),)
    assert "1 slice marked 'fix it' is left out." in plan.notes
    found = store.next("bert")
    assert (found.case.id, found.reason) == ("case-0002", "Marked 'fix it' in the review: slice 3.")
    # the same training result asks for nothing that was decided
    listed(store)
    assert [(item.case, item.slice) for item in store.review.items()] == [("case-0002", 1)]
    # a newer revision settles it
    store.save_revision("case-0002", lesion(5), "anna")
    assert store.review.items() == []
    assert store.training.plan().excluded == ()
    assert store.next("bert").case.id == "case-0004"
    assert len(Store(store.folder).case("case-0002").review) == 2


def test_a_case_with_several_reasons_to_come_first_waits_once(store):
    labeled(store, 1, 2)
    listed(store)
    store.review.decide("case-0002", 3, "fix", "anna")
    with store.open("case-0002", "anna") as session:
        session.autosave(lesion(3))
        found = store.next("bert")
        assert (found.case.id, found.waiting, len(found.skipped)) == ("case-0003", 2, 1)
    found = store.next("anna")
    assert (found.case.id, found.reason, found.waiting) == ("case-0002", "You left unsaved work on it.", 3)


def test_a_decision_about_nothing_is_refused(store):
    labeled(store, 1, 2, 3)
    listed(store)
    for arguments, words in (
        (("case-0001", 7, "fix", "anna"), "Slice 7 of case-0001 is not on the review list; on it are: 2"),
        (("case-0001", 2, "wrong", "anna"), "decision 'wrong' is unknown"),
        (("case-0001", 2, "fix", ""), "is not allowed"),
    ):
        with pytest.raises(InputError, match=words):
            store.review.decide(*arguments)


def test_a_viewer_can_jump_to_a_slice(store):
    case = store.case("case-0001")
    # 28 x 24 x 6 voxels of 0.8 x 0.8 x 2.5 mm from (-10, 20, -300) LPS
    assert center_ras(case, 2) == pytest.approx((10 - 13.5 * 0.8, -20 - 11.5 * 0.8, -295.0))


# --- the gate --------------------------------------------------------------------------------------------------------

EVEN = [0.5, 0.6, 0.7, 0.8, 0.75, 0.65]


def moved(*by: float) -> list[float]:
    return [dice + change for dice, change in zip(EVEN, by, strict=True)]


@pytest.mark.parametrize(
    ("new", "verdict", "words"),
    [
        (EVEN, "passed", "Mean Dice +0.000 to old in 6 patients (95% bounds +0.000 and +0.000): not lower"),
        # all a little lower, and surely not by more than 0.02
        (moved(-0.015, -0.01, -0.012, -0.014, -0.01, -0.016), "passed", "Mean Dice -0.013"),
        (moved(-0.03, -0.025, -0.03, -0.02, -0.025, -0.03), "failed", "lower than 0.02 allow"),
        # the mean is even, but half of the patients lose what the others gain
        (moved(0.08, -0.08, 0.06, -0.06, 0.07, -0.07), "undecided", "differ too much, to rule out a loss"),
        # one patient falls, and the mean says that it is chance
        (moved(0.02, 0.02, 0.02, -0.06, 0.02, 0.02), "passed", "Mean Dice +0.007"),
    ],
)
def test_the_gate_decides_by_an_interval_of_the_paired_differences(new, verdict, words):
    found = decision("new", "old", new, EVEN, rule=GateRule.shipped())
    assert found.verdict == verdict
    assert words in found.text
    # as text, since NaN is not equal to itself
    written = json.dumps(to_json(found))
    assert json.dumps(to_json(from_json(GateDecision, json.loads(written)))) == written
    # the draw of the bootstrap is no matter of luck
    again = decision("new", "old", new, EVEN, rule=GateRule.shipped())
    assert to_json(again.differences) == to_json(found.differences)


def test_a_case_that_falls_is_named():
    found = decision("new", "old", moved(0.02, 0.02, 0.02, -0.06, 0.02, 0.02), EVEN, rule=GateRule.shipped())
    assert found.warnings == ("case-0004 fell from Dice 0.800 to 0.740; look at it.",)


def test_the_cases_of_a_patient_count_as_one():
    before = {f"case-{n}": figures(0.8) for n in range(12)}
    # ten cases of one patient gain much, two patients lose a little
    after = {name: figures(0.9 if n < 10 else 0.75) for n, name in enumerate(before)}
    patients = {name: "one" if n < 10 else name for n, name in enumerate(before)}
    found = decide("new", "old", "old", {"old": before, "new": after}, patients, rule=GateRule(minimum_patients=3))
    (difference,) = found.differences
    assert difference.patients == 3
    assert difference.mean == pytest.approx(0.0)
    assert difference.low == pytest.approx(-0.05)
    assert found.verdict == "undecided"


def test_with_few_patients_a_person_has_to_choose():
    found = decision("new", "old", [0.9, 0.9, 0.9, 0.9], [0.5, 0.5, 0.5, 0.5], rule=GateRule.shipped())
    assert (found.verdict, found.passed, found.accepted) == ("undecided", False, False)
    assert "fewer than 5 patients count, so nothing is decided" in found.text
    assert "a person has to choose" in found.text
    chosen = found.overridden(True, "chief", "better on consolidation")
    assert chosen.accepted and chosen.text.endswith("chief accepted it: better on consolidation.")


def test_labels_that_do_not_count_decide_nothing():
    """Saved as the active model left them, they give it a Dice of 1, and a better model would be refused for good."""
    names = [f"case-{n}" for n in range(8)]
    before = {name: figures(1.0 if n < 3 else 0.85) for n, name in enumerate(names)}
    after = {name: figures(0.91) for name in names}
    models, patients = {"old": before, "new": after}, {name: name for name in names}
    assert sum(f.dice for f in after.values()) > sum(f.dice for f in before.values())
    assert not decide("new", "old", "old", models, patients).passed
    left_out = dict.fromkeys(names[:3], "its label was drafted by old; let it be read blind.")
    found = decide("new", "old", "old", models, patients, left_out)
    assert found.passed and found.differences[0].patients == 5
    assert found.differences[0].mean == pytest.approx(0.06)
    assert (found.mean_dice_old, found.mean_dice_new) == (pytest.approx(0.85), pytest.approx(0.91))
    # what does not count is shown all the same
    assert set(found.cases) == set(names)
    assert "case-0 does not count: its label was drafted by old; let it be read blind." in found.warnings
    nothing = decide("new", "old", "old", models, patients, dict.fromkeys(names, "x"))
    assert nothing.verdict == "undecided" and math.isnan(nothing.mean_dice_old)


def test_ten_rounds_that_each_lose_a_little_do_not_add_up():
    best = {f"case-{n}": figures(dice) for n, dice in enumerate(EVEN)}
    active, new = ({name: figures(f.dice - loss) for name, f in best.items()} for loss in (0.015, 0.03))
    patients = {name: name for name in best}
    models = {"best": best, "active": active, "new": new}
    assert decide("new", "active", "active", models, patients).passed
    found = decide("new", "active", "best", models, patients)
    assert found.verdict == "failed"
    assert [difference.verdict for difference in found.differences] == ["passed", "failed"]
    assert "Mean Dice -0.030 to best" in found.text
    assert found.cases["case-0"]["best"] == best["case-0"]


def test_false_lesion_in_patients_without_lesion_counts():
    def with_free(prediction: float) -> dict[str, CaseFigures]:
        return {"a": figures(0.8), "free": figures(0.0, reference=0.0, prediction=prediction)}

    patients, rule = {"a": "a", "free": "free"}, GateRule(minimum_patients=1)
    for prediction, verdict in ((3.0, "passed"), (3.1, "failed")):
        models = {"old": with_free(2.0), "new": with_free(prediction)}
        found = decide("new", "old", "old", models, patients, rule=rule)
        assert found.verdict == verdict
        assert found.mean_dice_new == 0.8
    assert "In 1 patient without lesion it marks 1.1 mL more than old, above 1 mL." in found.text
    only = {name: {"free": both["free"]} for name, both in models.items()}
    found = decide("new", "old", "old", {**only, "new": only["old"]}, patients, rule=rule)
    assert found.verdict == "undecided" and math.isnan(found.mean_dice_old)
    assert "No label with lesion counts" in found.text
    again = from_json(GateDecision, json.loads(json.dumps(to_json(found))))
    assert math.isnan(again.mean_dice_new) and again.cases == found.cases


def test_a_lesion_of_less_than_a_milliliter_is_a_lesion():
    small = {"a": figures(0.8), "small": figures(0.6, reference=0.4, prediction=0.3)}
    found = decide("new", "old", "old", {"old": small, "new": small}, {name: name for name in small})
    assert found.mean_dice_new == pytest.approx(0.7)
    assert found.differences[0].patients == 2


def test_figures_that_are_not_finite_survive_json():
    missed = {"a": CaseFigures(0.0, 1.0, math.inf, 0.0, 12.0)}
    found = decide("new", "old", "old", {"old": missed, "new": missed}, {"a": "a"})
    again = from_json(GateDecision, json.loads(json.dumps(to_json(found))))
    assert again.cases["a"]["new"].hausdorff_distance_95 == math.inf


def test_models_validated_on_different_cases_are_not_compared():
    for new in ({"b": figures(0.8)}, {}):
        with pytest.raises(InputError, match="on the same cases"):
            decide("new", "old", "old", {"old": {"a": figures(0.8)} if new else {}, "new": new}, {"a": "a", "b": "b"})


def test_the_shipped_rule_is_the_one_of_the_documents():
    assert GateRule.shipped() == GateRule()
    page = (REPOSITORY / "docs" / "validation.md").read_text(encoding="utf-8")
    for name, entry in load_json("Gate.json").items():
        if isinstance(entry, dict):
            assert f"`{name}`" in page and f"{entry['value']:g}" in page, name


# --- models of the store ---------------------------------------------------------------------------------------------


def with_model(store: Store, folder, training_round: int, passed: bool = True) -> str:
    file = write_model(folder / "new.safetensors", metrics={"validation": {"dice": 0.8}})
    model = store.models.add(file, "toy", training_round, split={"text": "x"}, trained_on={"name": "cases"})
    store.models.record_gate(model.id, decision(model.id, "toy", [0.8], [0.8 if passed else 0.9], split={"text": "x"}))
    return model.id


def test_the_active_model_has_a_history_and_goes_back_in_one_call(store, tmp_path, monkeypatch):
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path / "registry"))
    beginning = store.models.default()
    first, second = (with_model(store, tmp_path, number) for number in (1, 2))
    for model in (first, second, first, beginning):
        store.models.set_default(model, "anna", "tried")
        assert Store(store.folder).models.default() == model
    assert [act["model"] for act in store.models.history()] == [beginning, first, second, first, beginning]
    assert [model.id for model in store.models.list()] == [first, second]
    with pytest.raises(ModelError, match="no model"):
        store.models.set_default("nobody", "anna")


def test_a_model_that_did_not_pass_needs_an_override_that_its_card_records(store, tmp_path):
    model = with_model(store, tmp_path, 1, passed=False)
    weights = tensors_sha256(store.models.folder(model) / "model.safetensors")
    with pytest.raises(InputError, match=r"failed validation against toy\. Mean Dice -0.100 to toy"):
        store.models.set_default(model, "anna")
    with pytest.raises(InputError, match="Say why"):
        store.models.override(model, True, "chief", " ")
    store.models.override(model, True, "chief", "the old one misses consolidation")
    store.models.set_default(model, "chief")
    card = read_card(store.models.path(model))
    gate = card.metrics["gate"]
    assert gate["verdict"] == "failed"
    assert (gate["override"], gate["override_by"]) == ("accepted", "chief")
    assert gate["override_reason"] == "the old one misses consolidation"
    assert card.metrics["validation"] == {"dice": 0.8}
    assert card.metrics["split"]["text"] == "x"
    assert card.training_data[-1]["name"] == "cases"
    assert tensors_sha256(store.models.path(model)) == weights
    assert store.check().findings == ()


def test_a_good_model_can_be_rejected(store, tmp_path):
    model = with_model(store, tmp_path, 1)
    store.models.override(model, False, "chief", "wrong on vessels")
    with pytest.raises(InputError, match=r"passed validation.*chief rejected it"):
        store.models.set_default(model, "anna")
    assert "chief rejected it although it passed validation: wrong on vessels." in store.models.get(model).gate.text


def test_a_model_that_was_not_validated_is_not_active(store, tmp_path):
    file = write_model(tmp_path / "new.safetensors")
    model = store.models.add(file, "toy", 1, split={}, trained_on={"name": "cases"})
    with pytest.raises(InputError, match="was not validated"):
        store.models.set_default(model.id, "anna")
    with pytest.raises(InputError, match="was not validated yet"):
        store.models.override(model.id, True, "anna", "x")


def test_a_damaged_model_file_is_not_used(store, tmp_path):
    model = with_model(store, tmp_path, 1)
    file = store.models.folder(model) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="is damaged"):
        store.models.path(model)
    assert [finding.where for finding in store.check().findings] == [model]


def test_a_card_is_rewritten_without_touching_the_weights(tmp_path):
    path = tmp_path / "m.safetensors"
    model = write_model(path)
    tensors = {"a": np.arange(7, dtype=np.float32), "b": np.eye(3, dtype=np.float16)}
    card = read_card(model)
    save_file(tensors, path, metadata={"model_card": json.dumps(card.to_json()), "format": "pt"})
    before = tensors_sha256(path)
    rewrite_card(path, type(card)(**{**card.__dict__, "notes": "ö" * 1001}))
    assert read_card(path).notes == "ö" * 1001
    assert tensors_sha256(path) == before
    for name, tensor in load_file(path).items():
        assert np.array_equal(tensor, tensors[name])
