"""Charts as vtkMRMLPlotChartNode: HU histogram, lung zones, training. A chart filled again keeps its nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from numpy.typing import ArrayLike

from ..errors import InputError
from ..imaging import segment_style
from ..measurement.catalog import catalog, consolidation_limit, display_unit, key_of
from .nodes import addNode, requireNode
from .tables import Column, Entries, fill_table

_CHART = "vtkMRMLPlotChartNode"
# Okabe and Ito's palette, which readers with any color vision can tell apart.
_COLORS = ((0.90, 0.62, 0.0), (0.34, 0.71, 0.91), (0.0, 0.62, 0.45), (0.80, 0.47, 0.65), (0.84, 0.37, 0.0))
Curve = Sequence[Sequence[float | None]]
_DICE = {"student_dice": "Student", "teacher_dice": "Teacher"}


@dataclass(frozen=True)
class _Series:
    """One line or set of bars: name, column of x (or of the bars' labels), column of y, color."""

    name: str
    x: str
    y: str
    color: tuple[float, float, float]


def showHistogram(
    hu: ArrayLike,
    voxelMl: float,
    chartNode: Any = None,
    *,
    consolidationFrom: float | None = None,
    bounds: tuple[float, float] = (-1000.0, 200.0),
    binWidth: float = 20.0,
) -> Any:
    """Histogram of the HU inside lesions, ground-glass opacity and consolidation in their segments' colors.

    Args:
        hu: HU of the lesion's voxels, any shape.
        voxelMl: volume of a voxel, mL.
        chartNode: an earlier chart to fill again; None makes a new one.
        consolidationFrom: HU from which lesion counts as consolidation; None takes the catalog's.
        bounds: about where the axis begins and ends, HU; values outside count in the outermost bins.
        binWidth: HU per bin; the limit between the two lies between bins.

    Returns:
        The vtkMRMLPlotChartNode.

    Raises:
        InputError: bounds or a width that make no bins, or a node that is no chart or deleted.
    """
    limit = consolidation_limit(consolidationFrom)
    if not binWidth > 0 or not bounds[0] < limit < bounds[1]:
        raise InputError(f"A histogram from {bounds[0]:g} to {bounds[1]:g} HU must hold the limit, {limit:g} HU.")
    below, above = (math.ceil(abs(bound - limit) / binWidth) for bound in bounds)
    edges = limit + binWidth * np.arange(-below, above + 1)
    values = np.clip(np.asarray(hu, np.float64).ravel(), edges[0], edges[-1])
    ml = np.histogram(values, edges)[0] * voxelMl
    centers = (edges[:-1] + edges[1:]) / 2
    dense = centers > limit
    columns = [
        Column("hu", "HU, bin center", centers.tolist(), "[hnsf'U]"),
        Column("ground_glass", "Ground-glass opacity", np.where(dense, 0, ml).tolist(), "mL"),
        Column("consolidation", "Consolidation", np.where(dense, ml, 0).tolist(), "mL"),
    ]
    series = [
        _Series(f"Ground-glass opacity (below {limit:g} HU)", "hu", "ground_glass", _color("ground_glass_opacity")),
        _Series(f"Consolidation (from {limit:g} HU)", "hu", "consolidation", _color("consolidation")),
    ]
    chart = _chart(chartNode, "HU histogram", columns, series, bars=False)
    _titles(chart, "Lesion attenuation", "HU", f"mL per {binWidth:g} HU")
    return chart


def showZones(entries: Entries, chartNode: Any = None, *, quantity: str = "involvement", kind: str = "zones") -> Any:
    """Bars of a quantity in the lung zones, the lobes or the lungs.

    Args:
        entries: what ``quantify`` returns.
        chartNode: an earlier chart to fill again; None makes a new one.
        quantity: name of a quantity that is measured by region.
        kind: "zones", "lobes" or "lungs".

    Returns:
        The vtkMRMLPlotChartNode. A region that was not measured has no bar, and the title says so.

    Raises:
        InputError: nothing of the kind was measured, or a node that is no chart or deleted.
    """
    regions = [name for name, region in catalog()["regions"].items() if region["kind"] == kind]
    found = {region: entries[key_of(quantity, region)] for region in regions if key_of(quantity, region) in entries}
    if not found:
        raise InputError(f"{quantity} was not measured by {kind}.", "Quantify with a lung or lobe mask first.")
    measured = {region: entry for region, entry in found.items() if entry["value"] is not None}
    any_entry = next(iter(found.values()))
    unit = display_unit(any_entry["unit"])
    columns = [
        Column("region", "Region", [str(catalog()["regions"][region]["title"]) for region in measured] or [""]),
        Column("value", any_entry["title"], [e["value"] for e in measured.values()] or [None], any_entry["unit"]),
    ]
    chart = _chart(chartNode, "Lung zones", columns, [_Series(any_entry["title"], "region", "value", _color("lesion"))])
    missing = len(found) - len(measured)
    note = f" ({missing} of {len(found)} not measured)" if missing else ""
    _titles(chart, any_entry["title"] + note, "", unit)
    chart.SetLegendVisibility(False)
    return chart


def showTrainingCurves(curves: Mapping[str, Curve], lossChart: Any = None, diceChart: Any = None) -> tuple[Any, Any]:
    """The loss and the Dice on the validation cases over the training step.

    Args:
        curves: "loss", "student_dice" and "teacher_dice", as far as there are any: points [step, value]; a value may be
            None.
        lossChart: an earlier chart to fill again, e.g. while the training runs; None makes a new one.
        diceChart: the same for the validation.

    Returns:
        Both vtkMRMLPlotChartNode; one for which there is no point yet is what was given.
    """
    loss = [point for point in curves.get("loss", ()) if point[0] is not None]
    if loss:
        columns = [_steps([point[0] for point in loss]), Column("loss", "Loss", [_value(point[1]) for point in loss])]
        lossChart = _chart(
            lossChart, "Training loss", columns, [_Series("Loss", "step", "loss", _COLORS[0])], bars=False
        )
        _titles(lossChart, "Training loss", "step", "loss")
    found = {name: {p[0]: p[1] for p in curves[name] if p[0] is not None} for name in _DICE if curves.get(name)}
    if found:
        steps = sorted({step for points in found.values() for step in points})
        columns = [_steps(steps)]
        columns += [Column(n, _DICE[n], [_value(points.get(step)) for step in steps]) for n, points in found.items()]
        series = [_Series(_DICE[n], "step", n, color) for n, color in zip(found, _COLORS[1:], strict=False)]
        diceChart = _chart(diceChart, "Validation", columns, series, bars=False)
        for index in range(diceChart.GetNumberOfPlotSeriesNodes()):
            line = diceChart.GetNthPlotSeriesNode(index)
            # few points, which a line alone would hide
            line.SetMarkerStyle(line.MarkerStyleCircle)
        _titles(diceChart, "Dice on the validation cases", "step", "Dice")
    return lossChart, diceChart


def _chart(node: Any, name: str, columns: Sequence[Column], series: Sequence[_Series], bars: bool = True) -> Any:
    chart = addNode(_CHART, name) if node is None else requireNode(node, _CHART, "chart")
    kept = [chart.GetNthPlotSeriesNode(index) for index in range(chart.GetNumberOfPlotSeriesNodes())]
    kept = [old for old in kept if old is not None]
    table = kept[0].GetTableNode() if kept else None
    if table is None:
        table = addNode("vtkMRMLTableNode", f"{name} data")
    fill_table(table, columns)
    for index, wanted in enumerate(series):
        line = kept[index] if index < len(kept) else addNode("vtkMRMLPlotSeriesNode", wanted.name)
        _describe(line, wanted, table, bars)
        if index >= len(kept):
            chart.AddAndObservePlotSeriesNodeID(line.GetID())
    for unused in kept[len(series) :]:
        slicer.mrmlScene.RemoveNode(unused)
    return chart


def _describe(line: Any, wanted: _Series, table: Any, bars: bool) -> None:
    line.SetName(wanted.name)
    line.SetAndObserveTableNodeID(table.GetID())
    line.SetPlotType(line.PlotTypeBar if bars else line.PlotTypeScatter)
    if bars:
        line.SetLabelColumnName(wanted.x)
    else:
        line.SetXColumnName(wanted.x)
        line.SetLineStyle(line.LineStyleSolid)
        line.SetLineWidth(2)
        line.SetMarkerStyle(line.MarkerStyleNone)
    line.SetYColumnName(wanted.y)
    line.SetColor(*wanted.color)


def _titles(chart: Any, title: str, x: str, y: str) -> None:
    chart.SetTitle(title)
    chart.SetXAxisTitle(x)
    chart.SetYAxisTitle(y)
    chart.SetLegendVisibility(True)


def _color(style: str) -> tuple[float, float, float]:
    return segment_style(style).color


def _steps(values: Sequence[Any]) -> Column:
    return Column("step", "Step", [float(value) for value in values])


def _value(value: Any) -> float:
    return math.nan if value is None else float(value)
