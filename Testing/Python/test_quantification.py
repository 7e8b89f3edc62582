"""Measurements without a reference: held to counts made by hand, on any orientation, with masks missing or odd."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from COVIDLesionSegLib.errors import GridMismatchError, InputError
from COVIDLesionSegLib.imaging import Geometry, LabelVolume, Volume
from COVIDLesionSegLib.measurement import components, severity, zones
from COVIDLesionSegLib.measurement.catalog import catalog, definition
from COVIDLesionSegLib.measurement.components import component_at, find_components
from COVIDLesionSegLib.measurement.quantification import quantify
from COVIDLesionSegLib.resources import load_json

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


def test_counts_made_by_hand_agree(chest_of_boxes):
    volume, lesion, lungs, lobes = chest_of_boxes
    measured = quantify(volume, lesion, lungs, lobes)
    right, left = 30 * 40 * 50, 24 * 40 * 50
    expected = {
        "lesion_volume": 1250 * VOXEL_ML,
        "lung_volume": (right + left) * VOXEL_ML,
        "lesion_free_lung_volume": (right + left - 1250) * VOXEL_ML,
        "involvement": 100 * 1250 / (right + left),
        "lesion_to_lesion_free_lung": 100 * 1250 / (right + left - 1250),
        "lesion_outside_lungs": 0.0,
        "mean_hu": (800 * -600 + 50 * -500) / 1250,
        "sd_hu": np.std([-600] * 800 + [0] * 400 + [-500] * 50),
        "ground_glass_volume": 850 * VOXEL_ML,
        "consolidation_volume": 400 * VOXEL_ML,
        "ground_glass_share": 68.0,
        "consolidation_share": 32.0,
        "lesion_count": 2,
        "lesion_volume.right_lung": 1200 * VOXEL_ML,
        "involvement.right_lung": 100 * 1200 / right,
        "involvement.left_lung": 100 * 50 / left,
        "consolidation_volume.left_lung": 0.0,
        "mean_hu.left_lung": -500.0,
        # thirds of slices 1..30: 1..10 lower; the lesion's slices 2..7 lie in it
        "lung_volume.right_lower_zone": 10 * 2000 * VOXEL_ML,
        "involvement.right_lower_zone": 100 * 1200 / 20000,
        "lesion_volume.right_middle_zone": 0.0,
        "lung_volume.left_middle_zone": 8 * 2000 * VOXEL_ML,
        "lesion_volume.left_middle_zone": 50 * VOXEL_ML,
        "zone_score.right_lower_zone": 1,
        "zone_score.right_upper_zone": 0,
        "severity_by_zones": 2,
        "lung_volume.right_upper_lobe": 10 * 2000 * VOXEL_ML,
        "involvement.right_lower_lobe": 100 * 1200 / 20000,
        "lobe_score.right_lower_lobe": 2,
        "lobe_score.left_lower_lobe": 1,
        "severity_by_lobes": 3,
    }
    assert {key: value(measured, key) for key in expected} == pytest.approx(expected)


def test_lesions_are_listed_by_size_with_their_places(chest_of_boxes):
    volume, lesion, lungs, lobes = chest_of_boxes
    first, second = value(quantify(volume, lesion, lungs, lobes), "lesions")
    assert first["volume_ml"] == pytest.approx(1200 * VOXEL_ML)
    assert first["share_percent"] == pytest.approx(96.0)
    assert first["centroid_lps_mm"] == pytest.approx([-70 + 29.5, -30 + 24.5, 100 + 2 * 4.5])
    assert first["mean_hu"] == pytest.approx(-400.0)
    assert first["place"] == "right lung, lower zone (right lower lobe)"
    assert second["place"] == "left lung, middle zone (left lower lobe)"
    assert (first["region"], second["lobe"]) == ("right_lower_zone", "left_lower_lobe")


ORIENTATIONS = [
    (1, 0, 0, 0, 1, 0, 0, 0, 1),
    (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    (1, 0, 0, 0, 1, 0, 0, 0, -1),
    (0, 0, 1, 1, 0, 0, 0, -1, 0),
    (0, 1, 0, 0, 0, -1, -1, 0, 0),
]


@pytest.mark.parametrize("direction", ORIENTATIONS)
def test_orientation_changes_no_number(chest_of_boxes, direction):
    volume, lesion, lungs, lobes = chest_of_boxes
    expected = quantify(volume, lesion, lungs, lobes)
    # the same chest as another scanner would store it
    matrix = np.array(direction, float).reshape(3, 3)
    axes = np.abs(matrix).argmax(axis=0)  # LPS axis of each index axis
    size = [volume.geometry.size[a] for a in axes]
    spacing = [volume.geometry.spacing[a] for a in axes]
    corner = [
        (volume.geometry.size[a] - 1) * volume.geometry.spacing[a] * (matrix[a, np.flatnonzero(axes == a)[0]] < 0)
        for a in range(3)
    ]
    geometry = Geometry(size, spacing, tuple(np.add(volume.geometry.origin, corner)), direction)
    view = geometry.axial_view()
    turned = Volume(np.ascontiguousarray(view.restore(volume.array)), geometry)
    measured = quantify(turned, *(view.restore(a) for a in (lesion, lungs, lobes)))
    for key, entry in expected.items():
        assert measured[key]["status"] == entry["status"]
        if key != "lesions":
            assert measured[key]["value"] == pytest.approx(entry["value"])
    for one, other in zip(value(measured, "lesions"), value(expected, "lesions"), strict=True):
        assert one["centroid_lps_mm"] == pytest.approx(other["centroid_lps_mm"])
        assert one["place"] == other["place"]


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


def test_no_lesion_is_zero_volume_but_no_mean(chest_of_boxes):
    volume, lesion, lungs, lobes = chest_of_boxes
    measured = quantify(volume, np.zeros_like(lesion), lungs, lobes)
    for key in ("lesion_volume", "involvement", "ground_glass_volume", "severity_by_zones", "severity_by_lobes"):
        assert value(measured, key) == 0
    assert value(measured, "lesions") == []
    for key in ("mean_hu", "sd_hu", "consolidation_share", "mean_hu.left_lung"):
        assert (measured[key]["value"], measured[key]["status"]) == (None, "lesion_empty")


def test_one_voxel_at_the_corner_is_measured(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    one = np.zeros_like(lesion)
    one[-1, -1, -1] = True
    measured = quantify(volume, one, lungs)
    assert value(measured, "lesion_volume") == pytest.approx(VOXEL_ML)
    assert value(measured, "lesions")[0]["place"] == "outside the lungs"
    assert value(measured, "sd_hu") == 0.0
    outside = measured["lesion_outside_lungs"]
    assert (outside["value"], outside["status"]) == (pytest.approx(VOXEL_ML), "lesion_outside_lungs")


def test_lesion_outside_the_lungs_is_counted_apart(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    lesion[12, 20:25, 62:72] = True  # 50 voxels in the mediastinum: 4 % of the lesion
    measured = quantify(volume, lesion, lungs)
    assert value(measured, "lesion_outside_lungs") == pytest.approx(50 * VOXEL_ML)
    assert value(measured, "lesion_volume") == pytest.approx(1300 * VOXEL_ML)
    assert value(measured, "involvement") == pytest.approx(100 * 1250 / 108000)
    lesion[13:15, 20:25, 62:72] = True  # 11 %
    measured = quantify(volume, lesion, lungs)
    assert measured["involvement"]["status"] == "lesion_outside_lungs"
    assert measured["lesion_outside_lungs"]["status"] == "lesion_outside_lungs"


def test_lung_that_is_all_lesion_has_no_free_lung_to_relate_to(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    lesion[LEFT] = True
    measured = quantify(volume, lesion, lungs)
    assert value(measured, "involvement.left_lung") == 100.0
    ratio = measured["lesion_to_lesion_free_lung.left_lung"]
    assert (ratio["value"], ratio["status"]) == (None, "no_lesion_free_lung")


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
    assert value(measured, "involvement.left_lung") == pytest.approx(100 * 50 / 48000)
    assert measured["severity_by_zones"]["value"] is None


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
    measured = quantify(volume, lesion & (lungs == 1), lungs == 1)
    assert value(measured, "involvement") == pytest.approx(2.0)
    assert (measured["involvement.right_lung"]["value"], measured["involvement.right_lung"]["status"]) == (
        None,
        "sides_unknown",
    )
    assert measured["severity_by_zones"]["value"] is None
    assert value(measured, "lesions")[0]["place"] == ""


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
    with pytest.raises(InputError, match=r"between 0 and 0\.7, not just 0 and 1"):
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


def test_threshold_of_consolidation_is_a_choice_that_the_definition_names(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    measured = quantify(volume, lesion, lungs, consolidation_from=-550)
    assert value(measured, "consolidation_volume") == pytest.approx(450 * VOXEL_ML)
    assert "-550 HU" in measured["consolidation_volume"]["definition"]
    assert "-300 HU" in quantify(volume, lesion)["consolidation_volume"]["definition"]


def test_inputs_stay_as_they_are(chest_of_boxes):
    before = [a.copy() for a in (chest_of_boxes[0].array, *chest_of_boxes[1:])]
    quantify(*chest_of_boxes)
    for one, other in zip(before, (chest_of_boxes[0].array, *chest_of_boxes[1:]), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("scale", "table"),
    [
        ("zones", {None: None, 0: 0, 0.01: 1, 24.99: 1, 25: 2, 49.9: 2, 50: 3, 74.9: 3, 75: 4, 100: 4}),
        ("lobes", {None: None, 0: 0, 4.99: 1, 5: 2, 25: 2, 25.1: 3, 49.9: 3, 50: 4, 75: 4, 75.1: 5, 100: 5}),
    ],
)
def test_scores_step_where_the_cited_papers_say(scale, table):
    assert {percent: severity.score(percent, scale) for percent in table} == table


def test_thirds_share_a_height_that_three_does_not_divide():
    counts = np.array([0, 5, 5, 5, 5, 5, 5, 5, 5, 0])
    assert zones.levels(counts).tolist() == [-1, 0, 0, 0, 1, 1, 1, 2, 2, -1]


@pytest.mark.parametrize("seed", range(8))
def test_components_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 14, 3))
    mask = rng.random(shape) < rng.choice([0.03, 0.1, 0.3, 0.8])
    found = find_components(mask)
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert found.count == count
    assert sorted(found.sizes) == sorted(np.bincount(labels.ravel())[1:])
    assert list(found.sizes) == sorted(found.sizes, reverse=True)
    pairs = {(int(a), int(b)) for a, b in zip(labels[mask], found.voxel_labels, strict=True)}
    assert len(pairs) == count
    image = found.image(mask)
    assert np.array_equal(image != 0, mask)
    for label, center in enumerate(found.centroids(), 1):
        assert center == pytest.approx(ndimage.center_of_mass(image == label))


@pytest.mark.parametrize("name", ["checkerboard", "spiral", "star"])
def test_components_that_are_hard_to_join_are_those_of_scipy(name):
    mask = np.zeros((5, 61, 61), bool)
    if name == "checkerboard":
        mask[np.indices(mask.shape).sum(axis=0) % 2 == 0] = True
    elif name == "spiral":
        low, high = 0, 60
        while high - low > 2:
            mask[2, low, low : high + 1] = mask[2, low : high + 1, high] = mask[2, high, low + 2 : high + 1] = True
            mask[2, low + 2 : high + 1, low + 2] = True
            low, high = low + 2, high - 2
    else:
        # rows that only the last slice joins
        mask[:4, ::2, ::3] = mask[4] = True
    found = find_components(mask)
    assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1
    assert found.sizes.tolist() == [mask.sum()]


@pytest.mark.parametrize("voxels", [1, 250, 1000])
def test_components_are_the_same_however_many_slices_are_looked_through_at_once(monkeypatch, voxels):
    mask = np.random.default_rng(3).random((11, 9, 10)) < 0.15
    expected = find_components(mask).image(mask)
    monkeypatch.setattr(components, "_SLAB", voxels)
    assert np.array_equal(find_components(mask).image(mask), expected)


def test_the_component_at_a_place_may_be_curved_around_it():
    mask = np.zeros((3, 12, 12), bool)
    ring, blob = np.s_[1, 1:8, 1:8], np.s_[1, 10:12, 10:12]
    mask[ring] = True
    mask[1, 3:6, 3:6] = False
    around = mask.copy()
    mask[blob] = True
    assert np.array_equal(component_at(mask, (1, 4, 4), (5.0, 0.8, 0.8)), around)
    assert np.array_equal(component_at(mask, (2.4, 9, 9.5), (5.0, 0.8, 0.8)), mask & ~around)
    assert not component_at(np.zeros_like(mask), (1, 4, 4), (5.0, 0.8, 0.8)).any()


@given(st.integers(0, 10**6), st.tuples(*[st.floats(0.3, 8.0)] * 3))
@settings(max_examples=25, deadline=None)
def test_parts_add_up_to_the_whole(seed, spacing):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(2, 12, 3))
    hu = rng.integers(-1000, 100, shape).astype(np.int16)
    lungs = rng.integers(0, 3, shape).astype(np.uint8)
    lungs[0, 0, 0], lungs[0, 0, 1] = 1, 2
    lobes = np.where(lungs == 1, rng.integers(3, 6, shape), np.where(lungs == 2, rng.integers(1, 3, shape), 0))
    lobes[1, 1, 0], lungs[1, 1, 0] = 3, 1
    lobes[1, 0, 0], lungs[1, 0, 0] = 4, 1
    lesion = rng.random(shape) < 0.3
    measured = quantify(Volume(hu, Geometry(shape[::-1], spacing)), lesion, lungs, lobes)
    got = {key: entry["value"] for key, entry in measured.items()}
    for name in ("lesion_volume", "lung_volume"):
        whole = got[name] - (got["lesion_outside_lungs"] if name == "lesion_volume" else 0)
        for regions in (zones.LUNG_REGIONS, zones.ZONE_REGIONS, zones.LOBE_REGIONS):
            parts = [got[f"{name}.{region}"] or 0 for region in regions]
            assert sum(parts) == pytest.approx(whole)
    assert got["ground_glass_volume"] + got["consolidation_volume"] == pytest.approx(got["lesion_volume"])
    assert sum(one["volume_ml"] for one in got["lesions"]) == pytest.approx(got["lesion_volume"])
    assert len(got["lesions"]) == got["lesion_count"]
    for key, entry in measured.items():
        if entry["unit"] == "%" and entry["value"] is not None and not key.startswith("lesion_to"):
            assert 0 <= entry["value"] <= 100
        assert (entry["value"] is None) <= (entry["status"] != "ok")


def test_quantities_agree_with_the_synthetic_chest():
    phantom = pytest.importorskip("COVIDLesionSegLib.imaging.phantom").synthetic_chest()
    truth = phantom.truth
    measured = quantify(phantom.volume, phantom.lesion, phantom.lungs, phantom.lobes)
    assert value(measured, "lesion_volume") == pytest.approx(truth["lesion"])
    assert value(measured, "lung_volume") == pytest.approx(truth["lungs"])
    assert set(truth["regions"]) == {*zones.LUNG_REGIONS, *zones.ZONE_REGIONS, *zones.LOBE_REGIONS}
    for region, volumes in truth["regions"].items():
        assert value(measured, f"lung_volume.{region}") == pytest.approx(volumes["region"])
        assert value(measured, f"lesion_volume.{region}") == pytest.approx(volumes["lesion"])
        assert value(measured, f"involvement.{region}") == pytest.approx(100 * volumes["lesion"] / volumes["region"])
    # by HU, noise, septa and vessels move a few voxels over the limit
    assert value(measured, "consolidation_volume") == pytest.approx(truth["consolidation"], rel=0.15)
    assert value(measured, "lesion_outside_lungs") == 0


def test_every_quantity_has_unit_definition_and_a_code_that_exists(chest_of_boxes):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.sr._concepts_dict import concepts

    assert pydicom
    known = {(scheme, code) for scheme, names in concepts.items() for codes in names.values() for code in codes}
    data = catalog()
    codes = [quantity["code"] for quantity in data["quantities"].values()]
    codes += [quantity["finding"] for quantity in data["quantities"].values() if "finding" in quantity]
    codes += [region[key] for region in data["regions"].values() for key in ("code", "laterality") if key in region]
    codes += [unit["code"] for unit in data["units"].values()]
    for code in codes:
        own = code["scheme"] == "99COVIDLESIONSEG"
        assert own or (code["scheme"], code["value"]) in known, code
        # lengths that DICOM allows for a code value and a scheme designator
        assert len(code["value"]) <= 16
        assert len(code["scheme"]) <= 16
        assert len(code["meaning"]) <= 64
    measured = quantify(*chest_of_boxes)
    for entry in measured.values():
        assert set(entry) == {"name", "region", "value", "unit", "status", "title", "definition", "code"}
        assert entry["unit"] in data["units"]
        assert entry["definition"] and "{" not in entry["definition"]
        assert entry["status"] in data["statuses"]


def test_catalog_keeps_its_schema():
    jsonschema = pytest.importorskip("jsonschema")
    data = load_json("Quantities.json")
    jsonschema.validate(data, load_json("Quantities.schema.json"))
    cited = {name for quantity in data["quantities"].values() for name in quantity.get("citations", [])}
    assert cited <= data["citations"].keys()
    page = (REPOSITORY / "docs" / "quantities.md").read_text(encoding="utf-8")
    for name in data["quantities"]:
        assert f"`{name}`" in page
        assert definition(name) in page
    for citation in data["citations"].values():
        assert citation["doi"] in page
    for status, meaning in data["statuses"].items():
        assert f"| `{status}` | {meaning} |" in page


def test_measurements_are_plain_json(chest_of_boxes):
    measured = quantify(*chest_of_boxes)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
