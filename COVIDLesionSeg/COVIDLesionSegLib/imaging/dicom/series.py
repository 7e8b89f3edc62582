"""DICOM series as volumes: which files belong together, where each slice lies, what is missing.

SimpleITK (GDCM) reads the header tags and decodes the slices; the grid comes from the tags of every slice, because
SimpleITK's own series reader accepts missing slices, uneven gaps, gantry tilt, MR images and duplicates in silence.
Messages and warnings name positions (LPS, mm, as viewers show them) and numbers of images, never files or patient data.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cores import run_all
from ...errors import GeometryError, IntensityError, ReadError, SeriesChoiceError
from ...files import open_regular
from .._claims import LARGEST_NUMBER, require_size
from .._image_file import FORMATS, name_is_utf8
from ..geometry import Geometry
from ..plausibility import compact
from ._claims import is_believable, require_sound

# CT Image Storage, Enhanced CT, Legacy Converted Enhanced CT
CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

# A slice may lie this share of the slice spacing from its place in an even stack: positions are written with one
# decimal by some scanners. From half of that on, the volume carries a warning.
_SPACING_TOLERANCE = 0.1
_ROUNDING_MM = 0.1
# Slices may be shifted sideways by this share of a pixel; from a tenth of that on with a warning.
_SHEAR_TOLERANCE = 0.5
_SAME_POSITION_MM = 0.01
_LEAST_TILT = 0.1
# Slices thinner than this share of their distance leave a gap worth a warning.
_GAP_FROM = 0.75
_SHOWN = 6
_MOST_SLICES = 10_000

# Media Storage SOP Class UID (0002,0002) in the file meta group, which is always explicit little endian
_STORAGE_CLASS = re.compile(rb"\x02\0\x02\0UI..([0-9.]+)", re.DOTALL)


@dataclass(frozen=True)
class DicomStack:
    """The slices of a CT series in order, before their voxels are read.

    Attributes:
        files: one a slice, in the order of the array's axis z: of their position along the normal of the image plane.
        geometry: the grid.
        warnings: sentences about what was odd but usable.
    """

    files: tuple[Path, ...]
    geometry: Geometry
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class DicomVolume(DicomStack):
    """A CT series read from DICOM.

    Attributes:
        array: (z, y, x), int16 or float32, values after the files' own rescale.
        sha256: SHA-256 over the sorted SHA-256 digests (hexadecimal, one a line) of the files.
        patient_id: as the files give it, "" where none does.
    """

    array: NDArray[Any]
    sha256: str
    patient_id: str = field(repr=False)


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
    return DicomVolume(tuple(image.path for image in images), geometry, (*notes, *odd), array, sha256, patient)


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
    if not stored.whole:
        return "damaged" if path.suffix.lower() == ".dcm" or _storage_class(start) in CT_CLASSES else None
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

    def decoded(dtype: Any) -> tuple[NDArray[Any], list[tuple[bool, str]]]:
        array: NDArray[Any] = np.empty(geometry.shape, dtype)
        return array, run_all([partial(_decode_slice, *pair) for pair in zip(images, array, strict=True)])

    array, results = decoded(np.int16 if all(image.integer for image in images) else np.float32)
    if not all(fits for fits, _ in results):
        array, results = decoded(np.float32)
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


# Where the slices lie


@dataclass(frozen=True)
class DicomSlice:
    """The tags of one DICOM file that matter here."""

    path: Path
    series: str
    instance: str
    sop_class: str
    modality: str
    localizer: bool
    size: tuple[int, int]
    frames: int
    components: int
    integer: bool
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]  # columns, rows: along i, j
    thickness: float
    tilt: float
    rescale_type: str
    slope: float
    frame: str  # UID of the frame of reference
    # ID, name and birth date, each "" where the file leaves it out: they tell patients apart and go nowhere else
    patient: tuple[str, str, str] = field(repr=False)

    @property
    def role(self) -> str:
        """ "CT", or why it is none."""
        if self.sop_class.startswith(_SECONDARY_CAPTURE):
            return "secondary capture"
        if self.modality != "CT" and (self.modality or self.sop_class not in CT_CLASSES):
            return self.modality or "unknown modality"
        if self.localizer:
            return "localizer"
        return "color picture" if self.components > 1 else "CT"


def stack_slices(images: Sequence[DicomSlice]) -> tuple[list[DicomSlice], Geometry, list[str]]:
    """The slices in order, their grid, and what is odd about it."""
    if any(image.frames > 1 for image in images):
        raise ReadError(
            "The series is a multi-frame (Enhanced CT) file, which this program does not read.",
            "Convert it to NIfTI (dcm2niix), or load it in Slicer and save it as NRRD.",
        )
    # before copies are left out: those of another patient would be none
    _refuse_mixed(images)
    images, warnings = _without_copies(images)
    first = images[0]
    _refuse_unlike(images)
    for kind in {image.rescale_type for image in images} - {"", "HU", "US", "HU_MOD"}:
        raise IntensityError(f"The series says that its values are {kind}, not HU; choose the plain CT series.")
    if flat := sum(image.slope == 0 or not np.isfinite(image.slope) for image in images):
        raise IntensityError(
            f"{flat} of {len(images)} slices have a rescale slope of 0 or none that is a number, so their values are "
            "lost.",
            "Export the original series again.",
        )

    matrix = np.array(first.orientation).reshape(2, 3)
    lengths = np.linalg.norm(matrix, axis=1)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(float(matrix[0] @ matrix[1])) > 1e-2:
        raise GeometryError(f"The slices' orientation {first.orientation} is not a pair of perpendicular directions.")
    matrix /= lengths[:, None]
    normal = np.cross(*matrix)
    normal /= np.linalg.norm(normal)

    positions = np.array([image.position for image in images])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    distances = positions @ normal
    gap = _even_gap(distances, positions, normal, warnings) if len(images) > 1 else _single_gap(first, warnings)
    _refuse_shear(positions, distances, normal, first, warnings)
    if len(images) > 1 and 0 < first.thickness < _GAP_FROM * gap:
        warnings.append(f"Slices are {first.thickness:g} mm thick but {gap:.4g} mm apart; the rest is not seen.")
    direction = np.stack([matrix[0], matrix[1], normal], axis=1)
    x, y, z = positions[0]
    spacing = (first.spacing[0], first.spacing[1], gap)
    geometry = Geometry((*first.size, len(images)), spacing, (x, y, z), tuple(direction.ravel()))
    return [images[index] for index in order], geometry, warnings


def _without_copies(images: Sequence[DicomSlice]) -> tuple[list[DicomSlice], list[str]]:
    """One file a slice. Some exports give all slices one UID, so that alone makes no copy."""
    unique = {(image.instance or str(image.path), image.position, image.orientation): image for image in images}
    warnings = []
    if copies := len(images) - len(unique):
        warnings.append(f"{copies} {'copy' if copies == 1 else 'copies'} of slices left out.")
    uses = Counter(uid for uid, _, _ in unique)
    if alike := sum(count for count in uses.values() if count > 1):
        warnings.append(
            f"{alike} of {len(unique)} slices share a SOPInstanceUID with a slice at another position; all are kept."
        )
    return list(unique.values()), warnings


def _refuse_mixed(images: Sequence[DicomSlice]) -> None:
    """Refuse slices of several patients, or of several coordinate systems, under one UID."""
    for index, what in enumerate(("ID", "name", "birth date")):
        found = {image.patient[index] for image in images} - {""}
        if len(found) > 1:
            raise ReadError(
                f"The series holds slices of {len(found)} patients: they differ in the patient's {what}.",
                "Export the CT of one patient alone.",
            )
    frames = {image.frame for image in images} - {""}
    if len(frames) > 1:
        raise GeometryError(
            f"The series holds slices of {len(frames)} frames of reference, so their positions can't be compared.",
            "Export one acquisition alone.",
        )


def _refuse_unlike(images: Sequence[DicomSlice]) -> None:
    first = images[0]
    sizes = Counter(" x ".join(map(str, image.size)) for image in images)
    if len(sizes) > 1:
        found = ", ".join(f"{count} of {size}" for size, count in sizes.most_common())
        raise GeometryError(f"The series mixes slices of different size ({found}); export the CT alone.")
    unplaced = sum(len(image.position) != 3 or len(image.orientation) != 6 for image in images)
    if unplaced:
        raise GeometryError(
            f"{unplaced} of {len(images)} slices have no position or orientation in the patient, so their order is "
            "unknown.",
            "Export the original series again.",
        )
    if any(len(image.spacing) != 2 for image in images):
        raise GeometryError("The slices do not say their pixel spacing.", "Export the original series again.")
    for name, values, tolerance in (
        ("orientation", [image.orientation for image in images], 1e-3),
        ("pixel spacing", [image.spacing for image in images], 1e-3 * min(first.spacing)),
    ):
        unlike = int((np.abs(np.array(values) - values[0]).max(axis=1) > tolerance).sum())
        if unlike:
            raise GeometryError(
                f"The series mixes slices of different {name} ({unlike} of {len(images)} differ from the first); "
                "export the CT alone."
            )


def _single_gap(image: DicomSlice, warnings: list[str]) -> float:
    gap = image.thickness if image.thickness > 0 else 1.0
    known = "its slice thickness" if image.thickness > 0 else "1 mm, for want of a slice thickness,"
    warnings.append(f"The series has one slice only; {known} counts as the spacing ({gap:g} mm).")
    return gap


def _even_gap(
    distances: NDArray[np.float64], positions: NDArray[np.float64], normal: NDArray[np.float64], warnings: list[str]
) -> float:
    """Spacing of the stack, mm; an error names the positions where it has none."""
    axis = int(np.abs(normal).argmax())

    def shown(where: Iterable[float]) -> str:
        # where: distances along the normal; given as the coordinate that changes most, as viewers show it
        coordinates = [float(np.interp(value, distances, positions[:, axis])) for value in where]
        text = ", ".join(f"{value:.4g}" for value in coordinates[:_SHOWN])
        more = f" and {len(coordinates) - _SHOWN} more" if len(coordinates) > _SHOWN else ""
        return f"{'xyz'[axis]} = {text}{more} mm"

    gaps = np.diff(distances)
    same = gaps < _SAME_POSITION_MM
    if same.any():
        # three slices at one place are one place
        places = distances[1:][same & np.append(True, ~same[:-1])]
        raise GeometryError(
            f"At {len(places)} {'position' if len(places) == 1 else 'positions'} ({shown(places)}) there is more than "
            "one slice: the series mixes acquisitions, phases or reconstructions.",
            "Export one of them alone.",
        )
    even = np.linspace(distances[0], distances[-1], len(distances))
    spacing = float((distances[-1] - distances[0]) / (len(distances) - 1))
    # the best even stack lies half-way between the extremes
    off = float(np.ptp(distances - even)) / 2
    if off <= max(_SPACING_TOLERANCE * spacing, _ROUNDING_MM):
        if off > max(_SPACING_TOLERANCE / 2 * spacing, _ROUNDING_MM):
            warnings.append(f"Slices lie up to {off:.2g} mm from an even spacing of {spacing:.4g} mm.")
        return spacing

    for base in (float(np.median(gaps)), float(gaps.min())):
        multiples = np.round(gaps / base) if base > 0 else np.zeros(1)
        if (
            multiples.min() >= 1
            and multiples.sum() < _MOST_SLICES
            and np.abs(gaps - multiples * base).max() <= max(_SPACING_TOLERANCE * base, _ROUNDING_MM)
        ):
            absent = [
                distances[index] + step * gaps[index] / multiples[index]
                for index in range(len(gaps))
                for step in range(1, int(multiples[index]))
            ]
            raise GeometryError(
                f"{len(absent)} {'slice is' if len(absent) == 1 else 'slices are'} missing at {shown(absent)} "
                f"({len(distances)} slices, spacing {base:.4g} mm).",
                "Export the complete series.",
            )
    middle = Counter(np.round(gaps, 2).tolist()).most_common(1)[0][0]
    odd = np.flatnonzero(np.abs(gaps - middle) > max(_SPACING_TOLERANCE * middle, _ROUNDING_MM))
    raise GeometryError(
        f"The slices are unevenly spaced: gaps from {gaps.min():.4g} to {gaps.max():.4g} mm, mostly {middle:.4g} mm, "
        f"first odd after {shown(distances[odd][:1])}.",
        "Use a series with even spacing, or resample it first, e.g. with Slicer's acquisition-geometry regularization.",
    )


def _refuse_shear(
    positions: NDArray[np.float64],
    distances: NDArray[np.float64],
    normal: NDArray[np.float64],
    first: DicomSlice,
    warnings: list[str],
) -> None:
    sideways = positions - distances[:, None] * normal
    shift = float(np.linalg.norm(sideways - sideways[0], axis=1).max())
    pixel = min(first.spacing)
    length = float(distances[-1] - distances[0])
    if shift > _SHEAR_TOLERANCE * pixel:
        angle = float(np.degrees(np.arctan2(np.linalg.norm(sideways[-1] - sideways[0]), length)))
        said = f"; the header says {first.tilt:g} degrees" if first.tilt else ""
        how = f"gantry tilt of {angle:.2g} degrees?{said}" if angle > _LEAST_TILT else "slices displaced?"
        raise GeometryError(
            f"The slices are not stacked at right angles: they shift sideways by up to {shift:.3g} mm over "
            f"{length:.4g} mm ({how}).",
            "Resample the series to a regular grid first, e.g. with dcm2niix or Slicer's acquisition-geometry "
            "regularization.",
        )
    if shift > _SHEAR_TOLERANCE / 10 * pixel:
        warnings.append(f"Slices are shifted sideways by up to {shift:.2g} mm.")
    if abs(first.tilt) > 1 and len(positions) > 1 and abs(float(normal[2])) > np.cos(np.radians(1)):
        warnings.append(
            f"The header says a gantry tilt of {first.tilt:g} degrees, but the slices are stacked at right angles; "
            "they are taken as corrected."
        )
