"""Which regions of a chest CT are lung: the topology, worked out on a grid of about 2 mm.

Everything here is done on a reduced axial view (arrays (z, y, x) running to superior, posterior and left, distances in
millimetres), where noise is averaged away and a whole chest has a few million voxels. :mod:`.lungs` makes that grid and
carries the regions found here back to the full resolution.

The steps: air outside the body; pockets of air inside it that are lung by density and place; airways cut out; left
parted from right; then the parts of the lungs that are not air (vessels, consolidation) taken back in, also those that
lie against the chest wall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

# Hounsfield units on the reduced grid. Lung and air lie below AIR; what is darker than GAS after smoothing is air
# without lung tissue; TISSUE and above is the body.
AIR = -400.0
GAS = -930.0
TISSUE = -300.0
# No normal soft tissue, fat included, is darker; dense ground glass is.
GROUND_GLASS = -250.0

# An adult's trachea has up to 4 cm2, the widened section at its bifurcation up to three times as much (mm2).
_AIRWAY_AREA = (15.0, 1200.0)
_AIRWAY_TO_MIDLINE = 60.0
# Vessels and fissures up to twice this wide are taken back into the lung, mm.
_CLOSING = 6.0
# A consolidation against the chest wall is at most this thick, mm.
_CONSOLIDATION_DEPTH = 60.0
# Less than this in its widest slice is no lung that anything could be measured in, mm2.
_SMALLEST_SECTION = 1500.0

_IN_PLANE = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3], dtype=bool)


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

    def cropped(self, box: tuple[slice, ...]) -> ReducedVolume:
        """The part inside the box."""
        return ReducedVolume(self.hu[box], self.padding[box], self.spacing)


@dataclass(frozen=True)
class LungRegions:
    """What was found, on the part of the working grid that holds it.

    Attributes:
        box: that part, (z, y, x) slices of the working grid.
        sides: uint8 (z, y, x), 0 outside, 1 right lung, 2 left lung.
        dense: bool (z, y, x), the part of ``sides`` that is lung although it is not dark: its border is not where the
            Hounsfield units change.
        other_air: bool (z, y, x), air that is not lung: outside the body, airways, bowel.
    """

    box: tuple[slice, slice, slice]
    sides: NDArray[np.uint8]
    dense: Mask
    other_air: Mask


def distance(mask: Mask, spacing: Spacing, limit: float) -> NDArray[np.float32]:
    """Distance of each voxel's centre to the nearest voxel of the mask, mm; ``limit`` where that is further.

    Exact (lower envelope of parabolas, axis by axis) and much faster than a general transform for a limit of a few
    voxels. What lies outside the array belongs to neither the mask nor its complement.
    """
    return np.sqrt(_squared_distance(mask, spacing, limit))


def _squared_distance(mask: Mask, spacing: Spacing, limit: float) -> NDArray[np.float32]:
    squared = np.where(mask, np.float32(0), np.float32(limit * limit))
    for axis in range(3):
        source = np.moveaxis(squared, axis, 0)
        steps = min(int(limit / spacing[axis]), len(source) - 1)
        if not steps:
            continue
        result = source.copy()
        shifted = np.empty_like(source)
        for step in range(1, steps + 1):
            np.add(source, np.float32((step * spacing[axis]) ** 2), out=shifted)
            np.minimum(result[step:], shifted[:-step], out=result[step:])
            np.minimum(result[:-step], shifted[step:], out=result[:-step])
        squared = np.moveaxis(result, 0, axis)
    return squared


def dilate(mask: Mask, spacing: Spacing, radius: float) -> Mask:
    """Voxels within the radius (mm) of the mask."""
    grown = np.zeros_like(mask)
    if mask.any():
        box = _bounding_box(mask, [radius / s + 1 for s in spacing])
        limit = radius * 1.01 + 1e-3
        grown[box] = _squared_distance(mask[box], spacing, limit) <= (radius + 1e-4) ** 2
    return grown


def erode(mask: Mask, spacing: Spacing, radius: float) -> Mask:
    """Voxels of the mask further than the radius (mm) from any voxel outside it; the array's faces do not erode."""
    kept = np.zeros_like(mask)
    if mask.any():
        # one voxel around the mask suffices: a voxel outside it is never further than straight across that rim
        box = _bounding_box(mask, [1.0, 1.0, 1.0])
        limit = radius * 1.01 + 1e-3
        kept[box] = _squared_distance(~mask[box], spacing, limit) > (radius + 1e-4) ** 2
    return kept


def close(mask: Mask, spacing: Spacing, radius: float) -> Mask:
    """Morphological closing with a ball of the radius (mm)."""
    return erode(dilate(mask, spacing, radius), spacing, radius)


def find_regions(volume: ReducedVolume, check: Callable[[], None]) -> LungRegions | None:
    """Find the lungs on the working grid.

    Args:
        volume: the CT, axial view.
        check: called between the steps; may raise to stop.

    Returns:
        The regions, or None where nothing looks like a lung.
    """
    spacing = volume.spacing
    body = _body(volume)
    if body is None:
        return None
    check()
    # with the half-filled voxels between that air and skin, table or padding
    outside = dilate(_outside_air(volume), spacing, spacing[1])
    check()
    inside = (volume.hu < AIR) & ~volume.padding & ~outside
    main = _lung_like(volume, inside, outside, body)
    if not main.any():
        return None
    check()

    box = _bounding_box(main, [25.0 / s for s in spacing])
    midline = _midline(body, main, spacing) - box[2].start * spacing[2]
    volume, main, inside, outside = volume.cropped(box), main[box], inside[box], outside[box]
    airway = _airways(volume, inside, main, midline)
    airway_wall = dilate(airway, spacing, 3.0)
    free = inside & ~airway_wall
    check()
    sides = _part_sides(volume, free & dilate(main, spacing, 6.0), main & free, midline)
    if sides is None:
        return None
    check()
    radial = _Radial(sides, spacing, midline)
    air_sides = _attach_pieces(volume, sides, free, radial)
    check()
    sides = _fill(volume, air_sides, outside | airway, radial, check)
    other_air = ((airway_wall | inside) & (sides == 0)) | outside
    if _section(sides > 0, spacing) < _SMALLEST_SECTION:
        return None
    return LungRegions(box, sides, (sides > 0) & (air_sides == 0), other_air)


def _label(mask: Mask, structure: Any = None) -> tuple[NDArray[np.int32], int]:
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure)
    return labels, int(count)


def _touched(labels: NDArray[np.int32], count: int, where: Mask) -> Mask:
    """Which labels have a voxel in the mask; index 0, the background, is False."""
    touched = np.zeros(count + 1, dtype=bool)
    touched[labels[where]] = True
    touched[0] = False
    return touched


def _bounding_box(mask: Mask, margin: list[float]) -> tuple[slice, slice, slice]:
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(int(hit[0] - margin[axis]), 0), min(int(hit[-1] + margin[axis]) + 1, mask.shape[axis])))
    return box[0], box[1], box[2]


def _section(mask: Mask, spacing: Spacing) -> float:
    """Area of the widest slice, mm2."""
    return float(mask.sum(axis=(1, 2)).max()) * spacing[1] * spacing[2]


def _body(volume: ReducedVolume) -> Mask | None:
    """The largest piece of solid tissue: thin shells (table top, clothes) are opened away."""
    tissue = (volume.hu > TISSUE) & ~volume.padding
    labels, count = _label(erode(tissue, volume.spacing, 4.0))
    if not count:
        return None
    largest = np.bincount(labels.ravel())[1:].argmax() + 1
    return dilate(labels == largest, volume.spacing, 4.0) & tissue


def _outside_air(volume: ReducedVolume) -> Mask:
    """Air that reaches the side of its slice, or the padding.

    A lung that the field of view cuts reaches it, too, so only what is darker than any lung is taken from a region
    that holds a solid part as bright as lung.
    """
    from scipy import ndimage

    spacing = volume.spacing
    air = (volume.hu < AIR) & ~volume.padding
    edge = np.zeros(air.shape, dtype=bool)
    edge[:, [0, -1]] = edge[:, :, [0, -1]] = True
    if volume.padding.any():
        edge |= ndimage.binary_dilation(volume.padding, _IN_PLANE)
    labels, count = _label(air, _IN_PLANE)
    touching = _touched(labels, count, edge)
    gas = ndimage.uniform_filter(volume.hu, (1, 3, 3)) < GAS
    bright = air & ~gas & touching[labels]
    mixed = _touched(labels, count, erode(bright, (1e6, spacing[1], spacing[2]), 6.0))
    outside = (touching & ~mixed)[labels]
    if mixed.any():
        dark, dark_count = _label((touching & mixed)[labels] & gas, _IN_PLANE)
        dark_outside = _touched(dark, dark_count, edge)[dark]
        # smoothing has kept it one voxel away from brighter ground
        outside |= ndimage.binary_dilation(dark_outside, _IN_PLANE) & (volume.hu < GAS)
    return outside


def _lung_like(volume: ReducedVolume, inside: Mask, outside: Mask, body: Mask) -> Mask:
    """Solid pockets of air that have the density of lung and lie inside the body.

    Bowel gas, an air hole in a phantom and the trachea are as dark as air all through; lung, even with emphysema, is
    not. Inside the body means that tissue is met in most directions of the slice: the foam of a table or pillow has
    the density of lung, but the body on one side only.
    """
    from scipy import ndimage

    spacing = volume.spacing
    labels, count = _label(erode(inside, spacing, max(3.0, spacing[1])))
    if not count:
        return np.zeros(inside.shape, dtype=bool)
    size = np.bincount(labels.ravel(), minlength=count + 1)
    rows = np.arange(inside.shape[1])[None, :, None]
    core = erode(inside, spacing, 5.0) & (labels > 0)
    hu = ndimage.uniform_filter(volume.hu, 3) if max(spacing) < 4.0 else volume.hu
    core_size = np.bincount(labels[core], minlength=count + 1)
    bright = np.bincount(labels[core & (hu > GAS)], minlength=count + 1)
    thin = core_size < 0.2 * size
    core_size[thin] = size[thin]
    bright[thin] = np.bincount(labels[hu > GAS], minlength=count + 1)[thin]

    surrounded = np.bincount(labels[_surrounded(body, outside)], minlength=count + 1)

    ml = size * np.prod(spacing) / 1000.0
    share = bright / np.maximum(core_size, 1)
    lung = (surrounded > 0.6 * size) & (share > np.where(ml > 200.0, 0.1, 0.6))
    lung[0] = False
    if not lung.any():
        return lung[labels]
    largest = np.where(lung, size, 0).argmax()
    lung &= size >= 0.002 * size[largest]
    # beside the largest, not above or below it like the foam under a hollow back
    height = np.bincount(labels.ravel(), weights=np.broadcast_to(rows, labels.shape).ravel(), minlength=count + 1)
    low, high = np.percentile(np.nonzero(labels == largest)[1], [5, 95])
    lung &= (height >= low * size) & (height <= high * size)
    kept = lung[labels]
    if _section(kept, spacing) < 0.5 * _SMALLEST_SECTION:
        return np.zeros(inside.shape, dtype=bool)
    return dilate(kept, spacing, max(3.0, spacing[1])) & inside


def _surrounded(body: Mask, outside: Mask) -> Mask:
    """Voxels that have the body in two of the four directions of their slice at least.

    Beyond the field of view nothing is known: with the body on the left or right, an open end counts as body, too.
    """

    def seen(mask: Mask) -> list[NDArray[np.uint8]]:
        return [
            np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis=axis), axis).view(np.uint8)
            if backwards
            else np.logical_or.accumulate(mask, axis=axis).view(np.uint8)
            for axis in (1, 2)
            for backwards in (False, True)
        ]

    tissue, air = seen(body), seen(outside)
    certain = tissue[0] + tissue[1] + tissue[2] + tissue[3]
    possible = sum((t | (1 - a) for t, a in zip(tissue, air, strict=True)), np.zeros_like(certain))
    return (certain >= 2) | ((tissue[2] + tissue[3] >= 1) & (possible >= 2))


def _midline(body: Mask, main: Mask, spacing: Spacing) -> float:
    """Where left and right meet, mm along x: the body's centre in the slices that hold lung."""
    profile = body[main.any(axis=(1, 2))].sum(axis=(0, 1), dtype=float)
    return float(np.average(np.arange(body.shape[2]), weights=profile)) * spacing[2]


def _airways(volume: ReducedVolume, inside: Mask, main: Mask, midline: float) -> Mask:
    """Trachea and main bronchi: small round holes of air near the midline, slice by slice.

    A bronchus whose wall is blurred opens into the lung at one threshold and is closed at a lower one, so several are
    tried. What of it lies inside a lung is filled again later.
    """
    spacing = volume.spacing
    pixel = spacing[1] * spacing[2]
    dark = volume.hu < min(-900.0, max(float(np.median(volume.hu[main])) - 60.0, -950.0))
    lateral = np.abs(np.arange(inside.shape[2]) * spacing[2] - midline) > _AIRWAY_TO_MIDLINE
    tubes = np.zeros(inside.shape, dtype=bool)
    for threshold in (AIR, -500.0, -600.0, -700.0):
        labels, count = _label(inside & (volume.hu < threshold), _IN_PLANE)
        size = np.bincount(labels.ravel(), minlength=count + 1)
        holds_dark = np.bincount(labels[dark], minlength=count + 1)
        reaches_out = np.bincount(labels[:, :, lateral].ravel(), minlength=count + 1) > 0
        tube = (size * pixel >= _AIRWAY_AREA[0]) & (size * pixel <= _AIRWAY_AREA[1])
        tube &= (holds_dark >= 0.25 * size) & ~reaches_out
        tube[0] = False
        tubes |= tube[labels]
    labels, _ = _label(tubes, np.ones((3, 3, 3)))
    long_enough = np.bincount(labels.ravel()) * np.prod(spacing) >= 300.0
    long_enough[0] = False
    return long_enough[labels]


def _part_sides(volume: ReducedVolume, free: Mask, main: Mask, midline: float) -> NDArray[np.uint8] | None:
    """Label right (1) and left (2): the two large pieces that stay when the air is eroded far enough to part them."""
    spacing = volume.spacing
    x = np.arange(free.shape[2]) * spacing[2]
    depth = distance(~free, spacing, 17.0)
    extent = np.ptp(np.flatnonzero(main.any(axis=(0, 1)))) * spacing[2]
    sides = np.zeros(free.shape, dtype=np.uint8)
    for radius in (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0):
        labels, count = _label(main & (depth > radius))
        size = np.bincount(labels.ravel(), minlength=count + 1)
        size[0] = 0
        if not size.any():
            break
        first = int(size.argmax())
        columns = np.bincount((np.nonzero(labels)[2] + labels[labels > 0] * len(x)), minlength=(count + 1) * len(x))
        centers = columns.reshape(count + 1, -1) @ x / np.maximum(size, 1)
        apart = np.abs(centers - centers[first]) > 0.3 * extent
        if radius > 3.0:
            apart &= np.abs((centers + centers[first]) / 2 - midline) < 0.25 * extent
        candidates = np.where(apart & (size >= 0.12 * size[first]), size, 0)
        if candidates.any():
            second = int(candidates.argmax())
            right, left = sorted((first, second), key=lambda label: float(centers[label]))
            sides[labels == right], sides[labels == left] = 1, 2
            break
    else:
        labels, count = _label(main & (depth > 3.0))
    if not sides.any():
        # one lung, or one of them too small to count: the body's centre tells the side
        labels, count = _label(main)
        if not count:
            return None
        size = np.bincount(labels.ravel())
        size[0] = 0
        for label in np.flatnonzero(size >= 0.02 * size.max()):
            piece = labels == label
            sides[piece] = 1 if x[np.nonzero(piece)[2]].mean() < midline else 2
    return _grow(sides, free)


def _grow(sides: NDArray[np.uint8], allowed: Mask) -> NDArray[np.uint8]:
    """Let labels spread through the allowed voxels, step by step at the same speed."""
    sides = sides.copy()
    open_voxels = allowed & (sides == 0)
    while open_voxels.any():
        reached = np.zeros_like(sides)
        for axis in range(3):
            source, target = np.moveaxis(sides, axis, 0), np.moveaxis(reached, axis, 0)
            np.maximum(target[1:], source[:-1], out=target[1:])
            np.maximum(target[:-1], source[1:], out=target[:-1])
        new = open_voxels & (reached > 0)
        if not new.any():
            break
        sides[new] = reached[new]
        open_voxels &= ~new
    return sides


class _Radial:
    """Polar coordinates in every slice about one axis between the lungs: which way is the chest wall."""

    BINS = 240

    def __init__(self, sides: NDArray[np.uint8], spacing: Spacing, midline: float) -> None:
        y, x = (np.arange(n) * s for n, s in zip(sides.shape[1:], spacing[1:], strict=True))
        centers = [np.argwhere(sides == side).mean(axis=0) * spacing for side in (1, 2) if (sides == side).any()]
        center_y = float(np.mean([c[1] for c in centers]))
        center_x = float(np.mean([c[2] for c in centers])) if len(centers) == 2 else midline
        dy, dx = (y - center_y)[:, None], (x - center_x)[None, :]
        self.radius = np.hypot(dy, dx).astype(np.float32)
        self.bin = ((np.arctan2(dy, dx) + np.pi) / (2 * np.pi) * self.BINS).astype(np.int64) % self.BINS
        self.posterior = dy[:, 0] > 0
        angle = (np.arange(self.BINS) + 0.5) / self.BINS * 2 * np.pi - np.pi
        self.unit = np.stack([np.sin(angle), np.cos(angle)], axis=1)

    def outermost(self, mask: Mask) -> NDArray[np.float32]:
        """Radius of the mask's outermost voxel by (z, bin), mm; 0 where there is none."""
        outermost = np.zeros((len(mask), self.BINS), dtype=np.float32)
        z, y, x = np.nonzero(mask)
        np.maximum.at(outermost, (z, self.bin[y, x]), self.radius[y, x])
        return outermost

    def hull(self, outermost: NDArray[np.float32]) -> NDArray[np.float32]:
        """Radius of the slice's convex hull by (z, bin) where the slice has a voxel in that bin, mm."""
        from scipy.spatial import ConvexHull, QhullError

        hull = outermost.copy()
        for z, row in enumerate(outermost):
            bins = np.flatnonzero(row)
            if len(bins) < 3:
                continue
            points = np.concatenate([row[bins, None] * self.unit[bins], [[0.0, 0.0]]])
            try:
                equations = ConvexHull(points).equations
            except QhullError:  # all on one line: nothing to fill
                continue
            outward = equations[:, :2] @ self.unit[bins].T
            reach = np.where(outward > 1e-6, -equations[:, 2:] / np.maximum(outward, 1e-6), np.inf).min(axis=0)
            hull[z, bins] = np.maximum(row[bins], reach)
        return hull

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values by (z, bin) as (z, y, x)."""
        return values[:, self.bin]


def _attach_pieces(volume: ReducedVolume, sides: NDArray[np.uint8], free: Mask, radial: _Radial) -> NDArray[np.uint8]:
    """Add aerated pieces that a consolidation cuts off from the rest.

    Bowel beneath the diaphragm must not come with them, so a piece lies either towards the chest wall, or behind a
    layer of the rest of the lung thinner than the diaphragm and the wall of a bowel.
    """
    spacing = volume.spacing
    thin_layer = 1.5 * max(spacing)
    for _ in range(2):  # a piece can be cut off by another piece
        labels, count = _label(free & (sides == 0))
        size = np.bincount(labels.ravel(), minlength=count + 1)
        large = size * np.prod(spacing) > 60.0
        large[0] = False
        if not large.any():
            break
        voxels = np.nonzero(large[labels])
        label, hu = labels[voxels], volume.hu[voxels]

        def share(hit: Mask, label: NDArray[np.int32] = label, size: NDArray[np.int64] = size) -> NDArray[np.float64]:
            return np.bincount(label[hit], minlength=len(size)) / np.maximum(size, 1)

        to_right, to_left = (distance(sides == side, spacing, 16.0)[voxels] for side in (1, 2))
        gap = np.minimum(to_right, to_left)
        radius, bins = radial.radius[voxels[1:]], radial.bin[voxels[1:]]
        outermost = radial.outermost(sides > 0)[voxels[0], bins]
        outwards = (radius > outermost) & ((outermost > 0) | radial.posterior[voxels[1]])
        outer = (share(gap < 15.0) > 0) & (share(outwards) > 0.6)
        behind = (share(gap < thin_layer) > 0) & (share(hu < -550.0) > 0.5)
        ours = (outer | behind) & (share(hu > GAS) > 0.6)
        if not ours.any():
            break
        chosen = ours[label]
        sides = sides.copy()
        sides[tuple(axis[chosen] for axis in voxels)] = np.where(to_right <= to_left, 1, 2)[chosen]
    return sides


def _fill(
    volume: ReducedVolume, sides: NDArray[np.uint8], barred: Mask, radial: _Radial, check: Callable[[], None]
) -> NDArray[np.uint8]:
    """Take vessels, nodules and consolidation back into each lung."""
    spacing = volume.spacing
    filled = np.zeros_like(sides)
    for side in (1, 2):
        lung = sides == side
        if not lung.any():
            continue
        lung = close(lung, spacing, _CLOSING)
        lung |= _ground_glass(volume, lung) & ~barred
        lung |= _enclosed(lung)
        check()
        wall = _towards_chest_wall(lung, spacing, radial) & (volume.hu < 150.0) & ~barred
        # a rim along a healthy wall is no dent
        solid = erode(wall | (lung & (sides != side)), spacing, 3.0)
        lung |= wall & dilate(solid, spacing, 5.0)
        lung = close(lung, spacing, 3.0)
        lung |= _enclosed(lung)
        check()
        labels, count = _label(lung & ~barred & (filled == 0))
        size = np.bincount(labels.ravel(), minlength=count + 1)
        size[0] = 0
        filled[(size >= 0.005 * size.max())[labels] & (labels > 0)] = side
    return filled


def _ground_glass(volume: ReducedVolume, lung: Mask) -> Mask:
    """Ground glass too dense for the threshold, beside the lung.

    No soft tissue is darker than fat, but a voxel on the border is, too: what counts is a layer of several voxels.
    """
    spacing = volume.spacing
    gap = distance(lung, spacing, 10.0)
    layer = (volume.hu < GROUND_GLASS) & ~volume.padding & ~lung & (gap < 10.0)
    return layer & dilate(layer & (gap > 1.6 * max(spacing)), spacing, 4.0)


def _enclosed(lung: Mask) -> Mask:
    """What the lung encloses in its axial slices and in one of the other planes.

    A dense mass on a stalk of vessels is; the dome of the liver, open below, is not.
    """
    holes = []
    for axis in range(3):
        labels, count = _label(~lung, np.moveaxis(_IN_PLANE, 0, axis))
        edge = np.zeros(lung.shape, dtype=bool)
        for other in range(3):
            if other != axis:
                np.moveaxis(edge, other, 0)[[0, -1]] = True
        holes.append(~_touched(labels, count, edge)[labels] & ~lung)
    return holes[0] & (holes[1] | holes[2])


def _towards_chest_wall(lung: Mask, spacing: Spacing, radial: _Radial) -> Mask:
    """Dents in the side of a lung that faces the chest wall, where consolidation lies against the pleura."""
    from scipy import ndimage

    outermost = radial.outermost(lung)
    known = outermost > 0
    wall = radial.hull(outermost)
    # across slices: a dent between fuller slices above and below, never beyond the first or last of them
    reach = int(20.0 / spacing[0])
    if reach:
        wider = ndimage.grey_dilation(wall, (2 * reach + 1, 1), mode="constant", cval=0.0)
        wall = np.maximum(wall, ndimage.grey_erosion(wider, (2 * reach + 1, 1), mode="constant", cval=0.0))
    # the hull is a chord; the wall between its ends bulges outwards
    arc = int(20.0 / 360.0 * radial.BINS)
    wider = ndimage.grey_dilation(outermost, (1, 2 * arc + 1), mode="wrap")
    bulge = ndimage.grey_erosion(np.where(known, wider, 0), (1, 2 * arc + 1), mode="wrap")
    wall = np.where(wall - outermost > 4.0, np.maximum(wall, np.minimum(bulge, wall + 6.0)), wall)
    # deeper than any dent: the chest wall's side of the lung is somewhere else, the liver lies between
    wall = np.where((wall - outermost <= _CONSOLIDATION_DEPTH) & (outermost > 0.4 * wall), wall, 0)
    # near the axis lies the mediastinum, not the chest wall
    mediastinum = 0.3 * wall.max(axis=1)[:, None, None]
    radius = np.broadcast_to(radial.radius, lung.shape)
    return (radius > np.maximum(radial.spread(outermost), mediastinum)) & (radius <= radial.spread(wall)) & ~lung
