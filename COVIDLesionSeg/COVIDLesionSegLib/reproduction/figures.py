"""From finished cells to the figures of a table: means, spreads, tests against the compared row, lesion-size groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..measurement.cohort import GROUPS, paired_tests, volume_group
from ..measurement.tables import number
from .catalog import Metric, Published, Row, Table
from .planning import Cell, noise_name

# seed -> case -> metric -> value
Values = Mapping[int, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its result, or why there is none.

    Attributes:
        cell: which.
        result: as ``cell.json`` holds it, or None.
        reason: why there is none, or "".
        command: that fills it, or "" where nothing does.
    """

    cell: Cell
    result: Mapping[str, Any] | None
    reason: str = ""
    command: str = ""


@dataclass(frozen=True)
class Figure:
    """One number of a table beside the published one.

    Attributes:
        row: whose.
        noise: label errors, or "".
        reading: of slices, or "".
        group: lesion-size group, or "" for all cases.
        metric: which.
        published: the paper's, or None.
        mean: over the seeds' means over cases; NaN where nothing counts, as all numbers here.
        sd_cases: standard deviation over cases (ddof 0), the mean of the seeds'.
        sd_seeds: standard deviation of the seeds' means (ddof 1); NaN with one seed.
        seeds: how many.
        counted: values that count, over all seeds.
        total: values there are; what is infinite or undefined does not count.
        pairs: cases of the paired tests, each the mean over its seeds.
        t_p: p value of the paired t-test against the compared row.
        wilcoxon_p: of Wilcoxon's signed-rank test.
    """

    row: Row
    noise: str
    reading: str
    group: str
    metric: Metric
    published: Published | None
    mean: float
    sd_cases: float
    sd_seeds: float
    seeds: int
    counted: int
    total: int
    pairs: int
    t_p: float
    wilcoxon_p: float


def figures(table: Table, outcomes: Sequence[Outcome], grouped: bool = False) -> list[Figure]:
    """All figures of a table, row by row within each kind of label errors, reading and group."""
    found = []
    for noise in dict.fromkeys(_noise(outcome) for outcome in outcomes):
        here = [outcome for outcome in outcomes if _noise(outcome) == noise and outcome.result is not None]
        for reading in readings_of(table, here):
            for group in GROUPS if grouped else ("",):
                found += _block(table, here, noise, reading, group)
    return found


def readings_of(table: Table, outcomes: Sequence[Outcome]) -> list[str]:
    """Readings of the slices that the cells hold; [""] for tables on volumes."""
    if table.judged == "volumes":
        return [""]
    names: dict[str, None] = {}
    for outcome in outcomes:
        for scores in (outcome.result or {}).get("slices", {}).values():
            names |= dict.fromkeys(scores)
            break
    return list(names) or [""]


def _block(table: Table, outcomes: Sequence[Outcome], noise: str, reading: str, group: str) -> list[Figure]:
    values = {row.id: _values(row, outcomes, _reader(table, reading, group)) for row in table.rows}
    other = values.get(table.compared_with, {})
    out = []
    for row in table.rows:
        if not values[row.id]:
            continue
        for metric in table.metrics:
            seeds = [
                np.array([case[metric.key] for case in cases.values()], dtype=float)
                for cases in values[row.id].values()
                if cases
            ]
            if not seeds:
                continue
            finite = [array[np.isfinite(array)] for array in seeds]
            means = [float(array.mean()) for array in finite if len(array)]
            spreads = [float(array.std()) for array in finite if len(array)]
            pairs, t_p, wilcoxon_p = 0, math.nan, math.nan
            if row.id != table.compared_with and other:
                pairs, t_p, wilcoxon_p = _tested(values[row.id], other, metric.key)
            out.append(
                Figure(
                    row,
                    noise,
                    reading,
                    group,
                    metric,
                    row.published.get(metric.key) if not group else None,
                    float(np.mean(means)) if means else math.nan,
                    float(np.mean(spreads)) if spreads else math.nan,
                    float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
                    len(seeds),
                    sum(len(array) for array in finite),
                    sum(len(array) for array in seeds),
                    pairs,
                    t_p,
                    wilcoxon_p,
                )
            )
    return out


Reader = Callable[[Mapping[str, Any]], dict[str, dict[str, float]]]


def _reader(table: Table, reading: str, group: str) -> Reader:
    """Takes the cases of a result: case -> metric -> value. Volumes without lesion are left out."""

    def of_slices(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        return {
            case: {key: number(value) for key, value in scores[reading].items()}
            for case, scores in result["slices"].items()
            if reading in scores
        }

    def of_volumes(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        keys = [metric.key for metric in table.metrics]
        return {
            case: {key: number(entries[key]["value"]) for key in keys}
            for case, entries in result["volumes"].items()
            if number(entries["reference_volume"]["value"]) > 0
            and group in ("", volume_group(number(entries["reference_volume"]["value"])))
        }

    return of_volumes if table.judged == "volumes" else of_slices


def false_lesion(result: Mapping[str, Any]) -> list[float]:
    """Milliliters that were marked in each tested volume without lesion; such volumes count in no other figure."""
    return [
        number(entries["prediction_volume"]["value"])
        for entries in result["volumes"].values()
        if number(entries["reference_volume"]["value"]) == 0
    ]


def _values(row: Row, outcomes: Sequence[Outcome], read: Reader) -> dict[int, dict[str, dict[str, float]]]:
    """The row's cases by seed; folds are put together, since a case is tested in one of them only."""
    found: dict[int, dict[str, dict[str, float]]] = {}
    for outcome in outcomes:
        if outcome.cell.row.id == row.id and outcome.result is not None:
            found.setdefault(outcome.cell.seed, {}).update(read(outcome.result))
    return found


def _tested(own: Values, other: Values, key: str) -> tuple[int, float, float]:
    first, second = _case_means(own, key), _case_means(other, key)
    shared = [case for case in first if case in second]
    differences = np.array([first[case] - second[case] for case in shared])
    differences = differences[np.isfinite(differences)]
    _, t_p, _, wilcoxon_p, _ = paired_tests(differences)
    return len(differences), t_p, wilcoxon_p


def _case_means(values: Values, key: str) -> dict[str, float]:
    cases: dict[str, list[float]] = {}
    for seed in values.values():
        for case, scores in seed.items():
            cases.setdefault(case, []).append(scores[key])
    return {case: float(np.mean(found)) for case, found in cases.items()}


def _noise(outcome: Outcome) -> str:
    return noise_name(outcome.cell.noise)
