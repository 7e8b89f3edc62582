"""A small network, CTs with lungs, and the plain loop that predictors are held to; a pytest plug-in."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from COVIDLesionSegLib.imaging import Geometry, Volume, apply_window
from COVIDLesionSegLib.models.card import ModelCard, Preprocessing
from COVIDLesionSegLib.networks import COPLENet

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
