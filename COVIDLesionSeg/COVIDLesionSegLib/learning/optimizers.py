"""Optimizers and learning rates; Ranger (rectified Adam with Lookahead) is what the CARes-UNet paper trains with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from .config import OptimizerSettings


class Ranger(torch.optim.RAdam):
    """Rectified Adam + Lookahead + gradient centralization.

    Each step centralizes the gradients of weights (mean over all but the first axis removed), takes a step of
    rectified Adam with decoupled weight decay, and every ``k`` steps moves slow weights a share ``alpha`` towards the
    fast ones, which then start again from there. Slow weights begin as the initial weights. While the rectification
    term is not yet defined (first five steps at beta2 = 0.999), rectified Adam is momentum descent at the full rate.

    Slow weights and step counts are part of ``state_dict()``: a loaded optimizer goes on exactly. Gradients in
    ``.grad`` are left as they were.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, > 0; 5e-4 in the paper.
        betas: decay of the first and second moment, each in [0, 1); the paper's "momentum 0.9" is betas[0] = 0.9, the
            released code runs with 0.95.
        eps: added to the root of the second moment, > 0.
        weight_decay: decoupled decay, >= 0; 1e-4 in the paper, 0 in the released code.
        k: steps between two synchronizations, >= 1.
        alpha: share in (0, 1].
        gradient_centralization: True for all weights with more than one axis, "convolutions" for those with more than
            three, False for none. (The released code has the switch but ignores it.)

    Raises:
        InputError: a value outside its range.

    References:
        Xu et al., Med Phys 48(11), 2021; Liu et al., ICLR 2020 (rectified Adam); Zhang et al., NeurIPS 2019
        (Lookahead); Yong et al., ECCV 2020 (gradient centralization).
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        k: int = 6,
        alpha: float = 0.5,
        gradient_centralization: bool | Literal["convolutions"] = True,
    ) -> None:
        if not (lr > 0 and eps > 0 and weight_decay >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise InputError(
                f"Ranger got lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}; "
                "lr and eps must be above 0, betas in [0, 1), weight_decay 0 or above."
            )
        if int(k) != k or k < 1 or not 0 < alpha <= 1:
            raise InputError(f"Ranger got k {k}, alpha {alpha}; k must be a whole number from 1, alpha in (0, 1].")
        if gradient_centralization not in (True, False, "convolutions"):
            raise InputError(
                f'gradient_centralization is {gradient_centralization!r}; it must be True, False or "convolutions".'
            )
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_weight_decay=True)
        for group in self.param_groups:
            group.setdefault("k", int(k))
            group.setdefault("alpha", float(alpha))
            group.setdefault("gradient_centralization", gradient_centralization)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: computes the loss anew and its gradients; optional.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            # rectified Adam sets up the state of a parameter whose state is empty: slow weights must come after it
            fresh = {p: p.clone() for p, _ in self._updated() if not self.state[p]}
            with self._centralized_gradients():
                super().step()
            for parameter, slow in fresh.items():
                self.state[parameter]["slow"] = slow
            self._look_ahead()
        return loss

    def _updated(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield parameter, group

    @contextlib.contextmanager
    def _centralized_gradients(self) -> Iterator[None]:
        originals: list[tuple[Tensor, Tensor]] = []
        try:
            for parameter, group in self._updated():
                axes_from = {True: 2, False: parameter.ndim + 1, "convolutions": 4}[group["gradient_centralization"]]
                gradient = parameter.grad
                if gradient is not None and gradient.ndim >= axes_from:
                    originals.append((parameter, gradient))
                    parameter.grad = gradient - gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True)
            yield
        finally:
            for parameter, gradient in originals:
                parameter.grad = gradient

    def _look_ahead(self) -> None:
        for parameter, group in self._updated():
            state = self.state[parameter]
            if int(state["step"]) % group["k"] == 0:
                state["slow"].lerp_(parameter, group["alpha"])
                parameter.copy_(state["slow"])


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
