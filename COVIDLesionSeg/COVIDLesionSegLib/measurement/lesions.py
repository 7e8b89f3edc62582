"""Lesions: the 26-connected components of a mask, and comparison lesion by lesion.

The comparison shows a missed small lesion beside a large one that was found.

Components are found on the mask's runs of voxels instead of its whole grid. A run is a maximal row of mask voxels along
x. Lesions fill a few percent of the image, so there are some ten thousand runs where there are tens of millions of
voxels, and joining runs takes a tenth of the time of labelling the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..imaging.masks import Box, SparseMask, as_pair, as_spacing, bounding_box

# with the row before in the same slice, and with three rows of the slice before: each pair of neighbors once
_NEIGHBOR_ROWS = ((0, 1), (1, -1), (1, 0), (1, 1))
# Voxels beside a click that are looked at first.
_FIRST_MARGIN = 24
# Voxels that are looked through for runs at a time.
_SLAB = 500_000


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
    def of(cls, mask: SparseMask) -> LabeledMask:
        """Find the components of a mask."""
        return cls(mask, find_components(mask.dense[bounding_box(mask.dense)]))

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


# Connected components


@dataclass(frozen=True, eq=False)
class Components:
    """The 26-connected components of a mask, largest first (of equals, the one that begins first in memory order).

    The order of the voxels behind :attr:`voxel_labels` is that of ``array[mask]``.

    Attributes:
        sizes: voxels of each component.
        labels: component of each run, counted from 0.
        z: slice of each run.
        y: row of each run.
        x: first column of each run.
        lengths: voxels of each run.
    """

    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    z: NDArray[np.int64]
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of components."""
        return len(self.sizes)

    @property
    def voxel_labels(self) -> NDArray[np.int64]:
        """Component of each mask voxel, counted from 0."""
        return np.repeat(self.labels, self.lengths)

    def centroids(self) -> NDArray[np.float64]:
        """Mean voxel index (z, y, x) of each component, one row a component."""
        middle = self.x + (self.lengths - 1) / 2
        sums = [np.bincount(self.labels, self.lengths * place, self.count) for place in (self.z, self.y, middle)]
        return np.stack(sums, axis=1) / self.sizes[:, None]

    def boxes(self) -> list[Box]:
        """Smallest box (z, y, x) around each component."""
        sides = []
        for first, last in ((self.z, self.z), (self.y, self.y), (self.x, self.x + self.lengths - 1)):
            low, high = np.full(self.count, np.iinfo(np.int64).max), np.zeros(self.count, np.int64)
            np.minimum.at(low, self.labels, first)
            np.maximum.at(high, self.labels, last)
            sides.append((low, high + 1))
        return [
            (slice(int(z0), int(z1)), slice(int(y0), int(y1)), slice(int(x0), int(x1)))
            for z0, z1, y0, y1, x0, x1 in zip(*(end for side in sides for end in side), strict=True)
        ]

    def image(self, mask: NDArray[np.bool_]) -> NDArray[np.int32]:
        """The mask these components were found in, as an int32 array: 0 outside, components counted from 1."""
        labels = np.zeros(mask.shape, np.int32)
        labels[mask] = self.voxel_labels + 1
        return labels


def find_components(mask: NDArray[np.bool_]) -> Components:
    """Find the 26-connected components of a mask.

    Args:
        mask: bool (z, y, x); any strides.
    """
    depth, height, width = mask.shape
    # a column of background on either side, so that no run crosses the end of its row
    stride = width + 2
    # a few slices at a time, which stay in the processor's cache
    padded = np.zeros((max(1, _SLAB // max(1, height * stride)), height, stride), np.int8)
    found = [_borders(mask, start, padded) for start in range(0, depth, len(padded))]
    borders = np.concatenate([np.zeros(0, np.int64), *found])
    first, end = borders[::2], borders[1::2]
    row = first // stride
    z, y = row // height, row % height

    pairs = [_touching(first, end, z, y, mask.shape, stride, dz, dy) for dz, dy in _NEIGHBOR_ROWS]
    one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
    count, labels = _joined(one, other, len(first))

    lengths = end - first
    sizes = np.bincount(labels, lengths, count).astype(np.int64)
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    return Components(sizes[order], rank[labels], z, y, first % stride - 1, lengths)


def _borders(mask: NDArray[np.bool_], start: int, padded: NDArray[np.int8]) -> NDArray[np.int64]:
    """Where, in the padded grid, runs of some slices from ``start`` on begin and, in turn, have ended."""
    part = mask[start : start + len(padded)]
    padded[: len(part), :, 1:-1] = part
    flat = padded[: len(part)].reshape(-1)
    return np.flatnonzero(flat[1:] != flat[:-1]) + 1 + start * padded[0].size


def component_at(mask: NDArray[np.bool_], place: Sequence[float], spacing: Sequence[float]) -> NDArray[np.bool_]:
    """The 26-connected component of a mask that comes nearest to a place.

    Args:
        mask: bool (z, y, x).
        place: voxel index (z, y, x), fractions allowed; it need not lie in the mask, nor in the component that is
            meant, which may be curved around it.
        spacing: (z, y, x), mm.

    Returns:
        bool (z, y, x); nothing where the mask is empty.
    """
    found = find_components(mask)
    chosen = np.zeros(mask.shape, bool)
    if found.count:
        along = np.clip(place[2], found.x, found.x + found.lengths - 1)
        runs = np.stack([found.z, found.y, along], axis=1)
        nearest = int(np.argmin((((runs - place) * spacing) ** 2).sum(axis=1)))
        chosen[mask] = np.repeat(found.labels == found.labels[nearest], found.lengths)
    return chosen


def nearest_voxel(
    candidates: Callable[[Box], NDArray[np.bool_]],
    voxel: tuple[int, int, int],
    shape: tuple[int, int, int],
    spacing: Sequence[float],
    within_mm: float,
) -> tuple[int, int, int] | None:
    """The voxel of a mask that lies nearest to a click; None where there is none within a distance.

    Args:
        candidates: gives the mask, bool (z, y, x), in a box of the image.
        voxel: index (z, y, x) of the click.
        shape: of the image.
        spacing: (z, y, x), mm.
        within_mm: between voxel centers.
    """
    steps = [int(within_mm / side) for side in spacing]
    z, y, x = (slice(max(at - n, 0), min(at + n + 1, end)) for at, n, end in zip(voxel, steps, shape, strict=True))
    found = np.add(np.argwhere(candidates((z, y, x))), (z.start, y.start, x.start))
    distances = np.sqrt((((found - voxel) * spacing) ** 2).sum(axis=1))
    if not len(found) or distances.min() > within_mm:
        return None
    z0, y0, x0 = found[int(distances.argmin())].tolist()
    return z0, y0, x0


def component_around(
    candidates: Callable[[Box], NDArray[np.bool_]], voxel: tuple[int, int, int], shape: tuple[int, int, int]
) -> tuple[Box, NDArray[np.bool_]]:
    """The 26-connected component that a voxel lies in, looked for in a box that grows until it holds all of it.

    A click changes a small part of a CT: what lies far from it is never looked at.

    Args:
        candidates: gives the mask, bool (z, y, x), in a box of the image.
        voxel: index (z, y, x), inside the image.
        shape: of the image.

    Returns:
        The smallest box around the component, and the component in it, bool (z, y, x); a box without voxels where the
        voxel is not in the mask.
    """
    margins = np.full((3, 2), _FIRST_MARGIN)
    ends = np.asarray(shape)
    while True:
        low = np.maximum(np.asarray(voxel) - margins[:, 0], 0)
        high = np.minimum(np.asarray(voxel) + 1 + margins[:, 1], ends)
        z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        mask = candidates((z, y, x))
        if not mask[voxel[0] - z.start, voxel[1] - y.start, voxel[2] - x.start]:
            nothing = slice(voxel[0], voxel[0]), slice(voxel[1], voxel[1]), slice(voxel[2], voxel[2])
            return nothing, np.zeros((0, 0, 0), bool)
        found = find_components(mask)
        here = np.flatnonzero((found.z == voxel[0] - z.start) & (found.y == voxel[1] - y.start))
        run = here[np.searchsorted(found.x[here], voxel[2] - x.start, "right") - 1]
        its = found.labels == found.labels[run]
        runs_z, runs_y, runs_x = found.z[its], found.y[its], found.x[its]
        ends_x = runs_x + found.lengths[its]
        inner = (
            slice(int(runs_z[0]), int(runs_z[-1]) + 1),
            slice(int(runs_y.min()), int(runs_y.max()) + 1),
            slice(int(runs_x.min()), int(ends_x.max())),
        )
        # at a side of the box that is no side of the image it may go on
        cut = np.array(
            [
                (side.start == 0 and a > 0, side.stop == b - a and b < n)
                for side, a, b, n in zip(inner, low, high, ends, strict=True)
            ]
        )
        if not cut.any():
            region = np.zeros(mask.shape, bool)
            region[mask] = np.repeat(its, found.lengths)
            z, y, x = (slice(int(a) + s.start, int(a) + s.stop) for a, s in zip(low, inner, strict=True))
            return (z, y, x), np.ascontiguousarray(region[inner])
        margins[cut] *= 3


def _touching(
    first: NDArray[Any],
    end: NDArray[Any],
    z: NDArray[Any],
    y: NDArray[Any],
    shape: tuple[int, ...],
    stride: int,
    dz: int,
    dy: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pairs of runs where the second lies in the row (dz, dy) further and touches the first, diagonals included."""
    inside = (y + dy >= 0) & (y + dy < shape[1]) & (z + dz < shape[0])
    source = np.flatnonzero(inside)
    shift = (dz * shape[1] + dy) * stride
    # runs are sorted and do not overlap: those that touch an interval are neighbors in the list
    low = np.searchsorted(end, first[source] + shift, "left")
    high = np.searchsorted(first, end[source] + shift, "right")
    counts = np.maximum(high - low, 0)
    begin = np.cumsum(counts) - counts
    partners = np.arange(counts.sum()) + np.repeat(low - begin, counts)
    return np.repeat(source, counts), partners


def _joined(one: NDArray[np.int64], other: NDArray[np.int64], count: int) -> tuple[int, NDArray[np.int64]]:
    """Number of groups of ``count`` runs that pairs of runs join, and the group of each run, by its first run.

    As fast as scipy's graph routine, whose import alone would hold Slicer's window up for a third of a second.
    """
    # each run points to an earlier one of its group; the first run of a group points to itself
    parent = np.arange(count)
    while len(one):
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(above := parent[parent], parent):
            parent = above
        # the pairs between groups that are still to be joined; every second round at least halves their groups
        one, other = parent[one], parent[other]
        apart = one != other
        one, other = one[apart], other[apart]
    is_first = parent == np.arange(count)
    return int(np.count_nonzero(is_first)), (np.cumsum(is_first) - 1)[parent]
