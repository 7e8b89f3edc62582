"""Segmentation losses on raw logits: the TMI paper's (Eqs. 1-3, Table I) and the CARes-UNet paper's.

Every loss is built from sums over the pixels of an image, so that one definition serves three uses: pooled over a batch
(also over all ranks of a distributed job, see :attr:`SegmentationLoss.reduce`), averaged over images, and one value an
image for re-weighting and for the label audit. p is the softmax probability, g the one-hot label, both per class; half
types are promoted to float32 inside, float64 stays float64, and everything stays finite at saturation.

References:
    Wang et al., IEEE TMI 39(8), 2020 ("TMI"). Xu et al., Med Phys 48(11), 2021 ("CARes"). The released code behind both
    (PyMIC and CARes-UNet) differs from the print in places; each docstring says which is followed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from ..imports import import_class
from .config import LossSettings

Classes = Literal["all", "foreground"]
Pool = Literal["batch", "image"]
Denominator = Literal["linear", "squared"]


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
        self.classes = _choice("classes", classes, Classes)
        self.pool = _choice("pool", pool, Pool)
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


def _choice(name: str, value: str, allowed: object) -> str:
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


class NoiseRobustDiceLoss(SegmentationLoss):
    """Noise-robust Dice loss, TMI Eq. 3: sum |p - g|^gamma / (denominator + 1e-5).

    gamma = 2 weighs like Dice, gamma = 1 like mean absolute error, which is robust to wrong labels; 1.5 was best (TMI
    Fig. 4).

    Args:
        gamma: exponent in [1, 2].
        denominator: "linear", sum p + sum g, is what the authors' code computes and the default. "squared",
            sum p^2 + sum g^2, is Eq. 3 as printed. Its trap: over pixels without foreground (one lesion-free slice with
            ``pool="image"``) and gamma < 2, the loss falls as p rises, so that training pushes the background's
            probability up; use it only pooled over batches that contain lesion.
        classes: see :class:`SegmentationLoss`; the authors' code averages both, Eq. 3 is the foreground's.
        pool: see :class:`SegmentationLoss`.

    Raises:
        InputError: gamma outside [1, 2], or an unknown option.
    """

    def __init__(
        self, gamma: float = 1.5, denominator: Denominator = "linear", classes: Classes = "all", pool: Pool = "batch"
    ) -> None:
        super().__init__(classes, pool)
        if not 1 <= gamma <= 2:
            raise InputError(f"gamma of the noise-robust Dice loss is {gamma}; it must lie in [1, 2].")
        self.gamma = float(gamma)
        self.denominator = _choice("denominator", denominator, Denominator)

    def sums(self, logits: Tensor, label: Tensor) -> Tensor:
        """sum |p - g|^gamma and the denominator, see the base class."""
        p, g = self._overlap_terms(logits, label)
        size = p.square() + g if self.denominator == "squared" else p + g
        return torch.stack([(p - g).abs().pow(self.gamma).sum(-1), size.sum(-1)], dim=-1)

    def value(self, sums: Tensor) -> Tensor:
        """The ratio, averaged over classes."""
        return (sums[..., 0] / (sums[..., 1] + 1e-5)).mean(-1)


class _DiceBase(SegmentationLoss):
    """1 - (2 sum pg + smooth) / (denominator + smooth), averaged over classes."""

    denominator: Denominator = "linear"

    def __init__(self, classes: Classes = "all", pool: Pool = "batch", smooth: float = 1e-5) -> None:
        super().__init__(classes, pool)
        if not smooth >= 0:
            raise InputError(f"smooth is {smooth}; it must be 0 or above.")
        self.smooth = float(smooth)

    def sums(self, logits: Tensor, label: Tensor) -> Tensor:
        p, g = self._overlap_terms(logits, label)
        size = p.square() + g if self.denominator == "squared" else p + g
        return torch.stack([(p * g).sum(-1), size.sum(-1)], dim=-1)

    def dice(self, sums: Tensor) -> Tensor:
        """Soft Dice of each class."""
        return (2 * sums[..., 0] + self.smooth) / (sums[..., 1] + self.smooth)

    def value(self, sums: Tensor) -> Tensor:
        return 1 - self.dice(sums).mean(-1)


class DiceLoss(_DiceBase):
    """Dice loss of Milletari et al., TMI Eq. 1: 1 - 2 sum pg / (sum p^2 + sum g^2).

    Args:
        classes: see :class:`SegmentationLoss`; Eq. 1 is the foreground's.
        pool: see :class:`SegmentationLoss`.
        smooth: added above and below, so that an empty image with an empty answer costs 0; 0 is Eq. 1 as printed, which
            is undefined there.
    """

    denominator = "squared"


class SorensenDiceLoss(_DiceBase):
    """Sorensen-Dice loss: 1 - 2 sum pg / (sum p + sum g), the form that the TMI authors' code calls Dice.

    Args:
        classes: see :class:`SegmentationLoss`.
        pool: see :class:`SegmentationLoss`.
        smooth: as for :class:`DiceLoss`; 1e-5 as in the authors' code.
    """


class FocalDiceLoss(SorensenDiceLoss):
    """Focal Dice loss: 1 - Dice^(1 / beta), the class mean of Sorensen-Dice to that power (TMI Table I: beta 0.5).

    Args:
        beta: > 0; below 1 it dwells on badly segmented images, above 1 on the others.
        classes: see :class:`SegmentationLoss`.
        pool: see :class:`SegmentationLoss`.
        smooth: as for :class:`DiceLoss`; it also keeps the gradient finite at Dice 0 when beta > 1.

    Raises:
        InputError: beta not above 0.
    """

    def __init__(self, beta: float = 0.5, classes: Classes = "all", pool: Pool = "batch", smooth: float = 1e-5) -> None:
        super().__init__(classes, pool, smooth)
        if not beta > 0:
            raise InputError(f"beta of the focal Dice loss is {beta}; it must be above 0.")
        self.beta = float(beta)

    def value(self, sums: Tensor) -> Tensor:
        """1 minus the mean power."""
        return 1 - self.dice(sums).pow(1 / self.beta).mean(-1)


class _PixelMean(SegmentationLoss):
    """Mean over pixels of a loss a pixel; the pixel count is the second sum."""

    def __init__(self, pool: Pool = "batch") -> None:
        super().__init__("all", pool)

    def pixels(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss a pixel (N, P)."""
        raise NotImplementedError

    def sums(self, logits: Tensor, label: Tensor) -> Tensor:
        loss = self.pixels(logits, label)
        count = torch.full_like(loss[:, 0], float(loss.shape[1]))
        return torch.stack([loss.sum(-1), count], dim=-1)[:, None]

    def value(self, sums: Tensor) -> Tensor:
        return (sums[..., 0] / sums[..., 1]).mean(-1)


class CrossEntropyLoss(_PixelMean):
    """Cross entropy: mean of -ln p_t, p_t the probability of the labeled class."""

    def pixels(self, logits: Tensor, label: Tensor) -> Tensor:
        """-ln p_t."""
        return functional.cross_entropy(logits, label.long(), reduction="none")


class FocalLoss(_PixelMean):
    """Focal cross entropy: mean of -(1 - p_t)^gamma ln p_t, without class weights (TMI Table I: gamma 2 and 0.5).

    Args:
        gamma: > 0.
        pool: see :class:`SegmentationLoss`.

    Raises:
        InputError: gamma not above 0.
    """

    def __init__(self, gamma: float = 2.0, pool: Pool = "batch") -> None:
        super().__init__(pool)
        if not gamma > 0:
            raise InputError(f"gamma of the focal loss is {gamma}; it must be above 0.")
        self.gamma = float(gamma)

    def pixels(self, logits: Tensor, label: Tensor) -> Tensor:
        """-(1 - p_t)^gamma ln p_t."""
        log_p = -functional.cross_entropy(logits, label.long(), reduction="none")
        # for gamma < 1 the power has an infinite slope at a perfect answer (times 0): the floor makes it 0
        miss = -torch.expm1(log_p)
        return -miss.clamp_min(torch.finfo(miss.dtype).tiny).pow(self.gamma) * log_p


class MeanAbsoluteErrorLoss(_PixelMean):
    """Mean absolute error: mean |p - g| (TMI Eq. 2); the mean over both softmax channels is the same number."""

    def pixels(self, logits: Tensor, label: Tensor) -> Tensor:
        """Mean over classes of |p - g|."""
        p, g = self._overlap_terms(logits, label)
        return (p - g).abs().mean(1)


class GeneralizedCrossEntropyLoss(_PixelMean):
    """Generalized cross entropy: mean of (1 - p_t^q) / q; q to 0 is cross entropy, q = 1 mean absolute error.

    Args:
        q: in (0, 1]; 0.7 in TMI Table I.
        pool: see :class:`SegmentationLoss`.

    Raises:
        InputError: q outside (0, 1].
    """

    def __init__(self, q: float = 0.7, pool: Pool = "batch") -> None:
        super().__init__(pool)
        if not 0 < q <= 1:
            raise InputError(f"q of the generalized cross entropy is {q}; it must lie in (0, 1].")
        self.q = float(q)

    def pixels(self, logits: Tensor, label: Tensor) -> Tensor:
        """(1 - p_t^q) / q, by way of ln p_t, whose gradient stays finite at p_t = 0."""
        log_p = -functional.cross_entropy(logits, label.long(), reduction="none")
        return -torch.expm1(self.q * log_p) / self.q


class SummedLoss(nn.Module):
    """A weighted sum of losses.

    Args:
        parts: (weight, loss) pairs.
    """

    def __init__(self, *parts: tuple[float, SegmentationLoss]) -> None:
        super().__init__()
        self.weights = tuple(weight for weight, _ in parts)
        self.parts = tuple(loss for _, loss in parts)

    @property
    def reduce(self) -> Callable[[Tensor], Tensor]:
        """The parts' map from local to global sums, see :attr:`SegmentationLoss.reduce`."""
        return self.parts[0].reduce

    @reduce.setter
    def reduce(self, function: Callable[[Tensor], Tensor]) -> None:
        for part in self.parts:
            part.reduce = function

    def forward(self, logits: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of a batch, arguments as for :meth:`SegmentationLoss.forward`."""
        values = [weight * part(logits, label, weights) for weight, part in zip(self.weights, self.parts, strict=True)]
        return torch.stack(values).sum()

    def per_image(self, logits: Tensor, label: Tensor) -> Tensor:
        """One loss an image, (N,)."""
        values = [weight * part.per_image(logits, label) for weight, part in zip(self.weights, self.parts, strict=True)]
        return torch.stack(values).sum(0)


class DiceCrossEntropyLoss(SummedLoss):
    """Dice + cross entropy, weights 1 : 1 (TMI Table I).

    Args:
        classes: of the Dice part, see :class:`SegmentationLoss`.
        pool: of both parts.
    """

    def __init__(self, classes: Classes = "all", pool: Pool = "batch") -> None:
        super().__init__((1.0, DiceLoss(classes, pool)), (1.0, CrossEntropyLoss(pool)))


class DiceMeanAbsoluteErrorLoss(SummedLoss):
    """Dice + mean absolute error, weights 1 : 1 (TMI Table I).

    Args:
        classes: of the Dice part, see :class:`SegmentationLoss`.
        pool: of both parts.
    """

    def __init__(self, classes: Classes = "all", pool: Pool = "batch") -> None:
        super().__init__((1.0, DiceLoss(classes, pool)), (1.0, MeanAbsoluteErrorLoss(pool)))


class CAResLoss(SummedLoss):
    """CARes-UNet's loss: weighted soft Dice plus weighted cross entropy, over both classes and per image.

    Dice of an image and class is (2 sum pg + 1e-4) / (sum p + sum g + 1e-4).

    Args:
        dice_weight: weight of 1 - mean Dice; 1 in the paper.
        cross_entropy_weight: weight of the cross entropy; 1 in the paper.
        as_released: the released code feeds the sigmoid of the logits to both parts, which apply a softmax once more. A
            perfect answer then still costs about 0.6 and gradients are throttled; off by default.
    """

    def __init__(self, dice_weight: float = 1.0, cross_entropy_weight: float = 1.0, as_released: bool = False) -> None:
        super().__init__(
            (float(dice_weight), SorensenDiceLoss("all", "image", smooth=1e-4)),
            (float(cross_entropy_weight), CrossEntropyLoss("image")),
        )
        self.as_released = bool(as_released)

    def forward(self, logits: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of a batch, arguments as for :meth:`SegmentationLoss.forward`."""
        return super().forward(self._input(logits), label, weights)

    def per_image(self, logits: Tensor, label: Tensor) -> Tensor:
        """One loss an image, (N,)."""
        return super().per_image(self._input(logits), label)

    def _input(self, logits: Tensor) -> Tensor:
        if not self.as_released:
            return logits
        return torch.sigmoid(logits if logits.dtype == torch.float64 else logits.float())


class ImportedLoss(SegmentationLoss):
    """A loss of another package: the mean over the images of what it gives for each.

    Args:
        inner: maps logits (1, C, H, W) and a label (1, H, W) to a scalar.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(pool="image")
        self.inner = inner

    def value(self, sums: Tensor) -> Tensor:
        """The inner loss, which is the only sum."""
        return sums[..., 0, 0]

    def _sums(self, logits: Tensor, label: Tensor) -> Tensor:
        _check(logits, label)
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            losses = [self.inner(logits[i : i + 1], label[i : i + 1]).reshape(()) for i in range(len(logits))]
        return torch.stack(losses)[:, None, None]


Criterion = SegmentationLoss | SummedLoss
LOSSES: dict[str, type[Any]] = {
    "noise_robust_dice": NoiseRobustDiceLoss,
    "dice": DiceLoss,
    "sorensen_dice": SorensenDiceLoss,
    "focal_dice": FocalDiceLoss,
    "cross_entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "mean_absolute_error": MeanAbsoluteErrorLoss,
    "generalized_cross_entropy": GeneralizedCrossEntropyLoss,
    "dice_cross_entropy": DiceCrossEntropyLoss,
    "dice_mean_absolute_error": DiceMeanAbsoluteErrorLoss,
    "cares": CAResLoss,
}


def make_criterion(settings: LossSettings) -> Criterion:
    """The loss.

    Raises:
        InputError: an argument that the loss does not have, or a value that it refuses.
    """
    make = LOSSES[settings.name] if settings.name in LOSSES else import_class(settings.name, nn.Module, "loss")
    known = list(inspect.signature(make).parameters)
    unknown = sorted(set(settings.arguments) - set(known))
    if unknown:
        raise InputError(f"The loss {settings.name} has no argument {', '.join(unknown)}; it takes {', '.join(known)}.")
    criterion = make(**settings.arguments)
    return criterion if isinstance(criterion, SegmentationLoss | SummedLoss) else ImportedLoss(criterion)
