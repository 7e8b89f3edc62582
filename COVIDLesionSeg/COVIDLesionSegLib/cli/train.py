"""``covid-lesion-seg train``: train a network as a TOML file says; also under ``torchrun``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import ReadError
from ..learning import TrainingConfig
from ..processes import launcher_number
from ..resources import resource
from ._progress import ProgressBar

HELP = "train a network as a TOML file says"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("config", metavar="CONFIG.toml", help="what to do: a file, or the name of a shipped one")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run, made if absent")
    parser.add_argument("--cases", type=Path, help="manifest (CSV: ct, lesion, ...) or folder; instead of data.cases")
    parser.add_argument("--pseudo-cases", type=Path, help="manifest of pseudo-labeled slices")
    parser.add_argument("--validation", nargs="+", metavar="PATIENT", help="patients to freeze for validation")
    parser.add_argument("--steps", type=int, help="instead of run.steps")
    parser.add_argument("--seed", type=int, help="instead of run.seed")
    parser.add_argument("--device", help="instead of run.device: auto, cpu, cuda, cuda:N or mps")
    parser.add_argument(
        "--label-update", type=int, metavar="N", help="train N networks, relabel with their mean, train anew (5 in TMI)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Train; prints where the model is and how it did."""
    path = config_path(arguments.config)
    config = TrainingConfig.from_toml(path, _overrides(arguments))
    from ..learning import Trainer
    from ..learning.label_update import label_update

    main_process = launcher_number("RANK", 0) == 0
    base = path.parent if Path(arguments.config).is_file() else arguments.output
    with ProgressBar("train", arguments.quiet or not main_process) as bar:
        if arguments.label_update:
            result = label_update(config, arguments.output, base, arguments.label_update, arguments.resume, bar)
        else:
            result = Trainer(config, arguments.output, base).run(resume=arguments.resume, progress=bar)
    if not main_process:
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


def config_path(name: str) -> Path:
    """The configuration file: a path, or the name of one that ships in Resources/Training.

    Raises:
        ReadError: neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for path in resource("Training").glob("*.toml")}
    if name in shipped:
        return shipped[name]
    raise ReadError(
        f"The configuration {name} is not there; give a TOML file, or one of: {', '.join(sorted(shipped))}."
    )


def _overrides(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    data = {"cases": arguments.cases, "pseudo_cases": arguments.pseudo_cases}
    tables: dict[str, dict[str, Any]] = {
        "data": {key: str(path.resolve()) for key, path in data.items() if path is not None},
        "run": {key: getattr(arguments, key) for key in ("steps", "seed", "device")},
    }
    if arguments.validation:
        tables["data"]["validation_patients"] = arguments.validation
    tables["run"] = {key: value for key, value in tables["run"].items() if value is not None}
    return tables


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
