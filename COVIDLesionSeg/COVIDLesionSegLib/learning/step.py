"""One step of a training: loss, gradient, update of network and teacher; shared by the trainer and time estimates."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import COVIDLesionSegError
from ..inference.slices import channels_last
from ..networks.slices import at_least_float32
from .config import TrainingConfig
from .distributed import Ranks, use_global_batch_norm
from .losses import make_criterion
from .noise_robust import AdaptiveSelfEnsembling, DataReweighting
from .optimizers import learning_rate, make_optimizer
from .randomness import Purpose, draw_integer, gaussian_noise


class DivergedError(COVIDLesionSegError):
    """The loss or a gradient is no longer finite; the last saved state is good."""


# In float16 gradients overflow now and then; so many attempts, each with a smaller scale, before float32 is used.
_FLOAT16_ATTEMPTS = 3


class _OverflowError(Exception):
    """A number was too large for float16, in the loss itself or in a gradient."""

    def __init__(self, in_loss: bool = False) -> None:
        super().__init__()
        self.in_loss = in_loss


@dataclass(frozen=True)
class StepResult:
    """What a step leaves.

    Attributes:
        entry: figures for the log.
        logits: (N, C, ...) of the student, detached.
        teacher_logits: of the teacher where there is one, else the student's.
    """

    entry: dict[str, float]
    logits: Tensor
    teacher_logits: Tensor


class TrainingStep:
    """Everything that a step computes with and changes.

    Args:
        network: on the device, in the type it is trained in, with the weights of the base model where there is one;
            changed here.
        config: of the training.
        device: where to compute.
        autocast: type of the mixed precision, or None.
        ranks: of the job.

    Attributes:
        network: the student.
        criterion: the loss on the given labels.
        ensembling: teacher and what moves it, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainingConfig,
        device: torch.device,
        autocast: torch.dtype | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.network, self.device = network, device
        self._config, self._autocast, self._ranks = config, autocast, ranks or Ranks()
        self._dtype = next(network.parameters()).dtype
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        use_global_batch_norm(network, self._ranks)
        self.criterion = make_criterion(config.loss)
        self.criterion.reduce = self._ranks.sum
        self._optimizer = make_optimizer(config.optimizer, network.parameters())
        self._scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
        ensembling, weights = config.ensembling, config.reweighting
        base = bool(config.network.base_model)
        self.ensembling = AdaptiveSelfEnsembling(network, ensembling, base) if ensembling.enabled else None
        self._reweighting = (
            DataReweighting(weights.window, weights.percentile, weights.warm_up) if weights.enabled else None
        )
        held = config.regularization.name
        self._base = BaseRegularization(network, held) if held != "none" else None
        self._forward = self._ranks.wrap(network)

    def networks(self) -> dict[str, nn.Module]:
        """The student and, where there is one, the teacher."""
        return {"student": self.network} | ({"teacher": self.ensembling.teacher} if self.ensembling else {})

    def run(
        self,
        number: int,
        images: NDArray[np.float32] | Tensor,
        labels: NDArray[np.uint8] | Tensor,
        places: Sequence[int],
        slices: Sequence[tuple[str, int]] = (),
    ) -> StepResult:
        """Learn from a batch.

        Args:
            number: of the step, from 0.
            images: (N, 1, H, W) or (N, 1, D, H, W), in [0, 1].
            labels: (N, H, W) or (N, D, H, W), 0 or 1.
            places: of the images in the global batch; they decide about the noise.
            slices: (case id, slice) of the images, for messages.

        Raises:
            DivergedError: loss or gradient is not finite.
        """
        config = self._config
        image = torch.as_tensor(images).to(self.device, self._dtype, non_blocking=True)
        if image.ndim == 4:
            image = channels_last(image)
        label = torch.as_tensor(labels).to(self.device, non_blocking=True).long()
        rate = learning_rate(config.optimizer, number, config.run.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        if config.network.freezes_batch_norm:
            for module in batch_norms(self.network):
                module.eval()
        entry: dict[str, float] = {"step": number, "learning_rate": rate}
        attempt = functools.partial(self._attempt, entry, image, label, places, slices)
        in_float16 = self._scaler.is_enabled()
        result = self._attempts_in_float16(entry, attempt) if in_float16 else attempt(self._autocast)
        if self.ensembling is not None:
            entry |= self.ensembling.update(entry["student_loss"])
        return result

    def _attempts_in_float16(
        self, entry: dict[str, float], attempt: Callable[[torch.dtype | None], StepResult]
    ) -> StepResult:
        """A step in float16: tried again with a smaller scale where a gradient overflows, at last in float32."""
        norms, weights = batch_norms(self.network), self._reweighting
        buffers = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
        window = weights.state_dict() if weights else {}
        for overflows in range(_FLOAT16_ATTEMPTS):
            try:
                result = attempt(self._autocast)
            except _OverflowError as error:
                # what the attempt has left behind would count twice
                for buffer, before in buffers:
                    buffer.copy_(before)
                if weights:
                    weights.load_state_dict(window)
                if error.in_loss:
                    break
            else:
                entry["overflows"] = float(overflows)
                return result
        entry["overflows"] = float(overflows + 1)
        return attempt(None)

    def _attempt(
        self,
        entry: dict[str, float],
        image: Tensor,
        label: Tensor,
        places: Sequence[int],
        slices: Sequence[tuple[str, int]],
        autocast: torch.dtype | None,
    ) -> StepResult:
        """Loss, gradient and the optimizer's step; the figures go into the entry."""
        number = int(entry["step"])
        torch.manual_seed(draw_integer(self._config.run.seed, Purpose.DROPOUT, number, self._ranks.rank))
        self._optimizer.zero_grad(set_to_none=True)
        teaches = True
        with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
            if self.ensembling is not None:
                noises = [
                    self._noise(purpose, number, places, image)
                    for purpose in (Purpose.STUDENT_NOISE, Purpose.TEACHER_NOISE)
                ]
                found = self.ensembling.losses(self.criterion, image, label, noises[0], noises[1], self._forward)
                total, segmentation, logits = found.total, found.segmentation, found.student_logits
                teacher_logits = found.teacher_logits
                entry |= {
                    "teacher_loss": found.teacher.item(),
                    "consistency": self._mean(found.consistency),
                    "lambda": self._mean(torch.tensor(found.weight, device=self.device)),
                }
            else:
                logits = self._forward(image)
                teacher_logits = logits.detach()
                weights: Tensor | None = None
                if self._reweighting is not None:
                    kept = self._kept(self._reweighting, teacher_logits, label, entry)
                    # a step that keeps no slice teaches nothing; its loss is told all the same
                    teaches = entry["kept"] > 0
                    weights = kept if teaches else None
                total = self.criterion(logits, label, weights)
                segmentation = total.detach()
            if self._base is not None:
                distance = self._base.distance(self.network, image, logits)
                total = total + self._config.regularization.weight * distance
                entry["distance_to_base"] = self._mean(distance.detach())
        entry |= {"loss": self._mean(total.detach()), "student_loss": segmentation.item()}
        logits = logits.detach()
        if not all(math.isfinite(entry[name]) for name in ("loss", "student_loss")):
            if autocast == torch.float16:
                raise _OverflowError(in_loss=True)
            raise _diverged("loss", entry, slices, logits)
        if teaches:
            self._learn(total, entry, slices, logits, scaled=autocast == torch.float16)
        return StepResult(entry, logits, teacher_logits)

    def _learn(
        self, loss: Tensor, entry: dict[str, float], slices: Sequence[tuple[str, int]], logits: Tensor, scaled: bool
    ) -> None:
        (self._scaler.scale(loss) if scaled else loss).backward()
        if scaled:
            self._scaler.unscale_(self._optimizer)
        largest = self._config.optimizer.gradient_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), largest)
        finite = bool(torch.isfinite(norm))
        if not scaled:
            if not finite:
                raise _diverged("gradient", entry, slices, logits)
            self._optimizer.step()
            return
        # takes no step where a gradient is not finite, and makes the scale smaller
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if not finite:
            raise _OverflowError

    def _noise(self, purpose: Purpose, number: int, places: Sequence[int], images: Tensor) -> Tensor:
        settings = self._config.ensembling
        noise = gaussian_noise(
            self._config.run.seed,
            purpose,
            number,
            places,
            tuple(images.shape[1:]),
            settings.noise_sd,
            settings.noise_clip or None,
            settings.noise_varies,
        )
        return torch.from_numpy(noise).to(images)

    def _kept(self, reweighting: DataReweighting, logits: Tensor, label: Tensor, entry: dict[str, float]) -> Tensor:
        with torch.no_grad():
            own_losses = self.criterion.per_image(logits, label)
            lesion = label.flatten(1).any(dim=1).to(own_losses)
            both = self._ranks.gather(torch.stack([own_losses, lesion], dim=1))
        losses, with_lesion = both[:, 0].tolist(), (both[:, 1] > 0).tolist()
        kept, threshold = reweighting.keep(losses, with_lesion)
        entry |= {"kept": float(sum(kept)), "beta": threshold}
        own = slice(self._ranks.rank * len(logits), (self._ranks.rank + 1) * len(logits))
        return torch.tensor(kept[own], device=self.device, dtype=torch.float32)

    def _mean(self, value: Tensor) -> float:
        """Of a number that each rank computed on its share."""
        return float(self._ranks.sum(value.reshape(1)).item()) / self._ranks.count

    # ---- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on exactly."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ensembling": self.ensembling.state_dict() if self.ensembling else None,
            "reweighting": self._reweighting.state_dict() if self._reweighting else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        # empty where the run was not in float16
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        if self.ensembling is not None:
            self.ensembling.load_state_dict(state["ensembling"])
        if self._reweighting is not None:
            self._reweighting.load_state_dict(state["reweighting"])


class BaseRegularization:
    """How far a network has gone from the one it began as: see ``config.RegularizationSettings``.

    Args:
        base: the network as it is now; it is copied.
        by: what is compared, "weights" or "predictions".
    """

    def __init__(self, base: nn.Module, by: str) -> None:
        self._by = by
        self._base = copy.deepcopy(base).requires_grad_(False).eval()

    def distance(self, network: nn.Module, image: Tensor, logits: Tensor) -> Tensor:
        """The distance, before its weight.

        Args:
            network: as it has become.
            image: (N, C, ...), without noise.
            logits: (N, classes, ...) of the network for these images, perhaps with noise.

        Returns:
            Scalar, with gradient.
        """
        if self._by == "weights":
            pairs = zip(network.parameters(), self._base.parameters(), strict=True)
            return torch.stack([(now - before).square().sum() for now, before in pairs]).sum() / 2
        with torch.no_grad():
            before = torch.softmax(self._base(image).to(at_least_float32(logits.dtype)), dim=1)
        return (torch.softmax(logits.to(before.dtype), dim=1) - before).abs().mean()


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The network's batch norms."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def _diverged(what: str, entry: dict[str, float], slices: Sequence[tuple[str, int]], logits: Tensor) -> DivergedError:
    images = ", ".join(f"{case} slice {index}" for case, index in slices[:4])
    return DivergedError(
        f"The {what} is not finite at step {entry['step']} (loss {entry['loss']}, rate {entry['learning_rate']:.3g}, "
        f"largest logit {float(logits.float().abs().max()):.3g}; slices {images}, ...). "
        "The last saved state is good.",
        "Try a lower learning rate, gradient clipping, or float32.",
    )
