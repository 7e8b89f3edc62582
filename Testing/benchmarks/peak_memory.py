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

    size = (arguments.slices, arguments.side, arguments.side)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.ct
        if path is None:
            path = Path(folder) / "synthetic.nii.gz"
            spacing = tuple(field / n for field, n in zip(FIELD_MM, size, strict=True))
            chest = synthetic_chest(size=size, spacing=spacing).volume
            write_volume(chest.array, path, chest.geometry)
            del chest
        command = [sys.executable, "-m", "COVIDLesionSegLib", "segment", str(path), "-o", str(Path(folder) / "out")]
        command += ["--device", "cpu", "--quiet", *(["--model", arguments.model] if arguments.model else [])]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg")}
        start = time.perf_counter()
        subprocess.run([*command, *arguments.rest], check=True, env=environment)
        seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9
    print(f"{'x'.join(map(str, size[::-1]))}: peak {peak:.2f} GB (limit {LIMIT_GB} GB), {seconds:.1f} s")


if __name__ == "__main__":
    main()
