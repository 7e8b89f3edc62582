"""Networks of a table: those of other libraries, missing ones, and what a network costs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reproduction_fixtures import TINY_VOLUMES, options_for, reproduce, rows_of

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.learning.distributed import Ranks
from COVIDLesionSegLib.learning.sampling import BatchSource
from COVIDLesionSegLib.learning.training_data import TrainingData
from COVIDLesionSegLib.models import Preprocessing
from COVIDLesionSegLib.reproduction import baselines
from COVIDLesionSegLib.reproduction.catalog import load_table, networks
from COVIDLesionSegLib.reproduction.efficiency import build, cost
from COVIDLesionSegLib.reproduction.study import Study


def test_a_network_of_another_library_is_trained_tested_and_kept(volumes, tmp_path, monkeypatch):
    library = SimpleNamespace(AttentionUnet=lambda *_, **__: torch.nn.Conv2d(1, 2, 3, padding=1))
    monkeypatch.setattr(baselines, "_library", lambda source: library)
    arguments = ["--rows", "attention-unet", "--seeds", "0"]
    assert reproduce("tmi-2", volumes, tmp_path, *TINY_VOLUMES, *arguments) == 0
    dice = next(entry for entry in rows_of(tmp_path / "tmi-2.csv") if entry["metric"] == "dice")
    assert 0 <= float(dice["mean"]) <= 100
    tensors = torch.load(next(tmp_path.rglob("best.pt")), weights_only=True)
    assert set(tensors) == {"body.weight", "body.bias"}


def test_patches_are_planes_changed_alike(volumes, tmp_path):
    changes = {"run": {"batch_size": 4}}
    settings = {"rows": ("coplenet",), "crop": (32, 32), "changes": changes}
    study = Study(load_table("tmi-2"), options_for(volumes, tmp_path, **settings))
    config = study.prepare(study.cells[0]).config
    preprocessing = Preprocessing()
    data = TrainingData(config, tmp_path, tmp_path / "run", preprocessing, Ranks())
    drawn = {}
    for depth in (1, 3):
        cut = replace(config.data, depth=depth)
        source = BatchSource(data.store, data.train, 4, cut, config.augmentation, preprocessing, seed=0)
        drawn[depth] = source.batch(0)
    assert drawn[3].images.shape == (4, 1, 3, 32, 32)
    assert drawn[3].labels.shape == (4, 3, 32, 32)
    np.testing.assert_array_equal(drawn[3].images[:, :, 1], drawn[1].images)
    np.testing.assert_array_equal(drawn[3].labels[:, 1], drawn[1].labels)


@pytest.mark.long
@pytest.mark.parametrize("row", ["nnunet-2d", "nnunet-3d", "attention-unet"])
def test_networks_of_monai(row, volumes, tmp_path):
    pytest.importorskip("monai")
    assert reproduce("tmi-2", volumes, tmp_path, *TINY_VOLUMES, "--rows", row, "--seeds", "0") == 0
    dice = next(entry for entry in rows_of(tmp_path / "tmi-2.csv") if entry["metric"] == "dice")
    assert 0 <= float(dice["mean"]) <= 100
    assert list(tmp_path.rglob("best.pt"))


@pytest.mark.parametrize(
    "key", ["scse-unet", "linknet-xception", "fpn-efficientnet-b1", "pspnet-vgg13", "unet-resnet34", "fcn"]
)
def test_networks_of_other_libraries(key):
    network = networks()[key]
    reason = baselines.absent(network)
    if reason:
        pytest.skip(reason)
    made = baselines.make_network(network).eval()
    with torch.inference_mode():
        assert made(torch.zeros(1, 1, 50, 70)).shape == (1, 2, 50, 70)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'monai'", name="monai"), "the package monai is not installed"),
        (RuntimeError("operator torchvision::nms does not exist\nmore"), "does not load here (operator torchvision"),
    ],
)
def test_a_missing_package_is_a_missing_row_with_its_command(error, said, volumes, tmp_path, monkeypatch):
    def refuse(name):
        raise error

    baselines._library.cache_clear()
    monkeypatch.setattr(baselines, "importlib", SimpleNamespace(import_module=refuse))
    try:
        assert reproduce("tmi-1", volumes, tmp_path, *TINY_VOLUMES, "--rows", "dice", "--seeds", "0") == 0
    finally:
        baselines._library.cache_clear()
    text = (tmp_path / "tmi-1.md").read_text(encoding="utf-8")
    assert said in text
    assert "`pip install 'covid-lesion-seg[baselines]'" in text
    assert "| Dice | 77.89 ± 11.74 | - |" in text


def test_a_baseline_takes_sides_of_any_size():
    body = torch.nn.Conv2d(1, 2, 1)
    made = baselines.Baseline(body, (32, 32))
    x = torch.rand(1, 1, 40, 75)
    torch.testing.assert_close(made(x), body(x))


def test_parameters_and_multiply_adds_are_those_of_the_network():
    found = cost(build(networks()["coplenet"], None), (64, 64), torch.device("cpu"))
    assert found.parameters == 10_521_666
    # 11.063 G for 256 x 256, convolutions alone
    assert found.macs == pytest.approx(11.063e9 / 16, rel=1e-3)
    assert found.seconds > 0


@pytest.mark.long
def test_the_efficiency_table(tmp_path, capsys):
    arguments = ["--rows", "caresunet", "segnet", "coplenet", "--width", "4", "--resize", "64", "--quiet"]
    assert main(["reproduce", "med-phys-4", "-o", str(tmp_path), *arguments, "--device", "cpu"]) == 0
    text = (tmp_path / "med-phys-4.md").read_text(encoding="utf-8")
    assert "base width 4" in text
    assert "| SegNet | not found | - | not found | - | not found | - | missing: no library" in text
    rows = {row["row"]: row for row in rows_of(tmp_path / "med-phys-4.csv")}
    assert float(rows["caresunet"]["Time of a slice [ms]"]) > 0
    assert rows["segnet"]["missing because"].startswith("no library")
