"""The parent's side of a worker: requests go to a warm child, answers come back by callback.

No thread is started here. Bytes and timers come through the protocols of :mod:`.values`, so callbacks are called on the
thread that runs them (Qt's event loop in Slicer), and never from inside :meth:`Client.request` or
:meth:`Request.cancel`.
"""

from __future__ import annotations

import functools
import platform
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import COVIDLesionSegError, InputError
from . import protocol as p
from .command import child_environment, command_line
from .connection import Connection
from .estimate import Estimate
from .request import Request
from .scrub import scrubbed, secrets
from .troubles import CANCELLED
from .values import Kind, Process, Progress, Reply, Timer, WorkerError, WorkerSettings

# how often a request is given to a new child because the one before ended by itself
_RESTARTS = 2
_CHOOSE = "Choose another Python interpreter in the settings, or leave it empty for the built-in one."


class Client:
    """Sends requests to one warm child process, one at a time; further requests wait in a queue.

    The child is started by the first request and stays for the next ones; it ends by itself after the idle time, and
    with its parent. Whatever happens to it becomes a :class:`WorkerError` of the request that was on its way, and the
    next request starts a new child.

    Args:
        spawn: makes a process, not started, from its command line and environment.
        timer: starts a timer: (milliseconds, callback).
        settings: how the child is started and watched.
        kind: "lesions" (needs PyTorch) or "measurement" (does not).
        pump: for :func:`.request.wait`: handles what has come, waiting for it up to so many seconds.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        spawn: Callable[[list[str], Mapping[str, str]], Process],
        timer: Callable[[int, Callable[[], None]], Timer],
        settings: WorkerSettings | None = None,
        kind: Kind = "lesions",
        *,
        pump: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if kind not in ("lesions", "measurement"):
            raise InputError(f"The kind of worker is {kind!r}; it is lesions or measurement.")
        self.settings = settings or WorkerSettings()
        self.kind = kind
        self.pump = pump
        #: Grows with each child that is started; what an earlier one held in memory is gone.
        self.generation = 0
        self._spawn = spawn
        self._timer = timer
        self._clock = clock
        self._connection: Connection | None = None
        self._queue: deque[Request] = deque()
        self._active: Request | None = None
        self._count = 0
        self._seconds: dict[str, dict[str, float]] = {}
        self._history: deque[str] = deque(maxlen=30)
        self._last_lines: list[str] = []
        self._secrets: set[str] = set()

    @property
    def busy(self) -> bool:
        """Whether a request is on its way or waits."""
        return self._active is not None or bool(self._queue)

    @property
    def running(self) -> bool:
        """Whether there is a child process."""
        return self._connection is not None

    def request(
        self,
        task: str,
        parameters: Mapping[str, Any] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        *,
        files: Collection[str] = (),
        progress: Callable[[Progress], None] | None = None,
        finished: Callable[[Reply], None] | None = None,
        failed: Callable[[WorkerError], None] | None = None,
    ) -> Request:
        """Ask for something; exactly one of ``finished`` and ``failed`` is called later, once.

        Requests are worked on one after the other, in the order in which they were made.

        Args:
            task: what to do, see :mod:`.lesion_tasks` and :mod:`.measurement_tasks`.
            parameters: plain JSON values.
            arrays: what the task works on; they must not change before the request is done.
            files: names of parameters that may be a file of this machine. Behind a command prefix the bytes of such a
                file travel to the other one, once (see :mod:`.received`); what is no file here travels as it is.
            progress: called now and then.
            finished: called with the answer.
            failed: called with what went wrong.

        Raises:
            InputError: parameters or arrays that can't be sent.
        """
        plain: dict[str, Any] = p.to_json(dict(parameters or {}))
        found = {name: np.asarray(array) for name, array in (arrays or {}).items()}
        for name, array in found.items():
            p.ArrayHeader.of(name, array)
        given = {name: Path(plain[name]) for name in files if isinstance(plain.get(name), str)}
        here = {name: path for name, path in given.items() if self.settings.prefix and path.is_file()}
        self._count += 1
        estimate = Estimate(task, self._seconds.setdefault(task, {}), self._clock)
        request = Request(self, self._count, task, plain, found, here, estimate, progress, finished, failed)
        self._secrets |= secrets(plain)
        self._queue.append(request)
        self._timer(0, self._next)
        return request

    def close(self) -> None:
        """End the child politely; requests that are not done fail as cancelled, now."""
        connection, self._connection = self._connection, None
        self._abandon()
        if connection is not None:
            connection.close()

    def kill(self) -> None:
        """Kill the child and its process tree; requests that are not done fail as cancelled, now."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.kill()
        self._abandon()

    def report(self) -> str:
        """A diagnostic report to copy: versions, command, what happened, the child's last words.

        Texts and paths that requests carried are taken out; nothing about a patient is in it.
        """
        connection = self._connection
        if connection is not None:
            self._last_lines = connection.lines()
        state = "no child" if connection is None else f"child {connection.state}"
        lines = [
            f"COVIDLesionSeg {__version__}, worker of kind {self.kind}, protocol {p.VERSION}",
            f"parent: Python {platform.python_version()}, {platform.platform()}",
            f"command: {' '.join(PurePath(word).name for word in self._command())}",
            f"transport: {'pipe' if self.settings.uses_pipe else 'file'}; {state}; children so far: {self.generation}",
            *([] if connection is None or connection.hello is None else [f"child: {_described(connection.hello)}"]),
            "",
            "What happened, oldest first:",
            *(self._history or ["nothing yet"]),
            "",
            "Last lines of the child's standard error:",
            *(self._last_lines or ["none"]),
        ]
        return scrubbed("\n".join(lines), self._secrets)

    # ---- the queue ----------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Bring the first of the queue on its way if nothing else is."""
        if self._active is not None or not self._queue:
            return
        self._active = self._queue.popleft()
        self._note(f"request {self._active.task}")
        self._go_on()

    def _go_on(self) -> None:
        """Start a child for the active request, or send it to the one that is there."""
        request = self._active
        if request is None:
            return
        if self._connection is None:
            request.tell("starting", 0, 1)
            self.generation += 1
            try:
                process = self._spawn(self._command(), child_environment(self.settings))
            except (OSError, COVIDLesionSegError) as error:
                why = f"The worker could not be started: {str(error).rstrip('.')}."
                self._conclude(request, WorkerError("start_failed", why, _CHOOSE, action="copy_report"))
                return
            self._connection = Connection(self, process, self._timer, self._clock, self.settings, self.kind)
            self._connection.start()
        elif self._connection.state == "ready":
            self._connection.send(request)

    def _cancel(self, request: Request) -> None:
        if request.done:
            return
        self._note(f"request {request.task}: cancel")
        busy = self._connection is not None and self._connection.state in ("sending", "working", "cancelling")
        if request is self._active and busy and self._connection is not None:
            self._timer(0, self._connection.cancel)
        else:
            # it waits in the queue or for a child that starts, which may stay for the next one
            if request in self._queue:
                self._queue.remove(request)
            self._timer(0, functools.partial(self._conclude, request, CANCELLED))

    def _conclude(self, request: Request, outcome: Reply | WorkerError) -> None:
        if request.done:
            return
        if request is self._active:
            self._active = None
        if isinstance(outcome, WorkerError):
            self._note(f"request {request.task}: {outcome.kind}: {outcome}", outcome.details)
        else:
            self._note(f"request {request.task}: done")
        # before the callback, which may raise
        self._timer(0, self._next)
        request.conclude(outcome)

    def _abandon(self) -> None:
        waiting = [*([self._active] if self._active else []), *self._queue]
        self._queue.clear()
        for request in waiting:
            self._conclude(request, CANCELLED)

    def _note(self, text: str, details: str = "") -> None:
        self._history.append(f"{time.strftime('%H:%M:%S')} {text}" + (f"\n{details}" if details else ""))

    def _command(self) -> list[str]:
        return command_line(self.settings, ["--kind", self.kind, "--idle", f"{self.settings.idle_seconds:g}"])

    # ---- what a connection tells --------------------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        """The child is ready for a request; called by the connection."""
        if connection is self._connection and connection.hello is not None:
            self._note(f"child {self.generation} is there: {_described(connection.hello)}")
            self._go_on()

    def answered(self, connection: Connection, outcome: Reply | WorkerError) -> None:
        """The request on its way is done; called by the connection."""
        if connection is self._connection and self._active is not None:
            self._conclude(self._active, outcome)

    def lost(self, connection: Connection, error: WorkerError | None) -> None:
        """The child is gone; called by the connection, with None where it ended before it took a request."""
        if connection is not self._connection:
            return
        self._connection = None
        self._last_lines = connection.lines()
        self._note("the child ended" if error is None else f"the child was lost: {error.kind}")
        request = self._active
        if request is None:
            return
        if error is None and request.restarts < _RESTARTS:
            request.restarts += 1
            self._timer(0, self._go_on)
        else:
            self._conclude(request, error or _ENDS_ALWAYS)


def _described(hello: p.Hello) -> str:
    return f"COVIDLesionSeg {hello.library}, Python {hello.python}, {hello.platform}"


_ENDS_ALWAYS = WorkerError(
    "died", "The worker ends before it takes a request.", "Try a longer idle time.", action="copy_report"
)
