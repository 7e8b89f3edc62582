"""Arrays and files on their way between the two processes.

Arrays travel as files through a private folder, or in the pipe (:mod:`.protocol`). One that several children need is a
:class:`SharedArray`: its file is written once, and each child is given a link to it. Behind a command prefix a path of
the parent's machine means nothing: the bytes of a file that a task reads travel through the pipe, once. A parameter
that names a file becomes ``{"$file": {"name": ..., "sha256": ...}}``; the bytes come along as the array
``$file:<sha256>`` unless the child said in its greeting that it has them. The child keeps them in a folder of the
user's, by their hash, checks the hash, and gives the task the path of its copy.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError
from ..files import atomic_path, is_unfinished, sha256_file
from ..models.catalog import default_folder
from ..processes import is_alive
from . import protocol as p
from .faults import FileMissingError

PREFIX = "covid-lesion-seg-"
# a folder in memory is taken where it is surely large enough for a CT, its maps and more
_MEMORY = Path("/dev/shm")  # noqa: S108  # what is made in it is a folder of our own with a random name
_ENOUGH = 4 << 30
_OLD = 24 * 3600.0
# bytes that are written or hashed in one step
_PIECE = 4 << 20
_KEY = "$file"
_SHA256 = re.compile(r"[0-9a-f]{64}")
# a store's models come and go; those that were used last stay
_KEPT = 6


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
        for part in p.parts(array, _PIECE):
            file.write(part)
            done += part.nbytes
            yield done


class SharedArray:
    """An array that several children need, one after the other or at the same time: its bytes are written once.

    The file lies in a private folder of this object's own. A child is given a hard link in the folder that it shares
    with its client, and removes that link as it would remove a file of its own; so neither a child that dies or is
    restarted nor a client that is closed takes the array from the others. Where the system has no links (another file
    system), and in the pipe, the bytes are sent again.

    The file goes with :meth:`release`, with this object, or with the program; children keep what they have mapped.

    Args:
        array: numbers, of any shape; must not change.

    Example:
        >>> ct = SharedArray(volume.array)  # doctest: +SKIP
        >>> segmenting.request("segment", {"geometry": grid}, {"volume": ct})  # doctest: +SKIP
        >>> measuring.request("open", {"study": "a", "geometry": grid}, {"volume": ct})  # doctest: +SKIP
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self._file: Path | None = None
        self._remove: Callable[[], object] = lambda: None

    @property
    def array(self) -> NDArray[Any]:
        """The values; once they are written, where the system allows that, mapped from the file and read-only."""
        return self._array

    def place(self, path: Path) -> Iterator[int]:
        """Put a file with the array at ``path``, in steps as :func:`write_array` where its bytes must be written.

        Raises:
            OSError: the disk is full, or the file can't be written.
        """
        try:
            # gone where somebody has cleared up
            os.link(self._file or "", path)
        except OSError:
            # nothing was written yet, or links do not lead there
            yield from write_array(path, self._array)
            self._keep(path)
        else:
            yield self._array.nbytes

    def _keep(self, written: Path) -> None:
        """Take a file that was written for a child, if links work there."""
        folder = make_folder()
        file = folder / "array.npy"
        try:
            os.link(written, file)
        except OSError:
            remove_folder(folder)
            return
        self.release()
        self._file, self._remove = file, weakref.finalize(self, remove_folder, folder)
        if os.name == "posix" and self._array.size:
            self._array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))

    def release(self) -> None:
        """Remove the file; the array can still be used, and is written again for whoever needs it."""
        self._remove()
        self._file = None


def read_array(folder: Path, header: p.ArrayHeader) -> NDArray[Any]:
    """An array from its file, which is removed; writable, mapped to memory where the system allows that.

    Raises:
        ProtocolError: there is no such file, or it holds something else than announced.
    """
    if Path(header.file).name != header.file or header.file in ("", ".", ".."):
        raise p.ProtocolError(f"The array {header.name!r} is announced in the file {header.file!r}.")
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
        raise p.ProtocolError(f"The array {header.name!r} did not arrive whole ({type(error).__name__}).") from error
    if list(found.shape) != header.shape or found.dtype != np.dtype(header.dtype):
        raise p.ProtocolError(
            f"The array {header.name!r} is {found.dtype} {found.shape}, "
            f"but {header.dtype} {header.shape} was announced."
        )
    return np.asarray(found)


@dataclass(frozen=True, eq=False)
class Parcel:
    """What a request sends.

    Attributes:
        number: of the request.
        task: what to do.
        parameters: plain JSON values.
        arrays: what the task works on.
        files: parameters whose files travel along through the pipe.
    """

    number: int
    task: str
    parameters: dict[str, Any]
    arrays: Mapping[str, NDArray[Any] | SharedArray]
    files: Mapping[str, Path]


def values_of(array: NDArray[Any] | SharedArray) -> NDArray[Any]:
    """The values of an array, shared or not."""
    return array.array if isinstance(array, SharedArray) else array


def upload_files(
    parcel: Parcel, folder: Path, write: Callable[[bytes], None], tell: Callable[[int, int], None]
) -> Iterator[None]:
    """Send a request whose arrays go into files of a folder, piece by piece.

    Args:
        parcel: to send.
        folder: private to parent and child.
        write: writes to the child's standard input.
        tell: called with the bytes that are sent, and all there are.

    Raises:
        OSError: a file can't be written.
    """
    headers = []
    total = sum(values_of(array).nbytes for array in parcel.arrays.values())
    sent = 0
    for index, (name, array) in enumerate(parcel.arrays.items()):
        header = p.ArrayHeader.of(name, values_of(array), f"{parcel.number}-{index}.npy")
        path = folder / header.file
        for done in array.place(path) if isinstance(array, SharedArray) else write_array(path, array):
            tell(sent + done, total)
            yield
        sent += header.nbytes
        headers.append(header)
    write(p.encode(p.Ask(parcel.number, parcel.task, parcel.parameters, headers, str(folder))))


def upload_bytes(
    parcel: Parcel, held: set[str], compress: bool, write: Callable[[bytes], None], tell: Callable[[int, int], None]
) -> Iterator[None]:
    """Send a request whose arrays, and the files that the other machine has not got, go through the pipe.

    Args:
        parcel: to send.
        held: hashes of the files that the other machine has; those that are sent are added.
        compress: whether what shrinks well is compressed.
        write: writes to the pipe.
        tell: called with the bytes that are sent, and all there are.

    Raises:
        OSError: a file can't be read.
    """
    parameters = dict(parcel.parameters)
    arrays = {name: values_of(array) for name, array in parcel.arrays.items()}
    for name, path in parcel.files.items():
        # an empty file can't be mapped
        content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        digest = hashlib.sha256()
        for part in p.parts(content, _PIECE):
            digest.update(part)
            yield
        parameters[name] = reference_to_file(path.name, digest.hexdigest())
        if digest.hexdigest() not in held:
            arrays[array_of_file(digest.hexdigest())] = content
            held.add(digest.hexdigest())
    headers = [p.ArrayHeader.of(name, array, compress=compress) for name, array in arrays.items()]
    write(p.encode(p.Ask(parcel.number, parcel.task, parameters, headers, "", compress)))
    total, sent = sum(header.nbytes for header in headers), 0
    for header in headers:
        for block, size in p.blocks(arrays[header.name], header.encoding == "zlib"):
            write(block)
            sent += size
            tell(sent, total)
            yield


# ---- files of the other machine -------------------------------------------------------------------------------------


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
