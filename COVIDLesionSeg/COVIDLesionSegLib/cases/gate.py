"""Whether a new model may replace the active one: both on the same labels, by a paired rule whose numbers are data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from ..codec import to_json
from ..errors import InputError
from ..resources import load_json
from .layout import counted, now

Verdict = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class CaseFigures:
    """How one model did on one case; NaN and infinity as the metrics define them.

    Attributes:
        dice: 0 ... 1.
        relative_volume_error: of the lesion's volume.
        hausdorff_distance_95: mm.
        prediction_ml: what the model marked, mL.
        reference_ml: the label, mL; 0 for a case without lesion.
    """

    dice: float
    relative_volume_error: float
    hausdorff_distance_95: float
    prediction_ml: float
    reference_ml: float

    @property
    def lesion_free(self) -> bool:
        """The case has no lesion: what the model marked is false, and Dice says nothing."""
        return self.reference_ml == 0


@dataclass(frozen=True)
class GateRule:
    """The numbers of ``Resources/Gate.json``, which gives the reason for each.

    Attributes:
        dice_margin: the new model passes if its mean Dice is shown not to be lower by more than this.
        confidence: of the one-sided bounds of the mean difference, in (0.5, 1).
        resamples: of the bootstrap over patients.
        minimum_patients: with fewer patients with lesion nothing is decided.
        lesion_free_gain_ml: by how much the mean false lesion of patients without lesion may be larger, mL.
        case_dice_loss: a case that falls by more than this is named, to be looked at.
        blind_fraction: of the validation patients, is read without any model's prediction.
    """

    dice_margin: float = 0.02
    confidence: float = 0.95
    resamples: int = 10_000
    minimum_patients: int = 5
    lesion_free_gain_ml: float = 1.0
    case_dice_loss: float = 0.05
    blind_fraction: float = 0.5

    @classmethod
    def shipped(cls) -> GateRule:
        """The rule that comes with the program."""
        values = load_json("Gate.json")
        return cls(**{item.name: values[item.name]["value"] for item in fields(cls)})


@dataclass(frozen=True)
class Difference:
    """The new model against another one, on the labels that count.

    Attributes:
        against: id of the other one.
        patients: with lesion, that count.
        mean: over these patients, of the new model's Dice minus the other one's (the mean over each patient's cases);
            NaN without any.
        low: lower one-sided bound of the mean.
        high: upper one-sided bound.
        free_patients: without lesion, that count.
        false_ml: mean over them of the new model's false lesion minus the other one's, mL; NaN without any.
        verdict: what follows for these two.
        reason: why, as a sentence or two.
    """

    against: str
    patients: int
    mean: float
    low: float
    high: float
    free_patients: int
    false_ml: float
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class GateDecision:
    """What the gate decided, and what a person decided after it.

    Attributes:
        verdict: "passed", "failed", or "undecided": then a person has to choose.
        reasons: what the decision rests on, one sentence each.
        warnings: what makes it weak, one sentence each.
        rule: its numbers.
        old: id of the active model.
        new: id of the new one.
        best: id of the best model so far.
        differences: against the active model and, where it is another one, the best so far.
        mean_dice_old: over the cases with lesion that count; NaN where there is none.
        mean_dice_new: the same of the new model.
        cases: case id -> {"old", "new" and, where it is another model, "best": figures}, of all validation cases.
        left_out: case id -> why its label does not count.
        split: what the figures stand on, see ``StoreSplit.statement``.
        decided: when, UTC.
        override: "" or what a person decided: "accepted" or "rejected".
        override_by: who.
        override_reason: why.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    rule: GateRule
    old: str
    new: str
    best: str
    differences: tuple[Difference, ...]
    mean_dice_old: float
    mean_dice_new: float
    cases: Mapping[str, Mapping[str, CaseFigures]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    decided: str = ""
    override: Literal["", "accepted", "rejected"] = ""
    override_by: str = ""
    override_reason: str = ""

    @property
    def passed(self) -> bool:
        """The rule alone lets the new model be the active one."""
        return self.verdict == "passed"

    @property
    def accepted(self) -> bool:
        """Whether the new model may be the active one, after an override."""
        return self.override == "accepted" or (self.passed and not self.override)

    @property
    def text(self) -> str:
        """The decision in a few sentences."""
        said = {
            "passed": f"{self.new} passed validation against {self.old}.",
            "failed": f"{self.new} failed validation against {self.old}.",
            "undecided": f"Validation can't decide between {self.new} and {self.old}; a person has to choose.",
        }[self.verdict]
        again = {"passed": "", "failed": " despite failed validation", "undecided": ""}[self.verdict]
        if self.override == "rejected":
            again = " although it passed validation" if self.passed else ""
        by = f" {self.override_by} {self.override} it{again}: {self.override_reason}." if self.override else ""
        return f"{said} {' '.join(self.reasons)}{by}"

    def overridden(self, accept: bool, by: str, reason: str) -> GateDecision:
        """The decision with a person's word on it.

        Raises:
            InputError: no reason.
        """
        if not reason.strip():
            raise InputError("Say why you decide for the rule; it is written on the model's card.")
        word: Literal["accepted", "rejected"] = "accepted" if accept else "rejected"
        return replace(self, override=word, override_by=by, override_reason=reason.strip().rstrip("."))

    def told(self) -> dict[str, Any]:
        """For people and other programs: what is written, and what follows from it."""
        return {**to_json(self), "passed": self.passed, "accepted": self.accepted, "text": self.text}


def decide(
    new: str,
    old: str,
    best: str,
    figures: Mapping[str, Mapping[str, CaseFigures]],
    patients: Mapping[str, str],
    left_out: Mapping[str, str] | None = None,
    split: Mapping[str, Any] | None = None,
    rule: GateRule | None = None,
) -> GateDecision:
    """Apply the rule to the figures of a new model, the active one, and the best so far.

    Args:
        new: id of the new model.
        old: id of the active one.
        best: id of the best so far; may be the active or the new one.
        figures: model id -> case id -> its figures, of all validation cases, the same for all models.
        patients: case id -> patient.
        left_out: case id -> why its label does not count.
        split: what the cases are.
        rule: its numbers; None takes those that come with the program.

    Raises:
        InputError: the models were validated on different cases, or on none.
    """
    rule, left_out, split = rule or GateRule.shipped(), left_out or {}, split or {}
    others = list(dict.fromkeys(name for name in (old, best) if name != new)) or [old]
    sizes = {name: len(figures[name]) for name in (new, *others)}
    if not figures[new] or any(set(figures[name]) != set(figures[new]) for name in others):
        shown = ", ".join(f"{name} on {count}" for name, count in sizes.items())
        raise InputError(f"Validation compares models on the same cases; it ran {shown}.")
    counting = [case for case in sorted(figures[new]) if case not in left_out]
    differences = tuple(_difference(new, other, figures, patients, counting, rule) for other in others)
    verdicts = {difference.verdict for difference in differences}
    verdict: Verdict = "failed" if "failed" in verdicts else "undecided" if "undecided" in verdicts else "passed"
    diseased = [case for case in counting if not figures[new][case].lesion_free]
    means = [_mean([figures[name][case].dice for case in diseased]) for name in (old, new)]
    roles = {"old": old, "new": new} | ({"best": best} if best not in (old, new) else {})
    cases = {case: {role: figures[name][case] for role, name in roles.items()} for case in sorted(figures[new])}
    return GateDecision(
        verdict,
        tuple(difference.reason for difference in differences),
        tuple(_warnings(old, new, figures, diseased, left_out, split, rule)),
        rule,
        old,
        new,
        best,
        differences,
        means[0],
        means[1],
        cases,
        left_out,
        split,
        now(),
    )


def bounds(differences: Sequence[float], confidence: float, resamples: int) -> tuple[float, float]:
    """Lower and upper one-sided bound of a mean, by the percentile bootstrap over patients.

    The draw is the same each time, so that the same figures give the same decision.

    Args:
        differences: one value a patient.
        confidence: of each bound by itself.
        resamples: how many.
    """
    values = np.asarray(differences, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [1 - confidence, confidence])
    return float(low), float(high)


def _difference(
    new: str,
    other: str,
    figures: Mapping[str, Mapping[str, CaseFigures]],
    patients: Mapping[str, str],
    counting: Sequence[str],
    rule: GateRule,
) -> Difference:
    with_lesion: dict[str, list[float]] = {}
    without: dict[str, list[float]] = {}
    for case in counting:
        mine, its = figures[new][case], figures[other][case]
        if mine.lesion_free:
            without.setdefault(patients[case], []).append(mine.prediction_ml - its.prediction_ml)
        else:
            with_lesion.setdefault(patients[case], []).append(mine.dice - its.dice)
    dices = [_mean(values) for values in with_lesion.values()]
    false = _mean([_mean(values) for values in without.values()])
    low, high = bounds(dices, rule.confidence, rule.resamples) if dices else (math.nan, math.nan)
    difference = Difference(other, len(dices), _mean(dices), low, high, len(without), false, "undecided", "")
    verdict, reason = _verdict(difference, rule)
    return replace(difference, verdict=verdict, reason=reason)


def _verdict(found: Difference, rule: GateRule) -> tuple[Verdict, str]:
    """What follows from two models' difference."""
    # a hair of rounding decides nothing
    hair = 1e-9
    if found.false_ml > rule.lesion_free_gain_ml + hair:
        return "failed", (
            f"In {counted(found.free_patients, 'patient')} without lesion it marks {found.false_ml:.1f} mL more than "
            f"{found.against}, above {rule.lesion_free_gain_ml:g} mL."
        )
    if not found.patients:
        return "undecided", f"No label with lesion counts for comparing it with {found.against}."
    text = (
        f"Mean Dice {found.mean:+.3f} to {found.against} in {counted(found.patients, 'patient')} "
        f"({rule.confidence:.0%} bounds {found.low:+.3f} and {found.high:+.3f})"
    )
    if found.patients < rule.minimum_patients:
        return "undecided", f"{text}; fewer than {rule.minimum_patients} patients count, so nothing is decided."
    if found.low >= -rule.dice_margin - hair:
        return "passed", f"{text}: not lower by more than {rule.dice_margin:g}."
    if found.mean < -rule.dice_margin - hair or found.high < 0:
        return "failed", f"{text}: lower than {rule.dice_margin:g} allow."
    return (
        "undecided",
        f"{text}: the patients are too few, or differ too much, to rule out a loss of more than {rule.dice_margin:g}.",
    )


def _warnings(
    old: str,
    new: str,
    figures: Mapping[str, Mapping[str, CaseFigures]],
    diseased: Sequence[str],
    left_out: Mapping[str, str],
    split: Mapping[str, Any],
    rule: GateRule,
) -> list[str]:
    warnings = [f"{case} does not count: {why}" for case, why in left_out.items()]
    for case in diseased:
        before, after = figures[old][case].dice, figures[new][case].dice
        if before - after > rule.case_dice_loss + 1e-9:
            warnings.append(f"{case} fell from Dice {before:.3f} to {after:.3f}; look at it.")
    if split.get("moves"):
        warnings.append("Patients were moved between the sides; figures from before that do not compare.")
    if split.get("warning"):
        warnings.append(str(split["warning"]))
    return warnings


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
