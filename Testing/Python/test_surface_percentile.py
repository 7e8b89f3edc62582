"""HD95 of large masks, found without most distances: against a distance transform, whatever the sample says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from COVIDLesionSegLib.measurement import _bits, _tail, _windows, hausdorff_distance_95, surface

SPACINGS = ((1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.5, 1.3, 0.9))


def surface_by_erosion(mask):
    return mask & ~ndimage.binary_erosion(mask, border_value=0)


def distances_by_brute_force(one, other, spacing):
    """Both directions' distances, found with SciPy's distance transform of the whole grid."""
    first, second = surface_by_erosion(one), surface_by_erosion(other)
    to_second = ndimage.distance_transform_edt(~second, sampling=spacing)[first]
    to_first = ndimage.distance_transform_edt(~first, sampling=spacing)[second]
    return to_second, to_first


def surfaces_of(one, other):
    return [_bits.surface(bits) for bits in _bits.packed(one, other)]


def blobs(shape, seed, share=0.2):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 1 - share)


@pytest.fixture(scope="module", params=SPACINGS, ids=str)
def lesions(request):
    """Two masks that mostly agree, with a few percent of the prediction far away, in rows of more than one word."""
    shape = (20, 36, 150)
    reference = blobs(shape, 1)
    prediction = reference ^ (blobs(shape, 2) & blobs(shape, 3))
    prediction[:5, :7, -12:] = True
    reference[:8, :12, -20:] = False
    return prediction, reference, request.param


@pytest.fixture(scope="module")
def true_distances(lesions):
    return distances_by_brute_force(*lesions)


small_masks = st.tuples(st.integers(1, 5), st.integers(1, 6), st.sampled_from((1, 7, 64, 70))).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)
spacings = st.tuples(*[st.sampled_from((0.3, 0.61, 1.0, 2.5, 8.0))] * 3)


@given(small_masks, spacings, st.sampled_from((50.0, 90.0, 95.0, 99.0, 100.0)))
@settings(max_examples=60, deadline=None)
def test_any_masks_agree_with_brute_force_or_are_too_far_apart(masks, spacing, percent):
    one, other = masks
    if not (one.any() and other.any()):
        return
    both = [np.percentile(found, percent) for found in distances_by_brute_force(one, other, spacing)]
    got = _tail.larger_percentile(surfaces_of(one, other), spacing, percent)
    if got is None:
        assert max(both) > 10 * min(spacing)
    else:
        assert got == pytest.approx(max(both), rel=1e-12)


@pytest.mark.parametrize("pivots", [_tail._PIVOTS, (), (19.9,), (0.01,), (1.0, 1.0), (4.0, 0.1, 2.0, 0.5)], ids=str)
def test_the_result_does_not_depend_on_what_is_tried(lesions, true_distances, monkeypatch, pivots):
    prediction, reference, spacing = lesions
    monkeypatch.setattr(_tail, "_PIVOTS", pivots)
    monkeypatch.setattr(_tail, "_SAMPLE", 100)
    monkeypatch.setattr(_windows, "_CHUNK", 700)
    monkeypatch.setattr(_windows, "_RUNS", 90)
    oracle = [np.percentile(found, 95) for found in true_distances]
    for masks in ((prediction, reference), (reference, prediction)):
        got = _tail.larger_percentile(surfaces_of(*masks), spacing, 95.0)
        assert got == pytest.approx(max(oracle), rel=1e-12)


def test_the_smaller_surface_may_have_the_larger_percentile():
    reference, spacing = np.zeros((20, 40, 80), bool), (1.0, 1.0, 1.0)
    reference[2:14, 4:30, 4:40] = True
    prediction = reference.copy()
    reference[3:13:2, 5:29:2, 5:39:2] = False
    prediction[2:8, 4:12, 48:56] = True
    to_reference, to_prediction = distances_by_brute_force(prediction, reference, spacing)
    assert len(to_reference) < len(to_prediction)
    oracle = [np.percentile(found, 95) for found in (to_reference, to_prediction)]
    assert oracle[0] > oracle[1]
    got = _tail.larger_percentile(surfaces_of(prediction, reference), spacing, 95.0)
    assert got == pytest.approx(oracle[0], rel=1e-12)


@pytest.mark.parametrize("percent", [50.0, 91.7, 95.0])
def test_any_radius_may_be_tried(monkeypatch, percent):
    random = np.random.default_rng(4)
    one, other = (random.random((6, 9, 40)) < 0.02 for _ in range(2))
    spacing = (1.13, 0.71, 0.97)
    both = distances_by_brute_force(one, other, spacing)
    oracle = max(np.percentile(found, percent) for found in both)
    surfaces = surfaces_of(one, other)
    for distance in np.unique(np.concatenate(both)):
        monkeypatch.setattr(_tail._Side, "_pivots", lambda _, square=distance**2 * (1 + 1e-9): [square])
        assert _tail.larger_percentile(surfaces, spacing, percent) == pytest.approx(oracle, rel=1e-12)


def test_both_ways_give_the_same_number(lesions, monkeypatch):
    prediction, reference, spacing = lesions
    got = []
    for few in (-1, 10**9):
        monkeypatch.setattr(surface, "_FEW", few)
        got.append(hausdorff_distance_95(prediction, reference, spacing))
        assert hausdorff_distance_95(prediction, prediction, spacing) == 0.0
    assert got[0] == got[1]


def test_surfaces_that_lie_far_apart_are_measured_too(monkeypatch):
    monkeypatch.setattr(surface, "_FEW", -1)
    one, other = np.zeros((20, 40, 200), bool), np.zeros((20, 40, 200), bool)
    one[5:9, 5:20, 5:20] = other[6:15, 10:30, 150:190] = True
    spacing = (2.0, 0.7, 0.7)
    assert _tail.larger_percentile(surfaces_of(one, other), spacing, 95.0) is None
    oracle = max(np.percentile(found, 95) for found in distances_by_brute_force(one, other, spacing))
    assert hausdorff_distance_95(one, other, spacing) == pytest.approx(oracle, rel=1e-12)


@pytest.mark.parametrize("rows", [1, 20, 500])
def test_voxels_are_split_at_any_radius_and_their_nearest_found(lesions, true_distances, monkeypatch, rows):
    prediction, reference, spacing = lesions
    monkeypatch.setattr(_windows, "_ROWS", rows)
    ours, theirs = surfaces_of(prediction, reference)
    windows = _windows.Windows.of(theirs, spacing)
    runs = windows.runs(ours)
    squares = np.sort(true_distances[0]) ** 2
    assert len(runs) == len(squares)
    found = np.sort(windows.nearest(*runs.voxels()))
    seen = np.count_nonzero(np.isfinite(found))
    assert seen >= np.count_nonzero(squares < windows.reach * (1 - 1e-9))
    assert found[:seen] == pytest.approx(squares[:seen], rel=1e-12, abs=1e-12)
    for square in (0.0, 0.9, 4.0, 30.0):
        if square < windows.reach:
            within, beyond = windows.split(runs, square)
            assert len(within) == np.count_nonzero(found <= square)
            assert len(within) + len(beyond) == len(runs)


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 6, 64), (5, 3, 130), (1, 1, 1), (1, 9, 70), (6, 1, 8)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("numpy_2", [True, False])
def test_bits_hold_the_surface_of_masks_of_any_shape(monkeypatch, shape, order, numpy_2):
    if not numpy_2:
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    # slabs of one slice, so that neighbors lie in others
    monkeypatch.setattr(_bits, "_SLAB", 1)
    random = np.random.default_rng(0)
    one, other = (np.asarray(random.random(shape) < 0.8, order=order) for _ in range(2))
    one.flat[0] = other.flat[-1] = True
    for mask, found in zip((one, other), surfaces_of(one, other), strict=True):
        assert _bits.count(found) == np.count_nonzero(surface_by_erosion(mask))
        corner = np.argwhere(one | other).min(axis=0)
        points = np.argwhere(surface_by_erosion(mask)).T
        got = _bits.coordinates(found)
        assert np.array_equal(got[:2], points[:2] - corner[:2, None])
        assert np.array_equal((got[2] - points[2]) % _bits.VOXELS, np.zeros(points.shape[1]))
