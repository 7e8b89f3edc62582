"""Finding the lungs in a chest CT.

No network: thresholds, distances and shape. The regions are worked out on a reduced axial view of about 2 mm (arrays
(z, y, x) running to superior, posterior and left), where noise is averaged away and a whole chest has a few million
voxels; their borders are set at full resolution, where the Hounsfield units cross the middle between lung and soft
tissue.

The steps: air outside the body; pockets of air inside it that are lung by density and place; airways cut out; right
parted from left; then the parts of the lungs that are not air are taken back in: vessels, ground glass, consolidation,
and what they cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CancelledError, IntensityError, LungsNotFoundError
from ..masks import Box, Mask, bounding_box
from ..volume import Volume
from ._cage import Polar, RibCage
from ._morphology import IN_PLANE, Pieces, Spacing, close, dilate, distance, erode, grow

Progress = Callable[[str, int, int], None]

# The border of a region found on the working grid is moved by at most this, mm.
_BAND = 3.0

# Hounsfield units on the working grid. Lung and air lie below _AIR; what is darker than _GAS after smoothing is air
# without lung tissue; no normal soft tissue, fat included, is darker than _GROUND_GLASS; _TISSUE and above is the body.
_AIR = -400.0
_GAS = -930.0
_TISSUE = -300.0
_GROUND_GLASS = -250.0
# Consolidated lung stays below this, bone does not.
_BONE = 150.0

# Emphysema is a lung of at least so many mL, of which this share, away from its border, is vessels above this many HU.
_EMPHYSEMA = 400.0
_VESSEL = -750.0
_LEAST_VESSELS = 0.01
# Gas without lung is darker than this over balls in which lung, even with emphysema, has a vessel, HU.
_FREE_GAS = -955.0
#: Less than this in its widest slice is no lung that anything could be measured in, mm2.
SMALLEST_SECTION = 1500.0
# How far the air is eroded to part two lungs that touch, mm.
_PARTING = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 20.0, 25.0)

# A piece that a consolidation cuts off lies within this of the rest, mm.
_PIECE_GAP = 12.0
# ... and of the ribs. What a stomach holds is as dense as lung, and lies deeper; so do the bronchi of the hilum.
_PIECE_DEPTH = 45.0
# Vessels and fissures up to twice this wide are taken back into the lung, mm.
_CLOSING = 6.0
# Ground glass too dense for _AIR is taken back up to this far from the rest, mm.
_GROUND_GLASS_DEPTH = 16.0


def find_lungs(
    volume: Volume, progress: Progress | None = None, cancelled: Callable[[], bool] | None = None
) -> NDArray[np.uint8]:
    """Find the right and the left lung, consolidation inside and airways outside of them.

    Args:
        volume: a CT in Hounsfield units, any orientation, whole or part of a chest.
        progress: called as ``progress("lungs", done, total)``.
        cancelled: asked between the steps; True stops.

    Returns:
        uint8 (z, y, x) on the volume's own grid: 0 outside, 1 right lung, 2 left lung. One of them is missing where
        the volume shows one lung only.

    Raises:
        LungsNotFoundError: nothing in the volume looks like a lung.
        IntensityError: the volume holds NaN.
        CancelledError: ``cancelled`` said True.
    """
    view = volume.geometry.axial_view()
    array = view.apply(volume.array)
    done = 0.0

    def step(percent: float) -> None:
        nonlocal done
        if cancelled is not None and cancelled():
            raise CancelledError("Finding the lungs was stopped.")
        done = min(done + percent, 99.0)
        if progress is not None:
            progress("lungs", int(done), 100)

    reduced, factors = reduce_volume(array, view.geometry.spacing_zyx, lambda slices: step(20 * slices / len(array)))
    regions = _find_regions(reduced, lambda: step(50 / 8))
    if regions is None:
        raise LungsNotFoundError(
            f"No lungs were found in {volume.name}: no large air-filled region with the density of lung lies inside "
            "the body.",
            "Check that this is a chest CT in Hounsfield units, or give a lung mask.",
        )
    lungs = _refine(array, factors, regions, reduced.spacing, lambda: step(30 / len(array)))
    if not lungs.any():
        raise LungsNotFoundError(f"No lungs were found in {volume.name}.", "Give a lung mask.")
    if progress is not None:
        progress("lungs", 100, 100)
    return np.ascontiguousarray(view.restore(lungs))


# The working grid


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

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, mL."""
        return float(np.prod(self.spacing)) / 1000

    def cropped(self, box: Box) -> ReducedVolume:
        """The part inside the box."""
        return ReducedVolume(self.hu[box], self.padding[box], self.spacing)


def reduce_volume(
    array: NDArray, spacing: Spacing, read: Callable[[int], None] = lambda _: None
) -> tuple[ReducedVolume, tuple[int, ...]]:
    """Average blocks of voxels; works slab by slab, so that memory stays small.

    Args:
        array: HU (z, y, x) of the axial view.
        spacing: (z, y, x) mm.
        read: called with the number of slices after each slab; may raise to stop.

    Returns:
        The volume on the working grid of about 2 mm, and how many voxels (z, y, x) a block of it has.

    Raises:
        IntensityError: voxels that are not a number.
    """
    factors = tuple(max(1, round(2.0 / s)) for s in spacing)
    if np.any(np.diff(np.abs(array.strides)) > 0):
        # slices across the memory's order would be read many times slower
        array = np.ascontiguousarray(array)
    rows, columns = (np.arange(0, n, f) for n, f in zip(array.shape[1:], factors[1:], strict=True))
    pixels = np.outer(np.diff(np.append(rows, array.shape[1])), np.diff(np.append(columns, array.shape[2]))).astype(
        np.float32
    )
    hu, padding = [], []

    def block_means(image: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        sums = _block_sums(_block_sums(image, factors[1]).T, factors[2]).T
        return np.asarray(sums / (pixels * depth), dtype=np.float32)

    for start in range(0, array.shape[0], factors[0]):
        slab = array[start : start + factors[0]]
        clipped = np.clip(slab, -1024, 300)
        hu.append(block_means(clipped.sum(axis=0, dtype=np.float32), len(slab)))
        low = slab < -1100  # values no tissue has
        if low.any():
            padding.append(block_means(low.sum(axis=0, dtype=np.float32), len(slab)) > 0.5)
        else:
            padding.append(np.zeros(pixels.shape, dtype=bool))
        read(len(slab))
    reduced = np.stack(hu)
    if np.isnan(reduced).any():
        raise IntensityError("The volume holds voxels that are not a number (NaN); export it again.")
    scaled = tuple(s * f for s, f in zip(spacing, factors, strict=True))
    return ReducedVolume(reduced, np.stack(padding), (scaled[0], scaled[1], scaled[2])), factors


def _block_sums(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Sums of so many rows each, the last of fewer: what ``np.add.reduceat`` gives, five times as fast."""
    sums = image[::factor].copy()
    for first in range(1, factor):
        rows = image[first::factor]
        sums[: len(rows)] += rows
    return sums


def _interpolation(size: int, factor: int, count: int) -> NDArray[np.float32]:
    """Matrix (size, count) of linear interpolation from the centers of blocks to the voxels in them."""
    position = np.clip((np.arange(size) + 0.5) / factor - 0.5, 0, count - 1)
    below = np.minimum(position.astype(int), max(count - 2, 0))
    weight = (position - below).astype(np.float32)
    matrix = np.zeros((size, count), dtype=np.float32)
    matrix[np.arange(size), below] = 1 - weight
    matrix[np.arange(size), np.minimum(below + 1, count - 1)] += weight
    return matrix


def _refine(
    array: NDArray, factors: tuple[int, ...], regions: _LungRegions, working: Spacing, check: Callable[[], None]
) -> NDArray[np.uint8]:
    """Carry the regions to the full resolution and set their border there.

    A voxel deep inside a region belongs to it. Near the border its own value decides, except where the region is
    dense: there the region's smooth border stays.
    """
    from scipy import ndimage

    lung = regions.sides > 0
    limit = 2 * max(_BAND, *working[1:])
    half = 0.5 * working[1]
    outwards = distance(lung, working, limit)
    signed = np.where(lung, distance(~lung, working, limit) - half, half - outwards)
    sides = grow(regions.sides, outwards < limit)
    firm = ndimage.binary_dilation(regions.dense) & lung

    starts = [b.start * f for b, f in zip(regions.box, factors, strict=True)]
    stops = [min(b.stop * f, n) for b, f, n in zip(regions.box, factors, array.shape, strict=True)]
    in_z, in_y, in_x = (
        _interpolation(stop - start, f, n) for start, stop, f, n in zip(starts, stops, factors, lung.shape, strict=True)
    )
    row, column = (np.arange(stops[a] - starts[a]) // factors[a] for a in (1, 2))
    window = (slice(starts[1], stops[1]), slice(starts[2], stops[2]))

    result = np.zeros(array.shape, dtype=np.uint8)
    for z in range(starts[0], stops[0]):
        check()
        weights = in_z[z - starts[0]]
        used = np.flatnonzero(weights)
        plane = np.tensordot(weights[used], signed[used], 1)
        if plane.max() <= -_BAND:
            continue
        depth = (in_y @ plane) @ in_x.T
        block = (z - starts[0]) // factors[0]

        def full(mask: NDArray, block: int = block) -> NDArray:
            return mask[block][row][:, column]

        # readers draw the border of the lung where it is about two thirds soft tissue
        dark = (array[(z, *window)] < -320) & ~full(regions.other_air)
        chosen = (depth > _BAND) | ((depth > -_BAND) & dark) | ((depth > 0) & full(firm))
        # a majority of 3 x 3 takes single voxels of noise off the border
        chosen = ndimage.uniform_filter(chosen.astype(np.float32), 3, mode="nearest") > 0.5
        result[(z, *window)] = np.where(chosen, full(sides), 0)
    return result


# Air


@dataclass(frozen=True)
class _LungRegions:
    """What was found, on the part of the working grid that holds it.

    Attributes:
        box: that part, (z, y, x) slices of the working grid.
        sides: uint8 (z, y, x), 0 outside, 1 right lung, 2 left lung.
        dense: bool (z, y, x), the part of ``sides`` that is lung although it is not dark: its border is not where the
            Hounsfield units change.
        other_air: bool (z, y, x), air that is not lung: outside the body, airways, bowel.
    """

    box: Box
    sides: NDArray[np.uint8]
    dense: Mask
    other_air: Mask


def _find_regions(volume: ReducedVolume, check: Callable[[], None]) -> _LungRegions | None:
    """The lungs on the working grid, or None where nothing looks like a lung; ``check`` may raise to stop."""
    spacing = volume.spacing
    # with the half-filled voxels between that air and skin, table or padding
    outside = dilate(_outside_air(volume), spacing, spacing[1])
    check()
    patient = ~outside & ~volume.padding
    if not patient.any():
        return None
    box = bounding_box(patient, 5.0 / np.array(spacing))
    volume, outside = volume.cropped(box), outside[box]
    body = _body(volume)
    if body is None:
        return None
    check()
    gas = free_gas(volume)[1] & ~outside
    haze = _haze(volume) & ~outside
    inside = ((volume.hu < _AIR) & ~volume.padding & ~outside & ~gas) | haze
    pairs = _opposite_sides(body)
    main = _lung_like(volume, inside, pairs)
    if not main.any():
        return None
    check()

    part = bounding_box(main, 45.0 / np.array(spacing))
    cage = RibCage.seen(volume.hu, spacing)
    if cage is not None and cage.shares(main).min() < 0.1:
        # the other lung may be there without air
        part = (part[0], part[1], slice(0, main.shape[2]))
    height, midline = _center(volume, body, main, cage)
    height, midline = height - part[1].start * spacing[1], midline - part[2].start * spacing[2]
    cage = None if cage is None else cage.cropped(part)
    volume, main, inside, outside = volume.cropped(part), main[part], inside[part], outside[part] | gas[part]
    airway = _airways(volume, inside, main, midline)
    airway_wall = dilate(airway, spacing, 3.0)
    free = inside & ~airway_wall
    check()
    sides = _part_sides(volume, free & dilate(main, spacing, 6.0), main & free, midline)
    if not sides.any():
        return None
    check()
    polar = _between_lungs(sides, spacing, height, midline)
    air_sides = _attach_pieces(volume, sides, free & (pairs[part] > 0), polar, cage)
    check()
    sides = _fill(volume, air_sides, outside | airway, polar, check)
    if cage is not None:
        sides = _fill_to_ribs(volume, sides, outside | airway_wall, cage)
    if _section(sides > 0, spacing) < SMALLEST_SECTION:
        return None
    other_air = ((airway_wall | inside) & (sides == 0)) | outside
    dense = (sides > 0) & ((air_sides == 0) | haze[part])
    z, y, x = (slice(o.start + i.start, o.start + i.stop) for o, i in zip(box, part, strict=True))
    return _LungRegions((z, y, x), sides, dense, other_air)


def _section(mask: Mask, spacing: Spacing) -> float:
    """Area of the widest slice, mm2."""
    return float(mask.sum(axis=(1, 2)).max()) * spacing[1] * spacing[2]


def _outside_air(volume: ReducedVolume) -> Mask:
    """Air that reaches the side of its slice, or the padding.

    A lung that the field of view cuts reaches it, too, so only what is darker than any lung is taken from a region
    that holds a solid part as bright as lung.
    """
    from scipy import ndimage

    spacing = volume.spacing
    air = (volume.hu < _AIR) & ~volume.padding
    edge = np.zeros(air.shape, dtype=bool)
    edge[:, [0, -1]] = edge[:, :, [0, -1]] = True
    if volume.padding.any():
        edge |= ndimage.binary_dilation(volume.padding, IN_PLANE)
    pieces = Pieces(air, IN_PLANE)
    touching = pieces.within(edge) > 0
    gas = ndimage.uniform_filter(volume.hu, (1, 3, 3)) < _GAS
    bright = air & ~gas & pieces.those(touching)
    mixed = pieces.within(erode(bright, (1e6, spacing[1], spacing[2]), 6.0)) > 0
    outside = pieces.those(touching & ~mixed)
    if mixed.any():
        dark = Pieces(pieces.those(mixed) & gas, IN_PLANE)
        dark_outside = dark.those(dark.within(edge) > 0)
        # smoothing has kept it one voxel away from brighter ground
        outside |= ndimage.binary_dilation(dark_outside, IN_PLANE) & (volume.hu < _GAS)
    return outside


def _body(volume: ReducedVolume) -> Mask | None:
    """The largest piece of solid tissue: thin shells (table top, clothes) are opened away."""
    tissue = (volume.hu > _TISSUE) & ~volume.padding
    pieces = Pieces(erode(tissue, volume.spacing, 4.0))
    if not pieces:
        return None
    return dilate(pieces.labels == pieces.size.argmax(), volume.spacing, 4.0) & tissue


def _haze(volume: ReducedVolume) -> Mask:
    """Ground glass too dense for _AIR in pieces of 15 mL, 10 mm thick: no border between lung and tissue is."""
    from scipy import ndimage

    spacing = volume.spacing
    hu = ndimage.uniform_filter(volume.hu, 3)
    band = (hu > -460) & (hu < _GROUND_GLASS) & ~volume.padding
    # more than the half-filled voxels that a border makes, in thick slices too
    depth = max(5.0, 1.01 * max(spacing))
    pieces = Pieces(dilate(erode(band, spacing, depth), spacing, depth) & band)
    return pieces.those(pieces.size * volume.voxel_ml >= 15)


def _lung_like(volume: ReducedVolume, inside: Mask, pairs: NDArray[np.uint8]) -> Mask:
    """Solid pockets of air that have the density of lung and lie inside the body.

    Bowel gas, an air hole in a phantom and the trachea are as dark as air all through; lung, even with emphysema, is
    not. Inside the body means between two parts of it: the foam of a table or pillow has the density of lung, but the
    body on one side only.
    """
    from scipy import ndimage

    spacing = volume.spacing
    nothing = np.zeros(inside.shape, dtype=bool)
    pieces = Pieces(erode(inside, spacing, max(3.0, spacing[1])))
    labels, size = pieces.labels, pieces.size

    # judged on the inner part, away from the half-filled voxels of the border
    core = erode(inside, spacing, 5.0) & (labels > 0)
    hu = ndimage.uniform_filter(volume.hu, 3) if max(spacing) < 4.0 else volume.hu
    core_size = pieces.within(core)
    thin = core_size < 0.2 * size
    bright = np.where(thin, pieces.within(hu > _GAS), pieces.within(core & (hu > _GAS)))
    share = bright / np.maximum(np.where(thin, size, core_size), 1)
    volume_ml = size * volume.voxel_ml

    dense = share > np.where(volume_ml > 200.0, 0.1, 0.8)
    if (volume_ml > _EMPHYSEMA).any():
        # darker all through than lung is, but with vessels
        around = erode(close(labels > 0, spacing, 6.0), spacing, 8.0)
        whole = grow(labels.astype(np.uint8), around) if len(pieces) < 255 else labels
        inner = np.bincount(whole[around], minlength=len(size))
        vessels = np.bincount(whole[around & (volume.hu > _VESSEL)], minlength=len(size))
        dense |= (volume_ml > _EMPHYSEMA) & (vessels > _LEAST_VESSELS * inner)
    between = np.where(dense, pieces.within(pairs > 0), 0)
    inside_body = between > 0.4 * size
    if not inside_body.any():
        return nothing
    main = int(np.where(inside_body, size, 0).argmax())
    lung = (between > 0.3 * size) & (size >= 0.002 * size[main])
    # beside the main one, not above or below it like the foam under a hollow back
    low, high = np.percentile(np.nonzero(labels == main)[1], [5, 95])
    row = pieces.center(1)
    lung &= (row >= low) & (row <= high)
    if _section(pieces.those(lung), spacing) < 2 * SMALLEST_SECTION:
        # the apices at best: not the air in front of the neck, which has the body on two sides
        lung &= pieces.within(pairs == 2) > 0.6 * size
    kept = pieces.those(lung)
    if _section(kept, spacing) < 0.5 * SMALLEST_SECTION:
        return nothing
    return dilate(kept, spacing, max(3.0, spacing[1])) & inside


def _opposite_sides(body: Mask) -> NDArray[np.uint8]:
    """How many of left and right, front and back have the body on both sides of a voxel: 0, 1 or 2."""
    pairs = np.zeros(body.shape, dtype=np.uint8)
    for axis in (1, 2):
        forward = np.logical_or.accumulate(body, axis=axis)
        backward = np.flip(np.logical_or.accumulate(np.flip(body, axis), axis=axis), axis)
        pairs += forward & backward
    return pairs


def _center(volume: ReducedVolume, body: Mask, main: Mask, cage: RibCage | None) -> tuple[float, float]:
    """The patient's center in the slices that hold lung, mm along y and x.

    Along x it is the spine's, or at least the bones', where they are seen: a field of view around one lung has more of
    the body beside it.
    """
    spacing = volume.spacing
    slices = np.asarray(main.any(axis=(1, 2)))
    trunk = body[slices]
    rows = trunk.sum(axis=(0, 2), dtype=float)
    height = float(np.average(np.arange(len(rows)), weights=rows)) * spacing[1]
    if cage is not None:
        return height, float(np.median(cage.x[slices]))
    # vertebrae are thick and bright
    bone = erode((volume.hu > 180) & slices[:, None, None], spacing, 4.0)
    solid = bone if bone.sum() * volume.voxel_ml > 2.0 else trunk
    columns = solid.sum(axis=(0, 1), dtype=float)
    return height, float(np.average(np.arange(len(columns)), weights=columns)) * spacing[2]


def _airways(volume: ReducedVolume, inside: Mask, main: Mask, midline: float) -> Mask:
    """Trachea and main bronchi: small round holes of air near the midline, slice by slice.

    A bronchus whose wall is blurred opens into the lung at one threshold and is closed at a lower one, so several are
    tried. What of it lies inside a lung is filled again later.
    """
    spacing = volume.spacing
    pixel = spacing[1] * spacing[2]
    dark = volume.hu < min(-900.0, max(float(np.median(volume.hu[main])) - 60.0, -950.0))
    lateral = np.abs(np.arange(inside.shape[2]) * spacing[2] - midline) > 60.0
    tubes = np.zeros(inside.shape, dtype=bool)
    for threshold in (_AIR, -500.0, -600.0, -700.0):
        holes = Pieces(inside & (volume.hu < threshold), IN_PLANE)
        # mm2: an adult's trachea has up to 4 cm2, the widened section at its bifurcation up to three times as much
        tube = (holes.size * pixel >= 15.0) & (holes.size * pixel <= 1200.0)
        tube &= (holes.within(dark) >= 0.25 * holes.size) & (holes.within(inside & lateral) == 0)
        tubes |= holes.those(tube)
    pieces = Pieces(tubes, np.ones((3, 3, 3)))
    return pieces.those(pieces.size * volume.voxel_ml >= 0.3)


def _part_sides(volume: ReducedVolume, free: Mask, main: Mask, midline: float) -> NDArray[np.uint8]:
    """Label right (1) and left (2): the two large pieces that stay when the air is eroded far enough to part them."""
    spacing = volume.spacing
    sides = np.zeros(free.shape, dtype=np.uint8)
    if not main.any():
        return sides
    extent = np.ptp(np.flatnonzero(main.any(axis=(0, 1)))) * spacing[2]
    depth = distance(~free, spacing, 6.5)
    for radius in _PARTING:
        if radius == 8.0:
            depth = distance(~free, spacing, _PARTING[-1] + 0.5)
        pieces = Pieces(main & (depth > radius))
        if not pieces:
            break
        size, centers = pieces.size, pieces.center(2) * spacing[2]
        first = int(size.argmax())
        apart = np.abs(centers - centers[first]) > 0.3 * extent
        if radius > _PARTING[0]:
            # two lobes of one lung part, too
            apart &= np.abs((centers + centers[first]) / 2 - midline) < 0.25 * extent
        candidates = np.where(apart & (size >= 0.12 * size[first]), size, 0)
        if candidates.any():
            right, left = sorted((first, int(candidates.argmax())), key=lambda number: float(centers[number]))
            sides[pieces.labels == right], sides[pieces.labels == left] = 1, 2
            break
    if not sides.any():
        # one lung, or the other too small to count: the body's center tells the side
        pieces = Pieces(main)
        kept = pieces.those(pieces.size >= 0.02 * pieces.size.max())
        to_the_left = pieces.those(pieces.center(2) * spacing[2] >= midline)
        sides = np.where(kept, 1 + to_the_left, 0).astype(np.uint8)
    # the darkest first: the pleura between two lungs that touch is brighter than the lung on either side
    for threshold in (-800, -700, -600, -500, _AIR):
        sides = grow(sides, free & (volume.hu < threshold))
    return sides


# Parts of the lungs that are not air


def _between_lungs(sides: NDArray[np.uint8], spacing: Spacing, height: float, midline: float) -> Polar:
    """Coordinates about one axis: the middle between the centers of both lungs, or the midline where there is one lung.

    The axis never lies behind the body's center: of the lungs' bases alone, the center does.
    """
    centers = [np.argwhere(sides == side).mean(axis=0) * spacing for side in (1, 2) if (sides == side).any()]
    y = min(float(np.mean([c[1] for c in centers])), height)
    x = float(np.mean([c[2] for c in centers])) if len(centers) == 2 else midline
    return Polar(np.full(len(sides), y), np.full(len(sides), x), spacing, 240, "right")


def free_gas(volume: ReducedVolume) -> tuple[Mask, Mask]:
    """Gas in which no lung tissue is seen: bowel gas, a pneumothorax, the largest bullae.

    Returns:
        bool (z, y, x) without and with the half-filled voxels on its border.
    """
    from scipy import ndimage

    spacing = volume.spacing
    hu = ndimage.uniform_filter(volume.hu, 3)
    gas = (volume.hu < _FREE_GAS + 15.0) & ~volume.padding
    depth = max(8.0, 1.01 * max(spacing))
    core = dilate(erode((hu < _FREE_GAS) & ~volume.padding, spacing, depth), spacing, depth) & gas
    # the flat rest of a region that is gas for the most part belongs to it; around a bulla lies emphysema
    pieces = Pieces(gas)
    pieces = Pieces(core | pieces.those(pieces.within(core) > 0.3 * pieces.size))
    gas = pieces.those(pieces.size * volume.voxel_ml >= 5)
    return gas, gas | (dilate(gas, spacing, 1.01 * max(spacing[1:])) & (volume.hu < _AIR) & ~volume.padding)


def _attach_pieces(
    volume: ReducedVolume, sides: NDArray[np.uint8], free: Mask, polar: Polar, cage: RibCage | None
) -> NDArray[np.uint8]:
    """Add aerated pieces that a consolidation cuts off from the rest.

    Stomach and bowel beneath the diaphragm must not come with them, so a piece lies either towards the chest wall, or
    behind a layer of the rest of the lung thinner than the diaphragm and the wall of a bowel; and most of it lies near
    the ribs, where they are seen. ``free`` is air inside the body that is no airway.
    """
    spacing = volume.spacing
    thin_layer = 1.5 * max(spacing)
    for _ in range(2):  # a piece can be cut off by another piece
        pieces = Pieces(free & (sides == 0))
        # single voxels are noise
        voxels = np.nonzero(pieces.those((pieces.size * volume.voxel_ml > 0.06) & (pieces.size >= 6)))
        number, hu = pieces.labels[voxels], volume.hu[voxels]

        def share(hit: Mask, number: NDArray[np.int32] = number, size: NDArray[Any] = pieces.size) -> NDArray[Any]:
            return np.bincount(number[hit], minlength=len(size)) / np.maximum(size, 1)

        to_lungs = distance(sides > 0, spacing, _PIECE_GAP + 1.0)
        gap = to_lungs[voxels]
        radius, direction = polar.coordinates(*voxels)
        outermost = polar.outermost(sides > 0)[voxels[0], direction]
        outwards = (radius > outermost) & ((outermost > 0) | (voxels[1] * spacing[1] > polar.y[0]))
        outer = (share(gap < _PIECE_GAP) > 0) & (share(outwards) > 0.6)
        adjacent = (share(gap < thin_layer) > 0) & (share(hu < -550.0) > 0.5)
        ours = (outer | adjacent) & (share(hu > _GAS) > 0.6)
        if cage is not None:
            to_axis, bearing = cage.coordinates(*voxels)
            depth = cage.wall[voxels[0], bearing] - to_axis
            ours &= share(np.isfinite(depth) & (depth > _PIECE_DEPTH)) < 0.5
        if not ours.any():
            break
        nearest = grow(sides, to_lungs <= _PIECE_GAP)[voxels]
        side = np.where(share(nearest == 1) >= share(nearest == 2), 1, 2)
        sides = np.where(pieces.those(ours), side[pieces.labels], sides).astype(np.uint8)
    return sides


def _fill(
    volume: ReducedVolume, sides: NDArray[np.uint8], barred: Mask, polar: Polar, check: Callable[[], None]
) -> NDArray[np.uint8]:
    """The air of each lung with its vessels, nodules, ground glass and consolidation.

    What is barred (airways, air outside) is never lung.
    """
    filled = np.zeros_like(sides)
    for side in (1, 2):
        if (sides == side).any():
            box = bounding_box(sides == side, (_GROUND_GLASS_DEPTH + 4.0) / np.array(volume.spacing))
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
    pieces = Pieces(lung & ~barred)
    return pieces.those(pieces.size >= 0.005 * pieces.size.max())


def _fill_to_ribs(volume: ReducedVolume, sides: NDArray[np.uint8], barred: Mask, cage: RibCage) -> NDArray[np.uint8]:
    """Take consolidation back in that holds no air between it and the ribs at the side and the back.

    What lies between the lung and the ribs, above the diaphragm as the rest of the lung shows it, is lung or fluid; the
    two can't be told apart. Only a large part is filled: beside healthy lung there is none.
    """
    spacing = volume.spacing
    filled = sides.copy()
    # the shoulders' bones are no wall of the apex
    top = int(np.flatnonzero(sides.any(axis=(1, 2)))[-1]) - 25.0 / spacing[0]
    z, y, x = np.nonzero((volume.hu > _TISSUE) & (volume.hu < _BONE) & ~barred & (sides == 0))
    radius, direction = cage.coordinates(z, y, x)
    for side, (crest, floor) in _diaphragm(sides, cage, spacing).items():
        lung = sides == side
        outermost = cage.outermost(lung)
        gap = np.where(np.isfinite(cage.wall) & cage.directions(side), cage.wall - outermost, 0.0)
        # where no air is, the mediastinum ends here, right and left of the axis in front of the spine
        inner = np.where(outermost > 0, outermost, {1: 26.0, 2: 36.0}[side])[z, direction]
        # the pleura lies inside the ribs
        hit = (gap[z, direction] > 10.0) & (radius > inner) & (radius < cage.wall[z, direction] - 2.0)
        hit &= (z * spacing[0] >= floor[y, x]) & (z < top)
        dense = np.zeros(lung.shape, bool)
        dense[z[hit], y[hit], x[hit]] = True
        dense &= dilate(erode(dense, spacing, 4.0), spacing, 7.0)
        pieces = Pieces(dense)
        # liver that reaches over the estimated floor is no consolidation: that reaches up behind the aerated lung
        above = pieces.within((np.arange(len(dense)) >= round(crest / spacing[0]))[:, None, None] & dense)
        large = above >= max(0.06 * lung.sum(), 20.0 / volume.voxel_ml)
        if large.any():
            whole = close(lung | pieces.those(large), spacing, _CLOSING) & ~barred & (volume.hu < _BONE)
            filled[whole & (filled == 0)] = side
    return filled


def _diaphragm(
    sides: NDArray[np.uint8], cage: RibCage, spacing: Spacing
) -> dict[int, tuple[float, NDArray[np.float64]]]:
    """For each half of the chest the height of the diaphragm's crest and its height by (y, x), mm from the first slice.

    Its crest is where aerated lung stands on it in the front 45 % of the chest, beside the heart; from there it falls
    to the ribs at the side and the back like an ellipsoid, by 80 mm. The left dome stands no higher than the right one,
    and where one lung is missing, the other's crest counts.
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
        crest_y = rows[0] * spacing[1] + 0.45 * (back - rows[0] * spacing[1])
        out = right if side == 1 else -right
        lung = sides == side
        beside_heart = (out > 0.55 * width) & (out < 0.85 * width) & (y < crest_y) & lung.any(axis=0)
        if beside_heart.any():
            crests[side] = float(np.median(lung.argmax(axis=0)[beside_heart])) * spacing[0]
        along = np.maximum(y - crest_y, 0.0) / max(back - crest_y, 1.0)
        across = (out - 0.5 * width) / (0.5 * width)
        fall = 80.0 * (1.0 - np.sqrt(np.maximum(1.0 - along**2 - across**2, 0.0)))
        falls[side] = fall
    if not crests:
        return {}
    crest = {1: crests.get(1, min(crests.values())), 2: min(crests.values())}
    return {side: (crest[side], crest[side] - fall) for side, fall in falls.items()}


def _ground_glass(volume: ReducedVolume, lung: Mask, barred: Mask) -> Mask:
    """Ground glass too dense for _AIR, connected with the lung.

    A voxel half lung and half tissue on the border has such values, too: what counts is a layer of several voxels.
    """
    from scipy import ndimage

    spacing = volume.spacing
    gap = distance(lung, spacing, _GROUND_GLASS_DEPTH)
    layer = (volume.hu >= _AIR) & (volume.hu < _GROUND_GLASS) & ~volume.padding & ~lung & ~barred
    layer &= gap < _GROUND_GLASS_DEPTH
    pieces = Pieces(layer)
    layer = pieces.those(pieces.within(ndimage.binary_dilation(lung)) > 0)
    return layer & dilate(layer & (gap > 2.0 * max(spacing)), spacing, 4.0)


def _enclosed(lung: Mask) -> Mask:
    """What the lung encloses in its axial slices and in one of the other planes.

    A dense mass on a stalk of vessels is; the dome of the liver, open below, is not.
    """
    from scipy import ndimage

    holes = []
    for axis in range(3):
        pieces = Pieces(~lung, np.moveaxis(IN_PLANE, 0, axis))
        edge = np.zeros(lung.shape, dtype=bool)
        for other in range(3):
            if other != axis:
                np.moveaxis(edge, other, 0)[[0, -1]] = True
        holes.append(pieces.those(pieces.within(edge) == 0))
    enclosed = holes[0] & (holes[1] | holes[2])
    # a hilum is enclosed in single slices, a mass in a stack of them
    stack = np.ones((3, 1, 1), dtype=bool)
    core = ndimage.binary_erosion(lung | enclosed, stack, border_value=1)
    return enclosed & ndimage.binary_dilation(core, stack)


def _dents_in_chest_wall(lung: Mask, spacing: Spacing, polar: Polar) -> Mask:
    """Dents in the side of a lung that faces the chest wall, where consolidation lies against the pleura."""
    from scipy import ndimage

    outermost = polar.outermost(lung)
    wall = _hull(outermost)
    # across slices: a dent between fuller slices above and below, never beyond the first or last of them
    reach = int(20.0 / spacing[0])
    if reach:
        wider = ndimage.grey_dilation(wall, (2 * reach + 1, 1), mode="constant", cval=0.0)
        wall = np.maximum(wall, ndimage.grey_erosion(wider, (2 * reach + 1, 1), mode="constant", cval=0.0))
    wall = np.maximum(wall, np.minimum(_arched(outermost, wall), wall + 10.0))
    # deeper than any dent: the chest wall's side of the lung is somewhere else, the liver lies between
    dent = (wall - outermost <= 60.0) & (outermost > 0.4 * wall)
    wall = np.where(dent, wall, 0)
    # near the axis lies the mediastinum, not the chest wall
    inner = np.maximum(outermost, 0.3 * wall.max(axis=1, keepdims=True))
    # the axis is the same in every slice
    radius, direction = polar.coordinates(0, *np.ogrid[: lung.shape[1], : lung.shape[2]])
    return (radius > inner[:, direction]) & (radius <= wall[:, direction]) & ~lung


def _hull(outermost: NDArray[np.float32]) -> NDArray[np.float32]:
    """Radius of each slice's convex hull by (z, direction), mm, in the directions where the slice has a voxel."""
    from scipy.spatial import ConvexHull, QhullError

    angle = (np.arange(outermost.shape[1]) + 0.5) / outermost.shape[1] * 2 * np.pi - np.pi
    unit = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    hull = outermost.copy()
    for z, row in enumerate(outermost):
        seen = np.flatnonzero(row)
        if len(seen) < 3:
            continue
        points = np.concatenate([row[seen, None] * unit[seen], [[0.0, 0.0]]])
        try:
            equations = ConvexHull(points).equations
        except QhullError:  # all on one line: nothing to fill
            continue
        outward = equations[:, :2] @ unit[seen].T
        reach = np.where(outward > 1e-6, -equations[:, 2:] / np.maximum(outward, 1e-6), np.inf).min(axis=0)
        hull[z, seen] = np.maximum(row[seen], reach)
    return hull


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
