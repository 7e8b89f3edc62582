"""``covid-lesion-seg sample-data``: make the sample data that Slicer's Sample Data module offers."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from ._progress import ProgressBar

HELP = "make the sample data, a synthetic chest CT with known lesions, in a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", nargs="?", help="which one (default: the first)")
    parser.add_argument("-o", "--output", type=Path, default=Path(), help="folder (default: this one)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Make the files and print their paths."""
    from ..phantom.samples import make_sample, sample, samples

    if arguments.output.is_file():
        raise InputError(f"The output {arguments.output} is a file; name a folder.")
    chosen = sample(arguments.name) if arguments.name else samples()[0]
    with ProgressBar(chosen.id, arguments.quiet) as bar:
        paths = make_sample(chosen, arguments.output, bar)
    for path in paths:
        print(path)
    return 0
