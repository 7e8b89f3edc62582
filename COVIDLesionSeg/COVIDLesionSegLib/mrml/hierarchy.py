"""Where results stand in the subject hierarchy: beside their CT, so under its study."""

from __future__ import annotations

from typing import Any

import slicer


def placeUnderStudy(node: Any, volumeNode: Any) -> None:
    """Move a node's subject hierarchy item beside the CT's.

    Slicer exports a segmentation as DICOM SEG only from under the study of its CT.

    Args:
        node: a node made from the CT.
        volumeNode: the CT; one that was not loaded from DICOM has no study, and the node goes to the same folder.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    parent = hierarchy.GetItemParent(_item_of(hierarchy, volumeNode))
    if parent == hierarchy.GetInvalidItemID():
        parent = hierarchy.GetSceneItemID()
    hierarchy.SetItemParent(_item_of(hierarchy, node), parent)


def studyOf(node: Any) -> int:
    """Subject hierarchy item of a node's study; 0 where it is under none."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelStudy()
    return int(hierarchy.GetItemAncestorAtLevel(_item_of(hierarchy, node), level))


def _item_of(hierarchy: Any, node: Any) -> int:
    item = hierarchy.GetItemByDataNode(node)
    return int(item or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node))
