"""The host as Slicer's launcher: ``python -m host`` takes the options that ctest passes to Slicer.

Understood: ``--additional-module-path(s) FOLDER...`` (every .py in them is loaded as a module, as Slicer does),
``--python-code CODE``, ``--python-script FILE ARGUMENTS...``; other options that start with ``--`` are passed over.
``slicer.testing.runUnitTest`` fails where no test ran.
"""

from __future__ import annotations

import importlib
import runpy
import sys
import types
import unittest
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the exit status."""
    import slicer

    from . import boot_gui
    from .scripted import load_module

    folders, code, script = _parse(list(arguments))
    boot_gui()
    testing = sys.modules["slicer.testing"] = types.ModuleType("slicer.testing")
    testing.runUnitTest = run_unit_test  # type: ignore[attr-defined]
    slicer.testing = testing
    for folder in dict.fromkeys(folders):
        for file in sorted(Path(folder).glob("*.py")):
            load_module(file)
    if code:
        exec(code.replace("\\;", ";"), {"__name__": "__main__", "slicer": slicer})
    if script:
        sys.argv = script
        runpy.run_path(script[0], run_name="__main__")
    return 0


def run_unit_test(paths: Sequence[str], name: str) -> None:
    """``slicer.testing.runUnitTest``: run the tests of a file and end the process.

    Args:
        paths: folders to look for it in.
        name: of the file, without ending.
    """
    sys.path[:0] = [str(path) for path in paths]
    tests = unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(name))
    result = unittest.TextTestRunner(verbosity=2).run(tests)
    if not result.testsRun:
        print(f"{name} has no tests", file=sys.stderr)
    sys.exit(0 if result.wasSuccessful() and result.testsRun else 1)


def _parse(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """Module folders, code, and the script with its arguments."""
    folders: list[str] = []
    code = ""
    while arguments:
        option = arguments.pop(0)
        if option in ("--additional-module-path", "--additional-module-paths"):
            while arguments and not arguments[0].startswith("--"):
                folders.append(arguments.pop(0))
        elif option == "--python-code":
            code = arguments.pop(0)
        elif option == "--python-script":
            return folders, code, arguments
        elif not option.startswith("--"):
            raise SystemExit(f"The host does not understand {option!r}.")
    return folders, code, []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
