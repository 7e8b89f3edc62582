"""The case store: a plain folder with the cases, the models' predictions and everybody's revisions."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, OutputError
from ..files import is_unfinished, write_json
from .case_files import CaseFiles
from .layout import FORMAT, VERSION, Layout, check_rater, now
from .records import Revision, State
from .review import ReviewList
from .running import Comparison, PredictionReport, Validation, predict_cases
from .split import StoreSplit
from .store_models import StoreModels
from .training import FineTuneResult, FineTuning

if TYPE_CHECKING:
    from .checking import CheckReport, Progress
    from .exchange import ImportReport
    from .queue import Suggestion
    from .session import Session


class Store(CaseFiles):
    """A case store that exists: its cases, see :class:`~.case_files.CaseFiles`, and all that is done with them.

    Every file appears whole or not at all; masks are never replaced. Several people may work on one store at the same
    time, also over a network share that supports file locks.

    Args:
        folder: of the store.

    Raises:
        ReadError: no store there, or its file is damaged.
        InputError: a store of another version.

    Attributes:
        folder: where it is.
        id: tells this store from any other.
        created: when, UTC.
        layout: where things lie in it.
        locks: who has which case open.
        autosaves: unsaved work.
        split: which patients train and which validate.
        review: labels that look doubtful.
        models: what was trained here, and the active model with its history.
        validation: models on the validation cases, and the gate.
        training: rounds of fine-tuning.

    Example:
        >>> store = Store("loop")  # doctest: +SKIP
        >>> with store.open(store.next("anna").case.id, "anna") as session:  # doctest: +SKIP
        ...     session.save(corrected)
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self.split = StoreSplit(self)
        self.review = ReviewList(self)
        self.models = StoreModels(self.layout.models, self.locks, self.id, self.created)
        self.validation = Validation(self, self.split, self.models)
        self.training = FineTuning(self, self.split, self.models, self.review, self.validation)

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

    def next(
        self,
        rater: str,
        by: str = "uncertainty",
        states: Sequence[State] = ("new", "predicted"),
        seed: int | None = None,
    ) -> Suggestion | None:
        """The case to work on next, see :func:`.queue.next_case`."""
        from .queue import next_case

        cases = self.cases()
        return next_case(cases, rater, by, states, seed, self.split.to_read_blind(cases))

    def open(self, case_id: str, rater: str, take_over: bool = False) -> Session:
        """Open a case to work on it; others see that it is open. What is read blind shows no model's prediction.

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

        blind = self.split.reads_blind(self.case(case_id))
        return Session(self, case_id, check_rater(rater), take_over, blind)

    # --- the larger steps of the loop --------------------------------------------------------------------------------

    def import_cases(self, source: Path | str, *arguments: Any, **settings: Any) -> ImportReport:
        """Take an existing data set in, see :func:`.exchange.import_cases`."""
        from .exchange import import_cases

        return import_cases(self, source, *arguments, **settings)

    def export_nnunet(self, folder: Path | str, *arguments: Any, **settings: Any) -> Path:
        """Write the labeled cases for nnU-Net, see :func:`.exchange.export_nnunet`."""
        from .exchange import export_nnunet

        return export_nnunet(self, self.split, folder, *arguments, **settings)

    def predict(self, model: str | None = None, *arguments: Any, **settings: Any) -> PredictionReport:
        """Run a model on waiting cases, see :func:`.running.predict_cases`; needs PyTorch."""
        return predict_cases(self, self.split, self.models, model, *arguments, **settings)

    def fine_tune(self, base_model: str | None = None, **settings: Any) -> FineTuneResult:
        """Train on the corrected cases and validate the result, see :meth:`.training.FineTuning.run`; needs PyTorch."""
        return self.training.run(base_model, **settings)

    def compare(self, models: Sequence[str], **settings: Any) -> Comparison:
        """Models on the frozen validation cases, see :meth:`.running.Validation.compare`; needs PyTorch."""
        return self.validation.compare(models, **settings)

    def consensus(self, case_id: str, use_as_label: bool = True) -> Revision:
        """Save the consensus of a case's raters, see :func:`.agreement.make_consensus`."""
        from .agreement import make_consensus

        return make_consensus(self, case_id, use_as_label)

    def check(
        self, repair: bool = True, find: Path | str | None = None, progress: Progress | None = None
    ) -> CheckReport:
        """Verify everything by hash and repair what can be repaired, see :func:`.checking.check`."""
        from .checking import check

        return check(self, self.split, self.models, repair, find, progress)


def _may_become_a_store(folder: Path) -> bool:
    """Whether a folder is empty, or holds no more than a program that was killed while it made a store has left."""
    layout = Layout(folder)
    own = {path for path in vars(layout).values() if isinstance(path, Path)} - {layout.store_file}
    return folder.is_dir() and all(path in own or is_unfinished(path.name) for path in folder.rglob("*"))
