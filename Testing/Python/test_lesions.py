"""Parts of a mask: those of SciPy, however hard to join, and the one at a place."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from COVIDLesionSegLib.measurement import lesions
from COVIDLesionSegLib.measurement.lesions import component_at, find_components


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
    monkeypatch.setattr(lesions, "_SLAB", voxels)
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
