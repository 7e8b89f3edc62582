"""The lung finder on volumes made by code: any spacing, orientation, disease and field of view, and no chest at all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from lung_chests import (
    PRONE_TABLE,
    Chest,
    as_volume,
    assert_lungs,
    coarse_chest,
    ellipsoid,
    millimeters,
    overlap,
)
from scipy import ndimage

from COVIDLesionSegLib.errors import CancelledError, IntensityError, LungsNotFoundError
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
    chest = Chest((4.0, 2.0, 2.0))
    lung = chest.truth == 1
    _, y, _ = chest.grid
    band = lung & (np.abs(y - 45) < 4)
    behind = lung & (y >= 49)
    chest.hu[band] = 20
    found = find_lungs(chest.volume(20))
    assert np.count_nonzero(found[behind]) > 0.97 * np.count_nonzero(behind)
    assert np.count_nonzero(found[band]) > 0.95 * np.count_nonzero(band)


def test_stomach_and_bowel_gas_beneath_the_lungs_is_left_out():
    chest = Chest((4.0, 2.0, 2.0))
    gas = np.zeros(chest.hu.shape, dtype=bool)
    for center, radii in (
        ((60, -30, -128), (45, 35, 12)),
        ((-70, -45, -130), (20, 20, 9)),
        ((0, -75, -60), (14, 9, 14)),
    ):
        gas |= ellipsoid(chest.grid, center, radii) & (chest.truth == 0)
    chest.hu[gas] = -990
    found = find_lungs(chest.volume(20))
    assert np.count_nonzero(found[gas]) < 0.02 * np.count_nonzero(gas)


def test_food_in_the_stomach_is_no_piece_of_lung():
    """Mixed with gas it is as dense as lung, and it lies as near to the lung as a piece that is cut off."""
    chest = coarse_chest("haze", oblique=False)
    geometry = chest.volume.geometry
    k, j, i = np.indices(chest.lungs.shape, sparse=True)
    x, y, z = (origin + step * n for origin, step, n in zip(geometry.origin, geometry.spacing, (i, j, k), strict=True))
    stomach = ellipsoid((z, y, x), (40, 20, -90), (24, 24, 24))
    stomach &= ndimage.distance_transform_edt(chest.lungs == 0, sampling=geometry.spacing_zyx) > 7
    mottle = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(stomach.shape), 1)
    hu = np.where(stomach, np.where(mottle > 0, -700, 30), chest.volume.array).astype(np.int16)
    found = find_lungs(Volume(hu, geometry))
    assert not found[stomach].any()
    assert overlap(found > 0, chest.lungs > 0) > 0.95


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
    integers, floats = (find_lungs(as_volume(whole, chest.spacing, kind)) for kind in (np.int16, np.float32))
    assert np.array_equal(integers, floats)


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


# ---- what is no chest


def noise(low, high, shape=(60, 150, 150)):
    return np.random.default_rng(2).uniform(low, high, shape)


def gaussian_noise(mean, deviation, shape=(60, 150, 150)):
    return np.clip(np.random.default_rng(3).normal(mean, deviation, shape), -1024, 3000)


def water_phantom(hole):
    grid = _, y, x = millimeters((40, 120, 120), (4.0, 2.0, 2.0))
    hu = np.full((40, 120, 120), -1000.0)
    hu[:, ((x / 100) ** 2 + (y / 100) ** 2 <= 1)[0]] = 0
    hu[ellipsoid(grid, (10, 0, 0), (hole,) * 3)] = -1000
    return hu + np.random.default_rng(4).normal(0, 20, hu.shape)


def head_phantom():
    grid = millimeters((40, 120, 120), (4.0, 2.0, 2.0))
    hu = np.full((40, 120, 120), -1000.0)
    for radii, value in (((80, 95, 75), 40), ((74, 89, 70), 1000), ((68, 83, 64), 35)):
        hu[ellipsoid(grid, (0, 0, 0), radii)] = value
    for center, radii, value in (
        ((-20, -60, -20), (14, 12, 15), -1000),
        ((20, -60, -20), (14, 12, 15), -1000),
        ((50, 20, -30), (12, 15, 12), -600),
        ((-50, 20, -30), (12, 15, 12), -600),
    ):
        hu[ellipsoid(grid, center, radii)] = value
    return hu


def abdomen():
    chest = Chest(sides=())
    hu = np.where(chest.airway, 45, chest.hu)
    random = np.random.default_rng(5)
    for _ in range(14):
        center, radii = random.uniform((-100, -60, -120), (100, 20, 120)), random.uniform(10, 28, 3)
        hu[ellipsoid(chest.grid, center, radii)] = random.choice([-1000, -980, -950])
    return hu


@pytest.mark.parametrize(
    ("hu", "spacing"),
    [
        (abdomen, (4.0, 2.0, 2.0)),
        (head_phantom, (4.0, 2.0, 2.0)),
        (lambda: water_phantom(15), (4.0, 2.0, 2.0)),
        (lambda: water_phantom(40), (4.0, 2.0, 2.0)),
        (lambda: water_phantom(80), (4.0, 2.0, 2.0)),
        (lambda: Chest(sides=()).hu, (4.0, 2.0, 2.0)),
        (lambda: noise(-1024, 1024), (2.0, 1.0, 1.0)),
        (lambda: noise(-1024, 1024), (3.0, 2.0, 2.0)),
        (lambda: noise(-1024, 1024, (40, 40, 40)), (5.0, 8.0, 8.0)),
        (lambda: gaussian_noise(0, 500), (3.0, 2.0, 2.0)),
        (lambda: gaussian_noise(-700, 300), (3.0, 2.0, 2.0)),
        (lambda: gaussian_noise(-1000, 40), (3.0, 2.0, 2.0)),
        *(
            (lambda value=value: np.full((30, 100, 100), value), (3.0, 2.0, 2.0))
            for value in (0, 40, -400, -850, -1024, -3024)
        ),
        (lambda: np.full((1, 1, 1), -850), (3.0, 2.0, 2.0)),
    ],
)
def test_no_lungs(hu, spacing):
    with pytest.raises(LungsNotFoundError, match=r"No lungs were found in .*chest CT.*lung mask"):
        find_lungs(as_volume(hu(), spacing))


# ---- input, progress, cancelling


def test_voxels_that_are_not_a_number():
    chest = Chest((5.0, 3.0, 3.0))
    chest.hu[20, 40, 50] = np.nan
    with pytest.raises(IntensityError, match="not a number"):
        find_lungs(Volume(chest.hu, Geometry(chest.hu.shape[::-1], chest.spacing[::-1])))


def test_the_input_is_left_alone():
    chest = Chest((5.0, 3.0, 3.0))
    volume = chest.volume()
    before = volume.array.copy()
    find_lungs(volume)
    assert np.array_equal(volume.array, before)


def test_progress_runs_to_its_end():
    steps = []
    find_lungs(Chest((5.0, 3.0, 3.0)).volume(), progress=lambda *step: steps.append(step))
    assert {(phase, total) for phase, _, total in steps} == {("lungs", 100)}
    done = [done for _, done, _ in steps]
    assert done == sorted(done)
    assert done[-1] == 100
    assert done[0] < 20


@pytest.mark.parametrize("after", [0, 30, 60, 65, 70, 80])
def test_stops_when_asked(after):
    asked = []

    def cancelled():
        asked.append(None)
        return len(asked) > after

    with pytest.raises(CancelledError):
        find_lungs(Chest((5.0, 3.0, 3.0)).volume(), cancelled=cancelled)
    assert len(asked) == after + 1
