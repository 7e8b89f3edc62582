"""Networks, losses and transforms of other packages: named by import path, trained, and loaded by who trusts them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from training_fixtures import tiny_config, write_cases

from COVIDLesionSegLib.errors import InputError, ModelError
from COVIDLesionSegLib.learning import Trainer, TrainingConfig
from COVIDLesionSegLib.learning.augmentation import AugmentationSettings
from COVIDLesionSegLib.learning.config import LossSettings
from COVIDLesionSegLib.learning.losses import DiceLoss, ImportedLoss, make_criterion
from COVIDLesionSegLib.models import load_checkpoint, read_card
from COVIDLesionSegLib.networks import create_network

PACKAGE = '''
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from COVIDLesionSegLib.learning.augmentation import Transform
from COVIDLesionSegLib.learning.losses import SorensenDiceLoss


class Net(nn.Module):
    """Two convolutions; norm and conv lie the other way round than in this project's networks."""

    def __init__(self, width=4):
        super().__init__()
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.relu(self.norm(self.enter(x))))


class WrongShape(Net):
    def forward(self, x):
        return super().forward(x)[..., ::2]


class Squares(nn.Module):
    """A plain module: mean squared error of the foreground's probability."""

    def forward(self, logits, label):
        return (logits.softmax(1)[:, 1] - label).square().mean()


class Mine(SorensenDiceLoss):
    """One of the project's own kind."""


@dataclass(frozen=True)
class Lower(Transform):
    by: float = 0.1

    def apply(self, images, masks, generator):
        return images - np.float32(generator.uniform(0, 1) * self.by)
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with the module ``their_parts``; importable while these tests run."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "their_parts.py").write_text(PACKAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, package):
    """A training with their network, loss and transform."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(
        write_cases(folder / "cases"),
        network={"name": "their_parts:Net", "arguments": {"width": 6}},
        loss={"name": "their_parts:Squares"},
        augmentation={"imported": ({"path": "their_parts:Lower", "by": 0.3},)},
        run={"steps": 4},
    )
    return Trainer(TrainingConfig.from_dict(config.to_dict()), folder / "run", folder).run()


def test_the_card_names_the_class_and_says_that_it_is_needed(trained):
    card = read_card(trained.model)
    assert (card.network, card.network_arguments["width"]) == ("their_parts:Net", 6)
    assert "The Python class their_parts:Net is needed to load it." in card.notes
    config = TrainingConfig.from_dict(card.metrics["config"])
    assert config.loss.name == "their_parts:Squares"
    assert config.augmentation.imported == ({"path": "their_parts:Lower", "by": 0.3},)
    # written whole and read back, as every other configuration
    (trained.folder / "again.toml").write_text(config.to_toml())
    assert TrainingConfig.from_toml(trained.folder / "again.toml") == config


def test_a_model_predicts_and_is_fine_tuned_like_any_other(trained, tmp_path):
    from COVIDLesionSegLib.imaging import read_labels, read_volume
    from COVIDLesionSegLib.inference import Predictor

    cases = trained.folder.parent / "cases"
    lungs = read_labels(cases / "dora_lungs.nii.gz").array
    result = Predictor(trained.model, "cpu").segment(read_volume(cases / "dora_ct.nii.gz"), lungs)
    assert result.mask.shape == (6, 48, 56) and result.record.to_json()["model"]["id"] == "trained"
    config = tiny_config(
        cases,
        network={"name": "their_parts:Net", "arguments": {}, "base_model": str(trained.model)},
        run={"steps": 2},
    )
    tuned = Trainer(config, tmp_path / "tuned", tmp_path).run()
    assert read_card(tuned.model).notes.count("their_parts:Net") == 1


LOAD = "from COVIDLesionSegLib.models import load_checkpoint; print(load_checkpoint({path!r}).card.network)"


def test_a_file_alone_runs_no_code(trained, package):
    """Another process, in which nobody has named the network: it loads where the user has allowed it, only there."""
    code = LOAD.format(path=str(trained.model))
    places = os.pathsep.join([str(REPOSITORY / "COVIDLesionSeg"), str(package)])
    for allowed, words in (("", "loading it runs its code"), ("their_parts:Net, other:Net", "their_parts:Net")):
        environment = {**os.environ, "PYTHONPATH": places, "COVIDLESIONSEG_NETWORKS": allowed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert (done.returncode == 0) == bool(allowed), done.stderr
        assert words in (done.stdout if allowed else done.stderr)


def test_a_file_of_another_network_is_refused(trained):
    with pytest.raises(ModelError, match=r"holds a network their_parts:Net; COPLE-Net is needed"):
        load_checkpoint(trained.model, network="coplenet")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("their_parts:Nowhere", {}, "can't be imported"),
        ("their_parts:Lower", {}, "is no network"),
        ("their_parts:Net", {"widht": 3}, "can't be made"),
        ("their_parts:Net", {"in_channels": 3}, "can't see neighboring slices"),
    ],
)
def test_networks_that_can_not_be(package, name, arguments, words):
    with pytest.raises(InputError, match=words):
        create_network(name, **arguments)


def test_logits_of_another_shape_are_refused(package):
    with pytest.raises(InputError, match=r"gave logits of the shape \(1, 2, 16, 8\)"):
        create_network("their_parts:WrongShape").eval()(torch.zeros(1, 1, 16, 16))


def test_losses_of_other_packages(package):
    torch.manual_seed(0)
    logits, label = torch.randn(3, 2, 8, 8, requires_grad=True), torch.randint(0, 2, (3, 8, 8))
    squares = make_criterion(LossSettings("their_parts:Squares"))
    assert isinstance(squares, ImportedLoss)
    own = [(logits[i].softmax(0)[1] - label[i]).square().mean() for i in range(3)]
    assert torch.allclose(squares.per_image(logits, label), torch.stack(own))
    assert squares(logits, label).item() == pytest.approx(float(sum(own).detach() / 3))
    weights = torch.tensor([1.0, 0.0, 1.0])
    assert squares(logits, label, weights).item() == pytest.approx(float((own[0] + own[2]).detach()) / 2)
    squares(logits, label).backward()
    assert logits.grad.abs().sum() > 0
    # one of the project's own kind is used as it is, with its arguments
    mine = make_criterion(LossSettings("their_parts:Mine", {"smooth": 2.0}))
    assert (type(mine).__name__, mine.smooth, mine.pool) == ("Mine", 2.0, "batch")
    with pytest.raises(InputError, match="has no argument gama"):
        make_criterion(LossSettings("their_parts:Squares", {"gama": 1}))
    assert isinstance(make_criterion(LossSettings("dice")), DiceLoss)


def test_transforms_of_other_packages_come_after_all_others(package):
    settings = AugmentationSettings(imported=({"path": "their_parts:Lower", "by": 0.25},))
    last = settings.transforms("apply")[-1]
    assert (type(last).__name__, last.by) == ("Lower", 0.25)
    assert settings.transforms("apply")[:-1] == AugmentationSettings().transforms("apply")
    out = last.apply(np.ones((1, 2, 2), dtype=np.float32), None, np.random.default_rng(0))
    assert 0.75 <= out.min() < 1
    assert AugmentationSettings.none().imported == ()
    for table, words in (
        ({"by": 1}, 'must be a table with a "path"'),
        ({"path": "their_parts:Net"}, "is no transform"),
        ({"path": "their_parts:Lower", "buy": 1}, "can't be made"),
        ({"path": "their_parts:Lower", "by": -1}, "Lower.by is -1"),
    ):
        with pytest.raises(InputError, match=words):
            AugmentationSettings(imported=(table,)).transforms("apply")


def test_configurations_name_what_was_meant():
    with pytest.raises(InputError, match=r"network.name is 'cople'; .*or an import path; did you mean coplenet\?"):
        TrainingConfig.from_dict({"network": {"name": "cople"}})
