"""``covid-lesion-seg report``: one HTML page, tables and JSON about the lesions of a CT, or of all of a manifest."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..documents import read_json
from ..errors import InputError, ReadError
from ..manifest import UNNAMED, case_id, check_id, read_manifest
from ._arguments import add_batch_arguments, add_lung_engine, add_same_patient, as_label, refuse_to_replace
from ._batch import file_fingerprint, run_batch

_log = logging.getLogger(__name__)

HELP = "measure the lesions of a CT and make an HTML page, a table and JSON of it"
_FILES = ("ct", "lesion", "lungs", "lobes", "reference", "earlier_ct", "earlier_lesion", "earlier_lungs", "record")
_OPTIONAL = (*_FILES[2:], "label", "series")
_TEXT = ("label", "series")


@dataclasses.dataclass(frozen=True)
class Options:
    """What holds for every case."""

    lobe_map: str | None
    registration: str
    consolidation_from: float
    rescale: tuple[float, float] | None
    lung_engine: str | None
    assume_same_patient: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("ct", nargs="?", metavar="CT", help="CT file or DICOM folder")
    parser.add_argument("lesion", nargs="?", metavar="LESION", help="lesion mask on the CT's grid")
    parser.add_argument("--lungs", help="lung mask, 1 right and 2 left; found by the program if absent")
    add_lung_engine(parser)
    parser.add_argument("--lobes", help="lobe map, e.g. lungmask's or TotalSegmentator's")
    parser.add_argument("--lobe-map", metavar="ID", help="which lobe map it is, where its labels do not tell")
    parser.add_argument("--reference", help="a second lesion mask, to compare with")
    parser.add_argument(
        "--earlier", metavar="CT,LESION[,LUNGS]", help="an earlier study of the same patient, to compare with"
    )
    parser.add_argument("--registration", choices=("rigid", "affine"), default="rigid", help="of the earlier study")
    add_same_patient(parser)
    parser.add_argument("--record", help="run record of the segmentation; found beside the lesion mask if absent")
    parser.add_argument(
        "--id",
        help=f"what to call the case in page and tables (default: {UNNAMED}, since names of files may be a patient's)",
    )
    parser.add_argument("--label", type=as_label, help="which label of the lesion mask is lesion")
    parser.add_argument("--series", metavar="UID", help="which series of a DICOM folder with several")
    parser.add_argument(
        "--rescale", nargs=2, type=float, metavar=("SLOPE", "INTERCEPT"), help="HU = SLOPE x stored value + INTERCEPT"
    )
    parser.add_argument(
        "--consolidation-from", type=float, metavar="HU", help="lesion from this HU up is consolidation (default: -300)"
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        help=f"CSV with the columns ct and lesion and, if wanted, id, {', '.join(_OPTIONAL)}",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="HTML file, default ID_report.html; with --manifest a folder for the pages"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write a table: a row for each lung, zone, lobe")
    parser.add_argument("--long", action="store_true", help="in the table, one row for each quantity instead")
    parser.add_argument("--lesions-csv", type=Path, metavar="FILE", help="also write the list of lesions as a table")
    parser.add_argument("--json", action="store_true", help="print everything that was measured as JSON")
    add_batch_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Report; the exit status is 0, or 3 if some cases of a manifest failed."""
    from ..measurement.catalog import consolidation_limit

    options = Options(
        arguments.lobe_map,
        arguments.registration,
        consolidation_limit(arguments.consolidation_from),
        tuple(arguments.rescale) if arguments.rescale else None,
        arguments.lung_engine,
        arguments.assume_same_patient,
    )
    if not arguments.manifest:
        case = _single(arguments)
        _refuse_to_replace_inputs(arguments, [case])
        result = _report(case, options)
        _write_tables(arguments, {case["id"]: result})
        print(json.dumps(result["measured"], indent=2) if arguments.json else _line(result))
        return 0

    cases = _listed(arguments)
    _refuse_to_replace_inputs(arguments, cases)
    outcome = run_batch(
        cases,
        functools.partial(_report, options=options),
        key=lambda case: case["id"],
        state_file=arguments.output / "state.jsonl",
        fingerprint=lambda case: file_fingerprint(
            [case.get(name) for name in _FILES],
            dataclasses.asdict(options) | {name: case.get(name, "") for name in _TEXT},
        ),
        complete=lambda case: Path(case["output"]).exists(),
        resume=arguments.resume,
        workers=arguments.workers,
        quiet=arguments.quiet,
        title="report",
    )
    _write_tables(arguments, outcome.results)
    if arguments.json:
        failed = [{"case": key, "error": message} for key, message in outcome.exported]
        cases_measured = [result["measured"] for result in outcome.results.values()]
        print(json.dumps({"cases": cases_measured, "failed": failed}, indent=2))
    else:
        print("\n".join(_line(result) for result in outcome.results.values()))
    print(outcome.summary(), file=sys.stderr)
    return outcome.exit_status


def _single(arguments: argparse.Namespace) -> dict[str, str]:
    if not (arguments.ct and arguments.lesion):
        raise InputError("Give CT and LESION, or --manifest FILE.")
    if arguments.resume:
        raise InputError("--resume is for a --manifest; one case is done anew each time.")
    case = {name: getattr(arguments, name) for name in _FILES[:5] if getattr(arguments, name)}
    case |= {name: str(getattr(arguments, name)) for name in (*_TEXT, "record") if getattr(arguments, name) is not None}
    if arguments.earlier:
        parts = [part.strip() for part in arguments.earlier.split(",")]
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise InputError(
                f"--earlier is {arguments.earlier!r}; give two or three files with commas between them: "
                "CT,LESION or CT,LESION,LUNGS."
            )
        case |= dict(zip(_FILES[5:], parts, strict=False))
    # `segment` names masks ID_lesions
    # a file's name may hold a patient's: it is good for a name of a file beside it, not for the page
    case["id"] = UNNAMED if arguments.id is None else check_id(arguments.id)
    name = arguments.id or re.sub(r"_lesions?$", "", case_id(arguments.lesion))
    output = arguments.output or Path(f"{name}_report.html")
    if output.is_dir():
        output /= f"{name}_report.html"
    return case | {"output": str(output)}


def _listed(arguments: argparse.Namespace) -> list[dict[str, str]]:
    given = [name for name in (*_FILES, "earlier", "id", "series") if getattr(arguments, name, None)]
    if given:
        raise InputError(f"With --manifest, {', '.join(given)} are columns of the manifest, not arguments.")
    if arguments.output is None or arguments.output.suffix.lower() in (".html", ".htm"):
        raise InputError("With --manifest, -o names a folder for the pages.")
    if arguments.output.is_file():
        raise InputError(f"The output {arguments.output} is a file; with --manifest it is a folder.")
    cases = read_manifest(arguments.manifest, ["ct", "lesion"], _OPTIONAL, text=_TEXT)
    label = {} if arguments.label is None else {"label": str(arguments.label)}
    return [label | case | {"output": str(arguments.output / f"{case['id']}_report.html")} for case in cases]


def _refuse_to_replace_inputs(arguments: argparse.Namespace, cases: Sequence[Mapping[str, str]]) -> None:
    files = [case.get(name) for case in cases for name in _FILES]
    refuse_to_replace([arguments.manifest, *files], [arguments.csv, arguments.lesions_csv])


def _report(case: Mapping[str, str], options: Options) -> dict[str, Any]:
    """Make one page; what is returned goes into tables and JSON."""
    from ..files import write_text
    from ..imaging import require_other_file
    from ..measurement.longitudinal import TimePoint
    from ..measurement.report.document import Report
    from ._study import StudyFiles, read_mask, read_study

    require_other_file(case["output"], [case[name] for name in _FILES if name in case])
    label = as_label(case["label"]) if case.get("label") else None
    paths = {name: Path(case[name]) for name in _FILES if name in case}
    study = read_study(
        StudyFiles(
            paths["ct"],
            paths["lesion"],
            paths.get("lungs"),
            paths.get("lobes"),
            label,
            case.get("series"),
            options.rescale,
            options.lung_engine,
        )
    )
    notes = list(study.notes)
    reference = None
    if "reference" in paths:
        given = read_mask(paths["reference"], label, "reference", study.volume.geometry)
        given.geometry.require_same(study.volume.geometry, "reference", "CT")
        reference = given.mask()
    earlier = None
    if "earlier_ct" in paths:
        if "earlier_lesion" not in paths:
            raise InputError(f"The case {case['id']} has an earlier CT but no lesion mask of it.")
        files = (paths["earlier_ct"], paths["earlier_lesion"], paths.get("earlier_lungs"))
        before = read_study(StudyFiles(*files, label=label, lung_engine=options.lung_engine))
        notes += [f"Earlier study: {note}" for note in before.notes]
        earlier = TimePoint(before.volume, before.lesion, before.lungs)
    report = Report(
        case["id"],
        TimePoint(study.volume, study.lesion, study.lungs, study.lobes),
        reference,
        earlier,
        options.registration,
        options.lobe_map,
        options.consolidation_from,
        notes,
        _record(paths),
        assume_same_patient=options.assume_same_patient,
    )
    write_text(case["output"], report.to_html())
    return {"case": case["id"], "output": str(case["output"]), "measured": report.to_json()}


def _record(paths: Mapping[str, Path]) -> dict[str, Any] | None:
    """The run record of the segmentation: the one given, or the one that ``segment`` left beside the mask.

    Only what a run record is made of gets into the page: another tool's file may hold patient data.
    """
    from ..inference.record import RunRecord

    given = paths.get("record")
    path = given or paths["lesion"].with_name(case_id(paths["lesion"]) + ".json")
    if given is None and not path.is_file():
        return None
    try:
        return RunRecord.from_json(read_json(path)).to_json()
    except FileNotFoundError as error:
        raise ReadError(f"The run record {path.name} is not there.") from error
    except InputError as error:
        if given is None:
            _log.info("%s beside the mask is not a run record: %s", path.name, error)
            return None
        raise ReadError(f"{path.name} is not a run record: {error}") from error


def _write_tables(arguments: argparse.Namespace, results: Mapping[str, dict[str, Any]]) -> None:
    from ..measurement.tables import lesion_rows, long_rows, region_rows, write_csv

    if arguments.csv is not None:
        rows = long_rows if arguments.long else region_rows
        write_csv(
            arguments.csv,
            [row for key, result in results.items() for row in rows(key, result["measured"]["quantities"])],
        )
    if arguments.lesions_csv is not None:
        lists = {key: result["measured"]["quantities"]["lesions"]["value"] for key, result in results.items()}
        write_csv(arguments.lesions_csv, [row for key, lesions in lists.items() for row in lesion_rows(key, lesions)])


def _line(result: Mapping[str, Any]) -> str:
    from ..measurement.catalog import status_text

    measured = result["measured"]
    quantities = measured["quantities"]
    parts = [f"{quantities['lesion_volume']['value']:.1f} mL lesion"]
    for name, text in (("involvement", "{:.1f} % of the lungs"), ("severity_by_zones", "severity {} of 24 by zones")):
        entry = quantities[name]
        if entry["value"] is not None:
            status = status_text(entry["status"])
            parts.append(text.format(entry["value"]) + (f" ({status})" if status else ""))
    line = f"{result['case']}: {', '.join(parts)} -> {result['output']}"
    return "\n".join([line, *(f"  note: {note}" for note in measured["notes"])])
