"""Synthetic disease: it stays in the lungs, its mask is its own, its amount and place are what they claim to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from COVIDLesionSegLib.learning.augmentation import (
    LEAST_DISEASED,
    MOST_DISEASED,
    AugmentationSettings,
    Inflation,
    SyntheticDisease,
    inflate,
    paint_disease,
    smooth_noise,
)
from COVIDLesionSegLib.learning.config import DataSettings
from COVIDLesionSegLib.learning.sampling import BatchSource
from COVIDLesionSegLib.measurement import dice
from COVIDLesionSegLib.models import Preprocessing

SIZE = (80, 120)
POSITIONS = tuple(2.0 * np.arange(side) for side in SIZE)


def a_slab(heights=(0.0, 2.5, 5.0)):
    """Two ellipses of aerated lung with noise in soft tissue; HU, lungs and positions."""
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    lungs = np.zeros((len(heights), *SIZE), dtype=np.uint8)
    for label, center in ((1, 30), (2, 90)):
        lungs[:, ((rows - 40) / 32) ** 2 + ((columns - center) / 24) ** 2 < 1] = label
    hu = np.where(lungs > 0, -850, 40) + np.random.default_rng(0).normal(0, 20, lungs.shape)
    return hu.astype(np.int16), lungs, (np.array(heights), *POSITIONS)


@pytest.fixture(scope="module")
def painted():
    """Many draws on one slab: (planes, mask) each."""
    hu, lungs, positions = a_slab()
    return [paint_disease(hu, lungs, positions, np.random.default_rng(seed)) for seed in range(60)]


def test_outside_the_lungs_nothing_changes(painted):
    hu, lungs, _ = a_slab()
    for planes, mask in painted:
        assert np.array_equal(planes[lungs == 0], hu[lungs == 0])
        assert not mask[lungs == 0].any()


def test_a_draw_is_repeated_by_its_seed_alone(painted):
    hu, lungs, positions = a_slab()
    again, mask = paint_disease(hu, lungs, positions, np.random.default_rng(7))
    assert np.array_equal(again, painted[7][0])
    assert np.array_equal(mask, painted[7][1])


def test_from_a_trace_to_most_of_the_lung_is_diseased(painted):
    _, lungs, _ = a_slab()
    fractions = np.array([mask.sum() / (lungs > 0).sum() for _, mask in painted])
    assert fractions.min() < 3 * LEAST_DISEASED
    assert MOST_DISEASED / 2 < fractions.max() <= MOST_DISEASED * 1.01
    # one side or both
    one_sided = [not mask[lungs == 1].any() or not mask[lungs == 2].any() for _, mask in painted]
    assert 0.1 < np.mean(one_sided) < 0.7


def test_lesion_is_denser_than_lung_and_the_rest_is_left_alone(painted):
    hu, lungs, _ = a_slab()
    for planes, mask in painted:
        lift = planes - hu
        assert np.median(lift[mask > 0]) > 80
        assert np.abs(np.median(lift[(mask == 0) & (lungs > 0)])) < 60


def test_the_forms_range_from_haze_to_consolidation_with_air_in_it(painted):
    medians = np.array([np.median(planes[mask > 0]) for planes, mask in painted])
    assert (medians < -450).any()
    assert (medians > -150).any()
    # bronchi that stay full of air inside dense lung
    airy = [
        np.mean(planes[mask > 0] < -600)
        for (planes, mask), median in zip(painted, medians, strict=True)
        if median > -250
    ]
    assert max(airy) > 0.01


def test_disease_prefers_the_back(painted):
    rows = np.broadcast_to(np.arange(SIZE[0])[:, None], (3, *SIZE))
    lungs = a_slab()[1] > 0
    assert np.mean([rows[mask > 0].mean() for _, mask in painted]) > rows[lungs].mean() + 3


def test_neighboring_planes_agree_and_distant_ones_do_not():
    hu, lungs, positions = a_slab((0.0, 1.0, 150.0))
    near, far = [], []
    for seed in range(30):
        mask = paint_disease(hu, lungs, positions, np.random.default_rng(seed))[1]
        if mask[0].sum() > 100:
            near.append(dice(mask[0] > 0, mask[1] > 0))
            far.append(dice(mask[0] > 0, mask[2] > 0))
    assert min(near) > 0.8
    assert np.mean(far) < np.mean(near) - 0.3


def test_without_lung_nothing_is_painted():
    hu, lungs, positions = a_slab()
    planes, mask = paint_disease(hu, np.zeros_like(lungs), positions, np.random.default_rng(0))
    assert np.array_equal(planes, hu)
    assert not mask.any()


def test_smooth_noise_has_unit_spread_and_the_scale_it_is_asked_for():
    positions = (np.zeros(1), np.arange(400.0), np.arange(400.0))
    noise = smooth_noise(positions, 10.0, np.random.default_rng(0))[0]
    # one plane lies at one height of the grid, where the spread differs a little from the mean over heights
    assert 0.8 < noise.std() < 1.25
    correlations = [np.corrcoef(noise[:, :-step].ravel(), noise[:, step:].ravel())[0, 1] for step in (2, 10, 40)]
    assert correlations[0] > 0.95
    assert 0.1 < correlations[1] < 0.6
    assert abs(correlations[2]) < 0.1


@pytest.fixture(scope="module")
def inflated():
    """A slab with a lesion and a vessel, and many draws on it: HU, lungs, lesion, [planes]."""
    hu, lungs, positions = a_slab()
    lesion = np.zeros_like(lungs)
    lesion[:, 35:45, 20:32] = 1
    hu[lesion > 0] += 300
    hu[:, 40, 80:100] = 60
    return hu, lungs, lesion, [inflate(hu, lesion, lungs, positions, np.random.default_rng(seed)) for seed in range(60)]


def test_lungs_hold_less_air_or_more_and_nothing_else_changes(inflated):
    hu, lungs, lesion, draws = inflated
    normal = (lungs > 0) & (lesion == 0) & (hu < -700)
    changes = [np.median(planes[normal] - hu[normal]) for planes in draws]
    assert max(changes) > 100
    assert min(changes) < -50
    assert 0.4 < np.mean(np.array(changes) > 0) < 0.8
    for planes in draws:
        assert np.array_equal(planes[lungs == 0], hu[lungs == 0])
        # vessels are no air
        assert np.array_equal(planes[:, 40, 82:98], hu[:, 40, 82:98])
        assert planes.min() >= min(hu.min(), -1000)


def test_emphysema_spares_lesions_and_expiration_does_not(inflated):
    hu, lungs, lesion, draws = inflated
    normal = (lungs > 0) & (lesion == 0) & (hu < -700)
    for planes in draws:
        change = planes - hu
        if np.median(change[normal]) < 0:
            assert np.array_equal(planes[lesion > 0], hu[lesion > 0])
            # patches and holes
            assert change[normal].max() <= 0
        else:
            assert change[normal].min() >= 0
            assert np.median(change[lesion > 0]) > 0


def test_other_lungs_keep_their_label():
    hu, lungs, positions = a_slab()
    lesion = (lungs == 1).astype(np.uint8)
    planes, mask = Inflation(1.0).paint(hu, lesion, lungs, positions, np.random.default_rng(0))
    assert mask is lesion
    assert not np.array_equal(planes, hu)
    planes, mask = Inflation(0.0).paint(hu, lesion, lungs, positions, np.random.default_rng(0))
    assert planes is hu
    planes, _ = Inflation(1.0).paint(hu, lesion, np.zeros_like(lungs), positions, np.random.default_rng(0))
    assert np.array_equal(planes, hu)


def test_only_slices_without_lesion_are_painted_and_their_labels_tell(a_store):
    still = AugmentationSettings.none()
    drawn = []
    for probability in (0.0, 1.0):
        changes = replace(still, synthetic_disease=SyntheticDisease(probability))
        data = DataSettings(crop=(32, 32), lesion_free_share=0.5, foreground_share=0.0)
        source = BatchSource(a_store, ["anna", "bert"], 8, data, changes, Preprocessing(), seed=2)
        drawn.append(source.batch(0))
    plain, sick = drawn
    lesion = plain.labels.any(axis=(1, 2))
    carries = np.array([index in a_store.cases[case].lesion_slices for case, index in plain.slices])
    assert np.array_equal(plain.images[carries], sick.images[carries])
    assert not lesion[~carries].any()
    assert sick.labels[~carries].any()
    for before, after, label in zip(plain.images[~carries], sick.images[~carries], sick.labels[~carries], strict=True):
        assert (after[0] - before[0])[label > 0].mean() > 0.03 if label.any() else True


def test_the_store_keeps_the_lungs_of_its_slices(a_store):
    lungs = a_store.lungs("anna")
    assert lungs.shape == a_store.cases["anna"].shape
    assert set(np.unique(lungs)) == {0, 1, 2}
    assert np.median(a_store.image("anna")[lungs > 0]) < -700
    assert a_store.cases["anna"].image_spacing == a_store.cases["anna"].spacing == (2.0, 1.0, 1.0)
