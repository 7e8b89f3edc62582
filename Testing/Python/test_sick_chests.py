"""The sick chests: each shows what its name says, and the finder's verdict says where its lungs can't be trusted."""

from __future__ import annotations

import numpy as np
import pytest
from lung_chests import coarse_chest, lungs_found, overlap

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.inference import PostProcessing, apply_postprocessing
from COVIDLesionSegLib.phantom.sick import SICK_CHESTS, sick_chest
from COVIDLesionSegLib.phantom.synthetic import SIZE, SPACING

LIMIT = PostProcessing(keep_inside_lungs_mm=5.0)


def height(chest):
    """How far behind each voxel lies, mm."""
    _, j, i = np.indices(chest.lungs.shape, sparse=True)
    k = np.arange(chest.lungs.shape[0])[:, None, None]
    affine = chest.volume.geometry.ijk_to_lps
    return affine[1, 0] * i + affine[1, 1] * j + affine[1, 2] * k + affine[1, 3]


@pytest.mark.parametrize("name", SICK_CHESTS)
def test_masks_fit_together(name):
    chest = coarse_chest(name)
    assert SICK_CHESTS[name].description
    assert np.array_equal(chest.lesion, chest.ggo | chest.consolidation)
    assert not (chest.ggo & chest.consolidation).any()
    assert not (chest.lesion & (chest.lungs == 0)).any()
    assert np.array_equal(chest.lobes > 0, chest.lungs > 0)
    assert np.array_equal(np.isin(chest.lobes, [3, 4, 5]), chest.lungs == 1)


@pytest.mark.parametrize(("name", "share"), [("dependent_25", 0.25), ("dependent_40", 0.40)])
def test_dependent_consolidation_has_its_share_of_each_lung_and_lies_behind(name, share):
    chest = coarse_chest(name)
    back = height(chest)
    for side in (1, 2):
        lung = chest.lungs == side
        dense = lung & chest.consolidation
        # single lesions of the upper lobes count on top
        assert dense.sum() / lung.sum() == pytest.approx(share, abs=0.015)
        assert np.quantile(back[dense], 0.02) > np.quantile(back[lung & ~chest.consolidation], 0.90) - 12
        assert -30 < np.median(chest.volume.array[dense]) < 60


@pytest.mark.parametrize(("name", "lobes"), [("lower_lobe", [5]), ("lower_lobes", [2, 5]), ("white_left_lung", [1, 2])])
def test_consolidated_lobes_are_consolidated_wholly(name, lobes):
    chest = coarse_chest(name)
    inside = np.isin(chest.lobes, lobes)
    assert chest.consolidation[inside].all()
    assert -30 < np.median(chest.volume.array[inside]) < 60
    # bronchi stay open in it
    assert (chest.volume.array[inside] < -300).sum() > 20


def test_haze_is_ground_glass_all_over():
    chest = coarse_chest("haze")
    assert np.array_equal(chest.lesion, chest.lungs > 0)
    tissue = chest.volume.array[chest.ggo]
    assert -460 < np.quantile(tissue, 0.1) < np.quantile(tissue, 0.8) < -250


def test_emphysema_is_nearly_as_dark_as_air():
    chest = coarse_chest("emphysema")
    assert np.median(chest.volume.array[(chest.lungs > 0) & ~chest.lesion]) < -925


def test_the_gas_of_a_pneumothorax_is_no_lung():
    chest, healthy = coarse_chest("pneumothorax"), coarse_chest("emphysema")
    gas = (healthy.lungs == 2) & (chest.lungs == 0)
    assert 0.5 < gas.sum() / (healthy.lungs == 2).sum() < 0.75
    assert np.median(chest.volume.array[gas]) < -960
    assert -720 < np.median(chest.volume.array[(chest.lungs == 2) & ~chest.lesion]) < -560
    assert np.array_equal(chest.lungs == 1, healthy.lungs == 1)


@pytest.mark.parametrize(("name", "side"), [("right_half", 1), ("left_half", 2)])
def test_half_a_chest_holds_one_lung(name, side):
    chest = coarse_chest(name)
    assert chest.lungs.shape[2] < coarse_chest("haze").lungs.shape[2]
    assert (chest.lungs == side).sum() > 0.99 * (chest.lungs > 0).sum() > 0


def test_the_fine_grid_is_the_synthetic_chests():
    chest = sick_chest("right_half")
    assert chest.volume.geometry.shape == (*SIZE[:2], SIZE[2] // 2)
    assert chest.volume.geometry.spacing_zyx == pytest.approx(SPACING)


def test_unknown_chests_are_refused():
    with pytest.raises(InputError, match="no sick chest 'flu'; known are dependent_25"):
        sick_chest("flu")


# ---- what is found in them


@pytest.mark.parametrize(
    ("name", "least", "least_side"),
    [
        ("dependent_25", 0.94, 0.93),
        ("dependent_40", 0.92, 0.91),
        ("lower_lobe", 0.94, 0.90),
        ("lower_lobes", 0.90, 0.89),
        ("white_left_lung", 0.83, 0.60),
        ("haze", 0.945, 0.94),
        ("pneumothorax", 0.96, 0.88),
        ("emphysema", 0.98, 0.975),
    ],
)
def test_lungs_are_found_although_they_are_sick(name, least, least_side):
    chest, lungs = coarse_chest(name), lungs_found(name)
    assert overlap(lungs.labels > 0, chest.lungs > 0) >= least
    for side in (1, 2):
        assert overlap(lungs.labels == side, chest.lungs == side) >= least_side


@pytest.mark.parametrize(("name", "side"), [("right_half", 1), ("left_half", 2)])
def test_half_a_chest_gets_its_own_side(name, side):
    chest, lungs = coarse_chest(name), lungs_found(name)
    assert overlap(lungs.labels == side, chest.lungs == side) >= 0.98
    assert not (lungs.labels == 3 - side).any()
    assert "half of the chest lies outside the field of view" in lungs.quality.line()


@pytest.mark.parametrize("name", ["dependent_25", "dependent_40", "lower_lobe", "lower_lobes", "white_left_lung"])
def test_no_consolidation_is_lost_without_a_word(name):
    chest, lungs = coarse_chest(name), lungs_found(name)
    kept = apply_postprocessing(chest.lesion, chest.volume.geometry.spacing_zyx, LIMIT, lungs.labels)
    assert lungs.quality.is_doubtful or np.count_nonzero(kept) >= 0.9 * np.count_nonzero(chest.lesion)
    # most of it lies in the lungs nevertheless, so that their figures come near
    assert np.count_nonzero(kept) > (0.55 if name == "white_left_lung" else 0.8) * np.count_nonzero(chest.lesion)
    assert "its border is estimated from the ribs" in lungs.quality.line()


@pytest.mark.parametrize("name", ["haze", "emphysema"])
def test_sick_lungs_that_are_found_whole_are_plausible(name):
    chest, lungs = coarse_chest(name), lungs_found(name)
    assert lungs.quality.line() == "Lungs plausible."
    kept = apply_postprocessing(chest.lesion, chest.volume.geometry.spacing_zyx, LIMIT, lungs.labels)
    assert np.count_nonzero(kept) >= 0.98 * np.count_nonzero(chest.lesion)


def test_free_gas_is_no_lung_and_is_named():
    chest, lungs = coarse_chest("pneumothorax"), lungs_found("pneumothorax")
    gas = (coarse_chest("emphysema").lungs == 2) & (chest.lungs == 0)
    assert np.count_nonzero(gas & (lungs.labels > 0)) < 0.05 * np.count_nonzero(gas)
    assert {finding.check for finding in lungs.quality.findings} >= {"gas_around", "wall_uncovered"}
