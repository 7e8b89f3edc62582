"""What fine-tuning on a few patients costs on all others, on real CTs, with and without a hold on the base model.

    python Testing/benchmarks/forgetting.py -o runs/forgetting [--steps 300] [--hold none predictions:1 weights:0.01]

The base has learned from all patients of COVID-19-CT-Seg (shared folder). It is fine-tuned on two of them, whose masks
carry the errors of an annotator (one kind a patient, a strength for each lesion), and validated on the six others with
the experts' masks, whole CTs. A row is one fine-tuning: the mean Dice on the others before and after, the largest fall
of one of them, and the Dice on the two themselves against the masks that were learned, by which one sees that something
was learned. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "Testing" / "Python")]

from shared_data import ct_seg, ct_seg_names

from COVIDLesionSegLib.learning import TrainingConfig, fine_tune
from COVIDLesionSegLib.learning.config import LabelNoiseSettings, RegularizationSettings
from COVIDLesionSegLib.learning.data import read_cases
from COVIDLesionSegLib.learning.fine_tuning import as_prepared_for, default_config
from COVIDLesionSegLib.learning.label_noise import add_label_noise
from COVIDLesionSegLib.learning.store import open_store
from COVIDLesionSegLib.learning.validation import judge, summarize
from COVIDLesionSegLib.models import LoadedModel, ModelRegistry, load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="coplenet-ctseg", help="id or file of the base")
    parser.add_argument("--tune", nargs=2, default=["002", "005"], metavar="NNN", help="the two patients")
    parser.add_argument("--hold", nargs="+", default=["none", "predictions:1", "weights:0.01"], metavar="NAME[:WEIGHT]")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--noise", type=float, default=2.0, help="strength of the annotator's errors, pixels")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    folder = arguments.output.absolute()
    torch.set_num_threads(arguments.threads)
    base = ModelRegistry().path(arguments.model)
    tuned = [f"coronacases_{name}" for name in arguments.tune]
    manifest = write_cases(folder, tuned, arguments.noise)
    print("| hold on the base | others: before | after | worst of them | the two: before | after |")
    print("| --- | --- | --- | --- | --- | --- |")
    for text in arguments.hold:
        name, _, weight = text.partition(":")
        config = configuration(arguments, folder, tuned)
        config = replace(config, regularization=RegularizationSettings(name, float(weight or 1)))
        run = folder / text.replace(":", "-")
        done = run / "forgetting.json"
        if not done.exists():
            resume = (run / "state.pt").exists()
            model = fine_tune(base, manifest, config, run, resume=resume)
            facts = figures(model, load_checkpoint(base), config, manifest, tuned)
            done.write_text(json.dumps(facts, indent=2), encoding="utf-8")
        print(row(text, json.loads(done.read_text(encoding="utf-8"))), flush=True)


def configuration(arguments: argparse.Namespace, folder: Path, tuned: list[str]) -> TrainingConfig:
    """The default fine-tuning, in bfloat16, with the others as frozen validation patients."""
    config = default_config()
    others = tuple(name for name in ct_seg_names() if name not in tuned)
    return replace(
        config,
        data=replace(config.data, validation_patients=others, cache=str(folder / "slices")),
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


def write_cases(folder: Path, tuned: list[str], strength: float) -> Path:
    """The manifest of all patients; the masks of the two that are learned have errors."""
    rows = []
    for number, name in enumerate(ct_seg_names()):
        case = ct_seg(name)
        lesion = case.lesion
        if name in tuned:
            lesion = folder / f"{name}_lesion.nii.gz"
            if not lesion.exists():
                image = sitk.ReadImage(str(case.lesion))
                mask = (sitk.GetArrayFromImage(image) > 0).astype(np.uint8)
                noisy, _ = add_label_noise(mask, LabelNoiseSettings("mixed", strength), number)
                out = sitk.GetImageFromArray(noisy)
                out.CopyInformation(image)
                sitk.WriteImage(out, str(lesion))
        rows.append([name, name, str(case.ct), str(lesion)])
    manifest = folder / "cases.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "patient", "ct", "lesion"], *rows])
    return manifest


def figures(
    model: LoadedModel, base: LoadedModel, config: TrainingConfig, manifest: Path, tuned: list[str]
) -> dict[str, Any]:
    """The validation before and after, and both networks on the two patients against the masks that were learned."""
    data = as_prepared_for(base.card, config.data)
    cases = [case for case in read_cases(manifest) if case.id in tuned]
    hashes = {case.id: case.hashes() for case in cases}
    store = open_store(cases, hashes, data.cache, data.margin, data.resize, judges=set(tuned))
    own = {}
    for key, loaded in (("before", base), ("after", model)):
        found = judge(
            loaded.network, store, tuned, base.card.preprocessing, torch.device("cpu"), autocast=torch.bfloat16
        )
        own[key] = summarize(found).to_dict()
    return {"others": {"before": model.card.metrics["base"], "after": model.card.metrics["validation"]}, "own": own}


def row(text: str, facts: dict[str, Any]) -> str:
    before, after = facts["others"]["before"], facts["others"]["after"]
    change = {case: after["cases"][case]["dice"] - values["dice"] for case, values in before["cases"].items()}
    worst = min(change, key=lambda case: change[case])
    own = facts["own"]
    return (
        f"| {text} | {before['dice']:.3f} | {after['dice']:.3f} | {change[worst]:+.3f} ({worst[-3:]}) | "
        f"{own['before']['dice']:.3f} | {own['after']['dice']:.3f} |"
    )


if __name__ == "__main__":
    main()
