"""One request to a worker, and how a script waits for its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from .. import errors
from ..errors import COVIDLesionSegError, InputError
from .estimate import Estimate
from .values import Progress, Reply, WorkerError

if TYPE_CHECKING:
    from .client import Client


class WorkerFailedError(COVIDLesionSegError):
    """A request has no answer for a reason that no other exception stands for; ``error`` says all about it."""

    def __init__(self, error: WorkerError) -> None:
        super().__init__(error.message, error.hint)
        self.error = error


class Request:
    """One request to a worker; made by :meth:`.Client.request`.

    Attributes:
        task: what to do.
        reply: the answer, None until there is one.
        error: what went wrong, None if nothing did.
    """

    def __init__(
        self,
        client: Client,
        number: int,
        task: str,
        parameters: dict[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        files: Mapping[str, Path],
        estimate: Estimate,
        progress: Callable[[Progress], None] | None,
        finished: Callable[[Reply], None] | None,
        failed: Callable[[WorkerError], None] | None,
    ) -> None:
        self.client = client
        self.number = number
        self.task = task
        self.parameters = parameters
        self.arrays = arrays
        self.files = files
        self.reply: Reply | None = None
        self.error: WorkerError | None = None
        self.restarts = 0
        self._estimate = estimate
        self._notes: list[str] = []
        self._progress = progress
        self._finished = finished
        self._failed = failed

    @property
    def done(self) -> bool:
        """Whether there is an answer or an error."""
        return self.reply is not None or self.error is not None

    def cancel(self) -> None:
        """Ask to stop. ``failed`` is called within half a second with an error of the kind "cancelled".

        The child may stop by itself and stay warm; if it does not at once, its process tree is killed, and the next
        request starts a new one. Nothing happens if the request is done.
        """
        self.client._cancel(self)

    def tell(self, phase: str, done: int, total: int, message: str = "") -> None:
        """Progress, from the connection."""
        if self._progress is not None and not self.done:
            self._progress(self._estimate.progress(phase, done, total, message))

    def note(self, text: str) -> None:
        """A sentence for people, from the connection."""
        self._notes.append(text)

    def conclude(self, outcome: Reply | WorkerError) -> None:
        """The outcome, once, from the client."""
        self.arrays = {}
        if isinstance(outcome, WorkerError):
            self.error = outcome
            if self._failed is not None:
                self._failed(outcome)
        else:
            self._estimate.finished()
            self.reply = replace(outcome, messages=tuple(self._notes))
            if self._finished is not None:
                self._finished(self.reply)


def wait(request: Request, timeout: float | None = None, pump: Callable[[float], None] | None = None) -> Reply:
    """Wait for a request's answer, handling what comes meanwhile.

    Args:
        request: of a client with a ``pump`` (those of :func:`.blocking.blocking_client` have one).
        timeout: seconds; the request is cancelled after them. None waits as long as it takes.
        pump: instead of the client's own.

    Raises:
        InputError, ModelError, DeviceError, CancelledError, ...: as the child's work raised them.
        WorkerFailedError: the worker itself failed.
        TimeoutError: no answer in time.
    """
    pump = pump or request.client.pump
    if pump is None:
        raise InputError("This client does not wait: give it a pump, or use its callbacks.")
    end = None if timeout is None else time.monotonic() + timeout
    try:
        while not request.done:
            left = 0.5 if end is None else end - time.monotonic()
            if left <= 0:
                _cancel_and_wait(request, pump)
                raise TimeoutError(f"The worker did not answer within {timeout:g} seconds.")
            pump(min(left, 0.5))
    except KeyboardInterrupt:
        _cancel_and_wait(request, pump)
        raise
    if request.error is not None:
        raise exception_of(request.error)
    assert request.reply is not None  # noqa: S101  # it is done and has no error
    return request.reply


def exception_of(error: WorkerError) -> COVIDLesionSegError:
    """The exception that fits a worker's error."""
    named = getattr(errors, error.error_class, None) if error.error_class else None
    if not (isinstance(named, type) and issubclass(named, COVIDLesionSegError)):
        by_kind = {
            "input": errors.InputError,
            "device": errors.DeviceError,
            "model": errors.ModelError,
            "cancelled": errors.CancelledError,
        }
        named = by_kind.get(error.kind)
    return WorkerFailedError(error) if named is None else named(error.message, error.hint)


def _cancel_and_wait(request: Request, pump: Callable[[float], None]) -> None:
    request.cancel()
    while not request.done:
        pump(0.1)
