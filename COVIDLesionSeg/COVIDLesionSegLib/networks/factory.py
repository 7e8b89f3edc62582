"""Networks by name, as model cards name them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..imports import is_import_path
from . import NETWORKS
from .imported import ImportedNetwork, allow
from .slices import SliceNetwork


def network_class(name: str) -> type[SliceNetwork]:
    """The class of a network of this program.

    Raises:
        InputError: an unknown name.
    """
    if name not in NETWORKS:
        raise InputError(f"There is no network {name!r}; there are {', '.join(sorted(NETWORKS))}.")
    listed = NETWORKS[name]
    found: type[SliceNetwork] = getattr(importlib.import_module(listed.module, __package__), listed.class_name)
    return found


def create_network(name: str, **arguments: Any) -> SliceNetwork:
    """A network with new, random weights.

    Args:
        name: one of ``NETWORKS``, or the import path of a network of another package, whose code then runs.
        arguments: what its constructor takes.

    Raises:
        InputError: an unknown name or argument, or a value that is not allowed.
    """
    if is_import_path(name):
        allow(name)
        return ImportedNetwork(name, arguments)
    network = network_class(name)
    known = list(inspect.signature(network).parameters)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise InputError(f"{name} has no argument {', '.join(unknown)}; it takes {', '.join(known)}.")
    return network(**arguments)


def with_more_channels(network: SliceNetwork, channels: int, places: Sequence[int]) -> SliceNetwork:
    """A network that computes the same from more input channels, of which it doesn't use the new ones yet.

    Args:
        network: with as many input channels as there are places; not changed.
        channels: of the new network's input.
        places: where the old channels are among the new ones.
    """
    wider = create_network(network.family, **network.arguments | {"in_channels": channels})
    tensors = wider.state_dict()
    for name, old in network.state_dict().items():
        new = tensors[name]
        if new.shape == old.shape:
            new.copy_(old)
        else:
            # the first convolution alone knows how many channels there are
            new.zero_()
            new[:, list(places)] = old
    return wider.train(network.training)
