"""Taking turns in the folder of models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .. import locks
from ..errors import ModelError

_HINT = "Choose another folder for models with the environment variable COVIDLESIONSEG_MODELS."


@contextlib.contextmanager
def exclusive(path: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Be the only process (and thread) inside the block that names this lock file, see :func:`~..locks.exclusive`.

    Args:
        path: the lock file; made if absent, with its folder.
        busy: sentence for the error when somebody else holds the lock.
        wait_s: how long to wait for it, s.

    Raises:
        ModelError: somebody else still holds the lock; the message is ``busy``.
        OutputError: the lock file can't be made or locked here.
    """
    with locks.exclusive(path, ModelError(busy), wait_s, _HINT):
        yield
