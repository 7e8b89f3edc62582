"""What stands for ``slicer.app``, ``slicer.modules.<name>`` and the module manager.

Only what Python code of a module and ``slicer.util`` ask for is here; any other attribute raises AttributeError.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import slicer
import vtk

from .files import FileManager

# QEvent.DeferredDelete; this file does without Qt
_DEFERRED_DELETE = 52


class Module:
    """A loaded module: ``slicer.modules.<lower-case name>``."""

    def __init__(self, name: str, logic: Any = None, path: str = "", widget: Any = None) -> None:
        self.name = name
        self.title = name
        self.path = path
        self._logic = logic
        self._widget = widget

    def logic(self) -> Any:
        return self._logic

    def widgetRepresentation(self) -> Any:
        return self._widget


class ModuleManager:
    """The part of qSlicerModuleManager that Python code asks for."""

    def module(self, name: str) -> Module | None:
        return getattr(slicer.modules, name.lower(), None)

    def factoryManager(self) -> ModuleManager:
        return self

    def modulesNames(self) -> tuple[str, ...]:
        return tuple(name for name in vars(slicer.moduleNames) if not name.startswith("_"))

    def isLoaded(self, name: str) -> bool:
        return self.module(name) is not None

    def connect(self, signal: str, slot: Any) -> bool:
        return True

    def disconnect(self, signal: str, slot: Any) -> bool:
        return True

    def children(self) -> tuple[Any, ...]:
        """The timers that ``qt.QTimer.singleShot`` made; nothing else is known here."""
        from .pythonqt import timers

        return tuple(timers)


class Settings:
    """Settings in memory, with the methods of QSettings; the Qt half replaces them by QSettings."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def value(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def setValue(self, key: str, value: Any) -> None:
        self._values[key] = value

    def contains(self, key: str) -> bool:
        return key in self._values

    def remove(self, key: str) -> None:
        self._values.pop(key, None)

    def sync(self) -> None:
        """Nothing to write."""


class Environment(dict[str, str]):
    """QProcessEnvironment as far as ``slicer.util.startupEnvironment`` reads it."""

    def value(self, key: str, default: str = "") -> str:
        return self.get(key, default)


class Application:
    """The part of qSlicerApplication that Python code asks for; always in testing mode, so no dialog blocks."""

    def __init__(self, logic: Any) -> None:
        self.temporaryPath = tempfile.mkdtemp(prefix="slicer-host-")
        atexit.register(shutil.rmtree, self.temporaryPath, ignore_errors=True)
        self.slicerHome = self.temporaryPath
        self.extensionsInstallPath = str(Path(self.temporaryPath, "extensions"))
        self.applicationName = "Slicer"
        self.applicationVersion = "5.12.0-host"
        self.majorVersion, self.minorVersion = 5, 12
        self.revision = self.repositoryRevision = "0"
        self.os, self.arch = "linux", "amd64"
        self.documentationBaseUrl = "https://slicer.readthedocs.io/en/latest/"
        self.launcherExecutableFilePath = ""
        self._logic = logic
        self._files = FileManager()
        self._modules = ModuleManager()
        self._settings: Any = Settings()
        self._qt: Any = None
        self._qt_names: set[str] = set()
        self._cursors: list[Any] = []
        self._render_pauses = 0
        self._at_startup: list[Any] = []
        #: what :meth:`layoutManager` gives; a test may put one here
        self._layout: Any = None

    def connect(self, signal: str, slot: Any) -> bool:
        """Keep a slot for the one signal that modules connect to while they are made."""
        if signal != "startupCompleted()":
            raise ValueError(f"The host's application has no signal {signal}.")
        self._at_startup.append(slot)
        return True

    def __setattr__(self, name: str, value: Any) -> None:
        if callable(getattr(type(self), name, None)):
            raise AttributeError(f"The application's {name} can't be overwritten.")
        super().__setattr__(name, value)

    def use_qt(self, application: Any, settings: Any, names: set[str]) -> None:
        """Take events, settings and the named members from Qt."""
        self._qt, self._settings, self._qt_names = application, settings, names

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._qt_names:
            return getattr(self._qt, name)
        raise AttributeError(f"The host's application has no {name}.")

    def applicationLogic(self) -> Any:
        return self._logic

    def mrmlScene(self) -> Any:
        return slicer.mrmlScene

    def coreIOManager(self) -> FileManager:
        return self._files

    ioManager = coreIOManager

    def moduleManager(self) -> ModuleManager:
        return self._modules

    def layoutManager(self) -> Any:
        """There is none by itself: code must cope, as it must in Slicer without a main window."""
        return self._layout

    def mainWindow(self) -> None:
        """There is none."""

    def topLevelWidgets(self) -> tuple[Any, ...]:
        return () if self._qt is None else tuple(self._qt.topLevelWidgets())

    def testingEnabled(self) -> bool:
        return True

    def commandOptions(self) -> Any:
        return types.SimpleNamespace(testingEnabled=True, noMainWindow=True, runPythonAndExit=False, pythonScript="")

    def processEvents(self, *arguments: Any) -> None:
        if self._qt is not None:
            self._qt.processEvents(*arguments)
            # in Slicer an event loop runs, which does this too
            self._qt.sendPostedEvents(None, _DEFERRED_DELETE)

    def pauseRender(self) -> None:
        self._render_pauses += 1

    def resumeRender(self) -> None:
        if not self._render_pauses:
            raise RuntimeError("resumeRender without pauseRender")
        self._render_pauses -= 1

    def isRenderPaused(self) -> bool:
        return self._render_pauses > 0

    def setOverrideCursor(self, cursor: Any) -> None:
        self._cursors.append(cursor)

    def restoreOverrideCursor(self) -> None:
        if self._cursors:
            self._cursors.pop()

    def settings(self) -> Any:
        return self._settings

    userSettings = settings
    revisionUserSettings = settings

    def startupEnvironment(self) -> Mapping[str, str]:
        return Environment(os.environ)


def complete_startup(application: Application) -> None:
    """Emit startupCompleted(), as Slicer does once all modules are made."""
    slots, application._at_startup = application._at_startup, []
    for slot in slots:
        slot()


def show_vtk_errors() -> None:
    """Errors and warnings of VTK and MRML go to standard error instead of a window."""
    window = vtk.vtkOutputWindow()
    window.SetDisplayModeToAlwaysStdErr()
    vtk.vtkOutputWindow.SetInstance(window)
