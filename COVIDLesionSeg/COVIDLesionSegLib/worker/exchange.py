"""Arrays that travel as files through a private folder."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..processes import is_alive
from .protocol import ArrayHeader, ProtocolError, parts

PREFIX = "covid-lesion-seg-"
# a folder in memory is taken where it is surely large enough for a CT, its maps and more
_MEMORY = Path("/dev/shm")  # noqa: S108  # what is made in it is a folder of our own with a random name
_ENOUGH = 4 << 30
_OLD = 24 * 3600.0


def make_folder() -> Path:
    """A new folder that only this user can read, in memory where there is plenty, else where temporary files go.

    What a machine that lost its power has left there, images of patients perhaps, is removed.

    Raises:
        OSError: it can't be made.
    """
    in_memory = sys.platform == "linux" and os.access(_MEMORY, os.W_OK)
    place = _MEMORY if in_memory and shutil.disk_usage(_MEMORY).free >= _ENOUGH else Path(tempfile.gettempdir())
    for left in place.glob(f"{PREFIX}*"):
        if _is_left_over(left):
            remove_folder(left)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place))


def _is_left_over(folder: Path) -> bool:
    """Whether nobody uses a folder of ours any more: it is a day old, and its process is gone."""
    pid = folder.name.removeprefix(PREFIX).split("-")[0]
    try:
        is_old = time.time() - folder.stat().st_mtime > _OLD
    except OSError:
        return False
    return is_old and pid.isdigit() and not is_alive(int(pid))


def remove_folder(folder: Path) -> None:
    """Remove a folder made by :func:`make_folder`, and nothing else."""
    if folder.name.startswith(PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def write_array(path: Path, array: NDArray[Any]) -> Iterator[int]:
    """Write a .npy file piece by piece: each step of the iterator writes one, so that nothing else has to wait long.

    Yields:
        Bytes written so far.

    Raises:
        OSError: the disk is full, or the file can't be written.
    """
    with path.open("xb") as file:
        header = {"descr": array.dtype.newbyteorder("<").str, "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        done = 0
        for part in parts(array, 4 << 20):
            file.write(part)
            done += part.nbytes
            yield done


def read_array(folder: Path, header: ArrayHeader) -> NDArray[Any]:
    """An array from its file, which is removed; writable, mapped to memory where the system allows that.

    Raises:
        ProtocolError: there is no such file, or it holds something else than announced.
    """
    if Path(header.file).name != header.file or header.file in ("", ".", ".."):
        raise ProtocolError(f"The array {header.name!r} is announced in the file {header.file!r}.")
    path = folder / header.file
    try:
        if 0 in header.shape:
            # nothing can be mapped to memory
            found: NDArray[Any] = np.load(path, allow_pickle=False)
        elif os.name == "posix":
            # copy on write: changes stay in memory, and the file may go while it is mapped
            found = np.load(path, mmap_mode="c", allow_pickle=False)
        else:
            found = np.load(path, allow_pickle=False)
        path.unlink()
    except (OSError, ValueError) as error:
        raise ProtocolError(f"The array {header.name!r} did not arrive whole ({type(error).__name__}).") from error
    if list(found.shape) != header.shape or found.dtype != np.dtype(header.dtype):
        raise ProtocolError(
            f"The array {header.name!r} is {found.dtype} {found.shape}, "
            f"but {header.dtype} {header.shape} was announced."
        )
    return np.asarray(found)
