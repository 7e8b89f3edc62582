"""A chest made by code, with COVID-19 pneumonia of known volume.

It is the demo's embedded input, sample data, and the object on which quantification is checked: what was put in is
known voxel by voxel. Its anatomy comes from textbook sizes, never from what a network or the lung finder makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.geometry import Geometry
from ..imaging.volume import Volume
from . import _chest, _trees

Array = NDArray[Any]

SIZE = (120, 288, 384)
SPACING = (2.5, 1.0, 1.0)
# Middle of the field of view: the chest with the table under it.
_CENTER = (0.0, 5.0, 0.0)
# Turns of the oblique grid about left, posterior and superior, degrees.
_TURNS = (4.0, -3.0, 6.0)
_SLAB = 8


@dataclass(frozen=True)
class Lesion:
    """One lesion as a shape.

    The shape is an ellipsoid around ``center``, or a layer under the pleura that follows the chest wall: within
    ``radii`` of a point of the pleura, and ``depth`` mm deep there.

    Attributes:
        name: place in words.
        kind: "ggo" or "consolidation".
        center: LPS position, mm.
        radii: semi-axes along left, posterior and superior, mm.
        depth: mm below the pleura, or 0 for an ellipsoid.
        roughness: how much waves deform the border, as a share of the radii; 0 for an exact ellipsoid.
        hu: mean Hounsfield units inside.
        lines: whether thickened septa cross it (crazy paving).
    """

    name: str
    kind: str
    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    depth: float = 0.0
    roughness: float = 0.18
    hu: float = -580.0
    lines: bool = False

    @property
    def analytic_ml(self) -> float | None:
        """Volume of an undeformed ellipsoid, mL; None for other shapes."""
        if self.depth or self.roughness:
            return None
        return 4 / 3 * np.pi * float(np.prod(self.radii)) / 1000


# Moderate COVID-19 pneumonia: both lungs, mostly lower lobes, at the back and under the pleura. The three round ones
# lie free in the lung, so that their volumes are known in closed form.
LESIONS = (
    Lesion("right lower lobe, back", "ggo", (-74, 78, -46), (46, 44, 44), 34, hu=-590, lines=True),
    Lesion("left lower lobe, back", "ggo", (70, 78, -44), (42, 40, 40), 28, hu=-560),
    Lesion("left lower lobe, tip", "ggo", (62, 82, 28), (26, 24, 22), 17, hu=-620),
    Lesion("right upper lobe, back", "ggo", (-78, 62, 50), (30, 30, 26), 22, hu=-570),
    Lesion("right middle lobe, side", "ggo", (-112, -36, -22), (26, 26, 20), 15, hu=-640),
    Lesion("left upper lobe, side", "ggo", (122, 2, 22), (30, 30, 24), 19, hu=-600),
    Lesion("lingula", "ggo", (92, -58, -24), (20, 20, 15), 14, hu=-630),
    Lesion("right lower lobe, round", "ggo", (-88, 12, -22), (13, 11, 12), roughness=0, hu=-560),
    Lesion("left upper lobe, halo", "ggo", (74, -12, 52), (14, 14, 14), roughness=0, hu=-560),
    Lesion("right lower lobe, back", "consolidation", (-66, 84, -62), (38, 36, 30), 22, hu=28),
    Lesion("left lower lobe, back", "consolidation", (58, 86, -58), (30, 30, 24), 16, hu=22),
    Lesion("left upper lobe, core of the halo", "consolidation", (74, -12, 52), (8, 8, 8), roughness=0, hu=18),
)


@dataclass(frozen=True)
class Condition:
    """What is wrong with the lungs beside single lesions; functions take LPS positions (x, y, z) in mm.

    Attributes:
        consolidated: how deep a position lies inside consolidated lung, mm; negative outside.
        tissue: HU of the aerated lung by x and y alone; None is healthy.
        grain: standard deviation of the aerated lung's texture, HU.
        is_ggo: whether all of that tissue is ground-glass opacity.
        expanded: where a position of a collapsed lung would lie if the lung were not collapsed. What is lung only
            without this is free gas in the pleural cavity.
    """

    consolidated: Callable[[Array, Array, Array], Array] | None = None
    tissue: Callable[[Array, Array], Array] | None = None
    grain: float = 22.0
    is_ggo: bool = False
    expanded: Callable[[Array, Array, Array], tuple[Array, Array, Array]] | None = None


@dataclass(frozen=True, eq=False)
class Phantom:
    """The synthetic chest and what was put into it.

    All masks are (z, y, x) on the volume's grid; a voxel belongs to a mask when its center lies inside the shape.

    Attributes:
        volume: int16 Hounsfield units.
        lungs: uint8, 1 right lung, 2 left lung; vessels and bronchi inside the lungs belong to them, trachea, main
            bronchi, the vessels of the hilum and free gas in the pleural cavity do not.
        lobes: uint8, 1 left upper, 2 left lower, 3 right upper, 4 right middle, 5 right lower; 0 where lungs is 0.
        lesion: ggo or consolidation.
        ggo: ground-glass opacity, inside the lungs.
        consolidation: inside the lungs, disjoint from ggo.
        truth: known volumes in mL: see :func:`synthetic_chest`.
    """

    volume: Volume
    lungs: NDArray[np.uint8]
    lobes: NDArray[np.uint8]
    lesion: NDArray[np.bool_]
    ggo: NDArray[np.bool_]
    consolidation: NDArray[np.bool_]
    truth: dict[str, Any]


def synthetic_chest(
    seed: int = 0,
    size: tuple[int, int, int] = SIZE,
    spacing: tuple[float, float, float] = SPACING,
    oblique: bool = True,
) -> Phantom:
    """Make a chest CT with COVID-19 pneumonia.

    Args:
        seed: of all that is random: vessels, texture, noise, the lesions' exact places and borders. The same seed gives
            the same voxels.
        size: voxels (z, y, x).
        spacing: mm (z, y, x).
        oblique: a grid turned by a few degrees whose rows run to the right and columns to the front (as NIfTI files
            often have it); otherwise rows run to the left and columns to the back, along the patient's axes.

    Returns:
        The phantom. Its ``truth`` holds, in mL by counting voxels: ``lungs``, ``lesion``, ``ggo`` and
        ``consolidation``; under ``regions`` the same three lesion volumes and the region's own (``region``) of each
        lung (``right_lung``, ...), each third of a lung's height in slices of the axial view (``right_upper_zone``,
        ...; slice i of n belongs to the third 3 i // n) and each lobe (``right_upper_lobe``, ...). ``shapes`` lists the
        lesions as they were placed: name, kind, center (LPS) and radii in mm, and ``ml``, the closed-form volume of
        those that are exact ellipsoids.

    Raises:
        InputError: a grid too large for the memory of an ordinary computer, or a negative seed.
        GeometryError: a size or spacing that no image can have.
    """
    return chest_with(Condition(), seed, chest_grid(size, spacing, oblique))


def chest_with(condition: Condition, seed: int, geometry: Geometry) -> Phantom:
    """The synthetic chest with its lesions and a condition of the whole lungs, on a given grid.

    Raises:
        InputError: a grid too large for the memory of an ordinary computer, or a negative seed.
    """
    if seed < 0:
        raise InputError(f"The seed is {seed}; it must be 0 or more.")
    if np.prod(geometry.size, dtype=float) > 2**28:
        raise InputError(f"A phantom of {geometry.size} voxels is too large; 512 x 512 x 1000 is the most.")
    rng = np.random.default_rng(seed)
    lesions = [_moved(lesion, rng) for lesion in LESIONS]
    waves = [_Waves(rng, 0.55 * min(lesion.radii)) for lesion in lesions]
    vessels, bronchi = _lung_trees(
        rng, [lesion for lesion in lesions if lesion.kind == "consolidation"], condition.consolidated
    )
    coverage = [np.zeros(geometry.shape, np.float32) for _ in range(3)]
    walls = bronchi.copy()
    walls[:, [3, 7]] += 0.15 + 0.22 * walls[:, [3, 7]]
    to_ijk = np.linalg.inv(geometry.ijk_to_lps)
    for share, tree in zip(coverage, (vessels, walls, bronchi), strict=True):
        _trees.paint(share, tree, to_ijk, np.array(geometry.spacing))
    texture = _texture(rng, geometry)

    hu = np.empty(geometry.shape, np.float32)
    lungs = np.zeros(geometry.shape, np.uint8)
    lobes = np.zeros(geometry.shape, np.uint8)
    ggo = np.zeros(geometry.shape, bool)
    consolidation = np.zeros(geometry.shape, bool)
    for first in range(0, geometry.shape[0], _SLAB):
        slab = slice(first, min(first + _SLAB, geometry.shape[0]))
        x, y, z = _positions(geometry, slab)
        wall = _chest.cage(x, y, z)
        distance = _chest.lung_distance(x, y, z, wall[0])
        hu[slab] = _chest.surroundings(x, y, z, distance, wall)
        inside = distance < 0
        place = _Place(x[inside], y[inside], z[inside], wall[0][inside])
        if condition.expanded is not None:
            place = _collapsed(hu[slab], inside, place, condition.expanded)
        lungs[slab][inside] = np.where(x[inside] < _chest.MIDLINE, 1, 2)
        label, fissure = _chest.lobes(place.x, place.y, place.z)
        lobes[slab][inside] = label
        tissue, is_ggo, is_consolidation = _parenchyma(place, fissure, texture[slab][inside], lesions, waves, condition)
        hu[slab][inside] = tissue
        ggo[slab][inside] = is_ggo
        consolidation[slab][inside] = is_consolidation
        # vessels and bronchi also cross the fat of the hilum
        hilum = (distance >= 0) & (distance < 14)
        near = inside | (hilum & (np.abs(np.abs(x) - 46) < 18) & (np.abs(y - 13) < 30) & (np.abs(z - 9) < 36))
        part = hu[slab][near]
        for share, value in zip(coverage, (_chest.BLOOD, 0.0, -985.0), strict=True):
            part += share[slab][near] * (value - part)
        hu[slab][near] = part
    del texture, coverage

    volume = Volume(_scanned(hu, geometry, rng), geometry, "synthetic_chest", {"format": "synthetic", "seed": seed})
    truth = _truth(geometry, lungs, lobes, ggo, consolidation)
    truth["shapes"] = [
        {"name": s.name, "kind": s.kind, "center_mm": s.center, "radii_mm": s.radii, "ml": s.analytic_ml}
        for s in lesions
    ]
    return Phantom(volume, lungs, lobes, ggo | consolidation, ggo, consolidation, truth)


@dataclass(frozen=True)
class _Place:
    """Scattered positions: LPS in mm, and the distance to the costal pleura."""

    x: Array
    y: Array
    z: Array
    pleura: Array


class _Waves:
    """A smooth random function of position with mean 0 and variance 1: a few plane waves."""

    def __init__(self, rng: np.random.Generator, wavelength: float) -> None:
        count = 7
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self._k = directions * (2 * np.pi / (wavelength * rng.uniform(0.8, 2.2, (count, 1))))
        self._phase = rng.uniform(0, 2 * np.pi, count)

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        total = np.zeros(np.shape(x), np.float32)
        for k, phase in zip(self._k.tolist(), self._phase.tolist(), strict=True):
            total += np.cos(k[0] * x + k[1] * y + k[2] * z + phase)
        return total * np.float32(np.sqrt(2 / len(self._k)))


def _collapsed(hu: Array, inside: Array, place: _Place, expanded: Callable[..., tuple[Array, Array, Array]]) -> _Place:
    """Fill the gas around a collapsed lung into ``hu``, take it out of ``inside``; the rest as if it were expanded."""
    x, y, z = expanded(place.x, place.y, place.z)
    pleura = _chest.cage(x, y, z)[0]
    distance = _chest.lung_distance(x, y, z, pleura)
    hu[inside] = _chest.AIR
    lung = (distance < 0) & ((x < _chest.MIDLINE) == (place.x < _chest.MIDLINE))
    inside[inside] = lung
    return _Place(x[lung], y[lung], z[lung], pleura[lung])


def chest_grid(
    size: tuple[int, int, int] = SIZE,
    spacing: tuple[float, float, float] = SPACING,
    oblique: bool = True,
    center: tuple[float, float, float] = _CENTER,
) -> Geometry:
    """A grid about a point of the chest: voxels and mm as (z, y, x), the point as LPS in mm."""
    matrix = np.eye(3)
    if oblique:
        for axis, angle in enumerate(np.radians(_TURNS)):
            a, b = (i for i in range(3) if i != axis)
            turn = np.eye(3)
            turn[a, a] = turn[b, b] = np.cos(angle)
            turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
            matrix = turn @ matrix
        matrix = matrix @ np.diag([-1.0, -1.0, 1.0])
    at_zero = Geometry(size[::-1], spacing[::-1], direction=tuple(matrix.ravel()))
    middle = at_zero.ijk_to_lps @ [*((np.array(at_zero.size) - 1) / 2), 1.0]
    return Geometry(at_zero.size, at_zero.spacing, tuple(np.subtract(center, middle[:3])), at_zero.direction)


def _positions(geometry: Geometry, slab: slice) -> tuple[Array, Array, Array]:
    """LPS positions of a slab's voxel centers, three float32 arrays (z, y, x)."""
    matrix = geometry.ijk_to_lps
    i = np.arange(geometry.size[0])[None, None, :]
    j = np.arange(geometry.size[1])[None, :, None]
    k = np.arange(slab.start, slab.stop)[:, None, None]
    x, y, z = ((row[0] * i + row[1] * j + row[2] * k + row[3]).astype(np.float32) for row in matrix[:3])
    return x, y, z


def _moved(lesion: Lesion, rng: np.random.Generator) -> Lesion:
    """The lesion a little elsewhere and of another size; exact ellipsoids stay where they are."""
    shift, factor = rng.uniform(-4, 4, 3).tolist(), float(rng.uniform(0.88, 1.12))
    if not lesion.roughness:
        return lesion
    x, y, z = (place + by for place, by in zip(lesion.center, shift, strict=True))
    a, b, c = (radius * factor for radius in lesion.radii)
    return replace(lesion, center=(x, y, z), radii=(a, b, c), depth=lesion.depth * factor)


def _lung_trees(
    rng: np.random.Generator,
    consolidations: Sequence[Lesion],
    consolidated: Callable[[Array, Array, Array], Array] | None,
) -> tuple[Array, Array]:
    """Vessels and bronchi of all lobes, as segments; bronchi are wide where the lung is consolidated."""
    points = rng.uniform((-140, -95, -130), (140, 100, 130), (26000, 3))
    x, y, z = points.T
    points = points[_chest.lung_distance(x, y, z, _chest.cage(x, y, z)[0]) < -5]
    label = _chest.lobes(*points.T)[0]
    vessels, bronchi = [], []
    for lobe in _chest.LOBES:
        targets = points[label == lobe.label]
        trunk = 4.9 * (len(targets) / (len(points) / 5)) ** (1 / 3)
        half = len(targets) // 2
        arteries = _trees.grow(lobe.artery, targets[:half], trunk, rng)
        veins = _trees.grow(lobe.vein, targets[half:], 0.9 * trunk, rng)
        vessels += [arteries, veins]
        bronchi.append(_trees.beside(arteries, (0, 0.5, 0.85), 0.7))
    tree = np.concatenate(bronchi)
    # bronchi less than 2 mm across are not seen in normal lung; in consolidated lung they are: the air bronchogram
    wide = np.zeros(len(tree), bool)
    for lesion in consolidations:
        wide |= (((tree[:, 4:7] - lesion.center) / lesion.radii) ** 2).sum(axis=1) < 1.2
    if consolidated is not None:
        wide |= consolidated(*tree[:, 4:7].T) > 0
    seen = wide | (tree[:, 7] > 1.0)
    for column in (3, 7):
        tree[wide, column] = np.maximum(tree[wide, column], 0.9)
    return np.concatenate(vessels), tree[seen]


def _parenchyma(
    place: _Place,
    fissure: Array,
    texture: Array,
    lesions: Sequence[Lesion],
    waves: Sequence[_Waves],
    condition: Condition,
) -> tuple[Array, Array, Array]:
    """Hounsfield units of lung tissue with its lesions (no vessels, no bronchi), and both lesion masks."""
    # supine: the lung is denser at the back
    hu = -852 + 0.32 * place.y if condition.tissue is None else condition.tissue(place.x, place.y)
    hu = hu + condition.grain * texture
    hu = hu + 170 * np.clip(1.2 - fissure, 0, 1)
    masks = {"ggo": np.zeros(hu.shape, bool), "consolidation": np.zeros(hu.shape, bool)}
    for lesion, wave in zip(lesions, waves, strict=True):
        reach = max(lesion.radii) * (1 + 2.5 * lesion.roughness) + 8
        axes = list(zip((place.x, place.y, place.z), lesion.center, lesion.radii, strict=True))
        near = np.flatnonzero(np.all([np.abs(along - middle) < reach for along, middle, _ in axes], axis=0))
        if not near.size:
            continue
        x, y, z = (along[near] for along, _, _ in axes)
        square = sum(((along[near] - middle) / radius) ** 2 for along, middle, radius in axes)
        scale = min(lesion.radii)
        if lesion.depth:
            square = square**2 + (place.pleura[near] / lesion.depth) ** 2
            scale = lesion.depth
        shape = np.sqrt(square) - 1
        if lesion.roughness:
            shape += lesion.roughness * wave(x, y, z)
        masks[lesion.kind][near] |= shape < 0
        fuzzy = 3.5 if lesion.kind == "ggo" else 1.0
        weight = np.clip(0.5 - shape * scale / (2 * fuzzy), 0, 1)
        grain = texture[near]
        inner = lesion.hu + (70 * grain if lesion.kind == "ggo" else 14 * grain)
        if lesion.lines:
            inner = inner + 190 * (np.abs(wave(2.6 * x, 2.6 * y, 2.6 * z)) < 0.13)
        hu[near] += weight * np.maximum(inner - hu[near], 0)
    if condition.is_ggo:
        masks["ggo"][:] = True
    if condition.consolidated is not None:
        depth = condition.consolidated(place.x, place.y, place.z)
        masks["consolidation"] |= depth > 0
        hu += np.clip(0.5 + depth / 8, 0, 1) * np.maximum(28 + 14 * texture - hu, 0)
    masks["ggo"] &= ~masks["consolidation"]
    return hu, masks["ggo"], masks["consolidation"]


def _texture(rng: np.random.Generator, geometry: Geometry) -> Array:
    """Random grain of the tissue: standard deviation 1, correlated over 1.5 mm, float32 (z, y, x)."""
    from scipy import ndimage

    grain = rng.standard_normal(geometry.shape, np.float32)
    ndimage.gaussian_filter(grain, [1.5 / s for s in geometry.spacing_zyx], output=grain, mode="wrap", truncate=3)
    grain /= grain.std()
    return grain


def _scanned(hu: Array, geometry: Geometry, rng: np.random.Generator) -> Array:
    """What a scanner makes of it: partial volume, noise with the spectrum of a reconstruction kernel, int16."""
    from scipy import fft, ndimage

    # in plane the blur of a medium kernel; along z the slice profile
    sigma = (0.3, 0.65 / geometry.spacing[1], 0.65 / geometry.spacing[0])
    ndimage.gaussian_filter(hu, sigma, output=hu, mode="nearest", truncate=3)
    # filtered backprojection: noise power grows with the frequency until the kernel cuts it off (at 0.35 per mm)
    fy = fft.fftfreq(geometry.size[1], geometry.spacing[1])[:, None]
    fx = fft.rfftfreq(geometry.size[0], geometry.spacing[0])[None, :]
    frequency = np.hypot(fx, fy)
    amplitude = (np.sqrt(frequency) * np.exp(-((frequency / 0.35) ** 2))).astype(np.float32)
    amplitude[0, 0] = 0
    # white noise of variance 1 through this filter
    full = np.hypot(fft.fftfreq(geometry.size[0], geometry.spacing[0])[None, :], fy)
    gain = float(np.sqrt(np.mean(full * np.exp(-2 * (full / 0.35) ** 2))))
    result = np.empty(hu.shape, np.int16)
    for k in range(hu.shape[0]):
        x, y, z = _positions(geometry, slice(k, k + 1))
        # most in the middle of the body and between the shoulders, where fewest photons come through
        radius = (x[0] / 170) ** 2 + ((y[0] - 5) / 115) ** 2
        level = 16 + 14 * np.exp(-radius) + 12 * np.clip((z[0] - 80) / 60, 0, 1) * np.exp(-radius)
        white = rng.standard_normal(hu.shape[1:], np.float32)
        noise = fft.irfft2(fft.rfft2(white) * amplitude, s=white.shape)
        result[k] = np.clip(np.rint(hu[k] + noise * (level / gain)), -1024, 3071)
    return result


def _truth(geometry: Geometry, lungs: Array, lobes: Array, ggo: Array, consolidation: Array) -> dict[str, Any]:
    """Volumes in mL, by counting voxels."""

    def volumes(region: Array) -> dict[str, float]:
        counts = {"region": region, "lesion": region & (ggo | consolidation)}
        counts |= {"ggo": region & ggo, "consolidation": region & consolidation}
        return {name: int(np.count_nonzero(mask)) * geometry.voxel_ml for name, mask in counts.items()}

    regions = {"right_lung": volumes(lungs == 1), "left_lung": volumes(lungs == 2)}
    view = geometry.axial_view()
    for label, side in ((1, "right"), (2, "left")):
        lung = view.apply(lungs == label)
        slices = np.flatnonzero(lung.any(axis=(1, 2)))
        thirds = np.full(lung.shape[0], -1)
        if slices.size:
            thirds[slices[0] : slices[-1] + 1] = 3 * np.arange(np.ptp(slices) + 1) // (np.ptp(slices) + 1)
        for third, level in enumerate(("lower", "middle", "upper")):
            zone = view.restore(lung & (thirds == third)[:, None, None])
            regions[f"{side}_{level}_zone"] = volumes(zone)
    for lobe in _chest.LOBES:
        regions[lobe.name] = volumes(lobes == lobe.label)
    whole = volumes(lungs > 0)
    return {"lungs": whole.pop("region"), **whole, "regions": regions}
