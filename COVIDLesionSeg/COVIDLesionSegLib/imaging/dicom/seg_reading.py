"""Read a DICOM SEG, whoever wrote it, as a label map.

A DICOM SEG holds only the frames that have a voxel, in any order. Where the CT's grid is known, every frame goes to the
slice that it was drawn on; otherwise the label map is the stack from the first frame to the last.

highdicom's ``Segmentation.get_volume`` gives the same voxels in the same time, but none where the frames leave gaps and
the distance of slices is missing or wrong, nor without a frame of reference or dimension indices.
"""

from __future__ import annotations

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
_FARTHEST_MM = 1e6


@dataclass(frozen=True, eq=False)
class _Frames:
    """The frames of one file and the plane that they share."""

    positions: NDArray[np.float64]  # LPS of each one's first pixel, mm
    segments: list[int]  # number of each, or 0 where the pixels are the numbers
    pixels: NDArray[Any]  # (frame, row, column)
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
    places = _places(frames, view.geometry, path)
    rows, columns = frames.pixels.shape[1:]
    for (i, j, k), segment, pixels in zip(places.tolist(), frames.segments, frames.pixels, strict=True):
        _paint(slices[k, j : j + rows, i : i + columns], pixels, segment, kept, names, path)
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

    positions = np.array([of(group, "PlanePositionSequence").ImagePositionPatient for group in groups], float)
    if not (np.abs(positions) < _FARTHEST_MM).all():
        raise ValueError("a frame lies nowhere")
    orientations = np.array(
        [of(group, "PlaneOrientationSequence").ImageOrientationPatient for group in groups], float
    ).reshape(-1, 2, 3)
    if np.abs(orientations - orientations[0]).max() > _DIRECTION_TOLERANCE:
        raise ValueError("frames of different orientation")
    segments = [0] * len(positions)
    if dataset.SOPClassUID != LABEL_MAP_STORAGE:
        segments = [int(of(group, "SegmentIdentificationSequence").ReferencedSegmentNumber) for group in groups]
    pixels = _pixels(dataset)
    if len(pixels) != len(positions):
        raise ValueError(f"{len(pixels)} frames, places for {len(positions)}")
    rows, columns = orientations[0]
    measures = of(groups[0], "PixelMeasuresSequence")
    gap = measures.get("SpacingBetweenSlices") or 0
    if not gap and len(np.unique(positions, axis=0)) == 1:
        gap = measures.get("SliceThickness") or 1
    axes = np.stack([rows, columns, np.cross(rows, columns)], axis=1)
    spacing = [float(value) for value in measures.PixelSpacing]
    return _Frames(positions, segments, pixels, axes, (spacing[1], spacing[0]), abs(float(gap)))


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
    heights = frames.positions @ frames.axes[:, 2]
    gaps = np.diff(np.unique(np.round(heights, 3)))
    gap = frames.gap or float(gaps.min())
    steps = (heights - heights.min()) / gap
    if np.abs(steps - np.round(steps)).max() > _SLICE_TOLERANCE:
        raise GeometryError(
            f"The frames of the DICOM SEG are not evenly spaced (slices {gap:.4g} mm apart).",
            "Load it in Slicer and save it as .seg.nrrd.",
        )
    rows, columns = frames.pixels.shape[1:]
    first = frames.positions[heights.argmin()]
    size = (columns, rows, round(float(steps.max())) + 1)
    return Geometry(size, (*frames.spacing, gap), tuple(first), tuple(frames.axes.ravel()))


def _places(frames: _Frames, grid: Geometry, path: Path) -> NDArray[np.int64]:
    """Where each frame's first pixel lies (i, j, k) in the grid that has the frames' own axes."""
    index = (frames.positions @ frames.axes - grid.origin) @ np.linalg.inv(grid.matrix).T / grid.spacing
    places = np.round(index).astype(np.int64)
    off = np.abs(index - places)
    rows, columns = frames.pixels.shape[1:]
    problem = ""
    if np.abs(grid.matrix - np.eye(3)).max() > 10 * _DIRECTION_TOLERANCE:
        problem = "its planes are turned against the slices"
    elif np.abs(np.divide(frames.spacing, grid.spacing[:2]) - 1).max() * max(rows, columns) > 2 * _PIXEL_TOLERANCE:
        found, wanted = (" x ".join(f"{v:.5g}" for v in s) for s in (frames.spacing, grid.spacing[:2]))
        problem = f"its pixels are {found} mm, not {wanted} mm"
    elif (off > (_PIXEL_TOLERANCE, _PIXEL_TOLERANCE, _SLICE_TOLERANCE)).any():
        problem = "a frame lies between the voxels"
    elif places.min() < 0 or (places + np.array((columns, rows, 1)) > grid.size).any():
        problem = "a frame lies outside"
    if problem:
        raise GridMismatchError(
            f"The DICOM SEG {path.name} is not on the grid it should be on: {problem}.", "Is it of the same CT?"
        )
    return places


def _paint(
    target: NDArray[Any], pixels: NDArray[Any], segment: int, kept: int | None, names: dict[int, str], path: Path
) -> None:
    """Put a frame's segment into its slice (rows, columns), in place."""
    if segment == 0:
        target[...] = pixels if kept is None else np.where(pixels == kept, kept, 0)
        return
    if kept not in (None, segment):
        return
    inside = pixels != 0
    other = target[inside & (target != 0)]
    if other.size:
        first, second = (names.get(int(number), str(number)) for number in (other[0], segment))
        raise ReadError(
            f"In {path.name} the segments {first} and {second} overlap; one label map cannot hold both.",
            "Choose one of them as the label.",
        )
    target[inside] = segment
