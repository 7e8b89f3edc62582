"""Several people's masks of one case: how far they agree, and a consensus.

All functions take two or more bool masks (z, y, x) of one shape, by name, or as a sequence whose members are then
called "rater 1", "rater 2", ...
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..imaging.masks import Box, Mask, as_mask, as_spacing, bounding_box, require_same_shape
from .overlap import confusion_counts
from .surface import hausdorff_distance_95

Masks = Mapping[str, ArrayLike] | Sequence[ArrayLike]
Domain = str | ArrayLike

# far more than the some dozens it takes; the status says so if it was not enough
_STAPLE_ITERATIONS = 1000


@dataclass(frozen=True)
class PairAgreement:
    """Agreement of two raters.

    Attributes:
        first: name.
        second: name.
        dice: see :func:`.overlap.dice`.
        hausdorff_distance_95: mm, see :func:`.surface.hausdorff_distance_95`; it is the same both ways.
        status: "ok", "both_empty", "first_empty" or "second_empty".
    """

    first: str
    second: str
    dice: float
    hausdorff_distance_95: float
    status: str


@dataclass(frozen=True, eq=False)
class Staple:
    """A consensus by STAPLE.

    Attributes:
        consensus: bool (z, y, x): where the probability is above 0.5.
        probability: float32 (z, y, x): that a voxel is lesion; 0 outside the domain.
        sensitivity: by rater, estimated against the consensus; NaN where nobody marked anything.
        specificity: by rater, on the domain; NaN where everybody marked all of it.
        status: "ok", "all_empty" (nobody marked anything), "all_full" (everybody marked the whole domain) or
            "not_converged" (the estimate still changed at the last iteration).
    """

    consensus: Mask
    probability: NDArray[np.float32]
    sensitivity: dict[str, float]
    specificity: dict[str, float]
    status: str


@dataclass(frozen=True, eq=False)
class RaterAgreement:
    """All of it for one case.

    Attributes:
        volumes_ml: by rater.
        pairs: every pair of raters.
        mean_dice: over the pairs that are not both empty; NaN if there is none.
        fleiss_kappa: see :func:`fleiss_kappa`, on the domain "grid" or the given mask.
        majority: bool (z, y, x), see :func:`majority_vote`.
        staple: see :func:`staple`.
    """

    volumes_ml: dict[str, float]
    pairs: tuple[PairAgreement, ...]
    mean_dice: float
    fleiss_kappa: float
    majority: Mask
    staple: Staple


def rater_agreement(masks: Masks, spacing: Sequence[float], domain: ArrayLike | None = None) -> RaterAgreement:
    """Compare the raters of one case with one another.

    Args:
        masks: two or more bool masks (z, y, x), by name or in a sequence.
        spacing: (z, y, x), mm.
        domain: bool mask (z, y, x) of the voxels that count for kappa and STAPLE, e.g. the lungs; None takes each
            one's default.

    Raises:
        GridMismatchError: different shapes.
        GeometryError: spacing that is not positive.
        InputError: fewer than two masks, values other than 0 and 1, not three axes, an empty domain.
    """
    named = _named(masks)
    sides = as_spacing(spacing)
    pairs = pairwise_agreement(named, sides)
    dices = [pair.dice for pair in pairs if pair.status != "both_empty"]
    return RaterAgreement(
        {name: int(np.count_nonzero(mask)) * math.prod(sides) / 1000.0 for name, mask in named.items()},
        pairs,
        float(np.mean(dices)) if dices else math.nan,
        fleiss_kappa(named, "grid" if domain is None else domain),
        majority_vote(named),
        staple(named, "box" if domain is None else domain),
    )


def pairwise_agreement(masks: Masks, spacing: Sequence[float]) -> tuple[PairAgreement, ...]:
    """Dice and HD95 of every pair of raters, in the masks' order.

    Args:
        masks: two or more bool masks (z, y, x), by name or in a sequence.
        spacing: (z, y, x), mm.

    Raises:
        GridMismatchError: different shapes.
        GeometryError: spacing that is not positive.
        InputError: fewer than two masks, values other than 0 and 1, not three axes.
    """
    named = _named(masks)
    sides = as_spacing(spacing)
    rows = []
    for (one, first), (other, second) in itertools.combinations(named.items(), 2):
        counts = confusion_counts(first, second)
        status = {"prediction_empty": "first_empty", "reference_empty": "second_empty"}.get(
            counts.status, counts.status
        )
        rows.append(PairAgreement(one, other, counts.dice, hausdorff_distance_95(first, second, sides), status))
    return tuple(rows)


def fleiss_kappa(masks: Masks, domain: Domain = "grid") -> float:
    """Fleiss' kappa of the raters' decisions, voxel by voxel.

    Kappa depends on which voxels count: the more background all raters share, the closer it comes to the agreement on
    lesion alone. State the domain with the number.

    Args:
        masks: two or more bool masks (z, y, x), by name or in a sequence.
        domain: "grid", every voxel of the image; "box", the smallest box around all masks; or a bool mask (z, y, x) of
            the voxels that count, e.g. the lungs.

    Returns:
        1 for complete agreement, 0 for the agreement of chance; NaN where all raters marked nothing, or everything,
        since chance alone explains that.

    Raises:
        GridMismatchError: different shapes.
        InputError: fewer than two masks, values other than 0 and 1, not three axes, an unknown or empty domain.

    Source: Fleiss, Psychological Bulletin 76, 1971.
    """
    named = _named(masks)
    raters = len(named)
    box, inside = _domain(named, domain)
    # how many voxels were marked by k raters: all that kappa needs
    tally = np.zeros(raters + 1, dtype=np.int64)
    for z in range(*box[0].indices(len(next(iter(named.values()))))):
        votes = np.zeros([side.stop - side.start for side in box[1:]], dtype=np.uint16)
        for mask in named.values():
            votes += mask[z][box[1:]]
        counted = votes.ravel() if inside is None else votes[inside[z][box[1:]]]
        tally += np.bincount(counted, minlength=raters + 1)
    total = int(tally.sum())
    marked = np.arange(raters + 1)
    if total == 0 or tally[0] == total or tally[raters] == total:
        return math.nan
    agreeing = marked * (marked - 1) + (raters - marked) * (raters - marked - 1)
    observed = float((tally * agreeing).sum()) / (total * raters * (raters - 1))
    share = float((tally * marked).sum()) / (total * raters)
    chance = share**2 + (1.0 - share) ** 2
    return (observed - chance) / (1.0 - chance)


def majority_vote(masks: Masks) -> Mask:
    """Voxels that more than half of the raters marked; a tie is background.

    Args:
        masks: two or more bool masks (z, y, x), by name or in a sequence.

    Raises:
        GridMismatchError: different shapes.
        InputError: fewer than two masks, values other than 0 and 1, not three axes.
    """
    named = _named(masks)
    votes = np.zeros(next(iter(named.values())).shape, dtype=np.uint8 if len(named) < 256 else np.uint16)
    for mask in named.values():
        votes += mask
    return votes > len(named) // 2


def staple(masks: Masks, domain: Domain = "box") -> Staple:
    """Consensus by STAPLE, which weighs each rater by an estimate of their sensitivity and specificity.

    Args:
        masks: two or more bool masks (z, y, x), by name or in a sequence.
        domain: the voxels that count. "box", the smallest box around all masks and one voxel more, since background
            that nobody doubts pulls the estimates towards a specificity of 1; "grid", the whole image; or a bool mask
            (z, y, x), whose smallest box is taken.

    Raises:
        GridMismatchError: different shapes.
        InputError: fewer than two masks, values other than 0 and 1, not three axes, an unknown or empty domain.

    Source: Warfield et al., IEEE TMI 23, 2004, as SimpleITK computes it.
    """
    import SimpleITK as sitk

    named = _named(masks)
    shape = next(iter(named.values())).shape
    box, _ = _domain(named, domain, margin=1)
    parts = {name: np.ascontiguousarray(mask[box]) for name, mask in named.items()}
    consensus, probability = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.float32)
    nothing, everything = not any(p.any() for p in parts.values()), all(p.all() for p in parts.values())
    if nothing or everything:
        consensus[box] = everything
        probability[box] = float(everything)
        known, unknown = dict.fromkeys(named, 1.0), dict.fromkeys(named, math.nan)
        sensitivity, specificity = (known, unknown) if everything else (unknown, known)
        return Staple(consensus, probability, sensitivity, specificity, "all_full" if everything else "all_empty")

    estimate = sitk.STAPLEImageFilter()
    estimate.SetForegroundValue(1.0)
    estimate.SetMaximumIterations(_STAPLE_ITERATIONS)
    found = estimate.Execute([sitk.GetImageFromArray(part.view(np.uint8)) for part in parts.values()])
    probability[box] = sitk.GetArrayViewFromImage(found)
    np.greater(probability, 0.5, out=consensus)
    return Staple(
        consensus,
        probability,
        dict(zip(named, map(float, estimate.GetSensitivity()), strict=True)),
        dict(zip(named, map(float, estimate.GetSpecificity()), strict=True)),
        "ok" if estimate.GetElapsedIterations() < _STAPLE_ITERATIONS else "not_converged",
    )


def _named(masks: Masks) -> dict[str, Mask]:
    named = dict(masks) if isinstance(masks, Mapping) else {f"rater {i + 1}": mask for i, mask in enumerate(masks)}
    if len(named) < 2:
        raise InputError(f"Raters are compared by two or more masks of one case; {len(named)} were given.")
    checked = {name: as_mask(mask, f"mask of {name}", 3) for name, mask in named.items()}
    first = next(iter(checked))
    for name, mask in checked.items():
        require_same_shape(mask, checked[first], f"mask of {name}", f"mask of {first}")
    return checked


def _domain(masks: dict[str, Mask], domain: Domain, margin: int = 0) -> tuple[Box, Mask | None]:
    """The box of the voxels that count, and which of the grid's count (None: all in the box)."""
    first = next(iter(masks.values()))
    if isinstance(domain, str):
        if domain == "grid":
            return _whole(first.shape), None
        if domain == "box":
            return _around(list(masks.values()), margin), None
        raise InputError(
            f"There is no domain {domain!r}; known are grid (the whole image), box (the smallest box around all "
            "masks), or a mask of the voxels that count."
        )
    inside = as_mask(domain, "domain", 3)
    require_same_shape(inside, first, "domain", "masks")
    if not inside.any():
        raise InputError("The domain is empty: no voxel would count. Give the lung mask, or none.")
    return bounding_box(inside), inside


def _whole(shape: tuple[int, ...]) -> Box:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def _around(masks: Sequence[Mask], margin: int) -> Box:
    box = bounding_box(np.logical_or.reduce(masks), margin)
    return box if box[0].stop else _whole(masks[0].shape)
