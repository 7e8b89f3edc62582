"""Post-processing of masks: components by milliliters, distance to the lungs, settings as data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from COVIDLesionSegLib.errors import GridMismatchError, InputError
from COVIDLesionSegLib.inference import PostProcessing, apply_postprocessing
from COVIDLesionSegLib.inference.postprocess import smooth_across_slices
from COVIDLesionSegLib.models import ModelCard

SPACING = (5.0, 0.8, 0.5)
VOXEL_ML = 5.0 * 0.8 * 0.5 / 1000


@pytest.fixture
def a_mask_with_three_lesions():
    mask = np.zeros((8, 20, 20), dtype=bool)
    mask[1:3, 2:6, 2:6] = True  # 32 voxels
    mask[5, 10:12, 10:12] = True  # 4 voxels ...
    mask[6, 12, 12] = True  # ... and a fifth that touches them by a corner
    mask[7, 19, 0] = True  # 1 voxel, in the volume's corner
    return mask


def test_by_default_the_mask_is_left_alone(a_mask_with_three_lesions):
    assert apply_postprocessing(a_mask_with_three_lesions, SPACING, PostProcessing()) is a_mask_with_three_lesions


@pytest.mark.parametrize(("voxels", "kept"), [(0.5, 38), (1, 38), (1.5, 37), (5, 37), (5.5, 32), (32, 32), (33, 0)])
def test_components_below_a_volume_are_dropped(a_mask_with_three_lesions, voxels, kept):
    settings = PostProcessing(minimum_volume_ml=voxels * VOXEL_ML)
    before = a_mask_with_three_lesions.copy()
    result = apply_postprocessing(a_mask_with_three_lesions, SPACING, settings)
    assert result.dtype == bool
    assert result.sum() == kept
    assert not (result & ~before).any()
    np.testing.assert_array_equal(a_mask_with_three_lesions, before)


def test_an_empty_mask_stays_empty():
    empty = np.zeros((3, 4, 5), dtype=bool)
    lungs = np.ones_like(empty)
    settings = PostProcessing(minimum_volume_ml=1, keep_inside_lungs_mm=3)
    assert not apply_postprocessing(empty, SPACING, settings, lungs).any()


@pytest.mark.parametrize("distance", [0, 0.5, 0.8, 1.0, 4.9, 5.0, 12.5])
def test_lesion_far_from_lesion_in_the_lungs_is_dropped_as_a_distance_map_says(distance):
    from scipy.ndimage import distance_transform_edt

    rng = np.random.default_rng(3)
    mask = rng.random((9, 30, 40)) < 0.3
    lungs = np.zeros(mask.shape, dtype=np.uint8)
    lungs[3:5, 8:20, 10:16] = 1
    lungs[4:6, 9:15, 26:30] = 2
    inside = mask & (lungs > 0)
    expected = mask & (distance_transform_edt(~inside, sampling=SPACING) <= distance + 1e-6)
    # lungs without lesion keep nothing beside them
    assert (expected != mask & (distance_transform_edt(lungs == 0, sampling=SPACING) <= distance + 1e-6)).any() == (
        distance > 0
    )
    expected |= inside
    result = apply_postprocessing(mask, SPACING, PostProcessing(keep_inside_lungs_mm=distance), lungs)
    np.testing.assert_array_equal(result, expected)


def test_a_mark_beside_the_lungs_alone_is_dropped_and_lesion_that_reaches_out_of_them_is_not():
    lungs = np.zeros((3, 30, 40), dtype=bool)
    lungs[:, 5:15, 5:35] = True
    mask = np.zeros_like(lungs)
    mask[:, 12:18, 6:12] = True  # consolidation at the border that the finder has drawn too tightly
    mask[:, 16:20, 25:32] = True  # stomach, as near to the lungs
    kept = apply_postprocessing(mask, SPACING, PostProcessing(keep_inside_lungs_mm=5), lungs)
    assert kept[:, 12:18, 6:12].all()
    assert not kept[:, 16:20, 25:32].any()


def test_no_lung_near_any_lesion_leaves_nothing():
    mask = np.zeros((3, 30, 30), dtype=bool)
    lungs = mask.copy()
    mask[0, 0, 0] = lungs[2, 29, 29] = True
    assert not apply_postprocessing(mask, SPACING, PostProcessing(keep_inside_lungs_mm=2), lungs).any()


def test_what_the_lungs_cut_off_is_measured_anew():
    mask = np.zeros((1, 3, 10), dtype=bool)
    mask[0, 1, 2:9] = True
    lungs = np.zeros_like(mask)
    lungs[0, 1, :4] = True
    both = PostProcessing(minimum_volume_ml=3 * VOXEL_ML, keep_inside_lungs_mm=0)
    assert not apply_postprocessing(mask, SPACING, both, lungs).any()


def test_without_lungs_a_distance_to_them_is_refused():
    mask = np.zeros((2, 3, 4), dtype=bool)
    with pytest.raises(InputError, match="lung mask is needed"):
        apply_postprocessing(mask, SPACING, PostProcessing(keep_inside_lungs_mm=1))
    with pytest.raises(GridMismatchError, match="shape"):
        apply_postprocessing(mask, SPACING, PostProcessing(keep_inside_lungs_mm=1), np.ones((2, 3, 5), dtype=bool))


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0},
        {"threshold": 1.0},
        {"threshold": float("nan")},
        {"threshold": "high"},
        {"threshold": True},
        {"minimum_volume_ml": -0.1},
        {"minimum_volume_ml": float("inf")},
        {"minimum_volume_ml": None},
        {"keep_inside_lungs_mm": -1},
        {"keep_inside_lungs_mm": float("nan")},
        {"smooth_across_slices_mm": -0.5},
        {"smooth_across_slices_mm": 20.5},
        {"smooth_across_slices_mm": float("nan")},
        {"smooth_across_slices_mm": True},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match=r"must be"):
        PostProcessing(**wrong)


def test_what_is_left_open_is_the_card_s():
    card = ModelCard("m", "M", "coplenet", threshold=0.4, keep_inside_lungs_mm=5.0, smooth_across_slices_mm=2.0)
    assert PostProcessing(minimum_volume_ml=1).completed(card) == PostProcessing(0.4, 1, 5.0, 2.0)
    own = PostProcessing(0.7, 0, 1000, 0)
    assert own.completed(card) == own


@pytest.mark.parametrize("spacing", [0.8, 1.0, 2.5])
def test_a_point_becomes_a_gaussian_along_z_alone(spacing):
    probability = np.zeros((41, 5, 6), dtype=np.float32)
    probability[20, 2, 3] = 1
    smooth_across_slices(probability, spacing, 2.0)
    z = (np.arange(41) - 20) * spacing
    expected = np.exp(-(z**2) / 8) * (np.abs(z) <= 8 + spacing / 2)
    np.testing.assert_allclose(probability[:, 2, 3], expected / expected.sum(), atol=2e-4)
    probability[:, 2, 3] = 0
    assert not probability.any()


def test_smoothing_obeys_any_strides_and_keeps_what_does_not_change_across_slices():
    rng = np.random.default_rng(1)
    turned = rng.random((6, 4, 9), dtype=np.float32)
    expected = np.ascontiguousarray(turned.transpose(2, 0, 1)[::-1])
    smooth_across_slices(expected, 1.0, 1.5)
    smooth_across_slices(turned.transpose(2, 0, 1)[::-1], 1.0, 1.5)
    np.testing.assert_array_equal(turned.transpose(2, 0, 1)[::-1], expected)
    for same in (rng.random((1, 5, 5), dtype=np.float32), np.full((7, 3, 3), 0.3, dtype=np.float32)):
        before = same.copy()
        smooth_across_slices(same, 1.0, 3.0)
        np.testing.assert_allclose(same, before, atol=1e-7)
        assert same.max() <= 1


def test_settings_travel_as_json():
    settings = PostProcessing(threshold=0.4, minimum_volume_ml=0.1, keep_inside_lungs_mm=5, smooth_across_slices_mm=1.5)
    assert PostProcessing.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert PostProcessing.from_json({}) == PostProcessing()
    with pytest.raises(InputError, match="fill_holes"):
        PostProcessing.from_json({"fill_holes": True})
    with pytest.raises(InputError, match="object"):
        PostProcessing.from_json([1])
