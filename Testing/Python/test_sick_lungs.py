"""Disease that is painted into lungs for the training of the lung network."""

from __future__ import annotations

import numpy as np
import pytest
import sick_lungs
from sick_lungs import paint_disease, smooth_noise

SPACING = (4.0, 2.5, 2.5)
DENSE = ["dependent", "lobar", "white_lung", "patches"]


def a_chest():
    """Two boxes of lung in soft tissue with half-filled voxels around them, and air outside."""
    lungs = np.zeros((30, 40, 60), np.uint8)
    lungs[4:26, 8:32, 8:26] = 1
    lungs[4:26, 8:32, 34:52] = 2
    hu = np.full(lungs.shape, 40, np.float32)
    hu[:, :2] = hu[:, -2:] = -1000
    hu[4:26, 7, 8:26] = hu[4:26, 7, 34:52] = -380
    hu[lungs > 0] = -850
    return hu, lungs


def painted(name, seed):
    hu, lungs = a_chest()
    before = hu.copy()
    sick = getattr(sick_lungs, name)(hu, lungs, SPACING, np.random.default_rng(seed))
    assert np.array_equal(hu, before)
    assert sick.dtype == np.float32
    return hu, lungs, sick


@pytest.mark.parametrize("name", [*DENSE, "haze"])
def test_disease_takes_the_air_out_of_lung_and_leaves_the_rest(name):
    shares = []
    for seed in range(8):
        hu, lungs, sick = painted(name, seed)
        changed = sick != hu
        assert (sick >= hu).all()
        # the half-filled voxels in front of the lungs may be filled with it, nothing else outside
        assert not changed[(lungs == 0) & (hu != -380)].any()
        shares.append(np.mean(sick[lungs > 0] > -700))
    assert min(shares) > 0.04
    assert max(shares) > 0.3


@pytest.mark.parametrize("name", DENSE)
def test_dense_lung_has_the_density_of_tissue_and_no_dark_seam(name):
    hu, lungs, sick = painted(name, 3)
    dense = sick > -200
    assert np.mean(dense[lungs > 0]) > 0.04
    assert -130 < np.median(sick[dense & (lungs > 0)]) < 130
    seam = (hu == -380) & np.roll(dense & (lungs > 0), -1, axis=1)
    if seam.any():
        assert np.median(sick[seam]) > -200


def test_what_lies_lowest_is_consolidated_first():
    _, lungs, sick = painted("dependent", 1)
    dense = (sick > -200) & (lungs > 0)
    rows = np.arange(lungs.shape[1])[None, :, None]
    assert np.average(np.broadcast_to(rows, dense.shape), weights=dense) > 22


def test_white_lungs_are_white_as_a_whole():
    _, lungs, sick = painted("white_lung", 0)
    white = [np.mean(sick[lungs == side] > -250) for side in (1, 2)]
    assert max(white) == 1.0


def test_emphysema_is_darker():
    hu, lungs, sick = painted("emphysema", 0)
    assert sick[lungs > 0].max() < -850
    assert np.array_equal(sick[lungs == 0], hu[lungs == 0])


def test_a_seed_paints_one_disease_and_others_paint_others():
    hu, lungs = a_chest()
    one, again, other = (paint_disease(hu, lungs, SPACING, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    kinds = {np.round(np.mean(paint_disease(hu, lungs, SPACING, np.random.default_rng(s))), 2) for s in range(12)}
    assert len(kinds) == 12


def test_a_chest_without_lungs_stays():
    hu, lungs = a_chest()
    none = np.zeros_like(lungs)
    assert np.array_equal(paint_disease(hu, none, SPACING, np.random.default_rng(0)), hu)
    one = np.where(lungs == 1, lungs, 0).astype(np.uint8)
    for seed in range(20):
        sick = paint_disease(hu, one, SPACING, np.random.default_rng(seed))
        assert np.array_equal(sick[lungs == 2], hu[lungs == 2])


def test_noise_varies_over_its_length():
    noise = smooth_noise((40, 80, 80), (4.0, 2.5, 2.5), 20.0, np.random.default_rng(0))
    assert noise.shape == (40, 80, 80)
    assert abs(noise.mean()) < 0.2
    assert 0.7 < noise.std() < 1.3

    def correlation(mm):
        step = round(mm / 2.5)
        return np.corrcoef(noise[:, step:].ravel(), noise[:, :-step].ravel())[0, 1]

    assert correlation(2.5) > 0.9
    assert abs(correlation(50.0)) < 0.25
