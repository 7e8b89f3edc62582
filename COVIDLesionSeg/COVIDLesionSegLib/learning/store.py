"""Slices of cases in memory-mapped files: one entry a case, made once, found again by what it was made of.

A data set of any size trains in bounded memory: a slice is read from disk when it is drawn. Volumes are stored as axial
slices of the lungs' box, or the body's where the lungs are doubtful, in Hounsfield units, so that augmentation can
still shift the window; pictures keep 8 bits. A corrected label makes one new entry; all others are found again.

A case is stored in one of two ways. To train on, its slices and mask are cut to the box of lungs and lesion, and
resized if the configuration says so. To judge by, its slices are cut as the predictor cuts them, to the found lungs
alone, and keep their size; its mask is whole, so that lesion beside the box counts as missed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..documents import read_object
from ..errors import CancelledError, InputError, OutputError, ReadError
from ..files import atomic_folder, is_unfinished, regular_file, sha256_file, write_json
from ..imaging import body_box, judged_lungs, locate_lungs, lung_box, read_labels, read_volume
from ..inference.record import sha256_array
from ..inference.slices import resized, resized_labels
from .data import TrainingCase

STORE_VERSION = 5
_FILES = ("images.i16", "labels.u8", "lungs.u8")
# Open files are few per process (1024 on many systems), and each mapped file is one.
_OPEN_CASES = 200
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
        shape: of the images, (slices, rows, columns).
        label_shape: of the mask; that of the images where the case trains, that of the whole axial view where it
            judges.
        corner: (z, y, x) of the images' first voxel in the mask.
        spacing: (z, y, x) in mm of the case's own grid, whether its slices were resized or not; 1 for pictures, which
            have none.
        image_spacing: (z, y, x) in mm of the stored slices, which may have been resized.
        kind: "volume" (HU) or "picture" (0 ... 255).
        resized: whether the slices have been resized already.
        lesion_slices: slices of the mask with lesion.
        first_slice: index of the first stored slice on the case's axial view.
        voxels_sha256: of the CT's own voxels (``inference.record.sha256_array``), whatever file they came in; "" of
            pictures, and of cases that judge.
    """

    id: str
    patient: str
    shape: tuple[int, int, int]
    label_shape: tuple[int, int, int]
    corner: tuple[int, int, int]
    spacing: tuple[float, float, float]
    image_spacing: tuple[float, float, float]
    kind: Literal["volume", "picture"]
    resized: bool
    lesion_slices: tuple[int, ...]
    first_slice: int
    voxels_sha256: str = ""

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Where the images lie in the mask."""
        z, y, x = (slice(start, start + count) for start, count in zip(self.corner, self.shape, strict=True))
        return z, y, x


class SliceStore:
    """Read-only access to stored cases.

    Args:
        entries: each case and the folder of its files.

    Attributes:
        cases: id -> :class:`StoredCase`.
    """

    def __init__(self, entries: Sequence[tuple[StoredCase, Path]]) -> None:
        self.cases = {case.id: case for case, _ in entries}
        self._folders = {case.id: folder for case, folder in entries}
        self._mapped = lru_cache(_OPEN_CASES)(self._map)

    def image(self, case_id: str) -> NDArray[np.int16]:
        """The case's slices (z, y, x) as stored: HU, or 0 ... 255 for a picture; a view of the file."""
        return self._mapped(case_id)[0]

    def label(self, case_id: str) -> NDArray[np.uint8]:
        """The case's lesion mask (z, y, x), 0 or 1; a view of the file."""
        return self._mapped(case_id)[1]

    def lungs(self, case_id: str) -> NDArray[np.uint8]:
        """The case's lungs (z, y, x) where its slices are, 1 right, 2 left (1 for both where they are not told apart);
        empty where they were not needed to store it: for a picture, or whole slices. A view of the file.
        """
        return self._mapped(case_id)[2]

    def _map(self, case_id: str) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8]]:
        case, folder = self.cases[case_id], self._folders[case_id]
        images, labels, lungs = (folder / name for name in _FILES)
        return (
            np.memmap(images, dtype=np.int16, mode="r", shape=case.shape),
            np.memmap(labels, dtype=np.uint8, mode="r", shape=case.label_shape),
            np.memmap(lungs, dtype=np.uint8, mode="r", shape=case.shape),
        )


def open_store(
    cases: Sequence[TrainingCase],
    hashes: Mapping[str, Mapping[str, str]],
    folder: Path | str,
    margin: int | None = 8,
    resize: tuple[int, ...] = (),
    judges: Set[str] = frozenset(),
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    build: bool = True,
) -> SliceStore:
    """Open the entries of these cases, making those that are not there or not whole.

    Args:
        cases: what to store.
        hashes: case id -> file role -> SHA-256, as the frozen split has them; they name the entries.
        folder: of the entries; each has its own subfolder.
        margin: voxels around the lungs (and the lesion of a case that trains); None stores whole slices.
        resize: (rows, columns) that every slice of a case that trains is resized to (image as
            :func:`.inference.slices.resized` does it, mask nearest); () keeps sizes.
        judges: ids of the cases that are judged by.
        progress: called as progress("preparing cases", done, to do); not at all where nothing is to do.
        cancelled: asked between cases.
        build: off: another process has just made and checked the entries, and they are only opened.

    Raises:
        InputError: a case that can't be used (mask on another grid, wrong values, no lungs), named.
        CancelledError: asked to stop; no half-made entry stays.
        OutputError: the disk is full or read-only, or an entry is gone.
    """
    targets = []
    for case in cases:
        content: dict[str, Any] = {"version": STORE_VERSION, "margin": margin, "files": dict(hashes[case.id])}
        content |= {"judges": True} if case.id in judges else {"resize": list(resize)}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        targets.append(Path(folder) / digest[:16])
    if build:
        missing = [pair for pair in zip(cases, targets, strict=True) if not _is_whole(pair[1])]
        for number, (case, target) in enumerate(missing):
            if cancelled is not None and cancelled():
                raise CancelledError("Stopped while preparing the training data.")
            _make(target, *_prepare(case, margin, () if case.id in judges else resize, case.id in judges))
            if progress is not None:
                progress("preparing cases", number + 1, len(missing))
        for target in targets:
            # says when it was last asked for, see :func:`remove_unused`
            with contextlib.suppress(OSError):
                os.utime(target / "index.json")
    return SliceStore([(_stored(case, target), target) for case, target in zip(cases, targets, strict=True)])


def remove_unused(folder: Path | str, days: float) -> None:
    """Remove the entries that nobody has opened for so many days, e.g. those of labels that were corrected since, and
    what killed programs have left.
    """
    oldest = time.time() - 86400 * days
    for entry in Path(folder).glob("*"):
        index = entry / "index.json"
        # what another program holds open or has removed meanwhile is nothing to stop for
        with contextlib.suppress(OSError):
            if (entry if is_unfinished(entry.name) else index).stat().st_mtime < oldest:
                shutil.rmtree(entry)


def _stored(case: TrainingCase, target: Path) -> StoredCase:
    """An entry's facts; whose it is, the case says: equal files of two patients are one entry."""
    index = _read_index(target)
    if index is None:
        raise OutputError(f"The slices of {case.id} in {target} are gone; start again.")
    facts: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in index["case"].items()
    }
    return replace(StoredCase(**facts), id=case.id, patient=case.patient)


def _read_index(target: Path) -> dict[str, Any] | None:
    try:
        index = read_object(target / "index.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ReadError) as error:
        _log.warning("The stored slices %s can't be read (%s) and are made again.", target, error)
        return None
    return index


def _is_whole(target: Path) -> bool:
    """Whether an entry is there and its files are what the index says.

    Files that were not touched since they were written are not read again; others (a copied folder) are checked by
    hash.
    """
    index = _read_index(target)
    if index is None:
        return False
    try:
        whole = all(
            (target / name).stat().st_mtime_ns == facts["written_ns"] or sha256_file(target / name) == facts["sha256"]
            for name, facts in index["files"].items()
        )
    except (OSError, KeyError, TypeError) as error:
        _log.warning("The stored slices %s can't be read (%s) and are made again.", target, error)
        return False
    if not whole:
        _log.warning("The stored slices %s are damaged and are made again.", target)
    return whole


def _make(target: Path, case: StoredCase, *arrays: NDArray[Any]) -> None:
    # what is there is not whole
    shutil.rmtree(target, ignore_errors=True)
    # another training that makes the same entry may be faster
    with contextlib.suppress(FileExistsError), atomic_folder(target) as folder:
        files = {}
        for name, array in zip(_FILES, arrays, strict=True):
            # numpy's own tofile() does not say that the disk is full
            (folder / name).write_bytes(array.data)
            written = (folder / name).stat().st_mtime_ns
            files[name] = {"sha256": hashlib.sha256(array.data).hexdigest(), "written_ns": written}
        write_json(folder / "index.json", {"case": asdict(case), "files": files})


def _prepare(
    case: TrainingCase, margin: int | None, resize: tuple[int, ...], judges: bool
) -> tuple[StoredCase, NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        image, label, lungs, corner, spacing, voxels = (
            _picture(case) if case.kind == "picture" else _volume(case, margin, judges)
        )
    except InputError as error:
        raise type(error)(f"Case {case.id}: {error}") from error
    # asked before resizing, which a lesion of a few pixels may not outlast
    if case.lesion is not None and not label.any():
        raise InputError(
            f"Case {case.id}: its lesion mask is empty. Check the file; "
            "a case that is known to have no lesion is listed with 'none' as lesion."
        )
    first, image_spacing = corner[0], spacing
    if not judges:
        label = label[tuple(slice(c, c + n) for c, n in zip(corner, image.shape, strict=True))]
        corner = (0, 0, 0)
        if resize:
            size = (resize[0], resize[1])
            image_spacing = (
                spacing[0],
                *(s * n / m for s, n, m in zip(spacing[1:], image.shape[1:], size, strict=True)),
            )
            image, label, lungs = (
                _resized_images(image, resize),
                resized_labels(label, size),
                resized_labels(lungs, size),
            )
    entry = StoredCase(
        id="",
        patient="",
        shape=_shape(image),
        label_shape=_shape(label),
        corner=corner,
        spacing=spacing,
        image_spacing=image_spacing,
        kind=case.kind,
        resized=bool(resize),
        lesion_slices=tuple(np.flatnonzero(label.any(axis=(1, 2))).tolist()),
        first_slice=first,
        voxels_sha256=voxels,
    )
    return entry, np.ascontiguousarray(image), np.ascontiguousarray(label), np.ascontiguousarray(lungs)


def _shape(array: NDArray[Any]) -> tuple[int, int, int]:
    return array.shape[0], array.shape[1], array.shape[2]


_Loaded = tuple[
    NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8], tuple[int, int, int], tuple[float, float, float], str
]


def _volume(case: TrainingCase, margin: int | None, judges: bool) -> _Loaded:
    """Images in their box, the whole mask, the lungs in the box, the box's corner in the mask, the spacing, and the
    hash of the voxels.
    """
    volume = read_volume(case.image)
    view = volume.geometry.axial_view()
    if case.lesion is None:
        mask = np.zeros(volume.array.shape, dtype=np.uint8)
    else:
        given = read_labels(case.lesion)
        given.geometry.require_same(volume.geometry, "lesion mask", "CT")
        mask = given.mask().astype(np.uint8)
    box: tuple[slice, ...] = (slice(None),) * 3
    lungs = np.zeros(volume.array.shape, dtype=np.uint8)
    if margin is not None:
        located = locate_lungs(volume) if case.lungs is None else judged_lungs(read_labels(case.lungs), volume)
        lungs = located.labels
        # a case that judges is cut as the predictor will cut a new one, which knows nothing of its lesions
        wanted = view.apply(lungs != 0 if judges else (lungs != 0) | (mask != 0))
        box = lung_box(wanted, margin)
        if located.quality.is_doubtful:
            # what the predictor shows the network of such a CT
            _log.warning("Case %s: %s Its slices are cut to the body.", case.id, located.quality.line())
            box = body_box(view.apply(volume.array), wanted, view.geometry.spacing_zyx, margin)
    hu = np.clip(np.rint(view.apply(volume.array)[box]), -32768, 32767).astype(np.int16)
    corner = (int(box[0].start or 0), int(box[1].start or 0), int(box[2].start or 0))
    voxels = "" if judges else sha256_array(volume.array)
    return hu, view.apply(mask), view.apply(lungs)[box], corner, view.geometry.spacing_zyx, voxels


def _picture(case: TrainingCase) -> _Loaded:
    image = read_picture(case.image)
    label = np.zeros_like(image) if case.lesion is None else read_picture_mask(case.lesion)
    if image.shape != label.shape:
        raise InputError(
            f"the picture is {image.shape[1]} x {image.shape[0]}, its mask {label.shape[1]} x {label.shape[0]} pixels; "
            "they must have the same size."
        )
    return image[None].astype(np.int16), label[None], np.zeros_like(label)[None], (0, 0, 0), (1.0, 1.0, 1.0), ""


def read_picture_mask(path: Path) -> NDArray[np.uint8]:
    """The mask of a picture (rows, columns), 0 or 1, from 0 and 255 or 0 and 1; grays between count by half."""
    mask = read_picture(path)
    half = 127 if mask.max(initial=0) > 1 else 0
    return (mask > half).astype(np.uint8)


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
    values = torch.from_numpy(slices.astype(np.float32))[:, None]
    answer: NDArray[np.int16] = np.rint(resized(values, (size[0], size[1]))[:, 0].numpy()).astype(np.int16)
    return answer
