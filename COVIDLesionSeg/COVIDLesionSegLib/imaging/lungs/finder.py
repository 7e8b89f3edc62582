"""Finding the lungs in a chest CT.

No network: thresholds, distances and shape. The regions are worked out on a grid of about 2 mm
(:mod:`._lung_regions`) and their borders set at full resolution, where the Hounsfield units cross the middle between
lung and soft tissue.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...errors import CancelledError, IntensityError, LungsNotFoundError
from ..volume import Volume
from ._filling import ReducedVolume
from ._morphology import Spacing, distance, grow
from ._regions import LungRegions, find_regions

RIGHT, LEFT = 1, 2

Progress = Callable[[str, int, int], None]

_WORKING_SPACING = 2.0
# Readers draw the border of the lung where it is about two thirds soft tissue.
_BORDER = -320.0
# The border of a region found on the working grid is moved by at most this, mm.
_BAND = 3.0
# Values no tissue has: filling outside the scanner's field of view.
_PADDING = -1100.0


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
    steps = _Steps(array.shape[0], progress, cancelled)
    reduced, factors = reduce_volume(array, view.geometry.spacing_zyx, steps.slab)
    regions = find_regions(reduced, steps.region)
    if regions is None:
        raise LungsNotFoundError(
            f"No lungs were found in {volume.name}: no large air-filled region with the density of lung lies inside "
            "the body.",
            "Check that this is a chest CT in Hounsfield units, or give a lung mask.",
        )
    lungs = _refine(array, factors, regions, reduced.spacing, steps)
    if not lungs.any():
        raise LungsNotFoundError(f"No lungs were found in {volume.name}.", "Give a lung mask.")
    steps.finish()
    return np.ascontiguousarray(view.restore(lungs))


class _Steps:
    """Progress over three parts (reading the volume, regions, border) and the question whether to stop."""

    REGION_STEPS = 8

    def __init__(self, slices: int, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self._progress, self._cancelled, self._slices = progress, cancelled, slices
        self._done = 0.0

    def _step(self, percent: float) -> None:
        if self._cancelled is not None and self._cancelled():
            raise CancelledError("Finding the lungs was stopped.")
        self._done = min(self._done + percent, 99.0)
        if self._progress is not None:
            self._progress("lungs", int(self._done), 100)

    def slab(self, slices: int) -> None:
        self._step(20.0 * slices / self._slices)

    def region(self) -> None:
        self._step(50.0 / self.REGION_STEPS)

    def slice(self) -> None:
        self._step(30.0 / self._slices)

    def finish(self) -> None:
        if self._progress is not None:
            self._progress("lungs", 100, 100)


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
    factors = tuple(max(1, round(_WORKING_SPACING / s)) for s in spacing)
    if np.any(np.diff(np.abs(array.strides)) > 0):
        # slices across the memory's order would be read many times slower
        array = np.ascontiguousarray(array)
    rows, columns = (np.arange(0, n, f) for n, f in zip(array.shape[1:], factors[1:], strict=True))
    pixels = np.outer(np.diff(np.append(rows, array.shape[1])), np.diff(np.append(columns, array.shape[2]))).astype(
        np.float32
    )
    hu, padding = [], []

    def block_means(image: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        sums = np.add.reduceat(np.add.reduceat(image, rows, axis=0), columns, axis=1)
        return np.asarray(sums / (pixels * depth), dtype=np.float32)

    for start in range(0, array.shape[0], factors[0]):
        slab = array[start : start + factors[0]]
        clipped = np.clip(slab, -1024, 300)
        hu.append(block_means(clipped.sum(axis=0, dtype=np.float32), len(slab)))
        low = slab < _PADDING
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
    array: NDArray, factors: tuple[int, ...], regions: LungRegions, working: Spacing, steps: _Steps
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
        steps.slice()
        weights = in_z[z - starts[0]]
        used = np.flatnonzero(weights)
        plane = np.tensordot(weights[used], signed[used], 1)
        if plane.max() <= -_BAND:
            continue
        depth = (in_y @ plane) @ in_x.T
        block = (z - starts[0]) // factors[0]

        def full(mask: NDArray, block: int = block) -> NDArray:
            return mask[block][row][:, column]

        dark = (array[(z, *window)] < _BORDER) & ~full(regions.other_air)
        chosen = (depth > _BAND) | ((depth > -_BAND) & dark) | ((depth > 0) & full(firm))
        # a majority of 3 x 3 takes single voxels of noise off the border
        chosen = ndimage.uniform_filter(chosen.astype(np.float32), 3, mode="nearest") > 0.5
        result[(z, *window)] = np.where(chosen, full(sides), 0)
    return result
