"""How long a training will take here: a few of its steps, measured, and the rest by arithmetic."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ..inference.devices import choose_device, choose_precision, wait_for
from ..inference.slices import channels_last
from ..networks import create_network
from ..networks.slices import channels_of
from .config import TrainingConfig
from .machine import cpu_threads
from .step import TrainingStep

_MEASURED_STEPS = 3
# a CT of which only the lungs' box is stored; reading, finding the lungs and writing, s a slice
_PREPARE_S = 0.05


@dataclass(frozen=True)
class TimeEstimate:
    """What a training is expected to take, s.

    Attributes:
        total: all of it.
        preparing: reading the cases and cutting out the lungs.
        training: the steps.
        validating: the validations of student and teacher, the judgment of the base model, and the gate's two.
        seconds_per_step: measured.
        device: measured on which.
    """

    total: float
    preparing: float
    training: float
    validating: float
    seconds_per_step: float
    device: str

    @property
    def text(self) -> str:
        """For people: how long, and what it rests on."""
        minutes = self.total / 60
        shown = f"{self.total:.0f} seconds" if minutes < 2 else f"{minutes:.0f} minutes"
        if minutes > 90:
            shown = f"{minutes / 60:.1f} hours"
        return (
            f"About {shown} on {self.device} ({self.seconds_per_step:.2f} s a step measured here: "
            f"{self.training:.0f} s of training, {self.validating:.0f} s of validation, {self.preparing:.0f} s before)."
        )

    def to_json(self) -> dict[str, float | str]:
        """For JSON."""
        return asdict(self)


def estimate(
    config: TrainingConfig,
    slices: int,
    validation_slices: int,
    validation_size: tuple[int, int] = (320, 400),
) -> TimeEstimate:
    """Measure a few steps of a training on this machine.

    The steps are real (network, loss, self-ensembling, optimizer, crop and batch size of the configuration), the images
    are not. Nothing is read or written.

    Args:
        config: of the training.
        slices: of all cases, that have to be prepared.
        validation_slices: of the validation cases.
        validation_size: (rows, columns) of a slice in the lungs' box.

    Raises:
        InputError, DeviceError: settings or a device that can't be used.
    """
    device = choose_device(config.run.device).device
    dtype, _ = choose_precision("float32" if config.run.precision == "float64" else config.run.precision, device)
    autocast = None if dtype == torch.float32 else dtype
    with cpu_threads(config.run.threads):
        channels = {"in_channels": max(1, len(config.data.slice_offsets_mm))}
        network = create_network(config.network.name, **channels | config.network.arguments).to(device)
        step = _seconds_per_step(config, network, device, autocast)
        plane = _seconds_per_slice(network, validation_size, device, autocast)
    networks = 2 if config.ensembling.enabled else 1
    validations = -(-config.run.steps // config.run.validation_interval) * networks + 3
    training = step * config.run.steps
    validating = plane * validation_slices * validations
    preparing = _PREPARE_S * slices
    return TimeEstimate(training + validating + preparing, preparing, training, validating, step, str(device))


def _seconds_per_step(
    config: TrainingConfig, network: torch.nn.Module, device: torch.device, autocast: torch.dtype | None
) -> float:
    count = config.run.batch_size + config.run.pseudo_batch_size
    # the first step also sets things up
    return statistics.median(step_seconds(config, network, device, autocast, count, config.data.crop)[1:])


def step_seconds(
    config: TrainingConfig,
    network: torch.nn.Module,
    device: torch.device,
    autocast: torch.dtype | None,
    count: int,
    size: tuple[int, int],
    steps: int = 1 + _MEASURED_STEPS,
) -> list[float]:
    """Seconds of some steps of a training on images that are not real; the first ones also set things up.

    Args:
        config: of the training.
        network: on the device; changed.
        device: where to compute.
        autocast: type of the mixed precision, or None.
        count: images a step.
        size: (rows, columns) of an image.
        steps: to take.
    """
    depth = () if config.data.depth == 1 else (config.data.depth,)
    images = np.random.default_rng(0).random((count, channels_of(network), *depth, *size), dtype=np.float32)
    labels = np.zeros((count, *depth, *size), dtype=np.uint8)
    labels[..., : size[0] // 4, : size[1] // 4] = 1
    step, seconds = TrainingStep(network, config, device, autocast), []
    for number in range(steps):
        start = time.perf_counter()
        step.run(number, images, labels, range(count))
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def _seconds_per_slice(
    network: torch.nn.Module, size: tuple[int, int], device: torch.device, autocast: torch.dtype | None
) -> float:
    batch = 2
    image = torch.rand((batch, channels_of(network), *(-(-side // 16) * 16 for side in size)), device=device)
    image = channels_last(image)
    network.eval()
    seconds = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for _ in range(3):
            start = time.perf_counter()
            network(image).float().sum().item()
            seconds.append(time.perf_counter() - start)
    return min(seconds) / batch
