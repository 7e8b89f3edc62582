"""Arguments that the measuring commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..cores import usable_cores
from ..errors import InputError
from ..files import check_target

if TYPE_CHECKING:
    from ..learning.log import TrainingCallback

Label = int | str
# a whole CT with its masks takes about a gigabyte
MOST_WORKERS = 4


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that the measuring commands share for manifests."""
    parser.add_argument(
        "--workers",
        type=int,
        default=min(MOST_WORKERS, usable_cores()),
        metavar="N",
        help="cases at the same time, of a manifest (default: the processor's cores, at most %(default)s here)",
    )
    parser.add_argument("--resume", action="store_true", help="skip cases that an earlier run has done")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_lung_engine(parser: argparse.ArgumentParser) -> None:
    """Declare the choice of what finds lungs that are not given."""
    from ..imaging.lungs.engines import CLASSICAL, ENGINES, NETWORK

    parser.add_argument(
        "--lung-engine",
        choices=tuple(ENGINES),
        help=f"what finds lungs that are not given (default: {CLASSICAL}; {NETWORK} needs PyTorch; none: do without)",
    )


def add_same_patient(parser: argparse.ArgumentParser) -> None:
    """Declare that two studies are compared although they look like those of two patients."""
    parser.add_argument(
        "--assume-same-patient",
        action="store_true",
        help="compare although patient IDs or chests differ as those of two people do; the result says so",
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare settings of a training; ``learning.settings.parse_settings`` reads them."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="settings of every training, e.g. optimizer.learning_rate=1e-3; docs/configuration.md lists all",
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Declare what the commands that train share."""
    add_settings(parser)
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration as TOML, and end")
    parser.add_argument(
        "--callback",
        action="append",
        default=[],
        metavar="PACKAGE.MODULE:NAME",
        help="class that follows the training (learning.TrainingCallback); may be given again",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with what was not finished; start where nothing is"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def callbacks_of(arguments: argparse.Namespace) -> list[TrainingCallback]:
    """The followers that were named, made without arguments."""
    from ..imports import import_class
    from ..learning.log import TrainingCallback

    return [import_class(path, TrainingCallback, "callback")() for path in arguments.callback]


def as_label(text: str) -> Label:
    """A label given on the command line: a number, or a segment's name."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text


def state_file(output: Path | None, resume: bool) -> Path | None:
    """Where a batch remembers what it did: beside its table.

    Raises:
        InputError: ``--resume`` without a table.
    """
    if output is None:
        if resume:
            raise InputError("--resume needs -o: a batch remembers beside its table what it has done.")
        return None
    return output.with_name(f"{output.name}.state.jsonl")


def refuse_to_replace(inputs: Iterable[Path | str | None], outputs: Iterable[Path | None]) -> None:
    """Refuse to replace an input, or what is no file, before any work is done; None stands for what wasn't given.

    Raises:
        InputError: an output is one of the inputs, by whatever name.
        OutputError: an output is a device or pipe.
    """
    from ..imaging import require_other_file

    outputs = list(outputs)
    for output in outputs:
        if output is not None and not output.is_dir():
            check_target(output)
    inputs = [path for path in inputs if path is not None]
    for path in inputs:
        if "\0" in str(path):
            raise InputError(f"{str(path)!r} can't be the name of a file.")
    # not each output with each input: hundreds of studies would take minutes
    there = {_identity(path): path for path in inputs if path is not None}
    there.pop(None, None)
    for output in outputs:
        if output is not None and _identity(output) in there:
            require_other_file(output, [there[_identity(output)]])


def _identity(path: Path | str) -> tuple[int, int] | None:
    """What all names of a file have in common; None where it isn't there or can't be looked at."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
