"""Detached jobs: work that goes on when its parent ends, e.g. a fine-tuning, and is found again later.

A job has a folder of its own with these files, all readable by people:

========================  =============================================================================================
``job.json``              what is to be done: task, parameters, when it was made; written before it starts
``launcher.json``         the process that was started here: id, start time, machine
``process.json``          the process that works, as it says itself (an interpreter's launcher may stand between)
``heartbeat``             touched every second or two while it lives
``events.jsonl``          what happened, one JSON object a line: progress, points of curves, messages
``state.json``            how it ended: done, failed or cancelled; written once
``cancel.json``           the wish to stop; it is a message, the process tree is killed only after a grace time
``output.log``            what the process printed
``work/``                 what the task makes
========================  =============================================================================================

On the parent's side, :class:`Job`, nothing needs PyTorch, no thread is started, and no call waits for the job but
:meth:`Job.wait`. :func:`run_job` is the process that works.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..documents import parse_object, read_object
from ..errors import CancelledError, InputError, OutputError, ReadError
from ..files import remove_unfinished, write_json
from ..processes import is_alive, kill_descendants, kill_tree, lead_own_group, start_time
from .client import Progress
from .faults import CHOOSE_PYTHON, WorkerError, WorkerFailedError, failure_of, scrubbed, secrets, told
from .process import WorkerSettings, child_environment, command_line
from .protocol import to_json

_log = logging.getLogger(__name__)

_VERSION = 1
GRACE_SECONDS = 60.0
# a job that has not reported for this long is said to be silent
SILENCE_SECONDS = 120.0
_START_SECONDS = 60.0
_LINES = 40
# what the earlier run of a job that goes on has left
_OF_A_RUN = ("state.json", "cancel.json", "process.json", "launcher.json", "heartbeat")
_ACTIVE = ("starting", "running", "cancelling")
_HEARTBEAT_SECONDS = 1.0
_EVENT_SECONDS = 0.5
# the disk may be full when there is most to say
_RESERVE = 64 << 10

# processes started here; asked now and then, so that none stays behind as a zombie
_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class JobStatus:
    """How a job stands.

    Attributes:
        state: "starting", "running", "cancelling"; "done", "failed", "cancelled"; or "died": it ended without a word,
            by a crash, a kill or a restart of the machine.
        progress: the last step it reported, None before the first.
        seconds_left: estimated, None where it is not known.
        curves: name -> [x, y] points, e.g. "loss" and "teacher_dice" over the training step; y may be None.
        messages: sentences for people.
        error: why it failed or died; of the kind "silent" where it runs but has not reported for long.
        result: what its task gave back, None before the end.
        seconds: how long it has been running, or ran.
    """

    state: str
    progress: Progress | None = None
    seconds_left: float | None = None
    curves: dict[str, list[list[float | None]]] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    error: WorkerError | None = None
    result: dict[str, Any] | None = None
    seconds: float = 0.0

    @property
    def is_active(self) -> bool:
        """Whether it has not ended."""
        return self.state in _ACTIVE


class _Events:
    """What the events say so far."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.seconds_left: float | None = None
        self.curves: dict[str, list[list[float | None]]] = {}
        self.messages: list[str] = []

    def take(self, event: Mapping[str, Any]) -> None:
        """One more event."""
        kind = event.get("type")
        if kind == "progress":
            self.seconds_left = event.get("seconds_left")
            self.progress = Progress(
                str(event["phase"]),
                int(event["done"]),
                max(1, int(event["total"])),
                event.get("fraction"),
                self.seconds_left,
                str(event.get("message", "")),
            )
        elif kind == "point":
            points = self.curves.setdefault(str(event["curve"]), [])
            # a resumed job repeats the steps after its last saved state
            while points and points[-1][0] is not None and points[-1][0] >= event["x"]:
                points.pop()
            points.append([event["x"], event["y"]])
        elif kind == "message":
            self.messages.append(str(event["text"]))


def start_job(
    folder: Path | str,
    task: str,
    parameters: Mapping[str, Any] | None = None,
    settings: WorkerSettings | None = None,
) -> Job:
    """Start a job that goes on when this process ends.

    Args:
        folder: of the job, made if absent. With ``parameters["resume"]`` true it may be that of a job that has ended,
            which then goes on.
        task: a name of :data:`.job_tasks.TASKS`, or ``module:function`` that the job's interpreter can import;
            a function whose parameters have types, see :mod:`.tasks`.
        parameters: of the task, plain JSON values.
        settings: interpreter and environment. Jobs run on this machine, so a command prefix is not allowed.

    Raises:
        InputError: a folder that holds another job, or a command prefix.
        OutputError: the folder can't be written.
        WorkerFailedError: the interpreter can't be started.
    """
    settings = settings or WorkerSettings()
    if settings.prefix:
        raise InputError(
            "A job runs on this machine, so it can't be started behind a command prefix.",
            "Start it there with the command, e.g. `covid-lesion-seg fine-tune`.",
        )
    folder, parameters = Path(folder).absolute(), dict(parameters or {})
    job = Job(folder)
    before: dict[Path, bytes] = {}
    if (folder / "job.json").exists():
        if job.status().is_active:
            raise InputError(f"The job in {folder.name} runs already.", "Wait for it, or cancel it first.")
        if not parameters.get("resume"):
            raise InputError(f"The folder {folder.name} holds another job.", "Resume that, or choose another folder.")
        known = [folder / name for name in ("job.json", *_OF_A_RUN) if (folder / name).exists()]
        before = {path: path.read_bytes() for path in known}
        for name in _OF_A_RUN:
            (folder / name).unlink(missing_ok=True)
    described = {"version": _VERSION, "task": task, "parameters": parameters, "created": _now()}
    try:
        write_json(folder / "job.json", described)
        with (folder / "output.log").open("ab") as output:
            process = subprocess.Popen(
                command_line(settings, ["--job", str(folder)]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=child_environment(settings),
                start_new_session=os.name == "posix",
                creationflags=_detached_flags(),
            )
    except BaseException as error:
        # a job that could not go on stays what it was, so that it can still be resumed
        (folder / "job.json").unlink(missing_ok=True)
        for path, content in before.items():
            path.write_bytes(content)
        if not isinstance(error, OSError):
            raise
        why = f"The job could not be started: {error.strerror or error}."
        raise WorkerFailedError(WorkerError("start_failed", why, CHOOSE_PYTHON, action="copy_report")) from error
    _started.append(process)
    write_json(folder / "launcher.json", _describe_process(process.pid))
    return job


def find_jobs(root: Path | str) -> list[Job]:
    """All jobs in the folders directly below a folder, newest first; none if it does not exist."""
    root = Path(root)
    found = []
    for file in root.glob("*/job.json") if root.is_dir() else []:
        job = Job(file.parent)
        try:
            found.append((job.created, job))
        except ReadError as error:
            _log.warning("%s", error)
    return [job for _, job in sorted(found, key=lambda pair: pair[0], reverse=True)]


class Job:
    """A job in its folder, started by this process or by an earlier one.

    Args:
        folder: of the job.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._offset = 0
        self._events = _Events()

    def __repr__(self) -> str:
        return f"Job({str(self.folder)!r})"

    @property
    def task(self) -> str:
        """What it does."""
        return str(self._described()["task"])

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was asked for."""
        return dict(self._described()["parameters"])

    @property
    def created(self) -> str:
        """When it was made, UTC, ISO 8601."""
        return str(self._described()["created"])

    @property
    def work(self) -> Path:
        """Folder of what the task makes."""
        return self.folder / "work"

    def status(self) -> JobStatus:
        """How it stands now. A job that goes on past the grace time after :meth:`cancel` is killed here.

        Raises:
            ReadError: there is no job in the folder, or its files are damaged.
        """
        self._described()
        _started[:] = [process for process in _started if process.poll() is None]
        state, alive = _read(self.folder / "state.json"), self._is_alive()
        cancel = _read(self.folder / "cancel.json")
        if state is None and cancel is not None and alive and time.time() > cancel["time"] + cancel["grace"]:
            self._kill()
            alive = False
        # read after the state: whoever wrote that has written all its events before
        self._read_events()
        events = self._events
        error, result, name = None, None, "running"
        if state is None:
            # it may have ended between the two looks
            state = _read(self.folder / "state.json") if not alive else None
        if state is not None:
            name, result = str(state["state"]), state.get("result")
            error = WorkerError(**state["error"]) if state.get("error") else None
        elif not alive:
            name, error = ("cancelled", None) if cancel is not None else ("died", self._death())
        elif cancel is not None:
            name = "cancelling"
        elif not (self.folder / "process.json").exists():
            name = "starting"
        else:
            error = self._silence()
        ended = name not in _ACTIVE
        return JobStatus(
            name,
            events.progress,
            None if ended else events.seconds_left,
            {curve: [list(point) for point in points] for curve, points in events.curves.items()},
            tuple(events.messages),
            error,
            result,
            self._seconds(ended),
        )

    def cancel(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Ask it to stop; it saves what it can. Nothing happens if it has ended.

        Args:
            grace_seconds: time that it has; after them its process tree is killed, by itself or by :meth:`status`.

        Raises:
            OutputError: the folder can't be written.
        """
        if (self.folder / "state.json").exists():
            return
        write_json(self.folder / "cancel.json", {"time": time.time(), "grace": grace_seconds})

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Wait for the end.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: it has not ended by then.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            status = self.status()
            if not status.is_active:
                return status
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"The job did not end within {timeout:g} seconds.")
            time.sleep(0.1)

    def resume(self, settings: WorkerSettings | None = None) -> Job:
        """Go on with a job that has ended before it was done, in its folder.

        Raises:
            InputError: it runs.
            OutputError, WorkerFailedError: see :func:`start_job`.
        """
        return start_job(self.folder, self.task, {**self.parameters, "resume": True}, settings)

    def report(self) -> str:
        """A diagnostic report to copy, as :meth:`.client.Client.report`: nothing about a patient is in it."""
        status = self.status()
        progress = status.progress
        lines = [
            f"COVIDLesionSeg {__version__}, job {self.task}, {status.state} after {status.seconds:.0f} s",
            f"Python {platform.python_version()}, {platform.platform()}",
            *([f"{progress.phase}: {progress.done} of {progress.total}"] if progress else []),
            *([f"{status.error.kind}: {status.error}", status.error.details] if status.error else []),
            "",
            "Last lines that it printed:",
            *_last_lines(self.folder / "output.log"),
        ]
        return scrubbed("\n".join(lines), secrets(self.parameters))

    def remove(self) -> None:
        """Delete the folder with all that the task has made.

        Raises:
            InputError: it has not ended.
            OutputError: a file can't be deleted.
        """
        if self.status().is_active:
            raise InputError(f"The job in {self.folder.name} runs; it can't be removed.", "Cancel it first.")
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            raise OutputError(f"The job in {self.folder.name} can't be removed: {error.strerror or error}.") from error

    # ---- inside -------------------------------------------------------------------------------------------------

    def _described(self) -> dict[str, Any]:
        value = _read(self.folder / "job.json")
        if value is None:
            raise ReadError(f"There is no job in {self.folder.name}.")
        if value.get("version") != _VERSION:
            raise ReadError(
                f"The job in {self.folder.name} is of version {value.get('version')!r}; this program knows {_VERSION}.",
                "Use the program that has started it.",
            )
        return value

    def _process(self) -> dict[str, Any] | None:
        return _read(self.folder / "process.json") or _read(self.folder / "launcher.json")

    def _is_alive(self) -> bool:
        process = self._process()
        if process is None:
            # between job.json and the first sign of the process
            return self._age("job.json") < _START_SECONDS
        if not _is_here(process):
            # another machine's processes can't be looked at; its heartbeat can, through a shared folder
            return self._age("heartbeat") < SILENCE_SECONDS
        return _is_same(process)

    def _kill(self) -> None:
        for name in ("process.json", "launcher.json"):
            process = _read(self.folder / name)
            if process is not None and _is_here(process) and _is_same(process):
                kill_tree(int(process["pid"]))

    def _age(self, name: str) -> float:
        try:
            return time.time() - (self.folder / name).stat().st_mtime
        except OSError:
            return float("inf")

    def _seconds(self, ended: bool) -> float:
        begun = (_read(self.folder / "launcher.json") or {}).get("time")
        if begun is None:
            return 0.0
        last = "state.json" if (self.folder / "state.json").exists() else "heartbeat"
        now = time.time() - self._age(last) if ended and (self.folder / last).exists() else time.time()
        return max(0.0, now - float(begun))

    def _silence(self) -> WorkerError | None:
        age = self._age("heartbeat")
        if age < SILENCE_SECONDS:
            return None
        return WorkerError(
            "silent",
            "The job runs but has not reported for a while.",
            "It may have been paused, or the machine may be asleep or overloaded. Wait, or cancel it.",
        )

    def _death(self) -> WorkerError:
        process = self._process()
        known = process is not None and _is_here(process) and _boot_of(process["start_time"])
        restarted = known and known != _boot_of(start_time(os.getpid()))
        why = "the machine was restarted" if restarted else "its process is gone and left no word"
        return WorkerError(
            "died",
            f"The job ended unexpectedly: {why}.",
            "Resume it: it goes on from what it has saved.",
            "\n".join(_last_lines(self.folder / "output.log")),
            "copy_report",
        )

    def _read_events(self) -> None:
        try:
            with (self.folder / "events.jsonl").open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        # a line that is being written is read the next time
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                event = parse_object(line, "events.jsonl")
            except ReadError:
                # torn by a kill in the middle of a write, and followed by what a resumed job wrote
                continue
            self._events.take(event)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_object(path)
    except FileNotFoundError:
        return None
    except ReadError as error:
        raise ReadError(f"The file {path.name} of the job in {path.parent.name} is damaged ({error}).") from error


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return file.read().decode("utf-8", "replace").splitlines()[-_LINES:]
    except FileNotFoundError:
        return []


def _detached_flags() -> int:
    names = ("DETACHED_PROCESS", "CREATE_NEW_PROCESS_GROUP", "CREATE_BREAKAWAY_FROM_JOB")
    return sum(getattr(subprocess, name, 0) for name in names)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _describe_process(pid: int) -> dict[str, Any]:
    """What tells a process from all others, also after a restart."""
    return {"pid": pid, "start_time": start_time(pid), "machine": socket.gethostname(), "time": time.time()}


def _is_here(process: Mapping[str, Any]) -> bool:
    """Whether a process runs, or ran, on this machine; its name may change, what a start of it is called does not."""
    boot = _boot_of(process["start_time"])
    return process["machine"] == socket.gethostname() or (bool(boot) and boot == _boot_of(start_time(os.getpid())))


def _boot_of(started: str | None) -> str:
    """The start of the machine in a start time of a process, "" where the system does not name it."""
    boot, space, _ = (started or "").partition(" ")
    return boot if space and sys.platform == "linux" else ""


def _is_same(process: Mapping[str, Any]) -> bool:
    """Whether the process lives, and not another one that has got its number."""
    pid = int(process["pid"])
    return is_alive(pid) and start_time(pid) == process["start_time"]


# ---- the process that works ------------------------------------------------------------------------------------------


class JobContext:
    """What a task is given: a folder to work in, and ways to say how it goes.

    Args:
        folder: of the job.
        is_resumed: whether it goes on with what an earlier run of it has left in ``work``.
    """

    def __init__(self, folder: Path, is_resumed: bool = False) -> None:
        self.work = folder / "work"
        self.is_resumed = is_resumed
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
    from .tasks import dispatch

    lead_own_group()
    described = read_object(folder / "job.json")
    task, parameters = described["task"], dict(described["parameters"])
    write_json(folder / "process.json", _describe_process(os.getpid()))
    (folder / "heartbeat").touch()
    (folder / "reserve").write_bytes(bytes(_RESERVE))
    context = JobContext(folder, bool(parameters.pop("resume", False)))
    context.work.mkdir(exist_ok=True)
    # also at a shutdown of the machine: what can be saved is saved
    signal.signal(signal.SIGTERM, lambda *_: context.stop())
    threading.Thread(target=_watch, args=(folder,), daemon=True).start()
    try:
        context.event("started", task=task)
        result = to_json(dispatch(task, _callable(task), parameters, {}, context))
    except CancelledError as error:
        _end(folder, {"state": "cancelled", "message": str(error)})
    except BaseException as error:
        failure = failure_of(error, 0, str(parameters.get("device") or ""))
        _end(folder, {"state": "failed", "error": asdict(told(failure))})
        sys.stderr.write(failure.details)
    else:
        _end(folder, {"state": "done", "result": result})
        return 0
    return 1


def _callable(task: str) -> Callable[..., dict[str, Any]]:
    from .job_tasks import TASKS

    module, _, name = TASKS.get(task, task).partition(":")
    if not name:
        raise InputError(f"There is no job {task!r}; there are {', '.join(TASKS)}.")
    try:
        found: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), name)
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
