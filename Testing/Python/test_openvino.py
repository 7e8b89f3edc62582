"""The same function by OpenVINO: its masks, memory, threads and files; skipped where it is not installed."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from predictor_fixtures import CPU, a_chest, a_model, some_lungs

from COVIDLesionSegLib.errors import CancelledError
from COVIDLesionSegLib.inference import Predictor, openvino_engine
from COVIDLesionSegLib.inference.execution import OPENVINO
from COVIDLesionSegLib.inference.openvino_engine import EngineError, OpenVINONetwork, openvino_version
from COVIDLesionSegLib.measurement import dice
from COVIDLesionSegLib.models.checkpoints import LoadedModel
from COVIDLesionSegLib.networks import CAResUNet, COPLENet

pytestmark = pytest.mark.skipif(openvino_version() is None, reason="the extra openvino is not installed")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path / "models"))
    return tmp_path / "models" / "_openvino"


@pytest.mark.parametrize(
    "network",
    [COPLENet(in_channels=5, channels=(4, 8, 16, 32, 64)), CAResUNet(in_channels=5, base_channels=4)],
    ids=["coplenet", "caresunet"],
)
def test_logits_are_those_of_pytorch_at_every_size_and_number_of_slices(network):
    network.eval()
    found = OpenVINONetwork(network, 5, torch.float32, 1)
    for shape in ((2, 5, 32, 48), (1, 5, 48, 32), (3, 5, 48, 32)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        # as the predictor lays it out
        result = found(x.contiguous(memory_format=torch.channels_last))
        with torch.inference_mode():
            torch.testing.assert_close(result, network(x), rtol=1e-4, atol=1e-4)
    # no message to its makers, and nothing left behind for who wants to send some
    assert "openvino_telemetry" not in sys.modules
    assert found._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_masks_are_those_of_pytorch_and_the_record_names_the_engine(a_small_network, monkeypatch):
    monkeypatch.setattr("COVIDLesionSegLib.inference.predictor.fastest_way", lambda *_: (OPENVINO, torch.float32))
    model = a_model(a_small_network)
    saved = LoadedModel(model.network, replace(model.card, weights_sha256="c" * 64))
    volume, lungs = a_chest(), some_lungs((5, 40, 52))
    predictor = Predictor(saved, "cpu")
    result = predictor.segment(volume, lungs, tta=True, probability=True)
    plain = Predictor(saved, "cpu", "float32").segment(volume, lungs, tta=True, probability=True)
    assert (result.record.device["engine"], plain.record.device["engine"]) == ("openvino", "torch")
    assert result.record.versions["openvino"] == openvino_version()
    assert not result.record.warnings
    assert dice(result.mask, plain.mask) >= 0.999
    np.testing.assert_allclose(result.probability, plain.probability, atol=1e-4)
    # the same bits again
    assert np.array_equal(predictor.segment(volume, lungs, tta=True, probability=True).probability, result.probability)
    asked = []
    with pytest.raises(CancelledError):
        one_by_one = Predictor(saved, "cpu", batch_size=1)
        one_by_one.segment(volume, lungs, cancelled=lambda: asked.append(1) or len(asked) > 1)
    assert len(asked) == 2


def test_a_converted_network_is_kept_read_again_and_made_anew_where_it_is_damaged(a_small_network, folder, monkeypatch):
    x = torch.rand(1, 1, 32, 32)
    expected = OpenVINONetwork(a_small_network, 1, torch.float32, 1, "d" * 64)(x)
    (description,) = folder.glob("*.xml")
    assert description.with_suffix(".bin").is_file()
    openvino, converted = openvino_engine._openvino(), []
    convert = openvino.convert_model
    monkeypatch.setattr(openvino, "convert_model", lambda *a, **k: converted.append(1) or convert(*a, **k))
    assert torch.equal(OpenVINONetwork(a_small_network, 1, torch.float32, 1, "d" * 64)(x), expected)
    assert not converted
    description.write_text("no network")
    assert torch.equal(OpenVINONetwork(a_small_network, 1, torch.float32, 1, "d" * 64)(x), expected)
    assert converted == [1]


def test_a_network_that_can_not_be_converted_or_computed_is_said(a_small_network):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x[..., :8, :8]).real

    level = logging.getLogger().level
    with pytest.raises(EngineError, match="OpenVINO could not"):
        OpenVINONetwork(Odd().to(CPU), 1, torch.float32, 1)(torch.rand(1, 1, 32, 32))
    assert logging.getLogger().level == level
    with pytest.raises(EngineError, match="OpenVINO could not compute this network"):
        OpenVINONetwork(a_small_network, 1, torch.float32, 1)(torch.rand(1, 2, 32, 32))
