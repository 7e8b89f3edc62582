"""Names of tensors in other people's checkpoints, and what the shapes say about the network.

Nothing here reads a file or needs PyTorch; see ``checkpoints`` for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError

Shape = tuple[int, ...]

# What a block is called inside, theirs -> ours.
_HILAB_BLOCK = {
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
_CARES_PAIR = {"inc.0": "first.conv", "inc.1": "first.norm", "inc.3": "second.conv", "inc.4": "second.norm"}
_CARES_UNIT = {
    "bconv.conv": "entry.conv",
    "bconv.bn": "entry.norm",
    **{f"resnet.{theirs}": ours for theirs, ours in _CARES_PAIR.items()},
}
_CARES_REDUCTION = {
    "0.conv": "entry.conv",
    "0.bn": "entry.norm",
    **{f"1.{theirs}": ours for theirs, ours in _CARES_PAIR.items()},
}
_CARAFE = {"down": "compress", "encoder": "encode", "out": "project"}


@dataclass(frozen=True)
class Naming:
    """One way of naming a network's tensors.

    Attributes:
        family: the network.
        origin: whose names they are, for messages and cards.
        modules: module name, theirs -> ours; None: our own names.
        dead: pattern of tensors that their network holds and never uses.
    """

    family: str
    origin: str
    modules: Mapping[str, str] | None
    dead: str = r"(?!)"

    def translate(self, names: Iterable[str]) -> dict[str, str]:
        """Our name -> their name, for those of the names that this naming knows."""
        ours = {}
        for name in names:
            module, _, leaf = name.rpartition(".")
            if self.modules is None:
                if _OWN_MODULES[self.family].match(name):
                    ours[name] = name
            elif module in self.modules:
                ours[f"{self.modules[module]}.{leaf}"] = name
        return ours

    def is_dead(self, name: str) -> bool:
        """Whether their network never uses this tensor."""
        return re.search(self.dead, name) is not None


def _coplenet_modules(block: str, inside: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    modules = dict(others)
    for theirs, ours in inside.items():
        modules[f"in_conv.{block}.{theirs}"] = f"input.{ours}"
        for level in range(4):
            modules[f"down{level + 1}.conv.{block}.{theirs}"] = f"encoders.{level}.block.{ours}"
            modules[f"up{level + 1}.conv.{block}.{theirs}"] = f"decoders.{level}.block.{ours}"
    return modules


def _hilab_modules() -> dict[str, str]:
    others = {"aspp.conv_1x1.0": "pyramid.join.conv", "aspp.conv_1x1.1": "pyramid.join.norm", "out_conv": "output"}
    for i in range(4):
        others[f"bridge{i}.conv.0"] = f"bridges.{i}.conv"
        others[f"bridge{i}.conv.1"] = f"bridges.{i}.norm"
        others[f"aspp.conv_{i + 1}"] = f"pyramid.branches.{i}"
        others[f"up{i + 1}.conv1x1"] = f"decoders.{i}.project"
    return _coplenet_modules("conv_conv", _HILAB_BLOCK, others)


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
    return _coplenet_modules("conv_conv_se", _MONAI_BLOCK, others)


def _caresunet_modules() -> dict[str, str]:
    units = {f"encoder{level + 1}": f"encoders.{level}" for level in range(4)}
    units["decoder5"] = "bottleneck"
    units.update({name: f"decoders.{i}" for i, name in enumerate(("decoder6", "decoder7", "decoder8", "conv"))})
    # the authors' own spelling
    modules = {"classfier": "output"}
    for theirs, ours in units.items():
        modules.update({f"{theirs}.{inner}": f"{ours}.{own}" for inner, own in _CARES_UNIT.items()})
    for i in range(4):
        modules.update({f"down{i + 1}.{inner}": f"reductions.{i}.{own}" for inner, own in _CARES_REDUCTION.items()})
        modules.update({f"up{i + 1}.{inner}": f"enlargements.{i}.{own}" for inner, own in _CARAFE.items()})
    return modules


_OWN_MODULES = {
    "coplenet": re.compile(r"(input|encoders|bridges|pyramid|decoders\.\d\.(project|block|shortcut)|output)\."),
    "caresunet": re.compile(
        r"(encoders|reductions|bottleneck|enlargements|decoders\.\d\.(entry|first|second)|output)\."
    ),
}

NAMINGS = (
    Naming("coplenet", "COVIDLesionSeg", None),
    Naming("caresunet", "COVIDLesionSeg", None),
    Naming("coplenet", "the authors of COPLE-Net", _hilab_modules()),
    Naming("coplenet", "the MONAI port of COPLE-Net", _monai_modules()),
    Naming("caresunet", "the authors of CARes-UNet", _caresunet_modules(), dead=r"\.conv1x1\.[01]\.\w+$"),
)


def recognize(names: Iterable[str]) -> Naming | None:
    """The naming that knows most of these tensors, or None when none knows half of them."""
    names = list(names)
    known = [len(naming.translate(names)) + sum(map(naming.is_dead, names)) for naming in NAMINGS]
    best = max(known)
    return NAMINGS[known.index(best)] if names and 2 * best >= len(names) else None


def infer_arguments(family: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Arguments of the network whose tensors, under our names, have these shapes.

    Dropout and residual sums leave no trace in the weights; they get the authors' values.

    Raises:
        ModelError: a tensor that decides about the network is missing or has the wrong number of axes.
    """
    if family == "coplenet":
        first, last = _shape(shapes, "input.first.conv.weight", 4), _shape(shapes, "output.weight", 4)
        deeper = [_shape(shapes, f"encoders.{i}.block.second.conv.weight", 4)[0] for i in range(4)]
        return {
            "in_channels": first[1],
            "out_channels": last[0],
            "channels": [first[0], *deeper],
            "aspp": any(name.startswith("pyramid.") for name in shapes),
            "dual_pooling": "encoders.0.shortcut.weight" not in shapes,
            "bridge": any(name.startswith("bridges.") for name in shapes),
        }
    first, last = _shape(shapes, "encoders.0.entry.conv.weight", 4), _shape(shapes, "output.weight", 4)
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


def _shape(shapes: Mapping[str, Shape], name: str, axes: int) -> Shape:
    if name not in shapes:
        raise ModelError(f"The tensor {name} is missing.")
    if len(shapes[name]) != axes:
        raise ModelError(f"The tensor {name} has the shape {shapes[name]}; {axes} axes are needed.")
    return shapes[name]
