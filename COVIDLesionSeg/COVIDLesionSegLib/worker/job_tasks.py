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

if TYPE_CHECKING:
    from ..cases import Store
    from ..learning import TrainingConfig
    from .jobs import JobContext

PREDICT, ESTIMATE, COMPARE, VALIDATE = "predict", "estimate", "compare", "validate"

#: task -> where its function is; it takes the job's context and returns plain values
TASKS = {name: f"{__name__}:{name}" for name in ("fine_tune", PREDICT, ESTIMATE, COMPARE, VALIDATE)}

Progress = Callable[[str, int, int], None]

_POINTS = 500
_PARAMETERS = ("cases", "base_model", "config", "device", "steps", "resume")
# of a case store only, see cases.training.FineTuning.run
_STORE_PARAMETERS = ("replay_share", "validation", "validation_share", "by")


def fine_tune(job: JobContext) -> dict[str, Any]:
    """Go on training a model on corrected cases.

    Parameters of the job: ``cases`` (case store, manifest or folder of cases), and if given ``base_model`` (id or
    file), ``config`` (TOML file), ``device``, ``steps``, ``resume``; for a case store also ``replay_share``,
    ``validation``, ``validation_share`` and ``by``. Curves: ``loss`` over the training step, and the Dice of each
    judged network (``student_dice``, ``teacher_dice``) on the cases that choose the step, where there are any.

    Returns:
        For a case store what ``FineTuneResult.to_json`` gives: the round, the model, the gate's decision; else
        ``model`` (its id) and ``file``; both with the validation ``before`` and ``after``.
    """
    wanted = {name: value for name, value in job.parameters.items() if value is not None}
    if not wanted.get("cases"):
        raise InputError("A fine-tuning needs cases: a case store, a manifest or a folder.")
    cases = Path(wanted["cases"])
    is_store = (cases / "store.json").is_file()
    allowed = _PARAMETERS + (_STORE_PARAMETERS if is_store else ())
    unknown = [name for name in wanted if name not in allowed]
    if unknown:
        raise InputError(f"A fine-tuning does not know {', '.join(unknown)} here; it knows {', '.join(allowed)}.")
    job.progress("loading", 0, 1)
    require_torch()
    from ..cases.training import configured
    from ..learning import TrainingConfig

    config = TrainingConfig.from_toml(Path(wanted["config"])) if "config" in wanted else None
    config = configured(config, wanted.get("steps"), wanted.get("device"))
    job.progress("loading", 1, 1)
    curves = _Curves(job, config.run.steps)

    def progress(phase: str, done: int, total: int) -> None:
        job.progress(phase, done, total)
        curves.follow()

    run = _in_store if is_store else _on_cases
    result = run(job, wanted, config, bool(wanted.get("resume")), progress)
    curves.follow()
    return result


def _on_cases(
    job: JobContext, wanted: dict[str, Any], config: TrainingConfig, resume: bool, progress: Progress
) -> dict[str, Any]:
    from ..learning import fine_tune
    from ..models import ModelRegistry

    base = wanted.get("base_model") or ModelRegistry().default()
    model = fine_tune(base, wanted["cases"], config, job.work, resume, progress, job.is_cancelled)
    metrics = model.card.metrics
    return {
        "model": model.card.id,
        "file": str(job.work / "best.safetensors"),
        "before": metrics.get("base"),
        "after": metrics.get("validation"),
    }


def _in_store(
    job: JobContext, wanted: dict[str, Any], config: TrainingConfig, resume: bool, progress: Progress
) -> dict[str, Any]:
    from ..cases.store import Store

    extra = {name: wanted[name] for name in _STORE_PARAMETERS if name in wanted}
    found = Store(wanted["cases"]).fine_tune(
        wanted.get("base_model"),
        config=config,
        folder=job.work,
        resume=resume,
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


def predict(job: JobContext) -> dict[str, Any]:
    """Let a model answer waiting cases: ``cases`` (the store), ``model``, ``ids``, ``device``.

    Returns:
        ``done``: case -> mL; ``failed``: case -> why; ``skipped``: what the model had answered.
    """
    store, given = _store(job), job.parameters
    report = store.predict(
        given.get("model"),
        cases=given.get("ids") or (),
        device=given.get("device") or "auto",
        progress=job.progress,
        cancelled=job.is_cancelled,
    )
    done = {case: prediction.lesion_ml for case, prediction in report.done.items()}
    return {"done": done, "failed": dict(report.failed), "skipped": list(report.skipped)}


def estimate(job: JobContext) -> dict[str, Any]:
    """What a fine-tuning would take here: ``cases`` (the store), ``base_model``, ``steps``, ``config``, ``device``.

    Returns:
        What ``learning.estimate.TimeEstimate`` holds, and its ``text``.
    """
    store, given = _store(job), job.parameters
    from ..learning import TrainingConfig

    config = TrainingConfig.from_toml(given["config"]) if given.get("config") else None
    found = store.training.estimate(given.get("base_model"), given.get("steps"), config, given.get("device"))
    return {**found.to_json(), "text": found.text}


def compare(job: JobContext) -> dict[str, Any]:
    """Validate models on the frozen validation cases: ``cases`` (the store), ``models``, ``device``.

    Returns:
        What ``cases.running.Comparison.to_json`` gives.
    """
    store, given = _store(job), job.parameters
    device = given.get("device") or "auto"
    found = store.compare(given["models"], device=device, progress=job.progress, cancelled=job.is_cancelled)
    return found.to_json()


def validate(job: JobContext) -> dict[str, Any]:
    """Validate a model of the store; it is active if it passes: ``cases`` (the store), ``model``, ``device``.

    Returns:
        ``model`` and the ``gate``'s decision, as a fine-tuning does.
    """
    store, given = _store(job), job.parameters
    device = given.get("device") or "auto"
    gate = store.validation.decide(given["model"], device=device, progress=job.progress, cancelled=job.is_cancelled)
    return {"model": given["model"], "gate": gate.told()}


def _store(job: JobContext) -> Store:
    from ..cases import Store

    job.progress("loading", 0, 1)
    store = Store(job.parameters["cases"])
    require_torch()
    job.progress("loading", 1, 1)
    return store
