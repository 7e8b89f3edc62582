"""Judging a network on the frozen validation cases, in 3-D, with the project's own metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import CancelledError
from ..inference.devices import exact_float32
from ..measurement import dice, hausdorff_distance_95, relative_volume_error
from .store import SliceStore

_BATCH = 8


@dataclass(frozen=True)
class Judgment:
    """How a network did on the validation cases.

    Attributes:
        cases: case id -> dice, rve, hd95_mm (volumes only), false_ml (lesion-free cases only); NaN and inf as the
            metrics define them.
        dice: mean Dice over the cases with lesion; what early stopping and the choice of the best model look at.
        counted: how many cases that mean counts.
    """

    cases: dict[str, dict[str, float]]
    dice: float
    counted: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite become text ("inf", "nan")."""
        plain = {
            case: {name: value if math.isfinite(value) else str(value) for name, value in row.items()}
            for case, row in self.cases.items()
        }
        dice = self.dice if math.isfinite(self.dice) else str(self.dice)
        return {"dice": dice, "counted": self.counted, "cases": plain}


def predict_case(
    network: nn.Module,
    store: SliceStore,
    case: str,
    window: tuple[float, float],
    device: torch.device,
    autocast: torch.dtype | None,
    cancelled: Callable[[], bool] | None = None,
) -> NDArray[np.float32]:
    """Lesion probability (z, y, x) of a stored case, slice by slice, padded by reflection to multiples of 16.

    Args:
        network: in eval mode; one with a method ``predict_volume`` (of a 3-D network) gets the whole case at once.
        store: of the slices.
        case: id.
        window: (width, level) in HU.
        device: where the network is.
        autocast: type of the mixed precision, or None.
        cancelled: asked between batches.
    """
    stored = store.image(case)
    dtype = next(network.parameters()).dtype
    whole = getattr(network, "predict_volume", None)
    if whole is not None:
        return _predict_volume(whole, store.windowed(case, stored, *window), device, dtype, autocast)
    height, width = stored.shape[1:]
    padding = [(0, 0), *(((-side % 16) // 2, -(-(-side % 16) // 2)) for side in (height, width))]
    out = np.empty(stored.shape, dtype=np.float32)
    for start in range(0, len(stored), _BATCH):
        if cancelled is not None and cancelled():
            raise CancelledError("Stopped while validating.")
        part = store.windowed(case, stored[start : start + _BATCH], *window)
        images = torch.from_numpy(np.pad(part, padding, mode="reflect"))[:, None].to(device, dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        with (
            torch.inference_mode(),
            exact_float32(device),
            torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
        ):
            probability = torch.softmax(network(images).float(), dim=1)[:, 1].cpu().numpy()
        rows, columns = padding[1][0], padding[2][0]
        out[start : start + _BATCH] = probability[:, rows : rows + height, columns : columns + width]
    return out


def _predict_volume(
    predict: Callable[[torch.Tensor], torch.Tensor],
    volume: NDArray[np.float32],
    device: torch.device,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
) -> NDArray[np.float32]:
    images = torch.from_numpy(volume)[None, None].to(device, dtype)
    with (
        torch.inference_mode(),
        exact_float32(device),
        torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
    ):
        logits = predict(images)
    probability: NDArray[np.float32] = torch.softmax(logits.float(), dim=1)[0, 1].cpu().numpy()
    return probability


def judge_case(probability: NDArray[np.float32], store: SliceStore, case: str) -> dict[str, float]:
    """The metrics of one case; lesion is where the probability is above 0.5."""
    prediction = probability > 0.5
    reference = store.label(case) != 0
    stored = store.cases[case]
    spacing = stored.spacing
    if not reference.any():
        return {"false_ml": float(prediction.sum()) * math.prod(spacing) / 1000}
    row = {"dice": dice(prediction, reference), "rve": relative_volume_error(prediction, reference)}
    if stored.kind == "volume":
        row["hd95_mm"] = hausdorff_distance_95(prediction, reference, spacing)
    return row


def summarize(cases: dict[str, dict[str, float]]) -> Judgment:
    """Mean Dice over the cases that have lesion."""
    values = [row["dice"] for row in cases.values() if "dice" in row]
    return Judgment(cases, float(np.mean(values)) if values else float("nan"), len(values))


def judge(
    network: nn.Module,
    store: SliceStore,
    cases: Sequence[str],
    window: tuple[float, float],
    device: torch.device,
    autocast: torch.dtype | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of each case; the network is left in the mode it was in."""
    was_training = network.training
    network.eval()
    try:
        return {
            case: judge_case(predict_case(network, store, case, window, device, autocast, cancelled), store, case)
            for case in cases
        }
    finally:
        network.train(was_training)
