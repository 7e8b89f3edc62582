"""``covid-lesion-seg models``: what models there are; fetch, take in, check, remove, choose."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence

from ..errors import ModelError
from ..models.catalog import BUNDLED, ModelEntry
from ..models.registry import ModelRegistry
from . import EXIT_SOME_FAILED
from ._progress import ProgressBar

HELP = "list, download, import, verify or remove models, or choose the default one"

_WIDTH = 80
_COLUMNS = (("", 2), ("ID", 26), ("NETWORK", 11), ("STATUS", 11), ("SIZE", 9), ("LICENSE", 16))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions, each with its own arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    action = actions.add_parser("list", help="show the models, what may be done with them, and whether they are here")
    action.add_argument("--json", action="store_true", help="everything that is known, as JSON")

    action = actions.add_parser("download", help="fetch a published model (the one action that uses the network)")
    action.add_argument("id", help="a model of the list")
    action.add_argument(
        "--mirror",
        metavar="URL",
        help="base address to fetch from in place of the original host (else the variable COVIDLESIONSEG_MIRROR)",
    )

    action = actions.add_parser("import", help="check a model file and copy it into the folder of models")
    action.add_argument("file", metavar="FILE", help="a safetensors file or a PyTorch checkpoint")
    action.add_argument("--id", help="the model of the list that it is, or a new id")

    action = actions.add_parser("verify", help="compare the files of models with their recorded hashes")
    action.add_argument("id", nargs="?", help="one model; without it, all that are here")

    action = actions.add_parser("remove", help="delete a downloaded, imported or trained model")
    action.add_argument("id")

    action = actions.add_parser("default", help="show or choose the model that is taken when none is named")
    action.add_argument("id", nargs="?")


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; returns the exit status."""
    registry = ModelRegistry()
    if arguments.action == "list":
        return _list(registry, as_json=arguments.json)
    if arguments.action == "download":
        return _download(registry, arguments.id, arguments.mirror)
    if arguments.action == "import":
        entry = registry.import_file(arguments.file, arguments.id)
        _print_notice(entry)
        print(f"Installed as {entry.id} ({entry.path}).")
        print(f"SHA-256 {entry.sha256}, checked at every use from now on.")
        return 0
    if arguments.action == "verify":
        return _verify(registry, arguments.id)
    if arguments.action == "remove":
        was_default = registry.entry(arguments.id).is_default
        registry.remove(arguments.id)
        print(f"Removed {arguments.id}.")
        if was_default:
            print(f"The default model is {registry.default()} again.")
        return 0
    if arguments.id:
        registry.set_default(arguments.id)
    print(registry.default())
    return 0


def _list(registry: ModelRegistry, as_json: bool) -> int:
    entries = registry.list()
    if as_json:
        print(json.dumps([entry.to_json() for entry in entries], indent=2, ensure_ascii=False))
        return 0
    print(_row([title for title, _ in _COLUMNS]))
    for entry in entries:
        _print_entry(entry)
    print()
    print("* taken when no model is named.")
    print(f"Your own models are kept in {registry.folder}.")
    return 0


def _print_entry(entry: ModelEntry) -> None:
    mark = "*" if entry.is_default else ""
    cells = [mark, entry.id, entry.network, entry.status, _size(entry.size_bytes), entry.license or "unknown"]
    if len(entry.id) >= _COLUMNS[1][1]:
        # an id is for copying, so it is never cut: it gets a line of its own
        print(_row([mark, entry.id]))
        cells[:2] = ["", ""]
    print(_row(cells))
    if entry.problem:
        print(textwrap.fill(f"{entry.problem}.", _WIDTH, initial_indent="    ", subsequent_indent="    "))


def _row(cells: Sequence[str]) -> str:
    *others, last = zip(cells, _COLUMNS, strict=False)
    line = "".join(cell.ljust(width) for cell, (_, width) in others)
    # long licenses of the user's own models go on below themselves
    lines = textwrap.wrap(last[0], max(last[1][1], 1)) if len(cells) == len(_COLUMNS) else [last[0]]
    return "\n".join([line + (lines[0] if lines else ""), *(" " * len(line) + more for more in lines[1:])]).rstrip()


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"


def _download(registry: ModelRegistry, model_id: str, mirror: str | None) -> int:
    entry = registry.entry(model_id)
    _print_notice(entry)
    sys.stdout.flush()
    already_here = entry.is_usable
    with ProgressBar(model_id) as bar:

        def show(phase: str, done: int, total: int) -> None:
            bar(f"{phase}, MB", done // 1_000_000, total // 1_000_000)

        entry = registry.download(model_id, mirror, progress=show)
    if entry.status == BUNDLED:
        print(f"{entry.id} comes with the extension; there is nothing to download.")
    elif already_here:
        print(f"{entry.id} is installed already ({entry.path}).")
    else:
        print(f"Installed {entry.id} ({entry.path}).")
        print(f"SHA-256 {entry.sha256}.")
    return 0


def _print_notice(entry: ModelEntry) -> None:
    print(f"{entry.name}. License of the weights: {entry.license or 'unknown'}.")
    if entry.license_notice:
        print(textwrap.fill(entry.license_notice, _WIDTH))


def _verify(registry: ModelRegistry, model_id: str | None) -> int:
    if model_id is not None:
        print(f"{model_id}: right, SHA-256 {registry.verify(model_id).sha256}")
        return 0
    failed = 0
    for entry in registry.list():
        if not entry.path and not entry.problem:
            continue
        try:
            print(f"{entry.id}: right, SHA-256 {registry.verify(entry.id).sha256}")
        except ModelError as error:
            failed += 1
            print(f"{entry.id}: WRONG. {error}")
    if failed:
        print(f"{failed} of the models can't be used.", file=sys.stderr)
    return EXIT_SOME_FAILED if failed else 0
