"""What all panels of one Slicer share: settings, children, the run that is on, and what the children compute on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import slicer

from ..errors import CancelledError, InputError
from ..models import ModelRegistry
from ..worker import Client, Process, Request, Timer, WorkerSettings
from ..worker.process import split_prefix
from .live import LiveMeasurement, MeasurementTools
from .messages import Notice, noticeOf
from .process import QtProcess, QtTimer
from .run import SceneCt, SegmentationRun, modelForWorker
from .task import Signal, Tasks
from .text import _

AUTOMATIC = "auto"
_PROCESSOR = "cpu"
_PREFIX = "COVIDLesionSeg/"
_MINUTE = 60.0
# how long children may take to end by themselves, and how often is looked
_GRACE_MS, _LOOK_MS = 5000, 50


class Session:
    """Clients, run and measurement of this process.

    Args:
        spawn: makes the children's processes.
        timer: makes timers.
        settings: how the children are started; None takes the application's settings, and follows them.
        registry: the models.
    """

    def __init__(
        self,
        spawn: Callable[[list[str], Mapping[str, str]], Process] = QtProcess,
        timer: Callable[[int, Callable[[], None]], Timer] = QtTimer,
        settings: WorkerSettings | None = None,
        registry: ModelRegistry | None = None,
    ) -> None:
        self._spawn = spawn
        self._processes: list[Process] = []
        self.timer = timer
        self.registry = registry or ModelRegistry()
        self.modelsChanged = Signal()
        # whoever has children of its own ends them
        self.ending = Signal()
        self.devices = Devices(lambda: self.client("lesions"), timer)
        self._given = settings
        self._clients: dict[str, Client] = {}
        self._users: list[Any] = []
        self.ct = SceneCt()
        self.live = LiveMeasurement(self)
        self.tools = MeasurementTools(self)
        self.run = SegmentationRun(self)

    def client(self, kind: Literal["lesions", "measurement"]) -> Client:
        """The client of a kind of child; the child starts with the first request."""
        return self._client(kind, self._settings(), kind)

    def clientHere(self) -> Client:
        """The client of a child that changes this computer's models: it runs here, whatever the prefix is."""
        settings = self._settings()
        return self._client("models" if settings.prefix else "lesions", settings.on_this_machine(), "lesions")

    def modelFor(self, model: str) -> str | None:
        """What the child that finds lesions is told of a model; see :func:`modelForWorker`."""
        return modelForWorker(model, self.client("lesions").settings, self.registry)

    def attach(self, user: Any) -> None:
        """Somebody uses the session from now on."""
        self._users.append(user)

    def detach(self, user: Any) -> None:
        """Somebody uses it no more; after the last one the children end."""
        if user in self._users:
            self._users.remove(user)
        if not self._users:
            self.close()

    def close(self) -> None:
        """Cancel what is on and end the children."""
        self.run.cancel()
        self.tools.close()
        self.live.close()
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self.ct.forget()

    def spawn(self, command: list[str], environment: Mapping[str, str]) -> Process:
        """A process for a child; the session knows all that run."""
        process = self._spawn(command, environment)
        self._processes = [*(known for known in self._processes if known.is_running), process]
        return process

    def whenEnded(self, action: Callable[[], None]) -> None:
        """End all children, the case store's too, and do something once they are gone.

        Windows lets nobody replace a library that a process has loaded.
        """
        self.ending.emit()
        self.restart()
        self._whenGone(action, _GRACE_MS)

    def _whenGone(self, action: Callable[[], None], left: int) -> None:
        running = [process for process in self._processes if process.is_running]
        if not running:
            action()
            return
        if left <= 0:
            for process in running:
                process.kill_tree()
        self.timer(_LOOK_MS, lambda: self._whenGone(action, left - _LOOK_MS))

    def restart(self) -> None:
        """Start children with the present settings from now on."""
        self.close()
        self.devices.forget()

    def report(self) -> str:
        """A diagnostic report for a bug report, free of patient data."""
        application = f"Slicer {slicer.app.applicationVersion} (revision {slicer.app.revision}), {sys.platform}"
        return "\n\n".join([application, *(client.report() for client in self._clients.values())])

    def _client(self, name: str, settings: WorkerSettings, kind: Literal["lesions", "measurement"]) -> Client:
        if name not in self._clients:
            self._clients[name] = Client(self.spawn, self.timer, settings, kind)
        return self._clients[name]

    def _settings(self) -> WorkerSettings:
        return readSettings() if self._given is None else self._given


class Devices:
    """Asks the worker once and remembers.

    Args:
        client: gives the client of the child that computes.
        timer: makes timers.

    Attributes:
        changed: signal: something else is known.
        noted: signal: a :class:`.messages.Notice`: nothing can be computed, and what leads on.
    """

    def __init__(self, client: Callable[[], Client], timer: Callable[[int, Callable[[], None]], Timer]) -> None:
        self._client = client
        self._tasks = Tasks(timer, self._onFailed)
        self.changed, self.noted = Signal(), Signal()
        #: devices as ``describe_devices`` gives them; None where they are not known
        self._found: Mapping[str, Any] | None = None
        self._problem = ""
        self._asked = False

    def ask(self, again: bool = False) -> None:
        """Ask the worker, unless it was asked before. It loads PyTorch for that: ask after a press, or once it has."""
        if self._asked or (self._found is not None and not again):
            return
        self._asked, self._problem = True, ""
        self._tasks.start(self._look(self._client().request("doctor")))
        self.changed.emit()

    def forget(self) -> None:
        """Another worker may have other devices."""
        self._found, self._problem, self._asked = None, "", False
        self.changed.emit()

    def names(self) -> dict[str, str]:
        """Device -> its name for people."""
        names = {AUTOMATIC: _("Automatic")}
        if self._found is None:
            return names | {
                _PROCESSOR: _("Processor"),
                "cuda": _("NVIDIA graphics card"),
                "mps": _("Apple graphics"),
            }
        names[_PROCESSOR] = _("Processor ({name})").format(name=self._found["processor"]["name"])
        return names | {gpu["device"]: f"{gpu['name']} ({gpu['device']})" for gpu in self._found["gpus"]}

    def text(self, device: str) -> str:
        """What a choice comes to, and why."""
        if self._asked:
            return _("Looking at what this computer has...")
        if self._problem:
            return self._problem
        if self._found is None:
            first = _("A graphics card where one works, else the processor; the first run tells which.")
            return first if device == AUTOMATIC else ""
        if device == AUTOMATIC:
            chosen = self._found["chosen"]
            return str(chosen.get("error") or f"{chosen['name']} ({chosen['device']}). {chosen['reason']}")
        if device == _PROCESSOR:
            processor = self._found["processor"]
            return _("{name}, {threads} threads.").format(name=processor["name"], threads=processor["threads"])
        for gpu in self._found["gpus"]:
            if gpu["device"] == device or gpu["device"].startswith(f"{device}:"):
                return _("{name}: {problem}").format(name=gpu["name"], problem=gpu["problem"] or _("works."))
        return _("There is no {device} here, so a run on it would fail.").format(device=device)

    def summary(self) -> str:
        """PyTorch's build and what it found, for the set-up page."""
        if self._asked or self._problem:
            return self.text(AUTOMATIC)
        if self._found is None:
            return _("Not looked at yet.")
        torch = self._found["torch"]
        build = torch["cuda_build"] and f"CUDA {torch['cuda_build']}"
        build = build or (torch["rocm_build"] and f"ROCm {torch['rocm_build']}") or _("processor only")
        driver = torch["nvidia_driver"] or _("none")
        first = _("PyTorch {version} ({build}), NVIDIA driver: {driver}.").format(
            version=torch["version"], build=build, driver=driver
        )
        return f"{first} {self.text(AUTOMATIC)}"

    async def _look(self, request: Request) -> None:
        reply = await request
        self._asked = False
        self._found = reply.values["devices"]
        if self._found is None:
            self._problem = str(reply.values["smoke_test"]["problem"])
            self.noted.emit(Notice(self._problem, "set_up_pytorch", is_error=True))
        self.changed.emit()

    def _onFailed(self, error: Exception) -> None:
        self._asked = False
        if not isinstance(error, CancelledError):
            self._problem = str(error)
            self.noted.emit(noticeOf(error))
        self.changed.emit()


def readSettings() -> WorkerSettings:
    """The worker's settings from the application's; what an older version left and can't be read is passed over."""
    python = _text("python")
    prefix = _words(_text("prefix"))
    try:
        idle = float(_text("idleMinutes") or 15) * _MINUTE
        settings = WorkerSettings(python=python or None, prefix=prefix, idle_seconds=idle)
    except (ValueError, InputError):
        settings = WorkerSettings(python=python or None, prefix=prefix)
    if not python and not prefix:
        return settings
    # another interpreter or program, such as ssh, must not see Slicer's own Python and library folders
    environment = {name: str(value) for name, value in slicer.util.startupEnvironment().items()}
    return replace(settings, environment=environment)


def writeSettings(python: str, prefix: str, idleMinutes: int) -> None:
    """Keep the worker's settings in the application's.

    Raises:
        InputError: the prefix has a quote that is not closed.
    """
    split_prefix(prefix)
    store = slicer.app.settings()
    store.setValue(f"{_PREFIX}python", python)
    store.setValue(f"{_PREFIX}prefix", prefix)
    store.setValue(f"{_PREFIX}idleMinutes", str(idleMinutes))


def settingsTexts() -> tuple[str, str, int]:
    """Interpreter, prefix and idle minutes as the form shows them."""
    return _text("python"), _text("prefix"), round(readSettings().idle_seconds / _MINUTE)


@functools.cache
def session() -> Session:
    """The session of this process."""
    return Session()


def _text(name: str) -> str:
    value = slicer.app.settings().value(f"{_PREFIX}{name}", "")
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _words(text: str) -> tuple[str, ...]:
    try:
        return split_prefix(text)
    except InputError:
        return ()
