"""What the store decides: who trains and judges, which case is next, which model may stay, which labels to look at."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from case_fixtures import SHAPE, lesion, make_store, write_ct, write_model
from safetensors.numpy import load_file, save_file

from COVIDLesionSegLib.cases import Store, center_ras
from COVIDLesionSegLib.cases.gate import CaseFigures, GateDecision, GateRule, decide
from COVIDLesionSegLib.cases.queue import ORDERS
from COVIDLesionSegLib.codec import from_json, to_json
from COVIDLesionSegLib.errors import InputError, ModelError
from COVIDLesionSegLib.models import read_card
from COVIDLesionSegLib.models.card import rewrite_card, tensors_sha256


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


# --- the queue -------------------------------------------------------------------------------------------------------


def test_the_next_case_comes_in_the_wanted_order_with_its_reason(store):
    for number, entropy, disagreement, size in ((1, 0.1, 0.5, 2), (2, 0.4, 0.1, 9), (3, 0.2, 0.3, 4)):
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
        "The most uncertain of 3 waiting answers: entropy under test-time augmentation 0.400 bit."
    )
    assert reasons["disagreement"].endswith("student and teacher overlap with Dice 0.50.")
    assert reasons["lesion-size"] == "The largest lesion of those that wait: 0.1 mL."
    assert reasons["age"].startswith("The longest waiting: added 20")
    assert reasons["random"] == "Drawn by chance from 4 waiting cases."
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


def figures(dice: float, reference: float = 10.0, prediction: float = 10.0) -> CaseFigures:
    return CaseFigures(dice, 0.1, 4.0, prediction, reference)


SPLIT = {"validation_patients": 6, "moves": []}


@pytest.mark.parametrize(
    ("old", "new", "passes", "words"),
    [
        ([0.8, 0.7], [0.8, 0.7], True, "Mean Dice 0.750 against 0.750"),
        ([0.8, 0.7], [0.79, 0.7], True, "Mean Dice 0.745 against 0.750"),
        ([0.8, 0.7], [0.789, 0.7], False, "lower by more than 0.005"),
        ([0.8, 0.7], [0.75, 0.76], True, "Mean Dice 0.755"),
        ([0.8, 0.7], [0.749, 0.9], False, "c0 fell from Dice 0.800 to 0.749, by more than 0.05"),
        ([0.0, 0.7], [0.6, 0.7], True, "Mean Dice 0.650"),
    ],
)
def test_the_gate_lets_no_worse_model_through(old, new, passes, words):
    def cases(values):
        return {f"c{number}": figures(value) for number, value in enumerate(values)}

    decision = decide("old", "new", cases(old), cases(new), SPLIT)
    assert decision.passed is passes
    assert words in decision.text
    assert from_json(GateDecision, json.loads(json.dumps(to_json(decision)))) == decision


def test_false_lesion_in_a_case_without_lesion_counts():
    old = {"a": figures(0.8), "free": figures(0.0, reference=0.0, prediction=2.0)}
    for prediction, passes in ((3.0, True), (3.1, False)):
        new = {"a": figures(0.8), "free": figures(0.0, reference=0.0, prediction=prediction)}
        decision = decide("old", "new", old, new, SPLIT)
        assert decision.passed is passes
        assert decision.mean_dice_new == 0.8
    assert "free has no lesion, and what the model marks in it grew from 2.0 to 3.1 mL" in decision.text
    only = {"free": old["free"]}
    decision = decide("old", "new", only, only, SPLIT)
    assert math.isnan(decision.mean_dice_old) and decision.passed
    assert "No validation case has lesion" in decision.warnings[-1]
    again = from_json(GateDecision, json.loads(json.dumps(to_json(decision))))
    assert math.isnan(again.mean_dice_new) and again.cases == decision.cases


def test_figures_that_are_not_finite_survive_json():
    missed = CaseFigures(0.0, 1.0, math.inf, 0.0, 12.0)
    decision = decide("old", "new", {"a": missed}, {"a": missed}, SPLIT)
    assert (
        from_json(GateDecision, json.loads(json.dumps(to_json(decision)))).cases["a"]["new"].hausdorff_distance_95
        == math.inf
    )


def test_one_patient_who_judges_is_a_warning():
    decision = decide("old", "new", {"a": figures(0.8)}, {"a": figures(0.8)}, {"validation_patients": 1})
    assert decision.passed
    assert decision.warnings[0].startswith("One patient judges")


def test_models_judged_on_different_cases_are_not_compared():
    for new in ({"b": figures(0.8)}, {}):
        with pytest.raises(InputError, match="on the same cases"):
            decide("old", "new", {"a": figures(0.8)} if new else {}, new, SPLIT)


def test_the_shipped_rule_is_the_one_of_the_documents():
    assert GateRule.shipped() == GateRule(0.005, 0.05, 1.0)


# --- models of the store ---------------------------------------------------------------------------------------------


def with_model(store: Store, folder, training_round: int, passed: bool = True) -> str:
    file = write_model(folder / "new.safetensors", metrics={"validation": {"dice": 0.8}})
    model = store.models.add(file, "toy", training_round, split={"text": "x"}, trained_on={"name": "cases"})
    now = {"case-0001": figures(0.8)}
    then = {"case-0001": figures(0.8 if passed else 0.9)}
    store.models.record_gate(model.id, decide("toy", model.id, then, now, {"validation_patients": 2, "text": "x"}))
    return model.id


def test_the_default_has_a_history_and_goes_back_in_one_call(store, tmp_path, monkeypatch):
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
    with pytest.raises(InputError, match=r"did not pass the gate against toy\. Mean Dice 0.800 against 0.900"):
        store.models.set_default(model, "anna")
    with pytest.raises(InputError, match="Say why"):
        store.models.override(model, True, "chief", " ")
    store.models.override(model, True, "chief", "the old one misses consolidation")
    store.models.set_default(model, "chief")
    card = read_card(store.models.path(model))
    gate = card.metrics["gate"]
    assert not gate["passed"]
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
    with pytest.raises(InputError, match=r"passed the gate.*chief rejected it"):
        store.models.set_default(model, "anna")
    assert "chief rejected it all the same: wrong on vessels." in store.models.get(model).gate.text


def test_a_model_that_was_not_judged_is_no_default(store, tmp_path):
    file = write_model(tmp_path / "new.safetensors")
    model = store.models.add(file, "toy", 1, split={}, trained_on={"name": "cases"})
    with pytest.raises(InputError, match="was not judged"):
        store.models.set_default(model.id, "anna")
    with pytest.raises(InputError, match="has not decided"):
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
