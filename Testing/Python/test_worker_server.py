"""The real child process: what it answers, what it survives, and that nothing of it is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from file_faults import small_disk
from worker_children import ARRAY, LIBRARY, ODD, ON_POSIX, Children, environment, gone, pid_of, pump_until, started

from COVIDLesionSegLib.errors import CancelledError, InputError, LungsNotFoundError
from COVIDLesionSegLib.imaging import Geometry
from COVIDLesionSegLib.processes import is_alive
from COVIDLesionSegLib.worker import WorkerFailedError, transport, wait
from COVIDLesionSegLib.worker import protocol as p

pytestmark = ON_POSIX


@pytest.fixture(scope="module")
def warm():
    """One odd child for all tests that do it no harm."""
    made = Children()
    yield made.odd()
    made.clients[0].kill()


# ---- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["file", "pipe"])
def test_arrays_go_there_and_back(children, transport):
    client = children.odd(transport=transport)
    arrays = {"volume": ARRAY, "mask": ARRAY > 5, "map": np.linspace(0, 1, 999, dtype=np.float32), "none": ARRAY[:0]}
    for _ in range(2):
        reply = wait(client.request("echo", arrays=arrays))
        for name, array in arrays.items():
            np.testing.assert_array_equal(reply.arrays[name], array)
            assert reply.arrays[name].dtype == array.dtype
        reply.arrays["volume"][0, 0, 0] = 7


def test_what_libraries_print_does_not_disturb_the_conversation(warm):
    reply = wait(warm.request("talk"))
    assert reply.values == {"stdin": "", "child_stdin": ""}, "nobody reads the parent's words"
    lines = warm.report()
    for words in ("a print", "a write", "native words", "words of a C library", "words of a child"):
        assert words in lines


@pytest.mark.parametrize(
    ("task", "kind", "action"),
    [
        ("disk_full", "disk_full", ""),
        ("no_memory", "memory", "use_cpu"),
        ("no_gpu_memory", "memory", "use_cpu"),
        ("unexpected", "internal", "copy_report"),
        ("there_is_no_such_task", "input", ""),
    ],
)
def test_errors_of_the_work_have_a_kind_and_the_child_goes_on(warm, task, kind, action):
    before = pid_of(warm)
    request = warm.request(task)
    with pytest.raises((WorkerFailedError, InputError)):
        wait(request)
    assert (request.error.kind, request.error.action) == (kind, action)
    assert request.error.hint or kind == "input"
    assert "Traceback" in request.error.details
    assert pid_of(warm) == before


def test_the_exception_is_the_one_that_was_raised(warm):
    with pytest.raises(LungsNotFoundError, match=r"No lungs were found in CT\. Give a lung mask\."):
        wait(warm.request("no_lungs"))


def test_requests_of_another_version_and_garbage_are_refused_with_a_word():
    for words, kind in ((b'{"v": 99, "type": "close"}\n', "version"), (b"GET / HTTP/1.1\r\n", "garbage")):
        done = subprocess.run([sys.executable, ODD], input=words, env=environment(), capture_output=True, timeout=30)
        hello, failure = [frame.message for frame in p.Decoder().feed(done.stdout)]
        assert isinstance(hello, p.Hello) and failure.kind == kind and done.returncode == 1


# ---- cancel ---------------------------------------------------------------------------------------------------------


def test_a_child_that_looks_at_cancel_stays_warm(children):
    client = children.odd(cancel_seconds=5)
    before = pid_of(client)
    request = started(client, "polite")
    request.cancel()
    with pytest.raises(CancelledError):
        wait(request)
    assert client.running and pid_of(client) == before


@pytest.mark.parametrize("task", ["deaf", "stopped", "family"])
def test_cancel_answers_within_half_a_second_whatever_the_child_does(children, task):
    client = children.odd()
    request = started(client, task)
    start = time.monotonic()
    request.cancel()
    with pytest.raises(CancelledError):
        wait(request)
    assert time.monotonic() - start < 0.5
    assert gone(children.pids[0].pid)
    assert pid_of(client) != children.pids[0].pid, "the next request starts a new child"


@pytest.mark.parametrize("how", ["cancel", "kill", "close", "kill -9 the child's parent"])
def test_children_of_the_child_end_with_it(children, how):
    if how.startswith("kill -9"):
        _with_a_parent_that_is_killed()
        return
    client = children.odd()
    request = started(client, "family")
    family = [int(word) for word in request.messages[0].split()]
    assert all(is_alive(pid) for pid in family)
    getattr(request if how == "cancel" else client, how)()
    pump_until(client, lambda: request.done and not children.pids[0].is_running)
    assert all(gone(pid) for pid in family)


PARENT = """
import os, sys, subprocess
sys.path[:0] = [{tests!r}, {library!r}]
from worker_children import Children, started
children = Children()
client = children.odd()
request = started(client, "family")
stdin = children.pids[0]._popen.stdin.fileno()
# somebody else holds the pipe open: there will be no end of input
keeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[stdin] if {keep} else [])
print(children.pids[0].pid, keeper.pid, *request.messages[0].split(), flush=True)
import time; time.sleep(60)
"""


def _with_a_parent_that_is_killed(keep=False):
    code = PARENT.format(tests=str(Path(__file__).parent), library=str(LIBRARY), keep=keep)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child, keeper, *family = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        assert all(gone(pid) for pid in (child, *family))
    finally:
        os.kill(keeper, signal.SIGKILL)


def test_the_child_ends_with_its_parent_even_if_the_pipe_stays_open():
    _with_a_parent_that_is_killed(keep=True)


# ---- death, silence, idleness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "words"), [("killed", "SIGKILL"), ("crash", "SIGSEGV"), ("leave", "exit code 3")])
def test_death_says_how_and_the_last_words_are_kept(children, task, words):
    client = children.odd()
    request = client.request(task)
    with pytest.raises(WorkerFailedError, match=words):
        wait(request)
    assert request.error.kind == "died"
    expected = {"killed": "about to be killed", "crash": "Segmentation fault", "leave": ""}[task]
    assert expected in request.error.details and expected in client.report()
    assert pid_of(client)


def test_a_stopped_child_is_given_up_after_the_silence(children):
    client = children.odd(silence_seconds=3)
    request = started(client, "stopped")
    with pytest.raises(WorkerFailedError, match="sent nothing"):
        wait(request)
    assert request.error.kind == "silent" and gone(children.pids[0].pid)


def test_a_child_that_works_quietly_is_not_silent(children):
    client = children.odd(silence_seconds=3)
    request = started(client, "family")
    end = time.monotonic() + 4.5
    while time.monotonic() < end:
        client.pump(0.1)
    assert not request.done
    client.kill()


def test_an_idle_child_ends_by_itself_and_the_next_request_starts_another(children):
    client = children.odd(idle_seconds=0.5)
    first = pid_of(client)
    pump_until(client, lambda: not client.running)
    assert gone(first)
    assert pid_of(client) != first and client.generation == 2


def test_a_request_into_the_idle_end_is_not_lost(children):
    client = children.odd(idle_seconds=0.3)
    for pause in (0.28, 0.3, 0.32, 0.34):
        assert pid_of(client)
        time.sleep(pause)
    assert pid_of(client)


@pytest.mark.parametrize(
    ("python", "words"),
    [("/no/such/python", "No such file"), ("/bin/false", "exit code 1"), ("/bin/echo", "understood")],
)
def test_an_interpreter_that_is_none(children, python, words):
    client = children.real(python=python)
    request = client.request("lungs")
    with pytest.raises(WorkerFailedError, match=words):
        wait(request)
    assert request.error.kind in ("start_failed", "garbage") and request.error.action == "copy_report"


def test_fifty_requests_in_a_row_leave_nothing_behind(children, monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(transport.tempfile, "tempdir", str(tmp_path))
    client = children.odd()
    descriptors = None
    for number in range(50):
        wait(client.request("echo", arrays={"volume": ARRAY}))
        if number == 5 and Path("/proc/self/fd").is_dir():
            descriptors = len(list(Path("/proc/self/fd").iterdir()))
    (folder,) = tmp_path.glob("*")
    assert list(folder.iterdir()) == []
    if descriptors is not None:
        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    client.close()
    pump_until(client, lambda: not children.pids[0].is_running)
    assert not folder.exists()


# ---- a full disk for the child --------------------------------------------------------------------------------------


def test_a_disk_that_is_full_when_the_child_answers(children, monkeypatch):
    with small_disk(1) as place:
        monkeypatch.setattr(transport, "_MEMORY", place / "none")
        monkeypatch.setattr(transport.tempfile, "tempdir", str(place))
        client = children.real()
        big = np.zeros((20, 128, 128), np.uint8)
        grid = p.geometry_to_json(Geometry((128, 128, 20)))
        hu = np.full(big.shape, -900, np.int16)
        hu[:, :40] = 40
        wait(client.request("open", {"study": "a", "geometry": grid}, {"volume": hu, "lesion": big + 1}))
        wait(client.request("update", {"study": "a"}, {"reference": big + 1}))
        (folder,) = place.glob(f"{transport.PREFIX}*")
        left = shutil.disk_usage(place).free
        (place / "filler").write_bytes(bytes(max(0, left - 100_000)))
        request = client.request("error_map", {"study": "a"})
        with pytest.raises(WorkerFailedError, match="disk is full"):
            wait(request)
        assert request.error.kind == "disk_full"
        (place / "filler").unlink()
        assert wait(client.request("error_map", {"study": "a"})).arrays["map"].shape == big.shape
        client.kill()
        assert not folder.exists()
