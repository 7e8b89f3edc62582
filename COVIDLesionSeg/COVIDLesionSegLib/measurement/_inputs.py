"""What measurements are given: masks in whatever form, brought to bool and labels on the CT's grid, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging import Geometry, LabelVolume

Mask = NDArray[np.bool_]


def binary_mask(given: NDArray[Any] | LabelVolume, geometry: Geometry, what: str) -> Mask:
    """A mask as bool (z, y, x) on a grid.

    Args:
        given: bool; integers, of which any label counts; or floats that are all 0 or 1. A label volume's own grid must
            be this one.
        geometry: the grid.
        what: its name in messages.

    Raises:
        GridMismatchError: another grid or shape.
        InputError: floats between 0 and 1, which are probabilities.
    """
    array = _on_grid(given, geometry, what)
    if array.dtype == bool:
        return array
    mask = array != 0
    if array.dtype.kind == "f" and not np.array_equal(array, mask):
        raise InputError(
            f"The {what} holds values between {np.nanmin(array):g} and {np.nanmax(array):g}, not just 0 and 1; "
            "is it a probability map? Threshold it first."
        )
    return mask


def integer_labels(given: NDArray[Any] | LabelVolume, geometry: Geometry, what: str) -> NDArray[Any]:
    """Labels as integers (z, y, x) on a grid; floats that are whole numbers are accepted.

    Raises:
        GridMismatchError: another grid or shape.
        InputError: values that are no labels.
    """
    array = _on_grid(given, geometry, what)
    if array.dtype.kind in "ui":
        return array
    if array.dtype == bool:
        return array.view(np.uint8)
    whole = array.astype(np.int32)
    if not np.array_equal(whole, array):
        raise InputError(f"The {what} holds values that are not whole numbers, so they are no labels.")
    return whole


def _on_grid(given: NDArray[Any] | LabelVolume, geometry: Geometry, what: str) -> NDArray[Any]:
    if isinstance(given, LabelVolume):
        given.geometry.require_same(geometry, what, "CT", "Resample it to the CT's grid first.")
        return given.array
    array = np.asarray(given)
    geometry.require_shape(array, what)
    return array
