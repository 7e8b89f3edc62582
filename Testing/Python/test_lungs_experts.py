"""The lung finder on real CTs, against the experts' masks."""

from __future__ import annotations

import numpy as np
import pytest
from lung_chests import overlap

from COVIDLesionSegLib.imaging import Geometry, Volume, find_lungs
from COVIDLesionSegLib.inference import PostProcessing, apply_postprocessing
from COVIDLesionSegLib.models import read_card
from COVIDLesionSegLib.resources import resource

# Real data. Three of the cases touch the filling outside of their crop, which is not part of a CT: body instead.
CASES = ["001", "002", "004", "005", "006", "007", "008", "009"]
CROPPED_WITHIN_THE_LUNGS = {"002", "004", "005"}


@pytest.fixture(scope="module")
def read(shared):
    sitk = pytest.importorskip("SimpleITK")

    def read(name):
        image = sitk.ReadImage(str(shared(f"data/{name}")))
        return sitk.GetArrayFromImage(image), Geometry.from_sitk(image)

    return read


def filled_outside(array, hu=0):
    """The array with the filling that is connected to its slices' borders replaced."""
    from scipy import ndimage

    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(array == -1024, in_plane)
    outside = np.zeros(count + 1, dtype=bool)
    for border in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        outside[border] = True
    outside[0] = False
    return np.where(outside[labels], hu, array)


@pytest.mark.parametrize("case", CASES)
def test_against_expert_lungs(case, read):
    array, geometry = read(f"covid19-ct-seg/coronacases_{case}_ct.nii.gz")
    expert = read(f"covid19-ct-seg/coronacases_{case}_lungs.nii.gz")[0] > 0
    lesion = read(f"covid19-ct-seg/coronacases_{case}_lesion.nii.gz")[0] > 0
    if case in CROPPED_WITHIN_THE_LUNGS:
        array = filled_outside(array)
    found = find_lungs(Volume(array.astype(np.int16), geometry))
    assert overlap(found > 0, expert) >= 0.97
    assert np.count_nonzero(lesion & (found == 0)) <= 0.12 * np.count_nonzero(lesion)
    # what the bundled models' limit to the lungs leaves of the experts' lesions
    card = read_card(resource("Models/coplenet-ctseg.safetensors"))
    limit = PostProcessing(keep_inside_lungs_mm=card.keep_inside_lungs_mm)
    assert limit.keep_inside_lungs_mm
    kept = apply_postprocessing(lesion, geometry.spacing_zyx, limit, found > 0)
    assert np.count_nonzero(kept) >= 0.99 * np.count_nonzero(lesion)
    right, left = np.count_nonzero(found == 1), np.count_nonzero(found == 2)
    assert 0.55 < left / right < 1.1
    # side by side: hardly a voxel of the right lung lies left of the left lung's center
    columns = np.arange(array.shape[2])
    center = [np.average(columns, weights=(found == side).sum(axis=(0, 1))) for side in (1, 2)]
    assert center[0] < center[1]


def read_series(folder):
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    return sitk.GetArrayFromImage(image), Geometry.from_sitk(image)


def volumes_ml(found, geometry):
    return [np.count_nonzero(found == side) * geometry.voxel_ml for side in (1, 2)]


def test_a_whole_dicom_study(shared):
    array, geometry = read_series(shared("data/covid-ct-md/dicom/covid_P001"))
    found = find_lungs(Volume(array.astype(np.int16), geometry))
    right, left = volumes_ml(found, geometry)
    assert 3000 < right < 3250
    assert 2900 < left < 3150
    # seen in the pictures: the trachea, foam and air under the back, gas in stomach and bowel, apex and sinus
    assert not found[120, 215:230, 225:240].any()
    assert not found[:, 405:].any()
    assert not found[20:30, 100:140, 235:355].any()
    assert not found[20:26, 145:190, 405:440].any()
    occupied = np.flatnonzero(found.any(axis=(1, 2)))
    assert occupied[0] <= 1
    assert 136 <= occupied[-1] <= 142


def test_a_whole_normal_chest(read):
    array, geometry = read("covid-ct-md/normal001_ct.nii.gz")
    found = find_lungs(Volume(array.astype(np.int16), geometry))
    right, left = volumes_ml(found, geometry)
    assert 1800 < right < 1970
    assert 1550 < left < 1700
    occupied = np.flatnonzero(found.any(axis=(1, 2)))
    assert occupied[0] <= 6
    assert 134 <= occupied[-1] <= 140
