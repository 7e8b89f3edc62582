"""Records as plain JSON values, and back: what a dataclass's type hints say is how it is written and what is read.

A record is a frozen dataclass of texts, numbers, booleans, None, tuples, mappings and other records. Numbers that are
not finite become text ("inf", "nan"), since JSON has none; a field that is marked :data:`TRANSIENT` is not written.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
# metadata of a field that is known while a program runs and never written
TRANSIENT = {"transient": True}
_NOT_FINITE = ("inf", "-inf", "nan")
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def to_json(value: Any) -> Any:
    """A record, or a value of one, as values that ``json.dumps`` takes.

    Raises:
        TypeError: a value that no record holds, e.g. an array.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in _stored(type(value))}
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"A record holds {type(value).__name__}, which JSON has no form for.")


def from_json(kind: type[Record], values: Any) -> Record:
    """A record from what :func:`to_json` made; keys that it does not have are left out, absent ones keep their default.

    Raises:
        ValueError: a value of another type, or an absent one without default; the message names the field.
    """
    record: Record = _reader(kind)(values, kind.__name__)  # type: ignore[arg-type]  # classes are hashable
    return record


Reader = Callable[[Any, str], Any]


@functools.cache
def _stored(kind: type) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind) if not item.metadata.get("transient"))


@functools.cache
def _reader(hint: Any) -> Reader:
    """What reads a value of this type; made once for each."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value, _: value
    if is_dataclass(hint):
        return _record_reader(hint)
    if origin in (Union, types.UnionType):
        return _one_of([_reader(item) for item in inner])
    if origin is Literal:
        return lambda value, where: value if value in inner else _refuse(where, f"one of {inner}", value)
    if origin is tuple:
        return _tuple_reader(inner)
    if origin is list:
        many = _reader(inner[0])
        return lambda value, where: [many(item, where) for item in _required(list, value, where)]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        item_reader = _reader(inner[1])
        return lambda value, where: {
            str(name): item_reader(item, f"{where}.{name}") for name, item in _required(dict, value, where).items()
        }
    if hint in _WORDS:
        return functools.partial(_plain, hint)
    raise TypeError(f"A record can't have a field of the type {hint}.")


def _record_reader(kind: Any) -> Reader:
    hints = get_type_hints(kind)
    readers = {name: _reader(hints[name]) for name in _stored(kind)}

    def read(value: Any, where: str) -> Any:
        known = _required(dict, value, where)
        try:
            return kind(
                **{name: reader(known[name], f"{where}.{name}") for name, reader in readers.items() if name in known}
            )
        except TypeError as error:
            # the constructor names what is absent
            raise ValueError(f"{where}: {error}.") from error

    return read


def _tuple_reader(inner: tuple[Any, ...]) -> Reader:
    if len(inner) == 2 and inner[1] is Ellipsis:
        one = _reader(inner[0])
        return lambda value, where: tuple(one(item, where) for item in _required(list, value, where))
    readers = [_reader(item) for item in inner]

    def read(value: Any, where: str) -> Any:
        if len(_required(list, value, where)) != len(readers):
            _refuse(where, f"{len(readers)} values", value)
        return tuple(reader(item, where) for reader, item in zip(readers, value, strict=True))

    return read


def _one_of(readers: list[Reader]) -> Reader:
    def read(value: Any, where: str) -> Any:
        errors = []
        for reader in readers:
            try:
                return reader(value, where)
            except ValueError as error:
                errors.append(str(error))
        raise ValueError(errors[0])

    return read


def _plain(kind: type, value: Any, where: str) -> Any:
    if kind is float:
        if isinstance(value, str) and value in _NOT_FINITE:
            return float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind) and (kind is not int or not isinstance(value, bool)):
        return value
    return _refuse(where, _WORDS[kind], value)


def _required(kind: type, value: Any, where: str) -> Any:
    if kind is list and isinstance(value, tuple):
        return value
    return value if isinstance(value, kind) else _refuse(where, "a list" if kind is list else "an object", value)


def _refuse(where: str, needed: str, value: Any) -> Any:
    shown = repr(value)
    raise ValueError(f"{where}: {needed} is needed, got {shown if len(shown) <= 60 else shown[:57] + '...'}.")
