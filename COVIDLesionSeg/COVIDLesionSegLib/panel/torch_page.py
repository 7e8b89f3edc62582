"""The page that sets PyTorch up: what is there, what installs it, which computer does the work."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ..errors import COVIDLesionSegError
from ..resources import resource
from .forms import showText
from .notices import Notice, noticeOf
from .session import Session, settingsTexts, writeSettings
from .text import _


class TorchPage:
    """Fills PyTorch's part of the Learn tab. Nothing is installed or fetched without a press of its button.

    Args:
        session: shared by all panels.
        ui: the form's widgets.
        note: shows a :class:`.notices.Notice`.
    """

    def __init__(self, session: Session, ui: Any, note: Callable[[Notice], None]) -> None:
        self._session, self._ui, self._note = session, ui, note
        ui.checkButton.connect("clicked(bool)", self.onCheck)
        ui.installButton.connect("clicked(bool)", self.onInstall)
        ui.packagesButton.connect("clicked(bool)", self.onPackages)
        ui.settingsButton.connect("clicked(bool)", self.onSettings)
        session.devices.changed.connect(self.showState)
        python, prefix, minutes = settingsTexts()
        ui.pythonEdit.setProperty("currentPath", python)
        ui.prefixEdit.setText(prefix)
        ui.idleSpin.setValue(minutes)
        self.showState()

    def close(self) -> None:
        """Listen no more."""
        self._session.devices.changed.disconnect(self.showState)

    def showState(self) -> None:
        """Show what the worker said of PyTorch and the devices."""
        showText(self._ui.torchLabel, self._session.devices.summary())

    def onCheck(self, *_ignored: Any) -> None:
        """Look again."""
        self._session.devices.ask(again=True)

    def onInstall(self, *_ignored: Any) -> None:
        """Install PyTorch through its extension, which asks before it downloads."""
        try:
            utilities = importlib.import_module("PyTorchUtils")
        except ImportError:
            text = _("The PyTorch extension is not installed. Install it in the Extensions Manager and restart Slicer.")
            self._note(Notice(text, is_error=True))
            return
        self._install(lambda: utilities.PyTorchUtilsLogic().installTorch(askConfirmation=True) is not None)

    def onPackages(self, *_ignored: Any) -> None:
        """Install what the worker needs besides PyTorch; Slicer asks first."""
        try:
            packaging = importlib.import_module("slicer.packaging")
        except ImportError:
            self._note(Notice(_("This Slicer can't install packages; 5.12 or newer is needed."), is_error=True))
            return
        file = resource("requirements.txt")

        def ensure() -> bool:
            packaging.pip_ensure(packaging.load_requirements(str(file)), requester="COVIDLesionSeg")
            return True

        self._install(ensure)

    def _install(self, install: Callable[[], bool]) -> None:
        """Install once no child holds a library any more.

        Args:
            install: asks and installs; False where it was declined.
        """
        if self._session.run.busy:
            self._note(
                Notice(_("A CT is being segmented. Wait for it, or cancel it, before installing."), is_error=True)
            )
            return

        def go() -> None:
            try:
                done = install()
            except Exception as error:  # whatever pip and its callers raise; the sentence is for people
                # how Slicer's packaging says it
                done = "declined" not in str(error)
                if done:
                    self._note(Notice(_("The installation failed: {error}").format(error=error), is_error=True))
                    return
            if done:
                self._session.devices.ask(again=True)
            else:
                self._note(Notice(_("Nothing was installed.")))

        self._session.whenEnded(go)

    def onSettings(self, *_ignored: Any) -> None:
        """Keep the settings and start the worker anew with the next request."""
        ui = self._ui
        try:
            writeSettings(ui.pythonEdit.currentPath.strip(), ui.prefixEdit.text.strip(), ui.idleSpin.value)
        except COVIDLesionSegError as error:
            self._note(noticeOf(error))
            return
        self._session.restart()
        self._note(Notice(_("The next run starts the worker with these settings.")))
        self._session.devices.ask(again=True)
