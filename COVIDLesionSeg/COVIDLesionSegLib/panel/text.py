"""Words for people: translation, numbers with units, durations, models with what may be done with them."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import ModelError
from ..models import read_card
from ..models.catalog import AVAILABLE, BUNDLED, DAMAGED, INSTALLED, MANUAL, ModelEntry
from ..networks import title_of

try:
    from slicer.i18n import tr as _
except ImportError:  # an application without translations

    def _(text: str, context: str | None = None) -> str:  # noqa: ARG001  # as Slicer has it
        """The text as it is."""
        return text


__all__ = [
    "_",
    "cardHtml",
    "duration_text",
    "figure_text",
    "licenseText",
    "number_text",
    "statusText",
    "table_html",
]

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


def statusText(entry: ModelEntry) -> str:
    """Whether a model is here."""
    return {
        BUNDLED: _("comes with the extension"),
        INSTALLED: _("installed"),
        AVAILABLE: _("can be downloaded"),
        MANUAL: _("to be fetched by hand"),
        DAMAGED: _("damaged"),
    }[entry.status]


def licenseText(entry: ModelEntry) -> str:
    """The license of the weights and what a user must know."""
    text = _("License of the weights: {license}.").format(license=entry.license or _("unknown"))
    return f"{text} {entry.license_notice}".strip()


def cardHtml(entry: ModelEntry) -> str:
    """A model's card as HTML without colors or sizes of its own; what its file says is added where it is here."""
    rows: list[tuple[str, str]] = [
        (_("Network"), title_of(entry.network)),
        (_("Status"), entry.problem or statusText(entry)),
        (_("License"), f"{entry.license or _('unknown')}. {entry.license_notice}"),
        (_("Input"), entry.preprocessing),
        (_("Cite"), entry.citation),
        (_("How to get it"), "" if entry.is_usable else entry.manual_instruction),
        (_("Source"), entry.source_page or entry.source),
        (_("SHA-256"), entry.sha256 or ""),
    ]
    if entry.path is not None and entry.path.suffix == ".safetensors":
        try:
            card = read_card(entry.path)
        except ModelError as error:
            rows.append((_("Card"), str(error)))
        else:
            data = ", ".join(str(source["name"]) for source in card.training_data)
            rows += [
                (_("Trained on"), data),
                (_("Measured"), "; ".join(_figures(card.metrics))),
                (_("Notes"), card.notes),
            ]
    cells = "".join(f"<p><b>{html.escape(name)}:</b> {html.escape(text)}</p>" for name, text in rows if text)
    title = f"<p><b>{html.escape(entry.name)}</b> ({html.escape(entry.id)})</p>"
    return f"{title}<p>{html.escape(entry.description)}</p>{cells}"


def _figures(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What was measured, each group with the words that say on what."""
    for name, group in metrics.items():
        if not isinstance(group, Mapping):
            if isinstance(group, int | float):
                yield f"{_words(name)} {number_text(group)}"
            continue
        numbers = [
            f"{_words(key)} {', '.join(number_text(v) for v in (value if isinstance(value, list) else [value]))}"
            for key, value in group.items()
            if isinstance(value, int | float | list)
        ]
        if numbers:
            yield f"{group.get('what', _words(name))}: {', '.join(numbers)}"


def _words(key: str) -> str:
    return key.replace("_", " ")
