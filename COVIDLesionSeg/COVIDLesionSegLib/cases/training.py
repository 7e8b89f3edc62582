"""From corrected cases to a better model: what trains, what is replayed, the gate, and the review list."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CancelledError, COVIDLesionSegError, InputError, ReadError
from ..files import sha256_file, write_json, write_text
from .agreement import make_consensus
from .gate import GateDecision, GateRule
from .layout import CONSENSUS, now, numbered, read_json
from .records import Case, ReviewItem
from .split import usable

if TYPE_CHECKING:
    from ..learning import TrainingConfig
    from ..learning.estimate import TimeEstimate
    from .store import Store
    from .store_models import StoredModel

Progress = Callable[[str, int, int], None]
Cancelled = Callable[[], bool]
REPLAY_SHARE = 0.5


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


@dataclass(frozen=True)
class FineTuneResult:
    """What a round brought.

    Attributes:
        round: its number.
        model: the new model.
        path: its file.
        before: the training's own judgment of the base model on the validation cases.
        after: the same of the new one.
        gate: the decision against the default model.
        review: slices whose labels look doubtful, new on the review list.
        plan: what it trained on.
        seconds: that it took.
    """

    round: int
    model: StoredModel
    path: Path
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    gate: GateDecision
    review: tuple[ReviewItem, ...]
    plan: TrainingPlan
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "round": self.round,
            "model": self.model.id,
            "file": str(self.path),
            "before": dict(self.before),
            "after": dict(self.after),
            "gate": self.gate.to_json(),
            "review": len(self.review),
            "notes": list(self.plan.notes),
            "seconds": round(self.seconds, 1),
        }


def fine_tune_store(
    store: Store,
    base_model: str | None = None,
    *,
    steps: int | None = None,
    replay_share: float = REPLAY_SHARE,
    validation: Sequence[str] = (),
    validation_share: float = 0.2,
    device: str | None = None,
    config: TrainingConfig | None = None,
    by: str = "fine-tuning",
    folder: Path | str | None = None,
    resume: bool = False,
    rule: GateRule | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> FineTuneResult:
    """Go on training a model on the store's corrected cases, and let the gate decide about the result.

    The first call freezes the split. Each call is a round: it trains on the labels as they are now, judges the new
    model and the default one on the frozen validation cases, makes the new one the default if the gate lets it through,
    and puts doubtful labels on the review list.

    Args:
        store: the store.
        base_model: id of the model to start from; None takes the store's default.
        steps: to train; None takes the configuration's (300).
        replay_share: share of each batch from cases that earlier rounds have learned from, so that the model does not
            forget them, in [0, 1).
        validation: patients (keys, or ids of their cases) that judge, for the first call; empty draws them.
        validation_share: of the drawn patients.
        device: see ``TrainingConfig``.
        config: all other settings; None takes ``learning.fine_tuning.default_config``.
        by: who asks; recorded.
        folder: of the run (state, log, slices); None takes one in the store's ``rounds/``.
        resume: go on with the last round that was not finished.
        rule: of the gate; None takes ``Resources/Gate.json``.
        progress: called as progress(phase, done, total).
        cancelled: asked at each step. What was best so far is kept as a model that is not judged yet.

    Raises:
        InputError: nothing to train on, nobody to judge, settings that are not allowed.
        ModelError, ReadError: a base model or CT that can't be used.
        CancelledError: asked to stop.
        OutputError: the disk is full or read-only.
    """
    from ..learning import fine_tune

    start = time.perf_counter()
    if resume:
        number, record = _unfinished(store)
        plan = _plan_from(record["plan"])
    else:
        if not 0 <= replay_share < 1:
            raise InputError(f"The replay share is {replay_share:g}; it must be 0 or above, and below 1.")
        if not store.split.is_frozen:
            store.split.freeze(validation, validation_share, by=by)
        elif validation:
            raise InputError(
                "The split of this store is frozen already, so validation patients can't be chosen any more.",
                "Move single patients with `cases split --move` if you must; it is recorded.",
            )
        store.split.extend(by)
        number, record, plan = _begin(store, base_model, steps, replay_share, device, config, by, folder)
    run_folder = Path(record["folder"])
    file = store.layout.rounds / f"{number:04d}" / "round.json"
    settings = _config(record["config"])
    try:
        base = store.models.path(record["base"])
        loaded = fine_tune(
            base, run_folder / "cases.csv", settings, run_folder, resume=resume, progress=progress, cancelled=cancelled
        )
    except CancelledError as error:
        kept = _keep_best(store, record, run_folder, number)
        write_json(file, {**record, "status": "cancelled"})
        raise CancelledError(str(error).split(" Go on with")[0], kept) from error
    except COVIDLesionSegError as error:
        write_json(file, {**record, "status": "failed", "error": str(error)})
        raise
    model = _hand_in(store, record, run_folder, number, "")
    gate = _judged(store, model.id, settings.run.device, rule, progress, cancelled)
    review = store.review.add(
        _doubtful(run_folder), {case: label["sha256"] for case, label in record["labels"].items()}, number
    )
    seconds = time.perf_counter() - start
    write_json(file, {**record, "status": "done", "model": model.id, "passed": gate.passed, "seconds": round(seconds)})
    # the slices are many times what they were made of, and are made again when they are needed
    shutil.rmtree(run_folder / "slices", ignore_errors=True)
    metrics = loaded.card.metrics
    return FineTuneResult(
        number,
        store.models.get(model.id),
        store.models.path(model.id),
        metrics["base"],
        metrics["validation"],
        gate,
        tuple(review),
        plan,
        seconds,
    )


def plan_training(store: Store) -> TrainingPlan:
    """What a fine-tuning would train on now; makes consensus labels anew where raters saved later revisions.

    Raises:
        InputError: nothing trains or nobody judges.
    """
    notes = []
    for case in usable_or_consensus(store):
        if case.label == CONSENSUS and not case.consensus_is_current:
            make_consensus(store, case.id)
            notes.append(f"The consensus of {case.id} was made anew from its raters' last revisions.")
    sides = store.split.sides()
    cases = {case.id: case for case in usable(store.cases())}
    placed = {name: sides.get(case.patient, "train") for name, case in cases.items()}
    train = [name for name, side in placed.items() if side == "train"]
    if not any(not _label(cases[name]).lesion_free for name in train):
        raise InputError(
            "No training case has a label with lesion; correct or approve some cases first.",
            "Cases of validation patients never train.",
        )
    if "validation" not in placed.values():
        raise InputError("No validation case has a label that counts; approve or include one.")
    seen = _seen(store)
    fresh = [name for name in train if seen.get(name) != _label(cases[name]).sha256]
    replayed = [name for name in train if name not in fresh]
    excluded = [(item.case, item.slice) for name in train for item in cases[name].slices_to_fix()]
    # a set without any lesion can't be drawn from by itself: then all cases are drawn alike
    for part in (fresh, replayed):
        if part and not any(not _label(cases[name]).lesion_free for name in part):
            fresh, replayed = train, []
            break
    if not fresh:
        fresh, replayed = train, []
        notes.append("No label is new since the last round; all cases are drawn alike.")
    if excluded:
        notes.append(f"{len(excluded)} slices marked 'fix it' are left out.")
    waiting = sum(len(case.open_reviews()) for case in cases.values())
    if waiting:
        notes.append(f"{waiting} doubtful slices wait for a decision; until then they train as they are.")
    judges = {cases[name].patient for name, side in placed.items() if side == "validation"}
    if len(judges) == 1:
        notes.append("One patient judges; add patients to validation for figures that mean more.")
    return TrainingPlan(placed, tuple(fresh), tuple(replayed), tuple(excluded), tuple(notes))


def estimate_seconds(
    store: Store, base_model: str | None = None, steps: int | None = None, config: TrainingConfig | None = None
) -> TimeEstimate:
    """What a fine-tuning would take on this machine: a few steps are measured, nothing is changed.

    Raises:
        InputError, ModelError: no label yet, or no such model.
    """
    from ..learning.estimate import estimate
    from ..models import load_checkpoint

    card = load_checkpoint(store.models.path(base_model or store.models.default())).card
    settings = _configured(config, steps, None)
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
    box = (max(16, largest[1] * 2 // 3), max(16, largest[0] * 4 // 5))
    return estimate(
        replace(settings, network=network), sum(slices.values()), round(validation * share), validation_size=box
    )


def usable_or_consensus(store: Store) -> list[Case]:
    """Cases that have a label, or would have one once their consensus is made."""
    return [c for c in store.cases() if not c.exclusion and (c.label_revision is not None or len(c.raters) > 1)]


def rounds(store: Store) -> list[dict[str, Any]]:
    """The record of every round, oldest first: status, base model, labels, model, ..."""
    found = []
    for number in numbered(store.layout.rounds):
        file = store.layout.rounds / f"{number:04d}" / "round.json"
        if file.is_file():
            found.append(read_json(file))
    return found


# --- inside ----------------------------------------------------------------------------------------------------------


def _begin(
    store: Store,
    base_model: str | None,
    steps: int | None,
    replay_share: float,
    device: str | None,
    config: TrainingConfig | None,
    by: str,
    folder: Path | str | None,
) -> tuple[int, dict[str, Any], TrainingPlan]:
    plan = plan_training(store)
    base = base_model or store.models.default()
    store.models.path(base)
    number = _claim(store)
    run_folder = Path(folder) if folder is not None else store.layout.rounds / f"{number:04d}" / "run"
    settings = _configured(config, steps, device)
    data = replace(settings.data, split="split.json", validation_patients=(), pseudo_cases="", excluded_slices="")
    run = replace(settings.run, pseudo_batch_size=0)
    size = settings.run.batch_size
    replayed = min(round(size * replay_share), size - 1) if plan.replayed else 0
    if replayed:
        data = replace(data, pseudo_cases="replay.csv")
        run = replace(run, batch_size=size - replayed, pseudo_batch_size=replayed)
    elif plan.replayed:
        plan = replace(plan, fresh=(*plan.fresh, *plan.replayed), replayed=())
    if plan.excluded:
        data = replace(data, excluded_slices="excluded.csv")
    settings = replace(settings, data=data, run=run)
    cases = {case.id: case for case in store.cases() if case.id in plan.cases}
    _write_inputs(store, run_folder, plan, cases)
    labels = {
        name: {"revision": _label(case).number, "sha256": _label(case).sha256, "side": plan.cases[name]}
        for name, case in cases.items()
    }
    record = {
        "number": number,
        "status": "running",
        "started": now(),
        "by": by,
        "base": base,
        "folder": str(run_folder.resolve()),
        "config": settings.to_dict(),
        "labels": labels,
        "plan": {"fresh": plan.fresh, "replayed": plan.replayed, "excluded": plan.excluded, "notes": plan.notes},
    }
    write_json(store.layout.rounds / f"{number:04d}" / "round.json", record)
    return number, record, plan


def _write_inputs(store: Store, folder: Path, plan: TrainingPlan, cases: Mapping[str, Case]) -> None:
    """The files that the trainer reads: cases, those to replay, the frozen split with hashes, slices left out."""
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
        label = _label(case)
        lesion = "none" if label.lesion_free else str(store.revision_path(case, label).resolve())
        lungs = str((store.layout.case(case.id) / case.lungs.file).resolve()) if case.lungs is not None else ""
        writer.writerow([case.id, case.patient, str(path.resolve()), lesion, lungs])
    return text.getvalue()


def _hashes(store: Store, case: Case) -> dict[str, str]:
    path, _ = store.ct_path(case)
    label = _label(case)
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


def _claim(store: Store) -> int:
    """The next round's number; its folder is the claim."""
    store.layout.rounds.mkdir(exist_ok=True)
    while True:
        number = max(numbered(store.layout.rounds), default=0) + 1
        try:
            (store.layout.rounds / f"{number:04d}").mkdir()
        except FileExistsError:
            continue
        return number


def _unfinished(store: Store) -> tuple[int, dict[str, Any]]:
    waiting = [record for record in rounds(store) if record["status"] != "done"]
    if not waiting:
        raise InputError("No round of this store waits to be finished; start one without --resume.")
    return int(waiting[-1]["number"]), waiting[-1]


def _plan_from(values: Mapping[str, Any]) -> TrainingPlan:
    excluded = tuple((str(case), int(index)) for case, index in values["excluded"])
    return TrainingPlan({}, tuple(values["fresh"]), tuple(values["replayed"]), excluded, tuple(values["notes"]))


def _configured(config: TrainingConfig | None, steps: int | None, device: str | None) -> TrainingConfig:
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


def _config(values: Mapping[str, Any]) -> TrainingConfig:
    from ..learning import TrainingConfig

    return TrainingConfig.from_dict(values)


def _seen(store: Store) -> dict[str, str]:
    """Case id -> the label that the last finished round which trained on it has seen."""
    seen: dict[str, str] = {}
    for record in rounds(store):
        if record["status"] == "done":
            seen |= {name: label["sha256"] for name, label in record["labels"].items() if label["side"] == "train"}
    return seen


def _hand_in(store: Store, record: Mapping[str, Any], folder: Path, number: int, suffix: str) -> StoredModel:
    from .judging import validation_cases

    trained = [name for name, label in record["labels"].items() if label["side"] == "train"]
    return store.models.add(
        folder / "best.safetensors",
        record["base"],
        number,
        partner=folder / "partner.safetensors",
        suffix=suffix,
        split=store.split.statement(validation_cases(store)),
        trained_on={"name": f"{len(trained)} corrected cases of the case store {store.id}", "round": number},
    )


def _keep_best(store: Store, record: Mapping[str, Any], folder: Path, number: int) -> str:
    if not (folder / "best.safetensors").is_file():
        return "No model was judged yet, so none is kept; the round can be resumed."
    model = _hand_in(store, record, folder, number, "-stopped")
    return f"The best so far is kept as {model.id}, not judged by the gate yet; the round can be resumed."


def _judged(
    store: Store, model: str, device: str, rule: GateRule | None, progress: Progress | None, cancelled: Cancelled | None
) -> GateDecision:
    from .judging import pass_gate

    return pass_gate(store, model, None, device, rule, progress, cancelled)


def _doubtful(folder: Path) -> list[dict[str, str]]:
    file = folder / "doubtful_labels.csv"
    with file.open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows))


def _label(case: Case) -> Any:
    label = case.label_revision
    assert label is not None  # noqa: S101  # usable cases have one
    return label
