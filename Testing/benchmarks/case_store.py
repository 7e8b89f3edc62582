"""How long the case store keeps people waiting.

    python Testing/benchmarks/case_store.py [--cases 1000] [--repeat 5]

Makes a store of so many cases (tiny CTs, two revisions and an answer each) and one case of 512 x 512 x 300 voxels with
many lesions, in a temporary folder, and prints seconds:

- opening the store, choosing the next case, locking it and reading the mask to begin with, in a program that has just
  started, beside reading the CT; the same for a case of 512 x 512 x 300;
- saving a revision of 512 x 512 x 300 with its Dice to the model's answer, and an autosave of it;
- `cases check`, against the time of reading the same files and hashing them in the same number of threads.

Ends with status 1 if the next case takes 0.5 s or more, or a revision 1 s or more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.imaging import Geometry, write_volume

SHAPE = (300, 512, 512)
OPEN = """
import sys, time
import SimpleITK
import COVIDLesionSegLib.imaging, COVIDLesionSegLib.cases.queue, COVIDLesionSegLib.cases.session
from COVIDLesionSegLib.cases import Store
start = time.perf_counter()
store = Store(sys.argv[1])
case = sys.argv[2] if len(sys.argv) > 2 else store.next("anna").case.id
session = store.open(case, "anna")
print(time.perf_counter() - start)
session.close()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each, of which the median counts")
    arguments = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; seconds, median of {arguments.repeat}")
    found = measure(arguments.cases, arguments.repeat)
    return 0 if median(found["next"]) < 0.5 and median(found["save"]) < 1.0 else 1


def measure(cases: int = 1000, repeat: int = 5) -> dict[str, list[float]]:
    """Print and return seconds of choosing and opening the next case and of saving a large revision, one a run."""
    with tempfile.TemporaryDirectory() as name:
        store = filled(Path(name), cases)
        opening = runs(lambda: opened(store.folder), repeat)
        listing = runs(lambda: timed(store.cases), repeat)
        print(f"next of {cases} cases, opened by a new program: {median(opening):.3f} (bar 0.5)")
        print(f"the list again in the same program: {median(listing):.3f}")
        saving, autosaving = saves(store, repeat)
        large = median(runs(lambda: opened(store.folder, f"case-{cases + 1:04d}"), repeat))
        print(f"opening a case of {SHAPE} with its last revision: {large:.3f}")
        print(f"saving a revision of {SHAPE}: {median(saving):.3f} (bar 1.0); an autosave: {autosaving:.3f}")
        checking = median(runs(lambda: timed(store.check), 3))
        reading = median(runs(lambda: timed(lambda: read_all(store.folder)), 3))
        files = sum(1 for path in store.folder.rglob("*") if path.is_file())
        print(f"check: {checking:.2f}; reading and hashing the same {files} files: {reading:.2f}")
    return {"next": opening, "save": saving}


def filled(folder: Path, count: int) -> Store:
    """A store of so many cases; all but the first are copies of it on disk, each with an id and patient of its own."""
    store = Store.create(folder / "store")
    grid = Geometry((64, 64, 8), (1, 1, 5), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    rng = np.random.default_rng(0)
    array = (rng.normal(0, 30, grid.shape) - 500).astype(np.int16)
    array[:, :8] = 40
    array[:, :, :4] = -1000
    write_volume(array, folder / "ct.nrrd", grid)
    case = store.add(folder / "ct.nrrd")
    mask = rng.random(grid.shape) < 0.05
    store.set_prediction(case.id, mask, "m", uncertainty={"tta_entropy": 0.5})
    source = store.layout.case(case.id)
    for number in range(2, count + 1):
        target = store.layout.case(f"case-{number:04d}")
        shutil.copytree(source, target)
        for file in ("case.json", "origin.json"):
            values = json.loads((target / file).read_text())
            values |= {"id": target.name, "patient": f"p-{number:016x}"}
            if "predictions" in values:
                values["predictions"][0]["uncertainty"]["tta_entropy"] = float(rng.random())
            (target / file).write_text(json.dumps(values, indent=2))
    return store


def opened(folder: Path, *case: str) -> float:
    """Seconds of choosing and opening a case, or of opening this one; imports come before and are not counted."""
    done = subprocess.run([sys.executable, "-c", OPEN, str(folder), *case], capture_output=True, text=True, check=True)
    return float(done.stdout)


def saves(store: Store, repeat: int) -> tuple[list[float], float]:
    """Seconds of each saving, and the median of autosaving a large mask with many lesions."""
    grid = Geometry(SHAPE[::-1], (0.7, 0.7, 1.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    rng = np.random.default_rng(1)
    array = np.full(SHAPE, -800, np.int16)
    array[:, :40] = 40
    array[:, 40:60, 40:60] = rng.integers(-300, 300, (300, 20, 20))
    array[:, :, :20] = -1000
    path = store.folder.parent / "large.nrrd"
    write_volume(array, path, grid)
    case = store.add(path, copy=False)
    masks = [lesions(rng) for _ in range(repeat)]
    store.set_prediction(case.id, lesions(rng), "m")
    with store.open(case.id, "anna") as session:
        autosaving = median([timed(lambda m=m: session.autosave(m)) for m in masks])
        saving = [timed(lambda m=m: session.save(m)) for m in masks]
    return saving, autosaving


def lesions(rng: np.random.Generator) -> np.ndarray:
    """Sixty ragged lesions all over the lungs."""
    mask = np.zeros(SHAPE, bool)
    for z, y, x in rng.integers((20, 30, 30), (280, 480, 480), (60, 3)):
        mask[z - 15 : z + 15, y - 20 : y + 20, x - 20 : x + 20] |= rng.random((30, 40, 40)) < 0.8
    return mask


def read_all(folder: Path) -> None:
    """Read every file of a folder once and hash it, as a check must at least."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), files))


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def runs(seconds: Callable[[], float], repeat: int) -> list[float]:
    """Several runs; one before is not counted."""
    seconds()
    return [seconds() for _ in range(repeat)]


if __name__ == "__main__":
    sys.exit(main())
