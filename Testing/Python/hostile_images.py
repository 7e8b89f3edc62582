"""Image files whose headers lie, one field at a time, and others that no reader should believe."""

from __future__ import annotations

import gzip
import itertools
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
from synthetic_dicom import write_series

Maker = Callable[[Path], Path]
NAN, INF = float("nan"), float("inf")
SHAPE = (6, 24, 20)


def chest() -> np.ndarray:
    """A chest that passes for one, int16 (z, y, x)."""
    hu = np.full(SHAPE, 40, np.int16)
    hu[:, :3] = -1000
    hu[:, 6:-4, 2:9] = hu[:, 6:-4, 11:18] = -850
    hu[:, 8, :] += np.arange(20, dtype=np.int16)
    return hu


def mask() -> np.ndarray:
    """A lesion in it, uint8 (z, y, x)."""
    found = np.zeros(SHAPE, np.uint8)
    found[2:4, 8:12, 3:7] = 1
    return found


# --- NIfTI -----------------------------------------------------------------------------------------------------------

NIFTI_FIELDS: dict[str, tuple[int, str, tuple[float, ...]]] = {
    "sizeof_hdr": (0, "i", (0, -1, 349, 540)),
    "dim0": (40, "h", (0, -1, 1, 2, 5, 7, 8, 100, 32767, -32768)),
    "dim1": (42, "h", (0, -1, -32768, 32767)),
    "dim2": (44, "h", (0, -32768, 32767)),
    "dim3": (46, "h", (0, -1, 1, 32767)),
    "dim4": (48, "h", (0, -1, 32767)),
    "intent_code": (68, "h", (1007, -1)),
    "datatype": (70, "h", (0, 1, 32, 128, 255, 1536, 1792, 2048, 2304, -1, 9999)),
    "bitpix": (72, "h", (0, -1, 1, 32767)),
    "pixdim0": (76, "f", (NAN, INF, 0, 5)),
    "pixdim1": (80, "f", (NAN, INF, -INF, 0, -1, 1e38, 1e-38)),
    "pixdim3": (88, "f", (NAN, INF, 0, 1e-30)),
    "vox_offset": (108, "f", (NAN, INF, -INF, -1e9, 1e30, 4, 1e7)),
    "slope": (112, "f", (NAN, INF, 1e38, 1e-38, -1)),
    "intercept": (116, "f", (NAN, INF, 1e38)),
    "qform_code": (252, "h", (-1, 32767)),
    "sform_code": (254, "h", (-1, 32767)),
    "quatern_b": (256, "f", (NAN, INF, 1e38, 5)),
    "qoffset_x": (268, "f", (NAN, INF, 1e38)),
    "srow_x0": (280, "f", (NAN, INF, 0, 1e38, 2e-44)),
    "srow_z3": (324, "f", (NAN, INF, -1e38)),
    "magic": (344, "i", (0, -1)),
    "extension": (348, "i", (1, -1)),
}


def nifti_bytes(array: np.ndarray, **fields: float) -> bytes:
    """A NIfTI-1 file; fields are those of the table above."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *array.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, {"int16": 4, "uint8": 2}[str(array.dtype)], 8 * array.itemsize)
    struct.pack_into("<8f", header, 76, 1, 2, 2, 5, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    struct.pack_into("<2h", header, 252, 1, 1)
    struct.pack_into("<12f", header, 280, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 5, 0)
    header[344:348] = b"n+1\0"
    for name, value in fields.items():
        place, kind, _ = NIFTI_FIELDS[name]
        struct.pack_into("<" + kind, header, place, value if kind == "f" else int(value))
    return bytes(header) + array.tobytes()


def nifti(array: np.ndarray) -> Iterator[tuple[str, Maker]]:
    for name, (_, _, values) in NIFTI_FIELDS.items():
        for value in values:
            for ending in (".nii", ".nii.gz") if name in ("dim1", "vox_offset", "dim0") else (".nii",):
                yield f"nifti-{name}={value:g}{ending}", nifti_file(array, ending, **{name: value})
    huge = {"dim1": 32767, "dim2": 32767, "dim3": 32767}
    yield "nifti-all-huge.nii", nifti_file(array, ".nii", **huge)
    yield "nifti-all-huge.nii.gz", nifti_file(array, ".nii.gz", **huge)
    whole = nifti_bytes(array)
    for length in (1, 4, 100, 347, 348, 351, 352, 400):
        yield f"nifti-cut-at-{length}.nii", raw(".nii", whole[:length])
        yield f"nifti-cut-at-{length}.nii.gz", raw(".nii.gz", gzip.compress(whole[:length]))
    packed = gzip.compress(whole)
    for length in (2, 9, 10, 18, len(packed) // 2, len(packed) - 1):
        yield f"gzip-cut-at-{length}", raw(".nii.gz", packed[:length])
    yield "gzip-wrong-checksum", raw(".nii.gz", packed[:-8] + b"\0" * 8)
    yield "gzip-garbage-after-magic", raw(".nii.gz", b"\x1f\x8b" + bytes(range(256)) * 8)
    yield "gzip-trailing-member-of-gigabytes", raw(".nii.gz", packed + zeros_packed(3 << 30))
    yield "gzip-100000-empty-members", raw(".nii.gz", packed + gzip.compress(b"") * 100_000)
    yield "gzip-100000-empty-members-first", raw(".nii.gz", gzip.compress(b"") * 100_000 + packed)
    yield "gzip-bomb-in-the-header", raw(".nii.gz", zeros_packed(3 << 30))
    yield "gzip-bomb-of-a-claimed-size", bomb
    yield "nifti-terabyte-of-nothing-behind", sparse(".nii", whole, 1 << 40)
    yield "nifti-two-files", raw(".nii", whole[:344] + b"ni1\0" + whole[348:])


def nifti_file(array: np.ndarray, ending: str, **fields: float) -> Maker:
    content = nifti_bytes(array, **fields)
    return raw(ending, gzip.compress(content, 1) if ending.endswith(".gz") else content)


def bomb(folder: Path) -> Path:
    """A header that claims 2^31 voxels, and the zeros to fill them, in 4 MB."""
    header = nifti_bytes(np.zeros((1, 1, 1), np.int16), dim1=2048, dim2=2048, dim3=512)[:352]
    path = folder / "x.nii.gz"
    path.write_bytes(gzip.compress(header) + zeros_packed(1 << 32))
    return path


def zeros_packed(count: int) -> bytes:
    """So many zero bytes as gzip, without making them all: one member of a 64th, as often as needed."""
    piece = count // 64
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1 << 20)
    member = b"".join(packer.compress(block) for _ in range(piece >> 20)) + packer.flush()
    return member * 64


# --- NRRD ------------------------------------------------------------------------------------------------------------

NRRD_FIELDS = {
    "type": ["short", "bogus", "block", "long long int", "unsigned long long", "float", "short\0", ""],
    "dimension": ["0", "-1", "2", "4", "16", "17", "100", "1e400", "x", "99999999999999999999", ""],
    "sizes": [
        "20 24", "20 24 6 1", "0 24 6", "-20 24 6", "20 24 1000000000", "99999999999999999999 1 1", "nan 1 1", "",
        "2147483647 2147483647 2147483647", " ".join(["1"] * 5000),
    ],
    "space": ["bogus", "scanner-xyz-time", "right-anterior-superior", ""],
    "space directions": [
        "none none none", "(nan,0,0) (0,2,0) (0,0,5)", "(inf,0,0) (0,2,0) (0,0,5)", "(0,0,0) (0,0,0) (0,0,0)",
        "(1e300,0,0) (0,2,0) (0,0,5)", "(2,0,0) (2,0,0) (0,0,5)", "(2,0) (0,2) (0,5)", "(2,0,0)", "()", "",
        "(1e-300,0,0) (0,2,0) (0,0,5)",
    ],
    "space origin": ["(nan,0,0)", "(inf,0,0)", "(1e400,0,0)", "(0,0)", "x", ""],
    "kinds": ["domain domain", "vector domain domain", "list domain domain", "bogus bogus bogus"],
    "encoding": ["bogus", "ascii", "hex", "gzip", "bzip2", "zrl", ""],
    "endian": ["middle", ""],
    "data file": ["gone.raw", "/dev/zero", "LIST", "x%03d.raw 1 3 1", "..", "pipe", "/dev/stdin", "x.nrrd"],
    "byte skip": ["-1", "999999999999", "nan", "-2"],
    "line skip": ["999999999999", "-1"],
    "content": ["a" * 2_000_000, "\x1b[2J"],
    "min": ["nan"],
    "thicknesses": ["nan nan nan"],
    "spacings": ["nan nan nan", "0 0 0"],
}  # fmt: skip


def nrrd_bytes(array: np.ndarray, extra: bytes = b"", **fields: str | None) -> bytes:
    """An attached raw NRRD file; names of fields with "_" for a space, None leaves one out."""
    values: dict[str, str | None] = {
        "type": {"int16": "short", "uint8": "uint8"}[str(array.dtype)],
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, array.shape[::-1])),
        "space directions": "(2,0,0) (0,2,0) (0,0,5)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(0,0,0)",
        **{name.replace("_", " "): value for name, value in fields.items()},
    }
    lines = [f"{name}: {value}" for name, value in values.items() if value is not None]
    return b"NRRD0004\n" + "\n".join(lines).encode() + b"\n" + extra + b"\n" + array.tobytes()


def nrrd(array: np.ndarray) -> Iterator[tuple[str, Maker]]:
    for name, values in NRRD_FIELDS.items():
        for index, value in enumerate(values):
            content = nrrd_bytes(array, **{name.replace(" ", "_"): value})
            yield f"nrrd-{name.replace(' ', '-')}-{index}", with_pipe(raw(".nrrd", content))
    for name in ("type", "dimension", "sizes", "encoding", "space directions", "endian"):
        yield f"nrrd-without-{name}", raw(".nrrd", nrrd_bytes(array, **{name.replace(" ", "_"): None}))
    yield "nrrd-dimension-twice", raw(".nrrd", nrrd_bytes(array, b"dimension: 100\n"))
    yield "nrrd-line-without-end", raw(".nrrd", b"NRRD0004\n" + b"x" * 3_000_000)
    yield "nrrd-unknown-version", raw(".nrrd", nrrd_bytes(array).replace(b"NRRD0004", b"NRRD9999"))
    yield "nrrd-nothing-but-its-name", raw(".nrrd", b"NRRD0004\n")
    yield "nrrd-100000-keys", raw(".nrrd", nrrd_bytes(array, b"".join(b"k%d:=v\n" % i for i in range(100_000))))
    yield "nrrd-gzip-garbage", raw(".nrrd", nrrd_bytes(array, encoding="gzip"))
    half = nrrd_bytes(array)[: -array.nbytes // 2]
    yield "nrrd-cut", raw(".nrrd", half)


# Slicer's segmentations
SEGMENT_FIELDS = {
    "Segment0_LabelValue": ["1e400", "nan", "-1", "1.5", "x", "99999999999", ""],
    "Segment0_Layer": ["1e400", "nan", "-1", "99", "x"],
    "Segmentation_ConversionParameters": [
        "Reference image geometry|" + ";".join(values) + ";|text&"
        for values in (
            [*"1000010000100001", "0", "99999999", "0", "99999999", "0", "99999999"],
            [*"1000010000100001", "0", "1e400", "0", "nan", "0", "5"],
            [*["nan"] * 16, "0", "19", "0", "23", "0", "5"],
            [*"0" * 16, "0", "30", "0", "30", "0", "30"],
            [*"1000010000100001", "5", "-5", "0", "23", "0", "5"],
            [*"1000010000100001", "0", "3000", "0", "3000", "0", "200"],
            ["x"] * 22,
        )
    ],
}


def segmentations() -> Iterator[tuple[str, Maker]]:
    for name, values in SEGMENT_FIELDS.items():
        for index, value in enumerate(values):
            fields = {"Segment0_ID": "s", "Segment0_Name": "lesion", name: value}
            extra = "".join(f"{key}:={text}\n" for key, text in fields.items()).encode()
            yield f"seg-{name}-{index}", raw(".seg.nrrd", nrrd_bytes(mask(), extra))


# --- MetaImage -------------------------------------------------------------------------------------------------------

META_FIELDS = {
    "NDims": ["100", "-1", "0", "1", "2", "4", "10", "11", "three", "1e400", "99999999999999999999", ""],
    "DimSize": ["20 24", "20 24 6 1", "0 24 6", "20 24 -6", "20 24 1000000000", "nan 24 6", "", "1 " * 5000,
                "99999999999999999999 24 6", "65535 65535 65535"],
    "ElementType": ["MET_BOGUS", "MET_NONE", "MET_FLOAT_ARRAY", "MET_STRING", "MET_OTHER", "", "MET_FLOAT_MATRIX",
                    "MET_SHORT_ARRAY", "MET_DOUBLE"],
    "ElementNumberOfChannels": ["-1", "0", "3", "1000000000", "x"],
    "ElementSpacing": ["nan 2 5", "inf 2 5", "0 2 5", "-2 2 5", "1e300 2 5", "2 2", "x y z", "", "1e-300 2 5"],
    "Offset": ["nan 0 0", "inf 0 0", "1e400 0 0", "0 0", "x"],
    "TransformMatrix": ["0 0 0 0 0 0 0 0 0", "nan 0 0 0 1 0 0 0 1", "1 0 0 0 1 0", "1 1 1 1 1 1 1 1 1",
                        "inf 0 0 0 1 0 0 0 1"],
    "CenterOfRotation": ["nan nan nan"],
    "BinaryData": ["False", "x"],
    "BinaryDataByteOrderMSB": ["True", "x"],
    "CompressedData": ["True", "x"],
    "CompressedDataSize": ["99999999999999", "-5", "x"],
    "HeaderSize": ["-1", "-2", "99999999999", "10", "x"],
    "AnatomicalOrientation": ["???", "RAI" * 1000],
    "Comment": ["x" * 5000, "a = b = c", "NDims = 100"],
    "ObjectType": ["Bogus", "Tube", "Mesh", "Scene"],
    "ElementDataFile": ["gone.raw", "/dev/zero", "LIST", "x%03d.raw 1 3 1", "..", "pipe", "/dev/stdin", ""],
}  # fmt: skip


def meta_bytes(array: np.ndarray, extra: bytes = b"", **fields: str | None) -> bytes:
    values: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": "2 2 5",
        "DimSize": " ".join(map(str, array.shape[::-1])),
        "ElementType": {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}[str(array.dtype)],
        **fields,
    }
    last = values.pop("ElementDataFile", "LOCAL")
    lines = [f"{name} = {value}" for name, value in values.items() if value is not None]
    return "\n".join(lines).encode() + b"\n" + extra + f"ElementDataFile = {last}\n".encode() + array.tobytes()


def meta(array: np.ndarray) -> Iterator[tuple[str, Maker]]:
    for name, values in META_FIELDS.items():
        for index, value in enumerate(values):
            yield f"meta-{name}-{index}", with_pipe(raw(".mha", meta_bytes(array, **{name: value})))
    for name in ("NDims", "DimSize", "ElementType", "BinaryData", "ObjectType"):
        yield f"meta-without-{name}", raw(".mha", meta_bytes(array, **{name: None}))
    yield "meta-dimensions-twice", raw(".mha", meta_bytes(array, b"NDims = 100\n"))
    yield "meta-dimensions-behind-a-colon", raw(".mha", meta_bytes(array, b"NDims : 100\n"))
    hidden = b"Comment = ElementDataFile = LOCAL\nNDims = 100\n"
    yield "meta-dimensions-behind-a-false-end", raw(".mha", meta_bytes(array, hidden))
    yield "meta-ascii-of-gigabytes", raw(".mha", meta_bytes(array, BinaryData="False", DimSize="2000 2000 2000"))
    odd = {"BinaryData": "False", "CompressedData": "True", "CompressedDataSize": "999999999999"}
    yield "meta-odd-and-compressed", raw(".mha", meta_bytes(array, **odd))
    yield "meta-cut", raw(".mha", meta_bytes(array)[:-100])
    yield "meta-packed-garbage", raw(".mha", meta_bytes(array, CompressedData="True"))
    yield "meta-bomb", raw(".mha", meta_bytes(np.frombuffer(zlib.compress(bytes(4 << 20)), np.uint8)[None, None],
                                              CompressedData="True", DimSize="2000 2000 2000"))  # fmt: skip
    yield "meta-pair-with-itself", raw(".mhd", meta_bytes(array, ElementDataFile="x.mhd"))


# --- DICOM -----------------------------------------------------------------------------------------------------------

DICOM_FIELDS = {
    "Rows": [0, 1, 65535],
    "Columns": [0, 65535],
    "BitsAllocated": [0, 1, 7, 32, 255, 65535],
    "BitsStored": [0, 65535],
    "HighBit": [65535],
    "SamplesPerPixel": [0, 3, 65535],
    "PixelRepresentation": [7],
    "NumberOfFrames": ["0", "-1", "1000000000", "99999999999"],
    "PhotometricInterpretation": ["BOGUS", "PALETTE COLOR", "YBR_FULL", ""],
    "ImagePositionPatient": [["nan", "0", "0"], ["1e400", "0", "0"], ["0", "0"], [], ["1e300", "0", "0"]],
    "ImageOrientationPatient": [["nan"] * 6, ["0"] * 6, ["1", "0", "0"], ["1e300"] * 6, []],
    "PixelSpacing": [["0", "0"], ["nan", "1"], ["-1", "1"], ["1e400", "1"], ["1"], []],
    "RescaleSlope": ["0", "nan", "inf", "1e300", "-1", "x"],
    "RescaleIntercept": ["nan", "1e400", "1e30"],
    "RescaleType": ["OD", "?" * 16],
    "SliceThickness": ["nan", "-1", "1e400", "0"],
    "GantryDetectorTilt": ["nan", "1e400"],
    "SeriesInstanceUID": ["", "../../x", "1" * 64],
    "SOPInstanceUID": [""],
    "Modality": ["", "MR", "\x1b[2J"],
    "SpecificCharacterSet": ["BOGUS"],
    "PixelData": [b"", b"\0\0"],
}


def dicom(positions: bool = True) -> Iterator[tuple[str, Maker]]:
    for name, values in DICOM_FIELDS.items():
        for index, value in enumerate(values):
            yield f"dicom-{name}-{index}", series(change_of(name, value))
    for name in ("Rows", "PixelData", "ImagePositionPatient", "PixelSpacing", "SOPClassUID", "BitsAllocated"):
        yield f"dicom-without-{name}", series(removal_of(name))
    yield "dicom-65535-x-65535", series(lambda data, _: data.update({"Rows": 65535, "Columns": 65535}))
    yield "dicom-slices-a-kilometer-apart", spread
    yield "dicom-deflated-bomb", deflated_bomb
    for syntax in ("4.90", "4.70", "5", "9.9", "2"):
        yield f"dicom-syntax-{syntax}", relabeled(f"1.2.840.10008.1.2.{syntax}")
    for length in (0, 1, 128, 131, 132, 140, 200, 300, 600, 1100):
        yield f"dicom-cut-at-{length}", cut_series(length)
    yield "dicom-garbage", raw(".dcm", bytes(128) + b"DICM" + os.urandom(1) * 3 + bytes(range(256)) * 16)
    yield "dicom-length-of-gigabytes", raw(".dcm", bytes(128) + b"DICM" + b"\x02\0\x00\0UL\x04\0\xff\xff\xff\x7f" * 3)
    deep = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 20_000
    yield "dicom-nested-20000-deep", lambda folder: extended(folder, deep)
    endless = b"\x09\0\x10\0OB\0\0\xfe\xff\xff\xff"
    yield "dicom-element-of-4-gigabytes", lambda folder: extended(folder, endless)


def series(change: Callable[[pydicom.Dataset, int], object]) -> Maker:
    def make(folder: Path) -> Path:
        write_series(folder / "series", chest(), change=change)
        for path in (folder / "series").iterdir():
            content = path.read_bytes()
            for name in DICOM_FIELDS:
                tag, kind = tag_and_kind(name)
                # pydicom would not write such numbers as what they should be
                content = content.replace(tag + b"LO", tag + kind.encode())
            path.write_bytes(content)
        return folder / "series"

    return make


def tag_and_kind(name: str) -> tuple[bytes, str]:
    tag = pydicom.datadict.tag_for_keyword(name)
    assert tag is not None
    return struct.pack("<2H", tag >> 16, tag & 0xFFFF), pydicom.datadict.dictionary_VR(tag)


def change_of(name: str, value: object) -> Callable[[pydicom.Dataset, int], None]:
    def change(data: pydicom.Dataset, index: int) -> None:
        far = name == "ImagePositionPatient" and value == ["1e300", "0", "0"]
        data[name] = element(name, ["0", "0", f"{index}e300"] if far else value)

    return change


def element(name: str, value: object) -> pydicom.DataElement:
    tag = pydicom.datadict.tag_for_keyword(name)
    assert tag is not None
    kind = pydicom.datadict.dictionary_VR(tag)
    text = isinstance(value, str | list) and kind in ("DS", "IS")
    return pydicom.DataElement(tag, "LO" if text else kind.partition(" ")[0].replace("OB", "OW"), value)


def removal_of(name: str) -> Callable[[pydicom.Dataset, int], None]:
    return lambda data, _: delattr(data, name)


def spread(folder: Path) -> Path:
    places = [[0.0, 0.0, z] for z in (0.0, 1e-2, 2e-2, 1e6, 1e8, 1e9)]
    write_series(folder / "series", chest(), positions=places)
    return folder / "series"


def relabeled(syntax: str) -> Maker:
    def make(folder: Path) -> Path:
        write_series(folder / "series", chest())
        for path in (folder / "series").iterdir():
            content = path.read_bytes()
            old = b"1.2.840.10008.1.2.1\0"
            new = syntax.encode()
            new += b"\0" * (len(new) % 2)
            start = content.index(b"\x02\0\x10\0UI") + 6
            path.write_bytes(content[:start] + struct.pack("<H", len(new)) + new + content[start + 2 + len(old) :])
        return folder / "series"

    return make


def deflated_bomb(folder: Path) -> Path:
    """A data set packed as a whole, of gigabytes of nothing."""
    make = relabeled("1.2.840.10008.1.2.1.99")
    target = make(folder)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = b"\x09\0\x10\0OB\0\0" + struct.pack("<I", 3 << 30)
    packed = packer.compress(head) + b"".join(packer.compress(bytes(1 << 24)) for _ in range(192)) + packer.flush()
    for path in target.iterdir():
        content = path.read_bytes()
        group = struct.unpack_from("<I", content, 140)[0]
        path.write_bytes(content[: 144 + group + 5] + packed)
    return target


def cut_series(length: int) -> Maker:
    def make(folder: Path) -> Path:
        write_series(folder / "series", chest())
        for path in (folder / "series").iterdir():
            path.write_bytes(path.read_bytes()[:length])
        return folder / "series"

    return make


def extended(folder: Path, tail: bytes) -> Path:
    """A series with elements put in front of its own."""
    write_series(folder / "series", chest())
    for path in (folder / "series").iterdir():
        content = path.read_bytes()
        start = 144 + struct.unpack_from("<I", content, 140)[0]
        path.write_bytes(content[:start] + tail + content[start:])
    return folder / "series"


# --- what is no image at all -----------------------------------------------------------------------------------------


def special(ending: str) -> Iterator[tuple[str, Maker]]:
    """Names that lead to something else than a file."""
    yield f"folder{ending}", lambda folder: made(folder / f"x{ending}", Path.mkdir)
    yield f"pipe{ending}", lambda folder: made(folder / f"x{ending}", os.mkfifo)
    yield f"empty{ending}", raw(ending, b"")
    yield f"absent{ending}", lambda folder: folder / f"x{ending}"
    yield f"long-name{ending}", lambda folder: folder / f"{'x' * 5000}{ending}"
    yield f"below-a-file{ending}", lambda folder: made(folder / "file", Path.touch) / f"x{ending}"
    yield f"zero-byte-in-name{ending}", lambda folder: folder / f"x\0y{ending}"
    for target in ("/dev/zero", "/dev/null", "/dev/random", "/proc/self/mem", "gone", f"x{ending}"):
        yield f"link-to-{target.replace('/', '-')}{ending}", link(ending, target)
    yield f"random{ending}", raw(ending, np.random.default_rng(0).bytes(5000))
    yield f"text{ending}", raw(ending, b"Hello.\n" * 300)


def raw(ending: str, content: bytes) -> Maker:
    def make(folder: Path) -> Path:
        path = folder / f"x{ending}"
        path.write_bytes(content)
        return path

    return make


def sparse(ending: str, content: bytes, size: int) -> Maker:
    def make(folder: Path) -> Path:
        path = raw(ending, content)(folder)
        os.truncate(path, size)
        return path

    return make


def link(ending: str, target: str) -> Maker:
    return lambda folder: made(folder / f"x{ending}", lambda path: path.symlink_to(target))


def made(path: Path, make: Callable[[Path], object]) -> Path:
    make(path)
    return path


def with_pipe(make: Maker) -> Maker:
    """Beside the file a pipe of the name "pipe"."""

    def both(folder: Path) -> Path:
        os.mkfifo(folder / "pipe")
        return make(folder)

    return both


def images() -> Iterator[tuple[str, str, Maker]]:
    """All of them: name, "ct" or "mask", and what makes the file."""
    for kind, array in (("ct", chest()), ("mask", mask())):
        everything = itertools.chain(nifti(array), nrrd(array), meta(array))
        for name, make in everything:
            yield name, kind, make
    for name, make in segmentations():
        yield name, "mask", make
    for name, make in dicom():
        yield name, "ct", make
    for ending in (".nii.gz", ".mha", ".nrrd", ".dcm", ""):
        for name, make in special(ending):
            yield name, "ct" if ending in (".mha", ".dcm", "") else "mask", make
