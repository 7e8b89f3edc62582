"""The messages under the tabs: text that can be copied, and buttons that lead on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import slicer

from .forms import loadForm
from .notices import Notice
from .text import _

_KEPT = 200


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
