"""Read a CT, or a label map, from whatever it is stored in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError, InputError, ReadError
from ..files import regular_file
from ._image_file import FORMATS, image_stem, image_suffix, name_is_utf8, read_image_file
from ._segmentation import merge_layers, on_reference_grid, read_segments
from .dicom._claims import require_sound_seg
from .dicom.seg_reading import read_dicom_seg
from .dicom.series import is_dicom, read_dicom
from .geometry import Geometry
from .plausibility import check_hounsfield, is_integral, rescaled
from .segments import chosen_value
from .volume import LabelVolume, Volume

_SUPPORTED = "a DICOM folder, or a file ending in " + ", ".join(FORMATS)
# A chest CT whose voxels are smaller or larger than this (mm) has its spacing in another unit.
_SPACING_RANGE = (0.01, 100.0)


def read_volume(path: Path | str, series: str | None = None, rescale: Sequence[float] | None = None) -> Volume:
    """Read a CT from a NIfTI, NRRD or MetaImage file or a DICOM folder.

    A DICOM folder is searched with its subfolders; localizers, secondary captures, images of other modalities and other
    files beside the CT are left out, and a warning says so. A single DICOM file stands for the series it belongs to.
    A volume of one slice is read with a warning (the networks see one slice at a time); a 2-D image is refused, because
    nothing tells its place.

    Args:
        path: file or folder.
        series: SeriesInstanceUID, for a DICOM folder with several CT series.
        rescale: (slope, intercept) for stored values that are not HU; applied after what the file's own header says.

    Returns:
        The CT in HU, int16 where the values are integers, else float32, on its own grid. ``name`` is the stem of the
        file or folder: it is for output names and messages that the user sees. A folder may be named after a patient,
        so it stays out of run records. ``source`` holds only format, number of files, SHA-256 (of the file; of header
        and data file for a pair; of the sorted digests of the slices for DICOM) and rescale.

    Raises:
        ReadError: missing, unreadable, not an image, damaged, cut short, color, not 3-D, no CT in a DICOM folder.
        SeriesChoiceError: several CT series.
        GeometryError: spacing, direction or slice positions that no CT can have.
        IntensityError: values that are not HU, see :func:`check_hounsfield`.
        InputError: an argument that is not allowed.
    """
    path = _existing(path)
    slope, intercept = _checked_rescale(rescale)
    if path.is_dir() or not image_suffix(path):
        if path.is_file():
            _require_dicom(path)
            if path.name.upper() == "DICOMDIR":
                path = path.parent
        found = read_dicom(path, series)
        array, geometry, warnings, patient = found.array, found.geometry, found.warnings, found.patient_id
        source: dict[str, Any] = {"format": "DICOM", "files": len(found.files), "sha256": found.sha256}
    else:
        if series is not None:
            raise InputError(f"A series can be chosen in a DICOM folder only; {path.name} is one image.")
        file = read_image_file(path, hashed=True)
        array, geometry, warnings = rescaled(file.array, file.slope, file.intercept), file.geometry, file.warnings
        patient = ""
        if 1 in geometry.size:
            warnings += ("The volume has one slice only.",)
        source = {"format": file.format, "files": len(file.files), "sha256": file.sha256}
        del file
    smallest, largest = min(geometry.spacing), max(geometry.spacing)
    if smallest < _SPACING_RANGE[0] or largest > _SPACING_RANGE[1]:
        raise GeometryError(
            f"The voxel spacing is ({', '.join(f'{value:.4g}' for value in geometry.spacing)}) mm, which no chest CT "
            "has; is it in another unit?",
            "Export the image again with its spacing in millimetres.",
        )
    if rescale is not None:
        array = rescaled(array, slope, intercept)
    source["rescale"] = None if rescale is None else [slope, intercept]
    return check_hounsfield(Volume(array, geometry, image_stem(path), source, warnings, patient))


def read_labels(path: Path | str, label: int | str | None = None, geometry: Geometry | None = None) -> LabelVolume:
    """Read a label map or mask from a NIfTI, NRRD (also Slicer's ``.seg.nrrd``), MetaImage or DICOM SEG file.

    Args:
        path: the file.
        label: keep this label only, by value or (``.seg.nrrd``) by name; all others become background. A value that
            does not occur gives an empty mask, since a lesion may well be absent.
        geometry: grid of the CT, for a DICOM SEG, which holds only the slices with something in them; other files have
            a grid of their own.

    Returns:
        The labels, uint8 or uint16, on their own grid, with the names that the file knows. The segments of a
        ``.seg.nrrd`` with several layers get the values 1, 2, ... in their order. Where Slicer has saved only the box
        around the segments, the labels are put back on the grid of the image that was segmented.

    Raises:
        ReadError: missing, unreadable, damaged, color, not 3-D; values that are no labels (fractions, negative); layers
            that overlap where no label was chosen.
        GeometryError: a grid that no CT can have.
        InputError: a name that no segment has.
    """
    path = _existing(path)
    if path.is_dir() or not image_suffix(path):
        if path.is_file() and is_dicom(path):
            require_sound_seg(path)
            return read_dicom_seg(path, label, geometry)
        what = "a folder" if path.is_dir() else "of a format that is not known"
        raise ReadError(
            f"{path.name} is {what}; a label map needs a DICOM SEG, or a file ending in {', '.join(FORMATS)} or "
            ".seg.nrrd."
        )
    file = read_image_file(path, components=True)
    segments = read_segments(file.metadata, file.array.shape[3] if file.array.ndim == 4 else 1)
    if file.array.ndim == 4 and not segments:
        raise ReadError(
            f"{path.name} holds {file.array.shape[-1]} values a voxel (a color image?); a label map has one."
        )
    values = file.array
    if (file.slope, file.intercept) != (1.0, 0.0):
        values = rescaled(values, file.slope, file.intercept)
    array = _as_labels(values, path)

    # the value of each segment in the result; layers count anew, because their values may repeat
    layered = array.ndim == 4
    names = {(index if layered else s.value): s.name for index, s in enumerate(segments, start=1)}
    kept = chosen_value(label, names, path)
    if layered:
        chosen = [(s, value) for s, value in zip(segments, names, strict=True) if kept in (None, value)]
        array = merge_layers(array, [s for s, _ in chosen], [value for _, value in chosen], path.name)
    elif kept is not None:
        array = np.where(array == kept, array, 0)
    names = {value: name for value, name in names.items() if kept in (None, value)}
    array, geometry = on_reference_grid(array, file.geometry, file.metadata)
    return LabelVolume(array, geometry, names, image_stem(path))


# Paths and arguments


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not name_is_utf8(path):
        raise ReadError(f"The name {os.fsencode(path)!r} is not UTF-8; rename it.")
    try:
        if not path.exists():
            raise ReadError(f"{path} does not exist.", "Check the path.")
        if path.is_dir():
            os.scandir(path).close()
            return path
        regular_file(path)
        with path.open("rb") as file:
            if not file.read(1):
                raise ReadError(f"{path.name} is empty (0 bytes).", "Copy or export it again.")
    except OSError as error:
        raise ReadError(f"{path} can't be read: {error.strerror or error}.") from error
    return path


def _require_dicom(path: Path) -> None:
    if is_dicom(path):
        return
    if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}:
        raise ReadError(
            f"{path.name} is a picture; it has neither Hounsfield units nor voxel sizes.", f"Give {_SUPPORTED}."
        )
    raise ReadError(f"{path.name} is not in a format that can be read.", f"Give {_SUPPORTED}.")


def _checked_rescale(rescale: Sequence[float] | None) -> tuple[float, float]:
    if rescale is None:
        return 1.0, 0.0
    if len(rescale) != 2:
        raise InputError(f"A rescale is two numbers, slope and intercept; {len(rescale)} were given.")
    slope, intercept = (float(value) for value in rescale)
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise InputError(
            f"The rescale {slope:g} {intercept:g} is not allowed: give two finite numbers, the slope not 0."
        )
    return slope, intercept


# Labels


def _as_labels(array: NDArray[Any], path: Path) -> NDArray[Any]:
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ReadError(f"{path.name} holds NaN or infinite voxels; a label map holds whole numbers from 0.")
    if not is_integral(array):
        advice = "Threshold the probabilities first." if low >= 0 and high <= 1 else "Give a label map."
        raise ReadError(
            f"{path.name} holds fractions between {low:.4g} and {high:.4g}; a label map holds whole numbers from 0.",
            advice,
        )
    if low < 0 or high > 65535:
        raise ReadError(
            f"{path.name} holds values from {low:g} to {high:g}; labels are whole numbers from 0 to 65535.",
            "Is it the CT? Give the label map." if low < 0 else "",
        )
    return array.astype(np.uint8 if high <= 255 else np.uint16, copy=False)
