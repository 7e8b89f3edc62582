"""Public names of a package that are imported at first use.

Some rooms hold modules that need PyTorch beside modules that must load without it (inside Slicer). Their ``__init__``
therefore names where each public name lives and imports it when somebody asks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package whose names load at first use.

    Args:
        package: the package's ``__name__``.
        homes: public name -> submodule of the package that defines it.

    Returns:
        The two functions, to be bound as ``__getattr__, __dir__`` in the package's ``__init__``.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted(homes)

    return load, names
