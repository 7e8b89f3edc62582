"""Detached jobs on a case store besides fine-tuning: predictions, estimates, validation; see :mod:`.jobs`.

They need PyTorch, may take long, and are started by name: ``COVIDLesionSegLib.worker.case_jobs:predict``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .faults import require_torch

if TYPE_CHECKING:
    from ..cases import Store
    from .job_runner import JobContext

_HERE = "COVIDLesionSegLib.worker.case_jobs"
PREDICT, ESTIMATE, COMPARE, VALIDATE = (f"{_HERE}:{name}" for name in ("predict", "estimate", "compare", "validate"))


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
