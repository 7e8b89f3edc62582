"""Batches of training: which slices and crops they take, and how each transform changes image and mask."""

from __future__ import annotations

from dataclasses import dataclass, fields, make_dataclass, replace

import numpy as np
import pytest

from COVIDLesionSegLib.learning import augmentation as aug
from COVIDLesionSegLib.learning.augmentation import AugmentationSettings, augment, cut
from COVIDLesionSegLib.learning.config import DataSettings
from COVIDLesionSegLib.learning.randomness import Purpose, draw
from COVIDLesionSegLib.learning.sampling import BatchSource, crop_center
from COVIDLesionSegLib.measurement import dice
from COVIDLesionSegLib.models import Preprocessing

STILL = AugmentationSettings.none()
ROWS, COLUMNS = np.mgrid[:96, :96]


def keyed(seed: int):
    """The generators of one sample."""
    return lambda transform: draw(seed, Purpose.AUGMENTATION, transform.key())


def changed(image, mask, settings, seed=0, center=None, size=None, **options):
    """A single slice through all transforms."""
    center = center or tuple((side - 1) / 2 for side in image.shape)
    size = size or image.shape
    images, masks = augment(image[None], mask[None], center, size, settings, keyed(seed), **options)
    return images[0], masks[0]


def disk(row=40, column=55, radius=15):
    return (ROWS - row) ** 2 + (COLUMNS - column) ** 2 < radius**2


def source(store, cases=("anna", "bert", "cleo"), augmentation=STILL, labels=None, seed=3, size=5, **settings):
    data = DataSettings(crop=(32, 32), **settings)
    return BatchSource(store, list(cases), size, data, augmentation, Preprocessing(), seed=seed, labels=labels)


# ---- which slices ---------------------------------------------------------------------------------------------------


def test_every_slice_is_seen_equally_often_and_lesion_free_ones_in_their_share(a_store):
    batches = source(a_store, lesion_free_share=0.2)
    chosen = [key for step in range(36) for key in batches.chosen(step)]
    lesion = [key for key in chosen if key[1] in a_store.cases[key[0]].lesion_slices]
    assert len(lesion) == 0.8 * len(chosen)
    counts = {key: lesion.count(key) for key in set(lesion)}
    assert len(counts) == 12
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_decks_are_those_of_the_labels_that_train(a_store):
    """Nobody who learns from noisy labels knows the right ones, not even for choosing slices."""
    noisy = np.zeros_like(a_store.label("anna"))
    noisy[0, 3:9, 3:9] = 1
    batches = source(a_store, ("anna",), labels={"anna": noisy}, size=2, lesion_free_share=0.5)
    for step in range(5):
        with_lesion, without = batches.chosen(step)
        assert with_lesion == ("anna", 0)
        assert without[1] > 0
        assert [label.any() for label in batches.batch(step).labels][1] == np.False_


def test_a_batch_depends_on_its_step_alone(a_store):
    settings = AugmentationSettings(noise=aug.Noise(0.1))
    one, other = source(a_store, augmentation=settings), source(a_store, augmentation=settings)
    for step in (7, 0, 3):
        other.batch(step)
    whole = one.batch(3)
    part = other.batch(3, range(2, 4))
    assert np.array_equal(whole.images[2:4], part.images)
    assert whole.slices[2:4] == part.slices
    assert whole.images.shape == (5, 1, 32, 32)
    assert whole.images.dtype == np.float32
    assert set(np.unique(whole.labels)) == {0, 1}


def test_foreground_crops_hold_lesion():
    label = np.zeros((100, 120), dtype=np.uint8)
    label[10:12, 100:102] = 1
    data = DataSettings(crop=(32, 32), foreground_share=1.0)
    for place in range(20):
        row, column = crop_center(draw(0, Purpose.CROP, 0, place), label, data)
        assert 15.5 <= row <= 84.5
        assert abs(row - 15.5) <= 1
        assert abs(column - 101) <= 4


def test_a_zoomed_crop_stays_inside_its_slice():
    label = np.zeros((100, 120), dtype=np.uint8)
    label[2, 2] = 1
    data = DataSettings(crop=(32, 32), zoom=0.5, foreground_share=1.0)
    assert crop_center(draw(0, Purpose.CROP, 0, 0), label, data) == (31.0, 31.0)


# ---- all transforms together ----------------------------------------------------------------------------------------


def test_without_changes_a_crop_is_the_slice():
    image = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    label = (image > 0.5).astype(np.uint8)
    crop, mask = changed(image, label, STILL, size=(32, 32))
    assert np.array_equal(crop, image[16:48, 16:48])
    assert np.array_equal(mask, label[16:48, 16:48])


@pytest.mark.parametrize(
    "settings",
    [
        AugmentationSettings(),
        replace(STILL, flip=aug.Flip(1), rotation=aug.Rotation(30), scale=aug.Scale(0.3)),
        AugmentationSettings(gamma=aug.Gamma(0.5), noise=aug.Noise(0.02), blur=aug.Blur(1.0)),
        AugmentationSettings(
            sharpening=aug.Sharpening(1.5), noise=aug.Noise(0.02, 2.0), consolidation=aug.Consolidation(0.5)
        ),
    ],
)
def test_image_and_mask_change_together(settings):
    """The mask of a bright disk stays on the disk, whatever happens, and stays a mask."""
    image = np.where(disk(), 0.9, 0.1).astype(np.float32)
    for seed in range(10):
        crop, mask = changed(image, disk().astype(np.uint8), settings, seed, (45, 50), (64, 64))
        middle = (crop.max() + crop.min()) / 2
        assert dice(crop > middle, mask != 0) > 0.95
        assert (crop.dtype, mask.dtype) == (np.float32, np.uint8)
        assert set(np.unique(mask)) == {0, 1}
        assert 0 <= crop.min() <= crop.max() <= 1


def test_one_more_transform_leaves_the_numbers_of_all_others():
    """A transform's draws are its own: another one, first in the list, changes nothing but what it does itself."""

    @dataclass(frozen=True)
    class Nothing(aug.Transform):
        def apply(self, images, masks, generator):
            generator.random(7)
            return images

    names = [item.name for item in fields(AugmentationSettings)]
    types = [("nothing", Nothing, Nothing()), *((name, object, None) for name in names)]
    more = make_dataclass("More", types, bases=(), namespace={"transforms": AugmentationSettings.transforms})
    strong = AugmentationSettings(noise=aug.Noise(0.05, 1.0), blur=aug.Blur(1.0), gamma=aug.Gamma(0.5))
    longer = more(**{name: getattr(strong, name) for name in names})
    image = np.random.default_rng(1).random((96, 96), dtype=np.float32)
    for one, other in zip(
        changed(image, disk().astype(np.uint8), strong), changed(image, disk().astype(np.uint8), longer), strict=True
    ):
        assert np.array_equal(one, other)


def test_no_two_transforms_share_their_draws():
    names = [item.name for item in fields(AugmentationSettings) if item.name != "imported"]
    keys = [getattr(AugmentationSettings(), name).key() for name in names]
    assert len(set(keys)) == len(keys)


def test_at_half_the_zoom_a_crop_covers_four_times_the_area():
    image = np.zeros((128, 128), dtype=np.float32)
    image[32:96, 32:96] = 0.8
    crop, mask = changed(image, (image > 0).astype(np.uint8), STILL, size=(64, 64), zoom=0.5)
    expected = np.zeros((64, 64), dtype=bool)
    expected[16:48, 16:48] = True
    assert np.array_equal(mask != 0, expected)
    assert np.array_equal(crop > 0.4, expected)


def test_planes_are_moved_alike_and_have_noise_of_their_own():
    image = np.stack([np.where(disk(), 0.9, 0.1)] * 3).astype(np.float32)
    settings = AugmentationSettings(noise=aug.Noise(0.1))
    images, masks = augment(image, np.stack([disk()] * 3).astype(np.uint8), (48, 48), (64, 64), settings, keyed(2))
    assert np.array_equal(masks[0], masks[2])
    assert not np.array_equal(images[0], images[1])


# ---- how a slice is read --------------------------------------------------------------------------------------------


def test_a_shifted_window_keeps_its_width():
    shift = aug.WindowShift(60.0)
    windows = [shift.window((1500.0, -650.0), np.random.default_rng(seed)) for seed in range(200)]
    assert {width for width, _ in windows} == {1500.0}
    levels = np.array([level for _, level in windows])
    assert levels.min() < -695 and levels.max() > -605
    assert np.abs(levels + 650).max() <= 60


def test_a_shifted_window_is_what_the_network_sees(a_store):
    """A higher level makes every voxel darker, by the shift over the width."""
    shifted = source(a_store, ("anna",), replace(STILL, window_shift=aug.WindowShift(100.0)), foreground_share=0)
    still = source(a_store, ("anna",), foreground_share=0)
    for step in range(4):
        one, other = still.batch(step).images, shifted.batch(step).images
        inside = (one > 0.1) & (one < 0.9) & (other > 0.05) & (other < 0.95)
        for image, moved, where in zip(one, other, inside, strict=True):
            difference = (image - moved)[where]
            assert difference.std() < 1e-6
            assert abs(difference.mean()) <= 100 / 1500


def test_thicker_slices_are_means_of_neighbors():
    volume = np.arange(7, dtype=np.int16)[:, None, None] ** 2 * np.ones((1, 2, 2), dtype=np.int16)
    thick = aug.ThickSlices(2)
    read = {float(thick.read(volume, 3, np.random.default_rng(seed))[0, 0]) for seed in range(30)}
    assert sorted(read) == pytest.approx([9.0, 29 / 3, 11.0])
    # at the end there are no neighbors on one side, so none are taken on the other
    assert {float(thick.read(volume, 0, np.random.default_rng(seed))[0, 0]) for seed in range(9)} == {0.0}
    assert aug.ThickSlices(0).read(volume, 3, np.random.default_rng(0)).dtype == np.int16


# ---- where a slice goes ---------------------------------------------------------------------------------------------


def test_flips_are_their_own_inverse_and_interpolate_nothing():
    image = np.random.default_rng(0).random((1, 9, 12), dtype=np.float32)
    seen = set()
    for seed in range(20):
        matrix = aug.Flip(0.5).matrix(np.random.default_rng(seed))
        flipped = cut(image, (4.0, 5.5), (9, 12), matrix, order=1)
        steps = tuple(int(step) for step in np.diag(matrix))
        seen.add(steps)
        assert np.array_equal(flipped, image[:, :: steps[0], :: steps[1]])
        assert np.array_equal(cut(flipped, (4.0, 5.5), (9, 12), matrix, order=1), image)
    assert len(seen) == 4


def test_a_rotation_turns_by_its_angle_and_back():
    degrees = []
    for seed in range(100):
        matrix = aug.Rotation(10.0).matrix(np.random.default_rng(seed))
        assert np.allclose(matrix @ matrix.T, np.eye(2))
        degrees.append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    assert 9 < max(degrees) <= 10 and -10 <= min(degrees) < -9
    planes = (disk(30, 60) | disk(60, 40, 9))[None].astype(np.uint8)
    matrix = aug.Rotation(10.0).matrix(Fixed(1.0))
    turned = cut(planes, (47.5, 47.5), (96, 96), matrix, order=0)
    assert dice(turned != 0, planes != 0) < 0.9
    assert dice(cut(turned, (47.5, 47.5), (96, 96), np.linalg.inv(matrix), order=0) != 0, planes != 0) > 0.98


def test_a_scale_of_one_tenth_changes_areas_by_a_fifth():
    matrix = np.eye(2) / 1.1
    bigger = cut(disk(47, 47)[None].astype(np.uint8), (47.5, 47.5), (96, 96), matrix, order=0)
    assert bigger.sum() / disk(47, 47).sum() == pytest.approx(1.21, abs=0.02)
    factors = [1 / aug.Scale(0.1).matrix(np.random.default_rng(seed))[0, 0] for seed in range(100)]
    assert 0.9 <= min(factors) < 0.92 and 1.08 < max(factors) <= 1.1


def test_beyond_its_border_a_slice_is_mirrored():
    plane = np.arange(4, dtype=np.float32)[None, :, None] * np.ones((1, 1, 4), dtype=np.float32)
    rows = cut(plane, (1.5, 1.5), (10, 4), np.eye(2), order=1)[0, :, 0]
    assert rows.tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]


# ---- how bright it is -----------------------------------------------------------------------------------------------


class Fixed:
    """A generator whose draws are all the same."""

    def __init__(self, value):
        self.value = value

    def uniform(self, low, high, size=None):
        value = low + (high - low) * self.value
        return value if size is None else np.full(size, value)

    def random(self, size=None):
        return self.uniform(0, 1, size)


RAMP = np.linspace(0.2, 0.8, 64, dtype=np.float32).reshape(1, 8, 8)


def test_contrast_turns_about_the_middle_of_the_window():
    out = aug.Contrast(0.2, 0.0).apply(np.float32([[[0.25, 0.5, 1.0]]]), None, Fixed(1.0))
    assert out.ravel().tolist() == pytest.approx([0.2, 0.5, 1.1])
    assert aug.Contrast(0.0, 0.1).apply(RAMP, None, Fixed(0.0)) == pytest.approx(RAMP - 0.1)
    back = aug.Contrast(0.2, 0.0).apply(RAMP, None, Fixed(1.0)) - 0.5
    assert back / 1.2 + 0.5 == pytest.approx(RAMP)


def test_gamma_is_undone_by_its_inverse():
    darker = aug.Gamma(0.5).apply(RAMP, None, Fixed(1.0))
    assert darker == pytest.approx(RAMP ** np.sqrt(2), abs=1e-6)
    assert aug.Gamma(0.5).apply(darker, None, Fixed(0.0)) == pytest.approx(RAMP, abs=1e-6)


def test_blurred_edges_are_soft_and_sharpened_ones_overshoot():
    edge = np.zeros((1, 32, 32), dtype=np.float32)
    edge[:, :, 16:] = 0.5
    soft = aug.Blur(2.0).apply(edge, None, Fixed(1.0))
    assert 0.1 < soft[0, 16, 15] < 0.25 and soft.mean() == pytest.approx(edge.mean(), abs=1e-3)
    sharp = aug.Sharpening(1.0).apply(edge, None, Fixed(1.0))
    assert sharp.max() > 0.6 and sharp.min() < -0.1


def test_lesions_become_dense_and_nothing_else_does():
    lesion = disk(radius=20)
    image = np.where(lesion, 0.5, 0.3).astype(np.float32)
    image[:, :8] = 1.0
    filled = 0
    for seed in range(10):
        crop = aug.Consolidation(1.0).apply(image[None], lesion[None].astype(np.uint8), np.random.default_rng(seed))[0]
        far = (ROWS - 40) ** 2 + (COLUMNS - 55) ** 2 > 28**2
        assert np.array_equal(crop[far], image[far])
        assert (crop >= image - 1e-6).all()
        filled += (crop[lesion] > 0.7).mean() > 0.1
    assert filled >= 8


def test_grainy_noise_is_as_strong_as_white_noise_and_coarser():
    image = np.full((1, 128, 128), 0.5, dtype=np.float32)
    for grain in (0.0, 3.0):
        found = []
        for seed in range(20):
            noise = aug.Noise(0.1, grain).apply(image, None, np.random.default_rng(seed))[0] - 0.5
            found.append((noise.std(), np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]))
        strength, neighbors = np.mean(found, axis=0)
        assert 0.04 < strength < 0.06
        assert (neighbors > 0.5) == (grain > 0)


def test_slices_without_lesion_are_drawn_as_often_as_they_are(a_store):
    """Two of the six slices of each patient have none."""
    batches = source(a_store, size=4, lesion_free_share=-1.0)
    chosen = [place for step in range(12) for place in batches.chosen(step)]
    free = [place for place in chosen if place[1] not in a_store.cases[place[0]].lesion_slices]
    assert len(free) * 3 == len(chosen) == 48
