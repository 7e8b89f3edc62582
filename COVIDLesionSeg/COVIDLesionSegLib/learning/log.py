"""A training's log, and those who follow a training: TensorBoard where it is installed, and callbacks of one's own."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..documents import parse_object
from ..errors import ReadError
from ..files import write_text

_log = logging.getLogger(__name__)
Images = Mapping[str, NDArray[np.uint8]]

STEP_COLUMNS = (
    "step",
    "learning_rate",
    "loss",
    "student_loss",
    "teacher_loss",
    "consistency",
    "lambda",
    "alpha",
    "beta",
    "frozen_fraction",
    "kept",
    "distance_to_base",
    "overflows",
    "seconds",
    "waiting_seconds",
)


class TrainingCallback:
    """Follows a training, e.g. to show it in another program; override what is needed.

    Only the main process of a training calls. A callback that fails is named in a warning, and the training goes on
    without it.
    """

    def on_start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """A training begins or is resumed; its folder, and its whole configuration as nested tables."""

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        """A step was taken; the finite ones of ``STEP_COLUMNS``."""

    def on_judgment(self, step: int, stage: str, judgments: Mapping[str, Mapping[str, Any]], images: Images) -> None:
        """Networks were judged after so many steps.

        Args:
            step: how many.
            stage: "selection" (of student and teacher) or "validation" (of the one that was chosen).
            judgments: name of the network -> what ``Judgment.to_dict`` gives: its mean Dice, and of each case Dice, RVE
                and HD95.
            images: title -> one of the worst slices, uint8 (rows, columns, 3): the label's border is green, the
                prediction's magenta.
        """

    def on_end(self, result: Mapping[str, Any]) -> None:
        """The training is done; what ``result.json`` holds."""


class TensorBoardCallback(TrainingCallback):
    """Scalars and images for TensorBoard, in the run's folder.

    Raises:
        ImportError: the package tensorboard is not installed.
    """

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make = SummaryWriter

    def on_start(self, folder: Path, config: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Open the event file."""
        self._board: Any = self._make(str(folder))

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Scalars train/..."""
        for name, value in figures.items():
            self._board.add_scalar(f"train/{name}", value, step)

    def on_judgment(self, step: int, stage: str, judgments: Mapping[str, Mapping[str, Any]], images: Images) -> None:
        """Scalars STAGE/dice/NETWORK and STAGE_cases/CASE/MEASURE/NETWORK, images STAGE/..."""
        for network, judgment in judgments.items():
            rows = {f"{stage}/dice/{network}": judgment["dice"]}
            for case, measures in judgment["cases"].items():
                rows |= {f"{stage}_cases/{case}/{name}/{network}": value for name, value in measures.items()}
            for name, value in rows.items():
                # what is not finite is text
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)
        for title, image in images.items():
            self._board.add_image(f"{stage}/{title}", image, step, dataformats="HWC")
        self._board.flush()

    def on_end(self, result: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Close the event file."""
        self._board.close()


def followers(callbacks: Sequence[TrainingCallback]) -> list[TrainingCallback]:
    """The given callbacks, and TensorBoard's where that package is installed."""
    try:
        return [TensorBoardCallback(), *callbacks]
    except ImportError:
        return list(callbacks)


class TrainingLog:
    """One line a step and a look at the cases that choose, in ``log.jsonl``; the steps again in ``log.csv``.

    Args:
        folder: of the run.
        step: that is trained next; what a lost run logged of it and later ones is dropped, so that a resumed run does
            not say things twice.
        config: of the run, as nested tables.
        callbacks: who is told as well.
    """

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        config: Mapping[str, Any] | None = None,
        callbacks: Sequence[TrainingCallback] = (),
    ) -> None:
        self._json = folder / "log.jsonl"
        self._csv = folder / "log.csv"
        # a selection at n follows the n steps from 0 to n - 1
        entries = [entry for entry in read_log(folder) if entry["step"] < step + (entry["kind"] != "step")]
        write_text(self._json, "".join(json.dumps(entry) + "\n" for entry in entries))
        rows = io.StringIO()
        writer = csv.DictWriter(rows, STEP_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(entry for entry in entries if entry["kind"] == "step")
        write_text(self._csv, rows.getvalue())
        self._callbacks = list(callbacks)
        self._tell("on_start", folder, config or {})

    def resumed(self, step: int, notes: Sequence[str]) -> None:
        """Write that the run was taken up at a step in another way than it began, one sentence each."""
        if notes:
            self._append({"kind": "resumed", "step": step, "notes": list(notes)})

    def step(self, values: Mapping[str, float]) -> None:
        """Write one step; keys are among ``STEP_COLUMNS``, values that are not finite become null."""
        entry = {key: _plain(value) for key, value in values.items()}
        self._append({"kind": "step", **entry})
        with self._csv.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, STEP_COLUMNS, extrasaction="ignore", lineterminator="\n").writerow(entry)
        figures = {key: value for key, value in entry.items() if key != "step" and value is not None}
        self._tell("on_step", int(values["step"]), figures)

    def judgment(self, step: int, stage: str, judgments: Mapping[str, Mapping[str, Any]], images: Images) -> None:
        """Write one look at the cases that choose ("selection"), or tell of the judgment on those that validate.

        Args:
            step: steps that were trained.
            stage: "selection" or "validation"; the latter stands in ``result.json``.
            judgments: name of the network -> its judgment as a dictionary.
            images: of the worst slices.
        """
        if stage == "selection":
            self._append({"kind": stage, "step": step, **{name: dict(value) for name, value in judgments.items()}})
        self._tell("on_judgment", step, stage, judgments, images)

    def end(self, result: Mapping[str, Any]) -> None:
        """Tell that the training is done."""
        self._tell("on_end", result)

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def _tell(self, what: str, *values: Any) -> None:
        for callback in list(self._callbacks):
            try:
                getattr(callback, what)(*values)
            except Exception as error:
                # whatever another program fails at, hours of training are worth more
                self._callbacks.remove(callback)
                name = type(callback).__name__
                _log.warning(
                    "%s failed in %s (%s: %s); the training goes on without it.",
                    name,
                    what,
                    type(error).__name__,
                    error,
                )


def read_log(folder: Path | str) -> list[dict[str, Any]]:
    """All whole entries of a run's log; a line torn by a kill is left out."""
    path = Path(folder) / "log.jsonl"
    entries = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entries.append(parse_object(line, path.name))
            except ReadError:
                break
    return entries


def _plain(value: float) -> float | None:
    return value if isinstance(value, int) or math.isfinite(value) else None
