"""Whether a new model may replace the old one: both on the same frozen cases, by a rule that is data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..resources import load_json
from .layout import now


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
    """The limits of ``Resources/Gate.json``; its schema says what each means."""

    mean_dice_loss: float = 0.005
    case_dice_loss: float = 0.05
    lesion_free_gain_ml: float = 1.0

    @classmethod
    def shipped(cls) -> GateRule:
        """The rule that comes with the program."""
        values = load_json("Gate.json")
        return cls(*(float(values[name]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class GateDecision:
    """What the gate decided, and what a person decided after it.

    Attributes:
        passed: the rule lets the new model through.
        reasons: what the decision rests on, one sentence each.
        warnings: what makes it weak, one sentence each.
        rule: the limits.
        old: id of the model that was the default.
        new: id of the new one.
        mean_dice_old: over the cases with lesion; NaN where there is none.
        mean_dice_new: the same of the new model.
        cases: case id -> {"old": figures, "new": figures}.
        split: what the figures stand on, see ``StoreSplit.statement``.
        decided: when, UTC.
        override: "" or what a person decided against the rule: "accepted" or "rejected".
        override_by: who.
        override_reason: why.
    """

    passed: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    rule: GateRule
    old: str
    new: str
    mean_dice_old: float
    mean_dice_new: float
    cases: Mapping[str, Mapping[str, CaseFigures]]
    split: Mapping[str, Any]
    decided: str
    override: str = ""
    override_by: str = ""
    override_reason: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the new model may be the default, after an override."""
        return self.override == "accepted" or (self.passed and not self.override)

    @property
    def text(self) -> str:
        """The decision in a sentence or two."""
        rule = f"{self.new} {'passed' if self.passed else 'did not pass'} the gate against {self.old}."
        by = f" {self.override_by} {self.override} it all the same: {self.override_reason}." if self.override else ""
        return f"{rule} {' '.join(self.reasons)}{by}"

    def overridden(self, accept: bool, by: str, reason: str) -> GateDecision:
        """The decision with a person's word on it.

        Raises:
            InputError: no reason.
        """
        if not reason.strip():
            raise InputError("Say why the gate is overridden; it is written on the model's card.")
        word = "accepted" if accept else "rejected"
        return replace(self, override=word, override_by=by, override_reason=reason.strip().rstrip("."))


def decide(
    old: str,
    new: str,
    old_figures: Mapping[str, CaseFigures],
    new_figures: Mapping[str, CaseFigures],
    split: Mapping[str, Any],
    rule: GateRule | None = None,
) -> GateDecision:
    """Apply the rule to two models' figures on the same cases.

    Args:
        old: id of the old model.
        new: id of the new one.
        old_figures: case id -> its figures.
        new_figures: the same cases with those of the new model.
        split: what the cases are.
        rule: the limits; None takes those that come with the program.

    Raises:
        InputError: the models were judged on different cases, or on none.
    """
    rule = rule or GateRule.shipped()
    if set(old_figures) != set(new_figures) or not new_figures:
        raise InputError(
            f"The gate compares two models on the same cases; {old} was judged on {len(old_figures)}, "
            f"{new} on {len(new_figures)}."
        )
    pairs = {case: {"old": old_figures[case], "new": new_figures[case]} for case in sorted(new_figures)}
    diseased = {case: both for case, both in pairs.items() if not both["new"].lesion_free}
    free = {case: both for case, both in pairs.items() if both["new"].lesion_free}
    means = [
        math.fsum(both[side].dice for both in diseased.values()) / len(diseased) if diseased else math.nan
        for side in ("old", "new")
    ]
    reasons, failures = [], 0
    if diseased:
        loss = means[0] - means[1]
        # a hair of rounding decides nothing
        bad = loss > rule.mean_dice_loss + 1e-9
        failures += bad
        reasons.append(
            f"Mean Dice {means[1]:.3f} against {means[0]:.3f} (cases with lesion: {len(diseased)})"
            + (f": lower by more than {rule.mean_dice_loss:g}." if bad else ".")
        )
    for case, both in diseased.items():
        if both["old"].dice - both["new"].dice > rule.case_dice_loss + 1e-9:
            failures += 1
            reasons.append(
                f"{case} fell from Dice {both['old'].dice:.3f} to {both['new'].dice:.3f}, "
                f"by more than {rule.case_dice_loss:g}."
            )
    for case, both in free.items():
        if both["new"].prediction_ml - both["old"].prediction_ml > rule.lesion_free_gain_ml + 1e-9:
            failures += 1
            reasons.append(
                f"{case} has no lesion, and what the model marks in it grew from {both['old'].prediction_ml:.1f} to "
                f"{both['new'].prediction_ml:.1f} mL, by more than {rule.lesion_free_gain_ml:g} mL."
            )
    return GateDecision(
        failures == 0,
        tuple(reasons),
        tuple(_warnings(diseased, split)),
        rule,
        old,
        new,
        means[0],
        means[1],
        pairs,
        split,
        now(),
    )


def _warnings(diseased: Mapping[str, Any], split: Mapping[str, Any]) -> list[str]:
    warnings = []
    patients = int(split.get("validation_patients", len(diseased)))
    if patients < 2:
        warnings.append("One patient judges: the figures say little about others. Add patients and validate on more.")
    elif len(diseased) < 5:
        warnings.append("Fewer than five cases with lesion judge: small differences mean little.")
    if not diseased:
        warnings.append("No validation case has lesion: only false lesions were looked at.")
    if split.get("moves"):
        warnings.append("Patients were moved between the sides; figures from before that do not compare.")
    return warnings
