"""The client behind a prefix, where arrays and files travel through the pipe."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from worker_world import HELLO, VOLUME, World

from COVIDLesionSegLib.worker import client as client_module
from COVIDLesionSegLib.worker import protocol as p

pytestmark = pytest.mark.usefixtures("nothing_lies_about_afterwards")


@pytest.mark.parametrize("compress", [True, False])
def test_behind_a_prefix_arrays_travel_through_the_pipe_and_no_file_is_made(monkeypatch, compress):
    monkeypatch.setattr(client_module, "make_folder", lambda: pytest.fail("a folder was made"))
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


def test_an_empty_file_travels_like_any_other(tmp_path):
    file = tmp_path / "model.pt"
    file.touch()
    world = World(prefix=("ssh", "gpu-box"))
    request = world.ready(parameters={"model": str(file)}, files=("model",))
    digest = hashlib.sha256(b"").hexdigest()
    assert world.process.asked[0].parameters["model"]["$file"]["sha256"] == digest and not request.done
    assert len(world.process.arrays[f"$file:{digest}"]) == 0
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
