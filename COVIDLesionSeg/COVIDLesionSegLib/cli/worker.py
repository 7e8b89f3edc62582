"""``covid-lesion-seg worker``: serve another program through standard input and output, e.g. Slicer over ssh."""

from __future__ import annotations

import argparse

from ..worker.server import add_arguments, serve

HELP = "serve Slicer through standard input and output, e.g. ssh gpu-box covid-lesion-seg worker; not for use by hand"

__all__ = ["HELP", "add_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Serve until the other program has no more use for this one."""
    serve(arguments.kind, arguments.idle)
    return 0
