"""Which engine and type a model computes with fastest on this processor: measured once, and kept.

The instruction sets' names do not tell: processors with AVX512-BF16 but without AMX multiply bfloat16 at twice the rate
of float32, or at half of it. Nor does an engine's name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ..documents import read_object
from ..errors import ModelError, OutputError, ReadError
from ..files import write_json
from ..models.card import ModelCard
from ..models.catalog import default_folder
from .devices import cpu_name, precision_name
from .execution import OPENVINO, TORCH, Execution
from .openvino_engine import EngineError, openvino_version

_log = logging.getLogger(__name__)
# Another type or engine changes the result a little, so it has to be worth it.
_LEAST_GAIN = 1.1
_REPEATS = 3
# In the user's folder of models; a name with an underscore is no model's.
_FILE = "_precision.json"

#: An engine and the type of its convolutions.
Way = tuple[str, torch.dtype]


def ways_to_compute(half: bool, openvino: bool) -> list[Way]:
    """What can compute a network on this processor, the plainest first.

    Args:
        half: whether the processor has bfloat16 instructions.
        openvino: whether the network is one that OpenVINO may convert; only where it is installed.
    """
    types = [torch.float32, torch.bfloat16] if half else [torch.float32]
    engines = [TORCH, OPENVINO] if openvino and openvino_version() else [TORCH]
    return [(engine, dtype) for engine in engines for dtype in types]


def fastest_way(execution: Execution, card: ModelCard, ways: Sequence[Way]) -> Way:
    """The way in which a model computes fastest on this processor.

    The first time takes a second or a few; what came of it stays in the user's folder of models, for this processor,
    number of threads, PyTorch, OpenVINO and model, so that the same input goes on to give the same result.

    Args:
        execution: of the model.
        card: of the model, with the hash of its weights.
        ways: what there is to choose from, the plainest first.
    """
    key = f"{card.weights_sha256} on {cpu_name()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    if any(engine == OPENVINO for engine, _ in ways):
        key += f", OpenVINO {openvino_version()}"
    kept = _kept()
    names = {_name(way): way for way in ways}
    if kept.get(key) in names:
        return names[kept[key]]
    ways = [way for way in ways if _works(execution, way)]
    # in turn, so that other work on the machine slows all down
    rounds = [[execution.seconds_per_slice(dtype, engine) for engine, dtype in ways] for _ in range(_REPEATS)]
    seconds = dict(zip(ways, map(min, zip(*rounds, strict=True)), strict=True))
    fastest = ways[0]
    for way in ways[1:]:
        if seconds[fastest] > _LEAST_GAIN * seconds[way]:
            fastest = way
    _log.info("Seconds for a slice: %s", ", ".join(f"{_name(way)} {value:.3f}" for way, value in seconds.items()))
    _keep({**kept, key: _name(fastest)})
    return fastest


def _works(execution: Execution, way: Way) -> bool:
    """Compute once, so that what is measured later is warm."""
    engine, dtype = way
    try:
        execution.seconds_per_slice(dtype, engine)
    except (EngineError, MemoryError) as error:
        if engine == TORCH:
            raise
        _log.warning("PyTorch is used: %s", error)
        return False
    return True


def _name(way: Way) -> str:
    engine, dtype = way
    return precision_name(dtype) if engine == TORCH else f"{engine} {precision_name(dtype)}"


def _path() -> Path:
    return default_folder() / _FILE


def _kept() -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in read_object(_path()).items()}
    except FileNotFoundError:
        return {}
    except (ModelError, ReadError, OSError, ValueError) as error:
        _log.warning("The measured precisions could not be read, so they are measured anew: %s", error)
        return {}


def _keep(content: dict[str, str]) -> None:
    try:
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except (ModelError, OutputError, OSError) as error:
        _log.warning("The measured precision could not be kept, and is measured each time: %s", error)
