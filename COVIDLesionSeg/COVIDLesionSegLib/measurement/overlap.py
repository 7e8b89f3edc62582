"""How much of two masks coincides: Dice and its relatives, volumes, and the map of errors.

All measures take a prediction and a reference of one shape, bool (z, y, x) (or integers 0 and 1), and return a float.
What they return where a mask is empty is written at each; ``docs/metrics.md`` has it in one table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..cores import run_all, usable_threads
from ..errors import InputError
from ..imaging.masks import Mask, SparseMask, as_mask, as_pair, as_spacing, require_same_shape

# Voxels from which on threads take less time than they cost.
_WORTH_THREADS = 1_000_000


@dataclass(frozen=True)
class ConfusionCounts:
    """How many voxels two masks share and do not share.

    Attributes:
        true_positive: in both.
        false_positive: in the prediction only.
        false_negative: in the reference only.
        true_negative: in neither.
    """

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @classmethod
    def from_sizes(cls, prediction: int, reference: int, both: int, total: int) -> ConfusionCounts:
        """Counts from the voxels of each mask, of their intersection, and of the grid."""
        return cls(both, prediction - both, reference - both, total - prediction - reference + both)

    @classmethod
    def of(cls, prediction: SparseMask, reference: SparseMask, total: int) -> ConfusionCounts:
        """Counts of two masks of one shape; ``total`` is the voxels of the image."""
        return cls.from_sizes(len(prediction), len(reference), prediction.shared_with(reference), total)

    @property
    def prediction(self) -> int:
        """Voxels of the prediction."""
        return self.true_positive + self.false_positive

    @property
    def reference(self) -> int:
        """Voxels of the reference."""
        return self.true_positive + self.false_negative

    @property
    def dice(self) -> float:
        """See :func:`dice`."""
        total = self.prediction + self.reference
        return 2.0 * self.true_positive / total if total else 1.0

    @property
    def sensitivity(self) -> float:
        """See :func:`sensitivity`."""
        return _ratio(self.true_positive, self.reference)

    @property
    def specificity(self) -> float:
        """See :func:`specificity`."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def precision(self) -> float:
        """See :func:`precision`."""
        return _ratio(self.true_positive, self.prediction)

    @property
    def relative_volume_error(self) -> float:
        """See :func:`relative_volume_error`, signed."""
        return _ratio(self.prediction - self.reference, self.reference)

    @property
    def status(self) -> str:
        """ "ok", "both_empty", "prediction_empty" or "reference_empty"."""
        if self.prediction and self.reference:
            return "ok"
        if not self.prediction and not self.reference:
            return "both_empty"
        return "prediction_empty" if not self.prediction else "reference_empty"


def confusion_counts(prediction: ArrayLike, reference: ArrayLike) -> ConfusionCounts:
    """Count true and false positives and negatives.

    Args:
        prediction: bool mask of any shape.
        reference: bool mask of the same shape.

    Raises:
        GridMismatchError: different shapes.
        InputError: values other than 0 and 1.
    """
    first, second = as_pair(prediction, reference)
    parts = zip(_parts(first), _parts(second), strict=True)
    counts = run_all([partial(_count, one, other) for one, other in parts])
    predicted, expected, shared = (sum(column) for column in zip(*counts, strict=True))
    return ConfusionCounts.from_sizes(predicted, expected, shared, first.size)


def dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Dice similarity coefficient, 2 |A and B| / (|A| + |B|).

    Args:
        prediction: bool mask (z, y, x).
        reference: bool mask (z, y, x).

    Returns:
        0 to 1; 1 if both are empty, 0 if one is.

    Raises:
        GridMismatchError: different shapes.
        InputError: values other than 0 and 1.

    Source: Dice, Ecology 26, 1945; Wang et al., IEEE TMI 39, 2020.
    """
    return confusion_counts(prediction, reference).dice


def sensitivity(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Sensitivity (recall) of voxels, TP / (TP + FN); NaN if the reference is empty.

    Args and Raises as :func:`dice`.
    """
    return confusion_counts(prediction, reference).sensitivity


def specificity(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Specificity of voxels, TN / (TN + FP); NaN if the reference fills the grid.

    It depends on how much background the grid holds, so it compares models on the same images only.
    Args and Raises as :func:`dice`.
    """
    return confusion_counts(prediction, reference).specificity


def precision(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Precision (positive predictive value) of voxels, TP / (TP + FP); NaN if the prediction is empty.

    Args and Raises as :func:`dice`.
    """
    return confusion_counts(prediction, reference).precision


def relative_volume_error(prediction: ArrayLike, reference: ArrayLike, signed: bool = False) -> float:
    """Relative volume error, | |A| - |B| | / |B| with A the prediction and B the reference.

    Args:
        prediction: bool mask (z, y, x).
        reference: bool mask (z, y, x).
        signed: keep the sign: negative where the prediction is too small.

    Returns:
        A fraction (0.2 is 20 %); NaN if the reference is empty, 1 (signed: -1) if only the prediction is.

    Raises:
        GridMismatchError: different shapes.
        InputError: values other than 0 and 1.

    Source: Wang et al., IEEE TMI 39, 2020, section III.
    """
    first, second = as_pair(prediction, reference)
    sizes = run_all([partial(np.count_nonzero, first), partial(np.count_nonzero, second)])
    error = _ratio(int(sizes[0]) - int(sizes[1]), int(sizes[1]))
    return error if signed else abs(error)


def volume_ml(mask: ArrayLike, spacing: Sequence[float]) -> float:
    """Volume of a mask in milliliters: voxels times the volume of one.

    Args:
        mask: bool (z, y, x).
        spacing: (z, y, x), mm.

    Raises:
        GeometryError: spacing that is not positive.
        InputError: values other than 0 and 1.
    """
    return int(np.count_nonzero(as_mask(mask))) * math.prod(as_spacing(spacing)) / 1000.0


@dataclass(frozen=True)
class ErrorLabel:
    """One label of the map of errors.

    Attributes:
        name: as shown to people.
        color: red, green, blue, 0 to 255; the three stay apart for color-blind readers (Okabe and Ito, 2008).
    """

    name: str
    color: tuple[int, int, int]


ERROR_LABELS: Mapping[int, ErrorLabel] = MappingProxyType(
    {
        1: ErrorLabel("true positive", (0, 158, 115)),
        2: ErrorLabel("false positive", (230, 159, 0)),
        3: ErrorLabel("false negative", (86, 180, 233)),
    }
)


def error_map(prediction: ArrayLike, reference: ArrayLike) -> NDArray[np.uint8]:
    """Where two masks agree and where they do not, as a label map.

    Args:
        prediction: bool mask of any shape, e.g. (z, y, x).
        reference: bool mask of the same shape.

    Returns:
        uint8 of the same shape: 0 background, 1 true positive, 2 false positive, 3 false negative
        (:data:`ERROR_LABELS` has names and colors).

    Raises:
        GridMismatchError: different shapes.
        InputError: values other than 0 and 1.
    """
    first, second = as_pair(prediction, reference)
    labels = first.astype(np.uint8)
    labels *= 2
    np.subtract(labels, 1, out=labels, where=first & second)
    labels[second & ~first] = 3
    return labels


def error_overlay(
    image: ArrayLike, prediction: ArrayLike, reference: ArrayLike, opacity: float = 0.5
) -> NDArray[np.uint8]:
    """The map of errors in color over a gray image.

    Args:
        image: uint8 gray values, of the masks' shape, e.g. one slice (y, x) after the lung window.
        prediction: bool mask.
        reference: bool mask.
        opacity: 0 shows the image only, 1 the colors only.

    Returns:
        uint8, the masks' shape plus a last axis of red, green, blue.

    Raises:
        GridMismatchError: different shapes.
        InputError: values other than 0 and 1 in a mask, an image that is not uint8, or an opacity outside 0 to 1.
    """
    gray = np.asarray(image)
    if gray.dtype != np.uint8:
        raise InputError(f"The image is {gray.dtype}; 8-bit gray values are needed (apply the lung window first).")
    if not 0.0 <= opacity <= 1.0:
        raise InputError(f"The opacity is {opacity}; it must lie between 0 and 1.")
    labels = error_map(prediction, reference)
    require_same_shape(gray, labels, "image", "mask")
    colors = np.repeat(gray[..., None], 3, axis=-1)
    for label, shown in ERROR_LABELS.items():
        where = labels == label
        blended = (1.0 - opacity) * gray[where, None] + opacity * np.asarray(shown.color, dtype=float)
        colors[where] = np.rint(blended).astype(np.uint8)
    return colors


def _parts(mask: Mask) -> list[Mask]:
    """A mask cut along its first axis into a part for each core; one part where that saves nothing."""
    rows = np.atleast_2d(mask)
    return np.array_split(rows, min(usable_threads(), len(rows))) if mask.size > _WORTH_THREADS else [rows]


def _count(first: Mask, second: Mask) -> tuple[int, int, int]:
    """Voxels of each mask and of both."""
    sizes = [0, 0, 0]
    # slice by slice, so that what is compared stays in the processor's cache and no whole-volume copy is made
    for one, other in zip(first, second, strict=True):
        n_one, n_other = np.count_nonzero(one), np.count_nonzero(other)
        sizes[0] += int(n_one)
        sizes[1] += int(n_other)
        sizes[2] += int(np.count_nonzero(one & other)) if n_one and n_other else 0
    return sizes[0], sizes[1], sizes[2]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


__all__ = [
    "ERROR_LABELS",
    "ConfusionCounts",
    "ErrorLabel",
    "Mask",
    "confusion_counts",
    "dice",
    "error_map",
    "error_overlay",
    "precision",
    "relative_volume_error",
    "sensitivity",
    "specificity",
    "volume_ml",
]
