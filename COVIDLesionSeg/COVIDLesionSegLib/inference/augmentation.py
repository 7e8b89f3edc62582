"""Flips at test time, and the uncertainty they show."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError

UNCERTAINTIES = ("entropy", "mutual_information")
# axes of (N, C, rows, columns): as it is, left-right, anterior-posterior, both
FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))


def mean_over_flips(
    probability: Callable[[Tensor], Tensor],
    x: Tensor,
    flips: tuple[tuple[int, ...], ...] = FLIPS,
    uncertainty: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Mean probability over flipped copies of the input, flipped back, and how uncertain it is.

    With p_t the probabilities of the T copies, p their mean and H(p) = -p log2 p - (1 - p) log2 (1 - p) in bits:
    "entropy" is H(p), all the uncertainty, 1 where p = 0.5; "mutual_information" is H(p) - 1/T sum H(p_t), the part
    that comes from the copies' disagreement (Gal et al., "Deep Bayesian Active Learning with Image Data", ICML 2017).
    Both lie in [0, 1].

    Args:
        probability: takes (N, C, H, W), returns the lesion probability (N, 1, H, W).
        x: the input, (N, C, H, W).
        flips: axes to flip for each copy.
        uncertainty: "entropy", "mutual_information" or None.

    Returns:
        Mean probability (N, 1, H, W) and, if asked for, the uncertainty in bits, of the same shape; else None.
    """
    total: Tensor | None = None
    entropies: Tensor | None = None
    for axes in flips:
        part = probability(x.flip(axes)).flip(axes) if axes else probability(x)
        if uncertainty == "mutual_information":
            entropy = binary_entropy(part)
            entropies = entropy if entropies is None else entropies.add_(entropy)
        total = part if total is None else total.add_(part)
    if total is None:
        raise InputError("Test-time augmentation needs at least one copy of the input.")
    mean = total.div_(len(flips))
    if uncertainty is None:
        return mean, None
    result = binary_entropy(mean)
    if entropies is not None:
        # rounding may leave a hair below 0 where the copies agree
        result = result.sub_(entropies.div_(len(flips))).clamp_(min=0)
    return mean, result


def binary_entropy(probability: Tensor) -> Tensor:
    """Entropy of a yes-or-no probability in bits: 0 where it is 0 or 1, 1 where it is 0.5."""
    return (torch.special.entr(probability) + torch.special.entr(1 - probability)).div_(math.log(2))


def checked_uncertainty(value: str | bool | None) -> str | None:
    """The name of an uncertainty: True means "entropy", False and None mean none.

    Raises:
        InputError: an unknown name.
    """
    if value is None or value is False:
        return None
    if value is True:
        return UNCERTAINTIES[0]
    if value not in UNCERTAINTIES:
        raise InputError(f"The uncertainty {value!r} is unknown; choose {' or '.join(UNCERTAINTIES)}.")
    return value
