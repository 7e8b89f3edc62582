"""The messages of the protocol, and each of them as its line; see :mod:`.protocol`."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import COVIDLesionSegError, InputError
from ..imaging.geometry import Geometry

VERSION = 1
_SAMPLE = 8 << 10
_DTYPES = frozenset(
    np.dtype(name).str for name in ("?", "u1", "i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
)
_MAXIMUM_BYTES = 1 << 40


class ProtocolError(COVIDLesionSegError):
    """What was received is not of this protocol."""


class VersionError(ProtocolError):
    """The other side speaks another version of this protocol."""


@dataclass(frozen=True)
class ArrayHeader:
    """An array that a message announces.

    Attributes:
        name: of the array.
        dtype: numpy's, little-endian.
        shape: lengths of the axes.
        file: name of a .npy file in the private folder, or "" if the values follow in the pipe.
        encoding: "raw" or "zlib", of the values in the pipe.
    """

    name: str
    dtype: str
    shape: list[int]
    file: str = ""
    encoding: str = "raw"

    @classmethod
    def of(cls, name: str, array: NDArray[Any], file: str = "", compress: bool = False) -> ArrayHeader:
        """The header of an array.

        Args:
            name: of the array.
            array: whose values will follow.
            file: name of the file that will hold them, "" for the pipe.
            compress: compress the values in the pipe where that is quick and worth it: masks mostly, not a noisy CT.

        Raises:
            InputError: an array of something else than numbers.
        """
        dtype = array.dtype.newbyteorder("<").str
        if dtype not in _DTYPES:
            raise InputError(f"The array {name!r} holds {array.dtype}; numbers or yes and no are needed.")
        packed = compress and not file and _packs_well(array)
        return cls(name, dtype, [int(n) for n in array.shape], file, "zlib" if packed else "raw")

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Message:
    """Base of all messages."""


@dataclass(frozen=True)
class Hello(Message):
    """Child: it is there. ``capabilities`` has the lists ``tasks``, ``transports``, ``encodings`` and ``files``."""

    kind: str
    library: str
    python: str
    platform: str
    pid: int
    capabilities: dict[str, Any]


@dataclass(frozen=True)
class Started(Message):
    """Child: it works on a request."""

    id: int


@dataclass(frozen=True)
class ProgressMessage(Message):
    """Child: ``done`` of ``total`` steps of a phase are finished."""

    id: int
    phase: str
    done: int
    total: int
    message: str = ""


@dataclass(frozen=True)
class Note(Message):
    """Child: a sentence for people."""

    id: int
    text: str


@dataclass(frozen=True)
class Result(Message):
    """Child: a request is done."""

    id: int
    values: dict[str, Any]
    arrays: list[ArrayHeader] = field(default_factory=list)


@dataclass(frozen=True)
class Failure(Message):
    """Child: a request failed; the fields are those of ``WorkerError``. The id is 0 where no request is meant."""

    id: int
    kind: str
    message: str
    hint: str = ""
    details: str = ""
    action: str = ""
    error_class: str = ""


@dataclass(frozen=True)
class Heartbeat(Message):
    """Child: it lives; sent while it works."""


@dataclass(frozen=True)
class Bye(Message):
    """Child: it ends now, and takes no more requests. ``reason`` is "idle", "close" or "input_ended"."""

    reason: str


@dataclass(frozen=True)
class Ask(Message):
    """Parent: a request.

    Attributes:
        id: 1 or more, another one each time.
        task: what to do.
        parameters: plain JSON values.
        arrays: what the task works on.
        folder: private folder for arrays in files, both ways; "" if the reply's arrays travel in the pipe.
        compress: whether the reply's arrays are compressed in the pipe.
    """

    id: int
    task: str
    parameters: dict[str, Any]
    arrays: list[ArrayHeader] = field(default_factory=list)
    folder: str = ""
    compress: bool = False


@dataclass(frozen=True)
class Cancel(Message):
    """Parent: stop working on a request."""

    id: int


@dataclass(frozen=True)
class Close(Message):
    """Parent: end."""


_TYPES: dict[str, type[Message]] = {
    "hello": Hello,
    "started": Started,
    "progress": ProgressMessage,
    "message": Note,
    "result": Result,
    "error": Failure,
    "heartbeat": Heartbeat,
    "bye": Bye,
    "request": Ask,
    "cancel": Cancel,
    "close": Close,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_CHECKS: dict[str, Any] = {
    "str": lambda v: isinstance(v, str),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "bool": lambda v: isinstance(v, bool),
    "dict[str, Any]": lambda v: isinstance(v, dict),
    "list[int]": lambda v: isinstance(v, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in v),
    "list[ArrayHeader]": lambda v: isinstance(v, list),
}


def encode(message: Message) -> bytes:
    """A message as its line.

    Raises:
        InputError: values that JSON can't hold.
    """
    content = {name: to_json(value) for name, value in _fields(message).items()}
    text = json.dumps({"v": VERSION, "type": _NAMES[type(message)], **content}, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line.

    Raises:
        VersionError: of another version.
        ProtocolError: not a message.
    """
    try:
        value = json.loads(line.decode("utf-8", "surrogatepass"), object_hook=_restore, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"A line is not JSON: {shown(line)}.") from error
    if not isinstance(value, dict) or "v" not in value or "type" not in value:
        raise ProtocolError(f"A line is not a message: {shown(line)}.")
    if value["v"] != VERSION or isinstance(value["v"], bool):
        raise VersionError(
            f"The other side speaks version {value['v']!r} of the protocol, this one version {VERSION}.",
            "Install the same version of COVIDLesionSeg on both sides.",
        )
    kind = _TYPES.get(value["type"]) if isinstance(value["type"], str) else None
    if kind is None:
        raise ProtocolError(f"There is no message of type {shown(repr(value['type']).encode())}.")
    content = {key: item for key, item in value.items() if key not in ("v", "type")}
    if isinstance(content.get("arrays"), list):
        content["arrays"] = [_header(item) for item in content["arrays"]]
    return _build(kind, content)


def to_json(value: Any) -> Any:
    """A value as JSON can hold it; numpy numbers, tuples, dataclass-like headers and infinite numbers are translated.

    Raises:
        InputError: neither number, text, list nor dictionary of them.
    """
    if isinstance(value, ArrayHeader):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise InputError(f"A message holds numbers, texts, lists and dictionaries; {type(value).__name__} is none.")


def geometry_to_json(geometry: Geometry) -> dict[str, Any]:
    """A grid as JSON values: size, spacing (mm) and origin (LPS, mm) along (i, j, k), direction row-major."""
    return {name: list(getattr(geometry, name)) for name in ("size", "spacing", "origin", "direction")}


def geometry_from_json(value: Any) -> Geometry:
    """A grid from :func:`geometry_to_json`.

    Raises:
        GeometryError: a grid that no image can have.
        InputError: not a grid.
    """
    try:
        return Geometry(**{name: tuple(value[name]) for name in ("size", "spacing", "origin", "direction")})
    except (KeyError, TypeError) as error:
        raise InputError(
            f"The geometry {shown(repr(value).encode())} lacks size, spacing, origin or direction."
        ) from error


def _packs_well(array: NDArray[Any]) -> bool:
    """Whether a sample of some kilobytes shrinks to a quarter; with less, packing takes longer than it saves."""
    if array.ndim == 0 or not array.size:
        return False
    rows = array[np.newaxis] if array.ndim == 1 else array
    sample = b""
    for place in np.linspace(0, len(rows) - 1, 5).astype(int):
        flat = np.ascontiguousarray(rows[place]).reshape(-1).view(np.uint8)
        sample += flat[max(0, (flat.size - _SAMPLE) // 2) :][:_SAMPLE].tobytes()
    return 4 * len(zlib.compress(sample, 1)) <= len(sample)


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _build(kind: type[Any], content: dict[str, Any]) -> Any:
    known = {f.name: str(f.type) for f in fields(kind)}
    for name, value in content.items():
        if name not in known:
            raise ProtocolError(f"A {kind.__name__} has no {shown(name.encode())}.")
        if not _CHECKS[known[name]](value):
            raise ProtocolError(f"The {name} of a {kind.__name__} is {shown(repr(value).encode())}.")
    try:
        return kind(**content)
    except TypeError as error:
        raise ProtocolError(f"A {kind.__name__} lacks a field ({error}).") from error


def _header(value: Any) -> ArrayHeader:
    if not isinstance(value, dict):
        raise ProtocolError(f"An array is announced as {shown(repr(value).encode())}.")
    header: ArrayHeader = _build(ArrayHeader, value)
    if (
        header.dtype not in _DTYPES
        or any(n < 0 for n in header.shape)
        or header.encoding not in ("raw", "zlib")
        or len(header.shape) > 8
        or header.nbytes > _MAXIMUM_BYTES
    ):
        raise ProtocolError(f"An array is announced as {shown(repr(value).encode())}.")
    return header


def _restore(value: dict[str, Any]) -> Any:
    return float(value["$float"]) if list(value) == ["$float"] else value


def _refuse(constant: str) -> Literal[""]:
    raise ValueError(f"{constant} is not JSON")


def shown(data: bytes) -> str:
    """The beginning of what was received, for messages."""
    text = data[:80].decode("utf-8", "replace")
    return repr(text) + ("..." if len(data) > 80 else "")
