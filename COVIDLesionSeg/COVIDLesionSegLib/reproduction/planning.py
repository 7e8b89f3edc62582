"""From a table and what a user asks for to cells, each with its training configuration; loads without PyTorch."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..learning.config import LabelNoiseSettings, TrainingConfig
from ..learning.settings import merged, toml_value
from ..networks.factory import network_class
from .catalog import Row, Table, load_table, table_ids

NATURAL = "natural"
# training slices of COVID-SemiSeg
_COVID_SEMISEG = 50
# settings of semi-supervised rows that are no part of a training's configuration
PSEUDO_LABELS = "pseudo_labels"
# where a run is and on what it computes is no part of what it is
_NOT_IDENTITY = {
    "data": ("cases", "split", "cache", "pseudo_cases"),
    "run": ("device", "threads", "checkpoint_interval"),
}

_DATA = "give --data"
# settings that every training is given by the study
_OWN_OPTIONS = {
    ("run", "steps"): "give --steps or --epochs",
    ("run", "seed"): "give --seeds",
    ("run", "device"): "give --device",
    ("run", "precision"): "give --precision",
    ("data", "cases"): _DATA,
    ("data", "split"): _DATA,
    ("data", "cache"): _DATA,
    ("data", "pseudo_cases"): _DATA,
    ("data", "validation_patients"): "give --folds",
    ("data", "validation_share"): "give --folds",
    ("data", "selection_patients"): "give data.selection_fraction",
}


@dataclass(frozen=True)
class Options:
    """What a user asks for.

    Attributes:
        data: folder or manifest of the data.
        output: folder of runs and tables.
        rows: keys; empty takes all.
        seeds: one run each.
        folds: 0: the protocol's split; N >= 2: cross-validation.
        steps: of each training instead of the protocol's.
        epochs: likewise.
        width: base width of the networks instead of the paper's.
        crop: (height, width) of training crops.
        resize: (height, width) that slices are resized to.
        device: as in RunSettings.
        precision: as in RunSettings.
        noises: synthetic label errors, one set of cells each; None are the given labels, and so is an empty tuple.
        changes: table -> key -> value of the training configuration, for all rows; ``pseudo_labels`` are the settings
            of the filter of semi-supervised rows.
        keep_intensities: pictures are not normalized.

    Raises:
        InputError: a value that is not allowed.
    """

    data: Path
    output: Path
    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: int = 0
    steps: int | None = None
    epochs: int | None = None
    width: int | None = None
    crop: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    device: str = "auto"
    precision: str = "auto"
    noises: tuple[LabelNoiseSettings | None, ...] = ()
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    keep_intensities: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"The seeds are {list(self.seeds)}; different whole numbers from 0 up are needed.")
        if self.folds == 1 or self.folds < 0:
            raise InputError(f"{self.folds} folds are no cross-validation; give 2 or more.")
        if self.steps is not None and self.epochs is not None:
            raise InputError("Both --steps and --epochs are given; give one of them.")
        for name in ("steps", "epochs", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class Cell:
    """One training: a row with a seed, a fold (None: the protocol's split) and label errors (None: none)."""

    row: Row
    seed: int
    fold: int | None = None
    noise: LabelNoiseSettings | None = None

    @property
    def name(self) -> str:
        """For people and for folders' names."""
        parts = [self.row.id, f"seed{self.seed}"]
        if self.fold is not None:
            parts.append(f"fold{self.fold}")
        if self.noise is not None:
            parts.append(noise_name(self.noise))
        return "-".join(parts)


@dataclass(frozen=True)
class Facts:
    """What a configuration needs to know of the training data.

    Attributes:
        slices: to train on.
        lesion_free: those of them without lesion.
    """

    slices: int
    lesion_free: int


def chosen_rows(table: Table, options: Options) -> list[Row]:
    """The rows that were asked for, in the table's order.

    Raises:
        InputError: a row that the table does not have.
    """
    wanted = {table.row(key).id for key in options.rows} if options.rows else {row.id for row in table.rows}
    return [row for row in table.rows if row.id in wanted]


def cells(table: Table, options: Options) -> list[Cell]:
    """All cells that were asked for: every row of a seed and fold before the next seed."""
    if any(options.noises) and table.data != "volumes":
        raise InputError(f"The table {table.id} is not about noisy labels; label errors are for tables on volumes.")
    rows = chosen_rows(table, options)
    for group, keys in options.changes.items():
        for key in keys:
            if instead := _OWN_OPTIONS.get((group, key)):
                raise InputError(f"--set {group}.{key} can't be obeyed, since each training gets its own; {instead}.")
            if all(key in row.settings.get(group, {}) for row in table.rows):
                raise InputError(f"Each row of {table.id} sets {group}.{key} itself; leave out this --set.")
    folds = folds_of(table, options)
    numbers: list[int | None] = list(range(folds)) if folds else [None]
    noises = options.noises or (None,)
    return [
        Cell(row, seed, fold, noise) for noise in noises for seed in options.seeds for fold in numbers for row in rows
    ]


def folds_of(table: Table, options: Options) -> int:
    """How many folds; 0 is the protocol's one split."""
    return options.folds or table.default_folds


def configuration(table: Table, cell: Cell, options: Options, facts: Facts) -> TrainingConfig:
    """The training configuration of a cell, without the names of its data.

    Raises:
        InputError: settings that are not allowed.
    """
    values = merged(table.settings, cell.row.settings)
    network = cell.row.network
    width = min(options.width or network.width or 0, network.width or 0)
    values["network"] = {"name": network.family or "external", "arguments": dict(network.arguments)}
    if network.family:
        values["network"]["arguments"] |= network_class(network.family).scaled(width)
    else:
        values["network"]["arguments"] = {"network": network.id} | ({"width": width} if width else {})
    data = values.setdefault("data", {})
    # the table's test cases judge; the study keeps them out of the training
    data["validation_share"] = 0.0
    if options.resize is not None:
        if not data.get("resize"):
            raise InputError(f"The table {table.id} does not resize slices; use --crop for smaller crops.")
        data["resize"] = data["crop"] = list(options.resize)
    if options.crop is not None:
        data["crop"] = list(options.crop)
    values["run"] |= {"seed": cell.seed, "device": options.device, "precision": options.precision}
    if cell.noise is not None:
        values["label_noise"] = asdict(cell.noise)
    values = merged(values, _changes(cell.row, options))
    if values["data"].get("lesion_free_share") == NATURAL:
        values["data"]["lesion_free_share"] = round(facts.lesion_free / facts.slices, 6)
    if cell.row.method == "semi-supervised":
        values["data"]["pseudo_cases"] = "pseudo_labels.csv"
    batch = values["run"].get("batch_size", 8)
    epoch = math.ceil(facts.slices / batch)
    steps = options.steps or (options.epochs or table.epochs) * epoch or table.steps
    values["run"]["steps"] = steps
    values["optimizer"] = _shortened(table, values.get("optimizer", {}), steps, options.changes)
    for name in ("validation_interval", "checkpoint_interval"):
        if name in values["run"]:
            values["run"][name] = min(values["run"][name], steps)
    return TrainingConfig.from_dict(values)


def protocols() -> dict[str, tuple[Table, Row]]:
    """TABLE/ROW -> the rows whose training of one network can be done on anybody's data: those of own networks."""
    found = {}
    for table in map(load_table, table_ids()):
        for row in table.rows if table.steps or table.data == "pictures" else ():
            if row.network.source == "own" and row.method != "label-update":
                found[f"{table.id}/{row.id}"] = table, row
    return found


def protocol(table: Table, row: Row) -> TrainingConfig:
    """The training configuration of a row for anybody's data: what the paper says, but for names, folds and figures.

    Epochs are counted in the training slices of COVID-SemiSeg. Slices without lesion are drawn as they are sampled, and
    the part that the paper tests is kept for validation.
    """
    config = configuration(table, Cell(row, 0), Options(Path(), Path()), Facts(_COVID_SEMISEG, 0))
    share = table.test_share if table.data == "volumes" else 0.0
    return replace(config, data=replace(config.data, lesion_free_share=-1.0, validation_share=share))


def pseudo_label_settings(row: Row, options: Options) -> dict[str, Any]:
    """Threshold, base and convention of the filter of a semi-supervised row.

    Raises:
        InputError: another setting.
    """
    settings = {**row.pseudo_labels, **options.changes.get(PSEUDO_LABELS, {})}
    unknown = sorted(settings.keys() - row.pseudo_labels.keys())
    if unknown:
        raise InputError(f"pseudo_labels has no {unknown[0]}; it has {', '.join(row.pseudo_labels)}.")
    return settings


def _changes(row: Row, options: Options) -> dict[str, dict[str, Any]]:
    """What --set changes in a row: what the row sets itself is what it is about, and stays."""
    return {
        group: {key: value for key, value in keys.items() if key not in row.settings.get(group, {})}
        for group, keys in options.changes.items()
        if group != PSEUDO_LABELS
    }


def _shortened(
    table: Table, optimizer: Mapping[str, Any], steps: int, changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The optimizer with its schedule in proportion to the length of the training."""
    optimizer, given = dict(optimizer), changes.get("optimizer", {})
    if table.milestone_epochs and optimizer.get("schedule") == "milestones" and "milestones" not in given:
        optimizer["milestones"] = sorted({max(1, round(steps * at / table.epochs)) for at in table.milestone_epochs})
    if table.steps and optimizer.get("schedule") == "halving" and "every" not in given:
        optimizer["every"] = max(1, round(optimizer["every"] * min(1.0, steps / table.steps)))
    return optimizer


def identity(config: TrainingConfig, extra: Mapping[str, Any]) -> str:
    """SHA-256 of what a training is: its configuration, its data and its method, but not where it runs."""
    values = config.to_dict()
    for name, keys in _NOT_IDENTITY.items():
        values[name] = {key: value for key, value in values[name].items() if key not in keys}
    return hashlib.sha256(json.dumps([values, extra], sort_keys=True).encode()).hexdigest()


def reductions(table: Table, options: Options, rows: Sequence[Row]) -> list[str]:
    """What differs from the paper's protocol, one phrase each, e.g. "base width 16 instead of 64"."""
    found = []
    if options.width is not None:
        papers = sorted({row.network.width for row in rows if row.network.width is not None})
        smaller = [paper for paper in papers if options.width < paper]
        if smaller:
            found.append(f"base width {options.width} instead of {' and '.join(map(str, smaller))}")
        fixed = [row.title for row in rows if row.network.width is None and row.network.source != "none"]
        if smaller and fixed:
            found.append(f"full width where the library fixes it ({', '.join(fixed)})")
    if options.epochs is not None and options.epochs != table.epochs:
        found.append(f"{options.epochs} epochs instead of {_length(table)}")
    if options.steps is not None and options.steps != table.steps:
        found.append(f"{options.steps} steps instead of {_length(table)}")
    if (options.epochs or options.steps) and found:
        found.append("the schedule of the rate in proportion")
    for name in ("resize", "crop"):
        value, paper = getattr(options, name), table.settings.get("data", {}).get(name)
        if value is not None and list(value) != paper:
            before = f"{paper[0]} x {paper[1]}" if paper else "none"
            found.append(f"{name} {value[0]} x {value[1]} instead of {before}")
    folds = folds_of(table, options)
    if folds and not table.default_folds:
        found.append(f"{folds}-fold cross-validation instead of the paper's split")
    if options.keep_intensities and table.normalize:
        found.append("pictures as they are instead of normalized")
    filters: dict[str, Any] = next((dict(row.pseudo_labels) for row in rows if row.pseudo_labels), {})
    for group, keys in options.changes.items():
        known = filters if group == PSEUDO_LABELS else table.settings.get(group, {})
        for key, value in keys.items():
            before = known.get(key, "the default")
            own = [row.title for row in rows if key in row.settings.get(group, {})]
            but = f" (but not of {' and '.join(own)})" if own else ""
            found.append(f"{group}.{key} {_plain(value)} instead of {_plain(before)}{but}")
    return found


def _length(table: Table) -> str:
    return f"{table.epochs} epochs" if table.epochs else f"up to {table.steps} steps"


def command(table: Table, options: Options, cell: Cell | None = None) -> str:
    """The command that fills a cell, or the whole table."""
    words = ["covid-lesion-seg", "reproduce", table.id]
    if table.data != "none":
        words += ["--data", str(options.data)]
    words += ["-o", str(options.output)]
    rows = (cell.row.id,) if cell else options.rows
    if rows:
        words += ["--rows", *rows]
    if table.judged != "efficiency":
        words += ["--seeds", *map(str, (cell.seed,) if cell else options.seeds)]
    for name in ("folds", "steps", "epochs", "width"):
        value = getattr(options, name)
        if value:
            words += [f"--{name}", str(value)]
    for name in ("crop", "resize"):
        value = getattr(options, name)
        if value:
            words += [f"--{name}", *map(str, value)]
    noises = (cell.noise,) if cell and options.noises else options.noises
    if noises:
        words += ["--label-noise", *(_noise_text(noise) for noise in noises)]
    if options.keep_intensities:
        words.append("--keep-intensities")
    for name in ("device", "precision"):
        if getattr(options, name) != "auto":
            words += [f"--{name}", getattr(options, name)]
    for group, keys in options.changes.items():
        for key, value in keys.items():
            words += ["--set", f"{group}.{key}={_plain(value)}"]
    return shlex.join(words)


def parse_noise(text: str) -> LabelNoiseSettings | None:
    """KIND:STRENGTH[:SHARE], e.g. "dilation:3" or "dropout:0.4:0.5"; "none" is None, the given labels.

    Raises:
        InputError: another form, an unknown kind, a strength or share that is not allowed.
    """
    if text == "none":
        return None
    parts = text.split(":")
    try:
        if len(parts) not in (2, 3):
            raise ValueError
        numbers = [float(part) for part in parts[1:]]
    except ValueError as error:
        raise InputError(f"The label errors {text!r} are not KIND:STRENGTH[:SHARE], e.g. dilation:3:0.5.") from error
    values: dict[str, Any] = {"kind": parts[0], "strength": numbers[0]}
    if len(numbers) == 2:
        values["share"] = numbers[1]
    return TrainingConfig.from_dict({"label_noise": values}).label_noise


def _noise_text(noise: LabelNoiseSettings | None) -> str:
    return f"{noise.kind}:{noise.strength:g}:{noise.share:g}" if noise is not None else "none"


def noise_name(noise: LabelNoiseSettings | None) -> str:
    """Short, e.g. "dilation3" or "dropout0.4-share0.5"; "" for the given labels."""
    if noise is None:
        return ""
    share = f"-share{noise.share:g}" if noise.share < 1 else ""
    return f"{noise.kind}{noise.strength:g}{share}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else toml_value(value)
