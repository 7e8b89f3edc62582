"""``covid-lesion-seg doctor``: what is installed, which device will be used and why, and whether it works."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "say what is installed, which device will be used and why, and test it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--device", default="auto", help="look at this device instead of the one chosen by itself")
    parser.add_argument("--model", help="test this model (id or file); the default model if absent")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; the exit status is 0 if a CT could be segmented here, else 2."""
    from ..inference.diagnosis import examine

    report = examine(arguments.device, arguments.model)
    print(json.dumps(report, indent=2) if arguments.json else _text(report))
    return 0 if report["smoke_test"]["passed"] else 2


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
    lungs = report["lungs"]
    network = "can be chosen" if lungs["network_usable"] else "is not here"
    lines += ["", "Lungs", f"  found by: {lungs['engine']}; the network {lungs['network']} {network}"]
    test = report["smoke_test"]
    lines += ["", "Smoke test"]
    if test["passed"]:
        model = report["model"]
        lines.append(f"  passed: {model['id']} ({model['license']}) ran in {test['seconds']:.2f} s")
    else:
        lines.append(f"  FAILED: {test['problem']}")
    return "\n".join(lines)
