"""What can go wrong: as the value that a request ends with, as an exception, and in the words of both sides.

The child says what an exception means (:func:`failure_of`); the parent says why there is no word from a child. What may
tell about a patient is taken out of what is shown (:func:`scrubbed`).
"""

from __future__ import annotations

import errno
import re
import signal
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import COVIDLesionSegError
from .protocol import Failure

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

CHOOSE_PYTHON = "Choose another Python interpreter in the settings, or leave it empty for the built-in one."
_REPORT = "Try again; if it comes back, copy the diagnostic report for whoever looks after this program."
# PythonSlicer starts the interpreter as a child of its own; of that one's signal it tells only this, with exit code 1
_CRASHED, _LAST = "exit abnormally", 3
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "_ALLOC_FAILED")
_TORCH = frozenset({"torch", "safetensors"})

# settings whose texts are the program's own words; a model may also be a file, which is taken out like all paths
_PUBLIC = frozenset({"device", "precision", "model", "uncertainty", "variant", "registration", "kinds", "drop"})
_QUOTED = re.compile(r"(['\"])(?P<path>(?:[A-Za-z]:|~)?[^'\"\n]{0,200}?[/\\][^'\"\n]*)\1")
# a blank belongs to a path if another part of it, or the ending of a file of ours, follows
_BLANK = r"\ (?=[^/\\\n'\":;,]{0,60}(?:[/\\]|\.(?:nii|gz|nrrd|dcm|mha|mhd|csv|json|html|png|toml|pth|safetensors)\b))"
_PLAIN = re.compile(rf"(?<![\w.~>])(?P<path>(?:[A-Za-z]:|~)?[/\\](?:[^\s'\",;:()<>\[\]{{}}]|{_BLANK})+)")
# what DICOM packages quote in their warnings: names of persons, dates, unique identifiers
_DICOM = [
    (re.compile(r"[^\s'\"=]*\w\^[^\n'\"]*"), "<name>"),
    (re.compile(r"(?<![\w.])(?:19|20)\d\d[-./]?[01]\d[-./]?[0-3]\d(?![\w.])"), "<date>"),
    (re.compile(r"(?<![\w.])[0-2](?:\.\d+){5,}"), "<identifier>"),
]


@dataclass(frozen=True)
class WorkerError:
    """Why a request has no answer: a value, not an exception (:func:`.wait` raises the exception that fits).

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


CANCELLED = WorkerError("cancelled", "The run was cancelled.")


class WorkerFailedError(COVIDLesionSegError):
    """A request has no answer for a reason that no other exception stands for; ``error`` says all about it."""

    def __init__(self, error: WorkerError) -> None:
        super().__init__(error.message, error.hint)
        self.error = error


def exception_of(error: WorkerError) -> COVIDLesionSegError:
    """The exception that fits a worker's error; its cause is a :class:`WorkerFailedError` with all about it."""
    named = getattr(errors, error.error_class, None) if error.error_class else None
    if not (isinstance(named, type) and issubclass(named, COVIDLesionSegError)):
        by_kind = {
            "input": errors.InputError,
            "device": errors.DeviceError,
            "model": errors.ModelError,
            "cancelled": errors.CancelledError,
        }
        named = by_kind.get(error.kind)
    failure = WorkerFailedError(error)
    if named is None:
        return failure
    found = named(error.message, error.hint)
    found.__cause__ = failure
    return found


# ---- what the child says --------------------------------------------------------------------------------------------


class TorchMissingError(COVIDLesionSegError):
    """PyTorch is not installed, or damaged."""


class NotOpenError(errors.InputError):
    """A measurement names a study that this process does not hold."""


class FileMissingError(errors.InputError):
    """A request names a file by its hash that is not on this machine."""


_KINDS: list[tuple[type[COVIDLesionSegError], str]] = [
    (NotOpenError, "not_open"),
    (FileMissingError, "file_missing"),
    (errors.CaseOpenError, "case_open"),
    (errors.CancelledError, "cancelled"),
    (errors.ModelError, "model"),
    (errors.DeviceError, "device"),
]


def require_torch() -> None:
    """Load PyTorch.

    Raises:
        TorchMissingError: it is not there, or can't be loaded; a half-installed one raises all sorts of things.
    """
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except Exception as error:
        what = f"it can't be loaded ({error})"
        if isinstance(error, ModuleNotFoundError) and error.name in _TORCH:
            what = f"{error.name} is not installed"
        raise TorchMissingError(
            f"PyTorch is needed to find lesions, but {what}.", "Set up PyTorch, then try again."
        ) from error


def failure_of(error: BaseException, request: int, device: str = "") -> Failure:
    """What to tell the parent.

    Args:
        error: what was raised.
        request: id of the request.
        device: where the work ran, "" if on none in particular.
    """
    details = "".join(traceback.format_exception(error))
    on_gpu = device not in ("", "cpu")
    if isinstance(error, TorchMissingError):
        return Failure(request, "torch_missing", *_words(error), details, "set_up_pytorch")
    if isinstance(error, ImportError):
        name = error.name or str(error)
        return Failure(
            request,
            "start_failed",
            f"The worker's Python lacks the package {name}.",
            "Install it there, or choose another interpreter.",
            details,
            "copy_report",
        )
    if _is_disk_full(error):
        return Failure(
            request,
            "disk_full",
            "The disk is full, so the result could not be written; nothing half-written stays.",
            "Free some space, or choose another folder.",
            details,
        )
    if _is_out_of_memory(error):
        hint = "Use the CPU, or close other programs." if on_gpu else "Close other programs, or crop the CT."
        message = "There is not enough memory for this CT."
        return Failure(request, "memory", message, hint, details, "use_cpu" if on_gpu else "")
    if isinstance(error, COVIDLesionSegError):
        kind = next((name for known, name in _KINDS if isinstance(error, known)), "input")
        action = "use_cpu" if kind == "device" and on_gpu else ""
        own = getattr(errors, type(error).__name__, None) is type(error)
        return Failure(request, kind, *_words(error), details, action, type(error).__name__ if own else "")
    return Failure(
        request,
        "internal",
        f"The worker met an error that it did not expect ({type(error).__name__}: {_first_line(error)}).",
        "Copy the diagnostic report for whoever looks after this program.",
        details,
        "copy_report",
    )


def _words(error: COVIDLesionSegError) -> tuple[str, str]:
    return Exception.__str__(error), error.hint


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _is_out_of_memory(error: BaseException) -> bool:
    # without importing PyTorch: its error is a RuntimeError called OutOfMemoryError
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


# ---- what the parent says -------------------------------------------------------------------------------------------


def told(failure: Failure) -> WorkerError:
    """What the child itself has said."""
    return WorkerError(
        failure.kind, failure.message, failure.hint, failure.details, failure.action, failure.error_class
    )


def not_started(why: str, lines: str, has_prefix: bool) -> WorkerError:
    """The child never came up; ``lines`` are its last on the standard error."""
    if "No module named" in lines and "COVIDLesionSegLib" in lines:
        hint = "Install the library where the worker runs: pip install covid-lesion-seg."
    elif "No module named" in lines:
        hint = "The interpreter lacks a package that the worker needs; choose another one, or install it there."
    elif has_prefix:
        hint = "Try the command prefix in a terminal: it must start commands there without asking for anything."
    else:
        hint = CHOOSE_PYTHON
    return WorkerError("start_failed", f"The worker could not be started: {why}.", hint, lines, "copy_report")


def garbage(why: object, lines: str, has_prefix: bool) -> WorkerError:
    """What the child has sent is not of the protocol."""
    hint = "Something printed into its standard output, e.g. a login script. " + _REPORT if has_prefix else _REPORT
    message = f"The worker's answer can't be understood: {str(why).rstrip('.')}."
    return WorkerError("garbage", message, hint, lines, "copy_report")


def silent(seconds: float, lines: str) -> WorkerError:
    """The child has sent nothing for so long."""
    message = f"The worker has sent nothing for more than {seconds:g} seconds and was stopped."
    hint = f"The machine may be overloaded, or the connection to it lost. {_REPORT}"
    return WorkerError("silent", message, hint, lines, "copy_report")


def died(exit_code: int, lines: str, phase: str) -> WorkerError:
    """The child has ended in the middle of its work."""
    launcher = exit_code == 1 and any(_CRASHED in line for line in lines.splitlines()[-_LAST:])
    how = "killed or crashed" if launcher else ending(exit_code)
    if phase == "loading":
        # crashes in PyTorch's own start, e.g. of a build for another driver
        message = f"The worker ended unexpectedly while it loaded PyTorch and the model, {how}."
        hint = "PyTorch may be damaged or not fit this computer: set it up again."
        return WorkerError("died", message, hint, lines, "set_up_pytorch")
    hint = _REPORT
    if launcher or exit_code in (-9, 137):
        hint = f"The system may have run out of memory: close other programs, or choose a smaller task. {_REPORT}"
    message = f"The worker ended unexpectedly in the middle of its work, {how}."
    return WorkerError("died", message, hint, lines, "copy_report")


def not_sent(error: OSError) -> WorkerError:
    """The arrays could not be written for the child."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WorkerError(
            "disk_full",
            "The images could not be handed to the worker: the disk for temporary files is full.",
            "Free some space, or choose another folder for temporary files.",
            action="copy_report",
        )
    message = f"The images could not be handed to the worker: {error.strerror or error}."
    return WorkerError("internal", message, "Check the folder for temporary files.", action="copy_report")


def ending(exit_code: int) -> str:
    """How a process ended, as a phrase."""
    if exit_code >= 0:
        return f"with exit code {exit_code}"
    try:
        return f"killed by the signal {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by the signal {-exit_code}"


# ---- what may be shown ----------------------------------------------------------------------------------------------


def secrets(parameters: Any, public: bool = False) -> set[str]:
    """The texts in a request's parameters that may not be shown."""
    if isinstance(parameters, Mapping):
        return set().union(*(secrets(value, str(key) in _PUBLIC) for key, value in parameters.items()))
    if isinstance(parameters, list | tuple):
        return set().union(*(secrets(value, public) for value in parameters))
    if not isinstance(parameters, str) or len(parameters) < 2:
        return set()
    if "/" in parameters or "\\" in parameters:
        return {parameters, Path(parameters).name, Path(parameters).stem}
    return set() if public else {parameters}


def scrubbed(text: str, hidden: Iterable[str]) -> str:
    """A text without the hidden words, DICOM's kinds of names, dates and identifiers, and paths.

    Of paths the last two parts of Python files stay, for tracebacks.
    """
    for word in sorted(filter(None, hidden), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "<text>", text)
    for pattern, instead in _DICOM:
        text = pattern.sub(instead, text)
    text = _QUOTED.sub(lambda found: f"{found[1]}{_shortened(found['path'])}{found[1]}", text)
    return _PLAIN.sub(lambda found: _shortened(found["path"]), text)


def _shortened(path: str) -> str:
    parts = re.split(r"[/\\]+", path.rstrip("/\\"))
    return f"<path>/{'/'.join(parts[-2:])}" if parts[-1].endswith(".py") else "<path>"
