"""Looking after a detached job while the panel is there; the job needs nobody to look."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import COVIDLesionSegError
from ..worker import Timer
from ..worker.jobs import Job, JobStatus
from .events import Signal

if TYPE_CHECKING:
    from .session import Session

_log = logging.getLogger("COVIDLesionSeg")
_INTERVAL_MS = 700


class JobWatch:
    """Asks for a job's status now and then, until it has ended.

    Attributes:
        job: that is watched, or None.
        status: how it stood last, or None.
        changed: signal: another status.
        ended: signal: it has ended, seen for the first time; passes the status.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.job: Job | None = None
        self.status: JobStatus | None = None
        self.changed, self.ended = Signal(), Signal()
        self._timer: Timer | None = None

    @property
    def isActive(self) -> bool:
        """Whether the job has not ended."""
        return self.status is not None and self.status.is_active

    def follow(self, job: Job | None) -> None:
        """Watch another job, or none; one that has ended already is shown and not told as ended."""
        self.stop()
        self.job, self.status = job, None
        if job is not None:
            self._look(tell=False)
        self.changed.emit()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

    def _look(self, tell: bool = True) -> None:
        self._timer = None
        if self.job is None:
            return
        try:
            self.status = self.job.status()
        except COVIDLesionSegError as error:
            # its folder was removed, or is on a share that is away
            _log.warning("%s", error)
            self.job, self.status = None, None
        if self.isActive:
            self._timer = self._session.timer(_INTERVAL_MS, self._look)
        if tell:
            self.changed.emit()
            if self.status is not None and not self.isActive:
                self.ended.emit(self.status)
