"""Several trainings as one: cross-validation by patient, and label update.

Label update is the other method that the noise-robust framework is compared with (TMI section III-E, Table IV): several
networks are trained on the given labels; the mean of their probabilities, cut at 0.5, replaces the labels of the
training cases; one network is trained from scratch on those. One round; the given labels are not looked at again. How
the five models of the paper differ is not stated; here they differ in their seed.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import atomic_path, write_text
from ..inference.devices import choose_device
from ..models import load_checkpoint
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


def label_update(
    config: TrainingConfig,
    folder: Path | str,
    base_folder: Path | str = ".",
    count: int = 5,
    resume: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    callbacks: Sequence[TrainingCallback] = (),
) -> TrainingResult:
    """Train ``count`` networks, relabel the training cases with their mean, and train one network on the new labels.

    Args:
        config: of every one of the trainings.
        folder: gets ``member-N/`` for each network, ``labels/`` and ``final/``.
        base_folder: what relative names in the configuration count from.
        count: of networks, >= 2; 5 in the paper.
        resume: go on where an earlier call stopped.
        progress: called as progress(phase, done, total).
        cancelled: asked at each step.
        callbacks: who follows each of the trainings.

    Returns:
        The result of the last training.

    Raises:
        InputError: fewer than two networks, or what ``Trainer.run`` refuses.
    """
    if count < 2:
        raise InputError(f"Label update with {count} networks is no ensemble; at least 2 are needed.")
    folder, base = Path(folder), Path(base_folder)
    data = replace(
        config.data, cache=str((base / config.data.cache if config.data.cache else folder / "slices").resolve())
    )
    config = replace(config, data=data)
    # the processes of a launcher stay together from the first training to the last
    with process_group(choose_device(config.run.device).device):
        members = []
        for number in range(count):
            member = replace(config, run=replace(config.run, seed=config.run.seed + number))
            trainer = Trainer(member, folder / f"member-{number}", base, callbacks=callbacks)
            members.append(trainer.run(resume, progress, cancelled))
        trainer = Trainer(config, folder / "member-0", base)
        networks = [load_checkpoint(member.model).network for member in members]
        for case in trainer.training_cases():
            mean = np.mean([trainer.predict(network, case) for network in networks], axis=0)
            with atomic_path(folder / "labels" / f"{case}.npy") as path, path.open("wb") as file:
                np.save(file, (mean > 0.5).astype(np.uint8))
        final = replace(config, data=replace(config.data, training_labels=str((folder / "labels").resolve())))
        return Trainer(final, folder / "final", base, callbacks=callbacks).run(resume, progress, cancelled)
