"""Weights in every form they are published in; files that must be refused; our own files and their cards."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import released_networks as released
import safetensors.torch
import torch
from conftest import REPOSITORY, VECTORS

from COVIDLesionSegLib.errors import DeviceError, InputError, ModelError, OutputError
from COVIDLesionSegLib.imaging import apply_window
from COVIDLesionSegLib.models import ModelCard, Preprocessing, load_checkpoint, read_card, save_model
from COVIDLesionSegLib.models.checkpoints import weights_sha256
from COVIDLesionSegLib.networks import CAResUNet, COPLENet
from COVIDLesionSegLib.resources import resource

WIDTHS = (4, 8, 16, 32, 64)
IMAGE = torch.rand(1, 1, 48, 32, generator=torch.Generator().manual_seed(5))
CARD = ModelCard(
    id="small",
    name="A small network",
    network="coplenet",
    version="3",
    preprocessing=Preprocessing(resize=(64, 48), lung_crop_margin=None, activation="sigmoid"),
    threshold=0.4,
    training_data=({"name": "Data", "citation": "Somebody 2020", "license": "CC BY 4.0"},),
    license="CC BY-NC 4.0",
    license_notice="Not for commerce; naïve text with ünicode.",
    citation="Somebody 2021",
    metrics={"held out": {"dice": 0.5}},
    notes="none",
)


@pytest.fixture(scope="module")
def coplenet_weights() -> dict[str, torch.Tensor]:
    """A COPLE-Net under its authors' names."""
    weights = released.RandomWeights()
    released.coplenet(weights, torch.zeros(1, 1, 32, 32).double(), WIDTHS)
    return dict(weights)


@pytest.fixture(scope="module")
def caresunet_weights() -> dict[str, torch.Tensor]:
    """A CARes-UNet under its authors' names, without the tensors it never uses."""
    weights = released.RandomWeights()
    released.caresunet(weights, torch.zeros(1, 1, 16, 16).double(), 4)
    return dict(weights)


@pytest.fixture(scope="module")
def coplenet_logits(coplenet_weights) -> torch.Tensor:
    return released.coplenet(released.given(coplenet_weights), IMAGE, WIDTHS)


@pytest.fixture(scope="module")
def caresunet_logits(caresunet_weights) -> torch.Tensor:
    return released.caresunet(released.given(caresunet_weights), IMAGE, 4)


@pytest.fixture
def small_network() -> COPLENet:
    torch.manual_seed(0)
    network = COPLENet(channels=WIDTHS, bridge=False)
    # running statistics that are not those of a new network
    network(torch.rand(2, 1, 32, 32))
    return network.eval()


def assert_same_function(path: Path, expected: torch.Tensor, **options: object) -> None:
    with torch.inference_mode():
        found = load_checkpoint(path, **options).network(IMAGE)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def monai_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = json.loads((VECTORS / "cople_hilab_to_monai020_keys.json").read_text())
    return {names[k]: v.flatten(1) if "se_layers" in k and v.dim() == 4 else v for k, v in weights.items()}


def with_counters(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    counters = {
        k.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for k in weights if "running_mean" in k
    }
    return {**weights, **counters}


def with_dead_tensors(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    dead = {}
    for name, tensor in weights.items():
        if name.endswith("inc.4.weight"):
            stem, width = name.removesuffix("inc.4.weight") + "conv1x1.", len(tensor)
            dead[f"{stem}0.weight"] = torch.ones(width, width, 1, 1)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                dead[f"{stem}1.{leaf}"] = torch.ones(width)
            dead[f"{stem}1.num_batches_tracked"] = torch.tensor(3)
    assert len(dead) == 13 * 6
    return {**weights, **dead}


# ---- forms that load ------------------------------------------------------------------------------------------------

COPLENET_FORMS = {
    "bare": lambda w: w,
    "with batch counters": with_counters,
    "container": lambda w: {"iteration": 5, "model_state_dict": w, "optimizer_state_dict": {"state": {0: w}}},
    "container with numpy scalar": lambda w: {"valid_pred": np.float64(0.7), "model_state_dict": w},
    "container with numpy float32": lambda w: {"valid_pred": np.float32(0.7), "state_dict": w},
    "data parallel": lambda w: {"model_state_dict": {f"module.{k}": v for k, v in w.items()}},
    "compiled data parallel": lambda w: {f"_orig_mod.module.{k}": v for k, v in w.items()},
    "monai": monai_names,
    "monai container": lambda w: {"model_state_dict": monai_names(with_counters(w))},
    "2-D gates": lambda w: {k: v.flatten(1) if "se_layers" in k and v.dim() == 4 else v for k, v in w.items()},
    "double": lambda w: {k: v.double() for k, v in w.items()},
}


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("form", COPLENET_FORMS)
def test_coplenet_loads_in_every_form(tmp_path, coplenet_weights, coplenet_logits, form, old_format):
    path = tmp_path / "My Model (1).pth"
    torch.save(COPLENET_FORMS[form](coplenet_weights), path, _use_new_zipfile_serialization=not old_format)
    assert_same_function(path, coplenet_logits)
    card = load_checkpoint(path, network="coplenet").card
    assert card.network == "coplenet"
    assert card.network_arguments["channels"] == list(WIDTHS)
    assert (card.id, card.license) == ("my-model-1", "unknown")
    assert card.preprocessing == Preprocessing()


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("contained", [False, True])
def test_caresunet_loads_in_every_form(tmp_path, caresunet_weights, caresunet_logits, dead, contained, old_format):
    path = tmp_path / "cares.pth"
    state = with_dead_tensors(with_counters(caresunet_weights)) if dead else caresunet_weights
    content = {"state_dict": {f"module.{k}": v for k, v in state.items()}} if contained else state
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    assert_same_function(path, caresunet_logits)
    card = load_checkpoint(path, network="caresunet").card
    assert card.network_arguments["base_channels"] == 4
    # their files were trained on whole 8-bit slices of one size
    assert card.preprocessing == Preprocessing(resize=(256, 256), lung_crop_margin=None)


@pytest.mark.parametrize("core", [b"core", b"_core"])
@pytest.mark.parametrize("old_format", [False, True])
def test_numpy_scalars_load_under_both_homes_of_numpy(tmp_path, coplenet_weights, coplenet_logits, core, old_format):
    path = tmp_path / "scalar.pt"
    content = {"valid_pred": np.float64(0.7), "model_state_dict": coplenet_weights}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    written = b"numpy._core.multiarray" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else b"numpy.core.multiarray"
    wanted = b"numpy." + core + b".multiarray"
    if old_format:
        data = path.read_bytes()
        assert written in data
        path.write_bytes(data.replace(written, wanted))
    else:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, data.replace(written, wanted) if name.endswith("data.pkl") else data)
    assert_same_function(path, coplenet_logits)


def test_names_of_monai_are_all_known(tmp_path, coplenet_weights):
    names = json.loads((VECTORS / "cople_hilab_to_monai020_keys.json").read_text())
    assert set(names) == set(with_counters(coplenet_weights))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"aspp": False},
        {"dual_pooling": False},
        {"bridge": False},
        {"aspp": False, "dual_pooling": False, "bridge": False},
        {"in_channels": 3, "out_channels": 4},
    ],
)
def test_variant_of_coplenet_is_seen_in_its_weights(tmp_path, arguments):
    network = COPLENet(channels=WIDTHS, **arguments)
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    found = load_checkpoint(tmp_path / "bare.pt").network
    assert found.arguments == network.arguments


@pytest.mark.parametrize("upsampling", ["carafe", "deconvolution", "subpixel"])
def test_variant_of_caresunet_is_seen_in_its_weights(tmp_path, upsampling):
    network = CAResUNet(base_channels=3, upsampling=upsampling, in_channels=2)
    torch.save({"network": network.state_dict(), "step": 3}, tmp_path / "state.pt")
    found = load_checkpoint(tmp_path / "state.pt").network
    assert found.arguments == network.arguments


def test_container_may_carry_its_card(tmp_path):
    # without sums the weights look the same: only the card can say so
    network = CAResUNet(base_channels=3, residual=False)
    card = ModelCard(id="plain", name="Plain", network="caresunet", network_arguments=network.arguments)
    torch.save({"model_state_dict": network.state_dict(), "model_card": card.to_json()}, tmp_path / "state.pt")
    loaded = load_checkpoint(tmp_path / "state.pt")
    assert loaded.network.arguments == network.arguments
    assert loaded.card == card


def test_released_files_load(shared):
    for path, widths in (
        ("vectors/cople_hilab_w8_checkpoint.pt", [8, 16, 32, 64, 128]),
        ("weights/coplenet_baseline.pt", [32, 64, 128, 256, 512]),
    ):
        assert load_checkpoint(shared(path)).network.arguments["channels"] == widths
    network = load_checkpoint(shared("vectors/cares_w8_statedict.pt")).network
    assert network.arguments["base_channels"] == 8


@pytest.mark.parametrize("keys", ["cople_hilab_full_keys", "cople_monai020_full_keys", "cares_full_keys"])
def test_lists_of_released_tensors_load(shared, tmp_path, keys):
    listed = json.loads(shared(f"docs/checkpoint_keys/{keys}.json").read_text())
    state = {name: torch.zeros(shape, dtype=getattr(torch, kind)) for name, (shape, kind) in listed.items()}
    torch.save(state, tmp_path / "zeros.pt")
    arguments = load_checkpoint(tmp_path / "zeros.pt").network.arguments
    assert arguments.get("channels", arguments.get("base_channels")) in ([32, 64, 128, 256, 512], 64)


def test_loaded_network_is_in_eval_mode_and_writable_file_stays(tmp_path, small_network):
    save_model(small_network, CARD, tmp_path / "m.safetensors")
    loaded = load_checkpoint(str(tmp_path / "m.safetensors"), device=torch.device("cpu"))
    assert not loaded.network.training
    with torch.no_grad():
        next(loaded.network.parameters()).zero_()
    assert load_checkpoint(tmp_path / "m.safetensors").card.id == "small"


# ---- files that are refused -----------------------------------------------------------------------------------------


class RunsCode:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("writer", ["zip", "old", "pickle", "protocol 0", "inside weights"])
def test_file_that_would_run_code_is_refused(tmp_path, coplenet_weights, writer):
    mark, path = tmp_path / "it-ran", tmp_path / "evil.pt"
    evil = {"model_state_dict": RunsCode(mark)}
    if writer in ("zip", "old"):
        torch.save(evil, path, _use_new_zipfile_serialization=writer == "zip")
    elif writer == "inside weights":
        torch.save({**coplenet_weights, "note": RunsCode(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(evil, protocol=0 if writer == "protocol 0" else None))
    with pytest.raises(ModelError, match=r"running code from it|neither a safetensors file nor"):
        load_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"args": argparse.Namespace(lr=1), "state_dict": {}}, "argparse.Namespace"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ([torch.zeros(2)], "holds a list"),
        ({"epoch": 3, "state_dict": {}}, "holds no weights; its entries are epoch, state_dict"),
        (torch.nn.Linear(2, 2).state_dict(), "neither COPLE-Net nor CARes-UNet"),
    ],
)
def test_pytorch_file_that_is_something_else(tmp_path, content, said):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=said):
        load_checkpoint(tmp_path / "other.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_program_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    with pytest.raises(ModelError, match="TorchScript"):
        load_checkpoint(tmp_path / "program.pt")


def damaged(kind: str, path: Path, data: bytes) -> None:
    changed = {
        "empty": b"",
        "half": data[: len(data) // 2],
        "without its end": data[:-20],
        "other bytes": b"\x00" * 64 + data[64:],
        "text": b"<html>quota exceeded</html>" * 10,
    }
    if kind == "one bit":
        middle = len(data) // 2
        changed[kind] = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes(changed[kind])


DAMAGES = ["empty", "half", "without its end", "other bytes", "text", "one bit"]


@pytest.mark.parametrize(
    ("form", "kind"),
    # the old format has no checksums, so that nothing can see one wrong bit in its weights
    [(form, kind) for form in ("zip", "old", "safetensors") for kind in DAMAGES if (form, kind) != ("old", "one bit")],
)
def test_damaged_file(tmp_path, small_network, form, kind):
    path = tmp_path / ("m.safetensors" if form == "safetensors" else "m.pt")
    if form == "safetensors":
        save_model(small_network, CARD, path)
    else:
        torch.save(small_network.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    damaged(kind, path, path.read_bytes())
    with pytest.raises(ModelError, match=r"m\.(pt|safetensors) "):
        load_checkpoint(path)


def test_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.pt", "w") as archive:
        archive.writestr("picture.txt", "none")
    with pytest.raises(ModelError, match="not a PyTorch checkpoint"):
        load_checkpoint(tmp_path / "pictures.pt")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ModelError, match=r"gone\.pt could not be read: No such file"):
        load_checkpoint(tmp_path / "gone.pt")
    with pytest.raises(ModelError, match="could not be read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("up2.conv1x1.weight"), r"1 tensors are missing: decoders\.1\.project\.weight\."),
        (lambda w: w.pop("in_conv.conv_conv.0.weight"), r"input\.first\.conv\.weight is missing"),
        (lambda w: w.update({"extra.weight": torch.zeros(2)}), r"not part of the network: extra\.weight"),
        (lambda w: w.update({"out_conv.bias": torch.zeros(3)}), r"output\.bias is \(3,\) where \(2,\) is needed"),
        (lambda w: w.update({"in_conv.conv_conv.0.weight": torch.zeros(4)}), "4 axes are needed"),
        (lambda w: w.update({"down1.conv.conv_conv.4.weight": torch.zeros(9, 9, 3, 3)}), "channels is .* twice"),
        (lambda w: w["out_conv.bias"].fill_(float("nan")), r"output\.bias holds NaN"),
        (lambda w: [w.pop(k) for k in list(w) if k.startswith("up")], "72 tensors are missing: .* and 69 more"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, coplenet_weights, change, said):
    state = {k: v.clone() for k, v in coplenet_weights.items()}
    change(state)
    torch.save(state, tmp_path / "changed.pt")
    with pytest.raises(ModelError, match=rf"changed\.pt does not fit COPLE-Net\. .*{said}"):
        load_checkpoint(tmp_path / "changed.pt")


def test_family_that_is_insisted_on(tmp_path, coplenet_weights):
    torch.save(coplenet_weights, tmp_path / "c.pt")
    with pytest.raises(ModelError, match=r"c\.pt holds a COPLE-Net; CARes-UNet is needed here"):
        load_checkpoint(tmp_path / "c.pt", network="caresunet")
    with pytest.raises(InputError, match="there are coplenet, caresunet"):
        load_checkpoint(tmp_path / "c.pt", network="unet")


def test_device_that_is_not_there(tmp_path, coplenet_weights):
    torch.save(coplenet_weights, tmp_path / "c.pt")
    for device in ("cuda:99", "toaster"):
        with pytest.raises(DeviceError, match=device):
            load_checkpoint(tmp_path / "c.pt", device=device)


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


# ---- the bundled model ----------------------------------------------------------------------------------------------

BUNDLED = "Models/coplenet-baseline.safetensors"


def test_bundled_model_loads_and_states_its_license():
    loaded = load_checkpoint(resource(BUNDLED), network="coplenet")
    card = loaded.card
    assert card.id == "coplenet-baseline"
    assert "non-commercial" in card.license_notice.lower()
    assert [data["name"] for data in card.training_data] == ["COVID-19-CT-Seg", "COVID-CT-MD"]
    assert card.preprocessing == Preprocessing()
    notice = resource("Models/coplenet-baseline.LICENSE.txt").read_text(encoding="utf-8").lower()
    assert all(word in notice for word in ("non-commercial", "3757476", "10.1038/s41597-021-00900-3"))


def test_card_beside_the_bundled_model_is_the_one_inside():
    beside = ModelCard.from_json(resource("Models/coplenet-baseline.json").read_text(encoding="utf-8"))
    assert beside == read_card(resource(BUNDLED))


def test_bundled_model_is_small_and_keeps_normalization_precise():
    tensors = safetensors.torch.load_file(resource(BUNDLED))
    assert resource(BUNDLED).stat().st_size < 22e6
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            assert tensor.dtype == (torch.float32 if ".norm." in name else torch.float16), name


def test_bundled_model_is_the_one_it_was_made_from(shared):
    full = load_checkpoint(shared("weights/coplenet_baseline.pt")).network.state_dict()
    for name, tensor in load_checkpoint(resource(BUNDLED)).network.state_dict().items():
        rounded = full[name].half().float() if full[name].is_floating_point() and ".norm." not in name else full[name]
        assert torch.equal(tensor, rounded), name


@pytest.mark.parametrize("case", ["coronacases_001", "coronacases_009"])
def test_masks_of_the_bundled_model_agree_with_full_precision(shared, case):
    import SimpleITK as sitk

    def array(what: str) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(shared(f"data/covid19-ct-seg/{case}_{what}.nii.gz"))))

    lungs = array("lungs") > 0
    box = [slice(max(0, where.min() - 8), where.max() + 9) for where in np.nonzero(lungs)[1:]]
    # a few slices, apart from one another
    slices = apply_window(array("ct")[np.linspace(5, len(lungs) - 6, 3).astype(int)][:, box[0], box[1]])
    pad = [(0, -n % 16) for n in slices.shape[1:]]
    image = torch.from_numpy(np.pad(slices, [(0, 0), *pad], mode="reflect"))[:, None]
    masks = []
    for path in (shared("weights/coplenet_baseline.pt"), resource(BUNDLED)):
        with torch.inference_mode():
            logits = load_checkpoint(path).network(image)
        masks.append((logits[:, 1] > logits[:, 0]).numpy())
    assert masks[0].sum() > 1000
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) >= 0.999
