"""The probability of lesion in 256 levels: small enough to keep with each result, exact at every threshold it has.

Corrections by a click and the sensitivity of a result need the probability long after the network has run. As float32
it is four bytes for each voxel of the CT; here it is one byte for each voxel of a box around the lungs. The thresholds
between the levels are even steps of the log-odds, so that the low probabilities of what a network has missed are told
apart as finely as those around its own threshold, which is the middle one: there the levels give the network's mask
voxel for voxel.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GridMismatchError, InputError, ReadError
from ..imaging.masks import Box, Mask, bounding_box
from ..measurement.lesions import component_around
from .postprocess import PostProcessing, apply_postprocessing

#: Sensitivities go from minus this to this; 0 is the network's own threshold.
MOST_SENSITIVE = 127
# Steps of the sensitivity in which the odds change by a factor of e.
_STEPS = 16
_MIDDLE = MOST_SENSITIVE + 1
_NEIGHBORS = 1
# Slices that are looked at together: few enough for a processor's cache.
_SLICES = 16
MaskOfBox = Callable[[Box], Mask]


@dataclass(frozen=True, eq=False)
class ProbabilityLevels:
    """The probability of one result on the CT's grid.

    A sensitivity is a whole number of steps from -127 (only what the network is surest of) to 127; 0 is the result's
    own threshold, and 16 steps multiply the odds of the threshold by 1/e.

    Attributes:
        levels: uint8 (z, y, x) of the box: how many of the 255 thresholds the probability is strictly above. 0 outside
            the reach around the lungs that the result was limited to.
        box: where in the CT; outside it the level is 0.
        shape: of the CT, (z, y, x).
        threshold: of the result, in (0, 1).
    """

    levels: NDArray[np.uint8]
    box: Box
    shape: tuple[int, int, int]
    threshold: float

    def __post_init__(self) -> None:
        sides = tuple(side.stop - side.start for side in self.box)
        inside = all(0 <= side.start <= side.stop <= n for side, n in zip(self.box, self.shape, strict=True))
        if self.levels.shape != sides or self.levels.dtype != np.uint8 or not inside or not 0 < self.threshold < 1:
            raise InputError(
                f"The levels are {self.levels.dtype} {self.levels.shape} in the box {sides} of {self.shape} voxels, "
                f"with the threshold {self.threshold!r}; they do not fit together."
            )

    @classmethod
    def of(cls, levels: NDArray[np.uint8], threshold: float) -> ProbabilityLevels:
        """Levels on the CT's grid, see :func:`levels_of`, without the empty space around them."""
        box = bounding_box(levels, least=1)
        depth, height, width = levels.shape
        return cls(np.ascontiguousarray(levels[box]), box, (depth, height, width), threshold)

    def limited(
        self, spacing: tuple[float, float, float], settings: PostProcessing, lungs: NDArray[Any]
    ) -> ProbabilityLevels:
        """The levels inside the reach around the lungs that the post-processing allows, 0 elsewhere.

        What the run has dropped is 0, and so is what lies as near to it outside the lungs: a lower threshold must not
        bring back the rim of a mark that was dropped. What is fainter than the run's threshold elsewhere is lesion, at
        a lower one, wherever it lies near enough to the lungs.

        Args:
            spacing: (z, y, x) mm.
            settings: of the result.
            lungs: (z, y, x) on the CT's grid, lung where not 0.
        """
        reach = settings.keep_inside_lungs_mm
        if reach is None or reach > math.hypot(*np.multiply(self.shape, spacing)):
            return self
        from ..imaging.lungs._morphology import dilate

        allowed = dilate(lungs[self.box] != 0, spacing, reach)
        # the two ways to measure the distance round it differently: what the network has marked is decided as there
        marked = np.zeros(self.shape, bool)
        marked[self.box] = self.levels >= _MIDDLE
        kept = apply_postprocessing(marked, spacing, PostProcessing(keep_inside_lungs_mm=reach), lungs)
        np.copyto(allowed, kept[self.box], where=marked[self.box])
        dropped = dilate(marked[self.box] & ~kept[self.box], spacing, reach)
        allowed &= ~dropped | kept[self.box] | (lungs[self.box] != 0)
        levels = np.where(allowed, self.levels, np.uint8(0))
        box = bounding_box(levels, least=1)
        z, y, x = (slice(a.start + b.start, b.start + a.stop) for a, b in zip(box, self.box, strict=True))
        return ProbabilityLevels(np.ascontiguousarray(levels[box]), (z, y, x), self.shape, self.threshold)

    def threshold_at(self, sensitivity: int) -> float:
        """The probability above which a voxel is lesion at a sensitivity."""
        if sensitivity == 0:
            return self.threshold
        return _threshold(self.threshold, sensitivity)

    def sensitivity_of(self, threshold: float) -> int:
        """The sensitivity whose threshold is nearest to a probability."""
        step = round(_STEPS * (_log_odds(self.threshold) - _log_odds(threshold)))
        return max(-MOST_SENSITIVE, min(MOST_SENSITIVE, step))

    def result_at(self, sensitivity: int, spacing: tuple[float, float, float], minimum_volume_ml: float = 0.0) -> Mask:
        """What the run would have found at another threshold, with the same clean-up.

        Args:
            sensitivity: see the class.
            spacing: (z, y, x) mm.
            minimum_volume_ml: as the run had it.

        Returns:
            bool (z, y, x) on the CT's grid.
        """
        mask = np.zeros(self.shape, bool)
        mask[self.box] = self.result_inside(sensitivity, spacing, minimum_volume_ml)
        return mask

    def result_inside(
        self, sensitivity: int, spacing: tuple[float, float, float], minimum_volume_ml: float = 0.0
    ) -> Mask:
        """The same in :attr:`box`, outside of which there is no lesion; no array of the CT's size is made."""
        mask = self.levels >= _least_level(sensitivity)
        if minimum_volume_ml > 0:
            mask = apply_postprocessing(mask, spacing, PostProcessing(minimum_volume_ml=minimum_volume_ml))
        return mask

    def result_in_parts(
        self, sensitivity: int, spacing: tuple[float, float, float], minimum_volume_ml: float = 0.0
    ) -> Iterator[tuple[Box, Mask]]:
        """The same in boxes of some slices, outside of which there is no lesion."""
        least = _least_level(sensitivity)
        whole = self.result_inside(sensitivity, spacing, minimum_volume_ml) if minimum_volume_ml > 0 else None
        z, y, x = self.box
        for start in range(0, len(self.levels), _SLICES):
            part = slice(start, min(start + _SLICES, len(self.levels)))
            place = slice(z.start + part.start, z.start + part.stop)
            yield (place, y, x), self.levels[part] >= least if whole is None else whole[part]

    def inside(self, box: Box) -> NDArray[np.uint8]:
        """The levels in a box of the CT, 0 where none are kept; do not change them."""
        common = [
            slice(max(a.start, b.start), max(min(a.stop, b.stop), a.start, b.start))
            for a, b in zip(box, self.box, strict=True)
        ]
        source = tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(common, self.box, strict=True))
        part = self.levels[source]
        if common == list(box):
            return part
        found = np.zeros([side.stop - side.start for side in box], np.uint8)
        found[tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(common, box, strict=True))] = part
        return found

    def seed(self, voxel: tuple[int, int, int], allowed: MaskOfBox) -> tuple[tuple[int, int, int], int]:
        """The most probable voxel beside a click, and the least sensitivity at which it is lesion.

        Args:
            voxel: index (z, y, x) of the click, inside the CT.
            allowed: gives where lesion may be, bool, in a box of the CT.

        Returns:
            The voxel among the click's 26 neighbors and itself, itself where none is more probable; and the
            sensitivity, above :data:`MOST_SENSITIVE` where nothing is known of it.
        """
        z, y, x = (
            slice(max(at - _NEIGHBORS, 0), min(at + _NEIGHBORS + 1, n)) for at, n in zip(voxel, self.shape, strict=True)
        )
        near = np.where(allowed((z, y, x)), self.inside((z, y, x)), 0).astype(int)
        # of equal ones the click itself
        near *= 2
        near[voxel[0] - z.start, voxel[1] - y.start, voxel[2] - x.start] += 1
        best = np.unravel_index(int(near.argmax()), near.shape)
        found = (z.start + int(best[0]), y.start + int(best[1]), x.start + int(best[2]))
        return found, _MIDDLE - int(near.max()) // 2

    def grown(
        self, seed: tuple[int, int, int], sensitivity: int, lesion: MaskOfBox, allowed: MaskOfBox
    ) -> tuple[Box, Mask]:
        """What a lesion that grows from a voxel adds to those that are marked.

        The region is 26-connected. From a voxel beside the marked lesions it grows around them, so that it does not
        take in their borders as well; from a voxel of a lesion it grows on from all of that lesion.

        Args:
            seed: index (z, y, x).
            sensitivity: see the class.
            lesion: gives the lesions that are marked, bool, in a box of the CT.
            allowed: gives where lesion may be, bool, in a box of the CT.

        Returns:
            A box of the CT, and the new voxels in it, bool (z, y, x).
        """
        least = _least_level(sensitivity)
        one = (slice(seed[0], seed[0] + 1), slice(seed[1], seed[1] + 1), slice(seed[2], seed[2] + 1))
        from_lesion = bool(lesion(one).any())

        def candidates(box: Box) -> Mask:
            marked = lesion(box)
            wanted = (self.inside(box) >= least) & allowed(box)
            return wanted | marked if from_lesion else wanted & ~marked

        box, region = component_around(candidates, seed, self.shape)
        if from_lesion:
            region &= ~lesion(box)
        return box, region

    # ---- to other processes and to files ------------------------------------------------------------------------

    def described(self) -> dict[str, Any]:
        """All but the levels, as values that ``json.dumps`` takes; see :meth:`rebuilt`."""
        box = [[side.start, side.stop] for side in self.box]
        return {"box": box, "shape": list(self.shape), "threshold": self.threshold}

    @classmethod
    def rebuilt(cls, levels: NDArray[np.uint8], described: Mapping[str, Any]) -> ProbabilityLevels:
        """The levels from an array and what :meth:`described` gave.

        Raises:
            InputError: they do not fit together.
        """
        try:
            z, y, x = (slice(int(start), int(stop)) for start, stop in described["box"])
            depth, height, width = (int(n) for n in described["shape"])
            return cls(levels, (z, y, x), (depth, height, width), float(described["threshold"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("The levels of the probability come without their place in the CT.") from error

    @classmethod
    def received(cls, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ProbabilityLevels | None:
        """The levels that a worker's reply brings, ``levels`` among its values and arrays; None where it has none."""
        if "levels" not in values or "levels" not in arrays:
            return None
        return cls.rebuilt(arrays["levels"], values["levels"])

    def to_bytes(self) -> bytes:
        """The content of a file, compressed; see :meth:`from_bytes`."""
        file = io.BytesIO()
        box, shape, threshold = (np.array(value) for value in self.described().values())
        np.savez_compressed(file, levels=self.levels, box=box, shape=shape, threshold=threshold)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> ProbabilityLevels:
        """The levels from the content of a file.

        Raises:
            ReadError: it is damaged, or of something else.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as found:
                return cls.rebuilt(found["levels"], {n: found[n].tolist() for n in ("box", "shape", "threshold")})
        except (InputError, KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ReadError("The file of the probability is damaged; run the model on the case again.") from error

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raise GridMismatchError unless the levels are of a CT of this shape."""
        if self.shape != tuple(shape):
            raise GridMismatchError(f"The probability is of a CT of {self.shape} voxels; this one has {tuple(shape)}.")


def levels_of(probability: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """How many of the thresholds a probability in [0, 1] is strictly above; of the same shape, (z, y, x).

    Args:
        probability: float32 (z, y, x); any strides.
        threshold: the middle one.
    """
    edges = np.array([_threshold(threshold, -step) for step in range(-MOST_SENSITIVE, _MIDDLE)], np.float32)
    edges[MOST_SENSITIVE] = threshold
    levels = np.empty(probability.shape, np.uint8)
    # a slice at a time: the indices are eight times as large as the levels
    for plane, found in zip(probability, levels, strict=True):
        found[...] = np.searchsorted(edges, plane, "left")
    return levels


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _threshold(middle: float, sensitivity: int) -> float:
    return 1 / (1 + math.exp(sensitivity / _STEPS - _log_odds(middle)))


def _least_level(sensitivity: int) -> int:
    if not -MOST_SENSITIVE <= sensitivity <= MOST_SENSITIVE:
        raise InputError(f"The sensitivity is {sensitivity}; it must lie from {-MOST_SENSITIVE} to {MOST_SENSITIVE}.")
    return _MIDDLE - sensitivity
