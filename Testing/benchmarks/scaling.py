"""What `segment` costs against slices and threads, and what a case store costs against cases.

    python Testing/benchmarks/scaling.py [--slices 100 300 1000] [--cases 1 10 100] [--threads 1 2]

The CT is the synthetic chest, stretched to 512 x 512 voxels a slice; thinner slices, more of them. Each length is
segmented whole: lungs, network, post-processing. Threads share the slices in the middle of the lungs; the network alone
is timed, warm. A store is filled with tiny cases; its figure is what choosing and opening the next case takes in a
program that has just started.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "COVIDLesionSeg"))

from case_store import filled, opened
from coplenet_ct import middle
from quantification import FIELD_MM, stretched

from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.inference import Predictor
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest

THREAD_SLICES = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, nargs="*", default=(100, 300, 1000))
    parser.add_argument("--threads", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--cases", type=int, nargs="*", default=(1, 10, 100))
    for name, seconds in measure(**vars(parser.parse_args())).items():
        print(f"{name:12} {seconds:8.3f} s")


def measure(
    slices: Sequence[int] = (100, 300, 1000),
    threads: Sequence[int] = (1, 2),
    cases: Sequence[int] = (1, 10, 100),
    side: int = 512,
) -> dict[str, float]:
    """Seconds by what was done: ``"100 slices"``, ``"2 threads"``, ``"10 cases"``."""
    found: dict[str, float] = {}
    predictor, chest = Predictor(device="cpu"), synthetic_chest(oblique=False)
    shortest = max(THREAD_SLICES, min(slices))
    lungs = stretched(chest.lungs, (shortest, side, side))
    few = middle(resized_chest(chest.volume, shortest, side), lungs, THREAD_SLICES)
    before = torch.get_num_threads()
    for count in threads:
        torch.set_num_threads(count)
        predictor.segment(*middle(*few, 3))
        found[f"{count} thread{'s' * (count > 1)}"] = predictor.segment(*few).record.seconds["network"]
    torch.set_num_threads(before)
    for count in slices:
        volume = resized_chest(chest.volume, count, side)
        start = time.perf_counter()
        predictor.segment(volume)
        found[f"{count} slices"] = time.perf_counter() - start
    for count in cases:
        with tempfile.TemporaryDirectory() as folder:
            store = filled(Path(folder), count)
            opened(store.folder)
            found[f"{count} case{'s' * (count > 1)}"] = opened(store.folder)
    return found


def resized_chest(volume: Volume, slices: int, side: int) -> Volume:
    """The chest with so many slices of side x side voxels, of the same extent."""
    shape = (slices, side, side)
    spacing = tuple(field / n for field, n in zip(FIELD_MM, shape[::-1], strict=True))
    return Volume(stretched(volume.array, shape), Geometry(shape[::-1], spacing))


if __name__ == "__main__":
    main()
