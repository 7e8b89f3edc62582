"""The two things that are read and written: a CT volume and a label volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IntensityError
from .geometry import Geometry


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
