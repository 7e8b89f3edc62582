"""Comparison lesion by lesion, so that a missed small lesion is seen beside a large one that was found.

A lesion is a 26-connected component of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ._checks import as_pair, as_spacing
from ._sparse import SparseMask
from .components import Components, find_components


@dataclass(frozen=True, eq=False)
class LesionDetection:
    """Which lesions of the reference were found, and which of the prediction are none.

    A lesion is matched if the other mask covers at least one of its voxels and at least the share
    ``minimum_overlap`` of them.

    Attributes:
        reference_voxels: voxels of each lesion of the reference, largest first.
        reference_overlap: voxels of each that the prediction covers.
        prediction_voxels: voxels of each component of the prediction, largest first.
        prediction_overlap: voxels of each that lie in the reference.
        voxel_ml: volume of a voxel, mL.
        minimum_overlap: the criterion.
    """

    reference_voxels: NDArray[np.int64]
    reference_overlap: NDArray[np.int64]
    prediction_voxels: NDArray[np.int64]
    prediction_overlap: NDArray[np.int64]
    voxel_ml: float
    minimum_overlap: float

    @property
    def detected(self) -> NDArray[np.bool_]:
        """For each lesion of the reference, whether it was found."""
        return self._matched(self.reference_voxels, self.reference_overlap)

    @property
    def false_positive(self) -> NDArray[np.bool_]:
        """For each component of the prediction, whether it is none of the reference's lesions."""
        return ~self._matched(self.prediction_voxels, self.prediction_overlap)

    @property
    def sensitivity(self) -> float:
        """Share of the reference's lesions that were found; NaN if it has none."""
        detected = self.detected
        return float(np.count_nonzero(detected)) / len(detected) if len(detected) else math.nan

    @property
    def false_positives(self) -> int:
        """How many components of the prediction are no lesion of the reference."""
        return int(np.count_nonzero(self.false_positive))

    @property
    def missed_ml(self) -> NDArray[np.float64]:
        """Volumes, mL, of the lesions that were not found, largest first."""
        return np.asarray(self.reference_voxels[~self.detected] * self.voxel_ml, dtype=np.float64)

    def _matched(self, voxels: NDArray[np.int64], overlap: NDArray[np.int64]) -> NDArray[np.bool_]:
        # shares are compared by multiplication with a little slack, so that 1 of 10 voxels is a share of 0.1
        return (overlap > 0) & (overlap >= self.minimum_overlap * voxels * (1 - 1e-9))


def detect_lesions(
    prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float], minimum_overlap: float = 0.0
) -> LesionDetection:
    """Compare two masks lesion by lesion.

    Args:
        prediction: bool mask (z, y, x).
        reference: bool mask (z, y, x).
        spacing: (z, y, x), mm.
        minimum_overlap: share of a lesion's voxels, 0 to 1, that the other mask must cover for a match; 0 takes any
            common voxel.

    Raises:
        GridMismatchError: different shapes.
        GeometryError: spacing that is not positive.
        InputError: values other than 0 and 1, not three axes, or a share outside 0 to 1.
    """
    first, second = as_pair(prediction, reference, 3)
    voxel_ml = math.prod(as_spacing(spacing)) / 1000.0
    share = as_share(minimum_overlap)
    one, other = (LabeledMask.of(SparseMask.of(mask)) for mask in (first, second))
    return compare_lesions(one, other, voxel_ml, share)


def as_share(minimum_overlap: float) -> float:
    """A share as a float; InputError if it lies outside 0 to 1."""
    if not 0.0 <= minimum_overlap <= 1.0:
        raise InputError(f"The minimum overlap of a lesion is {minimum_overlap}; a share from 0 to 1 is needed.")
    return float(minimum_overlap)


@dataclass(frozen=True, eq=False)
class LabeledMask:
    """A mask and its components."""

    mask: SparseMask
    components: Components

    @classmethod
    def of(cls, mask: SparseMask, surface: NDArray[np.int64] | None = None) -> LabeledMask:
        """Find the components of a mask; its surface, (3, n) voxel indices, is asked for if not given."""
        points = mask.surface_points() if surface is None else surface
        return cls(mask, find_components(mask.dense[box_around(points)]))

    def overlap(self, other: SparseMask) -> NDArray[np.int64]:
        """How many voxels of each component lie in another mask of the same grid."""
        components = self.components
        if not components.count:
            return np.zeros(0, dtype=np.int64)
        # voxels and runs both go through the grid in memory order
        covered = self.mask.covered_by(other)
        first = np.cumsum(components.lengths) - components.lengths
        by_run = np.add.reduceat(covered, first, dtype=np.int64)
        return np.bincount(components.labels, by_run, components.count).astype(np.int64)


def compare_lesions(
    prediction: LabeledMask, reference: LabeledMask, voxel_ml: float, minimum_overlap: float
) -> LesionDetection:
    """The comparison from components that are known already."""
    return LesionDetection(
        reference.components.sizes,
        reference.overlap(prediction.mask),
        prediction.components.sizes,
        prediction.overlap(reference.mask),
        voxel_ml,
        minimum_overlap,
    )


def box_around(points: NDArray[np.int64]) -> tuple[slice, slice, slice]:
    """Smallest slices (z, y, x) around (3, n) voxels; of nothing where there is none."""
    if not points.size:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    z, y, x = (slice(int(axis.min()), int(axis.max()) + 1) for axis in points)
    return z, y, x
