"""Networks, weights and a card that the tests of model files share; a pytest plug-in."""

from __future__ import annotations

from pathlib import Path

import pytest
import released_networks as released
import torch

from COVIDLesionSegLib.models import ModelCard, Preprocessing, load_checkpoint
from COVIDLesionSegLib.networks import COPLENet

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
def coplenet_logits(coplenet_weights) -> torch.Tensor:
    """What the released COPLE-Net with these weights makes of the image."""
    return released.coplenet(released.given(coplenet_weights), IMAGE, WIDTHS)


@pytest.fixture
def small_network() -> COPLENet:
    """A network whose running statistics are not those of a new one."""
    torch.manual_seed(0)
    network = COPLENet(channels=WIDTHS, bridge=False)
    network(torch.rand(2, 1, 32, 32))
    return network.eval()


def assert_same_function(path: Path, expected: torch.Tensor, **options: object) -> None:
    with torch.inference_mode():
        found = load_checkpoint(path, **options).network(IMAGE)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5 * expected.abs().max().item())
