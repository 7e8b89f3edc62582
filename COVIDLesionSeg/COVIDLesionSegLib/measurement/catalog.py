"""The quantities as data: title, unit, definition, code, citation of each, from ``Resources/Quantities.json``."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import InputError
from ..resources import load_json

# status of what needs the lungs where they can't be trusted
LUNGS_DOUBTFUL = "lungs_doubtful"


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
    own = {
        "consolidation_from": data["attenuation"]["consolidation_from"],
        "least_scored_ml": data["severity"]["least_scored_ml"],
    }
    values = data["longitudinal"] | own | fills
    text = data["quantities"][name]["definition"]
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", f"{value:g}" if isinstance(value, (int, float)) else str(value))
    return text


def consolidation_limit(given: float | None) -> float:
    """HU from which lesion counts as consolidation: the given one, or the catalog's for None.

    Raises:
        InputError: not a finite number; nothing is above NaN, so that all lesion would count as ground glass.
    """
    if given is None:
        return float(catalog()["attenuation"]["consolidation_from"])
    if isinstance(given, bool) or not isinstance(given, int | float | np.number) or not math.isfinite(given):
        raise InputError(f"The limit of consolidation is {given!r}; a finite number of HU is needed, e.g. -300.")
    return float(given)


def status_text(status: str) -> str:
    """What a status means, in words; nothing for "ok"."""
    return "" if status == "ok" else catalog()["statuses"].get(status, status)


def joint_status(statuses: Iterable[str]) -> str:
    """The status of what was computed from several figures: that of the lungs first, then the first that is not ok."""
    odd = [status for status in statuses if status != "ok"]
    return LUNGS_DOUBTFUL if LUNGS_DOUBTFUL in odd else next(iter(odd), "ok")


def display_unit(unit: str) -> str:
    """A UCUM unit as people write it: ``HU`` for ``[hnsf'U]``, nothing for ``1``."""
    return catalog()["units"].get(unit, {"display": unit})["display"]


def citations(names: list[str]) -> list[dict[str, str]]:
    """The citations with these ids, in this order, once each."""
    known = catalog()["citations"]
    return [{"id": name, **known[name]} for name in dict.fromkeys(names)]
