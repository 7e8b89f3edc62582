"""What detached jobs can do: fine-tuning, and on a case store predictions, estimates and validation; see :mod:`.jobs`.

The tasks need PyTorch, which is loaded by the process that runs the job.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..documents import parse_object
from ..errors import InputError
from .faults import require_torch
from .jobs import JobContext

if TYPE_CHECKING:
    from ..cases import Store
    from ..learning import TrainingConfig

PREDICT, ESTIMATE, COMPARE, VALIDATE = "predict", "estimate", "compare", "validate"

#: task -> where its function is; it takes the job's context, and its parameters as :mod:`.tasks` says
TASKS = {name: f"{__name__}:{name}" for name in ("fine_tune", PREDICT, ESTIMATE, COMPARE, VALIDATE)}

Progress = Callable[[str, int, int], None]

_POINTS = 500


def fine_tune(
    job: JobContext,
    cases: Path,
    base_model: str | None = None,
    config: Path | None = None,
    device: str | None = None,
    steps: int | None = None,
    replay_share: float | None = None,
    validation: list[str] | None = None,
    validation_share: float | None = None,
    by: str | None = None,
) -> dict[str, Any]:
    """Go on training a model on corrected cases.

    Curves: ``loss`` over the training step, and the Dice of each judged network (``student_dice``, ``teacher_dice``) on
    the cases that choose the step, where there are any.

    Args:
        job: its context.
        cases: case store, manifest or folder of cases.
        base_model: id or file.
        config: TOML file.
        device: see ``TrainingConfig``.
        steps: of the training.
        replay_share: of a case store only, as are the next three; see ``cases.training.FineTuning.run``.
        validation: validation patients.
        validation_share: fraction of the patients that validate.
        by: who starts it.

    Returns:
        For a case store what ``FineTuneResult.to_json`` gives: the round, the model, the gate's decision; else
        ``model`` (its id) and ``file``; both with the validation ``before`` and ``after``.
    """
    extra = {"replay_share": replay_share, "validation": validation, "validation_share": validation_share, "by": by}
    extra = {name: value for name, value in extra.items() if value is not None}
    is_store = (cases / "store.json").is_file()
    if extra and not is_store:
        raise InputError(f"A fine-tuning knows {', '.join(extra)} with a case store only.")
    job.progress("loading", 0, 1)
    require_torch()
    from ..cases.training import configured
    from ..learning import TrainingConfig

    settings = configured(None if config is None else TrainingConfig.from_toml(config), steps, device)
    job.progress("loading", 1, 1)
    curves = _Curves(job, settings.run.steps)

    def progress(phase: str, done: int, total: int) -> None:
        job.progress(phase, done, total)
        curves.follow()

    if is_store:
        result = _in_store(job, cases, base_model, settings, progress, extra)
    else:
        result = _on_cases(job, cases, base_model, settings, progress)
    curves.follow()
    return result


def _on_cases(
    job: JobContext, cases: Path, base: str | None, config: TrainingConfig, progress: Progress
) -> dict[str, Any]:
    from ..learning import fine_tune
    from ..models import ModelRegistry

    model = fine_tune(
        base or ModelRegistry().default(), str(cases), config, job.work, job.is_resumed, progress, job.is_cancelled
    )
    metrics = model.card.metrics
    return {
        "model": model.card.id,
        "file": str(job.work / "best.safetensors"),
        "before": metrics.get("base"),
        "after": metrics.get("validation"),
    }


def _in_store(
    job: JobContext,
    cases: Path,
    base: str | None,
    config: TrainingConfig,
    progress: Progress,
    extra: dict[str, Any],
) -> dict[str, Any]:
    from ..cases.store import Store

    found = Store(cases).fine_tune(
        base,
        config=config,
        folder=job.work,
        resume=job.is_resumed,
        progress=progress,
        cancelled=job.is_cancelled,
        **extra,
    )
    return found.to_json()


class _Curves:
    """Follows a training's log, and tells each new point once."""

    def __init__(self, job: JobContext, steps: int) -> None:
        self._job = job
        self._file = job.work / "log.jsonl"
        self._every = max(1, steps // _POINTS)
        self._offset = 0

    def follow(self) -> None:
        """Tell what is new."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            if self._file.stat().st_size < self._offset:
                # a resumed run has cut it
                self._offset = 0
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._tell(parse_object(line, self._file.name))

    def _tell(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == "step" and entry["step"] % self._every == 0:
            self._job.point("loss", entry["step"], entry["student_loss"])
        elif entry["kind"] == "selection":
            for network in ("student", "teacher"):
                if network in entry:
                    self._job.point(f"{network}_dice", entry["step"], entry[network]["dice"])


def predict(
    job: JobContext, cases: Path, model: str | None = None, ids: list[str] | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Run a model on the cases of a store: those of ``ids``, or all that wait.

    Returns:
        ``done``: case -> mL; ``failed``: case -> why; ``skipped``: those on which the model was run before.
    """
    report = _store(job, cases).predict(
        model, cases=ids or (), device=device, progress=job.progress, cancelled=job.is_cancelled
    )
    done = {case: prediction.lesion_ml for case, prediction in report.done.items()}
    return {"done": done, "failed": dict(report.failed), "skipped": list(report.skipped)}


def estimate(
    job: JobContext,
    cases: Path,
    base_model: str | None = None,
    steps: int | None = None,
    config: Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """What a fine-tuning on a store would take here.

    Returns:
        What ``learning.estimate.TimeEstimate`` holds, and its ``text``.
    """
    store = _store(job, cases)
    from ..learning import TrainingConfig

    settings = None if config is None else TrainingConfig.from_toml(config)
    found = store.training.estimate(base_model, steps, settings, device)
    return {**found.to_json(), "text": found.text}


def compare(job: JobContext, cases: Path, models: list[str], device: str = "auto") -> dict[str, Any]:
    """Validate models on the frozen validation cases of a store.

    Returns:
        What ``cases.running.Comparison.to_json`` gives.
    """
    store = _store(job, cases)
    return store.compare(models, device=device, progress=job.progress, cancelled=job.is_cancelled).to_json()


def validate(job: JobContext, cases: Path, model: str, device: str = "auto") -> dict[str, Any]:
    """Validate a model of a store; it is active if it passes.

    Returns:
        ``model`` and the ``gate``'s decision, as a fine-tuning does.
    """
    store = _store(job, cases)
    gate = store.validation.decide(model, device=device, progress=job.progress, cancelled=job.is_cancelled)
    return {"model": model, "gate": gate.told()}


def _store(job: JobContext, cases: Path) -> Store:
    from ..cases import Store

    job.progress("loading", 0, 1)
    store = Store(cases)
    require_torch()
    job.progress("loading", 1, 1)
    return store
