"""NIfTI, NRRD and MetaImage files: the grid as ITK reads it, the voxels with every byte checked.

The grid comes from SimpleITK, so that Slicer sees the same one; the voxels come from :mod:`._voxels`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError, ReadError
from ..files import sha256_file
from ._voxels import decoded, locate_voxels, several_values
from .geometry import Geometry

FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}


@dataclass(frozen=True, eq=False)
class ImageFile:
    """What one image file holds.

    Attributes:
        format: "NIfTI", "NRRD" or "MetaImage".
        array: stored values (z, y, x), or (z, y, x, component) where components were allowed; native byte order.
        geometry: the grid.
        slope: what the header says to multiply the stored values by.
        intercept: what the header says to add then.
        metadata: further header fields by name, as ITK gives them.
        files: the file, and the one that holds its voxels if that is another.
        sha256: of the file; of the sorted digests of header and data file for a pair; "" where it was not asked for.
        warnings: sentences about what was odd but usable.
    """

    format: str
    array: NDArray[Any]
    geometry: Geometry
    slope: float
    intercept: float
    metadata: Mapping[str, str]
    files: tuple[Path, ...]
    warnings: tuple[str, ...]
    sha256: str = ""


def image_suffix(path: Path | str) -> str:
    """The ending of a file name that says its format, in lower case: ".nii.gz", ".seg.nrrd", ".mha", ..., or ""."""
    name = Path(path).name.lower()
    endings = [".seg.nrrd", *FORMATS]
    return max((ending for ending in endings if name.endswith(ending)), key=len, default="")


def image_stem(path: Path | str) -> str:
    """The name of a file or folder without the ending that says its format."""
    path = Path(path)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    suffix = image_suffix(path)
    return (name[: -len(suffix)] if suffix else name) or name


def name_is_utf8(path: Path) -> bool:
    """Whether SimpleITK can be given this path; it ends the process over names in another encoding."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_image_file(path: Path, components: bool = False, hashed: bool = False) -> ImageFile:
    """Read a NIfTI, NRRD or MetaImage file.

    Args:
        path: an existing file whose name ends in one of :data:`FORMATS`.
        components: allow several values a voxel (the layers of a ``.seg.nrrd``).
        hashed: also make the file's SHA-256, while its voxels are unpacked.

    Raises:
        ReadError: not such an image, damaged, cut short, color, or not 3-D.
        GeometryError: a grid that no CT can have.
    """
    format_name = FORMATS["." + image_suffix(path).rsplit("seg.", maxsplit=1)[-1].lstrip(".")]
    try:
        packed = locate_voxels(path, format_name)
        reader = _read_header(path, format_name)
        size = _size_3d(reader, path, components)
        count = reader.GetNumberOfComponents()
        geometry = _geometry(reader, size)
        files = (path,) if packed.path == path else (path, packed.path)
        # not before the header has been checked: a file may be of any size
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(_sha256, files) if hashed else None
            array = decoded(packed, math.prod(size) * count, path)
    except OSError as error:
        raise ReadError(f"{path} can't be read: {error.strerror or error}.") from error
    metadata = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    return ImageFile(
        format_name,
        _shaped(array, size, count, packed.layers),
        geometry,
        packed.slope,
        packed.intercept,
        metadata,
        files,
        _odd_geometry(format_name, metadata, geometry, packed.forms_apart if packed else 0.0),
        digest.result() if digest else "",
    )


def _read_header(path: Path, format_name: str) -> Any:
    import SimpleITK as sitk

    if format_name == "NIfTI" and path.name[-4:] not in (path.name[-4:].lower(), path.name[-4:].upper()):
        raise ReadError(f"{path.name} has an ending of mixed case; rename it to end in {image_suffix(path)}.")
    reader = sitk.ImageFileReader()
    reader.SetImageIO({"NIfTI": "NiftiImageIO", "NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}[format_name])
    reader.SetFileName(str(path))
    # ITK prints what it finds odd; what matters of it becomes a warning or an error of ours
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise GeometryError(
                f"{path.name}: the axes in its header are singular or sheared; a grid with three perpendicular axes "
                "is needed.",
                "Export it again, or resample it to a regular grid first.",
            ) from error
        raise ReadError(
            f"{path.name} is damaged or not a {format_name} image: its header can't be read.",
            "Check the file, or export it again.",
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    return reader


def _size_3d(reader: Any, path: Path, components: bool) -> tuple[int, int, int]:
    size = list(reader.GetSize())
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    count = reader.GetNumberOfComponents()
    if count > 1 and not components:
        raise several_values(path, count)
    shown = " x ".join(map(str, size))
    if len(size) > 3:
        raise ReadError(
            f"{path.name} is a {len(size)}-D image ({shown}, a time series?); one 3-D volume is needed.",
            "Save the wanted frame as a volume of its own.",
        )
    if len(size) < 3:
        raise ReadError(
            f"{path.name} is a {len(size)}-D image ({shown}); a 3-D volume is needed.",
            "Give all slices together: a DICOM folder, or one NIfTI, NRRD or MHA file.",
        )
    return size[0], size[1], size[2]


def _geometry(reader: Any, size: tuple[int, int, int]) -> Geometry:
    dimension = len(reader.GetSize())
    direction = np.asarray(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    return Geometry(size, reader.GetSpacing()[:3], reader.GetOrigin()[:3], tuple(direction.ravel()))


def _odd_geometry(
    format_name: str, metadata: Mapping[str, str], geometry: Geometry, forms_apart: float
) -> tuple[str, ...]:
    unknown = (
        "The file does not say how the image lies in the patient; it is taken as ITK and Slicer take it, but left and "
        "right may be swapped."
    )
    if format_name == "NRRD" and "NRRD_space" not in metadata:
        return (unknown,)
    if format_name != "NIfTI":
        return ()
    if metadata.get("qform_code") == "0" and metadata.get("sform_code") == "0":
        return (unknown,)
    if forms_apart > 0.5 * min(geometry.spacing):
        differ = f"The NIfTI header holds two different positions (sform and qform, {forms_apart:.3g} mm apart)"
        return (f"{differ}; the one that ITK and Slicer choose is used.",)
    return ()


def _sha256(files: Sequence[Path]) -> str:
    digests = [sha256_file(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _shaped(array: NDArray[Any], size: tuple[int, int, int], count: int, layers: int) -> NDArray[Any]:
    """The values as (z, y, x), or (z, y, x, component); ``layers`` is the file's axis of components, fastest first."""
    if count == 1:
        return array.reshape(size[::-1])
    stored = [*size[:layers], count, *size[layers:]]
    return np.moveaxis(array.reshape(stored[::-1]), 3 - layers, -1)
