"""A training's log: JSON lines, CSV, and TensorBoard's own files where that package is installed."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..documents import parse_object
from ..errors import ReadError
from ..files import write_text

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
    "seconds",
    "waiting_seconds",
)


class TrainingLog:
    """One line a step and a look at the cases that choose, in ``log.jsonl``; the steps again in ``log.csv``.

    Args:
        folder: of the run.
        step: that is trained next; what a lost run logged of it and later ones is dropped, so that a resumed run does
            not say things twice.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._json = folder / "log.jsonl"
        self._csv = folder / "log.csv"
        # a selection at n follows the n steps from 0 to n - 1
        entries = [entry for entry in read_log(folder) if entry["step"] < step + (entry["kind"] == "selection")]
        write_text(self._json, "".join(json.dumps(entry) + "\n" for entry in entries))
        rows = io.StringIO()
        writer = csv.DictWriter(rows, STEP_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(entry for entry in entries if entry["kind"] == "step")
        write_text(self._csv, rows.getvalue())
        self._board = _board(folder)

    def step(self, values: Mapping[str, float]) -> None:
        """Write one step; keys are among ``STEP_COLUMNS``, values that are not finite become null."""
        entry = {key: _plain(value) for key, value in values.items()}
        self._append({"kind": "step", **entry})
        with self._csv.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, STEP_COLUMNS, extrasaction="ignore", lineterminator="\n").writerow(entry)
        self._scalars("train", entry)

    def selection(self, step: int, judgments: Mapping[str, Mapping[str, Any]]) -> None:
        """Write one look at the cases that choose: name of the network -> its judgment as a dictionary."""
        self._append({"kind": "selection", "step": step, **{name: dict(value) for name, value in judgments.items()}})
        self._scalars("selection", {"step": step} | {f"dice_{n}": j["dice"] for n, j in judgments.items()})

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def _scalars(self, group: str, entry: Mapping[str, Any]) -> None:
        if self._board is None:
            return
        for key, value in entry.items():
            if key != "step" and value is not None:
                self._board.add_scalar(f"{group}/{key}", value, entry["step"])


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


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
