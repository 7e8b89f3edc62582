"""Where the slices of a DICOM series lie: their order, their grid, and what no CT can have.

Everything is told from the tags of each slice; SimpleITK's series reader accepts missing slices, uneven gaps, gantry
tilt and duplicates in silence. Positions in messages are LPS coordinates in millimetres, as viewers show them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import GeometryError, IntensityError, ReadError
from ..geometry import Geometry

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
