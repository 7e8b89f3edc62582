"""How fast a whole CT is segmented, beside the plain loop, in one run.

    python Testing/benchmarks/coplenet_ct.py [CT] [--slices N] [--model ID|FILE] [--full-resolution] [--threads 2]

The CT is covid_P001 of the shared data, or the synthetic chest where they are absent. The plain loop is the same
network in float32, as it was loaded, slice by slice over the same crop: window, resizing where the model asks for it,
padding, neighboring slices as channels, forward, softmax, threshold. Ours is ``Predictor.segment`` with the lungs
given, everything included. Both are warm (each computes a few slices before) and run in turns. Prints seconds per phase
(the smallest of the rounds), the ratio of each round, and the agreement of the masks. With --json one object of the
same figures.
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
from typing import Any

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
from COVIDLesionSegLib.inference.slices import planes_at
from COVIDLesionSegLib.measurement import dice
from COVIDLesionSegLib.models import LoadedModel
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest

SHARED = Path(os.environ.get("COVIDLESIONSEG_SHARED", REPOSITORY.parent / "shared"))
WARM_UP_SLICES = 3
# as the plain loop does
KEEP_ALL = PostProcessing(keep_inside_lungs_mm=1000, smooth_across_slices_mm=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ct", nargs="?", type=Path, help="default: the shared study covid_P001")
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
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    report = measure(**arguments)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            print(f"{name.replace('_', ' '):28} {value}")


def measure(
    ct: Path | None = None,
    slices: int | None = None,
    lungs: Path | None = None,
    model: str | None = None,
    full_resolution: bool = False,
    precision: str = "auto",
    batch_size: int | None = None,
    threads: int = 2,
    rounds: int = 1,
) -> dict[str, Any]:
    """The figures of one run by their names; ratios are lists, one value a round."""
    torch.set_num_threads(threads)
    shared = SHARED / "data" / "covid-ct-md" / "dicom" / "covid_P001"
    path = shared if ct is None else ct
    start = time.perf_counter()
    volume = read_volume(path) if path.exists() or ct is not None else synthetic_chest(oblique=False).volume
    reading = time.perf_counter() - start
    start = time.perf_counter()
    labels = find_lungs(volume) if lungs is None else read_labels(lungs).array
    finding = time.perf_counter() - start
    if slices:
        volume, labels = middle(volume, labels, slices)
    start = time.perf_counter()
    predictor = Predictor(model, "cpu", precision, batch_size)
    if full_resolution:
        predictor = Predictor(unresized(predictor.model), "cpu", precision, batch_size)
    loading = time.perf_counter() - start

    predictor.segment(*middle(volume, labels, WARM_UP_SLICES))
    plain_loop(predictor.model, *middle(volume, labels, WARM_UP_SLICES))
    ours, whole, plainly = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        result = predictor.segment(volume, labels, postprocessing=KEEP_ALL)
        ours.append(result.record.seconds["network"] + result.record.seconds["postprocess"])
        whole.append(time.perf_counter() - start)
        start = time.perf_counter()
        plain = plain_loop(predictor.model, volume, labels)
        plainly.append(time.perf_counter() - start)

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_labels(
            LabelVolume(result.mask.astype(np.uint8), volume.geometry, {1: "lesion"}), Path(folder) / "lesions.nii.gz"
        )
    writing = time.perf_counter() - start
    return {
        "ct": "x".join(map(str, volume.geometry.size)),
        "crop": "x".join(str(b - a) for a, b in result.record.parameters["box"]),
        "threads": threads,
        "precision": result.record.device["precision"],
        "batch_size": result.record.device["batch_size"],
        "seconds_reading": round(reading, 2),
        "seconds_lungs": round(finding, 2),
        "seconds_model": round(loading, 2),
        "seconds_network": round(min(ours), 2),
        "seconds_whole_segment_call": round(min(whole), 2),
        "seconds_writing": round(writing, 2),
        "seconds_plain_loop": round(min(plainly), 2),
        "seconds_per_slice": round(min(ours) / result.record.parameters["slices"], 4),
        "times_faster": [round(plain / our, 2) for plain, our in zip(plainly, ours, strict=True)],
        "dice_of_the_masks": round(dice(result.mask, plain), 5),
        "lesion_ml": round(float(result.mask.sum()) * volume.geometry.voxel_ml, 2),
        "lesion_ml_plain_loop": round(float(plain.sum()) * volume.geometry.voxel_ml, 2),
        "warnings": list(result.record.warnings),
    }


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
    planes = planes_at(settings.slice_offsets_mm, view.geometry.spacing_zyx[0], range(len(slices)), len(slices))
    with torch.no_grad():
        ready = []
        for image in slices:
            x = torch.from_numpy(apply_window(image, settings.window_width, settings.window_level))
            x = _resized(x, inner).numpy()
            x = np.pad(x, [(m // 2, m - m // 2) for m in margins], mode="reflect")
            ready.append(torch.from_numpy(x))
        for index, channels in enumerate(planes):
            probability = model.network(torch.stack([ready[plane] for plane in channels])[None]).softmax(1)[0, 1]
            probability = _resized(probability[top : top + inner[0], left : left + inner[1]], size)
            out[index] = probability.numpy() > model.card.threshold
    return mask


def _resized(image: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """A slice (h, w) on another grid of the same extent, linear, and averaged where it shrinks."""
    if image.shape == size:
        return image
    return torch.nn.functional.interpolate(
        image[None, None], size=size, mode="bilinear", align_corners=False, antialias=True
    )[0, 0]


def middle(volume: Volume, lungs: np.ndarray, count: int) -> tuple[Volume, np.ndarray]:
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
