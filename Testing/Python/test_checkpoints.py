"""Weights in every form they are published in; files that must be refused."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import released_networks as released
import torch
from checkpoint_files import (
    CARD,
    IMAGE,
    WIDTHS,
    assert_same_function,
)
from conftest import VECTORS

from COVIDLesionSegLib.errors import DeviceError, InputError, ModelError
from COVIDLesionSegLib.models import ModelCard, Preprocessing, load_checkpoint, save_model
from COVIDLesionSegLib.networks import CAResUNet, COPLENet


@pytest.fixture(scope="module")
def caresunet_weights() -> dict[str, torch.Tensor]:
    """A CARes-UNet under its authors' names, without the tensors it never uses."""
    weights = released.RandomWeights()
    released.caresunet(weights, torch.zeros(1, 1, 16, 16).double(), 4)
    return dict(weights)


@pytest.fixture(scope="module")
def caresunet_logits(caresunet_weights) -> torch.Tensor:
    return released.caresunet(released.given(caresunet_weights), IMAGE, 4)


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
