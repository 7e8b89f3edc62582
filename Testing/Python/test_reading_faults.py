"""Image files that cannot be read and grids that no CT can have: each is told apart with a clear sentence."""

from __future__ import annotations

import gzip
import os
import re
import struct
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from file_faults import open_folder, without_rights
from image_files import CHEST, RGB, SUFFIXES, cut, edited, four_dimensional, nifti, save, two_dimensional
from synthetic_dicom import write_series

from COVIDLesionSegLib.errors import COVIDLesionSegError, GeometryError, ReadError
from COVIDLesionSegLib.imaging import read_labels, read_volume

# Files that cannot be read


def flipped(suffix: str):
    def make(folder: Path) -> Path:
        path = save(
            folder / f"ct{suffix}", np.random.default_rng(0).integers(-1000, 1000, CHEST.shape).astype(np.int16)
        )
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
        return path

    return make


def written(name: str, content: bytes):
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def array_of(name: str, array: np.ndarray):
    return lambda folder: save(folder / name, array)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nowhere.nii.gz", "does not exist"),
        (written("ct.nii.gz", b""), "is empty"),
        (written("ct.nrrd", b""), "is empty"),
        (written("ct.nii.gz", b"this is no image, only a little text " * 20), "not a NIfTI image"),
        (written("ct.nii", bytes(1000)), "not a NIfTI image"),
        (written("ct.nii.gz", gzip.compress(b"no image")), "not a NIfTI image"),
        (written("ct.nrrd", b"\x89PNG\r\n" * 100), "not an NRRD image"),
        (written("ct.mha", b"ObjectType = Sphere\n"), "not a MetaImage"),
        (written("scan.dcm", b"no DICOM at all" * 30), "not in a format that can be read"),
        (written("scan.xyz", b"something" * 30), "ending in .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd"),
        (written("slice.png", b"\x89PNG\r\n\x1a\n" * 30), "is a picture"),
        (cut(".nii.gz", 0.6), "cut short"),
        (cut(".nii.gz", 0.999), "cut short"),
        (cut(".nii.gz", 0.02), "cut short"),
        (cut(".nii", 0.6), "only 6771 of its 11520 bytes of voxels"),
        (cut(".nii", 0.02), "not a NIfTI image"),
        (cut(".nrrd", 0.8), "cut short"),
        (cut(".nrrd", 0.8, compress=False), "cut short"),
        (cut(".nrrd", 0.03, compress=False), "cut short"),
        (cut(".mha", 0.8), "cut short"),
        (cut(".mha", 0.8, compress=False), "cut short"),
        (flipped(".nii.gz"), "damaged"),
        (flipped(".nrrd"), "do not pass their checksum"),
        (flipped(".mha"), "do not pass their checksum"),
        (array_of("rgb.nrrd", RGB), "3 values a voxel"),
        (array_of("rgb.mha", RGB), "3 values a voxel"),
        (two_dimensional("flat.nrrd"), "2-D image"),
        (two_dimensional("flat.nii.gz"), "2-D image"),
        (two_dimensional("flat.mha"), "2-D image"),
        (four_dimensional("time.nii.gz"), "4-D image"),
        (four_dimensional("time.nrrd"), "4-D image|3 values a voxel"),
        (four_dimensional("time.mha"), "4-D image"),
    ],
)
def test_files_that_cannot_be_read_are_told_apart(tmp_path, capfd, make, words):
    path = make(tmp_path)
    with pytest.raises(ReadError, match=words):
        read_volume(path)
    assert capfd.readouterr().out == ""


def test_a_color_nifti_is_refused(tmp_path):
    rgb = np.zeros((20, 24, 12), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii.gz")
    with pytest.raises(ReadError, match="3 values a voxel"):
        read_volume(tmp_path / "rgb.nii.gz")


def test_a_missing_data_file_is_named(tmp_path):
    path = save(tmp_path / "ct.mhd")
    (tmp_path / "ct.zraw").unlink()
    with pytest.raises(ReadError, match="needs the file ct"):
        read_volume(path)


def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(tmp_path):
    def huge(header):
        header["dim"][1:4] = 30000

    with pytest.raises(ReadError, match="claims 30000 x 30000 x 30000 voxels; at most 2147483648 are read"):
        read_volume(nifti(tmp_path / "ct.nii.gz", huge))
    path = save(tmp_path / "ct.mha")
    with pytest.raises(ReadError, match="has '-9' as DimSize"):
        read_volume(edited(path, b"DimSize = 20 24 12", b"DimSize = 20 24 -9"))


def test_a_compressed_file_with_the_wrong_name_is_told(tmp_path):
    path = save(tmp_path / "ct.nii.gz").rename(tmp_path / "ct.nii")
    with pytest.raises(ReadError, match="rename it to end in"):
        read_volume(path)
    plain = save(tmp_path / "ct.nii").rename(tmp_path / "ct2.nii.gz")
    assert np.array_equal(read_volume(plain).array, CHEST)


def test_a_file_that_may_not_be_read_is_told():
    with open_folder() as folder:
        path = save(folder / "ct.nii.gz")
        path.chmod(0)
        write_series(folder / "series", CHEST)
        (folder / "series" / "IM0003.dcm").chmod(0)
        (folder / "locked").mkdir(mode=0)
        with without_rights():
            for name in ("ct.nii.gz", "locked", "series"):
                with pytest.raises(ReadError, match="Permission denied"):
                    read_volume(folder / name)
            with pytest.raises(ReadError, match="Permission denied"):
                read_labels(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names in another encoding")
def test_names_in_another_encoding_are_told(tmp_path):
    name = os.fsdecode("Größe".encode("latin-1"))
    path = save(tmp_path / "ct.nii.gz").rename(tmp_path / f"{name}.nii.gz")
    with pytest.raises(ReadError, match="not UTF-8"):
        read_volume(path)
    write_series(tmp_path / "series", CHEST, names=lambda k: f"IM{k}")
    (tmp_path / "series" / "IM3").rename(tmp_path / "series" / name)
    with pytest.raises(ReadError, match="1 of 12 files"):
        read_volume(tmp_path / "series")


def test_names_in_capitals_are_read_and_mixed_ones_told(tmp_path):
    for suffix in SUFFIXES[1:3] + SUFFIXES[4:5]:
        path = save(tmp_path / f"ct{suffix}").rename(tmp_path / f"CT{suffix.upper()}")
        assert np.array_equal(read_volume(path).array, CHEST)
    with pytest.raises(ReadError, match="mixed case"):
        read_volume(save(tmp_path / "ct.nii").rename(tmp_path / "ct.Nii"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    with pytest.raises(ReadError, match="it is a pipe, and a file is needed"):
        read_volume(tmp_path / "pipe.nii.gz")
    write_series(tmp_path, CHEST)
    assert read_volume(tmp_path).array.shape == CHEST.shape


def test_the_length_field_of_gzip_is_not_trusted(tmp_path):
    path = save(tmp_path / "ct.nii.gz")
    data = bytearray(path.read_bytes())
    data[-4:] = struct.pack("<I", 5)
    path.write_bytes(data)
    with pytest.raises(ReadError, match="damaged"):
        read_volume(path)


def test_messages_are_short_and_end_like_sentences(tmp_path):
    def message(error: COVIDLesionSegError) -> str:
        return str(error)

    for make in (cut(".nii.gz", 0.6), written("ct.nii", bytes(1000)), two_dimensional("flat.mha")):
        with pytest.raises(ReadError) as caught:
            read_volume(make(tmp_path))
        text = message(caught.value)
        assert "\n" not in text
        assert text.endswith(".")
        assert len(text) < 250


# Grids that no CT can have


def zero_forms(header):
    header["qform_code"] = 0
    for row in "xyz":
        header[f"srow_{row}"] = 0


def sheared(header):
    header["qform_code"] = 0
    header["srow_x"][1] = 0.3


def zero_spacing(header):
    header["pixdim"][3] = 0


def negative_spacing(header):
    header["pixdim"][2] = -0.8


def nan_spacing(header):
    header["pixdim"][2] = np.nan


def nan_form(header):
    header["qform_code"] = 0
    header["srow_x"][0] = np.nan


def micrometres(header):
    header["xyzt_units"] = 3


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (zero_forms, "singular or sheared"),
        (sheared, "singular or sheared"),
        (zero_spacing, "spacing in its header is (0.7, 0.8, 0) mm"),
        (negative_spacing, "spacing in its header is (0.7, -0.8, 2.5) mm"),
        (nan_spacing, "nan"),
        (nan_form, "NaN"),
        (micrometres, "which no chest CT has"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_impossible_nifti_grids_are_refused(tmp_path, suffix, edit, words):
    path = nifti(tmp_path / f"ct{suffix}", edit)
    with pytest.raises(GeometryError, match=re.escape(words)):
        read_volume(path)


@pytest.mark.parametrize(
    ("suffix", "old", "new", "words"),
    [
        (".mha", rb"ElementSpacing = [^\n]*", b"ElementSpacing = 0.7 0.8 0", "must be positive"),
        (".mha", rb"ElementSpacing = [^\n]*", b"ElementSpacing = 0.7 0.8 -2", "must be positive"),
        (".mha", rb"TransformMatrix = [^\n]*", b"TransformMatrix = 0 0 0 0 0 0 0 0 0", "singular or sheared"),
        (".mha", rb"TransformMatrix = [^\n]*", b"TransformMatrix = 1 0 0 1 0 0 0 0 1", "singular or sheared"),
        (".mha", rb"TransformMatrix = [^\n]*", b"TransformMatrix = 1 0 0 0.2 0.98 0 0 0 1", "singular or sheared"),
        (".nrrd", rb"directions: [^\n]*", b"directions: (0,0,0) (0,0.8,0) (0,0,2.5)", "must be positive"),
        (".nrrd", rb"directions: [^\n]*", b"directions: (0.7,0,0) (0.7,0,0) (0,0,2.5)", "singular or sheared"),
        (".nrrd", rb"directions: [^\n]*", b"directions: (0.7,0,0) (0.2,0.8,0) (0,0,2.5)", "singular or sheared"),
    ],
)
def test_impossible_grids_are_refused(tmp_path, suffix, old, new, words):
    path = edited(save(tmp_path / f"ct{suffix}"), old, new)
    with pytest.raises(GeometryError, match=words):
        read_volume(path)


def test_odd_but_usable_nifti_headers_are_mentioned(tmp_path):
    def no_codes(header):
        header["qform_code"] = header["sform_code"] = 0

    def two_places(header):
        header["srow_x"][3] = 50
        header["sform_code"] = 2

    def a_row_apart(header):
        header["srow_y"][3] += 0.8

    def turned(header):
        # the same place of the first voxel, but turned about the third axis by 10 degrees
        header["quatern_d"] = np.sin(np.radians(5))

    def mirrored(header):
        header["pixdim"][0] = -1

    def both_from_the_other_side(header):
        header.set_qform(np.diag([-0.7, -0.8, -2.5, 1.0]), 1)
        header.set_sform(np.diag([-0.7, -0.8, -2.5, 1.0]), 1)

    def rounded(header):
        header["srow_x"][0] += 0.001
        header["qoffset_z"] += 0.1

    assert "left and right may be swapped" in read_volume(nifti(tmp_path / "a.nii", no_codes)).warnings[0]
    assert "50 mm apart" in read_volume(nifti(tmp_path / "b.nii", two_places)).warnings[0]
    assert "0.8 mm apart" in read_volume(nifti(tmp_path / "b.nii", a_row_apart)).warnings[0]
    for edit in (turned, mirrored):
        assert "mm apart" in read_volume(nifti(tmp_path / "c.nii", edit)).warnings[0]
    for edit in (both_from_the_other_side, rounded):
        assert read_volume(nifti(tmp_path / "d.nii", edit)).warnings == ()


@pytest.mark.parametrize(("code", "chosen"), [(1, "sform"), (2, "qform")])
def test_two_positions_are_mentioned_whichever_itk_chooses(tmp_path, code, chosen):
    def moved(header):
        header["qoffset_x"] += 30
        header["sform_code"] = code

    volume = read_volume(nifti(tmp_path / "ct.nii.gz", moved))
    # RAS in the file, LPS here
    assert volume.geometry.origin[0] == pytest.approx(-30 if chosen == "qform" else 0)
    assert "sform and qform, 30 mm apart" in volume.warnings[0]
