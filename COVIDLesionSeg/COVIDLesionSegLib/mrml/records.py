"""The run record as an attribute of what was made in the run."""

from __future__ import annotations

import json
from typing import Any

from ..inference.record import RunRecord
from .nodes import requireNode

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
