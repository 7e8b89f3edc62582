"""COPLE-Net against the released code's numbers, an independent formula, and the published counts."""

from __future__ import annotations

import numpy as np
import pytest
import released_networks as released
import torch
from conftest import VECTORS
from torch.utils.flop_counter import FlopCounterMode

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.models import load_checkpoint
from COVIDLesionSegLib.networks import COPLENet, create_network
from COVIDLesionSegLib.networks.coplenet import ChannelExcitation

SMALL = (4, 8, 16, 32, 64)
VARIANTS = {"": {}, "-A": {"aspp": False}, "-D": {"dual_pooling": False}, "-B": {"bridge": False}}
# released module -> ours, for the outputs that the vectors hold
TAPS = {
    "in_conv": "input",
    "bridge0": "bridges.0",
    "bridge3": "bridges.3",
    "down1": "encoders.0",
    "down4": "encoders.3",
    "aspp": "pyramid",
    "up1": "decoders.0",
    "up4": "decoders.3",
}


def largest_difference(ours: torch.Tensor, theirs: np.ndarray | torch.Tensor) -> float:
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return (ours.detach() - theirs).abs().max().item()


@pytest.fixture(scope="module")
def vectors(shared):
    return np.load(shared("vectors/cople_hilab_w8_io.npz"))


@pytest.fixture
def released_model(shared):
    return load_checkpoint(shared("vectors/cople_hilab_w8_checkpoint.pt")).network


@pytest.mark.parametrize(
    ("variant", "parameters", "giga_macs"),
    [
        ("", 10_521_666, 11.063),
        ("-A", 8_422_466, 10.526),
        ("-D", 9_129_986, 9.989),
        ("-B", 11_000_146, 12.539),
    ],
)
def test_size_of_the_network_and_its_variants(variant, parameters, giga_macs):
    network = COPLENet(**VARIANTS[variant]).eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, 64, 64))
    operations = counter.flop_counts["Global"][torch.ops.aten.convolution]
    # a 256 x 256 slice has 16 times the pixels, a MAC is two operations
    assert operations / 2 * 16 / 1e9 == pytest.approx(giga_macs, abs=0.001)


def test_state_has_the_published_number_of_tensors():
    network = COPLENet()
    assert len(network.state_dict()) == 215
    assert sum(b.numel() for b in network.buffers()) == 7415


@pytest.mark.parametrize(("image", "logits"), [("x4", "y4"), ("x4r", "y4r"), ("x5", "y5"), ("xl", "yl")])
def test_eval_output_is_the_released_one(vectors, released_model, image, logits):
    with torch.inference_mode():
        found = released_model(torch.from_numpy(vectors[image]))
    assert largest_difference(found, vectors[f"{logits}_eval"]) < 1e-5


def test_double_precision_output_is_the_released_one(vectors, released_model):
    with torch.inference_mode():
        found = released_model.double()(torch.from_numpy(vectors["x4"]).double())
    assert largest_difference(found, vectors["y4_eval_f64"]) < 1e-9


def test_inner_outputs_are_the_released_ones(vectors, released_model):
    found = {}
    for tap, name in TAPS.items():
        module = released_model.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, output, tap=tap: found.__setitem__(tap, output.clone()))
    with torch.inference_mode():
        released_model(torch.from_numpy(vectors["x4"]))
    for tap in TAPS:
        assert largest_difference(found[tap], vectors[f"tap_{tap}"]) < 1e-5, tap


def test_training_step_is_the_released_one(shared, vectors, released_model):
    network = create_network("coplenet", **{**released_model.arguments, "dropout": [0.0] * 5})
    network.load_state_dict(released_model.state_dict())
    image = torch.from_numpy(vectors["x4"]).requires_grad_()
    logits = network(image)
    loss = logits.softmax(1)[:, 1].square().mean()
    loss.backward()

    assert largest_difference(logits, vectors["y4_train"]) < 1e-5
    assert loss.item() == pytest.approx(float(vectors["train_scalar"]), abs=1e-6)
    assert largest_difference(image.grad, vectors["grad_x4"]) < 1e-5

    ours = authors_names(network)
    gradients = {ours[name]: p.grad for name, p in network.named_parameters()}
    compared = [key for key in vectors.files if key.startswith("gradnorm/")]
    assert len(compared) == len(gradients)
    for key in compared:
        assert gradients[key.split("/")[1]].norm().item() == pytest.approx(float(vectors[key]), abs=1e-5), key

    buffers = {ours[name]: b for name, b in network.named_buffers()}
    compared = [key for key in vectors.files if key.startswith("buf_after/")]
    assert compared
    for key in compared:
        assert largest_difference(buffers[key.split("/")[1]], vectors[key]) < 1e-5, key


def authors_names(network: torch.nn.Module) -> dict[str, str]:
    """Our name -> the released name, found without the importer's table: both list their tensors in one order."""
    weights = released.RandomWeights()
    released.coplenet(weights, torch.zeros(1, 1, 32, 32).double(), network.channels)
    order = {"in_conv": 0, "down": 1, "bridge": 2, "aspp": 3, "up": 4, "out_conv": 5}
    position = lambda name: next(rank for start, rank in order.items() if name.startswith(start))  # noqa: E731
    groups = [name.rsplit(".", 1)[0] for name in weights]
    modules = sorted(dict.fromkeys(groups), key=position)
    own = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in network.state_dict()))
    assert len(modules) == len(own)
    pairs = dict(zip(own, modules, strict=True))
    return {
        name: f"{pairs[module]}.{leaf}" for name in network.state_dict() for module, _, leaf in [name.rpartition(".")]
    }


def test_early_modules_are_the_released_ones_in_a_clean_clone(tmp_path):
    cut = np.load(VECTORS / "coplenet_cut.npz")
    weights = released.RandomWeights()
    weights.update({k.removeprefix("state/"): torch.from_numpy(cut[k]) for k in cut.files if k.startswith("state/")})
    # the formula draws what the cut lacks, at the widths of the cut
    released.coplenet(weights, torch.zeros(1, 1, 32, 32).double(), (8, 16, 32, 64, 128))
    torch.save(dict(weights), tmp_path / "cut.pt")
    network = load_checkpoint(tmp_path / "cut.pt").network
    with torch.inference_mode():
        first = network.input(torch.from_numpy(cut["x"]))
        found = {
            "in_conv": (first, 4),
            "bridge0": (network.bridges[0](first), 4),
            "down1": (network.encoders[0](first), 2),
        }
    for tap, (output, step) in found.items():
        assert largest_difference(output[..., ::step, ::step], cut[f"tap_{tap}"]) < 1e-5, tap


@pytest.mark.parametrize("size", [(160, 144), (16, 32)])
def test_output_is_that_of_an_independent_formula(tmp_path, size):
    # 160 x 144 is the least that sees the dilations 4 and 6
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1)).double()
    weights = released.RandomWeights()
    expected = released.coplenet(weights, image, SMALL)
    torch.save({"model_state_dict": dict(weights)}, tmp_path / "random.pt")
    with torch.inference_mode():
        found = load_checkpoint(tmp_path / "random.pt").network.double()(image)
    assert expected.std() > 0.1
    assert largest_difference(found, expected) < 1e-9 * expected.abs().max().item()


def test_the_independent_formula_is_the_released_one(shared, vectors):
    state = torch.load(shared("vectors/cople_hilab_w8_checkpoint.pt"), weights_only=True)["model_state_dict"]
    found = released.coplenet(released.given(state), torch.from_numpy(vectors["xl"]), (8, 16, 32, 64, 128))
    assert largest_difference(found, vectors["yl_eval"]) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant):
    network = COPLENet(channels=SMALL, **VARIANTS[variant])
    network(torch.rand(2, 1, 32, 48)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_volumes_are_seen_slice_by_slice():
    network = COPLENet(channels=SMALL).eval()
    volume = torch.rand(2, 1, 3, 32, 48)
    with torch.inference_mode():
        found = network(volume)
        assert found.shape == (2, 2, 3, 32, 48)
        for z in range(3):
            assert largest_difference(found[:, :, z], network(volume[:, :, z])) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_layout_of_the_memory_does_not_matter(variant):
    network = COPLENet(channels=SMALL, **VARIANTS[variant]).eval()
    image = torch.rand(2, 1, 32, 48)
    with torch.inference_mode():
        expected = network(image)
        found = network.to(memory_format=torch.channels_last)(image)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert largest_difference(found, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gate_survives_half_precision(dtype):
    # pooled activations whose product leaves float16 inside the gate, though its output does not
    excitation = ChannelExcitation(4)
    with torch.no_grad():
        for layer, weight in ((excitation.reduce, 1e3), (excitation.expand, 1e-6)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
    image = torch.full((1, 4, 8, 8), 30.0)
    expected = excitation(image)
    with torch.autocast("cpu", dtype=dtype):
        found = excitation(image.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=0)


def test_autocast_gives_nearly_the_same():
    network = COPLENet(channels=SMALL).eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        expected = network(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(image)
    assert largest_difference(found.float(), expected) < 0.05 * expected.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_gives_nearly_the_same_and_learns(dtype):
    torch.manual_seed(0)
    network = COPLENet(channels=SMALL, dropout=[0] * 5)
    image = torch.rand(2, 1, 64, 64)
    expected = network(image)
    network.cuda()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        found = network(image.cuda())
    assert largest_difference(found.float().cpu(), expected) < 0.1 * expected.abs().max()
    found.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_compiles_without_a_graph_break():
    network = COPLENet(channels=SMALL).eval()
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        found = torch.compile(network, backend="eager", fullgraph=True)(image)
        assert largest_difference(found, network(image)) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"channels": (32, 64, 128, 256)}, "five widths"),
        ({"channels": (32, 64, 128, 256, 500)}, "twice the one before"),
        ({"channels": (3, 6, 12, 24, 48)}, "first even"),
        ({"channels": (32.0, 64, 128, 256, 512)}, "five widths"),
        ({"channels": 32}, "five widths"),
        ({"dropout": (0, 0, 0, 0)}, "five probabilities"),
        ({"dropout": (0, 0, 0, 0, 1.0)}, r"\[0, 1\)"),
        ({"dropout": 0.5}, "five probabilities"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": True}, "out_channels is True"),
        ({"aspp": 1}, "aspp is 1"),
        ({"bridge": None}, "bridge is None"),
        ({"dual_pooling": "no"}, "dual_pooling is 'no'"),
    ],
)
def test_arguments_that_are_not_allowed(arguments, said):
    with pytest.raises(InputError, match=said):
        COPLENet(**arguments)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 32, 32), r"it takes \(N, C, H, W\)"),
        ((1, 3, 32, 32), "3 input channels; it was made for 1"),
        ((1, 1, 32, 40), "32 x 40; both sides"),
        ((1, 1, 2, 33, 32), "33 x 32; both sides"),
        ((1, 1, 0, 32), "0 x 32"),
        ((1, 1, 16, 16), "one slice of 16 x 16"),
    ],
)
def test_images_that_do_not_fit(shape, said):
    with pytest.raises(InputError, match=said):
        COPLENet(channels=SMALL)(torch.zeros(shape))


def test_networks_by_name():
    network = create_network("coplenet", channels=[4, 8, 16, 32, 64], aspp=False)
    assert isinstance(network, COPLENet)
    assert create_network(network.family, **network.arguments).arguments == network.arguments
    with pytest.raises(InputError, match="there are caresunet, coplenet"):
        create_network("unet")
    with pytest.raises(InputError, match="has no argument width"):
        create_network("coplenet", width=3)
