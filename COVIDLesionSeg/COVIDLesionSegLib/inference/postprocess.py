"""What is done to the probability and the mask after the network, as data; nothing unless the model's card or a user
asks for it, since neither paper has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GridMismatchError, InputError
from ..imaging.masks import bounding_box, surface_points
from ..measurement.lesions import find_components
from ..models.card import LARGEST_SMOOTHING_MM, ModelCard

# What a user may leave to the model's card.
_FROM_CARD = ("threshold", "keep_inside_lungs_mm", "smooth_across_slices_mm")


@dataclass(frozen=True)
class PostProcessing:
    """Settings of the steps after the network, in the order in which they are done.

    Attributes:
        smooth_across_slices_mm: standard deviation of the Gaussian along the slices' axis that the probability is
            smoothed with before the threshold, 0 to 20 mm; 0 smooths nothing. None takes the model card's.
        threshold: lesion where the probability is strictly above this, in (0, 1); None takes the model card's.
        keep_inside_lungs_mm: lesion outside the lungs that lies further than this from lesion inside them (distance
            between voxel centres, mm) is dropped: a mark beside the lungs alone is stomach or bowel. 0 keeps lesion
            inside the lungs only, a distance longer than the scan keeps all. None takes the model card's, which keeps
            all where it names none.
        minimum_volume_ml: lesions (26-connected components) smaller than this many milliliters are dropped; 0 keeps
            all. What the lungs have cut off is counted anew.

    Raises:
        InputError: a value that is not allowed.
    """

    threshold: float | None = None
    minimum_volume_ml: float = 0.0
    keep_inside_lungs_mm: float | None = None
    smooth_across_slices_mm: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not (_is_number(self.threshold) and 0 < self.threshold < 1):
            raise InputError(f"The threshold is {self.threshold!r}; it must be a probability between 0 and 1.")
        if not (_is_number(self.minimum_volume_ml) and self.minimum_volume_ml >= 0):
            raise InputError(f"The minimum volume is {self.minimum_volume_ml!r}; it must be 0 mL or more.")
        distance = self.keep_inside_lungs_mm
        if distance is not None and not (_is_number(distance) and distance >= 0):
            raise InputError(
                f"The distance to keep around the lungs is {distance!r}; it must be 0 mm or more, or none."
            )
        deviation = self.smooth_across_slices_mm
        if deviation is not None and not (_is_number(deviation) and 0 <= deviation <= LARGEST_SMOOTHING_MM):
            raise InputError(
                f"The smoothing across slices is {deviation!r}; it must be 0 to {LARGEST_SMOOTHING_MM:g} mm, or none."
            )

    def completed(self, card: ModelCard) -> PostProcessing:
        """These settings with what they leave open taken from a model's card."""
        left = {name: getattr(card, name) for name in _FROM_CARD if getattr(self, name) is None}
        return replace(self, **left)

    def to_json(self) -> dict[str, Any]:
        """The settings as an object that ``json.dumps`` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PostProcessing:
        """Settings from what :meth:`to_json` gave; absent ones keep their default.

        Raises:
            InputError: not an object, an unknown setting, or a value that is not allowed.
        """
        if not isinstance(value, Mapping):
            raise InputError(f"The post-processing is {value!r}; an object of settings is needed.")
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise InputError(f"Unknown post-processing {', '.join(unknown)}; there are {', '.join(known)}.")
        return cls(**value)


def smooth_across_slices(probability: NDArray[np.float32], slice_spacing: float, deviation_mm: float) -> None:
    """Smooth a probability along the slices' axis with a Gaussian, in place.

    A network that answers slice by slice marks spots that no neighboring slice has; these become fainter. Beyond the
    first and last slice the map goes on as it is there, so that one slice alone stays as it is.

    Args:
        probability: float32 (z, y, x) in [0, 1], of the axial view; any strides.
        slice_spacing: between slices, mm.
        deviation_mm: standard deviation of the Gaussian, mm; it is cut off at four of them.
    """
    from scipy.ndimage import gaussian_filter1d

    gaussian_filter1d(probability, deviation_mm / slice_spacing, axis=0, output=probability, mode="nearest")


def apply_postprocessing(
    mask: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    settings: PostProcessing,
    lungs: NDArray[Any] | None = None,
) -> NDArray[np.bool_]:
    """Drop what the settings say from a mask; the threshold was applied before.

    Args:
        mask: bool (z, y, x), lesion.
        spacing: millimetres between voxel centres along (z, y, x).
        settings: what to do.
        lungs: (z, y, x) on the same grid, lung where not 0; needed for ``keep_inside_lungs_mm``.

    Returns:
        bool (z, y, x), part of the mask; the mask itself (not a copy) where nothing is to be done.

    Raises:
        InputError: lungs are needed and not given.
        GridMismatchError: lungs of another shape.
    """
    reach = settings.keep_inside_lungs_mm
    if reach is not None and reach <= math.hypot(*np.multiply(mask.shape, spacing)):
        if lungs is None:
            raise InputError("To keep lesions inside the lungs a lung mask is needed.")
        if lungs.shape != mask.shape:
            raise GridMismatchError(f"The lungs have the shape {lungs.shape} and the mask {mask.shape} (z, y, x).")
        mask = _near_lesion_in_lungs(mask, lungs != 0, spacing, reach)
    if settings.minimum_volume_ml > 0:
        mask = _large_components(mask, math.prod(spacing) / 1000, settings.minimum_volume_ml)
    return mask


def _near_lesion_in_lungs(
    mask: NDArray[np.bool_], lungs: NDArray[np.bool_], spacing: tuple[float, float, float], distance_mm: float
) -> NDArray[np.bool_]:
    from scipy.spatial import KDTree

    beside = mask & ~lungs
    outside = np.argwhere(beside)
    kept = mask & lungs
    if distance_mm == 0 or not len(outside):
        return kept
    # only voxels that can be near enough, and of those only the surface: a few megabytes where a distance map of the
    # whole volume takes gigabytes
    box = bounding_box(beside, distance_mm / np.asarray(spacing) + 1)
    surface = surface_points(kept[box]).T + [side.start for side in box]
    if len(surface):
        distances, _ = KDTree(surface * spacing).query(outside * np.asarray(spacing))
        # spacings are decimal numbers that binary ones only approach: a distance of exactly d counts as d
        kept[tuple(outside[distances <= distance_mm * (1 + 1e-9)].T)] = True
    return kept


def _large_components(mask: NDArray[np.bool_], voxel_ml: float, minimum_ml: float) -> NDArray[np.bool_]:
    found = find_components(mask)
    kept = np.zeros_like(mask)
    kept[mask] = (found.sizes * voxel_ml >= minimum_ml * (1 - 1e-9))[found.voxel_labels]
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
