"""The parent's side of a worker: requests go to a warm child, answers come back by callback.

No thread is started here. Bytes and timers come through the protocols of :mod:`.process`, so callbacks are called on
the thread that runs them (Qt's event loop in Slicer), and never from inside :meth:`Client.request` or
:meth:`Request.cancel`.
"""

from __future__ import annotations

import functools
import platform
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import COVIDLesionSegError, InputError
from . import faults
from . import protocol as p
from .faults import CANCELLED, WorkerError, exception_of, scrubbed, secrets
from .process import BlockingLoop, Kind, Process, Timer, WorkerSettings, child_environment, command_line
from .transport import (
    Parcel,
    SharedArray,
    make_folder,
    read_array,
    remove_folder,
    upload_bytes,
    upload_files,
    values_of,
)

# how often a request is given to a new child because the one before ended by itself
_RESTARTS = 2
_ENDS_ALWAYS = WorkerError(
    "died", "The worker ends before it takes a request.", "Try a longer idle time.", action="copy_report"
)
# work of one turn of the event loop while arrays are sent, seconds
_TURN = 0.01
# bytes that may wait in the pipe's queue
_QUEUE = 8 << 20
# what the login scripts of a far machine may print before the child speaks
_NOISE = 16 << 10
# lines of the child's standard error that are kept, and their bytes
_LINES = 40
_TAIL = 32 << 10
_CLOSE_SECONDS = 2.0
# Share of each phase before anything was measured here: a CT on a laptop's processor.
_DEFAULTS = {"segment": {"starting": 2.0, "sending": 0.3, "loading": 4.0, "lungs": 8.0, "network": 40.0}}
# before this there is too little to extrapolate from
_ESTIMATE_SECONDS = 1.0
_ESTIMATE_FRACTION = 0.03


@dataclass(frozen=True)
class Progress:
    """How far a request is.

    Attributes:
        phase: "waiting", "starting", "sending", "loading", "lungs", "network", "postprocess", "measuring", ...
        done: steps of this phase that are finished.
        total: steps of this phase, at least 1.
        fraction: share of the whole request, in [0, 1]; None where it is not known yet.
        seconds_left: estimated time to the end of the request; None where it is not known yet.
        message: a sentence for people, or "".
    """

    phase: str
    done: int
    total: int
    fraction: float | None = None
    seconds_left: float | None = None
    message: str = ""


@dataclass(frozen=True, eq=False)
class Reply:
    """The answer to a request.

    Attributes:
        values: plain JSON values.
        arrays: name -> array. It may be backed by a memory-mapped file without a name; it can be written to.
        messages: sentences that came during the work.
    """

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    messages: tuple[str, ...] = ()


def blocking_client(settings: WorkerSettings | None = None, kind: Kind = "lesions") -> Client:
    """A client whose requests :func:`wait` waits for.

    Example:
        >>> client = blocking_client(kind="measurement")  # doctest: +SKIP
        >>> wait(client.request("lungs", {"geometry": geometry_to_json(grid)}, {"volume": hu}))  # doctest: +SKIP
    """
    loop = BlockingLoop()
    return Client(loop.spawn, loop.timer, settings, kind, pump=loop.run_once)


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
        pump: for :func:`wait`: handles what has come, waiting for it up to so many seconds.
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
        self.clock = clock
        self._connection: _Connection | None = None
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
        arrays: Mapping[str, NDArray[Any] | SharedArray] | None = None,
        *,
        files: Collection[str] = (),
        progress: Callable[[Progress], None] | None = None,
    ) -> Request:
        """Ask for something; the answer is awaited, or waited for with :func:`wait`.

        Requests are worked on one after the other, in the order in which they were made.

        Args:
            task: what to do, see :mod:`.lesion_tasks` and :mod:`.measurement_tasks`.
            parameters: plain JSON values.
            arrays: what the task works on; they must not change before the request is done. Whatever another client
                is given, too, is a :class:`.transport.SharedArray`.
            files: names of parameters that may be a file of this machine. Behind a command prefix the bytes of such a
                file travel to the other one, once (see :mod:`.transport`); what is no file here travels as it is.
            progress: called now and then.

        Raises:
            InputError: parameters or arrays that can't be sent.
        """
        plain: dict[str, Any] = p.to_json(dict(parameters or {}))
        found = {
            name: array if isinstance(array, SharedArray) else np.asarray(array)
            for name, array in (arrays or {}).items()
        }
        for name, array in found.items():
            p.ArrayHeader.of(name, values_of(array))
        given = {name: Path(plain[name]) for name in files if isinstance(plain.get(name), str)}
        here = {name: path for name, path in given.items() if self.settings.prefix and path.is_file()}
        self._count += 1
        estimate = _Estimate(task, self._seconds.setdefault(task, {}), self.clock)
        parcel = Parcel(self._count, task, plain, found, here)
        request = Request(self, parcel, self._cancel, estimate, progress)
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
                self._conclude(request, faults.not_started(str(error).rstrip("."), "", has_prefix=False))
                return
            told = self._connected, self._answered, self._lost
            self._connection = _Connection(process, self._timer, self.clock, self.settings, self.kind, *told)
            self._connection.start()
        elif self._connection.state == "ready":
            self._connection.send(request)

    def _cancel(self, request: Request) -> None:
        if request.done:
            return
        self._note(f"request {request.task}: cancel")
        if request in self._queue:
            self._queue.remove(request)
        self._timer(0, functools.partial(self._stop, request))

    def _stop(self, request: Request) -> None:
        # looked at now: since cancel() the child may have come up and been sent the request
        connection = self._connection
        busy = connection is not None and connection.state in ("sending", "working", "cancelling")
        if request is self._active and busy and connection is not None:
            connection.cancel()
        else:
            self._conclude(request, CANCELLED)

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

    def _connected(self, connection: _Connection) -> None:
        """The child is ready for a request."""
        if connection is self._connection and connection.hello is not None:
            self._note(f"child {self.generation} is there: {_described(connection.hello)}")
            self._go_on()

    def _answered(self, connection: _Connection, outcome: Reply | WorkerError) -> None:
        """The request on its way is done, and the child is ready for the next one."""
        if connection is self._connection and self._active is not None:
            self._conclude(self._active, outcome)

    def _lost(self, connection: _Connection, error: WorkerError | None) -> None:
        """The child is gone or given up, with the request; None where it ended before it took one."""
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


class Request:
    """One request to a worker; made by :meth:`Client.request`.

    Attributes:
        client: that sends it.
        parcel: what is sent; without its arrays once the request is done.
        reply: the answer, None until there is one.
        error: what went wrong, None if nothing did.
        restarts: how often it went to a new child because the one before ended by itself.
    """

    def __init__(
        self,
        client: Client,
        parcel: Parcel,
        cancel: Callable[[Request], None],
        estimate: _Estimate,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.client = client
        self.parcel = parcel
        self.reply: Reply | None = None
        self.error: WorkerError | None = None
        self.restarts = 0
        self._cancel = cancel
        self._estimate = estimate
        self._progress = progress
        self._messages: list[str] = []
        self._resumed: list[Callable[[], None]] = []

    @property
    def number(self) -> int:
        """Another one for each request of a client, from 1."""
        return self.parcel.number

    @property
    def task(self) -> str:
        """What to do."""
        return self.parcel.task

    @property
    def messages(self) -> tuple[str, ...]:
        """Sentences for people that came so far."""
        return tuple(self._messages)

    @property
    def done(self) -> bool:
        """Whether there is an answer or an error."""
        return self.reply is not None or self.error is not None

    def cancel(self) -> None:
        """Ask to stop. The request ends within half a second with an error of the kind "cancelled".

        The child may stop by itself and stay warm; if it does not at once, its process tree is killed, and the next
        request starts a new one. Nothing happens if the request is done.
        """
        self._cancel(self)

    def subscribe(self, resume: Callable[[], None]) -> None:
        """Call something once the request, which is not done yet, is done."""
        self._resumed.append(resume)

    def __await__(self) -> Generator[Callable[[Callable[[], None]], None], None, Reply]:
        """Wait in a coroutine: ``reply = await client.request(...)``.

        Yields a function that takes what resumes the coroutine. A coroutine that is closed while it waits cancels the
        request.

        Raises:
            InputError, ModelError, DeviceError, CancelledError, ...: as :func:`wait` does.
        """
        if not self.done:
            try:
                yield self.subscribe
            except BaseException:
                self.cancel()
                raise
        return self.result()

    def result(self) -> Reply:
        """The reply of a request that is done.

        Raises:
            InputError, ModelError, DeviceError, CancelledError, ...: as the child's work raised them.
            WorkerFailedError: the worker itself failed.
        """
        if self.error is not None:
            raise exception_of(self.error)
        if self.reply is None:
            raise RuntimeError("The request is not done.")
        return self.reply

    # ---- for the client -----------------------------------------------------------------------------------------

    def tell(self, phase: str, done: int, total: int, message: str = "") -> None:
        """The work is so far."""
        if self._progress is not None and not self.done:
            self._progress(self._estimate.progress(phase, done, total, message))

    def note(self, text: str) -> None:
        """The child has said a sentence for people."""
        self._messages.append(text)

    def conclude(self, outcome: Reply | WorkerError) -> None:
        """This is the outcome; there is one only."""
        self.parcel = replace(self.parcel, arrays={})
        if isinstance(outcome, WorkerError):
            self.error = outcome
        else:
            self._estimate.finished()
            self.reply = replace(outcome, messages=self.messages)
        resumed, self._resumed = self._resumed, []
        for resume in resumed:
            resume()


def wait(request: Request, timeout: float | None = None, pump: Callable[[float], None] | None = None) -> Reply:
    """Wait for a request's answer, handling what comes meanwhile.

    Args:
        request: of a client with a ``pump`` (those of :func:`blocking_client` have one).
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
    # the clock that the client watches its child by
    clock = request.client.clock
    end = None if timeout is None else clock() + timeout
    try:
        while not request.done:
            left = 0.5 if end is None else end - clock()
            if left <= 0:
                _cancel_and_wait(request, pump)
                raise TimeoutError(f"The worker did not answer within {timeout:g} seconds.")
            pump(min(left, 0.5))
    except KeyboardInterrupt:
        _cancel_and_wait(request, pump)
        raise
    return request.result()


def _cancel_and_wait(request: Request, pump: Callable[[float], None]) -> None:
    request.cancel()
    while not request.done:
        pump(0.1)


class _Estimate:
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
        known = elapsed >= _ESTIMATE_SECONDS and self._fraction >= _ESTIMATE_FRACTION
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


class _Connection:
    """A child process: started, spoken to, watched, ended.

    Args:
        process: the child, not started.
        timer: starts a timer.
        clock: seconds that never run backwards.
        settings: time limits, transport.
        kind: of worker that the child must be.
        connected: called with the connection once the child is ready for a request.
        answered: called with it and the outcome: the request is done, and the child is ready for the next one.
        lost: called with it and the error: the child is gone or given up, with the request; None where it ended before
            it took one.
    """

    def __init__(
        self,
        process: Process,
        timer: Callable[[int, Callable[[], None]], Timer],
        clock: Callable[[], float],
        settings: WorkerSettings,
        kind: str,
        connected: Callable[[_Connection], None],
        answered: Callable[[_Connection, Reply | WorkerError], None],
        lost: Callable[[_Connection, WorkerError | None], None],
    ) -> None:
        self.state = "new"
        self.hello: p.Hello | None = None
        self._process, self._timer, self._clock = process, timer, clock
        self._settings, self._kind = settings, kind
        self._connected, self._answered, self._lost = connected, answered, lost
        self._decoder = p.Decoder(_NOISE if settings.prefix else 0)
        self._tail = b""
        self._request: Request | None = None
        self._taken = False
        self._phase = ""
        self._upload: Iterator[None] | None = None
        # hashes of the files that the other machine has
        self._held: set[str] = set()
        self._sent_again = False
        self._folder: Path | None = None
        self._remove_folder: Callable[[], object] = lambda: None
        self._limit: Timer | None = None
        self._pause: Timer | None = None
        self._heard = clock()
        self._looked = False

    # ---- what the client asks for -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the child."""
        self.state = "starting"
        self._within(self._settings.start_seconds, self._too_late)
        self._process.start(self)

    def send(self, request: Request) -> None:
        """Give the child, which must be ready, a request."""
        self._sent_again = False
        self._begin(request)

    def _begin(self, request: Request) -> None:
        self.state = "sending"
        self._request, self._taken, self._phase = request, False, ""
        if self._settings.uses_pipe:
            compress, tell = self._settings.compress, functools.partial(request.tell, "sending")
            self._upload = upload_bytes(request.parcel, self._held, compress, self._process.write, tell)
        else:
            self._upload = self._through_files(request)
        self._heard, self._looked = self._clock(), False
        self._within(self._settings.silence_seconds, self._listen)
        self._turn()

    def cancel(self) -> None:
        """Stop working on the request: the client hears of it in time, whatever the child does."""
        if self.state == "sending" and not self._settings.uses_pipe:
            # the child knows nothing of it yet
            self._answer(CANCELLED)
        elif self.state == "sending":
            # the pipe is in the middle of an array
            self._give_up(CANCELLED)
        elif self.state == "working" and self._request is not None:
            self.state = "cancelling"
            self._process.write(p.encode(p.Cancel(self._request.number)))
            self._within(self._settings.cancel_seconds, self._still_working)

    def close(self) -> None:
        """Ask the child to end; it is killed if it does not. The client hears no more."""
        self._leave("closing")
        self._process.write(p.encode(p.Close()))
        self._process.close_input()
        self._within(_CLOSE_SECONDS, self.kill)

    def kill(self) -> None:
        """Kill the child's process tree. The client hears no more."""
        self._leave("ended")
        if self._process.is_running:
            self._process.kill_tree()
        self._clean()

    def lines(self) -> list[str]:
        """Last lines of the child's standard error, and what it printed before it spoke."""
        text = bytes(self._decoder.noise) + self._tail
        return text.decode("utf-8", "replace").splitlines()[-_LINES:]

    # ---- what the process tells ---------------------------------------------------------------------------------

    def output(self, data: bytes) -> None:
        """Bytes of the child's standard output."""
        self._heard, self._looked = self._clock(), False
        if self.state in ("closing", "ended"):
            return
        try:
            frames = self._decoder.feed(data)
        except p.VersionError as error:
            self._give_up(WorkerError("version", Exception.__str__(error), error.hint, action="copy_report"))
            return
        except p.ProtocolError as error:
            self._complain(error)
            return
        for frame in frames:
            if self.state not in ("closing", "ended"):
                self._handle(frame)

    def diagnostics(self, data: bytes) -> None:
        """Bytes of the child's standard error."""
        self._tail = (self._tail + data)[-_TAIL:]

    def ended(self, exit_code: int | None, problem: str) -> None:
        """The child is gone."""
        before = self.state
        self._leave("ended")
        self._clean()
        if before in ("closing", "ended"):
            return
        if before == "cancelling":
            self._lost(self, CANCELLED)
        elif exit_code is None:
            self._lost(self, self._not_started(problem or "the system gave no reason"))
        elif self.hello is None:
            self._lost(self, self._not_started(f"it ended at once, {faults.ending(exit_code)}"))
        elif self._request is None:
            self._lost(self, None)
        else:
            self._lost(self, self._death(exit_code))

    # ---- messages -----------------------------------------------------------------------------------------------

    def _handle(self, frame: p.Frame) -> None:
        message, request = frame.message, self._request
        if isinstance(message, p.Hello):
            self._greet(message)
        elif self.hello is None:
            self._complain("it did not begin with a greeting")
        elif isinstance(message, p.Bye):
            self._part()
        elif isinstance(message, p.Failure) and message.id == 0:
            self._give_up(faults.told(message))
        elif request is None or getattr(message, "id", request.number) != request.number:
            # late words about a request that is over
            return
        elif isinstance(message, p.Started):
            self._taken = True
        elif isinstance(message, p.ProgressMessage):
            self._phase = message.phase
            request.tell(message.phase, message.done, message.total, message.message)
        elif isinstance(message, p.Note):
            request.note(message.text)
        elif isinstance(message, p.Failure):
            self._fail(message, request)
        elif isinstance(message, p.Result):
            self._receive(message, frame)
        elif not isinstance(message, p.Heartbeat):
            self._complain(f"it sent a {type(message).__name__}, which only a parent sends")

    def _greet(self, hello: p.Hello) -> None:
        if self.hello is not None or hello.kind != self._kind:
            self._complain(f"it greeted as a worker of kind {hello.kind!r}")
            return
        self.hello = hello
        files = hello.capabilities.get("files", ())
        self._held = {str(digest) for digest in files} if isinstance(files, list) else set()
        self._stop_timers()
        self.state = "ready"
        self._connected(self)

    def _part(self) -> None:
        """The child ends by itself, after its idle time."""
        taken = self._taken and self._request is not None
        self.close()
        self._lost(self, self._death(0) if taken else None)

    def _fail(self, message: p.Failure, request: Request) -> None:
        if message.kind == "file_missing" and self.state == "working" and not self._sent_again:
            # somebody has removed it there meanwhile: once more, with all files
            self._sent_again = True
            self._held.clear()
            self._begin(request)
        else:
            self._answer(faults.told(message))

    def _receive(self, message: p.Result, frame: p.Frame) -> None:
        arrays = frame.arrays
        try:
            for header in message.arrays:
                if header.file:
                    if self._folder is None:
                        raise p.ProtocolError("Files were announced where none were asked for.")
                    arrays[header.name] = read_array(self._folder, header)
        except p.ProtocolError as error:
            self._complain(error)
            return
        self._answer(Reply(message.values, arrays))

    def _answer(self, outcome: Reply | WorkerError) -> None:
        if self.state == "cancelling" and isinstance(outcome, Reply):
            outcome = CANCELLED
        self._stop_timers()
        self._request, self._upload = None, None
        self._empty_folder()
        self.state = "ready"
        self._answered(self, outcome)

    # ---- sending ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Send for a moment, then let the event loop run."""
        if self.state != "sending" or self._upload is None:
            return
        end = self._clock() + _TURN
        try:
            while self._clock() < end:
                if self._process.pending() > _QUEUE:
                    self._pause = self._timer(5, self._turn)
                    return
                next(self._upload)
                self._heard, self._looked = self._clock(), False
        except StopIteration:
            self._upload, self.state = None, "working"
            return
        except OSError as error:
            self._answer(faults.not_sent(error))
            return
        self._pause = self._timer(0, self._turn)

    def _through_files(self, request: Request) -> Iterator[None]:
        if self._folder is None:
            self._folder = make_folder()
            # also where this program ends without closing its client
            self._remove_folder = weakref.finalize(self, remove_folder, self._folder)
        tell = functools.partial(request.tell, "sending")
        yield from upload_files(request.parcel, self._folder, self._process.write, tell)

    # ---- time limits --------------------------------------------------------------------------------------------

    def _too_late(self) -> None:
        seconds = self._settings.start_seconds
        self._give_up(self._not_started(f"it did not report within {seconds:g} seconds"))

    def _listen(self) -> None:
        """Give the child up after silence, but not before what came in the meantime was read."""
        if self.state not in ("sending", "working"):
            return
        limit = self._settings.silence_seconds
        quiet = self._clock() - self._heard
        if quiet < limit:
            self._within(limit - quiet, self._listen)
        elif not self._looked:
            # if this process itself was busy, the child's words wait to be read
            self._looked = True
            self._within(min(1.0, limit / 4), self._listen)
        else:
            self._give_up(faults.silent(limit, self._details()))

    def _still_working(self) -> None:
        if self.state == "cancelling":
            self._give_up(CANCELLED)

    def _within(self, seconds: float, call: Callable[[], None]) -> None:
        """Call after so many seconds, unless another limit is set before."""
        if self._limit is not None:
            self._limit.stop()
        self._limit = self._timer(max(1, round(seconds * 1000)), call)

    def _stop_timers(self) -> None:
        for timer in (self._limit, self._pause):
            if timer is not None:
                timer.stop()
        self._limit = self._pause = None

    # ---- the end ------------------------------------------------------------------------------------------------

    def _give_up(self, error: WorkerError) -> None:
        self.kill()
        self._lost(self, error)

    def _leave(self, state: str) -> None:
        self._stop_timers()
        self.state = state
        self._upload = None

    def _clean(self) -> None:
        self._remove_folder()
        self._folder = None

    def _empty_folder(self) -> None:
        if self._folder is not None:
            for file in self._folder.iterdir():
                file.unlink(missing_ok=True)

    def _details(self) -> str:
        return "\n".join(self.lines())

    def _complain(self, why: object) -> None:
        self._give_up(faults.garbage(why, self._details(), bool(self._settings.prefix)))

    def _not_started(self, why: str) -> WorkerError:
        return faults.not_started(why, self._details(), bool(self._settings.prefix))

    def _death(self, exit_code: int) -> WorkerError:
        return faults.died(exit_code, self._details(), self._phase)
