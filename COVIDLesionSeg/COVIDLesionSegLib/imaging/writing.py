"""Write volumes and label maps, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError
from ..files import atomic_path, check_target
from ._image_file import image_suffix, name_is_utf8
from ._segmentation import segment_fields
from .geometry import Geometry
from .masks import bounding_box
from .volume import LabelVolume, Volume

# A pair of files cannot appear at once, so .mhd and .nhdr are read but not written.
WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
_DTYPES = {"bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"}


def write_volume(volume: Volume | NDArray[Any], path: Path | str, geometry: Geometry | None = None) -> None:
    """Write voxels to a NIfTI, NRRD or MetaImage file, compressed except as ``.nii``.

    Args:
        volume: a volume, or an array (z, y, x) of a real dtype with its geometry; bool becomes uint8.
        path: file to make or replace; its ending says the format, see :data:`WRITTEN_SUFFIXES`.
        geometry: the array's grid.

    Raises:
        OutputError: the file can't be written (folder read-only, disk full); nothing half-written stays.
        GridMismatchError: the array is not on the grid.
        InputError: an ending or dtype that is not known, or an array without its geometry.
    """
    if isinstance(volume, Volume):
        array, grid = volume.array, volume.geometry
    elif geometry is None:
        raise InputError("An array needs its geometry to be written.")
    else:
        array, grid = volume, geometry
    if array.dtype.name not in _DTYPES:
        raise InputError(f"Voxels of the type {array.dtype} can't be written; use one of {', '.join(sorted(_DTYPES))}.")
    if array.dtype == bool:
        array = array.view(np.uint8)
    _write(array, grid, Path(path), {})


def write_labels(labels: LabelVolume, path: Path | str, crop: bool = False) -> None:
    """Write a label map; as ``.seg.nrrd`` with the names, colors and codes that Slicer shows.

    Every name in ``labels.names`` becomes a segment, also one without a voxel; so does every value without a name.

    Args:
        labels: written as uint8, or uint16 where a value is above 255.
        path: file to make or replace; its ending says the format, see :data:`WRITTEN_SUFFIXES`.
        crop: write only the box around the labels, as Slicer does; for ``.seg.nrrd``, whose header holds the whole
            grid, so that ``read_labels`` and Slicer put the box back in its place.

    Raises:
        OutputError: the file can't be written; nothing half-written stays.
        InputError: an ending that is not known, or values that are no labels.
    """
    path = Path(path)
    is_segmentation = image_suffix(path) == ".seg.nrrd"
    if crop and not is_segmentation:
        raise InputError(f"Only a .seg.nrrd can hold a part of the grid; {path.name} is another format.")
    whole, offset = labels.geometry, (0, 0, 0)
    if crop:
        labels, offset = _cropped(labels)
    array = labels.array
    if array.dtype == bool:
        array = array.view(np.uint8)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 65535:
        raise InputError(f"Labels are whole numbers from 0 to 65535; these are {array.dtype}.")
    array = array.astype(np.uint8 if array.max() <= 255 else np.uint16, copy=False)
    fields = segment_fields(labels, whole, offset) if is_segmentation else {}
    _write(array, labels.geometry, path, fields)


def require_other_file(output: Path | str, inputs: Iterable[Path | str]) -> None:
    """Refuse to replace an input.

    Raises:
        InputError: the output is one of the inputs, by whatever name.
    """
    output = Path(output)
    if not output.is_dir():
        check_target(output)
    for given in map(Path, inputs):
        # realpath, other than resolve(), bears links that lead round
        same = os.path.realpath(output) == os.path.realpath(given)
        if same or (output.exists() and given.exists() and output.samefile(given)):
            raise InputError(f"The output {output} is an input; choose another output.")


def _cropped(labels: LabelVolume) -> tuple[LabelVolume, tuple[int, int, int]]:
    """The box around the labels, one voxel of background where there are none, and its first voxel (i, j, k)."""
    box = bounding_box(labels.array, least=1)
    cropped = LabelVolume(labels.array[box], labels.geometry.cropped(box), labels.names, labels.name)
    return cropped, (box[2].start, box[1].start, box[0].start)


def _write(array: NDArray[Any], geometry: Geometry, path: Path, fields: dict[str, str]) -> None:
    import SimpleITK as sitk

    suffix = image_suffix(path)
    if suffix not in WRITTEN_SUFFIXES:
        raise InputError(f"The output {path.name} has no format that is written; use {', '.join(WRITTEN_SUFFIXES)}.")
    if not name_is_utf8(path):
        raise InputError(f"The name {os.fsencode(path)!r} is not UTF-8; choose another output.")
    geometry.require_shape(array)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file.")
    image = geometry.to_sitk(np.ascontiguousarray(array))
    for name, text in fields.items():
        image.SetMetaData(name, text)
    with atomic_path(path) as temporary:
        temporary.touch()  # says why, where ITK would not
        try:
            sitk.WriteImage(image, str(temporary), suffix != ".nii")
        except RuntimeError as error:
            raise _failed(path) from error
        _require_complete(temporary, array.nbytes, suffix, path)


def _require_complete(written: Path, voxel_bytes: int, suffix: str, path: Path) -> None:
    """ITK's NIfTI writer does not notice a full disk: look at what it left."""
    size = written.stat().st_size
    if suffix == ".nii":
        complete = size >= 352 + voxel_bytes
    elif suffix == ".nii.gz":
        # a gzip stream ends with its uncompressed length; a stream that was cut ends with something else
        with written.open("rb") as file:
            file.seek(max(0, size - 4))
            tail = file.read(4)
        complete = len(tail) == 4 and struct.unpack("<I", tail)[0] == (352 + voxel_bytes) % 2**32
    else:
        complete = size > 0
    if not complete:
        raise _failed(path)


def _failed(path: Path) -> OSError | OutputError:
    # ITK does not say why; a disk that is full or all but full is the usual reason
    if shutil.disk_usage(path.parent).free < 4096:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return OutputError(
        f"{path} could not be written completely.",
        "Check the space and the permissions there, or choose another folder.",
    )
