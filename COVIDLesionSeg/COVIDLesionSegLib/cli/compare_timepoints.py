"""``covid-lesion-seg compare-timepoints``: what became of the lesions between two CTs of one patient."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..manifest import UNNAMED, check_id, read_manifest
from ._arguments import (
    add_batch_arguments,
    add_lung_engine,
    add_same_patient,
    as_label,
    refuse_to_replace,
    state_file,
)
from ._batch import file_fingerprint, run_batch

HELP = "compare the lesions of two CTs of one patient: change, new and resolved lesions, map"
_NEEDED = ("earlier_ct", "earlier_lesion", "later_ct", "later_lesion")
_MASKS = ("earlier_lungs", "later_lungs", "earlier_lobes", "later_lobes")
_TEXT = ("label",)
# beside the changes, what the screen shows; the JSON has everything
_SHOWN = ("lesions_not_imaged", "lung_dice", "lung_surface_distance", "common_coverage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    for name, what in zip(_NEEDED, ("earlier CT", "its lesion mask", "later CT", "its lesion mask"), strict=True):
        parser.add_argument(name, nargs="?", metavar=name.upper(), help=what)
    for name in _MASKS:
        when, what = name.split("_")
        parser.add_argument(f"--{when}-{what}", help=f"{what} of the {when} CT; lungs are found if absent")
    add_lung_engine(parser)
    parser.add_argument("--registration", choices=("rigid", "affine"), default="rigid", help="of the lungs")
    add_same_patient(parser)
    parser.add_argument("--label", type=as_label, help="which label of the lesion masks is lesion")
    parser.add_argument("--id", help=f"what to call the case (default: {UNNAMED}; a file's name may be a patient's)")
    parser.add_argument(
        "--manifest",
        type=Path,
        help=f"CSV with the columns {', '.join(_NEEDED)} and, if wanted, id, {', '.join(_MASKS)}",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="write the table: one row a case")
    parser.add_argument("--long", action="store_true", help="write one row for each case, region and quantity instead")
    parser.add_argument("--lesions-csv", type=Path, metavar="FILE", help="also write the groups of lesions as a table")
    parser.add_argument(
        "--map",
        type=Path,
        metavar="FILE",
        help="also write the change map on the later CT's grid (1 persisting, 2 new, 3 resolved); "
        "with --manifest a folder for the maps",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_batch_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare; the exit status is 0, or 3 if some cases of a manifest failed."""
    options = {name: getattr(arguments, name) for name in ("registration", "lung_engine", "assume_same_patient")}
    work = functools.partial(_compare, options=options)
    if not arguments.manifest:
        case = _single(arguments)
        _refuse_to_replace_inputs(arguments, [case])
        result = work(case)
        _write_tables(arguments, {case["id"]: result})
        print(json.dumps(result, indent=2) if arguments.json else _text(result))
        return 0

    cases = _listed(arguments)
    _refuse_to_replace_inputs(arguments, cases)
    outcome = run_batch(
        cases,
        work,
        key=lambda case: case["id"],
        state_file=state_file(arguments.output, arguments.resume),
        fingerprint=lambda case: file_fingerprint(
            [case.get(name) for name in (*_NEEDED, *_MASKS)],
            options | {"label": case.get("label", "")},
        ),
        complete=lambda case: "map" not in case or Path(case["map"]).exists(),
        resume=arguments.resume,
        workers=arguments.workers,
        quiet=arguments.quiet,
        title="compare",
    )
    _write_tables(arguments, outcome.results)
    if arguments.json:
        failed = [{"case": key, "error": message} for key, message in outcome.exported]
        print(json.dumps({"cases": list(outcome.results.values()), "failed": failed}, indent=2))
    else:
        print("\n\n".join(_text(result) for result in outcome.results.values()))
    print(outcome.summary(), file=sys.stderr)
    return outcome.exit_status


def _single(arguments: argparse.Namespace) -> dict[str, str]:
    if not all(getattr(arguments, name) for name in _NEEDED):
        raise InputError("Give EARLIER_CT EARLIER_LESION LATER_CT LATER_LESION, or --manifest FILE.")
    if arguments.resume:
        raise InputError("--resume is for a --manifest; one case is done anew each time.")
    names = (*_NEEDED, *_MASKS, *_TEXT, "map")
    case = {name: str(getattr(arguments, name)) for name in names if getattr(arguments, name) is not None}
    return case | {"id": UNNAMED if arguments.id is None else check_id(arguments.id)}


def _listed(arguments: argparse.Namespace) -> list[dict[str, str]]:
    given = [name for name in (*_NEEDED, *_MASKS, "id") if getattr(arguments, name)]
    if given:
        raise InputError(f"With --manifest, {', '.join(given)} are columns of the manifest, not arguments.")
    if arguments.map is not None and (arguments.map.is_file() or arguments.map.suffix):
        raise InputError("With --manifest, --map names a folder for the maps.")
    cases = read_manifest(arguments.manifest, _NEEDED, [*_MASKS, *_TEXT], text=_TEXT)
    common = {} if arguments.label is None else {"label": str(arguments.label)}
    if arguments.map is None:
        return [common | case for case in cases]
    return [common | case | {"map": str(arguments.map / f"{case['id']}_change.nii.gz")} for case in cases]


def _refuse_to_replace_inputs(arguments: argparse.Namespace, cases: Sequence[Mapping[str, str]]) -> None:
    files = [case.get(name) for case in cases for name in (*_NEEDED, *_MASKS)]
    refuse_to_replace([arguments.manifest, *files], [arguments.output, arguments.lesions_csv])


def _compare(case: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    from ..imaging import LabelVolume, require_other_file, write_labels
    from ..measurement import compare_timepoints
    from ..measurement.longitudinal import MAP_NAMES, TimePoint
    from ..measurement.tables import plain
    from ._study import StudyFiles, read_study

    if "map" in case:
        require_other_file(case["map"], [case[name] for name in (*_NEEDED, *_MASKS) if name in case])
    label = as_label(case["label"]) if case.get("label") else None
    points, notes = [], []
    for when in ("earlier", "later"):
        files = {what: case.get(f"{when}_{what}") for what in ("ct", "lesion", "lungs", "lobes")}
        paths = {what: Path(path) for what, path in files.items() if path}
        masks = (paths["lesion"], paths.get("lungs"), paths.get("lobes"))
        study = read_study(StudyFiles(paths["ct"], *masks, label=label, lung_engine=options["lung_engine"]))
        notes += [f"{when.capitalize()} study: {note}" for note in study.notes]
        points.append(TimePoint(study.volume, study.lesion, study.lungs, study.lobes))
    compared = compare_timepoints(
        points[0], points[1], options["registration"], assume_same_patient=options["assume_same_patient"]
    )
    change_map = compared.pop("map")
    if "map" in case:
        write_labels(LabelVolume(change_map, points[1].volume.geometry, MAP_NAMES), case["map"])
    compared["notes"] = [*notes, *compared["notes"]]
    return plain({"case": case["id"], **compared})


def _write_tables(arguments: argparse.Namespace, results: Mapping[str, dict[str, Any]]) -> None:
    from ..measurement.tables import case_row, group_rows, long_rows, write_csv

    if arguments.output is not None:
        rows: list[dict[str, Any]] = []
        for key, result in results.items():
            rows += long_rows(key, result["changes"]) if arguments.long else [case_row(key, result["changes"])]
        write_csv(arguments.output, rows)
    if arguments.lesions_csv is not None:
        groups = [row for key, result in results.items() for row in group_rows(key, result["lesions"])]
        write_csv(arguments.lesions_csv, groups)


def _text(result: Mapping[str, Any]) -> str:
    from ..measurement.catalog import catalog, display_unit, status_text
    from ..measurement.longitudinal import CHANGES, COUNTS

    lines = [f"{result['case']} (later minus earlier)"]
    for name in (*CHANGES, *COUNTS, *_SHOWN):
        entry = result["changes"][name]
        digits = catalog()["quantities"][name]["digits"]
        value = "-" if entry["value"] is None else f"{float(entry['value']):.{digits}f}"
        note = "" if entry["status"] == "ok" else f"  ({status_text(entry['status'])})"
        lines.append(f"  {entry['title']:45} {value:>9} {display_unit(entry['unit']):3}{note}".rstrip())
    return "\n".join([*lines, *(f"  note: {note}" for note in result["notes"])])
