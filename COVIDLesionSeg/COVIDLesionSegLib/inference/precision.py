"""Which type a model computes in faster on this processor: measured once, and kept.

The instruction sets' names do not tell: processors with AVX512-BF16 but without AMX multiply bfloat16 at twice the rate
of float32, or at half of it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ..documents import read_object
from ..errors import ModelError, OutputError, ReadError
from ..files import write_json
from ..models.card import ModelCard
from ..models.catalog import default_folder
from .devices import PRECISIONS, cpu_name, precision_name
from .execution import Execution

_log = logging.getLogger(__name__)
# bfloat16 changes the result a little, so it has to be worth it.
_LEAST_GAIN = 1.1
_REPEATS = 3
# In the user's folder of models; a name with an underscore is no model's.
_FILE = "_precision.json"


def faster_precision(execution: Execution, card: ModelCard) -> torch.dtype:
    """bfloat16 where a model computes faster in it on this processor than in float32.

    The first time takes a fraction of a second; what came of it stays in the user's folder of models, for this
    processor, number of threads, PyTorch and model, so that the same input goes on to give the same result.

    Args:
        execution: of the model.
        card: of the model, with the hash of its weights.
    """
    key = f"{card.weights_sha256} on {cpu_name()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    kept = _kept()
    if kept.get(key) in ("float32", "bfloat16"):
        return PRECISIONS[kept[key]]
    types = (torch.float32, torch.bfloat16)
    for dtype in types:
        execution.seconds_per_slice(dtype)
    # in turn, so that other work on the machine slows both down
    rounds = [[execution.seconds_per_slice(dtype) for dtype in types] for _ in range(_REPEATS)]
    single, half = (min(times) for times in zip(*rounds, strict=True))
    faster = torch.bfloat16 if single > _LEAST_GAIN * half else torch.float32
    _log.info("A slice takes %.3f s in float32 and %.3f s in bfloat16.", single, half)
    _keep({**kept, key: precision_name(faster)})
    return faster


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
