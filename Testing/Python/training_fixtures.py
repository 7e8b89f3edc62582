"""A tiny data set that a tiny network can learn in seconds: bright squares in dark lungs; a pytest plug-in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.imaging import read_labels
from COVIDLesionSegLib.learning import TrainingConfig
from COVIDLesionSegLib.learning.data import read_cases
from COVIDLesionSegLib.learning.store import open_store
from COVIDLesionSegLib.models import ModelCard, ModelRegistry, Preprocessing, save_model
from COVIDLesionSegLib.networks import create_network

PATIENTS = ("anna", "bert", "cleo", "dora")


def write_cases(folder: Path, patients=PATIENTS, slices: int = 6, size: tuple[int, int] = (48, 56)) -> Path:
    """`<id>_ct`, `<id>_lesion` and `<id>_lungs` volumes, each patient another lesion."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, patient in enumerate(patients):
        generator = np.random.default_rng(number)
        hu = np.full((slices, *size), 40.0)
        lungs = np.zeros(hu.shape, dtype=np.uint8)
        lungs[:, 6:-6, 5:25] = 1
        lungs[:, 6:-6, 31:51] = 2
        hu[lungs > 0] = -850
        lesion = np.zeros(hu.shape, dtype=np.uint8)
        top, left = 10 + 3 * number, 8 + 2 * number
        lesion[1:-1, top : top + 10, left : left + 9] = 1
        hu[lesion > 0] = -450
        hu += generator.normal(0, 30, hu.shape)
        for name, array in (("ct", hu.astype(np.int16)), ("lesion", lesion), ("lungs", lungs)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((1.0, 1.0, 2.0))
            sitk.WriteImage(image, str(folder / f"{patient}_{name}.nii.gz"))
    return folder


def tiny_config(cases: Path, **tables) -> TrainingConfig:
    """A configuration whose steps take milliseconds; tables override single settings."""
    defaults = {
        "data": {"cases": str(cases), "crop": (32, 32), "validation_patients": ("dora",), "margin": 2},
        "network": {"arguments": {"channels": [2, 4, 8, 16, 32], "dropout": [0, 0, 0.1, 0.1, 0.1]}},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
        "ensembling": {"warm_up": 2, "window": 10},
        "run": {
            "steps": 8,
            "batch_size": 4,
            "precision": "float32",
            "device": "cpu",
            "validation_interval": 4,
            "checkpoint_interval": 2,
            "threads": 1,
        },
    }
    config = TrainingConfig()
    changed = {
        table: dataclasses.replace(getattr(config, table), **(defaults.get(table, {}) | tables.get(table, {})))
        for table in {*defaults, *tables}
    }
    return dataclasses.replace(config, **changed)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return read_cases(write_cases(tmp_path_factory.mktemp("cases")))


def hashes_of(cases):
    return {case.id: case.hashes() for case in cases}


@pytest.fixture(scope="module")
def a_store(cases, tmp_path_factory):
    return open_store(cases, hashes_of(cases), tmp_path_factory.mktemp("store"), margin=2)


def write_pictures(folder, count=4, size=(40, 56), first=0):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(first, first + count):
        image = np.random.default_rng(number).integers(0, 200, size, dtype=np.uint8)
        mask = np.zeros(size, dtype=np.uint8)
        mask[10:20, 10 + number : 30] = 255
        image[mask > 0] = 230
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "images" / f"{number}.png"))
        sitk.WriteImage(sitk.GetImageFromArray(mask), str(folder / "masks" / f"{number}.png"))
    return folder


def register_tiny_model(folder: Path) -> ModelRegistry:
    """A tiny network with random weights as the default of the installation that COVIDLESIONSEG_MODELS names."""
    folder.mkdir(parents=True, exist_ok=True)
    network = create_network("coplenet", channels=[2, 4, 8, 16, 32], dropout=[0, 0, 0.1, 0.1, 0.1])
    card = ModelCard("tiny", "Tiny", "coplenet", preprocessing=Preprocessing(lung_crop_margin=2))
    save_model(network.eval(), card, folder / "tiny.safetensors")
    known = ModelRegistry()
    known.register(folder / "tiny.safetensors", card)
    known.set_default("tiny")
    return known


def make_corrected_store(folder: Path) -> Store:
    """A folder's ``store``, in which the cases of all patients, in ``data``, are corrected."""
    write_cases(folder / "data")
    store = Store.create(folder / "store")
    for number, patient in enumerate(PATIENTS, start=1):
        files = {role: folder / "data" / f"{patient}_{role}.nii.gz" for role in ("ct", "lungs")}
        store.add(files["ct"], patient, lungs=files["lungs"])
        mask = read_labels(folder / "data" / f"{patient}_lesion.nii.gz").mask()
        store.save_revision(f"case-000{number}", mask, "hans")
    return store
