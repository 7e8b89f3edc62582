"""What fine-tuning on a few patients costs on all others, on real CTs, with and without a hold on the base model.

    python Testing/benchmarks/forgetting.py -o runs/forgetting [--steps 300] [--hold none predictions:1 weights:0.01]

The base has learned from all patients of COVID-19-CT-Seg (shared folder). It is fine-tuned on two of them, whose masks
carry the errors of an annotator (one kind a patient, a strength for each lesion), and judged on the six others with the
experts' masks. A row is one fine-tuning: the mean Dice on the others before and after, the largest fall of one of them,
and the Dice on the two themselves against the masks that were learned, by which one sees that something was learned.
``--every N`` judges on every Nth slice between apex and base. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import SimpleITK as sitk
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "Testing" / "Python")]

from shared_data import ct_seg, ct_seg_names

from COVIDLesionSegLib.learning import TrainingConfig, fine_tune
from COVIDLesionSegLib.learning.config import DataSettings, LabelNoiseSettings, RegularizationSettings
from COVIDLesionSegLib.learning.data import read_cases
from COVIDLesionSegLib.learning.fine_tuning import as_prepared_for, default_config
from COVIDLesionSegLib.learning.label_noise import add_label_noise
from COVIDLesionSegLib.learning.store import open_store
from COVIDLesionSegLib.learning.validation import judge
from COVIDLesionSegLib.models import LoadedModel, ModelRegistry, load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="coplenet-ctseg", help="id or file of the base")
    parser.add_argument("--tune", nargs=2, default=["002", "005"], metavar="NNN", help="the two patients")
    parser.add_argument("--hold", nargs="+", default=["none", "predictions:1", "weights:0.01"], metavar="NAME[:WEIGHT]")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--noise", type=float, default=2.0, help="strength of the annotator's errors, pixels")
    parser.add_argument("--crop", nargs=2, type=int, default=[192, 224], metavar="SIDE", help="training crops")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="judge on every Nth slice")
    parser.add_argument("--replay", nargs="+", default=[], metavar="NNN", help="patients whose masks are replayed")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    folder = arguments.output.absolute()
    torch.set_num_threads(arguments.threads)
    base = ModelRegistry().path(arguments.model)
    tuned = [f"coronacases_{name}" for name in arguments.tune]
    lesions = write_lesions(folder, tuned, arguments.noise)
    config = configuration(arguments, folder)
    everyone = write_manifest(folder / "everyone.csv", lesions, list(lesions))
    store = ThinStore(everyone, as_prepared_for(load_checkpoint(base).card, config.data), arguments.every)
    before = figures(load_checkpoint(base), store, folder / f"base-{arguments.every}.json")
    print("| hold on the base | others: before | after | worst of them | the two: before | after |")
    print("| --- | --- | --- | --- | --- | --- |")
    for text in arguments.hold:
        name, _, weight = text.partition(":")
        wanted = replace(config, regularization=RegularizationSettings(name, float(weight or 1)))
        run = folder / f"{text.replace(':', '-')}-{arguments.steps}{''.join(f'-{name}' for name in arguments.replay)}"
        run.mkdir(exist_ok=True)
        if arguments.replay:
            replayed = [f"coronacases_{name}" for name in arguments.replay]
            write_manifest(run / "replay.csv", lesions, replayed)
            half = wanted.run.batch_size // 2
            wanted = replace(
                wanted,
                data=replace(wanted.data, pseudo_cases="replay.csv"),
                run=replace(wanted.run, batch_size=half, pseudo_batch_size=half),
            )
        done = run / f"judged-{arguments.every}.json"
        if not done.exists():
            manifest = write_manifest(run / "cases.csv", lesions, tuned)
            model = fine_tune(base, manifest, wanted, run, resume=True)
            figures(model, store, done)
        print(row(text, before, json.loads(done.read_text(encoding="utf-8")), tuned), flush=True)


class ThinStore:
    """Every Nth slice of the cases as they judge, as ``learning.validation.judge`` reads a store."""

    def __init__(self, manifest: Path, data: DataSettings, every: int) -> None:
        cases = read_cases(manifest)
        hashes = {case.id: case.hashes() for case in cases}
        self._store = open_store(cases, hashes, data.cache, data.margin, data.resize, judges={c.id for c in cases})
        self._every = every
        self.cases = {}
        for name, case in self._store.cases.items():
            count = len(range(0, case.shape[0], every))
            shape, label_shape = ((count, *sides[1:]) for sides in (case.shape, case.label_shape))
            spacing = (case.spacing[0] * every, *case.spacing[1:])
            corner = (0, *case.corner[1:])
            self.cases[name] = replace(case, shape=shape, label_shape=label_shape, corner=corner, spacing=spacing)

    def image(self, case: str) -> np.ndarray:
        return self._store.image(case)[:: self._every]

    def label(self, case: str) -> np.ndarray:
        stored = self._store.cases[case]
        return self._store.label(case)[stored.box[0]][:: self._every]


def configuration(arguments: argparse.Namespace, folder: Path) -> TrainingConfig:
    """The default fine-tuning, in bfloat16, of which the last teacher is kept."""
    config = replace(default_config(), regularization=RegularizationSettings())
    return replace(
        config,
        data=replace(config.data, validation_share=0.0, cache=str(folder / "slices"), crop=tuple(arguments.crop)),
        run=replace(
            config.run,
            steps=arguments.steps,
            validation_interval=arguments.steps,
            device="cpu",
            precision="bfloat16",
            deterministic=False,
            threads=arguments.threads,
        ),
    )


def write_lesions(folder: Path, tuned: list[str], strength: float) -> dict[str, Path]:
    """The lesion mask of each patient; those that are learned have errors."""
    found = {}
    for number, name in enumerate(ct_seg_names()):
        found[name] = ct_seg(name).lesion
        if name in tuned:
            found[name] = folder / f"{name}_lesion.nii.gz"
            if not found[name].exists():
                image = sitk.ReadImage(str(ct_seg(name).lesion))
                mask = (sitk.GetArrayFromImage(image) > 0).astype(np.uint8)
                noisy, _ = add_label_noise(mask, LabelNoiseSettings("mixed", strength), number)
                out = sitk.GetImageFromArray(noisy)
                out.CopyInformation(image)
                sitk.WriteImage(out, str(found[name]))
    return found


def write_manifest(path: Path, lesions: dict[str, Path], names: list[str]) -> Path:
    rows = [[name, name, str(ct_seg(name).ct), str(lesions[name])] for name in names]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "patient", "ct", "lesion"], *rows])
    return path


def figures(model: LoadedModel, store: ThinStore, path: Path) -> dict[str, float]:
    """The Dice of each patient, measured or as it was written before."""
    if not path.exists():
        found = judge(
            model.network, store, list(store.cases), model.card.preprocessing, torch.device("cpu"), torch.bfloat16
        )
        path.write_text(json.dumps({case: values["dice"] for case, values in found.items()}), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def row(text: str, before: dict[str, float], after: dict[str, float], tuned: list[str]) -> str:
    others = [name for name in before if name not in tuned]
    change = {name: after[name] - before[name] for name in others}
    worst = min(others, key=lambda name: change[name])
    means = [fmean(values[name] for name in names) for names in (others, tuned) for values in (before, after)]
    return (
        f"| {text} | {means[0]:.3f} | {means[1]:.3f} | {change[worst]:+.3f} ({worst[-3:]}) | "
        f"{means[2]:.3f} | {means[3]:.3f} |"
    )


if __name__ == "__main__":
    main()
