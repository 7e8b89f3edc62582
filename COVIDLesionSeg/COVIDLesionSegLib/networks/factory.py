"""Networks by name, as model cards name them."""

from __future__ import annotations

import inspect
from typing import Any

from ..errors import InputError
from ..imports import is_import_path
from .caresunet import CAResUNet
from .coplenet import COPLENet
from .imported import ImportedNetwork, allow
from .slices import SliceNetwork

NETWORKS: dict[str, type[SliceNetwork]] = {network.family: network for network in (COPLENet, CAResUNet)}


def create_network(name: str, **arguments: Any) -> SliceNetwork:
    """A network with new, random weights.

    Args:
        name: "coplenet", "caresunet", or the import path of a network of another package, whose code then runs.
        arguments: what its constructor takes; see :class:`COPLENet` and :class:`CAResUNet`.

    Raises:
        InputError: an unknown name or argument, or a value that is not allowed.
    """
    if is_import_path(name):
        allow(name)
        return ImportedNetwork(name, arguments)
    if name not in NETWORKS:
        raise InputError(f"There is no network {name!r}; there are {', '.join(sorted(NETWORKS))}.")
    network = NETWORKS[name]
    known = list(inspect.signature(network).parameters)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise InputError(f"{name} has no argument {', '.join(unknown)}; it takes {', '.join(known)}.")
    return network(**arguments)
