"""What is said to people: a sentence, the button that leads on, and where they read it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import slicer

from ..errors import CancelledError, COVIDLesionSegError
from ..worker import WorkerError
from ..worker.faults import WorkerFailedError
from .forms import loadForm
from .text import _

_log = logging.getLogger("COVIDLesionSeg")
# lines of the history
_KEPT = 200


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


class Messages:
    """Shows notices, newest last.

    Args:
        actions: what the buttons do: "undo", "set_up_pytorch", "use_cpu".
        report: makes the diagnostic report.
    """

    def __init__(self, actions: Mapping[str, Callable[[], None]], report: Callable[[], str]) -> None:
        self.form, self.ui = loadForm("Messages")
        self._report = report
        ui = self.ui
        ui.messageText.setMaximumBlockCount(_KEPT)
        # a button that appears beneath makes the box lower: Qt would then hide the newest lines
        bar = ui.messageText.verticalScrollBar()
        bar.connect("rangeChanged(int,int)", lambda _low, high: bar.setValue(high))
        self._buttons = {"undo": ui.undoButton, "set_up_pytorch": ui.torchButton, "use_cpu": ui.cpuButton}
        for name, button in self._buttons.items():
            button.connect("clicked(bool)", self._leader(actions[name]))
        ui.reportButton.connect("clicked(bool)", self.copyReport)
        ui.messageText.setVisible(False)
        self._offer("")

    def note(self, notice: Notice) -> None:
        """Show a notice and the button that leads on from it."""
        self.ui.messageText.setVisible(True)
        mark = _("Problem: ") if notice.is_error else ""
        self.ui.messageText.appendPlainText(f"{time.strftime('%H:%M')}  {mark}{notice.text}")
        self._offer(notice.action)
        # an error leaves traces that are worth copying, whatever else leads on
        self.ui.reportButton.setVisible(notice.is_error or notice.action == "copy_report")

    def copyReport(self, *_ignored: Any) -> None:
        """Put the diagnostic report on the clipboard."""
        slicer.app.clipboard().setText(self._report())
        self._said()

    def _said(self) -> None:
        self.ui.messageText.appendPlainText(_("The diagnostic report is on the clipboard. It names no patient."))

    def _leader(self, action: Callable[[], None]) -> Callable[..., None]:
        def lead(*_ignored: Any) -> None:
            self._offer("")
            action()

        return lead

    def _offer(self, action: str) -> None:
        for name, button in self._buttons.items():
            button.setVisible(name == action)
        if not action:
            self.ui.reportButton.setVisible(False)
