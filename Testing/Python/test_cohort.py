"""Cohorts: volume groups, summaries that name what they leave out, bootstrap, tests between two models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.measurement import QUANTITIES, compare_models, evaluate, summarize, volume_group
from COVIDLesionSegLib.measurement.cohort import bootstrap_interval


def case(reference_ml, **values):
    """A case as evaluate returns it; a value may be a number, or a number and a status."""
    entries = {"reference_volume": reference_ml} | values
    measured = {}
    for name, value in entries.items():
        number, status = value if isinstance(value, tuple) else (value, "ok")
        measured[name] = {"value": number, "unit": QUANTITIES[name].unit, "status": status}
    return measured


@pytest.fixture
def five_cases():
    """Groups A, A, B, B, C; one prediction is empty, one comparison has two empty masks."""
    return {
        "p1": case(10.0, dice=0.5, hausdorff_distance_95=8.0),
        "p2": case(0.0, dice=(1.0, "both_empty"), hausdorff_distance_95=(math.nan, "both_empty")),
        "p3": case(50.0, dice=0.8, hausdorff_distance_95=4.0),
        "p4": case(200.0, dice=(0.0, "prediction_empty"), hausdorff_distance_95=(math.inf, "prediction_empty")),
        "p5": case(200.5, dice=0.9, hausdorff_distance_95=2.0),
    }


def row(rows, group, quantity):
    (found,) = [r for r in rows if r.group == group and r.quantity == quantity]
    return found


@pytest.mark.parametrize(
    ("ml", "group"), [(0.0, "A"), (49.999, "A"), (50.0, "B"), (200.0, "B"), (200.001, "C"), (5000, "C")]
)
def test_groups_have_the_papers_bounds(ml, group):
    assert volume_group(ml) == group


@pytest.mark.parametrize("ml", [-1.0, math.nan, math.inf])
def test_an_impossible_volume_has_no_group(ml):
    with pytest.raises(InputError, match="mL"):
        volume_group(ml)


def test_figures_are_those_of_the_cases_that_count(five_cases):
    found = row(summarize(five_cases, ["dice"]), "all", "dice")
    counted = np.array([0.5, 0.8, 0.0, 0.9])
    assert (found.n, found.unit) == (4, "1")
    assert found.mean == pytest.approx(counted.mean())
    assert found.sd == pytest.approx(np.sqrt(((counted - counted.mean()) ** 2).mean()))
    assert found.median == pytest.approx(0.65)
    assert (found.q1, found.q3) == pytest.approx(tuple(np.percentile(counted, (25, 75))))
    assert found.iqr == pytest.approx(found.q3 - found.q1)


def test_cases_that_do_not_count_are_named_with_their_reason(five_cases):
    rows = summarize(five_cases, ["dice", "hausdorff_distance_95"])
    assert row(rows, "all", "dice").excluded == {"both masks are empty": ("p2",)}
    distance = row(rows, "all", "hausdorff_distance_95")
    assert distance.n == 3
    assert distance.excluded == {
        "both masks are empty": ("p2",),
        "infinite, the prediction is empty": ("p4",),
    }
    assert distance.note == "3 of 5 cases (1 out: both masks are empty; 1 out: infinite, the prediction is empty)"
    for found in rows:
        assert found.n + sum(map(len, found.excluded.values())) == {"all": 5, "A": 2, "B": 2, "C": 1}[found.group]


def test_two_empty_masks_count_on_request(five_cases):
    rows = summarize(five_cases, ["dice", "hausdorff_distance_95"], include_both_empty=True)
    assert row(rows, "all", "dice").n == 5 and not row(rows, "all", "dice").excluded
    assert row(rows, "all", "hausdorff_distance_95").excluded["undefined, both masks are empty"] == ("p2",)


def test_groups_are_summarized_apart(five_cases):
    rows = summarize(five_cases, ["dice"])
    assert [r.group for r in rows] == ["all", "A", "B", "C"]
    assert [r.n for r in rows] == [4, 1, 2, 1]
    assert row(rows, "B", "dice").mean == pytest.approx(0.4)
    single = row(rows, "C", "dice")
    assert (single.sd, single.median) == (0.0, 0.9) and math.isnan(single.ci_low)
    without_c = summarize({name: five_cases[name] for name in ("p1", "p3")}, ["dice"])
    assert [r.group for r in without_c] == ["all", "A", "B"]


def test_a_quantity_no_case_has_is_nan_and_counts_nobody(five_cases):
    found = row(summarize(five_cases, ["precision"]), "all", "precision")
    assert found.n == 0 and math.isnan(found.mean) and math.isnan(found.median)
    assert found.excluded == {"not measured": tuple(five_cases)}


def test_values_read_back_as_null_do_not_count(five_cases):
    five_cases["p4"]["hausdorff_distance_95"]["value"] = None
    excluded = row(summarize(five_cases), "all", "hausdorff_distance_95").excluded
    assert excluded["undefined, the prediction is empty"] == ("p4",)


def test_what_evaluate_returns_can_be_summarized():
    random = np.random.default_rng(0)
    reference = random.random((5, 12, 12)) < 0.4
    cases = {
        f"case {i}": evaluate(reference ^ (random.random(reference.shape) < 0.05), reference, (5, 1, 1))
        for i in range(3)
    }
    rows = summarize(cases, resamples=200)
    assert {r.quantity for r in rows} == set(QUANTITIES) and all(r.n == 3 for r in rows)


def test_the_bootstrap_is_seeded_and_holds_the_mean():
    values = np.random.default_rng(4).normal(0.8, 0.1, 60)
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    expected = 1.96 * values.std(ddof=1) / math.sqrt(60)
    assert (low, high) == pytest.approx((values.mean() - expected, values.mean() + expected), abs=0.006)
    narrow = bootstrap_interval(values, confidence=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high


def test_the_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(9).exponential(10.0, 40)
    oracle = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=3).confidence_interval
    assert bootstrap_interval(values) == pytest.approx(tuple(oracle), rel=0.03)


def test_no_interval_from_less_than_two():
    assert all(math.isnan(bound) for bound in bootstrap_interval(np.array([0.5])))


@pytest.mark.parametrize(("confidence", "resamples"), [(0.0, 100), (1.0, 100), (95, 100), (0.95, 0)])
def test_impossible_bootstraps_are_refused(confidence, resamples, five_cases):
    with pytest.raises(InputError):
        summarize(five_cases, ["dice"], confidence=confidence, resamples=resamples)


@pytest.fixture
def two_models():
    random = np.random.default_rng(2)
    first = {f"p{i}": case(80.0, dice=float(random.uniform(0.6, 0.9))) for i in range(12)}
    second = {name: case(80.0, dice=c["dice"]["value"] - float(random.normal(0.02, 0.02))) for name, c in first.items()}
    return first, second


def test_two_models_are_compared_as_scipy_does(two_models):
    first, second = two_models
    (found,) = compare_models(first, second, ["dice"])
    one, other = (np.array([model[name]["dice"]["value"] for name in first]) for model in two_models)
    t, rank = stats.ttest_rel(one, other), stats.wilcoxon(one, other)
    assert (found.n, found.status) == (12, "ok")
    assert found.mean_difference == pytest.approx((one - other).mean())
    assert (found.t, found.t_p) == pytest.approx((t.statistic, t.pvalue))
    assert (found.wilcoxon, found.wilcoxon_p) == pytest.approx((rank.statistic, rank.pvalue))
    assert found.ci_low < found.mean_difference < found.ci_high


def test_cases_are_paired_by_name_and_the_others_named(two_models):
    first, second = two_models
    shuffled = dict(reversed(second.items()))
    assert compare_models(first, shuffled, ["dice"])[0].t == pytest.approx(compare_models(first, second, ["dice"])[0].t)
    del first["p3"], second["p7"]
    first["p1"]["dice"] = {"value": math.inf, "unit": "1", "status": "prediction_empty"}
    (found,) = compare_models(first, second, ["dice"])
    assert found.n == 9
    assert found.excluded == {
        "only the first model has it": ("p7",),
        "only the second model has it": ("p3",),
        "first model: infinite, the prediction is empty": ("p1",),
    }


@pytest.mark.parametrize(
    ("differences", "status", "tested"),
    [
        ([0.0, 0.0, 0.0], "no_difference", (False, False)),
        ([0.1], "too_few", (False, False)),
        ([0.125, 0.125, 0.125], "constant_difference", (False, True)),
        ([0.1, 0.1 + 1e-17, 0.1], "constant_difference", (False, True)),
        ([0.0, 0.1, -0.2, 0.0], "ok", (True, True)),
    ],
)
def test_pairs_that_no_test_can_judge_say_so(differences, status, tested):
    first = {f"p{i}": case(80.0, dice=0.5 + d) for i, d in enumerate(differences)}
    second = {f"p{i}": case(80.0, dice=0.5) for i in range(len(differences))}
    (found,) = compare_models(first, second, ["dice"])
    assert found.status == status
    assert (not math.isnan(found.t_p), not math.isnan(found.wilcoxon_p)) == tested


def test_models_without_a_common_case_are_refused(five_cases):
    with pytest.raises(InputError, match="no case in common"):
        compare_models(five_cases, {"q": five_cases["p1"]})
    with pytest.raises(InputError, match="no cases"):
        summarize({})


def test_an_unknown_quantity_is_answered_by_the_known_ones(five_cases):
    with pytest.raises(InputError, match=r"'jaccard'.*dice"):
        summarize(five_cases, ["jaccard"])


def test_models_are_compared_by_what_is_better_or_worse(five_cases):
    names = {found.quantity for found in compare_models(five_cases, five_cases)}
    assert "dice" in names and "hausdorff_distance_95" in names and "reference_volume" not in names
