"""What passes between the worker's client and its users: progress, replies, errors, settings; and what it is run by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from ..errors import InputError

Kind = Literal["lesions", "measurement"]

#: What can go wrong, and what it means. ``not_open``: a measurement names a study that the child does not hold (any
#: more), so it has to be opened again. ``file_missing``: the other machine has lost a file; the client sends it again.
#: ``case_open``: somebody else has a case of a store open, or has taken it over.
ERROR_KINDS = (
    "input",
    "device",
    "model",
    "memory",
    "torch_missing",
    "died",
    "garbage",
    "silent",
    "disk_full",
    "cancelled",
    "start_failed",
    "version",
    "not_open",
    "file_missing",
    "case_open",
    "internal",
)
#: Buttons that lead on from an error.
ACTIONS = ("", "set_up_pytorch", "use_cpu", "copy_report")


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


@dataclass(frozen=True)
class WorkerError:
    """Why a request has no answer: a value, not an exception (:func:`.client.wait` raises the exception that fits).

    Attributes:
        kind: one of :data:`ERROR_KINDS`.
        message: one sentence: what happened.
        hint: what the user can do, or "".
        details: technical text (traceback, last lines of the child's standard error), or "".
        action: the button that leads on, one of :data:`ACTIONS`.
        error_class: name of the exception in ``errors`` that it was in the child, or "".
    """

    kind: str
    message: str
    hint: str = ""
    details: str = ""
    action: str = ""
    error_class: str = ""

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


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

    No method may block. The adapter for QProcess is in the panel, the one for ``subprocess`` in :mod:`.blocking`.
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
