"""How long the panel keeps people waiting: opening, the result into the scene, the table after an edit, frozen moments.

    python Testing/benchmarks/panel.py

On the stand-in for Slicer, with the synthetic chest stretched to 512 x 512 x 300 voxels. The result into the scene is
what happens between the worker's answer and the end of the run: lesions and lungs as segments with their surfaces, the
kept answer, the record. The table's time runs from the end of a stroke of 25 x 25 x 2 voxels to figures and tables with
a reference, through the real measurement child. Then a lesion is restored, and a result shown lesion by lesion. Frozen
is the longest turn of the event loop, beside the longest that reads or writes one MRML node. Each is the smallest of
the rounds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "COVIDLesionSeg"), str(ROOT / "Testing"), str(ROOT / "Testing" / "Python")]
sys.path.insert(0, str(Path(__file__).resolve().parent))

STROKES = 8


def measure(shape: tuple[int, int, int] | None = None) -> dict[str, list[float]]:
    """Print and return seconds: the panel opens, a first result comes into the scene, the table follows a stroke."""
    os.environ["COVIDLESIONSEG_MODELS"] = tempfile.mkdtemp()
    import host

    host.boot_gui()
    import slicer
    from fake_worker import FakeWorker, record_of
    from panel_fixtures import brush, wait_for
    from quantification import SHAPE, stretched

    from COVIDLesionSegLib import mrml
    from COVIDLesionSegLib.imaging import Geometry, Volume
    from COVIDLesionSegLib.panel import session as sessions
    from COVIDLesionSegLib.panel.process import QtProcess, QtTimer
    from COVIDLesionSegLib.panel.task import Task
    from COVIDLesionSegLib.phantom.synthetic import synthetic_chest
    from COVIDLesionSegLib.worker import Request
    from host.scripted import load_module

    times: dict[str, float] = {}
    resume, conclude = Task._resume, Request.conclude

    def keep_longest(name: str, start: float) -> None:
        times[name] = max(times.get(name, 0.0), time.perf_counter() - start)

    def innermost(coroutine) -> str:
        """Where a coroutine goes on: the function and the line that waits."""
        while getattr(coroutine.cr_await, "cr_frame", None) is not None:
            coroutine = coroutine.cr_await
        return f"{coroutine.__name__}, line {coroutine.cr_frame.f_lineno}"

    def timed(self) -> None:
        place, start = innermost(self._coroutine), time.perf_counter()
        resume(self)
        keep_longest(place, start)

    def timed_answer(self, outcome) -> None:
        start = time.perf_counter()
        conclude(self, outcome)
        keep_longest(f"answer: {self.task}", start)

    Task._resume, Request.conclude = timed, timed_answer
    phantom = synthetic_chest(oblique=False)
    lesion, lungs = (stretched(array, shape or SHAPE) for array in (phantom.lesion, phantom.lungs))
    volume = Volume(
        stretched(phantom.volume.array, shape or SHAPE), Geometry(lesion.shape[::-1], (0.75, 0.75, 1.0)), "CT"
    )
    answer = {"mask": lesion.view(np.uint8), "lungs": lungs}
    worker = FakeWorker(QtTimer)
    worker.tasks["segment"] = lambda p, _: ({"record": record_of(volume, p).to_json(), "summary": {}}, answer)
    # the network is not what is measured here: its child answers at once, the measurement child is the real one
    session = sessions.Session(lambda c, e: (worker.spawn if "lesions" in c else QtProcess)(c, e))
    sessions.session = lambda: session
    import COVIDLesionSegLib.panel.module_panel as module_panel

    module_panel.session = sessions.session
    opened = []
    for _ in range(3):
        start = time.perf_counter()
        loaded = load_module(ROOT / "COVIDLesionSeg" / "COVIDLesionSeg.py")
        loaded.panel.show()
        loaded.widget.enter()
        slicer.app.processEvents()
        opened.append(time.perf_counter() - start)
        if len(opened) < 3:
            loaded.widget.cleanup()
    panel = loaded.widget.panel
    print(f"panel opens                      {min(opened):6.2f} s  (bar 0.5)")

    ct = mrml.nodeFromVolume(volume, "CT")
    panel.segment.ui.inputSelector.setCurrentNode(ct)
    marks: dict[str, float] = {}
    session.run.changed.connect(lambda: marks.setdefault(session.run.state, time.perf_counter()))
    panel.segment.ui.applyButton.click()
    wait_for(lambda: not session.run.busy, "the run", 300)
    shown = time.perf_counter() - marks["showing"]
    print(f"result into the scene, first run {shown:6.2f} s  (bar 3)")
    node = mrml.moduleParameters().lesionSegmentation

    reference = mrml.createSegmentation(ct, "reference")
    reference.GetSegmentation().AddEmptySegment("reference", "reference")
    mrml.writeSegment(reference, "reference", np.roll(lesion, 2, axis=2), ct)
    mrml.moduleParameters().referenceSegmentation = reference
    panel.show("measure")
    live = session.live
    wait_for(lambda: live.evaluation and not live.busy, "the figures", 300)
    z, y, x = (int(np.median(places)) for places in np.nonzero(lesion))

    seconds = []
    for index in range(STROKES):
        wait_for(lambda: not live.busy, "rest", 60)
        before = live.quantities
        brush(panel, node, np.s_[z + 3 * index : z + 3 * index + 2, y : y + 25, x : x + 25], erase=index % 2 == 0)
        start = time.perf_counter()
        wait_for(lambda old=before: live.quantities is not old, "the figures", 60)
        seconds.append(time.perf_counter() - start)
    print(f"table after a stroke             {min(seconds):6.2f} s  (bar 0.5), median {np.median(seconds):.2f}")

    wait_for(lambda: not live.busy, "rest", 60)
    panel.show("correct")
    panel.correct.goToLesion(1)
    panel.correct.onReset()
    wait_for(lambda: not panel.correct.busy, "the restored lesion", 60)
    wait_for(lambda: not live.busy, "rest", 60)
    panel.segment.ui.viewCombo.setCurrentIndex(panel.segment.ui.viewCombo.findData("separate"))
    panel.show("segment")
    panel.segment.ui.applyButton.click()
    wait_for(lambda: not session.run.busy, "the run lesion by lesion", 300)
    nodes = ("_showLesions", "_keepAnswer", "_showLungs", "<lambda>", "readVolume", "readLesions", "readLungs")
    reading = {*nodes, "readReference", "read", "_readVolume", "readAnswer", "restore"}
    reading |= {"_showRegions", "_showLesionList", "_showComparison"}
    print("longest turns of the event loop, ms:")
    for name, value in sorted(times.items(), key=lambda pair: -pair[1])[:14]:
        print(f"  {name:<20} {1000 * value:6.0f}  {'one MRML node' if name in reading else '(bar 50)'}")
    loaded.widget.cleanup()
    end = time.monotonic() + 2
    wait_for(lambda: time.monotonic() > end)
    return {"opens": opened, "result": [shown], "table": seconds}


if __name__ == "__main__":
    measure()
