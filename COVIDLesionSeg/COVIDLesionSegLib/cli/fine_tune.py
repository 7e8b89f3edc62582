"""``covid-lesion-seg fine-tune``: go on training a model on corrected cases."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..cases import Store, is_store
from ..errors import InputError
from ..learning import TrainingConfig
from ..learning.settings import merged, parse_settings
from ..processes import launcher_number
from ._arguments import add_training, callbacks_of
from ._progress import ProgressBar
from .train import describe

HELP = "go on training a model on corrected cases"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "cases", type=Path, metavar="CASES", help="case store, manifest (CSV: ct, lesion, ...) or folder of cases"
    )
    parser.add_argument("-o", "--output", type=Path, help="folder of the run, made if absent (a store has its own)")
    parser.add_argument("--model", help="id or file of the model to start from; the default model if absent")
    parser.add_argument("--config", type=Path, help="TOML with settings other than the defaults")
    parser.add_argument("--steps", type=int, help="steps to train (default: 300)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add_training(parser)
    store = parser.add_argument_group("case store")
    store.add_argument(
        "--validation",
        nargs="+",
        default=[],
        metavar="PATIENT",
        help="validation patients, at the first time: keys or case ids",
    )
    store.add_argument(
        "--replay",
        type=float,
        metavar="FRACTION",
        help="fraction of each batch from cases that earlier rounds have learned from (default: 0.5)",
    )
    store.add_argument("--estimate", action="store_true", help="say how long it would take here, and end")
    store.add_argument("--by", default="command", help="who asks; recorded")


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune; prints the validation before and after."""
    config = None
    if arguments.config or arguments.set:
        config = _configuration(arguments)
    if is_store(arguments.cases):
        return _on_store(arguments, config)
    for name in ("validation", "replay", "estimate"):
        if getattr(arguments, name):
            raise InputError(f"--{name} needs a case store; {arguments.cases} is none.")
    return _on_cases(arguments, config)


def _configuration(arguments: argparse.Namespace) -> TrainingConfig:
    """What the file says, else the default of a fine-tuning, with what --set changes."""
    from ..learning.fine_tuning import default_config

    changes = parse_settings(arguments.set)
    if arguments.config:
        return TrainingConfig.from_toml(arguments.config, changes)
    return TrainingConfig.from_dict(merged(default_config().to_dict(), changes))


def _on_store(arguments: argparse.Namespace, config: TrainingConfig | None) -> int:
    from ..cases.training import REPLAY_SHARE

    store = Store(arguments.cases)
    if arguments.print_config:
        print(store.training.settings(arguments.model, arguments.steps, config, arguments.device).to_toml())
        return 0
    main_process = launcher_number("RANK", 0) == 0
    if arguments.estimate or not (arguments.quiet or arguments.resume or not main_process):
        expected = store.training.estimate(arguments.model, arguments.steps, config, arguments.device)
        if arguments.estimate:
            print(json.dumps(expected.to_json(), indent=2) if arguments.json else expected.text)
            return 0
        print(expected.text, file=sys.stderr)
    with ProgressBar("fine-tune", arguments.quiet or not main_process) as bar:
        result = store.fine_tune(
            arguments.model,
            steps=arguments.steps,
            replay_share=REPLAY_SHARE if arguments.replay is None else arguments.replay,
            validation=arguments.validation,
            device=arguments.device,
            config=config,
            by=arguments.by,
            folder=arguments.output,
            resume=arguments.resume,
            progress=bar,
            callbacks=callbacks_of(arguments),
        )
    if not main_process:
        return 0
    if arguments.json:
        print(json.dumps(result.to_json(), indent=2))
        return 0
    for note in [*result.plan.notes, *result.gate.warnings]:
        print(note)
    print(f"before: {describe(dict(result.before))}")
    print(f"after:  {describe(dict(result.after))}")
    print(result.gate.text)
    print(f"{len(result.review)} doubtful labels are new on the review list.")
    print(f"model: {result.model.id} ({result.path})")
    print(f"active: {store.models.default()}")
    return 0


def _on_cases(arguments: argparse.Namespace, config: TrainingConfig | None) -> int:
    from ..cases.training import configured
    from ..learning import fine_tune
    from ..learning.fine_tuning import base_model_file, for_base_model
    from ..models import ModelRegistry, read_card

    base = arguments.model or ModelRegistry().default()
    config = configured(config, arguments.steps, arguments.device)
    if arguments.print_config:
        file = base_model_file(base)
        print(for_base_model(config, read_card(file), file, arguments.cases).to_toml())
        return 0
    if arguments.output is None:
        raise InputError("Name the folder of the run with -o; only a case store has a place of its own for it.")
    main_process = launcher_number("RANK", 0) == 0
    with ProgressBar("fine-tune", arguments.quiet or not main_process) as bar:
        model = fine_tune(
            base,
            arguments.cases,
            config,
            arguments.output,
            resume=arguments.resume,
            progress=bar,
            callbacks=callbacks_of(arguments),
        )
    if not main_process:
        return 0
    metrics = model.card.metrics
    file = arguments.output / "best.safetensors"
    if arguments.json:
        print(json.dumps({"model": str(file), "before": metrics["base"], "after": metrics["validation"]}, indent=2))
        return 0
    print(f"before: {describe(metrics['base'])}")
    print(f"after:  {describe(metrics['validation'])}")
    print(f"model: {file}")
    return 0
