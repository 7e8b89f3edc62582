"""Old and new model side by side, as text for people."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from .text import _, number_text

_FIGURES = ("dice", "relative_volume_error", "hausdorff_distance_95")


def gateHtml(gate: Mapping[str, Any]) -> str:
    """The gate's decision and each validation case under both models; no colors, so that any theme can show it.

    Args:
        gate: what ``cases.GateDecision.told()`` gives.
    """
    heads = (_("Case"), _("Dice"), _("RVE"), _("HD95 [mm]"))
    rows = [_row([html.escape(text) for text in heads], "th")]
    for name, both in gate["cases"].items():
        case = _("{case} (does not count)").format(case=name) if name in gate["left_out"] else name
        old, new = both["old"], both["new"]
        if float(new["reference_ml"]) == 0:
            false = _("{old} → {new} mL false").format(
                old=number_text(old["prediction_ml"]), new=number_text(new["prediction_ml"])
            )
            rows.append(_row([html.escape(case), false, "", ""]))
            continue
        cells = [f"{number_text(old[name])} → {number_text(new[name])}" for name in _FIGURES]
        rows.append(_row([html.escape(case), *cells]))
    notes = "".join(f"<p>{html.escape(text)}</p>" for text in (gate["text"], *gate["warnings"], _split(gate)))
    return f"{notes}<table cellspacing='4'>{''.join(rows)}</table>"


def comparisonHtml(rows: list[Mapping[str, Any]], summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Every two raters of every case.

    Args:
        rows: of ``cases.agreement.AgreementRow``.
        summary: pair -> mean Dice and number of cases.
    """
    heads = (_("Case"), _("Raters"), _("Dice"), _("HD95 [mm]"))
    shown = [_row([html.escape(text) for text in heads], "th")]
    for row in rows:
        pair = f"{row['first']} - {row['second']}"
        figures = number_text(row["dice"]), number_text(row["hausdorff_distance_95"])
        shown.append(_row([html.escape(row["case"]), html.escape(pair), *figures]))
    means = "".join(
        "<p>"
        + html.escape(
            _("{pair}: mean Dice {dice} over {count} cases").format(
                pair=pair, dice=number_text(found["mean_dice"]), count=found["cases"]
            )
        )
        + "</p>"
        for pair, found in summary.items()
    )
    return f"<table cellspacing='4'>{''.join(shown)}</table>{means}"


def _row(cells: list[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag} align='left'>{cell}</{tag}>" for cell in cells) + "</tr>"


def _split(gate: Mapping[str, Any]) -> str:
    return str(gate["split"].get("text", ""))
