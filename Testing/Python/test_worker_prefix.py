"""The real child behind a prefix: a far machine, files that travel there, and a tree that ends with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from worker_children import LIBRARY, ODD, ON_POSIX, environment, gone, pid_of, pump_until, save_tiny_model, started

from COVIDLesionSegLib.errors import CancelledError
from COVIDLesionSegLib.files import sha256_file
from COVIDLesionSegLib.worker import BlockingLoop, Client, WorkerSettings, wait
from COVIDLesionSegLib.worker import client as client_module
from COVIDLesionSegLib.worker import protocol as p

pytestmark = ON_POSIX

FAR = """#!/bin/sh
echo "Welcome to the far machine"
cd {home}
exec env -i PATH=/usr/bin:/bin HOME={home} TMPDIR={home}/tmp PYTHONPATH={library} "$@"
"""


def test_behind_a_prefix_the_far_side_needs_nothing_of_this_one(children, chest, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "make_folder", lambda: pytest.fail("a folder was made"))
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
    family = [int(word) for word in request.messages[0].split()]
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
    # where a wheel has them
    shutil.copytree(LIBRARY.parent / "Resources", place / "COVIDLesionSegLib" / "Resources", ignore=skipped)
    version = place / "COVIDLesionSegLib" / "__init__.py"
    version.write_text(version.read_text().replace('__version__ = "', '__version__ = "copy-'))
    (place / "numpy.py").write_text("raise SystemExit('a package of another interpreter was loaded')")
    main = place / "COVIDLesionSegLib" / "worker" / "__main__.py"
    done = subprocess.run(
        [sys.executable, "-P", main, "--kind", "measurement"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30
    )
    assert json.loads(done.stdout)["library"].startswith("copy-"), done.stderr
