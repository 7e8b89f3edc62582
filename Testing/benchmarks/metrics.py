"""How much faster Dice + relative volume error + HD95 are than MONAI's metrics on the same masks, in one run.

Reference masks are lesions of the shared data (mosmed-masks and covid19-ct-seg, resampled to 512 x 512 x 300 by
nearest neighbor), or made up where they are absent. The prediction is made from the reference: its border is moved at
random, as a network's would be, and one false lesion is added far away. MONAI gets the masks as float32 tensors, made
beforehand.

    python Testing/benchmarks/metrics.py [--all] [--repeat 3]

Prints, for each case: the seconds of MONAI's DiceMetric and HausdorffDistanceMetric(percentile=95), of ours, and the
ratio; the whole of evaluate(); and an update of LiveEvaluation after an edit of four slices. Ends with status 1 if the
numbers differ.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Python"))

from shared_data import DATA, SHARED, ct_seg, ct_seg_names

from COVIDLesionSegLib.measurement import (
    LiveEvaluation,
    dice,
    evaluate,
    hausdorff_distance_95,
    relative_volume_error,
)

SHAPE = (300, 512, 512)
# name, mask (z, y, x) and spacing (z, y, x) in mm
Mask = tuple[str, Any, tuple[float, float, float]]
FEW = ("coronacases_001", "coronacases_004", "coronacases_008", "study_0255", "study_0269", "study_0297")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every mask of the shared data instead of six")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the median counts")
    arguments = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; seconds, median of {arguments.repeat}")
    found = measure(cases(arguments.all), arguments.repeat)
    ratios = found["times_faster"]
    print(f"ratio: least {min(ratios):.1f}, median {statistics.median(ratios):.1f}, most {max(ratios):.1f}")
    return 0 if found["same_numbers"] else 1


def measure(masks: Iterable[Mask], repeat: int) -> dict[str, Any]:
    """Print a row a case; ratios and seconds of an update, one value a case, and whether all numbers are the same."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    header = ("case", "mL", "Dice", "HD95", "MONAI", "ours", "ratio", "evaluate", "update", "same")
    print("{:<16}{:>7}{:>7}{:>8}{:>8}{:>8}{:>7}{:>10}{:>8}{:>6}".format(*header))
    ratios, updates, all_same = [], [], True
    for name, reference, spacing in masks:
        prediction = predicted(reference)
        ours, mine = timed(lambda: our_numbers(prediction, reference, spacing), repeat)  # noqa: B023
        theirs, oracle = timed(monai_numbers(prediction, reference, spacing), repeat)
        everything, _ = timed(lambda: evaluate(prediction, reference, spacing), repeat)  # noqa: B023
        update, live_same = edited(prediction.copy(), reference, spacing)
        # MONAI counts and measures in float32
        same = bool(np.allclose(mine, oracle, rtol=1e-5)) and live_same
        all_same &= same
        ratios.append(theirs / ours)
        updates.append(update)
        ml = reference.sum() * np.prod(spacing) / 1000
        print(
            f"{name:<16}{ml:>7.0f}{mine[0]:>7.3f}{mine[1]:>8.2f}{theirs:>8.2f}{ours:>8.3f}{ratios[-1]:>7.1f}"
            f"{everything:>10.3f}{update:>8.3f}{'yes' if same else 'NO':>6}",
            flush=True,
        )
    return {"times_faster": ratios, "update_seconds": updates, "same_numbers": all_same}


def timed(call: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """Median seconds, and the last result; one call before is not counted."""
    result, seconds = call(), []
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def our_numbers(prediction: Any, reference: Any, spacing: tuple[float, ...]) -> tuple[float, float]:
    relative_volume_error(prediction, reference)
    return dice(prediction, reference), hausdorff_distance_95(prediction, reference, spacing)


def monai_numbers(prediction: Any, reference: Any, spacing: tuple[float, ...]) -> Callable[[], tuple[float, float]]:
    import torch
    from monai.metrics import DiceMetric, HausdorffDistanceMetric

    batch = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]

    def numbers() -> tuple[float, float]:
        overlap, distance = DiceMetric(), HausdorffDistanceMetric(percentile=95)
        overlap(*batch)
        distance(*batch, spacing=spacing)
        return overlap.aggregate().item(), distance.aggregate().item()

    return numbers


def edited(prediction: Any, reference: Any, spacing: tuple[float, ...]) -> tuple[float, bool]:
    """Median seconds of an update after a brush stroke over four slices, and whether its numbers are evaluate's."""
    live = LiveEvaluation(reference, spacing)
    live.update(prediction)
    random, inside = np.random.default_rng(1), np.argwhere(reference)
    seconds, measured = [], {}
    for stroke in range(6):
        center = inside[random.integers(len(inside))]
        box = tuple(slice(max(0, c - r), c + r) for c, r in zip(center.tolist(), (2, 15, 15), strict=True))
        prediction[box] = bool(stroke % 2)
        start = time.perf_counter()
        measured = live.update(prediction, box)
        seconds.append(time.perf_counter() - start)
    fresh = evaluate(prediction, reference, spacing)
    same = np.allclose([v["value"] for v in measured.values()], [v["value"] for v in fresh.values()], rtol=1e-12)
    return statistics.median(seconds), bool(same)


def predicted(reference: Any) -> Any:
    """A prediction for a reference: its border moved by up to some voxels, and a false lesion far away."""
    random = np.random.default_rng(0)
    coarse = random.normal(size=[-(-n // 16) + 1 for n in reference.shape])
    noise = ndimage.zoom(coarse.astype(np.float32), 16, order=1)[tuple(slice(0, n) for n in reference.shape)]
    smooth = ndimage.gaussian_filter(reference.astype(np.float32), 3)
    moved = (smooth + 0.25 * noise > 0.5) & (smooth > 0.05)
    empty = np.argmin(ndimage.zoom(smooth, 1 / 16, order=0))
    corner = np.unravel_index(empty, [round(n / 16) for n in reference.shape])
    moved[tuple(slice(16 * int(c), 16 * int(c) + 12) for c in corner)] = True
    return moved


def cases(everything: bool) -> Iterator[Mask]:
    files = [ct_seg(name).lesion for name in ct_seg_names() if everything or name in FEW]
    files += [file for file in sorted(DATA.glob("mosmed-masks/*")) if everything or file.name.startswith(FEW)]
    if not files:
        print(f"the shared data are not at {SHARED} (COVIDLESIONSEG_SHARED): made-up lesions instead", file=sys.stderr)
        for index in range(3):
            yield f"made-up {index + 1}", *made_up(index)
    for file in files:
        yield "_".join(file.name.split("_")[:2]), *resampled(file)


def resampled(file: Path) -> tuple[Any, tuple[float, float, float]]:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(file))
    mask = sitk.GetArrayViewFromImage(image) != 0
    index = [np.arange(n) * size // n for n, size in zip(SHAPE, mask.shape, strict=True)]
    ratio = [size / n for n, size in zip(SHAPE, mask.shape, strict=True)]
    z, y, x = (side * share for side, share in zip(image.GetSpacing()[::-1], ratio, strict=True))
    return np.ascontiguousarray(mask[np.ix_(*index)]), (z, y, x)


def made_up(index: int) -> tuple[Any, tuple[float, float, float]]:
    """Blobs in two lungs, 50 to 400 mL of them."""
    random = np.random.default_rng(index)
    mask, spacing = np.zeros(SHAPE, bool), (1.0, 0.7, 0.7)
    for _ in range(10 * (index + 1)):
        center = [
            random.integers(60, 240),
            random.integers(120, 390),
            random.choice([150, 360]) + random.integers(-70, 70),
        ]
        radius = random.uniform(6, 22, 3)
        box = tuple(slice(int(c - 40), int(c + 40)) for c in center)
        grid = np.ogrid[box]
        mask[box] |= sum(((g - c) * s / r) ** 2 for g, c, s, r in zip(grid, center, spacing, radius, strict=True)) < 1
    return mask, spacing


if __name__ == "__main__":
    sys.exit(main())
