"""Peak memory of the whole command on a synthetic CT of 512 x 512 x 300 voxels.

    python Testing/benchmarks/peak_memory.py [--slices 300] [--model ID|FILE] [-- further arguments of `segment`]

Makes the CT, writes it to a temporary folder, runs ``covid-lesion-seg segment`` on the processor in a child process and
prints the child's largest resident memory, as the system counted it, and its seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "COVIDLesionSeg"))

from COVIDLesionSegLib.imaging import write_volume
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest

LIMIT_GB = 2.5
FIELD_MM = (300.0, 380.0, 380.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--side", type=int, default=512, help="rows and columns")
    parser.add_argument("--model", help="id or file; default: the default model")
    parser.add_argument("--ct", type=Path, help="a real CT instead of the synthetic one")
    parser.add_argument("rest", nargs="*", help="further arguments of `segment`, after --")
    arguments = parser.parse_args()
    found = measure(**vars(arguments))
    size = f"{arguments.side}x{arguments.side}x{arguments.slices}" if arguments.ct is None else arguments.ct.name
    print(f"{size}: peak {found['gb']:.2f} GB (limit {LIMIT_GB} GB), {found['seconds']:.1f} s")


def measure(
    slices: int = 300,
    side: int = 512,
    model: str | None = None,
    ct: Path | None = None,
    rest: Sequence[str] = (),
) -> dict[str, float]:
    """Largest resident memory (GB) and seconds of the command in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = ct
        if path is None:
            path = Path(folder) / "synthetic.nii.gz"
            size = (slices, side, side)
            spacing = tuple(field / n for field, n in zip(FIELD_MM, size, strict=True))
            chest = synthetic_chest(size=size, spacing=spacing).volume
            write_volume(chest.array, path, chest.geometry)
            del chest
        command = [sys.executable, "-m", "COVIDLesionSegLib", "segment", str(path), "-o", str(Path(folder) / "out")]
        command += ["--device", "cpu", "--quiet", *(["--model", model] if model else [])]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg")}
        start = time.perf_counter()
        subprocess.run([*command, *rest], check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return {"gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9, "seconds": seconds}


if __name__ == "__main__":
    main()
