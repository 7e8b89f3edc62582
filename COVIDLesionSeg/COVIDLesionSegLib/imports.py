"""Classes that a user names by import path, "package.module:Name": networks, losses, transforms, callbacks."""

from __future__ import annotations

import importlib
import re
from typing import Any

from .errors import InputError

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_import_path(name: str) -> bool:
    """Whether a name is an import path, "package.module:Name"."""
    return IMPORT_PATH.fullmatch(name) is not None


def import_class(path: str, base: type, what: str) -> Any:
    """The class that an import path names.

    Importing runs the module's code: only what a user has named may come here, never what a file says of itself.

    Args:
        path: "package.module:Name"; the package is installed, or in the current folder.
        base: what the class must be derived from.
        what: what the class is for, in messages, e.g. "loss".

    Raises:
        InputError: another form, no such module or class, or a class of another kind.
    """
    if not is_import_path(path):
        raise InputError(f"The {what} {path!r} is no import path; package.module:Name is needed.")
    module_name, name = path.split(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"The {what} {path} can't be imported ({error}); is its package installed?") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{path} is no {what}: a class derived from {base.__module__}.{base.__name__} is needed.")
    return found
