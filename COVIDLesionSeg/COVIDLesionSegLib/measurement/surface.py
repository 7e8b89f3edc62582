"""How far the surfaces of two masks lie apart: Hausdorff distance, its 95th percentile, average, surface Dice.

The surface of a mask is its voxels that a 6-connected erosion takes away; what lies outside the array counts as
background. A distance is that from the center of a surface voxel to the center of the nearest surface voxel of the
other mask, in mm. All measures take bool masks (z, y, x) of one shape (or integers 0 and 1) and the spacing (z, y, x)
in mm. Empty masks: NaN where both are empty, +inf where one is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ._checks import as_pair, as_spacing
from ._nearest import Distances, SurfacePair, percentile
from ._parallel import run_all
from ._sparse import SparseMask

# Boundary tolerance for COVID-19 lesions in Ma et al., Med Phys 48, 2021 (10.1002/mp.14676).
DEFAULT_TOLERANCE_MM = 3.0


def hausdorff_distance(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> float:
    """Hausdorff distance: the largest distance from either surface to the other.

    Args:
        prediction: bool mask (z, y, x).
        reference: bool mask (z, y, x).
        spacing: (z, y, x), mm.

    Returns:
        mm; NaN if both masks are empty, +inf if one is.

    Raises:
        GridMismatchError: different shapes.
        GeometryError: spacing that is not positive.
        InputError: values other than 0 and 1, or not three axes.
    """
    pair = _surfaces(prediction, reference, spacing)
    return pair if isinstance(pair, float) else max(pair.percentile(100.0))


def hausdorff_distance_95(
    prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float], variant: str = "directed"
) -> float:
    """95th percentile Hausdorff distance (HD95).

    Args:
        prediction: bool mask (z, y, x).
        reference: bool mask (z, y, x).
        spacing: (z, y, x), mm.
        variant: a name of :data:`HD95_VARIANTS`. "directed", this project's own: the larger of the two directed 95th
            percentiles, linearly interpolated between ranks. The others are for comparison with other packages.

    Returns:
        mm; NaN if both masks are empty, +inf if one is, whatever the variant.

    Raises:
        GridMismatchError: different shapes.
        GeometryError: spacing that is not positive.
        InputError: values other than 0 and 1, not three axes, or an unknown variant.

    Source: Wang et al., IEEE TMI 39, 2020, equations 10 and 11.
    """
    if variant not in HD95_VARIANTS:
        known = "; ".join(f"{name}: {what}" for name, what in HD95_VARIANTS.items())
        raise InputError(f"There is no HD95 variant {variant!r}; known are {known}.")
    pair = _surfaces(prediction, reference, spacing)
    if isinstance(pair, float):
        return pair
    # most distances need not be measured for it
    return max(pair.percentile(95.0)) if variant == "directed" else _FROM_DISTANCES[variant](*pair.distances())


def average_surface_distance(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> float:
    """Average symmetric surface distance: the mean of both directions' distances, pooled.

    Every surface voxel of either mask counts once, so the larger surface weighs more (as medpy's ``assd`` does).

    Args:
        prediction: bool mask (z, y, x).
        reference: bool mask (z, y, x).
        spacing: (z, y, x), mm.

    Returns:
        mm; NaN if both masks are empty, +inf if one is.

    Raises:
        GridMismatchError: different shapes.
        GeometryError: spacing that is not positive.
        InputError: values other than 0 and 1, or not three axes.
    """
    pair = _surfaces(prediction, reference, spacing)
    return pair if isinstance(pair, float) else average_distance(*pair.distances())


def normalized_surface_dice(
    prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float], tolerance: float = DEFAULT_TOLERANCE_MM
) -> float:
    """Normalized surface Dice: the share of both surfaces that lies within a tolerance of the other one.

    Args:
        prediction: bool mask (z, y, x).
        reference: bool mask (z, y, x).
        spacing: (z, y, x), mm.
        tolerance: mm; a distance equal to it counts as within. The default is that of the COVID-19 benchmark of Ma et
            al., Med Phys 48, 2021.

    Returns:
        0 to 1; 1 if both masks are empty, 0 if one is.

    Raises:
        GridMismatchError: different shapes.
        GeometryError: spacing that is not positive.
        InputError: values other than 0 and 1, not three axes, or a tolerance below 0.

    Source: Nikolov et al., J Med Internet Res 23, 2021; surface voxels are counted, as MONAI does, where they weigh
    surface elements by area.
    """
    tolerance = as_tolerance(tolerance)
    pair = _surfaces(prediction, reference, spacing)
    if isinstance(pair, float):
        return 1.0 if math.isnan(pair) else 0.0
    return surface_dice(*pair.distances(), tolerance)


def as_tolerance(tolerance: float) -> float:
    """A tolerance in mm as a float; InputError if it is negative or not finite."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"The tolerance is {tolerance} mm; it must be 0 or more.")
    return float(tolerance)


def average_distance(to_reference: Distances, to_prediction: Distances) -> float:
    """Mean of both directions' distances, pooled, mm."""
    return float((to_reference.sum() + to_prediction.sum()) / (len(to_reference) + len(to_prediction)))


def surface_dice(to_reference: Distances, to_prediction: Distances, tolerance: float) -> float:
    """Share of both directions' distances that are at most the tolerance."""
    # a distance on the lattice that equals the tolerance is a rounding error above or below it
    limit = tolerance * (1 + 1e-9)
    within = np.count_nonzero(to_reference <= limit) + np.count_nonzero(to_prediction <= limit)
    return within / (len(to_reference) + len(to_prediction))


def hd95_directed(to_reference: Distances, to_prediction: Distances) -> float:
    """HD95 from both directions' distances, mm."""
    return max(percentile(to_reference, 95.0), percentile(to_prediction, 95.0))


def _hd95_pooled(to_reference: Distances, to_prediction: Distances) -> float:
    return percentile(np.concatenate([to_reference, to_prediction]), 95.0)


def _hd95_pymic(to_reference: Distances, to_prediction: Distances) -> float:
    ranks = ((d, int(0.95 * len(d))) for d in (to_reference, to_prediction))
    return max(float(np.partition(distances, rank)[rank]) for distances, rank in ranks)


_FROM_DISTANCES: Mapping[str, Callable[[Distances, Distances], float]] = {
    "pooled": _hd95_pooled,
    "pymic": _hd95_pymic,
}

HD95_VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "directed": "the larger of both directed percentiles, interpolated (this project, the COPLE-Net paper, MONAI)",
        "pooled": "one percentile of both directions' distances together (medpy)",
        "pymic": "the larger of both directed values at rank int(0.95 n), not interpolated (PyMIC 0.6)",
    }
)


def _surfaces(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> SurfacePair | float:
    """Both surfaces, or the distance that stands for empty masks."""
    first, second = as_pair(prediction, reference, 3)
    sides = as_spacing(spacing)
    one, other = run_all([lambda: SparseMask.of(first), lambda: SparseMask.of(second)])
    if not len(one) or not len(other):
        return empty_distance(len(one), len(other))
    points = run_all([one.surface_points, other.surface_points])
    return SurfacePair(points[0], points[1], sides)


def empty_distance(prediction_voxels: int, reference_voxels: int) -> float:
    """What a distance is where a mask is empty: NaN if both are, +inf if one is."""
    return math.nan if not prediction_voxels and not reference_voxels else math.inf
