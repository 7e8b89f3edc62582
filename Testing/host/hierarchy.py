"""Subject hierarchy items for nodes, which in Slicer the Qt plug-ins make and remove."""

from __future__ import annotations

from typing import Any

import slicer
import vtk

_OWNED = ("vtkMRMLDisplayableNode", "vtkMRMLTableNode", "vtkMRMLPlotChartNode", "vtkMRMLTextNode")


def install(scene: Any) -> None:
    """Observe the scene from now on."""
    scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, _added)
    scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, _about_to_be_removed)
    scene.AddObserver(slicer.vtkMRMLScene.EndImportEvent, lambda caller, event: _complete(caller))


@vtk.calldata_type(vtk.VTK_OBJECT)
def _added(scene: Any, event: str, node: Any) -> None:
    # while a scene is read, its own hierarchy is still to come
    if not scene.IsImporting() and not scene.IsClosing():
        _ensure_item(scene, node)


@vtk.calldata_type(vtk.VTK_OBJECT)
def _about_to_be_removed(scene: Any, event: str, node: Any) -> None:
    if scene.IsClosing() or node.IsA("vtkMRMLSubjectHierarchyNode"):
        return
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    # a node that was hidden after it was added has one
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.RemoveItem(item, False, False)


def _complete(scene: Any) -> None:
    for index in range(scene.GetNumberOfNodes()):
        _ensure_item(scene, scene.GetNthNode(index))


def _ensure_item(scene: Any, node: Any) -> None:
    if not _is_owned(node):
        return
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if not hierarchy.GetItemByDataNode(node):
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


def _is_owned(node: Any) -> bool:
    return not node.GetHideFromEditors() and any(node.IsA(name) for name in _OWNED)
