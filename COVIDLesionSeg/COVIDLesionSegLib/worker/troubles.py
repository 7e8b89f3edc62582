"""What the parent says when a child can't be started, understood, or reached any more."""

from __future__ import annotations

import errno
import signal

from .protocol import Failure
from .values import WorkerError

_REPORT = "Try again; if it comes back, copy the diagnostic report for whoever looks after this program."
# PythonSlicer starts the interpreter as a child of its own; of that one's signal it tells only this, with exit code 1
_CRASHED, _LAST = "exit abnormally", 3

CANCELLED = WorkerError("cancelled", "The run was cancelled.")


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
        hint = "Choose another Python interpreter in the settings, or leave it empty for the built-in one."
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
