"""The script that measures on a GPU what is unmeasured without one: in miniature, on the CPU."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from COVIDLesionSegLib.errors import CancelledError

BENCHMARKS = REPOSITORY / "Testing" / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("gpu")
    finally:
        sys.path.remove(str(BENCHMARKS))


def written(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_part_gives_its_figures_in_miniature(gpu, tmp_path):
    assert gpu.main(["--miniature", "-o", str(tmp_path / "gpu.json"), "--seconds", "1800"]) == 0
    report = written(tmp_path / "gpu.json")
    assert report["failed"] == {}
    assert report["miniature"]
    parts = report["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert parts["matmul"]["flops_per_second"] > 0

    scale = gpu.MINIATURE
    assert list(parts["exactness"]) == [f"{model} {p}" for model in gpu.MODELS for p in scale.precisions]
    for model in gpu.MODELS:
        assert parts["exactness"][f"{model} float32"]["largest_difference"] < 1e-4
        assert parts["exactness"][f"{model} bfloat16"]["mean_difference"] < 0.01

    assert list(parts["speed"]) == [f"{model} batch {batch}" for model in gpu.MODELS for batch in scale.batches]
    for figures in parts["speed"].values():
        assert figures["slices_per_second"] == pytest.approx(figures["slices_computed"] / figures["seconds"])
        assert figures["fraction_of_matmul_rate"] > 0

    for figures in parts["memory"].values():
        assert figures["rungs"]
        assert figures["dice"] > 0.99
    assert set(parts["training"]) == set(gpu.PROTOCOLS)
    for figures in parts["training"].values():
        assert figures["steps"] == scale.steps
        assert 0 <= figures["waiting_fraction"] <= 1
    pictures = parts["covid_semiseg"]
    assert (pictures["epochs"], pictures["test_slices"]) == (1, 2)
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in pictures["dice"].values())


def test_a_part_that_fails_leaves_what_it_found_and_the_others(gpu, tmp_path):
    def failing(bench, found, until):
        found["before"] = 1
        raise ValueError("broken")

    report = gpu.Report(tmp_path / "gpu.json", {"head": True}, 60)
    report.run("failing", failing, None, 0)
    report.run("good", lambda bench, found, until: found.update(value=2), None, 0)
    report.close()
    assert written(tmp_path / "gpu.json")["parts"] == {"failing": {"before": 1}, "good": {"value": 2}}
    assert written(tmp_path / "gpu.json")["failed"] == {"failing": "ValueError: broken"}


def test_a_training_that_a_signal_stops_is_no_figure(gpu, tmp_path, monkeypatch):
    class Stopped:
        def __init__(self, *arguments):
            pass

        def run(self, cancelled):
            raise CancelledError("stopped")

    monkeypatch.setattr(gpu, "Trainer", Stopped)
    monkeypatch.setattr(gpu, "read_log", lambda folder: [{"kind": "start"}, {"kind": "step"}])
    with pytest.raises(CancelledError):
        gpu.trained_steps(None, tmp_path, time.monotonic() + 600)
    # where the time is over, its steps are one
    assert gpu.trained_steps(None, tmp_path, time.monotonic() - 1) == [{"kind": "step"}]


def test_what_hangs_is_cut_off_with_the_parts_before_it_written(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import gpu\n"
        "report = gpu.Report(Path(sys.argv[2]), {}, 1.0)\n"
        "report.run('good', lambda bench, found, until: found.update(value=2), None, 0)\n"
        "report.run('hangs', lambda bench, found, until: time.sleep(600), None, 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg")}
    start = time.monotonic()
    command = [sys.executable, "-c", script, str(BENCHMARKS), str(tmp_path / "gpu.json")]
    done = subprocess.run(command, env=environment, timeout=300)
    assert done.returncode == 1
    assert time.monotonic() - start < 300
    report = written(tmp_path / "gpu.json")
    assert report["parts"]["good"] == {"value": 2}
    assert "hangs" in report["failed"]


# A part that computes, and one whose training ends by itself after the step in which the signal came.
UNDER_WAY = {
    "computing": 'print("ready", flush=True); time.sleep(600)',
    "training": "training()",
}


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM ends a process of Windows at once")
@pytest.mark.parametrize("under_way", UNDER_WAY.values(), ids=UNDER_WAY)
def test_sigterm_ends_it_with_all_that_was_found_written(under_way, tmp_path):
    script = f"""
import sys, time
sys.path.insert(0, sys.argv[1])
import gpu
from COVIDLesionSegLib.learning.machine import until_signal

def training():
    with until_signal() as asked:
        print("ready", flush=True)
        while not asked():
            time.sleep(0.01)
        raise gpu.CancelledError("stopped")

def good(bench, found, until):
    found["value"] = 2

def ended(bench, found, until):
    found["before"] = 1
    {under_way}

def never(bench, found, until):
    found["value"] = 3

gpu.PARTS = {{part.__name__: part for part in (good, ended, never)}}
sys.exit(gpu.main(["--miniature", "-o", sys.argv[2]]))
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg")}
    command = [sys.executable, "-c", script, str(BENCHMARKS), str(tmp_path / "gpu.json")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert any(line == "ready\n" for line in process.stdout)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    report = written(tmp_path / "gpu.json")
    assert report["parts"] == {"good": {"value": 2}, "ended": {"before": 1}}
    assert report["failed"] == {"ended": "ended by SIGTERM"}
