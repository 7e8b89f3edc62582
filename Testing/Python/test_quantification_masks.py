"""Measurements with masks that are missing, odd, cut, of one label, or of other tools."""

from __future__ import annotations

import numpy as np
import pytest
from box_chest import VOXEL_ML, value

from COVIDLesionSegLib.errors import GridMismatchError, InputError, LungsNotFoundError
from COVIDLesionSegLib.imaging import Geometry, LabelVolume, LocatedLungs, LungQuality, Volume
from COVIDLesionSegLib.measurement.quantification import quantify
from COVIDLesionSegLib.measurement.zones import lobe_values


def test_without_lungs_what_needs_them_is_none_and_says_why(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    for mask, status in ((None, "lungs_missing"), (np.zeros_like(lungs), "lungs_empty")):
        measured = quantify(volume, lesion, mask)
        assert value(measured, "lesion_volume") == pytest.approx(2.5)
        assert value(measured, "mean_hu") == pytest.approx(-404.0)
        needs_lungs = [
            key for key in measured if "." in key or key.startswith(("lung", "invol", "lesion_to", "lesion_out"))
        ]
        assert len(needs_lungs) > 40
        assert {(measured[key]["value"], measured[key]["status"]) for key in needs_lungs} == {(None, status)}
        assert measured["severity_by_zones"]["value"] is None
        assert measured["severity_by_lobes"]["status"] == "lobes_missing"
        assert value(measured, "lesions")[0]["place"] == ""


def test_image_that_ends_inside_the_lungs_is_remarked_on(chest_of_boxes):
    volume, lesion, lungs, lobes = chest_of_boxes
    cut = slice(4, 30)
    geometry = volume.geometry.cropped((cut, slice(None), slice(None)))
    measured = quantify(Volume(volume.array[cut], geometry), lesion[cut], lungs[cut], lobes[cut])
    assert measured["lung_volume.right_lung"]["status"] == "lungs_cut"
    assert measured["lung_volume.right_lung"]["value"] == pytest.approx(26 * 2000 * VOXEL_ML)
    assert measured["severity_by_zones"]["status"] == "lungs_cut"


def test_missing_lung_leaves_its_numbers_and_the_score_unknown(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    lungs[lungs == 1] = 0
    measured = quantify(volume, lesion & (lungs == 2), lungs)
    assert (measured["involvement.right_lung"]["value"], measured["involvement.right_lung"]["status"]) == (
        None,
        "region_empty",
    )
    left = measured["involvement.left_lung"]
    assert (left["value"], left["status"]) == (pytest.approx(100 * 50 / 48000), "lungs_doubtful")
    assert (measured["severity_by_zones"]["value"], measured["severity_by_zones"]["status"]) == (None, "lungs_doubtful")


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.float32])
def test_mask_with_one_label_is_divided_into_right_and_left(chest_of_boxes, kind):
    volume, lesion, lungs, _ = chest_of_boxes
    one_label = lungs > 0
    one_label[15:17, 28:32, 60:80] = True  # a bridge where the lungs touch
    measured = quantify(volume, lesion, one_label.astype(kind))
    assert value(measured, "involvement.left_lung") == pytest.approx(100 * 50 / 48000, rel=0.02)
    assert value(measured, "lesions")[0]["place"] == "right lung, lower zone"


def test_mask_that_cannot_be_divided_leaves_the_sides_unknown(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    both = LocatedLungs((lungs == 1).view(np.uint8), LungQuality("ok", "given"))
    measured = quantify(volume, lesion & (lungs == 1), both)
    assert value(measured, "involvement") == pytest.approx(2.0)
    assert (measured["involvement.right_lung"]["value"], measured["involvement.right_lung"]["status"]) == (
        None,
        "sides_unknown",
    )
    assert measured["severity_by_zones"]["value"] is None
    assert value(measured, "lesions")[0]["place"] == ""


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((2, 1), {1: "left lung", 2: "right lung"}),
        ((2, 1), {}),
        ((1, 2), {1: "left lung", 2: "right lung"}),
        ((7, 3), {3: "lung_upper_lobe_left", 7: "lung_middle_lobe_right", 50: "liver"}),
    ],
    ids=["names", "position", "names against position", "among other organs"],
)
def test_sides_of_the_lungs_come_from_names_and_position(chest_of_boxes, labels, names):
    volume, lesion, lungs, _ = chest_of_boxes
    given = np.array([0, *labels], np.uint8)[lungs]
    if 50 in names:
        given[:, -5:, :5] = 50
    assert quantify(volume, lesion, LabelVolume(given, volume.geometry, names)) == quantify(volume, lesion, lungs)


def test_one_named_lung_is_known_by_its_name(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    given = LabelVolume(2 * (lungs == 1).astype(np.uint8), volume.geometry, {1: "left lung", 2: "right lung"})
    measured = quantify(volume, lesion, given)
    right = measured["involvement.right_lung"]
    assert (right["value"], right["status"]) == (pytest.approx(2.0), "lungs_doubtful")
    assert measured["involvement.left_lung"]["status"] == "region_empty"
    with pytest.raises(LungsNotFoundError, match="holds the labels 2, but none of them is named a lung"):
        quantify(volume, lesion, LabelVolume(given.array, volume.geometry, {3: "left lung"}))


def test_lobes_serve_as_lungs_where_none_are_given(chest_of_boxes):
    volume, lesion, lungs, lobes = chest_of_boxes
    with_lungs, without = quantify(volume, lesion, lungs, lobes), quantify(volume, lesion, lobes=lobes)
    assert without == with_lungs


@pytest.mark.parametrize(
    ("labels", "names", "choice"),
    [
        ({1: 10, 2: 11, 3: 12, 4: 13, 5: 14}, {}, None),
        ({1: 10, 2: 11, 3: 12, 4: 13, 5: 14}, {}, "totalsegmentator"),
        ({1: 13, 2: 14, 3: 15, 4: 16, 5: 17}, {}, None),
        (
            {1: 7, 2: 9, 3: 21, 4: 22, 5: 23},
            {
                7: "lung_upper_lobe_left",
                9: "lung_lower_lobe_left",
                21: "lung_upper_lobe_right",
                22: "lung_middle_lobe_right",
                23: "lung_lower_lobe_right",
                50: "liver",
            },
            None,
        ),
        (
            {1: 50, 2: 40, 3: 30, 4: 20, 5: 10},
            {},
            {
                50: "left_upper_lobe",
                40: "left_lower_lobe",
                30: "right_upper_lobe",
                20: "right_middle_lobe",
                10: "right_lower_lobe",
            },
        ),
    ],
)
def test_lobe_maps_of_other_tools_are_understood(chest_of_boxes, labels, names, choice):
    volume, lesion, lungs, lobes = chest_of_boxes
    table = np.array([0, *(labels[v] for v in range(1, 6))], np.uint8)
    lobe_labels = LabelVolume(table[lobes], volume.geometry, names)
    measured = quantify(volume, lesion, lungs, lobe_labels, lobe_map=choice)
    assert value(measured, "severity_by_lobes") == 3
    assert value(measured, "involvement.right_lower_lobe") == pytest.approx(6.0)


def test_whole_totalsegmentator_map_is_known_by_its_many_labels(chest_of_boxes):
    volume, lesion, lungs, lobes = chest_of_boxes
    table = np.array([0, 10, 11, 12, 13, 14], np.uint8)
    everything = table[lobes]
    everything[:, :5, :5], everything[:, -5:, :5] = 5, 90
    assert value(quantify(volume, lesion, lungs, everything), "severity_by_lobes") == 3


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (range(1, 118), "totalsegmentator"),
        ([*range(10, 18), 110], "totalsegmentator"),
        ([5, *range(10, 15), 90], "totalsegmentator"),
        ([5, *range(13, 18), 104], "totalsegmentator1"),
    ],
)
def test_version_of_a_totalsegmentator_map_comes_from_its_other_labels(present, expected):
    present = np.array(present)
    assert lobe_values(present, {}) == lobe_values(present, {}, expected)


@pytest.mark.parametrize("present", [range(1, 105), range(10, 18), [5, *range(12, 18)]])
def test_totalsegmentator_map_that_can_be_of_both_versions_is_refused(present):
    with pytest.raises(InputError, match=r"fit more than one known label map \(lungmask, .*\)\. Say which one it is"):
        lobe_values(np.array(present), {})


def test_lobe_that_is_missing_leaves_the_sum_unknown(chest_of_boxes):
    volume, lesion, lungs, lobes = chest_of_boxes
    lobes[lobes == 4] = 0
    measured = quantify(volume, lesion, lungs, lobes)
    assert measured["lobe_score.right_middle_lobe"]["status"] == "region_empty"
    assert (measured["severity_by_lobes"]["value"], measured["severity_by_lobes"]["status"]) == (None, "region_empty")


def test_masks_that_are_no_masks_are_refused(chest_of_boxes):
    volume, lesion, lungs, lobes = chest_of_boxes
    with pytest.raises(GridMismatchError, match="lesion mask has the shape"):
        quantify(volume, lesion[1:], lungs)
    with pytest.raises(InputError, match=r"from 0 to 0\.7; only 0 and 1 are allowed.*probability map"):
        quantify(volume, lesion * 0.7, lungs)
    with pytest.raises(InputError, match="labels other than 1"):
        quantify(volume, lesion, lobes)
    with pytest.raises(InputError, match="fit no known label map"):
        quantify(volume, lesion, lungs, lobes + np.uint8(100))
    with pytest.raises(InputError, match="labels 1, 2, which fit no known label map"):
        quantify(volume, lesion, lungs, lungs)
    with pytest.raises(InputError, match="'ct2' is not known; known are lungmask"):
        quantify(volume, lesion, lungs, lobes, lobe_map="ct2")
    with pytest.raises(InputError, match="not whole numbers"):
        quantify(volume, lesion, lungs * 0.5)
    moved = Geometry(volume.geometry.size, volume.geometry.spacing, (-70.0, -30.0, 105.0))
    with pytest.raises(GridMismatchError, match="lung mask is not on the grid of the CT: origin 5 mm apart"):
        quantify(volume, lesion, LabelVolume(lungs, moved))
