"""The correction loop on real CTs, through the panel, by a scripted annotator: does the model learn from corrections?

    python Testing/benchmarks/correction_loop.py -o runs/correction-loop [--rounds 3] [--steps 300] [--table FILE]

Six patients of COVID-19-CT-Seg (shared folder) are corrected, two others only validate. A first model is trained on
three of the six (the bundled one has seen all eight; ``--base`` takes another one). Then each round opens the next
cases in the panel, saves the expert's mask with errors as annotators make them, fine-tunes, lets the gate decide (two
patients are too few for it: then the new model is chosen if its mean is not lower), and goes through the review list:
what the list holds and the annotator got wrong is marked and corrected. The Dice on the two patients before and after
each round goes into the table, whatever it shows.

The store, the jobs and the models lie in the output folder: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "Testing"), str(REPOSITORY / "Testing" / "Python")]

from shared_data import ct_seg

LEARN = ("002", "004", "005", "006", "007", "009")
JUDGE = ("001", "008")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300, help="of each fine-tuning")
    parser.add_argument("--learn", nargs="+", default=list(LEARN), metavar="NNN", help="cases that are corrected")
    parser.add_argument("--judge", nargs="+", default=list(JUDGE), metavar="NNN", help="patients kept aside")
    parser.add_argument("--start", type=int, default=3, help="cases of the first model; the last one chooses")
    parser.add_argument("--base", help="id or file of the first model instead; it must not have seen the judges")
    parser.add_argument("--base-steps", type=int, default=300)
    parser.add_argument(
        "--width", type=int, default=16, help="channels of the first model's first level; 32 in the paper"
    )
    parser.add_argument(
        "--noise", type=float, default=2.0, help="strength of the annotator's errors, pixels; 0 for none"
    )
    parser.add_argument("--crop", type=int, default=224, help="side of the training crops")
    parser.add_argument("--slices", type=int, help="use this many slices of each CT, for a quick look only")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--table", type=Path, help="write the page here as Markdown")
    arguments = parser.parse_args()
    arguments.output = arguments.output.absolute()
    arguments.output.mkdir(parents=True, exist_ok=True)
    os.environ["COVIDLESIONSEG_MODELS"] = str(arguments.output / "models")
    data = prepare(arguments)
    base = arguments.base or first_model(arguments, data)
    result = loop(arguments, data, base)
    text = page(arguments, base, result)
    print(text)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")


# ---- before the loop ------------------------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace) -> Path:
    """Folders "learn" and "judge" of pairs, linked or, with ``--slices``, cut."""
    import SimpleITK as sitk

    data = arguments.output / "data"
    for part in ("learn", "judge"):
        (data / part).mkdir(parents=True, exist_ok=True)
        for name in getattr(arguments, part):
            case = ct_seg(f"coronacases_{name}")
            for source in (case.ct, case.lesion):
                target = data / part / source.name
                if target.exists():
                    continue
                if arguments.slices is None:
                    target.symlink_to(source)
                    continue
                image = sitk.ReadImage(str(source))
                middle = max(0, (image.GetSize()[2] - arguments.slices) // 2)
                sitk.WriteImage(image[:, :, middle : middle + arguments.slices], str(target))
    return data


def first_model(arguments: argparse.Namespace, data: Path) -> str:
    """Train the model that the loop begins with; returns its id."""
    from COVIDLesionSegLib.learning.fine_tuning import default_config
    from COVIDLesionSegLib.models import ModelRegistry
    from COVIDLesionSegLib.models.card import read_card, rewrite_card

    registry = ModelRegistry()
    if any(entry.id == "loop-start" for entry in registry.list()):
        return "loop-start"
    folder = arguments.output / "first-model"
    cases = folder / "cases"
    cases.mkdir(parents=True, exist_ok=True)
    names = arguments.learn[: arguments.start]
    for file in (data / "learn").iterdir():
        if any(f"_{name}_" in file.name for name in names) and not (cases / file.name).exists():
            (cases / file.name).symlink_to(file.resolve())
    config = default_config()
    channels = [arguments.width * factor for factor in (1, 2, 4, 8, 16)]
    config = replace(
        config,
        # the loop's judges are not touched
        data=replace(
            config.data,
            cases="cases",
            crop=(arguments.crop, arguments.crop),
            validation_patients=(f"coronacases_{names[-1]}",),
        ),
        network=replace(config.network, arguments={"channels": channels}),
        optimizer=replace(config.optimizer, learning_rate=1e-3),
        run=replace(config.run, steps=arguments.base_steps, validation_interval=max(1, arguments.base_steps // 3)),
    )
    (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    run = folder / "run"
    command = [sys.executable, "-m", "COVIDLesionSegLib", "train", str(folder / "config.toml"), "-o", str(run)]
    resume = ["--resume"] if (run / "state.pt").exists() else []
    subprocess.run([*command, "--device", arguments.device, *resume], check=True)
    model = run / "best.safetensors"
    card = replace(read_card(model), id="loop-start", name="Start of the correction loop")
    rewrite_card(model, card)
    registry.register(model, card)
    return "loop-start"


# ---- the loop -------------------------------------------------------------------------------------------------------


def loop(arguments: argparse.Namespace, data: Path, base: str) -> dict[str, Any]:
    """Work through the panel; returns what is told in the page."""
    import host

    host.boot_gui()
    from scripted_annotator import Annotator, module_panel

    from COVIDLesionSegLib import mrml
    from COVIDLesionSegLib.cases import Store
    from COVIDLesionSegLib.imaging import read_labels
    from COVIDLesionSegLib.models import ModelRegistry

    ModelRegistry().set_default(base)
    experts = {}
    for part in ("learn", "judge"):
        for name in getattr(arguments, part):
            experts[name] = read_labels(data / part / f"coronacases_{name}_lesion.nii.gz").mask()
    settings = settings_file(arguments)
    rows: list[dict[str, Any]] = []
    with module_panel() as panel:
        mrml.moduleParameters().device = arguments.device
        judge, annotator = Annotator(panel, "expert", 900.0), None
        folder = arguments.output / "store"
        judge.make_store(folder)
        store = Store(folder)
        if not store.cases():
            judge.import_pairs(data / "judge", approve=True)
            judges = [case.id for case in store.cases()]
            (arguments.output / "judges.json").write_text(json.dumps(judges))
            for name in arguments.learn:
                # the masks do not come along
                store.add(data / "learn" / f"coronacases_{name}_ct.nii.gz", name)
        judges = json.loads((arguments.output / "judges.json").read_text())
        names = dict(zip([c.id for c in store.cases() if c.id not in judges], arguments.learn, strict=True))
        annotator = Annotator(panel, "anna", 900.0)
        share = -(-len(names) // arguments.rounds)
        for number in range(1, arguments.rounds + 1):
            done = [case for case in store.cases() if case.raters and case.id in names]
            if number > 1 or len(done) < share * number:
                # in the background of a hospital's day; it also says which answers are uncertain
                annotator.run_model(24 * 3600.0)
            begun = time.monotonic()
            corrected = (
                annotator.correct_waiting(
                    lambda case, _mask, seed=number: annotated(arguments, experts[names[case]], case, seed),
                    max(0, min(share * number, len(names)) - len(done)),
                )
                if len(done) < share * number
                else []
            )
            annotating = time.monotonic() - begun
            status = annotator.fine_tune(arguments.steps, " ".join(judges), settings, 24 * 3600.0)
            if status.result is None:
                raise SystemExit(f"The fine-tuning ended as {status.state}: {status.error}")
            gate = status.result["gate"]
            chosen = gate["verdict"] == "undecided" and gate["mean_dice_new"] >= gate["mean_dice_old"]
            if chosen:
                store.models.override(gate["new"], True, "expert", "the mean over two patients is not lower")
                store.models.set_default(gate["new"], "expert")
                annotator.page.store.refresh()
                annotator.rest()
            reviewed = annotator.review(
                lambda case, index: "right" if is_right(store, experts[names[case]], case, index) else "fix", 50
            )
            to_fix = {case for case, _index, decision in reviewed if decision == "fix"}
            fixed = (
                annotator.correct_waiting(
                    lambda case, mask: mended(store, mask, experts[names[case]], case), len(to_fix)
                )
                if to_fix
                else []
            )
            labels = [
                overlap(store.read_revision(case).mask(), experts[name])
                for case, name in names.items()
                if store.case(case).raters
            ]
            rows.append(
                {
                    "round": number,
                    "corrected": corrected,
                    "annotating_s": annotating,
                    "result": status.result,
                    "chosen": chosen,
                    "training_s": status.seconds,
                    "reviewed": reviewed,
                    "fixed": fixed,
                    "label_dice": float(np.mean(labels)),
                    "cases": len(labels),
                }
            )
            print(f"round {number}: {json.dumps(status.result['gate']['reasons'])}", flush=True)
    # a copy for people, beside the store
    (arguments.output / "rounds.json").write_text(json.dumps(rows, indent=2))
    return {"rows": rows, "judges": dict(zip(judges, arguments.judge, strict=True))}


def settings_file(arguments: argparse.Namespace) -> Path | None:
    """Training settings where they are not the usual ones."""
    if arguments.crop == 224:
        return None
    from COVIDLesionSegLib.learning.fine_tuning import default_config

    config = default_config()
    config = replace(config, data=replace(config.data, crop=(arguments.crop, arguments.crop)))
    file = arguments.output / "settings.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    return file


def annotated(arguments: argparse.Namespace, expert: np.ndarray, case: str, seed: int) -> np.ndarray:
    """The expert's mask with errors of one kind, another for each case."""
    from COVIDLesionSegLib.learning.config import LabelNoiseSettings
    from COVIDLesionSegLib.learning.label_noise import add_label_noise

    if arguments.noise <= 0:
        return expert
    settings = LabelNoiseSettings(kind="mixed", strength=arguments.noise, share=1.0, seed=seed)
    noisy, _kind = add_label_noise(expert.astype(np.uint8), settings, int(case[-4:]))
    return noisy != 0


def is_right(store: Any, expert: np.ndarray, case: str, index: int) -> bool:
    """Whether a label is near the expert's in an axial slice (Dice 0.9): what a second look at it finds."""
    view = store.case(case).ct.geometry.axial_view()
    label = view.apply(store.read_revision(case).mask())[index]
    return overlap(label, view.apply(expert)[index]) >= 0.9


def mended(store: Any, mask: np.ndarray, expert: np.ndarray, case: str) -> np.ndarray:
    """The label with the expert's slices where it was to be fixed."""
    found = store.case(case)
    view = found.ct.geometry.axial_view()
    result = mask.copy()
    for item in found.slices_to_fix():
        view.apply(result)[item.slice] = view.apply(expert)[item.slice]
    return result


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Dice; two empty masks agree."""
    total = int(one.sum()) + int(two.sum())
    return 2.0 * int((one & two).sum()) / total if total else 1.0


# ---- the page -------------------------------------------------------------------------------------------------------


def page(arguments: argparse.Namespace, base: str, result: dict[str, Any]) -> str:
    """What came of it, as Markdown."""
    import platform

    import torch

    from COVIDLesionSegLib.inference.devices import cpu_name

    judges = result["judges"]
    head = [
        "round",
        "corrected so far",
        "label Dice to the expert",
        *(f"{n}: Dice before → after" for n in judges.values()),
    ]
    head += [
        "mean before → after",
        "RVE after",
        "HD95 after, mm",
        "gate",
        "doubtful: right / fix",
        "annotating, s",
        "training, s",
    ]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in result["rows"]:
        gate = row["result"]["gate"]
        cases = gate["cases"]
        decisions = [decision for _c, _i, decision in row["reviewed"]]
        figures = [f"{cases[c]['old']['dice']:.3f} → {cases[c]['new']['dice']:.3f}" for c in judges]
        cells = [
            row["round"],
            row["cases"],
            f"{row['label_dice']:.3f}",
            *figures,
            f"{gate['mean_dice_old']:.3f} → {gate['mean_dice_new']:.3f}",
            " / ".join(f"{float(cases[c]['new']['relative_volume_error']):.2f}" for c in judges),
            " / ".join(f"{float(cases[c]['new']['hausdorff_distance_95']):.1f}" for c in judges),
            gate["verdict"] + (", chosen" if row["chosen"] else ""),
            f"{decisions.count('right')} / {decisions.count('fix')}",
            f"{row['annotating_s']:.0f}",
            f"{row['training_s']:.0f}",
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    start = " and ".join(arguments.learn[: arguments.start])
    origin = (
        f"a COPLE-Net of width {arguments.width}, trained here for {arguments.base_steps} steps on the expert's "
        f"masks of {start} (the paper's width is 32)"
        if base == "loop-start"
        else f"`{base}`; see its card for what it has seen"
    )
    cut = (
        f" Of each CT {arguments.slices} slices are used: **a look at the machinery, not a result.**"
        if arguments.slices
        else ""
    )
    command = " ".join(shown(sys.argv[1:]))
    return f"""# The correction loop on real CTs

A scripted annotator works through the panel (on the stand-in for Slicer that the tests use) with {len(arguments.learn)}
patients of COVID-19-CT-Seg; {len(arguments.judge)} other patients only validate. Each correction is the expert's mask
with errors of one kind a case (dilation, erosion, vanished lesions or shift, about {arguments.noise:g} pixels strong).
Each round: correct, fine-tune ({arguments.steps} steps, the usual settings), gate, review list, repair of what is
marked "fix it". "Before" is the model that was active in that round: where the new one did not become active, it is
the same again. Two patients are too few for the gate, so the new model is chosen where its mean is not lower.{cut}

The first model is {origin}.

{chr(10).join(lines)}

There are two validation patients, and one run was made: differences of a few hundredths are no finding. Hardware:
{device}, {torch.get_num_threads()} thread(s), PyTorch {torch.__version__}, {platform.system()}; the seconds are
those of this run. Masks and CTs of the data set stay outside the project; its intensities and spacings are approximate.

```
python Testing/benchmarks/correction_loop.py {command}
```
"""


def shown(words: list[str]) -> list[str]:
    """The command's words without folders of this machine."""
    return [Path(word).name if Path(word).is_absolute() else word for word in words]


if __name__ == "__main__":
    main()
