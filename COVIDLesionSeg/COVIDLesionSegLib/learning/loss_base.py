"""What the segmentation losses have in common: additive sums an image, and a value from the sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError

Classes = Literal["all", "foreground"]
Pool = Literal["batch", "image"]


class SegmentationLoss(nn.Module):
    """Base of the losses: additive sums an image, then a value from the sums.

    Args:
        classes: "all" averages the value over the background and foreground channels (the released code),
            "foreground" leaves channel 0 out (the printed equations).
        pool: "batch" adds the sums of all images before the ratio is taken (the released code), "image" takes the ratio
            of each image and averages.

    Attributes:
        reduce: maps local sums to sums over all ranks; the identity by default. A distributed trainer sets it to a
            differentiable all-reduce, since the mean over ranks of a ratio is not the ratio of the global batch.
    """

    def __init__(self, classes: Classes = "all", pool: Pool = "batch") -> None:
        super().__init__()
        self.classes = choice("classes", classes, Classes)
        self.pool = choice("pool", pool, Pool)
        self.reduce: Callable[[Tensor], Tensor] = _identity

    def sums(self, logits: Tensor, label: Tensor) -> Tensor:
        """Sums over pixels: (N, classes, number of sums) from logits (N, C, P) and label (N, P)."""
        raise NotImplementedError

    def value(self, sums: Tensor) -> Tensor:
        """The loss (...) from sums (..., classes, number of sums)."""
        raise NotImplementedError

    def forward(self, logits: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            logits: (N, C, H, W) or (N, C, D, H, W), any floating type, before softmax.
            label: (N, H, W) or (N, D, H, W), integer, 0 ... C - 1.
            weights: (N,), how much each image counts, e.g. 0 for one that is left out; 1 each if None.

        Returns:
            Scalar; float64 for float64 logits, else float32.

        Raises:
            InputError: shapes that do not fit, or a label outside 0 ... C - 1.
        """
        sums = self._sums(logits, label)
        weights = torch.ones_like(sums[:, 0, 0]) if weights is None else weights.to(sums)
        if self.pool == "batch":
            return self.value(self.reduce((sums * weights[:, None, None]).sum(dim=0)))
        # the sum of the weights travels with the sum of the losses, so that unequal ranks average rightly
        total = self.reduce(torch.stack([(self.value(sums) * weights).sum(), weights.sum()]))
        return total[0] / total[1]

    def per_image(self, logits: Tensor, label: Tensor) -> Tensor:
        """One loss an image, (N,), whatever ``pool`` says; arguments as for :meth:`forward`."""
        return self.value(self._sums(logits, label))

    def _sums(self, logits: Tensor, label: Tensor) -> Tensor:
        _check(logits, label)
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            return self.sums(logits.flatten(2), label.flatten(1))

    def _overlap_terms(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """p and g, (N, classes, P)."""
        first = 1 if self.classes == "foreground" else 0
        p = torch.softmax(logits, dim=1)[:, first:]
        values = torch.arange(first, logits.shape[1], device=label.device)
        return p, (label[:, None] == values[:, None]).to(p.dtype)


def _identity(sums: Tensor) -> Tensor:
    return sums


def choice(name: str, value: str, allowed: object) -> str:
    """The value, if it is one of a Literal's; InputError with what is allowed otherwise."""
    if value not in get_args(allowed):
        words = " or ".join(f'"{word}"' for word in get_args(allowed))
        raise InputError(f'{name} is "{value}"; it must be {words}.')
    return value


def _check(logits: Tensor, label: Tensor) -> None:
    if logits.ndim < 3 or logits.shape[1] < 2 or logits.shape[:1] + logits.shape[2:] != label.shape:
        raise InputError(
            f"Logits {tuple(logits.shape)} and label {tuple(label.shape)} do not fit; "
            "logits (N, C, ...) with C >= 2 and a label (N, ...) of the same size are needed."
        )
    if label.is_floating_point() or label.is_complex():
        raise InputError(f"The label is {label.dtype}; integers 0 ... C - 1 are needed.")
    # on a GPU this look would stall the queue at every step; labels are checked when the data set is built
    if label.device.type == "cpu" and label.numel():
        low, high = torch.aminmax(label)
        if low < 0 or high >= logits.shape[1]:
            raise InputError(f"The label holds {int(low)} ... {int(high)}; 0 ... {logits.shape[1] - 1} is allowed.")
