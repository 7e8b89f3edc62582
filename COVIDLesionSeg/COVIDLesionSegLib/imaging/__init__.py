"""Volumes and their geometry, reading and writing, the intensity window, finding the lungs."""

from .geometry import AxialView, Geometry
from .volume import LabelVolume, Volume
from .window import apply_window

__all__ = ["AxialView", "Geometry", "LabelVolume", "Volume", "apply_window"]
