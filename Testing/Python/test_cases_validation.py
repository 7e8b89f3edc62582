"""Models judged and let through by the gate, with stand-ins for the networks: what people decide meanwhile counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from case_fixtures import lesion, make_store, write_model

from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.cases.gate import CaseFigures
from COVIDLesionSegLib.cases.running import Validation
from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.models import ModelCard, Preprocessing


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """Three labeled cases, of which the third judges; nothing but its own models can be the default."""
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path / "registry"))
    made = make_store(tmp_path, 3)
    for number in (1, 2, 3):
        made.save_revision(f"case-000{number}", lesion(number), "anna")
    made.split.freeze(["case-0003"])
    return made


def add_model(store: Store, folder: Path, training_round: int) -> str:
    file = write_model(folder / "new.safetensors")
    return store.models.add(file, "toy", training_round, split={}, trained_on={"name": "cases"}).id


def judged_as(monkeypatch, **dices: float) -> list[tuple[str, list]]:
    """Let each model have this Dice (0.8 where none is said); what was judged, and on which cases, is noted."""
    seen = []

    def judge(self, model, device="auto", progress=None, cancelled=None, cases=None):
        seen.append((model, list(self.cases() if cases is None else cases)))
        dice = next((value for name, value in dices.items() if model.endswith(name)), 0.8)
        return {case.id: CaseFigures(dice, 0.1, 4.0, 10.0, 10.0) for case in seen[-1][1]}

    monkeypatch.setattr(Validation, "figures", judge)
    return seen


def test_a_model_that_a_person_rejected_stays_rejected_when_it_is_judged_again(store, tmp_path, monkeypatch):
    judged_as(monkeypatch)
    beginning, model = store.models.default(), add_model(store, tmp_path, 1)
    assert store.validation.decide(model).passed and store.models.default() == model
    store.models.override(model, False, "chief", "wrong on vessels")
    store.models.set_default(beginning, "chief", "going back")
    gate = store.validation.decide(model)
    assert (gate.passed, gate.accepted) == (True, False)
    assert store.models.default() == beginning
    kept = store.models.get(model).gate
    assert (kept.override, kept.override_by, kept.override_reason) == ("rejected", "chief", "wrong on vessels")
    assert store.models.card(model).metrics["gate"]["override"] == "rejected"


def test_a_model_that_a_person_accepted_stays_accepted_and_a_later_word_counts(store, tmp_path, monkeypatch):
    judged_as(monkeypatch, **{"001": 0.5})
    model = add_model(store, tmp_path, 1)
    assert not store.validation.decide(model).accepted
    store.models.override(model, True, "chief", "better on consolidation")
    gate = store.validation.decide(model)
    assert (gate.passed, gate.override, store.models.default()) == (False, "accepted", model)
    assert store.models.override(model, False, "anna", "not so").gate.override_by == "anna"
    with pytest.raises(InputError, match="anna rejected it"):
        store.models.set_default(model, "gate")


def test_both_models_answer_the_same_cases_and_labels(store, tmp_path, monkeypatch):
    seen = judged_as(monkeypatch)
    first = Validation.figures

    def somebody_works_meanwhile(*arguments):
        found = first(*arguments)
        if len(seen) == 1:
            store.save_revision("case-0003", np.roll(lesion(3), 1, 1), "bert")
            store.split.move("case-0002", "validation", "chief", "more judges")
        return found

    monkeypatch.setattr(Validation, "figures", somebody_works_meanwhile)
    both = store.validation.compare(["toy", add_model(store, tmp_path, 1)])
    assert seen[0][1] == seen[1][1]
    assert [case.label_revision.number for case in seen[1][1]] == [1]
    assert both.split["validation_cases"] == ["case-0003"]


def test_a_model_is_judged_against_the_default_that_it_would_replace(store, tmp_path, monkeypatch):
    judged_as(monkeypatch, **{"001": 0.9, "002": 0.85})
    beginning, better, worse = store.models.default(), add_model(store, tmp_path, 1), add_model(store, tmp_path, 2)
    assert store.validation.decide(better).accepted
    store.models.set_default(beginning, "chief")
    inside, asked = Validation.compare, []

    def somebody_chooses_meanwhile(self, models, *others):
        asked.append(models)
        found = inside(self, models, *others)
        if len(asked) == 1:
            store.models.set_default(better, "chief")
        return found

    monkeypatch.setattr(Validation, "compare", somebody_chooses_meanwhile)
    gate = store.validation.decide(worse)
    assert asked == [[beginning, worse], [better, worse]]
    assert (gate.old, gate.passed, store.models.default()) == (better, False, better)
    # against any other model than the default it is judged only
    assert store.validation.decide(worse, against=beginning).passed
    assert store.models.default() == better


def test_other_settings_of_the_card_are_judged_anew(store, monkeypatch):
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
