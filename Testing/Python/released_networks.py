"""The two networks as formulas over the released names of their tensors: an oracle of its own code.

Written from the published structure alone. Weights come from a mapping; asked for a tensor that it does not have, a
:class:`RandomWeights` draws one of the right shape, so that one run of the formula makes a whole checkpoint.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


class RandomWeights(dict[str, Tensor]):
    """Tensors by released name, drawn when first asked for, the same ones for the same name."""

    def draw(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(shape, dtype=torch.float64, generator=generator)
            if name.endswith("running_var"):
                noise = 1 + 0.3 * noise.clamp(-2, 2)
            elif len(shape) == 1:
                noise = (1 if name.endswith("weight") else 0) + 0.2 * noise
            else:
                # the gates have no upper bound: small weights keep activations from squaring from block to block
                noise *= (0.02 if "se_layers" in name else 1.0) / noise[0].numel() ** 0.5
            # the type that checkpoints have, without its rounding in the formula
            self[name] = noise.float()
        return self[name].double()


class GivenWeights(dict[str, Tensor]):
    """Tensors of a checkpoint; the formula must ask for their very shapes."""

    def draw(self, name: str, *shape: int) -> Tensor:
        assert self[name].shape == shape, name
        return self[name]


Weights = RandomWeights | GivenWeights


def given(state: Mapping[str, Tensor]) -> GivenWeights:
    return GivenWeights(state)


def _conv(w: Weights, name: str, x: Tensor, out: int, side: int, bias: bool = True, **options: int) -> Tensor:
    weight = w.draw(f"{name}.weight", out, x.shape[1], side, side)
    return F.conv2d(x, weight, w.draw(f"{name}.bias", out) if bias else None, **options)


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    mean, variance, weight, bias = (
        w.draw(f"{name}.{leaf}", x.shape[1])[:, None, None]
        for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def _leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.01 * x)


def _conv_block(w: Weights, name: str, x: Tensor, out: int) -> Tensor:
    name = f"{name}.conv_conv"
    x = _leaky(_norm(w, f"{name}.1", _conv(w, f"{name}.0", x, out, 3, padding=1)))
    x = _leaky(_norm(w, f"{name}.5", _conv(w, f"{name}.4", x, out, 3, padding=1)))
    gate = x.mean((2, 3), keepdim=True)
    gate = _leaky(_conv(w, f"{name}.7.se_layers.1", gate, out // 2, 1))
    return x * torch.relu(_conv(w, f"{name}.7.se_layers.3", gate, out, 1)) + x


def coplenet(w: Weights, x: Tensor, widths: tuple[int, ...]) -> Tensor:
    """COPLE-Net in eval mode: (N, 1, H, W) to logits (N, 2, H, W)."""
    x = _conv_block(w, "in_conv", x, widths[0])
    skips = []
    for level in range(4):
        bridge = _conv(w, f"bridge{level}.conv.0", x, widths[level] // 2, 1)
        skips.append(_leaky(_norm(w, f"bridge{level}.conv.1", bridge)))
        n, c, h, width = x.shape
        quads = x.reshape(n, c, h // 2, 2, width // 2, 2)
        x = torch.cat([quads.amax((3, 5)), quads.mean((3, 5))], dim=1)
        x = x + _conv_block(w, f"down{level + 1}.conv", x, widths[level + 1])
    branches = [_conv(w, "aspp.conv_1", x, x.shape[1] // 4, 1)]
    for i, dilation in enumerate((2, 4, 6)):
        branches.append(_conv(w, f"aspp.conv_{i + 2}", x, x.shape[1] // 4, 3, padding=dilation, dilation=dilation))
    joined = _conv(w, "aspp.conv_1x1.0", torch.cat(branches, dim=1), x.shape[1], 1)
    x = _leaky(_norm(w, "aspp.conv_1x1.1", joined))
    for i in range(4):
        skip = skips.pop()
        x = _conv(w, f"up{i + 1}.conv1x1", x, skip.shape[1], 1)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = torch.cat([skip, x], dim=1)
        x = x + _conv_block(w, f"up{i + 1}.conv", x, x.shape[1])
    return _conv(w, "out_conv", x, 2, 3, padding=1)


def _residual(w: Weights, name: str, x: Tensor, residual: bool) -> Tensor:
    width = x.shape[1]
    y = torch.relu(_norm(w, f"{name}.inc.1", _conv(w, f"{name}.inc.0", x, width, 3, bias=False, padding=1)))
    y = _norm(w, f"{name}.inc.4", _conv(w, f"{name}.inc.3", y, width, 3, bias=False, padding=1))
    return torch.relu(x + y if residual else y)


def _unit(w: Weights, name: str, x: Tensor, out: int, residual: bool) -> Tensor:
    x = _conv(w, f"{name}.bconv.conv", x, out, 3, bias=False, padding=1)
    return _residual(w, f"{name}.resnet", torch.relu(_norm(w, f"{name}.bconv.bn", x)), residual)


def reassemble(features: Tensor, kernels: Tensor) -> Tensor:
    """features (N, C, H, W), kernels (N, 25, 2 H, 2 W) to (N, C, 2 H, 2 W), by the definition: the 25-fold tensor."""
    n, c, h, width = features.shape
    neighborhoods = F.unfold(features, 5, padding=2).reshape(n, c * 25, h, width)
    neighborhoods = neighborhoods.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return (neighborhoods.reshape(n, c, 25, 2 * h, 2 * width) * kernels[:, None]).sum(2)


def carafe(w: Weights, name: str, x: Tensor, out: int) -> Tensor:
    """Content-aware up-sampling, the 1 x 1 convolution after the reassembly as released."""
    kernels = _conv(w, f"{name}.encoder", _conv(w, f"{name}.down", x, 64, 1), 100, 3, padding=1)
    kernels = F.pixel_shuffle(kernels, 2).softmax(1)
    return _conv(w, f"{name}.out", reassemble(x, kernels), out, 1)


def caresunet(w: Weights, x: Tensor, base: int, residual: bool = True) -> Tensor:
    """CARes-UNet in eval mode, without the final sigmoid: (N, 1, H, W) to logits (N, 2, H, W)."""
    skips = []
    for level in range(4):
        x = _unit(w, f"encoder{level + 1}", x, base * 2**level, residual)
        skips.append(x)
        x = _conv(w, f"down{level + 1}.0.conv", x, x.shape[1], 3, bias=False, padding=1, stride=2)
        x = _residual(w, f"down{level + 1}.1", torch.relu(_norm(w, f"down{level + 1}.0.bn", x)), residual)
    x = _unit(w, "decoder5", x, base * 16, residual)
    for i, name in enumerate(("decoder6", "decoder7", "decoder8", "conv")):
        x = torch.cat([skips.pop(), carafe(w, f"up{i + 1}", x, x.shape[1] // 2)], dim=1)
        x = _unit(w, name, x, x.shape[1] // 2, residual)
    return _conv(w, "classfier", x, 2, 1)
