"""The DICOM files that a volume was loaded from."""

from __future__ import annotations

from typing import Any

import slicer

from ..errors import InputError
from .nodes import requireNode

_UIDS = "DICOM.instanceUIDs"


def dicomFilesOf(volumeNode: Any) -> list[str]:
    """The files of a CT that was loaded with Slicer's DICOM module.

    Raises:
        InputError: it was not, or the database does not know the files any more.
    """
    requireNode(volumeNode, "vtkMRMLVolumeNode", "CT")
    uids = (volumeNode.GetAttribute(_UIDS) or "").split()
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
