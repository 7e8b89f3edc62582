"""The worker: child processes that segment and measure, so that the caller's process needs no PyTorch and never waits.

:class:`Client` sends requests to a warm child; its process and timer are given to it. :func:`blocking_client` makes one
for scripts. :mod:`.jobs` holds detached jobs that outlive their parent.
"""

from .client import Client, Progress, Reply, Request, blocking_client, wait
from .faults import ACTIONS, ERROR_KINDS, WorkerError, WorkerFailedError
from .process import BlockingLoop, Process, ProcessListener, SubprocessProcess, Timer, WorkerSettings
from .transport import SharedArray

__all__ = [
    "ACTIONS",
    "ERROR_KINDS",
    "BlockingLoop",
    "Client",
    "Process",
    "ProcessListener",
    "Progress",
    "Reply",
    "Request",
    "SharedArray",
    "SubprocessProcess",
    "Timer",
    "WorkerError",
    "WorkerFailedError",
    "WorkerSettings",
    "blocking_client",
    "wait",
]
