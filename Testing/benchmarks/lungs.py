"""The lung finder against the experts' lungs of COVID-19-CT-Seg, and its seconds beside those of reading.

    python Testing/benchmarks/lung_finder.py

In the cases 002, 004 and 005 the lungs touch the -1024 HU outside the crop, which no scanner makes; it is filled with
0 HU.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from COVIDLesionSegLib.imaging import Volume, find_lungs, read_labels, read_volume
from COVIDLesionSegLib.measurement import dice, sensitivity

SHARED = Path(os.environ.get("COVIDLESIONSEG_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
TOUCHING = ("coronacases_002", "coronacases_004", "coronacases_005")


def main() -> None:
    found = []
    for path in sorted((SHARED / "covid19-ct-seg").glob("*_ct.nii.gz")):
        name = path.name[: -len("_ct.nii.gz")]
        start = time.perf_counter()
        volume = read_volume(path)
        read = time.perf_counter()
        if name in TOUCHING:
            volume = Volume(
                np.where(volume.array <= -1024, 0, volume.array).astype(volume.array.dtype), volume.geometry
            )
        begin = time.perf_counter()
        lungs = find_lungs(volume) > 0
        seconds = time.perf_counter() - begin
        expert = read_labels(path.with_name(f"{name}_lungs.nii.gz")).mask()
        lesion = read_labels(path.with_name(f"{name}_lesion.nii.gz")).mask()
        found.append(dice(lungs, expert))
        inside = sensitivity(lungs, lesion & expert)
        print(
            f"{name}  Dice {found[-1]:.4f}  of the lesion in the lungs {inside:.1%} found  "
            f"{seconds:.1f} s, reading {read - start:.1f} s",
            flush=True,
        )
    print(f"mean Dice {np.mean(found):.4f}, lowest {min(found):.4f}, {len(found)} cases")


if __name__ == "__main__":
    main()
