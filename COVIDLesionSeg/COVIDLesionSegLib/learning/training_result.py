"""What a training leaves, and how it can fail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import COVIDLesionSegError
from ..models import ModelCard
from .validation import Judgment


class DivergedError(COVIDLesionSegError):
    """The loss or a gradient is no longer finite; the last saved state is good."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves.

    Attributes:
        model: the best model's file, with its card.
        card: the card; None of an external network.
        folder: of the run: config.toml, state.pt, log.jsonl, log.csv, doubtful_labels.csv, result.json.
        steps: that were trained.
        best_step: whose weights the model holds.
        best: its judgment on the validation cases; of no case where nobody validates.
        stopped: why it ended: "steps" or "no improvement".
    """

    model: Path
    card: ModelCard | None
    folder: Path
    steps: int
    best_step: int
    best: Judgment
    stopped: str
