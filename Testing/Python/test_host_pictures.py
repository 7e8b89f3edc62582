"""The host's off-screen views show what Slicer's would: the right things at the right places."""

from __future__ import annotations

import ctypes.util

import numpy as np
import pytest

from COVIDLesionSegLib.imaging import Geometry, Volume

SHAPE = (40, 60, 60)
GRID = Geometry(SHAPE[::-1], (5.0, 5.0, 6.0), (-150.0, -150.0, -120.0))
SIZE = (200, 200)


@pytest.fixture
def pictures(scene):
    if ctypes.util.find_library("EGL") is None:
        pytest.skip("libEGL is missing (see .ci/run)")
    from host import pictures

    return pictures


@pytest.fixture
def ct(scene):
    from COVIDLesionSegLib.mrml import nodeFromVolume

    voxels = np.full(SHAPE, -1400, np.int16)
    voxels[:, 20:40] = 100  # a bright band from right to left
    return nodeFromVolume(Volume(voxels, GRID))


@pytest.fixture
def lesion_in_the_right_lower_back(ct):
    from COVIDLesionSegLib.mrml import showIn3D, showLesions

    mask = np.zeros(SHAPE, bool)
    mask[5:15, 42:52, 8:18] = True
    node = showLesions(ct, mask)
    showIn3D(node)
    return node


def center(z, y, x):
    """RAS of a voxel."""
    return (GRID.ijk_to_ras @ [x, y, z, 1])[:3]


def colored(picture):
    """Where a picture is not gray: (rows, columns)."""
    channels = picture.astype(int)
    return np.argwhere(channels.max(axis=2) - channels.min(axis=2) > 30)


def test_a_slice_shows_volume_and_segment_where_they_lie(pictures, ct, lesion_in_the_right_lower_back):
    view = pictures.SliceView("Axial", SIZE)
    view.show(ct)
    view.goTo(*center(10, 47, 13))
    picture = view.picture()
    view.close()
    assert picture.shape == (200, 200, 3)
    # anterior is up, the patient's right is on the left
    assert picture[100, 150].min() > 240
    assert picture[20, 150].max() < 15
    place = colored(picture).mean(axis=0)
    np.testing.assert_allclose(place, [200 * 47 / 60, 200 * 13 / 60], atol=4)
    assert abs(len(colored(picture)) - 200**2 * 100 / 3600) < 200


def test_a_slice_elsewhere_shows_no_segment(pictures, ct, lesion_in_the_right_lower_back):
    view = pictures.SliceView("Axial", SIZE)
    view.show(ct)
    view.goTo(*center(30, 47, 13))
    assert not len(colored(view.picture()))
    view.close()


@pytest.mark.parametrize("orientation", ["Coronal", "Sagittal"])
def test_other_orientations_have_superior_up(pictures, ct, lesion_in_the_right_lower_back, orientation):
    view = pictures.SliceView(orientation, SIZE)
    view.show(ct)
    view.goTo(*center(10, 47, 13))
    found = colored(view.picture())
    view.close()
    assert len(found) > 100
    assert found[:, 0].mean() > 110


def test_a_probability_map_lies_over_the_ct(pictures, ct):
    from COVIDLesionSegLib.mrml import showProbability

    probability = np.zeros(SHAPE, np.float32)
    probability[:, 42:52, 8:18] = 0.6
    overlay = showProbability(ct, probability)
    view = pictures.SliceView("Axial", SIZE)
    view.show(ct, overlay, 1.0)
    picture = view.picture()
    view.close()
    assert picture[100, 150].min() > 240, "where the probability is 0 the CT shows"
    place = colored(picture).mean(axis=0)
    np.testing.assert_allclose(place, [200 * 47 / 60, 200 * 13 / 60], atol=4)


def test_surfaces_show_in_3d(pictures, lesion_in_the_right_lower_back, tmp_path):
    view = pictures.ThreeDView(SIZE)
    picture = view.picture()
    view.close()
    red, green, blue = np.median(picture[80:120, 80:120].reshape(-1, 3), axis=0)
    assert red > 1.5 * green and red > 1.5 * blue


def test_a_picture_is_written(pictures, slicer_gui, tmp_path):
    from PySide6.QtGui import QImage

    picture = np.zeros((5, 7, 3), np.uint8)
    picture[2, 3] = (10, 20, 30)
    pictures.save(picture, str(tmp_path / "x.png"))
    color = QImage(str(tmp_path / "x.png")).pixelColor(3, 2)
    assert (color.red(), color.green(), color.blue()) == (10, 20, 30)
    with pytest.raises(OSError):
        pictures.save(picture, str(tmp_path / "absent" / "x.png"))
