"""Real faults of file systems for tests: a user without rights, a disk that is full."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NOBODY = 65534


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Inside, this process has no more rights than an ordinary user, also where tests run as root."""
    if not hasattr(os, "geteuid"):
        pytest.skip("file rights are tested on POSIX systems only")
    user = os.geteuid()
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(user)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user can enter (pytest's own are closed to others)."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def small_disk(megabytes: float) -> Iterator[Path]:
    """A file system of its own with so little room; skips where none may be mounted."""
    with tempfile.TemporaryDirectory() as name:
        size = f"size={int(megabytes * 1024)}k"
        try:
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", size, "tmpfs", name], capture_output=True, check=False
            )
        except OSError as error:
            pytest.skip(f"no small disk can be mounted here: {error}")
        if mounted.returncode:
            pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
        try:
            yield Path(name)
        finally:
            # a child that was just killed may hold a file of it a moment longer: the place is free at once all the same
            subprocess.run(["umount", "--lazy", name], check=True)
