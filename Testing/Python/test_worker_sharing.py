"""An array that several children need is written once, and nobody takes it from the others."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest
from worker_children import ON_POSIX
from worker_world import HELLO, VOLUME, World

from COVIDLesionSegLib.worker import SharedArray, transport, wait
from COVIDLesionSegLib.worker import protocol as p

pytestmark = pytest.mark.usefixtures("nothing_lies_about_afterwards")


@pytest.fixture
def written(monkeypatch):
    """Bytes of each array that was written to a file."""
    found = []

    def write_array(path, array):
        found.append(array.nbytes)
        yield from transport_write(path, array)

    transport_write = transport.write_array
    monkeypatch.setattr(transport, "write_array", write_array)
    return found


@pytest.fixture
def worlds(world):
    other = World()
    yield world, other
    other.client.kill()


def received(world):
    """What the child of a world was sent last, as it reads it."""
    ask = world.process.asked[-1]
    return {header.name: transport.read_array(Path(ask.folder), header) for header in ask.arrays}


def answered(world, request):
    world.process.say(p.Result(request.number, {}))
    world.run()


def test_two_clients_are_given_one_file(worlds, written):
    first, second = worlds
    ct, mask = SharedArray(VOLUME), VOLUME > 3
    first.ready(arrays={"volume": ct})
    second.ready(arrays={"volume": ct, "mask": mask})
    assert written == [VOLUME.nbytes, mask.nbytes]
    for world in worlds:
        np.testing.assert_array_equal(received(world)["volume"], VOLUME)
    np.testing.assert_array_equal(ct.array, VOLUME)
    ct.release()


@pytest.mark.parametrize("end", ["kill", "close", "death"])
def test_the_end_of_a_child_takes_the_array_from_nobody(worlds, written, end):
    first, second = worlds
    ct = SharedArray(VOLUME)
    request = first.ready(arrays={"volume": ct})
    received(first)
    if end == "death":
        first.process.end(-9)
        assert request.error.kind == "died"
    else:
        getattr(first.client, end)()
        first.run(3)
    for world in (first, second):
        request = world.ready(arrays={"volume": ct})
        np.testing.assert_array_equal(received(world)["volume"], VOLUME)
        answered(world, request)
    assert written == [VOLUME.nbytes]
    ct.release()


def test_an_array_that_was_not_written_whole_is_written_anew(world, written, monkeypatch, tmp_path):
    whole = p.parts
    monkeypatch.setattr(p, "parts", lambda array, size: whole(array, 16))
    ct = SharedArray(VOLUME)
    begun = ct.place(tmp_path / "half.npy")
    assert next(begun) == 16
    begun.close()
    world.ready(arrays={"volume": ct})
    np.testing.assert_array_equal(received(world)["volume"], VOLUME)
    assert written == [VOLUME.nbytes] * 2
    ct.release()


def test_without_links_the_bytes_are_sent_again(worlds, written, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    ct = SharedArray(VOLUME)
    for world in worlds:
        world.ready(arrays={"volume": ct})
        np.testing.assert_array_equal(received(world)["volume"], VOLUME)
    assert written == [VOLUME.nbytes] * 2


def test_in_the_pipe_the_bytes_are_sent_again(world, written):
    ct = SharedArray(VOLUME)
    answered(world, world.ready(arrays={"volume": ct}))
    far = World(prefix=("ssh", "gpu-box"))
    far.ready(arrays={"volume": ct})
    np.testing.assert_array_equal(far.process.arrays["volume"], VOLUME)
    assert written == [VOLUME.nbytes]
    far.client.kill()
    ct.release()


@pytest.mark.parametrize("gone", ["released", "cleared up by somebody"])
def test_a_file_that_is_gone_is_written_again(world, written, tmp_path, gone):
    ct = SharedArray(VOLUME)
    answered(world, world.ready(arrays={"volume": ct}))
    if gone == "released":
        ct.release()
    else:
        for folder in tmp_path.glob(f"{transport.PREFIX}*"):
            if (folder / "array.npy").exists():
                transport.remove_folder(folder)
    world.ready(arrays={"volume": ct})
    np.testing.assert_array_equal(received(world)["volume"], VOLUME)
    assert written == [VOLUME.nbytes] * 2
    ct.release()


def test_an_array_that_is_forgotten_leaves_no_file(world, tmp_path):
    ct = SharedArray(VOLUME)
    answered(world, world.ready(arrays={"volume": ct}))
    assert list(tmp_path.glob("*/array.npy"))
    del ct
    gc.collect()
    assert not list(tmp_path.glob("*/array.npy"))


def test_an_array_without_values_is_shared_like_others(world):
    ct = SharedArray(VOLUME[:0])
    for _ in range(2):
        request = world.ready(arrays={"volume": ct})
        assert received(world)["volume"].shape == (0, 4, 5)
        answered(world, request)
    ct.release()


def test_a_full_disk_is_an_error_of_the_request(world, monkeypatch):
    def refuse(path, array):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(transport, "write_array", refuse)
    world.ask(arrays={"volume": SharedArray(VOLUME)})
    world.run()
    world.process.say(HELLO)
    world.run(1)
    assert world.error.kind == "disk_full" and world.client.running


@ON_POSIX
def test_what_one_child_changes_no_other_one_sees(children, written):
    ct = SharedArray(np.zeros((40, 64, 64), np.int16))
    clients = [children.odd(), children.odd()]
    assert wait(clients[0].request("scribble", arrays={"volume": ct})).values["sum"] == 40 * 64 * 64
    for client in reversed(clients):
        assert wait(client.request("scribble", {"add": 0}, {"volume": ct})).values["sum"] == 0
    assert not ct.array.any() and written == [ct.array.nbytes]
    ct.release()
