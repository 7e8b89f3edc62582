"""Many runs in a row: nothing grows."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.inference import Predictor
from COVIDLesionSegLib.models import LoadedModel, ModelCard
from COVIDLesionSegLib.networks import COPLENet


def resident_mb() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the memory of a process is read from /proc, which this system does not have")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@pytest.mark.long
def test_a_hundred_cts_leave_no_memory_behind():
    network = COPLENet(channels=(4, 8, 16, 32, 64)).eval()
    predictor = Predictor(LoadedModel(network, ModelCard("tiny", "Tiny", "coplenet", network.arguments)), device="cpu")
    torch.manual_seed(0)
    seen = []
    for number in range(100):
        # another size each time, so that caches that are kept for each size would show
        size = 96 + 4 * (number % 25)
        hu = np.random.default_rng(number).normal(-700, 150, (12, size, size)).clip(-1024, 1000).astype(np.int16)
        volume = Volume(hu, Geometry((size, size, 12)))
        predictor.segment(volume, lungs=np.ones(hu.shape, dtype=bool), probability=True)
        gc.collect()
        seen.append(resident_mb())
    # the first two rounds of sizes fill the allocator's and oneDNN's caches
    assert np.mean(seen[-25:]) - np.mean(seen[50:75]) < 20, seen[::10]
