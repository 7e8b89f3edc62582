"""Files that travel to another machine by their hash: kept, checked, and cleared up there."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
from file_faults import small_disk

from COVIDLesionSegLib.errors import InputError, OutputError
from COVIDLesionSegLib.worker.faults import FileMissingError, failure_of
from COVIDLesionSegLib.worker.transport import ReceivedFiles, array_of_file, reference_to_file

CONTENT = np.arange(256, dtype=np.uint8)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def received(tmp_path):
    return ReceivedFiles(tmp_path / "received")


def sent(received, content=CONTENT, name="model.safetensors"):
    sha256 = hashlib.sha256(content).hexdigest()
    arrays = {array_of_file(sha256): content, "volume": content}
    given = {"model": reference_to_file(name, sha256), "device": "cpu", "postprocessing": {"threshold": 0.5}}
    found = received.resolve(given, arrays)
    assert list(arrays) == ["volume"] and {**found, "model": given["model"]} == given
    return found["model"]


def test_a_file_keeps_its_name_and_is_there_the_next_time(received):
    path = received.folder / SHA256 / "model.safetensors"
    assert sent(received) == str(path) and path.read_bytes() == CONTENT.tobytes()
    assert ReceivedFiles(received.folder).hashes() == [SHA256]
    assert received.resolve({"model": reference_to_file("other name", SHA256)}, {}) == {"model": str(path)}


def test_a_file_that_is_not_here_or_was_changed_is_asked_for_again(received):
    given = {"model": reference_to_file("m", SHA256)}
    with pytest.raises(FileMissingError) as missing:
        received.resolve(given, {})
    assert failure_of(missing.value, 1).kind == "file_missing"
    path = received.folder / SHA256 / "model.safetensors"
    sent(received)
    path.write_bytes(CONTENT[::-1].tobytes())
    os.utime(path, ns=(1, 1))
    with pytest.raises(FileMissingError):
        received.resolve(given, {})
    assert not path.exists() and received.hashes() == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"$file": {"name": "m"}}, "without its name and hash"),
        ({"$file": None}, "without its name and hash"),
        (reference_to_file("../m", SHA256), "announced as"),
        (reference_to_file("..", SHA256), "announced as"),
        (reference_to_file("a\\b", SHA256), "announced as"),
        (reference_to_file("m", "../" + SHA256), "announced as"),
    ],
)
def test_a_strange_announcement_is_refused(received, value, words):
    with pytest.raises(InputError, match=words):
        received.resolve({"model": value}, {array_of_file(SHA256): CONTENT})
    assert not received.folder.exists()


def test_other_bytes_than_announced_are_refused(received):
    with pytest.raises(InputError, match="did not arrive as it was announced"):
        received.resolve({"model": reference_to_file("m", SHA256)}, {array_of_file(SHA256): CONTENT[1:]})
    assert received.hashes() == []


def test_the_files_that_were_used_last_stay(received):
    contents = [np.full(8, number, np.uint8) for number in range(8)]
    for number, content in enumerate(contents[:6]):
        folder = received.folder / hashlib.sha256(content).hexdigest()
        sent(received, content)
        os.utime(folder, (number, number))
    # the oldest one is used again
    sent(received, contents[0])
    for content in contents[6:]:
        sent(received, content)
    left = [
        number for number, content in enumerate(contents) if hashlib.sha256(content).hexdigest() in received.hashes()
    ]
    assert left == [0, 3, 4, 5, 6, 7]


def test_a_full_disk_leaves_nothing_half_written():
    with small_disk(0.1) as disk:
        received = ReceivedFiles(disk / "received")
        with pytest.raises(OutputError, match="the disk is full"):
            sent(received, np.zeros(1 << 20, np.uint8))
        assert received.hashes() == [] and not [path for path in disk.rglob("*") if path.is_file()]


def test_without_a_home_nothing_is_kept(monkeypatch):
    for name in ("HOME", "COVIDLESIONSEG_MODELS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert ReceivedFiles().hashes() == []
