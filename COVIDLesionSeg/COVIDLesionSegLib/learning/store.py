"""Slices of all cases in two memory-mapped files, built once and checked by hash.

A data set of any size trains in bounded memory: a slice is read from disk when it is drawn. Volumes are stored as axial
slices of the lungs' box, or the body's where the lungs are doubtful, in Hounsfield units, so that augmentation can
still shift the window; pictures keep 8 bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..documents import read_object
from ..errors import CancelledError, InputError, OutputError
from ..files import regular_file, sha256_file, write_json
from ..imaging import apply_window, body_box, judged_lungs, locate_lungs, lung_box, read_labels, read_volume
from .data import TrainingCase

STORE_VERSION = 3
_log = logging.getLogger(__name__)
# a slice of 8192 x 8192
_MOST_PIXELS = 1 << 26
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class StoredCase:
    """One case of a store.

    Attributes:
        id: of the case.
        patient: of the case.
        offset: first voxel in the store's files.
        shape: (slices, rows, columns).
        spacing: (z, y, x) in mm; 1 for pictures, which have none.
        kind: "volume" (HU) or "picture" (0 ... 255).
        lesion_slices: slices with lesion.
        first_slice: index of the first stored slice on the case's axial view.
    """

    id: str
    patient: str
    offset: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    kind: Literal["volume", "picture"]
    lesion_slices: tuple[int, ...]
    first_slice: int


class SliceStore:
    """Read-only access to a built store.

    Attributes:
        folder: where it is.
        cases: id -> :class:`StoredCase`.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder = folder
        self.cases = {entry["id"]: _stored(entry) for entry in index["cases"]}
        voxels = sum(int(np.prod(case.shape)) for case in self.cases.values())
        self._images = np.memmap(folder / "images.i16", dtype=np.int16, mode="r", shape=(voxels,))
        self._labels = np.memmap(folder / "labels.u8", dtype=np.uint8, mode="r", shape=(voxels,))

    def image(self, case_id: str) -> NDArray[np.int16]:
        """The case's slices (z, y, x) as stored: HU, or 0 ... 255 for a picture; a view of the file."""
        return self._view(self._images, case_id)

    def label(self, case_id: str) -> NDArray[np.uint8]:
        """The case's lesion mask (z, y, x), 0 or 1; a view of the file."""
        return self._view(self._labels, case_id)

    def windowed(self, case_id: str, part: NDArray[Any], width: float, level: float) -> NDArray[np.float32]:
        """Stored intensities of a case, of any shape, as the network's input in [0, 1]."""
        if self.cases[case_id].kind == "picture":
            return part.astype(np.float32) / np.float32(255)
        return apply_window(part, width, level)

    def _view(self, data: NDArray[Any], case_id: str) -> NDArray[Any]:
        case = self.cases[case_id]
        return data[case.offset : case.offset + int(np.prod(case.shape))].reshape(case.shape)


def open_store(
    cases: Sequence[TrainingCase],
    hashes: Mapping[str, Mapping[str, str]],
    folder: Path | str,
    margin: int | None = 8,
    resize: tuple[int, ...] = (),
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> SliceStore:
    """Open the store of these cases, building it first if it is not there or not whole.

    Args:
        cases: what to store.
        hashes: case id -> file role -> SHA-256, as the frozen split has them; they name the store.
        folder: of the stores; each content has its own subfolder.
        margin: voxels around the lungs (and the lesion); None stores whole slices.
        resize: (rows, columns) that every slice is resized to (image as :func:`.inference.slices.resized` does it, mask
            nearest); () keeps sizes.
        progress: called as progress("preparing cases", done, total).
        cancelled: asked between cases.

    Raises:
        InputError: a case that can't be used (mask on another grid, wrong values, no lungs), named.
        CancelledError: asked to stop; nothing half-built stays.
        OutputError: the disk is full or read-only.
    """
    content = {
        "version": STORE_VERSION,
        "margin": margin,
        "resize": list(resize),
        "cases": {case.id: {"patient": case.patient, **hashes[case.id]} for case in cases},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    target = Path(folder) / digest[:16]
    index = _read_index(target)
    if index is None:
        _build(cases, content, target, margin, resize, progress, cancelled)
        index = _read_index(target)
    if index is None:
        raise OutputError(f"The slice store {target} could not be built; delete it and try again.")
    return SliceStore(target, index)


def _read_index(target: Path) -> dict[str, Any] | None:
    """The index of a whole store, or None when there is none or its files are not what the index says."""
    try:
        index = read_object(target / "index.json")
        whole = all(sha256_file(target / name) == value for name, value in index["sha256"].items())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        _log.warning("The slice store %s can't be read (%s) and is built again.", target, error)
        return None
    if not whole:
        _log.warning("The slice store %s is damaged and is built again.", target)
        return None
    return index


def _build(
    cases: Sequence[TrainingCase],
    content: Mapping[str, Any],
    target: Path,
    margin: int | None,
    resize: tuple[int, ...],
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    # two trainings may build the same store: each in a folder of its own, the first to finish wins
    building = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        building.mkdir(parents=True, exist_ok=True)
        entries = []
        offset = 0
        with (building / "images.i16").open("wb") as images, (building / "labels.u8").open("wb") as labels:
            for number, case in enumerate(cases):
                if cancelled is not None and cancelled():
                    raise CancelledError("Stopped while preparing the training data.")
                entry, image, label = _prepare(case, margin, resize, offset)
                image.tofile(images)
                label.tofile(labels)
                entries.append(asdict(entry))
                offset += image.size
                if progress is not None:
                    progress("preparing cases", number + 1, len(cases))
            for file in (images, labels):
                file.flush()
                os.fsync(file.fileno())
        files = {name: sha256_file(building / name) for name in ("images.i16", "labels.u8")}
        write_json(building / "index.json", {**content, "cases": entries, "sha256": files})
        if target.exists():
            shutil.rmtree(target)
        building.rename(target)
    except OSError as error:
        if _read_index(target) is None:
            raise OutputError(f"The slice store {target} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _prepare(
    case: TrainingCase, margin: int | None, resize: tuple[int, ...], offset: int
) -> tuple[StoredCase, NDArray[np.int16], NDArray[np.uint8]]:
    try:
        image, label, spacing, first = _picture(case) if case.kind == "picture" else _volume(case, margin)
    except InputError as error:
        raise type(error)(f"Case {case.id}: {error}") from error
    # asked before resizing, which a lesion of a few pixels may not outlast
    if case.lesion is not None and not label.any():
        raise InputError(
            f"Case {case.id}: its lesion mask is empty. Check the file; "
            "a case that is known to have no lesion is listed with 'none' as lesion."
        )
    if resize:
        rows, columns = (old / new for old, new in zip(image.shape[1:], resize, strict=True))
        spacing = (spacing[0], spacing[1] * rows, spacing[2] * columns)
        image, label = _resized_images(image, resize), _resized_labels(label, resize)
    with_lesion = np.flatnonzero(label.any(axis=(1, 2)))
    shape = (image.shape[0], image.shape[1], image.shape[2])
    entry = StoredCase(case.id, case.patient, offset, shape, spacing, case.kind, tuple(with_lesion.tolist()), first)
    return entry, np.ascontiguousarray(image), np.ascontiguousarray(label)


def _volume(
    case: TrainingCase, margin: int | None
) -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[float, float, float], int]:
    volume = read_volume(case.image)
    view = volume.geometry.axial_view()
    if case.lesion is None:
        mask = np.zeros(volume.array.shape, dtype=np.uint8)
    else:
        given = read_labels(case.lesion)
        given.geometry.require_same(volume.geometry, "lesion mask", "CT")
        mask = given.mask().astype(np.uint8)
    box: tuple[slice, ...] = (slice(None),) * 3
    if margin is not None:
        located = locate_lungs(volume) if case.lungs is None else judged_lungs(read_labels(case.lungs), volume)
        # lesion that an expert drew outside the found lungs stays in, or validation would not see it missed
        wanted = view.apply((located.labels != 0) | (mask != 0))
        box = lung_box(wanted, margin)
        if located.quality.is_doubtful:
            # what the predictor shows the network of such a CT
            _log.warning("Case %s: %s Its slices are cut to the body.", case.id, located.quality.line())
            box = body_box(view.apply(volume.array), wanted, view.geometry.spacing_zyx, margin)
    hu = np.clip(np.rint(view.apply(volume.array)[box]), -32768, 32767).astype(np.int16)
    return hu, view.apply(mask)[box], view.geometry.spacing_zyx, int(box[0].start or 0)


def _picture(case: TrainingCase) -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[float, float, float], int]:
    image = read_picture(case.image)
    label = np.zeros_like(image) if case.lesion is None else read_picture(case.lesion)
    if image.shape != label.shape:
        raise InputError(
            f"the picture is {image.shape[1]} x {image.shape[0]}, its mask {label.shape[1]} x {label.shape[0]} pixels; "
            "they must have the same size."
        )
    # masks are 0 and 255, or 0 and 1; JPEG-like greys between count by half
    half = 127 if label.max(initial=0) > 1 else 0
    return image[None].astype(np.int16), (label > half)[None].astype(np.uint8), (1.0, 1.0, 1.0), 0


def read_picture(path: Path) -> NDArray[np.uint8]:
    """An 8-bit picture (rows, columns); colors are averaged.

    Raises:
        InputError: not a picture.
    """
    import SimpleITK as sitk

    try:
        regular_file(path)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        if math.prod(reader.GetSize()) > _MOST_PIXELS:
            raise InputError(f"{path.name} claims {' x '.join(map(str, reader.GetSize()))} pixels; it is no slice.")
        array = sitk.GetArrayFromImage(reader.Execute())
    except OSError as error:
        raise InputError(f"{path.name} can't be read: {error.strerror}.") from error
    except RuntimeError as error:
        raise InputError(f"{path.name} can't be read as a picture.") from error
    if array.ndim == 3:
        # some sets save grey slices as RGB
        array = array[..., :3].mean(axis=-1)
    return np.rint(array).astype(np.uint8)


def _resized_images(slices: NDArray[np.int16], size: tuple[int, ...]) -> NDArray[np.int16]:
    import torch

    from ..inference.slices import resized

    values = torch.from_numpy(slices.astype(np.float32))[:, None]
    answer: NDArray[np.int16] = np.rint(resized(values, (size[0], size[1]))[:, 0].numpy()).astype(np.int16)
    return answer


def _resized_labels(slices: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    # the label of the pixel in whose area the new pixel's center lies
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for old, new in zip(slices.shape[1:], size, strict=True)
    )
    return slices[:, rows[:, None], columns]


def _stored(entry: Mapping[str, Any]) -> StoredCase:
    tuples = {name: tuple(entry[name]) for name in ("shape", "spacing", "lesion_slices")}
    return StoredCase(**{**entry, **tuples})


def slices_of(cases: Sequence[StoredCase], with_lesion: bool) -> Iterator[tuple[str, int]]:
    """(case id, slice) of all slices with lesion, or of all without, in order."""
    for case in cases:
        lesion = set(case.lesion_slices)
        for index in range(case.shape[0]):
            if (index in lesion) == with_lesion:
                yield case.id, index
