"""``covid-lesion-seg train``: train a network as a TOML file says; also under ``torchrun``."""

from __future__ import annotations

import argparse
import inspect
import json
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError, ReadError
from ..learning import TrainingConfig
from ..learning.settings import merged, nearest, parse_settings
from ..processes import launcher_number
from ..reproduction.planning import protocol, protocols
from ._arguments import add_training, callbacks_of
from ._progress import ProgressBar

HELP = "train a network as a TOML file says"
KINDS = ("configurations", "networks", "losses", "optimizers", "schedules", "transforms", "regularizations")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", help="what to do: a file, or a paper's protocol, e.g. tmi-3/full"
    )
    parser.add_argument("-o", "--output", type=Path, help="folder of the run, made if absent")
    parser.add_argument("--cases", type=Path, help="manifest (CSV: ct, lesion, ...) or folder; instead of data.cases")
    parser.add_argument("--pseudo-cases", type=Path, help="manifest of pseudo-labeled slices")
    parser.add_argument("--validation", nargs="+", metavar="PATIENT", help="patients to freeze for validation")
    parser.add_argument("--steps", type=int, help="instead of run.steps")
    parser.add_argument("--seed", type=int, help="instead of run.seed")
    parser.add_argument("--device", help="instead of run.device: auto, cpu, cuda, cuda:N or mps")
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--label-update", type=int, metavar="N", help="train N networks, relabel with their mean, train anew (5 in TMI)"
    )
    several.add_argument("--folds", type=int, metavar="K", help="cross-validation by patient: K trainings and a table")
    parser.add_argument(
        "--list", nargs="?", const="all", choices=("all", *KINDS), help="list what can be named in a configuration"
    )
    add_training(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train; prints where the model is and how it did."""
    if arguments.list:
        print_lists(KINDS if arguments.list == "all" else [arguments.list])
        return 0
    if arguments.config is None:
        raise InputError("Name a configuration: a TOML file, or one of those that `train --list configurations` shows.")
    config, base = load_config(arguments.config, _overrides(arguments))
    if arguments.print_config:
        print(config.to_toml())
        return 0
    if arguments.output is None:
        raise InputError("Name the folder of the run with -o.")
    from ..learning import Trainer
    from ..learning.several import cross_validate, label_update

    main_process = launcher_number("RANK", 0) == 0
    base = base or arguments.output
    callbacks = callbacks_of(arguments)
    with ProgressBar("train", arguments.quiet or not main_process) as bar:
        if arguments.folds is not None:
            found = cross_validate(
                config, arguments.output, base, arguments.folds, arguments.resume, bar, callbacks=callbacks
            )
            result = None
        elif arguments.label_update:
            result = label_update(
                config, arguments.output, base, arguments.label_update, arguments.resume, bar, callbacks=callbacks
            )
        else:
            result = Trainer(config, arguments.output, base, callbacks=callbacks).run(arguments.resume, bar)
    if not main_process:
        return 0
    if result is None:
        print(json.dumps(found.to_json(), indent=2) if arguments.json else found.table(), end="")
        return 0
    if arguments.json:
        summary = {"model": str(result.model), "steps": result.steps, "best_step": result.best_step}
        judgments = {"selection": result.selection.to_dict(), "validation": result.validation.to_dict()}
        print(json.dumps(summary | {"stopped": result.stopped} | judgments, indent=2))
        return 0
    print(f"{result.steps} steps; {result.chosen} of step {result.best_step}: {describe(result.validation.to_dict())}")
    print(f"model: {result.model}")
    print(f"doubtful labels: {result.folder / 'doubtful_labels.csv'}")
    return 0


def print_lists(kinds: Iterable[str]) -> None:
    """Print what can be named in a configuration, one line each: name, what it is, its settings."""
    for kind in kinds:
        print(f"{kind}:")
        for name, what in _listed(kind).items():
            print(f"  {name:34}{what}".rstrip())


def _listed(kind: str) -> dict[str, str]:
    from ..learning.config import OptimizerSettings, RegularizationSettings

    if kind == "configurations":
        return {name: f"{table.title}: {row.title}" for name, (table, row) in protocols().items()}
    if kind == "networks":
        from ..networks import NETWORKS
        from ..networks.factory import network_class

        classes = {name: network_class(name) for name in NETWORKS}
        return {name: _described(network, network) for name, network in classes.items()}
    if kind == "losses":
        from ..learning.losses import LOSSES

        return {name: _described(loss, loss) for name, loss in LOSSES.items()}
    if kind == "transforms":
        from ..learning.augmentation import AugmentationSettings

        kinds = typing.get_type_hints(AugmentationSettings)
        return {name: _described(kind, kind) for name, kind in kinds.items() if isinstance(kind, type)}
    of = {"optimizers": (OptimizerSettings, "name"), "schedules": (OptimizerSettings, "schedule")}
    settings, field = of.get(kind, (RegularizationSettings, "name"))
    return dict.fromkeys(typing.get_args(typing.get_type_hints(settings)[field]), "")


def _described(thing: Any, make: Any) -> str:
    """The first sentence of its docstring, and the arguments with their defaults."""
    parameters = inspect.signature(make).parameters.values()
    shown = ", ".join(str(p).split(":")[0] + ("" if p.default is p.empty else f"={p.default}") for p in parameters)
    return f"{(inspect.getdoc(thing) or '').splitlines()[0]} ({shown})"


def load_config(name: str, overrides: dict[str, Any]) -> tuple[TrainingConfig, Path | None]:
    """A configuration, and what relative names in it count from.

    Args:
        name: a TOML file, or TABLE/ROW of a paper's protocol, which has no folder of its own.
        overrides: nested tables that count instead.

    Raises:
        ReadError: neither.
    """
    if Path(name).is_file():
        return TrainingConfig.from_toml(name, overrides), Path(name).parent
    known = protocols()
    if name in known:
        return TrainingConfig.from_dict(merged(protocol(*known[name]).to_dict(), overrides)), None
    near = nearest(name, known)
    raise ReadError(
        f"The configuration {name} is not there; give a TOML file, or a paper's protocol "
        f"{f'(did you mean {near}?) ' if near else ''}from `train --list configurations`."
    )


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the configuration; an option of its own counts more than --set."""
    data = {"cases": arguments.cases, "pseudo_cases": arguments.pseudo_cases}
    tables: dict[str, dict[str, Any]] = {
        "data": {key: str(path.resolve()) for key, path in data.items() if path is not None},
        "run": {key: getattr(arguments, key) for key in ("steps", "seed", "device")},
    }
    if arguments.validation:
        tables["data"]["validation_patients"] = arguments.validation
    tables["run"] = {key: value for key, value in tables["run"].items() if value is not None}
    return merged(parse_settings(arguments.set), {name: table for name, table in tables.items() if table})


def _figure(value: Any) -> str:
    # what is not finite is text already
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def describe(judgment: dict[str, Any]) -> str:
    """A validation in one line."""
    if not judgment["cases"]:
        return "nobody judged, so no figure"
    parts = [f"mean Dice {_figure(judgment['dice'])} over {judgment['counted']} cases"]
    for case, row in judgment["cases"].items():
        figures = (f"{name} {_figure(value)}" for name, value in row.items())
        parts.append(f"{case}: {', '.join(figures)}")
    return "; ".join(parts)
