"""CARes-UNet's forward pass against the unfold-and-matmul form of its up-sampling, float32 on the CPU.

    python Testing/benchmarks/caresunet_forward.py [--threads 2] [--side 256] [--slices 1] [--repeats 5]

Both forms have the same weights and get the same slices. Times are CPU seconds of one process (with one thread) or
wall-clock seconds (with more), the smallest of several turns taken alternately. Peak memory is what the process grows
by during the forward pass, each form in a process of its own. Prints ratios measured in this run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from COVIDLesionSegLib.networks import CAResUNet
from COVIDLesionSegLib.networks.carafe import CARAFE


class UnfoldedCARAFE(nn.Module):
    """The common form: every pixel's 25 neighbors copied side by side, one matrix product a pixel, projection last."""

    def __init__(self, weights: CARAFE) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        kernels = self.weights.encode(self.weights.compress(x)).view(batch, 25, 4, height * width).softmax(1)
        neighbors = F.unfold(x, 5, padding=2).view(batch, channels, 25, height * width)
        products = neighbors.permute(0, 3, 1, 2) @ kernels.permute(0, 3, 1, 2)
        products = products.permute(0, 2, 3, 1).reshape(batch, 4 * channels, height, width)
        return self.weights.project(F.pixel_shuffle(products, 2))


def make_network(form: str, base_channels: int) -> CAResUNet:
    torch.manual_seed(0)
    network = CAResUNet(base_channels=base_channels).eval()
    if form == "ours":
        # as the predictor lays it out; the other form stays as released
        return network.to(memory_format=torch.channels_last)
    network.enlargements = nn.ModuleList(UnfoldedCARAFE(module) for module in network.enlargements)
    return network


def seconds(functions: dict[str, object], repeats: int) -> dict[str, float]:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            best[name] = min(best[name], clock() - start)
    return best


def growth_in_mb(form: str, arguments: argparse.Namespace) -> float:
    """What one forward pass adds to the resident memory of a fresh process, MB."""
    command = [sys.executable, __file__, "--measure", form, "--side", str(arguments.side)]
    command += ["--slices", str(arguments.slices), "--threads", str(arguments.threads), "--base", str(arguments.base)]
    # each larger block goes back to the system when it is freed: else the luck of the heap decides
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def memory_mb(line: str) -> float:
    """A line of Linux's account of this process: VmRSS (now) or VmHWM (peak since the last reset)."""
    text = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) * 1024 / 1e6 for row in text.splitlines() if row.startswith(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--base", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", choices=("ours", "unfold"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print_growth(arguments)
        return
    found = measure(arguments)
    print(f"{arguments.slices} slice(s) of {arguments.side} x {arguments.side}, {arguments.threads} thread(s), float32")
    print(f"largest difference of the logits: {found['difference']:.1e}")
    for what, unit in (("time", "s"), ("upsampling", "s"), ("memory", "MB")):
        ours, unfold = found[what]
        print(f"{what}: ours {ours:.3g} {unit}, unfold {unfold:.3g} {unit}, ratio {unfold / ours:.2f}")


def print_growth(arguments: argparse.Namespace) -> None:
    """Print what one forward pass adds to this process's memory, MB."""
    torch.set_num_threads(arguments.threads)
    image = torch.rand(arguments.slices, 1, arguments.side, arguments.side)
    with torch.inference_mode():
        network = make_network(arguments.measure, arguments.base)
        # libraries load at the first call; a small one does that
        network(image[:1, :, :32, :32])
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = memory_mb("VmRSS")
        network(image)
    print(json.dumps(memory_mb("VmHWM") - before))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Largest difference of the logits, and (ours, unfold) of time and up-sampling (s) and memory (MB)."""
    torch.set_num_threads(arguments.threads)
    image = torch.rand(arguments.slices, 1, arguments.side, arguments.side)
    with torch.inference_mode():
        forms = {form: make_network(form, arguments.base) for form in ("ours", "unfold")}
        difference = (forms["ours"](image) - forms["unfold"](image)).abs().max().item()
        whole = seconds({name: lambda n=network: n(image) for name, network in forms.items()}, arguments.repeats)
        inputs = [
            torch.rand(arguments.slices, arguments.base * 2 ** (4 - i), *[arguments.side // 2 ** (4 - i)] * 2)
            for i in range(4)
        ]
        layout = {"ours": torch.channels_last, "unfold": torch.contiguous_format}
        parts = {
            name: [(m, x.contiguous(memory_format=layout[name])) for m, x in zip(n.enlargements, inputs, strict=True)]
            for name, n in forms.items()
        }
        upsampling = seconds(
            {name: lambda p=part: [module(x) for module, x in p] for name, part in parts.items()}, arguments.repeats
        )
    memory = {name: growth_in_mb(name, arguments) for name in forms}
    found = {"time": whole, "upsampling": upsampling, "memory": memory}
    return {"difference": difference, **{name: (v["ours"], v["unfold"]) for name, v in found.items()}}


if __name__ == "__main__":
    main()
