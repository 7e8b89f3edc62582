"""From Hounsfield units to a network's input and from its logits back, for a few slices at a time.

A network may see slices beside the one that it is asked about, as channels, at distances in mm that its card names.
Where a CT has none at a distance (its ends, thick slices, a single slice), the nearest one that it has serves.

One preparation serves the predictor, the validation of a training, pseudo-labels and training slices, so that a network
learns on what it will be shown, and is judged on what it will be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.card import Preprocessing
from .devices import exact_float32

# Grays of an 8-bit picture as a window: 0 becomes 0, 255 becomes 1.
PICTURE_WINDOW = (255.0, 127.5)


class SlicePreparation:
    """The model card's preprocessing for slices of one size, and its way back.

    Window, then resizing (linear) if the card asks for it, then padding by reflection as ``numpy.pad`` does it
    (repeated for slices smaller than the margin), of which the smaller half lies before the slice.

    Args:
        preprocessing: of the model card; of pictures what :func:`for_pictures` makes of it.
        size: rows and columns of the slices that come.
        device: where they are.
        slice_spacing: distance of two slices, mm.

    Attributes:
        slice_size: rows and columns of the slices that come.
        device: where they are.
        slice_spacing: distance of two slices, mm.
        size: rows and columns of the network's input.
    """

    def __init__(
        self, preprocessing: Preprocessing, size: tuple[int, int], device: torch.device, slice_spacing: float = 1.0
    ) -> None:
        self._settings = preprocessing
        self.slice_size, self.device, self.slice_spacing = size, device, slice_spacing
        self._inner = preprocessing.resize or size
        multiple = preprocessing.pad_multiple
        margins = [-side % multiple for side in self._inner]
        self._before = [margin // 2 for margin in margins]
        self._sources = [
            torch.from_numpy(np.pad(np.arange(side), (before, margin - before), mode="reflect")).to(device)
            for side, margin, before in zip(self._inner, margins, self._before, strict=True)
        ]
        self.size = (len(self._sources[0]), len(self._sources[1]))

    def windowed(self, slices: Tensor) -> Tensor:
        """(n, h, w) int16 or float32 in Hounsfield units to (n, 1, H, W) float32 in [0, 1], resized but not padded."""
        settings = self._settings
        x = slices.to(torch.float32, copy=True)[:, None]
        x.sub_(settings.window_level - settings.window_width / 2).div_(settings.window_width).clamp_(0, 1)
        return resized(x, self._inner) if self._inner != self.slice_size else x

    def input_of(self, slices: NDArray[np.generic], indices: Sequence[int] | NDArray[np.intp]) -> Tensor:
        """The network's input for some slices of a CT.

        Args:
            slices: (z, h, w) of the CT or its crop, int16 or float32, Hounsfield units; any strides.
            indices: (n,), of the slices that are asked about.

        Returns:
            (n, C, H, W) float32 in [0, 1] on the device, a channel for each of the card's slice offsets.
        """
        planes = planes_at(self._settings.slice_offsets_mm, self.slice_spacing, indices, len(slices))
        needed, channels = np.unique(planes, return_inverse=True)
        tensor = torch.from_numpy(np.ascontiguousarray(slices[needed]))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        return self.apply(tensor.to(self.device), channels.reshape(planes.shape))

    def apply(self, slices: Tensor, channels: NDArray[np.intp] | None = None) -> Tensor:
        """Slices to the network's input.

        Args:
            slices: (n, h, w) int16 or float32 in Hounsfield units.
            channels: (m, C), which of the slices are the channels of each input; None makes an input of each slice
                alone, which stands for its neighbors, too.

        Returns:
            (m, C, H, W) float32 in [0, 1].
        """
        x = self.windowed(slices)
        if channels is not None and not np.array_equal(channels, np.arange(len(x))[:, None]):
            x = x[torch.from_numpy(channels).to(x.device), 0]
        elif len(self._settings.slice_offsets_mm) > 1:
            x = x.expand(-1, len(self._settings.slice_offsets_mm), -1, -1)
        for axis, source in zip((2, 3), self._sources, strict=True):
            if len(source) != x.shape[axis]:
                x = x.index_select(axis, source)
        return x

    def restore(self, maps: Tensor) -> Tensor:
        """Maps on the network's grid (n, C, H, W) to the slices' own (n, C, h, w)."""
        (top, left), (height, width) = self._before, self._inner
        maps = maps[:, :, top : top + height, left : left + width]
        return resized(maps, self.slice_size) if self._inner != self.slice_size else maps


def planes_at(
    offsets_mm: Sequence[float], spacing: float, indices: Sequence[int] | NDArray[np.intp], count: int
) -> NDArray[np.intp]:
    """Which slices lie nearest to some distances from given slices.

    Args:
        offsets_mm: (C,), distances along the slices' axis, mm.
        spacing: of the slices, mm.
        indices: (n,), of the slices that they are distances from.
        count: slices of the CT; beyond its ends the last one is repeated.

    Returns:
        (n, C), indices of slices.
    """
    steps = np.rint(np.asarray(offsets_mm) / spacing).astype(np.intp)
    return np.clip(np.asarray(indices, dtype=np.intp)[:, None] + steps, 0, count - 1)


def for_pictures(preprocessing: Preprocessing) -> Preprocessing:
    """The same preprocessing for 8-bit pictures, whose window somebody else has chosen: their grays become [0, 1]."""
    return replace(preprocessing, window_width=PICTURE_WINDOW[0], window_level=PICTURE_WINDOW[1])


def slice_logits(
    network: nn.Module,
    preparation: SlicePreparation,
    slices: NDArray[np.generic],
    autocast: torch.dtype | None = None,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """A network's logits for slices that are prepared here.

    Args:
        network: in eval mode, on the preparation's device.
        preparation: for slices of this size.
        slices: (z, h, w) of a case, Hounsfield units or grays.
        autocast: type of the mixed precision, or None.
        indices: (n,), of the slices that are asked about; None asks about all.

    Returns:
        Logits (n, classes, H, W) on the network's grid; :meth:`SlicePreparation.restore` brings back what is made of
        them.
    """
    device = preparation.device
    dtype = next(network.parameters()).dtype
    with (
        torch.inference_mode(),
        exact_float32(device),
        torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
    ):
        x = preparation.input_of(slices, range(len(slices)) if indices is None else indices)
        logits: Tensor = network(channels_last(x.to(dtype)))
    return logits


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Slices or maps of another size, linear between pixel centers.

    Where they shrink, a pixel is the weighted mean of all that it stands for, as picture libraries do it: samples alone
    would keep all the noise of the full resolution, and noisy healthy lung then looks like ground-glass opacity.

    Args:
        maps: (n, C, h, w), floating point.
        size: rows and columns (H, W).

    Returns:
        (n, C, H, W), of the same type.
    """
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)


def resized_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Masks of another size: each pixel takes the label of the pixel in whose area its center lies.

    Args:
        labels: (n, h, w).
        size: rows and columns (H, W).

    Returns:
        (n, H, W).
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for old, new in zip(labels.shape[1:], size, strict=True)
    )
    return labels[:, rows[:, None], columns]


def channels_last(x: Tensor) -> Tensor:
    """(n, C, H, W) laid out channels last, by its strides too.

    With one channel both layouts are the same bytes; PyTorch then reads the layout from the strides, and convolves
    many times slower if they are those of the other one.
    """
    n, channels, height, width = x.shape
    if channels > 1:
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous().as_strided((n, 1, height, width), (height * width, 1, width, 1))


def lesion_probability(logits: Tensor, activation: str) -> Tensor:
    """Probability of lesion, float32 (n, 1, H, W), from logits (n, classes, H, W).

    "softmax": that of all classes but the background, which is the first. "sigmoid": of the lesion's logit alone, which
    is the last.
    """
    logits = logits.float()
    if activation == "sigmoid":
        return logits[:, -1:].sigmoid()
    return logits.softmax(dim=1)[:, 1:].sum(dim=1, keepdim=True)
