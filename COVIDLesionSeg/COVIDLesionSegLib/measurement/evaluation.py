"""Everything about a prediction against a reference, in one dictionary with units and statuses.

Titles, units and definitions are data: ``Resources/Evaluation.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypedDict

from numpy.typing import ArrayLike

from ..cores import run_all
from ..imaging.masks import SparseMask, as_pair, as_spacing
from ..resources import load_json
from .lesions import LabeledMask, LesionDetection, as_share, compare_lesions
from .overlap import ConfusionCounts
from .surface import (
    DEFAULT_TOLERANCE_MM,
    Distances,
    SurfacePair,
    as_tolerance,
    average_distance,
    empty_distance,
    hd95_directed,
    surface_dice,
)


class Value(TypedDict):
    """One measured quantity: value, unit (UCUM) and status."""

    value: float
    unit: str
    status: str


@dataclass(frozen=True)
class Quantity:
    """What a key of :func:`evaluate` means.

    Attributes:
        title: as shown to people.
        unit: UCUM; "1" is a number without unit.
        definition: one sentence.
        better: "higher", "lower" or "" where neither is better.
        of_both: whether it compares the masks; its status is then that of the pair ("both_empty", ...).
    """

    title: str
    unit: str
    definition: str
    better: str = ""
    of_both: bool = True


QUANTITIES: Mapping[str, Quantity] = MappingProxyType(
    {name: Quantity(**given) for name, given in load_json("Evaluation.json")["quantities"].items()}
)


def evaluate(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing: Sequence[float],
    *,
    tolerance: float = DEFAULT_TOLERANCE_MM,
    minimum_overlap: float = 0.0,
) -> dict[str, Value]:
    """Compare a prediction with a reference by everything this project measures.

    Args:
        prediction: bool mask (z, y, x), or integers 0 and 1.
        reference: bool mask (z, y, x).
        spacing: (z, y, x), mm.
        tolerance: mm, of the normalized surface Dice.
        minimum_overlap: share of a lesion that must be covered for it to count as found, see
            :func:`.lesions.detect_lesions`.

    Returns:
        name -> value (float), unit (UCUM), status; the names are the keys of :data:`QUANTITIES`. A status is "ok",
        "both_empty", "prediction_empty" or "reference_empty", and "undefined" where a value is NaN though neither mask
        is empty (the specificity of a grid full of lesion). Volumes and counts are always "ok".

    Raises:
        GridMismatchError: different shapes.
        GeometryError: spacing that is not positive.
        InputError: values other than 0 and 1, not three axes, a tolerance or share that is not allowed.
    """
    settings = Settings.checked(spacing, tolerance, minimum_overlap)
    first, second = as_pair(prediction, reference, 3)
    masks = run_all([lambda: SparseMask.of(first), lambda: SparseMask.of(second)])
    surfaces = run_all([masks[0].surface_points, masks[1].surface_points])
    counts = ConfusionCounts.of(masks[0], masks[1], first.size)

    def distances() -> tuple[Distances, Distances] | None:
        return SurfacePair(surfaces[0], surfaces[1], settings.spacing).distances() if counts.status == "ok" else None

    def lesions() -> LesionDetection:
        one, other = run_all([partial(LabeledMask.of, mask) for mask in masks])
        return compare_lesions(one, other, settings.voxel_ml, settings.minimum_overlap)

    return settings.values(counts, *run_all([distances, lesions]))


@dataclass(frozen=True)
class Settings:
    """How masks are compared: spacing (z, y, x) mm, tolerance mm, share of a lesion that counts as found."""

    spacing: tuple[float, float, float]
    tolerance: float
    minimum_overlap: float

    @classmethod
    def checked(cls, spacing: Sequence[float], tolerance: float, minimum_overlap: float) -> Settings:
        """Settings from what a user gave; GeometryError or InputError for what is not allowed."""
        return cls(as_spacing(spacing), as_tolerance(tolerance), as_share(minimum_overlap))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, mL."""
        return math.prod(self.spacing) / 1000.0

    def values(
        self, counts: ConfusionCounts, distances: tuple[Distances, Distances] | None, lesions: LesionDetection
    ) -> dict[str, Value]:
        """The dictionary of :func:`evaluate`; ``distances`` is None where a mask is empty."""
        if distances is None:
            nothing = empty_distance(counts.prediction, counts.reference)
            hausdorff = percentile = average = nothing
            surface = 1.0 if math.isnan(nothing) else 0.0
        else:
            hausdorff = float(max(found.max() for found in distances))
            percentile = hd95_directed(*distances)
            average = average_distance(*distances)
            surface = surface_dice(*distances, self.tolerance)
        error = counts.relative_volume_error
        detected = lesions.detected
        numbers = {
            "dice": counts.dice,
            "relative_volume_error": abs(error),
            "relative_volume_error_signed": error,
            "hausdorff_distance_95": percentile,
            "hausdorff_distance": hausdorff,
            "average_surface_distance": average,
            "normalized_surface_dice": surface,
            "sensitivity": counts.sensitivity,
            "specificity": counts.specificity,
            "precision": counts.precision,
            "prediction_volume": counts.prediction * self.voxel_ml,
            "reference_volume": counts.reference * self.voxel_ml,
            "volume_difference": (counts.prediction - counts.reference) * self.voxel_ml,
            "lesion_sensitivity": lesions.sensitivity,
            "reference_lesions": float(len(detected)),
            "detected_lesions": float(detected.sum()),
            "prediction_lesions": float(len(lesions.prediction_voxels)),
            "false_positive_lesions": float(lesions.false_positives),
        }
        return {name: _value(name, number, counts.status) for name, number in numbers.items()}


def _value(name: str, number: float, pair_status: str) -> Value:
    quantity = QUANTITIES[name]
    status = pair_status if quantity.of_both else "ok"
    if status == "ok" and math.isnan(number):
        status = "undefined"
    return {"value": float(number), "unit": quantity.unit, "status": status}
