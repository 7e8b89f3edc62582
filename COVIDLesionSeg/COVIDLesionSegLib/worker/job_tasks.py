"""What detached jobs can do. Names only: the modules are loaded by the process that runs the job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .faults import require_torch

if TYPE_CHECKING:
    from .job_runner import JobContext

#: task -> where its function is; it takes the job's context and returns plain values
TASKS = {"fine_tune": "COVIDLesionSegLib.worker.job_tasks:fine_tune"}

_POINTS = 500
_PARAMETERS = ("cases", "base_model", "config", "device", "steps", "resume")


def fine_tune(job: JobContext) -> dict[str, Any]:
    """Go on training a model on corrected cases.

    Parameters of the job: ``cases`` (case store, manifest or folder of cases), and if given ``base_model`` (id or
    file), ``config`` (TOML file), ``device``, ``steps``, ``resume``. Curves: ``loss`` over the training step, and the
    Dice of each judged network (``student_dice``, ``teacher_dice``) on the frozen validation patients.

    Returns:
        ``model`` (the file), ``card``, and the validation ``before`` and ``after``.
    """
    wanted = dict(job.parameters)
    unknown = [name for name in wanted if name not in _PARAMETERS]
    if unknown:
        raise InputError(f"A fine-tuning does not know {', '.join(unknown)}; it knows {', '.join(_PARAMETERS)}.")
    if not wanted.get("cases"):
        raise InputError("A fine-tuning needs cases: a case store, a manifest or a folder.")
    job.progress("loading", 0, 1)
    require_torch()
    from ..learning import TrainingConfig
    from ..learning.fine_tuning import default_config, fine_tune
    from ..models import ModelRegistry

    config = TrainingConfig.from_toml(Path(wanted["config"])) if wanted.get("config") else default_config()
    given = {name: wanted[name] for name in ("steps", "device") if wanted.get(name) is not None}
    config = replace(config, run=replace(config.run, **given))
    base = wanted.get("base_model") or ModelRegistry().default()
    job.progress("loading", 1, 1)
    curves = _Curves(job, config.run.steps)

    def progress(phase: str, done: int, total: int) -> None:
        job.progress(phase, done, total)
        curves.follow()

    resume = bool(wanted.get("resume")) and (job.work / "state.pt").exists()
    model = fine_tune(base, wanted["cases"], config, job.work, resume, progress, job.is_cancelled)
    curves.follow()
    metrics = model.card.metrics
    return {
        "model": str(job.work / "best.safetensors"),
        "id": model.card.id,
        "before": metrics.get("base"),
        "after": metrics.get("validation"),
    }


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
            self._tell(json.loads(line))

    def _tell(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == "step" and entry["step"] % self._every == 0:
            self._job.point("loss", entry["step"], entry["student_loss"])
        elif entry["kind"] == "validation":
            for network in ("student", "teacher"):
                if network in entry:
                    self._job.point(f"{network}_dice", entry["step"], entry[network]["dice"])
