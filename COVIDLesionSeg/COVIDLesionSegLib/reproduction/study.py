"""The cells of one table: which are there, which can't be, and training, testing and keeping one of them.

A finished cell is a folder with ``cell.json`` and the network; its name ends with a digest of everything that decides
its figures, so that another length, width or data set makes another cell and a finished one is never trained again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..documents import read_object
from ..errors import InputError, ReadError
from ..files import write_json
from ..inference.devices import choose_device, device_name
from ..learning.config import TrainingConfig
from ..learning.estimate import step_seconds
from ..learning.log import read_log
from ..learning.losses import make_criterion
from ..learning.pseudo_labels import pseudo_label
from ..learning.several import label_update
from ..learning.trainer import Trainer, TrainingResult
from ..models import load_checkpoint
from . import baselines, planning
from .catalog import Row, Table
from .data import Cases, Part, divide, find_cases
from .efficiency import build
from .judging import Judged, TestingLoss, autocast_of, judge_pictures, judge_volumes
from .pictures import normalized_cases
from .planning import Cell, Facts, Options

Progress = Callable[[str, int, int], None]
RESULT_VERSION = 2
# testing losses of a training's curve, at most
_TESTING_LOSSES = 50


@dataclass(frozen=True)
class Prepared:
    """A cell that is ready to train.

    Attributes:
        cell: which.
        part: its data.
        config: its training, with names that count from the output folder.
        folder: of its run and result.
        epoch: steps in which every slice is seen once.
    """

    cell: Cell
    part: Part
    config: TrainingConfig
    folder: Path
    epoch: int


class Study:
    """One table with one set of options.

    Args:
        table: which.
        options: what the user asked for.
        progress: called as progress(phase, done, total).
        cancelled: asked at each step.

    Attributes:
        cells: all that were asked for.
        cases: of the data folder.

    Raises:
        InputError: data or options that can't be used.
    """

    def __init__(
        self,
        table: Table,
        options: Options,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.table, self.options = table, options
        self.progress, self.cancelled = progress, cancelled
        self.cells = planning.cells(table, options)
        self.device = choose_device(options.device).device
        self.cases: Cases = self._normalized(find_cases(table, options.data))
        self._parts: list[Part] = []
        self._facts: dict[tuple[Any, ...], Facts] = {}

    def _normalized(self, cases: Cases) -> Cases:
        """Labeled pictures on one scale of gray; the many unlabeled ones wait until a row needs them."""
        if not self.table.normalize or self.options.keep_intensities:
            return cases
        folder = self._normalized_folder()
        return replace(
            cases,
            training=normalized_cases(cases.training, self.table.normalize, folder / "train", self.progress),
            test=normalized_cases(cases.test, self.table.normalize, folder / "test", self.progress),
        )

    def _normalized_folder(self) -> Path:
        """Where pictures of the table's gray values lie."""
        return self.options.output / "data" / "-".join(["normalized", *(f"{gray:g}" for gray in self.table.normalize)])

    # ---- what there is ------------------------------------------------------------------------------------------

    def obstacle(self, cell: Cell) -> str:
        """Why a cell can't be filled here, or ""."""
        return self.row_obstacle(cell.row)

    def row_obstacle(self, row: Row) -> str:
        """Why a row can't be filled here, or ""."""
        network = row.network
        if network.source == "none":
            return network.reason
        if network.source != "own":
            absent = baselines.absent(network)
            if absent:
                return absent
        if row.method == "semi-supervised" and not self.cases.unlabeled:
            return f"{self.options.data} has no folder unlabelled/ with slices to pseudo-label"
        return ""

    def remedy(self, cell: Cell) -> str:
        """The command that takes a cell's obstacle away, or "" where nothing does."""
        if cell.row.method == "semi-supervised" and cell.row.network.source == "own":
            return planning.command(self.table, self.options, cell)
        return baselines.install_command() if cell.row.network.source not in ("own", "none") else ""

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The result of a cell that was filled before, or None."""
        return self.result(self.prepare(cell))

    def prepare(self, cell: Cell) -> Prepared:
        """Data, configuration and folder of a cell; builds the slice store the first time.

        Raises:
            InputError: settings or data that can't be used.
        """
        draft = planning.configuration(self.table, cell, self.options, Facts(1, 0))
        part = self._part(cell)
        facts = self._facts_of(part, draft)
        config = planning.configuration(self.table, cell, self.options, facts)
        output = self.options.output
        config = replace(
            config,
            data=replace(
                config.data,
                cases=part.manifest.relative_to(output).as_posix(),
                split=part.split.relative_to(output).as_posix(),
                cache="slices",
                selection_patients=part.selection_patients,
            ),
        )
        row = cell.row
        extra: dict[str, Any] = {"method": row.method, "network": row.network.id, "data": part.sha256}
        if row.method == "semi-supervised":
            teacher = self.prepare(replace(cell, row=self.table.row(row.teacher)))
            settings = planning.pseudo_label_settings(row, self.options)
            extra |= {"teacher": teacher.folder.name, "pseudo_labels": settings}
            extra["unlabeled"] = len(self.cases.unlabeled)
            extra["normalize"] = [] if self.options.keep_intensities else list(self.table.normalize)
        if row.method == "label-update":
            extra["count"] = row.count
        digest = planning.identity(config, extra)
        folder = output / "cells" / f"{cell.name}-{digest[:8]}"
        return Prepared(cell, part, config, folder, math.ceil(facts.slices / config.run.batch_size))

    def plan(self) -> list[Planned]:
        """What :meth:`run` would do with each cell, and roughly how long; nothing is trained."""
        measured: dict[str, float] = {}
        planned = []
        for cell in self.cells:
            reason = self.obstacle(cell)
            if reason:
                planned.append(Planned(cell.name, f"can't: {reason}"))
                continue
            prepared = self.prepare(cell)
            steps = prepared.config.run.steps
            if self.result(prepared) is not None:
                planned.append(Planned(cell.name, "finished", steps))
                continue
            if cell.row.id not in measured:
                measured[cell.row.id] = seconds_per_step(cell.row, prepared.config, self.options.width, self.device)
            planned.append(Planned(cell.name, "to do", steps, steps * measured[cell.row.id]))
        return planned

    def result(self, prepared: Prepared) -> dict[str, Any] | None:
        """What a finished cell holds, or None.

        Raises:
            ReadError: its file is damaged.
        """
        path = prepared.folder / "cell.json"
        try:
            found = read_object(path)
        except FileNotFoundError:
            return None
        except ReadError as error:
            raise ReadError(f"{path} can't be read ({error}); delete it to train the cell anew.") from error
        if found.get("version") != RESULT_VERSION:
            raise ReadError(f"{path} is of another version of this program; delete it to train the cell anew.")
        return found

    def _part(self, cell: Cell) -> Part:
        if not self._parts:
            folds = planning.folds_of(self.table, self.options)
            self._parts = divide(self.table, self.cases, folds, self.options.output / "data")
        return self._parts[cell.fold or 0]

    def _facts_of(self, part: Part, config: TrainingConfig) -> Facts:
        data = config.data
        key = (part.manifest, data.selection_fraction, data.margin, data.resize)
        if key not in self._facts:
            cache = self.options.output / "slices"
            self._facts[key] = part.facts(cache, data, self.progress)
        return self._facts[key]

    # ---- filling a cell -----------------------------------------------------------------------------------------

    def run(self, cell: Cell) -> dict[str, Any]:
        """A cell's result, after training and testing it if it is not finished; goes on where a kill stopped it.

        Raises:
            InputError: it can't be trained; the sentence says why.
            DivergedError: its loss is no longer finite.
            CancelledError: asked to stop; the state is saved.
        """
        prepared = self.prepare(cell)
        done = self.result(prepared)
        if done is not None:
            return done
        facts: dict[str, Any] = {}
        watch: TestingLoss | None = None
        config = prepared.config
        network_of = cell.row.network
        external = network_of.source != "own"
        patch = (config.data.depth, *config.data.crop)
        make = partial(baselines.make_network, network_of, config.network.arguments.get("width"), patch)
        if cell.row.method == "semi-supervised":
            config = self._with_pseudo_labels(prepared, facts)
        if cell.row.method == "label-update":
            trained = label_update(
                config,
                prepared.folder / "run",
                self.options.output,
                cell.row.count,
                resume=True,
                progress=self.progress,
                cancelled=self.cancelled,
            )
        else:
            folder = prepared.folder / "run"
            watch = self._testing_loss(prepared)
            trainer = Trainer(
                config,
                folder,
                self.options.output,
                make_network=make if external else None,
                callbacks=[watch] if watch else [],
            )
            if watch:
                watch.networks = trainer.networks
            trained = trainer.run(resume=True, progress=self.progress, cancelled=self.cancelled)
        started = time.perf_counter()
        network = make() if external else load_checkpoint(trained.model).network
        if external:
            network.load_state_dict(torch.load(trained.model, map_location="cpu", weights_only=True))
        judged = self._judge(network, prepared)
        result = {
            "version": RESULT_VERSION,
            "table": self.table.id,
            "row": cell.row.id,
            "seed": cell.seed,
            "fold": cell.fold,
            "label_noise": planning.noise_name(cell.noise),
            "data": prepared.part.described,
            "steps": trained.steps,
            "kept": _kept(trained),
            "facts": facts | _label_facts(trained.folder),
            "seconds": {
                "training": round(_training_seconds(prepared.folder / "run"), 1),
                "testing": round(time.perf_counter() - started, 1),
            },
            "hardware": self._hardware(config),
            "library": __version__,
            "config": config.to_dict(),
            "curve": _curve(trained.folder, prepared.epoch),
            "testing_curve": {} if watch is None else _by_epoch(watch.losses(), prepared.epoch),
            "slices": judged.slices,
            "volumes": judged.volumes,
        }
        write_json(prepared.folder / "cell.json", result)
        # the states of a finished cell are of no more use, and they are three times as large as its network
        for state in (prepared.folder / "run").rglob("state.pt"):
            state.unlink()
        return result

    def _judge(self, network: nn.Module, prepared: Prepared) -> Judged:
        data, metrics = prepared.config.data, self.table.metrics
        autocast = autocast_of(prepared.config.run.precision, self.device)
        test, watched = prepared.part.test, (self.progress, self.cancelled)
        if self.table.data == "pictures":
            return judge_pictures(network, test, data.resize, metrics, self.device, autocast, *watched)
        cache = self.options.output / "slices"
        by_slice = self.table.judged == "slices-of-volumes"
        return judge_volumes(
            network, test, cache, data.margin, data.resize, metrics, by_slice, self.device, autocast, *watched
        )

    def _testing_loss(self, prepared: Prepared) -> TestingLoss | None:
        """What measures the testing loss while a cell trains; volumes would cost more than their training."""
        if self.table.data != "pictures":
            return None
        config, epoch = prepared.config, prepared.epoch
        every = epoch * max(1, math.ceil(config.run.steps / epoch / _TESTING_LOSSES))
        return TestingLoss(
            prepared.part.test,
            config.data.resize,
            make_criterion(config.loss),
            [*range(every, config.run.steps, every), config.run.steps],
            prepared.folder / "testing_loss.json",
            self.device,
            autocast_of(config.run.precision, self.device),
        )

    def _with_pseudo_labels(self, prepared: Prepared, facts: dict[str, Any]) -> TrainingConfig:
        """Label the unlabeled slices with the teacher row's network, and point the configuration at the masks."""
        row = prepared.cell.row
        teacher = replace(prepared.cell, row=self.table.row(row.teacher))
        self.run(teacher)
        folder = prepared.folder / "pseudo"
        if not (folder / "pseudo_labels.json").is_file():
            unlabeled = self.cases.unlabeled
            if self.table.normalize and not self.options.keep_intensities:
                place = self._normalized_folder() / "unlabeled"
                unlabeled = normalized_cases(unlabeled, self.table.normalize, place, self.progress)
            pseudo_label(
                load_checkpoint(self.prepare(teacher).folder / "run" / "best.safetensors"),
                unlabeled,
                folder,
                **planning.pseudo_label_settings(row, self.options),
                device=self.options.device,
                precision=self.options.precision,
                progress=self.progress,
                cancelled=self.cancelled,
            )
        report = read_object(folder / "pseudo_labels.json")
        accepted = [entry for entry in report["slices"] if entry["accepted"]]
        free = sum(entry["lesion_share"] == 0 for entry in accepted)
        facts |= {"pseudo_labels_accepted": len(accepted), "pseudo_labels_total": report["total"]}
        if not accepted or free == len(accepted):
            raise InputError(
                f"Of {report['total']} pseudo-labels {len(accepted)} were accepted, {free} of them without lesion: "
                "there is nothing to learn from them. Train the row before it longer."
            )
        data = replace(
            prepared.config.data,
            pseudo_cases=(folder / "pseudo_labels.csv").relative_to(self.options.output).as_posix(),
            # the labeled slices all have lesion; this share is that of the pseudo-labeled ones
            lesion_free_share=round(free / len(accepted), 6),
        )
        return replace(prepared.config, data=data)

    def _hardware(self, config: TrainingConfig) -> dict[str, Any]:
        precision = autocast_of(config.run.precision, self.device)
        return {
            "device": str(self.device),
            "name": device_name(self.device),
            "threads": config.run.threads or torch.get_num_threads(),
            "precision": str(precision or torch.float32).removeprefix("torch."),
            "torch": str(torch.__version__),
        }


def _kept(trained: TrainingResult) -> str:
    if not trained.selection.counted:
        return "last step"
    return f"best on {trained.selection.counted} cases kept from training for the choice (step {trained.best_step})"


def _label_facts(run: Path) -> dict[str, Any]:
    noise = read_object(run / "result.json")["label_noise"]
    spoilt = [entry["dice_to_clean"] for entry in noise if entry["kind"] != "none"]
    return {"label_dice": sum(spoilt) / len(spoilt), "spoilt_cases": len(spoilt)} if spoilt else {}


def _curve(run: Path, epoch: int) -> list[float]:
    """Mean training loss of each epoch; a resumed run may have logged a step twice, its last entry counts."""
    losses = {entry["step"]: entry["loss"] for entry in read_log(run) if entry["kind"] == "step"}
    values = [losses[step] for step in sorted(losses)]
    return [sum(part) / len(part) for part in (values[i : i + epoch] for i in range(0, len(values), epoch))]


def _by_epoch(losses: dict[str, float], epoch: int) -> dict[str, float]:
    """Losses by the number of the epoch that they end, which the last may cut short."""
    return {str(math.ceil(int(steps) / epoch)): loss for steps, loss in losses.items()}


def _training_seconds(folder: Path) -> float:
    logs = [path.parent for path in folder.rglob("log.jsonl")]
    return float(sum(entry.get("seconds", 0.0) for log in logs for entry in read_log(log) if entry["kind"] == "step"))


# ---- how long cells take here ----------------------------------------------------------------------------------------

# A step on this much is measured first. Steps as short as that of a narrow network are mostly overhead, so that larger
# ones follow until one takes this many seconds; the last is scaled by the number of voxels.
_SIDE, _TRIES = 64, 4
_LONG_ENOUGH = 0.3


@dataclass(frozen=True)
class Planned:
    """A cell of a plan.

    Attributes:
        name: of the cell.
        status: "finished", "to do", or why it can't be done.
        steps: of its training.
        seconds: of its training, roughly; 0 where nothing is to do.
    """

    name: str
    status: str
    steps: int = 0
    seconds: float = 0.0


def seconds_per_step(row: Row, config: TrainingConfig, width: int | None, device: torch.device) -> float:
    """Roughly, from the fastest of some small steps."""
    network = build_for(row, config, width).to(device).train()
    autocast = autocast_of(config.run.precision, device)
    batch = config.run.batch_size + config.run.pseudo_batch_size
    for count, sides in _growing(batch, config.data.crop):
        # the first step also sets things up, and other work on the machine only ever slows one down
        seconds = min(step_seconds(config, network, device, autocast, count, sides, _TRIES))
        if seconds >= _LONG_ENOUGH:
            break
    voxels = batch * math.prod(config.data.crop) / (count * math.prod(sides))
    return seconds * voxels * (row.count + 1)


def _growing(batch: int, crop: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Slices and their sides: two of a part of the crop, then 1, 2, 4 ... of the whole crop up to a whole batch."""
    yield min(2, batch), (min(_SIDE, crop[0]), min(_SIDE, crop[1]))
    count = 1
    while count < batch:
        yield count, crop
        count *= 2
    yield batch, crop


def build_for(row: Row, config: TrainingConfig, width: int | None) -> torch.nn.Module:
    """The row's network at the width asked for; a 3-D one for the configuration's patches."""
    if row.network.builder == "dynunet3d":
        from .baselines import make_network

        return make_network(row.network, config.network.arguments.get("width"), (config.data.depth, *config.data.crop))
    return build(row.network, width)
