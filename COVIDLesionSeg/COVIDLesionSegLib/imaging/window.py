"""The intensity window both papers use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

# COPLE-Net's released preprocessing and the CARes-UNet paper for UESTC: HU -1400 to 100.
LUNG_WINDOW_WIDTH = 1500.0
LUNG_WINDOW_LEVEL = -650.0


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
