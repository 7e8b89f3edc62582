"""A chest of boxes whose measurements can be counted by hand; a pytest plug-in."""

from __future__ import annotations

import numpy as np
import pytest

from COVIDLesionSegLib.imaging import Geometry, Volume

# a box of lungs in a box of chest: 1 mm in plane, 2 mm slices, LPS; a voxel is 0.002 mL
SHAPE = (32, 60, 140)
VOXEL_ML = 0.002
RIGHT = (slice(1, 31), slice(10, 50), slice(10, 60))  # smaller x is the patient's right
LEFT = (slice(4, 28), slice(10, 50), slice(80, 130))  # 24 slices high: thirds of 8
GGO = (slice(2, 6), slice(20, 30), slice(20, 40))  # right lower zone, 4 * 10 * 20 = 800 voxels of -600 HU
DENSE = (slice(6, 8), slice(20, 30), slice(20, 40))  # on top of it, 400 voxels of 0 HU
SMALL = (slice(13, 14), slice(20, 25), slice(90, 100))  # left middle zone, 50 voxels of -500 HU


@pytest.fixture
def chest_of_boxes():
    geometry = Geometry((140, 60, 32), (1.0, 1.0, 2.0), (-70.0, -30.0, 100.0))
    hu = np.full(SHAPE, 40, np.int16)
    lungs = np.zeros(SHAPE, np.uint8)
    lesion = np.zeros(SHAPE, bool)
    for box, label in ((RIGHT, 1), (LEFT, 2)):
        hu[box], lungs[box] = -850, label
    for box, value in ((GGO, -600), (DENSE, 0), (SMALL, -500)):
        hu[box], lesion[box] = value, True
    lobes = np.zeros(SHAPE, np.uint8)
    lobes[RIGHT], lobes[LEFT] = 5, 2
    lobes[11:31, 10:50, 10:60], lobes[21:31, 10:50, 10:60] = 4, 3
    lobes[16:28, 10:50, 80:130] = 1
    return Volume(hu, geometry, "boxes"), lesion, lungs, lobes


def value(measured, key):
    assert measured[key]["status"] == "ok", key
    return measured[key]["value"]
