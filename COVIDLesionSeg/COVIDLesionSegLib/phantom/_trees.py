"""Branching trees that fill a lobe: arteries, veins and bronchi of the synthetic chest.

Volume-filling growth after Tawhai, Pullan and Hunter (Ann Biomed Eng 28, 2000): the points that a branch must supply
are split in two by a plane through the branch, and each half gets a daughter that grows part of the way to the half's
center. Radii follow the number of points supplied, so that a parent's radius to the power 2.9 is the sum of its
daughters' (Murray's law gives 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_MURRAY = 2.9
_GROWTH = 0.42


def grow(root: Any, targets: Array, radius: float, rng: np.random.Generator) -> Array:
    """Grow one tree.

    Args:
        root: (x, y, z) where the trunk begins, mm.
        targets: (n, 3) points to supply, mm.
        radius: of the trunk, mm.
        rng: source of the small irregularities.

    Returns:
        Segments (m, 8): start x, y, z, radius, end x, y, z, radius; parents before daughters.
    """
    total = len(targets)
    segments: list[Array] = []
    # (start, radius at the start, indices of the points to supply)
    waiting = [(np.asarray(root, float), radius, np.arange(total))]
    while waiting:
        start, begin, indices = waiting.pop()
        center = targets[indices].mean(axis=0)
        single = len(indices) == 1
        end = start + (0.85 if single else _GROWTH) * (center - start)
        if not single:
            end += rng.normal(0, 0.06 * np.linalg.norm(end - start), 3)
        finish = radius * (len(indices) / total) ** (1 / _MURRAY)
        segments.append(np.concatenate([start, [begin], end, [finish]]))
        if single:
            continue
        # the splitting plane holds the branch and cuts the points where they are spread most
        axis = end - start
        offsets = targets[indices] - center
        length = float(np.linalg.norm(axis))
        if length > 0:
            offsets = offsets - np.outer(offsets @ axis, axis) / length**2
        spread = np.linalg.eigh(offsets.T @ offsets)[1][:, -1]
        order = np.argsort(offsets @ spread, kind="stable")
        half = int(np.clip(round(len(order) * rng.uniform(0.35, 0.65)), 1, len(order) - 1))
        for part in (order[:half], order[half:]):
            waiting.append((end, finish, indices[part]))
    return np.array(segments)


def beside(segments: Array, offset: Any, ratio: float) -> Array:
    """The bronchi that run beside arteries: ``ratio`` times as wide, moved along ``offset`` by both radii."""
    tree = segments.copy()
    direction = np.asarray(offset, float) / np.linalg.norm(offset)
    for first in (0, 4):
        radius = tree[:, first + 3]
        tree[:, first : first + 3] += direction * (radius * (1 + 1.3 * ratio) + 0.4)[:, None]
        tree[:, first + 3] = radius * ratio
    return tree


def paint(coverage: Array, segments: Array, lps_to_ijk: Array, spacing: Array) -> None:
    """Set the share of each voxel that lies inside the segments, where it is more than what is there already.

    Args:
        coverage: float32 (z, y, x), changed in place.
        segments: as :func:`grow` returns them.
        lps_to_ijk: 4 x 4, positions to voxel indices.
        spacing: voxel sides along (i, j, k), mm.
    """
    size = np.array(coverage.shape[::-1])
    ends = [segments[:, f : f + 3] @ lps_to_ijk[:3, :3].T + lps_to_ijk[:3, 3] for f in (0, 4)]
    reach = np.maximum(segments[:, 3], segments[:, 7])[:, None] / spacing + 1.0
    low = np.clip(np.floor(np.minimum(*ends) - reach).astype(int), 0, size)
    high = np.clip(np.ceil(np.maximum(*ends) + reach).astype(int) + 1, 0, size)
    # everything along the grid's own axes, in mm, so that a voxel's extent across the vessel's wall is easy to say
    starts, stops = ends[0] * spacing, ends[1] * spacing
    half = spacing.astype(np.float32)
    for segment, a, b, lo, hi in zip(segments, starts, stops, low, high, strict=True):
        if (hi <= lo).any():
            continue
        along = b - a
        square = float(along @ along) or 1.0
        dx = (np.arange(lo[0], hi[0]) * spacing[0] - a[0]).astype(np.float32)[None, None, :]
        dy = (np.arange(lo[1], hi[1]) * spacing[1] - a[1]).astype(np.float32)[None, :, None]
        dz = (np.arange(lo[2], hi[2]) * spacing[2] - a[2]).astype(np.float32)[:, None, None]
        t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / square, 0, 1)
        dx, dy, dz = dx - t * along[0], dy - t * along[1], dz - t * along[2]
        distance = np.sqrt(dx * dx + dy * dy + dz * dz)
        # how far a voxel reaches along the direction to the axis: soft borders across thick slices, sharp ones in plane
        extent = (np.abs(dx) * half[0] + np.abs(dy) * half[1] + np.abs(dz) * half[2]) / (distance + 0.3) + 0.3 * half[0]
        radius = segment[3] + t * (segment[7] - segment[3])
        share = np.clip((radius - distance) / extent + 0.5, 0, 1) * np.minimum(1, 2 * radius / extent)
        box = coverage[lo[2] : hi[2], lo[1] : hi[1], lo[0] : hi[0]]
        np.maximum(box, share, out=box)
