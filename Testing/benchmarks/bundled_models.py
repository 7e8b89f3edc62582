"""How the bundled models were trained and judged, on the shared data; every figure of their cards comes from here.

    python Testing/benchmarks/bundled_models.py train fold1 -o runs/bundled [--network coplenet] [--width 16] ...
    python Testing/benchmarks/bundled_models.py judge fold1 -o runs/bundled [--smooth-across-slices MM] [--threshold P]
    python Testing/benchmarks/bundled_models.py table -o runs/bundled
    python Testing/benchmarks/bundled_models.py publish final -o runs/bundled ... --card CARD.json

``fold1`` to ``fold4`` leave two of the eight patients of COVID-19-CT-Seg out; ``half1`` and ``half2`` leave four out,
those of two folds, so that one training judges as many patients as two. Each of the three chests without COVID is left
out of one fold and of one half as well, so that its false milliliters can be stated. ``final`` trains on all eleven.
CTs and lesions are whole; the lungs are found, in training as in judging.

Nothing is chosen on the patients left out: they are in no manifest, steps are fixed, and the teacher after the last
step (without one, the network) is the model. ``judge`` takes the options of the training and writes its figures beside
the model; ``table`` adds up all that were judged. ``publish`` saves the final model in float16 among the bundled ones,
with a card that says what CARD.json says. An interrupted training goes on where it was when it is given again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from accuracy import add_postprocessing, chest_without_covid, coronacase, picture_as_ct, postprocessing_of
from shared_data import DATA, NEGATIVES, ct_seg

from COVIDLesionSegLib.files import sha256_file, write_json
from COVIDLesionSegLib.inference import Predictor
from COVIDLesionSegLib.learning import Trainer, TrainingConfig
from COVIDLesionSegLib.models import ModelCard, load_checkpoint, save_model
from COVIDLesionSegLib.models.card import read_card
from COVIDLesionSegLib.networks import NETWORKS
from COVIDLesionSegLib.networks.factory import network_class
from COVIDLesionSegLib.resources import resource

PATIENTS = ("001", "002", "004", "005", "006", "007", "008", "009")
# who judges
FOLDS = {1: ("001", "006"), 2: ("002", "008"), 3: ("004", "009"), 4: ("005", "007")}
# training -> patients that it never sees
LEFT_OUT = {
    **{f"fold{number}": names for number, names in FOLDS.items()},
    "half1": FOLDS[1] + FOLDS[4],
    "half2": FOLDS[2] + FOLDS[3],
    "final": (),
}
# training -> chests without COVID that it never sees
NEGATIVES_LEFT_OUT: dict[str, tuple[str, ...]] = {
    "fold2": ("lctsc_006",),
    "fold3": ("lctsc_011",),
    "fold4": ("normal001",),
    "half1": ("normal001", "lctsc_006"),
    "half2": ("lctsc_011",),
}
ROLES = ("ct", "lesion", "lungs")
# rows and columns that slices are resized to, in training and when the network answers
SIZE = [192, 256]
LESION_FREE = 0.4
# with synthetic disease, which is painted on a part of these
LESION_FREE_PAINTED = 0.5
# distances of the slices that a network sees, mm, and how often it must do without neighbors
OFFSETS = {1: [0.0], 3: [-5.0, 0.0, 5.0], 5: [-5.0, -2.5, 0.0, 2.5, 5.0]}
WITHOUT_NEIGHBORS = 0.3
# What part of the slices with lesion are labeled slices of COVID-SemiSeg where they train. A case is repeated to have
# that part: each is one slice, and the patients would drown the fifty.
PICTURES = 0.2
# strong changes of intensity: other scanners, kernels, slice thickness, contrast
AUGMENTATION = {
    "rotation": {"degrees": 12.0},
    "scale": {"change": 0.2},
    "contrast": {"contrast": 0.1, "brightness": 0.08},
    "gamma": {"log2": 0.25},
    "noise": {"sd": 0.025, "grain": 1.5},
    "blur": {"sd": 0.8},
    "sharpening": {"share": 1.0},
    "window_shift": {"hu": 30.0},
    "thick_slices": {"neighbors": 2},
    "consolidation": {"probability": 0.15},
}


def write_manifest(path: Path, name: str, pictures: bool) -> None:
    """What a training sees, as a manifest: patients and chests without COVID, the pictures if wanted."""
    rows: list[list[Any]] = []
    patients = [f"coronacases_{number}" for number in PATIENTS if number not in LEFT_OUT[name]]
    for patient in patients:
        rows.append([patient, patient, ct_seg(patient).ct, ct_seg(patient).lesion, ""])
    left_out = NEGATIVES_LEFT_OUT.get(name, ())
    rows += [[chest, chest, ct, "none", ""] for chest, ct in NEGATIVES.items() if chest not in left_out]
    path.parent.mkdir(parents=True, exist_ok=True)
    if pictures:
        written = write_pictures(path.parent / "pictures")
        with_lesion = sum(
            int(sitk.GetArrayFromImage(sitk.ReadImage(str(ct_seg(p).lesion))).any(axis=(1, 2)).sum()) for p in patients
        )
        turns = max(1, round(PICTURES / (1 - PICTURES) * with_lesion / len(written)))
        for picture in written:
            files = [path.parent / f"pictures/{picture}_{role}.nii.gz" for role in ROLES]
            rows += [[f"semiseg_{picture}_{turn}", f"semiseg_{picture}", *files] for turn in range(turns)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "patient", "ct", "lesion", "lungs"], *rows])


def write_pictures(folder: Path) -> list[str]:
    """Write the 50 labeled training pictures of COVID-SemiSeg as CTs of one slice; returns their names."""
    source = DATA / "covid-semiseg/train"
    names = [path.stem for path in sorted((source / "images").glob("*.jpg"))]
    folder.mkdir(exist_ok=True)
    for name in names:
        hu, lesion = picture_as_ct(source / f"images/{name}.jpg", source / f"masks/{name}.png")
        for role, array in zip(ROLES, (hu, lesion, np.ones_like(lesion)), strict=True):
            file = folder / f"{name}_{role}.nii.gz"
            # written once: a training that is under way reads them
            if not file.exists():
                sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.int16)), str(file))
    return names


def config_of(arguments: argparse.Namespace, cases: str) -> TrainingConfig:
    """The recipe; the manifest holds training cases only, so nobody is chosen to validate."""
    plain = arguments.plain_dice
    own = network_class(arguments.network).scaled(arguments.width)
    return TrainingConfig.from_dict(
        {
            "data": {
                "cases": cases,
                "cache": str(arguments.output / "slices"),
                "split": cases.replace(".csv", "-split.json"),
                "validation_share": 0.0,
                "selection_fraction": 0.0,
                "resize": SIZE,
                "crop": SIZE,
                "lesion_free_share": LESION_FREE_PAINTED if arguments.synthetic else LESION_FREE,
                "slice_offsets_mm": OFFSETS[arguments.slices],
            },
            "augmentation": AUGMENTATION
            | {
                "neighbor_dropout": {"probability": WITHOUT_NEIGHBORS if arguments.slices > 1 else 0.0},
                "synthetic_disease": {"probability": arguments.synthetic},
                "inflation": {"probability": arguments.inflation},
            },
            "network": {"name": arguments.network, "batch_norm": "estimated"}
            | ({"base_model": str(arguments.base.absolute())} if arguments.base else {"arguments": own}),
            "loss": {"name": "dice" if plain else "noise_robust_dice"},
            "ensembling": {"enabled": not plain},
            "optimizer": {
                "learning_rate": arguments.learning_rate,
                "weight_decay": 1e-5,
                "schedule": "one_cycle",
                "gradient_clip": 5.0,
            },
            "run": {
                "steps": arguments.steps,
                "batch_size": 4,
                "precision": arguments.precision,
                "validation_interval": arguments.steps,
                "checkpoint_interval": 100,
                "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
            },
        }
    )


def folder_of(arguments: argparse.Namespace) -> Path:
    """Where a training lies: its name says its options."""
    name = f"{arguments.network}{arguments.width}-{arguments.training}-{arguments.steps}-{arguments.slices}slices"
    name += "-continued" if arguments.base else ""
    name += f"-synthetic{arguments.synthetic:g}" if arguments.synthetic else ""
    name += f"-inflation{arguments.inflation:g}" if arguments.inflation else ""
    for option in ("pictures", "plain_dice"):
        if getattr(arguments, option):
            name += f"-{option}"
    return arguments.output / name


def train(arguments: argparse.Namespace) -> Path:
    """Train, or go on; returns the model."""
    folder = folder_of(arguments)
    manifest = folder.with_name(f"{folder.name}.csv")
    write_manifest(manifest, arguments.training, arguments.pictures)

    def progress(phase: str, done: int, total: int) -> None:
        if done % 100 == 0:
            print(f"{folder.name}: {phase} {done} of {total}", file=sys.stderr, flush=True)

    return Trainer(config_of(arguments, str(manifest)), folder, folder.parent).run(True, progress).model


def judge(arguments: argparse.Namespace) -> dict[str, Any]:
    """A training on the patients and chests that it never saw; kept in ``judged.json`` beside its model."""
    folder = folder_of(arguments)
    predictor, settings = Predictor(folder / "best.safetensors"), postprocessing_of(arguments)
    figures = {
        "patients": {
            number: coronacase(predictor, f"coronacases_{number}", settings) for number in LEFT_OUT[arguments.training]
        },
        "negatives": {
            chest: chest_without_covid(predictor, chest, settings)
            for chest in NEGATIVES_LEFT_OUT.get(arguments.training, ())
        },
    }
    deviation = arguments.smooth_across_slices
    write_json(folder / ("judged.json" if deviation is None else f"judged-{deviation:g}mm.json"), figures)
    return figures


def publish(arguments: argparse.Namespace) -> None:
    """Put a model among the bundled ones: weights in float16, the network and preprocessing as they were trained."""
    trained = load_checkpoint(folder_of(arguments) / "best.safetensors")
    wanted = ModelCard.from_json(arguments.card.read_text(encoding="utf-8"))
    card = replace(
        wanted,
        network_arguments=trained.network.arguments,
        preprocessing=trained.card.preprocessing,
        # by these a case store knows whom the model has seen
        metrics=wanted.metrics | {"training_images": sorted(trained.card.training_images)},
        weights_sha256="",
    )
    path = resource("Models") / f"{card.id}.safetensors"
    save_model(trained.network, card, path, dtype="float16")
    write_json(path.with_suffix(".json"), read_card(path).to_json())
    print(f"{path.name}: size_bytes {path.stat().st_size}, sha256 {sha256_file(path)}")


def table(output: Path) -> None:
    """Print every training that was judged, a line each, in Markdown."""
    print("| training | Dice | Dice, slices with lesion | |RVE| | HD95 mm | each patient's Dice | false mL |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for file in sorted(output.glob("*/judged*.json")):
        figures = json.loads(file.read_text())
        rows = figures["patients"]
        means = [
            np.mean([abs(row[key]) for row in rows.values()])
            for key in ("dice", "dice_of_slices_with_lesion", "rve", "hd95_mm")
        ]
        own = ", ".join(f"{name} {row['dice']:.3f}" for name, row in rows.items())
        false = ", ".join(f"{name} {row['false_ml_near_lungs']:.1f}" for name, row in figures["negatives"].items())
        shown = " | ".join(f"{mean:.3f}" for mean in means[:3])
        print(f"| {file.parent.name}{file.stem.removeprefix('judged')} | {shown} | {means[3]:.1f} | {own} | {false} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "judge", "table", "publish"))
    parser.add_argument("training", nargs="?", choices=tuple(LEFT_OUT), default="final")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="coplenet")
    parser.add_argument("--width", type=int, default=16, help="channels of the first level (default: 16)")
    parser.add_argument("--slices", type=int, choices=tuple(OFFSETS), default=1, help="that the network sees at once")
    parser.add_argument(
        "--synthetic", type=float, default=0.0, metavar="FRACTION", help="of the slices without lesion that get disease"
    )
    parser.add_argument(
        "--inflation",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="of the slices: less air or more in the lungs",
    )
    parser.add_argument("--pictures", action="store_true", help="the 50 labeled slices of COVID-SemiSeg train, too")
    parser.add_argument("--plain-dice", action="store_true", help="Dice loss without teacher, instead of the framework")
    parser.add_argument("--base", type=Path, help="model to go on with, of the same patients")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", default="bfloat16", choices=("auto", "float32", "bfloat16"))
    add_postprocessing(parser)
    parser.add_argument("--card", type=Path, help="of the model to publish, as JSON")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output = arguments.output.absolute()
    if arguments.what == "table":
        table(arguments.output)
    elif arguments.what == "publish":
        publish(arguments)
    elif arguments.what == "judge":
        print(json.dumps(judge(arguments), indent=2))
    else:
        print(train(arguments))


if __name__ == "__main__":
    main()
