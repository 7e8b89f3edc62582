"""Image files: every format, exact voxels and grid."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from image_files import CHEST, GRID, SUFFIXES, edited, nifti, save
from synthetic_dicom import small_chest

from COVIDLesionSegLib.errors import InputError, ReadError
from COVIDLesionSegLib.files import sha256_file
from COVIDLesionSegLib.imaging import Geometry, image_stem, image_suffix, read_labels, read_volume


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


def test_nrrd_as_text_is_read(tmp_path):
    path = save(tmp_path / "ct.nrrd", compress=False)
    head, _, data = path.read_bytes().partition(b"\n\n")
    text = " ".join(map(str, np.frombuffer(data, np.int16))).encode()
    path.write_bytes(head.replace(b"encoding: raw", b"encoding: ascii") + b"\n\n" + text)
    assert np.array_equal(read_volume(path).array, CHEST)


def test_voxels_at_the_end_of_their_file_are_found(tmp_path):
    path = save(tmp_path / "ct.nrrd", compress=False)
    head, _, data = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head + b"\nbyte skip: -1\n\n" + b"another header" + data)
    assert np.array_equal(read_volume(path).array, CHEST)
    path.write_bytes(head + b"\nbyte skip: 7\n\n" + b"another" + data)
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
def test_shared_volumes_are_read_as_by_simpleitk(ct_seg, number):
    case = ct_seg(number)
    expected = sitk.ReadImage(case.ct)
    volume = read_volume(case.ct)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(expected))
    assert volume.geometry.difference(Geometry.from_sitk(expected)) == ""
    assert volume.warnings == ()
    lesion = read_labels(case.lesion)
    lesion.geometry.require_same(volume.geometry, "lesion", "CT")
    assert lesion.array.dtype == np.uint8
