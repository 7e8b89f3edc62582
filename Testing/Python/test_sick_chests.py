"""The sick chests: each shows what its name says, and its masks are true."""

from __future__ import annotations

import numpy as np
import pytest

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.phantom.sick import SICK_CHESTS, sick_chest
from COVIDLesionSegLib.phantom.synthetic import SIZE, SPACING


@pytest.fixture(scope="module")
def made():
    """Each sick chest on the coarse grid, made once."""
    chests = {}

    def made(name):
        if name not in chests:
            chests[name] = sick_chest(name, coarse=True)
        return chests[name]

    return made


def height(chest):
    """How far behind each voxel lies, mm."""
    _, j, i = np.indices(chest.lungs.shape, sparse=True)
    k = np.arange(chest.lungs.shape[0])[:, None, None]
    affine = chest.volume.geometry.ijk_to_lps
    return affine[1, 0] * i + affine[1, 1] * j + affine[1, 2] * k + affine[1, 3]


@pytest.mark.parametrize("name", SICK_CHESTS)
def test_masks_fit_together(made, name):
    chest = made(name)
    assert SICK_CHESTS[name].description
    assert np.array_equal(chest.lesion, chest.ggo | chest.consolidation)
    assert not (chest.ggo & chest.consolidation).any()
    assert not (chest.lesion & (chest.lungs == 0)).any()
    assert np.array_equal(chest.lobes > 0, chest.lungs > 0)
    assert np.array_equal(np.isin(chest.lobes, [3, 4, 5]), chest.lungs == 1)


@pytest.mark.parametrize(("name", "share"), [("dependent_25", 0.25), ("dependent_40", 0.40)])
def test_dependent_consolidation_has_its_share_of_each_lung_and_lies_behind(made, name, share):
    chest = made(name)
    back = height(chest)
    for side in (1, 2):
        lung = chest.lungs == side
        dense = lung & chest.consolidation
        # single lesions of the upper lobes count on top
        assert dense.sum() / lung.sum() == pytest.approx(share, abs=0.015)
        assert np.quantile(back[dense], 0.02) > np.quantile(back[lung & ~chest.consolidation], 0.90) - 12
        assert -30 < np.median(chest.volume.array[dense]) < 60


@pytest.mark.parametrize(("name", "lobes"), [("lower_lobe", [5]), ("lower_lobes", [2, 5]), ("white_left_lung", [1, 2])])
def test_consolidated_lobes_are_consolidated_wholly(made, name, lobes):
    chest = made(name)
    inside = np.isin(chest.lobes, lobes)
    assert chest.consolidation[inside].all()
    assert -30 < np.median(chest.volume.array[inside]) < 60
    # bronchi stay open in it
    assert (chest.volume.array[inside] < -300).sum() > 20


def test_haze_is_ground_glass_all_over(made):
    chest = made("haze")
    assert np.array_equal(chest.lesion, chest.lungs > 0)
    tissue = chest.volume.array[chest.ggo]
    assert -460 < np.quantile(tissue, 0.1) < np.quantile(tissue, 0.8) < -250


def test_emphysema_is_nearly_as_dark_as_air(made):
    chest = made("emphysema")
    assert np.median(chest.volume.array[(chest.lungs > 0) & ~chest.lesion]) < -925


def test_the_gas_of_a_pneumothorax_is_no_lung(made):
    chest, healthy = made("pneumothorax"), made("emphysema")
    gas = (healthy.lungs == 2) & (chest.lungs == 0)
    assert 0.5 < gas.sum() / (healthy.lungs == 2).sum() < 0.75
    assert np.median(chest.volume.array[gas]) < -960
    assert -720 < np.median(chest.volume.array[(chest.lungs == 2) & ~chest.lesion]) < -560
    assert np.array_equal(chest.lungs == 1, healthy.lungs == 1)


@pytest.mark.parametrize(("name", "side"), [("right_half", 1), ("left_half", 2)])
def test_half_a_chest_holds_one_lung(made, name, side):
    chest = made(name)
    assert chest.lungs.shape[2] < made("haze").lungs.shape[2]
    assert (chest.lungs == side).sum() > 0.99 * (chest.lungs > 0).sum() > 0


def test_the_fine_grid_is_the_synthetic_chests():
    chest = sick_chest("right_half")
    assert chest.volume.geometry.shape == (*SIZE[:2], SIZE[2] // 2)
    assert chest.volume.geometry.spacing_zyx == pytest.approx(SPACING)


def test_unknown_chests_are_refused():
    with pytest.raises(InputError, match="no sick chest 'flu'; known are dependent_25"):
        sick_chest("flu")
