"""How the bundled models were trained and judged, on the shared data; every figure of their cards comes from here.

    python Testing/benchmarks/bundled_models.py fold 1 --network coplenet -o runs/bundled [--base MODEL]
    python Testing/benchmarks/bundled_models.py half 1 --network coplenet -o runs/bundled [--base MODEL]
    python Testing/benchmarks/bundled_models.py pictures --network coplenet -o runs/bundled
    python Testing/benchmarks/bundled_models.py final --network coplenet -o runs/bundled [--base MODEL]
    python Testing/benchmarks/bundled_models.py judge --network coplenet -o runs/bundled [--smooth-across-slices MM]

``fold`` leaves two of the eight patients of COVID-19-CT-Seg out and trains from random weights or a base; ``half``
leaves four out, those of two folds, so that two trainings judge all eight. Each of the three chests without COVID is
left out of one fold and one half as well, so that its false milliliters can be stated. ``pictures`` trains on the 50
labeled training pictures of COVID-SemiSeg alone: it knows none of the eleven, can be judged on all of them, and is a
base for folds and halves. ``final`` trains on all eleven. With ``--pictures`` the 50 train beside the patients;
docs/models.md says why the bundled models don't.
CTs and lesions are whole, and the lungs are found, in training as in judging. The cards of the bundled models say what
those learned on: the slices with lesion only, and one chest without COVID.
Nothing is chosen on the patients left out: they are in no manifest, steps are fixed, and the teacher after the last
step is the model. ``judge`` does the judging for every training that is there, and adds it up in
``judged-NETWORK.json`` and a reliability plot (with MM in their names where it is given). An interrupted command
goes on where it was when it is given again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from accuracy import (
    THRESHOLDS,
    add_smoothing,
    calibration_error,
    chest_without_covid,
    coronacase,
    picture_as_ct,
    smoothing_of,
)
from matplotlib import pyplot
from shared_data import DATA, NEGATIVES, ct_seg

from COVIDLesionSegLib.cli._progress import ProgressBar
from COVIDLesionSegLib.files import write_json
from COVIDLesionSegLib.inference import PostProcessing, Predictor
from COVIDLesionSegLib.learning import Trainer, TrainingConfig

PATIENTS = ("001", "002", "004", "005", "006", "007", "008", "009")
# who judges
FOLDS = {1: ("001", "006"), 2: ("002", "008"), 3: ("004", "009"), 4: ("005", "007")}
HALVES = {1: FOLDS[1] + FOLDS[4], 2: FOLDS[2] + FOLDS[3]}
# the training on pictures alone
BASE = "pictures"
# chest without COVID -> trainings that never see it
NEVER_SEEN_BY = {
    "normal001": ("fold4", "half1", BASE),
    "lctsc_006": ("fold2", "half2", BASE),
    "lctsc_011": ("fold3", "half2", BASE),
}
# training -> patients that it never sees
LEFT_OUT = {
    BASE: PATIENTS,
    **{f"fold{number}": names for number, names in FOLDS.items()},
    **{f"half{number}": names for number, names in HALVES.items()},
}
ROLES = ("ct", "lesion", "lungs")
# how often a picture stands among the slices: it is one slice, and the eight patients would drown the fifty
TURNS = 6
# strong changes of intensity: other scanners, kernels, slice thickness, contrast
AUGMENTATION = {
    "rotation": {"degrees": 15.0},
    "scale": {"change": 0.25},
    "contrast": {"contrast": 0.15, "brightness": 0.15},
    "gamma": {"log2": 0.4},
    "noise": {"sd": 0.06, "grain": 1.5},
    "blur": {"sd": 1.0},
    "sharpening": {"share": 1.5},
    "window_shift": {"hu": 60.0},
    "thick_slices": {"neighbors": 2},
    "consolidation": {"probability": 0.25},
}
# At half the resolution, where a step covers the most lung in the least time; then at full resolution; and at the end
# with slight changes only: strong ones alone leave a network that draws its borders too wide.
STAGES: dict[str, dict[str, Any]] = {
    "coarse": {"zoom": 0.5, "crop": [112, 112], "batch_size": 8, "steps": 1000, "learning_rate": 1e-3, "share": 1.0},
    "fine": {"zoom": 1.0, "crop": [192, 192], "batch_size": 4, "steps": 350, "learning_rate": 3e-4, "share": 1.0},
    "mild": {"zoom": 1.0, "crop": [224, 224], "batch_size": 4, "steps": 300, "learning_rate": 1e-4, "share": 0.25},
}
# the paper's width of CARes-UNet is 64; with 16 its weights stay below 12 MB
ARGUMENTS: dict[str, dict[str, Any]] = {"coplenet": {}, "caresunet": {"base_channels": 16}}
# Instead of the last two at full resolution: slices resized, in training and when the network answers. A small network
# learns little at full resolution.
RESIZED: dict[str, dict[str, Any]] = {
    "fine": {"resize": [192, 256], "crop": [192, 192], "steps": 900, "learning_rate": 1e-3},
    "mild": {"resize": [192, 256], "crop": [192, 224], "steps": 400, "learning_rate": 2e-4},
}


def write_manifest(path: Path, name: str, pictures: bool) -> None:
    """What a training sees, as a manifest: patients and chests without COVID, the pictures if wanted."""
    rows: list[list[Any]] = []
    for patient in full_names(sorted(set(PATIENTS) - set(LEFT_OUT.get(name, ())))):
        rows.append([patient, patient, ct_seg(patient).ct, ct_seg(patient).lesion, ""])
    rows += [[chest, chest, ct, "none", ""] for chest, ct in NEGATIVES.items() if name not in NEVER_SEEN_BY[chest]]
    path.parent.mkdir(parents=True, exist_ok=True)
    for picture in write_pictures(path.parent / "pictures") if pictures else ():
        files = [path.parent / f"pictures/{picture}_{role}.nii.gz" for role in ROLES]
        rows += [[f"semiseg_{picture}_{turn}", f"semiseg_{picture}", *files] for turn in range(TURNS)]
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


def config_of(network: str, cases: str, stage: str, steps: int | None, base: str, resized: bool) -> TrainingConfig:
    """One stage of a network's recipe; the manifest holds training cases only, so nobody is chosen to validate."""
    recipe = {"resize": []} | STAGES[stage] | (RESIZED.get(stage, {}) if resized else {})
    steps = steps or recipe["steps"]
    return TrainingConfig.from_dict(
        {
            "data": {
                "cases": cases,
                "cache": cases.removesuffix(".csv"),
                "split": cases.replace(".csv", "-split.json"),
                "validation_share": 0.0,
                "selection_fraction": 0.0,
                "resize": recipe["resize"],
                "crop": recipe["crop"],
                "zoom": recipe["zoom"],
                "foreground_share": 0.6,
                "lesion_free_share": 0.3,
            },
            "augmentation": {
                name: {key: type(most)(most * recipe["share"]) for key, most in settings.items()}
                for name, settings in AUGMENTATION.items()
            },
            "network": {
                "name": network,
                # a stage goes on with a training; what it changes may change the statistics, too
                "batch_norm": "estimated",
                **({"base_model": base} if base else {"arguments": ARGUMENTS[network]}),
            },
            "loss": {"name": "noise_robust_dice"},
            "optimizer": {
                "learning_rate": recipe["learning_rate"],
                "weight_decay": 1e-5,
                "schedule": "one_cycle",
                "gradient_clip": 5.0,
            },
            "run": {
                "steps": steps,
                "batch_size": recipe["batch_size"],
                "validation_interval": steps,
                "checkpoint_interval": 50,
                "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
            },
        }
    )


def train(
    output: Path, network: str, name: str, cases: str, steps: dict[str, int | None], base: str, resized: bool
) -> Path:
    """All stages, or those at full resolution for a model that is there already; returns the model."""
    model = base
    for stage in stages_of(name)[1:] if base else stages_of(name):
        folder = output / f"{network}-{name}" / stage
        with ProgressBar(f"{network} {name} {stage}") as bar:
            config = config_of(network, cases, stage, steps[stage], model, resized)
            result = Trainer(config, folder, output).run(True, bar)
        model = str(result.model)
    return Path(model)


def stages_of(name: str) -> tuple[str, ...]:
    """Stages of a training; a base needs no mild end."""
    return tuple(STAGES)[: -1 if name == BASE else None]


def judge(output: Path, network: str, settings: PostProcessing, name_of_file: str) -> dict[str, Any]:
    """Every training that is finished, on the cases that it never saw."""
    file = output / f"judged-{name_of_file}.json"
    figures: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name, left_out in LEFT_OUT.items():
        model = output / f"{network}-{name}" / stages_of(name)[-1] / "best.safetensors"
        finished = model.with_name("result.json").exists()
        if not finished or name in figures:
            continue
        predictor, bins = Predictor(model), np.zeros((3, 10))
        judged = {patient: coronacase(predictor, patient, settings, bins) for patient in full_names(left_out)}
        chests = [chest for chest, trainings in NEVER_SEEN_BY.items() if name in trainings]
        negatives = {chest: chest_without_covid(predictor, chest, settings) for chest in chests}
        figures[name] = {"patients": judged, "bins": bins.tolist(), "negatives": negatives}
        write_json(file, figures)
    return figures


def full_names(names: Iterable[str]) -> list[str]:
    return [f"coronacases_{name}" for name in names]


def show(figures: dict[str, Any], plot: Path) -> None:
    """Print the figures of some trainings together and draw their reliability plot."""
    rows = {name: row for fold in figures.values() for name, row in fold.get("patients", {}).items()}
    for name, row in sorted(rows.items()):
        volumes = f"{row['lesion_ml']:.0f} of {row['reference_ml']:.0f} mL"
        overlap = f"Dice {row['dice']:.3f}, {row['dice_of_slices_with_lesion']:.3f} of the slices with lesion"
        print(f"{name}: {overlap}, RVE {row['rve']:.3f}, HD95 {row['hd95_mm']:.1f} mm, {volumes}")
        parts = ("missed", "extra", "healthy")
        print("  median HU", ", ".join(f"{part} {row[f'{part}_median_hu']:.0f}" for part in parts))
    for key in ("dice", "dice_of_slices_with_lesion", "rve", "hd95_mm"):
        values = [abs(row[key]) if key == "rve" else row[key] for row in rows.values()]
        print(f"mean {key}: {np.mean(values):.3f} +- {np.std(values, ddof=1):.3f} over {len(values)} patients")
    means = {cut: np.mean([row[f"dice_above_{cut}"] for row in rows.values()]) for cut in THRESHOLDS}
    print("mean dice above", ", ".join(f"{cut}: {mean:.3f}" for cut, mean in means.items()))
    best = np.mean([max(row[f"dice_above_{cut}"] for cut in THRESHOLDS) for row in rows.values()])
    print(f"mean dice where each patient's own reference chooses among these: {best:.3f}")
    for fold in figures.values():
        for chest, row in fold["negatives"].items():
            print(f"{chest}, without COVID: {row}")
    bins = np.sum([fold["bins"] for fold in figures.values()], axis=0)
    print(f"expected calibration error over the voxels of the lungs: {calibration_error(bins):.4f}")
    figure, axes = pyplot.subplots(figsize=(4, 4))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot(bins[1] / bins[0], bins[2] / bins[0], "o-")
    axes.set(xlabel="mean probability", ylabel="share of lesion voxels", xlim=(0, 1), ylim=(0, 1))
    figure.tight_layout()
    figure.savefig(plot, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fold", "half", BASE, "final", "judge"))
    parser.add_argument("number", type=int, nargs="?", help="of the fold or half")
    parser.add_argument("--network", choices=tuple(ARGUMENTS), default="coplenet")
    for stage, recipe in STAGES.items():
        parser.add_argument(f"--{stage}", type=int, metavar="STEPS", help=f"instead of {recipe['steps']}")
    add_smoothing(parser)
    parser.add_argument("--resized", action="store_true", help="the last two stages on slices of 192 x 256")
    parser.add_argument("--base", default="", help="id or file of a model to begin the second stage with")
    parser.add_argument("--pictures", action="store_true", help="the 50 labeled pictures of COVID-SemiSeg train, too")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    if arguments.what == "judge":
        deviation = arguments.smooth_across_slices
        name = arguments.network if deviation is None else f"{arguments.network}-{deviation:g}mm"
        figures = judge(output, arguments.network, smoothing_of(arguments), name)
        for part in (BASE, "fold", "half"):
            those = {name: figure for name, figure in figures.items() if name.startswith(part)}
            if those:
                print(f"\n{part}")
                show(those, output / f"reliability-{name}-{part}.png")
        return
    name = f"{arguments.what}{arguments.number or ''}"
    if name != "final" and name not in LEFT_OUT:
        parser.error(f"{name} is none of final, {', '.join(LEFT_OUT)}.")
    pictures = arguments.pictures or name == BASE
    write_manifest(output / f"{name}.csv", name, pictures)
    steps = {stage: getattr(arguments, stage) for stage in STAGES}
    print(train(output, arguments.network, name, f"{name}.csv", steps, arguments.base, arguments.resized))


if __name__ == "__main__":
    main()
