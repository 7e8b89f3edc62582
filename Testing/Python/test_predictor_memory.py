"""The predictor where memory or half precision is not enough: smaller batches, other types, the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from predictor_fixtures import CPU, MARGIN, a_chest, a_model
from torch import nn

from COVIDLesionSegLib.errors import DeviceError, ModelError
from COVIDLesionSegLib.imaging import apply_window
from COVIDLesionSegLib.inference import Predictor, devices
from COVIDLesionSegLib.inference import execution as execution_module
from COVIDLesionSegLib.inference.execution import OPENVINO, TORCH, Execution, Plan, Sinks, Task
from COVIDLesionSegLib.inference.openvino_engine import EngineError
from COVIDLesionSegLib.models.card import Preprocessing
from COVIDLesionSegLib.networks import COPLENet


class Hungry(nn.Module):
    """Finds lesion above -650 HU, and runs out of memory where ``fails(slices, half type?, device type)`` says so."""

    def __init__(self, fails, error=None):
        super().__init__()
        self.fails = fails
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")
        self.sizes = []

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        half = torch.is_autocast_enabled("cpu")
        self.sizes.append((len(x), half))
        if self.fails(len(x), half):
            raise self.error
        lesion = (x - 0.5) * 100
        return torch.cat([-lesion, lesion], 1)


def run(network, plan, count=8, **more):
    slices = a_chest((count, 20, 24)).array
    mask = np.zeros(slices.shape, dtype=bool)
    execution = Execution(network, Preprocessing(lung_crop_margin=MARGIN))
    warnings = execution.run(Task(slices, 0.5, **more), plan, Sinks(mask))
    np.testing.assert_array_equal(mask, apply_window(slices) > 0.5)
    return warnings


def a_gpu_plan(**changes):
    """What a GPU gets, with the processor doing its work."""
    return Plan(
        **{"device": CPU, "dtype": torch.float32, "batch_size": 8, "keep_results": True, "is_gpu": True} | changes
    )


def test_batches_shrink_until_they_fit():
    network = Hungry(lambda slices, half: slices > 2)
    plan = a_gpu_plan()
    run(network, plan)
    assert plan.batch_size == 2
    assert [size for size, _ in network.sizes] == [8, 4, 2, 2, 2, 2]
    assert [rung.split(":")[1] for rung in plan.rungs] == [
        " going on with 4 slices at once.",
        " going on with 2 slices at once.",
    ]
    assert plan.is_gpu
    assert plan.keep_results


@pytest.fixture
def a_device_without_bfloat16(monkeypatch):
    monkeypatch.setattr(devices, "_cpu_flags", frozenset)


def test_the_ladder_goes_down_to_the_processor_rung_by_rung(a_device_without_bfloat16):
    network = Hungry(lambda slices, half: plan.is_gpu)
    plan = a_gpu_plan(batch_size=2)
    run(network, plan)
    words = ["1 slices at once", "float16", "results on the CPU", "on the CPU in"]
    assert len(plan.rungs) == len(words)
    for rung, word in zip(plan.rungs, words, strict=True):
        assert word in rung
    assert not plan.is_gpu


def test_lower_precision_is_a_rung_only_where_nobody_asked_for_float32():
    plan = a_gpu_plan(batch_size=1, precision="float32")
    network = Hungry(lambda slices, half: plan.is_gpu)
    run(network, plan)
    assert [half for _, half in network.sizes].count(True) == 0
    assert plan.dtype == torch.float32
    assert "float16" not in " ".join(plan.rungs)


def test_lower_precision_is_kept_where_it_is_enough(a_device_without_bfloat16):
    plan = a_gpu_plan(batch_size=1)
    run(Hungry(lambda slices, half: not half), plan)
    assert plan.dtype == torch.float16
    assert len(plan.rungs) == 1


def test_results_that_wait_on_the_device_are_kept_when_memory_runs_out_later():
    network = Hungry(lambda slices, half: len(network.sizes) == 3)
    run(network, a_gpu_plan(batch_size=2))
    assert [size for size, _ in network.sizes] == [2, 2, 2, 1, 1, 1, 1]


def test_slices_of_one_size_come_in_batches_of_one_size():
    network = Hungry(lambda slices, half: False)
    slices = a_chest((5, 48, 48)).array
    mask = np.zeros(slices.shape, dtype=bool)
    execution = Execution(network, Preprocessing(lung_crop_margin=None))
    execution.run(Task(slices, 0.5), a_gpu_plan(batch_size=3), Sinks(mask))
    np.testing.assert_array_equal(mask, apply_window(slices) > 0.5)
    assert [size for size, _ in network.sizes] == [3, 3]


def test_too_little_memory_for_one_slice_is_an_error_with_advice():
    with pytest.raises(DeviceError, match=r"one slice.*Close other programs"):
        run(Hungry(lambda slices, half: True), a_gpu_plan(is_gpu=False, keep_results=False, batch_size=2))


@pytest.mark.parametrize("error", [RuntimeError("sizes do not match"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_passed_on(error):
    network = Hungry(lambda slices, half: True, error)
    with pytest.raises(type(error)) as caught:
        run(network, a_gpu_plan())
    assert caught.value is error
    assert len(network.sizes) == 1


def test_rungs_are_reported_in_the_record(a_small_network):
    network = Hungry(lambda slices, half: slices > 1)
    volume, lungs = a_chest((4, 20, 20)), np.ones((4, 20, 20), dtype=bool)
    predictor = Predictor(a_model(network), "cpu", "float32", batch_size=4)
    record = predictor.segment(volume, lungs).record
    assert len(record.device["rungs"]) == 2
    assert set(record.device["rungs"]) <= set(record.warnings)
    # the next CT starts at the top again: memory may be free by then
    assert len(predictor.segment(volume, lungs).record.device["rungs"]) == 2


def test_the_record_names_the_device_that_was_used_at_last(monkeypatch):
    plan = a_gpu_plan(batch_size=1, precision="float32")
    predictor = Predictor(a_model(Hungry(lambda slices, half: plan.is_gpu)), "cpu", "float32")
    predictor.device = devices.Choice("auto", torch.device("cuda", 0), "Test GPU", "This GPU is there.")
    monkeypatch.setattr(predictor, "_plan", lambda task: plan)
    record = predictor.segment(a_chest((2, 20, 20)), np.ones((2, 20, 20), dtype=bool)).record
    assert (record.device["used"], record.device["name"]) == ("cpu", devices.cpu_name())


class Overflowing(nn.Module):
    """Right in float32; infinite in half types on slices that hold a marker."""

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        lesion = (x - 0.5) * 100
        if torch.is_autocast_enabled("cpu") and bool((x[:, 0, 0, 0] == 1).any()):
            lesion = lesion + float("inf")
        return torch.cat([-lesion, lesion], 1)


@pytest.mark.parametrize("keep", [True, False])
def test_slices_that_overflow_are_computed_again_in_float32(keep):
    slices = np.full((6, 16, 16), -1000, dtype=np.int16)
    slices[3, 0, 0] = 500
    slices[:, 8:, 8:] = 0
    mask = np.zeros(slices.shape, dtype=bool)
    plan = a_gpu_plan(dtype=torch.bfloat16, batch_size=2, keep_results=keep)
    warnings = Execution(Overflowing(), Preprocessing()).run(Task(slices, 0.5), plan, Sinks(mask))
    np.testing.assert_array_equal(mask, slices > -650)
    assert warnings == ["2 of 6 slices overflowed in half precision; they were redone in float32."]
    assert plan.dtype == torch.bfloat16


def test_a_network_without_finite_output_is_an_error(a_small_network):
    broken = COPLENet(channels=(4, 8, 16, 32, 64))
    broken.output.bias.data.fill_(float("nan"))
    for precision in ("float32", "bfloat16"):
        with pytest.raises(ModelError, match="not finite even in float32"):
            Predictor(a_model(broken), "cpu", precision).segment(a_chest((1, 16, 16)), np.ones((1, 16, 16), dtype=bool))


class Delicate(nn.Module):
    """Its answer turns round in half types."""

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        lesion = (x - 0.5) * (-100 if torch.is_autocast_enabled("cpu") else 100)
        return torch.cat([-lesion, lesion], 1)


def test_a_half_type_that_changes_the_result_is_not_used(monkeypatch):
    monkeypatch.setattr(devices, "_cpu_flags", lambda: frozenset({"avx512_bf16"}))
    volume, lungs = a_chest((4, 20, 20)), np.ones((4, 20, 20), dtype=bool)
    result = Predictor(a_model(Delicate()), "cpu").segment(volume, lungs)
    np.testing.assert_array_equal(result.mask, apply_window(volume.array) > 0.5)
    assert result.record.device["precision"] == "float32"
    assert any("bfloat16 changed this model's result" in warning for warning in result.record.warnings)
    # who asks for it gets it
    forced = Predictor(a_model(Delicate()), "cpu", "bfloat16").segment(volume, lungs)
    assert forced.record.device["precision"] == "bfloat16"


class Engine:
    """Stands in for OpenVINO: computes with the network, turned round or failing where it is told so."""

    def __init__(self, network, *_):
        self.network = network

    def __call__(self, x):
        return self.network(x)


def an_engine_plan(**changes):
    plain = {"keep_results": False, "is_gpu": False, "engine": OPENVINO}
    return Plan(**{"device": CPU, "dtype": torch.float32, "batch_size": 2} | plain | changes)


def test_an_engine_that_runs_out_of_memory_gives_way_to_pytorch(monkeypatch):
    monkeypatch.setattr(execution_module, "OpenVINONetwork", Engine)
    plan = an_engine_plan()
    run(Hungry(lambda slices, half: plan.engine == OPENVINO), plan)
    assert (plan.batch_size, plan.engine) == (1, TORCH)
    assert [rung.split(":")[1] for rung in plan.rungs] == [
        " going on with 1 slices at once.",
        " going on with PyTorch.",
    ]


def test_an_engine_that_fails_gives_way_to_pytorch_once_and_says_so(monkeypatch):
    class Failing(Engine):
        def __call__(self, x):
            raise EngineError("OpenVINO could not compute this network: no such operation")

    monkeypatch.setattr(execution_module, "OpenVINONetwork", Failing)
    plan = an_engine_plan()
    assert run(Hungry(lambda slices, half: False), plan, sample=3) == []
    assert plan.engine == TORCH
    assert plan.rungs == ["OpenVINO could not compute this network: no such operation. PyTorch was used."]


def test_an_engine_that_changes_the_result_is_not_used(monkeypatch):
    class Wrong(Engine):
        def __call__(self, x):
            return self.network(x).flip(1)

    monkeypatch.setattr(execution_module, "OpenVINONetwork", Wrong)
    plan = an_engine_plan()
    (warning,) = run(Hungry(lambda slices, half: False), plan, sample=3)
    assert warning == "float32 by OpenVINO changed this model's result too much; PyTorch's float32 was used."
    assert (plan.engine, plan.dtype) == (TORCH, torch.float32)
