"""Fine-tuning from the Python console: a detached job that outlives Slicer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models.catalog import default_folder
from ..worker import WorkerSettings
from ..worker.jobs import Job, JobStatus, find_jobs, start_job
from .session import readSettings


class TrainingLogic:
    """Starts, watches and cancels fine-tuning jobs.

    Args:
        settings: how the worker is started; None takes the application's settings.
        root: folder of the jobs' folders; None takes one beside the user's models.
    """

    def __init__(self, settings: WorkerSettings | None = None, root: str | Path | None = None) -> None:
        self._settings = settings
        self.root = default_folder().parent / "jobs" if root is None else Path(root)

    def fineTune(
        self,
        cases: str | Path,
        baseModel: str | Path | None = None,
        folder: str | Path | None = None,
        *,
        config: str | Path | None = None,
        device: str = "auto",
        steps: int | None = None,
        resume: bool = False,
    ) -> Job:
        """Go on training a model on corrected cases; returns at once.

        Args:
            cases: a case store, a manifest, or a folder of cases.
            baseModel: id or file; None takes the default model.
            folder: of the run; None makes one in :attr:`root`.
            config: a TOML file of settings; None takes those of ``learning.fine_tune``.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            steps: of training; None takes the configuration's.
            resume: go on with an interrupted run in the folder.

        Returns:
            The job: :meth:`status` and :meth:`cancel` take it, now or after a restart of Slicer.

        Raises:
            InputError: cases that are not there, or a folder that holds another run.
            OutputError: the folder can't be written.
        """
        cases = Path(cases).absolute()
        if not cases.exists():
            raise InputError(f"There are no cases at {cases}.", "Give a case store, a manifest or a folder.")
        parameters: dict[str, Any] = {
            "cases": str(cases),
            "base_model": None if baseModel is None else str(baseModel),
            "config": None if config is None else str(Path(config).absolute()),
            "device": device,
            "steps": steps,
            "resume": resume,
        }
        parameters = {name: value for name, value in parameters.items() if value is not None}
        place = self._newFolder() if folder is None else Path(folder).absolute()
        settings = readSettings() if self._settings is None else self._settings
        return start_job(place, "fine_tune", parameters, settings)

    def jobs(self) -> list[Job]:
        """All jobs below :attr:`root`, newest first."""
        return find_jobs(self.root)

    def status(self, job: Job | None = None) -> JobStatus:
        """State of a job: running, done, failed or cancelled, how far, what it says; None takes the newest one."""
        return self._job(job).status()

    def cancel(self, job: Job | None = None) -> None:
        """Ask a job to stop; it is killed with all its processes if it does not. None takes the newest one."""
        self._job(job).cancel()

    def _job(self, job: Job | None) -> Job:
        if job is not None:
            return job
        known = self.jobs()
        if not known:
            raise InputError(f"There is no job in {self.root}.", "Start one with fineTune.")
        return known[0]

    def _newFolder(self) -> Path:
        number = 1
        while (self.root / f"fine-tuning-{number}").exists():
            number += 1
        return self.root / f"fine-tuning-{number}"
