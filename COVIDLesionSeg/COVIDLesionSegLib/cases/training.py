"""From corrected cases to a better model: what trains, what is replayed, the gate, and the review list."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CancelledError, COVIDLesionSegError, InputError
from ..files import write_json
from .gate import GateDecision, GateRule
from .layout import now, numbered
from .planning import TrainingPlan, configured, label_of, plan_training, remove_place_lists, rounds, write_inputs
from .records import ReviewItem

if TYPE_CHECKING:
    from ..learning import TrainingConfig
    from .store import Store
    from .store_models import StoredModel

Progress = Callable[[str, int, int], None]
Cancelled = Callable[[], bool]
REPLAY_SHARE = 0.5


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
        resume: go on with the last round that was not finished, or with the one in ``folder``.
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
        number, record = _unfinished(store, folder)
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
    run_folder = _run_folder(store, record)
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
    remove_place_lists(run_folder)
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
    settings = configured(config, steps, device)
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
    write_inputs(store, run_folder, plan, cases)
    labels = {
        name: {"revision": label_of(case).number, "sha256": label_of(case).sha256, "side": plan.cases[name]}
        for name, case in cases.items()
    }
    record = {
        "number": number,
        "status": "running",
        "started": now(),
        "by": by,
        "base": base,
        "folder": _shown_folder(store, run_folder),
        "config": settings.to_dict(),
        "labels": labels,
        "plan": {"fresh": plan.fresh, "replayed": plan.replayed, "excluded": plan.excluded, "notes": plan.notes},
    }
    write_json(store.layout.rounds / f"{number:04d}" / "round.json", record)
    return number, record, plan


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


def _unfinished(store: Store, folder: Path | str | None) -> tuple[int, dict[str, Any]]:
    waiting = [record for record in rounds(store) if record["status"] != "done"]
    if folder is not None:
        waiting = [record for record in waiting if _run_folder(store, record) == Path(folder).resolve()]
    if not waiting:
        raise InputError("No round of this store waits to be finished; start one without --resume.")
    return int(waiting[-1]["number"]), waiting[-1]


def _shown_folder(store: Store, folder: Path) -> str:
    """The folder of a run as ``round.json`` names it: from the store's own one where it lies in it."""
    place, root = folder.resolve(), store.folder.resolve()
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else str(place)


def _run_folder(store: Store, record: Mapping[str, Any]) -> Path:
    # a path from the root, as earlier versions wrote it, stays what it is
    return (store.folder / record["folder"]).resolve()


def _plan_from(values: Mapping[str, Any]) -> TrainingPlan:
    excluded = tuple((str(case), int(index)) for case, index in values["excluded"])
    return TrainingPlan({}, tuple(values["fresh"]), tuple(values["replayed"]), excluded, tuple(values["notes"]))


def _config(values: Mapping[str, Any]) -> TrainingConfig:
    from ..learning import TrainingConfig

    return TrainingConfig.from_dict(values)


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
