"""Read a DICOM SEG, whoever wrote it, as a label map.

A DICOM SEG holds only the frames that have a voxel, in any order. Where the CT's grid is known, every frame goes to the
slice that it was drawn on; otherwise the label map is the stack from the first frame to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GeometryError, GridMismatchError, InputError, ReadError
from ...files import open_regular
from ..geometry import Geometry
from ..segments import chosen_value
from ..volume import LabelVolume

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
# A frame belongs to the slice it lies nearest to; further off, as a share of the distance of slices, it is between two.
_SLICE_TOLERANCE = 0.3
# Rows and columns must be those of the CT, as a share of a pixel.
_PIXEL_TOLERANCE = 0.05
_DIRECTION_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class _Frame:
    position: NDArray[np.float64]  # LPS of the first pixel, mm
    segment: int  # number, or 0 where the pixels are the numbers
    pixels: NDArray[Any]  # (rows, columns)


@dataclass(frozen=True, eq=False)
class _Frames:
    """The frames of one file and the plane that they share."""

    frames: Sequence[_Frame]
    axes: NDArray[np.float64]  # columns: direction along a row, along a column, normal
    spacing: tuple[float, float]  # along a row, along a column; mm
    gap: float  # between slices as the file says it, mm, or 0


def is_dicom_seg(path: Path | str) -> bool:
    """Whether a file is a DICOM SEG, as far as its beginning tells."""
    with open_regular(path) as file:
        start = file.read(1024)
    return start[128:132] == b"DICM" and SEGMENTATION_STORAGE[:-1].encode() in start


def read_dicom_seg(path: Path | str, label: int | str | None = None, geometry: Geometry | None = None) -> LabelVolume:
    """Read a DICOM SEG as a label map.

    Args:
        path: the file.
        label: keep this segment only, by number or name.
        geometry: the grid to put it on, usually the CT's; its axes may run as they like. None: the planes of the file
            itself, from the first frame to the last.

    Returns:
        Segment numbers, uint8 or uint16 (z, y, x), and the segments' names.

    Raises:
        InputError: pydicom is not installed, or a name that no segment has.
        ReadError: no DICOM SEG, damaged, fractional, or segments that overlap where none was chosen.
        GridMismatchError: its planes are not those of the geometry.
        GeometryError: no geometry was given and the frames are no regular stack.
    """
    path = Path(path)
    dataset = _dataset(path)
    try:
        names = {int(item.SegmentNumber): str(item.get("SegmentLabel", "")) for item in dataset.SegmentSequence}
        names.pop(0, None)  # label maps may describe their background
        frames = _frames(dataset)
    except (AttributeError, IndexError, KeyError, ValueError, TypeError) as error:
        raise ReadError(f"{path.name} is a damaged DICOM SEG ({error}).", "Copy or export it again.") from error
    except RuntimeError as error:  # of pydicom's decoders
        raise ReadError(
            f"The pixels of {path.name} are packed in a way that can't be read, or damaged.",
            "Export it again without compression.",
        ) from error
    kept = chosen_value(label, names, path)
    grid = _stack(frames) if geometry is None else geometry
    array = np.zeros(grid.shape, np.uint8 if max(names, default=0) <= 255 else np.uint16)
    # the grid as the frames see it: rows along the first axis, columns along the second, slices along the third
    turned = frames.axes.T @ grid.matrix
    view = Geometry(grid.size, grid.spacing, tuple(frames.axes.T @ grid.origin), tuple(turned.ravel())).axial_view()
    slices = view.apply(array)
    for frame in frames.frames:
        place = _place(frame, frames, view.geometry, path)
        _paint(slices[place], frame, kept, names, path)
    return LabelVolume(array, grid, {n: name for n, name in names.items() if kept in (None, n)}, path.stem)


def common_grid(first: Geometry, second: Geometry) -> Geometry | None:
    """The smallest grid that holds both, where two files have different slices of one stack; None where they do not."""
    start = (np.linalg.inv(first.ijk_to_lps) @ np.append(second.origin, 1.0))[:3]
    low = np.round(start)
    if (
        np.abs(first.matrix - second.matrix).max() > _DIRECTION_TOLERANCE
        or not np.allclose(first.spacing, second.spacing, rtol=1e-4)
        or np.abs(start - low).max() > _PIXEL_TOLERANCE
    ):
        return None
    begin = np.minimum(low, 0)
    end = np.maximum(first.size, low + second.size)
    origin = first.ijk_to_lps @ np.append(begin, 1.0)
    i, j, k = (int(value) for value in end - begin)
    return Geometry((i, j, k), first.spacing, tuple(origin[:3]), first.direction)


def _dataset(path: Path) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            "Reading a DICOM SEG needs the package pydicom, which is not installed.",
            "Install covid-lesion-seg[dicom], or give the segmentation as .seg.nrrd.",
        ) from error
    try:
        dataset = pydicom.dcmread(path)
    except (pydicom.errors.InvalidDicomError, OSError, ValueError) as error:
        raise ReadError(f"{path.name} can't be read as DICOM.", "Copy or export it again.") from error
    kind = dataset.get("SOPClassUID")
    if kind not in (SEGMENTATION_STORAGE, LABEL_MAP_STORAGE):
        name = getattr(kind, "name", kind) or "of an unknown kind"
        raise ReadError(f"{path.name} is DICOM, but {name}; a segmentation is needed.")
    return dataset


def _frames(dataset: Any) -> _Frames:
    shared = dataset.get("SharedFunctionalGroupsSequence", [{}])[0]
    groups = dataset.PerFrameFunctionalGroupsSequence

    def of(group: Any, keyword: str) -> Any:
        return (group.get(keyword) or shared[keyword].value)[0]

    pixels = _pixels(dataset)
    numbered = dataset.SOPClassUID != LABEL_MAP_STORAGE
    frames = []
    for group, plane in zip(groups, pixels, strict=True):
        position = np.array(of(group, "PlanePositionSequence").ImagePositionPatient, float)
        number = int(of(group, "SegmentIdentificationSequence").ReferencedSegmentNumber) if numbered else 0
        frames.append(_Frame(position, number, plane))
    orientations = np.array(
        [of(group, "PlaneOrientationSequence").ImageOrientationPatient for group in groups], float
    ).reshape(-1, 2, 3)
    if np.abs(orientations - orientations[0]).max() > _DIRECTION_TOLERANCE:
        raise ValueError("frames of different orientation")
    rows, columns = orientations[0]
    measures = of(groups[0], "PixelMeasuresSequence")
    gap = measures.get("SpacingBetweenSlices") or 0
    if not gap and len({tuple(frame.position) for frame in frames}) == 1:
        gap = measures.get("SliceThickness") or 1
    axes = np.stack([rows, columns, np.cross(rows, columns)], axis=1)
    spacing = [float(value) for value in measures.PixelSpacing]
    return _Frames(frames, axes, (spacing[1], spacing[0]), abs(float(gap)))


def _pixels(dataset: Any) -> NDArray[Any]:
    """(frame, row, column): 0 and 1, or segment numbers."""
    pixels: NDArray[Any] = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    if dataset.get("SegmentationType") == "FRACTIONAL":
        most = int(dataset.MaximumFractionalValue)
        if not np.isin(pixels, (0, most)).all():
            raise ReadError(
                "The DICOM SEG holds fractions, so its borders are not known.", "Give one of the type BINARY."
            )
        pixels = pixels // most
    return pixels


# Where the frames lie


def _stack(frames: _Frames) -> Geometry:
    """The regular stack from the first frame to the last."""
    positions = np.array([frame.position for frame in frames.frames])
    heights = positions @ frames.axes[:, 2]
    places = np.unique(np.round(heights, 3))
    gap = frames.gap or float(np.diff(places).min())
    first = positions[heights.argmin()]
    count = round(float(np.ptp(heights)) / gap) + 1
    if np.abs((places - places[0]) / gap - np.round((places - places[0]) / gap)).max() > _SLICE_TOLERANCE:
        raise GeometryError(
            f"The frames of the DICOM SEG are not evenly spaced (slices {gap:.4g} mm apart).",
            "Load it in Slicer and save it as .seg.nrrd.",
        )
    rows, columns = frames.frames[0].pixels.shape
    return Geometry((columns, rows, count), (*frames.spacing, gap), tuple(first), tuple(frames.axes.ravel()))


def _place(frame: _Frame, frames: _Frames, grid: Geometry, path: Path) -> tuple[int, slice, slice]:
    """Where a frame lies in the grid (z, y, x) that has the frames' own axes."""
    index = (np.linalg.inv(grid.ijk_to_lps) @ np.append(frames.axes.T @ frame.position, 1.0))[:3]
    i, j, k = (round(float(value)) for value in index)
    rows, columns = frame.pixels.shape
    problem = ""
    if np.abs(grid.matrix - np.eye(3)).max() > 10 * _DIRECTION_TOLERANCE:
        problem = "its planes are turned against the slices"
    elif np.abs(np.divide(frames.spacing, grid.spacing[:2]) - 1).max() * max(rows, columns) > 2 * _PIXEL_TOLERANCE:
        found, wanted = (" x ".join(f"{v:.5g}" for v in s) for s in (frames.spacing, grid.spacing[:2]))
        problem = f"its pixels are {found} mm, not {wanted} mm"
    elif np.abs(index[:2] - (i, j)).max() > _PIXEL_TOLERANCE or abs(index[2] - k) > _SLICE_TOLERANCE:
        problem = "a frame lies between the voxels"
    elif not (0 <= i <= grid.size[0] - columns and 0 <= j <= grid.size[1] - rows and 0 <= k < grid.size[2]):
        problem = "a frame lies outside"
    if problem:
        raise GridMismatchError(
            f"The DICOM SEG {path.name} is not on the grid it should be on: {problem}.", "Is it of the same CT?"
        )
    return k, slice(j, j + rows), slice(i, i + columns)


def _paint(target: NDArray[Any], frame: _Frame, kept: int | None, names: dict[int, str], path: Path) -> None:
    """Put a frame's segment into its slice (rows, columns), in place."""
    if frame.segment == 0:
        target[...] = frame.pixels if kept is None else np.where(frame.pixels == kept, kept, 0)
        return
    if kept not in (None, frame.segment):
        return
    inside = frame.pixels != 0
    other = target[inside & (target != 0)]
    if other.size:
        first, second = (names.get(int(number), str(number)) for number in (other[0], frame.segment))
        raise ReadError(
            f"In {path.name} the segments {first} and {second} overlap; one label map cannot hold both.",
            "Choose one of them as the label.",
        )
    target[inside] = frame.segment
