"""Charts of what was measured: HU histogram, lung zones, change between two time points.

They take plain mappings and arrays and return PNG bytes on the dark background of the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...errors import InputError
from . import _figure as style

_WIDTH = 900
_SERIES = (style.LESION, style.REFERENCE, style.LUNGS, "#cc79a7")


def histogram_picture(
    hu: ArrayLike | Mapping[str, ArrayLike],
    voxel_ml: float | None = None,
    thresholds: Mapping[str, float] | None = None,
    bounds: tuple[float, float] = (-1000.0, 200.0),
    bin_width: float = 20.0,
) -> bytes:
    """Histogram of Hounsfield units.

    Args:
        hu: HU of the voxels of a region, any shape; or several regions as name -> values.
        voxel_ml: volume of one voxel, mL; the axis then counts mL per bin, otherwise % of the region's voxels.
        thresholds: name -> HU, drawn as upright lines, e.g. the limit between GGO and consolidation.
        bounds: first and last HU of the axis; values outside count in the outermost bins, so that nothing is hidden.
        bin_width: HU per bin.

    Returns:
        PNG.

    Raises:
        InputError: bounds or bin width that make no bins, or matplotlib is not installed.
    """
    if not bin_width > 0 or not bounds[1] > bounds[0]:
        raise InputError(f"A histogram from {bounds[0]:g} to {bounds[1]:g} HU in bins of {bin_width:g} has no bins.")
    regions = dict(hu) if isinstance(hu, Mapping) else {"": hu}
    edges = np.arange(bounds[0], bounds[1] + bin_width, bin_width)
    figure, axes = _axes(_WIDTH, 520)
    for position, (name, values) in enumerate(regions.items()):
        inside = np.clip(np.asarray(values, np.float64).ravel(), edges[0], edges[-1])
        counts = np.histogram(inside, edges)[0] * (voxel_ml or 100.0 / max(inside.size, 1))
        color = _SERIES[position % len(_SERIES)]
        axes.stairs(counts, edges, color=color, linewidth=2, label=name or None)
        axes.stairs(counts, edges, fill=True, color=color, alpha=0.25)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    # head room for the thresholds' names
    axes.set_ylim(top=1.18 * axes.get_ylim()[1])
    for name, value in (thresholds or {}).items():
        axes.axvline(value, color=style.TEXT, linewidth=1.5, linestyle="dashed")
        axes.text(
            value,
            0.98,
            f" {name}: {value:g} HU ",
            transform=axes.get_xaxis_transform(),
            ha="left" if value < np.mean(bounds) else "right",
            va="top",
            color=style.TEXT,
            fontsize=style.SMALL,
        )
    axes.set_xlabel("HU", color=style.TEXT, fontsize=style.SMALL)
    axes.set_ylabel(
        f"mL per {bin_width:g} HU" if voxel_ml else f"% of voxels per {bin_width:g} HU",
        color=style.TEXT,
        fontsize=style.SMALL,
    )
    _legend(axes)
    return style.png_bytes(figure)


def zone_chart(zones: Mapping[str, float | None], unit: str = "% of the zone", title: str = "") -> bytes:
    """Horizontal bars, one for each zone (or lobe, or lung), in the given order from the top.

    Args:
        zones: name -> value; None and NaN are shown as "not measured".
        unit: unit of the values; an axis of percents runs to 100 only where a value needs it.
        title: line above the bars.

    Returns:
        PNG.

    Raises:
        InputError: there is no zone, or matplotlib is not installed.
    """
    names, values = _bars(zones, "zones")
    figure, axes = _axes(_WIDTH, 130 + 56 * len(names) + (40 if title else 0))
    places = np.arange(len(names))
    axes.barh(places, np.nan_to_num(values), height=0.62, color=style.LESION)
    _rows(axes, places, names, values, unit, title)
    for place, value in zip(places, values, strict=True):
        _number(axes, float(place), value)
    return style.png_bytes(figure)


def change_chart(
    before: Mapping[str, float | None],
    after: Mapping[str, float | None],
    unit: str = "mL",
    names: Sequence[str] = ("baseline", "follow-up"),
    title: str = "",
) -> bytes:
    """Paired horizontal bars of two time points.

    Args:
        before: name -> value at the first time point; None and NaN are shown as "not measured".
        after: name -> value at the second; names that only one of them has are shown for that one.
        unit: unit of the values.
        names: what to call the two time points.
        title: line above the bars.

    Returns:
        PNG.

    Raises:
        InputError: there is nothing to show, or matplotlib is not installed.
    """
    rows = [*before, *(name for name in after if name not in before)]
    labels, first = _bars({name: before.get(name) for name in rows}, "values")
    _, second = _bars({name: after.get(name) for name in rows}, "values")
    figure, axes = _axes(_WIDTH, 170 + 88 * len(labels) + (40 if title else 0))
    places = np.arange(len(labels))
    for shift, values, color, name in (
        (-0.2, first, style.REFERENCE, names[0]),
        (0.2, second, style.LESION, names[1]),
    ):
        axes.barh(places + shift, np.nan_to_num(values), height=0.36, color=color, label=name)
        for place, value in zip(places + shift, values, strict=True):
            _number(axes, float(place), value)
    _rows(axes, places, labels, np.concatenate([first, second]), unit, title)
    _legend(axes)
    return style.png_bytes(figure)


def _axes(width: int, height: int) -> tuple[Any, Any]:
    figure = style.new_figure(width, height)
    # constrained layout keeps long names and units inside the picture
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)
    axes = figure.add_subplot()
    axes.set_facecolor(style.BACKGROUND)
    axes.tick_params(colors=style.TEXT, labelsize=style.SMALL, length=0, pad=8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(style.MUTED)
    return figure, axes


def _bars(values: Mapping[str, float | None], what: str) -> tuple[list[str], np.ndarray]:
    if not values:
        raise InputError(f"There are no {what} to draw a chart of.")
    numbers = [float("nan") if value is None else float(value) for value in values.values()]
    return [str(name) for name in values], np.array(numbers)


def _rows(axes: Any, places: np.ndarray, names: Sequence[str], values: np.ndarray, unit: str, title: str) -> None:
    finite = values[np.isfinite(values)]
    low, high = min(0.0, finite.min(initial=0.0)), max(0.0, finite.max(initial=0.0))
    if high == low:
        high = 1.0
    # room for the numbers at the bars' ends
    span = high - low
    axes.set_xlim(low - (0.16 * span if low < 0 else 0), high + 0.16 * span)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(axis="x", color=style.MUTED, alpha=0.25)
    axes.axvline(0, color=style.MUTED, linewidth=1)
    axes.set_xlabel(unit, color=style.TEXT, fontsize=style.SMALL)
    if title:
        axes.set_title(title, color=style.TEXT, fontsize=style.LARGE, loc="left")


def _number(axes: Any, place: float, value: float) -> None:
    if not np.isfinite(value):
        axes.text(0, place, " not measured", va="center", color=style.MUTED, fontsize=style.SMALL)
        return
    text = f" {value:.0f} " if abs(value) >= 100 else f" {value:.1f} "
    side = "right" if value < 0 else "left"
    axes.text(value, place, text, va="center", ha=side, color=style.TEXT, fontsize=style.SMALL)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.figure.legend(
            loc="outside upper right", frameon=False, labelcolor=style.TEXT, fontsize=style.SMALL, ncols=4
        )
