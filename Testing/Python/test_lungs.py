"""The lung finder on chests made by code: any spacing, orientation, disease and field of view."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from lung_chests import PRONE_TABLE, Chest, as_volume, assert_lungs, ellipsoid

from COVIDLesionSegLib.imaging import Geometry, Volume, find_lungs


@pytest.mark.parametrize(
    ("spacing", "extent"),
    [
        ((0.5, 1.0, 1.0), (60, 260, 360)),
        ((1.0, 0.5, 0.5), (30, 260, 360)),
        ((2.0, 0.7, 0.7), (100, 260, 360)),
        ((3.0, 1.5, 1.5), (280, 260, 360)),
        ((5.0, 1.0, 1.0), (280, 260, 360)),
        ((10.0, 0.8, 0.8), (280, 260, 360)),
        ((5.0, 9.0, 9.0), (280, 360, 360)),  # 40 x 40
        ((10.0, 9.0, 9.0), (280, 360, 360)),
    ],
)
def test_any_spacing(spacing, extent):
    chest = Chest(spacing, extent)
    assert_lungs(find_lungs(chest.volume()), chest.truth, 0.985)


@pytest.mark.parametrize(
    ("spacing", "noise"),
    [((4.0, 2.0, 2.0), 50), ((2.5, 1.0, 1.0), 100), ((5.0, 1.0, 1.0), 100), ((5.0, 9.0, 9.0), 100)],
)
def test_sharp_kernel_noise(spacing, noise):
    chest = Chest(spacing)
    assert_lungs(find_lungs(chest.volume(noise)), chest.truth, 0.98)


@pytest.mark.parametrize("options", [{"lung": -600}, {"lung": -700}, {"lung": -930}, {"heart": 280}, {"arms": True}])
def test_other_patients(options):
    chest = Chest(extent=(280, 260, 420), **options)
    assert_lungs(find_lungs(chest.volume(20)), chest.truth, 0.985)


def test_prone_patient_keeps_right_and_left():
    chest = Chest(table=PRONE_TABLE)
    assert_lungs(find_lungs(chest.volume()), chest.truth, 0.99)


def test_table_and_air_around_are_left_out():
    chest = Chest(arms=True, extent=(280, 300, 420))
    found = find_lungs(chest.volume(20))
    _, y, x = chest.grid
    outside_body = np.broadcast_to((x / 165) ** 2 + (y / 112) ** 2 > 1, found.shape)
    assert not found[outside_body].any()


def test_airways_are_left_out():
    chest = Chest((2.0, 1.0, 1.0), (200, 260, 360))
    found = find_lungs(chest.volume())
    between_the_lungs = chest.airway & (np.abs(chest.grid[2]) < 14)
    assert np.count_nonzero(found[between_the_lungs]) < 0.02 * np.count_nonzero(between_the_lungs)


def test_lungs_that_touch_are_parted_where_they_touch():
    chest = Chest((4.0, 1.5, 1.5), touching=True)
    assert (chest.truth == 1)[:, :, 119:121].any() or (chest.truth == 2)[:, :, 119:121].any()
    found = find_lungs(chest.volume(30))
    assert_lungs(found, chest.truth, 0.99, 0.98)


@pytest.mark.parametrize(
    ("center", "radius"),
    [
        ((-125, 10, 0), 25),  # against the lateral chest wall
        ((100, 55, -30), 28),  # against the posterior chest wall
        ((-80, 0, 20), 20),  # inside
        ((-105, -50, 30), 15),  # against the anterior chest wall
    ],
)
def test_consolidation_stays_inside(center, radius):
    chest = Chest((3.0, 1.5, 1.5))
    ball = chest.consolidate(center, radius)
    found = find_lungs(chest.volume(20))
    assert np.count_nonzero(found[ball]) > 0.93 * np.count_nonzero(ball)
    assert_lungs(found, chest.truth, 0.985)


def test_dense_ground_glass_at_the_diaphragm_stays_inside():
    chest = Chest((3.0, 1.5, 1.5))
    ball = chest.consolidate((-60, 30, -95), 22, hu=-320)
    found = find_lungs(chest.volume(40))
    assert np.count_nonzero(found[ball]) > 0.95 * np.count_nonzero(ball)


def test_lung_cut_off_by_a_consolidation_stays_inside():
    chest = Chest((3.0, 1.5, 1.5))
    lung = chest.truth == 1
    _, y, _ = chest.grid
    band = lung & (np.abs(y - 45) < 4)
    behind = lung & (y >= 49)
    chest.hu[band] = 20
    found = find_lungs(chest.volume(20))
    assert np.count_nonzero(found[behind]) > 0.97 * np.count_nonzero(behind)
    assert np.count_nonzero(found[band]) > 0.95 * np.count_nonzero(band)


def test_stomach_and_bowel_gas_beneath_the_lungs_is_left_out():
    chest = Chest((3.0, 1.5, 1.5))
    gas = np.zeros(chest.hu.shape, dtype=bool)
    for center, radii in (
        ((60, -30, -128), (45, 35, 12)),
        ((-70, -45, -130), (20, 20, 9)),
        ((0, -75, -60), (14, 9, 14)),
    ):
        gas |= ellipsoid(chest.grid, center, radii) & (chest.truth == 0)
    chest.hu[gas] = -990
    near = gas & (chest.hu == -990)
    found = find_lungs(chest.volume(20))
    assert np.count_nonzero(found[near]) < 0.02 * np.count_nonzero(near)


@pytest.mark.parametrize("side", [1, 2])
def test_one_lung_gets_its_own_label(side):
    chest = Chest(sides=(side,))
    found = find_lungs(chest.volume(20))
    assert set(np.unique(found)) == {0, side}
    assert_lungs(found, chest.truth, 0.985)


@pytest.mark.parametrize(("side", "columns"), [(1, slice(0, 88)), (2, slice(92, 180))])
def test_one_lung_in_the_field_of_view_gets_its_own_label(side, columns):
    chest = Chest()
    truth = np.where(chest.truth == side, side, 0)[:, :, columns]
    found = find_lungs(as_volume(chest.hu[:, :, columns], chest.spacing))
    assert_lungs(found, truth, 0.97)


@pytest.mark.parametrize("z", [20, 35, 50])
@pytest.mark.parametrize("thickness", [0.5, 5.0])
def test_one_slice(z, thickness):
    chest = Chest((4.0, 1.0, 1.0))
    found = find_lungs(as_volume(chest.hu[z : z + 1], (thickness, 1.0, 1.0)))
    assert_lungs(found, chest.truth[z : z + 1], 0.98)


def test_lungs_cut_by_first_and_last_slice():
    chest = Chest((2.0, 1.0, 1.0))
    part = slice(60, 80)
    assert_lungs(find_lungs(as_volume(chest.hu[part], chest.spacing)), chest.truth[part], 0.985)


@pytest.mark.parametrize("padding", [-2000, -3024])
@pytest.mark.parametrize("radius", [90, 120, 175])
def test_padding_outside_the_field_of_view(padding, radius):
    chest = Chest()
    _, y, x = chest.grid
    outside = np.broadcast_to(y**2 + x**2 > radius**2, chest.hu.shape)
    chest.hu[outside] = padding
    chest.truth[outside] = 0
    assert_lungs(find_lungs(chest.volume(20)), chest.truth, 0.955)


def test_padding_with_the_value_of_air_where_it_cuts_the_lungs():
    chest = Chest()
    _, y, x = chest.grid
    outside = np.broadcast_to(y**2 + x**2 > 120**2, chest.hu.shape)
    chest.hu[outside] = -1024
    chest.truth[outside] = 0
    assert_lungs(find_lungs(as_volume(np.maximum(chest.hu, -1024), chest.spacing)), chest.truth, 0.955)


def test_field_of_view_within_the_chest():
    chest = Chest()
    window = (slice(None), slice(20, 110), slice(40, 140))
    assert_lungs(find_lungs(as_volume(chest.hu[window], chest.spacing)), chest.truth[window], 0.98)


def test_float_and_integer_voxels_give_the_same():
    chest = Chest((5.0, 3.0, 3.0))
    whole = np.rint(chest.hu)
    assert np.array_equal(
        find_lungs(as_volume(whole, chest.spacing)), find_lungs(as_volume(whole, chest.spacing, np.float32))
    )


def orientations():
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield order, signs


@pytest.mark.parametrize(("order", "signs"), list(orientations()))
def test_every_orientation_gives_the_same(order, signs, a_small_chest):
    """Index axis a of the turned image runs along LPS axis order[a], forward or backward."""
    chest, expected = a_small_chest
    flips = tuple(2 - axis for axis, sign in zip(order, signs, strict=True) if sign < 0)
    # array axes are z, y, x: axis 2 - a of the turned array is axis 2 - order[a] of the straight one
    transpose = tuple(2 - order[2 - axis] for axis in range(3))
    turned = np.flip(chest.hu, flips).transpose(transpose)
    direction = np.zeros((3, 3))
    for axis in range(3):
        direction[order[axis], axis] = signs[axis]
    spacing = tuple(chest.spacing[::-1][order[axis]] for axis in range(3))
    geometry = Geometry(turned.shape[::-1], spacing, direction=tuple(direction.ravel()))
    found = find_lungs(Volume(np.ascontiguousarray(turned.astype(np.int16)), geometry))
    assert found.flags.c_contiguous
    assert np.array_equal(found, np.flip(expected, flips).transpose(transpose))


@pytest.fixture(scope="module")
def a_small_chest():
    chest = Chest((7.0, 4.5, 4.0))
    found = find_lungs(chest.volume())
    assert_lungs(found, chest.truth, 0.98)
    return chest, found
