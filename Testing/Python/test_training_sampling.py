"""Batches of training: which slices and crops they take, and how image and mask are changed together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from training_fixtures import WINDOW

from COVIDLesionSegLib.learning.config import AugmentationSettings, DataSettings
from COVIDLesionSegLib.learning.randomness import Purpose, draw
from COVIDLesionSegLib.learning.sampling import BatchSource, augment, crop_center
from COVIDLesionSegLib.measurement import dice

STILL = AugmentationSettings(flip=False, rotation_degrees=0, scale=0, intensity=0)


def source(store, **settings):
    data = DataSettings(crop=(32, 32), **settings)
    return BatchSource(store, ["anna", "bert", "cleo"], 5, data, STILL, WINDOW, seed=3)


def test_every_slice_is_seen_equally_often_and_lesion_free_ones_in_their_share(a_store):
    batches = source(a_store, lesion_free_share=0.2)
    chosen = [key for step in range(36) for key in batches.chosen(step)]
    lesion = [key for key in chosen if key[1] in a_store.cases[key[0]].lesion_slices]
    assert len(lesion) == 0.8 * len(chosen)
    counts = {key: lesion.count(key) for key in set(lesion)}
    assert len(counts) == 12
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_batch_depends_on_its_step_alone(a_store):
    one, other = source(a_store), source(a_store)
    for step in (7, 0, 3):
        other.batch(step)
    whole = one.batch(3)
    part = other.batch(3, range(2, 4))
    assert np.array_equal(whole.images[2:4], part.images)
    assert whole.slices[2:4] == part.slices
    assert whole.images.shape == (5, 1, 32, 32)
    assert whole.images.dtype == np.float32


def test_foreground_crops_hold_lesion():
    label = np.zeros((100, 120), dtype=np.uint8)
    label[10:12, 100:102] = 1
    data = DataSettings(crop=(32, 32), foreground_share=1.0)
    for place in range(20):
        row, column = crop_center(draw(0, Purpose.CROP, 0, place), label, data)
        assert 15.5 <= row <= 84.5
        assert abs(row - 15.5) <= 1
        assert abs(column - 101) <= 4


def test_without_changes_a_crop_is_the_slice():
    image = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    label = (image > 0.5).astype(np.uint8)
    crop, mask = augment(image, label, (31.5, 31.5), (32, 32), STILL, np.random.default_rng(0))
    assert np.array_equal(crop, image[16:48, 16:48])
    assert np.array_equal(mask, label[16:48, 16:48])


@pytest.mark.parametrize(
    "settings",
    [
        AugmentationSettings(rotation_degrees=0, scale=0, intensity=0),
        AugmentationSettings(),
        AugmentationSettings(rotation_degrees=30, scale=0.3, intensity=0.2, gamma=0.5, noise_sd=0.02, blur_sd=1.0),
        AugmentationSettings(sharpening=1.5, noise_sd=0.02, noise_grain=2.0, consolidation=0.5),
    ],
)
def test_image_and_mask_change_together(settings):
    """The mask of a bright disk stays on the disk, whatever happens."""
    rows, columns = np.mgrid[:96, :96]
    disk = (rows - 40) ** 2 + (columns - 55) ** 2 < 15**2
    image = np.where(disk, 0.9, 0.1).astype(np.float32)
    for seed in range(10):
        crop, mask = augment(image, disk.astype(np.uint8), (45, 50), (64, 64), settings, np.random.default_rng(seed))
        middle = (crop.max() + crop.min()) / 2
        assert dice(crop > middle, mask != 0) > 0.95
        assert crop.dtype == np.float32
        assert 0 <= crop.min() <= crop.max() <= 1


def test_at_half_the_zoom_a_crop_covers_four_times_the_area():
    image = np.zeros((128, 128), dtype=np.float32)
    image[32:96, 32:96] = 0.8
    label = (image > 0).astype(np.uint8)
    crop, mask = augment(image, label, (63.5, 63.5), (64, 64), STILL, np.random.default_rng(0), zoom=0.5)
    expected = np.zeros((64, 64), dtype=bool)
    expected[16:48, 16:48] = True
    assert np.array_equal(mask != 0, expected)
    assert np.array_equal(crop > 0.4, expected)


def test_a_zoomed_crop_stays_inside_its_slice():
    label = np.zeros((100, 120), dtype=np.uint8)
    label[2, 2] = 1
    data = DataSettings(crop=(32, 32), zoom=0.5, foreground_share=1.0)
    assert crop_center(draw(0, Purpose.CROP, 0, 0), label, data) == (31.0, 31.0)


def test_lesions_become_dense_and_nothing_else_does():
    rows, columns = np.mgrid[:96, :96]
    lesion = (rows - 40) ** 2 + (columns - 55) ** 2 < 20**2
    image = np.where(lesion, 0.5, 0.3).astype(np.float32)
    image[:, :8] = 1.0
    settings = AugmentationSettings(flip=False, rotation_degrees=0, scale=0, intensity=0, consolidation=1.0)
    changed = 0
    for seed in range(10):
        crop, _ = augment(image, lesion.astype(np.uint8), (47.5, 47.5), (96, 96), settings, np.random.default_rng(seed))
        far = (rows - 40) ** 2 + (columns - 55) ** 2 > 28**2
        assert np.array_equal(crop[far], image[far])
        assert (crop >= image - 1e-6).all()
        changed += (crop[lesion] > 0.7).mean() > 0.1
    assert changed >= 8


def test_grainy_noise_is_as_strong_as_white_noise_and_coarser():
    image, label = np.full((128, 128), 0.5, dtype=np.float32), np.zeros((128, 128), dtype=np.uint8)
    for grain in (0.0, 3.0):
        settings = replace(STILL, noise_sd=0.1, noise_grain=grain)
        found = []
        for seed in range(20):
            crop, _ = augment(image, label, (63.5, 63.5), (128, 128), settings, np.random.default_rng(seed))
            noise = crop - 0.5
            found.append((noise.std(), np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]))
        strength, neighbors = np.mean(found, axis=0)
        assert 0.04 < strength < 0.06
        assert (neighbors > 0.5) == (grain > 0)


def test_thicker_slices_are_means_of_neighbors(a_store):
    case = "anna"
    data = DataSettings(crop=(32, 32), foreground_share=0)
    thin, thick = (
        BatchSource(a_store, [case], 4, data, replace(STILL, neighbors=most), WINDOW, seed=0) for most in (0, 2)
    )
    grains: list[list[float]] = []
    for step in range(6):
        one, other = thin.batch(step), thick.batch(step)
        assert one.slices == other.slices
        assert np.array_equal(one.labels, other.labels)
        grains += [
            [float(np.abs(np.diff(image[0])).mean()) for image in pair]
            for pair in zip(one.images, other.images, strict=True)
        ]
    quieter = [after < 0.9 * before for before, after in grains if after != before]
    # no, one or two neighbors on either side: the noise of a mean is weaker
    assert 8 < len(quieter) < 24
    assert all(quieter)
