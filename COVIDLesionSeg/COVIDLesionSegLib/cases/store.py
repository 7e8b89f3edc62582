"""The case store: a plain folder with the cases, the models' answers and everybody's revisions."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, OutputError
from ..files import is_unfinished, write_json
from .adding import add_case
from .layout import CONSENSUS, FORMAT, VERSION, Layout, check_rater, now
from .reader import StoreReader
from .records import Case, Revision, State
from .review import ReviewList
from .saving import save_revision, set_prediction
from .split import StoreSplit
from .store_models import StoreModels

if TYPE_CHECKING:
    from .checking import CheckReport
    from .importing import ImportReport
    from .judging import Comparison
    from .predicting import PredictionReport
    from .queue import Suggestion
    from .session import Session
    from .training import FineTuneResult

Progress = Callable[[str, int, int], None]


class Store(StoreReader):
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
        super().__init__(folder)
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
        if folder.exists() and not _may_become_a_store(folder):
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

    # each is written and documented where it stands; its first argument is the store
    add = add_case
    set_prediction = set_prediction
    save_revision = save_revision

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

    def import_cases(self, source: Path | str, **settings: Any) -> ImportReport:
        """Take an existing data set in, see :func:`.importing.import_cases`."""
        from .importing import import_cases

        return import_cases(self, source, **settings)

    def predict(self, model: str | None = None, **settings: Any) -> PredictionReport:
        """Let a model answer the cases that wait, see :func:`.predicting.predict_cases`; needs PyTorch."""
        from .predicting import predict_cases

        return predict_cases(self, model, **settings)

    def fine_tune(self, base_model: str | None = None, **settings: Any) -> FineTuneResult:
        """Train on the corrected cases and judge the result, see :func:`.training.fine_tune_store`; needs PyTorch."""
        from .training import fine_tune_store

        return fine_tune_store(self, base_model, **settings)

    def compare(self, models: Sequence[str], **settings: Any) -> Comparison:
        """Judge models on the frozen validation cases, see :func:`.judging.compare`; needs PyTorch."""
        from .judging import compare

        return compare(self, models, **settings)

    def consensus(self, case_id: str, use_as_label: bool = True) -> Revision:
        """Save the consensus of a case's raters, see :func:`.agreement.make_consensus`."""
        from .agreement import make_consensus

        return make_consensus(self, case_id, use_as_label)

    def check(
        self, repair: bool = True, find: Path | str | None = None, progress: Progress | None = None
    ) -> CheckReport:
        """Verify everything by hash and repair what can be repaired, see :func:`.checking.check`."""
        from .checking import check

        return check(self, repair, find, progress)


def _may_become_a_store(folder: Path) -> bool:
    """Whether a folder is empty, or holds no more than a program that was killed while it made a store has left."""
    layout = Layout(folder)
    own = {path for path in vars(layout).values() if isinstance(path, Path)} - {layout.store_file}
    return folder.is_dir() and all(path in own or is_unfinished(path.name) for path in folder.rglob("*"))
