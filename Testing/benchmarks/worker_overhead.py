"""What the way through a worker costs over a direct call, and how soon the table follows an edit.

    python Testing/benchmarks/worker_overhead.py [--rounds N]

The CT is the synthetic chest, stretched to 512 x 512 x 300 voxels (int16, 157 MB); all of it travels, mask and lungs of
the same size come back. So that this is told apart from the network's own time, the lungs given are those of two
slices. Direct call and worker (warm) take turns on the same machine and threads; the smaller time of each counts. The
worker's time outside of the predictor, which the child measures, is the overhead; on a quiet machine the difference of
the two times is the same. The table holds quantify and evaluate of the whole CT, lesion and reference; its time is that
from the request with the changed box to the figures in the caller's hands.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "COVIDLesionSeg"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from quantification import SHAPE, stretched

from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest
from COVIDLesionSegLib.worker import BlockingLoop, Client, WorkerSettings, wait
from COVIDLesionSegLib.worker.protocol import geometry_to_json

SLICES = 2
EDITS = 12


class WatchedLoop(BlockingLoop):
    """Remembers how long the caller's thread was held at most by one step."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0.0

    def timer(self, milliseconds, call):
        return super().timer(milliseconds, lambda: self._timed(call))

    def spawn(self, command, environment):
        process = super().spawn(command, environment)
        start = process.start

        def watched(listener):
            output = listener.output
            listener.output = lambda data: self._timed(lambda: output(data))
            start(listener)

        process.start = watched
        return process

    def _timed(self, call):
        start = time.perf_counter()
        call()
        self.longest = max(self.longest, time.perf_counter() - start)


def made(kind: str, **settings) -> tuple[Client, WatchedLoop]:
    loop = WatchedLoop()
    return Client(loop.spawn, loop.timer, WorkerSettings(**settings), kind, pump=loop.run_once), loop


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    measure(**vars(parser.parse_args()))


def measure(rounds: int = 3, shape: tuple[int, int, int] = SHAPE, edits: int = EDITS) -> dict[str, list[float]]:
    """Print and return seconds: overhead of each round by file and by pipe, and each update of the table."""
    chest = synthetic_chest(oblique=False)
    geometry = Geometry(shape[::-1], (0.7, 0.7, 1.0))
    volume = Volume(stretched(chest.volume.array, shape), geometry)
    lesion, lungs = stretched(chest.lesion, shape), stretched(chest.lungs, shape)
    found = {transport: overhead(transport, volume, lungs, rounds) for transport in ("file", "pipe")}
    return found | {"table": table(volume, lesion, lungs, edits)}


def overhead(transport: str, volume: Volume, lungs: np.ndarray, rounds: int) -> list[float]:
    """Seconds of each round that the worker takes outside of the predictor."""
    from COVIDLesionSegLib.inference import Predictor

    few, middle = np.zeros_like(lungs), len(lungs) // 2
    few[middle : middle + SLICES] = lungs[middle : middle + SLICES]
    predictor = Predictor(device="cpu")
    predictor.segment(volume, few)
    client, loop = made("lesions", transport=transport)
    parameters = {"geometry": geometry_to_json(volume.geometry), "device": "cpu"}

    def through():
        return wait(client.request("segment", parameters, {"volume": volume.array, "lungs": few}))

    first = seconds(through)
    loop.longest = 0.0
    direct, worker, outside = [], [], []
    for _ in range(rounds):
        direct.append(seconds(lambda: predictor.segment(volume, few)))
        start = time.perf_counter()
        reply = through()
        worker.append(time.perf_counter() - start)
        outside.append(worker[-1] - reply.values["summary"]["seconds"])
    same = np.array_equal(reply.arrays["mask"] != 0, predictor.segment(volume, few).mask)
    client.kill()
    bar = "   (bar: 1 s)" if transport == "file" else ""
    print(f"arrays by {transport}: direct {min(direct):.2f} s, worker {min(worker):.2f} s", end=" ")
    print(f"warm, {first:.2f} s cold; overhead {min(outside):.2f} s{bar}; same mask: {same};", end=" ")
    print(f"caller held {1000 * loop.longest:.0f} ms at most")
    return outside


def table(volume: Volume, lesion: np.ndarray, lungs: np.ndarray, edits: int) -> list[float]:
    """Seconds from each edit to the figures in the caller's hands."""
    client, loop = made("measurement")
    arrays = {"volume": volume.array, "lungs": lungs, "lesion": lesion, "reference": np.roll(lesion, 2, axis=1)}
    given = {"study": "a", "geometry": geometry_to_json(volume.geometry)}
    opening = seconds(lambda: wait(client.request("open", given, arrays)))
    generator = np.random.default_rng(0)
    times = []
    loop.longest = 0.0
    for _ in range(edits):
        z, y, x = (int(generator.integers(n // 3, 2 * n // 3)) for n in lesion.shape)
        box = [[z, z + 3], [y, y + 40], [x, x + 40]]
        stroke = np.ones((3, 40, 40), np.uint8)

        def edit(box=box, stroke=stroke):
            wait(client.request("update", {"study": "a", "box": box}, {"lesion": stroke}))

        times.append(seconds(edit))
    client.kill()
    ml = np.count_nonzero(lesion) * volume.geometry.voxel_ml
    print(f"table: open {opening:.2f} s; after an edit {np.median(times):.2f} s (median of {edits}),", end=" ")
    print(f"{max(times):.2f} s at most   (bar: 0.5 s); lesion {ml:.0f} mL; caller held {1000 * loop.longest:.0f} ms")
    return times


if __name__ == "__main__":
    main()
