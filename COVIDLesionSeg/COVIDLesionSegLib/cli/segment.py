"""``covid-lesion-seg segment``: find the lesions in one CT, in many, or in all of a manifest."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, LungsNotFoundError
from ..files import atomic_path, write_json
from ..imaging import PATIENT_NOTICE
from ..imaging.lungs.quality import DOUBTFUL
from ..manifest import absolute_path, case_id, read_manifest
from ..processes import launcher_number
from ._arguments import add_lung_engine, refuse_to_replace
from ._batch import BatchOutcome, file_fingerprint, run_batch
from ._progress import ProgressBar

if TYPE_CHECKING:
    from ..imaging import SegSource, Volume
    from ..inference import Predictor, Result

HELP = "find lesions in a CT file, a DICOM folder, many of them, or a manifest"
# format -> ending of the mask's name
FORMATS = {"nii.gz": ".nii.gz", "seg.nrrd": ".seg.nrrd", "dicom-seg": ".dcm"}
STATE_FILE = "segment_state.jsonl"
MAPS = ("probability", "uncertainty")


@dataclasses.dataclass(frozen=True)
class Study:
    """One CT to segment and where its results go."""

    id: str
    ct: Path
    mask: Path
    lungs: Path | None = None
    series: str | None = None

    @property
    def is_dicom_seg(self) -> bool:
        """Whether the mask is to be a DICOM SEG."""
        return _format_of(self.mask.name) == "dicom-seg"

    @property
    def record(self) -> Path:
        """The run record beside the mask."""
        return self.beside(".json")

    def beside(self, ending: str) -> Path:
        """A file beside the mask with another ending."""
        return self.mask.with_name(_without_format(self.mask.name) + ending)

    def map_file(self, name: str) -> Path:
        """The file of a map beside the mask."""
        return self.beside(f"_{name}.nii.gz")

    def outputs(self, maps: Sequence[str]) -> list[Path]:
        """All files that are written, with the maps of these names."""
        return [self.mask, self.record, *(self.map_file(name) for name in maps)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "inputs", nargs="*", type=Path, metavar="INPUT", help="CT files (NIfTI, NRRD, MHA) or DICOM folders"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="folder, made if absent, or a file ending in .nii.gz, .seg.nrrd or .dcm (DICOM SEG)",
    )
    parser.add_argument("--manifest", type=Path, help="CSV with a column ct and, if wanted, id, lungs, series")
    parser.add_argument("--model", help="model id (see `models list`) or file; the default model if absent")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--precision", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")
    parser.add_argument("--lungs", type=Path, help="lung mask on the CT's grid; found by the program if absent")
    add_lung_engine(parser)
    parser.add_argument("--probability", action="store_true", help="also write the lesion probability (float32)")
    parser.add_argument("--tta", action="store_true", help="average over flips (four times the work)")
    parser.add_argument("--uncertainty", action="store_true", help="also write the uncertainty map; implies --tta")
    parser.add_argument(
        "--threshold", type=float, help="lesion where the probability is above this (default: the model's)"
    )
    parser.add_argument(
        "--minimum-volume", type=float, default=0.0, metavar="ML", help="drop lesions below this many mL"
    )
    parser.add_argument(
        "--keep-inside-lungs",
        type=float,
        metavar="MM",
        help="drop lesion outside the lungs and further than this from lesion in them (default: the model's, and none "
        "on doubtful lungs; 1000 keeps all)",
    )
    parser.add_argument(
        "--smooth-across-slices",
        type=float,
        metavar="MM",
        help="smooth the probability across slices: SD of the Gaussian (default: the model's; 0: not at all)",
    )
    parser.add_argument("--series", metavar="UID", help="which series of a DICOM folder with several")
    parser.add_argument(
        "--rescale", nargs=2, type=float, metavar=("SLOPE", "INTERCEPT"), help="HU = SLOPE x stored value + INTERCEPT"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="format of masks in an output folder (default: nii.gz); dicom-seg carries the patient's data from the CT",
    )
    parser.add_argument("--resume", action="store_true", help="skip studies that an earlier run has done")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Segment; the exit status is 0, or 3 if some of several studies failed and no launcher runs this."""
    from ..inference import PostProcessing, Predictor
    from ..learning.distributed import rank_share

    studies = _studies(arguments)
    maps = [name for name in MAPS if getattr(arguments, name)]
    _refuse_to_replace_inputs(studies, maps, arguments.manifest)
    if any(study.is_dicom_seg for study in studies):
        print(f"note: {PATIENT_NOTICE}", file=sys.stderr)
    postprocessing = PostProcessing(
        threshold=arguments.threshold,
        minimum_volume_ml=arguments.minimum_volume,
        keep_inside_lungs_mm=arguments.keep_inside_lungs,
        smooth_across_slices_mm=arguments.smooth_across_slices,
    )
    several = len(studies) > 1 or bool(arguments.manifest) or arguments.resume
    state = studies[0].mask.parent / STATE_FILE
    launched = launcher_number("WORLD_SIZE", 1) > 1
    if launched:
        # under torchrun every process takes its share, and remembers it in a file of its own
        several, studies = True, rank_share(studies)
        state = state.with_suffix(f".{launcher_number('RANK', 0)}.jsonl")
    predictor = Predictor(arguments.model, device=arguments.device, precision=arguments.precision)

    def one(study: Study) -> dict[str, Any]:
        with ProgressBar(study.id, arguments.quiet) as bar:
            result = _segment(study, predictor, postprocessing, arguments, bar)
        if result["lung_quality"]["verdict"] == DOUBTFUL:
            print(f"warning: {study.id}: {result['warnings'][0]}", file=sys.stderr, flush=True)
        if not arguments.json:
            print(_line(result), flush=True)
        return result

    if not several:
        results = [one(studies[0])]
        if arguments.json:
            print(json.dumps(results[0], indent=2))
        return 0

    parameters = {
        name: getattr(arguments, name)
        for name in ("device", "precision", "probability", "tta", "uncertainty", "rescale", "lung_engine")
    } | {
        "model": predictor.model.card.weights_sha256,
        # what the card sets counts as well: it may change while the weights don't
        "preprocessing": dataclasses.asdict(predictor.model.card.preprocessing),
        "postprocessing": postprocessing.completed(predictor.model.card).to_json(),
    }
    outcome = run_batch(
        studies,
        one,
        key=lambda study: study.id,
        state_file=state,
        fingerprint=lambda study: file_fingerprint(
            [study.ct, study.lungs], parameters | {"series": study.series, "mask": study.mask.name}
        ),
        complete=lambda study: all(path.exists() for path in study.outputs(maps)),
        resume=arguments.resume,
        quiet=arguments.quiet,
        title="segment",
    )
    if arguments.json:
        failed = [{"id": key, "error": message} for key, message in outcome.exported]
        print(json.dumps({"results": list(outcome.results.values()), "failed": failed}, indent=2))
    print(outcome.summary(), file=sys.stderr)
    return _status_for_launcher(outcome) if launched else outcome.exit_status


def _status_for_launcher(outcome: BatchOutcome) -> int:
    # a launcher kills all processes as soon as one ends with another status than 0
    if outcome.failed:
        print(
            "note: the exit status is 0 all the same, so that the launcher lets the other processes finish; "
            "the same command with --resume does the failed studies again.",
            file=sys.stderr,
        )
    return 0


def _studies(arguments: argparse.Namespace) -> list[Study]:
    output: Path = arguments.output
    if bool(arguments.inputs) == bool(arguments.manifest):
        raise InputError("Give CT files or DICOM folders, or --manifest FILE, and not both.")
    if arguments.manifest:
        if arguments.lungs or arguments.series:
            raise InputError("With --manifest, lungs and series are columns of the manifest, not options.")
        rows = read_manifest(arguments.manifest, ["ct"], ["lungs", "series"], text=["series"])
    else:
        if len(arguments.inputs) > 1 and (arguments.lungs or arguments.series):
            raise InputError("--lungs and --series belong to one study; for several, list them in a --manifest.")
        extra = {"lungs": arguments.lungs, "series": arguments.series}
        rows = [{"id": case_id(absolute_path(path)), "ct": path, **extra} for path in arguments.inputs]

    named = _format_of(output.name)
    if named is None:
        _refuse_unknown_format(output)
    elif len(rows) > 1:
        raise InputError(f"The output {output} is one file, but there are {len(rows)} studies; give a folder.")
    elif arguments.format and arguments.format != named:
        raise InputError(
            f"The output {output.name} does not end in {FORMATS[arguments.format]}; leave --format out or rename it."
        )
    ending = f"_lesions{FORMATS[arguments.format or 'nii.gz']}"

    studies = []
    for row in rows:
        mask = output if named else output / (row["id"] + ending)
        lungs = Path(row["lungs"]) if row.get("lungs") else None
        studies.append(Study(row["id"], Path(row["ct"]), mask, lungs, row.get("series")))
    doubled = {study.id for study in studies if sum(study.mask == other.mask for other in studies) > 1}
    if doubled:
        raise InputError(
            f"Several inputs would be written to the same file ({', '.join(sorted(doubled))}); "
            "use a --manifest with a different id for each."
        )
    return studies


def _refuse_unknown_format(output: Path) -> None:
    # a folder called mask.nii or result.png is surely not what was meant
    if (
        output.suffix.lower() in {".nii", ".nrrd", ".mha", ".mhd", ".dcm", ".gz", ".png", ".json", ".csv"}
        and not output.is_dir()
    ):
        endings = " or ".join(FORMATS.values())
        raise InputError(f"The output {output.name} has an unknown format; end it in {endings}, or name a folder.")
    if output.is_file():
        raise InputError(f"The output {output} is a file; name a folder, or a file ending in a known format.")


def _refuse_to_replace_inputs(studies: Sequence[Study], maps: Sequence[str], manifest: Path | None) -> None:
    inputs = [path for study in studies for path in (study.ct, study.lungs)]
    outputs = [path for study in studies for path in study.outputs(maps)]
    refuse_to_replace([manifest, *inputs], [*outputs, studies[0].mask.parent])


def _segment(
    study: Study, predictor: Predictor, postprocessing: Any, arguments: argparse.Namespace, progress: ProgressBar
) -> dict[str, Any]:
    from ..imaging import judged_lungs, read_labels, read_volume, write_volume
    from ..measurement import quantify

    start = time.perf_counter()
    progress("reading", 0, 1)
    volume = read_volume(study.ct, series=study.series, rescale=tuple(arguments.rescale) if arguments.rescale else None)
    seg_source = _seg_source(study, volume) if study.is_dicom_seg else None
    lungs = None if study.lungs is None else judged_lungs(read_labels(study.lungs, geometry=volume.geometry), volume)
    read = time.perf_counter()
    try:
        result = predictor.segment(
            volume,
            lungs=lungs,
            progress=progress,
            probability=arguments.probability,
            tta=arguments.tta or arguments.uncertainty,
            uncertainty=arguments.uncertainty,
            postprocessing=postprocessing,
            lung_engine=arguments.lung_engine,
        )
    except LungsNotFoundError as error:
        way_out = "If it is one, --lung-engine none searches the whole body without lungs."
        raise LungsNotFoundError(str(error), way_out) from error

    progress("writing", 0, 1)
    written = time.perf_counter()
    quantities = quantify(volume, result.mask, result.located_lungs)
    notes = list(volume.warnings)
    # everything is written under temporary names first and renamed together: a full disk leaves nothing behind
    with contextlib.ExitStack() as stack:
        mask = stack.enter_context(atomic_path(study.mask))
        notes += _write_mask(result, volume, mask, seg_source)
        for name in MAPS:
            array = getattr(result, name)
            if array is not None:
                write_volume(array, stack.enter_context(atomic_path(study.map_file(name))), volume.geometry)
        seconds = {"reading": read - start, **result.record.seconds, "writing": time.perf_counter() - written}
        record = dataclasses.replace(result.record, seconds=seconds).to_json()
        write_json(stack.enter_context(atomic_path(study.record)), record)
    progress("writing", 1, 1)
    return {
        "id": study.id,
        "mask": str(study.mask),
        "record": str(study.record),
        "lesion_ml": quantities["lesion_volume"]["value"],
        "lesion_percent_of_lung": quantities["involvement"]["value"],
        "lesion_percent_status": quantities["involvement"]["status"],
        "lung_quality": result.lung_quality.to_json(),
        "seconds": round(sum(seconds.values()), 3),
        "device": record["device"],
        "warnings": list(dict.fromkeys([*record["warnings"], *notes])),
    }


def _seg_source(study: Study, volume: Volume) -> SegSource:
    """What the DICOM SEG will refer to; better to hear of what is missing before the work than after it."""
    from ..imaging import read_seg_source

    if volume.source["format"] != "DICOM":
        raise InputError(
            f"A DICOM SEG can be written for a CT in DICOM only; {study.ct.name} is {volume.source['format']}.",
            "Choose --format seg.nrrd or nii.gz.",
        )
    return read_seg_source(study.ct, study.series)


def _write_mask(result: Result, volume: Volume, path: Path, source: SegSource | None) -> Sequence[str]:
    """Write the mask in the format that its name asks for; returns sentences about what is odd."""
    from ..imaging import DicomSegment, LabelVolume, SegmentAlgorithm, write_dicom_seg, write_labels

    if source is None:
        write_labels(LabelVolume(result.mask.view("uint8"), volume.geometry, {1: "lesion"}), path)
        return ()
    segment = DicomSegment("lesion", result.mask, SegmentAlgorithm.from_record(result.record.to_json()))
    return write_dicom_seg(path, [segment], volume.geometry, source)


def _line(result: dict[str, Any]) -> str:
    from ..measurement.catalog import status_text

    share, status = result["lesion_percent_of_lung"], status_text(result["lesion_percent_status"])
    percent = "" if share is None else f", {share:.1f} % of the lungs{f' ({status})' if status else ''}"
    line = (
        f"{result['id']}: {result['lesion_ml']:.1f} mL lesion{percent}; {result['seconds']:.1f} s -> {result['mask']}"
    )
    return "\n".join([line, *(f"  note: {warning}" for warning in result["warnings"])])


def _format_of(name: str) -> str | None:
    return next((known for known, ending in FORMATS.items() if name.lower().endswith(ending)), None)


def _without_format(name: str) -> str:
    known = _format_of(name)
    return name[: -len(FORMATS[known])] if known else name
