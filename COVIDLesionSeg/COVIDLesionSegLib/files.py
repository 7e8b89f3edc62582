"""Files that appear whole or not at all, their hashes, and the door that every foreign file comes through."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import OutputError, ReadError

_UNFINISHED = re.compile(r"^(\.[0-9a-f]{8}\.part\.)+")
# what this process is writing at the moment
_unfinished: set[Path] = set()
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def regular_file(path: Path | str) -> os.stat_result:
    """The status of a file that holds what was written to it; links are followed.

    A pipe or device would be waited for without end, or never end.

    Raises:
        ReadError: a folder, a pipe, a socket or a device.
        OSError: not there, or it can't be looked at.
    """
    try:
        status = Path(path).stat()
    except ValueError as error:
        raise ReadError(f"{str(path)!r} can't be the name of a file.") from error
    if not stat.S_ISREG(status.st_mode):
        raise ReadError(f"{path} could not be read: it is {_kind(status)}, and a file is needed.")
    return status


def open_regular(path: Path | str) -> io.BufferedReader:
    """Open a regular file for reading; raises as :func:`regular_file`."""
    regular_file(path)
    return Path(path).open("rb")


def read_bytes(path: Path | str, most: int) -> bytes:
    """All bytes of a regular file.

    Raises:
        ReadError: as :func:`regular_file`, or more than ``most`` bytes.
        OSError: not there, or unreadable.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ReadError(f"{path} is larger than the {most} bytes that such a file may have.")
    return content


def user_path(text: Path | str) -> Path:
    """A path with "~" and "~name" expanded; one of an unknown user stays as it is, and names nothing."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def check_target(target: Path | str) -> Path:
    """Where a file of this name is really written: a link leads to what it names.

    Raises:
        OutputError: something other than a file is there, which must not be replaced by one.
    """
    target = Path(target)
    try:
        # /dev/stdout and the like are links to what a process has open; /dev/shm is a file system of plain files
        leads = str(target.readlink()) if target.is_symlink() else ""
        special = leads.startswith(("/proc/", "/dev/")) and not leads.startswith("/dev/shm/")  # noqa: S108
        status = target.stat()
    except FileNotFoundError:
        status = None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{_shown(target)} could not be written: {reason}.") from error
    if status is not None and (special or not stat.S_ISREG(status.st_mode)):
        what = "a device" if special else _kind(status)
        raise OutputError(f"{_shown(target)} is {what}, which is not replaced by a file; name a file.")
    # realpath, other than resolve(), leaves a link to nothing as the name that it holds
    return Path(os.path.realpath(target)) if target.is_symlink() else target


@contextlib.contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """A name to write to that becomes ``target`` when the block ends well, and vanishes when it does not.

    The file is written beside its target (same file system, same extension, since many writers choose their format by
    it), flushed to disk and renamed, so that a reader sees the old file or the new one and never a part.

    A file that is replaced leaves its mode to the new one; a link stays, and what it names is replaced.

    Args:
        target: the file to make or replace; its folder is made if absent.

    Raises:
        OutputError: the folder or file can't be written, something other than a file has its name, or the disk is full.
    """
    target = check_target(target)
    temporary = _temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"{_shown(target)} could not be written: {_reason(error)}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


@contextlib.contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """A folder to fill that becomes ``target`` when the block ends well, and vanishes when it does not.

    Its files are flushed to disk before the folder gets its name, so that a reader sees all of it or nothing. A folder
    that is there already is never replaced.

    Args:
        target: the folder to make; the folder it lies in is made if absent.

    Raises:
        FileExistsError: somebody else made ``target`` meanwhile.
        OutputError: the folder can't be written, or the disk is full.
    """
    target = Path(target)
    temporary = _temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in sorted(temporary.rglob("*"), reverse=True):
            if path.is_dir():
                _sync_folder(path)
            else:
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        _sync_folder(temporary)
        try:
            temporary.rename(target)
        except OSError as error:
            if target.exists():
                raise FileExistsError(errno.EEXIST, "is there already", str(target)) from error
            raise
        _sync_folder(target.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise OutputError(f"{_shown(target)} could not be written: {_reason(error)}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unfinished.discard(temporary)


def remove_unfinished() -> None:
    """Delete what this process is writing, before it ends without coming back to the writers (``os._exit``)."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def is_unfinished(name: str) -> bool:
    """Whether a file or folder of this name was being written when its program ended."""
    return _UNFINISHED.match(name) is not None


def write_text(target: Path | str, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: Path | str, value: Any) -> None:
    """Write JSON (indented, NaN refused: absent values are null), whole or not at all."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary_name(target: Path) -> Path:
    # a leading dot and a random part: invisible to folder listings, never in another writer's way
    temporary = target.with_name(f".{secrets.token_hex(4)}.part.{target.name}")
    _unfinished.add(temporary)
    return temporary


def _shown(target: Path) -> Path:
    """The name that the user gave, also where one atomic file is the temporary of another."""
    return target.with_name(_UNFINISHED.sub("", target.name))


def _kind(status: os.stat_result) -> str:
    return next((name for test, name in _KINDS if test(status.st_mode)), "no file")


def _sync_folder(folder: Path) -> None:
    # the rename itself must survive a power cut; Windows can't open folders and doesn't need it
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full; free some space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the folder is read-only; choose another one or ask for write access"
    return error.strerror or str(error)
