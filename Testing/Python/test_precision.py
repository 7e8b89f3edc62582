"""Which engine and type a model computes with on the processor: measured once, and kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from predictor_fixtures import a_chest, a_model, some_lungs

from COVIDLesionSegLib.inference import Predictor, devices, precision
from COVIDLesionSegLib.inference.execution import OPENVINO, TORCH, Execution
from COVIDLesionSegLib.inference.openvino_engine import EngineError
from COVIDLesionSegLib.inference.precision import fastest_way, ways_to_compute
from COVIDLesionSegLib.models.checkpoints import LoadedModel

TYPES = [(TORCH, torch.float32), (TORCH, torch.bfloat16)]
WAYS = [*TYPES, (OPENVINO, torch.float32), (OPENVINO, torch.bfloat16)]


class Timed:
    """Stands in for an execution that takes these times, in the order of WAYS; None: the engine can't."""

    def __init__(self, *times):
        self.times, self.asked = dict(zip(WAYS, times, strict=False)), []

    def seconds_per_slice(self, dtype, engine):
        way = (engine, dtype)
        self.asked.append(way)
        if self.times[way] is None:
            raise EngineError("OpenVINO could not convert this network: no such operation")
        # the first time, nothing is in the cache yet
        return self.times[way] * (10 if self.asked.count(way) == 1 else 1)


def faster_precision(execution, card):
    engine, dtype = fastest_way(execution, card, TYPES)
    assert engine == TORCH
    return dtype


@pytest.fixture
def card(a_small_network):
    return replace(a_model(a_small_network).card, weights_sha256="a" * 64)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("single", "half", "expected"),
    [(0.1, 0.05, torch.bfloat16), (0.105, 0.133, torch.float32), (0.1, 0.099, torch.float32)],
    ids=["twice as fast", "slower", "hardly faster"],
)
def test_the_faster_type_is_taken_and_kept(card, folder, single, half, expected):
    timed = Timed(single, half)
    assert faster_precision(timed, card) == expected
    assert len(timed.asked) == 8
    later = Timed(half, single)
    assert faster_precision(later, card) == expected
    assert not later.asked


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((0.11, 0.06, 0.075, 0.04), 3),
        ((0.11, 0.13, 0.075, 0.1), 2),
        ((0.11, 0.06, 0.075, 0.058), 1),
        ((0.1, 0.2, 0.095, 0.2), 0),
        ((0.11, 0.06, None, None), 1),
        ((0.11, 0.13, 0.075, None), 2),
    ],
    ids=[
        "both gain",
        "the engine gains",
        "hardly faster",
        "nothing gains",
        "can't convert",
        "no bfloat16 in the engine",
    ],
)
def test_the_fastest_engine_is_taken_and_kept(card, folder, monkeypatch, times, expected):
    monkeypatch.setattr(precision, "openvino_version", lambda: "2026.4")
    assert fastest_way(Timed(*times), card, WAYS) == WAYS[expected]
    later = Timed(1, 1, 1, 1)
    assert fastest_way(later, card, WAYS) == WAYS[expected]
    assert not later.asked
    # another version, or none, is measured anew
    monkeypatch.setattr(precision, "openvino_version", lambda: "2027.1")
    assert fastest_way(Timed(1, 1, 1, 0.5), card, WAYS) == WAYS[3]
    assert fastest_way(Timed(1, 0.5), card, TYPES) == TYPES[1]


def test_an_engine_is_offered_where_it_is_installed_and_knows_the_network(monkeypatch):
    monkeypatch.setattr(precision, "openvino_version", lambda: "2026.4")
    assert ways_to_compute(half=True, openvino=True) == WAYS
    assert ways_to_compute(half=False, openvino=True) == WAYS[::2]
    assert ways_to_compute(half=True, openvino=False) == TYPES
    monkeypatch.setattr(precision, "openvino_version", lambda: None)
    assert ways_to_compute(half=False, openvino=True) == TYPES[:1]


def test_each_model_and_number_of_threads_is_measured(card, folder):
    faster_precision(Timed(0.1, 0.05), card)
    other = Timed(0.05, 0.1)
    assert faster_precision(other, replace(card, weights_sha256="b" * 64)) == torch.float32
    assert other.asked
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        again = Timed(0.05, 0.1)
        assert faster_precision(again, card) == torch.float32
        assert again.asked
    finally:
        torch.set_num_threads(threads)
    assert faster_precision(Timed(0, 0), card) == torch.bfloat16
    assert len(json.loads((folder / "_precision.json").read_text())) == 3


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"a": "float8"}'])
def test_a_damaged_file_is_measured_anew(card, folder, content):
    folder.mkdir()
    (folder / "_precision.json").write_text(content)
    assert faster_precision(Timed(0.1, 0.05), card) == torch.bfloat16
    kept = json.loads((folder / "_precision.json").read_text())
    assert list(kept.values())[-1] == "bfloat16"


def test_a_folder_that_cannot_be_written_is_said_and_nothing_fails(card, folder, caplog):
    folder.write_text("a file where the folder would be")
    for _ in range(2):
        timed = Timed(0.1, 0.05)
        assert faster_precision(timed, card) == torch.bfloat16
        assert timed.asked
    assert "could not be kept" in caplog.text


def test_the_predictor_takes_what_was_measured(a_small_network, monkeypatch):
    asked = []

    def measured(execution, card, ways):
        asked.append(ways)
        return TORCH, torch.float32

    monkeypatch.setattr("COVIDLesionSegLib.inference.predictor.fastest_way", measured)
    monkeypatch.setattr(devices, "_processor_has_bfloat16", lambda: True)
    model = a_model(a_small_network)
    saved = LoadedModel(model.network, replace(model.card, weights_sha256="a" * 64))
    result = Predictor(saved, "cpu").segment(a_chest((3, 20, 20)), some_lungs((3, 20, 20)))
    assert (result.record.device["precision"], result.record.device["engine"]) == ("float32", "torch")
    assert len(asked) == 1
    assert asked[0][:2] == TYPES
    # who asks for a type gets it, and a network that was never saved goes by the instructions
    assert (
        Predictor(saved, "cpu", "bfloat16")
        .segment(a_chest((3, 20, 20)), some_lungs((3, 20, 20)))
        .record.device["precision"]
        == "bfloat16"
    )
    Predictor(LoadedModel(model.network, replace(model.card, weights_sha256="")), "cpu")
    assert len(asked) == 1


def test_an_execution_measures_both_types(a_small_network):
    model = a_model(a_small_network)
    execution = Execution(model.network, model.card.preprocessing)
    seconds = [execution.seconds_per_slice(dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert np.isfinite(seconds).all()
    assert min(seconds) > 0
