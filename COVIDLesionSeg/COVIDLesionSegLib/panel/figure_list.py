"""Figures as a short list: name, value with unit; definition and status as tooltip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import qt

from ..measurement import QUANTITIES
from ..measurement.catalog import catalog, display_unit, key_of, status_text
from .text import _, figure_text

Entries = Mapping[str, Mapping[str, Any]]

_SHOWN = (
    ("lesion_volume", "whole"),
    ("involvement", "whole"),
    ("involvement", "right_lung"),
    ("involvement", "left_lung"),
    ("ground_glass_volume", "whole"),
    ("consolidation_volume", "whole"),
    ("mean_hu", "whole"),
    ("lesion_count", "whole"),
    ("severity_by_zones", "whole"),
    ("lung_volume", "whole"),
    ("lesion_outside_lungs", "whole"),
)


class FigureList:
    """Fills a table widget of two columns.

    Args:
        widget: QTableWidget.
    """

    def __init__(self, widget: Any) -> None:
        self._widget = widget
        widget.setHorizontalHeaderLabels([_("Quantity"), _("Value")])
        widget.verticalHeader().hide()
        widget.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header = widget.horizontalHeader()
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        header.setSectionResizeMode(1, qt.QHeaderView.ResizeToContents)

    def show(self, quantities: Entries, evaluation: Entries) -> None:
        """Show what was measured, the comparison with a reference first; empty mappings empty the list."""
        rows = [*_evaluationRows(evaluation), *_quantityRows(quantities)]
        self._widget.setRowCount(len(rows))
        for row, (name, value, tip) in enumerate(rows):
            for column, text in enumerate((name, value)):
                item = self._widget.item(row, column)
                if item is None:
                    item = qt.QTableWidgetItem()
                    self._widget.setItem(row, column, item)
                item.setText(text)
                item.setToolTip(tip)


def _quantityRows(entries: Entries) -> Iterable[tuple[str, str, str]]:
    for name, region in _SHOWN:
        entry = entries.get(key_of(name, region))
        if entry is not None:
            title = (
                entry["title"] if region == "whole" else f"{entry['title']}, {catalog()['regions'][region]['title']}"
            )
            yield _named(title, entry), _value(entry), _tip(entry["definition"], entry)


def _evaluationRows(entries: Entries) -> Iterable[tuple[str, str, str]]:
    for name, quantity in QUANTITIES.items():
        if name in entries:
            yield quantity.title, _value(entries[name]), _tip(quantity.definition, entries[name])


def _named(title: str, entry: Mapping[str, Any]) -> str:
    """The title, and beneath it what is to be kept in mind of a value that is not plainly right."""
    status = status_text(entry["status"])
    return f"{title}\n({status})" if status and entry["value"] is not None else title


def _value(entry: Mapping[str, Any]) -> str:
    return figure_text(entry["value"], display_unit(entry["unit"]))


def _tip(definition: str, entry: Mapping[str, Any]) -> str:
    unit = display_unit(entry["unit"])
    parts = [definition, _("Unit: {unit}.").format(unit=unit) if unit else ""]
    if entry["status"] != "ok":
        parts.append(_("Status: {status}.").format(status=status_text(entry["status"])))
    return " ".join(part for part in parts if part)
