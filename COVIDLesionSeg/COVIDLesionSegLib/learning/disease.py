"""Synthetic disease on real healthy lung: ground-glass opacity, crazy paving, consolidation with air bronchograms.

Whoever has few labeled patients has no severely ill ones. What is painted here has a mask that is exactly known, in any
amount up to most of the lung. Everything is a function of the position in mm, so planes that are painted together agree
with one another as slices of one patient do.

The forms are those that radiologists describe in COVID-19 (Hansell et al., Fleischner Society glossary, Radiology 2008;
Bernheim et al., Radiology 2020): patches at the back and beneath the pleura, one-sided or on both sides, haze through
which vessels stay visible, a pattern of lines on haze, and dense lung in which bronchi stay full of air.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

# fraction of the lung that is diseased, drawn evenly on a logarithmic scale
LEAST_DISEASED, MOST_DISEASED = 0.01, 0.7
ONE_SIDED = 0.25
# size of the patches, mm
_PATCH_MM = (12.0, 40.0)
# how much likelier disease is at the back and beneath the pleura, in standard deviations of the patches' noise
_BACK, _PLEURA = (0.0, 2.0), (-0.3, 1.5)
# depth of what counts as beneath the pleura, mm
_PLEURA_MM = 12.0
# width over which disease sets in, in standard deviations of the patches' noise
_BORDER = (0.03, 0.15)
# Lift of aerated lung by haze, HU. The faintest that experts outlined lies about 100 HU above healthy lung, and the
# mask ends where half of this is reached: less must not be taught as lesion.
_HAZE_HU = (200.0, 500.0)
_TEXTURE_MM, _TEXTURE = (2.0, 5.0), 0.35
_HAS_PAVING, _PAVING_MM, _PAVING_HU = 0.35, (4.0, 8.0), (80.0, 250.0)
_HAS_CONSOLIDATION, _CONSOLIDATED = 0.5, (0.1, 1.0)
_DENSE_HU, _DENSE_NOISE_HU = (-40.0, 60.0), 15.0
_HAS_BRONCHOGRAM, _BRONCHOGRAM_MM, _AIR_HU = 0.6, (10.0, 18.0), -850.0
# tissue as dense as this, vessels and walls, is not lifted by haze; air is lifted by all of it
_TISSUE_HU, _AERATED_HU = 0.0, -800.0


def paint_disease(
    hu: NDArray[Any],
    lungs: NDArray[np.uint8],
    positions: tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
    generator: np.random.Generator,
) -> tuple[Field, NDArray[np.uint8]]:
    """Paint disease on planes of one CT.

    Args:
        hu: (planes, rows, columns), Hounsfield units, rows to the back.
        lungs: of the same shape; 0 outside, 1 right, 2 left (1 for both where they are not told apart).
        positions: of planes, rows and columns, mm.
        generator: of everything that is drawn.

    Returns:
        The planes with disease, float32, unchanged outside the lungs; and its mask, 0 or 1. Without lung nothing is
        painted.
    """
    planes = np.asarray(hu, dtype=np.float32)
    sick = lungs != 0
    if generator.random() < ONE_SIDED and (lungs == 1).any() and (lungs == 2).any():
        sick = lungs == generator.integers(1, 3)
    fraction = float(np.exp(generator.uniform(np.log(LEAST_DISEASED), np.log(MOST_DISEASED))))
    if not sick.any():
        return planes, np.zeros(planes.shape, dtype=np.uint8)
    likely = _likeliness(sick, positions, generator)
    onset = np.quantile(likely[sick], 1 - fraction)
    weight = _soft(likely - np.float32(onset), generator.uniform(*_BORDER)) * sick

    out = _with_haze(planes, weight, positions, generator)
    if generator.random() < _HAS_CONSOLIDATION:
        out = _with_consolidation(out, weight, sick, positions, generator)
    return out, (weight > 0.5).astype(np.uint8)


def _likeliness(sick: NDArray[np.bool_], positions: Any, generator: np.random.Generator) -> Field:
    """Where disease comes first: smooth noise of two sizes, more at the back and beneath the pleura."""
    from scipy import ndimage

    patch = generator.uniform(*_PATCH_MM)
    noise = smooth_noise(positions, patch, generator) + np.float32(0.35) * smooth_noise(positions, patch / 3, generator)
    rows = np.flatnonzero(sick.any(axis=(0, 2)))
    back = np.clip((np.arange(sick.shape[1]) - rows[0]) / max(np.ptp(rows), 1), 0, 1).astype(np.float32)
    steps = [_step(axis) for axis in positions[1:]]
    inner = ndimage.gaussian_filter(sick.astype(np.float32), (0, *(_PLEURA_MM / step for step in steps)))
    pleura = 2 * (1 - inner)
    return np.asarray(
        noise
        + np.float32(generator.uniform(*_BACK)) * back[None, :, None]
        + np.float32(generator.uniform(*_PLEURA)) * pleura,
        dtype=np.float32,
    )


def _with_haze(planes: Field, weight: Field, positions: Any, generator: np.random.Generator) -> Field:
    """Ground-glass opacity, a textured lift of what is aerated; sometimes with the ridges of crazy paving."""
    texture = smooth_noise(positions, generator.uniform(*_TEXTURE_MM), generator)
    lift = np.float32(generator.uniform(*_HAZE_HU)) * np.clip(1 + np.float32(_TEXTURE) * texture, 0.4, 2)
    if generator.random() < _HAS_PAVING:
        # the surfaces on which smooth noise is zero enclose cells, as thickened septa do
        ridges = np.exp(-np.square(smooth_noise(positions, generator.uniform(*_PAVING_MM), generator) / 0.25))
        lift = lift + np.float32(generator.uniform(*_PAVING_HU)) * ridges
    aerated = np.clip((_TISSUE_HU - planes) / (_TISSUE_HU - _AERATED_HU), 0, 1)
    return np.asarray(planes + weight * lift * aerated, dtype=np.float32)


def _with_consolidation(
    planes: Field, weight: Field, sick: NDArray[np.bool_], positions: Any, generator: np.random.Generator
) -> Field:
    """Part of the disease as dense as soft tissue, with soft borders; some of it with bronchi that stay full of air."""
    inside = weight > 0.5
    noise = smooth_noise(positions, generator.uniform(*_PATCH_MM), generator)
    share, border = generator.uniform(*_CONSOLIDATED), generator.uniform(*_BORDER)
    onset = np.quantile(noise[inside], 1 - share) if inside.any() else np.inf
    dense = weight * _soft(noise - np.float32(onset), border)
    grain = np.float32(_DENSE_NOISE_HU) * smooth_noise(positions, 2.0, generator)
    target = np.float32(generator.uniform(*_DENSE_HU)) + grain
    if generator.random() < _HAS_BRONCHOGRAM:
        # two smooth noises are zero together on winding lines: tubes around them
        scale = generator.uniform(*_BRONCHOGRAM_MM)
        squares = sum(np.square(smooth_noise(positions, scale, generator)) for _ in range(2))
        tubes = np.exp(-squares / np.float32(0.2**2))
        target = target + tubes * (np.float32(_AIR_HU) - target)
        # a bronchus is darker than the haze that was there
        return np.asarray(planes + dense * sick * (target - planes) * ((planes < target) | (tubes > 0.3)), np.float32)
    return np.asarray(planes + dense * sick * np.maximum(target - planes, 0), dtype=np.float32)


def smooth_noise(positions: Any, scale: float, generator: np.random.Generator) -> Field:
    """Noise of unit standard deviation that is smooth over a distance: cubic B-splines on a grid of random numbers.

    Args:
        positions: of planes, rows and columns, mm.
        scale: distance of the grid's nodes, mm.
        generator: draws the nodes.

    Returns:
        float32 (planes, rows, columns).
    """
    bases = [_spline_basis(np.asarray(axis, dtype=np.float64) / scale) for axis in positions]
    field = generator.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    for axis, basis in enumerate(bases):
        field = np.moveaxis(np.tensordot(basis, field, axes=(1, axis)), 0, axis)
    # sum of squared weights of the nodes, mean over the cell: (151 / 315) per axis
    return np.asarray(field * np.float32((315 / 151) ** 1.5), dtype=np.float32)


def _spline_basis(places: NDArray[np.float64]) -> Field:
    """Weights (n, nodes) of a uniform cubic B-spline's nodes at some places, in nodes."""
    cell = np.floor(places - places.min()).astype(np.intp)
    t = (places - places.min()) - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    basis = np.zeros((len(places), cell.max() + 4), dtype=np.float32)
    for node in range(4):
        basis[np.arange(len(places)), cell + node] = weights[:, node]
    return basis


def _soft(distance: Field, width: float) -> Field:
    """A step from 0 to 1 of a width, by half at 0."""
    return np.asarray(1 / (1 + np.exp(-np.clip(distance / np.float32(width), -30, 30))), dtype=np.float32)


def _step(positions: NDArray[np.floating[Any]]) -> float:
    return float(abs(positions[1] - positions[0])) if len(positions) > 1 else 1.0
