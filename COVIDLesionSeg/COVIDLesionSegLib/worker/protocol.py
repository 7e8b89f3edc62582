"""What parent and child say to each other: one JSON object a line, and the bytes of arrays that travel in the pipe.

A line is UTF-8 JSON with ``v`` (the version), ``type`` and the fields of one of the classes here. Numbers that JSON
does not have are ``{"$float": "nan" | "inf" | "-inf"}``. An array is announced in the message; its values follow

* in a .npy file with the announced name in the private folder that the request names, or
* in the pipe, right behind the line, arrays in the announced order: blocks of a 4-byte big-endian length and so many
  bytes, up to a block of length 0. The blocks hold the values in C order, little-endian; with ``zlib`` each block is
  compressed by itself.

The child speaks first, with :class:`Hello`. Everything is checked strictly: what is not of this protocol raises
:class:`ProtocolError`, another version :class:`VersionError`.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
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
# A line is a message without its arrays; a list of ten thousand lesions is 3 MB.
MAXIMUM_LINE = 64 << 20
BLOCK = 1 << 20
_MAXIMUM_BLOCK = 4 << 20


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
        raise ProtocolError(f"A line is not JSON: {_shown(line)}.") from error
    if not isinstance(value, dict) or "v" not in value or "type" not in value:
        raise ProtocolError(f"A line is not a message: {_shown(line)}.")
    if value["v"] != VERSION or isinstance(value["v"], bool):
        raise VersionError(
            f"The other side speaks version {value['v']!r} of the protocol, this one version {VERSION}.",
            "Install the same version of COVIDLesionSeg on both sides.",
        )
    kind = _TYPES.get(value["type"]) if isinstance(value["type"], str) else None
    if kind is None:
        raise ProtocolError(f"There is no message of type {_shown(repr(value['type']).encode())}.")
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
            f"The geometry {_shown(repr(value).encode())} lacks size, spacing, origin or direction."
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
            raise ProtocolError(f"A {kind.__name__} has no {_shown(name.encode())}.")
        if not _CHECKS[known[name]](value):
            raise ProtocolError(f"The {name} of a {kind.__name__} is {_shown(repr(value).encode())}.")
    try:
        return kind(**content)
    except TypeError as error:
        raise ProtocolError(f"A {kind.__name__} lacks a field ({error}).") from error


def _header(value: Any) -> ArrayHeader:
    if not isinstance(value, dict):
        raise ProtocolError(f"An array is announced as {_shown(repr(value).encode())}.")
    header: ArrayHeader = _build(ArrayHeader, value)
    if (
        header.dtype not in _DTYPES
        or any(n < 0 for n in header.shape)
        or header.encoding not in ("raw", "zlib")
        or len(header.shape) > 8
        or header.nbytes > _MAXIMUM_BYTES
    ):
        raise ProtocolError(f"An array is announced as {_shown(repr(value).encode())}.")
    return header


def _restore(value: dict[str, Any]) -> Any:
    return float(value["$float"]) if list(value) == ["$float"] else value


def _refuse(constant: str) -> Literal[""]:
    raise ValueError(f"{constant} is not JSON")


def _shown(data: bytes) -> str:
    """The beginning of what was received, for messages."""
    text = data[:80].decode("utf-8", "replace")
    return repr(text) + ("..." if len(data) > 80 else "")


def parts(array: NDArray[Any], size: int = BLOCK) -> Iterator[memoryview]:
    """The values of an array in C order, little-endian, in pieces of at most ``size`` bytes; no copy of the whole."""
    array = np.asarray(array)
    wanted = array.dtype.newbyteorder("<")
    whole = array.flags.c_contiguous and array.dtype == wanted
    for piece in [array] if whole or array.ndim == 0 else array:
        flat = np.ascontiguousarray(piece, dtype=wanted).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, size):
            yield flat[start : start + size].data


def blocks(array: NDArray[Any], compress: bool) -> Iterator[tuple[bytes, int]]:
    """The values of an array as they travel in the pipe: blocks, and how many bytes of the values each holds."""
    for part in parts(array):
        data = zlib.compress(part, 1) if compress else bytes(part)
        yield len(data).to_bytes(4, "big") + data, part.nbytes
    yield bytes(4), 0


class Frame:
    """A message and the arrays that came with it in the pipe."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.arrays: dict[str, NDArray[Any]] = {}
        announced: Sequence[ArrayHeader] = getattr(message, "arrays", [])
        self.coming = [header for header in announced if not header.file]


class Decoder:
    """Turns a stream of bytes into frames.

    Args:
        tolerate: lines that are no messages are collected in :attr:`noise` instead of being an error, up to so many
            bytes and up to the first message: what the login scripts of a remote shell print.
    """

    def __init__(self, tolerate: int = 0) -> None:
        self.noise = bytearray()
        self._tolerate = tolerate
        self._buffer = bytearray()
        self._searched = 0
        self._frame: Frame | None = None
        self._filling: _Filling | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Frames that are complete with these bytes.

        Raises:
            ProtocolError, VersionError: the stream is not of this protocol; nothing more can be read from it.
        """
        self._buffer += data
        complete: list[Frame] = []
        while True:
            frame = self._next()
            if frame is None:
                return complete
            complete.append(frame)

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._frame is not None or bool(self._buffer)

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            ProtocolError: in the middle of a frame.
        """
        if self.in_frame:
            raise ProtocolError("The stream ended in the middle of a message.")

    def _next(self) -> Frame | None:
        while self._frame is None:
            line = self._line()
            if line is None:
                return None
            try:
                self._frame = Frame(decode(line))
            except VersionError:
                raise
            except ProtocolError:
                if len(self.noise) + len(line) > self._tolerate:
                    raise
                self.noise += line + b"\n"
                continue
            self._tolerate = 0
        while self._frame.coming:
            if self._filling is None:
                self._filling = _Filling(self._frame.coming[0])
            if not self._filling.take(self._buffer):
                return None
            header = self._frame.coming.pop(0)
            self._frame.arrays[header.name] = self._filling.array
            self._filling = None
        frame, self._frame = self._frame, None
        return frame

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            # what does not begin like an object will not become one: said at once, not at the end of a line
            looks_wrong = self._buffer[:1] not in (b"", b"{") and not self._tolerate
            if looks_wrong or self._searched > MAXIMUM_LINE:
                raise ProtocolError(f"The stream does not hold messages: {_shown(bytes(self._buffer[:200]))}.")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line


class _Filling:
    """An array that is being received."""

    def __init__(self, header: ArrayHeader) -> None:
        self._header = header
        try:
            self.array = np.empty(header.shape, dtype=header.dtype)
        except (MemoryError, ValueError) as error:
            raise ProtocolError(
                f"There is no memory for the array {header.name!r} of {header.nbytes} bytes."
            ) from error
        self._bytes = self.array.reshape(-1).view(np.uint8)
        self._filled = 0

    def take(self, buffer: bytearray) -> bool:
        """Take blocks off the buffer's front; True when the array is complete."""
        while len(buffer) >= 4:
            length = int.from_bytes(buffer[:4], "big")
            if length > _MAXIMUM_BLOCK:
                raise ProtocolError(f"A block of {length} bytes announces itself; {_MAXIMUM_BLOCK} are allowed.")
            if len(buffer) < 4 + length:
                return False
            data = bytes(buffer[4 : 4 + length])
            del buffer[: 4 + length]
            if not length:
                if self._filled != self._bytes.size:
                    raise ProtocolError(f"The array {self._header.name!r} ended after {self._filled} bytes.")
                return True
            self._add(data)
        return False

    def _add(self, data: bytes) -> None:
        if self._header.encoding == "zlib":
            try:
                data = zlib.decompress(data, bufsize=BLOCK)
            except zlib.error as error:
                raise ProtocolError(f"A block of the array {self._header.name!r} is damaged ({error}).") from error
        end = self._filled + len(data)
        if end > self._bytes.size:
            raise ProtocolError(f"The array {self._header.name!r} is longer than announced.")
        self._bytes[self._filled : end] = np.frombuffer(data, dtype=np.uint8)
        self._filled = end
