"""Why not nnU-Net's network: COPLE-Net beside MONAI's DynUNet in 2-D and in 3-D on patches, each for the same time.

    python Testing/benchmarks/beside_dynunet.py -o runs/beside [--minutes 5.5] [--rows coplenet dynunet2d dynunet3d]

All learn from the data of ``half1`` of ``bundled_models.py``, with its augmentation and plain Dice loss, as many steps
as fit into the time by a measurement at the start, and are judged alike by the trainer's validation on the patients
and the chests without COVID left out: in the box of the found lungs, no postprocessing, lesion above 0.5. The 3-D
network sees the same resized slices as patches, and a volume through a sliding window. Prints a row each, in Markdown;
an interrupted training goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from argparse import Namespace
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from bundled_models import LEFT_OUT, NEGATIVES_LEFT_OUT, config_of, write_manifest

from COVIDLesionSegLib.files import write_json
from COVIDLesionSegLib.learning import Trainer, TrainingConfig
from COVIDLesionSegLib.learning.estimate import step_seconds
from COVIDLesionSegLib.learning.machine import cpu_threads
from COVIDLesionSegLib.networks import create_network
from COVIDLesionSegLib.reproduction.baselines import make_network
from COVIDLesionSegLib.reproduction.catalog import Network

TRAINING = "half1"


@dataclass(frozen=True)
class Row:
    """What one network learns from: slices, or patches of (slices, rows, columns); the first level's channels."""

    title: str
    width: int
    builder: str = ""
    patch: tuple[int, int, int] = (1, 192, 256)
    batch_size: int = 4


ROWS = {
    "coplenet": Row("COPLE-Net of half the published width", 16),
    "dynunet2d": Row("DynUNet, 2-D", 16, "dynunet"),
    "dynunet3d": Row("DynUNet, 3-D, patches of 32 x 128 x 128", 8, "dynunet3d", (32, 128, 128), 2),
}


def config_for(row: Row, output: Path, steps: int) -> TrainingConfig:
    """The recipe of the bundled models' first part, for one network."""
    manifest = output / "cases.csv"
    if not manifest.exists():
        write_manifest(manifest, "final", pictures=False)
    shared = config_of(
        Namespace(
            network="coplenet",
            width=row.width,
            slices=1,
            synthetic=0.0,
            inflation=0.0,
            plain_dice=True,
            base=None,
            steps=steps,
            learning_rate=1e-3,
            precision="bfloat16",
            output=output,
        ),
        str(manifest),
    )
    left_out = [f"coronacases_{number}" for number in LEFT_OUT[TRAINING]]
    return replace(
        shared,
        data=replace(
            shared.data,
            validation_patients=(*left_out, *NEGATIVES_LEFT_OUT[TRAINING]),
            depth=row.patch[0],
            crop=row.patch[1:],
            slice_offsets_mm=() if row.builder else shared.data.slice_offsets_mm,
        ),
        network=replace(shared.network, name="external", arguments={}) if row.builder else shared.network,
        run=replace(shared.run, batch_size=row.batch_size),
    )


def body_of(row: Row) -> torch.nn.Module:
    """The network of another library."""
    return make_network(Network(row.builder, row.title, "monai", builder=row.builder), row.width, row.patch)


def steps_in(row: Row, output: Path, seconds: float) -> int:
    """How many steps fit into a time, as measured here; kept, so that an interrupted training is the same one."""
    kept = output / f"{row.builder or 'coplenet'}.json"
    if not kept.exists():
        config = config_for(row, output, 1)
        network = body_of(row) if row.builder else create_network("coplenet", **config.network.arguments)
        with cpu_threads(config.run.threads):
            measured = step_seconds(
                config, network, torch.device("cpu"), torch.bfloat16, row.batch_size, config.data.crop, steps=6
            )
        write_json(kept, {"steps": int(seconds / statistics.median(measured[1:]))})
    return int(json.loads(kept.read_text())["steps"])


def run(name: str, output: Path, seconds: float) -> str:
    """Train and judge one network; returns its row."""
    row = ROWS[name]
    steps = steps_in(row, output, seconds)
    trainer = Trainer(
        config_for(row, output, steps),
        output / name,
        output,
        make_network=partial(body_of, row) if row.builder else None,
    )
    cases = trainer.run(resume=True).validation.cases
    patients = {case: figures for case, figures in cases.items() if "false_ml" not in figures}
    means = [statistics.mean(figures[key] for figures in patients.values()) for key in ("dice", "rve", "hd95_mm")]
    own = ", ".join(f"{case[-3:]} {figures['dice']:.3f}" for case, figures in patients.items())
    false = ", ".join(f"{case} {f['false_ml']:.1f}" for case, f in cases.items() if case not in patients)
    return f"| {row.title} | {steps} | {means[0]:.3f} | {means[1]:.3f} | {means[2]:.1f} | {own} | {false} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.5, help="of training for each network (default: 5.5)")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    print(f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads, {arguments.minutes} minutes each")
    print("| network | steps | Dice | RVE | HD95 mm | each patient's Dice | false mL |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.rows:
        print(run(name, output, 60 * arguments.minutes), flush=True)


if __name__ == "__main__":
    main()
