"""Label maps: every format and type of number, exact voxels, and a sentence for what is no label map."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import CHEST, GRID, RGB, SUFFIXES, cut, four_dimensional, save, scaled, two_dimensional, with_values

from COVIDLesionSegLib.errors import InputError, ReadError
from COVIDLesionSegLib.imaging import read_labels

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
        (LABELS.astype(np.int32) * 32768, "values from 32768 to 65536"),
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
