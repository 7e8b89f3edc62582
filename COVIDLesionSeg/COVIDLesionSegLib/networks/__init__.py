"""The two networks and their blocks."""

from .caresunet import CAResUNet
from .coplenet import COPLENet
from .factory import create_network
from .slices import SliceNetwork

__all__ = ["CAResUNet", "COPLENet", "SliceNetwork", "create_network"]
