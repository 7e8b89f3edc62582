"""The lung finder on what is no chest, and how it behaves: its input, its progress, cancelling."""

from __future__ import annotations

import numpy as np
import pytest
from lung_chests import Chest, as_volume, ellipsoid, millimeters

from COVIDLesionSegLib.errors import CancelledError, IntensityError, LungsNotFoundError
from COVIDLesionSegLib.imaging import Geometry, Volume, find_lungs


def noise(low, high, shape=(60, 150, 150)):
    return np.random.default_rng(2).uniform(low, high, shape)


def gaussian_noise(mean, deviation, shape=(60, 150, 150)):
    return np.clip(np.random.default_rng(3).normal(mean, deviation, shape), -1024, 3000)


def water_phantom(hole):
    grid = z, y, x = millimeters((40, 120, 120), (4.0, 2.0, 2.0))
    hu = np.full((40, 120, 120), -1000.0)
    hu[((x / 100) ** 2 + (y / 100) ** 2 <= 1) & (np.abs(z) < 1e3)] = 0
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
            for value in (0, 40, -400, -850, -1024)
        ),
        (lambda: np.full((30, 100, 100), -3024), (3.0, 2.0, 2.0)),
        (lambda: np.full((1, 1, 1), -850), (3.0, 2.0, 2.0)),
    ],
)
def test_no_lungs(hu, spacing):
    with pytest.raises(LungsNotFoundError, match=r"No lungs were found in .*chest CT.*lung mask"):
        find_lungs(as_volume(hu(), spacing))


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
    assert {phase for phase, _, _ in steps} == {"lungs"}
    assert {total for _, _, total in steps} == {100}
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
