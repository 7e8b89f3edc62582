"""A file lock between processes that the operating system takes back when its owner dies."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import COVIDLesionSegError, OutputError

_POLL_S = 0.05


@contextlib.contextmanager
def exclusive(path: Path, busy: COVIDLesionSegError, wait_s: float = 0.0, hint: str = "") -> Iterator[None]:
    """Be the only process (and thread) inside the block that names this lock file.

    Args:
        path: the lock file; made if absent, with its folder.
        busy: what to raise when somebody else holds the lock.
        wait_s: how long to wait for it, s.
        hint: what the user can do when nothing can be written here.

    Raises:
        COVIDLesionSegError: somebody else still holds the lock; ``busy`` itself.
        OutputError: the lock file can't be made or locked here.
    """
    deadline = time.monotonic() + wait_s
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (descriptor := _acquire(path)) is None:
            if time.monotonic() >= deadline:
                raise busy
            time.sleep(_POLL_S)
    except OSError as error:
        raise OutputError(f"{path.parent} can't be written to ({error.strerror or error}).", hint) from error
    try:
        yield
    finally:
        if os.name == "posix":
            # removed while still locked; Windows can't remove an open file, there the empty file stays
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if _lock(descriptor) and _is_same_file(descriptor, path):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    # each branch exists on its own system only, hence the imports inside
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
    else:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _is_same_file(descriptor: int, path: Path) -> bool:
    # the former owner may have removed the file between our opening and locking it
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
