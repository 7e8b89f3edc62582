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

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .messages import (
    VERSION,
    ArrayHeader,
    Ask,
    Bye,
    Cancel,
    Close,
    Failure,
    Heartbeat,
    Hello,
    Message,
    Note,
    ProgressMessage,
    ProtocolError,
    Result,
    Started,
    VersionError,
    decode,
    encode,
    geometry_from_json,
    geometry_to_json,
    shown,
    to_json,
)

__all__ = [
    "VERSION",
    "ArrayHeader",
    "Ask",
    "Bye",
    "Cancel",
    "Close",
    "Decoder",
    "Failure",
    "Frame",
    "Heartbeat",
    "Hello",
    "Message",
    "Note",
    "ProgressMessage",
    "ProtocolError",
    "Result",
    "Started",
    "VersionError",
    "blocks",
    "decode",
    "encode",
    "geometry_from_json",
    "geometry_to_json",
    "parts",
    "to_json",
]

# A line is a message without its arrays; a list of ten thousand lesions is 3 MB.
MAXIMUM_LINE = 64 << 20
BLOCK = 1 << 20
_MAXIMUM_BLOCK = 4 << 20


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
                raise ProtocolError(f"The stream does not hold messages: {shown(bytes(self._buffer[:200]))}.")
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
