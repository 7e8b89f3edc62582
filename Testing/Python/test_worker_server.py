"""The real child process: what it answers, what it survives, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from file_faults import small_disk

from COVIDLesionSegLib.errors import CancelledError, InputError, LungsNotFoundError, ModelError, OutputError
from COVIDLesionSegLib.files import sha256_file
from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.imaging.phantom import synthetic_chest
from COVIDLesionSegLib.measurement import compare_timepoints, evaluate, quantify
from COVIDLesionSegLib.measurement.longitudinal import TimePoint
from COVIDLesionSegLib.processes import is_alive
from COVIDLesionSegLib.worker import (
    BlockingLoop,
    Client,
    WorkerFailedError,
    WorkerSettings,
    blocking_client,
    exchange,
    wait,
)
from COVIDLesionSegLib.worker import protocol as p

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are tested on POSIX")

ODD = Path(__file__).with_name("odd_worker.py")
LIBRARY = REPOSITORY / "COVIDLesionSeg"
ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


class Children:
    """Makes clients whose children are ended with the test."""

    def __init__(self):
        self.clients, self.pids = [], []

    def odd(self, environment=None, **settings):
        """A client whose child has the odd tasks."""
        loop = BlockingLoop()

        def spawn(command, given):
            inside = command.index("--kind")
            changed = {**given, "PYTHONPATH": str(LIBRARY), **(environment or {})}
            process = loop.spawn([sys.executable, str(ODD), *command[inside:]], changed)
            self.pids.append(process)
            return process

        self.clients.append(Client(spawn, loop.timer, WorkerSettings(**settings), pump=loop.run_once))
        return self.clients[-1]

    def real(self, kind="measurement", **settings):
        """A client of the real child."""
        self.clients.append(blocking_client(WorkerSettings(**settings), kind))
        return self.clients[-1]


@pytest.fixture
def children():
    made = Children()
    yield made
    for client in made.clients:
        client.kill()


@pytest.fixture(scope="module")
def warm():
    """One odd child for all tests that do it no harm."""
    made = Children()
    yield made.odd()
    made.clients[0].kill()


def pump_until(client, condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        client.pump(0.02)


def gone(pid, seconds=10.0):
    """Whether a process is gone by then."""
    end = time.monotonic() + seconds
    while is_alive(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def started(client, task):
    """A request whose work has begun; its notes."""
    seen = []
    request = client.request(task, progress=lambda found: seen.append(found.phase))
    pump_until(client, lambda: "network" in seen)
    return request


def pid_of(client):
    return wait(client.request("echo")).values["pid"]


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


def environment(**more):
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(LIBRARY), **more}


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
    family = [int(word) for word in request._notes[0].split()]
    assert all(is_alive(pid) for pid in family)
    getattr(request if how == "cancel" else client, how)()
    pump_until(client, lambda: request.done and not children.pids[0].is_running)
    assert all(gone(pid) for pid in family)


PARENT = """
import os, sys, subprocess
sys.path[:0] = [{tests!r}, {library!r}]
from test_worker_server import Children, started
children = Children()
client = children.odd()
request = started(client, "family")
stdin = children.pids[0]._popen.stdin.fileno()
# somebody else holds the pipe open: there will be no end of input
keeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[stdin] if {keep} else [])
print(children.pids[0].pid, keeper.pid, *request._notes[0].split(), flush=True)
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
    monkeypatch.setattr(exchange, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(exchange.tempfile, "tempdir", str(tmp_path))
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
        monkeypatch.setattr(exchange, "_MEMORY", place / "none")
        monkeypatch.setattr(exchange.tempfile, "tempdir", str(place))
        client = children.real()
        big = np.zeros((20, 128, 128), np.uint8)
        grid = p.geometry_to_json(Geometry((128, 128, 20)))
        hu = np.full(big.shape, -900, np.int16)
        hu[:, :40] = 40
        wait(client.request("open", {"study": "a", "geometry": grid}, {"volume": hu, "lesion": big + 1}))
        wait(client.request("update", {"study": "a"}, {"reference": big + 1}))
        (folder,) = place.glob(f"{exchange.PREFIX}*")
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


# ---- behind a prefix ------------------------------------------------------------------------------------------------

FAR = """#!/bin/sh
echo "Welcome to the far machine"
cd {home}
exec env -i PATH=/usr/bin:/bin HOME={home} TMPDIR={home}/tmp PYTHONPATH={library} "$@"
"""


def test_behind_a_prefix_the_far_side_needs_nothing_of_this_one(children, chest, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "make_folder", lambda: pytest.fail("a folder was made"))
    home = tmp_path / "far home"
    (home / "tmp").mkdir(parents=True)
    script = tmp_path / "far"
    script.write_text(FAR.format(home=f"'{home}'", library=f"'{LIBRARY}'"))
    script.chmod(0o755)
    client = children.real(prefix=(str(script),), python=sys.executable)
    grid = p.geometry_to_json(chest.volume.geometry)
    reply = wait(client.request("lungs", {"geometry": grid}, {"volume": chest.volume.array}))
    assert reply.arrays["lungs"].shape == chest.volume.array.shape and set(np.unique(reply.arrays["lungs"])) == {
        0,
        1,
        2,
    }
    (child,) = [process for process in client._connection._process._running if process.is_running]
    assert Path(f"/proc/{child.pid}/cwd").resolve() == home or not Path("/proc").is_dir()
    assert "Welcome" in client.report()
    client.close()
    pump_until(client, lambda: not child.is_running)


def test_a_model_of_this_machine_works_behind_a_prefix(children, slab, tmp_path):
    home, file = tmp_path / "far", tmp_path / "store" / "models" / "tiny-1" / "model.safetensors"
    (home / "tmp").mkdir(parents=True)
    save_tiny_model(file)
    script = tmp_path / "prefix"
    script.write_text(FAR.format(home=home, library=LIBRARY))
    script.chmod(0o755)
    parameters = {"geometry": p.geometry_to_json(slab.volume.geometry), "model": str(file), "device": "cpu"}
    arrays = {"volume": slab.volume.array, "lungs": slab.lungs}
    folder = home / ".local" / "share" / "covid-lesion-seg" / "models" / "received" / sha256_file(file)

    def found(client):
        record = wait(client.request("segment", parameters, arrays, files=("model",))).values["record"]
        assert record["model"]["id"] == "tiny"
        return record["model"]["weights_sha256"]

    client = children.real("lesions", prefix=(str(script),), python=sys.executable)
    first = found(client)
    copy = folder / "model.safetensors"
    assert copy.read_bytes() == file.read_bytes()
    # a copy that was changed is not used but sent again
    copy.write_bytes(b"something else")
    assert found(client) == first and copy.read_bytes() == file.read_bytes()
    client.kill()
    made = copy.stat().st_mtime_ns
    again = children.real("lesions", prefix=(str(script),), python=sys.executable)
    assert found(again) == first and copy.stat().st_mtime_ns == made, "a later child has it already"
    save_tiny_model(file, seed=3)
    assert found(again) != first


@pytest.mark.parametrize("prefix", [("nice", "-n", "5"), ("env", "X=1"), ("sh", "-c", '"$@"; true', "sh")])
def test_cancel_kills_the_tree_behind_a_prefix(children, prefix):
    loop = BlockingLoop()

    def spawn(command, given):
        assert tuple(command[: len(prefix)]) == prefix
        changed = {**given, "PYTHONPATH": str(LIBRARY)}
        return loop.spawn([*prefix, sys.executable, str(ODD), *command[command.index("--kind") :]], changed)

    client = Client(spawn, loop.timer, WorkerSettings(prefix=prefix, python=sys.executable), pump=loop.run_once)
    children.clients.append(client)
    worker = pid_of(client)
    request = started(client, "family")
    family = [int(word) for word in request._notes[0].split()]
    start = time.monotonic()
    request.cancel()
    with pytest.raises(CancelledError):
        wait(request)
    assert time.monotonic() - start < 0.5
    assert all(gone(pid) for pid in (worker, *family))


def test_the_far_side_ends_at_the_end_of_input():
    with subprocess.Popen(
        [sys.executable, ODD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        decoder, messages = p.Decoder(), []
        process.stdin.write(p.encode(p.Ask(1, "family", {})))
        process.stdin.flush()
        while not any(isinstance(message, p.Note) for message in messages):
            messages += [frame.message for frame in decoder.feed(process.stdout.read1())]
        (note,) = [message for message in messages if isinstance(message, p.Note)]
        family = [int(word) for word in note.text.split()]
        process.stdin.close()
        assert process.wait(10) == 0
        assert all(gone(pid) for pid in family)


def test_the_library_runs_from_wherever_it_lies(tmp_path):
    """Copied into a folder among others, started by path: the copy is taken, and nothing beside it."""
    place = tmp_path / "site-packages"
    skipped = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(LIBRARY / "COVIDLesionSegLib", place / "COVIDLesionSegLib", ignore=skipped)
    version = place / "COVIDLesionSegLib" / "__init__.py"
    version.write_text(version.read_text().replace('__version__ = "', '__version__ = "copy-'))
    (place / "numpy.py").write_text("raise SystemExit('a package of another interpreter was loaded')")
    main = place / "COVIDLesionSegLib" / "worker" / "__main__.py"
    done = subprocess.run(
        [sys.executable, "-P", main, "--kind", "measurement"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30
    )
    assert json.loads(done.stdout)["library"].startswith("copy-"), done.stderr


# ---- measurement ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chest():
    """A synthetic chest that is found and measured in a moment."""
    return synthetic_chest(size=(32, 80, 112), spacing=(9.0, 3.6, 3.5), oblique=False)


@pytest.fixture(scope="module")
def measuring():
    client = blocking_client(kind="measurement")
    yield client
    client.kill()


def opened(client, chest, study="a", **more):
    arrays = {"volume": chest.volume.array, "lungs": chest.lungs, "lobes": chest.lobes, "lesion": chest.lesion}
    parameters = {"study": study, "geometry": p.geometry_to_json(chest.volume.geometry)}
    return wait(client.request("open", parameters, {**arrays, **more}))


def same(found, expected):
    """Equal figures, NaN and infinity too."""
    assert list(found) == list(expected)
    for name, entry in expected.items():
        assert json.dumps(found[name], sort_keys=True) == json.dumps(p.decode(json_of(entry)).values, sort_keys=True)


def json_of(value):
    return p.encode(p.Result(1, value))


def test_the_figures_are_those_of_the_library_through_every_edit(measuring, chest):
    lesion, reference = chest.lesion.copy(), np.roll(chest.lesion, 1, axis=2)
    spacing = chest.volume.geometry.spacing_zyx
    values = opened(measuring, chest, reference=reference).values
    generator = np.random.default_rng(3)
    for step in range(6):
        same(values["quantities"], quantify(chest.volume, lesion, chest.lungs, chest.lobes))
        same(values["evaluation"], evaluate(lesion, reference, spacing))
        low = generator.integers(0, np.array(lesion.shape) - 12)
        box = [[int(a), int(a) + int(n)] for a, n in zip(low, generator.integers(1, 12, 3), strict=True)]
        place = tuple(slice(*side) for side in box)
        edit = generator.integers(0, 2, lesion[place].shape).astype(np.uint8)
        if step == 4:
            reference[place] = edit
            values = wait(measuring.request("update", {"study": "a", "reference_box": box}, {"reference": edit})).values
        else:
            lesion[place] = edit
            values = wait(measuring.request("update", {"study": "a", "box": box}, {"lesion": edit})).values


def test_an_edit_whose_figures_were_cancelled_is_not_forgotten(measuring, chest):
    """The next update measures both changes, not just its own box."""
    lesion = chest.lesion.copy()
    opened(measuring, chest, reference=chest.lesion)
    lesion[2:5, 3:9, 3:9] = True
    # two updates at once: the first one is cancelled after it has begun or before, whichever comes
    first = measuring.request(
        "update", {"study": "a", "box": [[2, 5], [3, 9], [3, 9]]}, {"lesion": lesion[2:5, 3:9, 3:9].astype(np.uint8)}
    )
    second = measuring.request(
        "update", {"study": "a", "box": [[9, 9], [0, 0], [0, 0]]}, {"lesion": lesion[9:9, :0, :0]}
    )
    values = wait(second).values
    assert first.done
    same(values["evaluation"], evaluate(lesion, chest.lesion, chest.volume.geometry.spacing_zyx))


def test_masks_come_and_go(measuring, chest):
    opened(measuring, chest, "b")
    values = wait(measuring.request("update", {"study": "b"}, {"reference": chest.lesion.astype(np.uint8)})).values
    assert values["evaluation"]["dice"]["value"] == 1.0
    values = wait(measuring.request("update", {"study": "b", "drop": ["reference"]})).values
    assert values["evaluation"] is None and values["quantities"] is not None
    values = wait(measuring.request("update", {"study": "b", "drop": ["lesion"]})).values
    assert values["quantities"] is None
    values = wait(measuring.request("update", {"study": "b"}, {"lesion": np.zeros(chest.lesion.shape, bool)})).values
    assert values["quantities"]["lesion_volume"]["value"] == 0
    wait(measuring.request("close", {"study": "b"}))


@pytest.mark.parametrize(
    ("task", "parameters", "arrays", "words"),
    [
        ("update", {"study": "never opened"}, {}, "not open"),
        ("update", {"study": "a", "box": [[0, 1], [0, 1]]}, {"lesion": ARRAY[:1, :1, :1]}, "box"),
        ("update", {"study": "a", "box": [[0, 1], [0, 1], [0, 9999]]}, {"lesion": ARRAY[:1, :1, :1]}, "box"),
        ("update", {"study": "a", "box": [[0, 2], [0, 1], [0, 1]]}, {"lesion": ARRAY[:1, :1, :1]}, "shape"),
        ("update", {"study": "a", "box": [[0, 1], [0, 1], [0, 1]]}, {"lesion": ARRAY[0]}, "axes"),
        ("update", {"study": "a"}, {"lesion": ARRAY}, "shape"),
        ("update", {"study": "a"}, {"lungs": ARRAY}, "does not know lungs"),
        ("update", {"study": "a", "drop": ["lungs"]}, {}, "no mask 'lungs'"),
        ("update", {"study": 3}, {}, "str"),
        ("evaluate", {"study": "a"}, {}, "no reference"),
        ("quantify", {}, {}, "needs the array volume"),
        ("report", {"study": "a", "case": "x", "folder": "/tmp", "kinds": ["pdf"]}, {}, "html, csv and json"),
        ("compare", {"study": "a", "earlier": "never opened"}, {}, "not open"),
    ],
)
def test_bad_requests_are_answered_with_a_sentence(measuring, chest, task, parameters, arrays, words):
    opened(measuring, chest)
    request = measuring.request(task, parameters, arrays)
    with pytest.raises((InputError, WorkerFailedError), match=words):
        wait(request)
    assert request.error.kind == ("not_open" if "not open" in words else "input")


def test_a_ct_that_is_none_is_refused(measuring, chest):
    grid = p.geometry_to_json(chest.volume.geometry)
    with pytest.raises(InputError, match="rescale"):
        wait(measuring.request("open", {"study": "c", "geometry": grid}, {"volume": chest.volume.array + 1024}))
    stored = {"study": "c", "geometry": grid, "rescale": [1, -1024]}
    wait(measuring.request("open", stored, {"volume": chest.volume.array + 1024}))


def test_files_of_a_report(measuring, chest, tmp_path):
    opened(measuring, chest)
    parameters = {"study": "a", "case": "case-7", "folder": str(tmp_path), "kinds": ["csv", "json"]}
    reply = wait(measuring.request("report", parameters))
    names = {Path(file).name for file in reply.values["files"]}
    assert names == {"case-7_measurements.csv", "case-7_lesions.csv", "case-7_report.json"}
    measured = json.loads((tmp_path / "case-7_report.json").read_text())
    assert measured["case"] == "case-7" and measured["quantities"]["lesion_volume"]["value"] > 0
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="could not be written"):
        wait(measuring.request("report", {**parameters, "folder": str(tmp_path / "file")}))


@pytest.mark.long
def test_the_page_of_a_report(measuring, chest, tmp_path):
    opened(measuring, chest)
    wait(measuring.request("report", {"study": "a", "case": "case-7", "folder": str(tmp_path), "kinds": ["html"]}))
    assert "case-7" in (tmp_path / "case-7_report.html").read_text()


def test_a_part_of_a_mask_is_found_at_its_place(measuring):
    mask = np.zeros((4, 9, 9), np.uint8)
    mask[1:3, 1:3, 1:8] = mask[1:3, 6:8, 1:8] = 1
    values = {"place": [1.5, 5.2, 4.0], "spacing": [2.5, 0.8, 0.8]}
    found = wait(measuring.request("component", values, {"mask": mask})).arrays["component"]
    mask[:, :5] = 0
    np.testing.assert_array_equal(found, mask)
    with pytest.raises(InputError, match="needs the array mask"):
        wait(measuring.request("component", values))


def test_an_earlier_study_is_compared(measuring, chest):
    later = chest.lesion.copy()
    later[:, later.shape[1] // 2 :] = False
    opened(measuring, chest, "late")
    wait(measuring.request("update", {"study": "late"}, {"lesion": later.astype(np.uint8)}))
    arrays = {"volume": chest.volume.array, "lesion": chest.lesion, "lungs": chest.lungs}
    grid = p.geometry_to_json(chest.volume.geometry)
    reply = wait(measuring.request("compare", {"study": "late", "geometry": grid}, arrays))
    points = [(chest.volume, chest.lesion, chest.lungs), (chest.volume, later, chest.lungs, chest.lobes)]
    expected = compare_timepoints(*points)
    np.testing.assert_array_equal(reply.arrays["map"], expected["map"])
    change = reply.values["comparison"]["changes"]["lesion_volume_change"]["value"]
    assert change == expected["changes"]["lesion_volume_change"]["value"] < 0


def test_measuring_needs_no_pytorch(children, chest, tmp_path):
    client = children.real(environment={**os.environ, "PYTHONPATH": broken_torch(tmp_path, "raise SystemExit(9)")})
    assert opened(client, chest, reference=chest.lesion).values["evaluation"]["dice"]["value"] == 1.0


# ---- lesions --------------------------------------------------------------------------------------------------------


def broken_torch(folder, code):
    package = folder / "broken" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code + "\n")
    return str(package.parent)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("raise ModuleNotFoundError('No module named torch', name='torch')", "torch_missing", "torch is not installed"),
        ("raise OSError('libcudart.so.13: cannot open shared object file')", "torch_missing", "libcudart"),
        ("raise AttributeError('NoneType has no attribute x')", "torch_missing", "NoneType"),
        ("import ctypes; ctypes.string_at(0)", "died", "while it loaded PyTorch"),
    ],
)
def test_pytorch_that_is_missing_half_there_or_crashing_leads_to_its_set_up(
    children, tmp_path, chest, code, kind, words
):
    client = children.real("lesions", environment={**os.environ, "PYTHONPATH": broken_torch(tmp_path, code)})
    grid = p.geometry_to_json(chest.volume.geometry)
    request = client.request("segment", {"geometry": grid}, {"volume": chest.volume.array})
    with pytest.raises(WorkerFailedError, match=words):
        wait(request)
    assert (request.error.kind, request.error.action) == (kind, "set_up_pytorch") and request.error.hint
    if kind == "torch_missing":
        # what needs no PyTorch still works
        assert wait(client.request("lungs", {"geometry": grid}, {"volume": chest.volume.array})).arrays["lungs"].any()
        report = wait(client.request("doctor")).values
        assert not report["smoke_test"]["passed"] and report["devices"] is None


def save_tiny_model(file, seed=0):
    import torch

    from COVIDLesionSegLib.models import ModelCard, save_model
    from COVIDLesionSegLib.networks import COPLENet

    torch.manual_seed(seed)
    network = COPLENet(channels=(2, 4, 8, 16, 32))
    arguments = {"channels": [2, 4, 8, 16, 32]}
    save_model(network, ModelCard(id="tiny", name="Tiny", network="coplenet", network_arguments=arguments), file)


@pytest.fixture(scope="module")
def slab(chest):
    """A few slices of the chest."""
    box = (slice(14, 20), slice(None), slice(None))
    return TimePoint(Volume(chest.volume.array[box], chest.volume.geometry.cropped(box)), None, chest.lungs[box])


@pytest.fixture(scope="module")
def lesions():
    client = blocking_client(WorkerSettings(environment={**os.environ, "OMP_NUM_THREADS": "1"}), "lesions")
    yield client
    client.kill()


def test_the_masks_are_those_of_a_predictor_bit_for_bit(lesions, slab, tmp_path):
    from COVIDLesionSegLib.inference import PostProcessing, Predictor, RunRecord

    save_tiny_model(tmp_path / "tiny.safetensors")
    phases = []
    parameters = {
        "geometry": p.geometry_to_json(slab.volume.geometry),
        "model": str(tmp_path / "tiny.safetensors"),
        "device": "cpu",
        "precision": "float32",
        "batch_size": 4,
        "probability": True,
        "uncertainty": "entropy",
        "postprocessing": PostProcessing(threshold=0.4, minimum_volume_ml=0.1).to_json(),
        "name": "CT",
    }
    arrays = {"volume": slab.volume.array, "lungs": slab.lungs}
    reply = wait(lesions.request("segment", parameters, arrays, progress=lambda found: phases.append(found.phase)))
    import torch

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = Predictor(tmp_path / "tiny.safetensors", "cpu", "float32", 4).segment(
            slab.volume,
            slab.lungs,
            probability=True,
            uncertainty="entropy",
            postprocessing=PostProcessing(threshold=0.4, minimum_volume_ml=0.1),
        )
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(reply.arrays["mask"], expected.mask)
    np.testing.assert_array_equal(reply.arrays["lungs"], expected.lungs)
    np.testing.assert_array_equal(reply.arrays["probability"], expected.probability)
    np.testing.assert_array_equal(reply.arrays["uncertainty"], expected.uncertainty)
    record = RunRecord.from_json(reply.values["record"])
    assert record.input["voxels_sha256"] == expected.record.input["voxels_sha256"]
    assert {"loading", "network", "postprocess"} <= set(phases)
    volume = expected.mask.sum() * slab.volume.geometry.voxel_ml
    assert reply.values["summary"]["lesion_ml"] == pytest.approx(volume)


def test_models_stay_warm_are_switched_and_changed_files_are_noticed(lesions, slab, tmp_path):
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for seed, file in enumerate(files):
        save_tiny_model(file, seed)
    grid = p.geometry_to_json(slab.volume.geometry)

    def used(file):
        parameters = {"geometry": grid, "model": str(file), "device": "cpu"}
        found = wait(lesions.request("segment", parameters, {"volume": slab.volume.array, "lungs": slab.lungs}))
        return found.values["record"]["model"]["weights_sha256"]

    first, second = used(files[0]), used(files[1])
    assert first != second and used(files[0]) == first
    # another file under the same name, in the middle of a session
    save_tiny_model(files[0], seed=7)
    third = used(files[0])
    assert third not in (first, second)
    files[0].unlink()
    with pytest.raises(ModelError, match=r"one\.safetensors"):
        used(files[0])
    assert used(files[1]) == second


def test_a_damaged_model_file_is_a_model_error_and_the_child_goes_on(lesions, slab, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not a model")
    grid = p.geometry_to_json(slab.volume.geometry)
    parameters = {"geometry": grid, "model": str(tmp_path / "broken.safetensors")}
    request = lesions.request("segment", parameters, {"volume": slab.volume.array})
    with pytest.raises(ModelError):
        wait(request)
    assert request.error.kind == "model"
    with pytest.raises(ModelError, match="no model 'unheard-of'"):
        wait(lesions.request("verify_model", {"model": "unheard-of"}))


def test_a_device_that_is_not_there_leads_to_the_cpu(lesions):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    request = lesions.request("warm_up", {"device": "cuda"})
    with pytest.raises(InputError):
        wait(request)
    assert (request.error.kind, request.error.action) == ("device", "use_cpu")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tta": "yes"}, "tta"),
        ({"brightness": 3}, "does not know brightness"),
        ({"postprocessing": {"threshold": 2}}, "threshold"),
        ({"rescale": [1]}, "rescale"),
        ({"geometry": {}}, "geometry"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_parameters_that_are_not_allowed(lesions, slab, parameters, words):
    given = {"geometry": p.geometry_to_json(slab.volume.geometry), **parameters}
    with pytest.raises(InputError, match=words):
        wait(lesions.request("segment", given, {"volume": slab.volume.array, "lungs": slab.lungs}))


def test_cancel_between_batches(children, slab, tmp_path):
    save_tiny_model(tmp_path / "tiny.safetensors")
    client = children.real("lesions", cancel_seconds=20, environment={**os.environ, "OMP_NUM_THREADS": "1"})
    phases = []
    parameters = {
        "geometry": p.geometry_to_json(slab.volume.geometry),
        "model": str(tmp_path / "tiny.safetensors"),
        "device": "cpu",
        "tta": True,
        "batch_size": 1,
    }
    arrays = {"volume": slab.volume.array, "lungs": slab.lungs}
    request = client.request("segment", parameters, arrays, progress=lambda found: phases.append(found.phase))
    pump_until(client, lambda: "network" in phases, 60)
    request.cancel()
    with pytest.raises(CancelledError):
        wait(request)
    assert client.running, "it stopped by itself"
