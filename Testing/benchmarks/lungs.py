"""The lungs and their verdict: on sick chests whose lungs are known, on real CTs, and in seconds.

    python Testing/benchmarks/lungs.py [phantoms] [real] [speed] [--coarse] [--cache FOLDER]

On each sick chest a perfect network (the true lesion) goes through the found lungs and the bundled models' limit to
them; bar: on the four in BARS it keeps at least 90 % of its lesion, or the verdict is doubtful, and then nothing is
limited. On real CTs, Dice to the experts' lungs; bar: 0.98 on COVID-19-CT-Seg (in the slices in which the experts drew
lungs), 0.96 on LCTSC. Ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "COVIDLesionSeg"))

from COVIDLesionSegLib.errors import LungsNotFoundError
from COVIDLesionSegLib.imaging import (
    Geometry,
    LocatedLungs,
    Volume,
    assess_lungs,
    find_lungs,
    locate_lungs,
    read_labels,
    read_volume,
)
from COVIDLesionSegLib.inference import PostProcessing, apply_postprocessing
from COVIDLesionSegLib.measurement import dice, sensitivity
from COVIDLesionSegLib.models import read_card
from COVIDLesionSegLib.phantom.sick import SICK_CHESTS, sick_chest
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest
from COVIDLesionSegLib.resources import resource

SHARED = Path(os.environ.get("COVIDLESIONSEG_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
BARS = ("dependent_25", "dependent_40", "lower_lobe", "lower_lobes", "white_left_lung")
KEPT, EXPERTS, LCTSC = 0.90, 0.98, 0.96
SPEED_SHAPE, SPEED_BAR = (300, 512, 512), 5.0


def located(volume: Volume) -> tuple[LocatedLungs | None, float]:
    """The lungs with their verdict, None where they were refused, and the seconds that took."""
    begin = time.perf_counter()
    try:
        lungs = locate_lungs(volume)
    except LungsNotFoundError:
        lungs = None
    return lungs, time.perf_counter() - begin


def phantoms(coarse: bool) -> bool:
    """Print a line for each sick chest; whether all bars are held."""
    limit = PostProcessing(
        keep_inside_lungs_mm=read_card(resource("Models/coplenet-ctseg.safetensors")).keep_inside_lungs_mm
    )
    held = True
    for name in SICK_CHESTS:
        chest = sick_chest(name, coarse=coarse)
        lungs, seconds = located(chest.volume)
        if lungs is None:
            print(f"{name:16} refused  {seconds:.1f} s", flush=True)
            held &= name not in BARS
            continue
        true, found = chest.lungs > 0, lungs.labels > 0
        spacing = chest.volume.geometry.spacing_zyx
        kept = chest.lesion
        if not lungs.quality.is_doubtful:
            kept = apply_postprocessing(kept, spacing, limit, found)
        limited = apply_postprocessing(chest.lesion, spacing, limit, found)
        share = np.count_nonzero(kept) / np.count_nonzero(chest.lesion)
        held &= name not in BARS or share >= KEPT
        by_side = [dice(lungs.labels == side, chest.lungs == side) for side in (1, 2)]
        print(
            f"{name:16} Dice {dice(found, true):.3f} (right {by_side[0]:.3f}, left {by_side[1]:.3f})"
            f"  lesion kept {share:.1%}, limited {np.count_nonzero(limited) / np.count_nonzero(chest.lesion):.1%}"
            f"  involvement {np.count_nonzero(kept & found) / np.count_nonzero(found):.1%},"
            f" true {np.count_nonzero(chest.lesion) / np.count_nonzero(true):.1%}  {seconds:.1f} s\n"
            f"{'':16} {lungs.quality.line()}\n{'':16} {measures(lungs)}",
            flush=True,
        )
    return held


def measures(lungs: LocatedLungs) -> str:
    """What the verdict rests on, in a line."""
    return "  ".join(
        f"{name} {'-' if value is None else f'{value:.3g}'}" for name, value in lungs.quality.measures.items()
    )


def real(cache: Path) -> bool:
    """Print a line for each real CT; whether all bars are held."""
    if not SHARED.is_dir():
        print(f"real CTs: {SHARED} is not here")
        return True
    held = True
    if len(list(cache.glob("coronacases_*.json"))) < 8:
        subprocess.run([sys.executable, SHARED / "covid19-ct-seg/unpack.py", cache], check=True, capture_output=True)
    cases = [
        (path, path.with_name(path.name.replace("_ct.", "_lungs.")), EXPERTS) for path in cache.glob("*_ct.nii.gz")
    ]
    cases += [
        (path, path.with_name(path.name.replace("_ct.", "_lungs.")), LCTSC) for path in SHARED.glob("lctsc/*_ct.nii.gz")
    ]
    cases += [
        (SHARED / "covid-ct-md/normal001_ct.nii.gz", None, None),
        (SHARED / "covid-ct-md/dicom/covid_P001", None, None),
    ]
    for path, expert, bar in sorted(cases):
        volume = read_volume(path)
        lungs, seconds = located(volume)
        name = path.name.split("_ct.")[0]
        if lungs is None:
            print(f"{name:16} refused", flush=True)
            held = False
            continue
        found = lungs.labels > 0
        line = f"{name:16}"
        if expert is not None:
            drawn = read_labels(expert).mask()
            slices = slice(None)
            information = expert.with_name(f"{name}.json")
            if information.is_file():
                slices = slice(*json.loads(information.read_text())["expert_lungs_slices"])
                lesion = read_labels(expert.with_name(f"{name}_lesion.nii.gz")).mask()
                limit = PostProcessing(keep_inside_lungs_mm=5.0)
                kept = apply_postprocessing(lesion, volume.geometry.spacing_zyx, limit, found)
                line += (
                    f" of the lesion in found lungs {sensitivity(found, lesion):.1%},"
                    f" kept by the limit {np.count_nonzero(kept) / np.count_nonzero(lesion):.2%} "
                )
            score = dice(found[slices], drawn[slices])
            held &= score >= bar
            line += f" Dice {score:.4f}"
            given = (
                assess_lungs(volume, (drawn * (lungs.labels.max() > 0)).astype(np.uint8))
                if slices == slice(None)
                else None
            )
            if given is not None:
                line += f"  (experts' own: {given.verdict})"
        print(f"{line}  {seconds:.1f} s\n{'':16} {lungs.quality.line()}\n{'':16} {measures(lungs)}", flush=True)
    return held


def speed() -> bool:
    """Print the seconds for a whole CT; whether the bar is held."""
    chest = synthetic_chest(oblique=False)
    index = [np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(chest.lungs.shape, SPEED_SHAPE, strict=True)]
    volume = Volume(
        np.ascontiguousarray(chest.volume.array[np.ix_(*index)]), Geometry(SPEED_SHAPE[::-1], (0.7, 0.7, 1.0))
    )
    begin = time.perf_counter()
    labels = find_lungs(volume)
    found = time.perf_counter()
    assess_lungs(volume, labels)
    end = time.perf_counter()
    print(
        f"{' x '.join(map(str, SPEED_SHAPE[::-1]))}: lungs {found - begin:.1f} s, verdict {end - found:.1f} s; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    return end - begin <= SPEED_BAR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="phantoms, real, speed; all without")
    parser.add_argument("--coarse", action="store_true", help="the sick chests on their coarse grid")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "covid19-ct-seg",
        help="folder to unpack COVID-19-CT-Seg to",
    )
    arguments = parser.parse_args()
    parts = {"phantoms": lambda: phantoms(arguments.coarse), "real": lambda: real(arguments.cache), "speed": speed}
    if unknown := sorted(set(arguments.parts) - set(parts)):
        parser.error(f"unknown part {', '.join(unknown)}; there are {', '.join(parts)}")
    held = [part() for name, part in parts.items() if not arguments.parts or name in arguments.parts]
    print("all bars held" if all(held) else "a bar is missed")
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
