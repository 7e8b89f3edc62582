"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import OutputError

_UNFINISHED = re.compile(r"^(\.[0-9a-f]{8}\.part\.)+")


@contextlib.contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """A name to write to that becomes ``target`` when the block ends well, and vanishes when it does not.

    The file is written beside its target (same file system, same extension, since many writers choose their format by
    it), flushed to disk and renamed, so that a reader sees the old file or the new one and never a part.

    Args:
        target: the file to make or replace; its folder is made if absent.

    Raises:
        OutputError: the folder or file can't be written, or the disk is full.
    """
    target = Path(target)
    # a leading dot and a random part: invisible to folder listings, never in another writer's way
    temporary = target.with_name(f".{secrets.token_hex(4)}.part.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"{_shown(target)} could not be written: {_reason(error)}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
    temporary = target.with_name(f".{secrets.token_hex(4)}.part.{target.name}")
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
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(target: Path) -> Path:
    """The name that the user gave, also where one atomic file is the temporary of another."""
    return target.with_name(_UNFINISHED.sub("", target.name))


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
