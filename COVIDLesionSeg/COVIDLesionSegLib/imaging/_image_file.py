"""NIfTI, NRRD and MetaImage files: the grid as ITK reads it, the voxels with every byte checked.

The grid comes from SimpleITK, so that Slicer sees the same one. For the voxels SimpleITK alone is not enough: its NIfTI
reader gives 0 for NaN, for infinity and for what a truncated file lacks, and takes the voxels of ``ct.nii`` when asked
for the ``ct.nii.gz`` beside it; its NRRD and MetaImage readers accept
damaged compressed data. So the voxels are decoded once, straight into the array, and the checksums of the compressed
stream are looked at. What is packed in some rarer way is refused: over damaged files of such ITK ends the process.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError, ReadError
from ..files import open_regular, regular_file, sha256_file
from ._claims import (
    HIGHEST_COMPRESSION,
    MOST_EXTRA_BYTES,
    meta_size,
    require_meta,
    require_nrrd,
    require_numbers,
    require_room,
    require_size,
    require_whole,
)
from .geometry import Geometry

FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}
_BLOCK = 1 << 20
# A stream strung together of more pieces than this (bgzip makes one of 64 kB) has them of some size.
_MOST_MEMBERS = 1000
_LEAST_MEMBER = 512
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, eq=False)
class ImageFile:
    """What one image file holds.

    Attributes:
        format: "NIfTI", "NRRD" or "MetaImage".
        array: stored values (z, y, x), or (z, y, x, component) where components were allowed; native byte order.
        geometry: the grid.
        slope: what the header says to multiply the stored values by.
        intercept: what the header says to add then.
        metadata: further header fields by name, as ITK gives them.
        files: the file, and the one that holds its voxels if that is another.
        sha256: of the file; of the sorted digests of header and data file for a pair; "" where it was not asked for.
        warnings: sentences about what was odd but usable.
    """

    format: str
    array: NDArray[Any]
    geometry: Geometry
    slope: float
    intercept: float
    metadata: Mapping[str, str]
    files: tuple[Path, ...]
    warnings: tuple[str, ...]
    sha256: str = ""


def image_suffix(path: Path | str) -> str:
    """The ending of a file name that says its format, in lower case: ".nii.gz", ".seg.nrrd", ".mha", ..., or ""."""
    name = Path(path).name.lower()
    endings = [".seg.nrrd", *FORMATS]
    return max((ending for ending in endings if name.endswith(ending)), key=len, default="")


def image_stem(path: Path | str) -> str:
    """The name of a file or folder without the ending that says its format."""
    path = Path(path)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    suffix = image_suffix(path)
    return (name[: -len(suffix)] if suffix else name) or name


def name_is_utf8(path: Path) -> bool:
    """Whether SimpleITK can be given this path; it ends the process over names in another encoding."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_image_file(path: Path, components: bool = False, hashed: bool = False) -> ImageFile:
    """Read a NIfTI, NRRD or MetaImage file.

    Args:
        path: an existing file whose name ends in one of :data:`FORMATS`.
        components: allow several values a voxel (the layers of a ``.seg.nrrd``).
        hashed: also make the file's SHA-256, while its voxels are unpacked.

    Raises:
        ReadError: not such an image, damaged, cut short, color, or not 3-D.
        GeometryError: a grid that no CT can have.
    """
    format_name = FORMATS["." + image_suffix(path).rsplit("seg.", maxsplit=1)[-1].lstrip(".")]
    try:
        packed = locate_voxels(path, format_name)
        reader = _read_header(path, format_name)
        size = _size_3d(reader, path, components)
        count = reader.GetNumberOfComponents()
        geometry = _geometry(reader, size)
        files = (path,) if packed.path == path else (path, packed.path)
        # not before the header has been checked: a file may be of any size
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(_sha256, files) if hashed else None
            array = decoded(packed, math.prod(size) * count, path)
    except OSError as error:
        raise ReadError(f"{path} can't be read: {error.strerror or error}.") from error
    # SimpleITK takes no key in another encoding, and a value would fail where it is written
    keys = [key for key in reader.GetMetaDataKeys() if key.isascii()]
    metadata = {key: reader.GetMetaData(key).encode("utf-8", "replace").decode() for key in keys}
    return ImageFile(
        format_name,
        _shaped(array, size, count, packed.layers),
        geometry,
        packed.slope,
        packed.intercept,
        metadata,
        files,
        _odd_geometry(format_name, metadata, geometry, packed.forms_apart if packed else 0.0),
        digest.result() if digest else "",
    )


def _read_header(path: Path, format_name: str) -> Any:
    import SimpleITK as sitk

    if format_name == "NIfTI" and path.name[-4:] not in (path.name[-4:].lower(), path.name[-4:].upper()):
        raise ReadError(f"{path.name} has an ending of mixed case; rename it to end in {image_suffix(path)}.")
    reader = sitk.ImageFileReader()
    reader.SetImageIO({"NIfTI": "NiftiImageIO", "NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}[format_name])
    reader.SetFileName(str(path))
    # ITK prints what it finds odd; what matters of it becomes a warning or an error of ours
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise GeometryError(
                f"{path.name}: the axes in its header are singular or sheared; a grid with three perpendicular axes "
                "is needed.",
                "Export it again, or resample it to a regular grid first.",
            ) from error
        raise ReadError(
            f"{path.name} is damaged or not a {format_name} image: its header can't be read.",
            "Check the file, or export it again.",
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    return reader


def _size_3d(reader: Any, path: Path, components: bool) -> tuple[int, int, int]:
    size = list(reader.GetSize())
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    count = reader.GetNumberOfComponents()
    if count > 1 and not components:
        raise several_values(path, count)
    shown = " x ".join(map(str, size))
    if len(size) > 3:
        raise ReadError(
            f"{path.name} is a {len(size)}-D image ({shown}, a time series?); one 3-D volume is needed.",
            "Save the wanted frame as a volume of its own.",
        )
    if len(size) < 3:
        raise ReadError(
            f"{path.name} is a {len(size)}-D image ({shown}); a 3-D volume is needed.",
            "Give all slices together: a DICOM folder, or one NIfTI, NRRD or MHA file.",
        )
    return size[0], size[1], size[2]


def _geometry(reader: Any, size: tuple[int, int, int]) -> Geometry:
    dimension = len(reader.GetSize())
    direction = np.asarray(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    return Geometry(size, reader.GetSpacing()[:3], reader.GetOrigin()[:3], tuple(direction.ravel()))


def _odd_geometry(
    format_name: str, metadata: Mapping[str, str], geometry: Geometry, forms_apart: float
) -> tuple[str, ...]:
    unknown = (
        "The file does not say how the image lies in the patient; it is taken as ITK and Slicer take it, but left and "
        "right may be swapped."
    )
    if format_name == "NRRD" and "NRRD_space" not in metadata:
        return (unknown,)
    if format_name != "NIfTI":
        return ()
    if metadata.get("qform_code") == "0" and metadata.get("sform_code") == "0":
        return (unknown,)
    if forms_apart > 0.5 * min(geometry.spacing):
        differ = f"The NIfTI header holds two different positions (sform and qform, {forms_apart:.3g} mm apart)"
        return (f"{differ}; the one that ITK and Slicer choose is used.",)
    return ()


def _sha256(files: Sequence[Path]) -> str:
    digests = [sha256_file(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _shaped(array: NDArray[Any], size: tuple[int, int, int], count: int, layers: int) -> NDArray[Any]:
    """The values as (z, y, x), or (z, y, x, component); ``layers`` is the file's axis of components, fastest first."""
    if count == 1:
        return array.reshape(size[::-1])
    stored = [*size[:layers], count, *size[layers:]]
    return np.moveaxis(array.reshape(stored[::-1]), 3 - layers, -1)


# The voxels


@dataclass(frozen=True)
class PackedVoxels:
    """Where the voxels of a file lie and how they are packed."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    packing: str = "raw"  # or "gzip" (gzip or zlib, from the offset on), or "text" (numbers with blanks between them)
    skip: int = 0  # bytes to skip after decompression
    slope: float = 1.0
    intercept: float = 0.0
    forms_apart: float = 0.0  # how far NIfTI's qform and sform put one corner of the image apart, mm
    layers: int = 0  # which axis of the file, the fastest first, counts the values of a voxel where it has several

    @property
    def compressed(self) -> bool:
        """Whether the bytes have to be unpacked."""
        return self.packing == "gzip"


def locate_voxels(path: Path, format_name: str) -> PackedVoxels:
    """Where the voxels of a file are.

    What the header claims is checked, so that SimpleITK may see it.

    Raises:
        ReadError: not such a file, its header is damaged, or its voxels are packed in a way that is not read.
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
        ReadError: cut short, failing the checksum of the compressed data, or holding far more than the voxels.
    """
    needed = count * packed.dtype.itemsize
    if packed.packing == "text":
        return _from_text(packed, count, shown)
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
            extra = 0
            while packed.compressed and (rest := stream.read(_BLOCK)):
                extra += len(rest)
                require_room(shown, needed, needed + extra, compressed=False)
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


def _from_text(packed: PackedVoxels, count: int, shown: Path) -> NDArray[Any]:
    with packed.path.open("rb") as file:
        file.seek(packed.offset)
        # one word more than needed would be a damaged file, too
        words = file.read().split(None, count)
    if len(words) < count:
        raise _truncated(shown, count * packed.dtype.itemsize, None)
    try:
        return np.array(words[:count]).astype(packed.dtype.newbyteorder("="))
    except (ValueError, OverflowError) as error:
        raise ReadError(f"{shown.name} is damaged: its voxels are not all numbers.", "Export it again.") from error


def require_stored(packed: PackedVoxels, count: int, shown: Path) -> None:
    """Whether a file can hold its voxels, before anything is allocated for them.

    Raises:
        ReadError: it is too small for them, or far too large.
    """
    size = regular_file(packed.path).st_size - packed.offset
    # a number as text takes a digit and a blank at least
    needed = 2 * count - 1 if packed.packing == "text" else count * packed.dtype.itemsize
    if needed + packed.skip > (size * HIGHEST_COMPRESSION if packed.compressed else size):
        raise _truncated(shown, needed, None if packed.compressed else max(size, 0))
    if packed.packing != "text":
        require_room(shown, needed, size, packed.compressed)


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
        self._members = 0
        self._given = 0
        self._start(b"")

    def _start(self, pending: bytes) -> None:
        self._members += 1
        if self._members > _MOST_MEMBERS and self._given < self._members * _LEAST_MEMBER:
            raise zlib.error("a stream of nothing but beginnings")
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
                self._given += len(data)
                return len(data)


# The headers, as far as they say where the voxels are

_NIFTI_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip


# complex numbers and colors: values a voxel
_NIFTI_SEVERAL = {32: 2, 128: 3, 1792: 2, 2048: 2, 2304: 4}


def _nifti_voxels(path: Path) -> PackedVoxels:
    with open_regular(path) as file:
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
    if not 1 <= dims[0] <= 7:
        raise ReadError(f"{path.name} claims an image of {dims[0]} dimensions; a 3-D volume is needed.")
    require_size(path.name, dims[1 : dims[0] + 1])
    if any(not value > 0 for value in pixdim[1 : 1 + min(3, dims[0])]):
        # ITK would replace a zero by 1 mm
        spacing = ", ".join(f"{value:g}" for value in pixdim[1:4])
        raise GeometryError(
            f"{path.name}: the voxel spacing in its header is ({spacing}) mm; it must be positive on every axis.",
            "Export the image again with correct spacing.",
        )
    require_numbers(path.name, "voxel spacing", pixdim[1:4])
    qform, sform = struct.unpack_from(order + "2h", header, 252)
    for code, what, count, place in ((qform, "qform", 6, 256), (sform, "sform", 12, 280)):
        if code > 0:
            # on numbers that float32 holds with fewer digits ITK's decomposition of the matrix fails
            numbers = struct.unpack_from(f"{order}{count}f", header, place)
            require_numbers(path.name, what, numbers, smallest=float(np.finfo(np.float32).tiny))
    if datatype in _NIFTI_SEVERAL:
        raise several_values(path, _NIFTI_SEVERAL[datatype])
    if datatype not in _NIFTI_TYPES:
        raise ReadError(f"{path.name} holds voxels of the NIfTI type {datatype}, which is not read; save it as int16.")
    if not 0 <= offset <= MOST_EXTRA_BYTES:
        raise ReadError(f"{path.name} claims that its voxels begin at byte {offset:g}; it is damaged.", "Check it.")
    if not np.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    start = max(352, int(offset))
    packed = PackedVoxels(
        path,
        np.dtype(order + _NIFTI_TYPES[datatype]),
        0 if compressed else start,
        "gzip" if compressed else "raw",
        start if compressed else 0,
        float(slope),
        float(intercept) if np.isfinite(intercept) else 0.0,
        forms_apart=_forms_apart(header, order, dims, pixdim) if qform > 0 and sform > 0 else 0.0,
    )
    count = require_size(path.name, dims[1 : dims[0] + 1], packed.dtype.itemsize)
    require_stored(packed, count, path)
    return packed


def _forms_apart(header: bytes, order: str, dims: Sequence[int], pixdim: Sequence[float]) -> float:
    """Largest distance (mm) of a corner's two places by qform (method 2 of the format) and sform (method 3).

    Both are taken as they stand: ITK tells of the one that it chose only, and keeps the sign of ``pixdim[0]``, which
    says whether the third axis is turned round, to itself.
    """
    b, c, d, *offset = struct.unpack_from(order + "6f", header, 256)
    sform = np.array(struct.unpack_from(order + "12f", header, 280)).reshape(3, 4)
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    scale = np.array(pixdim[1:4]) * (1, 1, -1 if pixdim[0] < 0 else 1)
    qform = np.column_stack([rotation * scale, offset])
    corners = [[*index, 1] for index in itertools.product(*((0, n - 1) for n in dims[1:4]))]
    return float(np.linalg.norm((sform - qform) @ np.transpose(corners), axis=0).max())


_C_TYPES = {
    "signed char": "i1", "int8": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1",
    "uint8_t": "u1", "short": "i2", "short int": "i2", "signed short": "i2", "signed short int": "i2", "int16": "i2",
    "int16_t": "i2", "ushort": "u2", "unsigned short": "u2", "unsigned short int": "u2", "uint16": "u2",
    "uint16_t": "u2", "int": "i4", "signed int": "i4", "int32": "i4", "int32_t": "i4", "uint": "u4",
    "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4", "float": "f4", "double": "f8",
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
}  # fmt: skip


def several_values(path: Path, count: int) -> ReadError:
    """The error about an image with more than one value a voxel."""
    return ReadError(
        f"{path.name} holds {count} values a voxel (a color, vector or multi-layer image); one is needed.",
        "Give the CT itself, e.g. its DICOM folder.",
    )


def _nrrd_voxels(path: Path) -> PackedVoxels:
    head, offset = _text_header(path, rb"\r?\n\r?\n")
    if not head.startswith("NRRD"):
        raise ReadError(f"{path.name} is not an NRRD image.", "Check the file.")
    fields = {}
    lines = head.split("\n")
    for line in lines[1:]:
        name, separator, value = line.partition(": ")
        if separator and not line.startswith("#") and ":=" not in line[: len(name) + 2]:
            if name.strip().lower() in fields:
                raise ReadError(f"{path.name} has the field {name.strip()} twice in its header.", "Check the file.")
            fields[name.strip().lower()] = value.strip()
    size = require_nrrd(path.name, fields, len(lines))
    encoding = fields.get("encoding", "").lower()
    if encoding in ("bzip2", "bz2"):
        raise ReadError(f"{path.name} is packed with bzip2, which is not read; save it with gzip or uncompressed.")
    packing = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "ascii": "text", "text": "text", "txt": "text"}.get(encoding)
    kind = _C_TYPES.get(fields.get("type", "").lower())
    if packing is None or kind is None or fields.get("line skip", "0") != "0":
        raise ReadError(
            f"{path.name} holds values of the type {fields.get('type', '')[:20]!r}, packed as {encoding[:20]!r}, which "
            "is not read.",
            "Save it with gzip or uncompressed.",
        )
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    detached = fields.get("data file", fields.get("datafile"))
    # layers stand first, voxel by voxel, as Slicer writes them; others put them last
    kinds = fields.get("kinds", "").split()
    layers = next((axis for axis, word in enumerate(kinds) if word not in ("domain", "space")), 0)
    skip = require_whole(path.name, "byte skip", fields.get("byte skip", "0"), least=-1)
    return _attached_or_beside(path, detached, offset, order + kind, packing, size, skip, layers)


_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip


def _meta_voxels(path: Path) -> PackedVoxels:
    head, offset = _text_header(path, rb"(?m)^ElementDataFile[ \t]*=[^\n]*\n?")
    fields = require_meta(path.name, head.split("\n"))

    if int(fields.get("CompressedDataSize", "0")) > max(path.stat().st_size, MOST_EXTRA_BYTES):
        raise ReadError(f"{path.name} claims more compressed data than it has; it is damaged.", "Copy it again.")

    def says(*names: str) -> bool:
        return any(fields.get(name, "").lower() in ("true", "1") for name in names)

    kind = _META_TYPES.get(fields.get("ElementType", ""))
    if kind is None or fields.get("ObjectType", "Image") != "Image":
        raise ReadError(f"{path.name} is not a MetaImage of numbers; save it as short or float.")
    order = ">" if says("BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<"
    packing = ("gzip" if says("CompressedData") else "raw") if says("BinaryData") else "text"
    detached = None if fields["ElementDataFile"] == "LOCAL" else fields["ElementDataFile"]
    skip = int(fields.get("HeaderSize", "0"))
    if skip > 0 and detached is None:
        raise ReadError(f"{path.name} has a HeaderSize for voxels in the same file, which is not read.", "Export it.")
    return _attached_or_beside(path, detached, offset, order + kind, packing, meta_size(fields), skip)


def _text_header(path: Path, end: bytes) -> tuple[str, int]:
    """The text in front of the voxels, and where it ends."""
    with open_regular(path) as file:
        # ITK's own segmentations have headers of some kB; a megabyte has room for hundreds of segments
        start = file.read(_BLOCK)
    found = re.search(end, start)
    stop = found.end() if found else len(start)
    return start[:stop].decode("utf-8", errors="replace"), stop


def _attached_or_beside(
    path: Path,
    detached: str | None,
    offset: int,
    dtype: str,
    packing: str,
    size: Sequence[int],
    skip: int,
    layers: int = 0,
) -> PackedVoxels:
    """Where the voxels are; a skip of -1 says that they are the last bytes of their file."""
    data, start = (path, offset) if detached is None else (_data_file(path, detached), 0)
    kind = np.dtype(dtype)
    count = require_size(path.name, size, kind.itemsize)
    if (skip == -1 and packing != "raw") or not -1 <= skip <= MOST_EXTRA_BYTES:
        raise ReadError(f"{path.name} skips {skip} bytes before its voxels, which is not read.", "Export it again.")
    if skip == -1:
        start = max(start, regular_file(data).st_size - count * kind.itemsize)
    elif packing != "gzip":
        start, skip = start + skip, 0
    packed = PackedVoxels(data, kind, start, packing, max(skip, 0), layers=layers)
    require_stored(packed, count, path)
    return packed


def _data_file(path: Path, detached: str) -> Path:
    if detached.startswith("LIST") or "%" in detached:
        raise ReadError(f"{path.name} spreads its voxels over several files; save it as one file.")
    data = path.parent / detached
    if not data.is_file():
        raise ReadError(f"{path.name} needs the file {data.name} beside it, which is missing.")
    return data
