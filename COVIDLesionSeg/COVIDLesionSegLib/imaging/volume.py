"""The two things that are read and written, a CT volume and a label volume, and the intensity window of a CT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, IntensityError
from .geometry import Geometry

# The window of both papers: COPLE-Net's released preprocessing, and the CARes-UNet paper for UESTC; HU -1400 to 100.
LUNG_WINDOW_WIDTH = 1500.0
LUNG_WINDOW_LEVEL = -650.0


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT.

    Attributes:
        array: (z, y, x), int16 or float32, Hounsfield units.
        geometry: its grid.
        name: what to call it in messages and file names: the input's stem, free of patient data.
        source: facts for the run record, free of patient data and folders: format, file count, SHA-256, rescale.
        warnings: sentences about what was odd but usable (uneven slice gap within tolerance, clipped values, ...).
        patient_id: as a DICOM series gives it, to see whether two CTs are of one patient; "" where it is not known. It
            goes into no output.
    """

    array: NDArray[Any]
    geometry: Geometry
    name: str = "volume"
    source: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    patient_id: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self.geometry.require_shape(self.array, "volume")
        if self.array.dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
            raise IntensityError(
                f"The volume's voxels are {self.array.dtype}; Hounsfield units as int16 or float32 are needed."
            )


@dataclass(frozen=True, eq=False)
class LabelVolume:
    """A label map or segmentation.

    Attributes:
        array: (z, y, x), uint8 or uint16; 0 is background.
        geometry: its grid.
        names: label value -> name, as far as the file knows them.
        name: what to call it in messages: the input's stem.
    """

    array: NDArray[Any]
    geometry: Geometry
    names: Mapping[int, str] = field(default_factory=dict)
    name: str = "labels"

    def __post_init__(self) -> None:
        self.geometry.require_shape(self.array, "label volume")

    def mask(self, label: int | None = None) -> NDArray[np.bool_]:
        """Where the label is (any label if None), bool (z, y, x)."""
        return self.array != 0 if label is None else self.array == label


def apply_window(
    array: NDArray[Any], width: float = LUNG_WINDOW_WIDTH, level: float = LUNG_WINDOW_LEVEL
) -> NDArray[np.float32]:
    """Clip Hounsfield units to a window and scale them linearly to [0, 1].

    Args:
        array: Hounsfield units, any shape and real dtype.
        width: width of the window, HU, > 0.
        level: center of the window, HU.

    Returns:
        float32 of the same shape; level - width / 2 becomes 0, level + width / 2 becomes 1.
    """
    if not width > 0:
        raise InputError(f"The window's width is {width:g} HU; it must be above 0.")
    out = np.array(array, dtype=np.float32)
    out -= np.float32(level - width / 2)
    out /= np.float32(width)
    return np.clip(out, 0, 1, out=out)
