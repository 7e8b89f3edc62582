"""What the measures of this room accept: masks of one grid and a spacing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import GeometryError, GridMismatchError, InputError

Mask = NDArray[np.bool_]


def as_mask(array: ArrayLike, what: str = "mask", dimensions: int | None = None) -> Mask:
    """An array as a bool mask, without a copy where it is bool or 8-bit already.

    Args:
        array: bool, or integers or floats that are all 0 or 1.
        what: how to call it in messages.
        dimensions: how many axes it must have; None allows any number.

    Raises:
        InputError: other values than 0 and 1 (label maps, probabilities, NaN), no voxels, or other axes than needed.
    """
    values = np.asarray(array)
    if dimensions is not None and values.ndim != dimensions:
        axes = {2: "(y, x)", 3: "(z, y, x)"}[dimensions]
        raise InputError(f"The {what} has {values.ndim} axes, shape {values.shape}; {dimensions} are needed: {axes}.")
    if values.size == 0:
        raise InputError(f"The {what} has the shape {values.shape}: it holds no voxels.")
    if values.dtype == bool:
        return values
    if values.dtype.kind not in "iuf":
        raise InputError(f"The {what} holds {values.dtype} values; bool, or integers 0 and 1, are needed.")
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"The {what} holds NaN or infinity; only 0 and 1 are allowed.", "Make it a bool mask first.")
    # the second test finds what lies between: fractions of a probability map
    if low < 0 or high > 1 or (values.dtype.kind == "f" and np.any((values != 0) & (values != 1))):
        if values.dtype.kind == "f":
            hint = "If it is a probability map, compare it with a threshold first, e.g. probability > 0.5."
        else:
            hint = "If it is a label map, pick one label first, e.g. labels == 1 (--label)."
        raise InputError(f"The {what} holds values from {low:g} to {high:g}; only 0 and 1 are allowed.", hint)
    return values.view(bool) if values.dtype.itemsize == 1 else values != 0


def as_pair(prediction: ArrayLike, reference: ArrayLike, dimensions: int | None = None) -> tuple[Mask, Mask]:
    """Prediction and reference as bool masks of one shape.

    Raises:
        InputError: see :func:`as_mask`.
        GridMismatchError: different shapes.
    """
    first = as_mask(prediction, "prediction", dimensions)
    second = as_mask(reference, "reference", dimensions)
    require_same_shape(first, second, "prediction", "reference")
    return first, second


def require_same_shape(first: NDArray[Any], second: NDArray[Any], name: str, other: str) -> None:
    """Raise GridMismatchError unless two arrays have the same shape."""
    if first.shape != second.shape:
        raise GridMismatchError(
            f"The {name} has the shape {first.shape}, but the {other} has {second.shape}; "
            "they must be on the same grid.",
            "Resample one to the other's grid (--resample).",
        )


def as_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    """Spacing (z, y, x) in mm as three positive floats.

    Raises:
        GeometryError: not three numbers, or one that is not positive and finite.
    """
    numbers = tuple(float(value) for value in np.ravel(np.asarray(spacing, dtype=float)))
    if len(numbers) != 3 or not all(np.isfinite(value) and value > 0 for value in numbers):
        raise GeometryError(f"The spacing is {numbers} mm; three positive numbers (z, y, x) are needed.")
    return numbers[0], numbers[1], numbers[2]
