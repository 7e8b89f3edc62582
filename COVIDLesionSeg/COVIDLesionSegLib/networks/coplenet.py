"""COPLE-Net, as released.

Wang et al., "A Noise-Robust Framework for Automatic Segmentation of COVID-19 Pneumonia Lesions From CT Images",
IEEE TMI 39(8), 2020, section II-A. Where the paper and the released code differ the code is followed, since published
weights need it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .slices import Naming, SliceNetwork, at_least_float32, kernel_shape, require_bool

_NEGATIVE_SLOPE = 0.01
_LEVELS = 5
_DILATIONS = (1, 2, 4, 6)

# What a block is called inside, theirs -> ours.
_AUTHORS_BLOCK = {
    "0": "first.conv",
    "1": "first.norm",
    "4": "second.conv",
    "5": "second.norm",
    "7.se_layers.1": "excitation.reduce",
    "7.se_layers.3": "excitation.expand",
}
_MONAI_BLOCK = {
    "0.conv": "first.conv",
    "0.norm": "first.norm",
    "2.conv": "second.conv",
    "2.norm": "second.norm",
    "3.fc.0": "excitation.reduce",
    "3.fc.2": "excitation.expand",
}


class COPLENet(SliceNetwork):
    """A U-Net of five levels with dual pooling, bridges and atrous spatial pyramid pooling (ASPP).

    Args:
        in_channels: channels of the input.
        out_channels: classes, the background included.
        channels: widths of the five levels; each is twice the one before, the first is even.
        dropout: probability of dropping an element at each level, mirrored in the decoder, in [0, 1).
        aspp: False leaves the pyramid out (variant -A).
        dual_pooling: False halves by max pooling alone (variant -D).
        bridge: False passes the encoder's features on unreduced (variant -B).

    The paper's ablations have no released code: variant -D has a 1 x 1 convolution as shortcut in each encoder, variant
    -B one in each decoder.

    Raises:
        InputError: an argument that is not allowed.

    Example:
        >>> COPLENet()(torch.zeros(1, 1, 64, 48)).shape
        torch.Size([1, 2, 64, 48])
    """

    family = "coplenet"

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        dropout: Sequence[float] = (0.0, 0.0, 0.3, 0.4, 0.5),
        aspp: bool = True,
        dual_pooling: bool = True,
        bridge: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels)
        self.channels = _checked_channels(channels)
        self.dropout = _checked_dropout(dropout)
        self.aspp = require_bool("aspp", aspp)
        self.dual_pooling = require_bool("dual_pooling", dual_pooling)
        self.bridge = require_bool("bridge", bridge)

        widths, drops = self.channels, self.dropout
        self.input = DoubleConvolution(in_channels, widths[0], drops[0])
        self.encoders = nn.ModuleList(
            Encoder(narrow, wide, drop, dual_pooling)
            for (narrow, wide), drop in zip(pairwise(widths), drops[1:], strict=True)
        )
        self.bridges = nn.ModuleList(
            NormalizedConvolution(width, width // 2, 1) if bridge else nn.Identity() for width in widths[:-1]
        )
        self.pyramid = AtrousPyramid(widths[-1]) if aspp else nn.Identity()
        # from the deepest level up
        self.decoders = nn.ModuleList(
            Decoder(widths[level + 1], widths[level] // 2 if bridge else widths[level], widths[level], drops[level])
            for level in reversed(range(_LEVELS - 1))
        )
        self.output = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "channels": list(self.channels),
            "dropout": list(self.dropout),
            "aspp": self.aspp,
            "dual_pooling": self.dual_pooling,
            "bridge": self.bridge,
        }

    @classmethod
    def scaled(cls, width: int) -> dict[str, Any]:
        """The constructor's arguments of a network whose first level has this width."""
        return {"channels": [width * 2**level for level in range(_LEVELS)]}

    @classmethod
    def namings(cls) -> tuple[Naming, ...]:
        """What this project, the authors and MONAI's port call the tensors."""
        own = r"(input|encoders|bridges|pyramid|decoders\.\d\.(project|block|shortcut)|output)\."
        return (
            Naming("COVIDLesionSeg", re.compile(own)),
            Naming("the authors of COPLE-Net", _authors_modules()),
            Naming("the MONAI port of COPLE-Net", _monai_modules()),
        )

    @classmethod
    def arguments_from(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The constructor's arguments that tensors of these shapes tell of, see :class:`SliceNetwork`."""
        first, last = kernel_shape(shapes, "input.first.conv.weight"), kernel_shape(shapes, "output.weight")
        deeper = [kernel_shape(shapes, f"encoders.{i}.block.second.conv.weight")[0] for i in range(_LEVELS - 1)]
        return {
            "in_channels": first[1],
            "out_channels": last[0],
            "channels": [first[0], *deeper],
            "aspp": any(name.startswith("pyramid.") for name in shapes),
            "dual_pooling": "encoders.0.shortcut.weight" not in shapes,
            "bridge": any(name.startswith("bridges.") for name in shapes),
        }

    def forward_slices(self, x: Tensor) -> Tensor:
        """Logits (N, out_channels, H, W) of slices (N, C, H, W)."""
        x = self.input(x)
        skips = []
        for encoder, bridge in zip(self.encoders, self.bridges, strict=True):
            skips.append(bridge(x))
            x = encoder(x)
        x = self.pyramid(x)
        for decoder in self.decoders:
            x = decoder(skips.pop(), x)
        return self.output(x)


class NormalizedConvolution(nn.Module):
    """Convolution with bias, batch normalization, leaky ReLU; (N, C, H, W) keeps H and W."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H, W)."""
        return F.leaky_relu(self.norm(self.conv(x)), _NEGATIVE_SLOPE, inplace=True)


class ChannelExcitation(nn.Module):
    """Squeeze and excitation whose gate is an unbounded ReLU and added to the identity: x (1 + gate(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // 2)
        self.expand = nn.Linear(channels // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape and dtype."""
        # the gate has no upper bound, so activations can square from block to block: half types are too narrow for it
        precise = at_least_float32(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            # on the processor a mean of bfloat16 first converts the whole map; the means of the rows don't, and are
            # 4 to 15 times faster together with their own mean
            rows = F.avg_pool2d(x, (1, x.shape[3])) if x.dtype == torch.bfloat16 and x.device.type == "cpu" else x
            gate = rows.mean((2, 3), dtype=precise)
            for layer in (self.reduce, self.expand):
                gate = F.linear(gate, layer.weight.to(precise), layer.bias.to(precise))
                gate = F.leaky_relu(gate, _NEGATIVE_SLOPE) if layer is self.reduce else F.relu(gate)
            return x * (1 + gate).to(x.dtype)[:, :, None, None]


class DoubleConvolution(nn.Module):
    """Two normalized 3 x 3 convolutions with dropout between, then channel excitation."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.first = NormalizedConvolution(in_channels, out_channels, 3)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.second = NormalizedConvolution(out_channels, out_channels, 3)
        self.excitation = ChannelExcitation(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H, W)."""
        return self.excitation(self.second(self.dropout(self.first(x))))


class Encoder(nn.Module):
    """Halves the resolution by max and average pooling side by side, then a residual block: (N, C, H, W) to half."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, dual_pooling: bool) -> None:
        super().__init__()
        self.dual_pooling = dual_pooling
        self.block = DoubleConvolution(out_channels if dual_pooling else in_channels, out_channels, dropout)
        self.shortcut = nn.Identity() if dual_pooling else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H / 2, W / 2)."""
        pooled = F.max_pool2d(x, 2)
        if self.dual_pooling:
            pooled = torch.cat([pooled, F.avg_pool2d(x, 2)], dim=1)
        return self.block(pooled) + self.shortcut(pooled)


class AtrousPyramid(nn.Module):
    """Four parallel convolutions (1 x 1; 3 x 3 with dilations 2, 4, 6), joined by a normalized 1 x 1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, channels // len(_DILATIONS), 1)
            if dilation == 1
            else nn.Conv2d(channels, channels // len(_DILATIONS), 3, padding=dilation, dilation=dilation)
            for dilation in _DILATIONS
        )
        self.join = NormalizedConvolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return self.join(torch.cat([branch(x) for branch in self.branches], dim=1))


class Decoder(nn.Module):
    """Doubles the resolution, joins the skip connection, then a residual block."""

    def __init__(self, deep_channels: int, skip_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        joined = skip_channels + out_channels // 2
        self.project = nn.Conv2d(deep_channels, out_channels // 2, 1)
        self.block = DoubleConvolution(joined, out_channels, dropout)
        self.shortcut = nn.Identity() if joined == out_channels else nn.Conv2d(joined, out_channels, 1)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """Skip (N, skip, H, W) and x (N, deep, H / 2, W / 2) to (N, out, H, W)."""
        x = F.interpolate(self.project(x), scale_factor=2, mode="bilinear", align_corners=True)
        x = torch.cat([skip, x], dim=1)
        return self.block(x) + self.shortcut(x)


def _checked_channels(channels: Sequence[int]) -> tuple[int, ...]:
    values = tuple(channels) if isinstance(channels, Sequence) else (channels,)
    good = len(values) == _LEVELS and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
    if not good or values[0] % 2 or any(wide != 2 * narrow for narrow, wide in pairwise(values)):
        raise InputError(
            f"channels is {values}; five widths are needed, the first even and each twice the one before, "
            "such as (32, 64, 128, 256, 512)."
        )
    return values


def _checked_dropout(dropout: Sequence[float]) -> tuple[float, ...]:
    values = tuple(dropout) if isinstance(dropout, Sequence) else (dropout,)
    good = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < 1 for v in values)
    if len(values) != _LEVELS or not good:
        raise InputError(f"dropout is {values}; five probabilities in [0, 1) are needed, one for each level.")
    return tuple(float(v) for v in values)


def _modules(block: str, inside: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    modules = dict(others)
    for theirs, ours in inside.items():
        modules[f"in_conv.{block}.{theirs}"] = f"input.{ours}"
        for level in range(4):
            modules[f"down{level + 1}.conv.{block}.{theirs}"] = f"encoders.{level}.block.{ours}"
            modules[f"up{level + 1}.conv.{block}.{theirs}"] = f"decoders.{level}.block.{ours}"
    return modules


def _authors_modules() -> dict[str, str]:
    others = {"aspp.conv_1x1.0": "pyramid.join.conv", "aspp.conv_1x1.1": "pyramid.join.norm", "out_conv": "output"}
    for i in range(4):
        others[f"bridge{i}.conv.0"] = f"bridges.{i}.conv"
        others[f"bridge{i}.conv.1"] = f"bridges.{i}.norm"
        others[f"aspp.conv_{i + 1}"] = f"pyramid.branches.{i}"
        others[f"up{i + 1}.conv1x1"] = f"decoders.{i}.project"
    return _modules("conv_conv", _AUTHORS_BLOCK, others)


def _monai_modules() -> dict[str, str]:
    others = {
        "aspp.conv_k1.conv": "pyramid.join.conv",
        "aspp.conv_k1.norm": "pyramid.join.norm",
        "out_conv.conv": "output",
    }
    for i in range(4):
        others[f"bridge{i}.conv"] = f"bridges.{i}.conv"
        others[f"bridge{i}.norm"] = f"bridges.{i}.norm"
        others[f"aspp.convs.{i}"] = f"pyramid.branches.{i}"
        others[f"up{i + 1}.up.upsample.0"] = f"decoders.{i}.project"
    return _modules("conv_conv_se", _MONAI_BLOCK, others)
