"""The cases of a store on disk: CTs come in, models' predictions and people's masks are added, nothing is replaced."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..codec import from_json, to_json
from ..documents import MOST_JSON_BYTES, parse_json
from ..errors import InputError, OutputError, ReadError
from ..files import atomic_folder, read_bytes, sha256_file, write_json
from ..imaging.geometry import Geometry
from ..imaging.volume import LabelVolume, Volume
from ..inference.levels import ProbabilityLevels
from ..inference.record import sha256_array
from .layout import (
    CONSENSUS,
    Layout,
    case_name,
    case_number,
    check_rater,
    now,
    numbered,
    read_json,
    store_values,
)
from .records import (
    LEVELS_FILE,
    MOST_LEVELS_BYTES,
    Case,
    CtFacts,
    LungsFacts,
    PatientFrom,
    Prediction,
    Revision,
    State,
    lesion_ml,
)
from .work import Autosaves, WorkLocks

_log = logging.getLogger(__name__)
Mask = LabelVolume | NDArray[Any]
Numbered = TypeVar("Numbered", Prediction, Revision)
_NEVER_CHANGES = ("id", "patient", "patient_from", "dicom_patient", "added", "ct", "lungs")
# DICOM tags that are kept beside a case when somebody asks for it
_IDENTITY = {
    "PatientID": "0010|0020",
    "StudyInstanceUID": "0020|000d",
    "SeriesInstanceUID": "0020|000e",
    "StudyDate": "0008|0020",
}


class KnownCtError(InputError):
    """The CT is in the store already.

    Attributes:
        case_id: as this case.
    """

    def __init__(self, case_id: str) -> None:
        super().__init__(f"This CT is in the store already, as {case_id}.")
        self.case_id = case_id


class CaseFiles:
    """Reads and writes the cases of a store; what only looks works on a read-only store, too.

    ``case.json`` is an index with the things that change; what counts are the numbered folders of revisions and
    predictions that appear whole and are never replaced. Where the two differ, a program was killed between them.

    Args:
        folder: of the store.

    Raises:
        ReadError: no store there, or its file is damaged.
        InputError: a store of another version.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.layout = Layout(self.folder)
        values = store_values(self.folder)
        self.id: str = values["id"]
        self.created: str = values["created"]
        self.locks = WorkLocks(self.layout)
        self.autosaves = Autosaves(self.layout)
        self._known: dict[str, tuple[tuple[int, int, int], Case]] = {}

    # --- looking -----------------------------------------------------------------------------------------------------

    def cases(self, *states: State) -> list[Case]:
        """All cases in the order in which they were added, or those in some states.

        Reads each case's small file only when it changed since the last call.
        """
        locks, unsaved = self.locks.all(), self.autosaves.raters()
        try:
            names = sorted((e.name for e in os.scandir(self.layout.cases) if case_number(e.name) > 0), key=case_number)
        except FileNotFoundError:
            names = []
        found = []
        for name in names:
            case = replace(self.read(name), lock=locks.get(name), unsaved=unsaved.get(name, ()))
            if not states or case.state in states:
                found.append(case)
        return found

    def case(self, case_id: str) -> Case:
        """One case.

        Raises:
            InputError: there is no such case.
            ReadError: its files are damaged.
        """
        if case_number(case_id) < 1 or not self.layout.case(case_id).is_dir():
            raise InputError(
                f"There is no case {case_id!r} in the store {self.folder.name}.",
                "`covid-lesion-seg cases list` shows all.",
            )
        case = self.complete(self.read(case_id))
        return replace(case, lock=self.locks.of(case_id), unsaved=self.autosaves.raters().get(case_id, ()))

    def counts(self) -> dict[State, int]:
        """How many cases are in each state that occurs."""
        counts: dict[State, int] = {}
        for case in self.cases():
            counts[case.state] = counts.get(case.state, 0) + 1
        return counts

    def read_ct(self, case_id: str) -> Volume:
        """The CT of a case, checked against the hash that was recorded when it was added.

        Raises:
            ReadError: it changed since, is damaged, or is not where it was.
        """
        from ..imaging import read_volume

        case = self.case(case_id)
        path, series = self.ct_path(case)
        if not path.exists():
            hint = "`covid-lesion-seg cases check --find FOLDER` looks for it elsewhere."
            raise ReadError(
                f"The CT of {case_id} is not where it was.", hint if case.ct.storage == "referenced" else ""
            )
        volume = read_volume(path, series)
        if volume.source["sha256"] != case.ct.sha256:
            raise ReadError(
                f"The CT of {case_id} has changed since it was added to the store; its masks may not fit any more.",
                "Restore the file from a backup, or add the changed CT as a new case.",
            )
        return replace(volume, name=case_id)

    def ct_path(self, case: Case) -> tuple[Path, str | None]:
        """Where the CT of a case lies, and which series of that folder it is (None: the only one).

        Raises:
            ReadError: the CT was not copied, and nobody knows any more where it is.
        """
        if case.ct.storage == "copied":
            return self.layout.case(case.id) / case.ct.file, None
        if not self.layout.location_file(case.id).is_file():
            raise ReadError(
                f"The CT of {case.id} was not copied, and the store no longer says where it is (private/locations).",
                "`covid-lesion-seg cases check --find FOLDER` looks for it.",
            )
        location = read_json(self.layout.location_file(case.id))
        return Path(location["path"]), location.get("series")

    def read_prediction(self, case_id: str, number: int | None = None) -> LabelVolume:
        """A model's prediction on the grid of the CT; the last one by default.

        Raises:
            InputError: there is none.
            ReadError: its file is damaged.
        """
        case = self.case(case_id)
        found = case.prediction if number is None else next((p for p in case.predictions if p.number == number), None)
        if found is None:
            raise InputError(
                f"{case_id} has no prediction of a model{'' if number is None else f' with number {number}'}."
            )
        return self.read_mask(case, self.prediction_path(case, found), found.sha256)

    def read_levels(self, case_id: str, number: int) -> ProbabilityLevels | None:
        """The probability of a model's prediction in levels, None where none was kept.

        Raises:
            ReadError: its file is damaged.
        """
        case = self.case(case_id)
        found = next((p for p in case.predictions if p.number == number), None)
        if found is None or not found.levels_sha256:
            return None
        path = self.levels_path(case, found)
        try:
            content = read_bytes(path, MOST_LEVELS_BYTES)
        except OSError as error:
            raise _unreadable(path, error) from error
        if hashlib.sha256(content).hexdigest() != found.levels_sha256:
            raise ReadError(
                f"The probability of prediction {number} of {case_id} has changed since it was saved.",
                "Restore it from a backup of the store, or run the model on the case again.",
            )
        levels = ProbabilityLevels.from_bytes(content)
        levels.require_shape(case.ct.geometry.shape)
        return levels

    def read_revision(self, case_id: str, number: int | None = None) -> LabelVolume:
        """A revision's mask on the grid of the CT; by default the one that trains, else the last one.

        Raises:
            InputError: there is none.
            ReadError: its file is damaged.
        """
        case = self.case(case_id)
        found = (case.label_revision or case.latest()) if number is None else case.revision(number)
        if found is None:
            raise InputError(f"{case_id} has no revision{'' if number is None else f' {number}'}.")
        return self.read_mask(case, self.revision_path(case, found), found.sha256)

    def read_lungs(self, case_id: str) -> LabelVolume | None:
        """The lung mask of a case on the grid of its CT, or None where the store has none."""
        case = self.case(case_id)
        if case.lungs is None:
            return None
        return self.read_mask(case, self.layout.case(case_id) / case.lungs.file, case.lungs.sha256)

    def revision_path(self, case: Case, revision: Revision) -> Path:
        """The ``.seg.nrrd`` of a revision."""
        return self.layout.revisions(case.id) / f"{revision.number:04d}" / revision.file

    def prediction_path(self, case: Case, prediction: Prediction) -> Path:
        """The ``.seg.nrrd`` of a model's prediction."""
        return self.layout.predictions(case.id) / f"{prediction.number:04d}" / prediction.file

    def levels_path(self, case: Case, prediction: Prediction) -> Path:
        """The file with the probability of a model's prediction, where one was kept."""
        return self.layout.predictions(case.id) / f"{prediction.number:04d}" / LEVELS_FILE

    def run_record(self, case_id: str, number: int) -> Mapping[str, Any] | None:
        """The run record that came with a model's prediction, see ``inference.RunRecord``; None without one."""
        record: Mapping[str, Any] | None = read_json(
            self.layout.predictions(case_id) / f"{number:04d}" / "prediction.json"
        ).get("record")
        return record

    def patient_key(self, patient: str) -> str:
        """The opaque key of a patient: the same for the same text in this store, and useless without its salt.

        Args:
            patient: what tells patients apart, e.g. a hospital's number; it is not kept.

        Raises:
            ReadError: the store's salt is missing.
        """
        if not self.layout.salt_file.is_file():
            raise ReadError(
                "The store's private folder is missing, so a new case can't be matched with the patients it knows.",
                "Put private/ back from where the store came.",
            )
        salt = bytes.fromhex(read_json(self.layout.salt_file)["salt"])
        return "p-" + hmac.new(salt, " ".join(patient.split()).encode(), hashlib.sha256).hexdigest()[:16]

    # --- adding, only ever adding ------------------------------------------------------------------------------------

    def add(
        self,
        ct: Path | str,
        patient: str | None = None,
        *,
        copy: bool = True,
        lungs: Mask | Path | str | None = None,
        series: str | None = None,
        rescale: Sequence[float] | None = None,
        keep_identity: bool = False,
        note: str = "",
        volume: Volume | None = None,
        fallback: str = "",
    ) -> Case:
        """Add a CT as a new case.

        A copy holds voxels and grid only, as ``ct.nrrd``: names, dates and comments of the original's header stay
        behind. A referenced CT stays where it is; the store keeps its hash, and its path in ``private/``.

        Args:
            ct: file or DICOM folder.
            patient: what tells patients apart (it is not kept, see :meth:`patient_key`); by default the DICOM
                PatientID, else ``fallback``, else the case counts as a patient of its own.
            copy: keep a copy in the store; False keeps a reference.
            lungs: lung mask on the CT's grid, or its file.
            series: SeriesInstanceUID, for a DICOM folder with several.
            rescale: (slope, intercept) for values that are not HU; needs a copy.
            keep_identity: keep the DICOM patient ID, study date and UIDs, or the file's name, in ``private/``.
            note: free text.
            volume: the CT, where it was read already.
            fallback: what tells patients apart where neither ``patient`` nor the CT says it, e.g. the name of a file; a
                follow-up of the same patient may have another one.

        Raises:
            ReadError, GeometryError, IntensityError: no CT that can be used, see ``imaging.read_volume``.
            KnownCtError: this CT is in the store already.
            InputError: it can't be referenced.
            OutputError: the store can't be written to.
        """
        from ..imaging import read_volume, write_volume

        path = Path(ct)
        if rescale is not None and not copy:
            raise InputError("A CT whose values are rescaled can't be referenced; let the store keep a copy.")
        volume = volume or read_volume(path, series, rescale)
        voxels = sha256_array(volume.array)
        facts = {
            "voxels_sha256": voxels,
            **{name: getattr(volume.geometry, name) for name in ("size", "spacing", "origin", "direction")},
        }
        identity = _identity(path, series) if volume.source["format"] == "DICOM" else {}
        dicom = self.patient_key(identity["PatientID"]) if identity.get("PatientID") else ""
        known_from: PatientFrom = "given" if patient else "dicom" if dicom else "name" if fallback else "nothing"
        key = dicom if known_from == "dicom" else self.patient_key(patient or fallback or f"case {voxels}")
        with self.locks.changing("store"):
            others = self.cases()
            known = next((c for c in others if c.ct.voxels_sha256 == voxels), None)
            if known is not None:
                raise KnownCtError(known.id)
            same = sorted({c.patient for c in others if dicom and dicom in (c.patient, c.dicom_patient)} - {key})
            if known_from == "dicom" and len(same) == 1:
                # an earlier CT of this PatientID came with another name of the patient
                key = same[0]
            elif same:
                _log.warning(
                    "The DICOM PatientID of this CT is that of %s, which counts as another patient; "
                    "if it is not, a follow-up stands on both sides of the split.",
                    ", ".join(c.id for c in others if c.patient in same),
                )
            while True:
                case_id = case_name(max((case_number(p.name) for p in self.layout.cases.iterdir()), default=0) + 1)
                # what is private comes first: a case without it could not be found again
                if not copy:
                    write_json(self.layout.location_file(case_id), {"path": str(path.resolve()), "series": series})
                if keep_identity:
                    write_json(self.layout.identity_file(case_id), identity or {"file": path.name})
                try:
                    with atomic_folder(self.layout.case(case_id)) as folder:
                        if copy:
                            write_volume(volume, folder / "ct.nrrd")
                            stored = CtFacts("copied", "ct.nrrd", sha256_file(folder / "ct.nrrd"), **facts)
                        else:
                            stored = CtFacts("referenced", "", str(volume.source["sha256"]), **facts)
                        mask = (
                            None
                            if lungs is None
                            else write_lungs(_lungs(lungs, volume), volume.geometry, folder, "given")
                        )
                        case = Case(
                            case_id, key, now(), stored, mask, note, patient_from=known_from, dicom_patient=dicom
                        )
                        values = to_json(case)
                        write_json(
                            folder / "origin.json",
                            {name: values[name] for name in _NEVER_CHANGES},
                        )
                        write_json(folder / "case.json", values)
                except FileExistsError:
                    continue
                return self.case(case_id)

    def set_prediction(
        self,
        case_id: str,
        mask: Mask,
        model: str | Mapping[str, str],
        *,
        uncertainty: Mapping[str, float] | None = None,
        record: Mapping[str, Any] | None = None,
        lungs: Mask | None = None,
        levels: ProbabilityLevels | None = None,
    ) -> Prediction:
        """Store a model's prediction; earlier ones stay.

        Args:
            case_id: which case.
            mask: (z, y, x) on the grid of the CT.
            model: its id, or what a run record says of it (id, name, weights_sha256, ...).
            uncertainty: "tta_entropy" (bits) and "disagreement" (0 ... 1), as far as they are known.
            record: the run record as JSON values, kept beside the mask.
            lungs: lung mask that the run used or found; kept where the case has none.
            levels: the probability that the mask was made from, kept beside it for corrections by a click.

        Raises:
            InputError, GridMismatchError: a mask or probability that does not fit the CT.
            OutputError: the store can't be written to, or the disk is full.
        """
        case = self.case(case_id)
        labels = case.labels(mask, "model's prediction")
        facts = {"id": model} if isinstance(model, str) else {k: str(v) for k, v in model.items() if v is not None}
        values = {name: float(value) for name, value in (uncertainty or {}).items()}
        if any(not np.isfinite(value) for value in values.values()):
            raise InputError(f"The uncertainty of {case_id} is not finite; leave it out.")
        draft = Prediction(0, facts, lesion_ml(labels), values, saved=now())
        files = {}
        if levels is not None:
            levels.require_shape(case.ct.geometry.shape)
            files[LEVELS_FILE] = levels.to_bytes()
            draft = replace(draft, levels_sha256=hashlib.sha256(files[LEVELS_FILE]).hexdigest())
        with self.locks.changing(case_id):
            prediction = self.write_numbered(
                self.layout.predictions(case_id),
                labels,
                lambda number: replace(draft, number=number, file=f"{case_id}_p{number:03d}.seg.nrrd"),
                {} if record is None else {"record": dict(record)},
                files,
            )
            found = None
            if lungs is not None and case.lungs is None:
                found = write_lungs(lungs, case.ct.geometry, self.layout.case(case_id), "found")
            with self.changed(case_id) as now_known:
                now_known["predictions"].append(to_json(prediction))
                if found is not None:
                    now_known["lungs"] = to_json(found)
        return prediction

    def save_revision(
        self,
        case_id: str,
        mask: Mask,
        rater: str,
        *,
        seconds: float = 0.0,
        no_lesion: bool = False,
        comment: str = "",
        prediction: NDArray[np.bool_] | None = None,
        is_import: bool = False,
        blind: bool = False,
    ) -> Revision:
        """Save a mask as the next revision of a case.

        Args:
            case_id: which case.
            mask: (z, y, x) on the grid of the CT; every label of it is lesion.
            rater: who made it.
            seconds: time spent.
            no_lesion: says that the case has no lesion; needed for an empty mask, since a forgotten mask is empty, too.
            comment: free text.
            prediction: the model's last prediction as a mask, where the caller has it at hand; else it is read.
            is_import: the mask was made elsewhere, without a model's prediction of this store.
            blind: the rater has seen no prediction, and no mask that one has drafted; otherwise the case's last
                prediction counts as seen.

        Returns:
            The revision, with its number, what drafted it, and its Dice to the model's prediction.

        Raises:
            InputError, GridMismatchError: a mask that does not fit the CT, or is empty without ``no_lesion``.
            OutputError: the store can't be written to, or the disk is full; nothing half-written stays.
        """
        case = self.case(case_id)
        rater = check_rater(rater)
        labels = case.labels(mask, "mask")
        volume = lesion_ml(labels)
        if volume == 0 and not no_lesion:
            raise InputError(f"The mask of {case_id} is empty; save it as 'no lesion' if the case has none.")
        if volume > 0 and no_lesion:
            raise InputError(
                f"{case_id} is to be saved as 'no lesion', but its mask holds {volume:.3g} mL; empty the mask first."
            )
        draft = Revision(
            0,
            rater,
            volume,
            no_lesion,
            round(max(0.0, float(seconds)), 1),
            drafts=() if is_import or blind else _drafts(case, rater),
            comment=comment,
            kind="import" if is_import else "correction",
            saved=now(),
        )
        return self._save(case, labels, draft, prediction)

    def save_consensus(self, case_id: str, mask: Mask, sources: Sequence[Revision], method: str) -> Revision:
        """Save the consensus of several raters' revisions.

        Args:
            case_id: which case.
            mask: bool (z, y, x).
            sources: the revisions that it was made of.
            method: how, for the comment.
        """
        case = self.case(case_id)
        labels = case.labels(mask, "consensus")
        volume = lesion_ml(labels)
        numbers = tuple(revision.number for revision in sources)
        drafts = tuple(sorted({number for revision in sources for number in revision.drafts}))
        draft = Revision(
            0,
            CONSENSUS,
            volume,
            volume == 0,
            drafts=drafts,
            kind="consensus",
            sources=numbers,
            comment=method,
            saved=now(),
        )
        return self._save(case, labels, draft, None)

    def _save(self, case: Case, labels: LabelVolume, draft: Revision, prediction: NDArray[np.bool_] | None) -> Revision:
        draft = self._compared(case, labels, draft, prediction)
        with self.locks.changing(case.id):
            revision = self.write_numbered(
                self.layout.revisions(case.id),
                labels,
                lambda number: replace(draft, number=number, file=f"{case.id}_r{number:03d}_{draft.rater}.seg.nrrd"),
            )
            with self.changed(case.id) as values:
                values["revisions"].append(to_json(revision))
                if revision.kind != CONSENSUS:
                    values |= {"approved": None, "approved_by": ""}
        return revision

    def _compared(
        self, case: Case, labels: LabelVolume, draft: Revision, prediction: NDArray[np.bool_] | None
    ) -> Revision:
        from ..measurement import dice

        if case.prediction is None:
            return draft
        if prediction is None:
            prediction = self.read_prediction(case.id).mask()
        overlap = round(dice(prediction, labels.mask()), 6)
        return replace(
            draft, prediction=case.prediction.number, model=case.prediction.model_id, dice_to_prediction=overlap
        )

    # --- what is decided about a case --------------------------------------------------------------------------------

    def approve(self, case_id: str, by: str, revision: int | None = None) -> Case:
        """Approve a revision, the last one by default; a later revision needs approval of its own.

        Raises:
            InputError: there is no such revision.
        """
        by = check_rater(by)
        found = self.case(case_id).latest() if revision is None else self.case(case_id).revision(revision)
        if found is None:
            raise InputError(f"{case_id} has no revision{'' if revision is None else f' {revision}'} to approve.")
        return self._change(case_id, approved=found.number, approved_by=by)

    def exclude(self, case_id: str, reason: str) -> Case:
        """Leave a case out of the queue, of training and of validation.

        Raises:
            InputError: no reason.
        """
        if not reason.strip():
            raise InputError(f"Say why {case_id} is excluded, e.g. 'motion artifacts'.")
        return self._change(case_id, exclusion=reason.strip())

    def include(self, case_id: str) -> Case:
        """Re-include an excluded case."""
        return self._change(case_id, exclusion="")

    def set_note(self, case_id: str, note: str) -> Case:
        """Write the free text of a case."""
        return self._change(case_id, note=note)

    def name_patient(self, case_id: str, key: str) -> Case:
        """Let a case be of the patient with this key; ``StoreSplit.set_patient`` keeps the split right, too."""
        with self.locks.changing(case_id):
            origin = {**read_json(self.layout.origin_file(case_id)), "patient": key, "patient_from": "given"}
            write_json(self.layout.origin_file(case_id), origin)
            with self.changed(case_id) as known:
                known |= {"patient": key, "patient_from": "given"}
        return self.case(case_id)

    def set_label(self, case_id: str, label: str | int) -> Case:
        """Choose which revision trains.

        Args:
            case_id: which.
            label: "latest" (the approved revision, else the last one), "consensus", or a revision's number.

        Raises:
            InputError: no such revision.
        """
        case = self.case(case_id)
        label = str(label)
        known = label in ("latest", CONSENSUS) or (label.isdecimal() and case.revision(int(label)) is not None)
        if not known:
            raise InputError(f"{case_id} has no revision {label!r}; use latest, consensus or a revision's number.")
        return self._change(case_id, label=label)

    def unlock(self, case_id: str) -> str:
        """Remove the lock of a case, whoever holds it; says whose it was."""
        lock = self.locks.remove(self.case(case_id).id)
        return f"{case_id} was open: {lock}." if lock is not None else f"{case_id} was not open."

    def _change(self, case_id: str, **values: Any) -> Case:
        with self.locks.changing(case_id), self.changed(case_id) as known:
            known |= values
        return self.case(case_id)

    # --- files -------------------------------------------------------------------------------------------------------

    def read(self, case_id: str) -> Case:
        """A case as its file says; read again only when the file changed. A damaged one is rebuilt in memory.

        Raises:
            ReadError: the file can't be read now, or the files to rebuild it from are damaged, too.
        """
        path = self.layout.case_file(case_id)
        try:
            status = path.stat()
        except FileNotFoundError:
            return self.rebuilt(case_id)
        except OSError as error:
            raise _unreadable(path, error) from error
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._known.get(case_id)
        if known is not None and known[0] == state:
            return known[1]
        case = self.stored(case_id)
        if case is None:
            return self.rebuilt(case_id)
        self._known[case_id] = (state, case)
        return case

    def stored(self, case_id: str) -> Case | None:
        """A case as its file says this moment; None where the file is missing or damaged.

        A file that can't be read is not taken for damaged: rebuilt and written, it would lose what only it holds.

        Raises:
            ReadError: the file can't be read now.
        """
        path = self.layout.case_file(case_id)
        try:
            content = read_bytes(path, MOST_JSON_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            return from_json(Case, parse_json(content, path.name))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _log.warning("%s is damaged (%s); `cases check` repairs it.", path, error)
            return None

    def rebuilt(self, case_id: str) -> Case:
        """A case from what never changes; note, review, approval and choice of label are lost.

        Raises:
            ReadError: that is damaged, too.
        """
        origin = read_json(self.layout.origin_file(case_id))
        try:
            return self.complete(from_json(Case, origin))
        except (KeyError, TypeError, ValueError) as error:
            raise ReadError(f"The files of {case_id} are damaged; restore them from a backup of the store.") from error

    def complete(self, case: Case) -> Case:
        """The case with what was saved just before a program was killed."""
        revisions, predictions = self.layout.revisions(case.id), self.layout.predictions(case.id)
        if numbered(revisions) != [revision.number for revision in case.revisions]:
            records = [read_json(revisions / f"{number:04d}" / "revision.json") for number in numbered(revisions)]
            found = tuple(from_json(Revision, record) for record in records)
            known = {revision.number for revision in case.revisions}
            if any(revision.number not in known and revision.kind != CONSENSUS for revision in found):
                # an approval is of the last revision that was known then
                case = replace(case, approved=None, approved_by="")
            case = replace(case, revisions=found)
        if numbered(predictions) != [prediction.number for prediction in case.predictions]:
            records = [read_json(predictions / f"{number:04d}" / "prediction.json") for number in numbered(predictions)]
            case = replace(case, predictions=tuple(from_json(Prediction, record) for record in records))
        return case

    @contextmanager
    def changed(self, case_id: str) -> Iterator[dict[str, Any]]:
        """The values of a case to change, written when the block ends well; only to be used while they are locked.

        A damaged ``case.json`` is kept beside the new one, as ``case.json.damaged``.
        """
        # not from the cache: file systems are coarse about times, and what is written replaces what others wrote
        stored = self.stored(case_id)
        values = to_json(stored or self.rebuilt(case_id))
        yield values
        changed = to_json(self.complete(from_json(Case, values)))
        if stored is None:
            self._put_aside(case_id)
        write_json(self.layout.case_file(case_id), changed)

    def _put_aside(self, case_id: str) -> None:
        path = self.layout.case_file(case_id)
        try:
            with suppress(FileNotFoundError):
                path.replace(path.with_name(f"{path.name}.damaged"))
        except OSError as error:
            raise OutputError(f"The damaged {path} can't be renamed ({error.strerror or error}).") from error

    def read_mask(self, case: Case, path: Path, sha256: str) -> LabelVolume:
        """A mask of a case, on the grid of its CT.

        Raises:
            ReadError: missing, or not what was saved.
        """
        from ..imaging import read_labels

        if not path.is_file() or sha256_file(path) != sha256:
            raise ReadError(
                f"The mask {path.name} of {case.id} is missing or has changed since it was saved.",
                "Restore it from a backup of the store.",
            )
        labels = read_labels(path)
        labels.geometry.require_same(case.ct.geometry, "mask", "CT")
        return labels

    def write_numbered(
        self,
        folder: Path,
        labels: LabelVolume,
        named: Callable[[int], Numbered],
        more: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Numbered:
        """Write a mask and its record as the next numbered folder.

        Args:
            folder: of the numbered ones.
            labels: the mask.
            named: makes the record from the number, with the file's name.
            more: values that stand in the record's file only.
            files: name -> content of files beside the mask.
        """
        from ..imaging import write_labels

        while True:
            number = max(numbered(folder), default=0) + 1
            record = named(number)
            try:
                with atomic_folder(folder / f"{number:04d}") as place:
                    write_labels(labels, place / record.file, crop=True)
                    record = replace(record, sha256=sha256_file(place / record.file))
                    for name, content in (files or {}).items():
                        (place / name).write_bytes(content)
                    name = "revision.json" if isinstance(record, Revision) else "prediction.json"
                    write_json(place / name, {**to_json(record), **(more or {})})
            except FileExistsError:
                # somebody was faster, through a share whose locks do not work: take the next number
                continue
            return record


def _drafts(case: Case, rater: str) -> tuple[int, ...]:
    """The predictions that a rater who has not read blind began from or could see."""
    start = case.latest(rater) or case.latest()
    numbers = set(start.drafts) if start is not None else set()
    return tuple(sorted(numbers | ({case.prediction.number} if case.prediction is not None else set())))


def write_lungs(lungs: Mask, geometry: Geometry, folder: Path, source: str) -> LungsFacts:
    """Write a lung mask into a case's folder.

    Args:
        lungs: (z, y, x), 1 right and 2 left, or 1 for both.
        geometry: grid of the CT.
        folder: of the case.
        source: "given" or "found".
    """
    from ..imaging import write_labels

    if not isinstance(lungs, LabelVolume):
        array = np.asarray(lungs)
        geometry.require_shape(array, "lung mask")
        array = array.astype(np.uint8)
        names = {1: "right lung", 2: "left lung"} if array.max(initial=0) == 2 else {1: "lungs"}
        lungs = LabelVolume(array, geometry, names)
    lungs.geometry.require_same(geometry, "lung mask", "CT")
    target = folder / "lungs.seg.nrrd"
    write_labels(lungs, target, crop=True)
    return LungsFacts(target.name, sha256_file(target), source)


def _lungs(lungs: Mask | Path | str, volume: Volume) -> Mask:
    from ..imaging import lungs_from_mask, read_labels

    if isinstance(lungs, Path | str):
        labels = read_labels(lungs)
        labels.geometry.require_same(volume.geometry, "lung mask", "CT")
        return lungs_from_mask(labels, volume)
    return lungs


def _identity(path: Path, series: str | None) -> dict[str, str]:
    """What a DICOM series says about whose it is; read only to group by patient unless more is asked for."""
    import SimpleITK as sitk

    from ..imaging import dicom_files

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(dicom_files(path, series)[0]))
    reader.LoadPrivateTagsOff()
    reader.ReadImageInformation()
    present = {name: tag for name, tag in _IDENTITY.items() if reader.HasMetaDataKey(tag)}
    return {name: text for name, tag in present.items() if (text := reader.GetMetaData(tag).strip())}


def _unreadable(path: Path, error: OSError) -> ReadError:
    return ReadError(
        f"{path} can't be read now ({error.strerror or error}); nothing was changed.",
        "Try again when the store can be reached and no other program holds the file.",
    )
