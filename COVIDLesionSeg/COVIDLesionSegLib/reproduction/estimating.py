"""How long the cells of a table will take here: a step of each row, measured small, and the rest by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..learning.config import TrainingConfig
from ..learning.estimate import step_seconds
from .catalog import Row
from .efficiency import build
from .judging import autocast_of

# A step on this much is measured first. Steps as short as that of a narrow network are mostly overhead, so that larger
# ones follow until one takes this many seconds; the last is scaled by the number of voxels.
_SIDE, _TRIES = 64, 4
_LONG_ENOUGH = 0.3


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
    """Roughly, from the fastest of some small steps."""
    network = build_for(row, config, width).to(device).train()
    autocast = autocast_of(config.run.precision, device)
    batch = config.run.batch_size + config.run.pseudo_batch_size
    for count, sides in _growing(batch, config.data.crop):
        # the first step also sets things up, and other work on the machine only ever slows one down
        seconds = min(step_seconds(config, network, device, autocast, count, sides, _TRIES))
        if seconds >= _LONG_ENOUGH:
            break
    voxels = batch * math.prod(config.data.crop) / (count * math.prod(sides))
    return seconds * voxels * (row.count + 1)


def _growing(batch: int, crop: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Slices and their sides: two of a part of the crop, then 1, 2, 4 ... of the whole crop up to a whole batch."""
    yield min(2, batch), (min(_SIDE, crop[0]), min(_SIDE, crop[1]))
    count = 1
    while count < batch:
        yield count, crop
        count *= 2
    yield batch, crop


def build_for(row: Row, config: TrainingConfig, width: int | None) -> torch.nn.Module:
    """The row's network at the width asked for; a 3-D one for the configuration's patches."""
    if row.network.builder == "dynunet3d":
        from .baselines import make_network

        return make_network(row.network, config.network.arguments.get("width"), (config.data.depth, *config.data.crop))
    return build(row.network, width)
