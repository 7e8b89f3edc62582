"""A copy of a network for computing only: the same function to rounding, faster."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..networks.coplenet import NormalizedConvolution
from ..networks.imported import ImportedNetwork

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NEGATIVE_SLOPE = 0.01
_HALF_ROUNDING = 0.02


def optimized_copy(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of a network for computing only.

    Batch normalization that follows a convolution is folded into it, on the processor the activation that follows is
    computed in the same pass, memory is laid out channels last, and the weights of the convolutions have the type they
    compute in; everything else stays float32.

    Args:
        network: in evaluation mode or not; it is not changed.
        device: where the copy lives.
        dtype: float32, or the half type that ``torch.autocast`` will be given.
    """
    result = copy.deepcopy(network).eval().requires_grad_(False)
    if isinstance(network, ImportedNetwork):
        # what its blocks compute is not known
        return result.to(device)
    for module in list(result.modules()):
        # the blocks of both networks name them so and compute norm(conv(x))
        conv, norm = getattr(module, "conv", None), getattr(module, "norm", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            module.conv, module.norm = fuse_conv_bn_eval(conv, norm), nn.Identity()
    result.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in result.modules():
        if isinstance(module, _CONVOLUTIONS):
            module.to(dtype)
    if device.type == "cpu":
        for parent in list(result.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, NormalizedConvolution) and isinstance(child.norm, nn.Identity):
                    setattr(parent, name, _in_one_pass(child))
    return result


class _OnePass(nn.Module):
    """Convolution and leaky ReLU in one pass over memory, by oneDNN; (n, C, H, W)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        # PyTorch's own compiler makes this call; it has no public name
        return torch.ops.mkldnn._convolution_pointwise(
            x.to(conv.weight.dtype),
            conv.weight,
            conv.bias,
            conv.padding,
            conv.stride,
            conv.dilation,
            conv.groups,
            "leaky_relu",
            [_NEGATIVE_SLOPE],
            "",
        )


def _in_one_pass(block: NormalizedConvolution) -> nn.Module:
    """The block in one pass, or as it was where this PyTorch can't do that or would compute something else."""
    fused, weight = _OnePass(block.conv), block.conv.weight
    x = torch.linspace(-1, 1, weight.shape[1] * 64).sin().reshape(1, -1, 8, 8).to(weight.dtype)
    with torch.inference_mode():
        expected = block(x).float()
        try:
            result = fused(x).float()
        except (AttributeError, RuntimeError, TypeError):
            return block
    tolerance = 1e-5 if weight.dtype == torch.float32 else _HALF_ROUNDING
    same = torch.allclose(result, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    return fused if same else block
