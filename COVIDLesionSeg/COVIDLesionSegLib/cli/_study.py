"""Reading what the measuring commands are given: a CT with its masks, or two masks."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, LungsNotFoundError
from ..imaging import (
    Geometry,
    LabelVolume,
    LocatedLungs,
    Volume,
    common_grid,
    is_dicom_seg,
    read_labels,
    read_volume,
)
from ..imaging.lungs.engines import NONE
from ..inference.lung_engine import locate_lungs
from ._arguments import Label

_log = logging.getLogger(__name__)


@dataclass
class StudyFiles:
    """The files of one study.

    Attributes:
        ct: file or DICOM folder.
        lesion: label map.
        lungs: label map; found in the CT if absent.
        lobes: label map, if there is one.
        label: which label of the lesion map is lesion; needed where it has several.
        series: SeriesInstanceUID, for a DICOM folder with several.
        rescale: slope and intercept, for stored values that are not HU.
        lung_engine: what finds the lungs, see ``imaging.locate_lungs``; None: as the predictor chooses.
    """

    ct: Path
    lesion: Path
    lungs: Path | None = None
    lobes: Path | None = None
    label: Label | None = None
    series: str | None = None
    rescale: tuple[float, float] | None = None
    lung_engine: str | None = None


@dataclass
class Study:
    """What was read, on the CT's grid, and sentences about what was odd."""

    volume: Volume
    lesion: np.ndarray
    lungs: LabelVolume | LocatedLungs | None
    lobes: LabelVolume | None
    notes: list[str] = field(default_factory=list)


def read_study(files: StudyFiles) -> Study:
    """Read a study and see that everything lies on the CT's grid.

    Raises:
        ReadError, GeometryError, IntensityError: as the readers do.
        GridMismatchError: a mask on another grid; the message names the difference.
        InputError: a lesion map with several labels and no choice among them.
    """
    volume = read_volume(files.ct, files.series, files.rescale)
    notes = list(volume.warnings)
    lesion = read_mask(files.lesion, files.label, "lesion mask", volume.geometry)
    lesion.geometry.require_same(volume.geometry, "lesion mask", "CT")
    lobes = None
    if files.lobes is not None:
        lobes = read_labels(files.lobes, geometry=volume.geometry)
        lobes.geometry.require_same(volume.geometry, "lobe map", "CT")
    lungs: LabelVolume | LocatedLungs | None = None
    if files.lungs is not None:
        lungs = read_labels(files.lungs, geometry=volume.geometry)
        lungs.geometry.require_same(volume.geometry, "lung mask", "CT")
    elif lobes is None and files.lung_engine != NONE:
        try:
            lungs = locate_lungs(volume, engine=files.lung_engine)
            notes.append("The lungs were found in the CT by the program; no lung mask was given.")
        except LungsNotFoundError as error:
            notes.append(f"{error} Everything that needs the lungs is left out.")
    return Study(volume, lesion.array != 0, lungs, lobes, notes)


def read_mask(path: Path, label: Label | None, what: str, geometry: Geometry | None = None) -> LabelVolume:
    """Read one label of a label map.

    Args:
        path: the file.
        label: value or name; None needs a map with one label at most.
        what: its name in messages.
        geometry: the grid to put a DICOM SEG on.

    Raises:
        ReadError: not a readable label map.
        InputError: several labels and no choice among them, or a name that no segment has.
    """
    labels = read_labels(path, label, geometry)
    if label is not None:
        if not labels.array.any():
            _log.warning("%s: label %s does not occur in %s, so the mask is empty.", what, label, path.name)
        return labels
    present = _present(labels)
    if len(present) > 1:
        known = ", ".join(
            f"{value} ({labels.names[value]})" if value in labels.names else str(value) for value in present[:12]
        )
        raise InputError(
            f"The {what} {path.name} holds several labels: {known}{', ...' if len(present) > 12 else ''}.",
            "Choose one with --label.",
        )
    return labels


def read_pair(
    prediction: Path, reference: Path, prediction_label: Label | None, reference_label: Label | None
) -> tuple[LabelVolume, LabelVolume]:
    """Read a segmentation and its reference.

    A DICOM SEG, which holds only the slices with something in them, is put on the other's grid; two of them are put on
    the grid that both are parts of.

    Raises:
        ReadError, InputError: as :func:`read_mask`.
        GridMismatchError: a DICOM SEG that doesn't lie on the other's grid.
    """
    files = ((prediction, prediction_label, "prediction"), (reference, reference_label, "reference"))
    found = [read_mask(*file) for file in files]
    partial = [is_dicom_seg(path) for path, _, _ in files]
    if any(partial) and found[0].geometry.difference(found[1].geometry):
        if all(partial):
            grid = common_grid(found[0].geometry, found[1].geometry)
        else:
            grid = found[partial.index(False)].geometry
        if grid is not None:
            for index, file in enumerate(files):
                found[index] = read_mask(*file, grid) if partial[index] else found[index]
    return found[0], found[1]


def resampled(labels: LabelVolume, geometry: Geometry) -> LabelVolume:
    """A label map on another grid, nearest neighbor; background where it has no voxel."""
    import SimpleITK as sitk

    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(geometry.size)
    resampler.SetOutputSpacing(geometry.spacing)
    resampler.SetOutputOrigin(geometry.origin)
    resampler.SetOutputDirection(geometry.direction)
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    image = resampler.Execute(labels.geometry.to_sitk(np.ascontiguousarray(labels.array)))
    return LabelVolume(sitk.GetArrayFromImage(image), geometry, labels.names, labels.name)


def _present(labels: LabelVolume) -> list[int]:
    counts: Any = np.zeros(int(labels.array.max()) + 1, np.int64)
    for part in labels.array:
        counts += np.bincount(part.ravel(), minlength=len(counts))
    return [int(value) for value in np.flatnonzero(counts[1:]) + 1]
