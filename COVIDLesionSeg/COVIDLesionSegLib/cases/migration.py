"""Stores of older versions brought up to date, step by step.

Each step may be killed at any moment and run again: files are written whole, nothing is removed before what replaces it
is there, and ``store.json`` gets its new version last.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError
from ..files import write_json
from ..locks import exclusive
from .layout import VERSION, Layout, case_number, now, read_json, store_values


def migrate(folder: Path | str) -> list[str]:
    """Bring a store up to date; nothing happens to one that is.

    Args:
        folder: of the store; make a backup first, older programs can't open it afterwards.

    Returns:
        What was done, one sentence a step.

    Raises:
        ReadError: no store there, or damaged.
        InputError: a newer version than this program knows, or somebody has a case open.
        OutputError: the store can't be written to.
    """
    layout = Layout(Path(folder))
    done = []
    busy = OutputError("Another program is changing the store; try again in a moment.")
    with exclusive(layout.mutex("store"), busy, 20.0):
        values = store_values(layout.root)
        if values["version"] < VERSION and any(layout.locks.glob("*.lock")):
            raise InputError("Somebody has a case of this store open; close all cases before it is brought up to date.")
        while values["version"] < VERSION:
            step = _STEPS[values["version"]]
            values = step(layout, values)
            values["version"] += 1
            write_json(layout.store_file, values)
            done.append(f"Version {values['version'] - 1} became {values['version']}: {(step.__doc__ or '').strip()}")
    return done


def _from_1(layout: Layout, values: dict[str, Any]) -> dict[str, Any]:
    """The split got a file of its own, and paths of referenced CTs moved to private/."""
    for path in sorted(layout.cases.iterdir()):
        if case_number(path.name) < 1:
            continue
        file = layout.case_file(path.name)
        case = read_json(file)
        place = case["ct"].pop("path", None)
        if place is not None:
            # the new place is written before the old one is emptied
            write_json(layout.location_file(path.name), {"path": place, "series": None})
            origin = read_json(layout.origin_file(path.name))
            origin["ct"].pop("path", None)
            write_json(layout.origin_file(path.name), origin)
            write_json(file, case)
    patients = values.get("split")
    if patients is not None:
        if not layout.split_file.exists():
            act = {"act": "freeze", "when": values["created"], "by": "unknown", "migrated": now()}
            write_json(layout.split_file, {"version": 1, "patients": patients, "history": [act]})
        values = {name: value for name, value in values.items() if name != "split"}
    salt = values.pop("salt", None)
    if salt is not None and not layout.salt_file.exists():
        write_json(layout.salt_file, {"salt": salt})
    return values


_STEPS: dict[int, Callable[[Layout, dict[str, Any]], dict[str, Any]]] = {1: _from_1}
