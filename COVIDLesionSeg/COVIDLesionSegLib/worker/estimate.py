"""How far a request is as a whole, and how long it will still take."""

from __future__ import annotations

from collections.abc import Callable

from .values import Progress

# Share of each phase before anything was measured here: a CT on a laptop's processor.
_DEFAULTS = {"segment": {"starting": 2.0, "sending": 0.3, "loading": 4.0, "lungs": 8.0, "network": 40.0}}
# before this there is too little to extrapolate from
_SECONDS = 1.0
_FRACTION = 0.03


class Estimate:
    """Turns steps of phases into a share of the whole, by what the phases of the last such request took.

    Args:
        task: what is done.
        seconds: phase -> seconds of the last request of this task; replaced when this one is done.
        clock: seconds that never run backwards.
    """

    def __init__(self, task: str, seconds: dict[str, float], clock: Callable[[], float]) -> None:
        self._last = seconds
        self._weights = dict(seconds) or _DEFAULTS.get(task, {})
        self._clock = clock
        self._began: float | None = None
        self._phase = ""
        self._phase_began = 0.0
        self._seen: dict[str, float] = {}
        self._fraction = 0.0

    def progress(self, phase: str, done: int, total: int, message: str = "") -> Progress:
        """What to tell about ``done`` of ``total`` steps of a phase."""
        now = self._clock()
        if self._began is None:
            self._began = now
        if phase != self._phase:
            self._leave(now)
            self._phase, self._phase_began = phase, now
        total = max(total, 1)
        whole = sum(self._weights.values())
        if not whole:
            return Progress(phase, done, total, None, None, message)
        behind = sum(weight for name, weight in self._weights.items() if name in self._seen)
        here = self._weights.get(phase, 0.0) * min(done / total, 1.0)
        # a phase that comes back, or that an earlier run did not have, does not turn the bar back
        self._fraction = max(self._fraction, min((behind + here) / whole, 0.99))
        elapsed = now - self._began
        known = elapsed >= _SECONDS and self._fraction >= _FRACTION
        left = elapsed * (1 - self._fraction) / self._fraction if known else None
        return Progress(phase, done, total, self._fraction, left, message)

    def finished(self) -> None:
        """The request has succeeded: remember what its phases took."""
        self._leave(self._clock())
        self._last.clear()
        self._last.update(self._seen)

    def _leave(self, now: float) -> None:
        if self._phase:
            self._seen[self._phase] = self._seen.get(self._phase, 0.0) + now - self._phase_began
