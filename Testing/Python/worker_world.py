"""A world of the worker's client: a process and a clock that do what the test says; a pytest plug-in."""

from __future__ import annotations

import numpy as np
import pytest

from COVIDLesionSegLib.worker import ACTIONS, ERROR_KINDS, Client, WorkerSettings, transport
from COVIDLesionSegLib.worker import protocol as p

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
        request = self.client.request(task, parameters, arrays, files=files, progress=self.progress.append)
        request.subscribe(
            lambda: self.errors.append(request.error) if request.error else self.replies.append(request.reply)
        )
        return request

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


@pytest.fixture
def nothing_lies_about_afterwards(monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(transport.tempfile, "tempdir", str(tmp_path))
    yield
    assert not list(tmp_path.glob(f"{transport.PREFIX}*"))


@pytest.fixture
def world(nothing_lies_about_afterwards):
    made = World()
    yield made
    made.client.kill()


def sentence(error):
    """Every error is one for people: known kind and action, sentences with a way on."""
    assert error.kind in ERROR_KINDS and error.action in ACTIONS
    assert error.message.endswith(".") and error.message[0].isupper()
    assert error.hint.endswith(".") and error.action
    return error
