"""Exact distances between two surfaces of voxels.

Most surface voxels of two masks that resemble each other lie within a voxel or two of the other surface. Those are
found by looking up the offsets of the lattice in the order of their length; the few that remain ask a k-d tree. Where
only a percentile is asked for, the distances of a few places bound all others, because the distance to a set changes by
no more than the way between two places, and only voxels near the percentile are asked for exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._checks import workers

Points = NDArray[np.int64]
Distances = NDArray[np.float64]

# Offsets that are looked up before the tree is asked: from there on the tree is faster.
_OFFSETS = 150
# Points looked up at a time: their working arrays stay in the processor's cache.
_CHUNK = 20_000
# Sides of the blocks whose centers bound the distances of the points in them, in voxels' mean sides.
_BLOCKS = (8.0, 3.0)
# Below this many points a tree answers faster than the blocks save.
_FEW = 2_000
# Relative slack of bounds, far above rounding and far below a difference between two distances on a lattice.
_SLACK = 1e-9


class SurfacePair:
    """The surfaces of a prediction and a reference, and each one's distances to the other, found once.

    Args:
        prediction: (3, n) voxel indices z, y, x; n > 0.
        reference: (3, m) voxel indices; m > 0.
        spacing: (z, y, x), mm.
    """

    def __init__(self, prediction: Points, reference: Points, spacing: tuple[float, float, float]) -> None:
        self._points = (prediction, reference)
        self._spacing = np.asarray(spacing)
        self._trees: list[SurfaceTree | None] = [None, None]
        self._distances = near_distances(prediction, reference, spacing)
        self._pending = [np.flatnonzero(np.isinf(found)) for found in self._distances]

    def distances(self) -> tuple[Distances, Distances]:
        """Distances, mm: of each prediction point to the reference, and of each reference point to the prediction."""
        for side in (0, 1):
            self._resolve(side)
        return self._distances

    def percentile(self, percent: float) -> tuple[float, float]:
        """A percentile of each direction's distances, linearly interpolated, mm."""
        return self._percentile(0, percent), self._percentile(1, percent)

    def _percentile(self, side: int, percent: float) -> float:
        distances, pending = self._distances[side], self._pending[side]
        low, high, share = percentile_ranks(len(distances), percent)
        resolved = len(distances) - len(pending)
        if high >= resolved and (low < resolved or len(pending) <= _FEW):
            self._resolve(side)
        elif high >= resolved:
            # all that are pending are further away than all that are not
            first, second = _ranked(
                self._points[side][:, pending], self._tree(1 - side), (low - resolved, high - resolved)
            )
            return first + share * (second - first)
        return percentile(distances, percent)

    def _resolve(self, side: int) -> None:
        pending = self._pending[side]
        if len(pending):
            self._distances[side][pending] = self._tree(1 - side).distances(self._points[side][:, pending])
            self._pending[side] = pending[:0]

    def _tree(self, side: int) -> SurfaceTree:
        tree = self._trees[side]
        if tree is None:
            tree = self._trees[side] = SurfaceTree(self._points[side], self._spacing)
        return tree


class SurfaceTree:
    """A k-d tree over voxels.

    Args:
        points: (3, n) voxel indices z, y, x; n > 0.
        spacing: (z, y, x), mm.
    """

    def __init__(self, points: Points, spacing: NDArray[np.float64]) -> None:
        from scipy.spatial import cKDTree

        self.points = points
        self.spacing = np.asarray(spacing, dtype=float)
        # on a lattice these settings build and answer fastest (measured on surfaces of 10 000 to 400 000 voxels)
        self._tree = cKDTree(
            points.T * self.spacing, leafsize=32, balanced_tree=False, compact_nodes=False, copy_data=False
        )

    def distances(self, points: Points) -> Distances:
        """Distance of each of (3, n) voxels to the nearest voxel of the tree, mm."""
        _, nearest = self._tree.query(points.T * self.spacing, workers=workers())
        # from the difference of indices, so that the same offset always gives the same number, wherever it lies
        return lengths(self.points[:, nearest] - points, self.spacing)

    def distances_from(self, places: NDArray[np.float64]) -> Distances:
        """Distance of each of (n, 3) places z, y, x in mm to the nearest voxel of the tree, mm."""
        distances, _ = self._tree.query(places, workers=workers())
        return np.asarray(distances)


def lengths(offsets: Points, spacing: NDArray[np.float64]) -> Distances:
    """Lengths in mm of (3, n) offsets in voxels."""
    z, y, x = (offsets[axis] * spacing[axis] for axis in range(3))
    return np.sqrt(z * z + y * y + x * x)


def percentile_ranks(count: int, percent: float) -> tuple[int, int, float]:
    """The two ranks, from 0, between which a percentile lies, and its share of the way from the first to the second."""
    place = percent / 100.0 * (count - 1)
    low = math.floor(place)
    return low, min(low + 1, count - 1), place - low


def percentile(distances: Distances, percent: float) -> float:
    """A percentile, linearly interpolated between ranks."""
    low, high, share = percentile_ranks(len(distances), percent)
    ordered = np.partition(distances, (low, high))
    return float(ordered[low] + share * (ordered[high] - ordered[low])) if share else float(ordered[low])


def near_distances(prediction: Points, reference: Points, spacing: tuple[float, float, float]) -> tuple[Any, Any]:
    """Distances up to a few voxels between two surfaces.

    Args:
        prediction: (3, n) voxel indices z, y, x.
        reference: (3, m) voxel indices.
        spacing: (z, y, x), mm.

    Returns:
        Distances, mm, float64 (n,) and (m,); infinite for points that are further away than all others.
    """
    groups, distances, reach = _offsets(spacing)
    low = np.minimum(prediction.min(axis=1), reference.min(axis=1)) - reach
    high = np.maximum(prediction.max(axis=1), reference.max(axis=1)) + reach
    _, height, width = (high - low + 1).tolist()
    strides = np.array([height * width, width, 1])

    def place(points: Points) -> NDArray[np.int64]:
        z, y, x = points
        return (z * height + y) * width + x - int(low @ strides)

    # one table for both surfaces, a bit each: zeros cost nothing until a page of them is written
    table = np.zeros(math.prod((high - low + 1).tolist()), dtype=np.uint8)
    places = place(prediction), place(reference)
    for bit, where in zip((1, 2), places, strict=True):
        table[where] |= np.uint8(bit)
    steps = [[int(step) for step in group @ strides] for group in groups]

    found = tuple(np.full(len(where), np.inf) for where in places)
    jobs: list[Callable[[], None]] = []
    for where, result, other in ((places[0], found[0], 2), (places[1], found[1], 1)):
        for start in range(0, len(where), _CHUNK):
            part = slice(start, start + _CHUNK)
            jobs.append(_lookup(table, np.uint8(other), where[part], result[part], steps, distances))
    run_all(jobs)
    return found[0], found[1]


def run_all(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Results of functions that run side by side on the cores there are."""
    threads = min(workers(), len(jobs))
    if threads < 2:
        return [job() for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


def _lookup(
    table: NDArray[np.uint8],
    bit: np.uint8,
    where: NDArray[np.int64],
    result: Distances,
    steps: list[list[int]],
    distances: list[float],
) -> Callable[[], None]:
    def look() -> None:
        left, at = np.arange(len(where)), where
        for group, distance in zip(steps, distances, strict=True):
            seen = table.take(at + group[0])
            for step in group[1:]:
                seen |= table.take(at + step)
            hit = (seen & bit) != 0
            result[left[hit]] = distance
            missed = ~hit
            left, at = left[missed], at[missed]
            if not len(left):
                return

    return look


def _offsets(spacing: tuple[float, float, float]) -> tuple[list[Points], list[float], NDArray[np.int64]]:
    """The shortest offsets of the lattice, (n, 3), grouped by length; the lengths, mm; how far they reach, voxels."""
    sides = np.asarray(spacing)
    radius = 5.0 * sides.min()
    reach = np.floor(radius / sides).astype(np.int64)
    grid = np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij")
    offsets = np.stack([axis.ravel() for axis in grid])
    length = lengths(offsets, sides)
    order = np.argsort(length, kind="stable")
    # only lengths below the radius are complete: every offset of that length is in the box
    order = order[length[order] <= radius]
    offsets, length = offsets[:, order], length[order]
    starts = np.flatnonzero(np.diff(length) > _SLACK * length[1:]) + 1
    groups = np.split(offsets.T, starts)
    distances = length[np.concatenate([[0], starts])].tolist()
    keep = int(np.searchsorted(np.cumsum([len(group) for group in groups]), _OFFSETS)) + 1
    groups, distances = groups[:keep], distances[:keep]
    return groups, distances, np.abs(np.concatenate(groups)).max(axis=0)


def _ranked(points: Points, tree: SurfaceTree, ranks: tuple[int, int]) -> tuple[float, float]:
    """The distances to a tree that have two neighboring ranks, counted from 0, among those of (3, n) points.

    The distance to a set is 1-Lipschitz: within a block it differs from that of the block's center by at most the way
    to the center. Bounds on the two ranks follow, and with them which points can't be at either.
    """
    places = points.T * tree.spacing
    low, high = np.zeros(len(places)), np.full(len(places), np.inf)
    active = np.arange(len(places))
    below = 0
    for side in _BLOCKS:
        block = side * math.prod(tree.spacing.tolist()) ** (1 / 3)
        centers, member = _blocks(places[active], block)
        if 2 * len(centers) > len(active):
            break
        to_center = np.sqrt(((places[active] - centers[member]) ** 2).sum(axis=1))
        of_center = tree.distances_from(centers)[member]
        low[active] = np.maximum(low[active], of_center - to_center)
        high[active] = np.minimum(high[active], of_center + to_center)
        least = np.partition(low, ranks[0])[ranks[0]] * (1 - _SLACK)
        most = np.partition(high, ranks[1])[ranks[1]] * (1 + _SLACK)
        active = np.flatnonzero((high >= least) & (low <= most))
        below = int(np.count_nonzero(high < least))
    distances = np.partition(tree.distances(points[:, active]), (ranks[0] - below, ranks[1] - below))
    return float(distances[ranks[0] - below]), float(distances[ranks[1] - below])


def _blocks(places: NDArray[np.float64], side: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Centers, mm (k, 3), of the cubic blocks that hold (n, 3) places, and the block of each place."""
    index = np.floor(places / side).astype(np.int64)
    index -= index.min(axis=0)
    size = index.max(axis=0) + 1
    key = (index[:, 0] * size[1] + index[:, 1]) * size[2] + index[:, 2]
    _, first, member = np.unique(key, return_index=True, return_inverse=True)
    return (np.floor(places[first] / side) + 0.5) * side, member.ravel()
