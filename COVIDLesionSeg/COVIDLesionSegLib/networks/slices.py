"""What all networks share: they see axial slices, one by one, and say of themselves what the program must know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError

# Four halvings: each side of a slice must divide by this.
SIDE_MULTIPLE = 16


@dataclass(frozen=True)
class Naming:
    """One way of naming a network's tensors.

    Attributes:
        origin: whose names they are, for messages and cards.
        modules: module name, theirs -> ours; or of our own names a pattern that they begin with.
        dead: pattern of tensors that their network holds and never uses.
    """

    origin: str
    modules: Mapping[str, str] | re.Pattern[str]
    dead: str = r"(?!)"

    def translate(self, names: Iterable[str]) -> dict[str, str]:
        """Our name -> their name, for those of the names that this naming knows."""
        if isinstance(self.modules, re.Pattern):
            return {name: name for name in names if self.modules.match(name)}
        split = [(*name.rpartition(".")[::2], name) for name in names]
        return {f"{self.modules[module]}.{leaf}": name for module, leaf, name in split if module in self.modules}

    def is_dead(self, name: str) -> bool:
        """Whether their network never uses this tensor."""
        return re.search(self.dead, name) is not None


class SliceNetwork(nn.Module):
    """A 2-D segmentation network that also takes volumes, slice by slice.

    A block whose attributes are named ``conv`` and ``norm`` computes norm(conv(x)): the predictor folds them into one.
    With ``.to(memory_format=torch.channels_last)`` all inner activations are laid out so whatever the input's layout;
    convolutions are faster that way, and batch normalization in training rounds a little more on the CPU.

    Attributes:
        family: the network's name in model cards and for ``create_network``.
        published_preprocessing: settings of ``models.Preprocessing`` that the network's authors chose otherwise, for
            weights without a card.
        in_channels: channels of the input.
        out_channels: classes, the background included.
    """

    family: ClassVar[str]
    published_preprocessing: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = require_positive("in_channels", in_channels)
        self.out_channels = require_positive("out_channels", out_channels)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values: ``create_network(family, **arguments)`` is such a network."""
        raise NotImplementedError

    @classmethod
    def scaled(cls, width: int) -> dict[str, Any]:
        """The constructor's arguments of a network whose first level has this width."""
        raise NotImplementedError

    @classmethod
    def namings(cls) -> tuple[Naming, ...]:
        """What this project, first, and others call the network's tensors."""
        raise NotImplementedError

    @classmethod
    def arguments_from(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The constructor's arguments that tensors of these shapes, under our names, tell of.

        What leaves no trace in weights, such as dropout, gets the authors' values.

        Raises:
            ModelError: a tensor that decides about the network is missing or has the wrong number of axes.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Raw logits of slices.

        Args:
            x: (N, C, H, W), or (N, C, D, H, W) whose D slices are treated one by one; intensities as the model card
                says, usually [0, 1]. H and W must be multiples of 16.

        Returns:
            Logits (N, out_channels, H, W) or (N, out_channels, D, H, W); no activation is applied.

        Raises:
            InputError: another number of axes or channels, sides that are not multiples of 16, or training on a
                single slice of 16 x 16, whose batch statistics don't exist.
        """
        if x.dim() not in (4, 5):
            raise InputError(
                f"The network got an array of shape {tuple(x.shape)}; it takes (N, C, H, W) or (N, C, D, H, W)."
            )
        if x.shape[1] != self.in_channels:
            raise InputError(f"The network got {x.shape[1]} input channels; it was made for {self.in_channels}.")
        height, width = x.shape[-2:]
        if height % SIDE_MULTIPLE or width % SIDE_MULTIPLE or not height or not width:
            raise InputError(
                f"The network got slices of {height} x {width}; both sides must be positive multiples of "
                f"{SIDE_MULTIPLE}.",
                "Pad them first, as the predictor does.",
            )
        slices = x if x.dim() == 4 else x.transpose(1, 2).flatten(0, 1)
        if self.training and slices.shape[0] * height * width == SIDE_MULTIPLE**2:
            raise InputError(
                "Batch normalization can't train on one slice of 16 x 16; use larger slices or more of them."
            )
        logits = self.forward_slices(slices)
        return logits if x.dim() == 4 else logits.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

    def forward_slices(self, x: Tensor) -> Tensor:
        """Logits (N, out_channels, H, W) of slices (N, C, H, W) whose shape was checked."""
        raise NotImplementedError


def kernel_shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    """Shape (out, in, H, W) of a convolution's weights.

    Raises:
        ModelError: it is missing, or has another number of axes.
    """
    if name not in shapes:
        raise ModelError(f"The tensor {name} is missing.")
    if len(shapes[name]) != 4:
        raise ModelError(f"The tensor {name} has the shape {shapes[name]}; 4 axes are needed.")
    return shapes[name]


def channels_of(network: nn.Module) -> int:
    """Channels of a network's input; 1 of one that does not tell."""
    return int(getattr(network, "in_channels", 1))


def require_positive(name: str, value: Any) -> int:
    """The value as an int, or an InputError that says what is allowed."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; a positive integer is needed.")
    return value


def require_bool(name: str, value: Any) -> bool:
    """The value, or an InputError if it is not True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; True or False is needed.")
    return value


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half types, the type itself otherwise."""
    return torch.promote_types(dtype, torch.float32)
