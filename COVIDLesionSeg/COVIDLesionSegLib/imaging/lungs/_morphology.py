"""Distances and connected regions on small grids, in millimetres: what finding the lungs is made of.

scipy's general distance transform takes seconds for a chest on a grid of 2 mm. Only short distances are needed here,
and these the lower envelope of parabolas, axis by axis, gives exactly in a fraction of that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..masks import Mask, bounding_box

Spacing = tuple[float, float, float]

# Voxels of a distance transform that are worked on at once: few enough to stay in a processor core's cache.
_PART = 65536

#: neighbors within an axial slice only
IN_PLANE = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3], dtype=bool)


def distance(mask: Mask, spacing: Spacing, limit: float) -> NDArray[np.float32]:
    """Distance of each voxel's center to the nearest voxel of the mask.

    Args:
        mask: bool (z, y, x). What lies outside the array belongs neither to the mask nor to its complement.
        spacing: (z, y, x) mm.
        limit: the answer where the mask is further away than this, mm.

    Returns:
        float32 (z, y, x), mm.
    """
    return np.sqrt(_squared_distance(mask, spacing, limit))


def _squared_distance(mask: Mask, spacing: Spacing, limit: float) -> NDArray[np.float32]:
    squared = np.where(mask, np.float32(0), np.float32(limit * limit))
    for axis in range(3):
        steps = min(int(limit / spacing[axis]), squared.shape[axis] - 1)
        if steps < 1:
            continue
        costs = [np.float32((step * spacing[axis]) ** 2) for step in range(1, steps + 1)]
        nearest = np.empty_like(squared)
        # lines along the axis do not depend on each other: the parts are taken across another one
        across = 1 if axis == 0 else 0
        sources, targets = (np.moveaxis(array, (axis, across), (0, 1)) for array in (squared, nearest))
        count = max(1, _PART * sources.shape[1] // max(squared.size, 1))
        for start in range(0, sources.shape[1], count):
            source = np.ascontiguousarray(sources[:, start : start + count])
            result, shifted = source.copy(), np.empty_like(source)
            for step, cost in enumerate(costs, 1):
                np.add(source, cost, out=shifted)
                np.minimum(result[step:], shifted[:-step], out=result[step:])
                np.minimum(result[:-step], shifted[step:], out=result[:-step])
            targets[:, start : start + count] = result
        squared = nearest
    return squared


def _within(mask: Mask, spacing: Spacing, radius: float) -> Mask:
    # the limit a little above the radius, so that a voxel exactly at the radius is told from one beyond it
    limit = radius * 1.01 + 1e-3
    return _squared_distance(mask, spacing, limit) <= np.float32((radius + 1e-4) ** 2)


def dilate(mask: Mask, spacing: Spacing, radius: float) -> Mask:
    """Voxels within the radius (mm) of the mask."""
    grown = np.zeros_like(mask)
    if mask.any():
        box = bounding_box(mask, (radius + max(spacing)) / np.array(spacing))
        grown[box] = _within(mask[box], spacing, radius)
    return grown


def erode(mask: Mask, spacing: Spacing, radius: float) -> Mask:
    """Voxels of the mask further than the radius (mm) from any voxel outside it; the array's faces do not erode."""
    kept = np.zeros_like(mask)
    if mask.any():
        # one voxel around the mask suffices: the nearest voxel outside is never further than straight across that rim
        box = bounding_box(mask, max(spacing) / np.array(spacing))
        kept[box] = ~_within(~mask[box], spacing, radius)
    return kept


def close(mask: Mask, spacing: Spacing, radius: float) -> Mask:
    """Morphological closing with a ball of the radius (mm)."""
    return erode(dilate(mask, spacing, radius), spacing, radius)


class Pieces:
    """Connected pieces of a mask; 6 neighbors unless ``structure`` says otherwise.

    Attributes:
        labels: int32 (z, y, x), 0 the background, pieces from 1.
        size: (pieces + 1,) voxels by label; 0 for the background, here as in every answer about the pieces.
    """

    def __init__(self, mask: Mask, structure: Any = None) -> None:
        from scipy import ndimage

        labels, count = ndimage.label(mask, structure)
        self.labels = np.asarray(labels, np.int32)
        self.size = np.bincount(self.labels.ravel(), minlength=count + 1)
        self.size[0] = 0

    def __len__(self) -> int:
        return len(self.size) - 1

    def within(self, where: Mask) -> NDArray[np.int64]:
        """Voxels of each piece that lie in another mask."""
        counts = np.bincount(self.labels[where], minlength=len(self.size))
        counts[0] = 0
        return counts

    def center(self, axis: int) -> NDArray[np.float64]:
        """Mean index of each piece along an axis."""
        places = np.nonzero(self.labels)
        total = np.bincount(self.labels[places], weights=places[axis], minlength=len(self.size))
        return total / np.maximum(self.size, 1)

    def those(self, chosen: Mask) -> Mask:
        """The voxels of chosen pieces; ``chosen`` is (pieces + 1,), and the background is never among them."""
        return (chosen & (self.size > 0))[self.labels]


def grow(labels: NDArray[np.uint8], allowed: Mask) -> NDArray[np.uint8]:
    """Let labels spread through the allowed voxels, all at the same speed; the larger label wins where two meet."""
    # a rim that is not allowed, so that a voxel's neighbors are at fixed offsets in the flat array
    padded = np.pad(labels, 1)
    grown = padded.ravel()
    empty = np.pad(allowed, 1).ravel() & (grown == 0)
    rows, columns = padded.shape[1:]
    neighbors = np.array([-rows * columns, -columns, -1, 1, columns, rows * columns])
    targets = np.flatnonzero(empty)
    front = targets[np.any([grown[targets + offset] > 0 for offset in neighbors], axis=0)]
    while front.size:
        # labels of before this step: what the step itself fills must not run ahead
        grown[front] = np.max([grown[front + offset] for offset in neighbors], axis=0)
        empty[front] = False
        beyond = np.concatenate([front + offset for offset in neighbors])
        front = np.unique(beyond[empty[beyond]])
    return padded[1:-1, 1:-1, 1:-1].copy()
