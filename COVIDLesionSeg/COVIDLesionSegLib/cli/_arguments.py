"""Arguments that the measuring commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..errors import InputError

Label = int | str
# a whole CT with its masks takes about a gigabyte
MOST_WORKERS = 4


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that the measuring commands share for manifests."""
    parser.add_argument(
        "--workers",
        type=int,
        default=min(MOST_WORKERS, os.cpu_count() or 1),
        metavar="N",
        help="cases at the same time, of a manifest (default: the processor's cores, at most %(default)s here)",
    )
    parser.add_argument("--resume", action="store_true", help="skip cases that an earlier run has done")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def as_label(text: str) -> Label:
    """A label given on the command line: a number, or a segment's name."""
    return int(text) if text.isdecimal() else text


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
