"""Written files: exact voxels on the own grid in every format, all or nothing."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from file_faults import open_folder, small_disk, without_rights
from image_files import CHEST, grid, lesion_labels
from synthetic_dicom import write_series

from COVIDLesionSegLib.errors import GridMismatchError, InputError, OutputError
from COVIDLesionSegLib.imaging import (
    Geometry,
    LabelVolume,
    read_labels,
    read_volume,
    require_other_file,
    write_labels,
    write_volume,
)

SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".mha"]
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]
MANY_LABELS = LabelVolume(np.arange(1, CHEST.size + 1, dtype=np.uint16).reshape(CHEST.shape), grid())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("degrees", [(0, 0, 0), (20, -11, 7)])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_comes_back_exactly(tmp_path, order, signs, degrees, suffix):
    geometry = grid(order, signs, degrees)
    array = np.random.default_rng(1).integers(-1000, 1000, CHEST.shape).astype(np.int16)
    write_volume(array, tmp_path / f"ct{suffix}", geometry)
    volume = read_volume(tmp_path / f"ct{suffix}")
    assert np.array_equal(volume.array, array)
    assert volume.geometry.difference(geometry) == ""
    # far below what float32 headers lose
    assert np.allclose(volume.geometry.ijk_to_lps, geometry.ijk_to_lps, rtol=1e-6, atol=2e-4)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_segmentations_of_every_orientation_come_back_exactly(tmp_path, order, signs):
    labels = lesion_labels(grid(order, signs, (5, 33, -12)))
    write_labels(labels, tmp_path / "m.seg.nrrd")
    again = read_labels(tmp_path / "m.seg.nrrd")
    assert np.array_equal(again.array, labels.array)
    assert again.geometry.difference(labels.geometry) == ""
    assert dict(again.names) == {1: "lesion", 2: "consolidation"}


def test_other_programs_see_the_same_grid(tmp_path):
    geometry = grid((2, 0, 1), (-1.0, 1.0, 1.0), (20, -11, 7))
    write_volume(CHEST, tmp_path / "ct.nii.gz", geometry)
    image = nibabel.load(tmp_path / "ct.nii.gz")
    for affine in (image.get_sform(), image.get_qform()):
        assert np.allclose(affine, geometry.ijk_to_ras, rtol=1e-5, atol=2e-4)
    assert np.array_equal(np.asarray(image.dataobj).T, CHEST)
    assert image.header.get_xyzt_units()[0] == "mm"
    for suffix in SUFFIXES:
        write_volume(CHEST, tmp_path / f"ct{suffix}", geometry)
        assert Geometry.from_sitk(sitk.ReadImage(str(tmp_path / f"ct{suffix}"))).difference(geometry) == ""


def test_a_dicom_study_comes_back_on_its_own_grid(tmp_path):
    write_series(tmp_path / "ct", CHEST, ImageOrientationPatient=[0.9396926, 0.3420201, 0, 0, 0, -1],
                 positions=[(0.3420201 * -1.5 * k, 0.9396926 * 1.5 * k, 0) for k in range(12)])  # fmt: skip
    volume = read_volume(tmp_path / "ct")
    for suffix in SUFFIXES:
        write_volume(volume, tmp_path / f"ct{suffix}")
        again = read_volume(tmp_path / f"ct{suffix}")
        assert np.array_equal(again.array, volume.array)
        assert again.geometry.difference(volume.geometry) == ""


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_type_is_written(tmp_path, suffix, dtype):
    array = (CHEST > 0).astype(dtype) if dtype == "bool" else np.abs(CHEST).astype(dtype)
    write_volume(array, tmp_path / f"a{suffix}", grid())
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"a{suffix}"))), array)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".seg.nrrd"])
def test_masks_are_uint8_and_compressed(tmp_path, suffix):
    labels = LabelVolume(CHEST > 0, grid(), {1: "lesion"})
    path = tmp_path / f"Fall 1 ä{suffix}"
    write_labels(labels, str(path))
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(sitk.GetArrayFromImage(image), CHEST > 0)
    assert suffix == ".nii" or path.stat().st_size < CHEST.size / 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_views_of_arrays_are_written(tmp_path):
    geometry = grid((1, 0, 2), (1.0, -1.0, -1.0))
    view = geometry.axial_view()
    write_volume(view.apply(CHEST), tmp_path / "axial.nrrd", view.geometry)
    again = read_volume(tmp_path / "axial.nrrd")
    assert np.array_equal(view.restore(again.array), CHEST)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda folder: write_volume(CHEST, folder / "a.nii.gz"), InputError, "geometry"),
        (lambda folder: write_volume(CHEST[1:], folder / "a.nii.gz", grid()), GridMismatchError, "same grid"),
        (lambda folder: write_volume(CHEST, folder / "a.png", grid()), InputError, "no format that is written"),
        (lambda folder: write_volume(CHEST, folder / "a.mhd", grid()), InputError, "no format that is written"),
        (lambda folder: write_volume(CHEST * 1j, folder / "a.nrrd", grid()), InputError, "complex"),
        (
            lambda folder: write_labels(LabelVolume(CHEST, grid()), folder / "a.nrrd"),
            InputError,
            "whole numbers from 0",
        ),
        (lambda folder: write_labels(LabelVolume(CHEST / 2, grid()), folder / "a.nrrd"), InputError, "float64"),
        (lambda folder: write_labels(MANY_LABELS, folder / "a.seg.nrrd"), InputError, "5760 segments"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, call, error, words):
    with pytest.raises(error, match=words):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


# All or nothing


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".seg.nrrd"])
def test_a_full_disk_leaves_nothing_or_the_old_file(suffix):
    array = np.random.default_rng(0).integers(0, 4, (60, 100, 100)).astype(np.uint8)
    labels = LabelVolume(array, Geometry((100, 100, 60)))
    with small_disk(0.1) as disk:
        target = disk / f"mask{suffix}"
        with pytest.raises(OutputError, match="disk is full"):
            write_labels(labels, target)
        assert not list(disk.iterdir())
        target.write_bytes(b"old")
        with pytest.raises(OutputError, match="disk is full"):
            write_labels(labels, target)
        assert [p.name for p in disk.iterdir()] == [target.name]
        assert target.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("missing", [1, 4, 200])
def test_the_check_for_incomplete_nifti_files_sees_them(tmp_path, suffix, missing):
    from COVIDLesionSegLib.imaging.writing import _require_complete

    path = tmp_path / f"ct{suffix}"
    write_volume(CHEST, path, grid())
    _require_complete(path, CHEST.nbytes, suffix, path)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises((OutputError, OSError)):
        _require_complete(path, CHEST.nbytes, suffix, path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd", ".mha"])
def test_a_read_only_folder_is_told(suffix):
    with open_folder() as folder:
        with without_rights(), pytest.raises(OutputError, match="read-only"):
            write_labels(lesion_labels(), folder / f"m{suffix}")
        assert not list(folder.iterdir())


def test_a_folder_in_the_way_is_told(tmp_path):
    (tmp_path / "m.nii.gz").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_labels(lesion_labels(), tmp_path / "m.nii.gz")


def test_a_missing_folder_is_made(tmp_path):
    write_labels(lesion_labels(), tmp_path / "new" / "er" / "m.nii.gz")
    assert [p.name for p in (tmp_path / "new" / "er").iterdir()] == ["m.nii.gz"]


def test_an_input_is_not_replaced(tmp_path):
    ct = tmp_path / "ct.nii.gz"
    write_volume(CHEST, ct, grid())
    (tmp_path / "link.nii.gz").symlink_to(ct)
    for output in (ct, tmp_path / "." / "sub" / ".." / "ct.nii.gz", tmp_path / "link.nii.gz"):
        with pytest.raises(InputError, match="is an input"):
            require_other_file(output, [tmp_path / "other", ct])
    require_other_file(tmp_path / "new.nii.gz", [ct])
