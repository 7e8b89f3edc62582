"""``covid-lesion-seg doctor``: what is installed, which device will be used and why, and whether it works."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import time
from typing import Any

from .. import __version__
from ..errors import COVIDLesionSegError

HELP = "say what is installed, which device will be used and why, and test it"
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
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--device", default="auto", help="look at this device instead of the one chosen by itself")
    parser.add_argument("--model", help="test this model (id or file); the default model if absent")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; the exit status is 0 if a CT could be segmented here, else 2."""
    report = examine(arguments.device, arguments.model)
    print(json.dumps(report, indent=2) if arguments.json else _text(report))
    return 0 if report["smoke_test"]["passed"] else 2


def examine(device: str, model: str | None) -> dict[str, Any]:
    """Everything ``doctor`` says, as plain values."""
    report: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {
            name: {"version": _version(name), "for": purpose, "extra": extra}
            for name, (purpose, extra) in _PACKAGES.items()
        },
        "devices": None,
        "model": None,
    }
    try:
        from ..inference import describe_devices

        report["devices"] = describe_devices(device)
        report["model"], seconds = _smoke_test(device, model)
        report["smoke_test"] = {"passed": True, "seconds": seconds, "problem": ""}
    except COVIDLesionSegError as error:
        report["smoke_test"] = {"passed": False, "seconds": None, "problem": str(error)}
    except ImportError as error:
        problem = f"PyTorch can't be loaded ({error}); install it again."
        report["smoke_test"] = {"passed": False, "seconds": None, "problem": problem}
    return report


def _smoke_test(device: str, model: str | None) -> tuple[dict[str, Any], float]:
    """Load the model and run it once over a small synthetic slab."""
    import numpy as np

    from ..imaging import Geometry, Volume
    from ..inference import Predictor

    predictor = Predictor(model, device=device)
    hu = np.full((2, 96, 96), -850, dtype=np.int16)
    start = time.perf_counter()
    predictor.segment(Volume(hu, Geometry((96, 96, 2))), lungs=np.ones(hu.shape, dtype=bool))
    card = predictor.model.card
    return {"id": card.id, "license": card.license}, round(time.perf_counter() - start, 3)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(report: dict[str, Any]) -> str:
    lines = [f"COVIDLesionSeg {report['version']}, Python {report['python']}, {report['platform']}", "", "Packages"]
    for name, facts in report["packages"].items():
        missing = f"missing; pip install covid-lesion-seg[{facts['extra']}]" if facts["extra"] else "MISSING"
        lines.append(f"  {name:<12} {facts['version'] or missing:<28} {facts['for']}")
    if report["devices"]:
        torch, cpu, chosen = (report["devices"][key] for key in ("torch", "processor", "chosen"))
        lines += ["", "Devices"]
        driver = torch["nvidia_driver"] or "none"
        lines.append(f"  PyTorch built for CUDA {torch['cuda_build'] or 'none'}; NVIDIA driver {driver}")
        fast = "bfloat16 in hardware" if cpu["bfloat16"] else "no bfloat16 instructions"
        lines.append(f"  processor: {cpu['name']}, {cpu['threads']} threads, {cpu['instructions']}, {fast}")
        lines += [f"  GPU: {gpu}" for gpu in report["devices"]["gpus"]]
        if "error" in chosen:
            lines.append(f"  {chosen['error']}")
        else:
            lines.append(f"  used: {chosen['device']} in {chosen['precision']}. {chosen['reason']}")
    test = report["smoke_test"]
    lines += ["", "Smoke test"]
    if test["passed"]:
        model = report["model"]
        lines.append(f"  passed: {model['id']} ({model['license']}) ran in {test['seconds']:.2f} s")
    else:
        lines.append(f"  FAILED: {test['problem']}")
    return "\n".join(lines)
