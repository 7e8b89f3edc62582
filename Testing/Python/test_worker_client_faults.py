"""What can go wrong with the child: each fault is one sentence for people, and the next request works."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from file_faults import small_disk
from worker_world import HELLO, VOLUME, World, sentence

from COVIDLesionSegLib.worker import WorkerError, transport
from COVIDLesionSegLib.worker import client as client_module
from COVIDLesionSegLib.worker import protocol as p

pytestmark = pytest.mark.usefixtures("nothing_lies_about_afterwards")


def test_a_program_that_can_not_be_started(world):
    world.start_problem = "python-that-is-not-there: No such file or directory"
    world.ask()
    world.run()
    error = sentence(world.error)
    assert error.kind == "start_failed" and "No such file" in error.message and "interpreter" in error.hint
    assert not world.client.running


def test_a_child_that_ends_before_it_speaks(world):
    world.ask()
    world.run()
    world.process.print_errors("Traceback...\nModuleNotFoundError: No module named 'COVIDLesionSegLib'\n")
    world.process.end(1)
    error = sentence(world.error)
    assert error.kind == "start_failed" and "exit code 1" in error.message and "pip install" in error.hint
    assert "ModuleNotFoundError" in error.details


def test_a_child_that_never_speaks():
    world = World(start_seconds=20)
    world.ask()
    world.run(19)
    assert not world.errors
    world.run(2)
    error = sentence(world.error)
    assert error.kind == "start_failed" and "20 seconds" in error.message and world.process.killed


@pytest.mark.parametrize("words", [b"Intel MKL WARNING: something\n", b"no line end", b"\x00\x01\xff\n", b"{}\n"])
@pytest.mark.parametrize("when", ["starting", "working"])
def test_garbage_on_standard_output(world, words, when):
    world.ask()
    world.run()
    if when == "working":
        world.process.say(HELLO)
        world.run()
    world.process.listener.output(words)
    error = sentence(world.error)
    assert error.kind == "garbage" and error.action == "copy_report"
    assert world.process.killed and not world.client.running


def test_a_child_of_another_version(world):
    world.ask()
    world.run()
    world.process.listener.output(p.encode(HELLO).replace(b'"v": 1', b'"v": 9'))
    error = sentence(world.error)
    assert error.kind == "version" and "version 9" in error.message and "same version" in error.hint


def test_a_child_of_another_kind(world):
    world.ask()
    world.run()
    world.process.say(p.Hello("measurement", "0.1.0", "3.12", "Linux", 42, {}))
    assert sentence(world.error).kind == "garbage"


def test_a_child_that_speaks_like_a_parent(world):
    world.ready()
    world.process.say(p.Close())
    assert world.error.kind == "garbage"


@pytest.mark.parametrize(
    ("code", "words"), [(-9, "SIGKILL"), (-11, "SIGSEGV"), (3, "exit code 3"), (0, "exit code 0"), (-99, "signal 99")]
)
def test_death_in_the_middle_says_how(world, code, words):
    world.ready()
    world.process.print_errors("line 1\nlast words\n")
    world.process.end(code)
    error = sentence(world.error)
    assert error.kind == "died" and words in error.message and "last words" in error.details
    assert ("memory" in error.hint) == (code == -9)


@pytest.mark.parametrize(
    ("code", "line", "crashed"),
    [
        (1, "error: [/opt/Slicer/bin/./python-real] exit abnormally - Report the problem.", True),
        (2, "error: [/opt/Slicer/bin/./python-real] exit abnormally - Report the problem.", False),
        (1, "ValueError: no", False),
    ],
)
def test_death_behind_slicers_launcher_is_recognized(world, code, line, crashed):
    world.ready()
    world.process.print_errors(f"line 1\n{line}\n")
    world.process.end(code)
    error = sentence(world.error)
    assert error.kind == "died" and ("killed or crashed" in error.message) == ("memory" in error.hint) == crashed


def test_death_while_pytorch_loads_leads_to_setting_it_up(world):
    request = world.ready()
    world.process.say(p.ProgressMessage(request.number, "loading", 0, 2))
    world.process.end(-11)
    error = sentence(world.error)
    assert error.kind == "died" and error.action == "set_up_pytorch" and "PyTorch" in error.hint


def test_after_any_loss_the_next_request_starts_a_new_child(world):
    world.ready()
    world.process.end(-9)
    world.run()
    assert not world.client.running
    request = world.ready()
    world.process.say(p.Result(request.number, {"ok": 1}))
    assert world.replies[0].values == {"ok": 1} and world.client.generation == 2


def test_death_between_requests_disturbs_nobody(world):
    request = world.ready()
    world.process.say(p.Result(request.number, {}))
    world.process.end(-9)
    assert not world.errors and not world.client.running
    world.ready()
    assert len(world.processes) == 2


def test_silence_past_the_limit():
    world = World(silence_seconds=30)
    world.ready()
    world.run(29)
    world.process.say(p.Heartbeat())
    world.run(29)
    assert not world.errors, "a heartbeat is a sign of life"
    world.run(3)
    error = sentence(world.error)
    assert error.kind == "silent" and "30 seconds" in error.message and world.process.killed


def test_a_parent_that_was_busy_itself_reads_first_and_judges_then():
    world = World(silence_seconds=30)
    request = world.ready()
    # the event loop did not run for a minute: the timer comes first, then what has come meanwhile
    world.now += 60
    world.run(0)
    assert not world.errors
    world.process.say(p.Heartbeat())
    world.run(20)
    assert not world.errors
    world.process.say(p.Result(request.number, {}))
    assert world.replies
    world.client.kill()


def test_a_full_disk_on_this_side(monkeypatch, world):
    with small_disk(0.2) as place:
        folder = place / f"{transport.PREFIX}test"
        folder.mkdir()
        monkeypatch.setattr(client_module, "make_folder", lambda: folder)
        world.ask(arrays={"volume": np.zeros((8, 512, 512), np.int16)})
        world.run()
        world.process.say(HELLO)
        world.run(1)
        error = sentence(world.error)
        assert error.kind == "disk_full" and "Free some space" in error.hint
        assert list(folder.iterdir()) == [], "what was begun is gone"
        assert world.client.running, "the child is as good as before"
        world.client.kill()


def test_a_folder_for_temporary_files_that_can_not_be_made(monkeypatch, world):
    def refuse():
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(client_module, "make_folder", refuse)
    world.ready(arrays={"volume": VOLUME})
    assert sentence(world.error).kind == "internal" and "Permission denied" in world.error.message


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("input", ""),
        ("torch_missing", "set_up_pytorch"),
        ("memory", "use_cpu"),
        ("disk_full", ""),
        ("not_open", ""),
    ],
)
def test_what_the_child_says_of_an_error_arrives_and_the_child_stays(world, kind, action):
    request = world.ready()
    world.process.say(p.Failure(request.number, kind, "That went wrong.", "Do this.", "trace", action))
    assert world.error == WorkerError(kind, "That went wrong.", "Do this.", "trace", action)
    assert world.client.running and request.error == world.error


def test_files_that_do_not_arrive_whole_are_garbage(world):
    request = world.ready(arrays={"volume": VOLUME})
    world.process.say(p.Result(request.number, {}, [p.ArrayHeader.of("mask", VOLUME, "never-written.npy")]))
    assert sentence(world.error).kind == "garbage"
