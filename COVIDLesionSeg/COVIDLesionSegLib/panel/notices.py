"""What is said to people: a sentence, and the button that leads on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import slicer

from ..errors import CancelledError, COVIDLesionSegError
from ..worker import WorkerError
from ..worker.faults import WorkerFailedError
from .text import _

_log = logging.getLogger("COVIDLesionSeg")


@dataclass(frozen=True)
class Notice:
    """A message.

    Attributes:
        text: one or two sentences.
        action: button that leads on: "set_up_pytorch", "use_cpu", "copy_report", "undo" or "".
        is_error: whether something failed.
        details: technical text for the log, or "".
    """

    text: str
    action: str = ""
    is_error: bool = False
    details: str = ""


def workerError(error: Exception | WorkerError) -> WorkerError | None:
    """What the worker said where an error is the worker's; it knows the kind and the button that leads on."""
    if isinstance(error, WorkerError):
        return error
    failure = error if isinstance(error, WorkerFailedError) else error.__cause__
    return failure.error if isinstance(failure, WorkerFailedError) else None


def noticeOf(error: Exception | WorkerError) -> Notice:
    """The message of an error; one that is not ours is a fault of this program, and says so."""
    told = workerError(error)
    if told is not None:
        cancelled = told.kind == "cancelled"
        return Notice(_("Cancelled.") if cancelled else str(error), told.action, not cancelled, told.details)
    if isinstance(error, CancelledError):
        return Notice(_("Cancelled."))
    if isinstance(error, COVIDLesionSegError):
        return Notice(str(error), is_error=True)
    _log.error("An error that should not occur", exc_info=error if isinstance(error, Exception) else None)
    text = _("This is a fault of the program: {error}").format(error=f"{type(error).__name__}: {error}")
    return Notice(text, "copy_report", is_error=True)


def confirm(consequence: str, question: str) -> bool:
    """Ask before what can't be undone. No other dialog is opened by this room.

    Args:
        consequence: what happens, in one sentence.
        question: what is asked.
    """
    return bool(slicer.util.confirmOkCancelDisplay(f"{consequence}\n\n{question}", "COVIDLesionSeg"))


def attempt(action: Callable[[], Any], note: Callable[[Notice], None]) -> None:
    """Do something; an error of ours is said."""
    try:
        action()
    except COVIDLesionSegError as error:
        note(noticeOf(error))
