"""Masks as the few words of memory that are not empty: lesions fill a few percent of a CT."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._checks import Mask
from .overlap import ConfusionCounts

# Eight voxels of a row are one word; the voxel that comes first in memory is its lowest byte.
_WORD = np.dtype("<u8")
_VOXELS = _WORD.itemsize
_BYTE = np.uint64(8)
_ALL_BUT_ONE = np.uint64(56)


@dataclass(frozen=True, eq=False)
class SparseMask:
    """A 3-D mask, with quick ways to its voxels.

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

    def compared_with(self, reference: SparseMask, total: int) -> ConfusionCounts:
        """How many voxels this mask shares and does not share with a reference of the same shape.

        Args:
            reference: the other mask.
            total: voxels of the image.
        """
        both = int(np.count_nonzero((self.words & reference.grid.take(self.index)).view(bool)))
        return ConfusionCounts.from_sizes(len(self), len(reference), both, total)

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
