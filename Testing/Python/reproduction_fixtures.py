"""Tiny made-up data for tables, and short ways to fill a table on it; a pytest plug-in."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import SimpleITK as sitk
from training_fixtures import write_cases

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.reproduction.planning import Options

PATIENTS = ("anna", "bert", "cleo", "dora", "emil")
TINY = ["--width", "2", "--steps", "2", "--device", "cpu", "--precision", "float32", "--quiet"]
TINY_VOLUMES = [*TINY, "--crop", "32", "--set", "run.batch_size=4", "run.validation_interval=1"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """The layout of COVID-SemiSeg: 6 training, 3 test and 4 unlabeled slices with a bright disk."""
    folder = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 6), ("test", 3), ("unlabelled", 4)):
        for number in range(count):
            generator = np.random.default_rng([number, count])
            rows, columns = np.mgrid[:56, : 44 + 2 * number]
            disk = (rows - 24) ** 2 + (columns - 20) ** 2 < (6 + number) ** 2
            grey = 60 + 120 * disk + generator.normal(0, 8, disk.shape)
            image = (folder / part / "images" if part != "unlabelled" else folder / part) / f"{number}.png"
            _write(image, grey.clip(0, 255))
            if part != "unlabelled":
                _write(folder / part / "masks" / f"{number}.png", 255 * disk)
    return folder


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("volumes"), PATIENTS)


def _write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(path))


def reproduce(table, data, output, *arguments):
    return main(["reproduce", table, "--data", str(data), "-o", str(output), *arguments])


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def options_for(data, output, **changed):
    settings = {"width": 2, "steps": 2, "device": "cpu", "precision": "float32", "seeds": (0,)}
    return Options(data, output, **(settings | changed))
