"""Adaptive self-ensembling and re-weighting against sequences worked out by hand."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.learning.config import EnsemblingSettings
from COVIDLesionSegLib.learning.losses import DiceLoss, NoiseRobustDiceLoss
from COVIDLesionSegLib.learning.noise_robust import (
    AdaptiveSelfEnsembling,
    DataReweighting,
    LossWindow,
)
from COVIDLesionSegLib.learning.randomness import Purpose, draw, gaussian_noise


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def test_beta_is_the_percentile_of_the_previous_losses():
    window = LossWindow(size=4, percentile=75, warm_up=2)
    seen = []
    for loss in [1.0, 2.0, 3.0, 4.0, 5.0, 0.0]:
        seen.append(window.threshold())
        window.append(loss)
    # [], [1], [1 2], [1 2 3], [1 2 3 4], [2 3 4 5]: linear interpolation between order statistics
    assert seen == [math.inf, math.inf, 1.75, 2.5, 3.25, 4.25]


def test_alpha_sequence_by_hand():
    """Teacher frozen exactly when the loss is not below beta; early, late and ramped alpha elsewhere."""
    settings = EnsemblingSettings(
        percentile=50, window=3, warm_up=2, alpha_early=0.6, alpha_late=0.9, alpha_switch_step=5, alpha_ramp=True
    )
    student = network()
    ensembling = AdaptiveSelfEnsembling(student, settings)
    losses = [1.0, 3.0, 2.0, 1.5, 2.5, 1.0, 1.5]
    logged = [ensembling.update(loss) for loss in losses]
    # beta: inf inf median(1,3)=2 median(1,3,2)=2 median(3,2,1.5)=2 median(2,1.5,2.5)=2 median(1.5,2.5,1)=1.5
    assert [entry["beta"] for entry in logged] == [math.inf, math.inf, 2.0, 2.0, 2.0, 2.0, 1.5]
    # ramp: 0, 1/2, 2/3 capped at 0.6, ...; 2.0 is not below 2.0, 2.5 neither, 1.5 not below 1.5
    assert [entry["alpha"] for entry in logged] == [0.0, 0.5, 1.0, 0.6, 1.0, pytest.approx(1 - 1 / 6), 1.0]
    assert logged[-1]["frozen_fraction"] == pytest.approx(3 / 7)


@pytest.mark.parametrize(("adaptive", "alphas"), [(True, [0.9, 0.9, 1.0]), (False, [0.9, 0.9, 0.9])])
def test_teacher_moves_by_eq_4(adaptive, alphas):
    settings = EnsemblingSettings(
        adaptive_teacher=adaptive, alpha_early=0.9, alpha_ramp=False, percentile=50, window=5, warm_up=2
    )
    student = network()
    ensembling = AdaptiveSelfEnsembling(student, settings)
    expected = {name: value.clone() for name, value in student.state_dict().items()}
    for step, (loss, alpha) in enumerate(zip([1.0, 1.0, 9.0], alphas, strict=True)):
        with torch.no_grad():
            for value in student.parameters():
                value.add_(0.1 * (step + 1))
            student[1].running_mean.add_(1.0)
            student[1].num_batches_tracked.add_(1)
        assert ensembling.update(loss)["alpha"] == alpha
        for name, value in student.state_dict().items():
            if value.is_floating_point():
                expected[name] = alpha * expected[name] + (1 - alpha) * value
    teacher = ensembling.teacher.state_dict()
    for name, value in expected.items():
        if value.is_floating_point():
            assert torch.allclose(teacher[name], value, atol=1e-6), name
    # counted, never averaged; a frozen teacher keeps its count with the rest
    assert int(teacher["1.num_batches_tracked"]) == (2 if adaptive else 3)


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 1, 16, 16, generator=generator)
    label = (images[:, 0] > 0.7).long()
    return images, label, torch.zeros_like(images)


@pytest.mark.parametrize(
    ("teacher_is_right", "adaptive", "weight"), [(True, True, 0.1), (False, True, 0.01), (False, False, 0.1)]
)
def test_the_student_listens_to_the_better_teacher(teacher_is_right, adaptive, weight):
    """Lambda follows the text of the paper: large when the teacher's loss is below the student's."""
    images, label, silence = batch()

    class Sure(nn.Module):
        def __init__(self, right: bool) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(20.0 if right else -20.0))

        def forward(self, x):
            return torch.cat([-self.gain * (x - 0.7), self.gain * (x - 0.7)], dim=1)

    student = Sure(right=not teacher_is_right)
    ensembling = AdaptiveSelfEnsembling(student, EnsemblingSettings(adaptive_student=adaptive))
    ensembling.teacher = Sure(right=teacher_is_right).requires_grad_(False)
    criterion = DiceLoss()
    losses = ensembling.losses(criterion, images, label, silence, silence)

    difference = (torch.softmax(student(images), 1) - torch.softmax(ensembling.teacher(images), 1)).abs().mean()
    assert losses.weight == pytest.approx(weight)
    assert losses.consistency.item() == pytest.approx(difference.item(), abs=1e-6)
    assert losses.total.item() == pytest.approx(criterion(student(images), label).item() + weight * difference.item())
    losses.total.backward()
    assert student.gain.grad is not None
    assert ensembling.teacher.gain.grad is None


def test_lambda_can_be_decided_per_image():
    images, label, silence = batch()
    ensembling = AdaptiveSelfEnsembling(network(), EnsemblingSettings(per_sample=True))
    ensembling.teacher = network(1).requires_grad_(False).eval()
    criterion = NoiseRobustDiceLoss()
    losses = ensembling.losses(criterion, images, label, silence, silence)
    better = criterion.per_image(losses.teacher_logits, label) < criterion.per_image(losses.student_logits, label)
    expected = torch.where(better, 0.1, 0.01)
    assert losses.weight == pytest.approx(expected.mean().item(), abs=1e-6)


def test_student_and_teacher_see_their_own_noise():
    images, label, silence = batch()
    student = network().eval()
    ensembling = AdaptiveSelfEnsembling(student)
    same = ensembling.losses(DiceLoss(), images, label, silence, silence)
    assert same.consistency.item() == pytest.approx(0, abs=1e-7)
    shape = tuple(images.shape[1:])
    noises = [
        torch.from_numpy(gaussian_noise(7, purpose, 3, range(4), shape, 0.1, 0.2))
        for purpose in (Purpose.STUDENT_NOISE, Purpose.TEACHER_NOISE)
    ]
    assert ensembling.losses(DiceLoss(), images, label, *noises).consistency.item() > 1e-4


def test_saved_and_loaded_it_goes_on_exactly():
    student = network()
    one = AdaptiveSelfEnsembling(student, EnsemblingSettings(percentile=50, window=4, warm_up=2))
    for loss in (1.0, 2.0, 3.0):
        one.update(loss)
    other = AdaptiveSelfEnsembling(network(5), one.settings)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    other._student = student
    assert [one.update(loss) for loss in (1.5, 2.5)] == [other.update(loss) for loss in (1.5, 2.5)]
    for a, b in zip(one.teacher.parameters(), other.teacher.parameters(), strict=True):
        assert torch.equal(a, b)


def test_reweighting_compares_slices_with_lesion_among_themselves():
    reweighting = DataReweighting(window=2, percentile=50, warm_up=1)
    assert reweighting.keep([1.0, 2.0, 3.0], [True] * 3) == ([True, True, True], math.inf)
    assert reweighting.keep([2.5, 1.0, 2.0, 9.0], [True, True, True, False]) == ([False, True, True, True], 2.0)
    # the window now holds 1 2 3 2.5 1 2
    assert reweighting.keep([5.0, 5.0], [True, True]) == ([False, False], 2.0)
    # a step without lesion leaves nothing to compare with
    assert DataReweighting(window=1, percentile=50, warm_up=1).keep([9.0], [False]) == ([True], math.inf)


def simulated_slices(count, wrong, generator):
    """(logits, given label, whether the label is wrong) of slices such as a half-trained network sees.

    A third has no lesion; the network finds the others' lesions with soft borders, and answers healthy tissue with
    a little doubt. Labels that are wrong lie 20 pixels beside the lesion or cover twice its width.
    """
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    logits, labels, spoilt = [], [], []
    for _ in range(count):
        row, column = generator.uniform(16, 28, 2)
        radius = generator.uniform(4, 12)

        def disk(row=row, column=column, radius=radius):
            return radius - torch.hypot(rows - row, columns - column)

        has_lesion, is_wrong = generator.random() > 1 / 3, generator.random() < wrong
        inside = disk() if has_lesion else torch.full((64, 64), -8.0)
        inside = inside.clamp(-4, 4) + torch.from_numpy(generator.normal(0, 1, (64, 64))).float()
        shifted = disk(row + 20, column + 20) if generator.random() < 0.5 else disk(radius=2 * radius)
        label = (shifted if is_wrong else disk()) > 0
        labels.append(label.long() if has_lesion else torch.zeros(64, 64, dtype=torch.long))
        logits.append(torch.stack([-inside / 2, inside / 2]))
        spoilt.append(bool(has_lesion and is_wrong))
    return torch.stack(logits), torch.stack(labels), spoilt


def test_what_reweighting_drops_are_wrong_labels():
    """One label in ten is wrong: most of what is dropped is, most of the wrong ones are dropped, no healthy slice."""
    reweighting, criterion = DataReweighting(), DiceLoss()
    generator = np.random.default_rng(0)
    wrong_seen, dropped, healthy_above_all = 0, [], 0
    for _ in range(120):
        logits, label, spoilt = simulated_slices(12, 0.1, generator)
        losses, with_lesion = criterion.per_image(logits, label), label.flatten(1).any(1)
        kept, beta = reweighting.keep(losses.tolist(), with_lesion.tolist())
        if beta < math.inf:
            wrong_seen += sum(spoilt)
            dropped += [bad for bad, keep in zip(spoilt, kept, strict=True) if not keep]
            assert all(keep for keep, lesion in zip(kept, with_lesion, strict=True) if not lesion)
            # what one threshold for all slices would have dropped
            healthy_above_all += int((losses[~with_lesion] > np.percentile(losses, 90)).sum())
    assert len(dropped) > 40
    assert sum(dropped) / len(dropped) > 0.8
    assert sum(dropped) / wrong_seen > 0.8
    assert healthy_above_all > 100


@pytest.mark.parametrize(("from_base", "alphas"), [(False, [0.0, 0.5, 2 / 3]), (True, [0.99, 0.99, 0.99])])
def test_a_teacher_that_starts_from_a_trained_network_keeps_it(from_base, alphas):
    student = network()
    ensembling = AdaptiveSelfEnsembling(student, from_base=from_base)
    base = student[0].weight.detach().clone()
    with torch.no_grad():
        student[0].weight.add_(1.0)
    found = [ensembling.update(1.0)["alpha"]]
    moved = (ensembling.teacher[0].weight - base).mean().item()
    assert moved == pytest.approx(0.01 if from_base else 1.0, abs=1e-6)
    assert [*found, *(ensembling.update(1.0)["alpha"] for _ in range(2))] == pytest.approx(alphas)


def test_draws_depend_on_seed_purpose_step_and_index_alone():
    a = gaussian_noise(1, Purpose.STUDENT_NOISE, 5, [0, 1, 2, 3], (1, 8, 8), 0.1, None)
    b = gaussian_noise(1, Purpose.STUDENT_NOISE, 5, [2, 3], (1, 8, 8), 0.1, None)
    assert np.array_equal(a[2:], b)
    assert not np.array_equal(a[0], a[1])
    assert draw(1, Purpose.CROP, 5, 0).random() != draw(1, Purpose.AUGMENTATION, 5, 0).random()
    assert np.abs(gaussian_noise(1, Purpose.STUDENT_NOISE, 5, [0], (1, 64, 64), 0.1, 0.2)).max() <= np.float32(0.2)


def test_varying_noise_also_shows_clean_images():
    draws = [
        gaussian_noise(1, Purpose.STUDENT_NOISE, step, range(8), (1, 32, 32), 0.1, None, True) for step in range(40)
    ]
    spread = np.concatenate(draws).std(axis=(1, 2, 3))
    assert spread.min() < 0.005
    assert 0.09 < spread.max() < 0.105
    assert spread.mean() == pytest.approx(0.05, abs=0.006)
    part = gaussian_noise(1, Purpose.STUDENT_NOISE, 0, [5], (1, 32, 32), 0.1, None, True)
    assert np.array_equal(draws[0][5:6], part)


@pytest.mark.parametrize(
    "bad",
    [
        {"percentile": 0},
        {"percentile": 100},
        {"window": 0},
        {"warm_up": 101},
        {"alpha_early": 1.2},
        {"weight_better": -1},
        {"noise_clip": -1},
    ],
)
def test_bad_settings_are_sentences(bad):
    with pytest.raises(InputError, match="must"):
        EnsemblingSettings(**bad)
