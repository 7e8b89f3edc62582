"""Measures of one slice and a map of probabilities, as the CARes-UNet paper reports them.

They follow the evaluation toolbox of Inf-Net, which the paper's comparison rows come from. The map is stretched to
[0, 1] first (a constant map stays as it is), and thresholds are exactly k/255, k = 255, ..., 0, voxels at the threshold
included: the lowest marks the whole slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..imaging.masks import Mask, as_mask, require_same_shape

LEVELS = 256
# What MATLAB calls eps; it keeps divisions from 0/0 in the published definitions.
_EPS = float(np.finfo(np.float64).eps)

CONVENTIONS = {
    "inf_net": "Dice, sensitivity and specificity are 0 wherever there is no true positive, empty slices too",
    "empty_is_right": "the same, but where mask and prediction are both empty the three are 1",
}


def slice_scores(probability: ArrayLike, mask: ArrayLike, convention: str = "inf_net") -> dict[str, float]:
    """All slice measures of one slice.

    Args:
        probability: (y, x), floats in [0, 1].
        mask: (y, x), bool: the reference.
        convention: a name of :data:`CONVENTIONS`. They differ on slices without lesion only.

    Returns:
        ``dice``, ``sensitivity`` and ``specificity``, each the mean over the 256 thresholds, with ``_max`` the largest
        of them and with ``_at_0.5`` the value at the threshold 128/255; ``structure_measure``;
        ``enhanced_alignment_measure`` (mean over thresholds) and its ``_max``; ``mean_absolute_error``. Specificity is
        NaN at thresholds with a true positive where the mask fills the slice: its mean is NaN then.

    Raises:
        GridMismatchError: different shapes.
        InputError: not two axes, probabilities outside [0, 1] or NaN, a mask that is none, an unknown convention.

    Source: Xu et al., Med Phys 48, 2021; Fan et al. (Inf-Net), IEEE TMI 39, 2020.
    """
    if convention not in CONVENTIONS:
        known = "; ".join(f"{name}: {what}" for name, what in CONVENTIONS.items())
        raise InputError(f"There is no slice convention {convention!r}; known are {known}.")
    image, truth = _checked(probability, mask)
    counts = _Counts.of(image, truth)
    scores: dict[str, float] = {}
    for name, curve in counts.overlap(convention).items():
        scores[name] = float(curve.mean())
        scores[f"{name}_max"] = float(curve.max())
        scores[f"{name}_at_0.5"] = float(curve[LEVELS - 1 - 128])
    alignment = counts.alignment()
    scores["structure_measure"] = _structure(image, truth)
    scores["enhanced_alignment_measure"] = float(alignment.mean())
    scores["enhanced_alignment_measure_max"] = float(alignment.max())
    scores["mean_absolute_error"] = _absolute_error(image, truth)
    return scores


def structure_measure(probability: ArrayLike, mask: ArrayLike) -> float:
    """S-measure: how alike the structures of a probability map and a mask are, by object and by region, half each.

    Args:
        probability: (y, x), floats in [0, 1].
        mask: (y, x), bool: the reference.

    Returns:
        0 to 1, 1 for a perfect map. Where the mask is empty, 1 minus the map's mean; where it is full, the map's mean.

    Raises:
        GridMismatchError: different shapes.
        InputError: not two axes, probabilities outside [0, 1] or NaN, a mask that is none.

    Source: Fan et al., ICCV 2017, with alpha 0.5.
    """
    return _structure(*_checked(probability, mask))


def enhanced_alignment_measure(probability: ArrayLike, mask: ArrayLike) -> float:
    """Mean E-measure: the alignment of the map, thresholded, with the mask, averaged over the 256 thresholds.

    Args:
        probability: (y, x), floats in [0, 1].
        mask: (y, x), bool: the reference.

    Returns:
        About 0 to 1; it may exceed 1 by one part in the number of pixels, as published.

    Raises:
        GridMismatchError: different shapes.
        InputError: not two axes, probabilities outside [0, 1] or NaN, a mask that is none.

    Source: Fan et al., IJCAI 2018; the mean over thresholds is that of Inf-Net.
    """
    return float(enhanced_alignment_curve(probability, mask).mean())


def enhanced_alignment_curve(probability: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """E-measure at each of the 256 thresholds, from 255/255 down to 0; arguments as the mean's."""
    return _Counts.of(*_checked(probability, mask)).alignment()


def mean_absolute_error(probability: ArrayLike, mask: ArrayLike) -> float:
    """Mean absolute difference of a probability map, stretched to [0, 1], and a mask.

    Args:
        probability: (y, x), floats in [0, 1].
        mask: (y, x), bool: the reference.

    Raises:
        GridMismatchError: different shapes.
        InputError: not two axes, probabilities outside [0, 1] or NaN, a mask that is none.
    """
    return _absolute_error(*_checked(probability, mask))


def _checked(probability: ArrayLike, mask: ArrayLike) -> tuple[NDArray[np.floating], Mask]:
    """The map stretched to [0, 1] and the mask."""
    truth = as_mask(mask, "mask", 2)
    image = np.asarray(probability)
    if image.dtype == bool:
        image = image.astype(np.float64)
    if image.dtype.kind in "iu" and image.size and image.max() > 1:
        raise InputError(
            f"The probability map holds {image.dtype} values up to {image.max()}; floats from 0 to 1 are needed.",
            "Divide 8-bit values by 255.",
        )
    if image.dtype not in (np.float32, np.float64):
        image = image.astype(np.float64)
    require_same_shape(image, truth, "probability map", "mask")
    low, high = float(image.min()), float(image.max())
    if math.isnan(low) or math.isnan(high):
        raise InputError("The probability map holds NaN; floats from 0 to 1 are needed.")
    if low < 0.0 or high > 1.0:
        raise InputError(f"The probability map holds values from {low:g} to {high:g}; they must lie from 0 to 1.")
    return (image - image.min()) / (image.max() - image.min()) if low < high else image, truth


@dataclass(frozen=True)
class _Counts:
    """True and false positives at each threshold, 255/255 first, and the voxels in all."""

    true_positive: NDArray[np.float64]
    false_positive: NDArray[np.float64]
    lesion: int
    total: int
    all_zero: bool

    @classmethod
    def of(cls, image: NDArray[np.floating], truth: Mask) -> _Counts:
        # in the map's own precision, so that a float32 map of k/255 meets the threshold k/255
        thresholds = (np.arange(LEVELS) / (LEVELS - 1)).astype(image.dtype)
        level = np.searchsorted(thresholds, image.ravel(), side="right") - 1
        inside = truth.ravel()
        curves = []
        for part in (level[inside], level[~inside]):
            curves.append(np.cumsum(np.bincount(part, minlength=LEVELS)[::-1]).astype(np.float64))
        return cls(curves[0], curves[1], int(np.count_nonzero(inside)), inside.size, not image.any())

    def overlap(self, convention: str) -> dict[str, NDArray[np.float64]]:
        found, wrong = self.true_positive, self.false_positive
        background = self.total - self.lesion
        with np.errstate(divide="ignore", invalid="ignore"):
            curves = {
                "dice": 2.0 * found / (found + wrong + self.lesion),
                "sensitivity": found / np.float64(self.lesion),
                "specificity": (background - wrong) / np.float64(background),
            }
        none = found == 0
        value = np.zeros(LEVELS)
        if convention == "empty_is_right" and self.lesion == 0:
            value[wrong == 0] = 1.0
            # the lowest threshold marks everything; a map without any positive probability is empty there too
            value[-1] = float(self.all_zero)
        return {name: np.where(none, value, curve) for name, curve in curves.items()}

    def alignment(self) -> NDArray[np.float64]:
        found, wrong = self.true_positive, self.false_positive
        marked = found + wrong
        scale = self.total - 1 + _EPS
        if self.lesion == 0:
            return (self.total - marked) / scale
        if self.lesion == self.total:
            return marked / scale
        mean_map, mean_truth = marked / self.total, self.lesion / self.total
        score = np.zeros(LEVELS)
        # the map and the mask are both binary here, so a pixel has one of four values
        groups = (
            (found, 1.0, 1.0),
            (wrong, 1.0, 0.0),
            (self.lesion - found, 0.0, 1.0),
            (self.total - self.lesion - wrong, 0.0, 0.0),
        )
        for count, of_map, of_truth in groups:
            a, g = of_map - mean_map, of_truth - mean_truth
            align = 2.0 * a * g / (a * a + g * g + _EPS)
            score += count * (align + 1.0) ** 2 / 4.0
        return score / scale


def _absolute_error(image: NDArray[np.floating], truth: Mask) -> float:
    return float(np.abs(image.astype(np.float64) - truth).mean())


def _structure(image: NDArray[np.floating], truth: Mask) -> float:
    values = image.astype(np.float64)
    share = float(truth.mean())
    if share == 0.0:
        return 1.0 - float(values.mean())
    if share == 1.0:
        return float(values.mean())
    objects = share * _object(values[truth]) + (1.0 - share) * _object(1.0 - values[~truth])
    return max(0.0, 0.5 * objects + 0.5 * _regions(values, truth))


def _object(values: NDArray[np.float64]) -> float:
    """How high and even the map is on an object."""
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return 2.0 * mean / (mean * mean + 1.0 + spread + _EPS)


def _regions(values: NDArray[np.float64], truth: Mask) -> float:
    """Structural similarity of the four blocks that meet at the mask's centroid, weighted by their area."""
    rows, columns = np.nonzero(truth)
    # counted from 1 and rounded half up, so that the first block ends with the centroid's row and column
    y, x = math.floor(rows.mean() + 1.5), math.floor(columns.mean() + 1.5)
    score = 0.0
    for part in (np.s_[:y, :x], np.s_[:y, x:], np.s_[y:, :x], np.s_[y:, x:]):
        block = values[part]
        # a centroid in the last row or column leaves empty blocks, which weigh nothing
        if block.size:
            score += block.size / values.size * _similarity(block, truth[part].astype(np.float64))
    return score


def _similarity(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    x, y = float(first.mean()), float(second.mean())
    scale = first.size - 1 + _EPS
    variance_x = float(((first - x) ** 2).sum()) / scale
    variance_y = float(((second - y) ** 2).sum()) / scale
    covariance = float(((first - x) * (second - y)).sum()) / scale
    upper = 4.0 * x * y * covariance
    lower = (x * x + y * y) * (variance_x + variance_y)
    if upper != 0.0:
        return upper / (lower + _EPS)
    return 1.0 if lower == 0.0 else 0.0
