"""DICOM series as volumes: which files belong together, where each slice lies, what is missing.

SimpleITK (GDCM) reads the header tags and decodes the slices; the grid comes from the tags of every slice, because
SimpleITK's own series reader accepts missing slices, uneven gaps, gantry tilt, MR images and duplicates in silence.
Messages and warnings name positions in millimetres and numbers of images, never files or patient data.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ReadError, SeriesChoiceError
from ...files import open_regular
from .._claims import LARGEST_NUMBER, require_size
from .._image_file import FORMATS, name_is_utf8
from ..geometry import Geometry
from ..plausibility import compact
from ._claims import is_believable, require_sound
from ._slices import CT_CLASSES, DicomSlice, stack_slices

# Media Storage SOP Class UID (0002,0002) in the file meta group, which is always explicit little endian
_STORAGE_CLASS = re.compile(rb"\x02\0\x02\0UI..([0-9.]+)", re.DOTALL)


@dataclass(frozen=True)
class DicomVolume:
    """A CT series read from DICOM.

    Attributes:
        array: (z, y, x), int16 or float32, values after the files' own rescale.
        geometry: the grid; slices in order of their position along the normal of the image plane.
        files: the files read, slice by slice.
        sha256: SHA-256 over the sorted SHA-256 digests (hexadecimal, one a line) of the files.
        warnings: sentences about what was odd but usable.
        patient_id: as the files give it, "" where none does.
    """

    array: NDArray[Any]
    geometry: Geometry
    files: tuple[Path, ...]
    sha256: str
    warnings: tuple[str, ...]
    patient_id: str = field(repr=False)


@dataclass(frozen=True)
class DicomStack:
    """The slices of a CT series in order, before their voxels are read.

    Attributes:
        files: one a slice, in the order of the array's axis z.
        geometry: the grid.
        warnings: sentences about what was odd but usable.
    """

    files: tuple[Path, ...]
    geometry: Geometry
    warnings: tuple[str, ...]


def read_dicom(path: Path, series: str | None = None) -> DicomVolume:
    """Read the CT series of a DICOM folder (subfolders included), or the one that a DICOM file belongs to.

    Args:
        path: an existing folder or DICOM file.
        series: SeriesInstanceUID; needed where there are several CT series.

    Raises:
        ReadError: no DICOM image, no CT series, a damaged file, a multi-frame file, or a series with two patients.
        SeriesChoiceError: several CT series and no choice, or a choice that is not there; the message lists them.
        GeometryError: slices missing, unevenly spaced, sheared (gantry tilt), duplicated, not alike, or in two frames
            of reference.
        IntensityError: a series that says itself that its values are not HU, or whose rescale slope is 0.
    """
    images, notes = _choose(path, series)
    images, geometry, odd = stack_slices(images)
    require_size("The series", geometry.size, 4)
    array, digests = _decode(images, geometry)
    sha256 = hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
    patient = next((image.patient[0] for image in images if image.patient[0]), "")
    return DicomVolume(array, geometry, tuple(image.path for image in images), sha256, (*notes, *odd), patient)


def dicom_stack(source: Path | str | Sequence[Path | str], series: str | None = None) -> DicomStack:
    """The files and the grid of the series that :func:`read_dicom` would read.

    Args:
        source: a folder, one DICOM file of the series, or all of its files (as Slicer's DICOM database lists them).
        series: SeriesInstanceUID; needed where there are several CT series.

    Raises:
        ReadError, SeriesChoiceError, GeometryError: as :func:`read_dicom`.
    """
    given = Path(source) if isinstance(source, str | Path) else [Path(file) for file in source]
    images, notes = _choose(given, series)
    images, geometry, odd = stack_slices(images)
    return DicomStack(tuple(image.path for image in images), geometry, (*notes, *odd))


def dicom_files(path: Path | str, series: str | None = None) -> list[Path]:
    """The files of the series that :func:`read_dicom` would read, one a slice, in the order of its array's axis z."""
    return list(dicom_stack(path, series).files)


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM image, with or without the usual preamble."""
    with open_regular(path) as file:
        if file.read(132)[128:] == b"DICM":
            return True
    return isinstance(_read_tags(path), DicomSlice)


# Finding the series


def _choose(path: Path | Sequence[Path], series: str | None) -> tuple[list[DicomSlice], list[str]]:
    if not isinstance(path, Path):
        images, others = _scan(path)
        if not images:
            raise ReadError(f"None of the {len(path)} files given is a DICOM image; a DICOM CT series is needed.")
    elif path.is_dir():
        images, others = _scan(_files_below(path))
    else:
        found = _read_tags(path)
        if isinstance(found, str):
            raise ReadError(f"{path.name} is a damaged DICOM file, or it was cut short.", "Copy or export it again.")
        if found is None:
            raise ReadError(f"{path.name} is a DICOM file without an image.", "Give the folder of the CT series.")
        series = series or found.series
        images, others = _scan(_readable(path.parent.iterdir()))
    if not images and isinstance(path, Path):
        raise _no_images(path, others)

    by_series: dict[str, list[DicomSlice]] = {}
    for image in images:
        by_series.setdefault(image.series, []).append(image)
    ct = {uid: members for uid, group in by_series.items() if (members := [m for m in group if m.role == "CT"])}
    if series is not None and series not in ct:
        if series in by_series:
            raise ReadError(f"The series holds {_roles(by_series[series])}; a chest CT is needed.", _list(ct))
        raise SeriesChoiceError(f"The folder holds no series {series}.", _list(ct))
    if not ct:
        raise ReadError(f"The folder holds no CT series, only {_roles(images)}; a chest CT is needed.")
    if series is None and len(ct) > 1:
        raise SeriesChoiceError(f"The folder holds {len(ct)} CT series; choose one with --series UID.", _list(ct))
    uid = series or next(iter(ct))

    notes = []
    if isinstance(path, Path) and not path.is_dir() and len(ct[uid]) > 1:
        notes.append(f"The file is one of {len(ct[uid])} slices; the whole series was read.")
    if left_out := [image for image in images if image.role != "CT"]:
        notes.append(f"Left out beside the CT: {_roles(left_out)}.")
    if others:
        notes.append(f"Left out beside the CT: {others} {'file' if others == 1 else 'files'} without a DICOM image.")
    return ct[uid], notes


def _files_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise ReadError(f"The folder {error.filename} can't be read: {error.strerror}.") from error

    paths = [Path(root, name) for root, _, names in os.walk(folder, onerror=refuse) for name in names]
    return _readable(paths)


def _readable(paths: Iterable[Path]) -> list[Path]:
    """Those that are files and not hidden, sorted."""
    files = sorted(path for path in paths if not path.name.startswith(".") and path.is_file())
    if foreign := sum(not name_is_utf8(path) for path in files):
        raise ReadError(
            f"{foreign} of {len(files)} files in the folder {'has a name' if foreign == 1 else 'have names'} that "
            f"{'is' if foreign == 1 else 'are'} not UTF-8.",
            "Rename them.",
        )
    return files


def _scan(files: Sequence[Path]) -> tuple[list[DicomSlice], int]:
    """The DICOM images among files, and how many files are none."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_read_tags, files))
    if damaged := sum(isinstance(item, str) for item in found):
        raise ReadError(
            f"{damaged} of {len(files)} files in the folder {'is a' if damaged == 1 else 'are'} damaged DICOM "
            f"{'image' if damaged == 1 else 'images'} (cut short?).",
            "Copy or export the series again.",
        )
    images = [item for item in found if isinstance(item, DicomSlice)]
    return images, len(found) - len(images)


def _read_tags(path: Path) -> DicomSlice | str | None:
    """The tags of a DICOM image; "damaged"; or None for anything else."""
    import SimpleITK as sitk

    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise ReadError(f"{path} can't be read: {error.strerror}.") from error
    if not start:
        return "damaged" if path.suffix.lower() == ".dcm" else None
    stored = require_sound(path)
    if stored is None:
        return None
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        # a CT image by its file meta header that can't be read is damaged; a report or a plan just has no image
        return "damaged" if _storage_class(start) in CT_CLASSES else None

    def text(tag: str) -> str:
        return str(reader.GetMetaData(tag)).strip(" \0") if reader.HasMetaDataKey(tag) else ""

    def numbers(tag: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text(tag).split("\\") if part.strip())
        except ValueError:
            return ()
        return values if all(abs(value) <= LARGEST_NUMBER for value in values) else ()

    size = reader.GetSize()
    bits = text("0028|0100")
    if not is_believable(stored, size, reader.GetNumberOfComponents(), int(bits) if bits.isdecimal() else 16):
        return "damaged"
    return DicomSlice(
        path=path,
        series=text("0020|000e"),
        instance=text("0008|0018"),
        sop_class=text("0008|0016"),
        modality=text("0008|0060").upper(),
        localizer="LOCALIZER" in text("0008|0008").upper(),
        size=(size[0], size[1]),
        frames=size[2] if len(size) > 2 else 1,
        components=reader.GetNumberOfComponents(),
        integer=reader.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64),
        position=numbers("0020|0032"),
        orientation=numbers("0020|0037"),
        spacing=numbers("0028|0030")[::-1],
        thickness=next(iter(numbers("0018|0050")), 0.0),
        tilt=next(iter(numbers("0018|1120")), 0.0),
        rescale_type=text("0028|1054").upper(),
        slope=next(iter(numbers("0028|1053")), 1.0),
        frame=text("0020|0052"),
        patient=(text("0010|0020"), text("0010|0010"), text("0010|0030")),
    )


def _storage_class(start: bytes) -> str:
    """What a file's meta header says it is; the UIDs further on are of what it refers to, which may be a CT."""
    found = _STORAGE_CLASS.search(start, 132) if start[128:132] == b"DICM" else None
    return found[1].decode() if found else ""


def _no_images(path: Path, others: int) -> ReadError:
    files = _files_below(path) if path.is_dir() else []
    volumes = [file.name for file in files if file.name.lower().endswith(tuple(FORMATS))]
    if volumes:
        return ReadError(
            f"The folder {path.name} holds no DICOM image but {len(volumes)} image "
            f"{'file' if len(volumes) == 1 else 'files'} of another format.",
            "Give the file itself.",
        )
    inside = f"only {others} other {'file' if others == 1 else 'files'}" if others else "it is empty"
    return ReadError(f"The folder {path.name} holds no DICOM image, {inside}; a DICOM CT series is needed.")


def _roles(images: Iterable[DicomSlice]) -> str:
    counts = Counter(image.role for image in images)
    return ", ".join(
        f"{count} {role} {'image' if count == 1 else 'images'}" if role.isupper() else f"{count} x {role}"
        for role, count in counts.most_common()
    )


def _list(series: dict[str, list[DicomSlice]]) -> str:
    rows = []
    for uid, images in sorted(series.items(), key=lambda item: -len(item[1])):
        first = images[0]
        grid = " x ".join(map(str, first.size))
        spacing = " x ".join(f"{value:.3g}" for value in first.spacing)
        slices = sum(image.frames for image in images)
        rows.append(
            f"{uid} (CT, {slices} {'slice' if slices == 1 else 'slices'} of {grid}, {spacing} mm, "
            f"slice thickness {first.thickness:g} mm)"
        )
    return "CT series: " + "; ".join(rows) + "." if rows else ""


# The voxels


def _decode(images: Sequence[DicomSlice], geometry: Geometry) -> tuple[NDArray[Any], list[str]]:
    """The voxels, and the SHA-256 of each file; slices are decoded side by side, straight into the volume."""
    if all(image.integer for image in images):
        array = np.empty(geometry.shape, np.int16)
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(_decode_slice, images, array))
        if all(fits for fits, _ in results):
            return array, [digest for _, digest in results]
    array = np.empty(geometry.shape, np.float32)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(_decode_slice, images, array))
    return compact(array), [digest for _, digest in results]


def _decode_slice(image: DicomSlice, target: NDArray[Any]) -> tuple[bool, str]:
    """Decode one slice into target (y, x); whether its type held the values, and the file's SHA-256."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(image.path))
    try:
        image_of_one = reader.Execute()  # kept alive while its view is
        decoded = sitk.GetArrayViewFromImage(image_of_one).reshape(target.shape)
        with image.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (RuntimeError, OSError) as error:
        position = ", ".join(f"{value:.4g}" for value in image.position)
        raise ReadError(
            f"The slice at ({position}) mm can't be decoded: its file is damaged or packed in a way that is not known.",
            "Copy or export the series again.",
        ) from error
    fits = target.dtype != np.int16 or (int(decoded.min()) >= -32768 and int(decoded.max()) <= 32767)
    # what gets too large becomes infinite, which is refused
    with np.errstate(over="ignore", invalid="ignore"):
        target[...] = decoded
    return fits, digest
