"""Does the noise-robust framework help when training labels are wrong? Real CTs, synthetic label errors.

    python Testing/benchmarks/label_noise.py -o runs/label-noise [--steps 300] [--seeds 1] [--width 16]

Trains COPLE-Net on the COVID-19-CT-Seg patients of the shared folder and the chests without COVID, two patients left
out, four times a seed: with noise-robust Dice loss on the given labels, and with Dice loss, noise-robust Dice loss and
the full framework on labels with synthetic errors (mixed kinds). The validation labels stay as they are. Runs are kept
in the output folder: the same command resumes what was interrupted, and more --steps or --seeds extend what is there.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Python"))

from shared_data import NEGATIVES, ct_seg, ct_seg_names

from COVIDLesionSegLib.cli._progress import ProgressBar
from COVIDLesionSegLib.files import write_text
from COVIDLesionSegLib.inference.devices import cpu_name
from COVIDLesionSegLib.learning import Trainer, TrainingConfig
from COVIDLesionSegLib.learning.log import read_log

NOISE = {"kind": "mixed", "strength": 6.0}
# name -> loss, self-ensembling, label noise
RUNS = {
    "noise-robust Dice, given labels": ("noise_robust_dice", False, False),
    "Dice, noisy labels": ("dice", False, True),
    "noise-robust Dice, noisy labels": ("noise_robust_dice", False, True),
    "full framework, noisy labels": ("noise_robust_dice", True, True),
}


def write_manifest(path: Path) -> None:
    """All labeled patients, and the chests without COVID as known to be free of lesion; the lungs are found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "ct", "lesion"])
        writer.writerows([name, ct_seg(name).ct, ct_seg(name).lesion] for name in ct_seg_names())
        writer.writerows([name, ct, "none"] for name, ct in NEGATIVES.items())


def config_of(arguments: argparse.Namespace, name: str, seed: int) -> TrainingConfig:
    """The configuration of one run."""
    loss, ensembling, noisy = RUNS[name]
    channels = [arguments.width * factor for factor in (1, 2, 4, 8, 16)]
    config = TrainingConfig.from_dict(
        {
            "data": {
                "cases": "cases.csv",
                "cache": "slices",
                "selection_patients": arguments.validation,
                "validation_share": 0.0,
                "lesion_free_share": 0.15,
            },
            "network": {"arguments": {"channels": channels}},
            "loss": {"name": loss},
            "optimizer": {"learning_rate": 1e-3, "schedule": "halving", "every": 100},
            "ensembling": {"enabled": ensembling},
            "run": {"seed": seed, "steps": arguments.steps, "validation_interval": 100, "checkpoint_interval": 50},
        }
    )
    return replace(config, label_noise=replace(config.label_noise, **NOISE)) if noisy else config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--width", type=int, default=16, help="channels of the first level; 32 in the paper")
    parser.add_argument("--validation", nargs=2, default=["coronacases_001", "coronacases_008"], metavar="PATIENT")
    parser.add_argument("--table", type=Path, help="write the table here as Markdown")
    arguments = parser.parse_args()
    write_manifest(arguments.output / "cases.csv")
    rows = []
    for seed in range(arguments.seeds):
        for name in RUNS:
            folder = arguments.output / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}"
            with ProgressBar(name) as bar:
                result = Trainer(config_of(arguments, name, seed), folder, arguments.output).run(True, bar)
            steps = [entry["seconds"] for entry in read_log(folder) if entry["kind"] == "step"]
            last = [entry for entry in read_log(folder) if entry["kind"] == "selection"][-1]
            noise = result.card.metrics.get("label_noise", [])
            spoilt = [row["dice_to_clean"] for row in noise if row["kind"] != "none"]
            row = {
                "run": name,
                "seed": seed,
                "label_dice": float(np.mean(spoilt)) if spoilt else 1.0,
                "best": result.selection.dice,
                "best_step": result.best_step,
                "last": " / ".join(f"{last[name]['dice']:.3f}" for name in ("student", "teacher") if name in last),
                **{
                    f"{key} {case}": value
                    for case, rows_ in result.selection.cases.items()
                    for key, value in rows_.items()
                },
                "seconds": sum(steps),
            }
            rows.append(row)
            print(f"{name}, seed {seed}: best {row['best']:.3f}, last {row['last']}", flush=True)
    if arguments.table:
        write_text(arguments.table, table(arguments, rows))


def table(arguments: argparse.Namespace, rows: list[dict]) -> str:
    """The page with the figures and how they were made."""
    cases = arguments.validation
    head = [
        "run",
        "seed",
        "Dice of the labels trained on",
        "mean Dice (best validation)",
        "mean Dice (last step; student / teacher)",
    ]
    head += [f"{case}: Dice / RVE / HD95 mm" for case in cases] + ["training, s"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in rows:
        cells = [row["run"], row["seed"], f"{row['label_dice']:.3f}", f"{row['best']:.3f} (step {row['best_step']})"]
        cells.append(row["last"])
        cells += [" / ".join(f"{row[f'{key} {case}']:.3g}" for key in ("dice", "rve", "hd95_mm")) for case in cases]
        cells.append(f"{row['seconds']:.0f}")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    command = (
        f"python Testing/benchmarks/label_noise.py -o runs/label-noise --table docs/label-noise.md --steps "
        f"{arguments.steps} --seeds {arguments.seeds} --width {arguments.width} --validation {' '.join(cases)}"
    )
    device = cpu_name() if not torch.cuda.is_available() else torch.cuda.get_device_name()
    return f"""# Training with noisy labels

COPLE-Net of width {arguments.width} (the paper's is 32), {arguments.steps} steps of 8 crops of 224 x 224 at a rate
of 1e-3, halved every 100 steps (the paper trains up to 100 000 steps of 30 slices): **a reduced experiment that
shows that the parts work together, not a reproduction.** Six patients of COVID-19-CT-Seg and {len(NEGATIVES)}
chests without COVID train (whole CTs), two patients validate; one fold, {arguments.seeds} seed(s). Synthetic errors:
each training case gets one of dilation, erosion, vanished lesions or shift, about {NOISE["strength"]:.0f} pixels
strong; the third column is the mean Dice of the noisy labels to the given ones. Validation labels stay as they
are. "Best" is chosen on the validation patients themselves and so is optimistic; "last step" chooses nothing. The
teacher is a mean over about its last 100 steps and, after so few, still holds much of an untrained network.

{chr(10).join(lines)}

Hardware: {device}, {torch.get_num_threads()} thread(s), PyTorch {torch.__version__}, {platform.system()}. Seconds are
those of the training steps, on a machine that was busy with other work.

```
{command}
```

The same command resumes an interrupted study; more `--steps`, `--seeds` or another pair of `--validation` patients
(in another folder) extend it.
"""


if __name__ == "__main__":
    main()
