"""Models validated by the gate, with stand-ins for the networks: which labels count, what people decide meanwhile."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from case_fixtures import lesion, make_store, write_ct, write_model

from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.cases.gate import CaseFigures, GateRule
from COVIDLesionSegLib.cases.running import Validation
from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.models import ModelCard, Preprocessing

ONE_DECIDES = GateRule(minimum_patients=1)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """Three labeled cases, of which the third validates."""
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path / "registry"))
    made = make_store(tmp_path, 3)
    for number in (1, 2, 3):
        made.save_revision(f"case-000{number}", lesion(number), "anna")
    made.split.freeze(["case-0003"])
    return made


def add_model(store: Store, folder: Path, training_round: int) -> str:
    file = write_model(folder / "new.safetensors")
    return store.models.add(file, "toy", training_round, split={}, trained_on={"name": "cases"}).id


def with_dice(monkeypatch, **dices: float) -> list[tuple[str, list]]:
    """Let each model have this Dice (0.8 where none is said); what was run, and on which cases, is noted."""
    seen = []

    def figures(self, model, device="auto", progress=None, cancelled=None, cases=None):
        seen.append((model, list(self.cases() if cases is None else cases)))
        dice = next((value for name, value in dices.items() if model.endswith(name)), 0.8)
        return {case.id: CaseFigures(dice, 0.1, 4.0, 10.0, 10.0) for case in seen[-1][1]}

    monkeypatch.setattr(Validation, "figures", figures)
    return seen


def test_a_model_that_a_person_rejected_stays_rejected_when_it_is_validated_again(store, tmp_path, monkeypatch):
    with_dice(monkeypatch)
    beginning, model = store.models.default(), add_model(store, tmp_path, 1)
    assert store.validation.decide(model, rule=ONE_DECIDES).passed and store.models.default() == model
    store.models.override(model, False, "chief", "wrong on vessels")
    store.models.set_default(beginning, "chief", "going back")
    gate = store.validation.decide(model, rule=ONE_DECIDES)
    assert (gate.passed, gate.accepted) == (True, False)
    assert store.models.default() == beginning
    kept = store.models.get(model).gate
    assert (kept.override, kept.override_by, kept.override_reason) == ("rejected", "chief", "wrong on vessels")
    assert store.models.card(model).metrics["gate"]["override"] == "rejected"


def test_a_model_that_a_person_accepted_stays_accepted_and_a_later_word_counts(store, tmp_path, monkeypatch):
    with_dice(monkeypatch, **{"001": 0.5})
    model = add_model(store, tmp_path, 1)
    assert not store.validation.decide(model, rule=ONE_DECIDES).accepted
    store.models.override(model, True, "chief", "better on consolidation")
    gate = store.validation.decide(model, rule=ONE_DECIDES)
    assert (gate.passed, gate.override, store.models.default()) == (False, "accepted", model)
    assert store.models.override(model, False, "anna", "not so").gate.override_by == "anna"
    with pytest.raises(InputError, match="anna rejected it"):
        store.models.set_default(model, "gate")


def test_both_models_run_on_the_same_cases_and_labels(store, tmp_path, monkeypatch):
    seen = with_dice(monkeypatch)
    first = Validation.figures

    def somebody_works_meanwhile(*arguments):
        found = first(*arguments)
        if len(seen) == 1:
            store.save_revision("case-0003", np.roll(lesion(3), 1, 1), "bert")
            store.split.move("case-0002", "validation", "chief", "more patients")
        return found

    monkeypatch.setattr(Validation, "figures", somebody_works_meanwhile)
    both = store.validation.compare([store.models.default(), add_model(store, tmp_path, 1)])
    assert seen[0][1] == seen[1][1]
    assert [case.label_revision.number for case in seen[1][1]] == [1]
    assert both.split["validation_cases"] == ["case-0003"]


def test_a_model_is_validated_against_the_active_one_that_it_would_replace(store, tmp_path, monkeypatch):
    with_dice(monkeypatch, **{"001": 0.9, "002": 0.85})
    beginning, better, worse = store.models.default(), add_model(store, tmp_path, 1), add_model(store, tmp_path, 2)
    assert store.validation.decide(better, rule=ONE_DECIDES).accepted
    store.models.set_default(beginning, "chief")
    monkeypatch.setattr(type(store.models), "best", lambda self: beginning)
    inside, asked = Validation.compare, []

    def somebody_chooses_meanwhile(self, models, *others):
        asked.append(models)
        found = inside(self, models, *others)
        if len(asked) == 1:
            store.models.set_default(better, "chief")
        return found

    monkeypatch.setattr(Validation, "compare", somebody_chooses_meanwhile)
    gate = store.validation.decide(worse, rule=ONE_DECIDES)
    assert asked == [[beginning, worse], [better, beginning, worse]]
    assert (gate.old, gate.passed, store.models.default()) == (better, False, better)
    # against any other model than the active one it is compared only
    assert store.validation.decide(worse, against=beginning, rule=ONE_DECIDES).passed
    assert store.models.default() == better


# --- which labels count ----------------------------------------------------------------------------------------------


@pytest.fixture
def six(tmp_path, monkeypatch) -> Store:
    """Seven cases of seven patients; the active model has predicted all, and six of the labels came from that."""
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path / "registry"))
    made = make_store(tmp_path, 7)
    active = {"id": made.models.default(), "weights_sha256": made.models.card(made.models.default()).weights_sha256}
    for number in range(1, 8):
        made.set_prediction(f"case-000{number}", np.roll(lesion(number), 1, 2), active)
        made.save_revision(f"case-000{number}", np.roll(lesion(number), 1, 2), "anna")
    made.split.freeze([f"case-000{number}" for number in range(2, 8)])
    return made


def test_a_better_model_is_not_refused_since_the_active_one_drafted_the_labels(six, tmp_path, monkeypatch):
    """Saved unchanged, the labels give the active model a Dice of 1: the new one, truly better, had no chance."""
    model = add_model(six, tmp_path, 1)
    active = six.models.default()
    assert six.case("case-0002").label_revision.dice_to_prediction == 1
    with_dice(monkeypatch, **{active: 1.0, model: 0.91})
    gate = six.validation.decide(model)
    assert gate.verdict == "undecided" and six.models.default() == active
    assert set(gate.left_out) == {f"case-000{number}" for number in range(2, 8)}
    assert gate.left_out["case-0002"] == f"its label was drafted by {active}; let it be read blind."
    # the choice is a person's, and it is recorded
    with pytest.raises(InputError, match="a person has to choose"):
        six.models.set_default(model, "chief")
    six.models.override(model, True, "chief", "better on consolidation")
    assert six.models.set_default(model, "chief")
    assert six.models.card(model).metrics["gate"]["override_by"] == "chief"
    # against the model that it replaced, labels drawn without it decide
    six.models.set_default(active, "chief")
    for number in range(2, 8):
        six.save_revision(f"case-000{number}", lesion(number), "anna", blind=True)
    with_dice(monkeypatch, **{active: 0.897, model: 0.91})
    gate = six.validation.decide(model)
    assert gate.passed and not gate.left_out


def test_a_label_counts_by_its_origin(six, tmp_path, monkeypatch):
    model, active = add_model(six, tmp_path, 1), six.models.default()
    other = {"id": "another-model", "weights_sha256": "9" * 64}
    six.set_prediction("case-0002", lesion(2), other)
    # whoever corrects goes on from a mask that the active model drafted
    six.save_revision("case-0002", lesion(2), "bert")
    assert [p.model_id for p in six.case("case-0002").drafted_by(six.case("case-0002").latest())] == [
        active,
        "another-model",
    ]
    six.save_revision("case-0003", lesion(3), "bert", blind=True)
    six.save_revision("case-0004", lesion(4), "expert", is_import=True)
    # the newest weights under another id are the same model
    case = six.add(write_ct(tmp_path / "9.nii.gz", 9), patient="Patient 2")
    weights = six.models.card(active).weights_sha256
    six.set_prediction(case.id, lesion(9), {"id": "renamed", "weights_sha256": weights})
    six.save_revision(case.id, lesion(9), "anna")
    later = six.add(write_ct(tmp_path / "10.nii.gz", 10), patient="Patient 3")
    six.set_prediction(later.id, lesion(10), other)
    six.save_revision(later.id, lesion(10), "anna")
    unknown = six.add(write_ct(tmp_path / "11.nii.gz", 11), patient="Patient 4")
    six.set_prediction(unknown.id, lesion(11), {"name": "somebody's"})
    six.save_revision(unknown.id, lesion(11), "anna")
    with_dice(monkeypatch)
    gate = six.validation.decide(model)
    assert set(gate.cases) - set(gate.left_out) == {"case-0003", "case-0004", later.id}
    assert "a model that is not known" in gate.left_out[unknown.id]


def test_a_consensus_is_drafted_by_what_drafted_its_sources(six):
    six.save_revision("case-0002", lesion(2), "bert", blind=True)
    made = six.consensus("case-0002")
    assert made.sources == (1, 2) and made.drafts == (1,)


def test_the_queue_offers_validation_cases_to_be_read_blind(six):
    blind = [case.id for case in six.cases() if six.split.reads_blind(case)]
    # half of six validation patients
    assert len(blind) == 3 and "case-0001" not in blind
    assert six.split.to_read_blind(six.cases()) == blind
    found = six.next("anna")
    assert found.case.id == blind[0] and "without any model's prediction" in found.reason
    with six.open(blind[0], "anna") as session:
        # neither the prediction nor the mask that it drafted is shown
        assert session.blind and session.prediction is None
        assert session.start_from == "an empty mask" and not session.start_mask.array.any()
        session.autosave(lesion(1))
    with six.open(blind[0], "anna") as session:
        assert session.blind and session.recovered is not None
        saved = session.save(lesion(2))
    assert saved.drafts == () and saved.dice_to_prediction is not None
    assert six.split.to_read_blind(six.cases()) == blind[1:]
    with six.open(blind[0], "anna") as session:
        assert session.start_from == f"revision {saved.number} of anna"
    with six.open(blind[0], "bert") as session:
        assert session.start_from == "an empty mask"
    # others are corrected from what the model and people have drawn
    seen = next(case.id for case in six.cases() if case.id not in blind and six.split.side(case) == "validation")
    with six.open(seen, "bert") as session:
        assert not session.blind and session.start_from == "revision 1 of anna"
        assert session.save(lesion(2)).drafts == (1,)


def test_unsaved_work_that_a_model_drafted_is_not_read_blind(store):
    store.set_prediction("case-0001", lesion(1), "toy")
    with store.open("case-0001", "bert") as session:
        session.autosave(lesion(3))
    store.split.move("case-0001", "validation", "chief", "more patients")
    assert store.split.reads_blind(store.case("case-0001"))
    with store.open("case-0001", "bert") as session:
        assert session.recovered is not None and not session.blind
        assert session.save(session.start_mask).drafts == (1,)
    with store.open("case-0001", "bert") as session:
        assert session.blind and session.start_from == "an empty mask"
    # who trains is corrected as before
    store.split.move("case-0001", "train", "chief", "enough")
    assert not store.split.reads_blind(store.case("case-0001"))


def test_no_model_runs_on_what_is_read_blind(six, monkeypatch):
    blind = six.split.to_read_blind(six.cases())
    ran = []

    class Predictor:
        model = SimpleNamespace(card=SimpleNamespace(weights_sha256="none"))

        def __init__(self, *_):
            pass

        def segment(self, volume, lungs, **_):
            ran.append(volume.name)
            raise InputError("enough")

    monkeypatch.setattr("COVIDLesionSegLib.inference.Predictor", Predictor, raising=False)
    report = six.predict(states=("corrected",))
    assert set(ran) == {case.id for case in six.cases()} - set(blind)
    assert six.predict(cases=[blind[0]]).failed == {
        blind[0]: "It is a validation case that is read without a prediction."
    }
    assert not report.done


def test_the_best_so_far_is_the_one_that_later_models_have_to_stand_up_to(store, tmp_path, monkeypatch):
    beginning = store.models.default()
    first, second, third = (add_model(store, tmp_path, number) for number in (1, 2, 3))
    with_dice(monkeypatch, **{beginning: 0.80, first: 0.83, second: 0.815, third: 0.80})
    assert store.models.best() == beginning
    assert store.validation.decide(first, rule=ONE_DECIDES).passed
    assert (store.models.default(), store.models.best()) == (first, first)
    # a little worse passes, and is not the best
    assert store.validation.decide(second, rule=ONE_DECIDES).passed
    assert (store.models.default(), store.models.best()) == (second, first)
    # as much worse than the active one as that was, but too much below the best
    gate = store.validation.decide(third, rule=ONE_DECIDES)
    assert [(found.against, found.verdict) for found in gate.differences] == [(second, "passed"), (first, "failed")]
    assert store.models.default() == second
    # going back changes nothing about which one was best
    store.models.set_default(beginning, "chief")
    assert Store(store.folder).models.best() == first
    # and it may be gone
    (store.models.folder(first) / "model.safetensors").unlink()
    (store.models.folder(first) / "model.json").unlink()
    assert store.validation.decide(third, rule=ONE_DECIDES).best == beginning


def test_a_model_as_good_as_the_best_so_far_becomes_the_best(store, tmp_path, monkeypatch):
    with_dice(monkeypatch)
    model = add_model(store, tmp_path, 1)
    assert store.validation.decide(model, rule=ONE_DECIDES).passed
    assert store.models.best() == model


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.4, 1), (0.5, 1), (0.6, 2)])
def test_the_number_of_patients_that_are_read_blind_is_rounded_up(store, fraction, count):
    store.layout.split_file.unlink()
    store.split.freeze(["case-0002", "case-0003"], blind_fraction=fraction)
    assert sum(store.split.reads_blind(case) for case in store.cases()) == count


def test_with_other_settings_of_the_card_a_model_is_run_anew(store, monkeypatch):
    ran, card = [], ModelCard("toy", "Toy", "coplenet", weights_sha256="ab" * 32)

    class Predictor:
        def __init__(self, loaded, device):
            self.card = loaded.card

        def segment(self, volume, lungs, cancelled=None):
            ran.append(self.card)
            return SimpleNamespace(mask=volume.array > -500)

    cards = [
        ModelCard(**{**vars(card), **changed})
        for changed in (
            {},
            {"threshold": 0.4},
            {"keep_inside_lungs_mm": 5.0},
            {"smooth_across_slices_mm": 2.0},
            {"preprocessing": Preprocessing(resize=(64, 64))},
        )
    ]
    monkeypatch.setattr(type(store.models), "path", lambda self, model: model)
    monkeypatch.setattr("COVIDLesionSegLib.inference.Predictor", Predictor, raising=False)
    monkeypatch.setattr(
        "COVIDLesionSegLib.models.load_checkpoint", lambda number: SimpleNamespace(card=cards[number]), raising=False
    )
    for number in (0, 0, 1, 2, 3, 4, 4):
        store.validation.figures(number)
    assert ran == cards
    # other limits of doubtful lungs are another crop, and another limit to the lungs
    monkeypatch.setattr("COVIDLesionSegLib.cases.running.load_json", lambda _name: {"checks": {}})
    for _ in range(2):
        store.validation.figures(4)
    assert ran == [*cards, cards[4]]
