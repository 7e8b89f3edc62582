"""How long reading takes beside decoding alone, in one run.

    python Testing/benchmarks/reading.py [--input CT]... [--slices 300] [--repeat 3]

Decoding alone is SimpleITK's reader and the copy into an array: no hash, no checks. Ours is ``read_volume`` with all of
them. Both run in turns on warm files; the smallest time of each counts. Without --input a noisy volume of 512 x 512
voxels a slice is written in each format first (for DICOM: uncompressed, one file a slice).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "COVIDLesionSeg"), str(REPOSITORY / "Testing" / "Python")]

from COVIDLesionSegLib.imaging import (
    Geometry,
    LabelVolume,
    dicom_files,
    read_volume,
    write_labels,
    write_volume,
)


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(path: Path, repeat: int) -> list[float]:
    """Print the seconds of both; the ratio of each turn."""
    names = [str(name) for name in dicom_files(path)] if path.is_dir() else str(path)
    alone, ours = [], []
    for _ in range(repeat):
        alone.append(seconds(lambda: sitk.GetArrayFromImage(sitk.ReadImage(names))))
        ours.append(seconds(lambda: read_volume(path)))
    (wall_a, cpu_a), (wall_b, cpu_b) = (tuple(map(min, zip(*runs, strict=True))) for runs in (alone, ours))
    print(
        f"{path.name:24s} decoding alone {wall_a:6.2f} s   read_volume {wall_b:6.2f} s   ratio {wall_b / wall_a:5.2f}"
        f"   (processor time {cpu_a:.2f} s, {cpu_b:.2f} s, ratio {cpu_b / cpu_a:.2f})"
    )
    return [our[0] / decoding[0] for decoding, our in zip(alone, ours, strict=True)]


def noisy_chest(slices: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    array = rng.normal(-1000, 12, (slices, 512, 512)).astype(np.int16)
    array[:, 80:430, 40:470] += 1040
    array[:, 140:380, 80:240] -= 890
    array[:, 140:380, 270:430] -= 890
    return np.maximum(array, -1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, action="append", help="a CT file or DICOM folder")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    for path in arguments.input or []:
        compare(path, arguments.repeat)
    if not arguments.input:
        measure(arguments.slices, arguments.repeat)


def measure(slices: int = 300, repeat: int = 3) -> dict[str, list[float]]:
    """Write a noisy chest in each format and read it: format -> times as long as decoding alone, one value a turn."""
    from synthetic_dicom import write_series

    array = noisy_chest(slices)
    grid = Geometry((512, 512, slices), (0.7, 0.7, 1.0))
    mask = LabelVolume((array > 20).astype(np.uint8), grid, {1: "lesion"})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = []
        for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
            # a folder each: SimpleITK reads ct.nii when asked for the ct.nii.gz beside it
            paths.append(folder / suffix[1:] / f"ct{suffix}")
            wall, _ = seconds(lambda: write_volume(array, paths[-1], grid))
            print(f"write {paths[-1].name:16s} {wall:6.2f} s")
        for suffix in (".nii.gz", ".seg.nrrd"):
            wall, _ = seconds(lambda suffix=suffix: write_labels(mask, folder / f"mask{suffix}"))
            print(f"write {'mask' + suffix:16s} {wall:6.2f} s")
        write_series(folder / "dicom", array, spacing=1.0)
        return {path.name: compare(path, repeat) for path in (*paths, folder / "dicom")}


if __name__ == "__main__":
    main()
