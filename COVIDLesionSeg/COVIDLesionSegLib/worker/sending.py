"""A request on its way to the child, piece by piece, so that the event loop never waits long."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import protocol as p
from .exchange import write_array
from .received import array_of_file, reference_to_file

_PIECE = 4 << 20


class Job(Protocol):
    """What a connection is given to do: a request, seen from here."""

    @property
    def number(self) -> int:
        """Its id in messages, 1 or more."""

    @property
    def task(self) -> str:
        """What to do."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Plain JSON values."""

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """What to work on."""

    @property
    def files(self) -> Mapping[str, Path]:
        """Files of this machine that parameters name, by the parameter's name."""

    def tell(self, phase: str, done: int, total: int, message: str = "") -> None:
        """Progress."""

    def note(self, text: str) -> None:
        """A sentence for people."""


def through_files(job: Job, folder: Path, write: Callable[[bytes], None]) -> Iterator[None]:
    """Send a request whose arrays go into files of a folder.

    Raises:
        OSError: a file can't be written.
    """
    headers = []
    total = sum(array.nbytes for array in job.arrays.values())
    sent = 0
    for index, (name, array) in enumerate(job.arrays.items()):
        header = p.ArrayHeader.of(name, array, f"{job.number}-{index}.npy")
        for done in write_array(folder / header.file, array):
            job.tell("sending", sent + done, total)
            yield
        sent += array.nbytes
        headers.append(header)
    write(p.encode(p.Ask(job.number, job.task, job.parameters, headers, str(folder))))


def through_pipe(job: Job, held: set[str], compress: bool, write: Callable[[bytes], None]) -> Iterator[None]:
    """Send a request whose arrays, and the files that the other machine has not got, go through the pipe.

    Args:
        job: the request.
        held: hashes of the files that the other machine has; those that are sent are added.
        compress: whether what shrinks well is compressed.
        write: writes to the pipe.

    Raises:
        OSError: a file can't be read.
    """
    parameters, arrays = dict(job.parameters), dict(job.arrays)
    for name, path in job.files.items():
        content = np.memmap(path, np.uint8, "r")
        digest = hashlib.sha256()
        for part in p.parts(content, _PIECE):
            digest.update(part)
            yield
        parameters[name] = reference_to_file(path.name, digest.hexdigest())
        if digest.hexdigest() not in held:
            arrays[array_of_file(digest.hexdigest())] = content
            held.add(digest.hexdigest())
    headers = [p.ArrayHeader.of(name, array, compress=compress) for name, array in arrays.items()]
    packed = {header.name: header.encoding == "zlib" for header in headers}
    write(p.encode(p.Ask(job.number, job.task, parameters, headers, "", compress)))
    total, sent = sum(header.nbytes for header in headers), 0
    for name, array in arrays.items():
        for block, size in p.blocks(array, packed[name]):
            write(block)
            sent += size
            job.tell("sending", sent, total)
            yield
