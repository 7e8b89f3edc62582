"""Write docs/configuration.md, every key of a training's configuration, from the dataclasses and their docstrings.

    python Testing/tools/configuration_page.py

The page is committed; a test holds it equal to what this makes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "configuration.md"
sys.path.insert(0, str(REPOSITORY / "COVIDLesionSeg"))

from COVIDLesionSegLib.learning.config import TrainingConfig  # noqa: E402
from COVIDLesionSegLib.learning.settings import to_plain, toml_value  # noqa: E402

HEAD = """# Every setting of a training

Made from the code by `Testing/tools/configuration_page.py`; [training](training.md) says how to use it.

```
covid-lesion-seg train my.toml -o runs/mine --set optimizer.learning_rate=1e-3 augmentation.rotation.degrees=15
covid-lesion-seg train my.toml --set loss.name=dice --print-config > whole.toml     # every key; `train` reads it back
covid-lesion-seg train --list losses                                               # what can be named there
```

A configuration is a TOML file with these tables; what it does not name keeps its default. `--set` takes
TABLE.KEY=VALUE, as often as wanted, with TOML's values; text needs no quotes. Options of a command's own (`--steps`,
`--device`, ...) count more than `--set`, and that more than the file. Relative names count from the file's folder, so a
printed configuration belongs beside the one that it was made from. All errors of a configuration are told at once.
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    hints = typing.get_type_hints(TrainingConfig)
    for item in dataclasses.fields(TrainingConfig):
        cls = hints[item.name]
        lines += [f"## `[{item.name}]`", "", summary(cls), ""]
        lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows(cls, ""), ""]
    return "\n".join(lines).rstrip() + "\n"


def rows(cls: Any, where: str) -> list[str]:
    """One row a key; a table inside a table stands before its own keys."""
    hints, meanings, found = typing.get_type_hints(cls), attributes(cls), []
    for item in dataclasses.fields(cls):
        name, hint = where + item.name, hints[item.name]
        if dataclasses.is_dataclass(hint):
            found += [f"| `{name}` | table | | {summary(hint)} |", *rows(hint, f"{name}.")]
            continue
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        shown = toml_value(to_plain(default))
        found.append(f"| `{name}` | {type_of(hint)} | `{shown}` | {meanings[item.name]} |")
    return found


def summary(cls: Any) -> str:
    """The docstring's text above its attributes, in one line."""
    text = (inspect.getdoc(cls) or "").split("\nAttributes:")[0]
    return cell(text)


def attributes(cls: Any) -> dict[str, str]:
    """What the docstring says of each attribute."""
    _, _, section = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    entries = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)", section, re.MULTILINE | re.DOTALL)
    return {name: cell(text) for name, text in entries}


def cell(text: str) -> str:
    """Text as a table's cell: one line, code as Markdown writes it."""
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text).replace("``", "`")


def type_of(hint: Any) -> str:
    """What a value must be."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{word}`" for word in inner)
    if origin is tuple:
        return f"list of {type_of(inner[0])}s"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return "table" if origin is dict else words[hint]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
