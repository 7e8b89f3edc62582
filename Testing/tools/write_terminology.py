"""Write the terminology that Slicer reads from the one place that has names, colors and codes.

    python Testing/tools/write_terminology.py

Run it after a change of Resources/Terminologies/segments.json.
"""

from __future__ import annotations

from typing import Any

from COVIDLesionSegLib.files import write_json
from COVIDLesionSegLib.imaging import Code, segment_styles
from COVIDLesionSegLib.resources import resource

FILE = "Terminologies/COVIDLesionSeg.term.json"
_SCHEMA = "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/segment-context-schema.json#"


def terminology_context() -> dict[str, Any]:
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


def _coded(code: Code) -> dict[str, Any]:
    return {"CodingSchemeDesignator": code.scheme, "CodeValue": code.value, "CodeMeaning": code.meaning}


if __name__ == "__main__":
    write_json(resource(FILE), terminology_context())
