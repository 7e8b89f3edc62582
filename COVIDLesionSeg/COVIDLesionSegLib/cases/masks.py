"""What people and models hand in: masks on the grid of a case's CT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.volume import LabelVolume
from .records import Case

_HINT = "Resample the mask to the CT's grid, or take the CT that it was drawn on."


def as_labels(mask: LabelVolume | NDArray[Any], case: Case, what: str) -> LabelVolume:
    """A mask on the grid of a case's CT.

    Args:
        mask: (z, y, x), bool or whole numbers from 0 to 65535; every label is lesion.
        case: whose.
        what: how to call the mask in messages.

    Raises:
        GridMismatchError: another grid; the message names the difference.
        InputError: fractions, negative numbers, NaN.
    """
    grid = case.ct.geometry
    if isinstance(mask, LabelVolume):
        mask.geometry.require_same(grid, what, f"CT of {case.id}", _HINT)
        labels = mask
    else:
        array = np.asarray(mask)
        grid.require_shape(array, what)
        labels = LabelVolume(array, grid)
    array = labels.array
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "biu" or (array.dtype.kind != "b" and (array.min() < 0 or array.max() > 65535)):
        raise InputError(
            f"The {what} of {case.id} holds {array.dtype} values that are no labels; whole numbers from 0 are needed.",
            "Compare a probability with a threshold first, e.g. probability > 0.5.",
        )
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    elif array.dtype.itemsize > 2:
        array = array.astype(np.uint16)
    return replace(labels, array=array)


def lesion_ml(labels: LabelVolume) -> float:
    """Volume of everything that is not background, mL."""
    return float(np.count_nonzero(labels.array)) * labels.geometry.voxel_ml


def lesion_names(labels: LabelVolume) -> LabelVolume:
    """The labels with names; a mask without names is lesion."""
    return labels if labels.names else replace(labels, names={1: "lesion"})
