"""What was tried against the time of `segment`, each against the same without it, in turns of one run.

    python Testing/benchmarks/tried.py [--studies 3] [--slices 60] [--rounds 3] [--threads 2]

Folding: the lesion network as loaded, with memory laid out channels last, with batch normalization folded into the
convolutions besides, and as the predictor computes it. Overlap: several CTs one after the other, and with the next one
read and its lungs found in a thread while the network works; both give the same masks.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "COVIDLesionSeg"))

from quantification import stretched

from COVIDLesionSegLib.imaging import Geometry, Volume, find_lungs, read_volume, write_volume
from COVIDLesionSegLib.inference import Predictor
from COVIDLesionSegLib.inference.optimize import optimized_copy
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest

FIELD_MM = (300.0, 380.0, 380.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    for name, ratios in measure(**vars(parser.parse_args())).items():
        print(f"{name:32} {median(ratios):5.2f} times faster ({min(ratios):.2f} to {max(ratios):.2f})")


def measure(
    studies: int = 3, slices: int = 60, side: int = 512, rounds: int = 3, threads: int = 2
) -> dict[str, list[float]]:
    """How many times faster each is than the same without it, one value a round."""
    torch.set_num_threads(threads)
    return folding(rounds) | {"overlap in a batch": overlap(studies, slices, side, rounds)}


def folding(rounds: int) -> dict[str, list[float]]:
    """The network's forms against the one before, float32, a slice of 192 x 256."""
    loaded = Predictor(device="cpu").model.network
    last = copy.deepcopy(loaded).to(memory_format=torch.channels_last)
    folded = copy.deepcopy(last)
    for module in list(folded.modules()):
        conv, norm = getattr(module, "conv", None), getattr(module, "norm", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.conv, module.norm = fuse_conv_bn_eval(conv, norm), nn.Identity()
    forms = {
        "loaded": loaded,
        "channels last": last,
        "folding batch norm": folded,
        "activation in the same pass": optimized_copy(loaded, torch.device("cpu"), torch.float32),
    }
    channels = next(p for p in loaded.parameters() if p.ndim == 4).shape[1]
    x = torch.rand(1, channels, 192, 256)
    images = {name: x if name == "loaded" else x.to(memory_format=torch.channels_last) for name in forms}
    with torch.inference_mode():
        for name, network in forms.items():
            network(images[name])
        taken = [{n: timed(lambda n=n: forms[n](images[n]))[0] for n in forms} for _ in range(rounds)]
    names = list(forms)
    return {new: [t[old] / t[new] for t in taken] for old, new in itertools.pairwise(names)}


def overlap(studies: int, slices: int, side: int, rounds: int) -> list[float]:
    """A batch one after the other against the same with the next CT read and its lungs found meanwhile."""
    predictor, shape = Predictor(device="cpu"), (slices, side, side)
    array = stretched(synthetic_chest(oblique=False).volume.array, shape)
    spacing = tuple(field / n for field, n in zip(FIELD_MM, shape, strict=True))[::-1]

    def prepared(path: Path) -> tuple[Volume, np.ndarray]:
        volume = read_volume(path)
        return volume, find_lungs(volume)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        paths = [Path(folder) / f"{number}.nii.gz" for number in range(studies)]
        for path in paths:
            write_volume(array, path, Geometry(shape[::-1], spacing))

        def in_turn() -> list[np.ndarray]:
            return [predictor.segment(*prepared(path)).mask for path in paths]

        def ahead() -> list[np.ndarray]:
            masks, coming = [], pool.submit(prepared, paths[0])
            for path in [*paths[1:], None]:
                ready = coming.result()
                if path is not None:
                    coming = pool.submit(prepared, path)
                masks.append(predictor.segment(*ready).mask)
            return masks

        ratios = []
        for _ in range(rounds):
            (slow, one), (fast, other) = timed(in_turn), timed(ahead)
            if not all(map(np.array_equal, one, other)):
                raise RuntimeError("The masks differ.")
            ratios.append(slow / fast)
        return ratios


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it gives."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
