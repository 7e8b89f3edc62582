"""How a network does on cases that did not train: slices prepared as the predictor does, the project's own metrics."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import CancelledError
from ..imaging import apply_window
from ..inference.devices import exact_float32
from ..inference.slices import (
    PICTURE_WINDOW,
    SlicePreparation,
    channels_last,
    for_pictures,
    lesion_probability,
    resized,
    slice_logits,
)
from ..measurement import dice, hausdorff_distance_95, relative_volume_error
from ..models import Preprocessing
from .distributed import Ranks
from .step import batch_norms
from .store import SliceStore, StoredCase

_BATCH = 8


@dataclass(frozen=True)
class Judgment:
    """How a network did on some cases.

    Attributes:
        cases: case id -> dice, rve, hd95_mm (volumes only), false_ml (lesion-free cases only); NaN and inf as the
            metrics define them.
        dice: mean Dice over the cases with lesion; what early stopping and the choice of the best step look at.
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


def preparation_of(stored: StoredCase, preprocessing: Preprocessing, device: torch.device) -> SlicePreparation:
    """How the stored slices of a case become a network's input: as the model's card says, but for what was done."""
    settings = for_pictures(preprocessing) if stored.kind == "picture" else preprocessing
    settings = replace(settings, resize=None) if stored.resized else settings
    return SlicePreparation(settings, stored.shape[1:], device, stored.spacing[0])


def predict_case(
    network: nn.Module,
    store: SliceStore,
    case: str,
    preprocessing: Preprocessing,
    device: torch.device,
    autocast: torch.dtype | None,
    cancelled: Callable[[], bool] | None = None,
) -> NDArray[np.float32]:
    """Lesion probability (z, y, x) of a stored case on the grid of its mask; 0 beside the box that was stored.

    Args:
        network: in eval mode; one with a method ``predict_volume`` (of a 3-D network) gets the whole box at once.
        store: of the slices.
        case: id.
        preprocessing: of the network.
        device: where the network is.
        autocast: type of the mixed precision, or None.
        cancelled: asked between batches.
    """
    stored, images = store.cases[case], store.image(case)
    preparation = preparation_of(stored, preprocessing, device)
    out = np.zeros(stored.label_shape, dtype=np.float32)
    box = out[stored.box]
    whole = getattr(network, "predict_volume", None)
    if whole is not None:
        box[...] = _predict_volume(whole, network, preparation, images, autocast)
        return out
    for start in range(0, len(images), _BATCH):
        if cancelled is not None and cancelled():
            raise CancelledError("Stopped while validating.")
        indices = range(start, min(start + _BATCH, len(images)))
        logits = slice_logits(network, preparation, images, autocast, indices)
        probability = lesion_probability(logits, preprocessing.activation)
        box[start : start + _BATCH] = preparation.restore(probability)[:, 0].cpu().numpy()
    return out


def _predict_volume(
    predict: Callable[[Tensor], Tensor],
    network: nn.Module,
    preparation: SlicePreparation,
    images: NDArray[np.int16],
    autocast: torch.dtype | None,
) -> NDArray[np.float32]:
    device = preparation.device
    with (
        torch.inference_mode(),
        exact_float32(device),
        torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
    ):
        volume = preparation.windowed(torch.from_numpy(np.array(images)).to(device))
        logits = predict(volume.swapaxes(0, 1)[None].to(next(network.parameters()).dtype))
        probability = resized(torch.softmax(logits.float(), dim=1)[0, 1][:, None], preparation.slice_size)
    result: NDArray[np.float32] = probability[:, 0].cpu().numpy()
    return result


def with_clean_statistics(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy of a network whose batch norms have the statistics of images without noise.

    While a network learns, its batch norms average what they see over the last steps, with noise and augmentation; a
    teacher's follow with delay, and do not belong to its weights. A network that is used sees images as they are.

    Args:
        network: not changed; one without batch norms is returned as it is.
        batches: of images as the network takes them, as they were drawn for training; at least one.

    Returns:
        The copy, in eval mode; mean and (biased) variance are those of all pixels of all images together.
    """
    norms = batch_norms(settled := copy.deepcopy(network).eval())
    if not norms:
        return network
    sums: dict[nn.Module, list[Tensor]] = {}

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double().movedim(1, 0).flatten(1)
        count = values.new_full((len(values),), float(values.shape[1]))
        now = [values.sum(1), values.square().sum(1), count]
        sums[module] = [a + b for a, b in zip(sums[module], now, strict=True)] if module in sums else now

    for module in norms:
        # every process of a job does the same on the same images
        module.ranks = Ranks()  # type: ignore[assignment]
    hooks = [module.train().register_forward_pre_hook(add) for module in norms]
    with torch.no_grad():
        for batch in batches:
            settled(channels_last(batch) if batch.ndim == 4 else batch)
        for hook in hooks:
            hook.remove()
        for module in norms:
            total, squares, count = sums[module]
            assert module.running_mean is not None and module.running_var is not None  # noqa: S101  # batch norms' own
            module.running_mean.copy_(total / count)
            module.running_var.copy_(squares / count - (total / count).square())
    return settled.eval()


class WorstSlices:
    """The slices on which a network does worst, as images to look at.

    Args:
        store: of the slices.
        window: (width, level) in HU of cases that are volumes.
        count: how many are kept.
    """

    def __init__(self, store: SliceStore, window: tuple[float, float], count: int = 8) -> None:
        self._store, self._window, self._count = store, window, count
        self._found: list[tuple[float, str, NDArray[np.uint8]]] = []

    def add(self, case: str, probability: NDArray[np.float32]) -> None:
        """Look at a case: probability (z, y, x) on the grid of its mask; slices with lesion in neither count not."""
        stored = self._store.cases[case]
        label, marked = self._store.label(case)[stored.box] != 0, probability[stored.box] > 0.5
        size = label.sum((1, 2)) + marked.sum((1, 2))
        shared = 2 * (label & marked).sum((1, 2)) / np.maximum(size, 1)
        for index in sorted(np.flatnonzero(size).tolist(), key=lambda z: float(shared[z]))[: self._count]:
            window = PICTURE_WINDOW if stored.kind == "picture" else self._window
            gray = apply_window(self._store.image(case)[index], *window)
            image = np.repeat(np.rint(255 * gray).astype(np.uint8)[..., None], 3, axis=2)
            for mask, color in ((label[index], (0, 255, 0)), (marked[index], (255, 0, 255))):
                image[_border(mask)] = color
            self._found.append((float(shared[index]), f"{case} slice {index + stored.first_slice}", image))
        self._found = self._worst(self._found)

    def images(self, ranks: Ranks) -> dict[str, NDArray[np.uint8]]:
        """Title -> RGB image (rows, columns, 3) of the worst slices of all processes of a job, the worst first."""
        return {title: image for _, title, image in self._worst(ranks.gather_objects(self._found))}

    def _worst(self, found: list[tuple[float, str, NDArray[np.uint8]]]) -> list[tuple[float, str, NDArray[np.uint8]]]:
        return sorted(found, key=lambda item: item[:2])[: self._count]


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask (y, x) that have a 4-neighbor outside of it."""
    around = np.pad(mask, 1)
    return mask & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


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
    preprocessing: Preprocessing,
    device: torch.device,
    autocast: torch.dtype | None = None,
    cancelled: Callable[[], bool] | None = None,
    seen: Callable[[str, NDArray[np.float32]], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of each case; the network is left in the mode it was in.

    ``seen`` is called with each case and its probability (z, y, x); all else is as for :func:`predict_case`.
    """
    was_training = network.training
    network.eval()
    try:
        found = {}
        for case in cases:
            probability = predict_case(network, store, case, preprocessing, device, autocast, cancelled)
            found[case] = judge_case(probability, store, case)
            if seen is not None:
                seen(case, probability)
        return found
    finally:
        network.train(was_training)
