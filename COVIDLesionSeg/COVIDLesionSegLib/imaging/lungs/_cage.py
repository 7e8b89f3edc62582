"""The rib cage as a hull: what a chest still shows where its lungs hold no air.

Works on the reduced grid. In every slice the ribs are seen from an axis in front of the spine, and the innermost bone
in each direction, taken over the height of a rib and its gap, is the chest wall: the pleura lies one or two millimeters
inside of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..masks import Box, Mask
from ._morphology import Spacing

# Ribs and vertebrae averaged over a voxel of 2 mm are brighter than this, HU; soft tissue without contrast is not.
_BONE = 130.0


@dataclass(frozen=True)
class Polar:
    """Polar coordinates in every slice about an axis between the lungs: they tell which way the chest wall is.

    Attributes:
        y: (z,) of the axis, mm from the grid's first row.
        x: (z,) of the axis, mm from the grid's first column.
        spacing: (z, y, x) mm.
        bins: how many directions are told apart.
        seam: where the first direction begins and the last one ends: at the "front", and the patient's right comes
            first, or at the patient's "right", and the front comes first.
    """

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    spacing: Spacing
    bins: int
    seam: Literal["front", "right"]

    def cropped(self, box: Box) -> Self:
        """The part inside the box, positions counted from its corner."""
        z, y, x = box
        return replace(self, y=self.y[z] - y.start * self.spacing[1], x=self.x[z] - x.start * self.spacing[2])

    def coordinates(
        self, z: NDArray[np.intp] | int, y: NDArray[np.intp], x: NDArray[np.intp]
    ) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Radius (mm) and direction (0 to bins - 1) of voxels given by their indices."""
        behind = (y * self.spacing[1] - self.y[z]).astype(np.float32)
        left = (x * self.spacing[2] - self.x[z]).astype(np.float32)
        angle = np.arctan2(left, behind) if self.seam == "front" else np.arctan2(behind, left)
        turn = (angle + np.pi) / (2 * np.pi)
        return np.hypot(behind, left), (turn * self.bins).astype(np.intp) % self.bins

    def outermost(self, mask: Mask) -> NDArray[np.float32]:
        """Radius of the mask's outermost voxel by (z, direction), mm; 0 where there is none."""
        places = np.nonzero(mask)
        radius, direction = self.coordinates(*places)
        outermost = np.zeros((len(mask), self.bins), np.float32)
        np.maximum.at(outermost, (places[0], direction), radius)
        return outermost


@dataclass(frozen=True)
class RibCage(Polar):
    """The inner surface of the ribs about an axis in front of the spine; ``x`` is the spine's, too.

    Attributes:
        wall: float32 (z, bins) radius of the ribs' inner surface, mm; infinite where no bone is seen.
    """

    wall: NDArray[np.float32]

    @classmethod
    def seen(cls, hu: NDArray[np.float32], spacing: Spacing) -> RibCage | None:
        """The rib cage of a CT, float32 (z, y, x) of the axial view, or None where no vertebral column is seen."""
        bone = hu > _BONE
        axis = _spine(bone, spacing)
        if axis is None:
            return None
        # so far in front of the middle of the vertebrae, the axis runs between both lungs at every height
        polar = Polar(axis[0] - 45.0, axis[1], spacing, 120, "front")
        places = np.nonzero(bone)
        radius, direction = polar.coordinates(*places)
        outer = radius > 30.0  # the spine is no wall
        nearest = np.full((len(hu), polar.bins), np.inf, np.float32)
        np.minimum.at(nearest, (places[0][outer], direction[outer]), radius[outer])
        return cls(polar.y, polar.x, spacing, polar.bins, polar.seam, _inner_surface(nearest, spacing[0]))

    def cropped(self, box: Box) -> Self:
        """The part inside the box, positions counted from its corner."""
        return replace(super().cropped(box), wall=self.wall[box[0]])

    def directions(self, side: int) -> Mask:
        """(bins,) Directions to the side wall and the back of the right (1) or left (2) half of the chest."""
        angle = ((np.arange(self.bins) + 0.5) / self.bins * 360 - 180) * (-1 if side == 1 else 1)
        return (angle > 25.0) & (angle < 110.0)  # degrees from the back, beyond the vertebrae

    def shares(self, mask: Mask) -> NDArray[np.float64]:
        """Which share of a mask, not empty, lies to the right and to the left of the spine."""
        z, _, x = np.nonzero(mask)
        right = float(np.mean(x * self.spacing[2] < self.x[z]))
        return np.array([right, 1.0 - right])

    def area(self, side: int) -> NDArray[np.float64]:
        """(z,) area inside the ribs of the right (1) or left (2) half, mm2.

        Directions without bone count as the others' mean does; NaN where most have none.
        """
        half = self.bins // 2
        wall = self.wall[:, :half] if side == 1 else self.wall[:, half:]
        known = np.isfinite(wall)
        square = np.where(known, wall, 0.0).astype(float) ** 2
        seen = known.sum(axis=1)
        mean = np.divide(square.sum(axis=1), seen, out=np.full(len(seen), np.nan), where=seen > half // 2)
        return np.pi / 2 * mean


def _spine(bone: Mask, spacing: Spacing) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Row and column of the vertebral column by slice, mm: ribs slope, it bends slowly and is bone in many slices."""
    from scipy import ndimage

    def smoothed(image: NDArray[np.float32]) -> NDArray[np.float32]:
        for axis in (1, 2):
            width = max(1, round(20.0 / spacing[axis]))
            image = ndimage.uniform_filter1d(image, width, axis=axis - 3, mode="constant")
        return image

    whole = smoothed(bone.mean(axis=0, dtype=np.float32))
    if whole.max() < 0.15:
        return None
    row, column = (int(i) for i in np.unravel_index(whole.argmax(), whole.shape))
    reach = [round(bend / s) for bend, s in zip((24.0, 40.0, 24.0), spacing, strict=True)]
    low_row, low_column = max(row - reach[1], 0), max(column - reach[2], 0)
    part = bone[:, low_row : row + reach[1] + 1, low_column : column + reach[2] + 1].astype(np.float32)
    height = min(2 * reach[0] + 1, len(bone))
    part = smoothed(ndimage.uniform_filter1d(part, height, axis=0, mode="nearest"))
    rows, columns = np.unravel_index(part.reshape(len(part), -1).argmax(axis=1), part.shape[1:])
    y, x = ((low_row + rows) * spacing[1], (low_column + columns) * spacing[2])
    return (
        np.asarray(ndimage.median_filter(y, height, mode="nearest"), float),
        np.asarray(ndimage.median_filter(x, height, mode="nearest"), float),
    )


def _inner_surface(nearest: NDArray[np.float32], slice_spacing: float) -> NDArray[np.float32]:
    """The 30th percentile over the window of a rib and its gap: bridges the gaps, leaves single inner spots out."""
    count = len(nearest)
    reach = max(1, round(13.0 / slice_spacing))
    padded = np.pad(nearest, ((reach, reach), (0, 0)), constant_values=np.inf)
    window = np.stack(
        [
            np.roll(padded[start : start + count], turn, axis=1)
            for start in range(2 * reach + 1)
            for turn in range(-2, 3)
        ]
    )
    window.sort(axis=0)
    known = np.isfinite(window).sum(axis=0)
    surface = np.take_along_axis(window, (known * 30 // 100)[None], axis=0)[0]
    return np.where(known >= 3, surface, np.inf).astype(np.float32)
