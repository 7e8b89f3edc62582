"""The losses against the released code's numbers, the printed equations, and themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import VECTORS

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.learning.losses import (
    CAResLoss,
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceLoss,
    DiceMeanAbsoluteErrorLoss,
    FocalDiceLoss,
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    MeanAbsoluteErrorLoss,
    NoiseRobustDiceLoss,
    SorensenDiceLoss,
)

CASES = ["rand", "empty", "perfect", "vol5d"]
RELEASED = {
    "pymic023/nrdice_g1.0": NoiseRobustDiceLoss(1.0),
    "pymic023/nrdice_g1.5": NoiseRobustDiceLoss(),
    "pymic023/nrdice_g2.0": NoiseRobustDiceLoss(2.0),
    "pymic023/dice": SorensenDiceLoss(),
    "pymic023/ce": CrossEntropyLoss(),
    "pymic023/gce_q0.7": GeneralizedCrossEntropyLoss(),
    "pymic062/focaldice_b0.5": FocalDiceLoss(0.5),
    "pymic062/focaldice_b2": FocalDiceLoss(2.0),
}
PRINTED = {
    "nr1.0": (NoiseRobustDiceLoss, {"gamma": 1.0, "denominator": "squared", "classes": "foreground"}),
    "nr1.5": (NoiseRobustDiceLoss, {"gamma": 1.5, "denominator": "squared", "classes": "foreground"}),
    "nr2.0": (NoiseRobustDiceLoss, {"gamma": 2.0, "denominator": "squared", "classes": "foreground"}),
    "dice_mil": (DiceLoss, {"classes": "foreground", "smooth": 0}),
    "sorensen": (SorensenDiceLoss, {"classes": "foreground", "smooth": 0}),
    "mae": (MeanAbsoluteErrorLoss, {}),
    "ce": (CrossEntropyLoss, {}),
    "gce": (GeneralizedCrossEntropyLoss, {}),
    "focal2.0": (FocalLoss, {"gamma": 2.0}),
    "focal0.5": (FocalLoss, {"gamma": 0.5}),
}
ALL = [
    NoiseRobustDiceLoss(),
    NoiseRobustDiceLoss(denominator="squared"),
    DiceLoss(),
    SorensenDiceLoss(pool="image"),
    FocalDiceLoss(),
    FocalDiceLoss(2.0),
    CrossEntropyLoss(),
    FocalLoss(),
    FocalLoss(0.5),
    MeanAbsoluteErrorLoss(),
    GeneralizedCrossEntropyLoss(),
    DiceCrossEntropyLoss(),
    DiceMeanAbsoluteErrorLoss(),
    CAResLoss(),
    CAResLoss(as_released=True),
]


@pytest.fixture(scope="module")
def vectors():
    return np.load(VECTORS / "losses.npz")


def case_of(vectors, case):
    logits = torch.tensor(vectors[f"{case}/logits"], requires_grad=True)
    return logits, torch.tensor(vectors[f"{case}/label"].astype(np.int64))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", RELEASED)
def test_released_values_and_gradients(vectors, case, name):
    logits, label = case_of(vectors, case)
    loss = RELEASED[name](logits, label)
    loss.backward()
    assert loss.item() == pytest.approx(float(vectors[f"{case}/{name}"]), abs=1e-9)
    # the gradients of this cut are stored in float32
    assert np.allclose(logits.grad, vectors[f"{case}/{name}/grad"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("pool", "column"), [("batch", "pooled"), ("image", "per_image_mean")])
@pytest.mark.parametrize("name", PRINTED)
def test_printed_equations(vectors, case, name, pool, column):
    make, arguments = PRINTED[name]
    logits, label = case_of(vectors, case)
    value = make(pool=pool, **arguments)(logits, label).item()
    assert value == pytest.approx(float(vectors[f"{case}/paper/{name}/{column}"]), abs=1e-9)


@pytest.mark.parametrize("case", ["rand", "empty", "perfect"])
@pytest.mark.parametrize(("kind", "as_released"), [("logits", False), ("sigmoid", True)])
def test_cares_loss(vectors, case, kind, as_released):
    logits, label = case_of(vectors, case)
    loss = CAResLoss(as_released=as_released)(logits, label)
    loss.backward()
    assert loss.item() == pytest.approx(float(vectors[f"{case}/cares/{kind}/dice_bce"]), abs=1e-9)
    # the released loss takes the sigmoid outputs: its gradient is with respect to them
    inner = torch.sigmoid(logits) * torch.sigmoid(-logits) if as_released else torch.ones(1)
    expected = vectors[f"{case}/cares/{kind}/grad"] * inner.detach().numpy()
    assert np.allclose(logits.grad, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_mean_absolute_error_is_half_of_what_pymic_returns(vectors, case):
    logits, label = case_of(vectors, case)
    value = MeanAbsoluteErrorLoss()(logits, label).item()
    assert value == pytest.approx(float(vectors[f"{case}/pymic062/mae"]) / 2, abs=1e-9)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_finite_at_saturation_and_on_empty_slices(loss):
    for size in (1e4, 1e2, 0.0):
        for sign in (1, -1):
            logits = torch.zeros(2, 2, 8, 8)
            logits[:, 1] = sign * size
            logits.requires_grad_()
            for label in (torch.zeros(2, 8, 8, dtype=torch.long), torch.ones(2, 8, 8, dtype=torch.long)):
                value = loss(logits, label)
                (gradient,) = torch.autograd.grad(value, logits)
                assert torch.isfinite(value)
                assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_gradients_are_right(loss):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 2, 4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    label = torch.randint(0, 2, (2, 4, 3), generator=generator)
    assert torch.autograd.gradcheck(lambda x: loss(x, label), logits)
    assert torch.autograd.gradcheck(lambda x: loss.per_image(x, label), logits)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_half_precision_is_computed_in_float32(loss):
    generator = torch.Generator().manual_seed(4)
    # sums over this many pixels overflow float16
    logits = torch.randn(1, 2, 320, 320, generator=generator)
    label = torch.randint(0, 2, (1, 320, 320), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits.half(), label)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits.half().float(), label).item(), rel=1e-6)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_per_image_is_the_loss_of_each_image_alone(loss):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 2, 6, 5, generator=generator)
    label = torch.randint(0, 2, (3, 6, 5), generator=generator)
    alone = torch.stack([loss(logits[n : n + 1], label[n : n + 1]) for n in range(3)])
    assert torch.allclose(loss.per_image(logits, label), alone, atol=1e-6)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_an_image_of_weight_zero_does_not_count(loss):
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(3, 2, 6, 5, generator=generator)
    label = torch.randint(0, 2, (3, 6, 5), generator=generator)
    weighted = loss(logits, label, torch.tensor([1.0, 0.0, 1.0]))
    assert torch.allclose(weighted, loss(logits[::2], label[::2]), atol=1e-6)


def test_gamma_one_with_the_linear_denominator_is_sorensen_dice(vectors):
    logits, label = case_of(vectors, "rand")
    ours, sorensen = NoiseRobustDiceLoss(1.0)(logits, label), SorensenDiceLoss()(logits, label)
    assert ours.item() == pytest.approx(sorensen.item(), abs=1e-7)


def test_the_trap_of_the_printed_equation():
    """On a lesion-free slice Eq. 3 falls as the background's probability rises; the released form does not."""
    label = torch.zeros(1, 64, 64, dtype=torch.long)

    def slope(loss):
        logits = torch.zeros(1, 2, 64, 64, dtype=torch.float64)
        logits[:, 1] = -3.0
        logits.requires_grad_()
        loss(logits, label).backward()
        return logits.grad[:, 1].sum().item()

    assert slope(NoiseRobustDiceLoss(denominator="squared", classes="foreground", pool="image")) < 0
    assert slope(NoiseRobustDiceLoss(classes="foreground", pool="image")) > 0


@pytest.mark.parametrize("loss", [NoiseRobustDiceLoss(), DiceCrossEntropyLoss(), SorensenDiceLoss(pool="image")])
def test_the_hook_for_distributed_training_sees_additive_sums(loss):
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(4, 2, 6, 6, generator=generator)
    label = torch.randint(0, 2, (4, 6, 6), generator=generator)
    whole = loss(logits, label)

    other_rank = []
    loss.reduce = lambda sums: other_rank.append(sums) or sums
    loss(logits[:1], label[:1])
    loss.reduce = lambda sums: sums + other_rank.pop(0)
    assert torch.allclose(loss(logits[1:], label[1:]), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NoiseRobustDiceLoss(0.9), r"must lie in \[1, 2\]"),
        (lambda: NoiseRobustDiceLoss(2.1), r"must lie in \[1, 2\]"),
        (lambda: NoiseRobustDiceLoss(denominator="cubed"), '"linear" or "squared"'),
        (lambda: DiceLoss(classes="lesion"), '"all" or "foreground"'),
        (lambda: DiceLoss(pool="slice"), '"batch" or "image"'),
        (lambda: FocalLoss(0), "above 0"),
        (lambda: FocalDiceLoss(-1), "above 0"),
        (lambda: GeneralizedCrossEntropyLoss(1.5), r"must lie in \(0, 1\]"),
        (lambda: DiceLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5, dtype=torch.long)), "do not fit"),
        (lambda: DiceLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4)), "integers"),
        (lambda: DiceLoss()(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 255)), "is allowed"),
    ],
)
def test_bad_arguments_are_sentences(make, words):
    with pytest.raises(InputError, match=words):
        make()
