"""The predictor: the same lesions as a plain loop, on the input's own grid, whatever the memory."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from COVIDLesionSegLib.errors import (
    CancelledError,
    DeviceError,
    GridMismatchError,
    InputError,
    IntensityError,
    LungsNotFoundError,
    ModelError,
)
from COVIDLesionSegLib.imaging import Geometry, LabelVolume, Volume, apply_window
from COVIDLesionSegLib.inference import PostProcessing, Predictor, devices, optimize
from COVIDLesionSegLib.inference import predictor as predictor_module
from COVIDLesionSegLib.inference.execution import Execution, Plan, Sinks, Task
from COVIDLesionSegLib.inference.slices import channels_last
from COVIDLesionSegLib.models.card import ModelCard, Preprocessing
from COVIDLesionSegLib.networks import CAResUNet, COPLENet

CPU = torch.device("cpu")
MARGIN = 2


def a_model(network: nn.Module, threshold: float = 0.5, **preprocessing) -> SimpleNamespace:
    settings = Preprocessing(**{"lung_crop_margin": MARGIN} | preprocessing)
    card = ModelCard("tiny", "Tiny", "coplenet", preprocessing=settings, threshold=threshold)
    return SimpleNamespace(network=network.eval(), card=card)


@pytest.fixture(scope="module")
def a_small_network():
    torch.manual_seed(5)
    network = COPLENet(channels=(4, 8, 16, 32, 64))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
    # spread and center the logits, so that masks have both classes and a border between them
    network.eval().output.weight.data *= 30
    with torch.no_grad():
        logits = network(torch.from_numpy(apply_window(a_chest((5, 48, 64)).array))[:, None])
    network.output.bias.data[1] -= (logits[:, 1] - logits[:, 0]).median()
    return network


def a_chest(shape=(5, 40, 52), seed=0, geometry=None) -> Volume:
    rng = np.random.default_rng(seed)
    coarse = rng.normal(-600, 400, [-(-n // 4) for n in shape])
    array = np.kron(coarse, np.ones((4, 4, 4)))[tuple(slice(n) for n in shape)] + rng.normal(0, 30, shape)
    return Volume(array.clip(-1024, 1000).astype(np.int16), geometry or Geometry(shape[::-1], (0.7, 0.8, 2.5)))


def some_lungs(shape) -> np.ndarray:
    lungs = np.zeros(shape, dtype=np.uint8)
    z, y, x = shape
    lungs[z // 5 : max(1, z - z // 5), y // 6 : max(1, y - y // 5), x // 8 : x // 2] = 1
    lungs[z // 5 : max(1, z - z // 5), y // 6 : max(1, y - y // 5), x // 2 : max(1, x - x // 7)] = 2
    return lungs


def the_plain_loop(network, volume, lungs, margin=MARGIN, flips=((),)):
    """Probability as METHODS describes it: numpy padding, one slice at a time, float32, nothing folded."""
    where = np.argwhere(lungs)
    low = np.maximum(where.min(0) - margin, 0)
    high = np.minimum(where.max(0) + margin + 1, lungs.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    crop = volume.array[box]
    margins = [-n % 16 for n in crop.shape[1:]]
    probability = np.zeros(volume.array.shape, dtype=np.float32)
    inside = probability[box]
    for index, image in enumerate(crop):
        x = np.pad(apply_window(image), [(m // 2, m - m // 2) for m in margins], mode="reflect")
        total = 0
        for axes in flips:
            with torch.no_grad():
                logits = network(torch.from_numpy(np.flip(x, axes).copy())[None, None])
            total = total + np.flip(logits.softmax(1)[0, 1].numpy(), axes)
        top, left = (m // 2 for m in margins)
        inside[index] = (total / len(flips))[top : top + image.shape[0], left : left + image.shape[1]]
    return probability


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
    result = Predictor(model, "cpu", "float32").segment(volume, lungs, probability=True)
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
    straight = predictor.segment(chest, lungs, probability=True)
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
        result = predictor.segment(Volume(turned(chest.array), geometry), turned(lungs), probability=True)
        np.testing.assert_array_equal(result.mask, turned(straight.mask))
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


# --- what the card and the caller ask for -----------------------------------------------------------------------------


def test_the_card_s_window_resize_and_activation_are_obeyed(a_small_network):
    volume, lungs = a_chest((2, 45, 50)), np.ones((2, 45, 50), dtype=bool)
    settings = {"window_width": 1000, "window_level": -500, "resize": (32, 40), "activation": "sigmoid"}
    result = Predictor(a_model(a_small_network, **settings), "cpu", "float32").segment(volume, lungs, probability=True)

    image = torch.from_numpy(apply_window(volume.array, 1000, -500))[:, None]
    small = nn.functional.interpolate(image, size=(32, 40), mode="bilinear", align_corners=False)
    padded = np.pad(small.numpy(), [(0, 0), (0, 0), (0, 0), (4, 4)], mode="reflect")
    with torch.no_grad():
        logits = a_small_network(torch.from_numpy(padded))[:, 1:, :, 4:44]
    expected = nn.functional.interpolate(logits.sigmoid(), size=(45, 50), mode="bilinear", align_corners=False)[:, 0]
    np.testing.assert_allclose(result.probability, expected.numpy(), atol=2e-5)


class Even(nn.Module):
    """Logits that make every probability exactly one half."""

    def forward(self, x):
        return torch.zeros(x.shape[0], 2, *x.shape[2:])


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, False), (0.499, True), (0.501, False)])
def test_lesion_is_strictly_above_the_threshold(threshold, expected):
    volume, lungs = a_chest((1, 16, 16)), np.ones((1, 16, 16), dtype=bool)
    by_card = Predictor(a_model(Even(), threshold), "cpu", "float32").segment(volume, lungs)
    by_caller = Predictor(a_model(Even(), 0.9), "cpu", "float32").segment(
        volume, lungs, postprocessing=PostProcessing(threshold=threshold)
    )
    assert by_card.mask.all() == by_caller.mask.all() == expected
    assert by_card.record.postprocessing["threshold"] == by_caller.record.postprocessing["threshold"] == threshold


def test_post_processing_is_done_on_the_mask_alone(a_small_network):
    volume, lungs = a_chest(), some_lungs((5, 40, 52))
    predictor = Predictor(a_model(a_small_network), "cpu", "float32")
    plain = predictor.segment(volume, lungs, probability=True)
    settings = PostProcessing(keep_inside_lungs_mm=0, minimum_volume_ml=0.05)
    cleaned = predictor.segment(volume, lungs, probability=True, postprocessing=settings)
    assert 0 < cleaned.mask.sum() < plain.mask.sum()
    assert not (cleaned.mask & ~(plain.mask & (lungs > 0))).any()
    np.testing.assert_array_equal(cleaned.probability, plain.probability)
    assert cleaned.record.postprocessing == {**settings.to_json(), "threshold": 0.5}


def test_flips_are_averaged(a_small_network):
    volume, lungs = a_chest((2, 30, 44)), some_lungs((2, 30, 44))
    flips = ((), (1,), (0,), (0, 1))
    expected = the_plain_loop(a_small_network, volume, lungs, flips=flips)
    predictor = Predictor(a_model(a_small_network), "cpu", "float32")
    result = predictor.segment(volume, lungs, probability=True, tta=True)
    np.testing.assert_allclose(result.probability, expected, atol=2e-5)
    assert np.abs(predictor.segment(volume, lungs, probability=True).probability - expected).max() > 0.01


def test_uncertainty_is_entropy_or_mutual_information_in_bits(a_small_network):
    volume, lungs = a_chest((2, 30, 44)), some_lungs((2, 30, 44))
    predictor = Predictor(a_model(a_small_network), "cpu", "float32")
    copies = [the_plain_loop(a_small_network, volume, lungs, flips=(axes,)) for axes in ((), (1,), (0,), (0, 1))]

    def entropy(p):
        p = np.clip(p.astype(float), 1e-12, 1 - 1e-12)
        return -p * np.log2(p) - (1 - p) * np.log2(1 - p)

    inside = copies[0] > 0
    mean = entropy(np.mean(copies, axis=0))
    for name, expected in (
        (True, mean),
        ("entropy", mean),
        ("mutual_information", mean - np.mean([entropy(p) for p in copies], axis=0)),
    ):
        result = predictor.segment(volume, lungs, uncertainty=name)
        assert result.uncertainty.dtype == np.float32
        np.testing.assert_allclose(result.uncertainty[inside], expected[inside], atol=2e-4)
        assert (result.uncertainty[~inside] == 0).all()
        assert 0 <= result.uncertainty.min() <= result.uncertainty.max() <= 1
        assert result.record.parameters["tta"] is True
        assert result.probability is None


# --- lungs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.float32, np.uint16])
def test_lungs_are_taken_in_any_number_type(a_small_network, kind):
    volume, lungs = a_chest((3, 20, 20)), some_lungs((3, 20, 20))
    predictor = Predictor(a_model(a_small_network), "cpu", "float32")
    result = predictor.segment(volume, lungs.astype(kind))
    assert result.lungs.dtype == np.uint8
    np.testing.assert_array_equal(result.lungs, lungs > 0 if kind is bool else lungs)
    np.testing.assert_array_equal(result.mask, predictor.segment(volume, lungs).mask)
    assert result.record.parameters["lungs"] == "given"


def test_other_labels_count_as_lung(a_small_network):
    volume, lungs = a_chest((3, 20, 20)), some_lungs((3, 20, 20))
    labels = LabelVolume((lungs * 100).astype(np.uint8), volume.geometry)
    result = Predictor(a_model(a_small_network), "cpu", "float32").segment(volume, labels)
    np.testing.assert_array_equal(result.lungs, lungs > 0)


@pytest.mark.parametrize(
    ("lungs", "error", "words"),
    [
        (np.zeros((3, 20, 20), dtype=bool), LungsNotFoundError, "empty"),
        (np.ones((3, 20, 21), dtype=bool), GridMismatchError, "same grid"),
        (np.full((3, 20, 20), np.nan), InputError, "NaN"),
        (np.full((3, 20, 20), "lung"), InputError, "numbers"),
        (LabelVolume(np.ones((3, 20, 20), np.uint8), Geometry((20, 20, 3), (1, 1, 1))), GridMismatchError, "spacing"),
    ],
)
def test_wrong_lungs_are_refused(a_small_network, lungs, error, words):
    with pytest.raises(error, match=words):
        Predictor(a_model(a_small_network), "cpu").segment(a_chest((3, 20, 20)), lungs)


def test_lungs_are_found_where_none_are_given(a_small_network, monkeypatch):
    volume, lungs = a_chest((3, 20, 20)), some_lungs((3, 20, 20))
    asked = []
    monkeypatch.setattr(predictor_module, "find_lungs", lambda *arguments: asked.append(arguments) or lungs)
    progress, cancelled = print, lambda: False
    result = Predictor(a_model(a_small_network), "cpu").segment(volume, progress=progress, cancelled=cancelled)
    assert asked == [(volume, progress, cancelled)]
    assert result.lungs is lungs
    assert result.record.parameters["lungs"] == "found"


def test_volumes_that_are_no_ct_are_refused(a_small_network):
    predictor = Predictor(a_model(a_small_network), "cpu")
    array = a_chest((3, 20, 20)).array.astype(np.float32)
    array[1, 2, 3] = np.nan
    array[2, 3, 4] = np.inf
    with pytest.raises(IntensityError, match="2 voxels of the CT are NaN or infinite"):
        predictor.segment(Volume(array, Geometry((20, 20, 3))), np.ones((3, 20, 20), dtype=bool))
    with pytest.raises(InputError, match="Volume"):
        predictor.segment(array)


# --- progress and cancelling ------------------------------------------------------------------------------------------


def test_progress_comes_with_every_batch_and_ends_complete(a_small_network):
    volume, lungs = a_chest((5, 20, 20)), np.ones((5, 20, 20), dtype=bool)
    seen = []
    predictor = Predictor(a_model(a_small_network), "cpu", batch_size=2)
    predictor.segment(volume, lungs, progress=lambda *event: seen.append(event))
    assert [event for event in seen if event[0] == "network"] == [("network", done, 5) for done in (0, 2, 4, 5)]
    assert seen[-2:] == [("postprocess", 0, 1), ("postprocess", 1, 1)]


def test_a_run_is_cancelled_between_batches_and_the_predictor_lives_on(a_small_network):
    volume, lungs = a_chest((6, 20, 20)), np.ones((6, 20, 20), dtype=bool)
    predictor = Predictor(a_model(a_small_network), "cpu", batch_size=1)
    done = []
    with pytest.raises(CancelledError):
        predictor.segment(volume, lungs, lambda *event: done.append(event), lambda: ("network", 3, 6) in done)
    assert done[-1] == ("network", 3, 6)
    assert predictor.segment(volume, lungs, cancelled=lambda: False).mask.shape == volume.array.shape


# --- memory, precision, overflow --------------------------------------------------------------------------------------


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


def test_a_real_ct_gives_the_experts_lesions_in_both_precisions(shared):
    from COVIDLesionSegLib.imaging import read_labels, read_volume
    from COVIDLesionSegLib.measurement import dice
    from COVIDLesionSegLib.models import load_checkpoint

    folder = shared("data/covid19-ct-seg")
    model = load_checkpoint(shared("weights/coplenet_baseline.pt"))
    whole = read_volume(folder / "coronacases_001_ct.nii.gz")
    view = whole.geometry.axial_view()
    lungs, lesion = (
        view.apply(read_labels(folder / f"coronacases_001_{kind}.nii.gz").mask()) for kind in ("lungs", "lesion")
    )
    middle = view.geometry.shape[0] // 2
    box = (slice(middle - 5, middle + 5), slice(None), slice(None))
    volume = Volume(np.ascontiguousarray(view.apply(whole.array)[box]), view.geometry.cropped(box))
    single, half = (
        Predictor(model, "cpu", precision).segment(volume, lungs[box]).mask for precision in ("float32", "bfloat16")
    )
    assert dice(single, half) >= 0.995
    # a patient of its training set: this proves the path, not the accuracy
    assert dice(single, lesion[box]) > 0.6
