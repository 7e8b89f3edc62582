"""Measurements as tables and as JSON: tidy CSV with units in the headers, nothing of the patient in it.

Cells: numbers have six significant digits; an infinite distance is ``inf``; what has no value is empty, and the status
beside it says why. In JSON what has no value is null and infinity is the text ``"Infinity"``, which ``float``,
JavaScript's ``Number`` and R read back as what it is, while a mean can't pass over it unnoticed.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_text
from .catalog import catalog, display_unit, key_of

Row = dict[str, Any]

# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA = ("=", "+", "-", "@")
_CONTROL = re.compile(r"[\x00-\x1f]+")
_LESION_COLUMNS = {
    "index": "lesion",
    "volume_ml": "volume [mL]",
    "share_percent": "share of all lesion [%]",
    "place": "place",
    "region": "region",
    "lobe": "lobe",
    "mean_hu": "mean [HU]",
}
_GROUP_COLUMNS = {
    "status": "status",
    "earlier_ml": "earlier [mL]",
    "later_ml": "later [mL]",
    "change_ml": "change [mL]",
    "change_percent": "change [%]",
    "place": "place",
}


def plain(value: Any) -> Any:
    """A value as JSON can hold it: NaN becomes None, infinity the text "Infinity", arrays lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
    return value


def number(value: Any) -> float:
    """A number back from :func:`plain`: None becomes NaN."""
    return math.nan if value is None else float(value)


def header(name: str, unit: str) -> str:
    """Column of a quantity: its name and, in brackets, its unit as people write it."""
    shown = display_unit(unit)
    return f"{name} [{shown}]" if shown else name


def case_row(case: str, entries: Mapping[str, Mapping[str, Any]]) -> Row:
    """One row a case: its measurements of the whole study, and what is to be said of them.

    Args:
        case: the case's id.
        entries: what ``quantify``, ``evaluate`` or the changes of ``compare_timepoints`` hold: key -> value, unit,
            status; regions and lists are left out.
    """
    whole = {
        key: entry
        for key, entry in entries.items()
        if entry.get("region", "whole") == "whole" and not isinstance(entry["value"], list)
    }
    row: Row = {"case": case, "status": _statuses(whole.values())}
    return row | {header(key, entry["unit"]): entry["value"] for key, entry in whole.items()}


def region_rows(case: str, entries: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """One row for the whole study, each lung, zone and lobe, with the quantities that are measured by region."""
    names = list(dict.fromkeys(e["name"] for e in entries.values() if e["region"] != "whole"))
    rows = []
    for region in catalog()["regions"]:
        here = {name: entries[key_of(name, region)] for name in names if key_of(name, region) in entries}
        if here:
            row: Row = {"case": case, "region": region, "status": _statuses(here.values())}
            units = {name: next(e["unit"] for e in entries.values() if e["name"] == name) for name in names}
            rows.append(row | {header(n, units[n]): here[n]["value"] if n in here else None for n in names})
    return rows


def long_rows(case: str, entries: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """One row a measurement: case, quantity, region, value, unit (UCUM), status."""
    return [
        {
            "case": case,
            "quantity": entry.get("name", key),
            "region": entry.get("region", "whole"),
            "value": entry["value"],
            "unit (UCUM)": entry["unit"],
            "status": entry["status"],
        }
        for key, entry in entries.items()
        if not isinstance(entry["value"], list)
    ]


def lesion_rows(case: str, lesions: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row a lesion, largest first: volume, share, center (LPS, mm), place, mean HU."""
    rows = []
    for lesion in lesions:
        row: Row = {"case": case} | {title: lesion[key] for key, title in _LESION_COLUMNS.items()}
        center = dict(zip("xyz", lesion["centroid_lps_mm"], strict=True))
        rows.append(row | {f"center {axis} [mm, LPS]": value for axis, value in center.items()})
    return rows


def group_rows(case: str, groups: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row for each group of lesions of two time points."""
    return [{"case": case} | {title: group[key] for key, title in _GROUP_COLUMNS.items()} for group in groups]


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV with a header; columns in the order in which they first occur."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return buffer.getvalue()


def write_csv(path: Path | str, rows: Sequence[Row]) -> None:
    """Write rows as UTF-8 CSV, whole or not at all.

    Raises:
        OutputError: the file can't be written.
    """
    write_text(path, csv_text(rows))


def _cell(value: Any) -> str:
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if value in ("Infinity", "-Infinity"):
        return "inf" if value == "Infinity" else "-inf"
    # line ends and tabs are of no use in a cell, and not every reader takes them there
    text = _CONTROL.sub(" ", str(value)).strip()
    # an apostrophe is how spreadsheets mark text; ids of cases come from users' files
    return f"'{text}" if text.startswith(_FORMULA) else text


def _statuses(entries: Iterable[Mapping[str, Any]]) -> str:
    odd = dict.fromkeys(entry["status"] for entry in entries if entry["status"] != "ok")
    return " ".join(odd) or "ok"
