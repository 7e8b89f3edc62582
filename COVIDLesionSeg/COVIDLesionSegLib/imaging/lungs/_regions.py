"""Which regions of a chest CT are lung: the topology, worked out on a grid of about 2 mm.

Everything here is done on a reduced axial view (arrays (z, y, x) running to superior, posterior and left, distances in
millimetres), where noise is averaged away and a whole chest has a few million voxels. :mod:`.lungs` makes that grid and
carries the regions found here back to the full resolution.

The steps: air outside the body; pockets of air inside it that are lung by density and place; airways cut out; right
parted from left; then the parts of the lungs that are not air are taken back in (:mod:`._lung_filling`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._cage import RibCage
from ._filling import (
    AIR,
    GAS,
    GROUND_GLASS,
    TISSUE,
    Polar,
    ReducedVolume,
    attach_pieces,
    fill,
    fill_to_ribs,
    free_gas,
)
from ._morphology import (
    IN_PLANE,
    Box,
    Labels,
    Mask,
    Spacing,
    bounding_box,
    close,
    dilate,
    distance,
    erode,
    grow,
    inner_box,
    label,
    touched,
)

# An adult's trachea has up to 4 cm2, the widened section at its bifurcation up to three times as much, mm2.
_AIRWAY_AREA = (15.0, 1200.0)
_AIRWAY_TO_MIDLINE = 60.0
# Vertebrae are thick and brighter than this, HU; less than so much of it, mm3, says nothing.
_BONE = 180.0
_LEAST_BONE = 2000.0
# Diffuse ground glass starts here, is at least twice so thick and this much in one piece; HU, mm, mL.
_HAZE = -460.0
_HAZE_DEPTH = 5.0
_LEAST_HAZE = 15.0
# Emphysema is a lung of at least so many mL, of which this share, away from its border, is vessels above this many HU.
_EMPHYSEMA = 400.0
_VESSEL = -750.0
_LEAST_VESSELS = 0.01
# With less of the aerated lung on one side of the spine, the other lung may be there without air.
_MISSING = 0.1
# Less than this in its widest slice is no lung that anything could be measured in, mm2.
_SMALLEST_SECTION = 1500.0
# How far the air is eroded to part two lungs that touch, mm.
_FLOODING = (-800.0, -700.0, -600.0, -500.0)
_PARTING = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 20.0, 25.0)


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

    box: Box
    sides: NDArray[np.uint8]
    dense: Mask
    other_air: Mask


def find_regions(volume: ReducedVolume, check: Callable[[], None]) -> LungRegions | None:
    """Find the lungs on the working grid.

    Args:
        volume: the CT, axial view.
        check: called between the steps; may raise to stop.

    Returns:
        The regions, or None where nothing looks like a lung.
    """
    spacing = volume.spacing
    # with the half-filled voxels between that air and skin, table or padding
    outside = dilate(_outside_air(volume), spacing, spacing[1])
    check()
    patient = ~outside & ~volume.padding
    if not patient.any():
        return None
    box = bounding_box(patient, spacing, 5.0)
    volume, outside = volume.cropped(box), outside[box]
    body = _body(volume)
    if body is None:
        return None
    check()
    gas = free_gas(volume) & ~outside
    haze = _haze(volume) & ~outside
    inside = ((volume.hu < AIR) & ~volume.padding & ~outside & ~gas) | haze
    pairs = _opposite_sides(body)
    main = _lung_like(volume, inside, pairs)
    if not main.any():
        return None
    check()

    part = bounding_box(main, spacing, 45.0)
    cage = RibCage.seen(volume.hu, spacing)
    if cage is not None and cage.shares(main).min() < _MISSING:
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
    polar = Polar.between(sides, spacing, (height, midline))
    air_sides = attach_pieces(volume, sides, free & (pairs[part] > 0), polar)
    check()
    sides = fill(volume, air_sides, outside | airway, polar, check)
    if cage is not None:
        sides = fill_to_ribs(volume, sides, outside | airway_wall, cage)
    if _section(sides > 0, spacing) < _SMALLEST_SECTION:
        return None
    other_air = ((airway_wall | inside) & (sides == 0)) | outside
    dense = (sides > 0) & ((air_sides == 0) | haze[part])
    return LungRegions(inner_box(box, part), sides, dense, other_air)


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
    air = (volume.hu < AIR) & ~volume.padding
    edge = np.zeros(air.shape, dtype=bool)
    edge[:, [0, -1]] = edge[:, :, [0, -1]] = True
    if volume.padding.any():
        edge |= ndimage.binary_dilation(volume.padding, IN_PLANE)
    labels, count = label(air, IN_PLANE)
    touching = touched(labels, count, edge)
    gas = ndimage.uniform_filter(volume.hu, (1, 3, 3)) < GAS
    bright = air & ~gas & touching[labels]
    mixed = touched(labels, count, erode(bright, (1e6, spacing[1], spacing[2]), 6.0))
    outside = (touching & ~mixed)[labels]
    if mixed.any():
        dark, dark_count = label((touching & mixed)[labels] & gas, IN_PLANE)
        dark_outside = touched(dark, dark_count, edge)[dark]
        # smoothing has kept it one voxel away from brighter ground
        outside |= ndimage.binary_dilation(dark_outside, IN_PLANE) & (volume.hu < GAS)
    return outside


def _body(volume: ReducedVolume) -> Mask | None:
    """The largest piece of solid tissue: thin shells (table top, clothes) are opened away."""
    tissue = (volume.hu > TISSUE) & ~volume.padding
    labels, count = label(erode(tissue, volume.spacing, 4.0))
    if not count:
        return None
    largest = np.bincount(labels.ravel())[1:].argmax() + 1
    return dilate(labels == largest, volume.spacing, 4.0) & tissue


def _haze(volume: ReducedVolume) -> Mask:
    """Ground glass too dense for AIR in pieces so thick that no border between lung and tissue is, and so large."""
    from scipy import ndimage

    spacing = volume.spacing
    hu = ndimage.uniform_filter(volume.hu, 3)
    band = (hu > _HAZE) & (hu < GROUND_GLASS) & ~volume.padding
    # more than the half-filled voxels that a border makes, in thick slices too
    depth = max(_HAZE_DEPTH, 1.01 * max(spacing))
    haze = dilate(erode(band, spacing, depth), spacing, depth) & band
    labels, count = label(haze)
    large = np.bincount(labels.ravel(), minlength=count + 1) * np.prod(spacing) >= 1000 * _LEAST_HAZE
    large[0] = False
    return large[labels]


def _lung_like(volume: ReducedVolume, inside: Mask, pairs: NDArray[np.uint8]) -> Mask:
    """Solid pockets of air that have the density of lung and lie inside the body.

    Bowel gas, an air hole in a phantom and the trachea are as dark as air all through; lung, even with emphysema, is
    not. Inside the body means between two parts of it: the foam of a table or pillow has the density of lung, but the
    body on one side only.
    """
    from scipy import ndimage

    spacing = volume.spacing
    nothing = np.zeros(inside.shape, dtype=bool)
    labels, count = label(erode(inside, spacing, max(3.0, spacing[1])))
    if not count:
        return nothing
    size = np.bincount(labels.ravel(), minlength=count + 1)

    # judged on the inner part, away from the half-filled voxels of the border
    core = erode(inside, spacing, 5.0) & (labels > 0)
    hu = ndimage.uniform_filter(volume.hu, 3) if max(spacing) < 4.0 else volume.hu
    core_size = np.bincount(labels[core], minlength=count + 1)
    bright = np.bincount(labels[core & (hu > GAS)], minlength=count + 1)
    thin = core_size < 0.2 * size
    core_size[thin] = size[thin]
    bright[thin] = np.bincount(labels[hu > GAS], minlength=count + 1)[thin]
    share = bright / np.maximum(core_size, 1)
    volume_ml = size * np.prod(spacing) / 1000.0

    dense = share > np.where(volume_ml > 200.0, 0.1, 0.8)
    if (volume_ml[1:] > _EMPHYSEMA).any():
        # darker all through than lung is, but with vessels
        around = erode(close(labels > 0, spacing, 6.0), spacing, 8.0)
        whole = grow(np.minimum(labels, 255).astype(np.uint8), around) if count < 255 else labels
        inner = np.bincount(whole[around], minlength=count + 1)
        vessels = np.bincount(whole[around & (volume.hu > _VESSEL)], minlength=count + 1)
        dense |= (volume_ml > _EMPHYSEMA) & (vessels > _LEAST_VESSELS * inner)
    dense[0] = False
    between = np.where(dense, np.bincount(labels[pairs > 0], minlength=count + 1), 0)
    inside_body = between > 0.4 * size
    if not inside_body.any():
        return nothing
    main = int(np.where(inside_body, size, 0).argmax())
    lung = (between > 0.3 * size) & (size >= 0.002 * size[main])
    # beside the main one, not above or below it like the foam under a hollow back
    z, y, x = np.nonzero(labels)
    rows = np.bincount(labels[z, y, x], weights=y, minlength=count + 1)
    low, high = np.percentile(y[labels[z, y, x] == main], [5, 95])
    lung &= (rows >= low * size) & (rows <= high * size)
    if _section(lung[labels], spacing) < 2 * _SMALLEST_SECTION:
        # the apices at best: not the air in front of the neck, which has the body on two sides
        lung &= np.bincount(labels[pairs == 2], minlength=count + 1) > 0.6 * size
    kept = lung[labels]
    if _section(kept, spacing) < 0.5 * _SMALLEST_SECTION:
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
    bone = erode((volume.hu > _BONE) & slices[:, None, None], spacing, 4.0)
    solid = bone if bone.sum() * np.prod(spacing) > _LEAST_BONE else trunk
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
    lateral = np.abs(np.arange(inside.shape[2]) * spacing[2] - midline) > _AIRWAY_TO_MIDLINE
    tubes = np.zeros(inside.shape, dtype=bool)
    for threshold in (AIR, -500.0, -600.0, -700.0):
        labels, count = label(inside & (volume.hu < threshold), IN_PLANE)
        size = np.bincount(labels.ravel(), minlength=count + 1)
        holds_dark = np.bincount(labels[dark], minlength=count + 1)
        tube = (size * pixel >= _AIRWAY_AREA[0]) & (size * pixel <= _AIRWAY_AREA[1])
        tube &= (holds_dark >= 0.25 * size) & ~touched(labels[:, :, lateral], count, inside[:, :, lateral])
        tube[0] = False
        tubes |= tube[labels]
    labels, _ = label(tubes, np.ones((3, 3, 3)))
    long_enough = np.bincount(labels.ravel()) * np.prod(spacing) >= 300.0
    long_enough[0] = False
    return long_enough[labels]


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
        labels, count = label(main & (depth > radius))
        if not count:
            break
        size, centers = _sizes_and_centers(labels, count, spacing)
        first = int(size.argmax())
        apart = np.abs(centers - centers[first]) > 0.3 * extent
        if radius > _PARTING[0]:
            # two lobes of one lung part, too
            apart &= np.abs((centers + centers[first]) / 2 - midline) < 0.25 * extent
        candidates = np.where(apart & (size >= 0.12 * size[first]), size, 0)
        if candidates.any():
            right, left = sorted((first, int(candidates.argmax())), key=lambda number: float(centers[number]))
            sides[labels == right], sides[labels == left] = 1, 2
            break
    if not sides.any():
        # one lung, or the other too small to count: the body's center tells the side
        labels, count = label(main)
        size, centers = _sizes_and_centers(labels, count, spacing)
        side = np.where(size < 0.02 * size.max(), 0, np.where(centers < midline, 1, 2)).astype(np.uint8)
        side[0] = 0
        sides = side[labels]
    # the darkest first: the pleura between two lungs that touch is brighter than the lung on either side
    for threshold in (*_FLOODING, AIR):
        sides = grow(sides, free & (volume.hu < threshold))
    return sides


def _sizes_and_centers(labels: Labels, count: int, spacing: Spacing) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Voxels of each label 0..count (none for the background) and the center of each along x, mm."""
    z, y, x = np.nonzero(labels)
    size = np.bincount(labels[z, y, x], minlength=count + 1)
    center = np.bincount(labels[z, y, x], weights=x * spacing[2], minlength=count + 1) / np.maximum(size, 1)
    return size, center
