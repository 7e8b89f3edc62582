"""Many runs in one worker and one scene: memory, open files, threads and temporary files stay as they are.

    python Testing/benchmarks/soak.py [--runs 200] [--rounds 20]

The panel on the stand-in for Slicer, with its real children, segments a small synthetic chest again and again, as a
person does it by the button, and then fine-tunes a tiny network on a small case store in one detached job after the
other. Looked at after each run: resident memory, open files and threads of the panel's process and of the worker that
stays warm, files in the folder for temporary ones, nodes in the scene. Printed is each figure's mean over the second
quarter of the runs, when caches are filled, and over the last. Ends with 1 if one grew. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "COVIDLesionSeg"), str(ROOT / "Testing"), str(ROOT / "Testing" / "Python")]

CHEST = {"size": (40, 72, 92), "spacing": (7.5, 4.0, 4.0), "oblique": False}
# growth that is allowed from the second quarter to the last
MOST_MB = 20.0
MOST_OTHER = 1.0
CONFIG = """
[data]
crop = [32, 32]
margin = 2
[optimizer]
learning_rate = 0.001
[ensembling]
warm_up = 2
window = 10
[run]
batch_size = 4
device = "cpu"
precision = "float32"
threads = 1
validation_interval = 2
checkpoint_interval = 2
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="segmentations")
    parser.add_argument("--rounds", type=int, default=20, help="fine-tunes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.runs, arguments.rounds)
    grew = False
    for name, (before, after) in found.items():
        allowed = MOST_MB if name.endswith("MB") else MOST_OTHER
        held = after - before <= allowed
        grew |= not held
        print(f"{name:46} {before:8.1f} -> {after:8.1f}   {'flat' if held else 'GREW'}")
    return int(grew)


def measure(folder: Path, runs: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Means of the second and the last quarter, by what was looked at."""
    temporary = folder / "temporary"
    temporary.mkdir()
    os.environ |= {"COVIDLESIONSEG_MODELS": str(folder / "models"), "TMPDIR": str(temporary)}
    tempfile.tempdir = str(temporary)
    import host

    host.boot_gui()
    import slicer
    from scripted_annotator import module_panel
    from training_fixtures import make_corrected_store, register_tiny_model

    from COVIDLesionSegLib import mrml
    from COVIDLesionSegLib.panel.training import TrainingLogic
    from COVIDLesionSegLib.phantom.synthetic import synthetic_chest

    register_tiny_model(folder / "made")
    found: dict[str, tuple[float, float]] = {}
    with module_panel() as panel:
        panel.show("segment")
        panel.segment.ui.inputSelector.setCurrentNode(mrml.nodeFromVolume(synthetic_chest(**CHEST).volume, "CT"))

        def segment() -> dict[str, float]:
            panel.segment.ui.applyButton.click()
            until(lambda: not panel.session.run.busy, 300)
            if mrml.moduleParameters().lesionSegmentation is None:
                raise RuntimeError(f"No result: {panel.messages.ui.messageText.toPlainText()}")
            return state(worker_of(os.getpid()), temporary)

        found |= quarters("segmentation", repeated(segment, runs))
        store = make_corrected_store(folder)
        (folder / "config.toml").write_text(CONFIG)
        training = TrainingLogic(root=folder / "jobs")

        def tune() -> dict[str, float]:
            # a worker that nobody needs for a quarter of an hour ends by itself
            segment()
            given = {"config": folder / "config.toml", "device": "cpu", "steps": 2}
            job = training.fineTune(store, **given, **({} if store.split.is_frozen else {"validation": ["case-0004"]}))
            until(lambda: not job.status().is_active, 300)
            if job.status().state != "done":
                raise RuntimeError(f"The fine-tuning did not end well: {job.status().error}")
            seen = state(worker_of(os.getpid()), temporary)
            job.remove()
            return seen

        found |= quarters("fine-tune", repeated(tune, rounds))
        slicer.app.processEvents()
    return found


def until(condition: Callable[[], Any], seconds: float) -> None:
    """Let Qt's events run until something holds."""
    import slicer

    end = time.monotonic() + seconds
    while not condition():
        slicer.app.processEvents()
        time.sleep(0.005)
        if time.monotonic() > end:
            raise TimeoutError(f"It did not happen within {seconds:g} s.")


def repeated(work: Callable[[], dict[str, float]], count: int) -> list[dict[str, float]]:
    """The figures after each run; what has been seen so far is said now and then."""
    seen, start = [], time.monotonic()
    for number in range(1, count + 1):
        seen.append(work())
        if number % max(1, count // 10) == 0:
            shown = ", ".join(f"{name} {value:.0f}" for name, value in seen[-1].items())
            print(f"{number} of {count}, {time.monotonic() - start:.0f} s: {shown}", file=sys.stderr, flush=True)
    return seen


def quarters(what: str, seen: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Means over the second and the last quarter of the runs."""
    count = len(seen)
    parts = seen[count // 4 : max(count // 2, count // 4 + 1)], seen[-max(1, count // 4) :]
    return {
        f"{what}: {name}": tuple(float(np.mean([figures[name] for figures in part])) for part in parts)
        for name in seen[0]
    }


def state(worker: int | None, temporary: Path) -> dict[str, float]:
    """Resident memory (MB), open files and threads of both processes; temporary files; nodes in the scene."""
    import slicer

    gc.collect()
    figures: dict[str, float] = {}
    for name, pid in (("panel", os.getpid()), ("worker", worker)):
        if pid is not None:
            figures[f"{name}, MB"] = rss_mb(pid)
            figures[f"{name}, open files"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            figures[f"{name}, threads"] = len(list(Path(f"/proc/{pid}/task").iterdir()))
    figures["temporary files"] = sum(1 for path in temporary.rglob("*") if path.is_file())
    figures["nodes in the scene"] = slicer.mrmlScene.GetNumberOfNodes()
    return figures


def rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def worker_of(parent: int) -> int | None:
    """The lesion child of a process, or of its children."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"lesions" in words and b"--kind" in words:
                return child
            if (found := worker_of(child)) is not None:
                return found
    return None


if __name__ == "__main__":
    sys.exit(main())
