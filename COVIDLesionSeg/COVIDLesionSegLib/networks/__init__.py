"""The networks and their blocks.

:data:`NETWORKS` is the only list of them. A new network is one file with a class derived from ``slices.SliceNetwork``,
which says how its width is set, how its slices are prepared and what published files call its tensors, and one entry
here. Names load at first use, so that the list needs no PyTorch.
"""

from typing import NamedTuple

from .._lazy import lazy_exports


class Listed(NamedTuple):
    """A network of this program.

    Attributes:
        title: name for people.
        module: where its class is; relative to this package, or the full name.
        class_name: of a ``slices.SliceNetwork`` whose ``family`` is the network's key.
    """

    title: str
    module: str
    class_name: str


# by the name that cards, configurations and commands use
NETWORKS = {
    "coplenet": Listed("COPLE-Net", ".coplenet", "COPLENet"),
    "caresunet": Listed("CARes-UNet", ".caresunet", "CAResUNet"),
}


def title_of(name: str) -> str:
    """What people call a network; of another package's its import path."""
    return NETWORKS[name].title if name in NETWORKS else name


__getattr__, __dir__ = lazy_exports(
    __name__,
    {network.class_name: network.module.removeprefix(".") for network in NETWORKS.values()}
    | {"SliceNetwork": "slices", "create_network": "factory"},
)
