"""Cross-validation by patient on one's own cases: as many trainings as folds, and one table of all cases."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_text
from ..inference.devices import choose_device
from .config import TrainingConfig
from .data import fold_sets, read_cases
from .distributed import process_group
from .log import TrainingCallback
from .trainer import Trainer, TrainingResult

Progress = Callable[[str, int, int], None]
# column -> title and decimals
_COLUMNS = {"dice": ("Dice", 3), "rve": ("RVE", 3), "hd95_mm": ("HD95 [mm]", 1), "false_ml": ("false lesion [mL]", 2)}


@dataclass(frozen=True)
class CrossValidation:
    """What a cross-validation brought.

    Attributes:
        folds: the result of each training.
        rows: one a case, in order: ``case``, ``fold`` (from 1), and what the judgment of that case holds (``dice``,
            ``rve`` and ``hd95_mm``, or ``false_ml`` of a case without lesion).
    """

    folds: tuple[TrainingResult, ...]
    rows: tuple[Mapping[str, Any], ...]

    def mean(self, column: str) -> tuple[float, int, int]:
        """Mean over the cases that have a finite value, how many these are, and how many have a value at all."""
        values = [row[column] for row in self.rows if column in row]
        finite = [value for value in values if math.isfinite(value)]
        return (math.fsum(finite) / len(finite) if finite else math.nan), len(finite), len(values)

    def table(self) -> str:
        """Markdown: every case, and the means with how many cases they count."""
        shown = [column for column in _COLUMNS if any(column in row for row in self.rows)]
        lines = ["| case | fold | " + " | ".join(_COLUMNS[column][0] for column in shown) + " |"]
        lines.append("| --- | --- |" + " --- |" * len(shown))
        for row in self.rows:
            figures = (f"{row[column]:.{_COLUMNS[column][1]}f}" if column in row else "" for column in shown)
            lines.append(f"| {row['case']} | {row['fold']} | {' | '.join(figures)} |")
        means = []
        for column in shown:
            mean, counted, there = self.mean(column)
            of = f" ({counted} of {there} cases)" if counted < there else f" ({there} cases)"
            means.append(f"{mean:.{_COLUMNS[column][1]}f}{of}")
        lines.append(f"| mean | | {' | '.join(means)} |")
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite become text."""

        def plain(value: Any) -> Any:
            return str(value) if isinstance(value, float) and not math.isfinite(value) else value

        rows = [{name: plain(value) for name, value in row.items()} for row in self.rows]
        columns = [column for column in _COLUMNS if any(column in row for row in self.rows)]
        means = {column: dict(zip(("mean", "counted", "cases"), self.mean(column), strict=True)) for column in columns}
        for mean in means.values():
            mean["mean"] = plain(mean["mean"])
        return {"models": [str(fold.model) for fold in self.folds], "cases": rows, "means": means}


def cross_validate(
    config: TrainingConfig,
    folder: Path | str,
    base_folder: Path | str = ".",
    folds: int = 5,
    resume: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    callbacks: Sequence[TrainingCallback] = (),
) -> CrossValidation:
    """Train one network a fold; each patient is judged by the one network that has never seen him or her.

    Args:
        config: of every one of the trainings; the folds decide about ``data.split`` and the validation patients.
        folder: gets ``fold-N/`` for each training, and the table as ``folds.csv`` and ``folds.md``.
        base_folder: what relative names in the configuration count from.
        folds: how many, >= 2; not more than there are patients with lesion.
        resume: go on where an earlier call stopped.
        progress: called as progress(phase, done, total).
        cancelled: asked at each step.
        callbacks: who follows each of the trainings.

    Raises:
        InputError: fewer than two folds, too few patients, or what ``Trainer.run`` refuses.
    """
    folder, base = Path(folder), Path(base_folder)
    if folds < 2:
        raise InputError(f"{folds} folds are no cross-validation; give 2 or more.")
    if not config.data.cases:
        raise InputError("The configuration names no training data; set data.cases to a manifest or folder.")
    cases = read_cases(base / config.data.cases)
    cache = base / config.data.cache if config.data.cache else folder / "slices"
    results, rows = [], []
    # the processes of a launcher stay together from the first training to the last
    with process_group(choose_device(config.run.device).device) as ranks:
        for fold in range(folds):
            sets = fold_sets(cases, folds, fold, config.run.seed)
            run = folder / f"fold-{fold + 1}"
            data = replace(
                config.data,
                split=str((run / "split.json").resolve()),
                validation_patients=tuple(sorted(name for name, side in sets.items() if side == "validation")),
                cache=str(cache.resolve()),
            )
            trainer = Trainer(replace(config, data=data), run, base, callbacks=callbacks)
            results.append(trainer.run(resume, progress, cancelled))
            rows += [{"case": case, "fold": fold + 1, **row} for case, row in results[-1].validation.cases.items()]
        found = CrossValidation(tuple(results), tuple(sorted(rows, key=lambda row: row["case"])))
        if ranks.is_main:
            text = io.StringIO()
            writer = csv.DictWriter(text, ["case", "fold", *_COLUMNS], lineterminator="\n")
            writer.writeheader()
            writer.writerows(found.rows)
            write_text(folder / "folds.csv", text.getvalue())
            write_text(folder / "folds.md", found.table())
        ranks.barrier()
    return found
