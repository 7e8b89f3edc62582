"""Networks of other packages, named by import path, that train, predict and have a card as this project's own do."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..imports import import_class, is_import_path
from .slices import SliceNetwork

# Import paths, separated by commas, that model files may name: loading them runs their code.
ALLOWED_VARIABLE = "COVIDLESIONSEG_NETWORKS"
# those that the user of this process has named himself
_named: set[str] = set()


class ImportedNetwork(SliceNetwork):
    """A network of another package as a :class:`SliceNetwork`.

    Args:
        path: "package.module:Name" of a module that maps slices (N, C, H, W), whose sides are multiples of 16, to raw
            logits (N, 2, H, W).
        arguments: of its constructor, as JSON values.

    Raises:
        InputError: it can't be imported or made.
    """

    def __init__(self, path: str, arguments: Mapping[str, Any]) -> None:
        make = import_class(path, nn.Module, "network")
        super().__init__(arguments.get("in_channels", 1), arguments.get("out_channels", 2))
        known = inspect.signature(make).parameters
        given = dict(arguments)
        takes_channels = "in_channels" in known or any(p.kind == p.VAR_KEYWORD for p in known.values())
        if not takes_channels and given.pop("in_channels", 1) != 1:
            raise InputError(f"{path} has no argument in_channels, so it can't see neighboring slices as channels.")
        try:
            self.network = make(**given)
        except (TypeError, ValueError) as error:
            raise InputError(f"The network {path} can't be made: {error}.") from error
        self.family = path  # type: ignore[misc]  # of this network alone, not of the class
        self._arguments = dict(arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        return dict(self._arguments)

    def forward_slices(self, x: Tensor) -> Tensor:
        """Logits (N, out_channels, H, W) of slices (N, C, H, W)."""
        logits: Tensor = self.network(x)
        wanted = (x.shape[0], self.out_channels, *x.shape[2:])
        if logits.shape != wanted:
            raise InputError(f"{self.family} gave logits of the shape {tuple(logits.shape)}; {wanted} is needed.")
        return logits


def allow(path: str) -> None:
    """Let model files name this import path: the user has named it."""
    _named.add(path)


def require_allowed(path: str, file: str) -> None:
    """Refuse a network that a model file names, unless the user has named it, too.

    Raises:
        InputError: the user has not.
    """
    listed = {name.strip() for name in os.environ.get(ALLOWED_VARIABLE, "").split(",")}
    if is_import_path(path) and path not in _named | listed:
        raise InputError(
            f"{file} needs the network {path}, which is no part of this program; loading it runs its code.",
            f"If you trust it, set {ALLOWED_VARIABLE}={path}.",
        )
