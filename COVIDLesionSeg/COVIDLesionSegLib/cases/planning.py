"""What a fine-tuning trains on: fresh and replayed cases, slices left out, the files that the trainer reads."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ReadError
from ..files import sha256_file, write_json, write_text
from .agreement import make_consensus
from .layout import CONSENSUS, counted, numbered, read_json
from .records import Case, Revision
from .split import usable

if TYPE_CHECKING:
    from ..learning import TrainingConfig
    from ..learning.estimate import TimeEstimate
    from .store import Store


@dataclass(frozen=True)
class TrainingPlan:
    """What a round trains on.

    Attributes:
        cases: that train or judge, with their sides.
        fresh: ids of training cases whose label no earlier round has seen.
        replayed: ids of training cases that an earlier round has learned from, with the same label.
        excluded: (case id, axial slice) marked "fix it": no batch draws them.
        notes: what a person should know, one sentence each.
    """

    cases: Mapping[str, str]
    fresh: tuple[str, ...]
    replayed: tuple[str, ...]
    excluded: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()


def plan_training(store: Store) -> TrainingPlan:
    """What a fine-tuning would train on now; makes consensus labels anew where raters saved later revisions.

    Raises:
        InputError: nothing trains or nobody judges.
    """
    notes = []
    for case in _usable_or_consensus(store):
        if case.label == CONSENSUS and not case.consensus_is_current:
            make_consensus(store, case.id)
            notes.append(f"The consensus of {case.id} was made anew from its raters' last revisions.")
    sides = store.split.sides()
    cases = {case.id: case for case in usable(store.cases())}
    placed = {name: sides.get(case.patient, "train") for name, case in cases.items()}
    train = [name for name, side in placed.items() if side == "train"]
    if not any(not label_of(cases[name]).lesion_free for name in train):
        raise InputError(
            "No training case has a label with lesion; correct or approve some cases first.",
            "Cases of validation patients never train.",
        )
    if "validation" not in placed.values():
        raise InputError("No validation case has a label that counts; approve or include one.")
    seen = _seen(store)
    fresh = [name for name in train if seen.get(name) != label_of(cases[name]).sha256]
    replayed = [name for name in train if name not in fresh]
    excluded = [(item.case, item.slice) for name in train for item in cases[name].slices_to_fix()]
    # a set without any lesion can't be drawn from by itself: then all cases are drawn alike
    for part in (fresh, replayed):
        if part and not any(not label_of(cases[name]).lesion_free for name in part):
            fresh, replayed = train, []
            break
    if not fresh:
        fresh, replayed = train, []
        notes.append("No label is new since the last round; all cases are drawn alike.")
    if excluded:
        verb = "is" if len(excluded) == 1 else "are"
        notes.append(f"{counted(len(excluded), 'slice')} marked 'fix it' {verb} left out.")
    waiting = sum(len(case.open_reviews()) for case in cases.values())
    if waiting:
        notes.append(f"Doubtful slices that wait for a decision: {waiting}; until then they train as they are.")
    judges = {cases[name].patient for name, side in placed.items() if side == "validation"}
    if len(judges) == 1:
        notes.append("One patient judges; add patients to validation for figures that mean more.")
    return TrainingPlan(placed, tuple(fresh), tuple(replayed), tuple(excluded), tuple(notes))


def estimate_seconds(
    store: Store,
    base_model: str | None = None,
    steps: int | None = None,
    config: TrainingConfig | None = None,
    device: str | None = None,
) -> TimeEstimate:
    """What a fine-tuning would take on this machine: a few steps are measured, nothing is changed.

    Raises:
        InputError, ModelError: no label yet, or no such model.
    """
    from ..learning.estimate import estimate
    from ..models import load_checkpoint

    card = load_checkpoint(store.models.path(base_model or store.models.default())).card
    settings = configured(config, steps, device)
    network = replace(settings.network, name=card.network, arguments=dict(card.network_arguments))
    cases = usable(store.cases())
    if not cases:
        raise InputError("No case has a label yet; correct some cases first.")
    sides = store.split.sides()
    slices = {case.id: case.ct.geometry.axial_view().geometry.size[2] for case in cases}
    judging = [case.id for case in cases if sides.get(case.patient) == "validation"]
    share = 1.0 if judging else settings.data.validation_share
    validation = sum(slices[name] for name in judging or slices)
    largest = max((case.ct.geometry.axial_view().geometry.size for case in cases), key=lambda size: size[0] * size[1])
    # lungs take about two thirds of a field of view in each direction
    box = card.preprocessing.resize or (max(16, largest[1] * 2 // 3), max(16, largest[0] * 4 // 5))
    return estimate(
        replace(settings, network=network), sum(slices.values()), round(validation * share), validation_size=box
    )


def rounds(store: Store) -> list[dict[str, Any]]:
    """The record of every round, oldest first: status, base model, labels, model, ..."""
    found = []
    for number in numbered(store.layout.rounds):
        file = store.layout.rounds / f"{number:04d}" / "round.json"
        if file.is_file():
            found.append(read_json(file))
    return found


def write_inputs(store: Store, folder: Path, plan: TrainingPlan, cases: Mapping[str, Case]) -> None:
    """Write the files that the trainer reads: cases, those to replay, the frozen split with hashes, slices left out.

    Args:
        store: the store.
        folder: of the run.
        plan: what trains.
        cases: the plan's cases by id.

    Raises:
        InputError: a CT that the trainer can't read by itself.
        ReadError: a CT that changed or is missing.
    """
    first = [name for name in plan.cases if name not in plan.replayed]
    write_text(folder / "cases.csv", _manifest(store, [cases[name] for name in first]))
    if plan.replayed:
        write_text(folder / "replay.csv", _manifest(store, [cases[name] for name in plan.replayed]))
    if plan.excluded:
        rows = "".join(f"{case},{index}\n" for case, index in plan.excluded)
        write_text(folder / "excluded.csv", "case,slice\n" + rows)
    sides = store.split.sides()
    hashes = {name: _hashes(store, cases[name]) for name in first}
    write_json(
        folder / "split.json",
        {
            "version": 1,
            "patients": {cases[name].patient: sides.get(cases[name].patient, "train") for name in first},
            # a referenced DICOM folder is checked here, file by file, and hashed by the trainer in its own way
            "sha256": {name: values for name, values in hashes.items() if values},
        },
    )


def remove_place_lists(folder: Path) -> None:
    """Remove those files of :func:`write_inputs` that say where CTs lie, once nothing reads them any more.

    A referenced CT may lie in a folder that is called after a patient, and only ``private/`` is to hold that.
    """
    for name in ("cases.csv", "replay.csv"):
        # a file that another program holds is no reason to fail a round that is done
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def _manifest(store: Store, cases: Sequence[Case]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "patient", "ct", "lesion", "lungs"])
    for case in cases:
        path, series = store.ct_path(case)
        if series is not None:
            raise InputError(
                f"{case.id} refers to a DICOM folder with several series, which can't train; add it again as a copy."
            )
        label = label_of(case)
        lesion = "none" if label.lesion_free else str(store.revision_path(case, label).resolve())
        lungs = str((store.layout.case(case.id) / case.lungs.file).resolve()) if case.lungs is not None else ""
        writer.writerow([case.id, case.patient, str(path.resolve()), lesion, lungs])
    return text.getvalue()


def _hashes(store: Store, case: Case) -> dict[str, str]:
    path, _ = store.ct_path(case)
    label = label_of(case)
    if path.is_dir():
        if folder_sha256(path) != case.ct.sha256:
            raise ReadError(
                f"The CT of {case.id} has changed since it was added to the store.",
                "Restore it, or add the changed CT as a new case.",
            )
        return {}
    found = {"image": case.ct.sha256, "lesion": "" if label.lesion_free else label.sha256}
    found["lungs"] = case.lungs.sha256 if case.lungs is not None else ""
    return {role: value for role, value in found.items() if value}


def folder_sha256(path: Path, series: str | None = None) -> str:
    """The hash of a DICOM series as ``imaging.read_volume`` makes it, without decoding a voxel."""
    from ..imaging import dicom_files

    return hashlib.sha256("\n".join(sorted(sha256_file(f) for f in dicom_files(path, series))).encode()).hexdigest()


def configured(config: TrainingConfig | None, steps: int | None, device: str | None) -> TrainingConfig:
    """The settings of a fine-tuning: given ones, else the defaults, with this many steps on this device."""
    from ..learning.fine_tuning import default_config

    settings = config or default_config()
    given: dict[str, Any] = {}
    if steps is not None:
        given["steps"] = steps
        # a short run is judged on the way, too: what was best may be an earlier step
        given["validation_interval"] = max(1, min(settings.run.validation_interval, -(-steps // 3)))
    if device is not None:
        given["device"] = device
    return replace(settings, run=replace(settings.run, **given))


def _seen(store: Store) -> dict[str, str]:
    """Case id -> the label that the last finished round which trained on it has seen."""
    seen: dict[str, str] = {}
    for record in rounds(store):
        if record["status"] == "done":
            seen |= {name: label["sha256"] for name, label in record["labels"].items() if label["side"] == "train"}
    return seen


def _usable_or_consensus(store: Store) -> list[Case]:
    """Cases that have a label, or would have one once their consensus is made."""
    return [c for c in store.cases() if not c.exclusion and (c.label_revision is not None or len(c.raters) > 1)]


def label_of(case: Case) -> Revision:
    """The label of a case that has one."""
    label = case.label_revision
    assert label is not None  # noqa: S101  # usable cases have one
    return label
