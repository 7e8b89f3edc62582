"""How much memory is left, and whether an error means that it ran out."""

from __future__ import annotations

import torch

from .. import processes


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
    return processes.free_memory()


def release_memory(device: torch.device) -> None:
    """Give back what PyTorch's allocator keeps for later on a GPU."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
