"""Values that are no Hounsfield units are refused with advice that helps; padding and metal are taken care of."""

from __future__ import annotations

import re

import numpy as np
import pytest
from image_files import CHEST, GRID, save, scaled, with_values

from COVIDLesionSegLib.errors import GeometryError, IntensityError
from COVIDLesionSegLib.imaging import Geometry, Volume, check_hounsfield, read_volume

# with as much dense bone as real chests have: 2 % of the voxels
BONY = CHEST.copy()
BONY[:, 16:19, 8:11] = 900


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
        (-BONY, "--rescale -1 0"),
        (-BONY[:, 6:-6, 3:-3], "the sign of the values is flipped"),
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
        (-BONY, (-1, 0)),
    ],
)
def test_the_advised_rescale_helps(tmp_path, stored, rescale):
    volume = read_volume(save(tmp_path / "ct.nrrd", stored), rescale=rescale)
    assert np.allclose(volume.array, BONY if rescale[0] < 0 else CHEST, atol=1e-3)


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


def test_what_lies_at_the_limit_of_padding_stays_and_a_voxel_of_padding_is_not_worth_a_word():
    array = CHEST.copy()
    array[0, 0, :2] = -1500, -1501
    volume = check_hounsfield(Volume(array, GRID))
    assert volume.array[0, 0, :2].tolist() == [-1500, -1024]
    assert volume.warnings == ()


def test_little_air_beside_some_bone_is_not_taken_for_a_flipped_sign():
    array = np.full_like(CHEST, 40)
    array[:, :1, :5], array[:, 16:19, 8:11] = -900, 900
    volume = Volume(array, GRID)
    assert np.mean(array == 900) > np.mean(array == -900)
    assert check_hounsfield(volume) is volume


@pytest.mark.parametrize("spacing", [(0.7, 0.8, 120.0), (0.0007, 0.0008, 0.0025)])
def test_a_spacing_in_another_unit_is_refused(tmp_path, spacing):
    with pytest.raises(GeometryError, match="is it in another unit"):
        read_volume(save(tmp_path / "ct.nrrd", grid=Geometry(GRID.size, spacing)))
