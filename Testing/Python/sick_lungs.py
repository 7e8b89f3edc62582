"""Disease painted into lungs, so that a network learns to find lungs by their shape where they hold no air.

The lungs' label stays as it is: whatever is painted is lung. The shapes need only be plausible to a network that finds
lungs; they are no lesions that one could learn to segment.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

# A voxel and its six neighbors.
_CROSS = np.zeros((3, 3, 3), bool)
_CROSS[1, 1, :] = _CROSS[1, :, 1] = _CROSS[:, 1, 1] = True

# Hounsfield units of fluid and of consolidated lung, and how much their texture varies.
_FLUID, _CONSOLIDATION, _TEXTURE = (-5.0, 30.0), (0.0, 90.0), (4.0, 35.0)
# Ground glass that is painted all over the lungs, HU, and how far the lung is brought there.
_HAZE, _HAZE_AMOUNT = (-550.0, -150.0), (0.5, 0.95)
# Emphysema darkens lung by up to so many HU.
_EMPHYSEMA = 130.0
# What is darker than the first of these beside a lung is an airway or bowel, what is brighter than the second is fat or
# other tissue; between them lie the half-filled voxels of the lung's own border, HU.
_AIRWAY, _FAT = -500.0, -150.0


def paint_disease(hu: Image, lungs: NDArray[np.uint8], spacing: Spacing, generator: np.random.Generator) -> Image:
    """A chest with disease inside its lungs.

    One of: consolidation of the lowest part of one lung or both, with a level or along an oblique plane as a lobe ends;
    effusion; a white lung; patches; haze all over; emphysema; or haze and one of the dense ones.

    Args:
        hu: (z, y, x) of the axial view, HU, on a grid of some millimeters.
        lungs: on the same grid, 1 right lung and 2 left lung.
        spacing: (z, y, x) mm.
        generator: of all that is random.

    Returns:
        A copy of the CT with the disease.
    """
    if not lungs.any():
        return hu.copy()
    # the dense ones are the hard ones
    kinds: list[Callable[..., Image]] = [*[dependent] * 3, *[lobar] * 3, *[white_lung] * 2, patches, haze, emphysema]
    kind = kinds[generator.integers(len(kinds))]
    if kind not in (haze, emphysema) and generator.random() < 0.3:
        hu = haze(hu, lungs, spacing, generator)
    return kind(hu, lungs, spacing, generator)


def dependent(hu: Image, lungs: NDArray[np.uint8], spacing: Spacing, generator: np.random.Generator) -> Image:
    """Consolidation or effusion of the parts that lie lowest in a patient on the back."""
    down = np.array([generator.normal(0, 0.25), 1.0, generator.normal(0, 0.2)])
    is_fluid = generator.random() < 0.4
    waves = generator.uniform(0, 3) if is_fluid else generator.uniform(0, 14)
    return _below_a_surface(hu, lungs, spacing, generator, down, waves, _FLUID if is_fluid else _CONSOLIDATION)


def lobar(hu: Image, lungs: NDArray[np.uint8], spacing: Spacing, generator: np.random.Generator) -> Image:
    """Consolidation that ends along an oblique plane, as a lobe does at its fissure, on either side of it."""
    down = np.array([generator.uniform(-1.2, -0.2), generator.uniform(0.3, 1.0), generator.normal(0, 0.2)])
    if generator.random() < 0.25:
        down = -down
    return _below_a_surface(hu, lungs, spacing, generator, down, generator.uniform(0, 5), _CONSOLIDATION)


def white_lung(hu: Image, lungs: NDArray[np.uint8], spacing: Spacing, generator: np.random.Generator) -> Image:
    """One lung, seldom both, without any air or nearly so."""
    amount = generator.uniform(0.85, 1.0)
    weight = np.where(_one_or_both(lungs, generator, both=0.15), np.float32(amount), np.float32(0))
    return _filled(hu, lungs, weight, _dense(hu.shape, spacing, generator, (0.0, 90.0)))


def patches(hu: Image, lungs: NDArray[np.uint8], spacing: Spacing, generator: np.random.Generator) -> Image:
    """Consolidation in patches, more of them at the back."""
    field = smooth_noise(hu.shape, spacing, generator.uniform(15, 40), generator)
    field += _along(np.array([0.0, generator.uniform(0, 0.015), 0.0]), hu.shape, spacing)
    weight = _share_of(field, lungs > 0, generator.uniform(0.05, 0.5), generator.uniform(0.1, 0.6))
    return _filled(hu, lungs, weight, _dense(hu.shape, spacing, generator, _CONSOLIDATION))


def haze(hu: Image, lungs: NDArray[np.uint8], spacing: Spacing, generator: np.random.Generator) -> Image:
    """Ground glass all over one lung or both, denser here than there."""
    del spacing
    amount = np.float32(generator.uniform(*_HAZE_AMOUNT))
    weight = np.where(_one_or_both(lungs, generator, both=0.8), amount, np.float32(0))
    return _filled(hu, lungs, weight, np.full(hu.shape, generator.uniform(*_HAZE), np.float32))


def emphysema(hu: Image, lungs: NDArray[np.uint8], spacing: Spacing, generator: np.random.Generator) -> Image:
    """Lungs that hold more air than healthy ones."""
    del spacing
    inside = (lungs > 0) & (hu < _AIRWAY)
    return np.where(inside, np.maximum(hu - np.float32(generator.uniform(0, _EMPHYSEMA)), np.float32(-1005)), hu)


def smooth_noise(shape: tuple[int, ...], spacing: Spacing, length: float, generator: np.random.Generator) -> Image:
    """Noise that varies over a length in mm, of about mean 0 and standard deviation 1."""
    noise = generator.standard_normal(
        [max(2, int(np.ceil(n * step / length)) + 2) for n, step in zip(shape, spacing, strict=True)]
    ).astype(np.float32)
    for axis, (n, step) in enumerate(zip(shape, spacing, strict=True)):
        place = generator.random() + np.arange(n) * step / max(length, step * (n - 1) / (noise.shape[axis] - 2 + 1e-6))
        low = np.minimum(place.astype(int), noise.shape[axis] - 2)
        part = place - low
        # so that the sum of two has the variance of one
        weights = np.stack([np.cos(part * np.pi / 2), np.sin(part * np.pi / 2)]).astype(np.float32)
        shaped = weights.reshape(2, *[-1 if other == axis else 1 for other in range(len(shape))])
        noise = noise.take(low, axis) * shaped[0] + noise.take(low + 1, axis) * shaped[1]
    return noise


def _along(direction: NDArray[np.float64], shape: tuple[int, ...], spacing: Spacing) -> Image:
    """Position along a direction (z, y, x), mm times its length."""
    axes = np.ogrid[tuple(map(slice, shape))]
    return sum(
        (axis * np.float32(step * part) for axis, step, part in zip(axes, spacing, direction, strict=True)),
        np.zeros(shape, np.float32),
    )


def _below_a_surface(
    hu: Image,
    lungs: NDArray[np.uint8],
    spacing: Spacing,
    generator: np.random.Generator,
    down: NDArray[np.float64],
    waves: float,
    density: tuple[float, float],
) -> Image:
    """What lies further down than a wavy plane filled, in one lung or both."""
    field = _along(down / np.linalg.norm(down), hu.shape, spacing)
    if waves:
        field += np.float32(waves) * smooth_noise(hu.shape, spacing, generator.uniform(15, 40), generator)
    chosen = _one_or_both(lungs, generator, both=0.6)
    weight = np.zeros(hu.shape, np.float32)
    for side in np.unique(lungs[chosen]):
        part = _share_of(field, lungs == side, generator.uniform(0.1, 0.8), generator.uniform(1.0, 8.0))
        weight = np.maximum(weight, part)
    return _filled(hu, lungs, weight, _dense(hu.shape, spacing, generator, density))


def _one_or_both(lungs: NDArray[np.uint8], generator: np.random.Generator, both: float) -> Mask:
    side = 1 + int(generator.integers(2))
    one = lungs == side
    return lungs > 0 if generator.random() < both or not one.any() else one


def _share_of(field: Image, where: Mask, share: float, width: float) -> Image:
    """Weight 1 in that share of a mask in which the field is largest, falling to 0 over ``width`` of the field."""
    values = field[where][::7]
    if not values.size:
        return np.zeros(field.shape, np.float32)
    level = np.float32(np.quantile(values, 1 - share))
    return np.where(where, np.clip((field - level) / np.float32(width) + 0.5, 0, 1), 0).astype(np.float32)


def _dense(
    shape: tuple[int, ...], spacing: Spacing, generator: np.random.Generator, density: tuple[float, float]
) -> Image:
    """Hounsfield units of tissue without air, with its texture."""
    texture = np.float32(generator.uniform(*_TEXTURE)) * smooth_noise(
        shape, spacing, generator.uniform(4, 12), generator
    )
    return texture + np.float32(generator.uniform(*density))


def _filled(hu: Image, lungs: NDArray[np.uint8], weight: Image, target: Image) -> Image:
    """The CT brought towards a target by a weight, where the target is brighter.

    The voxels beside a lung that are half lung are brought there as well: a dark seam would tell where the lung ends.
    """
    from scipy import ndimage

    near = ndimage.maximum_filter(weight, footprint=_CROSS)
    weight = np.where(lungs > 0, weight, np.where((hu > _AIRWAY) & (hu < _FAT), near, 0))
    return hu + weight * np.maximum(target - hu, 0)
