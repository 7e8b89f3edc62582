"""The case store: a plain folder with the cases, the models' answers and everybody's revisions."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError, ReadError
from ..files import is_unfinished, write_json
from ..imaging.volume import LabelVolume, Volume
from .autosaves import Autosaves
from .case_files import CaseFiles
from .layout import CONSENSUS, FORMAT, VERSION, Layout, case_number, check_rater, now, read_json, store_values
from .records import Case, Prediction, Revision, State
from .review import ReviewList
from .split import StoreSplit
from .store_models import StoreModels
from .work_locks import WorkLocks

if TYPE_CHECKING:
    from .checking import CheckReport
    from .queue import Suggestion
    from .session import Session
    from .training import FineTuneResult

Progress = Callable[[str, int, int], None]
Mask = LabelVolume | NDArray[Any]


class Store:
    """A case store that exists.

    Every file appears whole or not at all; masks are never replaced. Several people may work on one store at the same
    time, also over a network share that supports file locks.

    Args:
        folder: of the store.

    Raises:
        ReadError: no store there, or its file is damaged.
        InputError: a store of a newer version, or of an older one, which :func:`~.migration.migrate` brings up to date.

    Attributes:
        folder: where it is.
        id: tells this store from any other.
        created: when, UTC.
        layout: where things lie in it.
        files: of its cases.
        locks: who has which case open.
        autosaves: unsaved work.
        split: which patients train and which judge.
        review: labels that look doubtful.
        models: what was trained here, and the default model with its history.

    Example:
        >>> store = Store("loop")  # doctest: +SKIP
        >>> with store.open(store.next("anna").case.id, "anna") as session:  # doctest: +SKIP
        ...     session.save(corrected)
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.layout = Layout(self.folder)
        values = store_values(self.folder)
        if values["version"] < VERSION:
            raise InputError(
                f"The case store {self.folder.name} has version {values['version']}; "
                f"this program works with version {VERSION}.",
                f"Bring it up to date with `covid-lesion-seg cases migrate {self.folder}`; "
                "older programs can't open it afterwards.",
            )
        self.id: str = values["id"]
        self.created: str = values["created"]
        self.files = CaseFiles(self.layout)
        self.locks = WorkLocks(self.layout)
        self.autosaves = Autosaves(self.layout)
        self.split = StoreSplit(self)
        self.review = ReviewList(self)
        self.models = StoreModels(self)

    @classmethod
    def create(cls, folder: Path | str) -> Store:
        """Make an empty store in a folder that is empty or not there yet.

        Raises:
            InputError: the folder holds something already.
            OutputError: it can't be written.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(not is_unfinished(p.name) for p in folder.iterdir())):
            raise InputError(f"{folder} is not empty; choose a new or empty folder for the store.")
        layout = Layout(folder)
        try:
            for place in (layout.cases, layout.locks, layout.autosave, layout.models, layout.private):
                place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} can't be written to ({error.strerror or error}).") from error
        write_json(layout.salt_file, {"salt": secrets.token_hex(32)})
        # the file that makes it a store comes last
        values = {"format": FORMAT, "version": VERSION, "id": secrets.token_hex(8), "created": now()}
        write_json(layout.store_file, values)
        return cls(folder)

    # --- looking ---------------------------------------------------------------------------------------------------

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
            case = replace(self.files.read(name), lock=locks.get(name), unsaved=unsaved.get(name, ()))
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
        case = self.files.complete(self.files.read(case_id))
        return replace(case, lock=self.locks.of(case_id), unsaved=self.autosaves.raters().get(case_id, ()))

    def counts(self) -> dict[State, int]:
        """How many cases are in each state that occurs."""
        counts: dict[State, int] = {}
        for case in self.cases():
            counts[case.state] = counts.get(case.state, 0) + 1
        return counts

    def next(
        self,
        rater: str,
        by: str = "uncertainty",
        states: Sequence[State] = ("new", "predicted"),
        seed: int | None = None,
    ) -> Suggestion | None:
        """The case to work on next, see :func:`.queue.next_case`."""
        from .queue import next_case

        return next_case(self.cases(), rater, by, states, seed)

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
        """A model's answer on the grid of the CT; the last one by default.

        Raises:
            InputError: there is none.
            ReadError: its file is damaged.
        """
        case = self.case(case_id)
        found = case.prediction if number is None else next((p for p in case.predictions if p.number == number), None)
        if found is None:
            raise InputError(f"{case_id} has no answer of a model{'' if number is None else f' with number {number}'}.")
        return self.files.read_mask(case, self.prediction_path(case, found), found.sha256)

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
        return self.files.read_mask(case, self.revision_path(case, found), found.sha256)

    def read_lungs(self, case_id: str) -> LabelVolume | None:
        """The lung mask of a case on the grid of its CT, or None where the store has none."""
        case = self.case(case_id)
        if case.lungs is None:
            return None
        return self.files.read_mask(case, self.layout.case(case_id) / case.lungs.file, case.lungs.sha256)

    def revision_path(self, case: Case, revision: Revision) -> Path:
        """The ``.seg.nrrd`` of a revision."""
        return self.layout.revisions(case.id) / f"{revision.number:04d}" / revision.file

    def prediction_path(self, case: Case, prediction: Prediction) -> Path:
        """The ``.seg.nrrd`` of a model's answer."""
        return self.layout.predictions(case.id) / f"{prediction.number:04d}" / prediction.file

    def run_record(self, case_id: str, number: int) -> Mapping[str, Any] | None:
        """The run record that came with a model's answer, see ``inference.RunRecord``; None without one."""
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

    # --- changing --------------------------------------------------------------------------------------------------

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
    ) -> Case:
        """Add a case, see :func:`.adding.add_case`."""
        from .adding import add_case

        return add_case(self, ct, patient, copy, lungs, series, rescale, keep_identity, note)

    def open(self, case_id: str, rater: str, take_over: bool = False) -> Session:
        """Open a case to work on it; others see that it is open.

        Args:
            case_id: which.
            rater: who.
            take_over: also when somebody else has it open.

        Raises:
            InputError: no such case, a name that is not allowed, or the case is excluded.
            CaseOpenError: somebody else has it open.
            OutputError: the store can't be written to.
        """
        from .session import Session

        return Session(self, case_id, check_rater(rater), take_over)

    def set_prediction(
        self,
        case_id: str,
        mask: Mask,
        model: str | Mapping[str, str],
        *,
        uncertainty: Mapping[str, float] | None = None,
        record: Mapping[str, Any] | None = None,
        lungs: Mask | None = None,
    ) -> Prediction:
        """Store a model's answer, see :func:`.saving.set_prediction`."""
        from .saving import set_prediction

        return set_prediction(self, case_id, mask, model, uncertainty, record, lungs)

    def save_revision(
        self,
        case_id: str,
        mask: Mask,
        rater: str,
        *,
        seconds: float = 0.0,
        no_lesion: bool = False,
        comment: str = "",
        answer: NDArray[np.bool_] | None = None,
        is_import: bool = False,
    ) -> Revision:
        """Save a mask as the next revision of a case, see :func:`.saving.save_revision`."""
        from .saving import save_revision

        return save_revision(self, case_id, mask, rater, seconds, no_lesion, comment, answer, is_import)

    def approve(self, case_id: str, by: str, revision: int | None = None) -> Case:
        """Approve a revision, the last one by default; a later revision needs approval of its own.

        Raises:
            InputError: there is no such revision.
        """
        by = check_rater(by)
        found = self.case(case_id).latest() if revision is None else self.case(case_id).revision(revision)
        if found is None:
            raise InputError(f"{case_id} has no revision{'' if revision is None else f' {revision}'} to approve.")
        with self.locks.changing(case_id), self.files.changed(case_id) as values:
            values |= {"approved": found.number, "approved_by": by}
        return self.case(case_id)

    def exclude(self, case_id: str, reason: str) -> Case:
        """Leave a case out of the queue, of training and of validation.

        Raises:
            InputError: no reason.
        """
        if not reason.strip():
            raise InputError(f"Say why {case_id} is excluded, e.g. 'motion artifacts'.")
        with self.locks.changing(case_id), self.files.changed(case_id) as values:
            values["exclusion"] = reason.strip()
        return self.case(case_id)

    def include(self, case_id: str) -> Case:
        """Take an excluded case in again."""
        with self.locks.changing(case_id), self.files.changed(case_id) as values:
            values["exclusion"] = ""
        return self.case(case_id)

    def set_note(self, case_id: str, note: str) -> Case:
        """Write the free text of a case."""
        with self.locks.changing(case_id), self.files.changed(case_id) as values:
            values["note"] = note
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
        with self.locks.changing(case_id), self.files.changed(case_id) as values:
            values["label"] = label
        return self.case(case_id)

    def unlock(self, case_id: str) -> str:
        """Remove the lock of a case, whoever holds it; says whose it was."""
        lock = self.locks.remove(self.case(case_id).id)
        return f"{case_id} was open: {lock}." if lock is not None else f"{case_id} was not open."

    # --- the larger steps of the loop --------------------------------------------------------------------------------

    def check(
        self, repair: bool = True, find: Path | str | None = None, progress: Progress | None = None
    ) -> CheckReport:
        """Verify everything by hash and repair what can be repaired, see :func:`.checking.check`."""
        from .checking import check

        return check(self, repair, find, progress)

    def fine_tune(self, base_model: str | None = None, **settings: Any) -> FineTuneResult:
        """Train on the corrected cases and judge the result, see :func:`.training.fine_tune_store`."""
        from .training import fine_tune_store

        return fine_tune_store(self, base_model, **settings)
