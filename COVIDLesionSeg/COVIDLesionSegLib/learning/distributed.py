"""One training on several processes, started by ``torchrun`` (or any launcher that sets the same variables).

Every rank holds the same weights, teacher and loss window and sees its share of each batch. Losses pool their sums over
all ranks and batch norm takes the statistics of the global batch, so that the result is that of one process with the
same global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import COVIDLesionSegError, InputError
from ..processes import launcher_number

T = TypeVar("T")


class RankLostError(COVIDLesionSegError):
    """Another process of a distributed training ended; the last saved state is good."""


# Preparing a large data set takes the main process hours, in which the others wait.
_PATIENCE = timedelta(days=2)


class Ranks:
    """The processes of a training; a single process is the same with one rank.

    Args:
        rank: of this process.
        count: of processes.
        patient: group of all processes in which one may wait long for another; the default group if None.

    Attributes:
        rank: of this process.
        count: of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1, patient: dist.ProcessGroup | None = None) -> None:
        self.rank = rank
        self.count = count
        self._patient = patient

    def __deepcopy__(self, _: Any) -> Ranks:
        # the copy of a network works with the same processes
        return self

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """This rank's places of a global batch.

        Raises:
            InputError: the batch can't be divided evenly.
        """
        if total % self.count:
            raise InputError(f"A batch of {total} slices can't be shared evenly by {self.count} processes.")
        size = total // self.count
        return range(self.rank * size, (self.rank + 1) * size)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks; gradients flow back to every rank."""
        return values if self.count == 1 else _AllReduce.apply(values)

    def gather(self, values: Tensor) -> Tensor:
        """Values (n, ...) of all ranks in the order of :meth:`share`, without gradients."""
        if self.count == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def gather_objects(self, items: list[Any]) -> list[Any]:
        """Lists of all ranks, one after the other, on every rank."""
        if self.count == 1:
            return items
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def agree(self, flag: bool, device: torch.device) -> bool:
        """Whether any rank says yes: what one is told (a signal), all do."""
        if self.count == 1:
            return flag
        value = torch.tensor(float(flag), device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def broadcast(self, value: Any) -> Any:
        """What the main process has, however long it takes."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._patient)
        return box[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """What some work gives that the main process does alone, however long it takes; its error on every rank."""
        if self.count == 1:
            return work()
        value, error = None, None
        if self.is_main:
            try:
                value = work()
            except COVIDLesionSegError as failure:
                error = failure
        value, error = self.broadcast((value, error))
        if error is not None:
            raise error
        return cast(T, value)

    def barrier(self) -> None:
        """Wait for all ranks, however long they take."""
        if self.count > 1:
            dist.barrier(group=self._patient)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network for the forward pass of training: gradients are averaged over ranks."""
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)


class _AllReduce(torch.autograd.Function):
    """Sum over ranks, whose gradient is the sum over ranks as well."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


@contextmanager
def process_group(device: torch.device, timeout_s: float = 600.0) -> Iterator[Ranks]:
    """Join the other processes that the launcher's variables name; one process where there are none.

    Inside another such block it is that block's group: processes that have parted can't join again.

    Args:
        device: of this process; a CUDA one chooses NCCL where it is available, anything else gloo.
        timeout_s: how long to wait in a training's step for a rank that has gone silent.

    Raises:
        RankLostError: a collective failed because another process ended.
    """
    count = launcher_number("WORLD_SIZE", 1)
    if count == 1:
        yield Ranks()
        return
    joins = not dist.is_initialized()
    if joins:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        # gloo notices the end of a process at once, so that patience costs nothing
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield Ranks(dist.get_rank(), dist.get_world_size(), patient)
    except RuntimeError as error:
        if any(word in str(error).lower() for word in ("connection", "gloo", "nccl", "timed out", "timeout")):
            raise RankLostError(
                "Another process of this training ended or went silent; the last saved state is good.",
                "Start again with --resume.",
            ) from error
        raise
    finally:
        if joins:
            dist.destroy_process_group()


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the images of all ranks, on any device (``SyncBatchNorm`` refuses the CPU)."""

    ranks: Ranks = Ranks()

    def forward(self, values: Tensor) -> Tensor:
        """Normalize (N, C, H, W) by the mean and variance of the global batch while training."""
        if not self.training or self.ranks.count == 1:
            return super().forward(values)
        dtype = values.dtype if values.dtype == torch.float64 else torch.float32
        x = values.to(dtype)
        count = x.new_tensor([float(x.numel() // x.shape[1])])
        # two passes: the variance of large activations must not drown in the square of their mean
        total = self.ranks.sum(torch.cat([x.sum(dim=(0, 2, 3)), count]))
        mean, count = total[:-1] / total[-1], total[-1]
        centered = x - mean[:, None, None]
        variance = self.ranks.sum(centered.square().sum(dim=(0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                unbiased = variance * count / (count - 1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        out = centered * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(values.dtype)


def use_global_batch_norm(network: nn.Module, ranks: Ranks) -> None:
    """Turn the network's batch norms into :class:`GlobalBatchNorm2d`, in place; names of parameters stay."""
    if ranks.count == 1:
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
            module.ranks = ranks  # type: ignore[assignment]


def rank_share(items: Sequence[Any]) -> list[Any]:
    """This process's items of a batch of independent cases under ``torchrun``: every count-th one."""
    rank, count = launcher_number("RANK", 0), launcher_number("WORLD_SIZE", 1)
    return list(items[rank::count])
