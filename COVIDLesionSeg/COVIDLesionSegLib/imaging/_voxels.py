"""The voxels of NIfTI, NRRD and MetaImage files, with every byte checked.

SimpleITK alone is not enough here: its NIfTI reader gives 0 for NaN, for infinity and for what a truncated file lacks,
and takes the voxels of ``ct.nii`` when asked for the ``ct.nii.gz`` beside it; its NRRD and MetaImage readers accept
damaged compressed data. So the voxels are decoded once, straight into the array, and the checksums of the compressed
stream are looked at. What is packed in some rarer way is left to SimpleITK.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError, ReadError

# deflate cannot do better; a header that promises more is wrong, and its array would not fit in memory
_HIGHEST_COMPRESSION = 1100
_BLOCK = 1 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class PackedVoxels:
    """Where the voxels of a file lie and how they are packed."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    compressed: bool = False  # by gzip or zlib, from the offset on
    skip: int = 0  # bytes to skip after decompression
    slope: float = 1.0
    intercept: float = 0.0


def locate_voxels(path: Path, format_name: str) -> PackedVoxels | None:
    """Where the voxels of a file are, or None where they are packed in a way that is left to SimpleITK.

    Raises:
        ReadError: not such a file, or its header is damaged.
        GeometryError: spacing that is not positive, where SimpleITK would hide it.
        OSError: the file can't be read.
    """
    return {"NIfTI": _nifti_voxels, "NRRD": _nrrd_voxels, "MetaImage": _meta_voxels}[format_name](path)


def decoded(packed: PackedVoxels, count: int, shown: Path) -> NDArray[Any]:
    """The voxels as a flat array of native byte order.

    Args:
        packed: where they are.
        count: how many.
        shown: the file to name in messages.

    Raises:
        ReadError: cut short, or failing the checksum of the compressed data.
    """
    size = packed.path.stat().st_size
    needed = count * packed.dtype.itemsize
    room = size * _HIGHEST_COMPRESSION if packed.compressed else size - packed.offset
    if needed > room:
        raise _truncated(shown, needed, None if packed.compressed else room)
    array = np.empty(count, packed.dtype)
    target = memoryview(array.view(np.uint8))  # type: ignore[arg-type]
    with packed.path.open("rb") as file:
        file.seek(packed.offset)
        try:
            stream: Any = io.BufferedReader(_Decompressed(file), _BLOCK) if packed.compressed else file
            stream.read(packed.skip)
            filled = 0
            while filled < needed and (got := stream.readinto(target[filled:])):
                filled += got
            # the checksum stands at the end
            while packed.compressed and stream.read(_BLOCK):
                pass
        except EOFError as error:
            raise _truncated(shown, needed, None) from error
        except zlib.error as error:
            raise ReadError(
                f"{shown.name} is damaged: its compressed data do not pass their checksum.",
                "Copy or export it again.",
            ) from error
    if filled < needed:
        raise _truncated(shown, needed, filled)
    return array if packed.dtype.isnative else array.byteswap(inplace=True).view(packed.dtype.newbyteorder())


def _truncated(path: Path, needed: int, found: int | None) -> ReadError:
    unit, name = (1e6, "MB") if needed >= 1e6 else (1, "bytes")
    there = "only a part" if found is None else f"only {found / unit:.10g}"
    return ReadError(
        f"{path.name} is cut short: it holds {there} of its {needed / unit:.10g} {name} of voxels.",
        "Copy or download it again.",
    )


class _Decompressed(io.RawIOBase):
    """The bytes of a gzip or zlib stream, its checksum tested; EOFError where it ends too early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start(b"")

    def _start(self, pending: bytes) -> None:
        self._decoder = zlib.decompressobj(32 + zlib.MAX_WBITS)  # finds out whether gzip or zlib
        self._pending = pending

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while True:
            if self._decoder.eof:
                # gzip streams may be strung together (bgzip does it)
                rest = self._decoder.unused_data or self._file.read(_BLOCK)
                if not rest.startswith(_GZIP):
                    return 0
                self._start(rest)
            block = self._pending or self._file.read(_BLOCK)
            if not block:
                raise EOFError
            data = self._decoder.decompress(block, len(target))
            self._pending = self._decoder.unconsumed_tail
            if data:
                target[: len(data)] = data
                return len(data)


# The headers, as far as they say where the voxels are

_NIFTI_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip


def _nifti_voxels(path: Path) -> PackedVoxels | None:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
        file.seek(0)
        try:
            header = (io.BufferedReader(_Decompressed(file)) if compressed else file).read(348)
        except (EOFError, zlib.error) as error:
            raise ReadError(f"{path.name} is cut short or damaged: its header can't be unpacked.") from error
    if compressed and not path.name.lower().endswith(".gz"):
        raise ReadError(f"{path.name} is compressed though its name ends in .nii; rename it to end in .nii.gz.")
    order = next((o for o in "<>" if header[:4] == struct.pack(o + "i", 348)), None)
    if header[:4] in (struct.pack("<i", 540), struct.pack(">i", 540)):
        raise ReadError(f"{path.name} is a NIfTI-2 image, which is not read; save it as NIfTI-1 or NRRD.")
    if order is None or len(header) < 348 or header[344:348] != b"n+1\0":
        raise ReadError(f"{path.name} is not a NIfTI image, or its header is damaged.", "Check the file.")
    dims = struct.unpack_from(order + "8h", header, 40)
    datatype = struct.unpack_from(order + "h", header, 70)[0]
    pixdim = struct.unpack_from(order + "8f", header, 76)
    offset, slope, intercept = struct.unpack_from(order + "3f", header, 108)
    if any(not value > 0 for value in pixdim[1 : 1 + min(3, dims[0])]):
        # ITK would replace a zero by 1 mm
        spacing = ", ".join(f"{value:g}" for value in pixdim[1:4])
        raise GeometryError(
            f"{path.name}: the voxel spacing in its header is ({spacing}) mm; it must be positive on every axis.",
            "Export the image again with correct spacing.",
        )
    if datatype not in _NIFTI_TYPES:
        # colors and complex numbers are refused by their number of components
        return None
    if not np.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    start = max(352, int(offset))
    return PackedVoxels(
        path,
        np.dtype(order + _NIFTI_TYPES[datatype]),
        0 if compressed else start,
        compressed,
        start if compressed else 0,
        float(slope),
        float(intercept) if np.isfinite(intercept) else 0.0,
    )


_C_TYPES = {
    "signed char": "i1", "int8": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1",
    "uint8_t": "u1", "short": "i2", "short int": "i2", "signed short": "i2", "signed short int": "i2", "int16": "i2",
    "int16_t": "i2", "ushort": "u2", "unsigned short": "u2", "unsigned short int": "u2", "uint16": "u2",
    "uint16_t": "u2", "int": "i4", "signed int": "i4", "int32": "i4", "int32_t": "i4", "uint": "u4",
    "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4", "float": "f4", "double": "f8",
}  # fmt: skip


def _nrrd_voxels(path: Path) -> PackedVoxels | None:
    head, offset = _text_header(path, rb"\r?\n\r?\n")
    if not head.startswith("NRRD"):
        raise ReadError(f"{path.name} is not an NRRD image.", "Check the file.")
    fields = {}
    for line in head.splitlines()[1:]:
        name, separator, value = line.partition(": ")
        if separator and not line.startswith("#") and ":=" not in line[: len(name) + 2]:
            fields[name.strip().lower()] = value.strip()
    encoding = fields.get("encoding", "").lower()
    if encoding in ("bzip2", "bz2"):
        raise ReadError(f"{path.name} is packed with bzip2, which is not read; save it with gzip or uncompressed.")
    compressed = {"raw": False, "gzip": True, "gz": True}.get(encoding)
    kind = _C_TYPES.get(fields.get("type", "").lower())
    # layers are interleaved voxel by voxel, as Slicer writes them; ITK reorders whatever else there is
    interleaved = all(kind in ("domain", "space") for kind in fields.get("kinds", "").split()[1:])
    if compressed is None or kind is None or not interleaved or "byte skip" in fields or "line skip" in fields:
        return None
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    detached = fields.get("data file", fields.get("datafile"))
    return _attached_or_beside(path, detached, offset, np.dtype(order + kind), compressed)


_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip


def _meta_voxels(path: Path) -> PackedVoxels | None:
    head, offset = _text_header(path, rb"ElementDataFile[ \t]*=[^\n]*\n?")
    pairs = [line.partition("=") for line in head.splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    if "NDims" not in fields or "ElementDataFile" not in fields:
        raise ReadError(f"{path.name} is not a MetaImage.", "Check the file.")

    def says(*names: str) -> bool:
        return any(fields.get(name, "").lower() in ("true", "1") for name in names)

    kind = _META_TYPES.get(fields.get("ElementType", ""))
    if kind is None or not says("BinaryData") or fields.get("HeaderSize", "0") != "0":
        return None
    order = ">" if says("BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<"
    compressed = says("CompressedData")
    detached = None if fields["ElementDataFile"] == "LOCAL" else fields["ElementDataFile"]
    return _attached_or_beside(path, detached, offset, np.dtype(order + kind), compressed)


def _text_header(path: Path, end: bytes) -> tuple[str, int]:
    """The text in front of the voxels, and where it ends."""
    with path.open("rb") as file:
        # ITK's own segmentations have headers of some kB; a megabyte has room for hundreds of segments
        start = file.read(_BLOCK)
    found = re.search(end, start)
    stop = found.end() if found else len(start)
    return start[:stop].decode("utf-8", errors="replace"), stop


def _attached_or_beside(
    path: Path, detached: str | None, offset: int, dtype: np.dtype[Any], compressed: bool
) -> PackedVoxels | None:
    if detached is None:
        return PackedVoxels(path, dtype, offset, compressed)
    if detached.startswith("LIST") or "%" in detached:
        raise ReadError(f"{path.name} spreads its voxels over several files; save it as one file.")
    data = path.parent / detached
    if not data.is_file():
        raise ReadError(f"{path.name} needs the file {data.name} beside it, which is missing.")
    return PackedVoxels(data, dtype, 0, compressed)
