"""The child process: how it is started and watched, and what runs it.

The client needs a :class:`Process` and a :class:`Timer`. In Slicer they are made of Qt's. For programs without an event
loop (the Python console outside Slicer, scripts, tests, the command) one :class:`BlockingLoop` makes both; what they
have to say is handled while somebody waits (:func:`.wait`), on the thread that waits. There is no thread behind it. On
POSIX it sleeps until a pipe is ready; Windows can't wait for pipes, so there it looks every few milliseconds (needs
Python 3.12, whose pipes need not block).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal, Protocol

from ..errors import InputError
from ..processes import kill_tree

Kind = Literal["lesions", "measurement"]

_PACKAGE = Path(__file__).resolve().parent.parent
# folders in which other packages lie beside ours; putting them on another interpreter's path would mix the two
_SHARED_FOLDERS = ("site-packages", "dist-packages", "qt-scripted-modules")
_COMMAND = "covid-lesion-seg"
_PIECE = 1 << 20
_LOOK = 0.005


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker is started and watched.

    Attributes:
        python: the interpreter; a path or a name found on the PATH. Its file name may also be ``covid-lesion-seg``, the
            command that comes with the library. None takes Slicer's own interpreter inside Slicer, else the running
            one; behind a prefix ``python3``.
        prefix: command that is put in front, e.g. ("ssh", "gpu-box") or ("docker", "run", "-i", "image"). The library
            must be installed where it leads; arrays travel through the pipe.
        environment: variables of the child; None takes the running process's. A prefix, and an interpreter other than
            Slicer's own, need what ``slicer.util.startupEnvironment()`` gives.
        idle_seconds: the child ends by itself after this long without a request.
        silence_seconds: a working child that sends nothing (not even its heartbeat) for this long is given up.
        start_seconds: a child that does not report within this time is given up.
        cancel_seconds: time that a cancelled child has to stop by itself before its process tree is killed.
        transport: "file" (arrays through a private temporary folder), "pipe", or "auto": pipe with a prefix.
        compress: whether arrays that shrink well (masks) are compressed on their way through the pipe. For a slow
            network let the prefix compress all, e.g. ``ssh -C``.

    Raises:
        InputError: a value that is not allowed.
    """

    python: str | None = None
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    idle_seconds: float = 900.0
    silence_seconds: float = 120.0
    start_seconds: float = 60.0
    cancel_seconds: float = 0.25
    transport: Literal["auto", "file", "pipe"] = "auto"
    compress: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.prefix, str):
            raise InputError(f"The command prefix is {self.prefix!r}; a list of words is needed (see split_prefix).")
        object.__setattr__(self, "prefix", tuple(self.prefix))
        for name in ("idle_seconds", "silence_seconds", "start_seconds", "cancel_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"The worker's {name} is {value!r}; a number of seconds above 0 is needed.")
        if self.transport not in ("auto", "file", "pipe"):
            raise InputError(f"The transport is {self.transport!r}; it is auto, file or pipe.")
        if self.transport == "file" and self.prefix:
            raise InputError(
                "Behind a command prefix arrays can't travel as files; the transport must be auto or pipe."
            )

    def on_this_machine(self) -> WorkerSettings:
        """The same without a prefix; interpreter and environment go with it, they are those that the prefix needs."""
        return replace(self, prefix=(), python=None, environment=None, transport="auto") if self.prefix else self

    @property
    def uses_pipe(self) -> bool:
        """Whether arrays travel through the pipe."""
        return self.transport == "pipe" or (self.transport == "auto" and bool(self.prefix))


class ProcessListener(Protocol):
    """What a process tells; called on the thread that pumps it, never from inside a method of the process."""

    def output(self, data: bytes) -> None:
        """Bytes from the standard output, in order."""

    def diagnostics(self, data: bytes) -> None:
        """Bytes from the standard error, in order."""

    def ended(self, exit_code: int | None, problem: str) -> None:
        """The process is gone, and all its output has been told.

        Args:
            exit_code: its exit status; a negative number is the signal that ended it; None if it never ran.
            problem: why it could not be started, or "".
        """


class Process(Protocol):
    """A child process with pipes, as the client needs it; ``spawn(command, environment)`` makes one, not started.

    No method may block. The adapter for QProcess is in the panel, the one for ``subprocess`` is
    :class:`SubprocessProcess`.
    """

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""

    def start(self, listener: ProcessListener) -> None:
        """Start; failures are told by ``listener.ended(None, problem)``."""

    def write(self, data: bytes | memoryview) -> None:
        """Queue bytes for the standard input; silently dropped once the process has ended."""

    def pending(self) -> int:
        """How many queued bytes the process has not taken yet."""

    def close_input(self) -> None:
        """End of input, after what is queued."""

    def kill_tree(self) -> None:
        """Kill the process and all its descendants at once (:func:`~..processes.kill_tree`), without waiting."""


class Timer(Protocol):
    """A timer that ``timer(milliseconds, callback)`` has started; it calls once."""

    def stop(self) -> None:
        """Never call; nothing happens where it has called already."""


def command_line(settings: WorkerSettings, arguments: list[str]) -> list[str]:
    """The command that starts ``COVIDLesionSegLib.worker``.

    On this machine the library is the one that is running here, wherever it lies: the interpreter is given the file.
    Behind a prefix it is the one that is installed there.

    Args:
        settings: interpreter and prefix.
        arguments: of the worker.
    """
    if settings.prefix:
        python = settings.python or "python3"
        if _is_command(python):
            return [*settings.prefix, python, "worker", *arguments]
        # -P: nothing that lies in the current folder is taken for a package
        return [*settings.prefix, python, "-P", "-m", "COVIDLesionSegLib.worker", *arguments]
    python = settings.python or own_python()
    if _is_command(python):
        return [python, "worker", *arguments]
    return [python, "-P", str(_PACKAGE / "worker" / "__main__.py"), *arguments]


def child_environment(settings: WorkerSettings) -> dict[str, str]:
    """The child's environment: the given one or this process's, with the library on the path where it lies alone."""
    environment = dict(os.environ if settings.environment is None else settings.environment)
    folder = _PACKAGE.parent
    if folder.name not in _SHARED_FOLDERS:
        others = [item for item in environment.get("PYTHONPATH", "").split(os.pathsep) if item]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(folder), *others]))
    # text on the standard error in one encoding, at once
    environment |= {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    return environment


def own_python() -> str:
    """Slicer's own interpreter inside Slicer, else the running one."""
    slicers = shutil.which("PythonSlicer") if "slicer" in sys.modules else None
    return slicers or sys.executable or "python3"


def split_prefix(text: str) -> tuple[str, ...]:
    """A command prefix as a user types it, as words.

    Raises:
        InputError: a quotation mark that is not closed.
    """
    try:
        return tuple(shlex.split(text, posix=os.name == "posix"))
    except ValueError as error:
        raise InputError(f"The command prefix {text!r} can't be understood: {error}.") from error


def _is_command(python: str) -> bool:
    return Path(python).stem == _COMMAND


# ---- without an event loop ------------------------------------------------------------------------------------------


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
    """A child process by :mod:`subprocess`; see :class:`Process`.

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
        """Start; see :meth:`Process.start`."""
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
