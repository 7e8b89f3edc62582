"""Image files and label maps: every format, exact voxels and grid, and a clear sentence for what cannot be used."""

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
import SimpleITK as sitk
from file_faults import open_folder, without_rights
from synthetic_dicom import small_chest, write_series

from COVIDLesionSegLib.errors import COVIDLesionSegError, GeometryError, InputError, IntensityError, ReadError
from COVIDLesionSegLib.files import sha256_file
from COVIDLesionSegLib.imaging import (
    Geometry,
    Volume,
    check_hounsfield,
    image_stem,
    image_suffix,
    read_labels,
    read_volume,
)

CHEST = small_chest()
GRID = Geometry((20, 24, 12), (0.7, 0.8, 2.5), (-50.5, -60.25, 300.0))
SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"]


def save(path: Path, array: np.ndarray = CHEST, grid: Geometry = GRID, compress: bool = True) -> Path:
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    if array.ndim == 3 or array.ndim == 4:
        image.SetSpacing(grid.spacing)
        image.SetOrigin(grid.origin)
        image.SetDirection(grid.direction)
    sitk.WriteImage(image, str(path), compress and not path.name.endswith(".nii"))
    return path


def edited(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert len(re.findall(old, data)) == 1
    path.write_bytes(re.sub(old, new, data))
    return path


def nifti(path: Path, edit=lambda header: None, array: np.ndarray = CHEST, kind=nibabel.Nifti1Image) -> Path:
    """A NIfTI file of nibabel's whose header was changed afterwards."""
    image = kind(np.ascontiguousarray(array.T), np.diag([0.7, 0.8, 2.5, 1.0]))
    image.header.set_qform(image.affine, 1)
    image.header.set_sform(image.affine, 1)
    plain = path.with_name("plain.nii")
    nibabel.save(image, plain)
    data = plain.read_bytes()
    plain.unlink()
    header = type(image.header)(data[: image.header.sizeof_hdr], check=False)
    edit(header)
    data = header.binaryblock + data[len(header.binaryblock) :]
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


# What is read


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compress", [True, False])
def test_every_format_gives_the_same_volume(tmp_path, suffix, compress):
    path = save(tmp_path / f"Fall 1 ä{suffix}", compress=compress)
    volume = read_volume(str(path))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, CHEST)
    assert volume.geometry.difference(GRID) == ""
    assert volume.name == "Fall 1 ä"
    assert volume.warnings == ()
    assert set(volume.source) == {"format", "files", "sha256", "rescale"}
    pair = suffix in (".nhdr", ".mhd")
    assert volume.source["files"] == 2 if pair else 1
    if not pair:
        assert volume.source["sha256"] == sha256_file(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_whole_numbers_become_int16_whatever_their_type(tmp_path, suffix, dtype):
    volume = read_volume(save(tmp_path / f"ct{suffix}", CHEST.astype(dtype)))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, CHEST)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_fractions_stay_float32(tmp_path, suffix):
    array = (CHEST + 0.25).astype(np.float64)
    volume = read_volume(save(tmp_path / f"ct{suffix}", array))
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, array)


@pytest.mark.parametrize(
    ("suffix", "edit"),
    [(".mha", ("BinaryDataByteOrderMSB = False", "BinaryDataByteOrderMSB = True")), (".nrrd", ("little", "big"))],
)
def test_big_endian_files_are_read(tmp_path, suffix, edit):
    path = save(tmp_path / f"ct{suffix}", CHEST.byteswap(), compress=False)
    edited(path, edit[0].encode(), edit[1].encode())
    assert np.array_equal(read_volume(path).array, CHEST)


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_nifti_of_both_byte_orders_is_read(tmp_path, byte_order):
    header = nibabel.Nifti1Header(endianness=byte_order)
    header.set_data_dtype(np.int16)
    image = nibabel.Nifti1Image(np.ascontiguousarray(CHEST.T), np.diag([-0.7, -0.8, 2.5, 1.0]), header)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    volume = read_volume(tmp_path / "ct.nii.gz")
    assert np.array_equal(volume.array, CHEST)
    assert np.allclose(volume.geometry.ijk_to_ras, image.affine)


def test_formats_that_are_not_read_are_named(tmp_path):
    nibabel.save(nibabel.Nifti2Image(np.ascontiguousarray(CHEST.T), np.eye(4)), tmp_path / "ct.nii.gz")
    with pytest.raises(ReadError, match="NIfTI-2"):
        read_volume(tmp_path / "ct.nii.gz")
    path = save(tmp_path / "ct.nrrd", compress=False)
    with pytest.raises(ReadError, match="bzip2"):
        read_volume(edited(path, b"encoding: raw", b"encoding: bzip2"))


def test_scaling_in_a_nifti_header_is_applied(tmp_path):
    def scale(header):
        header["scl_slope"], header["scl_inter"] = 0.5, -24

    volume = read_volume(nifti(tmp_path / "ct.nii.gz", scale, 2 * CHEST))
    assert np.array_equal(volume.array, CHEST - 24)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "ct.nii.gz"))))


def test_nrrd_as_text_is_left_to_simpleitk(tmp_path):
    path = save(tmp_path / "ct.nrrd", compress=False)
    head, _, data = path.read_bytes().partition(b"\n\n")
    text = " ".join(map(str, np.frombuffer(data, np.int16))).encode()
    path.write_bytes(head.replace(b"encoding: raw", b"encoding: ascii") + b"\n\n" + text)
    assert np.array_equal(read_volume(path).array, CHEST)


def test_strung_together_gzip_members_are_read(tmp_path):
    path = save(tmp_path / "ct.nii")
    data = path.read_bytes()
    together = tmp_path / "ct2.nii.gz"
    together.write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]))
    assert np.array_equal(read_volume(together).array, CHEST)


def test_the_compressed_file_is_read_though_another_lies_beside_it(tmp_path):
    save(tmp_path / "ct.nii.gz")
    save(tmp_path / "ct.nii", CHEST + np.int16(7))
    assert np.array_equal(read_volume(tmp_path / "ct.nii.gz").array, CHEST)
    assert np.array_equal(read_volume(tmp_path / "ct.nii").array, CHEST + 7)


@pytest.mark.parametrize("space", ["right-anterior-superior", "left-anterior-superior"])
def test_other_frames_of_nrrd_become_lps(tmp_path, space):
    path = edited(save(tmp_path / "ct.nrrd"), b"left-posterior-superior", space.encode())
    volume = read_volume(path)
    x, y, z = volume.geometry.ijk_to_ras[:3, 3] * [1 if space.startswith("right") else -1, 1, 1]
    assert (x, y, z) == pytest.approx(GRID.origin)
    assert np.array_equal(volume.array, CHEST)


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path):
    volume = read_volume(nifti(tmp_path / "ct.nii.gz", array=CHEST[None]))
    assert np.array_equal(volume.array, CHEST)


def test_one_slice_and_a_small_matrix_are_read(tmp_path):
    chest = small_chest((1, 40, 40))
    volume = read_volume(save(tmp_path / "ct.nrrd", chest, Geometry((40, 40, 1), (1, 1, 5))))
    assert np.array_equal(volume.array, chest)
    assert volume.warnings == ("The volume has one slice only.",)


def test_rescale_of_the_user_is_applied_and_recorded(tmp_path):
    path = save(tmp_path / "ct.nrrd", (CHEST.astype(np.int32) + 1024).astype(np.uint16))
    volume = read_volume(path, rescale=(1, -1024))
    assert np.array_equal(volume.array, CHEST)
    assert volume.array.dtype == np.int16
    assert volume.source["rescale"] == [1.0, -1024.0]


@pytest.mark.parametrize("rescale", [(0, 1), (1,), (1, 2, 3), (float("nan"), 0), (1, float("inf"))])
def test_impossible_rescales_are_refused(tmp_path, rescale):
    with pytest.raises(InputError, match="rescale"):
        read_volume(save(tmp_path / "ct.nrrd"), rescale=rescale)


def test_names_lose_their_format(tmp_path):
    for name, stem, suffix in [
        ("a.b.nii.gz", "a.b", ".nii.gz"),
        ("lesion.seg.nrrd", "lesion", ".seg.nrrd"),
        ("CT.MHA", "CT", ".mha"),
        ("series 1.2", "series 1.2", ""),
        (".nrrd", ".nrrd", ".nrrd"),
    ]:
        assert (image_stem(tmp_path / name), image_suffix(name)) == (stem, suffix)


@pytest.mark.parametrize("number", ["001", "009"])
def test_shared_volumes_are_read_as_by_simpleitk(shared, number):
    path = shared(f"data/covid19-ct-seg/coronacases_{number}_ct.nii.gz")
    expected = sitk.ReadImage(str(path))
    volume = read_volume(path)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(expected))
    assert volume.geometry.difference(Geometry.from_sitk(expected)) == ""
    assert volume.warnings == ()
    lesion = read_labels(str(path).replace("_ct", "_lesion"))
    lesion.geometry.require_same(volume.geometry, "lesion", "CT")
    assert lesion.array.dtype == np.uint8


# Files that cannot be read


def cut(suffix: str, share: float, compress: bool = True):
    def make(folder: Path) -> Path:
        path = save(folder / f"ct{suffix}", compress=compress)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return path

    return make


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


def two_dimensional(name: str):
    def make(folder: Path) -> Path:
        sitk.WriteImage(sitk.GetImageFromArray(CHEST[0]), str(folder / name))
        return folder / name

    return make


def four_dimensional(name: str):
    def make(folder: Path) -> Path:
        image = sitk.JoinSeries([sitk.GetImageFromArray(CHEST)] * 3)
        sitk.WriteImage(image, str(folder / name))
        return folder / name

    return make


RGB = np.zeros((12, 24, 20, 3), np.uint8)


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

    with pytest.raises(ReadError, match="cut short"):
        read_volume(nifti(tmp_path / "ct.nii.gz", huge))
    path = save(tmp_path / "ct.mha")
    with pytest.raises(ReadError, match="cut short"):
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
    with pytest.raises(ReadError, match="neither a file nor a folder"):
        read_volume(tmp_path / "pipe.nii.gz")
    write_series(tmp_path, CHEST)
    assert read_volume(tmp_path).array.shape == CHEST.shape


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

    assert "left and right may be swapped" in read_volume(nifti(tmp_path / "a.nii", no_codes)).warnings[0]
    assert "50 mm apart" in read_volume(nifti(tmp_path / "b.nii", two_places)).warnings[0]


# Values that are no Hounsfield units


def scaled(low: float, high: float, dtype=np.float32) -> np.ndarray:
    unit = (CHEST.astype(np.float64) + 1000) / 1040
    return (low + unit * (high - low)).astype(dtype)


def with_values(*values: float) -> np.ndarray:
    array = CHEST.astype(np.float32)
    array.reshape(-1)[: len(values)] = values
    return array


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros_like(CHEST), "Every voxel of the volume is 0"),
        (np.full_like(CHEST, -1024), "Every voxel of the volume is -1024"),
        (scaled(0, 255, np.uint8), "8-bit picture, not HU"),
        (scaled(0, 200.5, np.float32), "8-bit picture, not HU"),
        ((CHEST > 0).astype(np.uint8), "scaled to [0, 1] (or a mask)"),
        ((CHEST > 0).astype(np.uint8) * 3, "label map"),
        (scaled(0, 1), "--rescale 1500 -1400"),
        ((CHEST.astype(np.int32) + 1024).astype(np.uint16), "--rescale 1 -1024"),
        ((CHEST.astype(np.int32) + 32768).astype(np.uint16), "--rescale 1 -32768"),
        (CHEST / np.float32(1000), "--rescale 1000 0"),
        (scaled(-1, 1), "scaled or normalized"),
        (scaled(-2.1, 3.3), "normalized"),
        (scaled(-300, 900, np.int16), "almost none below -500"),
        (CHEST - np.int16(1024), "--rescale 1 1024"),
        (with_values(np.nan, np.nan, np.inf), "2 NaN and 1 infinite voxels among 5760"),
        (with_values(-np.inf), "0 NaN and 1 infinite"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_values_that_are_no_hounsfield_units_are_refused(tmp_path, suffix, array, words):
    with pytest.raises(IntensityError, match=re.escape(words)):
        read_volume(save(tmp_path / f"ct{suffix}", array))


@pytest.mark.parametrize(
    ("stored", "rescale"),
    [
        ((CHEST.astype(np.int32) + 1024).astype(np.uint16), (1, -1024)),
        ((CHEST.astype(np.int32) + 32768).astype(np.uint16), (1, -32768)),
        (CHEST / np.float64(1000), (1000, 0)),
        (CHEST - np.int16(1024), (1, 1024)),
    ],
)
def test_the_advised_rescale_helps(tmp_path, stored, rescale):
    volume = read_volume(save(tmp_path / "ct.nrrd", stored), rescale=rescale)
    assert np.allclose(volume.array, CHEST, atol=1e-3)


@pytest.mark.parametrize("padding", [-2000, -2048, -3024, -32768])
def test_padding_becomes_air_and_metal_is_cut(tmp_path, padding):
    array = CHEST.copy()
    array[:, :4, :4] = padding
    array[5, 12, 10] = 30000
    volume = read_volume(save(tmp_path / "ct.nii.gz", array))
    assert (volume.array[:, :4, :4] == -1024).all()
    assert volume.array[5, 12, 10] == 3071
    untouched = (array > -1500) & (array <= 3071)
    assert np.array_equal(volume.array[untouched], array[untouched])
    assert [warning for warning in volume.warnings if "padding" in warning]
    assert not [warning for warning in volume.warnings if "3071" in warning]


def test_checking_leaves_the_callers_array_alone():
    array = CHEST.copy()
    array[0] = -2000
    before = array.copy()
    assert check_hounsfield(Volume(array, GRID)).array is not array
    assert np.array_equal(array, before)
    clean = Volume(CHEST, GRID)
    assert check_hounsfield(clean) is clean


def test_a_chest_masked_to_the_lungs_passes(tmp_path):
    lungs = np.where(CHEST < -800, CHEST, np.int16(-2000))
    lungs[:, 9:12, 5:8] = 30  # vessels
    assert read_volume(save(tmp_path / "ct.nii.gz", lungs)).array.min() == -1024


# Label maps

LABELS = (CHEST > 0).astype(np.uint8) + 2 * (CHEST < -800).astype(np.uint8)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_label_maps_of_every_type_are_read(tmp_path, suffix, dtype):
    labels = read_labels(save(tmp_path / f"m{suffix}", LABELS.astype(dtype)))
    assert labels.array.dtype == np.uint8
    assert np.array_equal(labels.array, LABELS)
    assert labels.geometry.difference(GRID) == ""


def test_large_labels_are_uint16_and_one_label_can_be_kept(tmp_path):
    path = save(tmp_path / "m.nrrd", LABELS.astype(np.uint16) * 20000)
    labels = read_labels(path)
    assert labels.array.dtype == np.uint16
    assert np.array_equal(read_labels(path, 40000).array, np.where(LABELS == 2, 40000, 0))
    assert not read_labels(path, 7).mask().any()
    with pytest.raises(InputError, match="no segment named lesion"):
        read_labels(path, "lesion")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (scaled(0, 1), "fractions between 0 and 1.*Threshold"),
        (scaled(-3, 7), "fractions between -3 and 7"),
        (CHEST, "values from -1000 to 40"),
        (with_values(np.nan), "NaN"),
        (LABELS.astype(np.int32) * 100000, "values from 100000 to 200000"),
        (RGB, "3 values a voxel"),
    ],
)
def test_values_that_are_no_labels_are_refused(tmp_path, array, words):
    with pytest.raises(ReadError, match=words):
        read_labels(save(tmp_path / "m.nrrd", array))


@pytest.mark.parametrize("make", [four_dimensional("m.nii.gz"), two_dimensional("m.nii.gz"), cut(".nii.gz", 0.6)])
def test_broken_label_maps_are_refused(tmp_path, make):
    with pytest.raises(ReadError):
        read_labels(make(tmp_path))


def test_a_folder_is_no_label_map(tmp_path):
    with pytest.raises(ReadError, match="is a folder"):
        read_labels(tmp_path)


def test_shared_masks_of_mosmed_are_read(shared):
    for path in sorted(shared("data/mosmed-masks").iterdir())[:3]:
        labels = read_labels(path)
        assert labels.array.dtype == np.uint8
        assert set(np.unique(labels.array)) == {0, 1}
        assert labels.geometry.spacing[2] == pytest.approx(8)


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


def test_the_length_field_of_gzip_is_not_trusted(tmp_path):
    path = save(tmp_path / "ct.nii.gz")
    data = bytearray(path.read_bytes())
    data[-4:] = struct.pack("<I", 5)
    path.write_bytes(data)
    with pytest.raises(ReadError, match="damaged"):
        read_volume(path)
