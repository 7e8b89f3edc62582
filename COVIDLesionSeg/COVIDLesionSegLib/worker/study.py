"""A CT with its masks that a measurement child holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cores import run_all
from ..errors import GridMismatchError, InputError
from ..imaging import LocatedLungs, Volume, locate_lungs
from ..imaging.lungs.engines import CLASSICAL
from ..imaging.masks import Box, Mask
from ..measurement import LiveEvaluation, quantify, zones
from ..measurement.catalog import consolidation_limit
from ..measurement.longitudinal import TimePoint
from ..measurement.surface import DEFAULT_TOLERANCE_MM
from .tasks import Work

MASKS = ("lesion", "reference")


@dataclass(eq=False)
class Study:
    """A CT with its masks, and what was found out about them."""

    volume: Volume
    lungs: zones.Lungs | None
    lobes: zones.Lobes | None
    tolerance: float
    minimum_overlap: float
    consolidation_from: float
    lobe_map: Any
    lesion: Mask | None = None
    reference: Mask | None = None
    _live: LiveEvaluation | None = None
    # what changed since the last evaluation; None: anything may have
    _changed: Box | None = None
    _is_evaluated: bool = False

    def mask(self, name: str) -> Mask | None:
        """Lesion or reference."""
        return self.lesion if name == "lesion" else self.reference

    def change(self, name: str, array: NDArray[Any], box: Any) -> None:
        """Put a mask, or a box of it, in place."""
        old = self.mask(name)
        place = _box(box, self.volume.geometry.shape)
        if place is None:
            self.volume.geometry.require_shape(array, name)
            new = np.array(array, dtype=bool)
        elif old is None:
            raise InputError(f"There is no {name} yet, so a part of it can't change; send the whole.")
        else:
            part = old[place]
            if part.shape != array.shape:
                raise GridMismatchError(f"The box has the shape {part.shape}, but {array.shape} was sent (z, y, x).")
            part[:] = array
            new = old
        if name == "reference":
            self.reference, self._live = new, None
        else:
            self.lesion = new
            self._changed = place if self._is_evaluated else None
            self._is_evaluated = False

    def drop(self, name: str) -> None:
        """Take a mask away."""
        if name == "reference":
            self.reference, self._live = None, None
        else:
            self.lesion, self._changed, self._is_evaluated = None, None, False

    def figures(self, work: Work) -> dict[str, Any]:
        """The whole table."""
        work.check()
        if self.lesion is None:
            return {"quantities": None, "evaluation": None, **self.facts()}
        jobs: list[Callable[[], Any]] = [self.quantities]
        if self.reference is not None:
            jobs.append(self._evaluation)
        found = run_all(jobs)
        return {"quantities": found[0], "evaluation": found[1] if len(found) > 1 else None, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """What is to be said of the CT and the lungs beside every figure."""
        quality = None if self.lungs is None else self.lungs.quality
        return {"notes": list(self.volume.warnings), "lung_quality": None if quality is None else quality.to_json()}

    def quantities(self) -> dict[str, Any]:
        """Everything that needs no reference."""
        assert self.lesion is not None  # noqa: S101  # whoever calls has looked
        return quantify(self.volume, self.lesion, self.lungs, self.lobes, consolidation_from=self.consolidation_from)

    def pair(self) -> tuple[Mask, Mask]:
        """Lesion and reference.

        Raises:
            InputError: one is not there.
        """
        if self.lesion is None or self.reference is None:
            missing = "lesion mask" if self.lesion is None else "reference"
            raise InputError(f"There is no {missing} to compare.")
        return self.lesion, self.reference

    def time_point(self) -> TimePoint:
        """The study for comparison and report.

        Raises:
            InputError: there is no lesion mask.
        """
        if self.lesion is None:
            raise InputError("There is no lesion mask to measure.")
        return TimePoint(self.volume, self.lesion, self.lungs, self.lobes)

    def _evaluation(self) -> dict[str, Any]:
        lesion, reference = self.pair()
        if self._live is None:
            spacing = self.volume.geometry.spacing_zyx
            self._live = LiveEvaluation(
                reference, spacing, tolerance=self.tolerance, minimum_overlap=self.minimum_overlap
            )
            self._changed = None
        found = dict(self._live.update(lesion, self._changed))
        self._is_evaluated = True
        return found


def open_study(work: Work, needs_lungs: bool = False) -> tuple[Study, dict[str, NDArray[Any]]]:
    """The study that a request describes, and the lungs if they were found here."""
    volume = work.volume()
    grid = volume.geometry
    arrays = {name: work.array(name) for name in ("lungs", "lobes", *MASKS)}
    for name, array in arrays.items():
        if array is not None:
            grid.require_shape(array, name)
    lobe_map = work.take("lobe_map", (str, dict))
    if isinstance(lobe_map, dict):
        lobe_map = {int(value): lobe for value, lobe in lobe_map.items()}
    settings = (
        work.take("tolerance", (int, float), DEFAULT_TOLERANCE_MM),
        work.take("minimum_overlap", (int, float), 0.0),
        consolidation_limit(work.take("consolidation_from", (int, float))),
    )
    engine = work.take("lung_engine", str, CLASSICAL)
    found: dict[str, NDArray[Any]] = {}
    given: NDArray[Any] | LocatedLungs | None = arrays["lungs"]
    if work.take("find_lungs", bool, needs_lungs) and given is None and arrays["lobes"] is None:
        given = locate_lungs(volume, work.progress, work.is_cancelled, engine=engine)
        found["lungs"] = given.labels
    lobes = None if arrays["lobes"] is None else zones.Lobes.read(arrays["lobes"], volume, lobe_map)
    lungs = None
    if given is not None or lobes is not None:
        lungs = zones.Lungs.read(given, lobes, volume)
    study = Study(volume, lungs, lobes, *settings, lobe_map)
    for name in MASKS:
        mask = arrays[name]
        if mask is not None:
            study.change(name, mask, None)
    return study, found


def _box(value: Any, shape: tuple[int, ...]) -> Box | None:
    if value is None:
        return None
    try:
        sides = [(int(start), int(stop)) for start, stop in value]
    except (TypeError, ValueError) as error:
        raise InputError(f"The box {value!r} is no list of three starts and stops (z, y, x).") from error
    if len(sides) != 3 or any(not 0 <= a <= b <= n for (a, b), n in zip(sides, shape, strict=False)):
        raise InputError(f"The box {sides} does not lie in the volume of {shape} voxels (z, y, x).")
    z, y, x = (slice(start, stop) for start, stop in sides)
    return z, y, x
