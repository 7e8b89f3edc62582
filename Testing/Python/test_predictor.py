"""The predictor: the same lesions as a plain loop, on the input's own grid; its record, models and arguments."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from predictor_fixtures import CPU, MARGIN, a_chest, a_model, some_lungs, the_plain_loop
from torch import nn

from COVIDLesionSegLib.errors import InputError, ModelError
from COVIDLesionSegLib.imaging import Geometry, LocatedLungs, LungQuality, Volume
from COVIDLesionSegLib.inference import Predictor, optimize
from COVIDLesionSegLib.inference.slices import channels_last
from COVIDLesionSegLib.networks import CAResUNet, COPLENet

# --- the same result as the plain loop --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(5, 40, 52), (3, 16, 32), (1, 40, 40), (4, 3, 5), (2, 1, 20), (2, 1, 1), (6, 70, 33)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_the_result_is_the_plain_loops(a_small_network, shape):
    volume, lungs = a_chest(shape), some_lungs(shape)
    expected = the_plain_loop(a_small_network, volume, lungs)
    predictor = Predictor(a_model(a_small_network), device="cpu", precision="float32")
    result = predictor.segment(volume, lungs, probability=True)
    assert result.mask.dtype == bool
    assert result.probability.dtype == np.float32
    np.testing.assert_allclose(result.probability, expected, atol=2e-5)
    np.testing.assert_array_equal(result.mask, result.probability > 0.5)
    if np.prod(shape) > 100:
        assert 0.01 < result.mask.mean() < 0.99
    assert result.uncertainty is None


def test_outside_of_the_crop_nothing_is_found(a_small_network):
    volume = a_chest()
    lungs = np.zeros(volume.array.shape, dtype=bool)
    lungs[2, 20:25, 30:36] = True
    model = a_model(a_small_network, threshold=1e-6, lung_crop_margin=1)
    trusted = LocatedLungs(lungs.view(np.uint8), LungQuality("ok", "given"))
    result = Predictor(model, "cpu", "float32").segment(volume, trusted, probability=True)
    crop = np.zeros_like(lungs)
    crop[1:4, 19:26, 29:37] = True
    assert result.mask[crop].all()
    assert not result.mask[~crop].any()
    assert (result.probability[~crop] == 0).all()
    assert result.record.parameters["box"] == [[1, 4], [19, 26], [29, 37]]


def test_a_card_without_crop_sees_whole_slices(a_small_network):
    volume = a_chest((2, 20, 30))
    lungs = np.zeros(volume.array.shape, dtype=bool)
    lungs[0, 5, 5] = True
    model = a_model(a_small_network, lung_crop_margin=None)
    result = Predictor(model, "cpu", "float32").segment(volume, lungs, probability=True)
    expected = the_plain_loop(a_small_network, volume, np.ones_like(lungs))
    np.testing.assert_allclose(result.probability, expected, atol=2e-5)


def test_slices_without_lung_between_slices_with_lung_are_computed_too(a_small_network):
    volume, lungs = a_chest((5, 24, 24)), some_lungs((5, 24, 24))
    lungs[2] = 0
    result = Predictor(a_model(a_small_network), "cpu", "float32").segment(volume, lungs, probability=True)
    np.testing.assert_allclose(result.probability, the_plain_loop(a_small_network, volume, lungs), atol=2e-5)


def test_the_batch_size_does_not_matter(a_small_network):
    volume, lungs = a_chest((7, 30, 40)), some_lungs((7, 30, 40))
    results = [
        Predictor(a_model(a_small_network), "cpu", "float32", batch_size=n).segment(volume, lungs, probability=True)
        for n in (1, 2, 3, 50)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.probability, results[0].probability, atol=2e-6)
        np.testing.assert_array_equal(other.mask, results[0].mask)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_run_gives_the_same_bits(a_small_network, precision):
    volume, lungs = a_chest((3, 30, 40)), some_lungs((3, 30, 40))
    first, second = (
        Predictor(a_model(a_small_network), "cpu", precision).segment(volume, lungs, probability=True) for _ in range(2)
    )
    assert first.probability.tobytes() == second.probability.tobytes()


def test_every_orientation_gives_the_same_lesions_on_its_own_grid(a_small_network):
    shape = (4, 30, 26)
    spacing = np.array([0.7, 0.8, 2.5])
    chest, lungs = a_chest(shape, geometry=Geometry(shape[::-1], spacing)), some_lungs(shape)
    predictor = Predictor(a_model(a_small_network), "cpu", "float32")
    straight = predictor.segment(chest, lungs, probability=True, levels=True)
    assert np.array_equal(straight.levels.result_at(0, chest.geometry.spacing_zyx), straight.mask)
    fainter = straight.probability > np.float32(straight.levels.threshold_at(9))
    assert np.array_equal(straight.levels.result_at(9, chest.geometry.spacing_zyx), fainter)
    assert 0.01 < straight.mask.mean() < 0.99

    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):

        def turned(array, order=order, signs=signs):
            array = array.transpose(2, 1, 0).transpose(order)
            return np.flip(array, [axis for axis, sign in enumerate(signs) if sign < 0]).transpose(2, 1, 0)

        direction = np.zeros((3, 3))
        origin = np.zeros(3)
        for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
            direction[source, axis] = sign
            if sign < 0:
                origin[source] = (chest.geometry.size[source] - 1) * spacing[source]
        geometry = Geometry(turned(chest.array).shape[::-1], spacing[list(order)], origin, direction.ravel())
        result = predictor.segment(Volume(turned(chest.array), geometry), turned(lungs), probability=True, levels=True)
        np.testing.assert_array_equal(result.mask, turned(straight.mask))
        np.testing.assert_array_equal(result.levels.result_at(9, geometry.spacing_zyx), turned(fainter))
        np.testing.assert_array_equal(result.probability, turned(straight.probability))
        np.testing.assert_array_equal(result.lungs, turned(lungs))


def test_an_oblique_grid_is_never_resampled(a_small_network):
    shape = (3, 24, 30)
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    straight, lungs = a_chest(shape), some_lungs(shape)
    oblique = Volume(straight.array, Geometry(shape[::-1], (0.7, 0.8, 2.5), (3, 4, 5), turn.ravel()))
    predictor = Predictor(a_model(a_small_network), "cpu", "float32")
    np.testing.assert_array_equal(predictor.segment(oblique, lungs).mask, predictor.segment(straight, lungs).mask)


def test_neither_the_volume_nor_the_network_is_changed(a_small_network):
    volume, lungs = a_chest((3, 20, 20)), some_lungs((3, 20, 20))
    array, given = volume.array.copy(), lungs.copy()
    state = {name: tensor.clone() for name, tensor in a_small_network.state_dict().items()}
    flags = torch.backends.cudnn.benchmark, torch.get_num_threads(), torch.is_grad_enabled()
    Predictor(a_model(a_small_network), "cpu", "bfloat16").segment(volume, lungs, tta=True)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_array_equal(lungs, given)
    assert list(state) == list(a_small_network.state_dict())
    for name, tensor in a_small_network.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert flags == (torch.backends.cudnn.benchmark, torch.get_num_threads(), torch.is_grad_enabled())


@pytest.mark.parametrize(
    "network",
    [
        COPLENet(channels=(4, 8, 16, 32, 64), aspp=False, dual_pooling=False, bridge=False),
        CAResUNet(base_channels=4),
        CAResUNet(base_channels=4, upsampling="deconvolution", residual=False),
        CAResUNet(base_channels=4, upsampling="subpixel"),
    ],
    ids=["coplenet-ADB", "carafe", "deconvolution", "subpixel"],
)
def test_every_network_runs_in_both_precisions(network):
    volume, lungs = a_chest((3, 30, 40)), some_lungs((3, 30, 40))
    expected = the_plain_loop(network.eval(), volume, lungs)
    for precision, tolerance in (("float32", 2e-5), ("bfloat16", 0.02)):
        result = Predictor(a_model(network), "cpu", precision).segment(volume, lungs, probability=True)
        np.testing.assert_allclose(result.probability, expected, atol=tolerance)
        assert result.record.device["precision"] == precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_optimized_copy_computes_the_same(a_small_network, dtype):
    copy = optimize.optimized_copy(a_small_network, CPU, dtype)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
    x = torch.rand(2, 1, 48, 32)
    with torch.inference_mode():
        expected = a_small_network(x).softmax(1)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            result = copy(channels_last(x)).float().softmax(1)
    assert (result - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.03)


def test_a_faster_call_that_computes_something_else_is_not_used(a_small_network, monkeypatch):
    def passes(network):
        return sum(isinstance(module, optimize._OnePass) for module in network.modules())

    monkeypatch.setattr(optimize, "_NEGATIVE_SLOPE", 0.2)
    copy = optimize.optimized_copy(a_small_network, CPU, torch.float32)
    assert passes(copy) == 0
    x = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(copy(x), a_small_network(x), rtol=1e-4, atol=1e-4)


# --- the record, models, arguments ------------------------------------------------------------------------------------


def test_the_record_tells_how_and_nothing_about_whom(a_small_network):
    chest, lungs = a_chest((3, 20, 20)), some_lungs((3, 20, 20))
    secret = {"path": "/data/DOE_JANE", "format": "NIfTI"}
    volume = Volume(chest.array, chest.geometry, name="DOE_JANE", source=secret, warnings=("odd",))
    record = Predictor(a_model(a_small_network), "cpu", "float32").segment(volume, lungs).record
    text = json.dumps(record.to_json(), allow_nan=False)
    assert "DOE" not in text
    value = json.loads(text)
    assert value["input"]["source"] == {"format": "NIfTI"}
    assert value["input"]["warnings"] == ["odd"]
    assert value["model"]["id"] == "tiny"
    assert value["device"]["used"] == "cpu"
    assert value["device"]["precision"] == "float32"
    assert value["device"]["threads"] == torch.get_num_threads()
    assert value["device"]["rungs"] == []
    assert list(value["seconds"]) == ["lungs", "network", "postprocess", "record"]
    assert value["parameters"]["preprocessing"]["lung_crop_margin"] == MARGIN


@pytest.mark.parametrize(
    "arguments",
    [{"device": "abacus"}, {"precision": "float8"}, {"precision": "float16", "device": "cpu"}, {"batch_size": 0}],
)
def test_impossible_arguments_are_refused(a_small_network, arguments):
    with pytest.raises(InputError):
        Predictor(a_model(a_small_network), **arguments)


def test_an_unknown_uncertainty_is_refused(a_small_network):
    with pytest.raises(InputError, match="entropy or mutual_information"):
        Predictor(a_model(a_small_network), "cpu").segment(a_chest((1, 16, 16)), uncertainty="variance")


def test_a_model_that_is_none_is_refused():
    with pytest.raises(InputError, match="loaded model"):
        Predictor(COPLENet(channels=(4, 8, 16, 32, 64)), "cpu")


def test_a_model_file_is_loaded_by_its_path(a_small_network, tmp_path):
    from COVIDLesionSegLib.models import save_model

    path = tmp_path / "tiny.safetensors"
    model = a_model(a_small_network)
    card = save_model(a_small_network, model.card, path)
    volume, lungs = a_chest((2, 20, 20)), some_lungs((2, 20, 20))
    expected = Predictor(model, "cpu", "float32").segment(volume, lungs)
    for name in (path, str(path)):
        result = Predictor(name, "cpu", "float32").segment(volume, lungs)
        np.testing.assert_array_equal(result.mask, expected.mask)
        assert result.record.model["weights_sha256"] == card.weights_sha256
    with pytest.raises(ModelError, match="nowhere"):
        Predictor(tmp_path / "nowhere.safetensors", "cpu")


# --- real data ---------------------------------------------------------------


def test_a_real_ct_gives_the_experts_lesions_in_both_precisions(shared, ct_seg):
    from COVIDLesionSegLib.imaging import read_labels, read_volume
    from COVIDLesionSegLib.measurement import dice
    from COVIDLesionSegLib.models import load_checkpoint

    case = ct_seg("001")
    model = load_checkpoint(shared("weights/coplenet_baseline.pt"))
    whole = read_volume(case.ct)
    view = whole.geometry.axial_view()
    lungs, lesion = (view.apply(read_labels(file).mask()) for file in (case.lungs, case.lesion))
    middle = (case.expert_slices.start + case.expert_slices.stop) // 2
    box = (slice(middle - 5, middle + 5), slice(None), slice(None))
    volume = Volume(np.ascontiguousarray(view.apply(whole.array)[box]), view.geometry.cropped(box))
    single, half = (
        Predictor(model, "cpu", precision).segment(volume, lungs[box]).mask for precision in ("float32", "bfloat16")
    )
    assert dice(single, half) >= 0.995
    # a patient of its training set: this proves the path, not the accuracy
    assert dice(single, lesion[box]) > 0.6
