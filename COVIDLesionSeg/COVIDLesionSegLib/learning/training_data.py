"""What a run trains on: cases, their frozen split, the slice stores, the labels with or without synthetic errors."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.card import Preprocessing
from .augmentation import AugmentationSettings
from .config import DataSettings, LabelNoiseSettings, TrainingConfig
from .data import Split, TrainingCase, extend_split, load_split, make_split, read_cases, save_split
from .distributed import Ranks
from .randomness import Purpose, draw
from .sampling import BatchSource
from .store import Progress, SliceStore, open_store

# of synthetic errors in lesion masks
KINDS = ("dilation", "erosion", "dropout", "shift")
Hashes = Mapping[str, Mapping[str, str]]


class TrainingData:
    """Everything a run reads, prepared.

    Args:
        config: of the run.
        base: what relative names count from.
        folder: of the run; holds the slice store where the configuration names no cache.
        preprocessing: of the network; its window and slice offsets.
        ranks: of the job; the main process builds, the others open what it built.
        progress: called as progress("preparing cases", done, total).
        cancelled: asked between cases.

    Attributes:
        split: who trains and who judges.
        store: slices of all labeled cases.
        train: ids of the cases that train.
        selection: ids of the cases by which step and network are chosen; of patients who train no network.
        validation: ids of the cases that judge.
        source: batches of labeled slices.
        clean_source: makes batches of the same slices without noise and augmentation.
        pseudo: batches of pseudo-labeled slices, or None.
        noise: what synthetic label noise did to each training case.
        images: hashes of the voxels of the CTs that train, see :attr:`.store.StoredCase.voxels_sha256`.
        sha256: of all that the run depends on.

    Raises:
        InputError: data that can't be trained on.
    """

    def __init__(
        self,
        config: TrainingConfig,
        base: Path,
        folder: Path,
        preprocessing: Preprocessing,
        ranks: Ranks,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        data, run = config.data, config.run
        if not data.cases:
            raise InputError("The configuration names no training data; set data.cases to a manifest or folder.")
        cache = base / data.cache if data.cache else folder / "slices"

        def opened(cases: Sequence[TrainingCase], hashes: Hashes, judges: Set[str] = frozenset()) -> SliceStore:
            margin = None if data.margin < 0 else data.margin
            shared = (cases, hashes, cache, margin, data.resize, judges)
            if ranks.is_main:
                store = open_store(*shared, progress, cancelled)
            ranks.barrier()
            return store if ranks.is_main else open_store(*shared, build=False)

        cases = read_cases(base / data.cases)
        pseudo = read_cases(base / data.pseudo_cases) if data.pseudo_cases else []
        # the main process reads and hashes every file, the others take its word
        found = None
        if ranks.is_main:
            found = _frozen_split(cases, base / data.split, config), {case.id: case.hashes() for case in pseudo}
        self.split, pseudo_hashes = ranks.broadcast(found)
        training = self.split.cases(cases, "train")
        choosers = selection_patients(training, data, {case.patient for case in pseudo if case.kind == "volume"})
        self.train = [case.id for case in training if case.patient not in choosers]
        self.selection = [case.id for case in training if case.patient in choosers]
        self.validation = [case.id for case in self.split.cases(cases, "validation")]
        self.store = opened(cases, self.split.hashes, {*self.selection, *self.validation})
        labels, self.noise = _noisy_labels(self.store, self.train, config)
        if data.training_labels:
            labels |= _given_labels(self.store, self.train, base / data.training_labels)
        left_out = _read_excluded(base / data.excluded_slices) if data.excluded_slices else []
        excluded = _stored_slices(self.store, left_out)
        drawn = (data, config.augmentation, preprocessing, run.seed)
        self.source = BatchSource(self.store, self.train, run.batch_size, *drawn, labels, excluded=excluded)
        still, own = (data, AugmentationSettings.none(), preprocessing, run.seed), frozenset(excluded)
        self.clean_source = partial(
            BatchSource, self.store, self.train, run.batch_size, *still, labels, stream=2, excluded=own
        )
        self.pseudo: BatchSource | None = None
        self.images = {self.store.cases[case].voxels_sha256 for case in self.train}
        hashes = dict(self.split.hashes)
        if pseudo:
            self._refuse_unfit(pseudo, pseudo_hashes)
            store, ids = opened(pseudo, pseudo_hashes), [case.id for case in pseudo]
            pseudo_excluded = _stored_slices(store, left_out)
            self.pseudo = BatchSource(store, ids, run.pseudo_batch_size, *drawn, stream=1, excluded=pseudo_excluded)
            excluded |= pseudo_excluded
            hashes |= {f"pseudo:{key}": value for key, value in pseudo_hashes.items()}
            self.images |= {case.voxels_sha256 for case in store.cases.values()}
        updated = {case: hashlib.sha256(mask.tobytes()).hexdigest() for case, mask in sorted(labels.items())}
        used: dict[str, Any] = {"sets": self.split.sets, "selection": self.selection, "hashes": hashes}
        used |= {"labels": updated}
        if excluded:
            used["excluded"] = sorted(excluded)
        self.sha256 = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()

    def _refuse_unfit(self, pseudo: Sequence[TrainingCase], hashes: Hashes) -> None:
        """Refuse pseudo-labels of those who judge or choose, by which a network would train on what it is judged by,
        and cases that train already, which would count twice.
        """
        judges = {*self.validation, *self.selection}
        images = {self.split.hashes.get(case, {}).get("image") for case in judges} - {None}
        for case in pseudo:
            # pictures seldom tell whose they are, and their names are numbers that come back in other sets
            known = case.kind == "volume" and self.split.sets.get(case.patient) == "validation"
            image = hashes[case.id].get("image")
            if known or image in images:
                raise InputError(
                    f"The pseudo-labeled case {case.id} belongs to a validation patient, or to one by whom the "
                    "step is chosen, who must not train; leave it out of data.pseudo_cases."
                )
            if case.id in self.train and image == self.split.hashes[case.id].get("image"):
                raise InputError(f"The case {case.id} is in data.cases and in data.pseudo_cases; list it once.")


def selection_patients(
    training: Sequence[TrainingCase], data: DataSettings, train_elsewhere: Set[str] = frozenset()
) -> set[str]:
    """Those of the training patients on whose cases the step and student or teacher are chosen.

    Who they are depends on their names alone, so that a new patient changes at most one place.

    Args:
        training: cases on the training side of the split.
        data: who is asked for, or which fraction.
        train_elsewhere: patients that train by other cases, too, and so can't choose.

    Raises:
        InputError: patients who are not among the training patients, or nobody with lesion is left to train.
    """
    diseased = {case.patient for case in training if case.lesion is not None}
    unknown = sorted(set(data.selection_patients) - {case.patient for case in training})
    if unknown:
        raise InputError(f"The selection patients {', '.join(unknown)} are not among the training patients.")
    chosen = set(data.selection_patients)
    if not chosen:
        able = sorted(diseased - train_elsewhere, key=lambda patient: hashlib.sha256(patient.encode()).hexdigest())
        # rounding of 0.2 * 5 must not lose a patient
        chosen = set(able[: int(data.selection_fraction * len(able) + 1e-9)])
    if diseased and not diseased - chosen:
        raise InputError("Every training patient with lesion is chosen for selection; leave at least one to train on.")
    return chosen


def _given_labels(store: SliceStore, train: Sequence[str], folder: Path) -> dict[str, NDArray[np.uint8]]:
    labels = {}
    for case in train:
        path = folder / f"{case}.npy"
        if path.is_file():
            labels[case] = np.load(path, allow_pickle=False)
            if labels[case].shape != store.label(case).shape or labels[case].dtype != np.uint8:
                raise InputError(f"{path} is not a mask for the stored slices of {case}; make it anew for these data.")
    if not labels:
        raise InputError(f"The folder {folder} holds no mask (<case>.npy) for any training case.")
    return labels


def _read_excluded(path: Path) -> list[tuple[str, int]]:
    """(case id, slice of the case's axial view) of the slices that a list names."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [(row["case"], int(row["slice"])) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The list of excluded slices {path} can't be read; it needs the columns case, slice."
        ) from error


def _stored_slices(store: SliceStore, slices: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
    """(case id, stored slice) of those slices whose case is in the store."""
    return {(case, index - store.cases[case].first_slice) for case, index in slices if case in store.cases}


def _noisy_labels(
    store: SliceStore, train: Sequence[str], config: TrainingConfig
) -> tuple[dict[str, NDArray[np.uint8]], list[dict[str, Any]]]:
    labels: dict[str, NDArray[np.uint8]] = {}
    report = []
    if config.label_noise.kind != "none":
        for number, case in enumerate(train):
            clean = store.label(case)
            noisy, kind = add_label_noise(clean, config.label_noise, number)
            total = int(clean.sum()) + int(noisy.sum())
            overlap = 2 * int((clean & noisy).sum()) / total if total else 1.0
            labels[case] = noisy
            report.append({"case": case, "kind": kind, "dice_to_clean": overlap})
    return labels, report


def add_label_noise(mask: NDArray[np.uint8], settings: LabelNoiseSettings, case: int) -> tuple[NDArray[np.uint8], str]:
    """A lesion mask with errors such as annotators make.

    Each lesion (26-connected component) gets its own strength, drawn evenly up to twice the set one, so that errors are
    not one constant that a network could learn to undo.

    Args:
        mask: (z, y, x), 0 or 1.
        settings: kind, strength, share of cases and seed.
        case: the case's number, so that every case has its own errors.

    Returns:
        The mask with errors (the mask itself where this case is spared), and what was done, e.g. "dilation".
    """
    from scipy import ndimage

    generator = draw(settings.seed, Purpose.LABEL_NOISE, case)
    if settings.kind == "none" or generator.random() >= settings.share or not mask.any():
        return mask, "none"
    kind = KINDS[int(generator.integers(len(KINDS)))] if settings.kind == "mixed" else settings.kind
    # a mixed setting's strength is in pixels; as a share of vanishing lesions it is a tenth of it
    vanish = min(settings.strength / 10, 1.0) if settings.kind == "mixed" else settings.strength
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    noisy = np.zeros_like(mask)
    disk = ndimage.generate_binary_structure(2, 1)[None]
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        lesion = labels[box] == number
        pixels = round(generator.uniform(0, 2) * settings.strength)
        if kind == "dropout":
            if generator.random() >= vanish:
                noisy[box] |= lesion
            continue
        if kind == "shift":
            angle = generator.uniform(0, 2 * np.pi)
            z, y, x = np.nonzero(lesion)
            y = y + box[1].start + round(pixels * np.sin(angle))
            x = x + box[2].start + round(pixels * np.cos(angle))
            inside = (y >= 0) & (y < mask.shape[1]) & (x >= 0) & (x < mask.shape[2])
            noisy[z[inside] + box[0].start, y[inside], x[inside]] = 1
            continue
        if pixels == 0:
            noisy[box] |= lesion
            continue
        # in plane only: annotators draw slice by slice, and slices may be far apart
        padded = np.pad(lesion, ((0, 0), (pixels, pixels), (pixels, pixels)))
        change = ndimage.binary_dilation if kind == "dilation" else ndimage.binary_erosion
        padded = change(padded, disk, iterations=pixels)
        rows = slice(max(box[1].start - pixels, 0), min(box[1].stop + pixels, mask.shape[1]))
        columns = slice(max(box[2].start - pixels, 0), min(box[2].stop + pixels, mask.shape[2]))
        top, left = rows.start - (box[1].start - pixels), columns.start - (box[2].start - pixels)
        part = padded[:, top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]
        noisy[box[0], rows, columns] |= part
    return noisy, kind


def _frozen_split(cases: Sequence[TrainingCase], path: Path, config: TrainingConfig) -> Split:
    data = config.data
    if path.exists():
        known = load_split(path)
        split = extend_split(known, cases, judged=bool(data.validation_patients) or data.validation_share > 0)
    else:
        known = None
        split = make_split(cases, data.validation_patients, data.validation_share, config.run.seed)
    if split != known:
        save_split(split, path)
    return split
