"""Measurements without a reference: held to counts made by hand, on any orientation."""

from __future__ import annotations

import numpy as np
import pytest
from box_chest import LEFT, VOXEL_ML, value
from hypothesis import given, settings
from hypothesis import strategies as st

from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.measurement import zones
from COVIDLesionSegLib.measurement.quantification import quantify, severity_score


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


def test_threshold_of_consolidation_is_a_choice_that_the_definition_names(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    measured = quantify(volume, lesion, lungs, consolidation_from=-550)
    assert value(measured, "consolidation_volume") == pytest.approx(450 * VOXEL_ML)
    # a voxel at the threshold is consolidation
    assert value(quantify(volume, lesion, consolidation_from=-500), "consolidation_volume") == pytest.approx(
        450 * VOXEL_ML
    )
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
    assert {percent: severity_score(percent, 10.0, scale) for percent in table} == table


def test_thirds_share_a_height_that_three_does_not_divide():
    counts = np.array([0, 5, 5, 5, 5, 5, 5, 5, 5, 0])
    assert zones.levels(counts).tolist() == [-1, 0, 0, 0, 1, 1, 1, 2, 2, -1]


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
    phantom = pytest.importorskip("COVIDLesionSegLib.phantom.synthetic").synthetic_chest()
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
