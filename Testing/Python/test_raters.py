"""Several raters: pairs, Fleiss' kappa, majority, STAPLE."""

from __future__ import annotations

import math

import numpy as np
import pytest

from COVIDLesionSegLib.errors import GridMismatchError, InputError
from COVIDLesionSegLib.measurement import (
    dice,
    fleiss_kappa,
    hausdorff_distance_95,
    majority_vote,
    pairwise_agreement,
    rater_agreement,
    staple,
)

SPACING = (5.0, 0.7, 0.7)


@pytest.fixture(scope="module")
def truth():
    mask = np.zeros((16, 30, 30), bool)
    mask[5:12, 8:22, 9:21] = True
    return mask


@pytest.fixture(scope="module")
def three_raters(truth):
    """A careful, a generous and a careless rater: 1, 5 and 15 % of the voxels near the lesion are wrong."""
    random = np.random.default_rng(11)
    near = np.zeros(truth.shape, bool)
    near[3:14, 5:25, 5:25] = True
    return {
        name: truth ^ (near & (random.random(truth.shape) < share))
        for name, share in (("careful", 0.01), ("generous", 0.05), ("careless", 0.15))
    }


def kappa_by_subjects(masks, counted):
    """Fleiss' kappa from the table of subjects and categories, as the article writes it."""
    table = np.stack([np.sum([m[counted] for m in masks], axis=0), np.sum([~m[counted] for m in masks], axis=0)], 1)
    raters = len(masks)
    each = (np.sum(table**2, axis=1) - raters) / (raters * (raters - 1))
    chance = np.sum((table.sum(axis=0) / table.sum()) ** 2)
    return (each.mean() - chance) / (1 - chance)


def test_pairs_have_their_dice_and_distance(three_raters):
    pairs = pairwise_agreement(three_raters, SPACING)
    assert [(p.first, p.second) for p in pairs] == [
        ("careful", "generous"),
        ("careful", "careless"),
        ("generous", "careless"),
    ]
    for pair in pairs:
        one, other = three_raters[pair.first], three_raters[pair.second]
        assert pair.dice == dice(one, other)
        assert pair.hausdorff_distance_95 == hausdorff_distance_95(one, other, SPACING)
        assert pair.status == "ok"


def test_kappa_is_that_of_the_article_on_each_domain(three_raters):
    masks = list(three_raters.values())
    whole = np.ones(masks[0].shape, bool)
    union = np.argwhere(np.any(masks, axis=0))
    box = np.zeros_like(whole)
    box[tuple(slice(a, b + 1) for a, b in zip(union.min(0), union.max(0), strict=True))] = True
    lungs = np.zeros_like(whole)
    lungs[2:14, 3:28, 3:16] = True
    for domain, counted in (("grid", whole), ("box", box), (lungs, lungs)):
        assert fleiss_kappa(three_raters, domain) == pytest.approx(kappa_by_subjects(masks, counted), rel=1e-12)
    assert fleiss_kappa(three_raters) == fleiss_kappa(three_raters, "grid")
    # kappa grows with the background that all share, so the domain belongs beside the number
    assert fleiss_kappa(three_raters, "grid") > fleiss_kappa(three_raters, "box")


def test_kappa_of_the_articles_own_kind_of_table():
    # two raters, four voxels: they agree on three, and mark 3 of 8
    one, other = np.array([1, 1, 0, 0], bool), np.array([1, 0, 0, 0], bool)
    chance = (3 / 8) ** 2 + (5 / 8) ** 2
    assert fleiss_kappa([one.reshape(1, 1, 4), other.reshape(1, 1, 4)]) == pytest.approx((0.75 - chance) / (1 - chance))


def test_majority_needs_more_than_half():
    one, other, third = (np.array(bits, bool).reshape(1, 1, 4) for bits in ((1, 1, 1, 0), (1, 1, 0, 0), (1, 0, 0, 0)))
    assert majority_vote([one, other, third]).ravel().tolist() == [True, True, False, False]
    assert majority_vote([one, third]).ravel().tolist() == [True, False, False, False]


def test_staple_is_simpleitks_on_the_stated_domain(three_raters):
    sitk = pytest.importorskip("SimpleITK")
    oracle = sitk.STAPLEImageFilter()
    oracle.SetForegroundValue(1.0)
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in three_raters.values()]
    probability = sitk.GetArrayFromImage(oracle.Execute(images))
    found = staple(three_raters, "grid")
    assert list(found.sensitivity.values()) == pytest.approx(oracle.GetSensitivity())
    assert list(found.specificity.values()) == pytest.approx(oracle.GetSpecificity())
    np.testing.assert_allclose(found.probability, probability, atol=1e-6)
    assert np.array_equal(found.consensus, probability > 0.5)


def test_staple_trusts_the_careful_rater_most(three_raters, truth):
    found = staple(three_raters)
    assert found.status == "ok" and found.consensus.dtype == bool and found.probability.dtype == np.float32
    assert found.sensitivity["careful"] > found.sensitivity["generous"] > found.sensitivity["careless"] > 0.8
    assert found.specificity["careful"] > found.specificity["generous"] > found.specificity["careless"] > 0.8
    assert dice(found.consensus, truth) > dice(majority_vote(three_raters), truth)
    assert not found.consensus[0].any()


@pytest.mark.parametrize("raters", [2, 3, 5])
def test_identical_masks_agree_completely(truth, raters):
    agreement = rater_agreement([truth] * raters, SPACING)
    assert agreement.mean_dice == agreement.fleiss_kappa == 1.0
    assert len(agreement.pairs) == raters * (raters - 1) // 2
    assert all(pair.hausdorff_distance_95 == 0.0 for pair in agreement.pairs)
    assert np.array_equal(agreement.majority, truth) and np.array_equal(agreement.staple.consensus, truth)
    assert set(agreement.staple.sensitivity.values()) == {1.0} == set(agreement.staple.specificity.values())
    assert list(agreement.volumes_ml) == [f"rater {i + 1}" for i in range(raters)]


def test_empty_masks_have_a_status(truth):
    nothing = np.zeros_like(truth)
    agreement = rater_agreement({"first": nothing, "second": nothing}, SPACING)
    assert agreement.pairs[0].status == "both_empty" and agreement.pairs[0].dice == 1.0
    assert math.isnan(agreement.mean_dice) and math.isnan(agreement.fleiss_kappa)
    assert agreement.staple.status == "all_empty" and not agreement.staple.consensus.any()
    assert all(math.isnan(value) for value in agreement.staple.sensitivity.values())
    agreement = rater_agreement({"first": nothing, "second": truth}, SPACING)
    pair = agreement.pairs[0]
    assert (pair.status, pair.dice, pair.hausdorff_distance_95) == ("first_empty", 0.0, math.inf)
    assert not agreement.majority.any() and agreement.mean_dice == 0.0


def test_masks_that_fill_the_grid_have_a_status():
    full = np.ones((2, 3, 4), bool)
    found = staple([full, full])
    assert found.status == "all_full" and found.consensus.all()
    assert math.isnan(fleiss_kappa([full, full]))


def test_a_lung_mask_may_be_the_domain_of_everything(three_raters):
    lungs = np.zeros((16, 30, 30), bool)
    lungs[3:14, 5:25, 5:25] = True
    agreement = rater_agreement(three_raters, SPACING, lungs)
    assert agreement.fleiss_kappa == fleiss_kappa(three_raters, lungs)
    assert agreement.staple.sensitivity == staple(three_raters, lungs).sensitivity


@pytest.mark.parametrize("compare", [fleiss_kappa, majority_vote, staple, lambda m: pairwise_agreement(m, SPACING)])
@pytest.mark.parametrize(
    ("masks", "error", "sentence"),
    [
        ([], InputError, "two or more"),
        ([np.ones((2, 2, 2), bool)], InputError, "two or more masks of one case; 1"),
        ([np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool)], GridMismatchError, "rater 2.*rater 1"),
        ([np.ones((2, 2, 2), bool), np.full((2, 2, 2), 0.5)], InputError, "rater 2"),
        ([np.ones((2, 2), bool), np.ones((2, 2), bool)], InputError, "z, y, x"),
    ],
)
def test_bad_input_is_refused(compare, masks, error, sentence):
    with pytest.raises(error, match=sentence):
        compare(masks)


@pytest.mark.parametrize("compare", [fleiss_kappa, staple])
def test_a_domain_that_is_none_is_refused(compare, three_raters):
    with pytest.raises(InputError, match=r"'lungs'.*grid.*box"):
        compare(three_raters, "lungs")
    with pytest.raises(InputError, match="empty"):
        compare(three_raters, np.zeros((16, 30, 30), bool))
    with pytest.raises(GridMismatchError):
        compare(three_raters, np.ones((16, 30, 31), bool))
