"""The parts of the lungs that are not air: vessels, ground glass, consolidation, and what they cut off.

Works on the reduced grid of :mod:`._lung_regions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._cage import RibCage
from ._morphology import (
    IN_PLANE,
    Box,
    Mask,
    Spacing,
    bounding_box,
    close,
    dilate,
    distance,
    erode,
    grow,
    label,
    touched,
)

# Hounsfield units on the reduced grid. Lung and air lie below AIR; what is darker than GAS after smoothing is air
# without lung tissue; TISSUE and above is the body. No normal soft tissue, fat included, is darker than GROUND_GLASS.
AIR = -400.0
GAS = -930.0
TISSUE = -300.0
GROUND_GLASS = -250.0
# Consolidated lung stays below this, bone does not.
_BONE = 150.0

# Gas without lung: darker than this over balls of this radius, in which lung, even with emphysema, has a vessel; HU,
# mm. Less of it than this is no finding, mL.
_FREE_GAS = -955.0
_FREE_GAS_DEPTH = 8.0
_LEAST_FREE_GAS = 5.0

# Vessels and fissures up to twice this wide are taken back into the lung, mm.
_CLOSING = 6.0
# Ground glass too dense for AIR is taken back up to this far from the rest, mm.
_GROUND_GLASS_DEPTH = 16.0
# A consolidation against the chest wall is at most this thick, mm.
_CONSOLIDATION_DEPTH = 60.0
# A consolidation without air: the lung ends so far from the ribs, the pleura lies inside of them by so much, mm; it is
# at least this share of the rest of the lung.
_LEAST_GAP = 10.0
_PLEURA = 2.0
_LEAST_CONSOLIDATION = 0.06
# Where no air is between, the lung begins so far from the axis in front of the spine, right and left of it, mm.
_MEDIASTINUM = {1: 26.0, 2: 36.0}
# The shoulders' bones are no wall of the apex, mm.
_APEX = 25.0
# The diaphragm's crest lies at this share of the chest's depth from the front, and the heart within this share of its
# half width; at the ribs the diaphragm lies so far below its crest, mm.
_CREST = 0.45
_BESIDE_HEART = 0.55
_FALL = 80.0
# A piece that a consolidation cuts off lies within this of the rest, mm, and is no smaller than this, mm3; single
# voxels are noise.
_PIECE_GAP = 12.0
_SMALLEST_PIECE = 60.0
_FEWEST_VOXELS = 6


@dataclass(frozen=True)
class ReducedVolume:
    """A CT on the working grid.

    Attributes:
        hu: (z, y, x) float32, Hounsfield units between -1024 and 300.
        padding: (z, y, x) bool, filling outside the scanner's field of view (values no tissue has).
        spacing: (z, y, x) mm.
    """

    hu: NDArray[np.float32]
    padding: Mask
    spacing: Spacing

    def cropped(self, box: Box) -> ReducedVolume:
        """The part inside the box."""
        return ReducedVolume(self.hu[box], self.padding[box], self.spacing)


@dataclass(frozen=True)
class Polar:
    """Polar coordinates in every slice about one axis between the lungs: they tell which way the chest wall is.

    Attributes:
        radius: (y, x) mm from the axis.
        bin: (y, x) direction, 0 to BINS - 1.
        behind: (y,) whether the row lies behind the axis.
    """

    BINS = 240

    radius: NDArray[np.float32]
    bin: NDArray[np.int64]
    behind: Mask

    @classmethod
    def between(cls, sides: NDArray[np.uint8], spacing: Spacing, body: tuple[float, float]) -> Polar:
        """About the middle between the centers of both lungs, or the midline where there is one lung.

        Args:
            sides: the lungs, uint8 (z, y, x).
            spacing: (z, y, x) mm.
            body: center of the body, mm along y and x. The axis never lies behind it: of the lungs' bases alone, the
                center does.
        """
        y, x = (np.arange(n) * s for n, s in zip(sides.shape[1:], spacing[1:], strict=True))
        centers = [np.argwhere(sides == side).mean(axis=0) * spacing for side in (1, 2) if (sides == side).any()]
        center_y = min(float(np.mean([c[1] for c in centers])), body[0])
        center_x = float(np.mean([c[2] for c in centers])) if len(centers) == 2 else body[1]
        dy, dx = (y - center_y)[:, None], (x - center_x)[None, :]
        turn = (np.arctan2(dy, dx) + np.pi) / (2 * np.pi)
        bins = (turn * cls.BINS).astype(np.int64) % cls.BINS
        return cls(np.hypot(dy, dx).astype(np.float32), bins, dy[:, 0] > 0)

    def cropped(self, box: Box) -> Polar:
        """The part inside the box."""
        return Polar(self.radius[box[1:]], self.bin[box[1:]], self.behind[box[1]])

    def outermost(self, mask: Mask) -> NDArray[np.float32]:
        """Radius of the mask's outermost voxel by (z, bin), mm; 0 where there is none."""
        outermost = np.zeros((len(mask), self.BINS), dtype=np.float32)
        z, y, x = np.nonzero(mask)
        np.maximum.at(outermost, (z, self.bin[y, x]), self.radius[y, x])
        return outermost

    def hull(self, outermost: NDArray[np.float32]) -> NDArray[np.float32]:
        """Radius of each slice's convex hull by (z, bin), mm, in the bins where the slice has a voxel."""
        from scipy.spatial import ConvexHull, QhullError

        angle = (np.arange(self.BINS) + 0.5) / self.BINS * 2 * np.pi - np.pi
        unit = np.stack([np.sin(angle), np.cos(angle)], axis=1)
        hull = outermost.copy()
        for z, row in enumerate(outermost):
            bins = np.flatnonzero(row)
            if len(bins) < 3:
                continue
            points = np.concatenate([row[bins, None] * unit[bins], [[0.0, 0.0]]])
            try:
                equations = ConvexHull(points).equations
            except QhullError:  # all on one line: nothing to fill
                continue
            outward = equations[:, :2] @ unit[bins].T
            reach = np.where(outward > 1e-6, -equations[:, 2:] / np.maximum(outward, 1e-6), np.inf).min(axis=0)
            hull[z, bins] = np.maximum(row[bins], reach)
        return hull

    def spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values by (z, bin) as (z, y, x)."""
        return values[:, self.bin]


def free_gas(volume: ReducedVolume, rim: bool = True) -> Mask:
    """Gas in which no lung tissue is seen: bowel gas, a pneumothorax, the largest bullae.

    Args:
        volume: the CT.
        rim: with the half-filled voxels on its border.

    Returns:
        bool (z, y, x).
    """
    from scipy import ndimage

    spacing = volume.spacing
    hu = ndimage.uniform_filter(volume.hu, 3)
    gas = (volume.hu < _FREE_GAS + 15.0) & ~volume.padding
    depth = max(_FREE_GAS_DEPTH, 1.01 * max(spacing))
    core = dilate(erode((hu < _FREE_GAS) & ~volume.padding, spacing, depth), spacing, depth) & gas
    # the flat rest of a region that is gas for the most part belongs to it; around a bulla lies emphysema
    labels, count = label(gas)
    size = np.bincount(labels.ravel(), minlength=count + 1)
    mostly = np.bincount(labels[core], minlength=count + 1) > 0.3 * size
    mostly[0] = False
    labels, count = label(core | mostly[labels])
    large = np.bincount(labels.ravel(), minlength=count + 1) * np.prod(spacing) >= 1000 * _LEAST_FREE_GAS
    large[0] = False
    gas = large[labels]
    if not rim:
        return gas
    return gas | (dilate(gas, spacing, 1.01 * max(spacing[1:])) & (volume.hu < AIR) & ~volume.padding)


def attach_pieces(volume: ReducedVolume, sides: NDArray[np.uint8], free: Mask, polar: Polar) -> NDArray[np.uint8]:
    """Add aerated pieces that a consolidation cuts off from the rest.

    Bowel beneath the diaphragm must not come with them, so a piece lies either towards the chest wall, or behind a
    layer of the rest of the lung thinner than the diaphragm and the wall of a bowel.

    Args:
        volume: the CT.
        sides: the lungs so far, uint8 (z, y, x).
        free: air inside the body that is no airway, bool (z, y, x).
        polar: coordinates about the lungs.

    Returns:
        ``sides`` with the pieces.
    """
    spacing = volume.spacing
    thin_layer = 1.5 * max(spacing)
    for _ in range(2):  # a piece can be cut off by another piece
        labels, count = label(free & (sides == 0))
        size = np.bincount(labels.ravel(), minlength=count + 1)
        large = (size * np.prod(spacing) > _SMALLEST_PIECE) & (size >= _FEWEST_VOXELS)
        large[0] = False
        if not large.any():
            break
        voxels = np.nonzero(large[labels])
        number, hu = labels[voxels], volume.hu[voxels]

        def share(hit: Mask, number: NDArray[np.int32] = number, size: NDArray[np.int64] = size) -> NDArray[np.float64]:
            return np.bincount(number[hit], minlength=len(size)) / np.maximum(size, 1)

        to_lungs = distance(sides > 0, spacing, _PIECE_GAP + 1.0)
        gap = to_lungs[voxels]
        outermost = polar.outermost(sides > 0)[voxels[0], polar.bin[voxels[1:]]]
        outwards = (polar.radius[voxels[1:]] > outermost) & ((outermost > 0) | polar.behind[voxels[1]])
        outer = (share(gap < _PIECE_GAP) > 0) & (share(outwards) > 0.6)
        adjacent = (share(gap < thin_layer) > 0) & (share(hu < -550.0) > 0.5)
        ours = (outer | adjacent) & (share(hu > GAS) > 0.6)
        if not ours.any():
            break
        nearest = grow(sides, to_lungs <= _PIECE_GAP)[voxels]
        side = np.where(share(nearest == 1) >= share(nearest == 2), 1, 2)
        sides = np.where(ours[labels], side[labels], sides).astype(np.uint8)
    return sides


def fill(
    volume: ReducedVolume, sides: NDArray[np.uint8], barred: Mask, polar: Polar, check: Callable[[], None]
) -> NDArray[np.uint8]:
    """Take vessels, nodules, ground glass and consolidation back into each lung.

    Args:
        volume: the CT.
        sides: the air of the lungs, uint8 (z, y, x).
        barred: what is never lung (airways, air outside), bool (z, y, x).
        polar: coordinates about the lungs.
        check: called between the steps; may raise to stop.

    Returns:
        The whole lungs, uint8 (z, y, x).
    """
    filled = np.zeros_like(sides)
    for side in (1, 2):
        if (sides == side).any():
            box = bounding_box(sides == side, volume.spacing, _GROUND_GLASS_DEPTH + 4.0)
            others = barred[box] | (sides[box] == 3 - side)
            lung = _filled_side(volume.cropped(box), sides[box] == side, others, polar.cropped(box), check)
            part = filled[box]
            part[lung & (part == 0)] = side
    return filled


def _filled_side(volume: ReducedVolume, air: Mask, barred: Mask, polar: Polar, check: Callable[[], None]) -> Mask:
    spacing = volume.spacing
    lung = close(air, spacing, _CLOSING)
    lung |= _ground_glass(volume, lung, barred)
    lung |= _enclosed(lung)
    check()
    wall = _dents_in_chest_wall(lung, spacing, polar) & (volume.hu < _BONE) & ~barred
    # a rim along a healthy wall is no dent
    solid = erode(wall | (lung & ~air), spacing, 3.0)
    lung |= wall & dilate(solid, spacing, 5.0)
    lung = close(lung, spacing, 3.0)
    lung |= _enclosed(lung)
    check()
    labels, count = label(lung & ~barred)
    size = np.bincount(labels.ravel(), minlength=count + 1)
    size[0] = 0
    large = size >= 0.005 * size.max()
    large[0] = False
    return large[labels]


def fill_to_ribs(volume: ReducedVolume, sides: NDArray[np.uint8], barred: Mask, cage: RibCage) -> NDArray[np.uint8]:
    """Take consolidation back in that holds no air between it and the ribs at the side and the back.

    What lies between the lung and the ribs, above the diaphragm as the rest of the lung shows it, is lung or fluid; the
    two can't be told apart. Only a large part is filled: beside healthy lung there is none.

    Args:
        volume: the CT.
        sides: the lungs so far, uint8 (z, y, x).
        barred: what is never lung.
        cage: the ribs.

    Returns:
        ``sides`` with the consolidation.
    """
    spacing = volume.spacing
    filled = sides.copy()
    top = int(np.flatnonzero(sides.any(axis=(1, 2)))[-1]) - _APEX / spacing[0]
    z, y, x = np.nonzero((volume.hu > TISSUE) & (volume.hu < _BONE) & ~barred & (sides == 0))
    radius, direction = cage.coordinates(z, y, x)
    for side, (crest, floor) in _diaphragm(sides, cage, spacing).items():
        lung = sides == side
        outermost = cage.outermost(lung)
        gap = np.where(np.isfinite(cage.wall) & cage.directions(side), cage.wall - outermost, 0.0)
        inner = np.where(outermost > 0, outermost, _MEDIASTINUM[side])[z, direction]
        hit = (gap[z, direction] > _LEAST_GAP) & (radius > inner) & (radius < cage.wall[z, direction] - _PLEURA)
        hit &= (z * spacing[0] >= floor[y, x]) & (z < top)
        dense = np.zeros(lung.shape, bool)
        dense[z[hit], y[hit], x[hit]] = True
        dense &= dilate(erode(dense, spacing, 4.0), spacing, 7.0)
        labels, count = label(dense)
        # liver that reaches over the estimated floor is no consolidation: that reaches up behind the aerated lung
        above = np.bincount(labels[round(crest / spacing[0]) :].ravel(), minlength=count + 1)
        large = above >= max(_LEAST_CONSOLIDATION * max(lung.sum(), 1), 20000.0 / np.prod(spacing))
        large[0] = False
        if large.any():
            whole = close(lung | large[labels], spacing, _CLOSING) & ~barred & (volume.hu < _BONE)
            filled[whole & (filled == 0)] = side
    return filled


def _diaphragm(
    sides: NDArray[np.uint8], cage: RibCage, spacing: Spacing
) -> dict[int, tuple[float, NDArray[np.float64]]]:
    """For each half of the chest the height of the diaphragm's crest and its height by (y, x), mm from the first slice.

    Its crest is where aerated lung stands on it at the front, beside the heart; from there it falls to the ribs at the
    side and the back like an ellipsoid. The left dome stands no higher than the right one, and where one lung is
    missing, the other's crest counts.
    """
    slices = np.flatnonzero(sides.any(axis=(1, 2)))
    rows = np.flatnonzero(sides.any(axis=(0, 2)))
    axis_y, axis_x = float(np.median(cage.y[slices])), float(np.median(cage.x[slices]))
    y = np.arange(sides.shape[1])[:, None] * spacing[1]
    right = axis_x - np.arange(sides.shape[2])[None, :] * spacing[2]
    falls, crests = {}, {}
    for side in (1, 2):
        wall = cage.wall[slices][:, cage.directions(side)]
        known = np.isfinite(wall)
        if known.mean() < 0.5:
            continue
        width = float(np.percentile(wall[known], 90))
        back = axis_y + float(np.median(wall[known & (wall < width)]))
        crest_y = rows[0] * spacing[1] + _CREST * (back - rows[0] * spacing[1])
        out = right if side == 1 else -right
        lung = sides == side
        beside_heart = (out > _BESIDE_HEART * width) & (out < 0.85 * width) & (y < crest_y) & lung.any(axis=0)
        if beside_heart.any():
            crests[side] = float(np.median(lung.argmax(axis=0)[beside_heart])) * spacing[0]
        along = np.maximum(y - crest_y, 0.0) / max(back - crest_y, 1.0)
        across = (out - 0.5 * width) / (0.5 * width)
        fall = _FALL * (1.0 - np.sqrt(np.maximum(1.0 - along**2 - across**2, 0.0)))
        falls[side] = fall
    if not crests:
        return {}
    crest = {1: crests.get(1, min(crests.values())), 2: min(crests.values())}
    return {side: (crest[side], crest[side] - fall) for side, fall in falls.items()}


def _ground_glass(volume: ReducedVolume, lung: Mask, barred: Mask) -> Mask:
    """Ground glass too dense for AIR, connected with the lung.

    A voxel half lung and half tissue on the border has such values, too: what counts is a layer of several voxels.
    """
    from scipy import ndimage

    spacing = volume.spacing
    gap = distance(lung, spacing, _GROUND_GLASS_DEPTH)
    layer = (volume.hu >= AIR) & (volume.hu < GROUND_GLASS) & ~volume.padding & ~lung & ~barred
    layer &= gap < _GROUND_GLASS_DEPTH
    labels, count = label(layer)
    layer = touched(labels, count, ndimage.binary_dilation(lung))[labels]
    return layer & dilate(layer & (gap > 2.0 * max(spacing)), spacing, 4.0)


def _enclosed(lung: Mask) -> Mask:
    """What the lung encloses in its axial slices and in one of the other planes.

    A dense mass on a stalk of vessels is; the dome of the liver, open below, is not.
    """
    from scipy import ndimage

    holes = []
    for axis in range(3):
        labels, count = label(~lung, np.moveaxis(IN_PLANE, 0, axis))
        edge = np.zeros(lung.shape, dtype=bool)
        for other in range(3):
            if other != axis:
                np.moveaxis(edge, other, 0)[[0, -1]] = True
        holes.append(~touched(labels, count, edge)[labels] & ~lung)
    enclosed = holes[0] & (holes[1] | holes[2])
    # a hilum is enclosed in single slices, a mass in a stack of them
    stack = np.ones((3, 1, 1), dtype=bool)
    core = ndimage.binary_erosion(lung | enclosed, stack, border_value=1)
    return enclosed & ndimage.binary_dilation(core, stack)


def _dents_in_chest_wall(lung: Mask, spacing: Spacing, polar: Polar) -> Mask:
    """Dents in the side of a lung that faces the chest wall, where consolidation lies against the pleura."""
    from scipy import ndimage

    outermost = polar.outermost(lung)
    wall = polar.hull(outermost)
    # across slices: a dent between fuller slices above and below, never beyond the first or last of them
    reach = int(20.0 / spacing[0])
    if reach:
        wider = ndimage.grey_dilation(wall, (2 * reach + 1, 1), mode="constant", cval=0.0)
        wall = np.maximum(wall, ndimage.grey_erosion(wider, (2 * reach + 1, 1), mode="constant", cval=0.0))
    wall = np.maximum(wall, np.minimum(_arched(outermost, wall), wall + 10.0))
    # deeper than any dent: the chest wall's side of the lung is somewhere else, the liver lies between
    dent = (wall - outermost <= _CONSOLIDATION_DEPTH) & (outermost > 0.4 * wall)
    wall = np.where(dent, wall, 0)
    # near the axis lies the mediastinum, not the chest wall
    inner = np.maximum(outermost, 0.3 * wall.max(axis=1, keepdims=True))
    return (polar.radius > polar.spread(inner)) & (polar.radius <= polar.spread(wall)) & ~lung


def _arched(outermost: NDArray[np.float32], wall: NDArray[np.float32]) -> NDArray[np.float32]:
    """Radius by (z, bin) where dents are bridged by arches between their ends, within and across slices.

    The convex hull of a slice is only the chord of that arch.
    """
    from scipy import ndimage

    known = outermost > 0
    dent = known & ndimage.binary_dilation(wall - outermost > 4.0, [[0, 0, 0], [1, 1, 1], [0, 0, 0]])
    sound = known & ~dent
    arched = np.zeros_like(outermost)

    def bridge(line: NDArray[np.int64], where: tuple[Any, Any]) -> None:
        ends = np.flatnonzero(sound[where])
        if len(ends) > 1:
            radii = np.interp(line, ends, outermost[where][ends], left=0.0, right=0.0)
            arched[where] = np.maximum(arched[where], radii)

    bins = np.arange(outermost.shape[1])
    for z in np.flatnonzero(dent.any(axis=1)):
        # read from the widest gap on, so that a lung across the seam of the bins stays in one piece
        occupied = np.flatnonzero(known[z])
        gaps = np.diff(np.append(occupied, occupied[0] + len(bins)))
        bridge(bins, (z, np.roll(bins, -int(occupied[gaps.argmax()]) - 1)))
    for number in np.flatnonzero(dent.any(axis=0)):
        bridge(np.arange(len(outermost)), (slice(None), number))
    return np.where(dent, arched, outermost)
