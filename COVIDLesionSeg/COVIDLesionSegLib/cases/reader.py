"""Looking into a store: what there is, and the images of a case; nothing here writes."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError, ReadError
from ..imaging.volume import LabelVolume, Volume
from .autosaves import Autosaves
from .case_files import CaseFiles
from .layout import VERSION, Layout, case_number, read_json, store_values
from .records import Case, Prediction, Revision, State
from .work_locks import WorkLocks


class StoreReader:
    """The half of a :class:`~.store.Store` that looks; works on a read-only store, too."""

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
