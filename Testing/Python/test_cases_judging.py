"""Models judged and let through by the gate, with stand-ins for the networks: what people decide meanwhile counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from case_fixtures import lesion, make_store, write_model

from COVIDLesionSegLib.cases import Store, judging
from COVIDLesionSegLib.cases.gate import CaseFigures
from COVIDLesionSegLib.cases.judging import compare, judge_model, pass_gate
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

    def judge(store, model, device="auto", progress=None, cancelled=None, cases=None):
        seen.append((model, list(judging.validation_cases(store) if cases is None else cases)))
        dice = next((value for name, value in dices.items() if model.endswith(name)), 0.8)
        return {case.id: CaseFigures(dice, 0.1, 4.0, 10.0, 10.0) for case in seen[-1][1]}

    monkeypatch.setattr(judging, "judge_model", judge)
    return seen


def test_a_model_that_a_person_rejected_stays_rejected_when_it_is_judged_again(store, tmp_path, monkeypatch):
    judged_as(monkeypatch)
    beginning, model = store.models.default(), add_model(store, tmp_path, 1)
    assert pass_gate(store, model).passed and store.models.default() == model
    store.models.override(model, False, "chief", "wrong on vessels")
    store.models.set_default(beginning, "chief", "going back")
    gate = pass_gate(store, model)
    assert (gate.passed, gate.accepted) == (True, False)
    assert store.models.default() == beginning
    kept = store.models.get(model).gate
    assert (kept.override, kept.override_by, kept.override_reason) == ("rejected", "chief", "wrong on vessels")
    assert store.models.card(model).metrics["gate"]["override"] == "rejected"


def test_a_model_that_a_person_accepted_stays_accepted_and_a_later_word_counts(store, tmp_path, monkeypatch):
    judged_as(monkeypatch, **{"001": 0.5})
    model = add_model(store, tmp_path, 1)
    assert not pass_gate(store, model).accepted
    store.models.override(model, True, "chief", "better on consolidation")
    gate = pass_gate(store, model)
    assert (gate.passed, gate.override, store.models.default()) == (False, "accepted", model)
    assert store.models.override(model, False, "anna", "not so").gate.override_by == "anna"
    with pytest.raises(InputError, match="anna rejected it"):
        store.models.set_default(model, "gate")


def test_both_models_answer_the_same_cases_and_labels(store, tmp_path, monkeypatch):
    seen = judged_as(monkeypatch)
    first = judging.judge_model

    def somebody_works_meanwhile(*arguments):
        found = first(*arguments)
        if len(seen) == 1:
            store.save_revision("case-0003", np.roll(lesion(3), 1, 1), "bert")
            store.split.move("case-0002", "validation", "chief", "more judges")
        return found

    monkeypatch.setattr(judging, "judge_model", somebody_works_meanwhile)
    both = compare(store, ["toy", add_model(store, tmp_path, 1)])
    assert seen[0][1] == seen[1][1]
    assert [case.label_revision.number for case in seen[1][1]] == [1]
    assert both.split["validation_cases"] == ["case-0003"]


def test_a_model_is_judged_against_the_default_that_it_would_replace(store, tmp_path, monkeypatch):
    judged_as(monkeypatch, **{"001": 0.9, "002": 0.85})
    beginning, better, worse = store.models.default(), add_model(store, tmp_path, 1), add_model(store, tmp_path, 2)
    assert pass_gate(store, better).accepted
    store.models.set_default(beginning, "chief")
    inside, asked = judging.compare, []

    def somebody_chooses_meanwhile(store, models, *others):
        asked.append(models)
        found = inside(store, models, *others)
        if len(asked) == 1:
            store.models.set_default(better, "chief")
        return found

    monkeypatch.setattr(judging, "compare", somebody_chooses_meanwhile)
    gate = pass_gate(store, worse)
    assert asked == [[beginning, worse], [better, worse]]
    assert (gate.old, gate.passed, store.models.default()) == (better, False, better)
    # against any other model than the default it is judged only
    assert pass_gate(store, worse, against=beginning).passed
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
        judge_model(store, number)
    assert ran == cards
    # other limits of doubtful lungs are another crop, and another limit to the lungs
    monkeypatch.setattr(judging, "load_json", lambda _name: {"checks": {}})
    for _ in range(2):
        judge_model(store, 4)
    assert ran == [*cards, cards[4]]
