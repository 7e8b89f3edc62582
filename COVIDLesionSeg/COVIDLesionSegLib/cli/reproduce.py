"""``covid-lesion-seg reproduce``: train and test the rows of the papers' tables, beside the published figures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CancelledError, COVIDLesionSegError, InputError, OutputError
from ..learning.settings import parse_settings
from ._arguments import add_settings
from ._progress import ProgressBar

if TYPE_CHECKING:
    from ..reproduction.catalog import Table
    from ..reproduction.figures import Outcome
    from ..reproduction.planning import Options
    from ..reproduction.study import Study

HELP = "train and test the rows of the papers' tables, beside the published figures"
_SOME_FAILED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("table", metavar="TABLE", nargs="?", help="which; without one, the tables are listed")
    parser.add_argument("--data", type=Path, help="folder or manifest of the cases, see docs/reproduce.md")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/reproduce"), help="folder (runs/reproduce)")
    parser.add_argument("--rows", nargs="+", action="extend", default=[], metavar="ROW", help="these rows only")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="0 1 2 if not given")
    parser.add_argument("--folds", type=int, default=0, help="cross-validation by patient in so many parts")
    parser.add_argument("--steps", type=int, help="of each training, instead of the paper's")
    parser.add_argument("--epochs", type=int, help="of each training, instead of the paper's")
    parser.add_argument("--width", type=int, help="base width of the networks, instead of the paper's")
    parser.add_argument("--crop", nargs="+", type=int, metavar="SIDE", help="training crops, one side or two")
    parser.add_argument("--resize", nargs="+", type=int, metavar="SIDE", help="size of resized slices, one side or two")
    parser.add_argument(
        "--label-noise",
        nargs="+",
        action="extend",
        default=[],
        metavar="KIND:STRENGTH[:SHARE]",
        help="synthetic errors in the training labels, one set of cells each, e.g. none dilation:3 dropout:0.4:0.5",
    )
    add_settings(parser)
    parser.add_argument("--keep-intensities", action="store_true", help="do not normalize pictures of slices")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--precision", default="auto", help="auto, float32, bfloat16 or float16 (GPU)")
    without = parser.add_mutually_exclusive_group()
    without.add_argument("--plan", action="store_true", help="say what would be trained and how long; train nothing")
    without.add_argument("--collect", action="store_true", help="write the table of the finished cells; train nothing")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(arguments: argparse.Namespace) -> int:
    """Fill the cells that are not there yet and write the table; prints where it is."""
    from ..reproduction.catalog import load_table, table_ids

    if arguments.table is None:
        for key in table_ids():
            table = load_table(key)
            print(f"{key:18}{table.title} ({table.source})")
        return 0
    table = load_table(arguments.table)
    options = _options(arguments, table)
    if table.judged == "efficiency":
        return _efficiency(table, options, arguments)
    from ..reproduction.study import Study

    study = Study(table, options)
    if arguments.plan:
        return _plan(study, arguments)
    with ProgressBar(table.id, arguments.quiet) as bar:
        study.progress = bar
        outcomes, failed = _fill(study, arguments.quiet, training=not arguments.collect)
    paths = _write(table, options, outcomes)
    if arguments.json:
        print(json.dumps({"files": [str(path) for path in paths], "cells": [_summary(o) for o in outcomes]}, indent=2))
    else:
        done = sum(outcome.result is not None for outcome in outcomes)
        print(f"{done} of {len(outcomes)} cells -> {paths[0]}")
    return _SOME_FAILED if failed else 0


def _efficiency(table: Table, options: Options, arguments: argparse.Namespace) -> int:
    from ..reproduction.efficiency import efficiency_table
    from ..reproduction.planning import chosen_rows

    if arguments.plan:
        print(f"{table.id}: parameters, multiply-adds and time of {len(chosen_rows(table, options))} networks")
        return 0
    with ProgressBar(table.id, arguments.quiet) as bar:
        paths = efficiency_table(table, options, bar)
    print(json.dumps({"files": [str(path) for path in paths]}, indent=2) if arguments.json else f"-> {paths[0]}")
    return 0


def _plan(study: Study, arguments: argparse.Namespace) -> int:
    """What would be trained, and roughly how long."""
    with ProgressBar(study.table.id, arguments.quiet) as bar:
        study.progress = bar
        planned = study.plan()
    if arguments.json:
        print(json.dumps([vars(entry) for entry in planned], indent=2))
        return 0
    for entry in planned:
        work = f"{entry.steps} steps, about {_duration(entry.seconds)}" if entry.status == "to do" else ""
        print(f"{entry.name:40}{entry.status}{': ' if work else ''}{work}")
    total = sum(entry.seconds for entry in planned)
    print(f"{sum(entry.status == 'to do' for entry in planned)} to train, about {_duration(total)} on {study.device}")
    return 0


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _fill(study: Study, quiet: bool, training: bool) -> tuple[list[Outcome], bool]:
    """Take the finished cells and run, if wanted, every other one that can be run; the table is written after each."""
    from ..reproduction.figures import Outcome
    from ..reproduction.planning import command

    table, options = study.table, study.options
    outcomes: dict[int, Outcome] = {}
    failed = False
    for number, cell in enumerate(study.cells):
        obstacle = study.obstacle(cell)
        if obstacle:
            outcomes[number] = Outcome(cell, None, obstacle, study.remedy(cell))
        else:
            waiting = "not trained yet"
            outcomes[number] = Outcome(cell, study.finished(cell), waiting, command(table, options, cell))
    for number, outcome in outcomes.items():
        if not training or outcome.result is not None or study.obstacle(outcome.cell):
            continue
        try:
            result = study.run(outcome.cell)
        except (CancelledError, OutputError):
            _write(table, options, list(outcomes.values()))
            raise
        except COVIDLesionSegError as error:
            failed = True
            print(f"{outcome.cell.name} failed: {error}", file=sys.stderr)
            outcomes[number] = Outcome(outcome.cell, None, f"failed: {error}", outcome.command)
        else:
            outcomes[number] = Outcome(outcome.cell, result)
            if not quiet:
                print(f"{outcome.cell.name}: {result['steps']} steps, {_seconds(result)} s", file=sys.stderr)
        _write(table, options, list(outcomes.values()))
    return list(outcomes.values()), failed


def _write(table: Table, options: Options, outcomes: list[Outcome]) -> list[Path]:
    from ..reproduction.writing import write_table

    return write_table(table, options, outcomes)


def _seconds(result: Any) -> str:
    return f"{sum(result['seconds'].values()):.0f}"


def _summary(outcome: Outcome) -> dict[str, Any]:
    done = outcome.result is not None
    return {"cell": outcome.cell.name, "done": done, "reason": "" if done else outcome.reason}


def _options(arguments: argparse.Namespace, table: Table) -> Options:
    from ..reproduction.planning import Options, parse_noise

    if arguments.data is None and table.data != "none":
        raise InputError(f"The table {table.id} needs data; give them with --data (docs/reproduce.md says which).")
    return Options(
        data=arguments.data or Path(),
        output=arguments.output,
        rows=tuple(arguments.rows),
        seeds=tuple(arguments.seeds),
        folds=arguments.folds,
        steps=arguments.steps,
        epochs=arguments.epochs,
        width=arguments.width,
        crop=_size(arguments.crop, "--crop"),
        resize=_size(arguments.resize, "--resize"),
        device=arguments.device,
        precision=arguments.precision,
        noises=tuple(parse_noise(text) for text in arguments.label_noise),
        changes=parse_settings(arguments.set),
        keep_intensities=arguments.keep_intensities,
    )


def _size(values: list[int] | None, name: str) -> tuple[int, int] | None:
    if values is None:
        return None
    if len(values) > 2:
        raise InputError(f"{name} takes one side or two, height and width; it got {len(values)}.")
    return values[0], values[-1]
