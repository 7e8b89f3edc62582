"""Settings as dataclasses that read and write plain values, and say what is wrong with a value."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import InputError


def require(holds: bool, name: str, value: Any, allowed: str) -> None:
    """Raise InputError with name, value and what is allowed, unless it holds."""
    if not holds:
        raise InputError(f"{name} is {value}; it must be {allowed}.")


def from_mapping(cls: Any, values: Any, where: str) -> Any:
    """A dataclass, whose fields may be dataclasses, from tables of plain values.

    Args:
        cls: the dataclass.
        values: keys are its fields' names; absent ones keep their defaults.
        where: what the values are called in messages, "" for the whole.

    Raises:
        InputError: an unknown key, with the nearest known one, or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where or 'The configuration'} is {values!r}; a table of settings is needed.")
    hints = typing.get_type_hints(cls)
    known = [item.name for item in dataclasses.fields(cls)]
    arguments = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}."
            raise InputError(f"The configuration has an unknown key {name}; {advice}")
        hint = hints[key]
        arguments[key] = (
            from_mapping(hint, value, name) if dataclasses.is_dataclass(hint) else _typed(hint, value, name)
        )
    return cls(**arguments)


def _typed(hint: Any, value: Any, name: str) -> Any:
    """The value as the hint wants it: whole numbers pass as floats, lists as tuples; nothing else is converted."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in inner:
            near = difflib.get_close_matches(str(value), [str(word) for word in inner], n=1)
            advice = f"; did you mean {near[0]}?" if near else "."
            raise InputError(f"{name} is {value!r}; allowed are {', '.join(map(str, inner))}{advice}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{name} is {value!r}; a list is needed.")
        return tuple(_typed(inner[0], item, name) for item in value)
    wanted = origin or hint
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", dict: "a table"}
        raise InputError(f"{name} is {value!r}; {words.get(wanted, wanted)} is needed.")
    if wanted is float and value != value:
        raise InputError(f"{name} is NaN; a number is needed.")
    return value


def to_plain(value: Any) -> Any:
    """Tuples as lists, inside of dictionaries and lists, too."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def toml_value(value: Any) -> str:
    """A plain value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value)
