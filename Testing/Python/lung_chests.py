"""Chests made by code whose lungs are known, for the tests of the lung finder."""

from __future__ import annotations

import functools

import numpy as np

from COVIDLesionSegLib.imaging import Geometry, Volume, locate_lungs
from COVIDLesionSegLib.phantom.sick import sick_chest

SUPINE_TABLE, PRONE_TABLE = 128.0, -128.0


@functools.cache
def coarse_chest(name, oblique=True):
    """A sick chest on the coarse grid, made once: to be read only."""
    chest = sick_chest(name, coarse=True, oblique=oblique)
    for array in (chest.volume.array, chest.lungs, chest.lobes, chest.lesion, chest.ggo, chest.consolidation):
        array.flags.writeable = False
    return chest


@functools.cache
def lungs_found(name):
    """What the finder finds in a sick chest, looked for once."""
    return locate_lungs(coarse_chest(name).volume)


def millimeters(shape, spacing):
    """Open grids z, y, x in millimeters about the array's center."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    return np.meshgrid(*axes, indexing="ij", sparse=True)


def ellipsoid(grid, center, radii):
    """Center and radii as (x, y, z) mm."""
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid[::-1], center, radii, strict=True)) <= 1


class Chest:
    """A chest made by code: ``hu`` float32 and ``truth`` (1 right, 2 left) on an axial grid."""

    def __init__(
        self,
        spacing=(4.0, 2.0, 2.0),
        extent=(280.0, 260.0, 360.0),
        lung=-850.0,
        sides=(1, 2),
        touching=False,
        arms=False,
        table=SUPINE_TABLE,
        heart=45.0,
    ):
        self.spacing = spacing
        shape = tuple(max(1, round(e / s)) for e, s in zip(extent, spacing, strict=True))
        self.grid = millimeters(shape, spacing)
        _, y, x = self.grid
        everywhere = np.ones(shape, dtype=bool)
        self.hu = np.full(shape, -1000, dtype=np.float32)
        self.hu[everywhere & ((x / 165) ** 2 + (y / 112) ** 2 <= 1)] = -100
        self.hu[everywhere & ((x / 155) ** 2 + (y / 102) ** 2 <= 1)] = 45
        if arms:
            for side in (-1, 1):
                self.hu[everywhere & (((x - side * 185) / 16) ** 2 + ((y - 10) / 22) ** 2 <= 1)] = 45
        self.truth = np.zeros(shape, dtype=np.uint8)
        distance = 59 if touching else 75
        for side in sides:
            center = -distance if side == 1 else distance
            self.truth[ellipsoid(self.grid, (center, 0, 0), (60, 80, 112))] = side
        if not touching:
            inside = ellipsoid(self.grid, (15, -25, -45), (55, 45, 60))
            self.hu[inside] = heart
            self.truth[inside] = 0
        self.hu[self.truth > 0] = lung
        self.hu[everywhere & ((x / 18) ** 2 + ((y - 62) / 18) ** 2 <= 1)] = 300
        if not touching:
            self._add_airways()
        if table is not None:
            top = np.abs(y - table)
            self.hu[everywhere & (top < 13) & (np.abs(x) < 170)] = -940
            self.hu[everywhere & (np.abs(top - 13) < 1.5) & (np.abs(x) < 170)] = -50

    def _add_airways(self):
        z, y, x = self.grid
        wall = (z > 18) & ((x / 11) ** 2 + ((y - 12) / 11) ** 2 <= 1)
        self.hu[wall] = 45
        self.truth[wall] = 0
        self.airway = (z > 20) & ((x / 9) ** 2 + ((y - 12) / 9) ** 2 <= 1)
        for side in (-1, 1):
            along = np.clip(x * side * 0.6 + (20 - z) * 0.8, 0, 45)
            off = (x - side * 0.6 * along) ** 2 + (y - 12) ** 2 + (z - 20 + 0.8 * along) ** 2
            self.hu[off <= 64] = 45
            self.airway |= off <= 36
        _, _, x = self.grid
        self.truth[self.airway & (np.abs(x) < 15)] = 0
        self.hu[self.airway] = -1000

    def consolidate(self, center, radius, hu=30.0):
        """Fill a ball, as far as it lies in the lungs."""
        ball = ellipsoid(self.grid, center, (radius,) * 3) & (self.truth > 0)
        self.hu[ball] = hu
        return ball

    def volume(self, noise=0.0, dtype=np.int16):
        hu = self.hu + np.random.default_rng(1).normal(0, noise, self.hu.shape) if noise else self.hu
        return as_volume(hu, self.spacing, dtype)


def as_volume(hu, spacing, dtype=np.int16):
    array = np.clip(hu, -3024, 3000).astype(dtype)
    return Volume(array, Geometry(array.shape[::-1], spacing[::-1]))


def overlap(found, truth):
    return 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))


def assert_lungs(found, truth, least, least_side=None):
    assert found.dtype == np.uint8
    assert found.shape == truth.shape
    assert overlap(found > 0, truth > 0) >= least
    for side in np.unique(truth[truth > 0]):
        assert overlap(found == side, truth == side) >= (least_side or least), f"side {side}"
