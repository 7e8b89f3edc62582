"""Tools for masks: boxes and surfaces against NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from COVIDLesionSegLib.imaging.masks import SparseMask, bounding_box, surface_points

masks = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 20)).flatmap(lambda shape: arrays(bool, shape))


@given(masks, st.tuples(*[st.sampled_from((0, 0.4, 1, 2.5))] * 3))
@settings(max_examples=80, deadline=None)
def test_a_box_holds_the_mask_and_its_margin_and_nothing_else(mask, margin):
    box = bounding_box(mask, margin)
    if not mask.any():
        assert box == (slice(0, 0),) * 3
        return
    places = np.argwhere(mask)
    low = np.maximum(places.min(axis=0) - np.ceil(margin), 0)
    high = np.minimum(places.max(axis=0) + 1 + np.ceil(margin), mask.shape)
    assert [(side.start, side.stop) for side in box] == list(zip(low, high, strict=True))


@pytest.mark.parametrize("array", [np.zeros((3, 4, 5), bool), np.zeros((3, 4, 5), np.uint8)])
def test_the_box_of_nothing_is_empty_unless_a_voxel_is_needed(array):
    assert bounding_box(array, 2) == (slice(0, 0),) * 3
    assert bounding_box(array, least=1) == (slice(0, 1),) * 3


def test_labels_and_turned_arrays_have_boxes_too():
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3, 2, 5], labels[4, 3, 6] = 1, 2
    assert bounding_box(labels) == (slice(1, 5), slice(2, 4), slice(5, 7))
    assert bounding_box(labels.transpose(2, 0, 1)[::-1]) == (slice(1, 3), slice(1, 5), slice(2, 4))


@given(masks)
@settings(max_examples=80, deadline=None)
def test_the_surface_is_what_a_6_connected_erosion_takes_away(mask):
    expected = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    for array in (mask, np.asfortranarray(mask)):
        assert np.array_equal(surface_points(array).T, expected)


@given(masks, st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_sparse_mask_counts_what_two_masks_share(mask, seed):
    other = np.random.default_rng(seed).random(mask.shape) < 0.5
    one, two = SparseMask.of(mask), SparseMask.of(other)
    assert len(one) == np.count_nonzero(mask)
    assert one.shared_with(two) == np.count_nonzero(mask & other)
    assert np.array_equal(one.covered_by(two), other[mask])
