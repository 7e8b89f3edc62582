"""The command line and the environment that a child is started with."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from ..errors import InputError
from .values import WorkerSettings

_PACKAGE = Path(__file__).resolve().parent.parent
# folders in which other packages lie beside ours; putting them on another interpreter's path would mix the two
_SHARED_FOLDERS = ("site-packages", "dist-packages", "qt-scripted-modules")
_COMMAND = "covid-lesion-seg"


def command_line(settings: WorkerSettings, arguments: list[str]) -> list[str]:
    """The command that starts ``COVIDLesionSegLib.worker``.

    On this machine the library is the one that is running here, wherever it lies: the interpreter is given the file.
    Behind a prefix it is the one that is installed there.

    Args:
        settings: interpreter and prefix.
        arguments: of the worker.
    """
    if settings.prefix:
        python = settings.python or "python3"
        if _is_command(python):
            return [*settings.prefix, python, "worker", *arguments]
        # -P: nothing that lies in the current folder is taken for a package
        return [*settings.prefix, python, "-P", "-m", "COVIDLesionSegLib.worker", *arguments]
    python = settings.python or own_python()
    if _is_command(python):
        return [python, "worker", *arguments]
    return [python, "-P", str(_PACKAGE / "worker" / "__main__.py"), *arguments]


def child_environment(settings: WorkerSettings) -> dict[str, str]:
    """The child's environment: the given one or this process's, with the library on the path where it lies alone."""
    environment = dict(os.environ if settings.environment is None else settings.environment)
    folder = _PACKAGE.parent
    if folder.name not in _SHARED_FOLDERS:
        others = [item for item in environment.get("PYTHONPATH", "").split(os.pathsep) if item]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(folder), *others]))
    # text on the standard error in one encoding, at once
    environment |= {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    return environment


def own_python() -> str:
    """Slicer's own interpreter inside Slicer, else the running one."""
    slicers = shutil.which("PythonSlicer") if "slicer" in sys.modules else None
    return slicers or sys.executable or "python3"


def split_prefix(text: str) -> tuple[str, ...]:
    """A command prefix as a user types it, as words.

    Raises:
        InputError: a quotation mark that is not closed.
    """
    try:
        return tuple(shlex.split(text, posix=os.name == "posix"))
    except ValueError as error:
        raise InputError(f"The command prefix {text!r} can't be understood: {error}.") from error


def _is_command(python: str) -> bool:
    return Path(python).stem == _COMMAND
