"""Content-aware reassembly of features (CARAFE), without the 25-fold tensor.

Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019, as CARes-UNet uses it: factor 2, kernels of
5 x 5 made from 64 channels by a 3 x 3 convolution, and a 1 x 1 convolution of the result.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .slices import at_least_float32

_COMPRESSED = 64
_SIDE = 5
_MARGIN = _SIDE // 2
_SCALE = 2
_PHASES = _SCALE**2


class CARAFE(nn.Module):
    """Doubles the resolution; each new pixel is a weighted mean of the 5 x 5 old ones around it.

    The weights are a softmax that the input itself decides; neighbors outside the image count as zeros.

    Args:
        in_channels: channels of the input (N, C, H, W).
        out_channels: channels of the output (N, out_channels, 2 H, 2 W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.compress = nn.Conv2d(in_channels, _COMPRESSED, 1)
        self.encode = nn.Conv2d(_COMPRESSED, _SIDE**2 * _PHASES, 3, padding=1)
        self.project = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, 2 H, 2 W)."""
        # the encoder's channel is tap * 4 + phase
        kernels = self.encode(self.compress(x)).permute(0, 2, 3, 1).unflatten(3, (_SIDE**2, _PHASES))
        kernels = kernels.softmax(dim=3, dtype=at_least_float32(kernels.dtype))
        # The 1 x 1 convolution and the weighted mean commute, and before it there are a quarter of the pixels and half
        # of the channels to handle. Only its bias must come after, since at the border the weights of the pixels inside
        # the image don't sum to 1.
        features = F.conv2d(x, self.project.weight).permute(0, 2, 3, 1)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if torch.jit.is_tracing():
            # other engines don't know functions of one's own
            result = reassembled(features, kernels)
        else:
            with torch.autocast(x.device.type, enabled=False):
                result = Reassemble.apply(features.to(kernels.dtype), kernels, channels_last).to(features.dtype)
        if self.project.bias is not None:
            # not in place: autograd forbids it on a view that a function of one's own returned
            result = result + self.project.bias.to(result.dtype)[:, None, None]
        return result


def reassembled(features: Tensor, kernels: Tensor) -> Tensor:
    """What :class:`Reassemble` computes, of operations that any engine has; it makes the 25-fold tensor.

    Args:
        features: (N, H, W, C).
        kernels: (N, H, W, 25, 4).

    Returns:
        (N, C, 2 H, 2 W).
    """
    batch, height, width, channels = features.shape
    pixels = height * width
    neighbors = F.unfold(features.permute(0, 3, 1, 2), _SIDE, padding=_MARGIN)
    neighbors = neighbors.view(batch, channels, _SIDE**2, pixels).permute(0, 3, 1, 2)
    phases = neighbors @ kernels.reshape(batch, pixels, _SIDE**2, _PHASES)
    phases = phases.permute(0, 2, 3, 1).reshape(batch, channels * _PHASES, height, width)
    return F.pixel_shuffle(phases, _SCALE)


class Reassemble(torch.autograd.Function):
    """Weighted means of 5 x 5 neighborhoods, a row of them at a time.

    features (N, H, W, C) and kernels (N, H, W, 25, 4), same dtype, give (N, C, 2 H, 2 W), laid out as asked. Tap
    5 r + c looks at the pixel r - 2 rows down and c - 2 columns right; phase 2 p + q makes row p and column q of the
    new 2 x 2 pixels.

    Five pixels side by side in a channels-last image are a 5 x C matrix that needs no copy, so the four new pixels are
    the sum over five rows of the products (4 x 5) (5 x C). All pixels of the zero-padded batch, margins included, lie
    one stride of C apart and are one batch of such products; what the margins give is thrown away.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernels: Tensor, channels_last: bool = True) -> Tensor:
        """The reassembled features."""
        ctx.save_for_backward(features, kernels)
        batch, height, width, channels = features.shape
        padded, weights = _padded(features, _MARGIN, _MARGIN), _padded(kernels, 0, 2 * _MARGIN)
        sums = features.new_empty((*padded.shape[:3], _PHASES, channels))
        pixels = _pixels(padded)
        flat = sums.view(-1, _PHASES, channels)[:pixels]
        for row in range(_SIDE):
            weight = weights.view(-1, _SIDE, _SIDE, _PHASES)[:pixels, row]
            if row == 0:
                # no sum with beta 0: on Apple's GPUs what the memory held before, NaN perhaps, would count
                torch.bmm(weight.mT, _neighbors(padded, row), out=flat)
            else:
                torch.baddbmm(flat, weight.mT, _neighbors(padded, row), out=flat)
        phases = sums[:, :height, :width].unflatten(3, (_SCALE, _SCALE))
        if channels_last:
            result = phases.transpose(2, 3).reshape(batch, _SCALE * height, _SCALE * width, channels)
            return result.permute(0, 3, 1, 2)
        return phases.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, _SCALE * height, _SCALE * width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the features and the kernels."""
        features, kernels = ctx.saved_tensors
        height, width, channels = features.shape[1:]
        padded, weights = _padded(features, _MARGIN, _MARGIN), _padded(kernels, 0, 2 * _MARGIN)
        phases = gradient.unflatten(3, (width, _SCALE)).unflatten(2, (height, _SCALE))
        phases = phases.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)
        pixels = _pixels(padded)
        flat = _padded(phases, 0, 2 * _MARGIN).view(-1, _PHASES, channels)[:pixels]
        padded_gradient, weights_gradient = torch.zeros_like(padded), torch.empty_like(weights)
        with torch.autocast(gradient.device.type, enabled=False):
            for row in range(_SIDE):
                weight = weights.view(-1, _SIDE, _SIDE, _PHASES)[:pixels, row]
                parts = torch.bmm(weight, flat)
                for column in range(_SIDE):
                    first = row * padded.shape[2] + column
                    padded_gradient.view(-1, channels)[first : first + pixels] += parts[:, column]
                products = torch.bmm(_neighbors(padded, row), flat.mT)
                weights_gradient.view(-1, _SIDE, _SIDE, _PHASES)[:pixels, row] = products
        inside = padded_gradient[:, _MARGIN : _MARGIN + height, _MARGIN : _MARGIN + width]
        return inside, weights_gradient[:, :height, :width], None


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    """Contiguous copy of (N, H, W, ...) with margins of zeros around H and W."""
    batch, height, width = x.shape[:3]
    padded = x.new_zeros((batch, before + height + after, before + width + after, *x.shape[3:]))
    padded[:, before : before + height, before : before + width] = x
    return padded


def _pixels(padded: Tensor) -> int:
    """How many pixels of the padded batch (N, H + 4, W + 4, C), from the first on, have all their neighbors in it."""
    batch, height, width = padded.shape[:3]
    return batch * height * width - 2 * _MARGIN * (width + 1)


def _neighbors(padded: Tensor, row: int) -> Tensor:
    """View (pixels, 5, C) of the neighbors in one row of the neighborhood; pixels share memory."""
    width, channels = padded.shape[2:]
    return padded.as_strided((_pixels(padded), _SIDE, channels), (channels, channels, 1), row * width * channels)
