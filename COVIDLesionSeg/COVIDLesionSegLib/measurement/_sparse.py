"""Masks as sorted lists of voxels: lesions fill a few percent of a CT, so lists are shorter than grids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._checks import Mask


@dataclass(frozen=True, eq=False)
class SparseMask:
    """A 3-D mask and the list of its voxels.

    Attributes:
        dense: bool (z, y, x), contiguous; the caller's own array where that is contiguous already.
        voxels: flat indices into ``dense``, ascending.
    """

    dense: Mask
    voxels: NDArray[np.int64]

    @classmethod
    def of(cls, mask: Mask) -> SparseMask:
        """List the voxels of a mask, bool (z, y, x)."""
        dense = np.ascontiguousarray(mask)
        return cls(dense, np.flatnonzero(dense))

    def __len__(self) -> int:
        return len(self.voxels)

    def count_in(self, other: SparseMask) -> int:
        """How many voxels lie in another mask of the same shape."""
        return int(np.count_nonzero(other.dense.ravel().take(self.voxels)))

    def box(self) -> tuple[slice, slice, slice]:
        """Smallest (z, y, x) slices around the mask; it must not be empty."""
        return tuple(slice(int(c.min()), int(c.max()) + 1) for c in self.coordinates(self.voxels))  # type: ignore[return-value]

    def coordinates(self, flat: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flat indices as (3, n) indices z, y, x."""
        return coordinates(flat, self.dense.shape)

    def surface(self) -> NDArray[np.int64]:
        """Flat indices, ascending, of the voxels that a 6-connected erosion takes away.

        A surface voxel has a face neighbor outside the mask; what lies outside the array counts as outside the mask.
        """
        _, height, width = self.dense.shape
        flat = self.dense.ravel()
        voxels = self.voxels
        inside = np.zeros(len(voxels), dtype=bool)
        # neighbors along x are neighbors in the list
        follows = np.diff(voxels) == 1
        inside[1:-1] = follows[1:] & follows[:-1]
        for step in (-width, width, -width * height, width * height):
            inside &= flat.take(voxels + step, mode="clip")
        # flat neighbors wrap around at the faces of the array
        first, last = np.searchsorted(voxels, (height * width, flat.size - height * width))
        inside[:first] = False
        inside[last:] = False
        if self.dense[:, (0, -1)].any() or self.dense[:, :, 0].any() or self.dense[:, :, -1].any():
            _, y, x = self.coordinates(voxels)
            inside &= (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
        return voxels[~inside]

    def surface_points(self) -> NDArray[np.int64]:
        """The surface as (3, n) voxel indices z, y, x."""
        return self.coordinates(self.surface())


def coordinates(flat: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Flat indices into an array (z, y, x) as (3, n) indices z, y, x."""
    _, height, width = shape
    rows = flat // width
    slices = rows // height
    return np.stack([slices, rows - slices * height, flat - rows * width])
