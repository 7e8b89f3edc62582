"""Case stores for tests: tiny CTs with a lesion each, and a model file that needs no PyTorch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.cases.gate import CaseFigures, GateDecision, GateRule, decide
from COVIDLesionSegLib.models.card import CARD_KEY, ModelCard

SHAPE = (6, 24, 28)


def hounsfield(number: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A chest of sorts, int16 (z, y, x), another one for each number."""
    generator = np.random.default_rng(number)
    hu = np.full(shape, 40.0)
    hu[:, 3:-3, 3:12] = hu[:, 3:-3, 15:25] = -850
    hu[lesion(number, shape)] = -450
    return (hu + generator.normal(0, 20, shape)).astype(np.int16)


def lesion(number: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """The lesion of that chest, bool (z, y, x)."""
    mask = np.zeros(shape, dtype=bool)
    top = 5 + number % 8
    mask[1:4, top : top + 5, 4:10] = True
    return mask


def write_ct(path: Path, number: int, shape: tuple[int, int, int] = SHAPE) -> Path:
    """The chest as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(hounsfield(number, shape))
    image.SetSpacing((0.8, 0.8, 2.5))
    image.SetOrigin((-10.0, 20.0, -300.0))
    sitk.WriteImage(image, str(path))
    return path


def write_mask(path: Path, mask: np.ndarray, like: Path) -> Path:
    """A mask as a file on the grid of another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.CopyInformation(sitk.ReadImage(str(like)))
    sitk.WriteImage(image, str(path))
    return path


def make_store(folder: Path, count: int = 3) -> Store:
    """A store with so many cases, each of another patient."""
    store = Store.create(folder / "store")
    for number in range(1, count + 1):
        store.add(write_ct(folder / "cts" / f"{number}.nii.gz", number), patient=f"Patient {number}")
    return store


def write_model(path: Path, **card: object) -> Path:
    """A file that is a model for all that does not run it: a header with a card, and a few bytes."""
    values = ModelCard(**{"id": "toy", "name": "Toy", "network": "coplenet", "weights_sha256": "ab" * 32, **card})
    header = {
        "__metadata__": {CARD_KEY: json.dumps(values.to_json())},
        "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(16)))
    return path


def figures(dice: float, reference: float = 10.0, prediction: float = 10.0) -> CaseFigures:
    """Figures of one case that matter to the gate."""
    return CaseFigures(dice, 0.1, 4.0, prediction, reference)


def decision(
    new: str,
    old: str,
    after: Sequence[float],
    before: Sequence[float],
    *,
    split: Mapping[str, object] | None = None,
    rule: GateRule | None = None,
) -> GateDecision:
    """What the gate says of two models' Dice on case-0001, case-0002, ..., each of another patient; one may decide."""
    names = [f"case-{number:04d}" for number in range(1, len(after) + 1)]
    found = {
        old: dict(zip(names, map(figures, before), strict=True)),
        new: dict(zip(names, map(figures, after), strict=True)),
    }
    rule = rule or GateRule(minimum_patients=1)
    return decide(new, old, old, found, {name: name for name in names}, split=split or {}, rule=rule)
