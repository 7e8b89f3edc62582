"""The modules ``qt`` and ``ctk`` and the widget classes of ``slicer``, on PySide6.

A widget class that is not imitated becomes an inert one; :data:`inert_widgets` names those that were asked for, and a
test of the panel says which of them are allowed.
"""

from __future__ import annotations

import ctypes
import sys
import types
from typing import Any

import slicer
from PySide6 import QtCore, QtUiTools, QtWidgets

from . import ctk_widgets, editor_widget, mrml_widgets, pythonqt

inert_widgets: set[str] = set()
_PREFIXES = ("ctk", "qMRML", "qSlicer")
# PySide6 has these, PythonQt has not.
_NOT_IN_PYTHONQT = {"Signal", "Slot", "Property", "ClassInfo", "QtProperty"}
_WIDGETS = ctk_widgets.CLASSES | mrml_widgets.CLASSES | editor_widget.CLASSES
# What slicer.app has of QApplication.
_OF_APPLICATION = {
    "activeWindow",
    "clipboard",
    "connect",
    "disconnect",
    "focusWidget",
    "font",
    "palette",
    "setPalette",
    "setStyleSheet",
    "styleSheet",
}


class QUiLoader(QtUiTools.QUiLoader):
    """Loads .ui files with the stand-ins for promoted classes."""

    def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
        if class_name in _WIDGETS:
            widget = _WIDGETS[class_name](parent)
        elif class_name.startswith(_PREFIXES):
            widget = _inert(class_name)(parent)
        else:
            return super().createWidget(class_name, parent, name)
        widget.setObjectName(name)
        return widget


def install() -> types.ModuleType:
    """Make ``import qt`` and ``import ctk`` work and give ``slicer`` its widgets; the second call changes nothing.

    Returns:
        The module ``qt``.
    """
    if "qt" in sys.modules:
        return sys.modules["qt"]
    _keep_constants_alive()
    pythonqt.install()
    qt = sys.modules["qt"] = types.ModuleType("qt")
    for module in pythonqt.MODULES:
        names = [name for name in dir(module) if not name.startswith("_") and name not in _NOT_IN_PYTHONQT]
        vars(qt).update({name: getattr(module, name) for name in names})
    qt.QUiLoader = QUiLoader  # type: ignore[attr-defined]
    ctk = sys.modules["ctk"] = types.ModuleType("ctk")
    vars(ctk).update(ctk_widgets.CLASSES)
    for name, cls in (mrml_widgets.CLASSES | editor_widget.CLASSES).items():
        setattr(slicer, name, cls)
    for module, prefixes in ((ctk, ("ctk",)), (slicer, ("qMRML", "qSlicer"))):
        module.__getattr__ = _inert_for(module, prefixes)
    _start_application()
    return qt


def _keep_constants_alive() -> None:
    """PySide6 6.12 returns None, True, False without counting the reference: a crash before Python 3.12 in the end."""
    if sys.version_info < (3, 12):
        for constant in (None, True, False):
            ctypes.c_ssize_t.from_address(id(constant)).value += 1 << 40


def _start_application() -> None:
    application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["slicer-host"])
    application.setOrganizationName("slicer-host")
    application.setApplicationName("slicer-host")
    settings = QtCore.QSettings
    settings.setDefaultFormat(settings.Format.IniFormat)
    settings.setPath(settings.Format.IniFormat, settings.Scope.UserScope, slicer.app.temporaryPath)
    slicer.app.use_qt(application, settings(), _OF_APPLICATION)


def _inert_for(module: types.ModuleType, prefixes: tuple[str, ...]) -> Any:
    def lookup(name: str) -> Any:
        if name.startswith(prefixes):
            return _inert(name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    return lookup


def _inert(name: str) -> Any:
    inert_widgets.add(name)
    return type(name, (QtWidgets.QWidget,), {"setMRMLScene": lambda self, scene: None})
