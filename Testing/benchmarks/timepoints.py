"""What tells two people's chests apart? The figures of a registration, for real chests of different people and of one.

    python Testing/benchmarks/timepoints.py [--chests 12] [--kind rigid|affine] [--pairs N]

Different people: all pairs of the shared data's chests, those with lungs of like size first. One person: each chest
against itself on other voxels, turned, moved, with noise, and breathed deeper or flatter (the diaphragm moves, the
spine does not) or with new opacities at random places, more of them at the back. No real follow-up is in the shared
data.

Prints a row a pair and, at the end, the range of each figure: Dice of the lungs, mean distance of their surfaces,
correlation of HU, correlation of the vessels' pattern (what ``compare-timepoints`` refuses by), and correlation of the
bones around the lungs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Python"))

from shared_data import DATA, NEGATIVES, ct_seg, ct_seg_names

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.imaging import Geometry, Volume, find_lungs, read_volume
from COVIDLesionSegLib.measurement.registration import register_lungs

Chest = tuple[Volume, NDArray[np.bool_]]
FIGURES = ("dice", "surface_distance_mm", "correlation", "structure", "bones")


class Change(NamedTuple):
    """What happens to a chest between two studies of one person."""

    breath_mm: float = 0.0  # of the diaphragm
    shift_mm: tuple[float, float, float] = (8.0, -6.0, 12.0)
    degrees: float = 5.0
    slices_mm: float = 0.0  # at least
    opacity: float = 0.0  # share of the lungs
    opacity_hu: float = -50.0


CHANGES = {
    "moved": Change(),
    "15 mm deeper": Change(15.0),
    "15 mm flatter": Change(-15.0),
    "30 mm deeper": Change(30.0),
    "30 mm flatter": Change(-30.0),
    "15 mm deeper, consolidation in 35 %": Change(15.0, opacity=0.35),
    "20 mm flatter, 5 mm slices, consolidation in 30 %": Change(-20.0, slices_mm=5.0, opacity=0.3),
    "20 mm deeper, haze in 50 %": Change(20.0, opacity=0.5, opacity_hu=-450.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chests", type=int, default=12, help="how many chests (default: 12)")
    parser.add_argument("--kind", choices=("rigid", "affine"), default="rigid", help="of the registration")
    parser.add_argument("--pairs", type=int, help="only this many pairs of different people; 0 for none")
    arguments = parser.parse_args()
    files = {name: ct_seg(name).ct for name in ct_seg_names()} | NEGATIVES
    files["covid_P001"] = DATA / "covid-ct-md/dicom/covid_P001"
    chests = {name: with_lungs(path) for name, path in list(files.items())[: arguments.chests]}
    rows: dict[str, list[list[float]]] = {"one person": [], "different people": []}
    for who, pairs in (("different people", different(chests, arguments.pairs)), ("one person", same(chests))):
        for name, earlier, later in pairs:
            try:
                row = figures(earlier, later, arguments.kind)
            except InputError as error:
                print(f"{who}: {name}: refused: {error}", flush=True)
                continue
            rows[who].append(row)
            said = "  ".join(f"{figure} {value:.3f}" for figure, value in zip(FIGURES, row, strict=True))
            print(f"{who}: {name}: {said}", flush=True)
    for who, found in rows.items():
        for figure, values in zip(FIGURES, zip(*found, strict=True), strict=False):
            print(f"{who}, {figure}: {min(values):.3f} to {max(values):.3f} in {len(values)} pairs")


def with_lungs(path: Path) -> Chest:
    volume = read_volume(path)
    return volume, find_lungs(volume) > 0


def different(chests: dict[str, Chest], most: int | None) -> Iterator[tuple[str, Chest, Chest]]:
    def unlike(pair: tuple[str, str]) -> float:
        one, other = (np.count_nonzero(lungs) * volume.geometry.voxel_ml for volume, lungs in map(chests.get, pair))
        return abs(np.log(one / other))

    for one, other in sorted(itertools.combinations(chests, 2), key=unlike)[:most]:
        yield f"{one}, {other}", chests[one], chests[other]


def same(chests: dict[str, Chest]) -> Iterator[tuple[str, Chest, Chest]]:
    for (name, chest), (what, change) in itertools.product(chests.items(), CHANGES.items()):
        yield f"{name}, {what}", chest, changed(*chest, change)


def figures(earlier: Chest, later: Chest, kind: str) -> list[float]:
    found = register_lungs(*earlier, *later, kind)
    values = [getattr(found, name) for name in FIGURES[:-1]]
    return [np.nan if value is None else value for value in values] + [bones(earlier[0], *later, found.matrix)]


def bones(earlier: Volume, later: Volume, lungs: NDArray[np.bool_], matrix: NDArray[np.float64]) -> float:
    """Correlation of HU between 100 and 600 within 24 mm of the lungs, on a grid of 3 mm."""

    def coarse(volume: Volume) -> sitk.Image:
        hu = volume.geometry.to_sitk(np.clip(volume.array, 100, 600).astype(np.int16))
        return sitk.Cast(sitk.BinShrink(hu, factors(volume.geometry)), sitk.sitkFloat32)

    fixed = coarse(later)
    transform = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    moving = sitk.GetArrayFromImage(sitk.Resample(coarse(earlier), fixed, transform, sitk.sitkLinear, 0.0))
    mask = sitk.BinShrink(later.geometry.to_sitk(lungs.astype(np.uint8) * np.uint8(200)), factors(later.geometry))
    near = ndimage.binary_dilation(sitk.GetArrayFromImage(mask) > 100, iterations=8) & (moving >= 100)
    return float(np.corrcoef(sitk.GetArrayFromImage(fixed)[near], moving[near])[0, 1])


def factors(geometry: Geometry) -> list[int]:
    return [max(1, round(3 / side)) for side in geometry.spacing]


def changed(volume: Volume, lungs: NDArray[np.bool_], change: Change, seed: int = 0) -> Chest:
    """The chest at another time, on voxels 1.13 times as wide."""
    rng, old = np.random.default_rng(seed), volume.geometry
    spacing = (old.spacing[0] * 1.13, old.spacing[1] * 1.13, max(old.spacing[2], change.slices_mm))
    size = tuple(int(n * s / t) for n, s, t in zip(old.size, old.spacing, spacing, strict=True))
    geometry = Geometry(size, spacing, old.origin, old.direction)
    transform = motion(geometry, volume, lungs, change)
    target = geometry.to_sitk(np.zeros(geometry.shape, np.uint8))
    source = old.to_sitk(volume.array.astype(np.float32)), old.to_sitk(lungs.astype(np.uint8))
    hu = sitk.GetArrayFromImage(sitk.Resample(source[0], target, transform, sitk.sitkLinear, -1024.0))
    inside = sitk.GetArrayFromImage(sitk.Resample(source[1], target, transform, sitk.sitkNearestNeighbor, 0)) > 0
    hu += rng.normal(0, 20, hu.shape)
    hu[inside] -= 2 * change.breath_mm
    if change.opacity:
        coarse = ndimage.gaussian_filter(rng.normal(size=[max(2, n // 4) for n in hu.shape]), 2.5)
        places = ndimage.zoom(coarse, [n / m for n, m in zip(hu.shape, coarse.shape, strict=True)], order=1)
        places = places / places.std() + np.linspace(-1, 1, hu.shape[1])[None, :, None]
        opacity = inside & (places > np.quantile(places[inside], 1 - change.opacity))
        hu[opacity] = rng.normal(change.opacity_hu, 120, np.count_nonzero(opacity))
    return Volume(np.clip(hu, -1024, 3000).astype(np.int16), geometry), inside


def motion(geometry: Geometry, volume: Volume, lungs: NDArray[np.bool_], change: Change) -> sitk.Transform:
    """From LPS of the later study to LPS of the earlier one, as a field of 6 mm."""
    old = volume.geometry
    later = geometry.to_sitk(np.zeros(geometry.shape, np.uint8))
    field = sitk.BinShrink(later, [max(1, round(6 / side)) for side in geometry.spacing])
    index = np.moveaxis(np.indices(field.GetSize()[::-1])[::-1], 0, -1)
    points = index * np.array(field.GetSpacing()) @ old.matrix.T + np.array(field.GetOrigin())
    center = old.matrix @ (np.array(old.size) * old.spacing / 2) + np.array(old.origin)
    angle = np.radians(change.degrees)
    turn = sitk.Euler3DTransform(center.tolist(), angle / 2, 0.0, angle, change.shift_mm)
    to = (points - center) @ np.array(turn.GetMatrix()).reshape(3, 3).T + center + np.array(change.shift_mm)
    rows = np.flatnonzero(lungs.any(axis=(1, 2)))
    base, apex = (old.origin[2] + old.direction[8] * old.spacing[2] * row for row in (rows[0], rows[-1]))
    low = np.clip((apex - to[..., 2]) / (apex - base), 0, 1.2)
    front = np.clip((center[1] - to[..., 1]) / 100 + 0.3, 0, 1.3)
    to[..., 2] += change.breath_mm * low**2
    to[..., 1] += change.breath_mm / 6 * front
    displacement = sitk.GetImageFromArray(to - points, isVector=True)
    displacement.CopyInformation(field)
    return sitk.DisplacementFieldTransform(displacement)


if __name__ == "__main__":
    main()
