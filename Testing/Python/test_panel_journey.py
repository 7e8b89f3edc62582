"""The whole way through the panel with the real child processes on QProcess and the bundled network."""

from __future__ import annotations

import csv
import os
import sys
import time

import numpy as np
import pytest
from panel_fixtures import brush, let_run, said, wait_for, wait_for_words


@pytest.fixture(scope="module")
def phantom():
    from COVIDLesionSegLib.phantom.synthetic import synthetic_chest

    return synthetic_chest(size=(40, 144, 192), spacing=(7.5, 2.0, 2.0))


@pytest.fixture(scope="module")
def warm_session(slicer_gui, tmp_path_factory):
    """A session whose children are real and stay warm between the tests."""
    from COVIDLesionSegLib.panel.session import Session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path_factory.mktemp("models")))
        patch.setenv("OMP_NUM_THREADS", "1")
        session = Session()
        session.attach(session)
        yield session
        session.detach(session)
        from COVIDLesionSegLib.panel import process

        wait_for(lambda: not any(isinstance(kept, process.QtProcess) for kept in process._kept), "the children's end")


@pytest.fixture
def shared_session(warm_session):
    return warm_session


def test_segment_correct_measure_export(panel, phantom, tmp_path, scene):
    from COVIDLesionSegLib import mrml
    from COVIDLesionSegLib.measurement import dice

    ct = mrml.nodeFromVolume(phantom.volume, "CT")
    ui = panel.segment.ui
    ui.inputSelector.setCurrentNode(ct)
    ui.deviceCombo.setCurrentIndex(ui.deviceCombo.findData("cpu"))
    phases = set()

    def note_phase():
        phases.add(ui.phaseLabel.text.split(",")[0])

    panel.session.run.changed.connect(note_phase)
    ui.applyButton.click()
    wait_for(lambda: not panel.session.run.busy, "the run", seconds=120)
    # the session outlives this panel and its labels
    panel.session.run.changed.disconnect(note_phase)
    assert "Done" in said(panel), said(panel)
    assert {"Finding the lungs", "Finding lesions", "Showing the result"} <= phases
    wait_for(lambda: "threads" in ui.deviceLabel.text, "the device's name", seconds=60)
    node = mrml.moduleParameters().lesionSegmentation
    found = mrml.lesionMask(node, ct)
    # slices this coarse are not what the network was trained on
    assert dice(found, phantom.lesion) > 0.3
    assert mrml.recordOf(node).device["used"] == "cpu"

    panel.show("correct")
    live = panel.session.live
    wait_for(lambda: live.lesions and not live.busy, "the figures", seconds=60)
    panel.correct.ui.nextLesionButton.click()
    before = live.quantities["lesion_volume"]["value"]
    brush(panel, node, np.s_[20:22, 60:70, 40:50])
    wait_for(lambda: live.quantities["lesion_volume"]["value"] != before and not live.busy, "the edit's figures")
    now = mrml.lesionMask(node, ct)
    assert live.quantities["lesion_volume"]["value"] == pytest.approx(now.sum() * phantom.volume.geometry.voxel_ml)

    panel.show("measure")
    reference = mrml.showLesions(ct, phantom.lesion)
    panel.measure.ui.referenceSelector.setCurrentNode(reference)
    wait_for(lambda: live.evaluation and not live.busy, "the comparison")
    assert live.evaluation["dice"]["value"] == pytest.approx(dice(now, phantom.lesion))
    panel.measure.ui.htmlCheck.setChecked(False)
    panel.measure.ui.folderEdit.setProperty("currentPath", str(tmp_path))
    panel.measure.ui.saveButton.click()
    wait_for_words(panel, "Written: case-1_measurements.csv")
    with (tmp_path / "case-1_measurements.csv").open() as file:
        rows = {row["region"]: row for row in csv.DictReader(file)}
    assert float(rows["right_lung"]["lesion_volume [mL]"]) > 0


def test_cancel_answers_at_once_and_the_next_run_works(panel, phantom, scene):
    from COVIDLesionSegLib import mrml

    ct = mrml.nodeFromVolume(phantom.volume, "CT")
    panel.segment.ui.inputSelector.setCurrentNode(ct)
    panel.segment.ui.applyButton.click()
    wait_for(lambda: panel.session.run.progress is not None, "the child", seconds=60)
    start = time.monotonic()
    panel.session.run.cancel()
    wait_for(lambda: not panel.session.run.busy, "the cancel", seconds=2)
    assert time.monotonic() - start < 1.0
    assert "Cancelled." in said(panel)
    panel.segment.ui.lungsCombo.setCurrentIndex(1)
    lungs = mrml.showLungs(ct, phantom.lungs)
    panel.segment.ui.lungSelector.setCurrentNode(lungs)
    panel.segment.ui.applyButton.click()
    wait_for(lambda: not panel.session.run.busy, "the run", seconds=120)
    assert mrml.moduleParameters().lesionSegmentation is not None, said(panel)


def test_children_end_with_their_last_user(slicer_gui):
    from COVIDLesionSegLib.panel.session import Session

    session = Session()
    session.attach("one")
    session.attach("two")
    masks = {name: np.ones((4, 5, 6), np.uint8) for name in ("prediction", "reference")}
    geometry = {"size": [6, 5, 4], "spacing": [1, 1, 1], "origin": [0, 0, 0], "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1]}
    client = session.client("measurement")
    request = client.request("evaluate", {"geometry": geometry}, masks)
    wait_for(lambda: request.done, "the answer", seconds=60)
    assert request.result().values["evaluation"]["dice"]["value"] == 1
    pid = client._connection._process.pid
    session.detach("one")
    let_run(0.1)
    assert is_running(pid)
    session.detach("two")
    wait_for(lambda: not is_running(pid), "the end of the child", seconds=10)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---- the processes themselves ---------------------------------------------------------------------------------------


class Listener:
    def __init__(self):
        self.out, self.err, self.end = b"", b"", None

    def output(self, data):
        self.out += data

    def diagnostics(self, data):
        self.err += data

    def ended(self, exit_code, problem):
        self.end = (exit_code, problem)


@pytest.fixture
def run(slicer_gui):
    """Function that starts Python code in a child."""
    from COVIDLesionSegLib.panel.process import QtProcess

    def start(code, program=sys.executable):
        listener, process = Listener(), QtProcess([program, "-c", code], dict(os.environ, MARK="given"))
        process.start(listener)
        return listener, process

    return start


def test_output_and_end_are_told_in_order(run):
    listener, process = run("import os, sys; print(os.environ['MARK']); print('oops', file=sys.stderr); sys.exit(3)")
    wait_for(lambda: listener.end is not None, "the end")
    assert (listener.out.split(), listener.err.split(), listener.end) == ([b"given"], [b"oops"], (3, ""))
    assert not process.is_running and process.pid


def test_bytes_with_zeros_arrive_whole(run):
    listener, process = run("import sys; data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data[::-1])")
    data = bytes(range(256)) * 4000
    wait_for(lambda: process.is_running, "the start")
    for start in range(0, len(data), 100_000):
        process.write(memoryview(data)[start : start + 100_000])
    process.close_input()
    wait_for(lambda: listener.end is not None, "the end")
    assert listener.out == data[::-1] and process.pending() == 0
    process.write(b"late")


def test_a_program_that_is_not_there_is_a_sentence(run):
    listener, process = run("", program="/no/such/python")
    wait_for(lambda: listener.end is not None, "the refusal")
    assert listener.end[0] is None and listener.end[1]
    assert not process.is_running


@pytest.mark.parametrize("program", [sys.executable, "/no/such/python"])
def test_qts_process_goes_once_it_has_ended(run, program):
    listener, process = run("", program)
    gone = []
    process._process.connect("destroyed()", lambda: gone.append(1))
    wait_for(lambda: listener.end is not None and gone, "the removal")
    process.write(b"late")
    process.close_input()
    process.kill_tree()
    assert not process.is_running and process.pending() == 0


def test_the_whole_tree_is_killed(run):
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    listener, process = run(code)
    wait_for(lambda: listener.out.endswith(b"\n"), "the grandchild")
    process.kill_tree()
    wait_for(lambda: listener.end is not None, "the end")
    wait_for(lambda: not is_running(int(listener.out)), "the grandchild's end")
    assert listener.end[0] < 0


def test_a_timer_calls_once_or_never(slicer_gui):
    from COVIDLesionSegLib.panel.process import QtTimer

    calls = []
    QtTimer(1, lambda: calls.append("kept although nobody holds it"))
    stopped = QtTimer(1, lambda: calls.append("stopped"))
    stopped.stop()
    wait_for(lambda: calls, "the call")
    let_run(0.05)
    assert calls == ["kept although nobody holds it"]


def test_timers_leave_nothing_behind_in_qt(slicer_gui, monkeypatch):
    import gc
    import weakref

    import qt

    from COVIDLesionSegLib.panel.process import QtTimer

    made, gone, calls, make = [], [], [], qt.QTimer

    def record():
        timer = make()
        timer.connect("destroyed()", lambda: gone.append(1))
        made.append(1)
        return timer

    monkeypatch.setattr(qt, "QTimer", record)
    before = len(slicer_gui.app.moduleManager().children())

    class Owner:
        def call(self):
            calls.append(1)

    owners = [Owner() for _ in range(40)]
    timers = [QtTimer(index % 3, owner.call) for index, owner in enumerate(owners)]
    for timer in timers[::2]:
        timer.stop()
    wait_for(lambda: len(calls) == 20 and len(gone) == 40, "the end of all timers")
    left = [weakref.ref(owner) for owner in owners]
    del owners, timers, timer
    gc.collect()
    assert len(made) == 40 and not any(owner() for owner in left)
    assert len(slicer_gui.app.moduleManager().children()) == before
