"""From Hounsfield units to a network's input and from its logits back, for a few slices at a time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.card import Preprocessing


class SlicePreparation:
    """The model card's preprocessing for slices of one size, and its way back.

    Window, then resizing (linear) if the card asks for it, then padding by reflection as ``numpy.pad`` does it
    (repeated for slices smaller than the margin), of which the smaller half lies before the slice.

    Args:
        preprocessing: of the model card.
        size: rows and columns of the slices that come.
        device: where they are.

    Attributes:
        slice_size: rows and columns of the slices that come.
        device: where they are.
        size: rows and columns of the network's input.
    """

    def __init__(self, preprocessing: Preprocessing, size: tuple[int, int], device: torch.device) -> None:
        self._settings = preprocessing
        self.slice_size, self.device = size, device
        self._inner = preprocessing.resize or size
        multiple = preprocessing.pad_multiple
        margins = [-side % multiple for side in self._inner]
        self._before = [margin // 2 for margin in margins]
        self._sources = [
            torch.from_numpy(np.pad(np.arange(side), (before, margin - before), mode="reflect")).to(device)
            for side, margin, before in zip(self._inner, margins, self._before, strict=True)
        ]
        self.size = (len(self._sources[0]), len(self._sources[1]))

    def apply(self, slices: Tensor) -> Tensor:
        """(n, h, w) int16 or float32 in Hounsfield units to the network's input (n, 1, H, W) float32 in [0, 1]."""
        settings = self._settings
        x = slices.to(torch.float32, copy=True)[:, None]
        x.sub_(settings.window_level - settings.window_width / 2).div_(settings.window_width).clamp_(0, 1)
        if self._inner != self.slice_size:
            x = resized(x, self._inner)
        for axis, source in zip((2, 3), self._sources, strict=True):
            if len(source) != x.shape[axis]:
                x = x.index_select(axis, source)
        return x

    def restore(self, maps: Tensor) -> Tensor:
        """Maps on the network's grid (n, 1, H, W) to the slices' own (n, h, w)."""
        (top, left), (height, width) = self._before, self._inner
        maps = maps[:, :, top : top + height, left : left + width]
        if self._inner != self.slice_size:
            maps = resized(maps, self.slice_size)
        return maps[:, 0]


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
