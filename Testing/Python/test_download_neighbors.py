"""A download beside others: a full disk, cancel, two processes at once, a process that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
from conftest import REPOSITORY
from download_files import CONTENT, FAST, SHA256, left_in
from file_faults import small_disk
from file_server import FileServer, file, hanging_after, status, with_length

from COVIDLesionSegLib.errors import CancelledError, ModelError, OutputError
from COVIDLesionSegLib.models.download import download_file, exclusive

pytestmark = pytest.mark.usefixtures("no_settings_of_this_machine")


# --- disk, cancel, neighbors ------------------------------------------------------------------------------------------


@pytest.fixture
def a_small_disk():
    with small_disk(0.25) as disk:
        yield disk


def test_a_full_disk_leaves_what_was_there_and_nothing_else(a_small_disk):
    target = a_small_disk / "model.pt"
    target.write_bytes(b"what was there before")
    with (
        FileServer(with_length(CONTENT, None)) as server,
        pytest.raises(OutputError, match="is full; nothing was kept"),
    ):
        download_file(server.url(), target, **FAST)
    assert target.read_bytes() == b"what was there before" and left_in(a_small_disk) == ["model.pt"]


def test_a_write_that_fails_is_an_output_error(an_older_target):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with FileServer(file(CONTENT)) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(OutputError, match="could not be written"):
                download_file(server.url(), an_older_target, **FAST)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert an_older_target.read_bytes() == b"what was there before"


def test_a_folder_that_can_not_be_made_is_an_output_error(tmp_path):
    (tmp_path / "folder").write_text("a file, not a folder")
    with pytest.raises(OutputError, match=r"can't be written to.*COVIDLESIONSEG_MODELS"):
        download_file("https://a.invalid/model.pt", tmp_path / "folder" / "model.pt", **FAST)


def test_cancel_keeps_what_has_arrived_for_the_next_time(target):
    arrived = []
    with FileServer(hanging_after(CONTENT, 600_000, '"1"'), file(CONTENT, etag='"1"')) as server:
        with pytest.raises(CancelledError, match="goes on from there"):
            download_file(
                server.url(),
                target,
                progress=lambda phase, done, total: arrived.append(done),
                cancelled=lambda: arrived[-1:] > [0],
                **FAST,
            )
        assert not target.exists() and target.with_name("model.pt.part").stat().st_size == arrived[-1]
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert server.header("range")[-1] == f"bytes={arrived[-1]}-"


def test_cancel_works_during_a_pause(target):
    with FileServer(status(503)) as server, pytest.raises(CancelledError):
        # without the question in the pause this would take its 30 s and then ask the server again
        download_file(server.url(), target, pause_s=30, cancelled=lambda: bool(server.requests))
    assert len(server.requests) == 1


def test_two_processes_do_not_write_the_same_file(target):
    with FileServer(file(CONTENT)) as server, exclusive(target.with_name("model.pt.part.lock"), "busy"):
        with pytest.raises(ModelError, match="is being downloaded by another process"):
            download_file(server.url(), target, **FAST)
        assert server.requests == []


FETCH = """
import sys
from COVIDLesionSegLib.models.download import download_file
download_file(sys.argv[1], sys.argv[2])
"""


def test_a_download_that_was_killed_goes_on(target):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg")}
    part = target.with_name("model.pt.part")
    with FileServer(hanging_after(CONTENT, 900_000, '"1"'), file(CONTENT, etag='"1"')) as server:
        command = [sys.executable, "-c", FETCH, server.url(), str(target)]
        with subprocess.Popen(command, env=environment) as owner:
            while not part.is_file() or part.stat().st_size < 500_000:
                assert owner.poll() is None
                time.sleep(0.01)
            owner.kill()
        start = part.stat().st_size
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert server.header("range") == [None, f"bytes={start}-"] and left_in(target.parent) == ["model.pt"]


HOLD = """
import sys, time
from pathlib import Path
from COVIDLesionSegLib.models.download import exclusive
with exclusive(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_free_again_when_its_owner_is_killed(tmp_path):
    lock = tmp_path / "lock"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg")}
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(ModelError, match="busy"), exclusive(lock, "busy"):
            pass
        owner.kill()
        owner.wait()
        with exclusive(lock, "busy", wait_s=5):
            pass


def test_a_lock_admits_one_at_a_time(tmp_path):
    inside, most = [], []

    def enter(number):
        with exclusive(tmp_path / "lock", "busy", wait_s=30):
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20 and left_in(tmp_path) == []
