"""Where a table's cases are, who trains and who is tested: frozen at the first run, by patient."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError, ReadError
from ..files import write_text
from ..learning.config import DataSettings
from ..learning.data import (
    NO_LESION,
    Split,
    TrainingCase,
    extend_split,
    fold_sets,
    load_split,
    make_split,
    read_cases,
    read_pictures,
    save_split,
)
from ..learning.store import Progress, SliceStore, open_store
from ..learning.training_data import selection_patients
from .catalog import Table
from .planning import Facts


@dataclass(frozen=True)
class Part:
    """One division of the data: the protocol's split, or one fold.

    Attributes:
        fold: its number; None for the protocol's split.
        manifest: of the cases that train and choose, for ``data.cases``.
        split: frozen split of those, for ``data.split``; nobody judges in it.
        selection_patients: those that the data set itself sets apart for validation, as the papers call the choice of
            the step.
        training: cases of the manifest.
        test: cases that are tested; never in the manifest.
        sha256: of the names and files of all of them, and of who is on which side.
        described: who trains and who is tested, as a phrase.
    """

    fold: int | None
    manifest: Path
    split: Path
    selection_patients: tuple[str, ...]
    training: tuple[TrainingCase, ...]
    test: tuple[TrainingCase, ...]
    sha256: str
    described: str

    def facts(self, cache: Path, data: DataSettings, progress: Progress | None = None) -> Facts:
        """How many slices train, all and without lesion; builds the slice store that the training will use."""
        choosers = selection_patients(self.training, replace(data, selection_patients=self.selection_patients))
        training = [case for case in self.training if case.patient not in choosers]
        margin = None if data.margin < 0 else data.margin
        store = open_store(training, load_split(self.split).hashes, cache, margin, data.resize, progress=progress)
        return facts_of(store)


def facts_of(store: SliceStore) -> Facts:
    """Slices of a store's cases."""
    stored = store.cases.values()
    slices = sum(case.shape[0] for case in stored)
    return Facts(slices, slices - sum(len(case.lesion_slices) for case in stored))


@dataclass(frozen=True)
class Cases:
    """What a data folder holds.

    Attributes:
        training: cases that may train.
        validation: cases that the folder sets apart for validation.
        test: cases that it sets apart for testing; empty where it does not.
        unlabeled: pictures without masks.
    """

    training: tuple[TrainingCase, ...]
    validation: tuple[TrainingCase, ...]
    test: tuple[TrainingCase, ...]
    unlabeled: tuple[TrainingCase, ...]


def find_cases(table: Table, data: Path) -> Cases:
    """The cases for a table.

    Args:
        table: which; it says whether pictures or volumes are needed.
        data: for pictures a folder with ``train/`` and ``test/``, each with ``images/`` and ``masks/``, and if wanted
            ``unlabelled/``; for volumes a folder or manifest as ``learning.data.read_cases`` takes it, or a folder
            with ``train/``, ``test/`` and if wanted ``validation/`` of such.

    Raises:
        ReadError: they are not there.
        InputError: files of one kind where the other is needed, or a patient in two of the folders.
    """
    parts = {name: data / name for name in ("train", "validation", "test") if (data / name).is_dir()}
    if "train" in parts and "test" in parts:
        found = {name: tuple(read_cases(path)) for name, path in parts.items()}
    elif table.data == "pictures":
        raise ReadError(
            f"{data} does not hold the slices of COVID-SemiSeg: the folders train/ and test/, each with images/ and "
            "masks/, are needed, and unlabelled/ for the semi-supervised row."
        )
    else:
        found = {"train": tuple(read_cases(data))}
    wanted = "picture" if table.data == "pictures" else "volume"
    for case in (case for cases in found.values() for case in cases):
        if case.kind != wanted:
            raise InputError(f"The table {table.id} needs {wanted}s; {case.image.name} is a {case.kind}.")
    if table.data == "volumes":
        _refuse_shared_patients(found)
    unlabeled = next((data / name for name in ("unlabelled", "unlabeled") if (data / name).is_dir()), None)
    pictures = tuple(read_pictures(unlabeled)) if unlabeled is not None and table.data == "pictures" else ()
    return Cases(found["train"], found.get("validation", ()), found.get("test", ()), pictures)


def divide(table: Table, cases: Cases, folds: int, folder: Path) -> list[Part]:
    """The parts that cells are trained on, with manifests and frozen splits in a folder.

    Args:
        table: which.
        cases: of its data.
        folds: 0: one part, the protocol's; else as many, whose test cases are disjoint parts of the training cases:
            those that the data set apart for testing stay untouched.
        folder: gets the manifests and splits, or has them.

    Raises:
        InputError: too few patients, or files that changed since the split was frozen.
    """
    prefix = f"{table.data}-{table.test_share:g}" if table.data == "volumes" else table.data
    training = cases.training
    if not folds and cases.test:
        test = cases.test
        described = f"{len(training)} cases train, {len(test)} are tested: the split of the data set"
        return [_part(None, folder / f"{prefix}-given", training, cases.validation, test, described)]
    if not folds:
        split = _frozen(folder / f"{prefix}-test.json", training, lambda: make_split(training, (), table.test_share))
        sides = split.cases(training, "train"), split.cases(training, "validation")
        described = f"{len(sides[0])} cases train, {len(sides[1])} are tested: split by patient at the first run"
        return [_part(None, folder / f"{prefix}-split", sides[0], cases.validation, sides[1], described)]
    parts = []
    for fold in range(folds):
        name = f"{prefix}-fold{fold}of{folds}"

        def drawn(fold: int = fold) -> Split:
            return Split(fold_sets(training, folds, fold), {case.id: case.hashes() for case in training})

        split = _frozen(folder / f"{name}-test.json", training, drawn)
        sides = split.cases(training, "train"), split.cases(training, "validation")
        described = f"fold {fold} of {folds}: {len(sides[0])} cases train, {len(sides[1])} are tested"
        parts.append(_part(fold, folder / name, sides[0], cases.validation, sides[1], described))
    return parts


def _part(
    fold: int | None,
    stem: Path,
    training: Sequence[TrainingCase],
    validation: Sequence[TrainingCase],
    test: Sequence[TrainingCase],
    described: str,
) -> Part:
    everyone = [*training, *validation]
    patients = tuple(sorted({case.patient for case in validation}))
    manifest, sides = stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}-sides.json")
    write_text(manifest, _manifest(everyone))
    split = _frozen(sides, everyone, lambda: make_split(everyone, share=0.0), False)
    used = {
        "training": {case.id: split.hashes[case.id] for case in everyone},
        "selection": patients,
        "test": {case.id: case.hashes() for case in test},
    }
    digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
    return Part(
        fold,
        manifest,
        stem.with_name(f"{stem.name}-sides.json"),
        patients,
        tuple(everyone),
        tuple(test),
        digest,
        described,
    )


def _frozen(path: Path, cases: Sequence[TrainingCase], make: Callable[[], Split], judged: bool = True) -> Split:
    if path.exists():
        known = load_split(path)
        split = extend_split(known, cases, judged=judged)
        if split != known:
            save_split(split, path)
        return split
    split = make()
    save_split(split, path)
    return split


def _manifest(cases: Sequence[TrainingCase]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "patient", "ct", "lesion", "lungs"])
    for case in cases:
        lesion = NO_LESION if case.lesion is None else case.lesion.resolve()
        writer.writerow(
            [case.id, case.patient, case.image.resolve(), lesion, case.lungs.resolve() if case.lungs else ""]
        )
    return buffer.getvalue()


def _refuse_shared_patients(found: dict[str, tuple[TrainingCase, ...]]) -> None:
    sides: dict[str, str] = {}
    for name, cases in found.items():
        for case in cases:
            if sides.setdefault(case.patient, name) != name:
                raise InputError(
                    f"The patient {case.patient} stands in {sides[case.patient]}/ and in {name}/; "
                    "a patient stands on one side only."
                )
