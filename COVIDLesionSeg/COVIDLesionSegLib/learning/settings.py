"""Settings as dataclasses that read and write plain values, and say what is wrong with a value."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal

from ..documents import parse_toml
from ..errors import InputError, ReadError
from ..imports import is_import_path

# what is wrong so far, while :func:`all_problems` collects it
_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def require(holds: bool, name: str, value: Any, allowed: str) -> bool:
    """Refuse a value with its name and what is allowed, unless it holds; returns whether it does."""
    if not holds:
        refuse(f"{name} is {value}; it must be {allowed}.")
    return holds


def require_named(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is neither a known name nor an import path, with what was probably meant."""
    if value not in known and not is_import_path(value):
        near = nearest(value, known)
        advice = f"; did you mean {near}?" if near else "."
        refuse(f"{name} is {value!r}; allowed are {', '.join(known)}, or an import path{advice}")


def refuse(sentence: str) -> None:
    """Raise InputError; inside of :func:`all_problems` the sentence is remembered instead."""
    found = _collected.get()
    if found is None:
        raise InputError(sentence)
    found.append(sentence)


@contextlib.contextmanager
def all_problems() -> Iterator[None]:
    """Collect what is refused inside the block, and raise one InputError with all of it at the end."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield
    finally:
        _collected.reset(token)
    if len(found) == 1:
        raise InputError(found[0])
    if found:
        numbered = " ".join(f"({number}) {sentence}" for number, sentence in enumerate(found, 1))
        raise InputError(f"The configuration has {len(found)} errors: {numbered}")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was most likely meant: one that it abbreviates ("nr_dice", "ce"), else the most similar."""
    known = list(known)
    letters = word.lower().replace("_", "").replace("-", "")
    abbreviated = [name for name in known if letters and _abbreviates(letters, name.split("_"))]
    if abbreviated:
        return min(abbreviated, key=len)
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def _abbreviates(letters: str, parts: list[str]) -> bool:
    """Whether the letters are beginnings of these parts of a name, one of each part or none, in order."""
    if not letters or not parts:
        return not letters
    beginnings = (length for length in range(len(parts[0]) + 1) if letters.startswith(parts[0][:length]))
    return any(_abbreviates(letters[length:], parts[1:]) for length in beginnings)


def from_mapping(cls: Any, values: Any, where: str = "") -> Any:
    """A dataclass, whose fields may be dataclasses, from tables of plain values.

    Args:
        cls: the dataclass.
        values: keys are its fields' names; absent ones keep their defaults.
        where: what the values are called in messages, "" for the whole.

    Raises:
        InputError: unknown keys, with the nearest known ones, and values of other types or outside of their range: all
            of them in one message.
    """
    if where:
        return _table(cls, values, where, ())
    with all_problems():
        return _table(cls, values, "", tuple(dotted_keys(cls)))


def dotted_keys(cls: Any, where: str = "") -> dict[str, Any]:
    """Every setting's full name, e.g. "augmentation.rotation.degrees", and its field, in order."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        name = f"{where}.{item.name}" if where else item.name
        inner = hints[item.name]
        found |= dotted_keys(inner, name) if dataclasses.is_dataclass(inner) else {name: item}
    return found


def _table(cls: Any, values: Any, where: str, everywhere: tuple[str, ...]) -> Any:
    if not isinstance(values, Mapping):
        refuse(f"{where or 'The configuration'} is {values!r}; a table of settings is needed.")
        return cls()
    hints = typing.get_type_hints(cls)
    known = [item.name for item in dataclasses.fields(cls)]
    arguments = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        if key not in known:
            elsewhere = next((full for full in everywhere if full.split(".")[-1] == key), None)
            near = nearest(key, known) if elsewhere is None else elsewhere
            advice = f"did you mean {near}?" if near else f"allowed are {', '.join(known)}."
            refuse(f"The configuration has an unknown key {name}; {advice}")
            continue
        hint = hints[key]
        with contextlib.suppress(_WrongTypeError):
            arguments[key] = (
                _table(hint, value, name, everywhere) if dataclasses.is_dataclass(hint) else _typed(hint, value, name)
            )
    return cls(**arguments)


class _WrongTypeError(Exception):
    """A value that was refused, and can't stand in its table."""


def _typed(hint: Any, value: Any, name: str) -> Any:
    """The value as the hint wants it: whole numbers pass as floats, lists as tuples; nothing else is converted."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in inner:
            near = nearest(str(value), [str(word) for word in inner])
            advice = f"; did you mean {near}?" if near else "."
            _refuse_value(f"{name} is {value!r}; allowed are {', '.join(map(str, inner))}{advice}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            _refuse_value(f"{name} is {value!r}; a list is needed.")
        return tuple(_typed(inner[0], item, name) for item in value)
    wanted = origin or hint
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", dict: "a table"}
        _refuse_value(f"{name} is {value!r}; {words.get(wanted, wanted)} is needed.")
    if wanted is float and value != value:
        _refuse_value(f"{name} is NaN; a number is needed.")
    return value


def _refuse_value(sentence: str) -> None:
    refuse(sentence)
    raise _WrongTypeError


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE texts, as a command line gives them, as nested tables.

    Keys are dotted ("optimizer.learning_rate=1e-3", "loss.arguments.gamma=1.5"); values are read as TOML, and as text
    where they are none.

    Raises:
        InputError: another form.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        if not equals or len(keys) < 2 or not all(keys):
            raise InputError(f"--set got {text!r}; TABLE.KEY=VALUE is needed, e.g. optimizer.learning_rate=1e-3.")
        try:
            parsed = parse_toml(f"value = {value}", "--set")["value"]
        except ReadError:
            parsed = value.strip()
        table = changes
        for key in keys[:-1]:
            inner = table.setdefault(key, {})
            if not isinstance(inner, dict):
                raise InputError(f"--set gives {key} a value and, with {text!r}, settings; one of them is needed.")
            table = inner
        table[keys[-1]] = parsed
    return changes


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, all of them new; what the second says counts instead of the first's."""
    out = {key: merged(value, {}) if isinstance(value, Mapping) else value for key, value in first.items()}
    for key, value in second.items():
        before = out.get(key)
        is_table = isinstance(value, Mapping)
        out[key] = merged(before if is_table and isinstance(before, Mapping) else {}, value) if is_table else value
    return out


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
