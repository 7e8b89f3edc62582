"""What a DICOM file claims, checked before GDCM or pydicom act on it.

GDCM follows nested sequences until its stack ends, and fills up what a file lacks of its pixels; both allocate what the
header asks for. Only bytes are looked at here: nothing is decoded, and no package is needed.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from ...errors import ReadError
from ...files import open_regular
from .._claims import HIGHEST_COMPRESSION, MOST_EXTRA_BYTES, require_memory

# No object of DICOM is nested deeper than 20; GDCM's stack has room for some thousand levels.
_MOST_DEPTH = 64
_FEW_ITEMS = 500
# of 8192 x 8192: four times the largest matrix of a scanner, squared
_MOST_PIXELS = 1 << 26
# JPEG 2000 makes some hundred bytes of an empty slice
_HIGHEST_COMPRESSION = 4096
_ITEM = re.compile(rb"\xfe\xff\x00\xe0(.{4})|\xff\xfe\xe0\x00(.{4})|\xfe\xff\x0d\xe0|\xff\xfe\xe0\x0d", re.DOTALL)
_SYNTAX = re.compile(rb"\x02\0\x10\0UI..([0-9.]+)", re.DOTALL)
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
# value representations whose length takes four bytes
_LONG_KINDS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN", b"SV", b"UV")
_MOST_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class Stored:
    """How much image a file can hold.

    Attributes:
        size: bytes of the file.
        syntax: UID of its transfer syntax, "" where the file does not say it.
        whole: no element claims more bytes than the file has; else nobody must read it.
    """

    size: int
    syntax: str
    whole: bool = True

    def holds(self, pixels: int, bits: int) -> bool:
        """Whether so many pixels of so many bits fit into it, and are no more than a reader should believe."""
        if self.syntax in _NATIVE:
            ratio = 1
        else:
            ratio = HIGHEST_COMPRESSION if self.syntax == _DEFLATED else _HIGHEST_COMPRESSION
        return 0 < pixels * bits <= 8 * self.size * ratio


def require_sound(path: Path) -> Stored | None:
    """Check a file for what ends GDCM's process or fills the memory; None where it does not begin like DICOM.

    Raises:
        ReadError: sequences nested without end, or a data set that unpacks to far more than an image.
        OSError: it can't be read.
    """
    with open_regular(path) as file:
        start = file.read(1024)
        # without the usual preamble a data set begins with an element of the first groups
        group = start[:2] if start[128:132] != b"DICM" else b""
        if len(start) < 8 or group not in (b"", b"\x02\0", b"\x08\0", b"\0\x08", b"\x04\0", b"\0\0"):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _refuse_depth(content)
            size = len(content)
            whole = _lengths_fit(content, 0 if group else 132)
    found = _SYNTAX.search(start)
    # without a preamble there is no other syntax
    syntax = found[1].decode() if found else _NATIVE[0] if group else ""
    if not whole:
        return Stored(size, syntax, False)
    if syntax == _DEFLATED and size * HIGHEST_COMPRESSION > 128 * MOST_EXTRA_BYTES:
        raise ReadError(
            f"A DICOM file is packed as a whole and large, so that it may unpack to {size / 1e6:.3g} GB.",
            "Export it again without compression.",
        )
    return Stored(size, syntax)


def require_sound_seg(path: Path) -> None:
    """As :func:`require_sound`, and what its frames take must fit into the file and into memory.

    Raises:
        ReadError: it claims more than it can hold.
        OSError: it can't be read.
    """
    stored = require_sound(path)
    if stored is None:
        return
    if not stored.whole:
        raise ReadError(f"{path.name} is a damaged DICOM file, or it was cut short.", "Copy or export it again.")
    with path.open("rb") as file:
        head = file.read(1 << 20)
    rows, columns, bits = (_short(head, tag) for tag in (b"\x10\0", b"\x11\0", b"\0\x01"))
    frames = re.search(rb"\x28\0\x08\0(?:IS..|..\0\0)[ +]*(\d{1,18})", head, re.DOTALL)
    if rows is None or columns is None:
        # pydicom says what is missing
        return
    count = int(frames[1]) if frames else 1
    if min(rows, columns, count) < 1 or not stored.holds(rows * columns * count, bits or 1):
        raise ReadError(
            f"{path.name} claims {count} frames of {rows} x {columns} pixels; its {stored.size} bytes can't hold them.",
            "Copy or export it again.",
        )
    # frames of several segments lie in one slice: there may be more of them than voxels in a volume
    require_memory(f"{path.name} claims {count} frames of {rows} x {columns} pixels", rows * columns * count)


def is_believable(stored: Stored, size: tuple[int, ...], values: int, bits: int) -> bool:
    """Whether a file can hold an image of that size, and the image is none that only a damaged header asks for.

    Args:
        stored: of the file.
        size: pixels along each axis.
        values: of a pixel.
        bits: of a value, as it is stored.
    """
    return math.prod(size[:2]) <= _MOST_PIXELS and stored.holds(math.prod(size) * values, max(bits, 1))


def _lengths_fit(content: mmap.mmap, start: int) -> bool:
    """Whether each element, nested ones too, ends within the file; GDCM makes room for a value before it reads it.

    Args:
        content: of the file.
        start: of its first element.
    """
    end = len(content)
    place, order, explicit, inside_meta = start, "<", True, True
    fragments = False
    for _ in range(_MOST_ELEMENTS):
        if place + 8 > end:
            # padding, or an end in the middle of a tag
            return True
        group, element = struct.unpack_from(order + "2H", content, place)
        if inside_meta and group != 2:
            inside_meta = False
            found = _SYNTAX.search(content, start, place)
            syntax = found[1].decode() if found else ""
            if syntax == _DEFLATED:
                return True
            order = ">" if syntax == _BIG_ENDIAN or group in (0x0800, 0x0400) else "<"
            group, element = struct.unpack_from(order + "2H", content, place)
            letters = content[place + 4 : place + 6]
            explicit = syntax != _NATIVE[0] and letters.isalpha() and letters.isupper()
        kind = content[place + 4 : place + 6]
        if group == 0xFFFE:
            length = struct.unpack_from(order + "I", content, place + 4)[0]
            place += 8
            if element == 0xE000 and fragments:
                place += length
            elif element == 0xE0DD:
                fragments = False
            if place > end:
                return False
            continue
        if explicit and kind.isalpha() and kind.isupper():
            if kind in _LONG_KINDS:
                if place + 12 > end:
                    return False
                length, place = struct.unpack_from(order + "I", content, place + 8)[0], place + 12
            else:
                length, place = struct.unpack_from(order + "H", content, place + 6)[0], place + 8
        else:
            length, place = struct.unpack_from(order + "I", content, place + 4)[0], place + 8
        if length == 0xFFFFFFFF:
            # a sequence: its items are walked through; or the pieces of packed pixels
            fragments = (group, element) == (0x7FE0, 0x0010)
            continue
        if place + length > end:
            return False
        item = content[place : place + 4] in (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
        if not (item and (not explicit or kind in (b"SQ", b"UN"))):
            place += length
    return False


def _short(head: bytes, tag: bytes) -> int | None:
    found = re.search(rb"\x28\0" + re.escape(tag) + rb"(?:US\x02\0|\x02\0\0\0)(..)", head, re.DOTALL)
    return struct.unpack("<H", found[1])[0] if found else None


def _refuse_depth(content: mmap.mmap) -> None:
    """Count how deep items lie in one another; few items need no counting."""
    places, start = 0, 0
    while places <= _FEW_ITEMS and (start := content.find(b"\xfe\xff\x00\xe0", start) + 1):
        places += 1
    start = 0
    while places <= _FEW_ITEMS and (start := content.find(b"\xff\xfe\xe0\x00", start) + 1):
        places += 1
    if places <= _FEW_ITEMS:
        return
    ends: list[float] = []
    for found in _ITEM.finditer(content):
        while ends and ends[-1] <= found.start():
            ends.pop()
        little, big = found[1], found[2]
        if little is None and big is None:
            # the end of an item whose length was not given
            if ends and math.isinf(ends[-1]):
                ends.pop()
            continue
        length = struct.unpack("<I", little)[0] if little is not None else struct.unpack(">I", big)[0]
        ends.append(math.inf if length == 0xFFFFFFFF else found.end() + length)
        if len(ends) > _MOST_DEPTH:
            raise ReadError(f"A DICOM file nests its sequences deeper than {_MOST_DEPTH} levels; it is damaged.")
