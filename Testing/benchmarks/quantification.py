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
FIELD_MM = (358.4, 358.4, 300.0)  # x, y, z
REPEATS = 5


def stretched(array: np.ndarray, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Nearest-neighbor copy of an array (z, y, x) at a shape."""
    index = [np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(array.shape, shape, strict=True)]
    return np.ascontiguousarray(array[np.ix_(*index)])


def seconds(work) -> list[float]:
    """Of REPEATS calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lesion", type=Path, help="lesion mask to use instead of the synthetic chest's")
    found = measure(**vars(parser.parse_args()))
    for name, bar in (("both lungs", 2), ("one label", 2), ("lobes", 2), ("rigid", 20), ("affine", 20)):
        print(f"{name:12} {min(found[name]):6.2f} s   (bar: {bar} s)")
    print(f"lesions by runs: {max(found['times_faster_labelling']):.0f} times faster than ndimage.label")


def measure(lesion: Path | None = None, shape: tuple[int, int, int] = SHAPE) -> dict[str, list[float]]:
    """Seconds of each run of quantify and compare_timepoints, and how much faster lesions are labelled."""
    from scipy import ndimage

    chest = synthetic_chest(oblique=False)
    geometry = Geometry(shape[::-1], tuple(field / n for field, n in zip(FIELD_MM, shape[::-1], strict=True)))
    volume = Volume(stretched(chest.volume.array, shape), geometry)
    mask = stretched(read_labels(lesion).mask() if lesion else chest.lesion, shape)
    lungs, lobes = stretched(chest.lungs, shape), stretched(chest.lobes, shape)
    voxels = np.argwhere(mask)
    inside = np.ascontiguousarray(
        mask[tuple(slice(a, b + 1) for a, b in zip(voxels.min(0), voxels.max(0), strict=True))]
    )
    found = {
        "both lungs": seconds(lambda: quantify(volume, mask, lungs)),
        "one label": seconds(lambda: quantify(volume, mask, lungs > 0)),
        "lobes": seconds(lambda: quantify(volume, mask, lungs, lobes)),
    }
    usual = seconds(lambda: ndimage.label(inside, np.ones((3, 3, 3))))
    runs = seconds(lambda: find_components(inside))
    found["times_faster_labelling"] = [theirs / ours for theirs, ours in zip(usual, runs, strict=True)]
    later = Volume(volume.array + np.int16(1), Geometry(geometry.size, geometry.spacing, (10.0, -8.0, 12.0)))
    for kind in ("rigid", "affine"):
        start = time.perf_counter()
        compare_timepoints((volume, mask, lungs), (later, mask, lungs), registration=kind)
        found[kind] = [time.perf_counter() - start]
    return found


if __name__ == "__main__":
    main()
