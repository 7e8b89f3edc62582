"""The process of a detached job: runs its task and writes down what happens; see :mod:`.jobs`."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..documents import read_object
from ..errors import CancelledError, InputError
from ..files import remove_unfinished, write_json
from ..processes import kill_descendants, lead_own_group
from .faults import failure_of
from .job_status import describe_process
from .job_tasks import TASKS
from .protocol import to_json
from .values import WorkerError

_HEARTBEAT_SECONDS = 1.0
_EVENT_SECONDS = 0.5
# the disk may be full when there is most to say
_RESERVE = 64 << 10


class JobContext:
    """What a task is given: its parameters, a folder to work in, and ways to say how it goes.

    Args:
        folder: of the job.
        parameters: what was asked for.
    """

    def __init__(self, folder: Path, parameters: dict[str, Any]) -> None:
        self.work = folder / "work"
        self.parameters = parameters
        self._events = (folder / "events.jsonl").open("ab", buffering=0)
        # after a line that a kill has torn
        self._events.write(b"\n")
        self._cancel = folder / "cancel.json"
        self._told: tuple[str, float] = ("", 0.0)
        self._looked = 0.0
        self._asked = False
        self._stopped = False
        self._pace: dict[str, tuple[float, int]] = {}
        self._largest = 0
        self._left: float | None = None
        self._fraction: float | None = None

    def stop(self) -> None:
        """Stop at the next occasion, as if Cancel had been asked for."""
        self._stopped = True

    def is_cancelled(self) -> bool:
        """Whether the job was asked to stop."""
        now = time.monotonic()
        if not self._asked and now - self._looked > 0.2:
            self._looked, self._asked = now, self._cancel.exists()
        return self._asked or self._stopped

    def progress(self, phase: str, done: int, total: int, message: str = "") -> None:
        """Say that ``done`` of ``total`` steps of a phase are finished."""
        now = time.monotonic()
        began, first = self._pace.setdefault(phase, (now, done))
        if total >= self._largest:
            # the phase with the most steps is what takes the time; others come in between
            self._largest = total
            self._fraction = done / max(total, 1)
            if done > first and now - began >= 1:
                self._left = (now - began) / (done - first) * (total - done)
        if phase != self._told[0] or done >= total or now - self._told[1] >= _EVENT_SECONDS:
            self._told = (phase, now)
            self.event(
                "progress",
                phase=phase,
                done=int(done),
                total=int(total),
                message=message,
                fraction=self._fraction,
                seconds_left=self._left,
            )

    def point(self, curve: str, x: float, y: float | None) -> None:
        """A point of a curve; x must grow."""
        self.event("point", curve=curve, x=x, y=y)

    def note(self, text: str) -> None:
        """A sentence for people."""
        self.event("message", text=text)

    def event(self, kind: str, **content: Any) -> None:
        """Write an event.

        Raises:
            OSError: the disk is full.
        """
        line = json.dumps({"time": round(time.time(), 3), "type": kind, **to_json(content)}) + "\n"
        self._events.write(line.encode())


def run_job(folder: Path) -> int:
    """Run the job in a folder; the exit status is 0 if it is done, else 1."""
    lead_own_group()
    described = read_object(folder / "job.json")
    write_json(folder / "process.json", describe_process(os.getpid()))
    (folder / "heartbeat").touch()
    (folder / "reserve").write_bytes(bytes(_RESERVE))
    context = JobContext(folder, described["parameters"])
    context.work.mkdir(exist_ok=True)
    # also at a shutdown of the machine: what can be saved is saved
    signal.signal(signal.SIGTERM, lambda *_: context.stop())
    threading.Thread(target=_watch, args=(folder,), daemon=True).start()
    try:
        context.event("started", task=described["task"])
        result = to_json(_callable(described["task"])(context))
    except CancelledError as error:
        _end(folder, {"state": "cancelled", "message": str(error)})
    except BaseException as error:
        failure = failure_of(error, 0, str(described["parameters"].get("device") or ""))
        fields = ("kind", "message", "hint", "details", "action", "error_class")
        told = WorkerError(**{name: getattr(failure, name) for name in fields})
        _end(folder, {"state": "failed", "error": asdict(told)})
        sys.stderr.write(told.details)
    else:
        _end(folder, {"state": "done", "result": result})
        return 0
    return 1


def _callable(task: str) -> Callable[[JobContext], dict[str, Any]]:
    module, _, name = TASKS.get(task, task).partition(":")
    if not name:
        raise InputError(f"There is no job {task!r}; there are {', '.join(TASKS)}.")
    try:
        found: Callable[[JobContext], dict[str, Any]] = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise InputError(f"There is no function {name} in {module}.") from error
    return found


def _end(folder: Path, state: dict[str, Any]) -> None:
    """Write the last word; on a full disk into the space that was kept for it."""
    with contextlib.suppress(FileNotFoundError):
        (folder / "reserve").unlink()
    write_json(folder / "state.json", state)
    kill_descendants()


def _watch(folder: Path) -> None:
    """The heartbeat, and the end of a job that does not stop within the grace time."""
    while True:
        with contextlib.suppress(OSError):
            os.utime(folder / "heartbeat")
        with contextlib.suppress(OSError, ValueError, KeyError):
            cancel = read_object(folder / "cancel.json")
            if time.time() > cancel["time"] + cancel["grace"] and not (folder / "state.json").exists():
                _end(folder, {"state": "cancelled", "message": "Stopped after the grace time."})
                remove_unfinished()
                os._exit(1)
        time.sleep(_HEARTBEAT_SECONDS)
