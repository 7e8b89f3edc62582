"""How much memory is left, and whether an error means that it ran out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out on the device or in the computer."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return any(
        phrase in text
        for phrase in (
            "CUDA error: out of memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "CUDNN_STATUS_ALLOC_FAILED",
            # none of cuDNN's algorithms ran: mostly because their memory could not be had, each error of which PyTorch
            # keeps to itself; where cuDNN lacks one for the GPU, the way to less memory ends on the CPU, which is right
            "unable to find an engine to execute this computation",
            "MPS backend out of memory",
            "DefaultCPUAllocator: can't allocate memory",
            "DefaultCPUAllocator: not enough memory",
        )
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that a computation on a device can still take, or None if nobody tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        # what PyTorch keeps for later use is free for this one
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    figures = [f for f in (_system_memory(), _control_group_memory()) if f is not None]
    return min(figures, default=None)


def _system_memory() -> int | None:
    info = Path("/proc/meminfo")
    if info.is_file():
        line = re.search(r"^MemAvailable:\s*(\d+) kB", info.read_text(encoding="ascii"), re.MULTILINE)
        return int(line[1]) * 1024 if line else None
    if hasattr(os, "sysconf") and {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _control_group_memory() -> int | None:
    """What a container's limit leaves (control groups, version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return max(int(limit) - int(used), 0)
    except (OSError, ValueError):
        # no such files, or the limit is "max": there is none
        return None


def release_memory(device: torch.device) -> None:
    """Give back what PyTorch's allocator keeps for later on a GPU."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
