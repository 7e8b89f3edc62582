"""Lungs by a network, which knows them by their shape where consolidation or effusion leave no air in them.

The network sees axial slices of a reduced grid, up to 4 mm thick with pixels of 2.5 mm, each with neighbors above and
below as channels. Where the lung holds air its border is then set at full resolution, where the Hounsfield units cross
the middle between lung and soft tissue; where it is dense the network's own border stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CancelledError, IntensityError, LungsNotFoundError
from ..imaging.lungs._morphology import Pieces, dilate, grow
from ..imaging.lungs.finder import SMALLEST_SECTION, Progress
from ..imaging.lungs.masks import LEFT, RIGHT
from ..imaging.masks import bounding_box
from ..imaging.volume import Volume
from ..models.checkpoints import LoadedModel, load_checkpoint
from ..resources import resource
from .optimize import optimized_copy
from .slices import channels_last, resized

Spacing = tuple[float, float, float]

#: The weights, in Resources/.
WEIGHTS = "Models/lungs-ctseg.safetensors"
#: Pixels of the reduced grid, and the thickest slices that neighbors are averaged to, mm.
PIXEL, THICKNESS = 2.5, 4.0
#: The channels: a slice, and its neighbors at these distances towards the head, mm.
CONTEXT = (-30.0, -10.0, 0.0, 10.0, 30.0)
#: Hounsfield units that become [0, 1].
LOWEST, HIGHEST = -1024.0, 300.0
# The network's sides are multiples of this; slices at once.
_MULTIPLE, _BATCH = 16, 8
# The body is denser than this, HU.
_BODY = -500.0
# Standard deviation of the smoothing across slices, mm.
_SMOOTHING = 4.0
# A piece with less than this share of the largest one is no lung; a part of one side with less than the second share of
# the largest lung belongs to the lung that it touches.
_LEAST_PIECE, _LEAST_OF_SIDE = 0.1, 0.15
# A voxel darker than the middle between the lung around it and soft tissue is lung from the first of these
# probabilities on, a brighter one, such as the chest wall beside it, from the second on.
_DARK_FROM, _BRIGHT_FROM = 0.3, 0.7
# The lung around a voxel is its mean over so many slices, rows and columns; between these two it becomes dense, HU.
_AROUND = (3, 5, 5)
_AERATED, _DENSE = -300.0, -200.0
# Hounsfield units of what lies around the lung, and how far on the way there the border lies: readers draw it where
# about two thirds are tissue.
_TISSUE, _BORDER = 40.0, 0.6


def find_lungs_by_network(
    volume: Volume,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    network: torch.nn.Module | None = None,
) -> NDArray[np.uint8]:
    """Find the right and the left lung with a network; runs on the processor.

    Args:
        volume: a CT in Hounsfield units, any orientation, whole or part of a chest.
        progress: called as ``progress("lungs", done, total)``.
        cancelled: asked between the steps; True stops.
        network: logits (n, 3, h, w) of background, right and left lung from :func:`network_input`; None takes the one
            that comes with this program.

    Returns:
        uint8 (z, y, x) on the volume's own grid: 0 outside, 1 right lung, 2 left lung; airways lie outside, vessels
        and all disease inside.

    Raises:
        LungsNotFoundError: the network finds nothing that is large enough for a lung.
        IntensityError: the volume holds NaN.
        ModelError: the weights are not there or damaged.
        CancelledError: ``cancelled`` said True.
    """

    def step(percent: float) -> None:
        if cancelled is not None and cancelled():
            raise CancelledError("Finding the lungs was stopped.")
        if progress is not None:
            progress("lungs", int(percent), 100)

    step(0)
    view = volume.geometry.axial_view()
    array, spacing = view.apply(volume.array), view.geometry.spacing_zyx
    hu, depth = reduce_slices(array, spacing)
    distance = depth * spacing[0]
    step(25)
    probability = _probability(network or _network(), hu, distance, lambda share: step(25 + 35 * share))
    lung, sides = _whole_lungs(probability, (distance, PIXEL, PIXEL))
    section = float(lung.gt(0.5).sum(dim=(1, 2)).max()) * PIXEL**2
    if section < SMALLEST_SECTION:
        raise LungsNotFoundError(
            f"No lungs were found in {volume.name}: the network sees none.",
            "Check that this is a chest CT in Hounsfield units, or give a lung mask.",
        )
    result = np.zeros(array.shape, np.uint8)
    refine(array, hu, lung, sides, depth, result, lambda share: step(60 + 39 * share))
    if progress is not None:
        progress("lungs", 100, 100)
    return np.ascontiguousarray(view.restore(result))


@cache
def lung_model() -> LoadedModel:
    """The lung network with its card, read once."""
    return load_checkpoint(resource(WEIGHTS), lungs=True)


@cache
def _network() -> torch.nn.Module:
    return optimized_copy(lung_model().network, torch.device("cpu"), torch.float32)


# The network's grid


def reduce_slices(array: NDArray, spacing: Spacing) -> tuple[Tensor, int]:
    """A CT on the network's grid.

    Args:
        array: (z, y, x) of the axial view, HU.
        spacing: (z, y, x) mm.

    Returns:
        float32 (n, h, w), HU between :data:`LOWEST` and :data:`HIGHEST`, and how many slices were averaged to one.

    Raises:
        IntensityError: voxels that are not a number.
    """
    depth = max(1, int(THICKNESS / spacing[0] + 1e-3))
    size = reduced_size(array.shape, spacing)
    planes = []
    for start in range(0, len(array), depth):
        slab = np.clip(array[start : start + depth], int(LOWEST), int(HIGHEST))
        # the sum of so few slices fits into 16 bits
        total = slab.sum(axis=0, dtype=np.int16 if slab.dtype == np.int16 and depth < 24 else np.float32)
        plane = torch.from_numpy(np.ascontiguousarray(total)).to(torch.float32)
        planes.append(resized(plane[None, None] / len(slab), size)[0, 0])
    reduced = torch.stack(planes)
    if reduced.isnan().any():
        raise IntensityError("The volume holds voxels that are not a number (NaN); export it again.")
    return reduced, depth


def reduced_size(shape: tuple[int, ...], spacing: Spacing) -> tuple[int, int]:
    """Rows and columns of the network's grid for a CT (z, y, x) of this shape and spacing."""
    rows, columns = (max(1, round(n * s / PIXEL)) for n, s in zip(shape[1:], spacing[1:], strict=True))
    return rows, columns


def context_of(count: int, distance: float) -> NDArray[np.intp]:
    """Which slices are the channels of each slice.

    Args:
        count: number of slices.
        distance: between slices, mm.

    Returns:
        (count, channels); where the scan ends its last slice is repeated.
    """
    steps = np.rint(np.array(CONTEXT) / distance).astype(np.intp)
    return np.clip(np.arange(count)[:, None] + steps, 0, count - 1)


def network_input(hu: Tensor) -> Tensor:
    """HU to what the network sees, [0, 1]."""
    return ((hu - LOWEST) / (HIGHEST - LOWEST)).clamp(0, 1)


def _probability(network: torch.nn.Module, hu: Tensor, distance: float, report: Callable[[float], None]) -> Tensor:
    """(2, n, h, w): probability of right and left lung, 0 outside the body's box."""
    probability = torch.zeros((2, *hu.shape))
    _, rows, columns = bounding_box(hu.numpy() > _BODY)
    if not rows.stop:
        return probability
    body = network_input(hu[:, rows, columns])
    height, width = body.shape[1:]
    # air around it
    body = F.pad(body, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE))
    channels = torch.from_numpy(context_of(len(hu), distance))
    for start in range(0, len(hu), _BATCH):
        with torch.inference_mode():
            logits = network(channels_last(body[channels[start : start + _BATCH]]))
            found = logits.softmax(dim=1)[:, 1:, :height, :width]
        probability[:, start : start + _BATCH, rows, columns] = found.transpose(0, 1)
        report(min(start + _BATCH, len(hu)) / len(hu))
    return probability


def _whole_lungs(probability: Tensor, spacing: Spacing) -> tuple[Tensor, Tensor]:
    """Probability of lung (n, h, w) without scraps, and uint8 which side a place belongs to, in and near the lungs."""
    lung = _smoothed(probability.sum(dim=0), spacing[0])
    mask = (lung > 0.5).numpy()
    pieces = Pieces(mask)
    if not pieces:
        return lung, torch.zeros(lung.shape, dtype=torch.uint8)
    large = pieces.those(pieces.size >= _LEAST_PIECE * pieces.size.max())
    scraps = dilate(mask & ~large, spacing, 1.5 * max(spacing)) & ~dilate(large, spacing, 1.01 * min(spacing))
    lung = torch.where(torch.from_numpy(scraps), 0.0, lung)

    is_left = (probability[1] > probability[0]).numpy()
    of_sides = [Pieces(large & ~is_left), Pieces(large & is_left)]
    least = _LEAST_OF_SIDE * max(parts.size.max() for parts in of_sides)
    sides = np.zeros(mask.shape, np.uint8)
    for side, parts in zip((RIGHT, LEFT), of_sides, strict=True):
        sides[parts.those(parts.size >= least)] = side
    sides = grow(sides, large)
    # what no large part of either side touches keeps its own
    sides = np.where((sides == 0) & large, np.where(is_left, LEFT, RIGHT), sides).astype(np.uint8)
    return lung, torch.from_numpy(grow(sides, dilate(large, spacing, 2.01 * max(spacing))))


def _smoothed(lung: Tensor, distance: float) -> Tensor:
    """The probability (n, h, w) smoothed across slices, which the network answers one by one."""
    steps = min(int(2 * _SMOOTHING / distance), len(lung) - 1)
    if not steps:
        return lung
    weight = torch.exp(-0.5 * (torch.arange(-steps, steps + 1) * distance / _SMOOTHING) ** 2)
    columns = lung.flatten(1).T[:, None]
    padded = F.pad(columns, (steps, steps), mode="replicate")
    return F.conv1d(padded, (weight / weight.sum())[None, None])[:, 0].T.reshape(lung.shape)


# The CT's own grid


def refine(
    array: NDArray,
    hu: Tensor,
    lung: Tensor,
    sides: Tensor,
    depth: int,
    result: NDArray[np.uint8],
    report: Callable[[float], None] = lambda _: None,
) -> None:
    """Carry lungs from the network's grid to the CT's own and set their border there.

    Args:
        array: (z, y, x) of the axial view, HU.
        hu: (n, h, w), the CT on the network's grid.
        lung: (n, h, w), probability of lung.
        sides: uint8 (n, h, w), 1 or 2 where lung could be.
        depth: slices that were averaged to one.
        result: uint8 (z, y, x), 0, which gets 1 in the right lung and 2 in the left lung.
        report: called with the share that is done; may raise to stop.
    """
    possible = lung > _DARK_FROM
    if not possible.any():
        return
    used, *inner = bounding_box(possible.numpy(), (1, 2, 2))
    # the part of the slices that holds lung, on both grids
    scale = [n / small for n, small in zip(array.shape[1:], lung.shape[1:], strict=True)]
    outer = [
        slice(int(np.ceil(part.start * s)), min(n, int(np.floor(part.stop * s))))
        for part, s, n in zip(inner, scale, array.shape[1:], strict=True)
    ]
    # the lung around each place: the mean over what is lung there
    window = [side // 2 for side in _AROUND]
    weighted, weight = (F.avg_pool3d(x[None, None], _AROUND, 1, window)[0, 0] for x in (lung * hu, lung))
    around = weighted / weight.clamp(min=1e-3)
    # where lung is dense its Hounsfield units say nothing about its border
    dense = ((around - _AERATED) / (_DENSE - _AERATED)).clamp(0, 1)
    settings = torch.stack(
        [
            around + _BORDER * (_TISSUE - around),
            torch.lerp(torch.full_like(dense, _DARK_FROM), torch.full_like(dense, 0.5), dense),
            torch.lerp(torch.full_like(dense, _BRIGHT_FROM), torch.full_like(dense, 0.5), dense),
        ],
        dim=1,
    )

    rows, columns = (
        torch.from_numpy(((np.arange(part.start, part.stop) + 0.5) / s).astype(np.intp))
        for part, s in zip(outer, scale, strict=True)
    )

    def full(maps: Tensor) -> Tensor:
        whole = F.interpolate(maps[None], size=array.shape[1:], mode="bilinear", align_corners=False)[0]
        return whole[:, outer[0], outer[1]]

    planes: dict[int, Tensor] = {}
    for index in range(used.start, used.stop):
        near = [min(max(other, 0), len(lung) - 1) for other in (index - 1, index, index + 1)]
        planes = {other: planes[other] if other in planes else full(lung[other][None])[0] for other in near}
        below, here, above = (planes[other] for other in near)
        middle, dark_from, bright_from = full(settings[index])
        side = sides[index][rows][:, columns]
        first, last = index * depth, min((index + 1) * depth, len(array))
        values = torch.from_numpy(np.ascontiguousarray(array[first:last, outer[0], outer[1]]))
        for z, value in zip(range(first, last), values, strict=True):
            # from the middle of this slab towards that of its neighbor
            way = (z - first + 0.5) / depth - 0.5
            place = torch.lerp(here, above if way > 0 else below, abs(way))
            chosen = place > torch.where(value < middle, dark_from, bright_from)
            # a majority of 3 x 3 takes single voxels of noise off the border
            smooth = F.avg_pool2d(chosen.to(torch.float32)[None], 3, 1, 1)[0] > 0.5
            result[z, outer[0], outer[1]] = torch.where(smooth, side, 0).numpy()
        report((index + 1 - used.start) / (used.stop - used.start))
