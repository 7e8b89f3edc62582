"""The lung finder on sick chests: what it finds, and that its verdict says where it can't be trusted."""

from __future__ import annotations

import numpy as np
import pytest
from lung_chests import overlap

from COVIDLesionSegLib.imaging import locate_lungs
from COVIDLesionSegLib.inference import PostProcessing, apply_postprocessing
from COVIDLesionSegLib.phantom.sick import sick_chest

LIMIT = PostProcessing(keep_inside_lungs_mm=5.0)


@pytest.fixture(scope="module")
def found():
    """Function from a name to the phantom and the lungs found in it, each made once."""
    made = {}

    def found(name):
        if name not in made:
            chest = sick_chest(name, coarse=True)
            made[name] = chest, locate_lungs(chest.volume)
        return made[name]

    return found


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
def test_lungs_are_found_although_they_are_sick(found, name, least, least_side):
    chest, lungs = found(name)
    assert overlap(lungs.labels > 0, chest.lungs > 0) >= least
    for side in (1, 2):
        assert overlap(lungs.labels == side, chest.lungs == side) >= least_side


@pytest.mark.parametrize(("name", "side"), [("right_half", 1), ("left_half", 2)])
def test_half_a_chest_gets_its_own_side(found, name, side):
    chest, lungs = found(name)
    assert overlap(lungs.labels == side, chest.lungs == side) >= 0.98
    assert not (lungs.labels == 3 - side).any()
    assert "half of the chest lies outside the field of view" in lungs.quality.line()


@pytest.mark.parametrize("name", ["dependent_25", "dependent_40", "lower_lobe", "lower_lobes", "white_left_lung"])
def test_no_consolidation_is_lost_without_a_word(found, name):
    chest, lungs = found(name)
    kept = apply_postprocessing(chest.lesion, chest.volume.geometry.spacing_zyx, LIMIT, lungs.labels)
    assert lungs.quality.is_doubtful or np.count_nonzero(kept) >= 0.9 * np.count_nonzero(chest.lesion)
    # most of it lies in the lungs nevertheless, so that their figures come near
    assert np.count_nonzero(kept) > (0.55 if name == "white_left_lung" else 0.8) * np.count_nonzero(chest.lesion)
    assert "its border is estimated from the ribs" in lungs.quality.line()


@pytest.mark.parametrize("name", ["haze", "emphysema"])
def test_sick_lungs_that_are_found_whole_are_plausible(found, name):
    chest, lungs = found(name)
    assert lungs.quality.line() == "Lungs plausible."
    kept = apply_postprocessing(chest.lesion, chest.volume.geometry.spacing_zyx, LIMIT, lungs.labels)
    assert np.count_nonzero(kept) >= 0.98 * np.count_nonzero(chest.lesion)


def test_free_gas_is_no_lung_and_is_named(found):
    chest, lungs = found("pneumothorax")
    gas = (found("emphysema")[0].lungs == 2) & (chest.lungs == 0)
    assert np.count_nonzero(gas & (lungs.labels > 0)) < 0.05 * np.count_nonzero(gas)
    assert {finding.check for finding in lungs.quality.findings} >= {"gas_around", "wall_uncovered"}
