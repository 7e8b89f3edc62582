"""Words for people: translation, numbers with units, durations."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

try:
    from slicer.i18n import tr as _
except ImportError:  # an application without translations

    def _(text: str, context: str | None = None) -> str:  # noqa: ARG001  # as Slicer has it
        """The text as it is."""
        return text


__all__ = ["_", "duration_text", "figure_text", "number_text", "table_html"]

_LARGE = 100


def number_text(value: Any) -> str:
    """A number with three significant digits, whole from 100 on; a dash for what was not measured."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, str):
        # infinity as measurements write it
        value = float(value)
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "\N{MINUS SIGN}\N{INFINITY}"
    if isinstance(value, int) or abs(value) >= _LARGE:
        return f"{value:.0f}"
    return f"{value:.3g}"


def figure_text(value: Any, unit: str) -> str:
    """A number and its unit."""
    text = number_text(value)
    return f"{text} {unit}" if unit and value is not None else text


def table_html(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table as HTML without colors or sizes of its own, so that any theme can show it."""

    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag} align='left'>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table cellspacing='4'>{row(heads, 'th')}{body}</table>"


def duration_text(seconds: float) -> str:
    """A time to wait, roughly."""
    if seconds < 1.5:
        return _("about a second")
    if seconds < 90:
        rounded = round(seconds) if seconds < 10 else 5 * round(seconds / 5)
        return _("about {seconds} seconds").format(seconds=rounded)
    if seconds < 90 * 60:
        return _("about {minutes} minutes").format(minutes=max(2, round(seconds / 60)))
    return _("about {hours} hours").format(hours=max(2, round(seconds / 3600)))
