"""A network is one file and one entry in the list: everything else follows, without a second place that names it."""

from __future__ import annotations

import re
import sys
from typing import ClassVar

import pytest
import torch
from predictor_fixtures import a_chest, some_lungs
from torch import nn
from training_fixtures import tiny_config, write_cases

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.errors import InputError, ModelError
from COVIDLesionSegLib.inference import Predictor
from COVIDLesionSegLib.learning import Trainer, TrainingConfig
from COVIDLesionSegLib.models import ModelRegistry, load_checkpoint, read_card, save_model
from COVIDLesionSegLib.models.card import ModelCard
from COVIDLesionSegLib.models.catalog import ModelEntry
from COVIDLesionSegLib.networks import NETWORKS, Listed, create_network
from COVIDLesionSegLib.networks.slices import Naming, SliceNetwork, kernel_shape
from COVIDLesionSegLib.reproduction.catalog import Network
from COVIDLesionSegLib.reproduction.efficiency import build


class Third(SliceNetwork):
    """Two convolutions with batch normalization between."""

    family = "third"
    published_preprocessing: ClassVar = {"resize": (64, 64), "lung_crop_margin": None}

    def __init__(self, in_channels: int = 1, out_channels: int = 2, width: int = 4) -> None:
        super().__init__(in_channels, out_channels)
        self.width = width
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, out_channels, 1)

    @property
    def arguments(self):
        return {"in_channels": self.in_channels, "out_channels": self.out_channels, "width": self.width}

    @classmethod
    def scaled(cls, width):
        return {"width": width}

    @classmethod
    def namings(cls):
        theirs = {"layer.0": "conv", "layer.1": "norm", "last": "head"}
        return Naming("COVIDLesionSeg", re.compile(r"(conv|norm|head)\.")), Naming("its authors", theirs)

    @classmethod
    def arguments_from(cls, shapes):
        width, channels = kernel_shape(shapes, "conv.weight")[:2]
        return {"in_channels": channels, "out_channels": kernel_shape(shapes, "head.weight")[0], "width": width}

    def forward_slices(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))))


@pytest.fixture(autouse=True)
def listed(monkeypatch):
    """The one entry; the class is this file's."""
    monkeypatch.setitem(sys.modules, "a_third_network", sys.modules[__name__])
    monkeypatch.setitem(NETWORKS, "third", Listed("Third-Net", "a_third_network", "Third"))


def test_it_trains_has_a_card_and_segments(tmp_path):
    config = tiny_config(
        write_cases(tmp_path / "cases"), network={"name": "third", "arguments": {"width": 2}}, run={"steps": 1}
    )
    trained = Trainer(TrainingConfig.from_dict(config.to_dict()), tmp_path / "runs", tmp_path).run()
    card = read_card(trained.model)
    assert (card.network, card.network_arguments["width"]) == ("third", 2)
    entry = ModelRegistry(tmp_path / "models").import_file(trained.model, model_id="mine")
    shape = (5, 40, 52)
    result = Predictor(load_checkpoint(entry.path), device="cpu").segment(a_chest(shape), some_lungs(shape))
    assert result.mask.shape == shape


def test_its_title_is_shown_in_the_panel(slicer_gui):
    from COVIDLesionSegLib.panel.text import cardHtml

    assert "Third-Net" in cardHtml(ModelEntry("mine", "Mine", "third", "installed"))


def test_its_title_is_in_messages(tmp_path):
    state = {"layer.0.weight": torch.zeros(3, 1, 3, 3), "last.weight": torch.zeros(2, 3, 1, 1)}
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(ModelError, match=r"cut\.pt does not fit Third-Net\. .*missing"):
        load_checkpoint(tmp_path / "cut.pt")
    with pytest.raises(ModelError, match=r"holds a Third-Net; COPLE-Net is needed"):
        load_checkpoint(tmp_path / "cut.pt", network="coplenet")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ModelError, match="neither COPLE-Net nor CARes-UNet nor Third-Net"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_file_of_its_authors_is_read_with_their_preprocessing(tmp_path):
    network = create_network("third", width=3).eval()
    names = {"conv": "layer.0", "norm": "layer.1", "head": "last"}
    state = {f"module.{names[name.split('.')[0]]}.{name.split('.')[1]}": t for name, t in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "published.pt")
    loaded = load_checkpoint(tmp_path / "published.pt", network="third")
    assert loaded.card.preprocessing.resize == (64, 64)
    assert "its authors" in loaded.card.notes
    x = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(loaded.network(x), network(x))
    save_model(loaded.network, ModelCard("own", "Own", "third"), tmp_path / "own.safetensors")
    torch.testing.assert_close(load_checkpoint(tmp_path / "own.safetensors").network(x), network(x))


def test_it_is_listed_suggested_and_scaled(capsys):
    assert main(["train", "--list", "networks"]) == 0
    assert re.search(r"^  third +Two convolutions", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(InputError, match="did you mean third"):
        TrainingConfig.from_dict({"network": {"name": "thrid"}})
    assert build(Network("third", "Third-Net", "own", family="third", width=8), 2).arguments["width"] == 2
