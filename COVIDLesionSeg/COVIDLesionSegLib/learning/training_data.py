"""What a run trains on: cases, their frozen split, the slice stores, the labels with or without synthetic errors."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .config import TrainingConfig
from .data import Split, TrainingCase, extend_split, load_split, make_split, read_cases, save_split
from .distributed import Ranks
from .label_noise import add_label_noise
from .sampling import BatchSource
from .store import Progress, SliceStore, open_store


class TrainingData:
    """Everything a run reads, prepared.

    Args:
        config: of the run.
        base: what relative names count from.
        folder: of the run; holds the slice store where the configuration names no cache.
        window: (width, level) in HU.
        ranks: of the job; the main process builds, the others open what it built.
        progress: called as progress("preparing cases", done, total).
        cancelled: asked between cases.

    Attributes:
        split: who trains and who judges.
        store: slices of all labeled cases.
        train: ids of the cases that train.
        validation: ids of the cases that judge.
        source: batches of labeled slices.
        pseudo: batches of pseudo-labeled slices, or None.
        noise: what synthetic label noise did to each training case.
        sha256: of all that the run depends on.

    Raises:
        InputError: data that can't be trained on.
    """

    def __init__(
        self,
        config: TrainingConfig,
        base: Path,
        folder: Path,
        window: tuple[float, float],
        ranks: Ranks,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        data, run = config.data, config.run
        if not data.cases:
            raise InputError("The configuration names no training data; set data.cases to a manifest or folder.")
        cache = base / data.cache if data.cache else folder / "slices"

        def opened(cases: Sequence[TrainingCase], hashes: dict[str, dict[str, str]]) -> SliceStore:
            margin = None if data.margin < 0 else data.margin
            if ranks.is_main:
                store = open_store(cases, hashes, cache, margin, data.resize, progress, cancelled)
            ranks.barrier()
            return store if ranks.is_main else open_store(cases, hashes, cache, margin, data.resize)

        cases = read_cases(base / data.cases)
        split = _frozen_split(cases, base / data.split, config) if ranks.is_main else None
        self.split: Split = ranks.broadcast(split)
        self.store = opened(cases, self.split.hashes)
        train = [case.id for case in self.split.cases(cases, "train")]
        self.validation = [case.id for case in self.split.cases(cases, "validation")]
        self.train = train
        labels, self.noise = _noisy_labels(self.store, train, config)
        if data.training_labels:
            labels |= _given_labels(self.store, train, base / data.training_labels)
        left_out = _read_excluded(base / data.excluded_slices) if data.excluded_slices else []
        excluded = _stored_slices(self.store, left_out)
        self.source = BatchSource(
            self.store,
            train,
            run.batch_size,
            data,
            config.augmentation,
            window,
            run.seed,
            labels=labels,
            excluded=excluded,
        )
        self.pseudo: BatchSource | None = None
        hashes = dict(self.split.hashes)
        if data.pseudo_cases:
            pseudo = read_cases(base / data.pseudo_cases)
            pseudo_hashes = {case.id: case.hashes() for case in pseudo}
            self._refuse_judges(pseudo, pseudo_hashes)
            store = opened(pseudo, pseudo_hashes)
            pseudo_excluded = _stored_slices(store, left_out)
            excluded |= pseudo_excluded
            self.pseudo = BatchSource(
                store,
                [case.id for case in pseudo],
                run.pseudo_batch_size,
                data,
                config.augmentation,
                window,
                run.seed,
                stream=1,
                excluded=pseudo_excluded,
            )
            hashes |= {f"pseudo:{key}": value for key, value in pseudo_hashes.items()}
        updated = {case: hashlib.sha256(mask.tobytes()).hexdigest() for case, mask in sorted(labels.items())}
        used: dict[str, Any] = {"sets": self.split.sets, "hashes": hashes, "labels": updated}
        if excluded:
            used["excluded"] = sorted(excluded)
        self.sha256 = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()

    def _refuse_judges(self, pseudo: Sequence[TrainingCase], hashes: dict[str, dict[str, str]]) -> None:
        """Pseudo-labels of those who judge would let the network train on what it is judged by."""
        images = {self.split.hashes.get(case, {}).get("image") for case in self.validation} - {None}
        for case in pseudo:
            # pictures seldom tell whose they are, and their names are numbers that come back in other sets
            known = case.kind == "volume" and self.split.sets.get(case.patient) == "validation"
            if known or hashes[case.id].get("image") in images:
                raise InputError(
                    f"The pseudo-labeled case {case.id} belongs to a validation patient, who must not train; "
                    "leave it out of data.pseudo_cases."
                )


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
