"""JSON and TOML that anybody may have written: read with limits, and refused in one sentence.

The parsers of the standard library alone follow nesting until the interpreter's stack ends, take NaN for a number, and
read whatever a name leads to. Everything that is not the program's own goes through here.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import ReadError
from .files import read_bytes

# Our own documents stay far below: a store's case has some kB, a cohort's table of 1000 cases some MB, and nothing is
# nested deeper than 10.
MOST_JSON_BYTES = 32 << 20
MOST_TOML_BYTES = 256 << 10
MOST_DEPTH = 64
# a parsed value takes up to 30 times the bytes of its text where the text is nothing but brackets
_MOST_CONTAINERS = 2_000_000
_OPENING = re.compile(r"[\[{]")


def read_json(path: Path | str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The content of a JSON file.

    Args:
        path: a regular file, UTF-8.
        pairs: makes an object of its (key, value) pairs; None makes dictionaries.

    Raises:
        FileNotFoundError: no such file.
        ReadError: not a regular file, unreadable, not JSON (NaN is no JSON), too large or nested too deep.
    """
    path = Path(path)
    return parse_json(_content(path, MOST_JSON_BYTES), path.name, pairs)


def read_object(path: Path | str) -> dict[str, Any]:
    """The content of a JSON file that holds an object; else raises ReadError, as :func:`read_json` does."""
    return _object(read_json(path), Path(path).name)


def parse_json(text: str | bytes, name: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text.

    Args:
        text: UTF-8 where it is bytes.
        name: what the text is called in messages.
        pairs: see :func:`read_json`.

    Raises:
        ReadError: not JSON, too large, or nested too deep.
    """
    text = _decoded(text, name, MOST_JSON_BYTES)
    opened = sum(1 for _ in _OPENING.finditer(text)) if len(text) > MOST_DEPTH else 0
    if opened > _MOST_CONTAINERS:
        raise ReadError(f"{name} holds {opened} lists and objects; at most {_MOST_CONTAINERS} are read.")
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _too_deep(name) from error
    except ReadError:
        raise
    except ValueError as error:
        raise ReadError(f"{name} is not valid JSON ({error}).") from error
    return _shallow(value, name) if opened > MOST_DEPTH else value


def parse_object(text: str | bytes, name: str) -> dict[str, Any]:
    """The object of a JSON text; raises ReadError where it holds anything else, as :func:`parse_json` does."""
    return _object(parse_json(text, name), name)


def read_toml(path: Path | str) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        FileNotFoundError: no such file.
        ReadError: not a regular file, unreadable, not TOML, too large or nested too deep.
    """
    path = Path(path)
    return parse_toml(_content(path, MOST_TOML_BYTES), path.name)


def parse_toml(text: str | bytes, name: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Args:
        text: UTF-8 where it is bytes.
        name: what the text is called in messages.

    Raises:
        ReadError: not TOML, too large, or nested too deep.
    """
    text = _decoded(text, name, MOST_TOML_BYTES)
    # the parser's time grows with the square of a dotted key's length
    if any(line.count(".") > 8 * MOST_DEPTH and not line.lstrip().startswith("#") for line in text.splitlines()):
        raise _too_deep(name)
    try:
        value = tomllib.loads(text)
    except RecursionError as error:
        raise _too_deep(name) from error
    except ValueError as error:
        raise ReadError(f"{name} can't be read as TOML: {error}.") from error
    return _shallow(value, name)


def _content(path: Path, most: int) -> bytes:
    try:
        return read_bytes(path, most)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ReadError(f"{path.name} can't be read: {error.strerror or error}.") from error


def _decoded(text: str | bytes, name: str, most: int) -> str:
    if len(text) > most:
        raise ReadError(f"{name} has {len(text)} bytes; at most {most} are read.")
    if isinstance(text, str):
        return text
    try:
        # some editors put a byte-order mark in front
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(f"{name} is not UTF-8 text.") from error


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ReadError(f"{name} holds {type(value).__name__} where an object of names and values is needed.")
    return value


def _shallow(value: Any, name: str) -> Any:
    """The value itself, unless it is nested too deep for what works through it by recursion."""
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
        if not level:
            return value
    raise _too_deep(name)


def _too_deep(name: str) -> ReadError:
    return ReadError(f"{name} is nested deeper than {MOST_DEPTH} levels, which no document of this program is.")


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")
