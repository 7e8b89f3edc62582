"""The tasks of a worker of kind "measurement", which needs no PyTorch and holds the studies that it measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cores import run_all
from ..errors import GridMismatchError, InputError
from ..imaging import LocatedLungs, Volume
from ..imaging.lungs.engines import CLASSICAL
from ..imaging.masks import Box, Mask
from ..inference.lung_engine import locate_lungs
from ..measurement import LiveEvaluation, compare_timepoints, error_map, evaluate, quantify, zones
from ..measurement.catalog import consolidation_limit
from ..measurement.lesions import component_at
from ..measurement.longitudinal import TimePoint
from ..measurement.surface import DEFAULT_TOLERANCE_MM
from .faults import NotOpenError
from .protocol import geometry_from_json
from .store_tasks import StoreTasks
from .tasks import Answer, Work, find_lungs_in

#: What the files of a case are called, after its name and an underscore: kind -> endings.
REPORT_FILES = {
    "html": ("report.html",),
    "csv": ("measurements.csv", "lesions.csv"),
    "json": ("report.json",),
    "dicom": ("lesions.dcm",),
}

_MASKS = ("lesion", "reference")


@dataclass(eq=False)
class _Study:
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


def _open_study(work: Work, needs_lungs: bool = False) -> tuple[_Study, dict[str, NDArray[Any]]]:
    """The study that a request describes, and the lungs if they were found here."""
    volume = work.volume()
    grid = volume.geometry
    arrays = {name: work.array(name) for name in ("lungs", "lobes", *_MASKS)}
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
    study = _Study(volume, lungs, lobes, *settings, lobe_map)
    for name in _MASKS:
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


class Measurements:
    """Tasks of kind "measurement". All arrays are (z, y, x) on the CT's grid; masks are lesion where not 0.

    ``open``: holds a study under a name until ``close`` or the end of the process: parameters ``study`` (the name),
    ``geometry`` and, if given, ``name``, ``rescale``, ``tolerance`` (mm, of the normalized surface Dice),
    ``minimum_overlap``, ``consolidation_from`` (HU), ``lobe_map``, ``find_lungs`` (true: where no lungs come along),
    ``lung_engine`` (what finds them);
    arrays ``volume`` and, if there are any, ``lungs``, ``lobes``, ``lesion``, ``reference``. Answers the figures, see
    ``update``, and the array ``lungs`` if they were found.

    ``update``: a mask has changed. Parameters ``study``; arrays ``lesion`` or ``reference`` or both; ``box`` is the
    place of the array lesion, ``[[z0, z1], [y0, y1], [x0, x1]]`` (stops excluded), ``reference_box`` that of the
    reference; without a box the array is the whole mask. ``drop``: ["reference"] takes a mask away. Answers the values
    ``quantities`` (of :func:`.quantify`; null without a lesion), ``evaluation`` (of :func:`.evaluate`; null without a
    reference), ``notes`` and ``lung_quality`` (``LungQuality.to_json()``; null without lungs).

    ``close``: forgets ``study``.

    ``quantify``: ``study``, or everything that ``open`` takes: ``quantities``, ``notes``, ``lung_quality``.
    ``evaluate``: ``study``, or ``geometry`` with the arrays ``prediction`` and ``reference``: ``evaluation``.
    ``component``: ``place`` (voxel index z, y, x) and ``spacing`` (z, y, x, mm) with the array ``mask``: the array
    ``component`` (uint8), the 26-connected part of the mask that comes nearest to the place.
    ``error_map``: ``study``: the array ``map`` (uint8, 1 agreed, 2 false positive, 3 false negative).
    ``compare``: with an earlier CT: ``study`` (the later one), ``registration`` ("rigid", "affine"), and either
    ``earlier`` (name of a study) or the earlier study as ``open`` takes it; its lungs are found where they do not come
    along. Refused where the chests look like those of two people, unless ``assume_same_patient`` is true. Answers
    ``comparison``, what :func:`.compare_timepoints` returns, and the array ``map`` on the later grid.
    ``report``: ``study``, ``case`` (what it is called, also in file names), ``folder``, ``kinds`` (a list of "html",
    "csv", "json"); if given ``earlier`` (name of a study), ``registration``, ``assume_same_patient``, ``notes``,
    ``record`` (of the run).
    Answers ``measured`` and ``files``, the list of what was written.
    ``dicom_seg``: ``study``, ``case``, ``folder``, ``source`` (folder, file or list of files of the CT); if given
    ``series``, ``record``, and ``segments``, a list of ``name``, ``array`` and ``edited`` whose arrays come along; by
    default the study's lesion. Answers ``files`` and ``notes``. It carries the patient's identity: say so first.
    ``lungs``: as the worker of kind "lesions" does.

    Those about a case store are in :mod:`.store_tasks`.
    """

    def __init__(self) -> None:
        self.device = ""
        self._studies: dict[str, _Study] = {}
        self.tasks: Mapping[str, Callable[[Work], Answer]] = {
            "open": self.open,
            "update": self.update,
            "close": self.close,
            "quantify": self.quantify,
            "evaluate": self.evaluate,
            "component": self.component,
            "error_map": self.error_map,
            "compare": self.compare,
            "report": self.report,
            "dicom_seg": self.dicom_seg,
            "lungs": find_lungs_in,
            **StoreTasks().tasks,
        }

    def open(self, work: Work) -> Answer:
        """Hold a study."""
        name = work.need("study", str)
        study, found = _open_study(work)
        work.finish()
        self._studies[name] = study
        return Answer(study.figures(work), found)

    def update(self, work: Work) -> Answer:
        """Change a study's masks and measure it."""
        study = self._study(work)
        boxes = {"lesion": work.take("box", list), "reference": work.take("reference_box", list)}
        arrays = {name: array for name in _MASKS if (array := work.array(name)) is not None}
        dropped = work.take("drop", list, [])
        work.finish()
        for name in dropped:
            if name not in _MASKS:
                raise InputError(f"There is no mask {name!r}; masks are {' and '.join(_MASKS)}.")
        for name, array in arrays.items():
            study.change(name, array, boxes[name])
        for name in dropped:
            study.drop(name)
        return Answer(study.figures(work))

    def close(self, work: Work) -> Answer:
        """Forget a study; nothing happens if it is not there."""
        name = work.need("study", str)
        work.finish()
        self._studies.pop(name, None)
        return Answer()

    def quantify(self, work: Work) -> Answer:
        """Measure lesions."""
        study = self._given(work)
        if study.lesion is None:
            raise InputError("There is no lesion mask to measure.")
        return Answer({"quantities": study.quantities(), **study.facts()})

    def evaluate(self, work: Work) -> Answer:
        """Compare with a reference."""
        prediction = work.array("prediction")
        if prediction is None:
            study = self._study(work)
            work.finish()
            lesion, reference = study.pair()
            return Answer({"evaluation": evaluate(lesion, reference, study.volume.geometry.spacing_zyx)})
        reference_array = work.array("reference")
        geometry = geometry_from_json(work.need("geometry", dict))
        work.finish()
        if reference_array is None:
            raise InputError("There is no reference to compare with.")
        for name, array in (("prediction", prediction), ("reference", reference_array)):
            geometry.require_shape(array, name)
        return Answer({"evaluation": evaluate(prediction != 0, reference_array != 0, geometry.spacing_zyx)})

    def component(self, work: Work) -> Answer:
        """The part of a mask at a place."""
        mask, place, spacing = work.array("mask"), work.need("place", list), work.need("spacing", list)
        work.finish()
        if mask is None:
            raise InputError("The task component needs the array mask.")
        return Answer({}, {"component": component_at(mask != 0, place, spacing).view(np.uint8)})

    def error_map(self, work: Work) -> Answer:
        """Where prediction and reference differ."""
        study = self._study(work)
        work.finish()
        return Answer({}, {"map": error_map(*study.pair())})

    def compare(self, work: Work) -> Answer:
        """Compare two time points."""
        later = self._study(work)
        registration = work.take("registration", str, "rigid")
        assumed = work.take("assume_same_patient", bool, False)
        earlier = self._study(work, "earlier") if "earlier" in work else _open_study(work, needs_lungs=True)[0]
        work.finish()
        work.progress("comparing", 0, 1)
        found = compare_timepoints(
            earlier.time_point(),
            later.time_point(),
            registration,
            lobe_map=later.lobe_map,
            consolidation_from=later.consolidation_from,
            assume_same_patient=assumed,
        )
        change = found.pop("map")
        work.progress("comparing", 1, 1)
        return Answer({"comparison": found}, {"map": change})

    def report(self, work: Work) -> Answer:
        """Write a report and tables."""
        from ..files import write_json, write_text
        from ..measurement.report.document import Report
        from ..measurement.tables import lesion_rows, region_rows, write_csv

        study = self._study(work)
        case = work.need("case", str)
        earlier = self._study(work, "earlier") if "earlier" in work else None
        registration = work.take("registration", str, "rigid")
        assumed = work.take("assume_same_patient", bool, False)
        notes, record = work.take("notes", list, []), work.take("record", dict)
        folder, kinds = Path(work.need("folder", str)), work.need("kinds", list)
        work.finish()
        unknown = [str(kind) for kind in kinds if kind not in ("html", "csv", "json")]
        if unknown or not kinds:
            raise InputError(f"The report's kinds are {kinds}; choose among html, csv and json.")
        work.progress("measuring", 0, 2)
        report = Report(
            case,
            study.time_point(),
            study.reference,
            None if earlier is None else earlier.time_point(),
            registration,
            study.lobe_map,
            study.consolidation_from,
            [*study.volume.warnings, *notes],
            record,
            assume_same_patient=assumed,
        )
        measured = report.to_json()
        work.check()
        work.progress("measuring", 1, 2)
        quantities = measured["quantities"]
        files = []

        def target(ending: str) -> Path:
            files.append(str(folder / f"{case}_{ending}"))
            return Path(files[-1])

        if "html" in kinds:
            write_text(target(*REPORT_FILES["html"]), report.to_html())
        if "csv" in kinds:
            regions, lesions = map(target, REPORT_FILES["csv"])
            write_csv(regions, region_rows(case, quantities))
            write_csv(lesions, lesion_rows(case, quantities["lesions"]["value"]))
        if "json" in kinds:
            write_json(target(*REPORT_FILES["json"]), measured)
        work.progress("measuring", 2, 2)
        return Answer({"measured": measured, "files": files})

    def dicom_seg(self, work: Work) -> Answer:
        """Write a DICOM SEG."""
        from ..imaging.dicom.seg_writing import DicomSegment, SegmentAlgorithm, read_seg_source, write_dicom_seg

        study = self._study(work)
        output = Path(work.need("folder", str)) / f"{work.need('case', str)}_{REPORT_FILES['dicom'][0]}"
        source = work.need("source", (str, list))
        series, record = work.take("series", str), work.take("record", dict)
        segments = []
        for item in work.take("segments", list, [{"name": "lesion", "array": "lesion", "edited": True}]):
            name = str(item.get("array", "lesion"))
            mask = work.array(name)
            if mask is None and name in _MASKS:
                mask = study.mask(name)
            if mask is None:
                raise InputError(f"There is no array {name!r} for the segment {item.get('name')!r}.")
            edited = bool(item.get("edited"))
            kind: Any = "SEMIAUTOMATIC" if edited else "AUTOMATIC"
            algorithm = (
                SegmentAlgorithm.from_record(record, edited)
                if record is not None
                else SegmentAlgorithm("COVIDLesionSeg", type=kind)
            )
            segments.append(DicomSegment(str(item.get("name", name)), mask, algorithm))
        work.finish()
        work.progress("writing", 0, 1)
        notes = write_dicom_seg(output, segments, study.volume.geometry, read_seg_source(source, series))
        work.progress("writing", 1, 1)
        return Answer({"files": [str(output)], "notes": list(notes)})

    def _study(self, work: Work, parameter: str = "study") -> _Study:
        name = work.need(parameter, str)
        if name not in self._studies:
            raise NotOpenError("The study is not open for measuring (any more).", "Open it again.")
        return self._studies[name]

    def _given(self, work: Work) -> _Study:
        study = self._study(work) if "study" in work else _open_study(work)[0]
        work.finish()
        return study
