"""How long the cells of a table will take here: one small step of each row, measured, and the rest by arithmetic."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from ..learning.building import make_criterion
from ..learning.config import TrainingConfig
from .catalog import Row
from .efficiency import build
from .judging import autocast_of

# a step on this much is measured and scaled by the number of voxels
_SIDE, _BATCH, _TRIES = 64, 2, 4
# a teacher's forward pass beside the student's step
_TEACHER = 1.3


@dataclass(frozen=True)
class Planned:
    """A cell of a plan.

    Attributes:
        name: of the cell.
        status: "finished", "to do", or why it can't be done.
        steps: of its training.
        seconds: of its training, roughly; 0 where nothing is to do.
    """

    name: str
    status: str
    steps: int = 0
    seconds: float = 0.0


def seconds_per_step(row: Row, config: TrainingConfig, width: int | None, device: torch.device) -> float:
    """Roughly, from the fastest of some small steps of forward and backward pass."""
    network = build_for(row, config, width).to(device).train()
    side = min(_SIDE, *config.data.crop)
    shape = (_BATCH, 1, side, side) if config.data.depth == 1 else (_BATCH, 1, config.data.depth, side, side)
    image = torch.rand(shape, device=device)
    label = torch.zeros((shape[0], *shape[2:]), dtype=torch.long, device=device)
    label[..., : side // 4, : side // 4] = 1
    criterion, autocast = make_criterion(config.loss), autocast_of(config.run.precision, device)
    seconds = math.inf
    for _ in range(_TRIES):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            loss = criterion(network(image), label)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        # the first step also sets things up, and other work on the machine only ever slows one down
        seconds = min(seconds, time.perf_counter() - started)
    batch = config.run.batch_size + config.run.pseudo_batch_size
    voxels = batch * math.prod(config.data.crop) / (_BATCH * side * side)
    return seconds * voxels * (_TEACHER if config.ensembling.enabled else 1.0) * (row.count + 1)


def build_for(row: Row, config: TrainingConfig, width: int | None) -> torch.nn.Module:
    """The row's network at the width asked for; a 3-D one for the configuration's patches."""
    if row.network.builder == "dynunet3d":
        from .baselines import make_network

        return make_network(row.network, config.network.arguments.get("width"), (config.data.depth, *config.data.crop))
    return build(row.network, width)
