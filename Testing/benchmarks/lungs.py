"""The lung finder against the experts' lungs of COVID-19-CT-Seg, and its seconds beside those of reading.

    python Testing/benchmarks/lung_finder.py

The CTs are whole; Dice is that of the slices in which the experts drew the lungs, the lesion that of all slices.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from COVIDLesionSegLib.imaging import find_lungs, read_labels, read_volume
from COVIDLesionSegLib.measurement import dice, sensitivity
from shared_data import ct_seg, ct_seg_names


def main() -> None:
    found = []
    for name in ct_seg_names():
        case = ct_seg(name)
        start = time.perf_counter()
        volume = read_volume(case.ct)
        read = time.perf_counter()
        lungs = find_lungs(volume) > 0
        seconds = time.perf_counter() - read
        drawn = case.expert_slices
        found.append(dice(lungs[drawn], read_labels(case.lungs).mask()[drawn]))
        inside = sensitivity(lungs, read_labels(case.lesion).mask())
        print(
            f"{name}  Dice {found[-1]:.4f}  of the lesion {inside:.1%} in the lungs  "
            f"{seconds:.1f} s, reading {read - start:.1f} s",
            flush=True,
        )
    print(f"mean Dice {np.mean(found):.4f}, lowest {min(found):.4f}, {len(found)} cases")


if __name__ == "__main__":
    main()
