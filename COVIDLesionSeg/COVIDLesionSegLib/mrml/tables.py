"""Measurements as vtkMRMLTableNode: typed columns whose units and definitions Slicer knows and saves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import vtk

from ..measurement import QUANTITIES
from ..measurement.catalog import catalog, definition, display_unit, key_of, status_text
from .nodes import addNode, requireNode

Entries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """One column to be.

    Attributes:
        name: key of the column.
        title: header.
        values: numbers (None is NaN, never 0), whole numbers or texts, one a row.
        unit: UCUM, or "".
        definition: a sentence.
    """

    name: str
    title: str
    values: Sequence[Any]
    unit: str = ""
    definition: str = ""


def showRegions(entries: Entries, tableNode: Any = None) -> Any:
    """A table with one row for the whole study, each lung, zone and lobe, and one column a quantity.

    Args:
        entries: what ``quantify`` returns.
        tableNode: an earlier table to fill again; None makes a new node.

    Returns:
        The vtkMRMLTableNode. What was not measured is NaN, and the last column says why.

    Raises:
        InputError: a node that is no table, or deleted.
    """
    names = list(dict.fromkeys(e["name"] for e in entries.values() if not isinstance(e["value"], list)))
    regions = [r for r in catalog()["regions"] if any(key_of(name, r) in entries for name in names)]
    columns = [Column("region", "Region", [catalog()["regions"][region]["title"] for region in regions])]
    for name in names:
        here = [entries.get(key_of(name, region)) for region in regions]
        known = next(entry for entry in here if entry is not None)
        values = [None if entry is None else entry["value"] for entry in here]
        columns.append(Column(name, known["title"], values, known["unit"], known["definition"]))
    remarks = [_remarks(entries, names, region) for region in regions]
    columns.append(Column("remarks", "Remarks", remarks, definition="Why a value is missing, or what is odd about it."))
    return _show(columns, tableNode, "Lesion measurements")


def showLesionList(lesions: Iterable[Mapping[str, Any]], tableNode: Any = None) -> Any:
    """A table with one row a lesion, largest first.

    Args:
        lesions: the value of ``quantify(...)["lesions"]``.
        tableNode: an earlier table to fill again; None makes a new node.

    Returns:
        The vtkMRMLTableNode; centers are RAS mm, Slicer's frame.

    Raises:
        InputError: a node that is no table, or deleted.
    """
    rows = list(lesions)
    columns = [
        Column("index", "Lesion", [row["index"] for row in rows], definition="1 is the largest."),
        Column("volume", "Volume", [row["volume_ml"] for row in rows], "mL", definition("lesion_volume")),
        Column("share", "Share", [row["share_percent"] for row in rows], "%", "Share of all lesion voxels."),
        Column("mean_hu", "Mean HU", [row["mean_hu"] for row in rows], "[hnsf'U]", definition("mean_hu")),
        Column("place", "Place", [row["place"] for row in rows], definition="Where most of its voxels lie."),
    ]
    for axis, letter in enumerate("RAS"):
        # LPS to RAS turns the first two axes round
        sign = -1 if axis < 2 else 1
        values = [sign * row["centroid_lps_mm"][axis] for row in rows]
        columns.append(Column(letter, f"Center {letter}", values, "mm", f"Center of mass along {letter}."))
    return _show(columns, tableNode, "Lesion list")


def showComparison(values: Entries, tableNode: Any = None) -> Any:
    """A table of a prediction against a reference, one row a measure.

    Args:
        values: what ``evaluate`` returns.
        tableNode: an earlier table to fill again; None makes a new node.

    Returns:
        The vtkMRMLTableNode. Each row has its unit, status and definition; NaN and infinity stay what they are.

    Raises:
        InputError: a node that is no table, or deleted.
    """
    rows = [(key, value, QUANTITIES[key]) for key, value in values.items() if key in QUANTITIES]
    columns = [
        Column("measure", "Measure", [quantity.title for _, _, quantity in rows]),
        Column("value", "Value", [value["value"] for _, value, _ in rows], definition="In the unit beside it."),
        Column("unit", "Unit", [display_unit(value["unit"]) for _, value, _ in rows]),
        Column(
            "status",
            "Status",
            [status_text(value["status"]) or catalog()["statuses"]["ok"] for _, value, _ in rows],
            definition="How far the value can be relied on.",
        ),
        Column("definition", "Definition", [quantity.definition for _, _, quantity in rows]),
    ]
    return _show(columns, tableNode, "Prediction against reference")


def showChanges(changes: Entries, tableNode: Any = None) -> Any:
    """A table of what changed since an earlier study, one row a quantity; later minus earlier.

    Args:
        changes: the value of ``compare_timepoints(...)["changes"]``.
        tableNode: an earlier table to fill again; None makes a new node.

    Returns:
        The vtkMRMLTableNode; what was not measured is NaN, and its status says why.

    Raises:
        InputError: a node that is no table, or deleted.
    """
    rows = [entry for entry in changes.values() if not isinstance(entry["value"], list)]
    regions = catalog()["regions"]
    columns = [
        Column("quantity", "Quantity", [entry["title"] for entry in rows]),
        Column("region", "Region", [regions[entry["region"]]["title"] for entry in rows]),
        Column("value", "Change", [_double(entry["value"]) for entry in rows], definition="Later minus earlier."),
        Column("unit", "Unit", [display_unit(entry["unit"]) for entry in rows]),
        Column("status", "Status", [status_text(entry["status"]) or catalog()["statuses"]["ok"] for entry in rows]),
        Column("definition", "Definition", [entry["definition"] for entry in rows]),
    ]
    return _show(columns, tableNode, "Change since the earlier study")


def fill_table(node: Any, columns: Sequence[Column]) -> None:
    """Replace a table node's columns; observers get one event."""
    modified = node.StartModify()
    try:
        node.RemoveAllColumns()
        for column in columns:
            _add_column(node, column)
        node.SetUseColumnTitleAsColumnHeader(True)
        node.SetLocked(True)
    finally:
        node.EndModify(modified)


def _show(columns: Sequence[Column], tableNode: Any, name: str) -> Any:
    node = addNode("vtkMRMLTableNode", name) if tableNode is None else tableNode
    requireNode(node, "vtkMRMLTableNode", "table")
    fill_table(node, columns)
    return node


def _add_column(node: Any, column: Column) -> None:
    array = _array_for(column.values)
    array.SetName(column.name)
    for value in column.values:
        if isinstance(array, vtk.vtkStringArray):
            array.InsertNextValue(_text(str(value)))
        else:
            array.InsertNextValue(math.nan if value is None else value)
    node.AddColumn(array)
    unit = display_unit(column.unit) if column.unit else ""
    node.SetColumnTitle(column.name, f"{column.title} [{unit}]" if unit else column.title)
    node.SetColumnUnitLabel(column.name, unit)
    node.SetColumnDescription(column.name, _text(column.definition))
    # the name that DICOM knows the unit by
    node.SetColumnProperty(column.name, "ucum", column.unit)


def _array_for(values: Sequence[Any]) -> Any:
    if any(isinstance(value, str) for value in values):
        return vtk.vtkStringArray()
    if values and all(isinstance(value, int) for value in values):
        return vtk.vtkIntArray()
    return vtk.vtkDoubleArray()


def _double(value: Any) -> float | None:
    return None if value is None else float(value)


def _text(value: str) -> str:
    # Slicer's table files lose what stands between double quotes
    return value.replace('"', "'").replace("\n", " ")


def _remarks(entries: Entries, names: Iterable[str], region: str) -> str:
    statuses = dict.fromkeys(entries[key_of(n, region)]["status"] for n in names if key_of(n, region) in entries)
    return "; ".join(status_text(status) for status in statuses if status != "ok")
