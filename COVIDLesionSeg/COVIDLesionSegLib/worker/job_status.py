"""How a job stands: what its events say, and whether its process lives."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..processes import is_alive, start_time
from .values import Progress, WorkerError

ACTIVE = ("starting", "running", "cancelling")


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
        return self.state in ACTIVE


class Events:
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


def describe_process(pid: int) -> dict[str, Any]:
    """What tells a process from all others, also after a restart."""
    return {"pid": pid, "start_time": start_time(pid), "machine": socket.gethostname(), "time": time.time()}


def is_here(process: Mapping[str, Any]) -> bool:
    """Whether a process runs, or ran, on this machine; its name may change, what a start of it is called does not."""
    boot = boot_of(process["start_time"])
    return process["machine"] == socket.gethostname() or (bool(boot) and boot == boot_of(start_time(os.getpid())))


def boot_of(started: str | None) -> str:
    """The start of the machine in a start time of a process, "" where the system does not name it."""
    boot, space, _ = (started or "").partition(" ")
    return boot if space and sys.platform == "linux" else ""


def is_same(process: Mapping[str, Any]) -> bool:
    """Whether the process lives, and not another one that has got its number."""
    pid = int(process["pid"])
    return is_alive(pid) and start_time(pid) == process["start_time"]
