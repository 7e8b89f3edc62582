"""Which case to work on next, and why."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..errors import InputError
from .layout import check_rater
from .records import Case, State

# why a validation case is offered without a prediction
BLIND = "A validation case, read without any model's prediction, so that its label can compare models."
ORDERS = {
    "uncertainty": "most uncertain prediction first (entropy under test-time augmentation, else disagreement)",
    "disagreement": "predictions first on which student and teacher disagree most",
    "lesion-size": "largest lesion first",
    "age": "longest in the store first",
    "random": "in random order",
}


@dataclass(frozen=True)
class Suggestion:
    """The case to take next.

    Attributes:
        case: which.
        reason: why this one, as a sentence.
        waiting: how many cases wait, this one included.
        skipped: what was passed over although it would have come first, one sentence each.
    """

    case: Case
    reason: str
    waiting: int
    skipped: tuple[str, ...] = ()


def next_case(
    cases: Sequence[Case],
    rater: str,
    by: str = "uncertainty",
    states: Sequence[State] = ("new", "predicted"),
    seed: int | None = None,
    blind: Collection[str] = (),
) -> Suggestion | None:
    """Choose the next case for a rater.

    What the rater left unsaved comes first, then what was marked "fix it" in the review, then validation cases that are
    to be read blind, then the waiting cases in the wanted order. Cases that somebody else has open are passed over.

    Args:
        cases: all cases of the store.
        rater: who asks.
        by: a key of :data:`ORDERS`.
        states: which cases wait; with "corrected" a second rater gets those that he or she has not saved yet.
        seed: of the random order; None draws anew each time.
        blind: ids of validation cases that need a mask that no model has drafted, whoever has saved one before.

    Returns:
        The case with the reason, or None when nothing waits.

    Raises:
        InputError: an unknown order, or a name that is not allowed.
    """
    check_rater(rater)
    if by not in ORDERS:
        raise InputError(f"The order {by!r} is unknown; use one of {', '.join(ORDERS)}.")
    ranked = _ranked(cases, rater, by, states, seed, blind)
    waiting = sum(not _open_elsewhere(case) for case, _ in ranked)
    skipped: list[str] = []
    for case, reason in ranked:
        if _open_elsewhere(case):
            skipped.append(f"{case.id} is open: {case.lock}.")
            continue
        return Suggestion(case, reason, waiting, tuple(skipped))
    return None


def _ranked(
    cases: Sequence[Case], rater: str, by: str, states: Sequence[State], seed: int | None, blind: Collection[str]
) -> list[tuple[Case, str]]:
    wanted = [case for case in cases if not case.exclusion]
    urgent = [(case, "You left unsaved work on it.") for case in wanted if rater in case.unsaved]
    urgent += [
        (case, f"Marked 'fix it' in the review: {_slices([item.slice for item in case.slices_to_fix()])}.")
        for case in wanted
        if case.slices_to_fix()
    ]
    urgent += [(case, BLIND) for case in wanted if case.id in blind]
    # a case comes once, for the first of its reasons
    first = list({case.id: (case, reason) for case, reason in reversed(urgent)}.values())[::-1]
    chosen = {case.id for case, _ in first}
    waiting = [c for c in wanted if c.id not in chosen and _waits(c, rater, states)]
    order = {
        "uncertainty": _by_uncertainty,
        "disagreement": _by_disagreement,
        "lesion-size": _by_size,
        "age": _by_age,
        "random": lambda found: _by_chance(found, seed),
    }[by]
    left = [case for case in waiting if case.unsaved]
    left_by_others = [(case, f"{' and '.join(case.unsaved)} left unsaved work on it.") for case, _ in order(left)]
    return [*first, *order([case for case in waiting if not case.unsaved]), *left_by_others]


def _waits(case: Case, rater: str, states: Sequence[State]) -> bool:
    if rater in case.raters:
        return False
    # a case in work counts as what it was before: its lock, or somebody's unsaved work, is looked at separately
    resting: State = "predicted" if case.predictions else "new"
    if case.revisions:
        resting = "approved" if case.approved is not None else "corrected"
    return resting in states


def _open_elsewhere(case: Case) -> bool:
    return case.lock is not None and not case.lock.abandoned


def _by_uncertainty(cases: Sequence[Case]) -> list[tuple[Case, str]]:
    return _by_value(cases, "tta_entropy", "entropy under test-time augmentation {:.3f} bit") or _by_disagreement(cases)


def _by_disagreement(cases: Sequence[Case]) -> list[tuple[Case, str]]:
    return _by_value(cases, "disagreement", "student and teacher overlap with Dice {:.2f}") or [
        (case, "No uncertainty is known for any waiting case; the longest waiting comes first.")
        for case in sorted(cases, key=lambda case: case.number)
    ]


def _by_value(cases: Sequence[Case], name: str, text: str) -> list[tuple[Case, str]]:
    values = {c.id: c.prediction.uncertainty[name] for c in cases if c.prediction and name in c.prediction.uncertainty}
    if not values:
        return []
    known = sorted((case for case in cases if case.id in values), key=lambda case: (-values[case.id], case.number))
    unknown = sorted((case for case in cases if case.id not in values), key=lambda case: case.number)
    ranked = []
    for place, case in enumerate(known):
        value = values[case.id]
        shown = text.format(1 - value if name == "disagreement" else value)
        rank = "The most uncertain" if place == 0 else f"Number {place + 1}"
        ranked.append((case, f"{rank} of {len(known)} waiting predictions: {shown}."))
    return ranked + [(case, "The model's uncertainty about it is not known.") for case in unknown]


def _by_size(cases: Sequence[Case]) -> list[tuple[Case, str]]:
    known = [case for case in cases if case.lesion_ml is not None]
    ranked = sorted(known, key=lambda case: (-(case.lesion_ml or 0.0), case.number))
    found = [(case, f"The largest lesion of those that wait: {case.lesion_ml:.1f} mL.") for case in ranked]
    unknown = sorted((case for case in cases if case.lesion_ml is None), key=lambda case: case.number)
    return found + [(case, "No lesion volume is known for it.") for case in unknown]


def _by_age(cases: Sequence[Case]) -> list[tuple[Case, str]]:
    # by number: the order of adding does not depend on any clock
    ranked = sorted(cases, key=lambda case: case.number)
    return [(case, f"The longest waiting: added {case.added[:10]}.") for case in ranked]


def _by_chance(cases: Sequence[Case], seed: int | None) -> list[tuple[Case, str]]:
    ranked = sorted(cases, key=lambda case: case.number)
    random.Random(seed).shuffle(ranked)
    return [(case, f"Drawn at random from {len(ranked)} waiting cases.") for case in ranked]


def _slices(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:5])) + (", ..." if len(indices) > 5 else "")
    return f"slice {shown}" if len(indices) == 1 else f"slices {shown}"
