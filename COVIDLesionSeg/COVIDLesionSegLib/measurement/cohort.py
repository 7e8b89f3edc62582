"""Many cases: groups by lesion volume, summaries that say which cases they leave out, and tests between two models.

A case is what :func:`.evaluation.evaluate` returned for it. Standard deviations are those of the cases at hand
(ddof 0), as in the COPLE-Net paper's tables. A value that is infinite or not a number is in no mean, and its case is
named with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .evaluation import QUANTITIES, Value

Case = Mapping[str, Value]

# mL of lesion in the reference; the bounds of group B belong to it (Wang et al., IEEE TMI 39, 2020, section III).
GROUPS: Mapping[str, str] = MappingProxyType({"A": "below 50 mL", "B": "50 to 200 mL", "C": "above 200 mL"})
_GROUP_B = (50.0, 200.0)

_RESAMPLES_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Summary:
    """One quantity over the cases of one group.

    Attributes:
        group: "all" or a key of :data:`GROUPS`.
        quantity: a key of :data:`.evaluation.QUANTITIES`.
        unit: UCUM.
        n: cases that the figures count.
        mean: arithmetic mean; NaN where n is 0, as all figures.
        sd: standard deviation over the cases, ddof 0.
        median: 50th percentile.
        q1: 25th percentile, linearly interpolated.
        q3: 75th percentile.
        ci_low: lower bound of the bootstrap confidence interval of the mean; NaN where n is below 2.
        ci_high: its upper bound.
        excluded: reason -> names of the cases that are left out.
    """

    group: str
    quantity: str
    unit: str
    n: int
    mean: float
    sd: float
    median: float
    q1: float
    q3: float
    ci_low: float
    ci_high: float
    excluded: Mapping[str, tuple[str, ...]]

    @property
    def iqr(self) -> float:
        """Interquartile range, q3 - q1."""
        return self.q3 - self.q1

    @property
    def note(self) -> str:
        """How many cases count and why others are out, as a phrase."""
        total = self.n + sum(len(names) for names in self.excluded.values())
        reasons = "; ".join(f"{len(names)} out: {reason}" for reason, names in self.excluded.items())
        return f"{self.n} of {total} cases" + (f" ({reasons})" if reasons else "")


@dataclass(frozen=True)
class PairedTest:
    """One quantity of two models on the same cases.

    Attributes:
        quantity: a key of :data:`.evaluation.QUANTITIES`.
        unit: UCUM.
        n: cases that both models have a number for.
        mean_difference: first minus second model; NaN where n is 0.
        ci_low: lower bound of the bootstrap confidence interval of the mean difference; NaN where n is below 2.
        ci_high: its upper bound.
        t: statistic of the paired t-test, two-sided; NaN where it can't be computed, as p.
        t_p: its p value.
        wilcoxon: statistic of Wilcoxon's signed-rank test, two-sided; equal pairs are left out of it.
        wilcoxon_p: its p value.
        status: "ok"; "too_few" (n below 2); "no_difference" (all pairs are equal: no test is possible, or needed);
            "constant_difference" (all differences are the same: the t-test divides by zero).
        excluded: reason -> names of the cases that are left out.
    """

    quantity: str
    unit: str
    n: int
    mean_difference: float
    ci_low: float
    ci_high: float
    t: float
    t_p: float
    wilcoxon: float
    wilcoxon_p: float
    status: str
    excluded: Mapping[str, tuple[str, ...]]


def volume_group(reference_ml: float) -> str:
    """Group of a case by the lesion volume of its reference: A below 50 mL, B 50 to 200 mL, C above.

    Raises:
        InputError: a volume that is negative or not finite.
    """
    if not (math.isfinite(reference_ml) and reference_ml >= 0):
        raise InputError(f"The reference volume is {reference_ml} mL; a number from 0 up is needed.")
    if reference_ml < _GROUP_B[0]:
        return "A"
    return "B" if reference_ml <= _GROUP_B[1] else "C"


def summarize(
    cases: Mapping[str, Case],
    quantities: Iterable[str] | None = None,
    *,
    include_both_empty: bool = False,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Summary]:
    """Summarize a cohort, all of it and by volume group.

    Args:
        cases: name -> what :func:`.evaluation.evaluate` returned.
        quantities: which to summarize; None takes all.
        include_both_empty: count comparisons of two empty masks, e.g. their Dice of 1; they are left out and named
            otherwise, since they say nothing about the segmentation of lesions.
        confidence: of the interval, between 0 and 1.
        resamples: of the bootstrap.
        seed: of the bootstrap's random numbers; the same seed gives the same interval.

    Returns:
        A summary for each group that has cases ("all", "A", "B", "C") and each quantity.

    Raises:
        InputError: no cases, an unknown quantity, a confidence or number of resamples that is not allowed.
    """
    if not cases:
        raise InputError("There are no cases to summarize.")
    names = _quantities(quantities)
    _check_bootstrap(confidence, resamples)
    groups: dict[str, list[str]] = {"all": list(cases)} | {group: [] for group in GROUPS}
    for name, case in cases.items():
        if "reference_volume" not in case:
            raise InputError(f"The case {name} has no reference_volume, which its group is chosen by.")
        groups[volume_group(case["reference_volume"]["value"])].append(name)

    rows = []
    for group, members in groups.items():
        for quantity in names if members else ():
            kept, excluded = _split({name: cases[name] for name in members}, quantity, include_both_empty)
            values = np.array(list(kept.values()))
            low, high = bootstrap_interval(values, confidence, resamples, seed)
            q1, median, q3 = np.percentile(values, (25, 50, 75)).tolist() if len(values) else (math.nan,) * 3
            rows.append(
                Summary(
                    group,
                    quantity,
                    QUANTITIES[quantity].unit,
                    len(values),
                    float(values.mean()) if len(values) else math.nan,
                    float(values.std()) if len(values) else math.nan,
                    median,
                    q1,
                    q3,
                    low,
                    high,
                    excluded,
                )
            )
    return rows


def compare_models(
    first: Mapping[str, Case],
    second: Mapping[str, Case],
    quantities: Iterable[str] | None = None,
    *,
    include_both_empty: bool = False,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[PairedTest]:
    """Compare two models case by case: paired t-test and Wilcoxon's signed-rank test, both two-sided.

    Args:
        first: name -> what :func:`.evaluation.evaluate` returned for the first model.
        second: the same for the second model; cases are paired by name.
        quantities: which to compare; None takes those of which higher or lower is better.
        include_both_empty: see :func:`summarize`.
        confidence: of the mean difference's interval, between 0 and 1.
        resamples: of the bootstrap.
        seed: of the bootstrap's random numbers.

    Raises:
        InputError: no case in common, an unknown quantity, a confidence or number of resamples that is not allowed.
    """
    shared = [name for name in first if name in second]
    if not shared:
        raise InputError("The two models have no case in common; cases are paired by their names.")
    _check_bootstrap(confidence, resamples)
    names = _quantities(quantities) if quantities is not None else [n for n, q in QUANTITIES.items() if q.better]
    lonely = {
        "only the first model has it": tuple(name for name in first if name not in second),
        "only the second model has it": tuple(name for name in second if name not in first),
    }
    tests = []
    for quantity in names:
        kept_first, out_first = _split({name: first[name] for name in shared}, quantity, include_both_empty)
        kept_second, out_second = _split({name: second[name] for name in shared}, quantity, include_both_empty)
        paired = [name for name in shared if name in kept_first and name in kept_second]
        excluded = {reason: members for reason, members in lonely.items() if members}
        excluded |= {f"first model: {reason}": members for reason, members in out_first.items()}
        excluded |= {f"second model: {reason}": members for reason, members in out_second.items()}
        differences = np.array([kept_first[name] - kept_second[name] for name in paired])
        low, high = bootstrap_interval(differences, confidence, resamples, seed)
        tests.append(
            PairedTest(
                quantity,
                QUANTITIES[quantity].unit,
                len(differences),
                float(differences.mean()) if len(differences) else math.nan,
                low,
                high,
                *paired_tests(differences),
                excluded,
            )
        )
    return tests


def bootstrap_interval(
    values: NDArray[np.float64], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap confidence interval of a mean.

    Args:
        values: (n,), finite.
        confidence: between 0 and 1.
        resamples: how often n values are drawn with replacement.
        seed: of the random numbers.

    Returns:
        Lower and upper bound; NaN where n is below 2.

    Raises:
        InputError: a confidence or number of resamples that is not allowed.
    """
    _check_bootstrap(confidence, resamples)
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    means = []
    at_once = max(1, _RESAMPLES_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        drawn = random.integers(n, size=(min(at_once, resamples - start), n))
        means.append(values[drawn].mean(axis=1))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(np.concatenate(means), (tail, 100.0 - tail))
    return float(low), float(high)


def _check_bootstrap(confidence: float, resamples: int) -> None:
    if not 0.0 < confidence < 1.0:
        raise InputError(f"The confidence is {confidence}; it must lie between 0 and 1, e.g. 0.95.")
    if resamples < 1:
        raise InputError(f"The number of resamples is {resamples}; at least 1 is needed.")


def paired_tests(differences: NDArray[np.float64]) -> tuple[float, float, float, float, str]:
    """Two-sided tests of paired differences (n,) against zero.

    Returns:
        Statistic and p of the t-test, statistic and p of Wilcoxon's signed-rank test, and the status, all as
        :class:`PairedTest` describes them.
    """
    nothing = (math.nan,) * 4
    if len(differences) < 2:
        return *nothing, "too_few"
    if not differences.any():
        return *nothing, "no_difference"
    from scipy import stats

    ranks = stats.wilcoxon(differences)
    # differences that are equal up to rounding leave a spread of rounding errors, and a t of nonsense
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return math.nan, math.nan, float(ranks.statistic), float(ranks.pvalue), "constant_difference"
    t = stats.ttest_1samp(differences, 0.0)
    return float(t.statistic), float(t.pvalue), float(ranks.statistic), float(ranks.pvalue), "ok"


def _split(
    cases: Mapping[str, Case], quantity: str, include_both_empty: bool
) -> tuple[dict[str, float], dict[str, tuple[str, ...]]]:
    """Finite values by case, and the other cases by reason."""
    kept: dict[str, float] = {}
    excluded: dict[str, list[str]] = {}
    for name, case in cases.items():
        measured = case.get(quantity)
        reason = _reason(measured, include_both_empty)
        if measured is not None and not reason:
            kept[name] = float(measured["value"])
        else:
            excluded.setdefault(reason, []).append(name)
    return kept, {reason: tuple(names) for reason, names in excluded.items()}


def _reason(measured: Value | None, include_both_empty: bool) -> str:
    """Why a value does not count, or ""."""
    if measured is None:
        return "not measured"
    status, value = measured["status"], measured["value"]
    # what was read back from JSON or CSV has no number where there was none
    value = math.nan if value is None else value
    if status == "both_empty" and not include_both_empty:
        return "both masks are empty"
    if math.isfinite(value):
        return ""
    what = "infinite" if math.isinf(value) else "undefined"
    why = {
        "both_empty": "both masks are empty",
        "prediction_empty": "the prediction is empty",
        "reference_empty": "the reference is empty",
    }.get(status)
    return f"{what}, {why}" if why else what


def _quantities(quantities: Iterable[str] | None) -> Sequence[str]:
    names = list(QUANTITIES) if quantities is None else list(quantities)
    unknown = [name for name in names if name not in QUANTITIES]
    if unknown:
        raise InputError(f"There is no quantity {unknown[0]!r}; known are {', '.join(QUANTITIES)}.")
    return names
