"""What keeps an open case: its lock is renewed, its edits are autosaved, the time that is spent is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cases import RENEW_S, Store
from ..errors import COVIDLesionSegError
from ..worker import Reply, Timer, WorkerError
from .case_scene import CaseScene
from .notices import Notice, attempt, noticeOf
from .store_client import StoreClient

if TYPE_CHECKING:
    from .session import Session

# edits are kept this long after the first of them
AUTOSAVE_MS = 20_000
# nobody works that long on one stroke: a longer pause counts as this much
_LONGEST_PAUSE_S = 300.0


class CaseHold:
    """Keeps one case, from its opening to its end.

    Args:
        session: shared by all panels.
        store: the store.
        scene: the nodes of the case.
        note: shows a :class:`.notices.Notice`.

    Attributes:
        token: of the lock; "" once somebody else has taken the case over.
    """

    def __init__(self, session: Session, store: StoreClient, scene: CaseScene, note: Callable[[Notice], None]) -> None:
        self._session, self._store, self._scene, self._note = session, store, scene, note
        self._folder, self._case, self.token = store.folder, "", ""
        # edits since it was opened; how many of them are in a revision or thrown away, and in an autosave
        self._edits = self._saved = self._kept = 0
        self._seconds, self._last = 0.0, time.monotonic()
        self._timers: dict[str, Timer] = {}

    @property
    def where(self) -> Mapping[str, Any]:
        """The case, in the store that it was opened from, as requests name it."""
        return {"store": self._folder, "case": self._case}

    @property
    def edits(self) -> int:
        """How many edits since it was opened or last saved."""
        return self._edits - self._saved

    @property
    def seconds(self) -> float:
        """Time spent since the case was opened or last saved; of a pause five minutes at most."""
        return self._seconds + min(time.monotonic() - self._last, _LONGEST_PAUSE_S)

    @property
    def hasUnkept(self) -> bool:
        """Whether there are edits that were neither saved nor autosaved."""
        return self._edits > max(self._saved, self._kept)

    def take(self, case: str, token: str, seconds: float) -> None:
        """The store has opened the case, with the time that was spent on its unsaved work."""
        self._folder, self._case, self.token, self._seconds = self._store.folder, case, token, seconds
        self._start("renew", RENEW_S * 1000, self._renew)

    def begin(self) -> None:
        """It is shown; what changes from now on is an edit."""
        self._edits = self._saved = self._kept = 0
        self._last = time.monotonic()

    def edited(self) -> None:
        """It was edited."""
        now = time.monotonic()
        self._seconds, self._last = self._seconds + min(now - self._last, _LONGEST_PAUSE_S), now
        self._edits += 1
        if "autosave" not in self._timers:
            self._start("autosave", AUTOSAVE_MS, self.keep)

    def keep(self, done: Callable[[], None] | None = None, failed: Callable[[], None] | None = None) -> None:
        """Keep the edits that are not kept without making a revision of them.

        Args:
            done: called when they are written.
            failed: called when they could not be; it was said why.
        """
        self.pause()
        if not self.hasUnkept:
            return
        edits = self._edits

        def kept(_reply: Reply | None = None) -> None:
            self._kept = edits
            if done is not None:
                done()

        def notKept(error: WorkerError | COVIDLesionSegError) -> None:
            self._note(noticeOf(error))
            if failed is not None:
                failed()

        def onError(error: WorkerError) -> None:
            if self._isTakenOver(error):
                # the edits are written all the same
                kept()
            else:
                notKept(error)

        values = {**self.where, "rater": self._store.rater, "token": self.token, "seconds": self.seconds}
        try:
            mask = self._scene.mask().view(np.uint8)
            self._store.ask("case_autosave", values, kept, arrays={"mask": mask}, failed=onError, refresh=False)
        except COVIDLesionSegError as error:
            notKept(error)

    def pause(self) -> None:
        """Keep nothing for the moment."""
        self._stop("autosave")

    def goOn(self) -> None:
        """Keep what is not kept."""
        if self.hasUnkept:
            self._start("autosave", AUTOSAVE_MS, self.keep)

    def saved(self, edits: int) -> None:
        """So many edits are saved, or thrown away; later ones are not."""
        self.pause()
        self._seconds, self._last = 0.0, time.monotonic()
        self._saved += edits
        self.goOn()

    def release(self) -> None:
        """Let others open the case."""
        if self.token:
            self._store.ask("case_close", {**self.where, "token": self.token})

    def endHere(self) -> None:
        """The panel goes, and the child may end before it takes another request: keep and release in this process."""
        self.keepHere()
        if self.token:
            attempt(lambda: Store(self._folder).locks.release(self._case, self.token), self._note)

    def keepHere(self) -> None:
        """Keep the edits that are not kept, in this process: their nodes go."""
        if self.hasUnkept:
            attempt(self._keepHere, self._note)

    def stop(self) -> None:
        """Stop all timers."""
        for name in list(self._timers):
            self._stop(name)

    def _keepHere(self) -> None:
        edits, store = self._edits, Store(self._folder)
        labels = store.case(self._case).labels(self._scene.mask(), "mask")
        blind = store.locks.is_blind(self._case, self.token)
        store.autosaves.write(self._case, self._store.rater, labels, self.seconds, blind)
        self._kept = edits

    def _renew(self) -> None:
        if self.token:
            self._start("renew", RENEW_S * 1000, self._renew)
            values = {**self.where, "token": self.token}
            self._store.ask("case_renew", values, failed=self._onNotRenewed, refresh=False)

    def _onNotRenewed(self, error: WorkerError) -> None:
        if not self._isTakenOver(error):
            # e.g. a share that is away for a moment: the next renewal tries again
            self._note(noticeOf(error))

    def _isTakenOver(self, error: WorkerError) -> bool:
        """Whether somebody has taken the case over, said once; what is saved is a revision of its own all the same."""
        if error.kind != "case_open":
            return False
        if self.token:
            self._note(noticeOf(error))
        self.token = ""
        return True

    def _start(self, name: str, milliseconds: float, action: Callable[[], None]) -> None:
        self._stop(name)

        def go() -> None:
            self._timers.pop(name, None)
            action()

        self._timers[name] = self._session.timer(round(milliseconds), go)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.stop()
