"""Surface distances: the reference vectors, a brute-force oracle, MONAI, analytic shapes, invariances, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import VECTORS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from COVIDLesionSegLib.errors import GeometryError, GridMismatchError, InputError
from COVIDLesionSegLib.imaging.masks import SparseMask
from COVIDLesionSegLib.measurement import (
    HD95_VARIANTS,
    average_surface_distance,
    hausdorff_distance,
    hausdorff_distance_95,
    normalized_surface_dice,
    surface,
)

FILLED = ("aniso", "iso", "thick", "smooth", "identical", "touch_border")
MEASURES = (hausdorff_distance, hausdorff_distance_95, average_surface_distance, normalized_surface_dice)


@pytest.fixture(scope="module")
def vectors():
    return np.load(VECTORS / "metrics_3d.npz")


def case_of(vectors, name):
    return vectors[f"{name}/seg"], vectors[f"{name}/gt"], tuple(vectors[f"{name}/spacing_zyx"])


def surface_by_erosion(mask):
    return mask & ~ndimage.binary_erosion(mask, border_value=0)


def distances_by_brute_force(one, other, spacing):
    """Both directions' distances, found with SciPy's distance transform of the whole grid."""
    first, second = surface_by_erosion(one), surface_by_erosion(other)
    to_second = ndimage.distance_transform_edt(~second, sampling=spacing)[first]
    to_first = ndimage.distance_transform_edt(~first, sampling=spacing)[second]
    return to_second, to_first


def measures_by_brute_force(one, other, spacing, tolerance):
    to_second, to_first = distances_by_brute_force(one, other, spacing)
    both = np.concatenate([to_second, to_first])
    return {
        "hd": both.max(),
        "directed": max(np.percentile(to_second, 95), np.percentile(to_first, 95)),
        "pooled": np.percentile(both, 95),
        "asd": both.mean(),
        "nsd": (both <= tolerance * (1 + 1e-9)).mean(),
    }


def assert_agrees_with_brute_force(one, other, spacing, tolerance=2.0):
    oracle = measures_by_brute_force(one, other, spacing, tolerance)
    got = {
        "hd": hausdorff_distance(one, other, spacing),
        "directed": hausdorff_distance_95(one, other, spacing),
        "pooled": hausdorff_distance_95(one, other, spacing, variant="pooled"),
        "asd": average_surface_distance(one, other, spacing),
        "nsd": normalized_surface_dice(one, other, spacing, tolerance),
    }
    assert got == pytest.approx(oracle, rel=1e-9, abs=1e-9)


def ball(shape, center, radius, spacing=(1.0, 1.0, 1.0)):
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((g - c) * s) ** 2 for g, c, s in zip(grid, center, spacing, strict=True)) <= radius**2


@pytest.fixture(scope="module")
def lesions_with_a_far_island():
    """Two blobs that nearly agree, and one of the prediction's far away: a long tail of distances."""
    random = np.random.default_rng(7)
    shape, spacing = (60, 90, 100), (1.5, 0.7, 0.7)
    reference = ball(shape, (30, 45, 40), 20, spacing)
    rough = ndimage.gaussian_filter(random.normal(size=shape), 2) > 0.02
    prediction = (ndimage.binary_dilation(reference) & rough) | ball(shape, (12, 20, 85), 6, spacing)
    return prediction, reference, spacing


# whatever the sizes of the masks, each way of finding distances has to be taken
@pytest.fixture(params=["as_is", "tree_only"])
def every_way(request, monkeypatch):
    if request.param == "tree_only":
        monkeypatch.setattr(surface, "_ROWS", 1)
        monkeypatch.setattr(surface, "_CHUNK", 700)


@pytest.mark.parametrize("case", FILLED)
def test_distances_match_the_vectors(vectors, case, every_way):
    one, other, spacing = case_of(vectors, case)
    got = {
        "hd95_paper_linear": hausdorff_distance_95(one, other, spacing),
        "hd95_medpy_pooled": hausdorff_distance_95(one, other, spacing, variant="pooled"),
        "hd95_pymic062": hausdorff_distance_95(one, other, spacing, variant="pymic"),
        "hd_paper": hausdorff_distance(one, other, spacing),
        "assd_medpy": average_surface_distance(one, other, spacing),
    }
    for name, value in got.items():
        assert value == pytest.approx(float(vectors[f"{case}/{name}"]), abs=1e-9), name


@pytest.mark.parametrize("case", FILLED)
def test_monai_agrees(vectors, case):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    one, other, spacing = case_of(vectors, case)
    batch = [torch.from_numpy(mask)[None, None].float() for mask in (one, other)]
    for percentile, measure in ((95, hausdorff_distance_95), (None, hausdorff_distance)):
        oracle = metrics.compute_hausdorff_distance(*batch, percentile=percentile, spacing=spacing)
        assert measure(one, other, spacing) == pytest.approx(float(oracle), abs=1e-5)
    oracle = metrics.compute_surface_dice(*batch, class_thresholds=[2.0], spacing=spacing)
    assert normalized_surface_dice(one, other, spacing, 2.0) == pytest.approx(float(oracle), abs=1e-6)


small_masks = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)
spacings = st.tuples(*[st.sampled_from((0.3, 0.61, 0.7, 1.0, 2.5, 8.0))] * 3)


@given(small_masks, spacings)
@settings(max_examples=150, deadline=None)
def test_any_masks_agree_with_brute_force(masks, spacing):
    one, other = masks
    if one.any() and other.any():
        assert_agrees_with_brute_force(one, other, spacing)


@given(small_masks, spacings)
@settings(max_examples=60, deadline=None)
def test_symmetry_bounds_flips_permutations_and_scaling(masks, spacing):
    one, other = masks
    if not (one.any() and other.any()):
        return
    values = {measure: measure(one, other, spacing) for measure in MEASURES}
    assert 0.0 <= values[normalized_surface_dice] <= 1.0
    assert 0.0 <= values[hausdorff_distance_95] <= values[hausdorff_distance]
    assert 0.0 <= values[average_surface_distance] <= values[hausdorff_distance]
    diagonal = math.sqrt(sum(((n - 1) * s) ** 2 for n, s in zip(one.shape, spacing, strict=True)))
    assert values[hausdorff_distance] <= diagonal * (1 + 1e-12)
    for measure, value in values.items():
        assert measure(other, one, spacing) == pytest.approx(value)
        for axis in range(3):
            assert measure(np.flip(one, axis), np.flip(other, axis), spacing) == pytest.approx(value)
        turned = tuple(spacing[axis] for axis in (2, 0, 1))
        assert measure(one.transpose(2, 0, 1), other.transpose(2, 0, 1), turned) == pytest.approx(value)
        assert measure(np.pad(one, 2), np.pad(other, 2), spacing) == pytest.approx(value)
        larger = tuple(3.0 * side for side in spacing)
        if measure is normalized_surface_dice:
            assert measure(one, other, larger, tolerance=9.0) == pytest.approx(value)
        else:
            assert measure(one, other, larger) == pytest.approx(3.0 * value)


def test_identical_masks_are_at_distance_zero(lesions_with_a_far_island):
    mask, _, spacing = lesions_with_a_far_island
    assert [measure(mask, mask, spacing) for measure in MEASURES] == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("rows", [1, 7, 150])
@pytest.mark.parametrize("along_x", [1, 6])
def test_a_far_island_agrees_with_brute_force(lesions_with_a_far_island, monkeypatch, rows, along_x):
    monkeypatch.setattr(surface, "_ROWS", rows)
    monkeypatch.setattr(surface, "_ALONG_X", along_x)
    assert_agrees_with_brute_force(*lesions_with_a_far_island)


@pytest.mark.parametrize("percent", [0.0, 50.0, 94.0, 95.0, 97.5, 99.9, 100.0])
def test_a_percentile_alone_is_that_of_all_distances(lesions_with_a_far_island, monkeypatch, percent):
    monkeypatch.setattr(surface, "_ROWS", 3)
    prediction, reference, spacing = lesions_with_a_far_island
    points = [SparseMask.of(mask).surface_points() for mask in (prediction, reference)]
    alone = surface.SurfacePair(*points, spacing).percentile(percent)
    oracle = distances_by_brute_force(prediction, reference, spacing)
    assert alone == pytest.approx([np.percentile(found, percent) for found in oracle], rel=1e-12)
    everything = surface.SurfacePair(*points, spacing).distances()
    assert alone == tuple(float(np.percentile(found, percent)) for found in everything)


def test_a_percentile_between_the_last_near_point_and_the_first_far_one_knows_both():
    reference = np.zeros((1, 1, 400), bool)
    reference[..., :60:3] = True
    prediction = reference.copy()
    prediction[..., [300, 304]] = True
    # of 22 points, two of them far, the percentile lies between the 20th and the 21st
    to_reference, _ = distances_by_brute_force(prediction, reference, (1.0, 1.0, 1.0))
    assert sorted(to_reference)[19] == 0 < sorted(to_reference)[20]
    assert_agrees_with_brute_force(prediction, reference, (1.0, 1.0, 1.0))


def test_the_smaller_surface_may_have_the_larger_percentile():
    reference, spacing = np.zeros((20, 40, 80), bool), (1.0, 1.0, 1.0)
    reference[2:14, 4:30, 4:40] = True
    prediction = reference.copy()
    reference[3:13:2, 5:29:2, 5:39:2] = False
    prediction[2:8, 4:12, 48:56] = True
    to_reference, to_prediction = distances_by_brute_force(prediction, reference, spacing)
    assert len(to_reference) < len(to_prediction)
    assert np.percentile(to_reference, 95) > np.percentile(to_prediction, 95)
    assert_agrees_with_brute_force(prediction, reference, spacing)


def test_surfaces_that_lie_far_apart_are_measured_too():
    one, other = np.zeros((20, 40, 200), bool), np.zeros((20, 40, 200), bool)
    one[5:9, 5:20, 5:20] = other[6:15, 10:30, 150:190] = True
    assert_agrees_with_brute_force(one, other, (2.0, 0.7, 0.7))


@pytest.mark.parametrize("shift", [1, 3, 10])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_box_lies_its_shift_away(shift, axis):
    spacing = (5.0, 0.7, 0.8)
    one = np.zeros((40, 40, 40), bool)
    one[5:25, 5:25, 5:25] = True
    other = np.roll(one, shift, axis)
    assert hausdorff_distance(one, other, spacing) == pytest.approx(shift * spacing[axis])
    assert_agrees_with_brute_force(one, other, spacing)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.8, 0.8)])
def test_concentric_spheres_lie_the_difference_of_their_radii_apart(spacing):
    shape = tuple(round(70 / side) for side in spacing)
    center = tuple((n - 1) / 2 for n in shape)
    small, large = (ball(shape, center, radius, spacing) for radius in (20.0, 30.0))
    voxel = math.sqrt(sum(side**2 for side in spacing))
    for measure in (hausdorff_distance, hausdorff_distance_95, average_surface_distance):
        assert measure(small, large, spacing) == pytest.approx(10.0, abs=voxel)
    assert normalized_surface_dice(small, large, spacing, 10.0 - voxel) < 0.1
    assert normalized_surface_dice(small, large, spacing, 10.0 + voxel) == 1.0


def test_two_voxels_lie_their_distance_apart():
    one, other = np.zeros((5, 6, 7), bool), np.zeros((5, 6, 7), bool)
    one[0, 0, 0] = other[4, 5, 6] = True
    spacing = (8.0, 0.6, 0.5)
    far = math.sqrt(32.0**2 + 3.0**2 + 3.0**2)
    for measure in (hausdorff_distance, hausdorff_distance_95, average_surface_distance):
        assert measure(one, other, spacing) == pytest.approx(far)
    assert normalized_surface_dice(one, other, spacing, far) == 1.0
    assert normalized_surface_dice(one, other, spacing, far - 0.01) == 0.0


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_surface_is_what_erosion_takes_away(vectors, order):
    random = np.random.default_rng(3)
    masks = [vectors[f"{case}/seg"] for case in FILLED]
    masks += [random.random(shape) < 0.8 for shape in ((4, 5, 6), (4, 6, 64), (5, 3, 130), (1, 9, 70), (6, 1, 8))]
    masks += [np.ones(shape, bool) for shape in ((3, 4, 5), (1, 1, 1), (1, 9, 9), (9, 9, 1))]
    for mask in (np.asarray(mask, order=order) for mask in masks):
        expected = np.nonzero(surface_by_erosion(mask))
        assert np.array_equal(SparseMask.of(mask).surface_points(), expected)


@pytest.mark.parametrize(
    ("filled", "distance", "share"),
    [((False, False), math.nan, 1.0), ((False, True), math.inf, 0.0), ((True, False), math.inf, 0.0)],
)
def test_empty_masks_have_the_agreed_values(filled, distance, share):
    masks = [np.full((2, 3, 3), has_lesion) for has_lesion in filled]
    got = [measure(*masks, (5.0, 0.7, 0.7)) for measure in MEASURES]
    got += [hausdorff_distance_95(*masks, (5.0, 0.7, 0.7), variant=variant) for variant in HD95_VARIANTS]
    assert got == pytest.approx([distance] * 3 + [share] + [distance] * len(HD95_VARIANTS), nan_ok=True)
    assert all(type(value) is float for value in got)


def test_a_tolerance_that_equals_a_distance_counts_as_within():
    one, other = np.zeros((1, 1, 9), bool), np.zeros((1, 1, 9), bool)
    one[0, 0, 0] = other[0, 0, 3] = True
    assert normalized_surface_dice(one, other, (1.0, 1.0, 0.7), tolerance=2.1) == 1.0
    assert normalized_surface_dice(one, other, (1.0, 1.0, 0.7), tolerance=2.09) == 0.0


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("shape", "spacing", "error", "sentence"),
    [
        (((2, 3, 4), (2, 3, 5)), (1, 1, 1), GridMismatchError, r"\(2, 3, 4\).*\(2, 3, 5\)"),
        (((3, 4), (3, 4)), (1, 1, 1), InputError, r"3 are needed: \(z, y, x\)"),
        (((2, 3, 4), (2, 3, 4)), (1, 1), GeometryError, "three positive numbers"),
        (((2, 3, 4), (2, 3, 4)), (1, 0, 1), GeometryError, "three positive numbers"),
    ],
)
def test_bad_input_is_refused(measure, shape, spacing, error, sentence):
    with pytest.raises(error, match=sentence):
        measure(np.ones(shape[0], bool), np.ones(shape[1], bool), spacing)


def test_an_unknown_variant_is_answered_by_the_known_ones():
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(InputError, match=r"'elastix'.*directed.*pooled"):
        hausdorff_distance_95(mask, mask, (1, 1, 1), variant="elastix")


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_an_impossible_tolerance_is_refused(tolerance):
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(InputError, match="tolerance"):
        normalized_surface_dice(mask, mask, (1, 1, 1), tolerance)
