"""The client's state machine, driven by a process and a clock that do what the test says."""

from __future__ import annotations

import errno
import gc
import hashlib
from pathlib import Path

import numpy as np
import pytest
from file_faults import small_disk

from COVIDLesionSegLib import errors
from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.worker import (
    ACTIONS,
    ERROR_KINDS,
    Client,
    WorkerError,
    WorkerFailedError,
    WorkerSettings,
    exchange,
    wait,
)
from COVIDLesionSegLib.worker import connection as connection_module
from COVIDLesionSegLib.worker import protocol as p
from COVIDLesionSegLib.worker.command import child_environment, command_line, split_prefix
from COVIDLesionSegLib.worker.request import exception_of
from COVIDLesionSegLib.worker.scrub import scrubbed

HELLO = p.Hello("lesions", "0.1.0", "3.12", "Linux", 42, {"tasks": ["segment"]})
VOLUME = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


class FakeTimer:
    def __init__(self, when, call):
        self.when, self.call = when, call

    def stop(self):
        self.call = None


class FakeProcess:
    """A child that says what the test makes it say."""

    def __init__(self, world, command, environment):
        self.world, self.command, self.environment = world, command, environment
        self.pid = None
        self.is_running = False
        self.killed = False
        self.input_closed = False
        self.waiting = 0
        self.decoder = p.Decoder()
        self.heard = []
        self.arrays = {}

    def start(self, listener):
        self.listener = listener
        if self.world.start_problem:
            self.world.timer(0, lambda: listener.ended(None, self.world.start_problem))
            return
        self.pid, self.is_running = 4711, True

    def write(self, data):
        for frame in self.decoder.feed(bytes(data)):
            self.heard.append(frame.message)
            self.arrays.update(frame.arrays)

    def pending(self):
        return self.waiting

    def close_input(self):
        self.input_closed = True

    def kill_tree(self):
        self.killed, self.is_running = True, False

    def say(self, *messages):
        for message in messages:
            self.listener.output(p.encode(message))

    def print_errors(self, text):
        self.listener.diagnostics(text.encode())

    def end(self, code):
        self.is_running = False
        self.listener.ended(code, "")

    @property
    def asked(self):
        return [message for message in self.heard if isinstance(message, p.Ask)]


class World:
    """Clock, timers and processes of one test, and what a request was told."""

    def __init__(self, **settings):
        self.now = 100.0
        self.timers = []
        self.processes = []
        self.start_problem = ""
        self.progress, self.replies, self.errors = [], [], []
        self.client = Client(self.spawn, self.timer, WorkerSettings(**settings), clock=lambda: self.now)

    def spawn(self, command, environment):
        self.processes.append(FakeProcess(self, command, environment))
        return self.processes[-1]

    def timer(self, milliseconds, call):
        self.timers.append(FakeTimer(self.now + milliseconds / 1000, call))
        return self.timers[-1]

    def run(self, seconds=0.0):
        """Let time pass."""
        end = self.now + seconds
        while True:
            due = [timer for timer in self.timers if timer.call is not None and timer.when <= end]
            if not due:
                break
            timer = min(due, key=lambda t: t.when)
            self.now = max(self.now, timer.when)
            call, timer.call = timer.call, None
            call()
        self.now = end

    def ask(self, task="segment", parameters=None, arrays=None, files=()):
        return self.client.request(
            task,
            parameters,
            arrays,
            files=files,
            progress=self.progress.append,
            finished=self.replies.append,
            failed=self.errors.append,
        )

    def ready(self, **arguments):
        """A request that the child works on."""
        request = self.ask(**arguments)
        self.run()
        if not self.process.heard:
            self.process.say(HELLO)
            self.run(0.1)
        self.process.say(p.Started(request.number))
        return request

    @property
    def process(self):
        return self.processes[-1]

    @property
    def error(self):
        assert len(self.errors) == 1 and not self.replies, (self.errors, self.replies)
        return self.errors[0]


@pytest.fixture(autouse=True)
def nothing_lies_about_afterwards(monkeypatch, tmp_path):
    monkeypatch.setattr(exchange, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(exchange.tempfile, "tempdir", str(tmp_path))
    yield
    assert not list(tmp_path.glob(f"{exchange.PREFIX}*"))


@pytest.fixture
def world(nothing_lies_about_afterwards):
    made = World()
    yield made
    made.client.kill()


# ---- the normal path ------------------------------------------------------------------------------------------------


def test_a_request_starts_the_child_travels_and_is_answered(world):
    request = world.ask(parameters={"tta": True}, arrays={"volume": VOLUME, "lungs": VOLUME > 3})
    assert not world.processes, "nothing happens inside request()"
    assert world.client.busy and not world.client.running
    world.run()
    assert world.process.is_running and not world.process.heard, "the child speaks first"
    world.process.say(HELLO)
    world.run()
    (ask,) = world.process.asked
    assert (ask.id, ask.task, ask.parameters) == (request.number, "segment", {"tta": True})
    sent = {header.name: exchange.read_array(Path(ask.folder), header) for header in ask.arrays}
    np.testing.assert_array_equal(sent["volume"], VOLUME)
    np.testing.assert_array_equal(sent["lungs"], VOLUME > 3)

    world.process.say(p.Started(request.number), p.ProgressMessage(request.number, "network", 1, 4))
    world.process.say(p.Note(request.number, "Padding was clipped."))
    mask = (VOLUME > 9).astype(np.uint8)
    header = p.ArrayHeader.of("mask", mask, "reply.npy")
    assert list(exchange.write_array(Path(ask.folder) / header.file, mask))
    assert not request.done
    world.process.say(p.Result(request.number, {"summary": {"lesion_ml": 3.5}}, [header]))
    (reply,) = world.replies
    assert reply.values == {"summary": {"lesion_ml": 3.5}} and reply.messages == ("Padding was clipped.",)
    np.testing.assert_array_equal(reply.arrays["mask"], mask)
    assert request.done and request.reply is reply and not world.errors
    assert list(Path(ask.folder).iterdir()) == [], "nothing is left in the folder"
    assert not world.client.busy and world.client.running, "the child stays warm"


def test_the_child_stays_for_the_next_request(world):
    for number in (1, 2, 3):
        request = world.ready()
        world.process.say(p.Result(request.number, {"n": number}))
    assert [reply.values["n"] for reply in world.replies] == [1, 2, 3]
    assert len(world.processes) == 1 and world.client.generation == 1


def test_a_second_request_waits_its_turn(world):
    first = world.ready()
    second = world.ask("lungs")
    world.run(5)
    assert [ask.task for ask in world.process.asked] == ["segment"]
    world.process.say(p.Result(first.number, {}))
    world.run()
    assert [ask.task for ask in world.process.asked] == ["segment", "lungs"]
    world.process.say(p.Result(second.number, {}))
    assert len(world.replies) == 2


def test_late_words_about_an_earlier_request_change_nothing(world):
    first = world.ready()
    world.process.say(p.Result(first.number, {}))
    second = world.ready()
    world.process.say(
        p.ProgressMessage(first.number, "network", 1, 4),
        p.Result(first.number, {"late": True}),
        p.Failure(first.number, "internal", "late"),
    )
    assert not second.done and len(world.replies) == 1 and not world.errors


def test_progress_has_a_share_of_the_whole_that_never_falls_and_a_time_left(world):
    request = world.ready(arrays={"volume": VOLUME})
    for done in range(5):
        world.run(2)
        world.process.say(p.ProgressMessage(request.number, "lungs", done, 4))
    for done in range(11):
        world.run(2)
        world.process.say(p.ProgressMessage(request.number, "network", done, 10), p.Heartbeat())
    shares = [progress.fraction for progress in world.progress]
    assert shares == sorted(shares) and 0 <= shares[0] < 0.2 and 0.9 < shares[-1] <= 1
    assert world.progress[0].phase == "starting"
    halfway = next(found for found in world.progress if (found.phase, found.done) == ("network", 5))
    assert 5 < halfway.seconds_left < 40
    world.process.say(p.Result(request.number, {}))

    # the second run knows what the first one took: half of the network's time is half of it
    request = world.ready()
    world.run(10)
    world.process.say(p.ProgressMessage(request.number, "lungs", 4, 4))
    world.run(10)
    world.process.say(p.ProgressMessage(request.number, "network", 5, 10))
    assert world.progress[-1].fraction == pytest.approx(0.65, abs=0.1)


def test_a_callback_that_raises_does_not_stop_the_next_request(world):
    def raises(_):
        raise RuntimeError("the panel has a bug")

    request = world.client.request("segment", finished=raises)
    world.run()
    world.process.say(HELLO)
    world.run()
    with pytest.raises(RuntimeError):
        world.process.say(p.Result(request.number, {}))
    second = world.ready()
    world.process.say(p.Result(second.number, {"ok": 1}))
    assert world.replies[0].values == {"ok": 1}


def test_what_can_not_be_sent_is_refused_at_once(world):
    with pytest.raises(InputError, match="object"):
        world.ask(arrays={"names": np.array(["a", None], dtype=object)})
    with pytest.raises(InputError, match="Path"):
        world.ask(parameters={"file": Path("x")})
    assert not world.client.busy


# ---- the pipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
def test_behind_a_prefix_arrays_travel_through_the_pipe_and_no_file_is_made(monkeypatch, compress):
    monkeypatch.setattr(connection_module, "make_folder", lambda: pytest.fail("a folder was made"))
    world = World(prefix=("ssh", "gpu-box"), compress=compress)
    request = world.ready(arrays={"volume": VOLUME})
    assert world.process.command[:2] == ["ssh", "gpu-box"]
    np.testing.assert_array_equal(world.process.arrays["volume"], VOLUME)
    (ask,) = world.process.asked
    assert ask.folder == "" and ask.compress == compress
    header = p.ArrayHeader.of("mask", VOLUME, compress=compress)
    world.process.say(p.Result(request.number, {}, [header]))
    assert not world.replies
    for block, _ in p.blocks(VOLUME, header.encoding == "zlib"):
        world.process.listener.output(block)
    np.testing.assert_array_equal(world.replies[0].arrays["mask"], VOLUME)
    world.client.kill()


@pytest.fixture
def far_model(tmp_path):
    """A model file that only this machine has, and its hash."""
    file = tmp_path / "a store" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(np.random.default_rng(0).bytes(5 << 20))
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def model_request(world, file):
    """What the child gets of a request that names a file: the parameter, and the arrays."""
    world.process.arrays.clear()
    request = world.ready(parameters={"model": str(file)}, arrays={"volume": VOLUME}, files=("model",))
    return request, world.process.asked[-1].parameters["model"], dict(world.process.arrays)


def test_behind_a_prefix_a_file_travels_once(far_model):
    file, sha256 = far_model
    world = World(prefix=("ssh", "gpu-box"))
    world.ask(task="warm_up")
    world.run()
    world.process.say(HELLO)
    world.run(0.1)
    world.process.say(p.Result(1, {}))
    request, named, arrays = model_request(world, file)
    assert named == {"$file": {"name": "model.safetensors", "sha256": sha256}}
    assert arrays[f"$file:{sha256}"].tobytes() == file.read_bytes()
    world.process.say(p.Result(request.number, {}))
    request, named, arrays = model_request(world, file)
    assert list(arrays) == ["volume"] and named["$file"]["sha256"] == sha256
    # somebody has cleared up on the other machine
    world.process.say(p.Failure(request.number, "file_missing", "It is gone."))
    world.run(0.1)
    assert world.process.arrays[f"$file:{sha256}"].tobytes() == file.read_bytes()
    world.process.say(p.Result(request.number, {"done": 1}))
    assert world.replies[-1].values == {"done": 1} and not world.errors
    world.client.kill()


def test_a_file_that_is_missing_twice_is_an_error(far_model):
    world = World(prefix=("ssh", "gpu-box"))
    request = world.ask(parameters={"model": str(far_model[0])}, files=("model",))
    world.run()
    world.process.say(p.Hello("lesions", "0.1.0", "3.12", "Linux", 42, {"files": [far_model[1]]}))
    world.run(0.1)
    assert not world.process.arrays, "its greeting says that it has the file"
    for _ in range(2):
        world.process.say(p.Started(request.number), p.Failure(request.number, "file_missing", "It is gone."))
        world.run(0.1)
    assert world.error.kind == "file_missing" and len(world.process.asked) == 2
    world.client.kill()


@pytest.mark.parametrize(("prefix", "name"), [((), "model.safetensors"), (("ssh", "gpu-box"), "coplenet-ctseg")])
def test_what_needs_not_travel_stays_as_it_is(far_model, prefix, name):
    model = str(far_model[0].with_name(name)) if not prefix else name
    world = World(prefix=prefix, transport="pipe")
    world.ready(parameters={"model": model}, files=("model",))
    assert world.process.asked[0].parameters == {"model": model} and not world.process.arrays
    world.client.kill()


def test_a_slow_pipe_is_not_flooded():
    world = World(transport="pipe", compress=False)
    world.ask(arrays={"volume": np.zeros((30, 1 << 20), np.uint8)})
    world.run()
    world.process.waiting = 100 << 20
    world.process.say(HELLO)
    world.run(1)
    assert world.process.heard == [] and not world.errors
    world.process.waiting = 0
    world.run(1)
    assert world.process.arrays["volume"].shape == (30, 1 << 20)
    world.client.kill()


def test_what_a_far_login_script_prints_is_no_garbage_but_stands_in_the_report():
    world = World(prefix=("ssh", "gpu-box"))
    world.ask()
    world.run()
    world.process.listener.output(b"Welcome to gpu-box\n")
    world.process.say(HELLO)
    world.run()
    assert not world.errors and world.process.asked
    assert "Welcome to gpu-box" in world.client.report()
    world.client.kill()


# ---- what can go wrong ----------------------------------------------------------------------------------------------


def sentence(error):
    """Every error is one for people: known kind and action, sentences with a way on."""
    assert error.kind in ERROR_KINDS and error.action in ACTIONS
    assert error.message.endswith(".") and error.message[0].isupper()
    assert error.hint.endswith(".") and error.action
    return error


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
        folder = place / f"{exchange.PREFIX}test"
        folder.mkdir()
        monkeypatch.setattr(connection_module, "make_folder", lambda: folder)
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

    monkeypatch.setattr(connection_module, "make_folder", refuse)
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


# ---- the idle end ---------------------------------------------------------------------------------------------------


def test_an_idle_child_ends_and_the_next_request_starts_another(world):
    request = world.ready()
    world.process.say(p.Result(request.number, {}))
    world.process.say(p.Bye("idle"))
    world.process.end(0)
    assert not world.client.running and not world.errors
    request = world.ready()
    world.process.say(p.Result(request.number, {}))
    assert len(world.processes) == 2 and len(world.replies) == 2


def test_a_request_that_crosses_with_the_idle_end_goes_to_a_new_child(world):
    first = world.ready()
    world.process.say(p.Result(first.number, {}))
    world.ask(arrays={"volume": VOLUME})
    world.run()
    assert len(world.process.asked) == 2
    world.process.say(p.Bye("idle"))
    world.process.end(0)
    world.run()
    assert len(world.processes) == 2
    world.process.say(HELLO)
    world.run()
    (ask,) = world.process.asked
    np.testing.assert_array_equal(exchange.read_array(Path(ask.folder), ask.arrays[0]), VOLUME)
    world.process.say(p.Result(ask.id, {"ok": 1}))
    assert world.replies[-1].values == {"ok": 1} and not world.errors


def test_a_child_that_always_ends_at_once_is_given_up(world):
    world.ask()
    for _ in range(10):
        world.run()
        if world.errors:
            break
        world.process.say(HELLO)
        world.run()
        world.process.say(p.Bye("idle"))
        world.process.end(0)
    assert sentence(world.error).kind == "died" and len(world.processes) == 3


# ---- cancel ---------------------------------------------------------------------------------------------------------


def test_a_child_that_stops_by_itself_stays_warm(world):
    request = world.ready()
    request.cancel()
    world.run(0.1)
    assert p.Cancel(request.number) in world.process.heard and not world.errors
    world.process.say(p.Failure(request.number, "cancelled", "The run was cancelled."))
    assert world.error.kind == "cancelled" and world.client.running and not world.process.killed
    world.run(5)
    assert world.client.running


def test_a_child_that_does_not_stop_is_killed_within_half_a_second(world):
    request = world.ready()
    request.cancel()
    request.cancel()
    world.run(0.5)
    assert world.error.kind == "cancelled" and world.process.killed and not world.client.running
    # what comes late is nobody's business
    world.process.say(p.Result(request.number, {}))
    world.process.end(-9)
    assert len(world.errors) == 1 and not world.replies


def test_a_result_that_crosses_with_cancel_is_dropped(world):
    request = world.ready()
    request.cancel()
    world.run(0.1)
    world.process.say(p.Result(request.number, {}))
    assert world.error.kind == "cancelled" and world.client.running


def test_cancel_of_a_request_that_waits_leaves_the_running_one_alone(world):
    first = world.ready()
    second = world.ask("lungs")
    second.cancel()
    assert not world.errors, "nothing is called inside cancel()"
    world.run()
    assert world.error.kind == "cancelled" and second.done and not first.done
    world.process.say(p.Result(first.number, {}))
    world.run()
    assert len(world.process.asked) == 1


def test_cancel_while_the_child_starts(world):
    request = world.ask()
    world.run()
    request.cancel()
    world.run(0.1)
    assert world.error.kind == "cancelled"
    world.process.say(HELLO)
    world.run()
    assert world.process.asked == [] and world.client.running, "it may stay for the next request"
    world.ready()
    assert len(world.processes) == 1


def test_cancel_before_anything_has_begun(world):
    request = world.ask()
    request.cancel()
    world.run()
    assert world.error.kind == "cancelled" and not world.processes


@pytest.mark.parametrize("transport", ["file", "pipe"])
def test_cancel_while_arrays_are_sent(transport):
    world = World(transport=transport)
    request = world.ask(arrays={"volume": np.zeros((64, 1 << 20), np.uint8)})
    world.run()
    world.process.waiting = 100 << 20
    world.process.say(HELLO)
    world.now += 0.001
    request.cancel()
    world.run(0.5)
    assert world.error.kind == "cancelled"
    if transport == "pipe":
        assert world.process.killed, "nobody can tell the rest of an array from the next message"
    else:
        assert world.client.running and world.process.asked == []
    world.client.kill()


def test_cancel_of_what_is_done_does_nothing(world):
    request = world.ready()
    world.process.say(p.Result(request.number, {}))
    request.cancel()
    world.run(2)
    assert not world.errors and p.Cancel(request.number) not in world.process.heard


# ---- the end --------------------------------------------------------------------------------------------------------


def test_close_is_polite_and_cancels_what_is_open(world):
    world.ready()
    waiting = world.ask()
    world.client.close()
    assert [error.kind for error in world.errors] == ["cancelled", "cancelled"] and waiting.done
    assert p.Close() in world.process.heard and world.process.input_closed and not world.process.killed
    world.run(3)
    assert world.process.killed, "a child that does not listen is killed"
    assert not world.client.running and not world.client.busy


def test_kill_is_at_once(world):
    world.ready(arrays={"volume": VOLUME})
    folder = Path(world.process.asked[0].folder)
    world.client.kill()
    assert world.error.kind == "cancelled" and world.process.killed and not folder.exists()


def test_a_client_that_is_forgotten_leaves_no_files(world):
    forgotten = World()
    forgotten.ready(arrays={"volume": VOLUME})
    folder = Path(forgotten.process.asked[0].folder)
    assert folder.is_dir()
    del forgotten
    gc.collect()
    assert not folder.exists()


# ---- waiting, report, settings --------------------------------------------------------------------------------------


def waiting_world():
    world = World()
    world.client.pump = lambda seconds: world.run(seconds)
    return world


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (WorkerError("input", "No.", "Do.", error_class="LungsNotFoundError"), errors.LungsNotFoundError),
        (WorkerError("input", "No."), errors.InputError),
        (WorkerError("model", "No."), errors.ModelError),
        (WorkerError("device", "No."), errors.DeviceError),
        (WorkerError("cancelled", "No."), errors.CancelledError),
        (WorkerError("died", "No."), WorkerFailedError),
        (WorkerError("internal", "No.", error_class="sys"), WorkerFailedError),
        (WorkerError("internal", "No.", error_class="annotations"), WorkerFailedError),
    ],
)
def test_the_exception_fits_the_error(error, expected):
    found = exception_of(error)
    assert type(found) is expected and str(found) == str(error)


def test_waiting_without_an_answer_ends_with_the_time_out():
    world = waiting_world()
    request = world.ready()
    with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
        wait(request, timeout=0.01)
    assert request.error.kind == "cancelled" and world.process.killed


def test_waiting_needs_something_that_pumps(world):
    with pytest.raises(InputError, match="pump"):
        wait(world.ask())


def test_the_report_helps_and_holds_nothing_of_a_patient(world):
    parameters = {"name": "DOE^JANE", "model": "coplenet", "file": "/home/me/Doe Jane 1951/ct.nii.gz", "note": ["Doe"]}
    request = world.ready(parameters=parameters)
    world.process.print_errors("warning: /data/Doe Jane 1951/ct.nii.gz is odd\nRuntimeError: DOE^JANE\n")
    details = 'File "/opt/lib/COVIDLesionSegLib/worker/server.py", line 3\nModelError: no file /home/me/Doe Jane 1951/x'
    world.process.say(p.Failure(request.number, "model", "coplenet can't be read for DOE^JANE.", "", details))
    report = world.client.report()
    for secret in ("DOE", "Doe", "/home/me", "/data"):
        assert secret not in report
    for useful in ("coplenet", "worker/server.py", "RuntimeError", "model:", "segment", "Python", "protocol 1"):
        assert useful in report


@pytest.mark.parametrize(
    ("text", "secret", "useful"),
    [
        ("Invalid value for VR PN: 'DOE^JANE^M', will be ignored", "DOE", "will be ignored"),
        ("PatientName=Müller^Hans-Peter of the Clinic\nnext line", "Hans", "next line"),
        ("date 1951-02-03 and 19510203 in (0010,0030)", "1951", "(0010,0030)"),
        ("series 1.2.840.113619.2.55.3.604688 of numpy 2.4.6", "113619", "numpy 2.4.6"),
        ("can't open C:\\Users\\me\\Doe Jane\\ct.nii", "Jane", "can't open"),
        ("can't open /data/Doe Jane.nii.gz or /data/x: gone", "Jane", "gone"),
        ("can't open '/data/Doe Jane/ct.nii': gone", "Jane", "gone"),
        ("Linux-6.18.44 at 12:30:59 with 20480 bytes", "nothing", "Linux-6.18.44 at 12:30:59 with 20480 bytes"),
    ],
)
def test_what_may_tell_about_a_patient_is_taken_out(text, secret, useful):
    found = scrubbed(text, set())
    assert secret not in found and useful in found


def test_the_last_words_of_a_dead_child_stay_in_the_report(world):
    world.ready()
    world.process.print_errors("Fatal Python error: Segmentation fault\n")
    world.process.end(-11)
    report = world.client.report()
    assert "Fatal Python error" in report and "SIGSEGV" in report


@pytest.mark.parametrize(
    "wrong",
    [
        {"idle_seconds": 0},
        {"silence_seconds": float("inf")},
        {"start_seconds": "60"},
        {"cancel_seconds": True},
        {"transport": "carrier pigeon"},
        {"prefix": "ssh gpu-box"},
        {"prefix": ("ssh", "x"), "transport": "file"},
    ],
)
def test_settings_that_are_not_allowed(wrong):
    with pytest.raises(InputError):
        WorkerSettings(**wrong)


def test_a_kind_that_does_not_exist():
    with pytest.raises(InputError, match="lesions or measurement"):
        Client(lambda *_: None, lambda *_: None, WorkerSettings(), "coffee")


@pytest.mark.parametrize(
    ("settings", "begin", "end"),
    [
        ({"python": "/usr/bin/python3.12"}, ["/usr/bin/python3.12", "-P"], ["--kind", "lesions"]),
        ({"python": "/opt/bin/covid-lesion-seg"}, ["/opt/bin/covid-lesion-seg", "worker"], ["--kind", "lesions"]),
        (
            {"prefix": ("ssh", "gpu")},
            ["ssh", "gpu", "python3", "-P", "-m", "COVIDLesionSegLib.worker"],
            ["--kind", "lesions"],
        ),
        ({"prefix": ("ssh", "gpu"), "python": "covid-lesion-seg"}, ["ssh", "gpu", "covid-lesion-seg", "worker"], []),
    ],
)
def test_the_command(settings, begin, end):
    found = command_line(WorkerSettings(**settings), ["--kind", "lesions"])
    assert found[: len(begin)] == begin and found[len(found) - len(end) :] == end


def test_the_library_is_found_without_putting_others_on_the_path(monkeypatch, tmp_path):
    from COVIDLesionSegLib.worker import command

    given = {"PYTHONPATH": "/mine", "HOME": "/home/me"}
    monkeypatch.setattr(command, "_PACKAGE", tmp_path / "source" / "COVIDLesionSegLib")
    found = child_environment(WorkerSettings(environment=given))
    assert found["PYTHONPATH"].split(":") == [str(tmp_path / "source"), "/mine"] and found["HOME"] == "/home/me"
    for shared in ("site-packages", "qt-scripted-modules"):
        monkeypatch.setattr(command, "_PACKAGE", tmp_path / shared / "COVIDLesionSegLib")
        assert child_environment(WorkerSettings(environment=given))["PYTHONPATH"] == "/mine"
        assert str(tmp_path / shared / "COVIDLesionSegLib" / "worker") in command_line(WorkerSettings(), [])[2]
    assert given == {"PYTHONPATH": "/mine", "HOME": "/home/me"}


def test_a_prefix_is_split_as_a_shell_would():
    assert split_prefix("ssh -i 'my key' gpu-box") == ("ssh", "-i", "my key", "gpu-box")
    with pytest.raises(InputError, match="prefix"):
        split_prefix("ssh 'gpu")
