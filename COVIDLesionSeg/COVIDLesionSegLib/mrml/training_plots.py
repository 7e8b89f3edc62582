"""The curves of a training as two charts, which keep their nodes while they are filled again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .plots import _COLORS, _chart, _Series, _titles
from .tables import Column

Curve = Sequence[Sequence[float | None]]
_DICE = {"student_dice": "Student", "teacher_dice": "Teacher"}


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


def _steps(values: Sequence[Any]) -> Column:
    return Column("step", "Step", [float(value) for value in values])


def _value(value: Any) -> float:
    return math.nan if value is None else float(value)
