"""Fine-tuning from the Python console: detached jobs that outlive Slicer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cases import Store
from ..errors import InputError, WorkerError as _WorkerError  # noqa: F401
from ..models.catalog import default_folder
from ..worker import WorkerFailedError, WorkerSettings
from ..worker.case_jobs import COMPARE, ESTIMATE, JUDGE, PREDICT
from ..worker.jobs import Job, JobStatus, find_jobs, start_job
from .session import readSettings
