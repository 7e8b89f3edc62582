"""Choosing a device: what is there, whether it works, and what a user is told."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch

from COVIDLesionSegLib.errors import DeviceError, InputError
from COVIDLesionSegLib.inference import describe_devices, devices, memory
from COVIDLesionSegLib.inference.devices import bfloat16_is_fast, choose_device, choose_precision, probe

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    """CUDA as seen through the calls that choose a device; their work is done by the processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Test GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(devices, "probe", lambda device: "")
    return monkeypatch


def test_without_a_gpu_auto_takes_the_processor_and_says_why(no_gpu):
    choice = choose_device()
    assert (choice.requested, choice.device) == ("auto", CPU)
    assert "processor is used because" in choice.reason
    assert torch.__version__ in choice.reason
    assert choice.name


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", "mps:1", "", "cuda:-1"])
def test_unknown_devices_are_refused_with_the_choice(name):
    with pytest.raises(DeviceError, match="Choose auto, cpu, cuda, cuda:N"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "CUDA", "mps"])
def test_a_gpu_that_is_not_there_is_an_error_not_a_fall_back(no_gpu, name):
    with pytest.raises(DeviceError, match=rf"(?i){name} was asked for, but .* auto or cpu"):
        choose_device(name)


def test_a_build_with_cuda_and_no_driver_says_so(no_gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(devices, "nvidia_driver", lambda: None)
    with pytest.raises(DeviceError, match=r"needs CUDA 12\.4 and no NVIDIA driver was found"):
        choose_device("cuda")
    monkeypatch.setattr(devices, "nvidia_driver", lambda: "470.57")
    with pytest.raises(DeviceError, match=r"NVIDIA driver 470\.57 does not offer"):
        choose_device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match="CUDA_VISIBLE_DEVICES"):
        choose_device("cuda")


def test_auto_takes_a_gpu_that_works(two_gpus):
    choice = choose_device()
    assert choice.device == torch.device("cuda", 1)
    assert choice.name == "Test GPU"
    assert choose_device("cuda:0").device == torch.device("cuda", 0)
    assert choose_device("cuda").device == torch.device("cuda", 1)
    # processes of one launcher: one GPU each, also where a cluster shows each its own alone
    two_gpus.setenv("WORLD_SIZE", "4")
    for rank, index in (("0", 0), ("1", 1), ("3", 1)):
        two_gpus.setenv("LOCAL_RANK", rank)
        assert choose_device("cuda").device == choose_device("auto").device == torch.device("cuda", index)


def test_a_gpu_number_that_is_not_there_lists_those_that_are(two_gpus):
    with pytest.raises(DeviceError, match=r"cuda:0 \(Test GPU\), cuda:1 \(Test GPU\)"):
        choose_device("cuda:2")


def test_a_gpu_that_fails_its_test_is_left_out_or_an_error(two_gpus):
    two_gpus.setattr(devices, "probe", lambda device: "no kernel image" if device.type == "cuda" else "")
    two_gpus.setattr(torch.backends.mps, "is_available", lambda: False)
    choice = choose_device()
    assert choice.device == CPU
    assert "Test GPU failed its test (no kernel image)" in choice.reason
    with pytest.raises(DeviceError, match="does not work: no kernel image"):
        choose_device("cuda:1")


def test_the_probe_passes_here():
    assert probe(CPU) == ""


def test_the_probe_reports_what_a_device_that_can_not_compute_says():
    # nothing computed on the meta device can be fetched from it, as from a GPU that this build has no code for
    assert "meta" in probe(torch.device("meta"))


def test_the_probe_finds_wrong_results(monkeypatch):
    right = torch.nn.functional.conv2d
    calls = iter((1.0, 1.5))
    monkeypatch.setattr(devices.F, "conv2d", lambda *args, **more: right(*args, **more) * next(calls))
    assert "came out wrong" in probe(CPU)


def test_the_probe_names_an_architecture_that_the_build_lacks(two_gpus):
    two_gpus.undo()
    two_gpus.setattr(torch.cuda, "get_device_capability", lambda device=None: (12, 0))
    two_gpus.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    two_gpus.setattr(torch.version, "cuda", "12.4")
    assert "sm_120" in devices._architecture_hint(torch.device("cuda", 0))
    two_gpus.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_120"])
    assert devices._architecture_hint(torch.device("cuda", 0)) == ""


def test_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(devices, "_cpu_flags", lambda: frozenset({"avx2"}))
    assert choose_precision("auto", CPU) == (torch.float32, "")
    dtype, warning = choose_precision("bfloat16", CPU)
    assert dtype == torch.bfloat16
    assert "slower" in warning
    monkeypatch.setattr(devices, "_cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert choose_precision("auto", CPU) == (torch.bfloat16, "")
    assert choose_precision("float32", CPU) == (torch.float32, "")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert choose_precision("auto", CPU) == (torch.float32, "")


def test_older_gpus_get_float16(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(devices, "bfloat16_is_fast", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Test GPU")
    for capability, expected in (((7, 5), torch.float16), ((6, 1), torch.float32)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None, c=capability: c)
        assert choose_precision("auto", gpu) == (expected, "")
    # of the generation of the first, but without its matrix units
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA GeForce GTX 1660 Ti")
    assert choose_precision("auto", gpu) == (torch.float32, "")


def test_float32_is_float32_on_newer_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    with devices.exact_float32(torch.device("cuda", 0), search=True):
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == (False, True)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before


@pytest.mark.parametrize("name", ["float64", "half", ""])
def test_unknown_precisions_are_refused(name):
    with pytest.raises(InputError, match="auto, float32, bfloat16, float16"):
        choose_precision(name, CPU)


def test_float16_is_not_for_the_processor():
    with pytest.raises(InputError, match="float16 is for GPUs"):
        choose_precision("float16", CPU)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
            True,
        ),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("the size of tensor a must match"), False),
        (ValueError("out of memory"), False),
        (KeyError("memory"), False),
    ],
)
def test_only_genuine_out_of_memory_errors_count(error, expected):
    assert memory.is_out_of_memory(error) is expected


def test_a_real_allocation_that_is_too_large_counts():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_out_of_memory(caught.value)


def test_free_memory_is_a_sensible_number():
    free = memory.free_memory(CPU)
    assert free is None or 2**20 < free < 2**50


def test_the_description_holds_what_doctor_needs(no_gpu):
    report = describe_devices()
    json.dumps(report, allow_nan=False)
    assert list(report) == ["torch", "processor", "gpus", "chosen"]
    assert report["chosen"]["device"] == "cpu"
    assert report["chosen"]["test_passed"] is True
    assert report["chosen"]["precision"] == ("bfloat16" if bfloat16_is_fast(CPU) else "float32")
    assert report["processor"]["threads"] == torch.get_num_threads()
    assert "CUDA" in describe_devices("cuda")["chosen"]["error"]
