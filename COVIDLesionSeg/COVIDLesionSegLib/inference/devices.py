"""Which device a network runs on and why, whether it really works, and what it can do."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import DeviceError, InputError
from ..processes import launcher_number
from .memory import free_memory

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Instruction sets of x86 processors that multiply bfloat16 matrices faster than float32 ones.
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
# How oneDNN's own switch names the instruction sets that include them.
_BFLOAT16_LIMITS = re.compile(r"BF16|FP16|AMX|AVX10|DEFAULT|ALL")
# Kinds of float32 rounding lie below, a kernel that computes nonsense far above.
_PROBE_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Choice:
    """A device that was chosen.

    Attributes:
        requested: what was asked for.
        device: the device.
        name: of the hardware, for people.
        reason: why this one, as a sentence.
    """

    requested: str
    device: torch.device
    name: str
    reason: str


def choose_device(requested: str = "auto") -> Choice:
    """The device to compute on.

    Args:
        requested: "auto" (a GPU that passes :func:`probe`, else the processor), "cpu", "cuda" (the current one, or this
            process's own under a launcher such as ``torchrun``), "cuda:N" or "mps".

    Raises:
        DeviceError: an unknown name, or a device that is not there or does not work; the message says what is there.
    """
    text = str(requested).strip().lower()
    if text == "auto":
        return _automatic()
    match = re.fullmatch(r"(cpu|mps|cuda)(?::(\d+))?", text)
    if match is None or (match[2] and match[1] != "cuda"):
        raise DeviceError(
            f"The device {requested!r} is unknown.", "Choose auto, cpu, cuda, cuda:N (N = 0, 1, ...) or mps."
        )
    if match[1] == "cpu":
        return Choice(text, torch.device("cpu"), cpu_name(), "The processor was asked for.")
    missing = _missing_cuda() if match[1] == "cuda" else _missing_mps()
    if missing:
        raise DeviceError(
            f"The device {text} was asked for, but {missing}.", "Choose auto or cpu, or repair that first."
        )
    if match[1] == "mps":
        device = torch.device("mps")
    else:
        count = torch.cuda.device_count()
        index = int(match[2]) if match[2] else _own_gpu()
        if index >= count:
            there = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
            raise DeviceError(f"The device {text} was asked for, but there is only {there}.")
        device = torch.device("cuda", index)
    problem = probe(device)
    if problem:
        raise DeviceError(f"The device {text} was asked for, but it does not work: {problem}.", "Choose auto or cpu.")
    return Choice(text, device, device_name(device), f"{text} was asked for.")


def _automatic() -> Choice:
    reasons = []
    for kind, missing in (("cuda", _missing_cuda()), ("mps", _missing_mps())):
        if missing:
            # Apple's GPUs are worth a word on Apple's machines only
            if kind == "cuda" or sys.platform == "darwin":
                reasons.append(missing)
            continue
        device = torch.device("cuda", _own_gpu()) if kind == "cuda" else torch.device("mps")
        problem = probe(device)
        if not problem:
            return Choice("auto", device, device_name(device), "This GPU is there and passed its test.")
        reasons.append(f"{device_name(device)} failed its test ({problem})")
    return Choice("auto", torch.device("cpu"), cpu_name(), f"The processor is used because {'; '.join(reasons)}.")


def _own_gpu() -> int:
    """The current GPU; one each for the processes that a launcher has started on this computer."""
    if launcher_number("WORLD_SIZE", 1) == 1 or "LOCAL_RANK" not in os.environ:
        return torch.cuda.current_device()
    # a cluster may show each process its own GPU alone
    return launcher_number("LOCAL_RANK", 0) % torch.cuda.device_count()


def _missing_cuda() -> str:
    """Why no CUDA GPU can be used, or "" if one is there."""
    if torch.cuda.is_available() and torch.cuda.device_count() > 0:
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this PyTorch ({torch.__version__}) was built without CUDA and can use no NVIDIA GPU"
    build = f"this PyTorch ({torch.__version__}) needs CUDA {torch.version.cuda}"
    driver = nvidia_driver()
    if driver is None:
        return f"{build} and no NVIDIA driver was found"
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return (
            f"{build}, and CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} hides the GPUs or none is free"
        )
    return f"{build}, which the NVIDIA driver {driver} does not offer; update the driver or install another build"


def _missing_mps() -> str:
    """Why Apple's GPU can't be used, or "" if it can."""
    if torch.backends.mps.is_available():
        return ""
    return "this PyTorch and system offer no Apple GPU (MPS)"


def probe(device: torch.device) -> str:
    """Run a small convolution, pooling and up-sampling on a device and compare with the processor.

    Returns:
        "" if it works, else what went wrong, as a phrase.
    """
    x = torch.linspace(-1, 1, 2 * 8 * 32 * 32).reshape(2, 8, 32, 32).sin()
    weight = torch.linspace(-1, 1, 8 * 8 * 9).reshape(8, 8, 3, 3).cos() / 8

    def compute(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = F.max_pool2d(F.conv2d(x, weight, padding=1), 2)
        return F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)

    with torch.inference_mode():
        expected = compute(x, weight)
        try:
            result = compute(x.to(device), weight.to(device)).cpu()
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            # whatever a driver or a build without this GPU's code has to say is the answer here, not a failure
            return _first_line(error) + _architecture_hint(device)
    difference = float((result - expected).abs().max())
    if not difference <= _PROBE_TOLERANCE:
        return f"a test convolution came out wrong by {difference:.3g}"
    return ""


def _architecture_hint(device: torch.device) -> str:
    if device.type != "cuda" or torch.version.cuda is None:
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    built = [int(name[3:]) for name in torch.cuda.get_arch_list() if re.fullmatch(r"sm_\d+", name)]
    if not built or any(number // 10 == major and number % 10 <= minor for number in built):
        return ""
    return (
        f"; this PyTorch (CUDA {torch.version.cuda}) has no code for the GPU's architecture sm_{major}{minor}: "
        "install a build that lists it"
    )


def choose_precision(requested: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The type that convolutions compute in.

    Args:
        requested: "auto" (the fastest type that the hardware computes natively), "float32", "bfloat16" or "float16".
        device: where.

    Returns:
        The type, and a warning or "".

    Raises:
        InputError: an unknown name, or float16 on the processor.
    """
    if requested == "auto":
        return fastest_precision(device), ""
    if requested not in PRECISIONS:
        raise InputError(f"The precision {requested!r} is unknown; choose auto, {', '.join(PRECISIONS)}.")
    dtype = PRECISIONS[requested]
    if dtype == torch.float16 and device.type == "cpu":
        raise InputError("float16 is for GPUs; on the processor choose auto, bfloat16 or float32.")
    if dtype == torch.bfloat16 and not bfloat16_is_fast(device):
        return dtype, f"{device.type} has no bfloat16 instructions; bfloat16 is slower here than float32."
    return dtype, ""


def fastest_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware computes it, float16 on older GPUs with matrix units, float32 elsewhere."""
    if bfloat16_is_fast(device):
        return torch.bfloat16
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
        # these are of the generation, but without matrix units, and their half convolutions are known to give NaN
        return torch.float32 if "GTX 16" in torch.cuda.get_device_name(device) else torch.float16
    return torch.float32


@contextmanager
def exact_float32(device: torch.device, search: bool = False) -> Iterator[None]:
    """Inside the block float32 convolutions are float32: newer GPUs round their inputs to 10 bits otherwise.

    Args:
        device: where; also made the current GPU.
        search: let cuDNN look for its fastest algorithm at each new shape, which takes a second.
    """
    if device.type != "cuda":
        yield
        return
    with (
        torch.cuda.device(device),
        torch.backends.cudnn.flags(enabled=True, benchmark=search, allow_tf32=False),
    ):
        yield


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given: GPUs work while the program goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the hardware, not an emulation, computes bfloat16."""
    if device.type == "cpu":
        return _processor_has_bfloat16()
    if device.type == "cuda":
        # the same test on AMD's build: is_bf16_supported knows both
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


def _processor_has_bfloat16() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    # a limit set by hand makes oneDNN emulate what it forbids
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    return bool(_BFLOAT16_LIMITS.search(limit.upper())) and any(name in _cpu_flags() for name in _BFLOAT16_INSTRUCTIONS)


@cache
def _cpu_flags() -> frozenset[str]:
    """Names of the processor's instruction sets, as PyTorch or the system tells them."""
    flags: set[str] = set()
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # since PyTorch 2.11 or so
    if capabilities is not None:
        flags.update(name for name, value in capabilities().items() if value is True)
    # older ones; private, so their absence is no error
    for function, name in (("_is_avx512_bf16_supported", "avx512_bf16"), ("_is_amx_tile_supported", "amx_bf16")):
        supported = getattr(torch.cpu, function, None)
        if supported is not None and supported():
            flags.add(name)
    info = Path("/proc/cpuinfo")
    if info.is_file():
        line = re.search(
            r"^(?:flags|Features)\s*:(.*)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        flags.update(line[1].split() if line else ())
    return frozenset(flags)


def device_name(device: torch.device) -> str:
    """Name of the hardware, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU (MPS)" if device.type == "mps" else cpu_name()


@cache
def cpu_name() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        line = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if line:
            return line[1].strip()
    return platform.processor() or platform.machine() or "processor"


def nvidia_driver() -> str | None:
    """Version of NVIDIA's driver, or None if none was found."""
    file = Path("/proc/driver/nvidia/version")
    if file.is_file():
        match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", file.read_text(encoding="utf-8", errors="replace"))
        return match[1] if match else "of unknown version"
    # the second is where the driver of Windows lies
    traces = (Path("/dev/nvidiactl"), Path(os.environ.get("SYSTEMROOT", "/")) / "System32" / "nvcuda.dll")
    return "of unknown version" if any(trace.exists() for trace in traces) else None


def describe_devices(requested: str = "auto") -> dict[str, Any]:
    """What ``doctor`` prints: what is there, which device would be used and why, and how its test went.

    Returns:
        An object of plain values: ``torch`` (version, CUDA of the build, driver), ``processor`` (name, threads,
        vector instructions PyTorch uses, bfloat16 in hardware, free memory in bytes), ``gpus`` (one object each), and
        ``chosen`` (device, name, reason, precision, test passed, seconds of the test; or an error).
    """
    cpu = torch.device("cpu")
    report: dict[str, Any] = {
        "torch": {
            "version": torch.__version__,
            "cuda_build": torch.version.cuda,
            "rocm_build": torch.version.hip,
            "nvidia_driver": nvidia_driver(),
        },
        "processor": {
            "name": cpu_name(),
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "bfloat16": bfloat16_is_fast(cpu),
            "free_memory_bytes": free_memory(cpu),
        },
        "gpus": [_describe_gpu(device) for device in _gpus()],
    }
    try:
        choice = choose_device(requested)
    except DeviceError as error:
        report["chosen"] = {"requested": requested, "error": str(error)}
        return report
    start = time.perf_counter()
    problem = probe(choice.device)
    report["chosen"] = {
        "requested": requested,
        "device": str(choice.device),
        "name": choice.name,
        "reason": choice.reason,
        "precision": precision_name(fastest_precision(choice.device)),
        "test_passed": not problem,
        "test_problem": problem,
        "test_seconds": time.perf_counter() - start,
    }
    return report


def precision_name(dtype: torch.dtype) -> str:
    """A type as users name it."""
    return next(name for name, value in PRECISIONS.items() if value == dtype)


def _gpus() -> list[torch.device]:
    found = [
        torch.device("cuda", index) for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    return [*found, torch.device("mps")] if torch.backends.mps.is_available() else found


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    problem = probe(device)
    return {
        "device": str(device),
        "name": device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))) if device.type == "cuda" else None,
        "bfloat16": bfloat16_is_fast(device),
        "free_memory_bytes": free_memory(device) if not problem else None,
        "works": not problem,
        "problem": problem,
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
