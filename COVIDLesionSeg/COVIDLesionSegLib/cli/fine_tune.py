"""``covid-lesion-seg fine-tune``: go on training a model on corrected cases."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from ..learning import TrainingConfig
from ._progress import ProgressBar
from .train import describe

HELP = "go on training a model on corrected cases"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("cases", type=Path, metavar="CASES", help="manifest (CSV: ct, lesion, ...) or folder of cases")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run, made if absent")
    parser.add_argument("--model", help="id or file of the model to start from; the default model if absent")
    parser.add_argument("--config", type=Path, help="TOML with settings other than the defaults")
    parser.add_argument("--steps", type=int, help="steps to train (default: 300)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune; prints the validation before and after."""
    from ..learning import fine_tune
    from ..learning.fine_tuning import default_config
    from ..models import ModelRegistry

    config = TrainingConfig.from_toml(arguments.config) if arguments.config else default_config()
    given = {name: getattr(arguments, name) for name in ("steps", "device") if getattr(arguments, name) is not None}
    config = replace(config, run=replace(config.run, **given))
    base = arguments.model or ModelRegistry().default()
    with ProgressBar("fine-tune", arguments.quiet) as bar:
        model = fine_tune(base, arguments.cases, config, arguments.output, resume=arguments.resume, progress=bar)
    metrics = model.card.metrics
    file = arguments.output / "best.safetensors"
    if arguments.json:
        print(json.dumps({"model": str(file), "before": metrics["base"], "after": metrics["validation"]}, indent=2))
        return 0
    print(f"before: {describe(metrics['base'])}")
    print(f"after:  {describe(metrics['validation'])}")
    print(f"model: {file}")
    return 0
