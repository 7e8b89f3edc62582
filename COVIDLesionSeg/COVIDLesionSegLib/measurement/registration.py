"""Bringing the lungs of two CTs of one patient together, rigidly or affinely, with SimpleITK.

First the surfaces of the lungs are matched (mean squares of their signed distances), then the CTs inside and around
the lungs (correlation of HU), both on a grid of about 3 mm. The same studies give the same bits again: the seed is
fixed, one thread sums up, and mutual information, whose implementation does not repeat its last digits, is not used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, LungsNotFoundError
from ..imaging import Volume
from .catalog import catalog
from .surface import average_surface_distance

KINDS = ("rigid", "affine")
# fewer coarse voxels than this on an axis are too few for a registration
_LEAST_SIZE = 8
_DISTANCE_LIMIT_MM = 30.0
_HU_RANGE = (-1000.0, 200.0)
_SAMPLES = 0.3
# of the regular samples' offsets; 0 would mean the wall clock to SimpleITK
_SEED = 1
# how far from the lungs the CTs are compared, in coarse voxels
_MARGIN = 3
# of the local mean that HU are taken from to see the vessels, in coarse voxels
_STRUCTURE_SD = 3.0
# share of the lungs that has to be aerated at both times for it
_LEAST_AERATED = 0.1


@dataclass(frozen=True)
class Registration:
    """How a later CT lies relative to an earlier one.

    Attributes:
        kind: "rigid", "affine", or "identity" where both CTs are the same image.
        matrix: 4 x 4, from LPS millimetres of the later CT to those of the earlier one.
        dice: of the lung masks after registration, where both CTs have an image.
        surface_distance_mm: mean distance of the lungs' surfaces, both directions together, likewise.
        coverage_percent: the smaller share of one study's lungs that the other CT shows.
        correlation: of HU inside and around the lungs after registration, 0 to 1; None where nothing was registered.
        structure: correlation of the vessels' pattern in lung that is aerated at both times, -1 to 1; None where
            nothing was registered or hardly any lung is aerated at both times.
        rotation_deg: angle of the rotation.
        translation_mm: how far the center of the later lungs moves.
        volume_scale: what the volume of a piece of the later lungs is multiplied by.
    """

    kind: str
    matrix: NDArray[np.float64]
    dice: float
    surface_distance_mm: float
    coverage_percent: float
    correlation: float | None
    structure: float | None
    rotation_deg: float
    translation_mm: float
    volume_scale: float


def register_lungs(
    earlier: Volume,
    earlier_lungs: NDArray[np.bool_],
    later: Volume,
    later_lungs: NDArray[np.bool_],
    kind: str = "rigid",
) -> Registration:
    """Find the motion between two CTs of one patient.

    Args:
        earlier: the earlier CT.
        earlier_lungs: its lungs, bool (z, y, x) on its grid.
        later: the later CT.
        later_lungs: its lungs, bool (z, y, x) on its grid.
        kind: "rigid" (rotation and shift) or "affine" (with scaling and shear, which takes up some of a different
            breath).

    Raises:
        InputError: another kind, or studies that can't be compared; the message says why.
        LungsNotFoundError: a lung mask is empty, or nothing is left of it on the grid of 3 mm.
    """
    import SimpleITK as sitk

    if kind not in KINDS:
        raise InputError(f"The registration {kind!r} is not known; known are {', '.join(KINDS)}.")
    fixed, moving = _Study(later, later_lungs, "later"), _Study(earlier, earlier_lungs, "earlier")
    start = sitk.CenteredTransformInitializer(
        sitk.Cast(fixed.mask, sitk.sitkFloat32),
        sitk.Cast(moving.mask, sitk.sitkFloat32),
        sitk.Euler3DTransform(),
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    )
    surfaces = _method()
    surfaces.SetMetricAsMeanSquares()
    surfaces.SetShrinkFactorsPerLevel([2])
    surfaces.SetSmoothingSigmasPerLevel([0])
    surfaces.SetInitialTransform(start, inPlace=False)
    transform = _last(surfaces.Execute(fixed.distance, moving.distance))
    if kind == "affine":
        surfaces.SetInitialTransform(_affine(transform), inPlace=False)
        transform = _last(surfaces.Execute(fixed.distance, moving.distance))

    density = _method()
    density.SetMetricAsCorrelation()
    density.SetMetricSamplingStrategy(density.REGULAR)
    density.SetMetricSamplingPercentage(_SAMPLES, _SEED)
    density.SetMetricFixedMask(sitk.BinaryDilate(fixed.mask, [_MARGIN] * 3))
    density.SetShrinkFactorsPerLevel([2, 1])
    density.SetSmoothingSigmasPerLevel([0, 0])
    density.SetInitialTransform(transform, inPlace=False)
    transform = density.Execute(fixed.density, moving.density)
    correlation = math.sqrt(max(0.0, -density.GetMetricValue()))
    registration = _judged(kind, _matrix(transform), fixed, moving, correlation)
    _refuse_bad(registration, fixed, moving)
    return registration


def unlike(found: Registration) -> str:
    """Why two registered chests can hardly be of one patient, as a clause; "" where nothing speaks against it.

    The lungs' shape and HU as a whole say little: those of another patient fit as well as one's own after a deep breath
    or with new disease. What tells people apart is the pattern of their vessels.
    """
    if found.structure is None or found.structure >= catalog()["longitudinal"]["least_structure_correlation"]:
        return ""
    return (
        f"after registration the pattern of the vessels in their lungs agrees with a correlation of "
        f"{found.structure:.2f} ({catalog()['longitudinal']['least_structure_correlation']} is needed)"
    )


def same_image(one: Volume, other: Volume) -> bool:
    """Whether two CTs have the same voxels on the same grid."""
    return not one.geometry.difference(other.geometry) and np.array_equal(one.array, other.array)


def identity(volume: Volume, earlier_lungs: NDArray[np.bool_], later_lungs: NDArray[np.bool_]) -> Registration:
    """The registration of a CT with itself; the two lung masks may differ."""
    fixed, moving = _Study(volume, later_lungs, "later"), _Study(volume, earlier_lungs, "earlier")
    return _judged("identity", np.eye(4), fixed, moving, None)


class _Study:
    """One CT on the coarse grid, as SimpleITK images."""

    def __init__(self, volume: Volume, lungs: NDArray[np.bool_], name: str) -> None:
        import SimpleITK as sitk

        if not lungs.any():
            raise LungsNotFoundError(
                f"The {name} study has no lungs in its lung mask; two time points are compared after registering "
                "the lungs, so both studies need them."
            )
        self.name = name
        self.lungs_ml = np.count_nonzero(lungs) * volume.geometry.voxel_ml
        factors = [max(1, round(catalog()["longitudinal"]["grid_mm"] / s)) for s in volume.geometry.spacing]
        coarse = [n // f for n, f in zip(volume.geometry.size, factors, strict=True)]
        if min(coarse) < _LEAST_SIZE:
            raise InputError(
                f"The {name} CT has {volume.geometry.size} voxels of "
                f"{tuple(round(s, 2) for s in volume.geometry.spacing)} mm, too few to register the lungs "
                f"({coarse} at 3 mm; {_LEAST_SIZE} a side are needed)."
            )
        # shrinking averages in the type it is given: 200 leaves room to ask for more than half
        filled = sitk.BinShrink(volume.geometry.to_sitk(np.where(lungs, np.uint8(200), np.uint8(0))), factors)
        self.mask = sitk.Cast(filled > 100, sitk.sitkUInt8)
        if not sitk.GetArrayViewFromImage(self.mask).any():
            raise LungsNotFoundError(
                f"The lung mask of the {name} study is too thin or small to register ({self.lungs_ml:.1f} mL, of which "
                "nothing is left on a grid of 3 mm); two time points need a mask of the whole lungs each."
            )
        distance = sitk.SignedMaurerDistanceMap(
            self.mask, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
        )
        self.distance = sitk.Clamp(distance, sitk.sitkFloat32, -_DISTANCE_LIMIT_MM, _DISTANCE_LIMIT_MM)
        hu = sitk.BinShrink(volume.geometry.to_sitk(volume.array), factors)
        self.density = sitk.Clamp(hu, sitk.sitkFloat32, *_HU_RANGE)

    def points(self, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """LPS positions of mask voxels, one row each."""
        index = np.argwhere(mask)[:, ::-1]
        matrix = np.array(self.mask.GetDirection()).reshape(3, 3) * np.array(self.mask.GetSpacing())
        return index @ matrix.T + np.array(self.mask.GetOrigin())

    def shows(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which LPS positions lie inside the image."""
        matrix = np.array(self.mask.GetDirection()).reshape(3, 3) * np.array(self.mask.GetSpacing())
        index = (points - np.array(self.mask.GetOrigin())) @ np.linalg.inv(matrix).T
        return ((index >= -0.5) & (index <= np.array(self.mask.GetSize()) - 0.5)).all(axis=1)


def _method() -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.01, 60, 0.5, 1e-5)
    method.SetOptimizerScalesFromPhysicalShift()
    return method


def _last(transform: Any) -> Any:
    """The transform that was optimized, as its own kind, from the composite that SimpleITK wraps it in."""
    import SimpleITK as sitk

    if transform.GetName() == "CompositeTransform":
        transform = sitk.CompositeTransform(transform).GetBackTransform()
    return transform.Downcast()


def _affine(rigid: Any) -> Any:
    import SimpleITK as sitk

    affine = sitk.AffineTransform(3)
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetCenter(rigid.GetCenter())
    affine.SetTranslation(rigid.GetTranslation())
    return affine


def _matrix(transform: Any) -> NDArray[np.float64]:
    matrix = np.eye(4)
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    for axis in range(3):
        unit = [0.0, 0.0, 0.0]
        unit[axis] = 1.0
        matrix[:3, axis] = np.array(transform.TransformPoint(unit)) - origin
    matrix[:3, 3] = origin
    return matrix


def moved(matrix: NDArray[Any], points: NDArray[Any]) -> NDArray[np.float64]:
    """Points (one row each) under a 4 x 4 matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _judged(
    kind: str, matrix: NDArray[np.float64], fixed: _Study, moving: _Study, correlation: float | None
) -> Registration:
    import SimpleITK as sitk

    later = sitk.GetArrayViewFromImage(fixed.mask) > 0
    transform = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    arrived = sitk.Resample(moving.mask, fixed.mask, transform, sitk.sitkNearestNeighbor, 0)
    earlier = sitk.GetArrayViewFromImage(arrived) > 0

    back = np.linalg.inv(matrix)
    inside_later = fixed.points(later)
    earlier_voxels = sitk.GetArrayViewFromImage(moving.mask) > 0
    shown = moving.shows(moved(matrix, inside_later))
    coverage = min(shown.mean(), fixed.shows(moved(back, moving.points(earlier_voxels))).mean())
    common = later.copy()
    common[later] = shown
    total = np.count_nonzero(common) + np.count_nonzero(earlier)
    dice = 2 * np.count_nonzero(common & earlier) / total if total else 0.0
    structure = None if correlation is None else _structure(fixed, moving, transform, common & earlier)

    scale = abs(float(np.linalg.det(matrix[:3, :3])))
    left, _, right = np.linalg.svd(matrix[:3, :3])
    cosine = np.clip((np.trace(left @ right) - 1) / 2, -1, 1)
    center = inside_later.mean(axis=0)
    return Registration(
        kind,
        matrix,
        float(dice),
        average_surface_distance(common, earlier, fixed.mask.GetSpacing()[::-1]),
        100.0 * float(coverage),
        correlation,
        structure,
        float(np.degrees(np.arccos(cosine))),
        float(np.linalg.norm(moved(matrix, center) - center)),
        scale,
    )


def _structure(fixed: _Study, moving: _Study, transform: Any, lungs: NDArray[np.bool_]) -> float | None:
    """Correlation of HU less their local mean in the lungs that both show, where that mean is of aerated lung."""
    import SimpleITK as sitk
    from scipy import ndimage

    inside = ndimage.binary_erosion(lungs).astype(np.float32)
    arrived = sitk.Resample(moving.density, fixed.density, transform, sitk.sitkLinear, _HU_RANGE[0])
    weight = ndimage.gaussian_filter(inside, _STRUCTURE_SD)
    aerated, details = inside > 0, []
    for image in (fixed.density, arrived):
        hu = sitk.GetArrayViewFromImage(image)
        mean = ndimage.gaussian_filter(hu * inside, _STRUCTURE_SD) / np.maximum(weight, 1e-6)
        aerated &= mean < catalog()["longitudinal"]["aerated_below_hu"]
        details.append(hu - mean)
    if np.count_nonzero(aerated) < max(_LEAST_AERATED * np.count_nonzero(inside), 2):
        return None
    one, other = (detail[aerated] - detail[aerated].mean() for detail in details)
    spread = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / spread if spread else None


def _refuse_bad(found: Registration, fixed: _Study, moving: _Study) -> None:
    limits = catalog()["longitudinal"]
    advice = "Check that both are of one patient, show the whole lungs, and have correct lung masks."
    if found.coverage_percent < limits["least_coverage_percent"]:
        raise InputError(
            f"The two studies can't be compared: only {found.coverage_percent:.0f} % of the lungs are imaged at both "
            f"times ({limits['least_coverage_percent']} % are needed).",
            advice,
        )
    if found.dice < limits["least_lung_dice"]:
        raise InputError(
            f"The two studies can't be compared: after {found.kind} registration the lungs agree with a Dice of "
            f"{found.dice:.2f} ({limits['least_lung_dice']} is needed); the lung volumes are {moving.lungs_ml:.0f} mL "
            f"earlier and {fixed.lungs_ml:.0f} mL later.",
            advice + (" If the depth of breath differs, try an affine registration." if found.kind == "rigid" else ""),
        )
    stretch = np.linalg.svd(found.matrix[:3, :3], compute_uv=False)
    if max(stretch.max(), 1 / stretch.min()) > limits["largest_scale"]:
        raise InputError(
            f"The two studies can't be compared: the affine registration had to stretch the lungs by a factor of "
            f"{max(stretch.max(), 1 / stretch.min()):.2f} ({limits['largest_scale']} is allowed).",
            advice,
        )
