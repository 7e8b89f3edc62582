"""``covid-lesion-seg worker``: serve another program through standard input and output, e.g. Slicer over ssh."""

from __future__ import annotations

from ..worker.server import add_arguments, run

HELP = "serve Slicer through standard input and output, e.g. ssh gpu-box covid-lesion-seg worker; not for use by hand"

__all__ = ["HELP", "add_arguments", "run"]
