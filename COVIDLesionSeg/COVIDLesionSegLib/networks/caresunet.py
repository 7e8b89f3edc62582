"""CARes-UNet, as released.

Xu et al., "CARes-UNet: Content-aware residual UNet for lesion segmentation of COVID-19 from chest CT images",
Medical Physics 48(11), 2021. Where the paper and the released code differ the code is followed, except that the output
is raw logits: the code's sigmoid belongs to its loss and decision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from .carafe import CARAFE
from .slices import Naming, SliceNetwork, kernel_shape, require_bool, require_positive

UPSAMPLINGS = ("carafe", "deconvolution", "subpixel")

# What a block is called inside, theirs -> ours.
_PAIR = {"inc.0": "first.conv", "inc.1": "first.norm", "inc.3": "second.conv", "inc.4": "second.norm"}
_UNIT = {
    "bconv.conv": "entry.conv",
    "bconv.bn": "entry.norm",
    **{f"resnet.{theirs}": ours for theirs, ours in _PAIR.items()},
}
_REDUCTION = {
    "0.conv": "entry.conv",
    "0.bn": "entry.norm",
    **{f"1.{theirs}": ours for theirs, ours in _PAIR.items()},
}
_CARAFE = {"down": "compress", "encoder": "encode", "out": "project"}


class CAResUNet(SliceNetwork):
    """A U-Net of five levels with residual blocks, strided convolutions down and content-aware up-sampling.

    Args:
        in_channels: channels of the input.
        out_channels: classes, the background included.
        base_channels: width of the first level; each next level is twice as wide.
        upsampling: "carafe" (content-aware reassembly, the paper's choice), "deconvolution" (transposed 2 x 2
            convolution) or "subpixel" (3 x 3 convolution, then pixel shuffle).
        residual: False leaves out the sums of the residual blocks; the convolutions stay.

    Raises:
        InputError: an argument that is not allowed.

    Example:
        >>> CAResUNet(base_channels=8)(torch.zeros(1, 1, 64, 48)).shape
        torch.Size([1, 2, 64, 48])
    """

    family = "caresunet"
    # the authors train on whole 8-bit slices of this size in a lung-like window
    published_preprocessing: ClassVar = {"lung_crop_margin": None, "resize": (256, 256)}

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        base_channels: int = 64,
        upsampling: str = "carafe",
        residual: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels)
        self.base_channels = require_positive("base_channels", base_channels)
        if upsampling not in UPSAMPLINGS:
            raise InputError(f"upsampling is {upsampling!r}; it must be one of {', '.join(UPSAMPLINGS)}.")
        self.upsampling = upsampling
        self.residual = require_bool("residual", residual)

        widths = [base_channels * 2**level for level in range(5)]
        self.encoders = nn.ModuleList(
            ResidualUnit(narrow, wide, residual) for narrow, wide in pairwise([in_channels, *widths[:-1]])
        )
        self.reductions = nn.ModuleList(ResidualUnit(width, width, residual, stride=2) for width in widths[:-1])
        self.bottleneck = ResidualUnit(widths[-2], widths[-1], residual)
        # from the deepest level up
        rising = list(pairwise(reversed(widths)))
        self.enlargements = nn.ModuleList(_upsampling(upsampling, wide, narrow) for wide, narrow in rising)
        self.decoders = nn.ModuleList(ResidualUnit(wide, narrow, residual) for wide, narrow in rising)
        self.output = nn.Conv2d(base_channels, out_channels, 1)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "base_channels": self.base_channels,
            "upsampling": self.upsampling,
            "residual": self.residual,
        }

    @classmethod
    def scaled(cls, width: int) -> dict[str, Any]:
        """The constructor's arguments of a network whose first level has this width."""
        return {"base_channels": width}

    @classmethod
    def namings(cls) -> tuple[Naming, ...]:
        """What this project and the authors call the tensors."""
        own = r"(encoders|reductions|bottleneck|enlargements|decoders\.\d\.(entry|first|second)|output)\."
        return (
            Naming("COVIDLesionSeg", re.compile(own)),
            Naming("the authors of CARes-UNet", _authors_modules(), dead=r"\.conv1x1\.[01]\.\w+$"),
        )

    @classmethod
    def arguments_from(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The constructor's arguments that tensors of these shapes tell of, see :class:`SliceNetwork`."""
        first, last = kernel_shape(shapes, "encoders.0.entry.conv.weight"), kernel_shape(shapes, "output.weight")
        upsampling = "carafe"
        if "enlargements.0.weight" in shapes:
            upsampling = "deconvolution"
        elif "enlargements.0.0.weight" in shapes:
            upsampling = "subpixel"
        return {
            "in_channels": first[1],
            "out_channels": last[0],
            "base_channels": first[0],
            "upsampling": upsampling,
        }

    def forward_slices(self, x: Tensor) -> Tensor:
        """Logits (N, out_channels, H, W) of slices (N, C, H, W)."""
        skips = []
        for encoder, reduction in zip(self.encoders, self.reductions, strict=True):
            x = encoder(x)
            skips.append(x)
            x = reduction(x)
        x = self.bottleneck(x)
        for enlargement, decoder in zip(self.enlargements, self.decoders, strict=True):
            # in two steps, so that the wide joined features are gone before the residual pair needs memory
            unit = cast(ResidualUnit, decoder)
            x = unit.enter(torch.cat([skips.pop(), enlargement(x)], dim=1))
            x = unit.refine(x)
        return self.output(x)


class NormalizedConvolution(nn.Module):
    """3 x 3 convolution without bias, then batch normalization; (N, C, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H / stride, W / stride)."""
        return self.norm(self.conv(x))


class ResidualUnit(nn.Module):
    """A normalized convolution (which may change width and resolution), then a residual pair of them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        residual: whether the pair's input is added to its output.
        stride: step of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, residual: bool, stride: int = 1) -> None:
        super().__init__()
        self.residual = residual
        self.entry = NormalizedConvolution(in_channels, out_channels, stride)
        self.first = NormalizedConvolution(out_channels, out_channels)
        self.second = NormalizedConvolution(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H / stride, W / stride)."""
        return self.refine(self.enter(x))

    def enter(self, x: Tensor) -> Tensor:
        """The first convolution: (N, in, H, W) to (N, out, H / stride, W / stride)."""
        return self.entry(x).relu_()

    def refine(self, x: Tensor) -> Tensor:
        """The residual pair: (N, out, H, W) to the same shape."""
        y = self.second(self.first(x).relu_())
        return (y.add_(x) if self.residual else y).relu_()


def _upsampling(kind: str, in_channels: int, out_channels: int) -> nn.Module:
    if kind == "carafe":
        return CARAFE(in_channels, out_channels)
    if kind == "deconvolution":
        return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    return nn.Sequential(nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1), nn.PixelShuffle(2))


def _authors_modules() -> dict[str, str]:
    units = {f"encoder{level + 1}": f"encoders.{level}" for level in range(4)}
    units["decoder5"] = "bottleneck"
    units.update({name: f"decoders.{i}" for i, name in enumerate(("decoder6", "decoder7", "decoder8", "conv"))})
    # the authors' own spelling
    modules = {"classfier": "output"}
    for theirs, ours in units.items():
        modules.update({f"{theirs}.{inner}": f"{ours}.{own}" for inner, own in _UNIT.items()})
    for i in range(4):
        modules.update({f"down{i + 1}.{inner}": f"reductions.{i}.{own}" for inner, own in _REDUCTION.items()})
        modules.update({f"up{i + 1}.{inner}": f"enlargements.{i}.{own}" for inner, own in _CARAFE.items()})
    return modules
