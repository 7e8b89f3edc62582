"""A model for people: what it is, what may be done with it, how good it is."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ModelError
from ..models import read_card
from ..models.catalog import AVAILABLE, BUNDLED, DAMAGED, INSTALLED, MANUAL, ModelEntry
from .text import _, number_text


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
        (_("Network"), {"coplenet": "COPLE-Net", "caresunet": "CARes-UNet"}.get(entry.network, entry.network)),
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
