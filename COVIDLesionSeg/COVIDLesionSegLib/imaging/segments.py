"""Names, colors and codes of the segments, from ``Resources/Terminologies/segments.json``."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..resources import load_json


@dataclass(frozen=True)
class Code:
    """A coded concept as in DICOM: coding scheme, value, meaning."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class SegmentStyle:
    """How a segment is named, shown and coded.

    Attributes:
        id: key in the resource file, e.g. "ground_glass_opacity"; "" for a segment that is not in it.
        name: what users read, e.g. "ground-glass opacity".
        color: red, green, blue in [0, 1].
        category: coded category, or None for a segment that is not in the resource file.
        type: coded type.
        modifier: coded modifier of the type, e.g. right.
        region: coded anatomic region.
        context: name of the terminology that Slicer shows.
    """

    id: str
    name: str
    color: tuple[float, float, float]
    category: Code | None = None
    type: Code | None = None
    modifier: Code | None = None
    region: Code | None = None
    context: str = ""

    @property
    def terminology_entry(self) -> str:
        """The codes as Slicer writes them into a segment's TerminologyEntry tag, or "" without codes."""
        if self.category is None or self.type is None:
            return ""
        codes = [self.category, self.type, self.modifier]
        region_context = "Anatomic codes - DICOM master list" if self.region else ""
        return "~".join([self.context, *map(_serialized, codes), region_context, _serialized(self.region), "^^"])


@functools.cache
def segment_styles() -> tuple[SegmentStyle, ...]:
    """All segments of the resource file, in its order."""
    resource = load_json("Terminologies/segments.json")

    return tuple(
        SegmentStyle(
            entry["id"],
            entry["name"],
            (entry["color"][0] / 255, entry["color"][1] / 255, entry["color"][2] / 255),
            _code(entry, "category"),
            _code(entry, "type"),
            _code(entry, "modifier"),
            _code(entry, "region"),
            resource["context"],
        )
        for entry in resource["segments"]
    )


def segment_style(name: str, value: int = 1) -> SegmentStyle:
    """The style of a segment, found by id or name (case does not matter).

    Args:
        name: e.g. "lesion" or "left lung".
        value: label value; picks the color of a name that is not in the resource file.

    Returns:
        The style in the resource file, or one with the given name, a color of its own and no codes.
    """
    for style in segment_styles():
        if name.casefold() in (style.id, style.name.casefold()):
            return style
    # hues a golden ratio apart stay distinct however many there are
    return SegmentStyle("", name, colorsys.hsv_to_rgb((0.08 + 0.618034 * value) % 1.0, 0.65, 0.95))


def chosen_value(label: int | str | None, names: Mapping[int, str], path: Path) -> int | None:
    """The value of the label that was asked for by value or name; None where none was.

    Raises:
        InputError: a name that no segment has.
    """
    if not isinstance(label, str):
        return label
    for value, name in names.items():
        if name == label:
            return value
    known = ", ".join(names.values()) or "none"
    raise InputError(f"{path.name} has no segment named {label}; its names are: {known}.")


def _code(entry: dict[str, Any], name: str) -> Code | None:
    return Code(**entry[name]) if name in entry else None


def _serialized(code: Code | None) -> str:
    return f"{code.scheme}^{code.value}^{code.meaning}" if code else "^^"
