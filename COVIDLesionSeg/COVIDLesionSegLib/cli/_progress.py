"""Progress on standard error: a bar on a terminal, one line a phase elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm


class ProgressBar:
    """Shows (phase, done, total) events as a bar; used as a context manager and passed on as ``progress``."""

    def __init__(self, title: str = "", quiet: bool = False) -> None:
        self._title = title
        self._quiet = quiet
        self._phase = ""
        self._bar: tqdm | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of a phase are finished."""
        if self._quiet:
            return
        if phase != self._phase or self._bar is None:
            self.close()
            self._phase = phase
            label = f"{self._title}: {phase}" if self._title else phase
            self._bar = tqdm(total=total, desc=label, file=sys.stderr, leave=False, disable=not sys.stderr.isatty())
        self._bar.total = total
        self._bar.update(done - self._bar.n)

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
