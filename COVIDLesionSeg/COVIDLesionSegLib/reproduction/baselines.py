"""Networks of other libraries that the papers compare with; the libraries are the optional extra ``baselines``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .catalog import Network

_MODULES = {"monai": "monai.networks.nets", "smp": "segmentation_models_pytorch", "torchvision": "torchvision"}
_PACKAGES = {"monai": "monai", "smp": "segmentation-models-pytorch", "torchvision": "torchvision"}
# what the six levels of nnU-Net's networks are wide, per base width, and where it stops
_FACTORS, _WIDEST = (1, 2, 4, 8, 16, 16), 10
_OVERLAP = 0.25


def absent(network: Network) -> str:
    """Why a network can't be made here, as a phrase, or ""."""
    try:
        _library(network.source)
    except InputError as error:
        return str(error).rstrip(".")
    return ""


def install_command() -> str:
    """The command that installs the libraries beside this PyTorch."""
    cpu = " --extra-index-url https://download.pytorch.org/whl/cpu" if torch.__version__.endswith("+cpu") else ""
    return f"pip install 'covid-lesion-seg[baselines]'{cpu}"


def make_network(network: Network, width: int | None = None, patch: tuple[int, int, int] = (1, 0, 0)) -> nn.Module:
    """A baseline with new, random weights.

    Args:
        network: which.
        width: base width; None takes the network's own.
        patch: (depth, height, width) that a 3-D network is trained on and sees a volume through.

    Returns:
        A module from (N, 1, H, W), sides of any size, to logits (N, 2, H, W); of a 3-D network from (N, 1, D, H, W).

    Raises:
        InputError: its library is not installed or does not load, or no library offers it.
    """
    library = _library(network.source)
    body = _BUILDERS[network.builder](library, width or network.width or 0)
    if network.builder == "dynunet3d":
        return VolumeBaseline(body, (8, 32, 32), patch)
    return Baseline(body, (32, 32))


class Baseline(nn.Module):
    """Another library's network, with the sides of its input made multiples of what it needs.

    Args:
        body: the network; it may answer with a dictionary whose key "out" is meant.
        multiple: of each spatial axis.
    """

    def __init__(self, body: nn.Module, multiple: tuple[int, ...]) -> None:
        super().__init__()
        self.body = body
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, ...) to logits (N, 2, ...) on the same pixels; what is missing repeats the border."""
        sides = x.shape[2:]
        # instance normalization can't train on a deepest level of one pixel
        least = [2 * multiple for multiple in self.multiple]
        missing = [
            max(-side % multiple, small - side)
            for side, multiple, small in zip(sides, self.multiple, least, strict=True)
        ]
        if any(missing):
            x = F.pad(x, [end for side in reversed(missing) for end in (0, side)], mode="replicate")
        answer = self.body(x)
        logits: Tensor = answer["out"] if isinstance(answer, dict) else answer
        for axis, side in enumerate(sides, 2):
            logits = logits.narrow(axis, 0, side)
        return logits


class VolumeBaseline(Baseline):
    """A 3-D network that learns from patches and sees a volume through a sliding window of the same size.

    Args:
        body: see :class:`Baseline`.
        multiple: see :class:`Baseline`.
        patch: (depth, height, width) of the window.
    """

    def __init__(self, body: nn.Module, multiple: tuple[int, ...], patch: tuple[int, int, int]) -> None:
        super().__init__(body, multiple)
        self.patch = patch

    def predict_volume(self, x: Tensor) -> Tensor:
        """Logits (1, 2, D, H, W) of a volume (1, 1, D, H, W), by overlapping windows weighted towards their middle."""
        from monai.inferers import sliding_window_inference

        logits: Tensor = sliding_window_inference(
            x, self.patch, 1, self, overlap=_OVERLAP, mode="gaussian", padding_mode="replicate"
        )
        return logits


@cache
def _library(source: str) -> Any:
    if source not in _MODULES:
        raise InputError("No library that is kept up offers this network.")
    try:
        return importlib.import_module(_MODULES[source])
    # a torchvision that was built for another PyTorch fails with RuntimeError, one for another CUDA with OSError
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, ModuleNotFoundError) and error.name == _MODULES[source].split(".")[0]:
            raise InputError(f"the package {_PACKAGES[source]} is not installed.") from error
        raise InputError(f"the package {_PACKAGES[source]} does not load here ({reason}).") from error


def _dynunet(library: Any, width: int) -> nn.Module:
    body: nn.Module = library.DynUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        kernel_size=[3] * 6,
        strides=[1, 2, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 5,
        filters=_filters(width),
        norm_name=("INSTANCE", {"affine": True}),
    )
    return body


def _dynunet3d(library: Any, width: int) -> nn.Module:
    # thick slices: the first and the last level change the plane only, as nnU-Net plans it for such spacing
    flat = [1, 2, 2]
    body: nn.Module = library.DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        kernel_size=[[1, 3, 3], *([[3, 3, 3]] * 5)],
        strides=[[1, 1, 1], flat, [2, 2, 2], [2, 2, 2], [2, 2, 2], flat],
        upsample_kernel_size=[flat, [2, 2, 2], [2, 2, 2], [2, 2, 2], flat],
        filters=_filters(width),
        norm_name=("INSTANCE", {"affine": True}),
    )
    return body


def _filters(width: int) -> list[int]:
    return [width * min(factor, _WIDEST) for factor in _FACTORS]


def _attention(library: Any, width: int) -> nn.Module:
    channels = [width * factor for factor in _FACTORS[:5]]
    body: nn.Module = library.AttentionUnet(2, 1, 2, channels=channels, strides=(2, 2, 2, 2))
    return body


def _basic(library: Any, width: int) -> nn.Module:
    body: nn.Module = library.BasicUNet(2, 1, 2, features=[*(width * factor for factor in _FACTORS[:5]), width])
    return body


def _smp(architecture: str, encoder: str, **arguments: Any) -> Callable[[Any, int], nn.Module]:
    def build(library: Any, _width: int) -> nn.Module:
        # no weights are fetched from anywhere
        given = {"encoder_name": encoder, "encoder_weights": None, "in_channels": 1, "classes": 2} | arguments
        body: nn.Module = getattr(library, architecture)(**given)
        return body

    return build


def _fcn(library: Any, _width: int) -> nn.Module:
    segmentation = importlib.import_module(f"{library.__name__}.models.segmentation")
    body: nn.Module = segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=2)
    first = body.get_submodule("backbone.conv1")
    assert isinstance(first, nn.Conv2d)  # noqa: S101  # a ResNet begins with one
    # one channel instead of three
    body.get_submodule("backbone").conv1 = nn.Conv2d(1, first.out_channels, 7, stride=2, padding=3, bias=False)
    return body


_BUILDERS: dict[str, Callable[[Any, int], nn.Module]] = {
    "dynunet": _dynunet,
    "dynunet3d": _dynunet3d,
    "attention": _attention,
    "basic": _basic,
    "scse": _smp("Unet", "resnet34", decoder_attention_type="scse"),
    "linknet": _smp("Linknet", "xception"),
    "fpn": _smp("FPN", "efficientnet-b1"),
    "pspnet": _smp("PSPNet", "vgg13"),
    "unet": _smp("Unet", "resnet34"),
    "fcn": _fcn,
}
