"""Evaluation that follows an edit: what did not change since the last time is not measured again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ._checks import Mask, as_mask, as_pair
from ._nearest import Distances, SurfacePair, SurfaceTree
from ._parallel import run_all
from ._sparse import SparseMask, coordinates
from .evaluation import Settings, Value
from .lesions import LabelledMask, LesionDetection, compare_lesions
from .overlap import ConfusionCounts
from .surface import DEFAULT_TOLERANCE_MM

Box = tuple[slice, slice, slice]


class LiveEvaluation:
    """A reference that changing predictions are compared with, for a table that follows every brush stroke.

    The numbers are those of :func:`.evaluation.evaluate`. An update measures the slices that changed and the distances
    that the change may have moved; the rest is remembered.

    Args:
        reference: bool mask (z, y, x); it must not change while this object is used.
        spacing: (z, y, x), mm.
        tolerance: mm, of the normalized surface Dice.
        minimum_overlap: share of a lesion that must be covered for it to count as found.

    Raises:
        GeometryError: spacing that is not positive.
        InputError: values other than 0 and 1, not three axes, a tolerance or share that is not allowed.

    Example::

        live = LiveEvaluation(reference, spacing)
        table = live.update(prediction)
        prediction[40:43, 100:120, 200:220] = True
        table = live.update(prediction, (slice(40, 43), slice(100, 120), slice(200, 220)))
    """

    def __init__(
        self,
        reference: ArrayLike,
        spacing: Sequence[float],
        *,
        tolerance: float = DEFAULT_TOLERANCE_MM,
        minimum_overlap: float = 0.0,
    ) -> None:
        self._settings = Settings.checked(spacing, tolerance, minimum_overlap)
        mask = np.ascontiguousarray(as_mask(reference, "reference", 3))
        self._reference = mask
        self._lesions = LabelledMask.of(mask)
        self._reference_sizes = _slice_sizes(mask)
        self._reference_points = SparseMask.of(mask).surface_points()
        self._reference_tree: SurfaceTree | None = None
        # of the prediction: voxels a slice, alone and in the reference; surface (flat, ascending); distances
        self._sizes = np.zeros((2, len(mask)), dtype=np.int64)
        self._surface = np.zeros(0, dtype=np.int64)
        self._to_reference: Distances = np.zeros(0)
        self._to_prediction: Distances = np.zeros(0)
        self._known = False

    def update(self, prediction: ArrayLike, changed_box: Box | None = None) -> dict[str, Value]:
        """Compare a prediction with the reference.

        Args:
            prediction: bool mask (z, y, x), or integers 0 and 1: the whole mask as it is now.
            changed_box: slices (z, y, x) that hold every voxel that changed since the last update; None if anything
                may have changed. A box that leaves out a change gives wrong numbers.

        Returns:
            What :func:`.evaluation.evaluate` returns.

        Raises:
            GridMismatchError: another shape than the reference's.
            InputError: values other than 0 and 1, or a box that is no three slices.
        """
        mask, _ = as_pair(prediction, self._reference, 3)
        mask = np.ascontiguousarray(mask)
        slices = self._changed_slices(changed_box)
        self._count(mask, slices)
        size, both = self._sizes.sum(axis=1).tolist()
        counts = ConfusionCounts.from_sizes(size, int(self._reference_sizes.sum()), both, mask.size)

        def distances() -> tuple[Distances, Distances] | None:
            if counts.status != "ok":
                return None
            if self._known:
                self._move_surface(mask, slices)
            else:
                self._measure_surface(mask)
            return self._to_reference, self._to_prediction

        def lesions() -> LesionDetection:
            settings = self._settings
            labelled = LabelledMask.of(mask)
            return compare_lesions(
                labelled, self._lesions, mask, self._reference, settings.voxel_ml, settings.minimum_overlap
            )

        found = run_all([distances, lesions])
        self._known = found[0] is not None
        return self._settings.values(counts, *found)

    def _changed_slices(self, box: Box | None) -> slice:
        depth = len(self._reference)
        if box is None or not self._known:
            return slice(0, depth)
        if len(box) != 3 or not all(isinstance(side, slice) for side in box):
            raise InputError(f"The changed box is {box}; three slices (z, y, x) are needed.")
        start, stop, _ = box[0].indices(depth)
        return slice(start, max(start, stop))

    def _count(self, mask: Mask, slices: slice) -> None:
        for z in range(slices.start, slices.stop):
            size = np.count_nonzero(mask[z])
            both = np.count_nonzero(mask[z] & self._reference[z]) if size and self._reference_sizes[z] else 0
            self._sizes[:, z] = size, both

    def _measure_surface(self, mask: Mask) -> None:
        one = SparseMask.of(mask)
        self._surface = one.surface()
        pair = SurfacePair(one.coordinates(self._surface), self._reference_points, self._settings.spacing)
        self._to_reference, self._to_prediction = pair.distances()

    def _move_surface(self, mask: Mask, slices: slice) -> None:
        depth, height, width = mask.shape
        if 2 * (slices.stop - slices.start) > depth:
            self._measure_surface(mask)
            return
        # an edit moves the surface in its own slices and their neighbors, which one more slice on either side decides
        first, last = max(slices.start - 1, 0), min(slices.stop + 1, depth)
        outer = max(first - 1, 0)
        part = SparseMask.of(mask[outer : min(last + 1, depth)])
        found = part.surface() + outer * height * width
        low, high = first * height * width, last * height * width
        new = found[(found >= low) & (found < high)]
        start, stop = np.searchsorted(self._surface, (low, high))
        old = self._surface[start:stop]

        kept = np.isin(new, old, assume_unique=True)
        distances = np.empty(len(new))
        distances[kept] = self._to_reference[start:stop][np.isin(old, new, assume_unique=True)]
        moved = coordinates(np.setxor1d(new, old, assume_unique=True), mask.shape)
        added = coordinates(new[~kept], mask.shape)
        if added.size:
            if self._reference_tree is None:
                self._reference_tree = SurfaceTree(self._reference_points, np.asarray(self._settings.spacing))
            distances[~kept] = self._reference_tree.distances(added)
        self._surface = np.concatenate([self._surface[:start], new, self._surface[stop:]])
        self._to_reference = np.concatenate([self._to_reference[:start], distances, self._to_reference[stop:]])
        if moved.size:
            self._measure_again(moved, mask.shape)

    def _measure_again(self, moved: NDArray[np.int64], shape: tuple[int, ...]) -> None:
        """Distances of those reference points whose nearest point of the prediction may have come or gone."""
        low, high = moved.min(axis=1)[:, None], moved.max(axis=1)[:, None]
        points, spacing = self._reference_points, np.asarray(self._settings.spacing)[:, None]
        outside = np.maximum(np.maximum(low - points, points - high), 0) * spacing
        affected = np.flatnonzero((outside**2).sum(axis=0) <= (self._to_prediction * (1 + 1e-9)) ** 2)
        if len(affected):
            tree = SurfaceTree(coordinates(self._surface, shape), spacing.ravel())
            self._to_prediction[affected] = tree.distances(points[:, affected])


def _slice_sizes(mask: Mask) -> NDArray[np.int64]:
    return np.array([np.count_nonzero(part) for part in mask], dtype=np.int64)
