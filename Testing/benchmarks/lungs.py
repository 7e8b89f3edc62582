"""The lungs and their verdict: on sick chests whose lungs are known, on real CTs, and in seconds.

    python Testing/benchmarks/lungs.py [phantoms] [real] [speed] [--coarse]

On each sick chest a perfect network (the true lesion) goes through the found lungs and the bundled models' limit to
them; bar: on those in BARS it keeps at least 90 % of its lesion, or the verdict is doubtful, and then nothing is
limited. On real CTs, Dice to the experts' lungs; bar: 0.98 on COVID-19-CT-Seg (in the slices in which the experts drew
lungs), 0.96 on LCTSC, and no verdict is doubtful. Lungs and verdict of 512 x 512 x 300 voxels take at most 5 s of the
processor. Ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [
    str(Path(__file__).resolve().parents[2] / "COVIDLesionSeg"),
    str(Path(__file__).resolve().parents[1] / "Python"),
]

from quantification import stretched
from shared_data import DATA, LCTSC, NEGATIVES, ct_seg, ct_seg_names

from COVIDLesionSegLib.errors import LungsNotFoundError
from COVIDLesionSegLib.imaging import (
    Geometry,
    LocatedLungs,
    Volume,
    assess_lungs,
    find_lungs,
    judged_lungs,
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

BARS = ("dependent_25", "dependent_40", "lower_lobe", "lower_lobes", "white_left_lung")
KEPT, EXPERTS, LUNG_CANCER = 0.90, 0.98, 0.96
SPEED_SHAPE, SPEED_BAR = (300, 512, 512), 5.0


def located(volume: Volume) -> tuple[LocatedLungs | None, float]:
    """The lungs with their verdict, None where they were refused, and the processor's seconds that took."""
    begin = time.process_time()
    try:
        lungs = locate_lungs(volume)
    except LungsNotFoundError:
        lungs = None
    return lungs, time.process_time() - begin


def phantoms(coarse: bool) -> bool:
    """Print a line for each sick chest; whether all bars are held."""
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
            kept = apply_postprocessing(kept, spacing, limit(), found)
        limited = apply_postprocessing(chest.lesion, spacing, limit(), found)
        share = np.count_nonzero(kept) / np.count_nonzero(chest.lesion)
        held &= name not in BARS or share >= KEPT
        by_side = [dice(lungs.labels == side, chest.lungs == side) for side in (1, 2)]
        said(
            f"{name:16} Dice {dice(found, true):.3f} (right {by_side[0]:.3f}, left {by_side[1]:.3f})"
            f"  lesion kept {share:.1%}, limited {np.count_nonzero(limited) / np.count_nonzero(chest.lesion):.1%}"
            f"  involvement {np.count_nonzero(kept & found) / np.count_nonzero(found):.1%},"
            f" true {np.count_nonzero(chest.lesion) / np.count_nonzero(true):.1%}  {seconds:.1f} s",
            lungs,
        )
    return held


def limit() -> PostProcessing:
    """The bundled models' limit to the lungs."""
    card = read_card(resource("Models/coplenet-ctseg.safetensors"))
    return PostProcessing(keep_inside_lungs_mm=card.keep_inside_lungs_mm)


def said(line: str, lungs: LocatedLungs) -> None:
    """Print a line, and below it the verdict and what it rests on."""
    measures = "  ".join(
        f"{key} {'-' if value is None else f'{value:.3g}'}" for key, value in lungs.quality.measures.items()
    )
    print(f"{line}\n{'':16} {lungs.quality.line()}\n{'':16} {measures}", flush=True)


def real() -> bool:
    """Print a line for each real CT; whether all bars are held."""
    if not DATA.is_dir():
        print(f"real CTs: {DATA} is not here")
        return True
    held = True
    for name in ct_seg_names():
        case = ct_seg(name)
        volume, lesion = read_volume(case.ct), read_labels(case.lesion).mask()
        lungs, seconds = located(volume)
        if lungs is None:
            print(f"{name:16} refused")
            held = False
            continue
        found = lungs.labels > 0
        kept = apply_postprocessing(lesion, volume.geometry.spacing_zyx, limit(), found)
        score = dice(found[case.expert_slices], read_labels(case.lungs).mask()[case.expert_slices])
        held &= score >= EXPERTS and not lungs.quality.is_doubtful
        said(
            f"{name:16} Dice {score:.4f}  lesion in found lungs {sensitivity(found, lesion):.1%},"
            f" kept by the limit {np.count_nonzero(kept) / np.count_nonzero(lesion):.2%}  {seconds:.1f} s",
            lungs,
        )
    others = [(path, LCTSC / path.name.replace("_ct.", "_lungs.")) for path in sorted(LCTSC.glob("*_ct.nii.gz"))]
    others += [(NEGATIVES["normal001"], None), (DATA / "covid-ct-md" / "dicom" / "covid_P001", None)]
    for path, expert in others:
        volume = read_volume(path)
        lungs, seconds = located(volume)
        name = path.name.split("_ct.")[0]
        if lungs is None:
            print(f"{name:16} refused")
            held = False
            continue
        line = f"{name:16}"
        if expert is not None:
            drawn = read_labels(expert)
            score = dice(lungs.labels > 0, drawn.mask())
            held &= score >= LUNG_CANCER
            line += f" Dice {score:.4f}  the experts' own lungs are {judged_lungs(drawn, volume).quality.verdict}"
        held &= not lungs.quality.is_doubtful
        said(f"{line}  {seconds:.1f} s", lungs)
    return held


def speed() -> bool:
    """Whether the bar for a whole CT is held."""
    return seconds_of_a_ct() <= SPEED_BAR


def seconds_of_a_ct(shape: tuple[int, int, int] = SPEED_SHAPE) -> float:
    """Print and return the seconds of the processor for lungs and verdict."""
    chest = synthetic_chest(oblique=False)
    volume = Volume(stretched(chest.volume.array, shape), Geometry(shape[::-1], (0.7, 0.7, 1.0)))
    begin, started = time.process_time(), time.perf_counter()
    labels = find_lungs(volume)
    found = time.process_time()
    assess_lungs(volume, labels)
    end = time.process_time()
    # other work on the machine lengthens the clock's time, so the processor's is held to the bar
    print(
        f"{' x '.join(map(str, shape[::-1]))}: lungs {found - begin:.1f} s and verdict {end - found:.1f} s of the"
        f" processor, {time.perf_counter() - started:.1f} s by the clock; load {os.getloadavg()[0]:.1f}"
    )
    return end - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="phantoms, real, speed; all without")
    parser.add_argument("--coarse", action="store_true", help="the sick chests on their coarse grid")
    arguments = parser.parse_args()
    parts = {"phantoms": lambda: phantoms(arguments.coarse), "real": real, "speed": speed}
    if unknown := sorted(set(arguments.parts) - set(parts)):
        parser.error(f"unknown part {', '.join(unknown)}; there are {', '.join(parts)}")
    held = [part() for name, part in parts.items() if not arguments.parts or name in arguments.parts]
    print("all bars held" if all(held) else "a bar is missed")
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
