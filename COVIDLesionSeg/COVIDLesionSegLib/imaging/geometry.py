"""Where voxels lie in the patient, and the axial view of any orientation.

One :class:`Geometry` travels with every array from the reader to the writer. Index axes are (i, j, k) in ITK's order;
arrays are numpy (z, y, x), that is (k, j, i). Positions are in millimetres in the LPS frame (x to the patient's left, y
to posterior, z to superior) as in DICOM and ITK; :attr:`Geometry.ijk_to_ras` gives Slicer's frame.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import GeometryError, GridMismatchError

# LPS <-> RAS: the same matrix both ways.
_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Directions further than this from orthonormal are shear (gantry tilt), not rounding.
_ORTHOGONAL_TOLERANCE = 1e-3
# Two grids are the same when no corner lies further apart than this share of the smallest voxel side: float32
# headers and DICOM's decimal strings stay far below, a shift that moves a border does not.
SAME_GRID_TOLERANCE = 0.05
# A CT of 2048 x 2048 has 500 slices with so many: more is a damaged header, and would not fit into memory.
MOST_VOXELS = 1 << 31


@dataclass(frozen=True)
class Geometry:
    """The grid of a 3-D image.

    Attributes:
        size: voxels along (i, j, k).
        spacing: millimetres between voxel centres along (i, j, k).
        origin: LPS position of the center of voxel (0, 0, 0), mm.
        direction: 3 x 3, row-major as in ITK: column c is the LPS unit vector of index axis c.

    Raises:
        GeometryError: a size below 1, spacing that is not positive, or a direction that is singular or sheared.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        for name, kind, length in (
            ("size", int, 3),
            ("spacing", float, 3),
            ("origin", float, 3),
            ("direction", float, 9),
        ):
            numbers = np.asarray(getattr(self, name)).ravel()
            if name == "size" and not np.isfinite(numbers).all():
                raise GeometryError("The image's size holds NaN or infinity; export it again.")
            value = tuple(kind(v) for v in numbers)
            if len(value) != length:
                raise GeometryError(f"The image's {name} has {len(value)} numbers; {length} are needed.")
            object.__setattr__(self, name, value)
        if min(self.size) < 1:
            raise GeometryError(f"The image has the size {self.size}; every side needs at least one voxel.")
        if math.prod(self.size) > MOST_VOXELS:
            raise GeometryError(
                f"The image has the size {self.size}; at most {MOST_VOXELS} voxels are handled.",
                "The file is damaged, or has to be cut or resampled first.",
            )
        if not all(np.isfinite(self.spacing)) or min(self.spacing) <= 0:
            raise GeometryError(
                f"The image's voxel spacing is {_numbers(self.spacing)} mm; it must be positive on every axis.",
                "Export the image again with correct spacing.",
            )
        matrix = self.matrix
        if not np.isfinite(matrix).all() or not all(np.isfinite(self.origin)):
            raise GeometryError("The image's position or orientation holds NaN or infinity; export it again.")
        if np.abs(matrix.T @ matrix - np.eye(3)).max() > _ORTHOGONAL_TOLERANCE:
            raise GeometryError(
                f"The image's axes {np.round(matrix, 4).tolist()} are singular or sheared (gantry tilt?); "
                "a grid with three perpendicular axes is needed.",
                "Resample it to a regular grid first, e.g. with Slicer's acquisition-geometry regularization.",
            )

    @classmethod
    def from_sitk(cls, image: Any) -> Geometry:
        """Geometry of a 3-D SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_ijk_to_ras(cls, matrix: ArrayLike, size: tuple[int, int, int]) -> Geometry:
        """Geometry from Slicer's 4 x 4 IJK-to-RAS matrix and the size along (i, j, k)."""
        lps = _LPS_RAS @ np.asarray(matrix, dtype=float)
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            direction = lps[:3, :3] / spacing
        return cls(size, tuple(spacing), tuple(lps[:3, 3]), tuple(direction.ravel()))

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Direction as a 3 x 3 array; column c belongs to index axis c."""
        return np.asarray(self.direction, dtype=float).reshape(3, 3)

    @property
    def ijk_to_lps(self) -> NDArray[np.float64]:
        """4 x 4 matrix from voxel indices (i, j, k) to LPS millimetres."""
        affine = np.eye(4)
        affine[:3, :3] = self.matrix * np.asarray(self.spacing)
        affine[:3, 3] = self.origin
        return affine

    @property
    def ijk_to_ras(self) -> NDArray[np.float64]:
        """4 x 4 matrix from voxel indices (i, j, k) to RAS millimetres (Slicer's frame)."""
        return _LPS_RAS @ self.ijk_to_lps

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of an array on this grid."""
        return self.size[2], self.size[1], self.size[0]

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        """Spacing in array order (z, y, x), mm."""
        return self.spacing[2], self.spacing[1], self.spacing[0]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in milliliters."""
        return float(np.prod(self.spacing)) / 1000.0

    def cropped(self, box: tuple[slice, slice, slice]) -> Geometry:
        """Geometry of ``array[box]``; box is (z, y, x) slices with start and stop inside the grid, no step."""
        starts = np.array([box[2].start or 0, box[1].start or 0, box[0].start or 0])
        stops = np.array([n if s.stop is None else s.stop for s, n in zip(box[::-1], self.size, strict=True)])
        origin = self.ijk_to_lps @ np.append(starts, 1.0)
        return Geometry(tuple(stops - starts), self.spacing, tuple(origin[:3]), self.direction)

    def to_sitk(self, array: NDArray[Any]) -> Any:
        """SimpleITK image of an array (z, y, x) on this grid; bool becomes uint8."""
        import SimpleITK as sitk

        self.require_shape(array)
        image = sitk.GetImageFromArray(array.astype(np.uint8) if array.dtype == bool else array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def require_shape(self, array: NDArray[Any], what: str = "array") -> None:
        """Raise GridMismatchError unless the array's shape (z, y, x) is this grid's."""
        if array.shape != self.shape:
            raise GridMismatchError(
                f"The {what} has the shape {array.shape} (z, y, x), but the grid is {self.shape}; "
                "they must be on the same grid."
            )

    def difference(self, other: Geometry, tolerance: float = SAME_GRID_TOLERANCE) -> str:
        """What distinguishes two grids, as a phrase, or "" when they are the same.

        Args:
            other: the grid to compare with.
            tolerance: largest distance between corresponding corner voxels that still counts as the same grid, as a
                share of the smallest voxel side.
        """
        if self.size != other.size:
            return f"size {_numbers(self.size)} against {_numbers(other.size)} voxels (i, j, k)"
        corners = np.array(list(itertools.product(*[(0, n - 1) for n in self.size], [1]))).T
        distance = np.linalg.norm((self.ijk_to_lps @ corners - other.ijk_to_lps @ corners)[:3], axis=0).max()
        if distance <= tolerance * min(*self.spacing, *other.spacing):
            return ""
        parts = []
        if not np.allclose(self.spacing, other.spacing, rtol=1e-5, atol=0):
            parts.append(f"spacing {_numbers(self.spacing)} against {_numbers(other.spacing)} mm")
        shift = float(np.linalg.norm(np.subtract(self.origin, other.origin)))
        if shift > 1e-3:
            parts.append(f"origin {shift:.4g} mm apart")
        cosines = np.clip(np.sum(self.matrix * other.matrix, axis=0), -1, 1)
        angle = float(np.degrees(np.arccos(cosines)).max())
        if angle > 1e-2:
            parts.append(f"axes turned by up to {angle:.3g} degrees")
        return (", ".join(parts) or "position") + f"; corners lie up to {distance:.4g} mm apart"

    def require_same(self, other: Geometry, what: str, against: str, hint: str = "") -> None:
        """Raise GridMismatchError naming the difference, its size and the tolerance, unless both grids are the same.

        Args:
            other: the grid that counts.
            what: what lies on this grid, e.g. "lesion mask".
            against: what lies on the other one, e.g. "CT".
            hint: what the user can do about it.
        """
        difference = self.difference(other)
        if difference:
            allowed = SAME_GRID_TOLERANCE * min(*self.spacing, *other.spacing)
            raise GridMismatchError(
                f"The {what} is not on the grid of the {against}: {difference} "
                f"(allowed: {allowed:.3g} mm, {100 * SAME_GRID_TOLERANCE:g} % of the smallest voxel side).",
                hint,
            )

    def axial_view(self) -> AxialView:
        """The axial LPS view nearest to this grid: axes permuted and flipped, nothing resampled."""
        return AxialView(self)


class AxialView:
    """An image seen as axial slices: array axes (z, y, x) run to superior, posterior and left.

    Index axes are permuted and flipped so that each is the one nearest to its anatomical axis; the grid stays where it
    is, so ``restore(apply(array))`` is the array, voxel for voxel, whatever the orientation and however oblique.

    Attributes:
        source: the grid that arrays come from.
        geometry: the same voxels as the view counts them.
    """

    def __init__(self, source: Geometry) -> None:
        self.source = source
        matrix = source.matrix
        # the assignment of index axes to (L, P, S) with the largest sum of cosines; the first of equals, so that a
        # grid turned by exactly 45 degrees always gets the same view.
        order = max(
            itertools.permutations(range(3)), key=lambda p: round(sum(abs(matrix[a, p[a]]) for a in range(3)), 9)
        )
        left, posterior, superior = order
        flipped = [matrix[axis, order[axis]] < 0 for axis in range(3)]
        self._transpose = tuple(2 - order[axis] for axis in (2, 1, 0))
        self._flips = tuple(array_axis for array_axis, axis in enumerate((2, 1, 0)) if flipped[axis])

        corner = np.array([source.size[a] - 1 if flipped[order.index(a)] else 0 for a in range(3)])
        signs = np.where(flipped, -1.0, 1.0)
        self.geometry = Geometry(
            (source.size[left], source.size[posterior], source.size[superior]),
            (source.spacing[left], source.spacing[posterior], source.spacing[superior]),
            tuple((source.ijk_to_lps @ np.append(corner, 1.0))[:3]),
            tuple((matrix[:, order] * signs).ravel()),
        )

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array (source z, y, x) as axial slices; a numpy view, nothing is copied."""
        self.source.require_shape(array)
        return np.flip(array.transpose(self._transpose), self._flips)

    def restore(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array of axial slices back on the source's own grid; a numpy view, nothing is copied."""
        self.geometry.require_shape(array)
        return np.flip(array, self._flips).transpose(np.argsort(self._transpose))


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
