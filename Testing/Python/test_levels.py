"""The probability in levels: exact at its thresholds, limited as the result is, and what grows from a click."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from COVIDLesionSegLib.errors import GridMismatchError, InputError, ReadError
from COVIDLesionSegLib.inference import PostProcessing, apply_postprocessing
from COVIDLesionSegLib.inference.levels import MOST_SENSITIVE, ProbabilityLevels, levels_of
from COVIDLesionSegLib.measurement.lesions import component_around, component_at

SPACING = (2.5, 0.8, 0.7)
SHAPE = (12, 40, 50)


def made(probability, threshold=0.5):
    return ProbabilityLevels.of(levels_of(probability.astype(np.float32), threshold), threshold)


@pytest.fixture
def a_probability():
    """Blobs of all probabilities; float32."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(2).normal(size=SHAPE), (1, 3, 3))
    return (1 / (1 + np.exp(-60 * (field - 0.12)))).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.013, 0.97])
def test_at_its_own_threshold_it_is_the_network_s_mask(a_probability, threshold):
    # at the threshold itself a voxel is no lesion
    a_probability[3, 4, 5] = threshold
    levels = made(a_probability, threshold)
    assert np.array_equal(levels.result_at(0, SPACING), a_probability > np.float32(threshold))
    assert levels.threshold_at(0) == pytest.approx(threshold)


@pytest.mark.parametrize("sensitivity", [-MOST_SENSITIVE, -40, -1, 1, 35, MOST_SENSITIVE])
def test_at_each_other_threshold_it_is_what_lies_above_that(a_probability, sensitivity):
    levels = made(a_probability)
    expected = a_probability > np.float32(levels.threshold_at(sensitivity))
    assert np.array_equal(levels.result_at(sensitivity, SPACING), expected)


def test_sixteen_steps_change_the_odds_by_e_and_thresholds_find_their_sensitivity():
    levels = made(np.full((1, 2, 2), 0.5, np.float32))
    low = levels.threshold_at(16)
    assert low / (1 - low) == pytest.approx(1 / np.e)
    assert [levels.sensitivity_of(levels.threshold_at(step)) for step in (-90, 0, 35)] == [-90, 0, 35]
    assert levels.sensitivity_of(1e-9) == MOST_SENSITIVE


def test_only_the_box_of_what_is_known_is_kept():
    probability = np.zeros(SHAPE, np.float32)
    probability[4:6, 10:13, 20:30] = 0.8
    levels = made(probability)
    assert levels.box == (slice(4, 6), slice(10, 13), slice(20, 30)) and levels.levels.nbytes == 60
    around = levels.inside((slice(3, 7), slice(12, 14), slice(0, 50)))
    assert around.shape == (4, 2, 50) and np.count_nonzero(around) == 2 * 10
    assert not levels.inside((slice(8, 12), slice(20, 40), slice(0, 5))).any()


@pytest.mark.parametrize("reach", [None, 0.0, 2.0, 5.0, 1000.0])
def test_it_is_limited_to_the_lungs_as_the_result_is(a_probability, reach):
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[2:9, 8:20, 10:22], lungs[3:10, 25:33, 30:44] = 1, 2
    settings = PostProcessing(keep_inside_lungs_mm=reach)
    levels = made(a_probability).limited(SPACING, settings, lungs)
    marked = a_probability > np.float32(levels.threshold_at(0))
    kept = apply_postprocessing(marked, SPACING, settings, lungs)
    assert np.array_equal(levels.result_at(0, SPACING), kept)
    assert reach is None or reach > 100 or (marked & ~kept).any()
    less = a_probability > np.float32(levels.threshold_at(-20))
    assert np.array_equal(levels.result_at(-20, SPACING), kept & less)

    # at a lower threshold so near to the lungs alone, but not around what the run has dropped
    more = a_probability > np.float32(levels.threshold_at(30))
    reach = 1000.0 if reach is None else reach
    to_lungs, to_dropped = (
        distance_transform_edt(~mask, sampling=SPACING) if mask.any() else np.full(SHAPE, np.inf)
        for mask in (lungs > 0, marked & ~kept)
    )
    expected = more & (kept | (~marked & ((lungs > 0) | ((to_lungs <= reach) & (to_dropped > reach)))))
    # a distance of exactly the reach is rounded either way
    clear = np.minimum(abs(to_lungs - reach), abs(to_dropped - reach)) > 1e-6 if reach > 0 else True
    assert np.array_equal(levels.result_at(30, SPACING) & clear, expected & clear)


def test_small_lesions_are_dropped_as_in_the_result(a_probability):
    levels = made(a_probability)
    settings = PostProcessing(minimum_volume_ml=0.1)
    for sensitivity in (0, 30):
        mask = a_probability > np.float32(levels.threshold_at(sensitivity))
        expected = apply_postprocessing(mask, SPACING, settings)
        assert expected.sum() < mask.sum()
        assert np.array_equal(levels.result_at(sensitivity, SPACING, 0.1), expected)


# ---- growing from a click -------------------------------------------------------------------------------------------


@pytest.fixture
def a_scene():
    """A marked lesion, a fainter one beside it that touches its border, one far off, and one outside the lungs."""
    probability = np.full(SHAPE, 0.001, np.float32)
    lesion, lungs = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    lungs[:, :, 45:] = False
    probability[3:6, 5:15, 5:15], lesion[3:6, 5:15, 5:15] = 0.9, True
    probability[3:6, 5:15, 15] = 0.2
    probability[3:6, 8:12, 16:20] = 0.3
    probability[4, 10, 18] = 0.4
    probability[8:11, 30:34, 30:48] = 0.4
    return made(probability), lesion, lungs


def whole(levels, seed, sensitivity, lesion, lungs):
    box, found = levels.grown(seed, sensitivity, lambda part: lesion[part], lambda part: lungs[part])
    image = np.zeros(SHAPE, bool)
    image[box] = found
    return image


def test_a_lesion_grows_where_the_probability_is_connected(a_scene):
    levels, lesion, lungs = a_scene
    expected = np.zeros(SHAPE, bool)
    expected[3:6, 8:12, 16:20] = True
    at = levels.sensitivity_of(0.25)
    assert np.array_equal(whole(levels, (4, 10, 18), at, lesion, lungs), expected)
    expected[3:6, 5:15, 15] = True
    assert np.array_equal(whole(levels, (4, 10, 18), levels.sensitivity_of(0.15), lesion, lungs), expected)
    assert not whole(levels, (4, 10, 18), 0, lesion, lungs).any()


def test_from_a_marked_lesion_it_goes_on_from_all_of_it(a_scene):
    levels, lesion, lungs = a_scene
    at = levels.sensitivity_of(0.15)
    expected = np.zeros(SHAPE, bool)
    expected[3:6, 5:15, 15] = expected[3:6, 8:12, 16:20] = True
    assert np.array_equal(whole(levels, (4, 10, 6), at, lesion, lungs), expected)
    # beside it the border of the marked lesion does not count as way
    lesion[3:6, 5:15, 15] = True
    assert whole(levels, (4, 10, 18), at, lesion, lungs).sum() == 3 * 4 * 4


def test_it_stays_inside_the_lungs(a_scene):
    levels, lesion, lungs = a_scene
    found = whole(levels, (9, 31, 40), levels.sensitivity_of(0.3), lesion, lungs)
    assert found.sum() == 3 * 4 * 15 and not found[:, :, 45:].any()
    assert not whole(levels, (9, 31, 46), levels.sensitivity_of(0.3), lesion, lungs).any()


def test_the_seed_is_the_most_probable_neighbor_and_tells_how_low_it_is(a_scene):
    levels, _lesion, lungs = a_scene
    seed, needed = levels.seed((4, 9, 17), lambda part: lungs[part])
    assert seed == (4, 10, 18)
    assert levels.threshold_at(needed) < 0.4 <= levels.threshold_at(needed - 1)
    # of equal ones the click itself; outside the lungs nothing is known
    assert levels.seed((9, 32, 36), lambda part: lungs[part])[0] == (9, 32, 36)
    assert levels.seed((9, 31, 47), lambda part: lungs[part]) == ((9, 31, 47), MOST_SENSITIVE + 1)
    assert levels.seed((0, 0, 0), lambda part: lungs[part])[0] == (0, 0, 0)


def test_a_component_is_found_whole_however_far_it_winds():
    mask = np.zeros((40, 150, 150), bool)
    mask[2, 3, 3:147] = mask[2, 3:140, 147] = mask[2:38, 140, 147] = mask[37, 60:140, 147] = True
    mask[2, 3, 20:30] = False
    mask[3, 4, 19:31] = True  # joined by corners
    mask[20, 20, 20] = True
    looked = []

    def part(box):
        looked.append(box)
        return mask[box]

    box, found = component_around(part, (2, 3, 5), mask.shape)
    image = np.zeros_like(mask)
    image[box] = found
    assert np.array_equal(image, component_at(mask, (2, 3, 5), (1, 1, 1)))
    assert len(looked) > 1, "it begins with a small box"
    box, found = component_around(part, (20, 20, 20), mask.shape)
    assert box == (slice(20, 21),) * 3 and found.all()
    assert not component_around(part, (21, 20, 20), mask.shape)[1].size


# ---- files and messages ---------------------------------------------------------------------------------------------


def test_it_comes_back_from_a_file_and_from_a_message(a_probability):
    levels = made(a_probability, 0.4)
    described = levels.described()
    for back in (
        ProbabilityLevels.from_bytes(levels.to_bytes()),
        ProbabilityLevels.rebuilt(levels.levels, described),
    ):
        assert np.array_equal(back.levels, levels.levels)
        assert (back.box, back.shape, back.threshold) == (levels.box, levels.shape, levels.threshold)


def test_what_does_not_fit_is_refused(a_probability):
    levels = made(a_probability)
    content = levels.to_bytes()
    for damaged in (b"", b"PK\x03\x04 no", content[:200], content[:-40]):
        with pytest.raises(ReadError, match="run the model"):
            ProbabilityLevels.from_bytes(damaged)
    described = levels.described()
    for wrong in ({}, {**described, "shape": [1, 2, 3]}, {**described, "threshold": 0.0}, {**described, "box": [1]}):
        with pytest.raises(InputError):
            ProbabilityLevels.rebuilt(levels.levels, wrong)
    with pytest.raises(GridMismatchError, match="this one has"):
        levels.require_shape((1, 2, 3))
    with pytest.raises(InputError, match="sensitivity is 128"):
        levels.result_at(128, SPACING)
