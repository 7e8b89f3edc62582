"""What the page says of the gate's errors: a short run of the simulation that the page's table comes from."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
from conftest import REPOSITORY

from COVIDLesionSegLib.cases.gate import GateRule

TRIALS = 400
RULE = replace(GateRule.shipped(), resamples=500)


@pytest.fixture(scope="module")
def simulation():
    path = REPOSITORY / "Testing" / "benchmarks" / "gate_simulation.py"
    spec = importlib.util.spec_from_file_location("gate_simulation", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("spread", [0.015, 0.045])
def test_a_worse_model_passes_in_less_than_a_tenth_of_trials(simulation, spread):
    source = simulation.residuals()
    worse = simulation.rates(10, -0.02, spread, TRIALS, RULE, source, 0)
    assert worse["passed"] < 0.1
    # a rule that refuses everything would keep that, too
    better = simulation.rates(10, 0.02, spread, TRIALS, RULE, source, 0)
    assert better["passed"] > 0.9 and better["failed"] < 0.02
    assert sum(worse.values()) == pytest.approx(1)


def test_with_two_patients_nothing_is_decided(simulation):
    found = simulation.rates(2, -0.02, 0.03, 50, RULE, simulation.residuals(), 0)
    assert found["undecided"] == 1


def test_the_best_so_far_stops_a_drift(simulation):
    ends = simulation.drift(20, 0.01, 0.015, 20, RULE, simulation.residuals(), 0)
    alone, with_best = (ends[way][0] for way in (False, True))
    assert alone > 0.05 and with_best <= 0.02 + 0.005
