"""A network on OpenVINO: an optional engine for processors that computes the same function faster than PyTorch.

PyTorch stays the reference: each run begins with a trial beside PyTorch in float32, see :class:`~.execution.Execution`.
Nothing here is needed; without the package, PyTorch computes everything.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..errors import COVIDLesionSegError
from ..files import atomic_path
from ..models.catalog import default_folder
from .memory import is_out_of_memory

_log = logging.getLogger(__name__)
# In the user's folder of models; a name with an underscore is no model's. Converting takes two seconds, reading what
# was converted a tenth of one.
_FOLDER = "_openvino"
_KEPT_MODELS = 4
# How OpenVINO names the types of the convolutions.
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
# The network is followed on a slice of this size; what comes of it takes any size.
_EXAMPLE_SIDE = 64


class EngineError(RuntimeError):
    """OpenVINO can't convert or compute this network; PyTorch can."""


def openvino_version() -> str | None:
    """The version that is installed, or None."""
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None


class OpenVINONetwork:
    """A network that OpenVINO computes on the processor; called like the network itself.

    Args:
        network: raw logits (n, classes, H, W) from (n, C, H, W); in evaluation mode, on the processor.
        channels: C.
        dtype: type of the convolutions, float32 or bfloat16.
        threads: of the processor.
        weights_sha256: hash of the weights, under which the converted network is kept; "" keeps nothing.

    Raises:
        EngineError: the network can't be converted.
    """

    def __init__(
        self, network: nn.Module, channels: int, dtype: torch.dtype, threads: int, weights_sha256: str = ""
    ) -> None:
        self._channels, self._dtype, self._threads = channels, dtype, threads
        with _as_engine_errors("convert this network"):
            self._model = _converted(network, channels, weights_sha256)
        self._size: tuple[int, int] | None = None
        self._request: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (n, classes, H, W), float32, of (n, C, H, W).

        Raises:
            MemoryError: memory ran out.
            EngineError: anything else that OpenVINO complains about.
        """
        with _as_engine_errors("compute this network"):
            size = (x.shape[2], x.shape[3])
            if size != self._size:
                self._compile(size)
            result = self._request.infer({0: x.float().contiguous().numpy()}, share_inputs=True)
            return torch.from_numpy(result[0])

    def _compile(self, size: tuple[int, int]) -> None:
        # known sides are faster than open ones; the number of slices makes no difference
        self._request = None
        model = self._model.clone()
        model.reshape([-1, self._channels, *size])
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._dtype],
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            # several processes side by side would all be tied to the same cores
            "ENABLE_CPU_PINNING": False,
        }
        self._request = _core().compile_model(model, "CPU", settings).create_infer_request()
        self._size = size


@contextlib.contextmanager
def _as_engine_errors(what: str) -> Iterator[None]:
    try:
        yield
    except COVIDLesionSegError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # OpenVINO raises what it likes: RuntimeError, TypeError, its front ends' own classes
        # it passes on what the allocator says within a sentence of its own
        if is_out_of_memory(error) or "bad_alloc" in str(error) or "allocate" in str(error):
            raise MemoryError(str(error)) from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(f"OpenVINO could not {what}: {first}") from error


@cache
def _openvino() -> ModuleType:
    """The package, without its telemetry: importing it would send a message to its makers."""
    name = "openvino_telemetry"
    absent = name not in sys.modules
    if absent:
        # it goes on without where this package can't be imported
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if absent:
            del sys.modules[name]
    return openvino


@cache
def _core() -> Any:
    return _openvino().Core()


def _converted(network: nn.Module, channels: int, weights_sha256: str) -> Any:
    kept = _kept_file(weights_sha256)
    if kept is not None and kept.is_file():
        try:
            return _core().read_model(kept)
        except Exception as error:  # damaged, or of another version: it is made anew
            _log.warning("The converted network %s could not be read and is made anew: %s", kept.name, error)
    example = torch.zeros(1, channels, _EXAMPLE_SIDE, _EXAMPLE_SIDE)
    with warnings.catch_warnings(), _root_logger_kept(), torch.inference_mode():
        # checks of the sides in Python, which the predictor has made true before
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        model = _openvino().convert_model(network, example_input=example)
    if kept is not None:
        _keep(model, kept)
    return model


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """A conversion that fails leaves all logging of the program at ERROR."""
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters, root.handlers = filters, handlers


def _kept_file(weights_sha256: str) -> Path | None:
    # a network that was never saved has no name to be kept by
    if not weights_sha256:
        return None
    versions = f"{__version__}-torch{torch.__version__}-openvino{openvino_version()}".replace("+", "_")
    try:
        return default_folder() / _FOLDER / f"{weights_sha256[:16]}-{versions}.xml"
    except COVIDLesionSegError:
        return None


def _keep(model: Any, path: Path) -> None:
    """Write a converted network: its weights first, so that what has a description is whole; old ones go."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = path.with_suffix(".bin")
        with atomic_path(path) as temporary, atomic_path(weights) as temporary_weights:
            _openvino().serialize(model, str(temporary), str(temporary_weights))
        others = sorted(path.parent.glob("*.xml"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in others[_KEPT_MODELS:]:
            old.unlink(missing_ok=True)
            old.with_suffix(".bin").unlink(missing_ok=True)
    except (COVIDLesionSegError, OSError, RuntimeError) as error:
        _log.warning("The converted network could not be kept, and is converted each time: %s", error)
