"""The CARes-UNet paper's slice measures: the reference vectors, both conventions, edges, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import VECTORS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from COVIDLesionSegLib.errors import GridMismatchError, InputError
from COVIDLesionSegLib.measurement import (
    enhanced_alignment_measure,
    mean_absolute_error,
    slice_scores,
    structure_measure,
)
from COVIDLesionSegLib.measurement.slices import enhanced_alignment_curve

CASES = ("soft", "binary", "gt_empty_soft", "gt_full", "both_empty", "pred_empty", "perfect")
NAMES = {"dice": "dice", "sen": "sensitivity", "spe": "specificity"}


@pytest.fixture(scope="module")
def vectors():
    return np.load(VECTORS / "metrics_2d.npz")


def case_of(vectors, name, kind=np.float64):
    return vectors[f"2d/{name}/pred_uint8"].astype(kind) / kind(255), vectors[f"2d/{name}/gt"]


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("case", CASES)
def test_slice_measures_match_the_vectors(vectors, case, kind):
    probability, mask = case_of(vectors, case, kind)
    scores = slice_scores(probability, mask, "inf_net")
    got = {
        "s_alpha": structure_measure(probability, mask),
        "mae": mean_absolute_error(probability, mask),
        "e_mean": enhanced_alignment_measure(probability, mask),
        "e_max": scores["enhanced_alignment_measure_max"],
        "dice_maxthr": scores["dice_max"],
    }
    for short, name in NAMES.items():
        got[f"{short}_meanthr"] = scores[name]
        got[f"{short}_at_0.5"] = scores[f"{name}_at_0.5"]
    for name, value in got.items():
        expected = float(vectors[f"2d/{case}/{name}"])
        assert value == pytest.approx(expected, abs=1e-9 if kind is np.float64 else 1e-6, nan_ok=True), name
    curve = enhanced_alignment_curve(probability, mask)
    np.testing.assert_allclose(curve, vectors[f"2d/{case}/e_curve"], atol=1e-9)
    assert curve[127] == pytest.approx(float(vectors[f"2d/{case}/e_at_0.5"]))


def test_all_scores_are_those_of_the_single_measures(vectors):
    probability, mask = case_of(vectors, "soft")
    scores = slice_scores(probability, mask)
    assert scores["structure_measure"] == structure_measure(probability, mask)
    assert scores["enhanced_alignment_measure"] == enhanced_alignment_measure(probability, mask)
    assert scores["mean_absolute_error"] == mean_absolute_error(probability, mask)
    assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize("case", ["soft", "binary", "pred_empty", "perfect", "gt_full"])
def test_conventions_agree_where_the_slice_has_lesion(vectors, case):
    one, other = (slice_scores(*case_of(vectors, case), convention) for convention in ("inf_net", "empty_is_right"))
    assert one == pytest.approx(other, nan_ok=True)


def test_a_silent_network_on_a_slice_without_lesion():
    nothing, mask = np.zeros((8, 9)), np.zeros((8, 9), bool)
    wrong, right = (slice_scores(nothing, mask, convention) for convention in ("inf_net", "empty_is_right"))
    for name in NAMES.values():
        assert wrong[name] == 0.0
        assert right[name] == right[f"{name}_at_0.5"] == 1.0
    assert right["structure_measure"] == 1.0 and right["mean_absolute_error"] == 0.0


def test_a_false_alarm_on_a_slice_without_lesion_counts_at_its_thresholds_only():
    # one certain pixel: every threshold marks something
    probability, mask = np.zeros((8, 9)), np.zeros((8, 9), bool)
    probability[0, 0] = 1.0
    scores = slice_scores(probability, mask, "empty_is_right")
    assert scores["dice"] == scores["dice_at_0.5"] == 0.0
    # a constant map is not stretched: thresholds above it mark nothing
    constant = np.full((8, 9), 51 / 255)
    scores = slice_scores(constant, mask, "empty_is_right")
    assert scores["dice_at_0.5"] == 1.0
    assert scores["dice"] == pytest.approx((255 - 51) / 256)


def test_thresholds_are_k_over_255_with_the_voxels_on_them():
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    probability = np.zeros((4, 4))
    probability[0] = [1.0, 128 / 255, 127 / 255, 0.0]
    scores = slice_scores(probability, mask)
    assert scores["sensitivity_at_0.5"] == 0.5
    # 127 thresholds mark one of the four lesion voxels, 128/255 two, the next 127 three, and 0 all
    assert scores["sensitivity"] == pytest.approx((127 * 1 + 1 * 2 + 127 * 3 + 1 * 4) / 4 / 256)


def test_maps_are_stretched_to_zero_and_one(vectors):
    probability, mask = case_of(vectors, "soft")
    narrow = 0.25 + 0.5 * probability
    # exact halves and quarters leave the levels where they were, up to rounding at the thresholds themselves
    assert structure_measure(narrow, mask) == pytest.approx(structure_measure(probability, mask))
    assert mean_absolute_error(narrow, mask) == pytest.approx(mean_absolute_error(probability, mask))


def structure_split_at(probability, mask, y, x):
    """The S-measure written out, with the four regions meeting after row y and column x."""
    share = mask.mean()
    objects = 0.0
    for weight, values in ((share, probability[mask]), (1 - share, 1 - probability[~mask])):
        objects += weight * 2 * values.mean() / (values.mean() ** 2 + 1 + values.std(ddof=1))
    regions = 0.0
    for part in (np.s_[:y, :x], np.s_[:y, x:], np.s_[y:, :x], np.s_[y:, x:]):
        p, g = probability[part].ravel(), mask[part].ravel().astype(float)
        spread = np.cov(p, g)
        likeness = 4 * p.mean() * g.mean() * spread[0, 1]
        likeness /= (p.mean() ** 2 + g.mean() ** 2) * (spread[0, 0] + spread[1, 1])
        regions += p.size / probability.size * likeness
    return 0.5 * objects + 0.5 * regions


@pytest.mark.parametrize(("added", "split"), [([], (4, 5)), ([0, 1, 6, 7], (3, 5))])
def test_regions_meet_at_the_rounded_centroid(added, split):
    probability = np.random.default_rng(6).integers(0, 256, (8, 9)) / 255
    probability[0, :2] = 0.0, 1.0
    mask = np.zeros((8, 9), bool)
    mask[1:5, 2:6] = True
    # counted from 1, the centroid lies at row 3.5 (up to 4), or with four more pixels at 3.4 (down to 3), column 4.5
    mask[2, added] = True
    assert structure_measure(probability, mask) == pytest.approx(structure_split_at(probability, mask, *split))


@pytest.mark.parametrize("place", [(0, 0), (0, 6), (5, 0), (5, 6), (3, 3)])
def test_a_lesion_of_one_pixel_in_any_corner_has_all_measures(place):
    mask = np.zeros((6, 7), bool)
    mask[place] = True
    perfect = slice_scores(mask.astype(float), mask)
    assert perfect["structure_measure"] == pytest.approx(1.0)
    assert perfect["dice_at_0.5"] == 1.0
    assert not any(math.isnan(value) for value in perfect.values())


@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
        lambda shape: st.tuples(
            arrays(np.float64, shape, elements=st.integers(0, 255).map(lambda k: k / 255)), arrays(bool, shape)
        )
    )
)
@settings(deadline=None)
def test_bounds(drawn):
    probability, mask = drawn
    if mask.size == 1:
        return
    for convention in ("inf_net", "empty_is_right"):
        for name, value in slice_scores(probability, mask, convention).items():
            # the E-measure divides by the number of pixels less one, as published
            limit = mask.size / (mask.size - 1) if "alignment" in name else 1.0
            assert math.isnan(value) or -1e-12 <= value <= limit + 1e-9, name


@pytest.mark.parametrize(
    ("probability", "mask", "sentence"),
    [
        (np.zeros((3, 4)), np.zeros((3, 5), bool), "same grid"),
        (np.zeros((1, 3, 4)), np.zeros((1, 3, 4), bool), r"2 are needed: \(y, x\)"),
        (np.full((3, 4), 1.5), np.zeros((3, 4), bool), "from 0 to 1"),
        (np.full((3, 4), -0.5), np.zeros((3, 4), bool), "from 0 to 1"),
        (np.full((3, 4), np.nan), np.zeros((3, 4), bool), "NaN"),
        (np.full((3, 4), 255, np.uint8), np.zeros((3, 4), bool), "Divide 8-bit values by 255"),
        (np.zeros((3, 4)), np.full((3, 4), 0.5), "only 0 and 1"),
    ],
)
@pytest.mark.parametrize("measure", [slice_scores, structure_measure, enhanced_alignment_measure, mean_absolute_error])
def test_bad_input_is_refused(measure, probability, mask, sentence):
    with pytest.raises(GridMismatchError if "grid" in sentence else InputError, match=sentence):
        measure(probability, mask)


def test_an_unknown_convention_is_answered_by_the_known_ones():
    with pytest.raises(InputError, match=r"'mean'.*inf_net.*empty_is_right"):
        slice_scores(np.zeros((2, 2)), np.zeros((2, 2), bool), "mean")
