"""The trainer's step beside the plain loop, what self-ensembling costs, and how long the network waits for its data.

    python Testing/benchmarks/training_step.py [--steps 8] [--batch 8]

COPLE-Net of width 32 on crops of 224 x 224 of synthetic slices. The plain loop is the same network, loss and optimizer,
eager, float32, contiguous, fed from the same batches. Ratios are of one run, by the median of the steps after the first
two; the losses of both are printed side by side.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from COVIDLesionSegLib.learning import NoiseRobustDiceLoss, Trainer, TrainingConfig
from COVIDLesionSegLib.learning.log import read_log
from COVIDLesionSegLib.learning.randomness import Purpose, draw_integer
from COVIDLesionSegLib.networks import COPLENet


def write_cases(folder: Path) -> None:
    """Two patients of 20 slices of 320 x 320."""
    folder.mkdir()
    for number, name in enumerate(("one", "two")):
        generator = np.random.default_rng(number)
        hu = generator.normal(-800, 60, (20, 320, 320)).astype(np.int16)
        lesion = np.zeros(hu.shape, dtype=np.uint8)
        lesion[2:18, 100:160, 60 + 80 * number : 140 + 80 * number] = 1
        hu[lesion > 0] += 350
        for kind, array in (("ct", hu), ("lesion", lesion), ("lungs", np.ones_like(lesion))):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{name}_{kind}.nii.gz"))


def trained(config: TrainingConfig, folder: Path, base: Path) -> tuple[list[float], list[float], list[float]]:
    """Seconds, seconds of waiting and losses of each step."""
    Trainer(config, folder, base).run()
    steps = [entry for entry in read_log(folder) if entry["kind"] == "step"]
    return tuple([entry[key] for entry in steps] for key in ("seconds", "waiting_seconds", "student_loss"))


def plain_loop(config: TrainingConfig, folder: Path, base: Path) -> tuple[list[float], list[float]]:
    """Seconds and losses of the loop anyone would write first."""
    source = Trainer(config, folder, base).data.source
    torch.manual_seed(draw_integer(config.run.seed, Purpose.INITIALIZATION))
    network, criterion = COPLENet(**config.network.arguments), NoiseRobustDiceLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.optimizer.learning_rate, weight_decay=1e-5)
    seconds, losses = [], []
    network.train()
    for step in range(config.run.steps):
        start = time.perf_counter()
        batch = source.batch(step)
        torch.manual_seed(draw_integer(config.run.seed, Purpose.DROPOUT, step, 0))
        loss = criterion(network(torch.from_numpy(batch.images)), torch.from_numpy(batch.labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return seconds, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    found = measure(arguments.steps, arguments.batch)
    plain, ours, ensembled = (found[name] for name in ("plain_seconds", "seconds", "ensembling_seconds"))
    print(f"threads {torch.get_num_threads()}, batch {arguments.batch} of 224 x 224")
    print(f"plain loop             {statistics.median(plain):.3f} s a step")
    print(f"trainer                {statistics.median(ours):.3f} s a step", end=": ")
    print(f"{statistics.median(plain) / statistics.median(ours):.2f} times faster")
    print(f"  waiting for data     {found['waiting']:.1%} of the time")
    print(f"  with self-ensembling {statistics.median(ensembled):.3f} s a step", end=": ")
    print(f"{statistics.median(ensembled) / statistics.median(ours):.2f} times plain training")
    print("losses, plain loop | trainer: " + ", ".join(f"{a:.4f} | {b:.4f}" for a, b in found["losses"]))


def measure(steps: int = 8, batch: int = 8, crop: int = 224) -> dict[str, Any]:
    """Seconds of each step but the first two, fraction of the time spent waiting for data, and pairs of losses."""
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        write_cases(base / "cases")
        config = TrainingConfig.from_dict(
            {
                "data": {"cases": "cases", "cache": "slices", "validation_patients": ["two"], "crop": [crop, crop]},
                "optimizer": {"schedule": "constant"},
                "ensembling": {"enabled": False},
                "run": {
                    "steps": steps,
                    "batch_size": batch,
                    "validation_interval": steps,
                    "checkpoint_interval": steps,
                },
            }
        )
        ours, waiting, losses = trained(config, base / "ours", base)
        ensembled, _, _ = trained(
            replace(config, ensembling=replace(config.ensembling, enabled=True)), base / "e", base
        )
        plain, plain_losses = plain_loop(config, base / "plain", base)
    return {
        "plain_seconds": plain[2:],
        "seconds": ours[2:],
        "ensembling_seconds": ensembled[2:],
        "waiting": sum(waiting[2:]) / sum(ours[2:]),
        "losses": list(zip(plain_losses, losses, strict=True)),
    }


if __name__ == "__main__":
    main()
