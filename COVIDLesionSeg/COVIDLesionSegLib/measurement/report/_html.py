"""Pieces of a page. Whatever enters one is escaped, unless it is :class:`Markup` that was made here."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..catalog import catalog, display_unit


class Markup(str):
    """Text that is markup already; joining it with other text by ``+`` or an f-string makes it plain text again."""


def text(value: Any) -> Markup:
    """Anything as text that a page can hold."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def joined(*parts: Any, by: str = "") -> Markup:
    """Pieces one after another, without those that are empty."""
    return Markup(by.join(filter(None, map(text, parts))))


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element; ``class_`` is ``class``, attributes that are None are left out."""
    given = "".join(f' {key.rstrip("_")}="{text(value)}"' for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{given}>{joined(*content)}</{name}>")


def section(title: str, *parts: Any) -> Markup:
    """A section with a heading; nothing where there is nothing in it."""
    return tag("section", joined(tag("h2", title), *parts, by="\n")) if any(parts) else Markup()


def number(value: Any, digits: int) -> str:
    """A number as people read it; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if value in ("Infinity", math.inf):
        return "\N{INFINITY}"
    return f"{float(value):.{digits}f}".replace("-", "\N{MINUS SIGN}")


def value_with_unit(entry: Mapping[str, Any], signed: bool = False) -> Markup:
    """Value and unit of a measurement, with the digits that the catalog gives it; ``signed`` shows a plus."""
    digits = catalog()["quantities"][entry["name"]]["digits"]
    unit = display_unit(entry["unit"])
    shown = number(entry["value"], digits)
    if signed and entry["value"] is not None and entry["value"] > 0:
        shown = "+" + shown
    return joined(shown, tag("span", unit, class_="unit") if unit and entry["value"] is not None else "", by=" ")


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], kinds: Sequence[str] = ()) -> Markup:
    """A table that scrolls sideways where the page is too narrow; columns without a word or number are left out.

    Args:
        caption: what it shows.
        columns: headings; a heading that begins with "#" is of a column of numbers.
        rows: cells, the first one heads its row.
        kinds: a class for each row.
    """
    body = [list(row) for row in rows]
    if not body:
        return Markup()
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in body)]
    classes = {i: "number" if columns[i].startswith("#") else None for i in kept}
    head = [tag("th", columns[i].lstrip("#"), scope="col", class_=classes[i]) for i in kept]
    lines = []
    for index, row in enumerate(body):
        cells = [tag("td", row[i], class_=classes[i]) for i in kept[1:]]
        first = tag("th", row[0], scope="row", class_=classes[0])
        lines.append(tag("tr", first, *cells, class_=kinds[index] if kinds else None))
    content = tag("table", tag("thead", tag("tr", *head)), tag("tbody", joined(*lines, by="\n")))
    return tag("figure", tag("figcaption", caption), tag("div", content, class_="scroll"))


def bar(percent: float | None) -> Markup:
    """A bar of 0 to 100 %."""
    width = min(max(percent or 0.0, 0.0), 100.0)
    return tag("span", tag("span", style=f"width:{width:.1f}%"), class_="bar")


def beside(one: Markup, other: Markup) -> Markup:
    """Two pieces side by side where the page is wide enough, else one under the other."""
    return tag("div", tag("div", one), tag("div", other), class_="beside") if one and other else one or other


def picture(png: bytes, description: str, kind: str = "") -> Markup:
    """A picture inside the page, with its caption."""
    # width and height stand in the PNG's first chunk; with them the page does not jump while it loads
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    image = f'<img src="{source}" alt="{text(description)}" width="{width}" height="{height}">'
    return tag("figure", Markup(image), tag("figcaption", description), class_=kind or None)


def page(title: str, style: str, body: Markup) -> str:
    """A whole page that loads nothing from anywhere and runs no script."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
