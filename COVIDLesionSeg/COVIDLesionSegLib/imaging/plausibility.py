"""Whether voxel values can be Hounsfield units, and their smallest sufficient type.

A network trained on Hounsfield units answers nonsense to anything else, without complaint. What can be told from the
values is told here: values that are no numbers, pictures, offsets, scaled and normalized volumes. Air around or
inside the patient is the criterion: a chest CT has plenty of it near -1000 HU, and hardly a voxel at +1000. An MR
image with negative values and a dark background may slip through; nothing in its values says that it is no CT.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, IntensityError
from .volume import Volume

# Below: padding that scanners write outside their circular field of view (-2000, -3024, -32768); noise in air, which
# reaches about -1200, stays as it is. Above: metal beyond the 12-bit CT scale.
PADDING_BELOW = -1500
HIGHEST_HU = 3071
AIR_HU = -1024

# Share of the voxels from which clipping is worth a sentence.
_MANY = 1e-3
_AIR_BELOW = -500
_LEAST_AIR = 1e-3
# Where air lies when the sign of HU is flipped. In whole and cropped chest CTs at most 1 % of the voxels (bone, metal)
# lie there; flipped, at least 20 % do.
_FLIPPED_AIR = (700, 1100)
_MOST_DENSE = 0.03
_RESCALE = "--rescale {} (in Python rescale=({}))"


def check_hounsfield(volume: Volume) -> Volume:
    """Refuse values that cannot be Hounsfield units; clip padding and metal.

    Values below -1500 HU are padding and become air (-1024 HU); values above 3071 HU become 3071 HU. A warning says
    so where that changes more than one voxel in a thousand.

    Args:
        volume: a CT, int16 or float32; its array is left as it is.

    Returns:
        The volume itself if nothing was clipped, else one with a new array and perhaps a further warning.

    Raises:
        IntensityError: NaN or infinite voxels, one value everywhere, or values that look like an 8-bit picture, a label
            map, an unsigned CT with an offset, an offset subtracted twice, a flipped sign, scaled or normalized
            intensities, or an image without air; the message says which and how to give the rescale.
    """
    array = volume.array
    low, high = _extremes(array)
    _refuse_implausible(array, low, high)
    if low >= PADDING_BELOW and high <= HIGHEST_HU:
        return volume

    padding = array < PADDING_BELOW
    metal = array > HIGHEST_HU
    clipped = np.minimum(array, np.asarray(HIGHEST_HU, array.dtype))
    clipped[padding] = AIR_HU
    warnings = list(volume.warnings)
    if (share := padding.mean()) > _MANY:
        warnings.append(
            f"{100 * share:.2g} % of the voxels lie below {PADDING_BELOW} HU (padding outside the field of view); "
            f"they count as air, {AIR_HU} HU."
        )
    if (share := metal.mean()) > _MANY:
        warnings.append(f"{100 * share:.2g} % of the voxels lie above {HIGHEST_HU} HU; they count as {HIGHEST_HU} HU.")
    return dataclasses.replace(volume, array=clipped, warnings=tuple(warnings))


def rescaled(array: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """``slope * array + intercept`` in the smallest sufficient type, see :func:`compact`.

    Args:
        array: stored values, any real dtype.
        slope: not 0.
        intercept: in units of the result.

    Raises:
        InputError: a slope of 0, or a number that is not finite.
    """
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise InputError(
            f"The rescale {slope:g} {intercept:g} is not allowed; the slope must not be 0, both be finite."
        )
    if (slope, intercept) == (1.0, 0.0):
        return compact(array)
    # float32 holds every 16-bit value times a slope to better than 0.01 HU, and integers up to 2^24 exactly
    out = np.empty(array.shape, np.float32)
    # what gets too large for it becomes infinite, which is refused
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(array, np.float32(slope), out=out, casting="unsafe")
        out += np.float32(intercept)
    return compact(out)


def compact(array: NDArray[Any]) -> NDArray[Any]:
    """The same values as int16 where they are integers in its range, else as float32."""
    if array.dtype == np.int16:
        return array
    low, high = _extremes(array)
    if low >= -32768 and high <= 32767 and is_integral(array):
        return array.astype(np.int16)
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def is_integral(array: NDArray[Any]) -> bool:
    """Whether all values are whole numbers."""
    if array.dtype.kind in "iub":
        return True
    # slice by slice: no copy of the whole, and an end at the first fraction
    return all(bool((part == np.rint(part)).all()) for part in array)


def _extremes(array: NDArray[Any]) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def _refuse_implausible(array: NDArray[Any], low: float, high: float) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        missing, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        raise IntensityError(
            f"The volume holds {missing} NaN and {infinite} infinite voxels among {array.size}; every voxel needs a "
            "number.",
            "Export it again, or replace them by -1024 (air) first.",
        )
    if low == high:
        raise IntensityError(f"Every voxel of the volume is {low:g}; that is no CT.", "Check the export.")

    step = max(1, round((array.size / 2e6) ** (1 / 3)))
    sample = array[::step, ::step, ::step]
    if low >= 0:
        raise IntensityError(*_of_positive_values(low, high, sample))
    if high <= 20:
        if low >= -1.1:
            raise IntensityError(
                f"The volume's values run from {low:.3g} to {high:.3g}, so they are scaled or normalized, not HU.",
                f"If they are HU divided by 1000, give {_rescale(1000, 0)}; else use the original CT.",
            )
        if low >= -20:
            raise IntensityError(
                f"The volume's values run from {low:.3g} to {high:.3g}, so they are normalized, not HU.",
                "Use the original CT, or give the normalization as --rescale SLOPE INTERCEPT (standard deviation and "
                "mean).",
            )
    air = float((sample < _AIR_BELOW).mean())
    if air < _LEAST_AIR and not (array < _AIR_BELOW).mean() >= _LEAST_AIR:
        raise IntensityError(
            f"The volume's values run from {low:.5g} to {high:.5g} with almost none below {_AIR_BELOW}, but a chest CT "
            "in HU has air near -1000.",
            "If the stored values are not HU, give --rescale SLOPE INTERCEPT; an MR image cannot be used.",
        )
    flipped = float(((sample > _FLIPPED_AIR[0]) & (sample < _FLIPPED_AIR[1])).mean())
    if flipped > max(air, _MOST_DENSE):
        raise IntensityError(
            f"{100 * flipped:.0f} % of the voxels lie near +1000 and only {100 * air:.2g} % below {_AIR_BELOW}, where "
            "a chest CT in HU has its air: the sign of the values is flipped.",
            f"Give {_rescale(-1, 0)}.",
        )
    _refuse_double_offset(sample)


def _of_positive_values(low: float, high: float, sample: NDArray[Any]) -> tuple[str, str]:
    seen = f"The volume's values run from {low:.5g} to {high:.5g}, none of them negative"
    integral = is_integral(sample)
    if high <= 1.0:
        hint = "Use the original CT; if they were cut to a known intensity window, give its width and lower end, "
        return f"{seen}: intensities scaled to [0, 1] (or a mask), not HU.", hint + _window_example("1500")
    if high <= 32 and integral:
        return f"{seen}, and few: this looks like a label map, not a CT.", "Give the CT itself."
    if high <= 255:
        hint = "Use the original CT; if it shows a known intensity window, give its width / 255 and its lower end, "
        return f"{seen}: this looks like an 8-bit picture, not HU.", hint + _window_example("5.882")
    offset = -32768 if low >= 16384 else -1024
    return (
        f"{seen}: this looks like a CT stored with an offset (or an MR image), not HU.",
        f"If it is a CT, give {_rescale(1, offset)}"
        + (", or -1000 if that is its offset." if offset == -1024 else "."),
    )


def _refuse_double_offset(sample: NDArray[Any]) -> None:
    # An offset of 1024 subtracted twice puts soft tissue where air belongs and air where padding belongs. A CT that is
    # masked to the lungs has padding, too, but vessels at 0 HU.
    inside = sample[sample >= PADDING_BELOW]
    if inside.size > 0.9 * sample.size or inside.size == 0:
        return
    tissue = float((inside > -150).mean())
    at_air = float(((inside > -1200) & (inside < -900)).mean())
    if tissue < 0.01 and at_air > 0.3 and float(np.median(sample[sample < PADDING_BELOW])) > -2200:
        raise IntensityError(
            "The volume's air lies near -2000 and its soft tissue near -1000: an offset of 1024 was subtracted twice.",
            f"Give {_rescale(1, 1024)}.",
        )


def _window_example(slope: str) -> str:
    return f"e.g. {_rescale(slope, -1400)} for width 1500, level -650."


def _rescale(slope: object, intercept: object) -> str:
    return _RESCALE.format(f"{slope} {intercept}", f"{slope}, {intercept}")
