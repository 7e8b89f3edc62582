"""The codes of the segments as Slicer's terminology module reads them, made from ``segments.json``."""

from __future__ import annotations

from typing import Any

import slicer

from ..errors import InputError
from ..imaging import Code, segment_styles
from ..resources import resource

TERMINOLOGY_FILE = "Terminologies/COVIDLesionSeg.term.json"
_SCHEMA = "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/segment-context-schema.json#"


def terminologyContext() -> dict[str, Any]:
    """The content of the ``.term.json`` file: categories, their types, the types' modifiers, colors."""
    categories: dict[Code, dict[str, Any]] = {}
    types: dict[tuple[Code, Code], dict[str, Any]] = {}
    for style in segment_styles():
        if style.category is None or style.type is None:
            continue
        # the anatomic region is asked for only where the type is not one itself
        category = categories.setdefault(
            style.category, _coded(style.category) | {"showAnatomy": style.region is not None, "Type": []}
        )
        shown = {
            "3dSlicerLabel": style.id,
            "recommendedDisplayRGBValue": [round(255 * value) for value in style.color],
        }
        entry = types.get((style.category, style.type))
        if entry is None:
            entry = types[style.category, style.type] = _coded(style.type)
            category["Type"].append(entry)
        if style.modifier is None:
            entry.update(shown)
        else:
            entry.setdefault("Modifier", []).append(_coded(style.modifier) | shown)
    return {
        "SegmentationCategoryTypeContextName": segment_styles()[0].context,
        "@schema": _SCHEMA,
        "SegmentationCodes": {"Category": list(categories.values())},
    }


def loadTerminology() -> str:
    """Make the terminology known to Slicer, so that its segment editor offers and understands our codes.

    Returns:
        The name under which Slicer lists it.

    Raises:
        InputError: the file is missing or Slicer did not take it.
    """
    logic = slicer.modules.terminologies.logic()
    name = logic.LoadTerminologyFromFile(str(resource(TERMINOLOGY_FILE)))
    if not name:
        raise InputError(f"{TERMINOLOGY_FILE} could not be loaded; install the extension again.")
    return str(name)


def _coded(code: Code) -> dict[str, Any]:
    return {"CodingSchemeDesignator": code.scheme, "CodeValue": code.value, "CodeMeaning": code.meaning}
