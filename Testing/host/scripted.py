"""``slicer.ScriptedLoadableModule``, and what Slicer's module factory does with a module's file."""

from __future__ import annotations

import importlib.util
import sys
import types
import unittest
from pathlib import Path
from typing import Any, NamedTuple

import slicer

from .core import register_module


class ScriptedLoadableModule:
    """Base of ``<Name>``: title, categories, icon."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = parent.helpText = parent.acknowledgementText = ""
        parent.categories, parent.dependencies, parent.contributors = [], [], []
        parent.icon = None
        for ending in (".svg", ".png"):
            file = self.resourcePath(f"Icons/{self.moduleName}{ending}")
            if Path(file).is_file() and "qt" in sys.modules:
                parent.icon = sys.modules["qt"].QIcon(file)
                break

    def resourcePath(self, name: str) -> str:
        return str(Path(self.parent.path).parent / "Resources" / name)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        return ""


class ScriptedLoadableModuleWidget:
    """Base of ``<Name>Widget``: the panel."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = _panel(self.moduleName) if parent is None else parent
        self.layout = self.parent.layout()

    def resourcePath(self, name: str) -> str:
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / name)

    def setup(self) -> None:
        """Make the panel."""

    def cleanup(self) -> None:
        """The application or the module goes."""

    def enter(self) -> None:
        """The module is shown."""

    def exit(self) -> None:
        """Another module is shown."""

    def onReload(self) -> None:
        """A developer presses Reload."""
        slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    """Base of ``<Name>Logic``."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        scene = slicer.mrmlScene
        node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag(self.moduleName)
            node.SetAttribute("ModuleName", self.moduleName)
            node.SetName(self.moduleName)
            node = scene.AddNode(node)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Base of ``<Name>Test``."""

    def delayDisplay(self, message: str, requestedDelay: Any = None, msec: Any = None) -> None:
        print(message)
        slicer.app.processEvents()

    def runTest(self, **arguments: Any) -> None:
        """Modules override it."""


class LoadedModule(NamedTuple):
    """A module as Slicer has it in memory: its Python module, its object, its widget object, its panel."""

    python: types.ModuleType
    module: Any
    widget: Any
    panel: Any


def install() -> None:
    """Make ``from slicer.ScriptedLoadableModule import *`` work."""
    module = types.ModuleType("slicer.ScriptedLoadableModule")
    classes = [
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    ]
    vars(module).update({cls.__name__: cls for cls in classes})
    module.__all__ = [cls.__name__ for cls in classes]  # type: ignore[attr-defined]
    sys.modules["slicer.ScriptedLoadableModule"] = slicer.ScriptedLoadableModule = module


def load_module(path: Path | str) -> LoadedModule:
    """Import a module's file, make its object and its panel, as Slicer does at start and when the module is shown.

    Args:
        path: the ``<Name>.py`` with the classes <Name> and <Name>Widget.
    """
    path = Path(path).resolve()
    name = path.stem
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    python = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(python)
    parent = _Parent(path=str(path), name=name, defaultDocumentationLink="")
    panel = _panel(name)
    register_module(name, path=str(path), widget=panel)
    module = getattr(python, name)(parent)
    setattr(slicer.modules, f"{name}Instance", module)
    widget = getattr(python, f"{name}Widget")(panel)
    setattr(slicer.modules, f"{name}Widget", widget)
    widget.setup()
    return LoadedModule(python, module, widget, panel)


class _Parent(types.SimpleNamespace):
    """The module's C++ object: lists of texts come back as tuples."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, tuple(value) if isinstance(value, list) else value)


def show_panel(panel: Any, width: int = 400, height: int = 800) -> Any:
    """Show a panel as Slicer's module panel does: in a scroll area that it fills, as high as it needs at that width.

    Returns:
        The scroll area, a window.
    """
    area = sys.modules["qt"].QScrollArea()
    area.setWidgetResizable(True)
    area.setWidget(panel)
    area.resize(width, height)
    area.show()
    return area


def _panel(name: str) -> Any:
    panel = slicer.qSlicerScriptedLoadableModuleWidget()
    panel.setObjectName(f"{name}ModuleWidget")
    panel.setMRMLScene(slicer.mrmlScene)
    return panel
