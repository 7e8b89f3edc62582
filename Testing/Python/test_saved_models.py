"""Our own model files: what is written, hashed and refused; cards; the bundled model."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_files import (
    CARD,
    assert_same_function,
)
from conftest import REPOSITORY

from COVIDLesionSegLib.errors import InputError, ModelError, OutputError
from COVIDLesionSegLib.imaging import apply_window
from COVIDLesionSegLib.models import ModelCard, Preprocessing, load_checkpoint, read_card, save_model
from COVIDLesionSegLib.models.checkpoints import weights_sha256
from COVIDLesionSegLib.networks import CAResUNet
from COVIDLesionSegLib.resources import resource

# ---- our own files --------------------------------------------------------------------------------------------------


def test_file_is_not_mistaken_for_a_pickle(tmp_path, small_network):
    # a safetensors file begins with its header's length, whose first byte may be that of a pickle
    start = 0
    filler = 0
    while start != 0x80:
        filler += 8
        card = ModelCard.from_json({**CARD.to_json(), "notes": "x" * filler})
        save_model(small_network, card, tmp_path / "m.safetensors")
        start = (tmp_path / "m.safetensors").read_bytes()[0]
    assert read_card(tmp_path / "m.safetensors") == load_checkpoint(tmp_path / "m.safetensors").card


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip(tmp_path, small_network, dtype):
    path = tmp_path / "folder" / "small.safetensors"
    written = save_model(small_network, CARD, path, dtype)
    loaded = load_checkpoint(path)
    assert loaded.card == written == read_card(path)
    assert written.network_arguments == small_network.arguments
    assert {**written.to_json(), "weights_sha256": "", "network_arguments": {}} == CARD.to_json()
    assert loaded.network.arguments == small_network.arguments

    stored = safetensors.torch.load_file(path)
    for name, tensor in small_network.state_dict().items():
        normalization = ".norm." in name
        kind = tensor.dtype if normalization else getattr(torch, dtype)
        assert stored[name].dtype == kind, name
        assert torch.equal(stored[name], tensor.to(kind)), name
        assert torch.equal(loaded.network.state_dict()[name], tensor.to(kind).to(tensor.dtype)), name
    # what was rounded once is not rounded again
    again = save_model(loaded.network, loaded.card, tmp_path / "again.safetensors", dtype)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert again == written


def test_channels_last_network_is_saved_the_same(tmp_path, small_network):
    save_model(small_network, CARD, tmp_path / "a.safetensors")
    save_model(small_network.to(memory_format=torch.channels_last), CARD, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_hash_is_that_of_the_tensors():
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3)}
    expected = weights_sha256(tensors)
    numbers = struct.pack("<6f", *range(6))
    assert (
        expected == hashlib.sha256(b"a int64 []\n" + struct.pack("<q", 3) + b"b float32 [2, 3]\n" + numbers).hexdigest()
    )
    assert weights_sha256(dict(reversed(tensors.items()))) == expected
    assert weights_sha256({**tensors, "b": tensors["b"].t().contiguous().t()}) == expected
    for other in (
        {**tensors, "b": tensors["b"].reshape(3, 2)},
        {**tensors, "b": tensors["b"].half()},
        {**tensors, "b": tensors["b"] + 1},
        {"c": tensors["b"], "a": tensors["a"]},
    ):
        assert weights_sha256(other) != expected


def test_imported_and_saved_file_have_one_hash(tmp_path, coplenet_weights):
    torch.save(coplenet_weights, tmp_path / "theirs.pt")
    loaded = load_checkpoint(tmp_path / "theirs.pt")
    assert save_model(loaded.network, loaded.card, tmp_path / "ours.safetensors") == loaded.card


def test_weights_that_are_not_those_of_the_card(tmp_path, small_network):
    save_model(small_network, CARD, tmp_path / "m.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "m.safetensors")
    tensors["output.bias"] += 1
    text = json.dumps(read_card(tmp_path / "m.safetensors").to_json())
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", metadata={"model_card": text})
    with pytest.raises(ModelError, match="their hash differs"):
        load_checkpoint(tmp_path / "m.safetensors")


def test_card_of_another_network(tmp_path):
    network = CAResUNet(base_channels=3)
    text = json.dumps(CARD.to_json())
    safetensors.torch.save_file(network.state_dict(), tmp_path / "m.safetensors", metadata={"model_card": text})
    with pytest.raises(ModelError, match="tensors of CARes-UNet, but its card says COPLE-Net"):
        load_checkpoint(tmp_path / "m.safetensors")


def test_card_with_arguments_that_do_not_exist(tmp_path, small_network):
    card = ModelCard.from_json({**CARD.to_json(), "network_arguments": {"depth": 7}})
    text = json.dumps(card.to_json())
    tensors = small_network.state_dict()
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", metadata={"model_card": text})
    with pytest.raises(ModelError, match="no argument depth"):
        load_checkpoint(tmp_path / "m.safetensors")


def test_safetensors_without_a_card(tmp_path, small_network, coplenet_weights, coplenet_logits):
    safetensors.torch.save_file(coplenet_weights, tmp_path / "theirs.safetensors")
    assert_same_function(tmp_path / "theirs.safetensors", coplenet_logits)
    with pytest.raises(ModelError, match="no model card"):
        read_card(tmp_path / "theirs.safetensors")


def test_overflow_in_half_precision_is_refused(tmp_path, small_network):
    with torch.no_grad():
        small_network.output.weight[0, 0, 0, 0] = 1e5
        small_network.input.first.norm.running_var[0] = 1e6
    with pytest.raises(ModelError, match=r"as float16: output\.weight reaches 1e\+05"):
        save_model(small_network, CARD, tmp_path / "m.safetensors", "float16")
    assert list(tmp_path.iterdir()) == []
    # statistics may be that large: they stay float32
    with torch.no_grad():
        small_network.output.weight[0, 0, 0, 0] = 1.0
    save_model(small_network, CARD, tmp_path / "m.safetensors", "float16")
    found = load_checkpoint(tmp_path / "m.safetensors").network.input.first.norm.running_var[0]
    assert found.item() == 1e6


def test_network_that_diverged_is_not_saved(tmp_path, small_network):
    with torch.no_grad():
        small_network.output.bias[0] = float("inf")
    with pytest.raises(ModelError, match=r"output\.bias holds NaN or infinity"):
        save_model(small_network, CARD, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_unknown_type_and_place(tmp_path, small_network):
    with pytest.raises(InputError, match="float32, float16, bfloat16"):
        save_model(small_network, CARD, tmp_path / "m.safetensors", "int8")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_model(small_network, CARD, tmp_path / "file" / "m.safetensors")


# ---- cards ----------------------------------------------------------------------------------------------------------


def test_card_round_trip_keeps_keys_of_newer_versions():
    value = json.loads(json.dumps({**CARD.to_json(), "carbon": {"kg": 3}}))
    card = ModelCard.from_json(value)
    assert card.extra == {"carbon": {"kg": 3}}
    assert card.to_json()["carbon"] == {"kg": 3}
    assert ModelCard.from_json(json.dumps(card.to_json())) == card
    assert card.preprocessing.resize == (64, 48)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": "unet"}, "network is 'unet'; it must be one of coplenet, caresunet"),
        ({"id": "My Model"}, "id is 'My Model'"),
        ({"id": ""}, "id is ''"),
        ({"id": "../x"}, "id is"),
        ({"name": 3}, "name is 3; it must be text"),
        ({"version": 1}, "version is 1; it must be text"),
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"threshold": "half"}, "threshold is 'half'"),
        ({"threshold": True}, "threshold is True"),
        ({"keep_inside_lungs_mm": -1}, "keep_inside_lungs_mm is -1"),
        ({"smooth_across_slices_mm": None}, "smooth_across_slices_mm is None; it must be a number of mm, 0 to 20"),
        ({"smooth_across_slices_mm": 21}, "smooth_across_slices_mm is 21"),
        ({"training_data": "mine"}, "training_data is 'mine'"),
        ({"training_data": [{"license": "x"}]}, 'objects that each have a "name"'),
        ({"metrics": []}, "metrics is"),
        ({"network_arguments": None}, "network_arguments is None"),
        ({"weights_sha256": "abc"}, "64 hexadecimal digits"),
        ({"preprocessing": 3}, "preprocessing is 3"),
        ({"preprocessing": {"window_width": 0}}, "window_width is 0"),
        ({"preprocessing": {"window_level": float("nan")}}, "window_level is nan"),
        ({"preprocessing": {"lung_crop_margin": -1}}, "lung_crop_margin is -1"),
        ({"preprocessing": {"resize": 256}}, "resize is 256"),
        ({"preprocessing": {"resize": [256, 0]}}, "resize is"),
        ({"preprocessing": {"activation": "relu"}}, "one of softmax, sigmoid"),
        ({"preprocessing": {"pad_multiple": 8}}, "pad_multiple is 8"),
        ({"preprocessing": {"denoise": True}}, "asks for the preprocessing denoise, which this version does not know"),
    ],
)
def test_cards_that_are_not_allowed(change, said):
    with pytest.raises(ModelError, match=said):
        ModelCard.from_json({**CARD.to_json(), **change})


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not valid JSON"), ("[]", "is list where an object"), ('{"id": "x", "name": "y"}', "lacks network")],
)
def test_cards_that_are_no_cards(text, said):
    with pytest.raises(ModelError, match=said):
        ModelCard.from_json(text)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 10) + b"not json!!",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 23) + b'{"a":{"data_offsets":3}}'[:23],
        struct.pack("<Q", 12) + b'{"a":"none"}',
    ],
)
def test_header_that_is_not_one(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_card(tmp_path / "m.safetensors")


def test_file_cut_short_is_seen_without_pytorch(tmp_path, small_network):
    path = tmp_path / "m.safetensors"
    save_model(small_network, CARD, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="cut short"):
        read_card(path)


def test_card_is_read_without_pytorch(tmp_path, small_network):
    save_model(small_network, CARD, tmp_path / "m.safetensors")
    program = (
        "import sys; sys.modules.update(torch=None, safetensors=None)\n"
        "from COVIDLesionSegLib.models import ModelCard, Preprocessing, read_card\n"
        f"print(read_card({str(tmp_path / 'm.safetensors')!r}).name)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "A small network"


# ---- the bundled models ---------------------------------------------------------------------------------------------

# network, preprocessing, most bytes, what names each source of training data in the terms of use
NEIGHBORS = (-5.0, -2.5, 0.0, 2.5, 5.0)
SOURCES = {"COVID-19-CT-Seg": "3757476", "COVID-CT-MD": "10.1038/s41597-021-00900-3"}
BUNDLED = {
    "coplenet-ctseg": (
        "coplenet",
        Preprocessing(resize=(192, 256), slice_offsets_mm=NEIGHBORS),
        6e6,
        SOURCES | {"LCTSC": "10.7937/k9/tcia.2017.3r3fvz08"},
    ),
    "caresunet-ctseg": ("caresunet", Preprocessing(resize=(192, 256)), 12e6, SOURCES),
}


@pytest.mark.parametrize("model", BUNDLED)
def test_bundled_model_loads_and_states_its_license(model):
    network, preprocessing, _size, sources = BUNDLED[model]
    card = load_checkpoint(resource(f"Models/{model}.safetensors"), network=network).card
    assert card.id == model
    assert "non-commercial" in card.license_notice.lower()
    assert [data["name"] for data in card.training_data] == list(sources)
    assert card.preprocessing == preprocessing
    # slices cut to the lungs are all that it knows
    assert card.keep_inside_lungs_mm == 5.0
    notice = resource(f"Models/{model}.LICENSE.txt").read_text(encoding="utf-8").lower()
    assert all(word in notice for word in ("non-commercial", *sources.values()))


@pytest.mark.parametrize("model", BUNDLED)
def test_card_beside_the_bundled_model_is_the_one_inside(model):
    beside = ModelCard.from_json(resource(f"Models/{model}.json").read_text(encoding="utf-8"))
    assert beside == read_card(resource(f"Models/{model}.safetensors"))


@pytest.mark.parametrize("model", BUNDLED)
def test_bundled_model_is_small_and_keeps_normalization_precise(model):
    path = resource(f"Models/{model}.safetensors")
    assert path.stat().st_size < BUNDLED[model][2]
    precise = {
        f"{name}.{tensor}"
        for name, module in load_checkpoint(path).network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for tensor in module.state_dict()
    }
    for name, tensor in safetensors.torch.load_file(path).items():
        if tensor.is_floating_point():
            assert tensor.dtype == (torch.float32 if name in precise else torch.float16), name


@pytest.fixture
def halved(shared, tmp_path):
    """The shared full-precision weights, saved as a bundled model is."""
    file = tmp_path / "halved.safetensors"
    network = load_checkpoint(shared("weights/coplenet_baseline.pt")).network
    card = ModelCard.from_json(resource("Models/coplenet-ctseg.json").read_text(encoding="utf-8"))
    save_model(network, card, file, dtype="float16")
    return file


def test_halved_weights_are_the_rounded_ones(shared, halved):
    full = load_checkpoint(shared("weights/coplenet_baseline.pt")).network.state_dict()
    for name, tensor in load_checkpoint(halved).network.state_dict().items():
        rounded = full[name].half().float() if full[name].is_floating_point() and ".norm." not in name else full[name]
        assert torch.equal(tensor, rounded), name


@pytest.mark.parametrize("number", ["001", "009"])
def test_masks_of_halved_weights_agree_with_full_precision(shared, ct_seg, halved, number):
    import SimpleITK as sitk

    case = ct_seg(number)
    ct, lungs = (sitk.GetArrayFromImage(sitk.ReadImage(file))[case.expert_slices] for file in (case.ct, case.lungs))
    box = [slice(max(0, where.min() - 8), where.max() + 9) for where in np.nonzero(lungs)[1:]]
    # a few slices, apart from one another
    slices = apply_window(ct[np.linspace(5, len(lungs) - 6, 3).astype(int)][:, box[0], box[1]])
    pad = [(0, -n % 16) for n in slices.shape[1:]]
    image = torch.from_numpy(np.pad(slices, [(0, 0), *pad], mode="reflect"))[:, None]
    masks = []
    for path in (shared("weights/coplenet_baseline.pt"), halved):
        with torch.inference_mode():
            logits = load_checkpoint(path).network(image)
        masks.append((logits[:, 1] > logits[:, 0]).numpy())
    assert masks[0].sum() > 1000
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) >= 0.999
