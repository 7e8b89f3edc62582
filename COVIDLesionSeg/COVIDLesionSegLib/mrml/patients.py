"""Whose a CT is, as far as DICOM said so, and what its case is called without saying whose it is."""

from __future__ import annotations

import itertools
from typing import Any

import slicer

from .nodes import nodesOfClass, requireNode

_CASE = "COVIDLesionSeg.Case"
_ATTRIBUTE = "DICOM.PatientID"


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
    return str(hierarchy.GetItemAttribute(patient, _ATTRIBUTE)) if patient else ""


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
