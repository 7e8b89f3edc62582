"""The tasks of a worker of kind "measurement", which needs no PyTorch and holds the studies that it measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..cores import run_all
from ..errors import GridMismatchError, InputError
from ..imaging import Geometry, LocatedLungs, Volume
from ..imaging.lungs.engines import CLASSICAL
from ..imaging.masks import Box, Mask
from ..inference.lung_engine import locate_lungs
from ..measurement import LiveEvaluation, compare_timepoints, error_map, evaluate, quantify, zones
from ..measurement.catalog import consolidation_limit
from ..measurement.lesions import component_at
from ..measurement.longitudinal import TimePoint
from ..measurement.surface import DEFAULT_TOLERANCE_MM
from .faults import NotOpenError
from .store_tasks import StoreTasks
from .tasks import Answer, Array, Context, Makers, find_lungs_in, tasks_of

#: What the files of a case are called, after its name and an underscore: kind -> endings.
REPORT_FILES = {
    "html": ("report.html",),
    "csv": ("measurements.csv", "lesions.csv"),
    "json": ("report.json",),
    "dicom": ("lesions.dcm",),
}

_MASKS = ("lesion", "reference")
MaskName = Literal["lesion", "reference"]


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

    def change(self, name: str, array: Mask, box: list[Any] | None = None) -> None:
        """Put a mask, or a box of it, in place."""
        old = self.mask(name)
        place = _box(box, self.volume.geometry.shape)
        if place is None:
            self.volume.geometry.require_shape(array, name)
            new = array
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

    def figures(self, context: Context) -> dict[str, Any]:
        """The whole table."""
        context.check()
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


@dataclass(frozen=True, eq=False)
class NewStudy:
    """A study as a request describes it; arrays on the CT's grid, masks are lesion where not 0.

    Attributes:
        volume: the CT.
        lungs, lobes: labels.
        lesion, reference: masks.
        lobe_map: what the labels of ``lobes`` mean, see :func:`.zones.lobe_values`.
        tolerance: mm, of the normalized surface Dice.
        minimum_overlap: of a lesion that counts as found.
        consolidation_from: HU; None takes the catalog's.
        find_lungs: whether lungs that do not come along are found; None leaves it to the task.
        lung_engine: what finds them.
    """

    volume: Volume
    lungs: Array | None = None
    lobes: Array | None = None
    lesion: Mask | None = None
    reference: Mask | None = None
    lobe_map: str | dict[str, Any] | None = None
    tolerance: float = DEFAULT_TOLERANCE_MM
    minimum_overlap: float = 0.0
    consolidation_from: float | None = None
    find_lungs: bool | None = None
    lung_engine: str = CLASSICAL

    def opened(self, context: Context, needs_lungs: bool = False) -> tuple[Study, dict[str, Array]]:
        """The study, and the lungs if they were found here.

        Raises:
            InputError, GridMismatchError: an array of another grid, lobes that are unknown.
        """
        for name in ("lungs", "lobes", *_MASKS):
            array = getattr(self, name)
            if array is not None:
                self.volume.geometry.require_shape(array, name)
        lobe_map: Any = self.lobe_map
        if isinstance(lobe_map, dict):
            lobe_map = {int(value): lobe for value, lobe in lobe_map.items()}
        found: dict[str, Array] = {}
        given: Array | LocatedLungs | None = self.lungs
        wanted = needs_lungs if self.find_lungs is None else self.find_lungs
        if wanted and given is None and self.lobes is None:
            given = locate_lungs(self.volume, context.progress, context.is_cancelled, engine=self.lung_engine)
            found["lungs"] = given.labels
        lobes = None if self.lobes is None else zones.Lobes.read(self.lobes, self.volume, lobe_map)
        lungs = None
        if given is not None or lobes is not None:
            lungs = zones.Lungs.read(given, lobes, self.volume)
        limit = consolidation_limit(self.consolidation_from)
        study = Study(self.volume, lungs, lobes, self.tolerance, self.minimum_overlap, limit, lobe_map)
        for name in _MASKS:
            if getattr(self, name) is not None:
                study.change(name, getattr(self, name))
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
    """Tasks of kind "measurement": the public methods, and those of :class:`.store_tasks.StoreTasks`.

    ``study`` is the name of a study that ``open`` holds until ``close`` or the end of the process. The figures of a
    study are ``quantities`` (of :func:`.quantify`; null without a lesion), ``evaluation`` (of :func:`.evaluate`; null
    without a reference), ``notes`` and ``lung_quality`` (``LungQuality.to_json()``; null without lungs).
    """

    def __init__(self) -> None:
        self.device = ""
        self._studies: dict[str, Study] = {}
        store = StoreTasks()
        own, lungs = tasks_of(self), {"lungs": find_lungs_in}
        self.tasks: Mapping[str, Callable[..., Answer]] = {**own, **tasks_of(store), **lungs}
        self.makers: Makers = {Study: self._study, NewStudy: NewStudy, **store.makers}

    def open(self, context: Context, study: str, described: NewStudy) -> Answer:
        """Hold a study: its figures, and the array ``lungs`` if they were found."""
        opened, found = described.opened(context)
        self._studies[study] = opened
        return Answer(opened.figures(context), found)

    def update(
        self,
        context: Context,
        study: Study,
        lesion: Mask | None = None,
        reference: Mask | None = None,
        box: list[Any] | None = None,
        reference_box: list[Any] | None = None,
        drop: list[MaskName] = [],  # noqa: B006  # never changed
    ) -> Answer:
        """Change a study's masks and measure it: its figures.

        Args:
            context: of the request.
            study: that is open.
            lesion: the whole mask, or that part of it in the box.
            reference: likewise.
            box: ``[[z0, z1], [y0, y1], [x0, x1]]`` (stops excluded), place of the lesion.
            reference_box: place of the reference.
            drop: masks to take away.
        """
        if lesion is not None:
            study.change("lesion", lesion, box)
        if reference is not None:
            study.change("reference", reference, reference_box)
        for name in drop:
            study.drop(name)
        return Answer(study.figures(context))

    def close(self, study: str) -> Answer:
        """Forget a study; nothing happens if it is not there."""
        self._studies.pop(study, None)
        return Answer()

    def quantify(self, context: Context, study: Study | None = None, described: NewStudy | None = None) -> Answer:
        """Measure the lesions of a study that is open, or comes along: its figures without the evaluation."""
        if study is None:
            study = _described(described, "quantify").opened(context)[0]
        if study.lesion is None:
            raise InputError("There is no lesion mask to measure.")
        return Answer({"quantities": study.quantities(), **study.facts()})

    def evaluate(
        self,
        study: Study | None = None,
        prediction: Mask | None = None,
        reference: Mask | None = None,
        geometry: Geometry | None = None,
    ) -> Answer:
        """Compare with a reference, the masks of a study or two that come along with their grid: ``evaluation``."""
        if study is not None:
            prediction, reference = study.pair()
            geometry = study.volume.geometry
        if prediction is None or geometry is None:
            raise InputError("The task evaluate needs study, or the arrays prediction and reference with geometry.")
        if reference is None:
            raise InputError("There is no reference to compare with.")
        for name, array in (("prediction", prediction), ("reference", reference)):
            geometry.require_shape(array, name)
        return Answer({"evaluation": evaluate(prediction, reference, geometry.spacing_zyx)})

    def component(self, mask: Mask, place: list[float], spacing: list[float]) -> Answer:
        """The part of a mask at a place: the array ``component`` (uint8), 26-connected.

        Args:
            mask: to look in.
            place: voxel index z, y, x; the part that comes nearest to it is found.
            spacing: z, y, x, mm.
        """
        return Answer({}, {"component": component_at(mask, place, spacing).view(np.uint8)})

    def error_map(self, study: Study) -> Answer:
        """Where lesion and reference differ: array ``map`` (uint8, 1 agreed, 2 false positive, 3 false negative)."""
        return Answer({}, {"map": error_map(*study.pair())})

    def compare(
        self,
        context: Context,
        study: Study,
        earlier: Study | None = None,
        described: NewStudy | None = None,
        registration: str = "rigid",
        assume_same_patient: bool = False,
    ) -> Answer:
        """Compare with an earlier CT, that is open or comes along: ``comparison``, and the array ``map``.

        Args:
            context: of the request.
            study: the later one, on whose grid the map is.
            earlier: the earlier one, or
            described: the same; its lungs are found where they do not come along.
            registration: "rigid" or "affine".
            assume_same_patient: also where the chests look like those of two people.
        """
        if earlier is None:
            earlier = _described(described, "compare").opened(context, needs_lungs=True)[0]
        context.progress("comparing", 0, 1)
        found = compare_timepoints(
            earlier.time_point(),
            study.time_point(),
            registration,
            lobe_map=study.lobe_map,
            consolidation_from=study.consolidation_from,
            assume_same_patient=assume_same_patient,
        )
        change = found.pop("map")
        context.progress("comparing", 1, 1)
        return Answer({"comparison": found}, {"map": change})

    def report(
        self,
        context: Context,
        study: Study,
        case: str,
        folder: Path,
        kinds: list[str],
        earlier: Study | None = None,
        registration: str = "rigid",
        assume_same_patient: bool = False,
        notes: list[str] = [],  # noqa: B006  # never changed
        record: dict[str, Any] | None = None,
    ) -> Answer:
        """Write a report and tables: ``measured``, and ``files``, the list of what was written.

        Args:
            context: of the request.
            study: that is open.
            case: what it is called, also in file names.
            folder: for the files.
            kinds: "html", "csv", "json".
            earlier: a study to compare with, see :meth:`compare`.
            registration: of the comparison.
            assume_same_patient: of the comparison.
            notes: sentences to be added.
            record: of the run.
        """
        from ..files import write_json, write_text
        from ..measurement.report.document import Report
        from ..measurement.tables import lesion_rows, region_rows, write_csv

        if not kinds or set(kinds) - {"html", "csv", "json"}:
            raise InputError(f"The report's kinds are {kinds}; choose among html, csv and json.")
        context.progress("measuring", 0, 2)
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
            assume_same_patient=assume_same_patient,
        )
        measured = report.to_json()
        context.check()
        context.progress("measuring", 1, 2)
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
        context.progress("measuring", 2, 2)
        return Answer({"measured": measured, "files": files})

    def dicom_seg(
        self,
        context: Context,
        study: Study,
        case: str,
        folder: Path,
        source: str | list[str],
        series: str | None = None,
        record: dict[str, Any] | None = None,
        segments: list[dict[str, Any]] | None = None,
        **arrays: Array,
    ) -> Answer:
        """Write a DICOM SEG: ``files`` and ``notes``. It carries the patient's identity: say so first.

        Args:
            context: of the request.
            study: that is open.
            case: what it is called, in the file's name.
            folder: for the file.
            source: folder, file or list of files of the CT.
            series: UID of the CT's series.
            record: of the run.
            segments: ``name``, ``array`` and ``edited`` of each; None is the study's lesion.
            **arrays: those of the segments, besides the study's.
        """
        from ..imaging.dicom.seg_writing import DicomSegment, SegmentAlgorithm, read_seg_source, write_dicom_seg

        output = folder / f"{case}_{REPORT_FILES['dicom'][0]}"
        made = []
        for item in [{"name": "lesion", "array": "lesion", "edited": True}] if segments is None else segments:
            name, edited = str(item.get("array", "lesion")), bool(item.get("edited"))
            mask = arrays.get(name, study.mask(name) if name in _MASKS else None)
            if mask is None:
                raise InputError(f"There is no array {name!r} for the segment {item.get('name')!r}.")
            kind: Any = "SEMIAUTOMATIC" if edited else "AUTOMATIC"
            algorithm = (
                SegmentAlgorithm.from_record(record, edited)
                if record is not None
                else SegmentAlgorithm("COVIDLesionSeg", type=kind)
            )
            made.append(DicomSegment(str(item.get("name", name)), mask, algorithm))
        context.progress("writing", 0, 1)
        notes = write_dicom_seg(output, made, study.volume.geometry, read_seg_source(source, series))
        context.progress("writing", 1, 1)
        return Answer({"files": [str(output)], "notes": list(notes)})

    def _study(self, name: str, /) -> Study:
        if name not in self._studies:
            raise NotOpenError("The study is not open for measuring (any more).", "Open it again.")
        return self._studies[name]


def _described(study: NewStudy | None, task: str) -> NewStudy:
    if study is None:
        raise InputError(f"The task {task} needs the array volume with its geometry, or the name of an open study.")
    return study
