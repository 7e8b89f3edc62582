"""What all pictures and charts share: colors, type sizes, a figure without global state, PNG bytes.

Figures are drawn on Agg canvas objects of their own; ``matplotlib.pyplot`` and its settings are never touched, so that
a picture can be made inside Slicer, in a thread, or beside a user's own plots.
"""

from __future__ import annotations

import io
from typing import Any

from ...errors import InputError

BACKGROUND = "#0e1116"
PANEL = "#000000"
TEXT = "#f0f0f0"
MUTED = "#9aa4b0"

# Okabe and Ito's palette (2008), which readers with any color vision can tell apart; brightened where lines are thin.
LESION = "#ffb000"
REFERENCE = "#56b4e9"
LUNGS = "#2fc99a"
TRUE_POSITIVE = "#009e73"
FALSE_POSITIVE = "#e69f00"
FALSE_NEGATIVE = "#56b4e9"

DPI = 100
# Points at 100 dpi on a picture about 1000 pixels wide: shown on a phone at 390 pixels, small type is still 9 high.
SMALL = 16
LARGE = 20


def new_figure(width: int, height: int) -> Any:
    """A matplotlib figure of width x height pixels with an Agg canvas of its own.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "Pictures need matplotlib, which is not installed here.",
            "Install it: pip install 'covid-lesion-seg[report]'.",
        ) from error
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Any) -> bytes:
    """The figure as a PNG; the same figure gives the same bytes with the same matplotlib (no date, no version)."""
    buffer = io.BytesIO()
    figure.canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def outlined(color: str = "#000000", width: float = 2.5) -> list[Any]:
    """Path effects that keep text and thin marks readable on any gray."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground=color)]
