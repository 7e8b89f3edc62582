"""``covid-lesion-seg demo``: from a CT to a segmentation, a picture, a table and a record, with one command."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, OutputError
from ..files import atomic_path, write_json, write_text
from ._progress import ProgressBar

if TYPE_CHECKING:
    from ..imaging import Volume
    from ..inference import Result
    from ..phantom.synthetic import Phantom

HELP = "segment a synthetic chest, or a CT of your own, and leave a picture, a table and a record of it"

# file -> what it is; the first two only for the synthetic chest
_FILES = {
    "input.nii.gz": "the synthetic chest",
    "reference.nii.gz": "the lesions that were put into it",
    "segmentation.seg.nrrd": "the lesions found, for 3D Slicer",
    "segmentation.nii.gz": "the same as a plain mask",
    "overlay.png": "the picture to look at first",
    "table.csv": "volumes of the lungs and the lesions in them",
    "record.json": "how it was made: model, device, versions, seconds",
}
_REGIONS = (
    *("whole", "right_lung", "left_lung"),
    *("right_upper_zone", "right_middle_zone", "right_lower_zone"),
    *("left_upper_zone", "left_middle_zone", "left_lower_zone"),
)
_COLUMNS = {
    "lung_volume_ml": "lung_volume",
    "lesion_ml": "lesion_volume",
    "lesion_percent_of_lung": "involvement",
    "ground_glass_ml": "ground_glass_volume",
    "consolidation_ml": "consolidation_volume",
    "mean_lesion_hu": "mean_hu",
}
_KNOWN = {
    "known_lung_ml": "region",
    "known_lesion_ml": "lesion",
    "known_ground_glass_ml": "ggo",
    "known_consolidation_ml": "consolidation",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo"), help="folder for the results (default: demo)"
    )
    parser.add_argument(
        "--input", type=Path, metavar="PATH", help="a CT file or DICOM folder instead of the synthetic chest"
    )
    parser.add_argument("--series", metavar="UID", help="which series of a DICOM folder with several")
    parser.add_argument("--seed", type=int, default=0, help="another synthetic chest (default: 0)")
    parser.add_argument("--model", help="model id (see `models list`) or file; the default model if absent")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Make or read a CT, segment it, and leave the results in a folder."""
    from ..imaging import read_volume
    from ..inference import Predictor
    from ..measurement import quantify
    from ..phantom.synthetic import synthetic_chest

    if arguments.series and arguments.input is None:
        raise InputError("--series chooses a series of a DICOM folder; give the folder with --input.")
    folder = _checked(arguments.output, arguments.input)
    seconds: dict[str, float] = {}
    phantom: Phantom | None = None
    with ProgressBar("demo", arguments.quiet) as progress:
        # what can be refused is tried first
        with _phase("loading the model", progress, seconds):
            predictor = Predictor(arguments.model, device=arguments.device)
        if arguments.input is None:
            with _phase("making the chest", progress, seconds):
                phantom = synthetic_chest(arguments.seed)
            volume = phantom.volume
        else:
            with _phase("reading", progress, seconds):
                volume = read_volume(arguments.input, series=arguments.series)
        result = predictor.segment(volume, progress=progress)
        seconds |= result.record.seconds
        with _phase("measuring", progress, seconds):
            measured = quantify(volume, result.mask, result.located_lungs)
        progress("writing", 0, 1)
        record = _write(folder, volume, phantom, result, measured, seconds)

    found = _found(folder, volume, phantom, result, measured, record)
    print(json.dumps(found, indent=2, allow_nan=False) if arguments.json else _text(found))
    return 0


@contextlib.contextmanager
def _phase(name: str, progress: ProgressBar, seconds: dict[str, float]) -> Iterator[None]:
    progress(name, 0, 1)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    progress(name, 1, 1)


def _checked(folder: Path, given: Path | None) -> Path:
    """The output folder, if it can be made: better to hear of a read-only place before the work than after it."""
    folder = folder.resolve()
    if given is not None:
        source = given.resolve()
        if folder == source or source in folder.parents:
            raise InputError(f"The output folder {folder} lies in the input; choose another one.")
        if source in [folder / name for name in _FILES]:
            raise InputError(f"The input {source} would be overwritten by the results; choose another output folder.")
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"The output {there} is a file; name a folder.")
    if not os.access(there, os.W_OK):
        raise OutputError(f"The folder {there} is read-only; choose another one or ask for write access.")
    return folder


def _write(
    folder: Path,
    volume: Volume,
    phantom: Phantom | None,
    result: Result,
    measured: Mapping[str, Mapping[str, Any]],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Write all files, or none; returns the run record as it was written."""
    from ..imaging import LabelVolume, write_labels, write_volume
    from ..measurement.report.pictures import overlay_sheet

    start = time.perf_counter()
    is_new = not folder.exists()
    try:
        # everything under temporary names first, renamed together: a full disk leaves nothing behind
        with contextlib.ExitStack() as stack:

            def target(name: str) -> Path:
                return stack.enter_context(atomic_path(folder / name))

            if phantom is not None:
                write_volume(volume, target("input.nii.gz"))
                write_volume(phantom.lesion, target("reference.nii.gz"), volume.geometry)
            lesion = LabelVolume(result.mask.astype("uint8"), volume.geometry, {1: "lesion"})
            for name in ("segmentation.seg.nrrd", "segmentation.nii.gz"):
                write_labels(lesion, target(name))
            overlay_sheet(
                volume,
                result.mask,
                target("overlay.png"),
                lungs=result.lungs,
                reference=None if phantom is None else phantom.lesion,
                # a real input's name may hold a patient's
                title="" if phantom is None else "Synthetic chest, COVID-19 pneumonia made by code",
            )
            write_text(target("table.csv"), _table(measured, phantom))
            seconds["writing"] = time.perf_counter() - start
            rounded = {name: round(value, 3) for name, value in seconds.items()}
            record = dataclasses.replace(result.record, seconds=rounded).to_json()
            write_json(target("record.json"), record)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return record


def _table(measured: Mapping[str, Mapping[str, Any]], phantom: Phantom | None) -> str:
    """CSV: one row a region, units in the headers, empty where nothing was measured; known volumes beside them.

    The status is that of the percentage, which is what needs the lungs most.
    """
    from ..measurement.catalog import key_of

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["region", *_COLUMNS, "status", *([] if phantom is None else _KNOWN)])
    for region in _REGIONS:
        row: list[Any] = ["whole CT" if region == "whole" else region.replace("_", " ")]
        for quantity in _COLUMNS.values():
            row.append(_rounded(_value(measured, quantity, region)))
        row.append(measured[key_of("involvement", region)]["status"])
        if phantom is not None:
            row += [_rounded(_known(phantom, region)[name]) for name in _KNOWN.values()]
        writer.writerow(row)
    return text.getvalue()


def _value(measured: Mapping[str, Mapping[str, Any]], quantity: str, region: str = "whole") -> float | None:
    entry = measured.get(quantity if region == "whole" else f"{quantity}.{region}")
    return None if entry is None else entry["value"]


def _known(phantom: Phantom, region: str) -> Mapping[str, float]:
    truth = phantom.truth
    return {"region": truth["lungs"], **truth} if region == "whole" else truth["regions"][region]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 2)


def _found(
    folder: Path,
    volume: Volume,
    phantom: Phantom | None,
    result: Result,
    measured: Mapping[str, Mapping[str, Any]],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """What was found, for people and machines."""
    from ..measurement import dice
    from ..measurement.catalog import key_of

    found: dict[str, Any] = {
        region.replace("whole", "whole_ct"): {
            column: _rounded(_value(measured, quantity, region)) for column, quantity in _COLUMNS.items()
        }
        | {"status": measured[key_of("involvement", region)]["status"]}
        for region in _REGIONS[:3]
    }
    found["lung_quality"] = result.lung_quality.to_json()
    found["lesion_outside_lungs_ml"] = _rounded(_value(measured, "lesion_outside_lungs"))
    found["model"] = record["model"]["id"]
    found["device"] = {name: record["device"][name] for name in ("used", "name", "precision")}
    found["seconds"] = record["seconds"]
    found["warnings"] = [*volume.warnings, *record["warnings"]]
    if phantom is not None:
        found["known_lesion_ml"] = _rounded(phantom.truth["lesion"])
        found["dice_with_known_lesions"] = round(float(dice(result.mask, phantom.lesion)), 4)
        found["dice_of_lungs_with_known_lungs"] = round(float(dice(result.lungs > 0, phantom.lungs > 0)), 4)
    files = [name for name in _FILES if phantom is not None or name not in ("input.nii.gz", "reference.nii.gz")]
    found["files"] = {name: str(folder / name) for name in files}
    return found


def _text(found: Mapping[str, Any]) -> str:
    from ..measurement.catalog import status_text

    def lung(region: str) -> str:
        values = found[region]
        share = values["lesion_percent_of_lung"]
        status = status_text(values["status"])
        remark = f"; {status}" if status else ""
        part = "" if share is None else f" ({share:.1f} % of {values['lung_volume_ml']:.0f} mL{remark})"
        return "not measured" if values["lesion_ml"] is None else f"{values['lesion_ml']:.1f} mL{part}"

    whole = found["whole_ct"]
    lines = [
        f"Lesion found: {whole['lesion_ml']:.1f} mL",
        f"  right lung {lung('right_lung')}, left lung {lung('left_lung')}",
        f"  outside the lungs {found['lesion_outside_lungs_ml']:.1f} mL",
        f"  by HU: ground-glass {whole['ground_glass_ml']:.1f} mL, consolidation {whole['consolidation_ml']:.1f} mL",
    ]
    if "known_lesion_ml" in found:
        lesion, lungs = found["dice_with_known_lesions"], found["dice_of_lungs_with_known_lungs"]
        lines.append(
            f"Known: {found['known_lesion_ml']:.1f} mL were put in. Dice: lesion {lesion:.3f}, lungs {lungs:.3f}"
        )
    device = found["device"]
    phases = ", ".join(f"{name} {s:.1f}" for name, s in found["seconds"].items() if s >= 0.05)
    lines.append(f"Model: {found['model']} on {device['used']} ({device['name']}, {device['precision']})")
    lines.append(f"Seconds: {phases}")
    lines += [f"Note: {warning}" for warning in found["warnings"]]
    lines.append(f"Files in {Path(found['files']['overlay.png']).parent}:")
    lines += [f"  {name:<23}{_FILES[name]}" for name in found["files"]]
    lines.append("Research use only: not a medical device.")
    return "\n".join(lines)
