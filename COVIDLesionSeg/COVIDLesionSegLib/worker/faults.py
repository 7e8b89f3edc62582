"""What a child says about an exception: its kind, a sentence, a hint, the button that leads on."""

from __future__ import annotations

import errno
import traceback

from .. import errors
from ..errors import COVIDLesionSegError
from .protocol import Failure

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "_ALLOC_FAILED")
_TORCH = frozenset({"torch", "safetensors"})


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
