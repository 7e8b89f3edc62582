"""What is done with masks everywhere: what is accepted as one, the box around it, its surface, its voxels as a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import GeometryError, GridMismatchError, InputError
from .geometry import Geometry
from .volume import LabelVolume

Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

# Eight voxels of a row are one word; the voxel that comes first in memory is its lowest byte.
_WORD = np.dtype("<u8")
_VOXELS = _WORD.itemsize
_BYTE = np.uint64(8)
_ALL_BUT_ONE = np.uint64(56)


# What is accepted


def as_mask(array: ArrayLike, what: str = "mask", dimensions: int | None = None) -> Mask:
    """An array as a bool mask, without a copy where it is bool or 8-bit already.

    Args:
        array: bool, or integers or floats that are all 0 or 1.
        what: how to call it in messages.
        dimensions: how many axes it must have; None allows any number.

    Raises:
        InputError: other values than 0 and 1 (label maps, probabilities, NaN), no voxels, or other axes than needed.
    """
    values = np.asarray(array)
    if dimensions is not None and values.ndim != dimensions:
        axes = {2: "(y, x)", 3: "(z, y, x)"}[dimensions]
        raise InputError(f"The {what} has {values.ndim} axes, shape {values.shape}; {dimensions} are needed: {axes}.")
    if values.size == 0:
        raise InputError(f"The {what} has the shape {values.shape}: it holds no voxels.")
    if values.dtype == bool:
        return values
    if values.dtype.kind not in "iuf":
        raise InputError(f"The {what} holds {values.dtype} values; bool, or integers 0 and 1, are needed.")
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"The {what} holds NaN or infinity; only 0 and 1 are allowed.", "Make it a bool mask first.")
    # the second test finds what lies between: fractions of a probability map
    if low < 0 or high > 1 or (values.dtype.kind == "f" and np.any((values != 0) & (values != 1))):
        if values.dtype.kind == "f":
            hint = "If it is a probability map, compare it with a threshold first, e.g. probability > 0.5."
        else:
            hint = "If it is a label map, pick one label first, e.g. labels == 1 (--label)."
        raise InputError(f"The {what} holds values from {low:g} to {high:g}; only 0 and 1 are allowed.", hint)
    return values.view(bool) if values.dtype.itemsize == 1 else values != 0


def as_pair(prediction: ArrayLike, reference: ArrayLike, dimensions: int | None = None) -> tuple[Mask, Mask]:
    """Prediction and reference as bool masks of one shape.

    Raises:
        InputError: see :func:`as_mask`.
        GridMismatchError: different shapes.
    """
    first = as_mask(prediction, "prediction", dimensions)
    second = as_mask(reference, "reference", dimensions)
    require_same_shape(first, second, "prediction", "reference")
    return first, second


def require_same_shape(first: NDArray[Any], second: NDArray[Any], name: str, other: str) -> None:
    """Raise GridMismatchError unless two arrays have the same shape."""
    if first.shape != second.shape:
        raise GridMismatchError(
            f"The {name} has the shape {first.shape}, but the {other} has {second.shape}; "
            "they must be on the same grid.",
            "Resample one to the other's grid (--resample).",
        )


def as_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    """Spacing (z, y, x) in mm as three positive floats.

    Raises:
        GeometryError: not three numbers, or one that is not positive and finite.
    """
    numbers = tuple(float(value) for value in np.ravel(np.asarray(spacing, dtype=float)))
    if len(numbers) != 3 or not all(np.isfinite(value) and value > 0 for value in numbers):
        raise GeometryError(f"The spacing is {numbers} mm; three positive numbers (z, y, x) are needed.")
    return numbers[0], numbers[1], numbers[2]


def binary_mask(given: NDArray[Any] | LabelVolume, geometry: Geometry, what: str) -> Mask:
    """A mask as bool (z, y, x) on a grid.

    Args:
        given: bool; integers, of which any label counts; or floats that are all 0 or 1. A label volume's own grid must
            be this one.
        geometry: the grid.
        what: its name in messages.

    Raises:
        GridMismatchError: another grid or shape.
        InputError: floats between 0 and 1, which are probabilities.
    """
    array = _on_grid(given, geometry, what)
    return as_mask(array, what) if array.dtype.kind in "bf" else array != 0


def integer_labels(given: NDArray[Any] | LabelVolume, geometry: Geometry, what: str) -> NDArray[Any]:
    """Labels as integers (z, y, x) on a grid; floats that are whole numbers are accepted.

    Raises:
        GridMismatchError: another grid or shape.
        InputError: values that are no labels.
    """
    array = _on_grid(given, geometry, what)
    if array.dtype.kind in "ui":
        return array
    if array.dtype == bool:
        return array.view(np.uint8)
    whole = array.astype(np.int32)
    if not np.array_equal(whole, array):
        raise InputError(f"The {what} holds values that are not whole numbers, so they are no labels.")
    return whole


def _on_grid(given: NDArray[Any] | LabelVolume, geometry: Geometry, what: str) -> NDArray[Any]:
    if isinstance(given, LabelVolume):
        given.geometry.require_same(geometry, what, "CT", "Resample it to the CT's grid first.")
        return given.array
    array = np.asarray(given)
    geometry.require_shape(array, what)
    return array


# Where a mask is


def bounding_box(mask: NDArray[Any], margin: float | Sequence[float] | NDArray[np.floating] = 0, least: int = 0) -> Box:
    """The smallest box around a mask.

    Args:
        mask: (z, y, x), bool or anything whose background is 0; any strides.
        margin: voxels to add on every side, or (z, y, x); a part of a voxel counts as one. Cut off at the border.
        least: side of the box of an empty mask: 1 where something has to be written of it.

    Returns:
        Slices (z, y, x) with start and stop; from 0 to ``least`` where the mask is empty.
    """
    # masks are mostly empty: which slices hold anything is found first, and only there is looked further
    z = np.flatnonzero([part.any() for part in mask])
    if not len(z):
        return slice(0, least), slice(0, least), slice(0, least)
    plane = np.logical_or.reduce(mask[z[0] : z[-1] + 1], axis=0)
    occupied = (z, np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0)))
    rims = np.broadcast_to(np.ceil(margin).astype(int), 3)
    first, second, third = (
        slice(max(int(axis[0]) - rim, 0), min(int(axis[-1]) + 1 + rim, size))
        for axis, rim, size in zip(occupied, rims.tolist(), mask.shape, strict=True)
    )
    return first, second, third


def surface_points(mask: Mask) -> NDArray[np.int64]:
    """The voxels that a 6-connected erosion takes away, (3, n) indices z, y, x in memory order.

    A surface voxel has a face neighbor outside the mask; what lies outside the array counts as outside the mask.
    """
    return SparseMask.of(mask).surface_points()


@dataclass(frozen=True, eq=False)
class SparseMask:
    """A 3-D mask as the few words of memory that are not empty, with quick ways to its voxels.

    Lesions fill a few percent of a CT.

    Attributes:
        dense: bool (z, y, x), contiguous, rows filled up with background to whole words; the caller's own array where
            that is so already. Flat indices are those of this array.
        grid: the words of ``dense``, flat.
        index: the words that hold a voxel of the mask, ascending.
        words: those words.
    """

    dense: Mask
    grid: NDArray[np.uint64]
    index: NDArray[np.int64]
    words: NDArray[np.uint64]

    @classmethod
    def of(cls, mask: Mask) -> SparseMask:
        """Find the words of a mask, bool (z, y, x), that are not empty."""
        depth, height, width = mask.shape
        if width % _VOXELS:
            dense = np.zeros((depth, height, width + -width % _VOXELS), dtype=bool)
            dense[:, :, :width] = mask
        else:
            dense = np.ascontiguousarray(mask)
        grid = dense.reshape(-1).view(_WORD)
        index = np.flatnonzero(grid != 0)
        return cls(dense, grid, index, grid.take(index))

    def __len__(self) -> int:
        return int(np.count_nonzero(self.words.view(bool)))

    def shared_with(self, other: SparseMask) -> int:
        """How many voxels this mask shares with another of the same shape."""
        return int(np.count_nonzero((self.words & other.grid.take(self.index)).view(bool)))

    def covered_by(self, other: SparseMask) -> NDArray[np.bool_]:
        """For each voxel of this mask, in memory order, whether it lies in another mask of the same shape."""
        return (self.words & other.grid.take(self.index)).view(bool)[self.words.view(bool)]

    def coordinates(self, flat: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flat indices as (3, n) indices z, y, x."""
        _, height, width = self.dense.shape
        rows = flat // width
        slices = rows // height
        return np.stack([slices, rows - slices * height, flat - rows * width])

    def surface(self) -> NDArray[np.int64]:
        """Flat indices, ascending, of the voxels that a 6-connected erosion takes away.

        A surface voxel has a face neighbor outside the mask; what lies outside the array counts as outside the mask.
        """
        _, height, width = self.dense.shape
        per_row = width // _VOXELS
        per_slice = per_row * height
        index = self.index
        row = index // per_row
        column = index - row * per_row
        y = row - row // height * height

        def neighbor(step: int, missing: NDArray[np.bool_]) -> NDArray[np.uint64]:
            words = self.grid.take(index + step, mode="clip")
            words[missing] = 0
            return words

        inside = (self.words << _BYTE) | (neighbor(-1, column == 0) >> _ALL_BUT_ONE)
        inside &= (self.words >> _BYTE) | (neighbor(1, column == per_row - 1) << _ALL_BUT_ONE)
        inside &= neighbor(-per_row, y == 0)
        inside &= neighbor(per_row, y == height - 1)
        inside &= neighbor(-per_slice, index < per_slice)
        inside &= neighbor(per_slice, index >= len(self.grid) - per_slice)
        border = self.words & ~inside
        found = np.flatnonzero(border)
        byte = np.flatnonzero(border[found].view(bool))
        return index[found[byte // _VOXELS]] * _VOXELS + byte % _VOXELS

    def surface_points(self) -> NDArray[np.int64]:
        """The surface as (3, n) voxel indices z, y, x."""
        return self.coordinates(self.surface())
