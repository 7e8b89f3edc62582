"""Evaluation that follows an edit: what did not change since the last time is not measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..cores import run_all
from ..errors import InputError
from ..imaging.masks import Box, SparseMask, as_mask, as_pair
from .evaluation import Settings, Value
from .lesions import LabeledMask, LesionDetection, compare_lesions
from .overlap import ConfusionCounts
from .surface import DEFAULT_TOLERANCE_MM, Distances, SurfacePair, SurfaceTree, lengths


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
        self._given = as_mask(reference, "reference", 3)
        self._reference = SparseMask.of(self._given)
        self._reference_points = self._reference.surface_points()
        self._lesions = LabeledMask.of(self._reference)
        self._reference_tree: SurfaceTree | None = None
        # of the prediction: its surface (flat indices, ascending), and both directions' distances
        self._surface: NDArray[np.int64] | None = None
        self._distances: tuple[Distances, Distances] | None = None

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
        dense, _ = as_pair(prediction, self._given, 3)
        slices = _slices(changed_box, len(dense))
        mask = SparseMask.of(dense)
        counts = ConfusionCounts.of(mask, self._reference, dense.size)
        change = self._change(mask, slices)
        surface = mask.surface() if change is None or self._surface is None else change.applied(self._surface)
        points = mask.coordinates(surface)

        def distances() -> tuple[Distances, Distances] | None:
            if counts.status != "ok":
                return None
            if change is None or self._distances is None:
                return SurfacePair(points, self._reference_points, self._settings.spacing).distances()
            return self._followed(change, points, *self._distances)

        def lesions() -> LesionDetection:
            settings = self._settings
            return compare_lesions(LabeledMask.of(mask), self._lesions, settings.voxel_ml, settings.minimum_overlap)

        measured, detection = run_all([distances, lesions])
        self._surface, self._distances = surface, measured
        return self._settings.values(counts, measured, detection)

    def _change(self, mask: SparseMask, slices: slice) -> _Change | None:
        """What an edit of some slices did to the surface; None if it is best looked for everywhere."""
        depth, height, width = mask.dense.shape
        if self._surface is None or 2 * (slices.stop - slices.start) > depth:
            return None
        # an edit moves the surface in its own slices and their neighbors, which one more slice on either side decides
        first, last = max(slices.start - 1, 0), min(slices.stop + 1, depth)
        outer = max(first - 1, 0)
        found = SparseMask.of(mask.dense[outer : min(last + 1, depth)]).surface() + outer * height * width
        bounds = first * height * width, last * height * width
        low, high = np.searchsorted(found, bounds)
        start, stop = np.searchsorted(self._surface, bounds)
        return _Change(int(start), int(stop), self._surface[start:stop], found[low:high])

    def _followed(
        self, change: _Change, points: NDArray[np.int64], to_reference: Distances, to_prediction: Distances
    ) -> tuple[Distances, Distances]:
        """Both directions' distances after a change of the surface, whose (3, n) points are now ``points``."""
        spacing = np.asarray(self._settings.spacing)
        stays = np.isin(change.new, change.old, assume_unique=True)
        distances = np.empty(len(change.new))
        distances[stays] = to_reference[change.start : change.stop][np.isin(change.old, change.new, assume_unique=True)]
        added = points[:, change.start : change.start + len(change.new)][:, ~stays]
        if added.size:
            if self._reference_tree is None:
                self._reference_tree = SurfaceTree(self._reference_points, spacing)
            distances[~stays] = self._reference_tree.distances(added)
        to_reference = np.concatenate([to_reference[: change.start], distances, to_reference[change.stop :]])

        moved = np.setxor1d(change.new, change.old, assume_unique=True)
        if len(moved):
            # a reference point's nearest can only have come or gone if the edit is no further away than it was
            away = _distance_to_box(self._reference_points, self._reference.coordinates(moved), spacing)
            affected = np.flatnonzero(away <= to_prediction * (1 + 1e-9))
            to_prediction = to_prediction.copy()
            if len(affected):
                tree = SurfaceTree(points, spacing)
                to_prediction[affected] = tree.distances(self._reference_points[:, affected])
        return to_reference, to_prediction


@dataclass(frozen=True, eq=False)
class _Change:
    """A part of a surface that was replaced: ``surface[start:stop]``, which was ``old``, is now ``new``."""

    start: int
    stop: int
    old: NDArray[np.int64]
    new: NDArray[np.int64]

    def applied(self, surface: NDArray[np.int64]) -> NDArray[np.int64]:
        """The surface after the change."""
        return np.concatenate([surface[: self.start], self.new, surface[self.stop :]])


def _slices(box: Box | None, depth: int) -> slice:
    """The slices of a box, from 0 to depth."""
    if box is None:
        return slice(0, depth)
    if len(box) != 3 or not all(isinstance(side, slice) for side in box):
        raise InputError(f"The changed box is {box}; three slices (z, y, x) are needed.")
    start, stop, _ = box[0].indices(depth)
    return slice(start, max(start, stop))


def _distance_to_box(points: NDArray[np.int64], corners: NDArray[np.int64], spacing: NDArray[np.float64]) -> Distances:
    """Distance, mm, of (3, n) voxels to the smallest box around other voxels."""
    low, high = corners.min(axis=1)[:, None], corners.max(axis=1)[:, None]
    return lengths(np.maximum(np.maximum(low - points, points - high), 0), spacing)
