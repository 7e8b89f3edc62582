"""What is installed here, which device will be used and why, and whether a CT can be segmented: for doctor and panel.

Loads without PyTorch, and says so where PyTorch is missing.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from typing import Any

from .. import __version__
from ..errors import COVIDLesionSegError
from ..imaging.lungs.engines import CLASSICAL
from .lung_engine import lung_network

# package -> what it is for, and the extra that brings it ("" is always needed)
_PACKAGES = {
    "torch": ("networks", ""),
    "numpy": ("arrays", ""),
    "scipy": ("distances, regions", ""),
    "SimpleITK": ("reading and writing", ""),
    "safetensors": ("models", ""),
    "tqdm": ("progress bars", ""),
    "matplotlib": ("pictures and reports", "report"),
    "pydicom": ("DICOM segmentations", "dicom"),
    "highdicom": ("DICOM segmentations", "dicom"),
    "lungmask": ("lobes", "lungs"),
    "openvino": ("faster networks on processors", "openvino"),
}


def examine(device: str = "auto", model: str | None = None) -> dict[str, Any]:
    """Look at this installation, and run a model once over a small synthetic slab.

    Args:
        device: the device to look at, as ``Predictor`` takes it.
        model: id or file to test; None takes the default model.

    Returns:
        ``version``, ``python``, ``platform``; ``packages``: name -> version (None if missing), for, extra;
        ``lungs``: engine that finds lungs unless another is chosen, network and whether its weights are here;
        ``devices``: what ``describe_devices`` returns, None without PyTorch; ``model``: id and license;
        ``smoke_test``: passed, seconds, problem (a sentence).
    """
    network = lung_network()
    report: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {
            name: {"version": _version(name), "for": purpose, "extra": extra}
            for name, (purpose, extra) in _PACKAGES.items()
        },
        "lungs": {"engine": CLASSICAL, "network": network.id, "network_usable": network.is_usable},
        "devices": None,
        "model": None,
    }
    try:
        from . import describe_devices

        report["devices"] = describe_devices(device)
        report["model"], report["devices"]["chosen"]["precision"], seconds = _smoke_test(device, model)
        report["smoke_test"] = {"passed": True, "seconds": seconds, "problem": ""}
    except COVIDLesionSegError as error:
        report["smoke_test"] = {"passed": False, "seconds": None, "problem": str(error)}
    except (ImportError, OSError) as error:
        problem = f"PyTorch can't be loaded ({error}); install it again."
        report["smoke_test"] = {"passed": False, "seconds": None, "problem": problem}
    return report


def _smoke_test(device: str, model: str | None) -> tuple[dict[str, Any], str, float]:
    """Load the model and run it once over a small synthetic slab; its id and license, its precision, and seconds."""
    import numpy as np

    from ..imaging import Geometry, Volume
    from . import Predictor

    predictor = Predictor(model, device=device)
    hu = np.full((2, 96, 96), -850, dtype=np.int16)
    start = time.perf_counter()
    result = predictor.segment(Volume(hu, Geometry((96, 96, 2))), lungs=np.ones(hu.shape, dtype=bool))
    card = predictor.model.card
    precision = str(result.record.device["precision"])
    return {"id": card.id, "license": card.license}, precision, round(time.perf_counter() - start, 3)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
