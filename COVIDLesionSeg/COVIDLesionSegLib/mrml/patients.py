"""Whose a CT is, as far as DICOM said so."""

from __future__ import annotations

from typing import Any

import slicer

from .nodes import requireNode

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
