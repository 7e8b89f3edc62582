"""Work in pieces: one in each turn of the event loop, so that Slicer answers between them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ..worker import Timer

_log = logging.getLogger(__name__)


class Steps:
    """Does pieces of work one after another.

    Each piece reads or writes one MRML node, or does what takes some milliseconds. The first error ends the rest.

    Args:
        timer: starts a timer: (milliseconds, callback).
    """

    def __init__(self, timer: Callable[[int, Callable[[], None]], Timer]) -> None:
        self._timer = timer
        self._waiting: deque[Callable[[], Any]] = deque()
        self._failed: Callable[[Exception], None] | None = None
        self._next: Timer | None = None
        self._doing = False

    @property
    def busy(self) -> bool:
        """Whether there is something left to do."""
        return self._next is not None or self._doing

    def start(self, steps: Iterable[Callable[[], Any]], failed: Callable[[Exception], None]) -> None:
        """Begin; what was not finished before is dropped.

        Args:
            steps: the pieces.
            failed: called with the error that ended them.
        """
        self.stop()
        self._waiting = deque(steps)
        self._failed = failed
        self._schedule()

    def stop(self) -> None:
        """Do no more."""
        self._waiting.clear()
        if self._next is not None:
            self._next.stop()
        self._next = None

    def _schedule(self) -> None:
        self._next = self._timer(0, self._do_one) if self._waiting else None

    def _do_one(self) -> None:
        self._next, self._doing = None, True
        step, failed = self._waiting.popleft(), self._failed
        try:
            step()
        except Exception as error:  # whatever it is, the user must hear of it and the panel must not stay busy
            _log.debug("a step failed", exc_info=True)
            self._doing = False
            self.stop()
            if failed is not None:
                failed(error)
            return
        self._doing = False
        # the step may have started others, or stopped all
        if self._next is None:
            self._schedule()
