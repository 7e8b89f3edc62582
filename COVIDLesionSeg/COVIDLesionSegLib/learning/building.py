"""From settings to the parts of a training: loss, optimizer, learning rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from . import losses
from .config import LossSettings, OptimizerSettings
from .noise_robust import Criterion
from .optimizers import Ranger

LOSSES: dict[str, type[Any]] = {
    "noise_robust_dice": losses.NoiseRobustDiceLoss,
    "dice": losses.DiceLoss,
    "sorensen_dice": losses.SorensenDiceLoss,
    "focal_dice": losses.FocalDiceLoss,
    "cross_entropy": losses.CrossEntropyLoss,
    "focal": losses.FocalLoss,
    "mean_absolute_error": losses.MeanAbsoluteErrorLoss,
    "generalized_cross_entropy": losses.GeneralizedCrossEntropyLoss,
    "dice_cross_entropy": losses.DiceCrossEntropyLoss,
    "dice_mean_absolute_error": losses.DiceMeanAbsoluteErrorLoss,
    "cares": losses.CAResLoss,
}


def make_criterion(settings: LossSettings) -> Criterion:
    """The loss.

    Raises:
        InputError: an argument that the loss does not have, or a value that it refuses.
    """
    make = LOSSES[settings.name]
    known = list(inspect.signature(make).parameters)
    unknown = sorted(set(settings.arguments) - set(known))
    if unknown:
        raise InputError(f"The loss {settings.name} has no argument {', '.join(unknown)}; it takes {', '.join(known)}.")
    criterion: Criterion = make(**settings.arguments)
    return criterion


def make_optimizer(settings: OptimizerSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer, with the learning rate of step 0 still to be set by :func:`learning_rate`."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.name == "ranger":
        betas = (settings.momentum, 0.999)
        return Ranger(
            parameters,
            lr=rate,
            betas=betas,
            weight_decay=decay,
            gradient_centralization=settings.gradient_centralization,
        )
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay)
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """The rate of a step, computed from the step alone so that a resumed training needs no scheduler's state.

    Args:
        settings: base rate and schedule.
        step: from 0.
        steps: of the whole training; only "one_cycle" looks at it: up from 1/25 by a cosine over the first 30 %, then
            down to 1/25 000 of the base rate.
    """
    if settings.schedule == "halving":
        return settings.learning_rate * settings.factor ** (step // settings.every)
    if settings.schedule == "milestones":
        return settings.learning_rate * settings.factor ** sum(step >= milestone for milestone in settings.milestones)
    if settings.schedule == "one_cycle":
        peak = 0.3 * steps
        low, done = (1 / 25, step / peak) if step < peak else (1 / 25_000, (steps - step) / max(steps - peak, 1))
        return settings.learning_rate * (low + (1 - low) * (1 - math.cos(math.pi * min(done, 1.0))) / 2)
    return settings.learning_rate
