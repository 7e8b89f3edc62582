"""How long it takes to quantify a whole CT with its lung mask, and to compare two time points.

    python Testing/benchmarks/quantification.py [--lesion FILE.nii.gz]

The CT is 512 x 512 x 300 voxels of 0.7 x 0.7 x 1 mm: the synthetic chest, stretched to that size; a lesion mask from a
file is stretched likewise. Quantification is compared with its largest part done the usual way: labelling the
lesion's whole bounding box with ``scipy.ndimage.label``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "COVIDLesionSeg"))

from COVIDLesionSegLib.imaging import Geometry, Volume, read_labels
from COVIDLesionSegLib.measurement.lesions import find_components
from COVIDLesionSegLib.measurement.longitudinal import compare_timepoints
from COVIDLesionSegLib.measurement.quantification import quantify
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest

SHAPE = (300, 512, 512)
REPEATS = 5


def stretched(array: np.ndarray) -> np.ndarray:
    """Nearest-neighbor copy of an array (z, y, x) at SHAPE."""
    index = [np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(array.shape, SHAPE, strict=True)]
    return np.ascontiguousarray(array[np.ix_(*index)])


def seconds(work) -> float:
    """Best of REPEATS."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lesion", type=Path, help="lesion mask to use instead of the synthetic chest's")
    arguments = parser.parse_args()
    from scipy import ndimage

    chest = synthetic_chest(oblique=False)
    geometry = Geometry(SHAPE[::-1], (0.7, 0.7, 1.0))
    volume = Volume(stretched(chest.volume.array), geometry)
    lesion = stretched(read_labels(arguments.lesion).mask() if arguments.lesion else chest.lesion)
    lungs, lobes = stretched(chest.lungs), stretched(chest.lobes)
    voxels = np.argwhere(lesion)
    box = tuple(slice(a, b) for a, b in zip(voxels.min(axis=0), voxels.max(axis=0) + 1, strict=True))
    inside = np.ascontiguousarray(lesion[box])

    print(f"512 x 512 x 300, lesion {len(voxels) * geometry.voxel_ml:.0f} mL in a box of {inside.shape}")
    both = seconds(lambda: quantify(volume, lesion, lungs))
    one = seconds(lambda: quantify(volume, lesion, lungs > 0))
    with_lobes = seconds(lambda: quantify(volume, lesion, lungs, lobes))
    runs = seconds(lambda: find_components(inside))
    usual = seconds(lambda: ndimage.label(inside, np.ones((3, 3, 3))))
    print(f"quantify, lungs with two labels          {both:6.2f} s   (bar: 2 s)")
    print(f"quantify, lungs with one label           {one:6.2f} s   (bar: 2 s)")
    print(f"quantify, with lobes                     {with_lobes:6.2f} s   (bar: 2 s)")
    print(f"lesions by runs / by ndimage.label       {runs:6.2f} s / {usual:.2f} s = {usual / runs:.0f} times faster")

    moved = Geometry(geometry.size, geometry.spacing, (10.0, -8.0, 12.0))
    later = Volume(volume.array + np.int16(1), moved)
    for kind in ("rigid", "affine"):
        start = time.perf_counter()
        compare_timepoints((volume, lesion, lungs), (later, lesion, lungs), registration=kind)
        print(f"compare two time points, {kind:6}          {time.perf_counter() - start:6.1f} s   (bar: 20 s)")


if __name__ == "__main__":
    main()
