"""Sick chests: the synthetic chest with what hides the lungs from whoever looks for air.

Each has the lesions of the synthetic chest and a condition beside them, with the true lungs and the true lesion: what
finding the lungs, and every figure that needs them, is checked on.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from . import _chest
from .synthetic import SIZE, SPACING, Array, Condition, Phantom, chest_grid, chest_with

COARSE_SIZE = (75, 96, 128)
COARSE_SPACING = (4.0, 3.0, 3.0)

# A collapsed lung shrinks to this share of its length about its hilum, which lies towards the back.
_COLLAPSE = 0.74
_HILUM = {1: (-46.0, 40.0, -14.0), 2: (46.0, 40.0, -14.0)}
# Positions of the lungs are sampled this far apart to learn where gravity's level is, mm.
_SAMPLING = 4.0


@dataclass(frozen=True)
class SickChest:
    """A condition of the lungs and the part of the chest that the scanner saw.

    Attributes:
        description: what it shows, for a person.
        condition: of the lungs.
        side: 1 right or 2 left where only that half of the chest lies in the field of view; None for the whole chest.
    """

    description: str
    condition: Condition
    side: int | None = None


@functools.cache
def _levels(share: float) -> tuple[float, float]:
    """Height y behind which each lung, right and left, has this share of its volume, waves of the surface included."""
    axes = [np.arange(low, high, _SAMPLING) for low, high in ((-140, 140), (-100, 104), (-140, 140))]
    x, y, z = (v.ravel().astype(np.float32) for v in np.meshgrid(*axes, indexing="ij"))
    lung = _chest.lung_distance(x, y, z, _chest.cage(x, y, z)[0]) < 0
    height = y + _ripple(x, z)
    right, left = (
        float(np.quantile(height[lung & side], 1 - share)) for side in (x < _chest.MIDLINE, x > _chest.MIDLINE)
    )
    return right, left


def _ripple(x: Array, z: Array) -> Array:
    return 4 * np.sin(x / 19 + z / 31) + 3 * np.sin(z / 13 - x / 23)


def _dependent(share: float, x: Array, y: Array, z: Array) -> Array:
    right, left = _levels(share)
    return y + _ripple(x, z) - np.where(x < _chest.MIDLINE, right, left)


def _in_lobes(labels: tuple[int, ...], x: Array, y: Array, z: Array) -> Array:
    # a fissure ends a consolidation sharply
    return np.where(np.isin(_chest.lobes(x, y, z)[0], labels), 99.0, -99.0)


def _expanded(side: int, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    collapsed = (x < _chest.MIDLINE) == (side == 1)
    factor = np.where(collapsed, 1 / _COLLAPSE, 1.0).astype(np.float32)
    hx, hy, hz = _HILUM[side]
    return hx + (x - hx) * factor, hy + (y - hy) * factor, hz + (z - hz) * factor


def _compressed(side: int, x: Array, y: Array) -> Array:
    """HU of lungs of which one is collapsed: as much tissue in less room."""
    healthy = -852 + 0.32 * y
    return np.where((x < _chest.MIDLINE) == (side == 1), (healthy + 1000) / _COLLAPSE**3 - 1000, healthy)


#: name -> what it is
SICK_CHESTS: dict[str, SickChest] = {
    "dependent_25": SickChest(
        "the lowest quarter of both lungs of a patient on his back is consolidated",
        Condition(functools.partial(_dependent, 0.25)),
    ),
    "dependent_40": SickChest(
        "the lowest 40 % of both lungs of a patient on his back are consolidated",
        Condition(functools.partial(_dependent, 0.40)),
    ),
    "lower_lobe": SickChest("the right lower lobe is consolidated", Condition(functools.partial(_in_lobes, (5,)))),
    "lower_lobes": SickChest("both lower lobes are consolidated", Condition(functools.partial(_in_lobes, (2, 5)))),
    "white_left_lung": SickChest(
        "the whole left lung is consolidated", Condition(functools.partial(_in_lobes, (1, 2)))
    ),
    "haze": SickChest(
        "ground glass of -450 to -300 HU all over both lungs",
        Condition(tissue=lambda _, y: -375 + 75 / 90 * y, is_ggo=True),
    ),
    "pneumothorax": SickChest(
        "free gas around the collapsed left lung",
        Condition(tissue=functools.partial(_compressed, 2), expanded=functools.partial(_expanded, 2)),
    ),
    "emphysema": SickChest(
        "both lungs at about -960 HU", Condition(tissue=lambda _, y: np.full_like(y, -960), grain=8.0)
    ),
    "right_half": SickChest("the field of view holds the right half of the chest", Condition(), side=1),
    "left_half": SickChest("the field of view holds the left half of the chest", Condition(), side=2),
}


def sick_chest(name: str, seed: int = 0, coarse: bool = False, oblique: bool = True) -> Phantom:
    """Make one of :data:`SICK_CHESTS`.

    Args:
        name: which.
        seed: of all that is random, as for :func:`synthetic_chest`.
        coarse: voxels of 4 x 3 x 3 mm (z, y, x) instead of 2.5 x 1 x 1, made in a second.
        oblique: as for :func:`synthetic_chest`.

    Returns:
        The phantom with its true lungs and lesion.

    Raises:
        InputError: a name that is not known, or a negative seed.
    """
    if name not in SICK_CHESTS:
        raise InputError(f"There is no sick chest {name!r}; known are {', '.join(SICK_CHESTS)}.")
    chest = SICK_CHESTS[name]
    size, spacing = (COARSE_SIZE, COARSE_SPACING) if coarse else (SIZE, SPACING)
    if chest.side is None:
        return chest_with(chest.condition, seed, chest_grid(size, spacing, oblique))
    half = (size[0], size[1], size[2] // 2)
    away = half[2] * spacing[2] / 2
    center = (_chest.MIDLINE + (away if chest.side == 2 else -away), 5.0, 0.0)
    return chest_with(chest.condition, seed, chest_grid(half, spacing, oblique, center))
