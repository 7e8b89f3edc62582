"""Eight-bit integers for the lesion network on OpenVINO, calibrated by NNCF: what it gains, and what it changes.

    pip install openvino nncf
    python Testing/benchmarks/int8.py --calibrate CT [CT ...] --judge CT [CT ...] [--slices 100] [--threads 2]

Prints how many times faster int8 answers than OpenVINO in float32, slices in turns of one run, and for each CT that is
judged the Dice of the two masks on the network's grid. The project keeps it from a Dice of 0.995 on. The weights of the
convolutions and what they see become integers; NNCF's default and its accurate preset for networks of this kind
("mixed": signed activations) are both shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "COVIDLesionSeg"))

from COVIDLesionSegLib.imaging import locate_lungs, lung_box, read_volume
from COVIDLesionSegLib.inference import Predictor
from COVIDLesionSegLib.inference.slices import SlicePreparation, slice_logits
from COVIDLesionSegLib.measurement import dice

MARGIN = 8
ROUNDS = 5


def inputs(ct: Path, predictor: Predictor) -> Tensor:
    """What the network sees of a CT: float32 (slices, channels, rows, columns)."""
    volume = read_volume(ct)
    view = volume.geometry.axial_view()
    lungs = view.apply(locate_lungs(volume).labels)
    images = np.ascontiguousarray(view.apply(volume.array)[lung_box(lungs > 0, MARGIN)])
    card = predictor.model.card
    preparation = SlicePreparation(
        card.preprocessing, images.shape[1:], torch.device("cpu"), view.geometry.spacing_zyx[0]
    )
    seen: list[Tensor] = []

    class Recorder(torch.nn.Linear):
        """Stands for the network."""

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.float().contiguous())
            return torch.zeros(len(x), 2, *x.shape[2:])

    slice_logits(Recorder(1, 1), preparation, images, None, range(len(images)))
    return torch.cat(seen)


def compiled(model: Any, threads: int) -> Any:
    """A request on the processor, float32 where it is not quantized."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    return openvino.Core().compile_model(model, "CPU", settings).create_infer_request()


def answer(request: Any, x: Tensor) -> np.ndarray:
    """Logits of slices, one at a time."""
    return np.concatenate([request.infer({0: plane[None].numpy()})[0].copy() for plane in x])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="id or file (default: the default model)")
    parser.add_argument("--calibrate", type=Path, nargs="+", required=True, help="CTs that no figure is made of")
    parser.add_argument("--judge", type=Path, nargs="+", required=True)
    parser.add_argument("--slices", type=int, default=100, help="that calibrate")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    predictor = Predictor(arguments.model, "cpu", "float32")
    network, card = predictor.model.network.eval(), predictor.model.card
    calibration = torch.cat([inputs(ct, predictor) for ct in arguments.calibrate])
    chosen = calibration[torch.linspace(0, len(calibration) - 1, min(arguments.slices, len(calibration))).long()]
    with torch.inference_mode():
        plain = openvino.convert_model(network, example_input=chosen[:1])
    plain.reshape([1, *chosen.shape[1:]])
    samples = nncf.Dataset([plane[None].numpy() for plane in chosen])
    presets = {"default": nncf.QuantizationPreset.PERFORMANCE, "mixed": nncf.QuantizationPreset.MIXED}
    quantized = {
        name: compiled(nncf.quantize(plain, samples, preset=preset, subset_size=len(chosen)), arguments.threads)
        for name, preset in presets.items()
    }
    reference = compiled(plain, arguments.threads)
    ratios: dict[str, list[float]] = {name: [] for name in quantized}
    for _ in range(ROUNDS):
        seconds = {}
        for name, request in {"float32": reference, **quantized}.items():
            start = time.perf_counter()
            answer(request, chosen[:20])
            seconds[name] = time.perf_counter() - start
        for name in quantized:
            ratios[name].append(seconds["float32"] / seconds[name])
    for name, values in ratios.items():
        print(f"{name}: {median(values):.2f} times as fast as float32 ({min(values):.2f} to {max(values):.2f})")
    margin = np.log(card.threshold / (1 - card.threshold))
    for ct in arguments.judge:
        x = inputs(ct, predictor)
        masks = {
            name: (logits := answer(request, x))[:, 1] - logits[:, 0] > margin
            for name, request in {"float32": reference, **quantized}.items()
        }
        found = ", ".join(f"{name} Dice {dice(masks[name], masks['float32']):.4f}" for name in quantized)
        print(f"{ct.name}: {found}; lesion pixels of float32 {int(masks['float32'].sum())}")


if __name__ == "__main__":
    main()
