"""``covid-lesion-seg pseudo-label``: label pictures of slices with a model and keep those it is sure of."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ._progress import ProgressBar

HELP = "label pictures of slices with a model and keep those it is sure of"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("images", type=Path, metavar="FOLDER", help="pictures of axial slices")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for masks and their manifest")
    parser.add_argument("--model", help="id or file of the model; the default model if absent")
    parser.add_argument("--threshold", type=float, default=0.6, help="mean entropy below which a mask is kept (0.6)")
    parser.add_argument("--base", choices=("nats", "bits"), default="nats", help="unit of the entropy")
    parser.add_argument(
        "--convention",
        choices=("normalized", "softmax_of_sigmoids"),
        default="normalized",
        help="probabilities that the entropy is taken of; the second is the released CARes-UNet's",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Pseudo-label; prints the share that was accepted."""
    import torch

    from ..learning.data import read_pictures
    from ..learning.distributed import process_group
    from ..learning.pseudo_labels import pseudo_label
    from ..models import ModelRegistry, load_checkpoint

    cases = read_pictures(arguments.images)
    registry = ModelRegistry()
    model = load_checkpoint(registry.path(arguments.model or registry.default()))
    with (
        process_group(torch.device("cpu")) as ranks,
        ProgressBar("pseudo-label", arguments.quiet or not ranks.is_main) as bar,
    ):
        report = pseudo_label(
            model,
            cases,
            arguments.output,
            arguments.threshold,
            arguments.base,
            arguments.convention,
            arguments.device,
            ranks,
            bar,
        )
        if not ranks.is_main:
            return 0
    if report.warning:
        print(f"warning: {report.warning}", file=sys.stderr)
    if arguments.json:
        facts = {"manifest": str(report.manifest), "accepted": report.accepted, "total": report.total}
        print(json.dumps(facts | {"warning": report.warning}, indent=2))
    else:
        print(f"{report.accepted} of {report.total} slices accepted ({report.fraction:.1%}) -> {report.manifest}")
    return 0
