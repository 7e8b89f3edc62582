"""Ranger against twenty steps of the released optimizer, and its own promises."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from conftest import VECTORS

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.learning.optimizers import Ranger

SETTINGS = {
    "default": {"lr": 1e-2},
    "lr5e-4": {"lr": 5e-4},
    "wd": {"lr": 1e-2, "weight_decay": 0.1},
    "beta09": {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 1e-4},
    "k5a08": {"lr": 1e-2, "k": 5, "alpha": 0.8},
    "gc_conv_only": {"lr": 1e-2, "gradient_centralization": "convolutions"},
}


@pytest.fixture(scope="module")
def vectors():
    return np.load(VECTORS / "ranger.npz")


def problem(vectors, tag, dtype=torch.float32):
    """Start values and the loss of the reference run."""
    constants = {name: torch.tensor(vectors[f"{tag}/{name}"], dtype=dtype) for name in ("A", "Kt")}
    weights = {n: torch.tensor(vectors[f"{tag}/{n}0"], dtype=dtype).requires_grad_() for n in ("v", "W", "K")}
    columns = torch.arange(1, 4, dtype=dtype)

    def loss():
        return (
            (weights["v"] - torch.arange(5, dtype=dtype)).square().sum()
            + (columns * (weights["W"] - constants["A"]).square()).sum()
            + (weights["K"] - constants["Kt"]).pow(4).sum()
        )

    return weights, loss


def run(optimizer, loss, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@pytest.mark.parametrize("tag", SETTINGS)
def test_twenty_steps_of_the_released_optimizer(vectors, tag):
    weights, loss = problem(vectors, tag)
    optimizer = Ranger(weights.values(), **SETTINGS[tag])
    for step in range(20):
        run(optimizer, loss, 1)
        for name, value in weights.items():
            assert np.abs(value.detach().numpy() - vectors[f"{tag}/{name}"][step]).max() < 1e-5, (name, step)
    for name, value in weights.items():
        assert np.allclose(optimizer.state[value]["slow"], vectors[f"{tag}/{name}/slow"], atol=1e-5)


def test_switching_gradient_centralization_off_works(vectors):
    """The released switch does nothing; ours changes the weights of matrices and kernels, not of vectors."""
    weights, loss = problem(vectors, "gcoff")
    run(Ranger(weights.values(), lr=1e-2, gradient_centralization=False), loss, 20)
    assert np.abs(weights["W"].detach().numpy() - vectors["gcoff/W"][-1]).max() > 1e-3
    assert np.abs(weights["v"].detach().numpy() - vectors["gcoff/v"][-1]).max() < 1e-5


def test_saved_and_loaded_it_goes_on_exactly(vectors):
    weights, loss = problem(vectors, "default")
    optimizer = Ranger(weights.values(), lr=1e-2)
    run(optimizer, loss, 8)
    saved = io.BytesIO()
    torch.save({"weights": weights, "optimizer": optimizer.state_dict()}, saved)
    run(optimizer, loss, 9)

    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    again, loss_again = problem(vectors, "default")
    with torch.no_grad():
        for name in again:
            again[name].copy_(state["weights"][name])
    resumed = Ranger(again.values(), lr=0.5)
    resumed.load_state_dict(state["optimizer"])
    run(resumed, loss_again, 9)
    for name in weights:
        assert torch.equal(weights[name], again[name])


def test_gradients_are_left_alone_and_the_closure_is_used(vectors):
    weights, loss = problem(vectors, "default")
    optimizer = Ranger(weights.values(), lr=1e-2)

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    assert optimizer.step(closure).item() == pytest.approx(float(vectors["default/loss"][0]), rel=1e-5)
    before = copy.deepcopy(weights["K"].grad)
    assert before.mean(dim=(1, 2, 3)).abs().max() > 1e-3
    optimizer.step()
    assert torch.equal(weights["K"].grad, before)


def test_float64_stays_float64(vectors):
    weights, loss = problem(vectors, "default", torch.float64)
    run(Ranger(weights.values(), lr=1e-2), loss, 3)
    assert weights["v"].dtype == torch.float64


def test_parameters_without_gradient_are_left_out(vectors):
    weights, loss = problem(vectors, "default")
    idle = torch.ones(3, requires_grad=True)
    run(Ranger([*weights.values(), idle], lr=1e-2), loss, 7)
    assert torch.equal(idle.detach(), torch.ones(3))


@pytest.mark.parametrize(
    "bad", [{"lr": 0}, {"k": 0}, {"alpha": 0}, {"alpha": 1.1}, {"betas": (1.0, 0.9)}, {"gradient_centralization": "x"}]
)
def test_bad_settings_are_sentences(bad):
    with pytest.raises(InputError, match="must"):
        Ranger([torch.ones(1, requires_grad=True)], **{"lr": 1e-3, **bad})
