"""Files that a task reads and that lie on the parent's machine: their bytes travel through the pipe, once.

Behind a command prefix a path of the parent's machine means nothing. A parameter that names a file becomes
``{"$file": {"name": ..., "sha256": ...}}``; the bytes come along as the array ``$file:<sha256>`` unless the child said
in its greeting that it has them. The child keeps them in a folder of the user's, by their hash, checks the hash, and
gives the task the path of its copy.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError
from ..files import atomic_path, is_unfinished, sha256_file
from ..models.catalog import default_folder
from .faults import FileMissingError

_KEY = "$file"
_SHA256 = re.compile(r"[0-9a-f]{64}")
# a store's models come and go; those that were used last stay
_KEPT = 6


def reference_to_file(name: str, sha256: str) -> dict[str, Any]:
    """The parameter that stands for a file."""
    return {_KEY: {"name": name, "sha256": sha256}}


def array_of_file(sha256: str) -> str:
    """Name of the array with the bytes of a file."""
    return f"{_KEY}:{sha256}"


class ReceivedFiles:
    """The files that this machine has received.

    Args:
        folder: where they are kept; None takes ``received`` in the user's folder of models. Made with the first file.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._checked: dict[Path, tuple[int, int]] = {}

    @property
    def folder(self) -> Path:
        """Where they are kept.

        Raises:
            ModelError: no home folder is known.
        """
        return default_folder() / "received" if self._folder is None else self._folder

    def hashes(self) -> list[str]:
        """SHA-256 of each file that is here."""
        try:
            return [folder.name for folder in self._kept()]
        except (OSError, ModelError):
            # nothing can be kept here: who sends a file is told why
            return []

    def resolve(self, parameters: Mapping[str, Any], arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Parameters with the paths of files on this machine.

        Args:
            parameters: of a request.
            arrays: of the request; bytes of files are taken out.

        Raises:
            InputError: not a file, or bytes of another hash.
            FileMissingError: a file that is not here (any more), and whose bytes did not come along.
            OutputError: the disk is full, or the folder read-only.
        """
        return {name: self._resolved(value, arrays) for name, value in parameters.items()}

    def _resolved(self, value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
        if not isinstance(value, dict) or list(value) != [_KEY]:
            return value
        try:
            name, sha256 = str(value[_KEY]["name"]), str(value[_KEY]["sha256"])
        except (KeyError, TypeError) as error:
            raise InputError("A file is announced without its name and hash.") from error
        if not _SHA256.fullmatch(sha256) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise InputError(f"A file is announced as {name[:80]!r} with the hash {sha256[:80]!r}.")
        content = arrays.pop(array_of_file(sha256), None)
        path = self._path(sha256)
        if path is None and content is not None:
            self._keep(name, sha256, content)
            path = self._path(sha256)
        if path is None:
            raise FileMissingError("A file that was sent earlier is not on this machine any more.", "Try again.")
        return str(path)

    def _keep(self, name: str, sha256: str, content: NDArray[Any]) -> None:
        data = np.ascontiguousarray(content).data
        if hashlib.sha256(data).hexdigest() != sha256:
            raise InputError(f"The file {name} did not arrive as it was announced.", "Try again.")
        with atomic_path(self.folder / sha256 / name) as path:
            path.write_bytes(data)
        for old in self._kept()[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def _kept(self) -> list[Path]:
        """Folders of the files that are here, the one that was used last first."""
        found = [folder for folder in self.folder.glob("*") if _SHA256.fullmatch(folder.name) and _content(folder)]
        return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)

    def _path(self, sha256: str) -> Path | None:
        """The file of a hash, None where it is not here or was changed; it counts as used."""
        folder = self.folder / sha256
        path = _content(folder)
        if path is not None and not self._is_right(path, sha256):
            shutil.rmtree(folder, ignore_errors=True)
            path = None
        if path is not None:
            os.utime(folder)
        return path

    def _is_right(self, path: Path, sha256: str) -> bool:
        status = path.stat()
        state = (status.st_size, status.st_mtime_ns)
        if self._checked.get(path) != state and sha256_file(path) != sha256:
            return False
        self._checked[path] = state
        return True


def _content(folder: Path) -> Path | None:
    return next((path for path in folder.glob("*") if not is_unfinished(path.name)), None)
