#!/usr/bin/env python3
"""The project's commands, for a fresh clone with nothing but Python 3.11 or newer.

    python3 run.py demo [--input PATH] [-o FOLDER] ...   segment a CT with the bundled model and leave a picture of it
    python3 run.py test [--long] [PYTEST ARGUMENT ...]   install what the tests need and run them
    python3 run.py docs                                  build the documentation as a site into site/

All make ``.venv`` beside this file and install the project there, with the exact versions of constraints.txt.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
EXTRAS = {"demo": "report,dicom", "test": "test", "docs": "docs"}
USAGE = "usage: python3 run.py demo [--input PATH] [-o FOLDER] | test [--long] [PYTEST ARGUMENT ...] | docs"


def install(extras: str) -> None:
    """Make .venv if it is absent or broken and install the project with its extras, unless just that was done."""
    wanted = hashlib.sha256(
        b"".join((HERE / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")) + sys.version.encode()
    ).hexdigest()
    stamp = VENV / f"installed-{extras.replace(',', '-')}"
    if PYTHON.is_file() and stamp.is_file() and stamp.read_text() == wanted:
        return
    if not has_pip():
        print("Making .venv ...", flush=True)
        venv.create(VENV, with_pip=True, clear=True)
    print(f"Installing the project [{extras}] into .venv (minutes the first time) ...", flush=True)
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
    if subprocess.run([*command, "-e", f".[{extras}]"], cwd=HERE).returncode != 0:
        sys.exit("error: the installation failed; pip's last lines above say why (no network? a proxy? disk full?).")
    stamp.write_text(wanted)


def has_pip() -> bool:
    """Whether .venv's Python is there, runs and has pip: not so after an interrupted first run or a system upgrade."""
    try:
        return subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def processes() -> int:
    """How many processes run tests side by side; each may need 3 GB."""
    return max(1, min(4, os.cpu_count() or 1))


def parallel(arguments: list[str]) -> list[str]:
    """The arguments for pytest, sharing the tests among processes unless they say how many themselves."""
    chosen = any(argument.startswith(("-n", "--numprocesses", "--pdb")) for argument in arguments)
    return arguments if chosen else ["-n", str(processes()), "--dist", "worksteal", *arguments]


def one_share_each() -> dict[str, str]:
    """The environment in which each process computes with its share of the processor cores."""
    share = max(1, (os.cpu_count() or 1) // processes())
    return {"OMP_NUM_THREADS": str(share), **os.environ}


def main(argv: list[str]) -> int:
    if sys.version_info < (3, 11):
        print(f"error: this is Python {sys.version.split()[0]}; 3.11 or newer is needed.", file=sys.stderr)
        return 2
    if not argv or argv[0] not in EXTRAS:
        print(USAGE, file=sys.stderr)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    command, *rest = argv
    install(EXTRAS[command])
    if command == "demo":
        return subprocess.run([PYTHON, "-m", "COVIDLesionSegLib", "demo", *rest]).returncode
    if command == "docs":
        return subprocess.run([PYTHON, "-m", "mkdocs", "build", "--strict", *rest], cwd=HERE).returncode
    status = subprocess.run([PYTHON, "-m", "pytest", *parallel(rest)], cwd=HERE, env=one_share_each()).returncode
    if status == 0 and "--long" in rest:
        # the speed checks; what they print stands in docs/performance.md
        status = subprocess.run([PYTHON, "Testing/benchmarks/run_all.py"], cwd=HERE).returncode
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
