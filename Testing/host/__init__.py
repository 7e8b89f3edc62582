"""A stand-in for the Slicer application, for tests: real MRML, logics and ``slicer.util`` from slicer-core.

slicer-core brings Slicer's compiled classes but not the application. :func:`boot` supplies what the application sets:
``slicer.mrmlScene``, ``slicer.app``, ``slicer.modules``, the logics of the loadable modules, and subject hierarchy
items for new nodes. Nothing here is used inside Slicer.
"""

import os

# read when VTK makes its first window and Qt its application; neither needs a display then
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from .core import boot, clear_scene, register_module  # after the environment


def boot_gui() -> None:
    """:func:`boot`, and ``qt``, ``ctk``, the qMRML widgets and ``slicer.ScriptedLoadableModule`` on PySide6."""
    boot()
    from . import gui, scripted

    gui.install()
    scripted.install()


__all__ = ["boot", "boot_gui", "clear_scene", "register_module"]
