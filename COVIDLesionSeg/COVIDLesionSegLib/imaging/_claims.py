"""What the header of an image file claims, checked before ITK, GDCM or numpy act on it.

A header of some bytes can claim terabytes, more dimensions than a library has room for, or NaN where voxels lie.
Libraries end the process over such, or allocate what is claimed; so sizes, dimensions and numbers are read here first,
as text or bytes, and held against what the file can contain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import GeometryError, ReadError
from ..processes import free_memory
from .geometry import MOST_VOXELS

# Deflate can't do better: a header that promises more is wrong.
HIGHEST_COMPRESSION = 1100
# What may follow the voxels, or precede them, in a file: comments, extensions, padding.
MOST_EXTRA_BYTES = 16 << 20
# NIfTI allows 7 and NRRD 16; ITK is built for fewer, and a CT has 3.
_MOST_DIMENSIONS = 7
# An offset or spacing beyond this is no length in a room; float32 still holds it.
LARGEST_NUMBER = 1e9
# MetaIO gives up over longer ones, loudly; and NRRD keys take a time that grows with their square.
_LONGEST_LINE = 480
_MOST_LINES = 20_000
# MetaIO takes a colon for a separator, too
_META_NAME = re.compile(r"[^:=\x00-\x1f]{1,200}")
# Which fields of a MetaImage header hold numbers, and how many: of axes, of axes squared, or so many.
_META_NUMBERS = {
    **dict.fromkeys(("ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "CenterOfRotation"), 1),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2),
}


def require_size(name: str, size: Sequence[int], voxel_bytes: int = 1) -> int:
    """The voxels that a header claims.

    Args:
        name: of the file, for messages.
        size: along each axis.
        voxel_bytes: what one takes in memory.

    Raises:
        ReadError: an axis without voxels, too many axes, or more voxels than fit into memory.
    """
    shown = " x ".join(map(str, size[:_MOST_DIMENSIONS])) or "no"
    if not 1 <= len(size) <= _MOST_DIMENSIONS:
        raise ReadError(f"{name} claims an image of {len(size)} dimensions; a 3-D volume is needed.")
    if min(size) < 1:
        raise ReadError(f"{name} claims {shown} voxels; every side needs at least one.", "Check the file.")
    count = math.prod(size)
    if count > MOST_VOXELS:
        raise ReadError(
            f"{name} claims {shown} voxels; at most {MOST_VOXELS} are read.",
            "The file is damaged, or has to be cut or resampled first.",
        )
    require_memory(f"{name} claims {shown} voxels", count * voxel_bytes)
    return count


def require_memory(claim: str, needed: float) -> None:
    """Raise ReadError where so many bytes are not free; the claim begins its sentence."""
    free = free_memory()
    if free is not None and needed > free:
        raise ReadError(
            f"{claim}, which take {needed / 1e9:.3g} GB; {free / 1e9:.3g} GB of memory are free.",
            "Close other programs, or cut or resample the image.",
        )


def require_numbers(name: str, what: str, values: Iterable[float], smallest: float = 0.0) -> None:
    """Raise GeometryError unless all are finite, no larger than a length can be, and 0 or no smaller than that."""
    sizes = [abs(value) for value in values]
    if not all(math.isfinite(size) and size <= LARGEST_NUMBER and (not size or size >= smallest) for size in sizes):
        raise GeometryError(
            f"{name}: the {what} in its header holds NaN, infinity, or a number that is no length.",
            "Export the image again.",
        )


def require_nrrd(name: str, fields: Mapping[str, str], lines: int) -> tuple[int, ...]:
    """The size that an NRRD header claims, components included; its numbers are checked.

    Args:
        name: of the file.
        fields: names in lower case.
        lines: of the header, with those of keys and values.

    Raises:
        ReadError: dimension and sizes that no image has.
        GeometryError: a position that is none.
    """
    if lines > _MOST_LINES:
        raise ReadError(f"{name} has {lines} lines in its header; at most {_MOST_LINES} are read.")
    dimension = require_whole(name, "dimension", fields.get("dimension", ""))
    size = tuple(require_whole(name, "sizes", word) for word in fields.get("sizes", "").split()[: _MOST_DIMENSIONS + 1])
    if len(size) != dimension:
        raise ReadError(f"{name} claims {dimension} dimensions, but sizes for {len(size)}.", "Check the file.")
    for field in ("space directions", "space origin", "spacings", "axis mins", "axis maxs"):
        words = re.split(r"[\s(),]+", fields.get(field, ""))
        # axes of color or layers have "none" or "nan" where those of space have a vector
        numbers = [_number(word) for word in words if word and word.lower() != "none"]
        if field in ("space directions", "space origin"):
            require_numbers(name, field, numbers)
    return size


def require_meta(name: str, lines: Sequence[str]) -> dict[str, str]:
    """The fields of a MetaImage header, checked for what MetaIO trusts blindly.

    Args:
        name: of the file.
        lines: of the header, without the voxels.

    Raises:
        ReadError: not such a header, a field given twice, dimensions or sizes that no image has.
        GeometryError: a position that is none.
    """
    fields: dict[str, str] = {}
    for line in lines:
        key, separator, value = (part.strip() for part in line.partition("="))
        if not line.strip():
            continue
        if not separator or not _META_NAME.fullmatch(key) or len(line) > _LONGEST_LINE:
            raise ReadError(f"{name} is not a MetaImage, or its header is damaged.", "Check the file.")
        if key in fields:
            raise ReadError(f"{name} has the field {key} twice in its header.", "Check the file.")
        fields[key] = value
    if "NDims" not in fields or "ElementDataFile" not in fields:
        raise ReadError(f"{name} is not a MetaImage.", "Check the file.")
    dimension = require_whole(name, "NDims", fields["NDims"])
    size = [require_whole(name, "DimSize", word) for word in fields.get("DimSize", "").split()[: _MOST_DIMENSIONS + 1]]
    if len(size) != dimension or dimension < 1:
        raise ReadError(f"{name} claims {dimension} dimensions, but sizes for {len(size)}.", "Check the file.")
    for field, power in _META_NUMBERS.items():
        if field in fields:
            numbers = [_number(word) for word in fields[field].split()]
            if len(numbers) != dimension**power:
                raise ReadError(f"{name} has {len(numbers)} numbers as {field} for {dimension} dimensions.")
            require_numbers(name, field, numbers)
    channels = require_whole(name, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"))
    require_size(name, [*size, channels] if channels != 1 else size)
    for field in ("CompressedDataSize", "HeaderSize"):
        require_whole(name, field, fields.get(field, "0"), least=-1)
    return fields


def meta_size(fields: Mapping[str, str]) -> tuple[int, ...]:
    """The size that checked fields of a MetaImage give, components included."""
    return *map(int, fields["DimSize"].split()), int(fields.get("ElementNumberOfChannels", "1"))


def require_room(path: Path, needed: int, room: int, compressed: bool) -> None:
    """Refuse a file that is far larger than its voxels: it would be hashed and unpacked to its end.

    Raises:
        ReadError: more than :data:`MOST_EXTRA_BYTES` beside the voxels.
    """
    if room > needed + MOST_EXTRA_BYTES:
        packed = "compressed " if compressed else ""
        raise ReadError(
            f"{path.name} has {room / 1e6:.10g} MB of {packed}data for {needed / 1e6:.10g} MB of voxels; it is "
            "damaged, or not what its header says.",
            "Export it again.",
        )


def require_whole(name: str, field: str, text: str, least: int = 0) -> int:
    """The whole number that a field of a header holds, or ReadError."""
    # not int(): it takes underscores and digits of other scripts, which the libraries don't
    if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) or int(text) < least:
        raise ReadError(f"{name} has {text[:40]!r} as {field} in its header; a whole number is needed.")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
