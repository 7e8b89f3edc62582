"""``covid-lesion-seg evaluate``: a segmentation against its reference, or all of a manifest."""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..manifest import case_id, read_manifest
from ._arguments import add_batch_arguments, as_label, refuse_to_replace, state_file
from ._batch import BatchOutcome, file_fingerprint, run_batch

HELP = "compare a segmentation with a reference: Dice, volume error, surface distances, lesions"
# what a summary on the screen shows; the JSON has everything
_SHOWN = (
    "dice",
    "relative_volume_error",
    "relative_volume_error_signed",
    "hausdorff_distance_95",
    "average_surface_distance",
    "normalized_surface_dice",
    "sensitivity",
    "precision",
    "lesion_sensitivity",
    "false_positive_lesions",
)
_SHOWN_BY_GROUP = ("dice", "relative_volume_error", "hausdorff_distance_95")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("prediction", nargs="?", type=Path, metavar="PREDICTION", help="label map to judge")
    parser.add_argument("reference", nargs="?", type=Path, metavar="REFERENCE", help="label map to judge it by")
    parser.add_argument(
        "--manifest", type=Path, help="CSV with the columns prediction and reference and, if wanted, id and label"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="write the table: one row a case")
    parser.add_argument("--long", action="store_true", help="write one row for each case and quantity instead")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--label", type=as_label, help="which label to compare, by value or segment name")
    parser.add_argument(
        "--prediction-label", type=as_label, metavar="LABEL", help="the label in the prediction, where it differs"
    )
    parser.add_argument(
        "--resample", action="store_true", help="bring the prediction to the reference's grid (nearest neighbor)"
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="MM", help="tolerance of the normalized surface Dice (default: 3 mm)"
    )
    add_batch_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; the exit status is 0, or 3 if some cases of a manifest failed."""
    cases = _cases(arguments)
    files = [case[name] for case in cases for name in ("prediction", "reference")]
    refuse_to_replace([arguments.manifest, *files], [arguments.output])
    work = functools.partial(
        _evaluate,
        prediction_label=arguments.prediction_label,
        resample=arguments.resample,
        tolerance=arguments.tolerance,
    )
    if not arguments.manifest:
        (case,) = cases
        result = work(case)
        _write_table(arguments, {case["id"]: result}, [])
        print(json.dumps(result, indent=2) if arguments.json else _text(result))
        return 0

    parameters = {
        "label": arguments.label,
        "prediction_label": arguments.prediction_label,
        "resample": arguments.resample,
        "tolerance": arguments.tolerance,
    }
    outcome = run_batch(
        cases,
        work,
        key=lambda case: case["id"],
        state_file=state_file(arguments.output, arguments.resume),
        fingerprint=lambda case: file_fingerprint(
            [case["prediction"], case["reference"]], parameters | {"label": str(case.get("label"))}
        ),
        resume=arguments.resume,
        workers=arguments.workers,
        quiet=arguments.quiet,
        title="evaluate",
    )
    _write_table(arguments, outcome.results, outcome.exported)
    if arguments.json:
        print(json.dumps(_document(outcome), indent=2))
    elif outcome.results:
        print(_summary_text(outcome.results))
    print(outcome.summary(), file=sys.stderr)
    return outcome.exit_status


def _cases(arguments: argparse.Namespace) -> list[dict[str, str]]:
    given = [arguments.prediction, arguments.reference]
    if arguments.manifest:
        if any(given):
            raise InputError("Give PREDICTION and REFERENCE, or --manifest FILE, and not both.")
        cases = read_manifest(arguments.manifest, ["prediction", "reference"], ["label"], text=["label"])
    else:
        if not all(given):
            raise InputError("Give PREDICTION and REFERENCE, or --manifest FILE.")
        if arguments.resume:
            raise InputError("--resume is for a --manifest; one case is done anew each time.")
        cases = [
            {
                "id": case_id(arguments.prediction),
                "prediction": str(arguments.prediction),
                "reference": str(arguments.reference),
            }
        ]
    if arguments.label is not None:
        cases = [{"label": str(arguments.label)} | case for case in cases]
    return cases


def _evaluate(
    case: Mapping[str, str], prediction_label: int | str | None, resample: bool, tolerance: float | None
) -> dict[str, Any]:
    from ..measurement import evaluate
    from ..measurement.tables import plain
    from ._study import read_pair, resampled

    label = as_label(case["label"]) if case.get("label") else None
    own = label if prediction_label is None else prediction_label
    prediction, reference = read_pair(Path(case["prediction"]), Path(case["reference"]), own, label)
    moved = bool(resample and prediction.geometry.difference(reference.geometry))
    if moved:
        prediction = resampled(prediction, reference.geometry)
    hint = "Give --resample to bring it there (nearest neighbor)."
    prediction.geometry.require_same(reference.geometry, "prediction", "reference", hint)
    options = {} if tolerance is None else {"tolerance": tolerance}
    values = evaluate(prediction.mask(), reference.mask(), reference.geometry.spacing_zyx, **options)
    return {"case": case["id"], "label": label, "resampled": moved, "quantities": plain(values)}


def _write_table(
    arguments: argparse.Namespace, results: Mapping[str, dict[str, Any]], failed: Sequence[tuple[str, str]]
) -> None:
    from ..measurement.tables import case_row, long_rows, write_csv

    if arguments.output is None:
        return
    rows: list[dict[str, Any]] = []
    for key, result in results.items():
        rows += long_rows(key, result["quantities"]) if arguments.long else [case_row(key, result["quantities"])]
    rows += [{"case": key, "status": f"failed: {message}"} for key, message in failed]
    write_csv(arguments.output, rows)


def _document(outcome: BatchOutcome) -> dict[str, Any]:
    import dataclasses

    from ..measurement.tables import plain

    return {
        "cases": list(outcome.results.values()),
        "summary": [plain(dataclasses.asdict(row)) for row in _summaries(outcome.results)],
        "failed": [{"case": key, "error": message} for key, message in outcome.exported],
    }


def _summaries(results: Mapping[str, dict[str, Any]]) -> list[Any]:
    from ..measurement import summarize
    from ..measurement.tables import number

    if not results:
        return []
    cases = {
        key: {name: entry | {"value": number(entry["value"])} for name, entry in result["quantities"].items()}
        for key, result in results.items()
    }
    return summarize(cases)


def _text(result: dict[str, Any]) -> str:
    from ..measurement import QUANTITIES
    from ..measurement.catalog import display_unit

    lines = [f"{result['case']}" + (" (prediction resampled to the reference's grid)" if result["resampled"] else "")]
    for name, entry in result["quantities"].items():
        value = "-" if entry["value"] is None else f"{float(entry['value']):.4g}"
        note = "" if entry["status"] == "ok" else f"  ({entry['status']})"
        lines.append(f"  {QUANTITIES[name].title:32} {value:>10} {display_unit(entry['unit']):3}{note}".rstrip())
    return "\n".join(lines)


def _summary_text(results: Mapping[str, dict[str, Any]]) -> str:
    from ..measurement import QUANTITIES
    from ..measurement.catalog import display_unit
    from ..measurement.cohort import GROUPS

    lines: list[str] = []
    group = ""
    for row in _summaries(results):
        if row.quantity not in (_SHOWN if row.group == "all" else _SHOWN_BY_GROUP):
            continue
        if row.group != group:
            group = row.group
            title = "All cases" if group == "all" else f"Group {group}: {GROUPS[group]} in the reference"
            lines += ["", title] if lines else [title]
            lines.append(f"  {'':32} {'mean':>9} {'SD':>9} {'median':>9}   {'IQR':17} {'95 % CI of mean':19} cases")
        unit = display_unit(row.unit)
        title = QUANTITIES[row.quantity].title + (f" [{unit}]" if unit else "")
        numbers = " ".join(f"{_short(value):>9}" for value in (row.mean, row.sd, row.median))
        quartiles, interval = _span(row.q1, row.q3), _span(row.ci_low, row.ci_high)
        lines.append(f"  {title:32} {numbers}   {quartiles:17} {interval:19} {row.note}")
    return "\n".join(lines)


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _span(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.4g} to {high:.4g}"
