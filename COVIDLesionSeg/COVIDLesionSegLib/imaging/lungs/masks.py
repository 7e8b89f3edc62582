"""Lung masks that somebody else made: brought to right and left, and their bounding box."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, LungsNotFoundError
from ..geometry import AxialView, Geometry
from ..masks import Box, bounding_box
from ..volume import LabelVolume, Volume
from ._morphology import Pieces

RIGHT, LEFT = 1, 2
# lungmask's lobes (LTRCLobes): left upper and lower, right upper, middle and lower
_LUNGMASK_LOBES = {1: LEFT, 2: LEFT, 3: RIGHT, 4: RIGHT, 5: RIGHT}
# a mask with one label is divided on a grid of about this spacing, after at most so many erosions of it
_COARSE_MM = 3.0
_MOST_EROSIONS = 6
# the body is denser than this, HU; a piece with this share of the largest one belongs to it, such as an arm
_BODY_FROM = -500
_LEAST_PIECE = 0.05
# two pieces are the two lungs when each has this share of both, and their centers lie this far apart from left to right
_LEAST_SHARE = 0.15
_LEAST_DISTANCE_MM = 50.0


def lungs_from_mask(labels: LabelVolume | NDArray[Any], volume: Volume) -> NDArray[np.uint8]:
    """A given lung mask as right and left.

    Labels whose names say lung or lobe and a side (TotalSegmentator's, Slicer's) count by name and all others are left
    out; 1 and 2 are right and left, put right by their position where they are the other way round; 1 to 5 are
    lungmask's lobes. Any other mask is one label, divided by position where the two lungs can be told apart.

    Args:
        labels: on the CT's grid.
        volume: the CT.

    Returns:
        uint8 (z, y, x), 1 right lung and 2 left lung; 1 for both where they can't be told apart.

    Raises:
        GridMismatchError: another grid.
        LungsNotFoundError: the mask is empty, or has names and none of them is of a lung.
        InputError: values that are not whole numbers.
    """
    names: Mapping[int, str] = {}
    if isinstance(labels, LabelVolume):
        labels.geometry.require_same(volume.geometry, "lung mask", "CT")
        names, labels = labels.names, labels.array
    volume.geometry.require_shape(labels, "lung mask")
    array = labels.view(np.uint8) if labels.dtype == bool else labels
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise InputError("The lung mask holds values that are not whole numbers; a label map is needed.")
    values = [int(value) for value in np.unique(array) if value]
    if not values:
        raise LungsNotFoundError("The given lung mask is empty; give one that marks the lungs, or none to find them.")

    sides = sides_by_name(names)
    if not sides and len(values) > 1 and max(values) <= max(_LUNGMASK_LOBES):
        sides = {RIGHT: RIGHT, LEFT: LEFT} if max(values) <= LEFT else _LUNGMASK_LOBES
    if sides:
        return lungs_by_side(array, sides, volume.geometry)
    mask = array != 0
    divided = divide_lungs(mask, volume.geometry)
    return mask.astype(np.uint8) if divided is None else divided


def sides_by_name(names: Mapping[int, str]) -> dict[int, int]:
    """Label value -> side of the labels whose names say lung or lobe and a side."""
    found = {}
    for value, name in names.items():
        words = set(re.split(r"[^a-z]+", name.lower()))
        if words & {"lung", "lungs", "lobe"} and len(words & {"right", "left"}) == 1:
            found[value] = RIGHT if "right" in words else LEFT
    return found


def lungs_by_side(array: NDArray[Any], sides: Mapping[int, int], geometry: Geometry) -> NDArray[np.uint8]:
    """Right and left from labels of known sides, put right by their position where they are the other way round.

    Args:
        array: labels (z, y, x) on the grid, some of them not 0.
        sides: label value -> 1 right, 2 left; other labels are left out.
        geometry: the grid.

    Raises:
        LungsNotFoundError: none of the labels is there.
    """
    lungs = np.zeros(array.shape, np.uint8)
    for value, side in sides.items():
        lungs[array == value] = side
    if not lungs.any():
        values = [str(value) for value in np.unique(array) if value]
        raise LungsNotFoundError(
            f"The lung mask holds the labels {', '.join(values[:8])}, but none of them is named a lung."
        )
    columns = [np.flatnonzero((geometry.axial_view().apply(lungs) == side).any(axis=(0, 1))) for side in (RIGHT, LEFT)]
    if all(map(len, columns)) and columns[0].mean() > columns[1].mean():
        return np.array([0, LEFT, RIGHT], np.uint8)[lungs]
    return lungs


def lung_box(lungs: NDArray[Any], margin: int) -> Box:
    """The bounding box of a mask with a margin.

    Args:
        lungs: (z, y, x); anything that is not 0.
        margin: voxels on every side, cut off at the grid's border.

    Returns:
        Slices (z, y, x) with start and stop.

    Raises:
        LungsNotFoundError: the mask is empty.
    """
    box = bounding_box(lungs, margin)
    if not box[0].stop:
        raise LungsNotFoundError("The lung mask is empty, so there is nothing to crop to.")
    return box


def body_box(hu: NDArray[Any], lungs: NDArray[Any], spacing: tuple[float, float, float], margin: int) -> Box:
    """The bounding box of the body and the lungs with a margin: air, table and filling around the patient are left out.

    It is what a network sees where the lungs can't be trusted: nothing that could be lung lies outside of it. It is
    worked out on a grid of about 3 mm.

    Args:
        hu: (z, y, x), HU, of any view of the CT.
        lungs: on the same grid; anything that is not 0 lies in the box.
        spacing: (z, y, x), mm.
        margin: voxels on every side, cut off at the grid's border.

    Returns:
        Slices (z, y, x) with start and stop; the whole grid where there is neither body nor lung.
    """
    from scipy import ndimage

    steps = [max(1, round(_COARSE_MM / length)) for length in spacing]
    every = tuple(slice(None, None, step) for step in steps)
    # eroded, so that the table's shell and its mattress fall off the back
    solid = ndimage.binary_erosion(hu[every] > _BODY_FROM, border_value=1)
    pieces = Pieces(solid)
    inside = pieces.those(pieces.size >= _LEAST_PIECE * pieces.size.max()) | (lungs[every] != 0)
    if not inside.any():
        return slice(0, hu.shape[0]), slice(0, hu.shape[1]), slice(0, hu.shape[2])
    # two steps more: one was eroded, and between two samples lies up to another
    z, y, x = (
        slice(max(side.start * step - margin, 0), min(side.stop * step + margin, n))
        for side, step, n in zip(bounding_box(inside, 2), steps, hu.shape, strict=True)
    )
    return z, y, x


def divide_lungs(mask: NDArray[np.bool_], geometry: Geometry) -> NDArray[np.uint8] | None:
    """Divide a lung mask with one label into right and left.

    The mask is eroded on a coarse grid until it falls into two large pieces that lie side by side; each voxel goes to
    the nearer piece.

    Args:
        mask: bool (z, y, x) on the grid.
        geometry: the grid.

    Returns:
        1 right and 2 left, or None where the two can't be told apart.
    """
    from scipy import ndimage

    view = geometry.axial_view()
    axial = view.apply(mask)
    spacing = np.array(view.geometry.spacing_zyx)
    steps = np.maximum(1, np.round(_COARSE_MM / spacing)).astype(int)
    coarse = axial[:: steps[0], :: steps[1], :: steps[2]]
    seeds = coarse
    for _ in range(_MOST_EROSIONS + 1):
        pieces = Pieces(seeds)
        two = np.argsort(-pieces.size, kind="stable")[:2]
        if len(pieces) >= 2 and pieces.size[two[1]] >= _LEAST_SHARE * pieces.size.sum():
            centers = pieces.center(2)
            right, left = sorted(two, key=lambda piece: float(centers[piece]))
            if (centers[left] - centers[right]) * spacing[2] * steps[2] < _LEAST_DISTANCE_MM:
                return None
            sides = np.where(pieces.labels == right, 1, np.where(pieces.labels == left, 2, 0)).astype(np.uint8)
            nearest = ndimage.distance_transform_edt(
                sides == 0, spacing * steps, return_distances=False, return_indices=True
            )
            return _refined(sides[tuple(nearest)], axial, steps, view)
        seeds = ndimage.binary_erosion(seeds)
    return None


def _refined(
    coarse: NDArray[np.uint8], axial: NDArray[np.bool_], steps: NDArray[np.int64], view: AxialView
) -> NDArray[np.uint8]:
    """The coarse sides where the mask is, on the source's own grid."""
    rows, columns = (np.arange(n) // step for n, step in zip(axial.shape[1:], steps[1:], strict=True))
    result = np.empty(view.source.shape, np.uint8)
    target = view.apply(result)
    for number, plane in enumerate(coarse):
        fine = plane[np.ix_(rows, columns)]
        for z in range(number * steps[0], min((number + 1) * steps[0], len(axial))):
            np.multiply(fine, axial[z], out=target[z])
    return result
