"""The lung network: training, folds with patients kept out, and the weights that come with the project.

    python Testing/benchmarks/lung_network.py train FOLDER [--fold 1|2|3|4] [--steps N]
    python Testing/benchmarks/lung_network.py judge FOLDER [--fold 1|2|3|4]
    python Testing/benchmarks/lung_network.py bundle FOLDER
    python Testing/benchmarks/lung_network.py speed

``train`` without a fold takes all data; a training that was interrupted goes on. Labels are the experts' lungs in the
slices in which they drew them, and the classical finder's elsewhere. ``judge`` states the Dice of each chest that the
fold kept out (of all of them without a fold, which then trained) against the experts, and of the dense sick chests,
which never train; bars: 0.98, on LCTSC 0.97, on the sick chests 0.95. ``bundle`` writes the weights and their card into
Resources/. ``speed`` times the bundled network on 512 x 512 x 300 voxels, in seconds of the processor, since other work
on the machine lengthens the clock's; bar: 2 s with OMP_NUM_THREADS=1. Ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path[:0] = [
    str(Path(__file__).resolve().parents[2] / "COVIDLesionSeg"),
    str(Path(__file__).resolve().parents[1] / "Python"),
]

from shared_data import LCTSC, NEGATIVES, ct_seg, ct_seg_names
from sick_lungs import paint_disease

from COVIDLesionSegLib.files import sha256_file, write_json
from COVIDLesionSegLib.imaging import (
    Geometry,
    Volume,
    assess_lungs,
    find_lungs,
    judged_lungs,
    read_labels,
    read_volume,
)
from COVIDLesionSegLib.imaging.lungs._morphology import grow
from COVIDLesionSegLib.inference import lungs as engine
from COVIDLesionSegLib.inference.lung_engine import lung_network
from COVIDLesionSegLib.inference.optimize import optimized_copy
from COVIDLesionSegLib.inference.slices import channels_last, resized
from COVIDLesionSegLib.learning import DiceCrossEntropyLoss
from COVIDLesionSegLib.learning.config import OptimizerSettings
from COVIDLesionSegLib.learning.optimizers import learning_rate, make_optimizer
from COVIDLesionSegLib.learning.randomness import Purpose, draw, draw_integer
from COVIDLesionSegLib.measurement import dice, sensitivity
from COVIDLesionSegLib.models import ModelCard, save_model
from COVIDLesionSegLib.networks import COPLENet
from COVIDLesionSegLib.phantom.sick import sick_chest
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest
from COVIDLesionSegLib.resources import resource

#: fold -> chests that it keeps out
FOLDS = {
    1: ("coronacases_001", "coronacases_006", "lctsc_006"),
    2: ("coronacases_002", "coronacases_007", "lctsc_011"),
    3: ("coronacases_004", "coronacases_008", "normal001"),
    4: ("coronacases_005", "coronacases_009"),
}
NETWORK = {"in_channels": 5, "out_channels": 3, "channels": (8, 16, 32, 64, 128), "dropout": (0.0, 0.0, 0.0, 0.1, 0.2)}
OPTIMIZER = OptimizerSettings(name="adam", learning_rate=3e-3, schedule="one_cycle", gradient_clip=5.0)
DENSE = ("dependent_25", "dependent_40", "lower_lobe", "lower_lobes", "white_left_lung")
EXPERTS, LUNG_CANCER, SICK_CHESTS_BAR = 0.98, 0.97, 0.95
SPEED_SHAPE, SPEED_BAR, MOST_BYTES = (300, 512, 512), 2.0, 2_000_000
BATCH, CANVAS, SEED = 6, (96, 128), 21
# A chest gets new disease every so many steps, chest by chest; so many of the slices show it.
REPAINT, SICK = 2, 0.75


@dataclass(frozen=True, eq=False)
class Chest:
    """A chest on the network's grid.

    Attributes:
        hu: float32 (n, h, w).
        labels: uint8 (n, h, w), 1 right lung and 2 left lung.
        spacing: (z, y, x) mm.
    """

    hu: NDArray[np.float32]
    labels: NDArray[np.uint8]
    spacing: tuple[float, float, float]


def chest(name: str, folder: Path) -> Chest:
    """A chest of the shared data, read once and kept in the folder."""
    kept = folder / f"{name}.npz"
    if not kept.is_file():
        path, experts, drawn = sources(name)
        volume = read_volume(path)
        view = volume.geometry.axial_view()
        labels = find_lungs(volume)
        if name.startswith("lctsc"):
            labels = judged_lungs(read_labels(experts), volume).labels
        elif experts is not None:
            # theirs has one label: the side is that of the finder's nearest lung
            by_hand = read_labels(experts).mask()[drawn]
            labels[drawn] = np.where(by_hand, grow(labels[drawn], by_hand), 0)
        spacing = view.geometry.spacing_zyx
        reduced, depth = engine.reduce_slices(view.apply(volume.array), spacing)
        shares = []
        for start in range(0, len(volume.array), depth):
            slab = view.apply(labels)[start : start + depth]
            both = np.stack([(slab == side).mean(axis=0, dtype=np.float32) for side in (1, 2)])
            shares.append(resized(torch.from_numpy(both)[None], tuple(reduced.shape[1:]))[0].numpy())
        share = np.stack(shares)
        side = np.where(share[:, 1] > share[:, 0], 2, 1)
        np.savez(
            kept,
            hu=reduced.numpy(),
            labels=np.where(share.sum(axis=1) > 0.5, side, 0).astype(np.uint8),
            spacing=(depth * spacing[0], engine.PIXEL, engine.PIXEL),
        )
    with np.load(kept) as file:
        return Chest(file["hu"], file["labels"], tuple(map(float, file["spacing"])))


def sources(name: str) -> tuple[Path, Path | None, slice]:
    """A chest's CT, its experts' lungs and the slices in which they drew them."""
    if name in ct_seg_names():
        case = ct_seg(name)
        return case.ct, case.lungs, case.expert_slices
    path = NEGATIVES[name]
    if path.parent == LCTSC:
        return path, path.with_name(path.name.replace("_ct.", "_lungs.")), slice(None)
    return path, None, slice(0, 0)


def names() -> list[str]:
    """All chests that may train."""
    return [*ct_seg_names(), *NEGATIVES]


def sample(
    hu: NDArray[np.float32], labels: NDArray[np.uint8], distance: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A slice with its neighbors and its label, moved, flipped and with other intensities.

    Returns:
        (channels, H, W) float32 in [0, 1], and (H, W) int64.
    """
    index = int(generator.integers(len(hu)))
    # scans end anywhere, and distances between slices are not always true
    first, last = 0, len(hu) - 1
    if generator.random() < 0.3:
        first, last = (int(generator.integers(0, index + 1)), int(generator.integers(index, len(hu))))
    steps = np.rint(np.array(engine.CONTEXT) / (distance * generator.uniform(0.7, 1.5))).astype(int)
    if generator.random() < 0.1:
        steps[generator.random(len(steps)) < 0.5] = 0
    slices = np.clip(index + steps, first, last)

    height, width = hu.shape[1:]
    angle = np.radians(generator.uniform(-15, 15))
    scale = np.exp(generator.uniform(-0.25, 0.25)) * np.exp(generator.uniform(-0.1, 0.1, 2))
    flip = generator.random() < 0.5
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # rows of x and y from the canvas to the slice, in pixels from their centers, then in halves of the sides
    matrix = np.diag(scale) @ rotation @ np.diag([-1.0 if flip else 1.0, 1.0])
    sides, canvas = np.array([width, height]), np.array(CANVAS[::-1])
    # mostly all of the chest is seen, sometimes a part of it
    room = np.abs(sides - canvas / scale.mean()) / 2
    offset = generator.uniform(-1, 1, 2) * (room + 40 if generator.random() < 0.1 else 0.7 * room + 4)
    theta = np.column_stack([matrix * canvas / sides[:, None], 2 * offset / sides]).astype(np.float32)
    grid = F.affine_grid(torch.from_numpy(theta)[None], [1, 1, *CANVAS], align_corners=False)
    beyond = "border" if generator.random() < 0.3 else "zeros"
    image = engine.network_input(torch.from_numpy(hu[slices]))[None]
    image = F.grid_sample(image, grid, mode="bilinear", padding_mode=beyond, align_corners=False)[0]
    label = torch.from_numpy(labels[index]).to(torch.float32)[None, None]
    label = F.grid_sample(label, grid, mode="nearest", align_corners=False)[0, 0].to(torch.int64)
    if flip:
        label = torch.tensor([0, 2, 1])[label]

    if generator.random() < 0.3:
        image = F.avg_pool2d(image[None], 3, 1, 1, count_include_pad=False)[0]
    noise = generator.uniform(0, 0.03) if generator.random() < 0.5 else 0.0
    if noise:
        image = image + torch.from_numpy(generator.standard_normal(image.shape, np.float32)) * noise
    image = image * generator.uniform(0.93, 1.07) + generator.uniform(-0.03, 0.03)
    return image.clamp(0, 1), label


def train(folder: Path, fold: int | None, steps: int) -> None:
    """Train, or go on with a training, and write ``network.pt`` at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(draw_integer(SEED, Purpose.INITIALIZATION))
    chests = {name: chest(name, folder.parent) for name in names() if name not in FOLDS.get(fold, ())}
    healthy, sick = list(chests.values()), [c.hu for c in chests.values()]
    network = COPLENet(**NETWORK).to(memory_format=torch.channels_last).train()
    optimizer, loss = make_optimizer(OPTIMIZER, network.parameters()), DiceCrossEntropyLoss()
    state, first = folder / "state.pt", 0
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    total, begin = 0.0, time.perf_counter()
    for step in range(first, steps):
        torch.manual_seed(draw_integer(SEED, Purpose.DROPOUT, step))
        # all at once at the beginning, then one after the other
        for number, one in enumerate(healthy):
            if step == first or (step % REPAINT == 0 and step // REPAINT % len(healthy) == number):
                sick[number] = paint_disease(one.hu, one.labels, one.spacing, draw(SEED, Purpose.CROP, step, number))
        samples = []
        for place in range(BATCH):
            generator = draw(SEED, Purpose.AUGMENTATION, step, place)
            number = int(generator.integers(len(healthy)))
            one = healthy[number]
            hu = sick[number] if generator.random() < SICK else one.hu
            samples.append(sample(hu, one.labels, one.spacing[0], generator))
        images, labels = (torch.stack(part) for part in zip(*samples, strict=True))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(OPTIMIZER, step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(channels_last(images))
        value = loss(logits.float(), labels)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), OPTIMIZER.gradient_clip)
        optimizer.step()
        total += value.item()
        if (step + 1) % 100 == 0:
            seconds = (time.perf_counter() - begin) / (step + 1 - first)
            print(f"step {step + 1}  loss {total / 100:.4f}  {seconds:.3f} s a step", flush=True)
            total = 0.0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            saved = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(saved, state.with_suffix(".part"))
            state.with_suffix(".part").replace(state)


def trained(folder: Path) -> COPLENet:
    """The network of a training, in eval mode."""
    network = COPLENet(**NETWORK)
    network.load_state_dict(torch.load(folder / "state.pt", weights_only=True)["network"])
    return network.eval()


def judge(folder: Path, fold: int | None) -> bool:
    """Print a line for each chest that the fold kept out and each dense sick chest; whether all bars are held."""
    network = optimized_copy(trained(folder), torch.device("cpu"), torch.float32)
    held = True
    for name in FOLDS[fold] if fold else names():
        path, experts, drawn = sources(name)
        volume = read_volume(path)
        found = engine.find_lungs_by_network(volume, network=network)
        finder = find_lungs(volume)
        line = f"{name:16} with the finder {dice(found > 0, finder > 0):.4f}"
        if experts is not None:
            by_hand = read_labels(experts).mask()
            score = dice(found[drawn] > 0, by_hand[drawn])
            bar = LUNG_CANCER if name.startswith("lctsc") else EXPERTS
            held &= score >= bar
            line += f"  with the experts {score:.4f} (finder {dice(finder[drawn] > 0, by_hand[drawn]):.4f})"
        print(line, assess_lungs(volume, found, "network").line(), flush=True)
    for name in DENSE:
        sick = sick_chest(name)
        found = engine.find_lungs_by_network(sick.volume, network=network)
        sides = [dice(found == side, sick.lungs == side) for side in (1, 2)]
        score = dice(found > 0, sick.lungs > 0)
        held &= score >= SICK_CHESTS_BAR
        print(
            f"{name:16} Dice {score:.4f} (right {sides[0]:.4f}, left {sides[1]:.4f})"
            f"  lesion inside {sensitivity(found > 0, sick.lesion):.1%}",
            assess_lungs(sick.volume, found, "network").line(),
            flush=True,
        )
    return held


def bundle(folder: Path) -> bool:
    """Write the weights and their card into Resources/; whether they have at most 2 MB."""
    entry = lung_network()
    path = resource("LungModels.json").parent / "Models" / entry.file_name
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    saved = save_model(trained(folder), ModelCard.from_json(card), path, "float16")
    write_json(path.with_suffix(".json"), saved.to_json())
    print(f"{path.name}: {path.stat().st_size} bytes, SHA-256 {sha256_file(path)}")
    return path.stat().st_size <= MOST_BYTES


def speed() -> bool:
    """Print the seconds for a whole CT; whether the bar is held."""
    made = synthetic_chest(oblique=False)
    index = [np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(made.lungs.shape, SPEED_SHAPE, strict=True)]
    array = np.ascontiguousarray(made.volume.array[np.ix_(*index)])
    volume = Volume(array, Geometry(SPEED_SHAPE[::-1], (0.7, 0.7, 1.0)))
    best = np.inf
    for _ in range(3):
        begin, processor = time.perf_counter(), time.process_time()
        engine.find_lungs_by_network(volume)
        best = min(best, time.process_time() - processor)
        print(f"{time.perf_counter() - begin:.2f} s, {time.process_time() - processor:.2f} s of the processor")
    return best <= SPEED_BAR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["train", "judge", "bundle", "speed"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--fold", type=int, choices=sorted(FOLDS))
    parser.add_argument("--steps", type=int, default=3800)
    arguments = parser.parse_args()
    if arguments.folder is None and arguments.part != "speed":
        parser.error("a folder is needed")
    if arguments.part == "train":
        train(arguments.folder, arguments.fold, arguments.steps)
        return
    parts = {
        "judge": lambda: judge(arguments.folder, arguments.fold),
        "bundle": lambda: bundle(arguments.folder),
        "speed": speed,
    }
    held = parts[arguments.part]()
    print("all bars held" if held else "a bar is missed")
    sys.exit(not held)


if __name__ == "__main__":
    main()
