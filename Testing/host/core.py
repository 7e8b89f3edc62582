"""Boots slicer-core like the application does: one scene, the application logic, the logics of the modules."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import slicer
import slicer.util  # also puts its names on ``slicer``

from . import hierarchy, parameter_nodes
from .application import Application, Module, show_vtk_errors

_MODULE_LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Models": "vtkSlicerModelsLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Volumes": "vtkSlicerVolumesLogic",
}
# What Slicer's own Python files import by these names.
_ALIASES = {
    "vtkSegmentationCore": "vtkSegmentationCore",
    "vtkSegmentationCorePython": "vtkSegmentationCore",
    "vtkITK": "vtkITK",
    "vtkTeem": "vtkTeem",
}


def boot() -> Any:
    """Make ``slicer`` what it is inside the application; the second call changes nothing.

    Returns:
        The scene.
    """
    if hasattr(slicer, "app"):
        return slicer.mrmlScene
    show_vtk_errors()
    scene = slicer.mrmlScene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerApplicationLogic()
    slicer.app = Application(logic)
    slicer.modules, slicer.moduleNames = _submodule("modules"), _submodule("moduleNames")
    _add_singletons(scene)
    logic.SetMRMLScene(scene)
    _add_colors(scene, logic)
    for name, class_name in _MODULE_LOGICS.items():
        module_logic = getattr(slicer, class_name)()
        # the application logic first: the colors logic reads its folders when it gets the scene
        module_logic.SetMRMLApplicationLogic(logic)
        module_logic.SetMRMLScene(scene)
        logic.SetModuleLogic(name, module_logic)
        register_module(name, module_logic)
    _register_terminologies(scene, logic)
    _add_remote_files(scene, logic)
    hierarchy.install(scene)
    for alias, name in _ALIASES.items():
        sys.modules.setdefault(alias, getattr(slicer, name))
    slicer.i18n = _submodule("i18n")
    slicer.i18n.tr = lambda text, context=None: text
    slicer.i18n.translate = lambda context, text: text
    parameter_nodes.install()
    return scene


def clear_scene() -> Any:
    """Close the scene like the menu entry does; singleton nodes stay.

    Returns:
        The scene.
    """
    slicer.mrmlScene.Clear(False)
    if slicer.mrmlScene.GetNodeByID("vtkMRMLColorTableNodeGrey") is None:
        # somebody has removed the singletons, too; the application brings them back
        _add_singletons(slicer.mrmlScene)
        slicer.app.applicationLogic().GetColorLogic().AddDefaultColorNodes()
    return slicer.mrmlScene


def register_module(name: str, logic: Any = None, path: str = "", widget: Any = None) -> Module:
    """Make a module known as ``slicer.modules.<lower-case name>``."""
    module = Module(name, logic, path, widget)
    setattr(slicer.modules, name.lower(), module)
    setattr(slicer.moduleNames, name, name)
    return module


def _submodule(name: str) -> types.ModuleType:
    module = sys.modules[f"slicer.{name}"] = types.ModuleType(f"slicer.{name}")
    return module


def _add_singletons(scene: Any) -> None:
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)


def _add_colors(scene: Any, logic: Any) -> None:
    Path(slicer.app.slicerHome, "share", "ColorFiles").mkdir(parents=True)
    logic.SetHomeDirectory(slicer.app.slicerHome)
    logic.SetShareDirectory("share")
    logic.GetColorLogic().SetMRMLScene(scene)
    logic.GetColorLogic().AddDefaultColorNodes()
    # label maps ask for this node; its file is not in the wheel
    colors = slicer.vtkMRMLColorTableNode()
    colors.SetTypeToUser()
    colors.SetName("GenericColors")
    colors.SetSingletonTag("FileGenericColors.txt")
    colors.SetSaveWithScene(False)
    colors.SetHideFromEditors(True)
    colors.SetNumberOfColors(16)
    colors.SetColor(0, "background", 0, 0, 0, 0)
    for label in range(1, 16):
        red, green, blue = ((label * step) % 100 / 100 for step in (37, 61, 83))
        colors.SetColor(label, f"label{label}", red, green, blue, 1)
    scene.AddNode(colors)


def _register_terminologies(scene: Any, logic: Any) -> None:
    """Without a folder of terminologies: Slicer's own files are not in the wheel, tests load ours."""
    terminologies = slicer.vtkSlicerTerminologiesModuleLogic()
    logic.SetModuleLogic("Terminologies", terminologies)
    terminologies.SetMRMLApplicationLogic(logic)
    register_module("Terminologies", terminologies)


def _add_remote_files(scene: Any, logic: Any) -> None:
    """Reading a scene bundle goes through the IO manager for remote files, which needs a cache folder."""
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLApplicationLogic(logic)
    remote.SetMRMLScene(scene)
    cache = Path(slicer.app.temporaryPath, "cache")
    cache.mkdir()
    (cache / ".slicer-cache").touch()  # the cache manager only uses folders that carry this mark
    remote.GetCacheManager().SetRemoteCacheDirectory(str(cache))
    manager = slicer.vtkDataIOManagerLogic()
    manager.SetMRMLApplicationLogic(logic)
    manager.SetMRMLScene(scene)
    manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    slicer.app._remote_files = (remote, manager)  # kept alive
