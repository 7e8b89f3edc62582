"""What a trained network of a table does on the cases that are tested, by the project's own measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..documents import read_object
from ..errors import CancelledError
from ..files import write_json
from ..inference.devices import choose_precision
from ..learning.data import TrainingCase
from ..learning.log import TrainingCallback
from ..learning.losses import Criterion
from ..learning.pseudo_labels import picture_logits
from ..learning.store import open_store, read_picture, read_picture_mask
from ..learning.validation import predict_case
from ..measurement import evaluate, slice_scores
from ..measurement.slices import CONVENTIONS
from ..measurement.tables import plain
from ..models import Preprocessing
from .catalog import Metric

Progress = Callable[[str, int, int], None]


@dataclass
class Judged:
    """Figures of the tested cases.

    Attributes:
        slices: slice -> reading -> metric -> value; a reading is "probability" or "mask", a slash, a convention.
        volumes: case -> what ``measurement.evaluate`` found, as JSON values.
    """

    slices: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)


def readings() -> list[str]:
    """How slices can be read: what is judged, and by which convention."""
    return [f"{what}/{convention}" for what in ("probability", "mask") for convention in CONVENTIONS]


def autocast_of(precision: str, device: torch.device) -> torch.dtype | None:
    """Type of the mixed precision, or None for float32."""
    chosen, _ = choose_precision("float32" if precision == "float64" else precision, device)
    return None if chosen == torch.float32 else chosen


def judge_pictures(
    network: nn.Module,
    cases: Sequence[TrainingCase],
    resize: tuple[int, ...],
    metrics: Sequence[Metric],
    device: torch.device,
    autocast: torch.dtype | None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Judged:
    """Slice measures of pictures on their own pixels."""
    network = network.to(device).eval()
    preprocessing = _preprocessing(-1, resize)
    judged = Judged()
    for number, case in enumerate(cases):
        _stop(cancelled)
        logits = picture_logits(network, preprocessing, read_picture(case.image), device, autocast)
        probability = torch.softmax(logits, dim=1)[0, 1].cpu().numpy()
        mask = None if case.lesion is None else read_picture_mask(case.lesion)
        truth = np.zeros(probability.shape, dtype=bool) if mask is None else mask != 0
        judged.slices[case.id] = score_slice(probability, truth, metrics)
        if progress is not None:
            progress("testing", number + 1, len(cases))
    return judged


class TestingLoss(TrainingCallback):
    """Measures the testing loss of a training at the end of epochs; nothing is chosen by it.

    The losses stand in a file of the run, so that a resumed run goes on with them.

    Args:
        cases: the pictures that are tested.
        resize: of the training.
        criterion: its loss, here the mean over the pictures, each on its own pixels.
        steps: after which it is measured.
        file: gets the losses.
        device: where the network is.
        autocast: type of the mixed precision, or None.

    Attributes:
        networks: gives the networks of the training; the student is measured.
    """

    networks: Callable[[], dict[str, nn.Module]]

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        resize: tuple[int, ...],
        criterion: Criterion,
        steps: Sequence[int],
        file: Path,
        device: torch.device,
        autocast: torch.dtype | None,
    ) -> None:
        self._preprocessing = _preprocessing(-1, resize)
        self._criterion, self._steps, self._file = criterion, frozenset(steps), file
        self._device, self._autocast = device, autocast
        self._pictures = [
            (read_picture(case.image), torch.from_numpy((read_picture_mask(case.lesion) != 0).astype(np.int64))[None])
            for case in cases
            if case.lesion is not None
        ]

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:  # noqa: ARG002  # of the base class
        """Measure where an epoch ends."""
        if step + 1 not in self._steps:
            return
        network = self.networks()["student"].eval()
        losses = [
            float(self._criterion(self._logits(network, picture), label.to(self._device)))
            for picture, label in self._pictures
        ]
        write_json(self._file, self.losses() | {str(step + 1): sum(losses) / len(losses)})

    def losses(self) -> dict[str, float]:
        """Number of steps -> testing loss after them."""
        return read_object(self._file) if self._file.is_file() else {}

    def _logits(self, network: nn.Module, picture: NDArray[np.uint8]) -> torch.Tensor:
        return picture_logits(network, self._preprocessing, picture, self._device, self._autocast)


def judge_volumes(
    network: nn.Module,
    cases: Sequence[TrainingCase],
    cache: Path,
    margin: int,
    resize: tuple[int, ...],
    metrics: Sequence[Metric],
    by_slice: bool,
    device: torch.device,
    autocast: torch.dtype | None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Judged:
    """Measures of whole volumes, and of their slices in the box of the lungs where those are asked for."""
    network = network.to(device).eval()
    hashes = {case.id: case.hashes() for case in cases}
    preprocessing = _preprocessing(margin, resize)
    crop, ids = preprocessing.lung_crop_margin, {case.id for case in cases}
    store = open_store(cases, hashes, cache, crop, judges=ids, progress=progress, cancelled=cancelled)
    judged = Judged()
    for number, case in enumerate(cases):
        _stop(cancelled)
        probability = predict_case(network, store, case.id, preprocessing, device, autocast, cancelled)
        truth = store.label(case.id) != 0
        judged.volumes[case.id] = plain(evaluate(probability > 0.5, truth, store.cases[case.id].spacing))
        if by_slice:
            stored = store.cases[case.id]
            for index, (plane, mask) in enumerate(zip(probability[stored.box], truth[stored.box], strict=True)):
                judged.slices[f"{case.id}:{stored.first_slice + index}"] = score_slice(plane, mask, metrics)
        if progress is not None:
            progress("testing", number + 1, len(cases))
    return judged


def score_slice(
    probability: NDArray[np.float32], truth: NDArray[np.bool_], metrics: Sequence[Metric]
) -> dict[str, dict[str, float]]:
    """Every reading of one slice: reading -> metric -> value."""
    inputs = {"probability": probability, "mask": (probability > 0.5).astype(np.float32)}
    found = {}
    for reading in readings():
        what, convention = reading.split("/")
        scores = slice_scores(inputs[what], truth, convention)
        found[reading] = {metric.key: plain(scores[metric.key]) for metric in metrics}
    return found


def _preprocessing(margin: int, resize: tuple[int, ...]) -> Preprocessing:
    return Preprocessing(
        lung_crop_margin=None if margin < 0 else margin, resize=(resize[0], resize[1]) if resize else None
    )


def _stop(cancelled: Callable[[], bool] | None) -> None:
    if cancelled is not None and cancelled():
        raise CancelledError("Stopped while testing.")
