"""CARes-UNet and its up-sampling against the released code's numbers, an independent formula, and the definition."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import released_networks as released
import torch
from conftest import VECTORS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.models import load_checkpoint
from COVIDLesionSegLib.networks import CAResUNet, create_network
from COVIDLesionSegLib.networks.carafe import CARAFE, Reassemble, reassembled

TAPS = {
    "encoder1": "encoders.0",
    "down1": "reductions.0",
    "encoder4": "encoders.3",
    "decoder5": "bottleneck",
    "up1": "enlargements.0",
    "up4": "enlargements.3",
    "classfier": "output",
}
UPSAMPLINGS = ("carafe", "deconvolution", "subpixel")


def largest_difference(ours: torch.Tensor, theirs: np.ndarray | torch.Tensor) -> float:
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return (ours.detach() - theirs).abs().max().item()


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest new tensor has, views not counted."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        storages = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in storages:
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.fixture(scope="module")
def vectors(shared):
    return np.load(shared("vectors/cares_w8_io.npz"))


@pytest.fixture
def released_model(shared):
    return load_checkpoint(shared("vectors/cares_w8_statedict.pt")).network


def test_size_of_the_network():
    network = CAResUNet()
    # the released file has 2 100 864 more, which it never uses
    assert sum(p.numel() for p in network.parameters()) == 54_417_554


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_size_follows_the_base_width(upsampling):
    by_width = {base: CAResUNet(base_channels=base, upsampling=upsampling) for base in (3, 8)}
    for base, network in by_width.items():
        assert network.bottleneck.second.conv.out_channels == 16 * base
        enlargement = sum(p.numel() for p in network.enlargements[0].parameters())
        deep, out = 16 * base, 8 * base
        expected = {
            "carafe": deep * 64 + 64 + 64 * 100 * 9 + 100 + deep * out + out,
            "deconvolution": deep * out * 4 + out,
            "subpixel": (deep * 9 + 1) * 4 * out,
        }
        assert enlargement == expected[upsampling]


def test_number_of_operations():
    network = CAResUNet(base_channels=8).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, 64, 64))
    convolutions = counter.flop_counts["Global"][torch.ops.aten.convolution] / 2
    # counted by hand from the published structure, with the 1 x 1 convolution before the reassembly
    pixels = [64 * 64 // 4**level for level in range(5)]
    width = [8 * 2**level for level in range(5)]
    expected = 0
    for level in range(5):
        before = 1 if level == 0 else width[level - 1]
        expected += pixels[level] * 9 * (before + 2 * width[level]) * width[level]
    for level in range(4):
        expected += pixels[level + 1] * 9 * 3 * width[level] ** 2
        expected += pixels[level] * 9 * 4 * width[level] ** 2
        expected += pixels[level + 1] * (width[level + 1] * 64 + 64 * 100 * 9 + width[level + 1] * width[level])
    expected += pixels[0] * width[0] * 2
    assert convolutions == expected


@pytest.mark.parametrize(("image", "probability"), [("x", "y"), ("xr", "yr")])
def test_eval_output_is_the_released_one(vectors, released_model, image, probability):
    with torch.inference_mode():
        found = released_model(torch.from_numpy(vectors[image])).sigmoid()
    assert largest_difference(found, vectors[f"{probability}_eval"]) < 1e-5


def test_double_precision_output_is_the_released_one(vectors, released_model):
    with torch.inference_mode():
        found = released_model.double()(torch.from_numpy(vectors["x"]).double()).sigmoid()
    assert largest_difference(found, vectors["y_eval_f64"]) < 1e-9


def test_inner_outputs_are_the_released_ones(vectors, released_model):
    found = {}
    for tap, name in TAPS.items():
        module = released_model.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, output, tap=tap: found.__setitem__(tap, output.clone()))
    with torch.inference_mode():
        released_model(torch.from_numpy(vectors["x"]))
    for tap in TAPS:
        assert largest_difference(found[tap], vectors[f"tap_{tap}"]) < 1e-5, tap


def test_training_step_is_the_released_one(vectors, released_model):
    network = released_model.train()
    with torch.no_grad():
        exact = deepcopy(network).double()(torch.from_numpy(vectors["x"]).double()).sigmoid()
    image = torch.from_numpy(vectors["x"]).requires_grad_()
    probability = network(image).sigmoid()
    loss = released_loss(probability, torch.from_numpy(vectors["mask"])[:, 0].long())
    loss.backward()
    # Batch statistics amplify what float32 rounds, and processors round differently: the reference is 1.6e-5 from
    # double precision itself. A pixel or two may be as far from it as float32 is from double precision here.
    assert largest_difference(probability, vectors["y_train"]) < max(1e-5, largest_difference(probability, exact))
    assert (np.abs(probability.detach().numpy() - vectors["y_train"]) > 1e-5).mean() < 1e-3
    assert loss.item() == pytest.approx(float(vectors["train_loss"]), abs=1e-6)
    assert largest_difference(image.grad, vectors["grad_x"]) < 1e-5

    theirs = authors_names(network)
    gradients = {theirs[name]: p.grad for name, p in network.named_parameters()}
    compared = {key.split("/")[1]: float(vectors[key]) for key in vectors.files if key.startswith("gradnorm/")}
    # the released code marks its unused parameters with -1
    living = {name: value for name, value in compared.items() if value >= 0}
    assert set(living) == set(gradients)
    assert all(".conv1x1." in name for name in set(compared) - set(living))
    for name, value in living.items():
        assert gradients[name].norm().item() == pytest.approx(value, abs=1e-5), name

    buffers = {theirs[name]: b for name, b in network.named_buffers()}
    for key in [key for key in vectors.files if key.startswith("buf_after/")]:
        name = key.split("/")[1]
        if name in buffers:
            assert largest_difference(buffers[name], vectors[key]) < 1e-5, key


def released_loss(z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Dice and cross-entropy of outputs that are sigmoid-ed already, as released."""
    target = torch.nn.functional.one_hot(label, 2).movedim(-1, 1)
    s = z.softmax(1)
    dice = (2 * (target * s).sum((2, 3)) + 1e-4) / (target.sum((2, 3)) + s.sum((2, 3)) + 1e-4)
    return 1 - dice.mean() - (target * z.log_softmax(1)).sum(1).mean()


def authors_names(network: CAResUNet) -> dict[str, str]:
    """Our name -> the released name, found without the importer's table: both list their tensors in one order."""
    weights = released.RandomWeights()
    released.caresunet(weights, torch.zeros(1, 1, 16, 16).double(), network.base_channels)
    groups = {"encoder": 0, "down": 1, "decoder5": 2, "up": 3, "decoder": 4, "conv": 4, "classfier": 5}
    position = lambda name: next(rank for start, rank in groups.items() if name.startswith(start))  # noqa: E731
    position_of = {name: 2 if name.startswith("decoder5") else position(name) for name in weights}
    modules = sorted(dict.fromkeys(n.rsplit(".", 1)[0] for n in weights), key=lambda m: position_of[f"{m}.weight"])
    own = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in network.state_dict()))
    pairs = dict(zip(own, modules, strict=True))
    return {
        name: f"{pairs[module]}.{leaf}" for name in network.state_dict() for module, _, leaf in [name.rpartition(".")]
    }


def test_early_modules_are_the_released_ones_in_a_clean_clone(tmp_path):
    cut = np.load(VECTORS / "caresunet_cut.npz")
    weights = released.RandomWeights()
    weights.update({k.removeprefix("state/"): torch.from_numpy(cut[k]) for k in cut.files if k.startswith("state/")})
    # the formula draws what the cut lacks, at the width of the cut
    released.caresunet(weights, torch.zeros(1, 1, 16, 16).double(), 8)
    torch.save(dict(weights), tmp_path / "cut.pt")
    network = load_checkpoint(tmp_path / "cut.pt").network
    with torch.inference_mode():
        first = network.encoders[0](torch.from_numpy(cut["x"]))
        down = network.reductions[0](first)
    assert largest_difference(first[..., ::4, ::4], cut["tap_encoder1"]) < 1e-5
    assert largest_difference(down[..., ::2, ::2], cut["tap_down1"]) < 1e-5


def test_up_sampling_is_the_released_one_in_a_clean_clone():
    cut = np.load(VECTORS / "caresunet_cut.npz")
    module = CARAFE(128, 8)
    with torch.no_grad():
        for ours, theirs in (("compress", "down"), ("project", "out")):
            getattr(module, ours).weight.copy_(torch.from_numpy(cut[f"up1/{theirs}.weight"]))
            getattr(module, ours).bias.copy_(torch.from_numpy(cut[f"up1/{theirs}.bias"]))
        # the cut holds the kernels of the new pixel in the first row, second column
        module.encode.weight[1::4] = torch.from_numpy(cut["up1/encoder.weight"])
        module.encode.bias[1::4] = torch.from_numpy(cut["up1/encoder.bias"])
        found = module(torch.from_numpy(cut["tap_decoder5"]))[..., ::2, 1::2]
    assert largest_difference(found, cut["tap_up1"]) < 1e-5


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("size", [(48, 64), (16, 32)])
def test_output_is_that_of_an_independent_formula(tmp_path, size, residual):
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1)).double()
    weights = released.RandomWeights()
    expected = released.caresunet(weights, image, 4, residual)
    torch.save(dict(weights), tmp_path / "random.pt")
    network = load_checkpoint(tmp_path / "random.pt").network
    if not residual:
        state, network = network.state_dict(), CAResUNet(base_channels=4, residual=False).eval()
        network.load_state_dict(state)
    with torch.inference_mode():
        found = network.double()(image)
    assert expected.std() > 0.05
    assert largest_difference(found, expected) < 1e-9 * expected.abs().max().item()


def test_the_independent_formula_is_the_released_one(shared, vectors):
    state = torch.load(shared("vectors/cares_w8_statedict.pt"), weights_only=True)
    found = released.caresunet(released.given(state), torch.from_numpy(vectors["xr"]), 8).sigmoid()
    assert largest_difference(found, vectors["yr_eval"]) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 5, 1, 1), (1, 2, 3, 7), (3, 8, 16, 16)])
def test_reassembly_is_its_definition(shape):
    generator = torch.Generator().manual_seed(2)
    batch, _, height, width = shape
    features = torch.randn(shape, generator=generator)
    kernels = torch.rand(batch, 100, height, width, generator=generator)
    expected = released.reassemble(features, torch.nn.functional.pixel_shuffle(kernels, 2))
    arranged = features.permute(0, 2, 3, 1), kernels.permute(0, 2, 3, 1).unflatten(3, (25, 4))
    assert largest_difference(Reassemble.apply(*arranged), expected) < 1e-5
    assert largest_difference(reassembled(*arranged), expected) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 4, 3), (1, 1, 1, 2), (1, 2, 5, 2)])
def test_reassembly_has_the_right_gradient(shape):
    generator = torch.Generator().manual_seed(3)
    batch, height, width, _ = shape
    features = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    kernels = torch.rand(batch, height, width, 25, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(Reassemble.apply, (features, kernels))


def test_up_sampling_has_the_gradients_of_its_definition():
    generator = torch.Generator().manual_seed(4)
    module = CARAFE(6, 3).double()
    image = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    seed = torch.randn(2, 3, 10, 8, dtype=torch.float64, generator=generator)
    inputs = [image, *module.parameters()]
    found = torch.autograd.grad((module(image) * seed).sum(), inputs)
    names = {"compress": "down", "encode": "encoder", "project": "out"}
    state = {f"up.{names[n.split('.')[0]]}.{n.split('.')[1]}": p for n, p in module.named_parameters()}
    expected = torch.autograd.grad((released.carafe(released.given(state), "up", image, 3) * seed).sum(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert largest_difference(ours, theirs) < 1e-10


def test_the_25_fold_tensor_is_never_built():
    module = CARAFE(128, 64)
    image = torch.rand(1, 128, 32, 32, requires_grad=True)
    with LargestTensor() as forward:
        output = module(image)
    # margins included: (36 / 32)^2
    assert forward.numel < 1.3 * output.numel()
    with LargestTensor() as backward:
        output.sum().backward()
    # a row of five neighbors for the four new pixels
    assert backward.numel < 1.6 * output.numel()


def test_borders_fade_towards_zero_padding():
    # equal weights: a corner pixel has 9 of its 25 neighbors inside the image
    module = CARAFE(1, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.project.weight.fill_(1.0)
        module.project.bias.fill_(2.0)
        found = module(torch.ones(1, 1, 8, 8))[0, 0]
    assert found[0, 0].item() == pytest.approx(2 + 9 / 25)
    assert found[8, 8].item() == pytest.approx(3)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("residual", [True, False])
def test_every_parameter_learns(upsampling, residual):
    network = CAResUNet(base_channels=4, upsampling=upsampling, residual=residual)
    network(torch.rand(2, 1, 32, 48)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_volumes_are_seen_slice_by_slice(upsampling):
    network = CAResUNet(base_channels=4, upsampling=upsampling).eval()
    volume = torch.rand(2, 1, 3, 32, 48)
    with torch.inference_mode():
        found = network(volume)
        assert found.shape == (2, 2, 3, 32, 48)
        for z in range(3):
            assert largest_difference(found[:, :, z], network(volume[:, :, z])) < 1e-5


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_layout_of_the_memory_does_not_matter(upsampling):
    network = CAResUNet(base_channels=4, upsampling=upsampling).eval()
    image = torch.rand(2, 1, 32, 48)
    with torch.inference_mode():
        expected = network(image)
        assert expected.is_contiguous()
        found = network.to(memory_format=torch.channels_last)(image)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert largest_difference(found, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_nearly_the_same_and_learns(dtype):
    torch.manual_seed(0)
    network = CAResUNet(base_channels=4)
    image = torch.rand(2, 1, 32, 32)
    expected = network(image)
    with torch.autocast("cpu", dtype=dtype):
        found = network(image)
    assert found.dtype == dtype
    assert largest_difference(found.float(), expected) < 0.1 * expected.abs().max()
    found.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_gives_nearly_the_same_and_learns(dtype):
    torch.manual_seed(0)
    network = CAResUNet(base_channels=4)
    image = torch.rand(2, 1, 64, 64)
    expected = network(image)
    network.cuda()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        found = network(image.cuda())
    assert largest_difference(found.float().cpu(), expected) < 0.1 * expected.abs().max()
    found.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_compiles_without_a_graph_break():
    network = CAResUNet(base_channels=4).eval()
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        found = torch.compile(network, backend="eager", fullgraph=True)(image)
        assert largest_difference(found, network(image)) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"base_channels": 0}, "base_channels is 0"),
        ({"base_channels": 8.0}, "base_channels is 8.0"),
        ({"upsampling": "bilinear"}, "one of carafe, deconvolution, subpixel"),
        ({"residual": "yes"}, "residual is 'yes'"),
    ],
)
def test_arguments_that_are_not_allowed(arguments, said):
    with pytest.raises(InputError, match=said):
        CAResUNet(**arguments)


def test_sides_that_do_not_fit():
    with pytest.raises(InputError, match="multiples of 16"):
        CAResUNet(base_channels=4)(torch.zeros(1, 1, 32, 24))


def test_networks_by_name():
    network = create_network("caresunet", base_channels=3, upsampling="subpixel", residual=False)
    assert create_network(network.family, **network.arguments).arguments == network.arguments
