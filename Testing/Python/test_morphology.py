"""Distances and growing regions on small grids, beside scipy's general ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from COVIDLesionSegLib.imaging.lungs import _morphology
from COVIDLesionSegLib.imaging.lungs._morphology import dilate, distance, erode, grow

SHAPES = [(20, 37, 29), (5, 6, 7), (1, 12, 9), (3, 1, 9), (9, 8, 1)]


def blobs(shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(values, 2.0 if min(shape) > 4 else 0.6)


@pytest.mark.parametrize("part", [1, 200, 10**6])
@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_those_of_scipy_up_to_the_limit(monkeypatch, shape, part):
    monkeypatch.setattr(_morphology, "_PART", part)
    values, spacing = blobs(shape), (2.0, 0.7, 1.3)
    mask = values > np.quantile(values, 0.8)
    exact = ndimage.distance_transform_edt(~mask, sampling=spacing)
    for limit in (0.5, 3.0, 7.5, 100.0):
        found = distance(mask, spacing, limit)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.minimum(exact, limit), rtol=1e-6)
    inner = ndimage.distance_transform_edt(mask, sampling=spacing)
    np.testing.assert_array_equal(dilate(mask, spacing, 2.5), exact <= 2.5)
    np.testing.assert_array_equal(erode(mask, spacing, 2.5), inner > 2.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_grow_by_one_neighbor_a_step_and_the_larger_wins(shape):
    values = blobs(shape, seed=1)
    low, high = np.quantile(values, [0.1, 0.85])
    labels = np.where(values < low, 1, np.where(values > high, 2, 0)).astype(np.uint8)
    allowed = blobs(shape, seed=2) < np.quantile(blobs(shape, seed=2), 0.8)
    expected = labels.copy()
    while True:
        reached = ndimage.grey_dilation(expected, footprint=ndimage.generate_binary_structure(3, 1), mode="constant")
        step = np.where(allowed & (expected == 0), reached, expected)
        if (step == expected).all():
            break
        expected = step
    before = labels.copy()
    np.testing.assert_array_equal(grow(labels, allowed), expected)
    np.testing.assert_array_equal(labels, before)
    assert grow(labels, allowed).flags.c_contiguous


def test_nothing_grows_from_nothing():
    nothing = np.zeros((3, 4, 5), dtype=np.uint8)
    assert not grow(nothing, np.ones((3, 4, 5), dtype=bool)).any()
    assert not grow(nothing, np.zeros((3, 4, 5), dtype=bool)).any()
