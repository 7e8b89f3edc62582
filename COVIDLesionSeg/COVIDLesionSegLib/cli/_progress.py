"""Progress on standard error: a bar on a terminal; elsewhere a line a phase, and one now and then in a long one."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

# Seconds between two lines of one phase, where there is no terminal.
_EVERY_S = 10.0


class ProgressBar:
    """Shows (phase, done, total) events; used as a context manager and passed on as ``progress``."""

    def __init__(self, title: str = "", quiet: bool = False) -> None:
        self._title = title
        self._quiet = quiet
        self._phase = ""
        self._bar: tqdm | None = None
        self._said = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of a phase are finished."""
        if self._quiet:
            return
        label = f"{self._title}: {phase}" if self._title else phase
        fresh, self._phase = phase != self._phase, phase
        if not sys.stderr.isatty():
            self._say(label, fresh, done, total)
            return
        if fresh or self._bar is None:
            self.close()
            self._bar = tqdm(total=total, desc=label, file=sys.stderr, leave=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def _say(self, label: str, fresh: bool, done: int, total: int) -> None:
        now = time.monotonic()
        if fresh or (now - self._said >= _EVERY_S and done < total):
            self._said = now
            print(f"{label} ..." if not done else f"{label} {done} of {total}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
