"""The lung finder on real CTs, against the experts' masks."""

from __future__ import annotations

import numpy as np
import pytest
from lung_chests import overlap

from COVIDLesionSegLib.imaging import Geometry, Volume, find_lungs, read_labels, read_volume
from COVIDLesionSegLib.inference import PostProcessing, apply_postprocessing
from COVIDLesionSegLib.models import read_card
from COVIDLesionSegLib.resources import resource

# whole CTs, one of them the hardest to the finder, one the hardest to the limit; the others take as long again each
CASES = [
    "002",
    "009",
    *(pytest.param(case, marks=pytest.mark.long) for case in ("001", "004", "005", "006", "007", "008")),
]


@pytest.mark.parametrize("number", CASES)
def test_against_expert_lungs(number, ct_seg):
    case = ct_seg(number)
    volume = read_volume(case.ct)
    lesion = read_labels(case.lesion).mask()
    found = find_lungs(volume)
    drawn = case.expert_slices
    assert overlap(found[drawn] > 0, read_labels(case.lungs).mask()[drawn]) >= 0.98
    assert np.count_nonzero(lesion & (found == 0)) <= 0.09 * np.count_nonzero(lesion)
    # what the bundled models' limit to the lungs leaves of the experts' lesions
    card = read_card(resource("Models/coplenet-ctseg.safetensors"))
    limit = PostProcessing(keep_inside_lungs_mm=card.keep_inside_lungs_mm)
    assert limit.keep_inside_lungs_mm
    kept = apply_postprocessing(lesion, volume.geometry.spacing_zyx, limit, found > 0)
    assert np.count_nonzero(kept) >= 0.995 * np.count_nonzero(lesion)
    right, left = volumes_ml(found, volume.geometry)
    assert 0.75 < left / right < 1.05
    assert_side_by_side(found)


@pytest.mark.parametrize("number", ["006", "011"])
def test_against_expert_lungs_of_chests_without_covid(number, shared):
    volume = read_volume(shared(f"data/lctsc/case_{number}_ct.nii.gz"))
    found = find_lungs(volume)
    assert overlap(found > 0, read_labels(shared(f"data/lctsc/case_{number}_lungs.nii.gz")).mask()) >= 0.975
    assert_side_by_side(found)


def assert_side_by_side(found):
    """The right lung's center lies to the right of the left one's, and no lung is a scrap."""
    columns = np.arange(found.shape[2])
    center = [np.average(columns, weights=(found == side).sum(axis=(0, 1))) for side in (1, 2)]
    assert center[0] < center[1]
    assert min(np.count_nonzero(found == side) for side in (1, 2)) > 0.3 * np.count_nonzero(found)


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


def test_a_whole_normal_chest(shared):
    volume = read_volume(shared("data/covid-ct-md/normal001_ct.nii.gz"))
    found = find_lungs(volume)
    right, left = volumes_ml(found, volume.geometry)
    assert 1800 < right < 1970
    assert 1550 < left < 1700
    occupied = np.flatnonzero(found.any(axis=(1, 2)))
    assert occupied[0] <= 6
    assert 134 <= occupied[-1] <= 140
