"""The quantities as data: title, unit, definition, code, citation of each, from ``Resources/Quantities.json``."""

from __future__ import annotations

import functools
from typing import Any

from ..resources import load_json


@functools.cache
def catalog() -> dict[str, Any]:
    """The whole file, read once. It is shared: do not change it."""
    return load_json("Quantities.json")


def key_of(name: str, region: str = "whole") -> str:
    """Key of a quantity in the dictionaries of measurements: ``lesion_volume``, ``lesion_volume.right_lung``."""
    return name if region == "whole" else f"{name}.{region}"


def entry(name: str, value: Any, status: str = "ok", region: str = "whole", **fills: Any) -> dict[str, Any]:
    """One measurement with what belongs to it.

    Args:
        name: a quantity of the catalog.
        value: number, list or None.
        status: a status of the catalog; a value of None needs one that is not "ok".
        region: a region of the catalog.
        fills: numbers that the definition's text names in braces.

    Returns:
        name, region, value, unit (UCUM), status, title, definition, code (value, scheme, meaning).
    """
    quantity = catalog()["quantities"][name]
    return {
        "name": name,
        "region": region,
        "value": value,
        "unit": quantity["unit"],
        "status": status,
        "title": quantity["title"],
        "definition": definition(name, **fills),
        "code": dict(quantity["code"]),
    }


def definition(name: str, **fills: Any) -> str:
    """Definition of a quantity as text, the numbers that were used filled in."""
    data = catalog()
    values = data["longitudinal"] | {"consolidation_from": data["attenuation"]["consolidation_from"]} | fills
    text = data["quantities"][name]["definition"]
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", f"{value:g}" if isinstance(value, (int, float)) else str(value))
    return text


def display_unit(unit: str) -> str:
    """A UCUM unit as people write it: ``HU`` for ``[hnsf'U]``, nothing for ``1``."""
    return catalog()["units"].get(unit, {"display": unit})["display"]


def citations(names: list[str]) -> list[dict[str, str]]:
    """The citations with these ids, in this order, once each."""
    known = catalog()["citations"]
    return [{"id": name, **known[name]} for name in dict.fromkeys(names)]
