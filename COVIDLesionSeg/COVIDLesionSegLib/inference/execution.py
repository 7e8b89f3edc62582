"""Slices through a network in batches, on a device whose memory may run out."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import CancelledError, DeviceError, ModelError
from ..models.card import Preprocessing
from .augmentation import FLIPS, mean_over_flips
from .devices import choose_precision, exact_float32, fastest_precision, precision_name
from .memory import free_memory, is_out_of_memory, release_memory
from .openvino_engine import EngineError, OpenVINONetwork
from .optimize import optimized_copy
from .slices import SlicePreparation, channels_last, lesion_probability

_log = logging.getLogger(__name__)
#: What computes the network: PyTorch, and on a processor OpenVINO where it is installed.
TORCH, OPENVINO = "torch", "openvino"
# On a processor a batch pays while a channel of its feature maps stays near the cache: one slice of about 360 x 360 in
# float32, two in bfloat16.
_PROCESSOR_BYTES = 2**19
_GPU_SLICES = 32
# Feature maps of the first level's width, float32, that are alive at once in either network, with room to spare.
_MAPS = 12
_MEMORY_SHARE = 0.7
# Mean change of the probability by a half type on a trial slice that is still rounding: 0.0005 for the bundled model.
_LARGEST_MEAN_DIFFERENCE = 0.01
# Batches that may be queued on a GPU ahead of what was reported: enough to keep it busy, few enough for an honest bar.
_QUEUED = 2


@dataclass
class Plan:
    """How batches are computed; lack of memory changes it step by step.

    Attributes:
        device: where.
        dtype: type of the convolutions.
        batch_size: slices at once.
        keep_results: results wait on the device and are fetched together at the end.
        is_gpu: whether the processor is still to fall back to.
        precision: what the user asked for, "auto" or a name.
        rungs: the steps down so far, as sentences.
        engine: what computes the network, :data:`TORCH` or, on the processor only, :data:`OPENVINO`.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    keep_results: bool
    is_gpu: bool
    precision: str = "auto"
    rungs: list[str] = field(default_factory=list)
    engine: str = TORCH

    def step_down(self, cpu_batch_size: int) -> None:
        """Need less memory: a smaller batch, lower precision, results on the CPU, and at last the CPU itself.

        Args:
            cpu_batch_size: slices at once on the CPU.

        Raises:
            DeviceError: nothing is left to try.
        """
        lower = _lower_precision(self)
        where = f"Memory ran out on {self.device}"
        if self.batch_size > 1:
            self.batch_size //= 2
            rung = f"{where}: going on with {self.batch_size} slices at once."
        elif self.engine != TORCH:
            # it keeps its feature maps for the next slices, and weights laid out its own way
            self.engine = TORCH
            rung = f"{where}: going on with PyTorch."
        elif lower is not None:
            self.dtype = lower
            rung = f"{where}: going on in {precision_name(lower)}."
        elif self.keep_results:
            self.keep_results = False
            rung = f"{where}: going on with results on the CPU."
        elif self.is_gpu:
            self.device, self.is_gpu, self.batch_size = torch.device("cpu"), False, cpu_batch_size
            wanted = "auto" if self.precision == "float16" else self.precision
            self.dtype, _ = choose_precision(wanted, self.device)
            rung = f"{where}: going on on the CPU in {precision_name(self.dtype)}, which is slower."
        else:
            raise DeviceError(
                "Not enough memory is free for even one slice.",
                "Close other programs, or use a computer with more memory.",
            )
        self.rungs.append(rung)
        _log.warning(rung)


@dataclass(frozen=True)
class Part:
    """Slices start to stop of a run; precise ones are computed by PyTorch in float32 whatever the plan says."""

    start: int
    stop: int
    precise: bool = False


@dataclass(frozen=True)
class Task:
    """What to compute.

    Attributes:
        slices: (z, y, x) of the crop in the axial view, int16 or float32, Hounsfield units; any strides.
        threshold: lesion where the probability is strictly above.
        probability: whether the probability is wanted beside the mask.
        tta: average over flips.
        uncertainty: "entropy", "mutual_information" or None.
        slice_spacing: distance of two slices, mm.
        sample: the slice on which a half type or another engine is tried; None tries none.
    """

    slices: NDArray[Any]
    threshold: float
    probability: bool = False
    tta: bool = False
    uncertainty: str | None = None
    slice_spacing: float = 1.0
    sample: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.slices.shape[1], self.slices.shape[2]


@dataclass
class Sinks:
    """Where results go, each (z, y, x) of the crop; None is not wanted."""

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32] | None = None
    uncertainty: NDArray[np.float32] | None = None


@dataclass
class _Computed:
    part: Part
    mask: Tensor
    probability: Tensor | None
    uncertainty: Tensor | None
    finite: Tensor


class Execution:
    """Runs one network over the slices of one crop after another.

    Args:
        network: raw logits (n, classes, H, W) from (n, C, H, W).
        preprocessing: of its model card, whose slice offsets are the C channels.
        weights_sha256: of its model card, under which an engine may keep what it makes of the network.

    Raises:
        ModelError: the network takes another number of channels.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, weights_sha256: str = "") -> None:
        offsets, channels = preprocessing.slice_offsets_mm, getattr(network, "in_channels", None)
        if channels not in (None, len(offsets)):
            raise ModelError(
                f"The model's network takes {channels} channels, its card names {len(offsets)} slice offsets "
                f"({', '.join(f'{offset:g}' for offset in offsets)} mm); they must be as many."
            )
        self._network = network
        self._preprocessing = preprocessing
        self._weights_sha256 = weights_sha256
        self._copies: dict[tuple[torch.device, torch.dtype], nn.Module] = {}
        self._converted: dict[tuple[torch.dtype, int], OpenVINONetwork] = {}
        self._preparation: SlicePreparation | None = None

    def batch_size(
        self, size: tuple[int, int], device: torch.device, is_gpu: bool, dtype: torch.dtype = torch.float32
    ) -> int:
        """How many slices of a size are best computed at once with the memory at hand."""
        rows, columns = SlicePreparation(self._preprocessing, size, torch.device("cpu")).size
        pixels = rows * columns
        wanted = _GPU_SLICES if is_gpu else max(1, round(_PROCESSOR_BYTES / (pixels * dtype.itemsize)))
        free = free_memory(device)
        if free is None:
            return wanted
        width = next((m.out_channels for m in self._network.modules() if isinstance(m, nn.Conv2d)), 1)
        return max(1, min(wanted, int(free * _MEMORY_SHARE) // (pixels * width * 4 * _MAPS)))

    def seconds_per_slice(self, dtype: torch.dtype, engine: str = TORCH) -> float:
        """Time that the network takes on the processor for a slice of 256 x 256 in a type of its convolutions, s.

        Raises:
            EngineError: the engine can't compute this network.
        """
        cpu = torch.device("cpu")
        slices = np.arange(-1024, -1024 + 256, dtype=np.int16).repeat(256).reshape(1, 256, 256)
        task, plan = Task(slices, 0.5), Plan(cpu, dtype, 1, keep_results=False, is_gpu=False, engine=engine)
        start = time.perf_counter()
        self._compute(task, Part(0, 1), plan)
        return time.perf_counter() - start

    def run(
        self,
        task: Task,
        plan: Plan,
        sinks: Sinks,
        progress: Callable[[str, int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[str]:
        """Segment slices.

        Args:
            task: what to compute.
            plan: how; changed where memory runs out.
            sinks: arrays of the slices' shape that are filled.
            progress: called as progress("network", slices done, slices in all).
            cancelled: asked before each batch.

        Returns:
            Warnings, one a sentence.

        Raises:
            CancelledError: ``cancelled`` said so.
            DeviceError: memory does not suffice for one slice.
            ModelError: the network's output is not finite even in float32.
        """
        count = len(task.slices)
        todo = deque([Part(0, count)])
        held: list[_Computed] = []
        queue: deque[torch.cuda.Event] = deque()
        warnings: list[str] = []
        again: list[Part] = []
        done = 0
        _report(progress, 0, count)
        if not self._is_good_enough(task, plan):
            way, plain = precision_name(plan.dtype), "float32"
            if plan.engine != TORCH:
                way, plain = f"{way} by OpenVINO", "PyTorch's float32"
            warnings.append(f"{way} changed this model's result too much; {plain} was used.")
            plan.dtype, plan.precision, plan.engine = torch.float32, "float32", TORCH
        while todo:
            if cancelled is not None and cancelled():
                raise CancelledError("The segmentation was cancelled.")
            part = todo.popleft()
            if part.stop - part.start > plan.batch_size:
                middle = part.start + plan.batch_size
                todo.appendleft(Part(middle, part.stop, part.precise))
                part = Part(part.start, middle, part.precise)
            computed = self._attempt(task, part, plan)
            if computed is not None:
                held.append(computed)
                if not part.precise:
                    _wait_for_older(queue, plan.device)
                    done += part.stop - part.start
                    _report(progress, done, count)
            # also where memory ran out, since the device may be left
            if computed is None or not plan.keep_results or not todo:
                overflowed = _collect(held, sinks)
                again.extend(overflowed)
                todo.extend(overflowed)
            if computed is None:
                todo.appendleft(part)
                release_memory(plan.device)
                plan.step_down(self.batch_size(task.size, torch.device("cpu"), is_gpu=False))
                if plan.engine == TORCH:
                    self._converted.clear()
        if again:
            redone = sum(part.stop - part.start for part in again)
            warnings.append(f"{redone} of {count} slices overflowed in half precision; they were redone in float32.")
        return warnings

    def _is_good_enough(self, task: Task, plan: Plan) -> bool:
        """Try the half type and the engine on one lung of one slice, beside PyTorch in float32."""
        is_plain = plan.dtype == torch.float32 and plan.engine == TORCH
        if is_plain or plan.precision != "auto" or task.sample is None:
            return True
        lung = task.slices[task.sample : task.sample + 1, :, : -(-task.size[1] // 2)]
        trial = Task(lung, task.threshold, probability=True)
        single = replace(plan, batch_size=1)
        results = [self._attempt(trial, Part(0, 1, precise), single) for precise in (False, True)]
        plan.engine = single.engine
        maps = [result.probability for result in results if result is not None]
        # too little memory for the trial: the run itself finds out how to go on; overflow: it redoes those slices
        if len(maps) < 2 or maps[0] is None or maps[1] is None or not maps[0].isfinite().all():
            return True
        return float((maps[0] - maps[1]).abs().mean()) <= _LARGEST_MEAN_DIFFERENCE

    def _attempt(self, task: Task, part: Part, plan: Plan) -> _Computed | None:
        """Compute one part, or None if memory ran out; then nothing of the attempt is alive any more."""
        try:
            return self._compute(task, part, plan)
        except EngineError as error:
            # the list of rungs is the whole run's, also in a trial
            plan.engine = TORCH
            plan.rungs.append(f"{error}. PyTorch was used.")
            _log.warning(plan.rungs[-1])
            return self._attempt(task, part, plan)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _compute(self, task: Task, part: Part, plan: Plan) -> _Computed:
        settings = self._preprocessing
        dtype = torch.float32 if part.precise else plan.dtype
        network = self._copy(plan.device, dtype, TORCH if part.precise else plan.engine)
        preparation = self._prepared(task, plan.device)
        # searching for the fastest algorithm is worth it only if shapes come back
        same_shapes = settings.resize is not None or settings.lung_crop_margin is None
        with torch.inference_mode(), _fast_convolutions(plan.device, dtype, search=same_shapes and plan.batch_size > 1):
            finite = torch.ones((), dtype=torch.bool, device=plan.device)

            def probability(x: Tensor) -> Tensor:
                nonlocal finite
                logits = network(channels_last(x))
                finite = finite & logits.isfinite().all()
                return lesion_probability(logits, settings.activation)

            count = part.stop - part.start
            # a short last batch would be a new shape
            filled = plan.batch_size if same_shapes and plan.is_gpu else count
            indices = np.minimum(np.arange(part.start, part.start + filled), part.stop - 1)
            x = preparation.input_of(task.slices, indices)
            mean, doubt = mean_over_flips(probability, x, FLIPS if task.tta else FLIPS[:1], task.uncertainty)
            mean = preparation.restore(mean[:count])[:, 0]
            return _Computed(
                part,
                mean > task.threshold,
                mean if task.probability else None,
                None if doubt is None else preparation.restore(doubt[:count])[:, 0],
                finite,
            )

    def _prepared(self, task: Task, device: torch.device) -> SlicePreparation:
        # kept from batch to batch: to bring its indices to a GPU waits for all that was queued there
        last, wanted = self._preparation, (task.size, device, task.slice_spacing)
        if last is None or (last.slice_size, last.device, last.slice_spacing) != wanted:
            last = self._preparation = SlicePreparation(self._preprocessing, *wanted)
        return last

    def _copy(self, device: torch.device, dtype: torch.dtype, engine: str) -> Callable[[Tensor], Tensor]:
        if engine == OPENVINO:
            threads = torch.get_num_threads()
            if (dtype, threads) not in self._converted:
                channels = len(self._preprocessing.slice_offsets_mm)
                self._converted[dtype, threads] = OpenVINONetwork(
                    self._network, channels, dtype, threads, self._weights_sha256
                )
            return self._converted[dtype, threads]
        key = (device, dtype)
        if key not in self._copies:
            self._copies[key] = optimized_copy(self._network, device, dtype)
        return self._copies[key]


def _collect(held: list[_Computed], sinks: Sinks) -> list[Part]:
    """Move results into the sinks; parts whose logits overflowed are left out and returned to be done again."""
    again = []
    for computed in held:
        part = computed.part
        if not bool(computed.finite):
            if part.precise:
                raise ModelError(
                    "The network's output is not finite even in float32: the model's weights are damaged or untrained."
                )
            again.append(Part(part.start, part.stop, precise=True))
            continue
        for sink, result in (
            (sinks.mask, computed.mask),
            (sinks.probability, computed.probability),
            (sinks.uncertainty, computed.uncertainty),
        ):
            if sink is not None and result is not None:
                sink[part.start : part.stop] = result.cpu().numpy()
    held.clear()
    return again


@contextlib.contextmanager
def _fast_convolutions(device: torch.device, dtype: torch.dtype, search: bool) -> Iterator[None]:
    """Autocast for the half types, and on CUDA a search for the fastest algorithm; undone at the end."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(exact_float32(device, search))
        if dtype != torch.float32:
            stack.enter_context(torch.autocast(device.type, dtype))
        yield


def _wait_for_older(queue: deque[torch.cuda.Event], device: torch.device) -> None:
    """Keep at most a few batches queued on a GPU, so that progress and cancelling stay true to what it has done."""
    if device.type != "cuda":
        return
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    queue.append(event)
    if len(queue) > _QUEUED:
        queue.popleft().synchronize()


def _lower_precision(plan: Plan) -> torch.dtype | None:
    # float32 that the user asked for is a promise about the result; memory does not break it
    if not plan.is_gpu or plan.dtype != torch.float32 or plan.precision == "float32":
        return None
    lower = fastest_precision(plan.device)
    return torch.float16 if lower == torch.float32 else lower


def _report(progress: Callable[[str, int, int], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress("network", done, total)
