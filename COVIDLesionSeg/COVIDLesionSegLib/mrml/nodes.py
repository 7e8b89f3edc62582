"""What all files of this room need of MRML: checked nodes, matrices, new nodes with harmless names; what nodes say of
the patient, the DICOM files, the study and the run that they come from.

Nodes are typed ``Any``: the wrapped classes carry no type information.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from ..errors import GeometryError, InputError
from ..inference.record import RunRecord


def requireNode(node: Any, classNames: str | Iterable[str], what: str) -> Any:
    """The node itself, if it can be used.

    Args:
        node: a node of the scene, or None.
        classNames: MRML class or classes, one of which it must be.
        what: how to call it in messages, e.g. "CT". Node names are left out of messages: they may hold a patient's
            name, and messages are logged.

    Raises:
        InputError: None, no node, of another class, or deleted from its scene.
    """
    names = [classNames] if isinstance(classNames, str) else list(classNames)
    if node is None:
        raise InputError(f"No {what} is chosen.", f"Choose a {what} first.")
    if not isinstance(node, slicer.vtkMRMLNode):
        raise InputError(f"The {what} must be a MRML node; this is {type(node).__name__}.")
    if not any(node.IsA(name) for name in names):
        kind = node.GetNodeTagName()
        raise InputError(f"The chosen {what} is of the type {kind}; {' or '.join(names)} is needed.")
    if node.GetScene() is None:
        raise InputError(f"The {what} was deleted, or its scene was closed.", "Load or choose it again.")
    return node


def addNode(className: str, name: str, hidden: bool = False) -> Any:
    """A new node in the scene under a name that no other node has.

    Callers give names of their own; a CT's name may be the patient's and is never part of them.

    Args:
        className: MRML class.
        name: of the node.
        hidden: leave it out of selectors and of the data tree, which look once, when it is added.
    """
    scene = slicer.mrmlScene
    node = scene.CreateNodeByClass(className)
    node.UnRegister(None)
    node.SetName(scene.GenerateUniqueName(name))
    node.SetHideFromEditors(hidden)
    return scene.AddNode(node)


def removeNode(node: Any) -> None:
    """Remove a node with its display and storage nodes, which would keep its data in memory; a chart with its lines."""
    if node is None or node.GetScene() is None:
        return
    scene = node.GetScene()
    attached = []
    for kind in ("Display", "Storage"):
        if hasattr(node, f"GetNumberOf{kind}Nodes"):
            count = getattr(node, f"GetNumberOf{kind}Nodes")()
            attached += [getattr(node, f"GetNth{kind}Node")(index) for index in range(count)]
    if node.IsA("vtkMRMLPlotChartNode"):
        lines = [node.GetNthPlotSeriesNode(index) for index in range(node.GetNumberOfPlotSeriesNodes())]
        attached += [*lines, *(line.GetTableNode() for line in lines if line is not None)]
    scene.RemoveNode(node)
    for other in attached:
        if other is not None and other.GetScene() is not None:
            scene.RemoveNode(other)


def array_of_matrix(matrix: Any) -> NDArray[np.float64]:
    """A vtkMatrix4x4 as an array."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def matrix_of_array(array: NDArray[Any]) -> Any:
    """A vtkMatrix4x4 from an array."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(tuple(float(value) for value in np.asarray(array).ravel()))
    return matrix


def world_from_parent(node: Any, what: str) -> NDArray[np.float64]:
    """4 x 4 matrix from the coordinates that a node is stored in to the world's, RAS mm.

    Raises:
        GeometryError: the node is under a transform that is not linear.
    """
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise GeometryError(
            f"The {what} is under a transform that is not linear, so its voxels are on no regular grid.",
            "Harden the transform in the Transforms module (which resamples the image), or remove it.",
        )
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToWorld(matrix)
    return array_of_matrix(matrix)


def changeStamp(node: Any) -> tuple[Any, ...]:
    """Another one once voxels, segments or transform of a volume or segmentation node were changed; () for None."""
    if node is None:
        return ()
    transform = node.GetParentTransformNode()
    moved = 0 if transform is None else transform.GetTransformToWorldMTime()
    if node.IsA("vtkMRMLSegmentationNode"):
        return (node.GetMTime(), moved, node.GetSegmentation().GetMTime(), *voxelStamp(node))
    image = node.GetImageData()
    return (node.GetMTime(), moved, 0 if image is None else image.GetMTime())


def voxelStamp(node: Any) -> tuple[Any, ...]:
    """Of a volume or segmentation: another one once voxels changed or segments came or went, not names or colors."""
    if not hasattr(node, "GetSegmentation"):
        image = node.GetImageData()
        # the array's own time is part of it, which arrayFromVolumeModified moves
        return (None if image is None else image.GetMTime(),)
    segmentation = node.GetSegmentation()
    source = segmentation.GetSourceRepresentationName()
    found = []
    for identity in segmentation.GetSegmentIDs():
        data = segmentation.GetSegment(identity).GetRepresentation(source)
        found.append((identity, 0 if data is None else data.GetMTime()))
    return tuple(found)


def nodesOfClass(className: str) -> list[Any]:
    """The scene's nodes of a class, in their order."""
    scene = slicer.mrmlScene
    count = scene.GetNumberOfNodesByClass(className)
    return [scene.GetNthNodeByClass(index, className) for index in range(count)]


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


def _item_of(hierarchy: Any, node: Any) -> int:
    item = hierarchy.GetItemByDataNode(node)
    return int(item or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node))


_CASE = "COVIDLesionSeg.Case"
_PATIENT_ID = "DICOM.PatientID"


def patientOf(volumeNode: Any) -> str:
    """The DICOM patient ID above a CT in the subject hierarchy; "" for one that did not come from DICOM.

    It identifies a person: use it to tell patients apart, never keep or show it.

    Raises:
        InputError: no node, or deleted.
    """
    requireNode(volumeNode, "vtkMRMLVolumeNode", "CT")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volumeNode.GetScene())
    item = hierarchy.GetItemByDataNode(volumeNode)
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient()
    patient = hierarchy.GetItemAncestorAtLevel(item, level) if item else 0
    return str(hierarchy.GetItemAttribute(patient, _PATIENT_ID)) if patient else ""


def caseName(volumeNode: Any) -> str:
    """What the case of a CT is called: as :func:`nameCase` said, else "case-N", each number once in a scene."""
    name = volumeNode.GetAttribute(_CASE)
    if not name:
        taken = {node.GetAttribute(_CASE) for node in nodesOfClass("vtkMRMLScalarVolumeNode")}
        name = next(name for name in (f"case-{number}" for number in itertools.count(1)) if name not in taken)
        nameCase(volumeNode, name)
    return str(name)


def nameCase(volumeNode: Any, name: str) -> None:
    """Call the case of a CT something that says nothing of the patient; "" lets it be numbered."""
    if volumeNode.GetAttribute(_CASE) != (name or None):
        volumeNode.SetAttribute(_CASE, name or None)


_INSTANCE_UIDS = "DICOM.instanceUIDs"


def dicomFilesOf(volumeNode: Any) -> list[str]:
    """The files of a CT that was loaded with Slicer's DICOM module.

    Raises:
        InputError: it was not, or the database does not know the files any more.
    """
    requireNode(volumeNode, "vtkMRMLVolumeNode", "CT")
    uids = (volumeNode.GetAttribute(_INSTANCE_UIDS) or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    if not uids or database is None:
        raise InputError(
            "The CT was not loaded with the DICOM module, so its DICOM files are not known.",
            "Name the folder that holds them.",
        )
    files = [str(database.fileForInstance(uid)) for uid in uids]
    if not all(files):
        raise InputError(
            f"{sum(not file for file in files)} of the CT's {len(files)} DICOM files are not in the database any more.",
            "Name the folder that holds them.",
        )
    return files


RECORD_ATTRIBUTE = "COVIDLesionSeg.RunRecord"


def attachRecord(node: Any, record: RunRecord) -> None:
    """Keep a run record with a node; it is saved with the scene.

    Raises:
        InputError: no node, or deleted.
    """
    requireNode(node, "vtkMRMLNode", "result")
    node.SetAttribute(RECORD_ATTRIBUTE, json.dumps(record.to_json(), ensure_ascii=True))


def recordOf(node: Any) -> RunRecord | None:
    """The run record that a node carries, or None.

    Raises:
        InputError: no node, deleted, or the attribute is no run record.
    """
    requireNode(node, "vtkMRMLNode", "result")
    text = node.GetAttribute(RECORD_ATTRIBUTE)
    return None if text is None else RunRecord.from_json(text)
