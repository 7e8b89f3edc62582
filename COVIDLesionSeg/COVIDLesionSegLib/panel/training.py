"""Detached jobs of the correction loop that outlive Slicer: started from the console or the panel, and watched."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cases import Store
from ..errors import CancelledError, COVIDLesionSegError, InputError
from ..models.catalog import default_folder
from ..worker import WorkerSettings
from ..worker.faults import exception_of
from ..worker.job_tasks import COMPARE, ESTIMATE, PREDICT, VALIDATE
from ..worker.jobs import Job, JobStatus, find_jobs, start_job
from .messages import Notice, noticeOf
from .session import readSettings
from .task import Signal, Tasks, turn
from .text import _, duration_text

if TYPE_CHECKING:
    from .session import Session

_log = logging.getLogger("COVIDLesionSeg")
_INTERVAL_MS = 700
FINE_TUNE = "fine_tune"
_NAMES = {
    FINE_TUNE: "fine-tuning",
    PREDICT: "predictions",
    ESTIMATE: "estimate",
    COMPARE: "comparison",
    VALIDATE: "validation",
}


class TrainingLogic:
    """Starts, watches and cancels jobs of the correction loop: predictions, fine-tuning, comparisons.

    A job is a process of its own that goes on when Slicer ends, and is found again by :meth:`jobs` at the next start.

    Args:
        settings: how the worker is started; None takes the application's settings.
        root: folder of the jobs' folders; None takes one beside the user's models.

    Example:
        >>> training = TrainingLogic()  # doctest: +SKIP
        >>> job = training.fineTune("loop", steps=300)  # doctest: +SKIP
        >>> training.wait(job).result["gate"]["reasons"]  # doctest: +SKIP
    """

    def __init__(self, settings: WorkerSettings | None = None, root: str | Path | None = None) -> None:
        self._settings = settings
        self.root = default_folder().parent / "jobs" if root is None else Path(root)

    def fineTune(
        self,
        cases: Store | str | Path,
        baseModel: str | Path | None = None,
        folder: str | Path | None = None,
        *,
        config: str | Path | None = None,
        device: str = "auto",
        steps: int | None = None,
        replayShare: float | None = None,
        validation: Sequence[str] = (),
        validationShare: float | None = None,
        by: str = "",
        resume: bool = False,
    ) -> Job:
        """Go on training a model on corrected cases; returns at once.

        With a case store the result is validated on the store's frozen validation cases, and becomes the store's active
        model if it passes; doubtful labels come onto its review list.

        Args:
            cases: a case store, a manifest, or a folder of cases.
            baseModel: id or file; None takes the default model (of the store, if it is one).
            folder: of the run; None makes one in :attr:`root`.
            config: a TOML file of settings; None takes those of ``learning.fine_tune``.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            steps: of training; None takes the configuration's (300).
            replayShare: of each batch from cases that earlier rounds have learned from, in [0, 1); None takes half.
                This and the next ones are for a case store only.
            validation: validation patients (keys, or ids of their cases), at the first time; empty draws them.
            validationShare: fraction of the drawn patients; None takes a fifth.
            by: who asks; recorded.
            resume: go on with an interrupted run in the folder.

        Returns:
            The job: :meth:`status` and :meth:`cancel` take it, now or after a restart of Slicer. Its result is
            ``cases.training.FineTuneResult.to_json()`` for a case store.

        Raises:
            InputError: cases that are not there, or a folder that holds another run.
            OutputError: the folder can't be written.
        """
        parameters = {
            "base_model": None if baseModel is None else str(baseModel),
            "config": None if config is None else str(Path(config).absolute()),
            "device": device,
            "steps": steps,
            "replay_share": replayShare,
            "validation": list(validation) or None,
            "validation_share": validationShare,
            "by": by or None,
            "resume": resume,
        }
        return self._start(FINE_TUNE, cases, parameters, folder)

    def predict(
        self, store: Store | str | Path, model: str | None = None, *, ids: Sequence[str] = (), device: str = "auto"
    ) -> Job:
        """Run a model on waiting cases, with the uncertainty that the queue sorts by; returns at once.

        Args:
            store: the case store.
            model: id; None takes the store's default.
            ids: of cases; empty takes all that are new, or have the prediction of an earlier model only.
            device: see :meth:`fineTune`.
        """
        return self._start(PREDICT, store, {"model": model, "ids": list(ids) or None, "device": device})

    def estimate(
        self,
        store: Store | str | Path,
        baseModel: str | None = None,
        *,
        steps: int | None = None,
        config: str | Path | None = None,
        device: str = "auto",
    ) -> Job:
        """Find out how long a fine-tuning would take here: a few steps are measured; returns at once.

        Returns:
            A job whose result has ``total`` (s) and ``text``.
        """
        file = None if config is None else str(Path(config).absolute())
        given = {"base_model": baseModel, "steps": steps, "config": file, "device": device}
        return self._start(ESTIMATE, store, given)

    def compare(
        self, models: Sequence[str], store: Store | str | Path | None = None, *, device: str = "auto", wait: bool = True
    ) -> Any:
        """Validate models on the frozen validation cases of a store: Dice, RVE and HD95 a case.

        Args:
            models: ids.
            store: the case store; None takes that of the newest fine-tuning.
            device: see :meth:`fineTune`.
            wait: False returns the job at once.

        Returns:
            ``models``, ``mean_dice`` (model -> mean), ``cases`` (a row a case and model), ``split``.

        Raises:
            InputError, ModelError: no such model or store, or no frozen split yet.
        """
        if not models:
            raise InputError("Name the models to compare, e.g. the active one and the one before it.")
        place = self._job(None).parameters["cases"] if store is None else store
        job = self._start(COMPARE, place, {"models": list(models), "device": device})
        return resultOf(job.wait()) if wait else job

    def validate(self, store: Store | str | Path, model: str, *, device: str = "auto") -> Job:
        """Validate a model of a store, e.g. what a cancelled fine-tuning has left; returns at once."""
        return self._start(VALIDATE, store, {"model": model, "device": device})

    def jobs(self, store: Store | str | Path | None = None, task: str | None = None) -> list[Job]:
        """Jobs below :attr:`root`, newest first: all, or those on one store, or of one task."""
        found = find_jobs(self.root)
        if store is not None:
            place = str(_folder(store))
            found = [job for job in found if job.parameters.get("cases") == place]
        return [job for job in found if task is None or job.task == task]

    def status(self, job: Job | None = None) -> JobStatus:
        """How a job stands: running, done, failed or cancelled, how far, its curves, what it says.

        Args:
            job: None takes the newest fine-tuning.
        """
        return self._job(job).status()

    def cancel(self, job: Job | None = None) -> None:
        """Ask a job to stop, and to keep what is best so far; it is killed with all its processes if it does not.

        Args:
            job: None takes the newest fine-tuning.
        """
        self._job(job).cancel()

    def wait(self, job: Job | None = None, timeout: float | None = None) -> JobStatus:
        """Wait for the end of a job; Slicer does not answer meanwhile.

        Args:
            job: None takes the newest fine-tuning.
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: it has not ended by then.
        """
        return self._job(job).wait(timeout)

    def resume(self, job: Job) -> Job:
        """Go on with a job that was cancelled or died."""
        return job.resume(self._workerSettings())

    def _start(
        self, task: str, cases: Store | str | Path, parameters: Mapping[str, Any], folder: str | Path | None = None
    ) -> Job:
        place = _folder(cases)
        if not place.exists():
            raise InputError(f"There are no cases at {place}.", "Give a case store, a manifest or a folder.")
        given = {"cases": str(place)} | {name: value for name, value in parameters.items() if value is not None}
        where = self._newFolder(_NAMES[task]) if folder is None else Path(folder).absolute()
        return start_job(where, task, given, self._workerSettings())

    def _workerSettings(self) -> WorkerSettings:
        return readSettings() if self._settings is None else self._settings

    def _job(self, job: Job | None) -> Job:
        if job is not None:
            return job
        known = self.jobs(task=FINE_TUNE)
        if not known:
            raise InputError(f"There is no job in {self.root}.", "Start one with fineTune.")
        return known[0]

    def _newFolder(self, name: str) -> Path:
        number = 1
        while (self.root / f"{name}-{number}").exists():
            number += 1
        return self.root / f"{name}-{number}"


def resultOf(status: JobStatus) -> dict[str, Any]:
    """The result of a job that is done; the exception that fits if it is not.

    Raises:
        InputError, ModelError, ...: as the job's work raised them.
        CancelledError: it was cancelled.
    """
    if status.error is not None:
        raise exception_of(status.error)
    if status.state != "done" or status.result is None:
        raise CancelledError("The job was cancelled.")
    return status.result


class JobWatch:
    """Asks for a job's status now and then while the panel is there; the job needs nobody to look.

    Attributes:
        job: that is watched, or None.
        status: how it stood last, or None.
        changed: signal: another status.
        ended: signal: it has ended, seen for the first time; passes the status.
    """

    def __init__(self, session: Session) -> None:
        self.job: Job | None = None
        self.status: JobStatus | None = None
        self.changed, self.ended = Signal(), Signal()
        self._tasks = Tasks(session.timer, lambda error: _log.error("a job's watch failed", exc_info=error))

    @property
    def isActive(self) -> bool:
        """Whether the job has not ended."""
        return self.status is not None and self.status.is_active

    def follow(self, job: Job | None) -> None:
        """Watch another job, or none; one that has ended already is shown and not told as ended."""
        self.stop()
        self.job, self.status = job, None
        self._look()
        if self.isActive:
            self._tasks.start(self._watch())
        self.changed.emit()

    def stop(self) -> None:
        """Look no more."""
        self._tasks.cancel()

    async def _watch(self) -> None:
        job = self.job
        while self.job is job and self.isActive:
            await turn(_INTERVAL_MS)
            self._look()
            self.changed.emit()
        if self.job is job and self.status is not None:
            self.ended.emit(self.status)

    def _look(self) -> None:
        if self.job is None:
            return
        try:
            self.status = self.job.status()
        except COVIDLesionSegError as error:
            # its folder was removed, or is on a share that is away
            _log.warning("%s", error)
            self.job, self.status = None, None


def jobText(status: JobStatus) -> str:
    """How far a job is, in words."""
    if status.state == "cancelling":
        return _("Stopping; what is best so far is kept.")
    if status.progress is None:
        return _("Starting...")
    progress = status.progress
    text = progress.message or progress.phase.capitalize()
    if progress.total > 1:
        text += f" {progress.done}/{progress.total}"
    if status.seconds_left is not None:
        text += ", " + _("{time} left").format(time=duration_text(status.seconds_left))
    return text


def endOf(status: JobStatus) -> Notice:
    """How a job ended that gave no result."""
    return Notice(_("Cancelled.")) if status.error is None else noticeOf(status.error)


def _folder(cases: Store | str | Path) -> Path:
    return (cases.folder if isinstance(cases, Store) else Path(cases)).absolute()
