"""Label noise, learning rates, the audit of labels, configurations that ship, pseudo-labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from training_fixtures import tiny_config, write_pictures

from COVIDLesionSegLib.learning import TrainingConfig, mean_entropy, pseudo_label
from COVIDLesionSegLib.learning.config import LabelNoiseSettings, OptimizerSettings
from COVIDLesionSegLib.learning.data import read_cases, read_pictures
from COVIDLesionSegLib.learning.noise_robust import LabelAudit
from COVIDLesionSegLib.learning.optimizers import learning_rate, make_optimizer
from COVIDLesionSegLib.learning.training_data import add_label_noise
from COVIDLesionSegLib.measurement import dice
from COVIDLesionSegLib.models import LoadedModel, ModelCard, Preprocessing
from COVIDLesionSegLib.networks import CAResUNet
from COVIDLesionSegLib.reproduction.planning import Cell, Facts, Options, configuration, protocol, protocols

# ---- label noise, rates, audit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "strength", "sign"), [("dilation", 3, 1), ("erosion", 2, -1), ("dropout", 0.6, -1), ("shift", 4, 0)]
)
def test_label_noise_changes_labels_as_it_says(kind, strength, sign):
    mask = np.zeros((6, 80, 80), dtype=np.uint8)
    for number in range(4):
        mask[1:5, 8 + 18 * number : 18 + 18 * number, 10:40] = 1
    noisy, done = add_label_noise(mask, LabelNoiseSettings(kind, strength), 0)
    assert done == kind
    assert 0.2 < dice(noisy != 0, mask != 0) < 0.999
    change = int(noisy.sum()) - int(mask.sum())
    assert np.sign(change) == sign or sign == 0
    assert np.array_equal(add_label_noise(mask, LabelNoiseSettings(kind, strength), 0)[0], noisy)
    assert not np.array_equal(add_label_noise(mask, LabelNoiseSettings(kind, strength), 1)[0], noisy)


def test_a_share_of_cases_is_spared():
    mask = np.zeros((3, 40, 40), dtype=np.uint8)
    mask[:, 10:20, 10:20] = 1
    settings = LabelNoiseSettings("mixed", 3.0, share=0.5)
    kinds = [add_label_noise(mask, settings, case)[1] for case in range(40)]
    assert 10 < kinds.count("none") < 30
    assert {"dilation", "erosion", "dropout", "shift"} <= set(kinds)


def test_mixed_noise_has_one_strength_in_pixels_and_lesions():
    """Strength 3: borders move by 3 pixels on average, and three lesions in ten vanish."""
    mask = np.zeros((1, 210, 210), dtype=np.uint8)
    for number in range(100):
        row, column = divmod(number, 10)
        mask[0, 5 + 20 * row : 15 + 20 * row, 5 + 20 * column : 15 + 20 * column] = 1
    left = {}
    for case in range(40):
        noisy, kind = add_label_noise(mask, LabelNoiseSettings("mixed", 3.0), case)
        left.setdefault(kind, []).append(noisy.sum() / mask.sum())
    assert np.mean(left["dropout"]) == pytest.approx(0.7, abs=0.05)
    assert np.mean(left["dilation"]) > 1.5


def test_optimizers_are_made_as_they_are_set():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    ranger = make_optimizer(OptimizerSettings("ranger", 1e-3, 1e-4, momentum=0.8), [weight])
    assert ranger.param_groups[0]["betas"] == (0.8, 0.999)
    assert ranger.param_groups[0]["weight_decay"] == 1e-4
    assert make_optimizer(OptimizerSettings("sgd", momentum=0.7), [weight]).param_groups[0]["momentum"] == 0.7
    # Adam's decay is part of the gradient, as in the authors' code: without one, the first step is a whole rate long
    adam = make_optimizer(OptimizerSettings("adam", 1e-2, weight_decay=0.5), [weight])
    weight.grad = torch.zeros_like(weight)
    adam.step()
    assert weight.tolist() == [pytest.approx([0.99, 0.99], abs=1e-5)] * 2


@pytest.mark.parametrize(
    ("settings", "steps", "rates"),
    [
        ({"schedule": "halving"}, (0, 9_999, 10_000, 20_000), (1e-4, 1e-4, 5e-5, 2.5e-5)),
        ({"schedule": "milestones", "factor": 0.1, "milestones": (30, 50)}, (0, 30, 49, 50), (1e-4, 1e-5, 1e-5, 1e-6)),
        ({"schedule": "constant"}, (0, 99), (1e-4, 1e-4)),
        ({"schedule": "one_cycle"}, (0, 30, 100), (4e-6, 1e-4, 4e-9)),
    ],
)
def test_learning_rates(settings, steps, rates):
    found = [learning_rate(OptimizerSettings(**settings), step, 100) for step in steps]
    assert found == pytest.approx(rates)


def test_the_audit_ranks_the_slice_whose_label_is_wrong():
    audit = LabelAudit(window=20, percentile=70, warm_up=2)
    generator = np.random.default_rng(0)
    for _ in range(30):
        losses = [*generator.uniform(0.1, 0.2, 3), generator.uniform(0.8, 1.0)]
        audit.add([("a", 0), ("a", 1), ("b", 0), ("b", 7)], losses, [0.1, 0.2, 0.1, 0.8])
    worst = audit.ranked()[0]
    assert (worst.case, worst.slice, worst.share_above) == ("b", 7, 1.0)
    assert worst.reason == "loss above the threshold in 28 of 28 visits; teacher and label overlap with Dice 0.20"
    assert [row["case"] for row in audit.cases()] == ["b", "a"]
    again = LabelAudit(window=20, percentile=70, warm_up=2)
    again.load_state_dict(json.loads(json.dumps(audit.state_dict())))
    assert again.ranked() == audit.ranked()


# ---- configurations that ship, pseudo-labels ------------------------------------------------------------------------


PROTOCOLS = protocols()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_trains_as_the_table_says(name):
    """One source: what `train TABLE/ROW` does is what `reproduce` trains on the same slices."""
    table, row = PROTOCOLS[name]
    config = protocol(table, row)
    assert TrainingConfig.from_dict(config.to_dict()) == config
    cell = configuration(table, Cell(row, 0), Options(Path(), Path()), Facts(50, 10))
    differences = {text.partition(":")[0] for text in config.difference(cell)}
    assert differences <= {"data.lesion_free_share", "data.validation_share"}
    assert config.data.lesion_free_share == -1
    # as many as the papers test, by patient; the pictures have a test set of their own
    assert config.data.validation_share == (table.test_share if table.data == "volumes" else 0)
    assert config.run.steps == (table.steps or table.epochs * -(-50 // config.run.batch_size))


def test_the_six_rows_of_table_three_differ_as_the_table_says():
    rows = [protocol(*PROTOCOLS[name]) for name in PROTOCOLS if name.startswith("tmi-3/")]
    parts = [
        (c.loss.name, c.ensembling.enabled, c.ensembling.adaptive_teacher, c.ensembling.adaptive_student) for c in rows
    ]
    assert parts[0][:2] == ("dice", False)
    assert parts[1:] == [
        ("dice", True, False, False),
        ("dice", True, True, False),
        ("dice", True, False, True),
        ("dice", True, True, True),
        ("noise_robust_dice", True, True, True),
    ]


def test_entropy_in_both_conventions():
    sure, unsure = torch.tensor([-50.0, 50.0]), torch.tensor([0.0, 0.0])
    logits = torch.stack([sure, unsure])[:, :, None, None].expand(2, 2, 4, 4)
    assert mean_entropy(logits).tolist() == pytest.approx([0, np.log(2)], abs=1e-6)
    assert mean_entropy(logits, "bits").tolist() == pytest.approx([0, 1], abs=1e-6)
    # a softmax over sigmoid outputs can't be surer than 0.582 nats
    assert mean_entropy(logits, "nats", "softmax_of_sigmoids").tolist() == pytest.approx([0.5822, np.log(2)], abs=1e-4)


@pytest.mark.parametrize(("threshold", "accepted", "warning"), [(1e-9, 0, "No slice"), (0.7, 4, "Every slice")])
def test_pseudo_labels_are_filtered_reported_and_trainable(tmp_path, threshold, accepted, warning):
    torch.manual_seed(0)
    network = CAResUNet(base_channels=4).eval()
    card = ModelCard("tiny", "Tiny", "caresunet", network.arguments, preprocessing=Preprocessing(resize=(32, 48)))
    pictures = read_pictures(write_pictures(tmp_path / "set") / "images")
    report = pseudo_label(LoadedModel(network, card), pictures, tmp_path / "pseudo", threshold, device="cpu")
    assert (report.accepted, report.total) == (accepted, 4)
    assert report.warning.startswith(warning)
    rows = list(csv.DictReader(report.manifest.open()))
    assert len(rows) == accepted
    if accepted:
        found = read_cases(report.manifest)
        assert all(case.kind == "picture" for case in found)
        mask = next((case.lesion for case in found if case.lesion is not None), None)
        if mask is not None:
            assert sitk.GetArrayFromImage(sitk.ReadImage(str(mask))).shape == (40, 56)


def test_semi_supervised_training_takes_as_many_pseudo_labels(tmp_path):
    from COVIDLesionSegLib.learning import Trainer

    labeled = write_pictures(tmp_path / "labeled")
    pseudo = write_pictures(tmp_path / "pseudo", count=6, first=4)
    config = tiny_config(
        labeled,
        data={"validation_patients": ("3",), "pseudo_cases": str(pseudo), "margin": -1, "resize": (32, 32)},
        network={"name": "caresunet", "arguments": {"base_channels": 4}},
        loss={"name": "cares"},
        optimizer={"name": "ranger", "learning_rate": 1e-3},
        ensembling={"enabled": False},
        run={"steps": 2, "batch_size": 2, "pseudo_batch_size": 2},
    )
    result = Trainer(config, tmp_path / "run", tmp_path).run()
    assert result.card.preprocessing.resize == (32, 32)
    assert result.card.preprocessing.lung_crop_margin is None
    assert set(result.validation.cases["3"]) == {"dice", "rve"}
