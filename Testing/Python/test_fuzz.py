"""A long fuzz: bits flipped and extreme values put into the headers of every format, all through the command.

``COVIDLESIONSEG_FUZZ_SECONDS`` says how long each format is tried (60), ``COVIDLESIONSEG_FUZZ_SEED`` where it begins.
"""

from __future__ import annotations

import gzip
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_images import chest, mask, meta_bytes, nifti_bytes, nrrd_bytes
from synthetic_dicom import write_series
from test_hostile_files import base, complaint, run  # noqa: F401

SECONDS = float(os.environ.get("COVIDLESIONSEG_FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("COVIDLESIONSEG_FUZZ_SEED", "0"))
EXTREMES = [
    *(struct.pack("<i", value) for value in (0, -1, 1, 0x7FFFFFFF, -0x80000000)),
    *(struct.pack("<h", value) for value in (-1, 0x7FFF, -0x8000)),
    *(struct.pack("<f", value) for value in (float("nan"), float("inf"), 1e38, -1e-38)),
    *(b"9" * 8, b"-1", b"nan", b"1e400", b" ", b"\n", b"\0", b"\xff", b"=", b":", b"[", b"]"),
]


def changed(content: bytes, length: int, draw: np.random.Generator) -> bytes:
    """The content with one to four faults in its first bytes: a bit, an extreme value, a piece cut out or doubled."""
    data = bytearray(content)
    for _ in range(int(draw.integers(1, 5))):
        place = int(draw.integers(0, max(1, min(length, len(data)))))
        kind = int(draw.integers(0, 5))
        extreme = EXTREMES[int(draw.integers(0, len(EXTREMES)))]
        if kind <= 1 and data:
            data[min(place, len(data) - 1)] ^= 1 << int(draw.integers(0, 8))
        elif kind == 2:
            data[place : place + len(extreme)] = extreme
        elif kind == 3:
            data[place:place] = extreme
        else:
            size = int(draw.integers(1, 20))
            data[place : place + size] = data[place : place + size] * int(draw.integers(0, 3))
    return bytes(data)


def one_file(name: str, content: bytes, length: int) -> Callable[[Path, np.random.Generator], Path]:
    def make(folder: Path, draw: np.random.Generator) -> Path:
        data = changed(content, length, draw)
        path = folder / name
        path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
        return path

    return make


def a_series(folder: Path, draw: np.random.Generator) -> Path:
    write_series(folder / "series", chest())
    files = sorted((folder / "series").iterdir())
    for path in files if draw.random() < 0.5 else files[:1]:
        content = path.read_bytes()
        path.write_bytes(changed(content, len(content) - 960, draw))
    return folder / "series"


def a_model(folder: Path, draw: np.random.Generator, source: Path) -> Path:
    content = source.read_bytes()
    length = struct.unpack_from("<Q", content)[0]
    path = folder / f"x.{'safetensors' if draw.random() < 0.7 else 'pth'}"
    path.write_bytes(changed(content, 8 + length, draw))
    return path


FORMATS = {
    "nifti": one_file("x.nii", nifti_bytes(chest()), 352),
    "nifti-packed": one_file("x.nii.gz", nifti_bytes(mask()), 352),
    "nrrd": one_file("x.nrrd", nrrd_bytes(chest()), 260),
    "segmentation": one_file(
        "x.seg.nrrd", nrrd_bytes(mask(), b"Segment0_ID:=s\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n"), 320
    ),
    "meta": one_file("x.mha", meta_bytes(chest()), 280),
    "dicom": a_series,
}


@pytest.mark.long
@pytest.mark.parametrize("name", [*FORMATS, "safetensors"])
def test_no_fault_in_a_header_ends_in_more_than_a_sentence(run, base, tmp_path, name):  # noqa: F811
    end, number, wrong = time.monotonic() + SECONDS, 0, []
    while time.monotonic() < end:
        draw = np.random.default_rng((SEED, number))
        folder = tmp_path / str(number)
        folder.mkdir()
        if name == "safetensors":
            words = ["models", "import", a_model(folder, draw, base / "tiny.safetensors")]
        else:
            path = FORMATS[name](folder, draw)
            # reading is what is tried: without its lungs on the same grid a CT goes no further
            words = ["evaluate", path, base / "mask.nii"]
            if name in ("nifti", "nrrd", "meta", "dicom"):
                words = ["report", path, base / "absent.nii", "-o", folder / "page.html"]
        answer = run(words, folder, environment={"COVIDLESIONSEG_MODELS": str(folder / "models")})
        if found := complaint(answer, folder, (0, 2)):
            wrong.append(f"{name} {number} in {folder}: {found}")
        number += 1
    assert not wrong, "\n".join(wrong)
    assert number > 10
