"""How fast a whole CT is segmented, beside the plain loop, in one run.

    python Testing/benchmarks/coplenet_ct.py [CT] [--slices N] [--model ID|FILE] [--full-resolution] [--threads 2]

The plain loop is the same network in float32, as it was loaded, slice by slice over the same crop: window, resizing
where the model asks for it, padding, forward, softmax, threshold. Ours is ``Predictor.segment`` with the lungs given,
everything included. Both are warm (each computes a few slices before) and run in turns; the smaller time of each
counts. Prints seconds per phase, the ratio, and the agreement of the masks. With --json one object of the same figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "COVIDLesionSeg"))

import torch

from COVIDLesionSegLib.imaging import (
    LabelVolume,
    Volume,
    apply_window,
    find_lungs,
    lung_box,
    read_labels,
    read_volume,
    write_labels,
)
from COVIDLesionSegLib.inference import PostProcessing, Predictor
from COVIDLesionSegLib.measurement import dice
from COVIDLesionSegLib.models import LoadedModel

SHARED = Path(os.environ.get("COVIDLESIONSEG_SHARED", REPOSITORY.parent / "shared"))
WARM_UP_SLICES = 3
# as the plain loop does
KEEP_ALL = PostProcessing(keep_inside_lungs_mm=1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = SHARED / "data" / "covid-ct-md" / "dicom" / "covid_P001"
    parser.add_argument("ct", nargs="?", type=Path, default=default, help="default: the shared study covid_P001")
    parser.add_argument("--slices", type=int, help="only this many slices around the middle of the lungs")
    parser.add_argument("--lungs", type=Path, help="lung mask; found if absent")
    parser.add_argument("--model", help="id or file; default: the default model")
    parser.add_argument(
        "--full-resolution", action="store_true", help="leave out the resizing that the model's card asks for"
    )
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="times that each is run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    start = time.perf_counter()
    volume = read_volume(arguments.ct)
    reading = time.perf_counter() - start
    start = time.perf_counter()
    lungs = find_lungs(volume) if arguments.lungs is None else read_labels(arguments.lungs).array
    finding = time.perf_counter() - start
    if arguments.slices:
        volume, lungs = _middle(volume, lungs, arguments.slices)
    start = time.perf_counter()
    predictor = Predictor(arguments.model, "cpu", arguments.precision, arguments.batch_size)
    if arguments.full_resolution:
        predictor = Predictor(unresized(predictor.model), "cpu", arguments.precision, arguments.batch_size)
    loading = time.perf_counter() - start

    predictor.segment(*_middle(volume, lungs, WARM_UP_SLICES))
    plain_loop(predictor.model, *_middle(volume, lungs, WARM_UP_SLICES))
    ours_seconds, plain_seconds = [], []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        result = predictor.segment(volume, lungs, postprocessing=KEEP_ALL)
        ours_seconds.append(result.record.seconds["network"] + result.record.seconds["postprocess"])
        whole = time.perf_counter() - start
        start = time.perf_counter()
        plain = plain_loop(predictor.model, volume, lungs)
        plain_seconds.append(time.perf_counter() - start)

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        labels = LabelVolume(result.mask.astype(np.uint8), volume.geometry, {1: "lesion"})
        write_labels(labels, Path(folder) / "lesions.nii.gz")
    writing = time.perf_counter() - start

    ours, plainly = min(ours_seconds), min(plain_seconds)
    slices = result.record.parameters["slices"]
    report = {
        "ct": "x".join(map(str, volume.geometry.size)),
        "crop": "x".join(str(b - a) for a, b in result.record.parameters["box"]),
        "threads": arguments.threads,
        "precision": result.record.device["precision"],
        "batch_size": result.record.device["batch_size"],
        "seconds_reading": round(reading, 2),
        "seconds_lungs": round(finding, 2),
        "seconds_model": round(loading, 2),
        "seconds_network": round(ours, 2),
        "seconds_whole_segment_call": round(whole, 2),
        "seconds_writing": round(writing, 2),
        "seconds_plain_loop": round(plainly, 2),
        "seconds_per_slice": round(ours / slices, 4),
        "times_faster": round(plainly / ours, 2),
        "dice_of_the_masks": round(dice(result.mask, plain), 5),
        "lesion_ml": round(float(result.mask.sum()) * volume.geometry.voxel_ml, 2),
        "lesion_ml_plain_loop": round(float(plain.sum()) * volume.geometry.voxel_ml, 2),
        "warnings": list(result.record.warnings),
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            print(f"{name.replace('_', ' '):28} {value}")


def unresized(model: LoadedModel) -> LoadedModel:
    """The model with slices at the CT's own resolution: as much work as a model trained there."""
    card = dataclasses.replace(model.card, preprocessing=dataclasses.replace(model.card.preprocessing, resize=None))
    return dataclasses.replace(model, card=card)


def plain_loop(model: LoadedModel, volume: Volume, lungs: np.ndarray) -> np.ndarray:
    """The lesion mask as a plain script computes it."""
    settings = model.card.preprocessing
    view = volume.geometry.axial_view()
    mask = np.zeros(volume.array.shape, dtype=bool)
    box = lung_box(view.apply(lungs), settings.lung_crop_margin)
    slices, out = view.apply(volume.array)[box], view.apply(mask)[box]
    size = slices.shape[1:]
    inner = settings.resize or size
    margins = [-n % settings.pad_multiple for n in inner]
    top, left = (m // 2 for m in margins)
    with torch.no_grad():
        for index, image in enumerate(slices):
            x = torch.from_numpy(apply_window(image, settings.window_width, settings.window_level))
            x = _resized(x, inner).numpy()
            x = np.pad(x, [(m // 2, m - m // 2) for m in margins], mode="reflect")
            probability = model.network(torch.from_numpy(x)[None, None]).softmax(1)[0, 1]
            probability = _resized(probability[top : top + inner[0], left : left + inner[1]], size)
            out[index] = probability.numpy() > model.card.threshold
    return mask


def _resized(image: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """A slice (h, w) on another grid of the same extent, linear."""
    if image.shape == size:
        return image
    return torch.nn.functional.interpolate(image[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def _middle(volume: Volume, lungs: np.ndarray, count: int) -> tuple[Volume, np.ndarray]:
    """The axial slices in the middle of the lungs, as a volume of their own."""
    view = volume.geometry.axial_view()
    inside = np.flatnonzero(view.apply(lungs).any(axis=(1, 2)))
    first = max(0, int(inside[len(inside) // 2]) - count // 2)
    planes = slice(first, min(first + count, view.geometry.shape[0]))
    box = (planes, slice(None), slice(None))
    middle = Volume(np.ascontiguousarray(view.apply(volume.array)[box]), view.geometry.cropped(box))
    return middle, np.ascontiguousarray(view.apply(lungs)[box])


if __name__ == "__main__":
    main()
