"""How long a training will take here: a few of its steps, measured, and the rest by arithmetic."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass

import torch

from ..inference.devices import choose_device, choose_precision, wait_for
from ..networks import create_network
from .building import make_criterion, make_optimizer
from .config import TrainingConfig
from .machine import cpu_threads
from .noise_robust import AdaptiveSelfEnsembling

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
        network = create_network(config.network.name, **config.network.arguments).to(device)
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
    criterion = make_criterion(config.loss)
    optimizer = make_optimizer(config.optimizer, network.parameters())
    ensembling = AdaptiveSelfEnsembling(network, config.ensembling) if config.ensembling.enabled else None
    shape = (config.run.batch_size + config.run.pseudo_batch_size, 1, *config.data.crop)
    image = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    label = torch.zeros((shape[0], *shape[2:]), dtype=torch.long, device=device)
    label[:, : shape[2] // 4, : shape[3] // 4] = 1
    noise = torch.zeros_like(image)
    seconds = []
    for _ in range(1 + _MEASURED_STEPS):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            if ensembling is not None:
                loss = ensembling.losses(criterion, image, label, noise, noise, network).total
            else:
                loss = criterion(network(image), label)
        loss.backward()
        optimizer.step()
        if ensembling is not None:
            ensembling.update(float(loss.detach()))
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    # the first step also sets things up
    return statistics.median(seconds[1:])


def _seconds_per_slice(
    network: torch.nn.Module, size: tuple[int, int], device: torch.device, autocast: torch.dtype | None
) -> float:
    batch = 2
    image = torch.rand((batch, 1, *(-(-side // 16) * 16 for side in size)), device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    network.eval()
    seconds = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for _ in range(3):
            start = time.perf_counter()
            network(image).float().sum().item()
            seconds.append(time.perf_counter() - start)
    return min(seconds) / batch
