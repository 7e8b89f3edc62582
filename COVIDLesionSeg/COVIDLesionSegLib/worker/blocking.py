"""A worker for programs without an event loop: the Python console outside Slicer, scripts, tests, the command.

One :class:`BlockingLoop` makes processes and timers; what they have to say is handled while somebody waits
(:func:`.client.wait`), on the thread that waits. There is no thread behind it. On POSIX it sleeps until a pipe is
ready; Windows can't wait for pipes, so there it looks every few milliseconds (needs Python 3.12, whose pipes need not
block).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import IO

from ..errors import InputError
from ..processes import kill_tree
from .client import Client
from .values import Kind, ProcessListener, WorkerSettings

_PIECE = 1 << 20
_LOOK = 0.005


def blocking_client(settings: WorkerSettings | None = None, kind: Kind = "lesions") -> Client:
    """A client whose requests :func:`.client.wait` waits for.

    Example:
        >>> client = blocking_client(kind="measurement")  # doctest: +SKIP
        >>> wait(client.request("lungs", {"geometry": geometry_to_json(grid)}, {"volume": hu}))  # doctest: +SKIP
    """
    loop = BlockingLoop()
    return Client(loop.spawn, loop.timer, settings, kind, pump=loop.run_once)


class BlockingTimer:
    """A timer of a :class:`BlockingLoop`."""

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def stop(self) -> None:
        """Never call."""
        self.call = None


class BlockingLoop:
    """Processes and timers that move on while :meth:`run_once` is called."""

    def __init__(self) -> None:
        self._processes: list[SubprocessProcess] = []
        self._timers: list[BlockingTimer] = []

    def spawn(self, command: list[str], environment: Mapping[str, str]) -> SubprocessProcess:
        """A process, not started."""
        return SubprocessProcess(command, environment, self._processes)

    def timer(self, milliseconds: int, call: Callable[[], None]) -> BlockingTimer:
        """Start a timer."""
        timer = BlockingTimer(time.monotonic() + milliseconds / 1000, call)
        self._timers.append(timer)
        return timer

    def run_once(self, seconds: float) -> None:
        """Handle what has come; wait for it up to so many seconds if there is nothing."""
        self._timers = [timer for timer in self._timers if timer.call is not None]
        now = time.monotonic()
        next_timer = min((timer.when for timer in self._timers), default=now + seconds)
        told = self._wait(max(0.0, min(seconds, next_timer - now)))
        now = time.monotonic()
        if not told or next_timer <= now:
            for timer in sorted(self._timers, key=lambda t: t.when):
                call = timer.call
                if call is not None and timer.when <= now:
                    timer.stop()
                    call()

    def _wait(self, seconds: float) -> bool:
        """Let processes tell what they have to; False if none had anything."""
        if sys.platform == "win32":
            end = time.monotonic() + seconds
            while True:
                if self._advance():
                    return True
                if time.monotonic() >= end:
                    return False
                time.sleep(min(_LOOK, max(0.0, end - time.monotonic())))
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                process.register(selector)
            if selector.get_map():
                # a child may end while its own children keep the pipes open: look now and then
                selector.select(min(seconds, 0.2))
            else:
                time.sleep(min(seconds, 0.02 if self._processes else seconds))
        return self._advance()

    def _advance(self) -> bool:
        told = [process.advance() for process in list(self._processes)]
        return any(told)


class SubprocessProcess:
    """A child process by :mod:`subprocess`; see :class:`.values.Process`.

    Args:
        command: program and arguments.
        environment: of the child.
        running: list that holds the process from its start to its end.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], running: list[SubprocessProcess]) -> None:
        if sys.platform == "win32" and sys.version_info < (3, 12):
            raise InputError("On Windows the blocking worker needs Python 3.12 or newer.")
        self._command = command
        self._environment = dict(environment)
        self._running = running
        self._popen: subprocess.Popen[bytes] | None = None
        self._listener: ProcessListener | None = None
        self._problem = ""
        self._waiting: deque[memoryview] = deque()
        self._close_when_sent = False
        self._open: dict[int, Callable[[bytes], None]] = {}

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""
        return self._popen.pid if self._popen else None

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def start(self, listener: ProcessListener) -> None:
        """Start; see :meth:`.values.Process.start`."""
        self._listener = listener
        self._running.append(self)
        try:
            pipe = subprocess.PIPE
            # a session of its own: Ctrl-C in the terminal is ours to handle, and the tree can be found
            self._popen = subprocess.Popen(
                self._command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=self._environment,
                start_new_session=os.name == "posix",
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                bufsize=0,
            )
        except OSError as error:
            self._problem = f"{self._command[0]}: {error.strerror or error}"
            return
        for stream, tell in ((self._popen.stdout, listener.output), (self._popen.stderr, listener.diagnostics)):
            self._open[_number(stream)] = tell
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            os.set_blocking(_number(stream), False)

    def write(self, data: bytes | memoryview) -> None:
        """Queue bytes for the standard input."""
        if self._popen is not None and self._popen.stdin is not None and not self._popen.stdin.closed:
            self._waiting.append(memoryview(data))
            self._send()

    def pending(self) -> int:
        """Queued bytes that the process has not taken."""
        return sum(len(data) for data in self._waiting)

    def close_input(self) -> None:
        """End of input, after what is queued."""
        self._close_when_sent = True
        self._send()

    def kill_tree(self) -> None:
        """Kill the process and its descendants."""
        if self._popen is not None and self._popen.returncode is None:
            kill_tree(self._popen.pid)

    # ---- for the loop -------------------------------------------------------------------------------------------

    def register(self, selector: selectors.BaseSelector) -> None:
        """Say what the loop should wait for."""
        for number in self._open:
            selector.register(number, selectors.EVENT_READ)
        if self._waiting and self._popen is not None:
            selector.register(_number(self._popen.stdin), selectors.EVENT_WRITE)

    def advance(self) -> bool:
        """Send and tell what there is; False if there was nothing."""
        self._send()
        told = False
        for number, tell in list(self._open.items()):
            data = self._read(number)
            if data:
                told = True
                tell(data)
            elif data is not None:
                self._open.pop(number, None)
        ended = self._popen is None or self._popen.poll() is not None
        if ended and not told and self in self._running:
            # what is still in the pipes was read; children of the child may hold them open for ever
            self._finish()
            return True
        return told

    def _finish(self) -> None:
        self._running.remove(self)
        self._open.clear()
        self._waiting.clear()
        code = None
        if self._popen is not None:
            code = self._popen.returncode
            for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        if self._listener is not None:
            self._listener.ended(code, self._problem)

    def _send(self) -> None:
        if self._popen is None or self._popen.stdin is None or self._popen.stdin.closed:
            self._waiting.clear()
            return
        while self._waiting:
            try:
                sent = os.write(_number(self._popen.stdin), self._waiting[0][:_PIECE])
            except BlockingIOError:
                return
            except OSError:
                # the process is gone; that is told when it is collected
                self._waiting.clear()
                break
            rest = self._waiting[0][sent:]
            if rest:
                self._waiting[0] = rest
            else:
                self._waiting.popleft()
        if self._close_when_sent:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()

    @staticmethod
    def _read(number: int) -> bytes | None:
        """Bytes that have come, b"" at the end, None if there are none now."""
        try:
            return os.read(number, _PIECE)
        except BlockingIOError:
            return None
        except OSError:
            return b""


def _number(stream: IO[bytes] | None) -> int:
    assert stream is not None  # noqa: S101  # all three are pipes
    return stream.fileno()
