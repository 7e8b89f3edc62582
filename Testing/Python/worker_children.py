"""Real children of the worker for tests, odd ones and those that measure or segment; a pytest plug-in."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from COVIDLesionSegLib.imaging import Volume
from COVIDLesionSegLib.measurement.longitudinal import TimePoint
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest
from COVIDLesionSegLib.processes import is_alive
from COVIDLesionSegLib.worker import BlockingLoop, Client, WorkerSettings, blocking_client, wait

ON_POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are tested on POSIX")
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
def chest():
    """A synthetic chest that is found and measured in a moment."""
    return synthetic_chest(size=(32, 80, 112), spacing=(9.0, 3.6, 3.5), oblique=False)


@pytest.fixture(scope="module")
def slab(chest):
    """A few slices of the chest."""
    box = (slice(14, 20), slice(None), slice(None))
    return TimePoint(Volume(chest.volume.array[box], chest.volume.geometry.cropped(box)), None, chest.lungs[box])


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


def environment(**more):
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(LIBRARY), **more}


def broken_torch(folder, code):
    package = folder / "broken" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code + "\n")
    return str(package.parent)


def save_tiny_model(file, seed=0):
    import torch

    from COVIDLesionSegLib.models import ModelCard, save_model
    from COVIDLesionSegLib.networks import COPLENet

    torch.manual_seed(seed)
    network = COPLENet(channels=(2, 4, 8, 16, 32))
    arguments = {"channels": [2, 4, 8, 16, 32]}
    save_model(network, ModelCard(id="tiny", name="Tiny", network="coplenet", network_arguments=arguments), file)
