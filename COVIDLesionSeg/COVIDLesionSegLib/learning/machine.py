"""The machine a training runs on: what decides its bits, and the signals that end it."""

from __future__ import annotations

import contextlib
import platform
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..errors import CancelledError
from ..processes import TerminatedError


def environment(device: torch.device, precision: torch.dtype, ranks: int) -> dict[str, Any]:
    """What must be the same for a resumed run to give the same bits."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        # of its kind only: each process of a distributed training has a GPU of its own
        "device": device.type,
        "precision": str(precision),
        "ranks": ranks,
    }


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Use so many CPU threads inside the block; 0 leaves the number as it is."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool, device: torch.device) -> Iterator[None]:
    """Let PyTorch use kernels that give the same bits twice on the CPU, inside the block.

    On a GPU nothing is promised, since some kernels have no such form, and those that have are many times slower.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted and device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def until_signal() -> Iterator[Callable[[], bool]]:
    """SIGTERM and Ctrl-C end the training after its step instead of in the middle of one."""
    asked: list[int] = []

    def remember(number: int, _: object) -> None:
        if asked:
            # asked twice: now
            raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt
        asked.append(number)

    handlers = {}
    # only the main thread may set handlers; elsewhere ``cancelled`` is the way
    with contextlib.suppress(ValueError):
        handlers = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    except CancelledError as error:
        if asked == [signal.SIGTERM]:
            error.exit_status = 128 + signal.SIGTERM
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
