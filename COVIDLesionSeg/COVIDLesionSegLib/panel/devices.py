"""What the worker can compute on, as it says itself: PyTorch is never loaded here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..worker import Client, Reply, WorkerError
from .events import Signal
from .notices import Notice, noticeOf
from .text import _

AUTOMATIC = "auto"
_PROCESSOR = "cpu"


class Devices:
    """Asks the worker once and remembers.

    Args:
        client: gives the client of the child that computes.

    Attributes:
        changed: signal: something else is known.
        noted: signal: a :class:`.notices.Notice`: nothing can be computed, and what leads on.
    """

    def __init__(self, client: Callable[[], Client]) -> None:
        self._client = client
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
        self._client().request("doctor", finished=self._onFound, failed=self._onFailed)
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

    def _onFound(self, reply: Reply) -> None:
        self._asked = False
        self._found = reply.values["devices"]
        if self._found is None:
            self._problem = str(reply.values["smoke_test"]["problem"])
            self.noted.emit(Notice(self._problem, "set_up_pytorch", is_error=True))
        self.changed.emit()

    def _onFailed(self, error: WorkerError) -> None:
        self._asked = False
        if error.kind != "cancelled":
            self._problem = str(error)
            self.noted.emit(noticeOf(error))
        self.changed.emit()
