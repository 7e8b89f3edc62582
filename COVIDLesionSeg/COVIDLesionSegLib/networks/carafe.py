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
_SCALE = 2
_TAPS = _SIDE**2
_PHASES = _SCALE**2


class CARAFE(nn.Module):
    """Doubles the resolution; each new pixel is a weighted mean of the 5 x 5 old ones around it.

    The weights are a softmax that the input itself decides; neighbours outside the image count as zeros.

    Args:
        in_channels: channels of the input (N, C, H, W).
        out_channels: channels of the output (N, out_channels, 2 H, 2 W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.compress = nn.Conv2d(in_channels, _COMPRESSED, 1)
        self.encode = nn.Conv2d(_COMPRESSED, _TAPS * _PHASES, 3, padding=1)
        self.project = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, 2 H, 2 W)."""
        # channel of the encoder: tap * 4 + phase
        kernels = self.encode(self.compress(x)).unflatten(1, (_TAPS, _PHASES))
        kernels = kernels.softmax(dim=1, dtype=at_least_float32(kernels.dtype))
        # the 1 x 1 convolution and the weighted mean commute: a quarter of the pixels, half of the channels. Its bias
        # must come after, since the weights of a pixel at the border don't sum to 1 inside the image.
        features = F.conv2d(x, self.project.weight)
        features, bias = features.to(kernels.dtype), self.project.bias
        result = Reassemble.apply(features, kernels)
        if bias is not None:
            result += bias.to(result.dtype)[:, None, None]
        return result


class Reassemble(torch.autograd.Function):
    """Weighted means of 5 x 5 neighbourhoods, one tap at a time, forward and backward.

    features (N, C, H, W) and kernels (N, 25, 4, H, W), same dtype, give (N, C, 2 H, 2 W). Tap 5 r + c looks at the
    pixel r - 2 rows down and c - 2 columns right; phase 2 p + q makes row p and column q of the new 2 x 2 pixels.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernels: Tensor) -> Tensor:
        """The reassembled features."""
        ctx.save_for_backward(features, kernels)
        height, width = features.shape[-2:]
        padded = F.pad(features, (_SIDE // 2,) * 4)
        out = features.new_zeros((*features.shape[:2], _PHASES, height, width))
        for tap in range(_TAPS):
            row, column = divmod(tap, _SIDE)
            out.addcmul_(padded[:, :, None, row : row + height, column : column + width], kernels[:, None, tap])
        return F.pixel_shuffle(out.flatten(1, 2), _SCALE)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the features and the kernels."""
        features, kernels = ctx.saved_tensors
        height, width = features.shape[-2:]
        gradient = F.pixel_unshuffle(gradient, _SCALE).unflatten(1, (features.shape[1], _PHASES))
        padded = F.pad(features, (_SIDE // 2,) * 4)
        padded_gradient = torch.zeros_like(padded)
        kernel_gradient = torch.empty_like(kernels)
        for tap in range(_TAPS):
            row, column = divmod(tap, _SIDE)
            window = (..., slice(row, row + height), slice(column, column + width))
            padded_gradient[window] += (gradient * kernels[:, None, tap]).sum(2)
            kernel_gradient[:, tap] = (gradient * padded[window][:, :, None]).sum(1)
        margin = _SIDE // 2
        return padded_gradient[..., margin : margin + height, margin : margin + width], kernel_gradient
