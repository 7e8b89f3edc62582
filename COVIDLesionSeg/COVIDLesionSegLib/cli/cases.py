"""``covid-lesion-seg cases``: the store of the correction loop."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..cases.exchange import LAYOUTS
from ..cases.queue import ORDERS
from ..cases.records import STATES, Case, Revision
from ..cases.split import unnamed
from ..cases.store import Store
from ..codec import to_json
from ..errors import COVIDLesionSegError
from . import EXIT_SOME_FAILED
from ._arguments import as_label
from ._case_learning import LEARNING
from ._progress import ProgressBar

HELP = "keep cases, corrections and their split; choose the next case; review, compare and choose models"

_ROW = "{:<11} {:<10} {:>9} {:>9}  {:<6} {:<12} {}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions, each with its own arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (text, declare, _) in {**_ACTIONS, **LEARNING}.items():
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.add_argument("store", type=Path, metavar="STORE", help="folder of the store")
        action.add_argument("--json", action="store_true", help="print the result as JSON")
        action.add_argument("--quiet", action="store_true", help="no progress bar")
        declare(action)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; returns the exit status."""
    _, _, act = {**_ACTIONS, **LEARNING}[arguments.action]
    return act(arguments)


# --- the store and its cases -----------------------------------------------------------------------------------------


def _create(arguments: argparse.Namespace) -> int:
    store = Store.create(arguments.store)
    return _tell(arguments, {"store": str(store.folder), "id": store.id}, f"Made the store {store.folder}.")


def _declare_add(action: argparse.ArgumentParser) -> None:
    action.add_argument("ct", nargs="+", metavar="CT", help="files or DICOM folders")
    action.add_argument("--patient", help="what tells patients apart; not kept (default: the DICOM PatientID)")
    action.add_argument("--reference", action="store_true", help="leave the CT where it is instead of copying it")
    action.add_argument("--lungs", type=Path, help="lung mask, for one CT")
    action.add_argument("--series", metavar="UID", help="SeriesInstanceUID, for a DICOM folder with several")
    action.add_argument("--rescale", nargs=2, type=float, metavar=("SLOPE", "INTERCEPT"), help="for values not in HU")
    action.add_argument("--keep-identity", action="store_true", help="keep DICOM patient ID and UIDs in private/")
    action.add_argument("--note", default="", help="free text")


def _add(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    done, failed = {}, {}
    for ct in arguments.ct:
        try:
            case = store.add(
                ct,
                arguments.patient,
                copy=not arguments.reference,
                lungs=arguments.lungs,
                series=arguments.series,
                rescale=arguments.rescale,
                keep_identity=arguments.keep_identity,
                note=arguments.note,
            )
            done[ct] = case.id
        except COVIDLesionSegError as error:
            if len(arguments.ct) == 1:
                raise
            failed[ct] = str(error)
    if warning := unnamed([store.case(name) for name in done.values()]):
        print(warning, file=sys.stderr)
    return _tell_many(arguments, done, failed)


def _declare_import(action: argparse.ArgumentParser) -> None:
    action.add_argument("source", type=Path, metavar="SOURCE", help="folder or manifest (CSV)")
    action.add_argument("--layout", choices=LAYOUTS, default="auto", help="what SOURCE is (default: look)")
    action.add_argument("--rater", default="imported", help="who made the masks (default: %(default)s)")
    action.add_argument("--label", type=as_label, help="which label is lesion, by value or name")
    action.add_argument("--reference", action="store_true", help="leave the CTs where they are")
    action.add_argument("--approve", action="store_true", help="approve the masks, too")
    action.add_argument("--empty-is-lesion-free", action="store_true", help="an empty mask says: no lesion")


def _import(arguments: argparse.Namespace) -> int:
    with ProgressBar("import", arguments.quiet) as bar:
        report = Store(arguments.store).import_cases(
            arguments.source,
            arguments.layout,
            rater=arguments.rater,
            label=arguments.label,
            copy=not arguments.reference,
            approve=arguments.approve,
            empty_is_lesion_free=arguments.empty_is_lesion_free,
            progress=bar,
        )
    for warning in report.warnings:
        print(warning, file=sys.stderr)
    return _tell_many(arguments, report.done, report.failed, report.known)


def _declare_export(action: argparse.ArgumentParser) -> None:
    action.add_argument("folder", type=Path, metavar="FOLDER", help="in which the data set is made (nnUNet_raw)")
    action.add_argument("--number", type=int, default=501, help="of the data set (default: %(default)s)")
    action.add_argument("--name", default="COVIDLesion", help="of the data set (default: %(default)s)")


def _export(arguments: argparse.Namespace) -> int:
    with ProgressBar("export", arguments.quiet) as bar:
        target = Store(arguments.store).export_nnunet(arguments.folder, arguments.number, arguments.name, progress=bar)
    return _tell(arguments, {"folder": str(target)}, f"Wrote {target}.")


def _declare_list(action: argparse.ArgumentParser) -> None:
    action.add_argument("--state", action="append", choices=STATES, help="only these; may be given several times")


def _list(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    cases = store.cases(*(arguments.state or ()))
    sides = store.split.sides()
    if arguments.json:
        print(json.dumps([_described(case, sides) for case in cases], indent=2))
        return 0
    print(_ROW.format("CASE", "STATE", "mL", "ENTROPY", "RATERS", "SPLIT", "NOTE").rstrip())
    for case in cases:
        volume = "-" if case.lesion_ml is None else f"{case.lesion_ml:.1f}"
        doubt = case.prediction.uncertainty.get("tta_entropy") if case.prediction else None
        side = sides.get(case.patient, "train" if sides else "-")
        note = case.exclusion or (str(case.lock) if case.lock else case.note)
        shown = "-" if doubt is None else f"{doubt:.3f}"
        print(_ROW.format(case.id, case.state, volume, shown, len(case.raters), side, note).rstrip())
    counts = ", ".join(f"{number} {state}" for state, number in store.counts().items())
    print(f"{counts or 'no case yet'}")
    return 0


def _declare_case(action: argparse.ArgumentParser) -> None:
    action.add_argument("case", metavar="CASE", help="id of a case")


def _show(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    case = store.case(arguments.case)
    if arguments.json:
        print(json.dumps(_described(case, store.split.sides()), indent=2))
        return 0
    print(f"{case.id}: {case.state}, patient {case.patient}, added {case.added}")
    print(f"CT {case.ct.storage}: {store.ct_path(case)[0]}")
    if case.lock is not None:
        print(f"open: {case.lock} ({case.lock.why})")
    for prediction in case.predictions:
        doubt = "".join(f", {name} {value:.3f}" for name, value in prediction.uncertainty.items())
        print(f"prediction {prediction.number}: {prediction.model_id}, {prediction.lesion_ml:.1f} mL{doubt}")
    label = case.label_revision
    for revision in case.revisions:
        facts = {"label": revision == label, "approved": revision.number == case.approved}
        marks = [word for word, holds in facts.items() if holds]
        volume = "no lesion" if revision.lesion_free else f"{revision.lesion_ml:.1f} mL"
        drafts = ", ".join(dict.fromkeys(prediction.model_id for prediction in case.drafted_by(revision)))
        print(
            f"revision {revision.number}: {revision.rater}, {volume}, {revision.seconds:.0f} s{_overlap(revision)}, "
            f"drafted by {drafts or 'no model'}" + (f" ({', '.join(marks)})" if marks else "")
        )
    for rater in case.unsaved:
        print(f"unsaved work of {rater}")
    if case.note:
        print(f"note: {case.note}")
    return 0


def _declare_next(action: argparse.ArgumentParser) -> None:
    action.add_argument("--rater", required=True, help="who asks")
    action.add_argument("--by", choices=list(ORDERS), default="uncertainty", help="order (default: %(default)s)")
    action.add_argument("--state", action="append", choices=STATES, help="which cases wait (default: new, predicted)")
    action.add_argument("--seed", type=int, help="of the random order")


def _next(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    found = store.next(arguments.rater, arguments.by, arguments.state or ("new", "predicted"), arguments.seed)
    if found is None:
        return _tell(arguments, {"case": None}, "Nothing waits.")
    values = {"case": found.case.id, "reason": found.reason, "waiting": found.waiting, "skipped": list(found.skipped)}
    skipped = [f"skipped: {text}" for text in found.skipped]
    lines = [f"{found.case.id}: {found.reason}", f"{found.waiting} wait.", *skipped]
    return _tell(arguments, values, "\n".join(lines))


def _declare_submit(action: argparse.ArgumentParser) -> None:
    _declare_case(action)
    action.add_argument("mask", type=Path, metavar="MASK", nargs="?", help="on the CT's grid; none with --no-lesion")
    action.add_argument("--rater", required=True, help="who made it")
    action.add_argument("--label", type=as_label, help="which label is lesion, by value or name")
    action.add_argument("--seconds", type=float, default=0.0, help="time spent")
    action.add_argument("--no-lesion", action="store_true", help="the case has no lesion")
    action.add_argument("--blind", action="store_true", help="it was drawn without seeing any model's prediction")
    action.add_argument("--comment", default="", help="free text")


def _submit(arguments: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..imaging import LabelVolume, read_labels

    store = Store(arguments.store)
    if (arguments.mask is None) != arguments.no_lesion:
        raise InputError("Give a mask, or --no-lesion without one.")
    if arguments.mask is None:
        import numpy as np

        grid = store.case(arguments.case).ct.geometry
        mask = LabelVolume(np.zeros(grid.shape, np.uint8), grid)
    else:
        mask = read_labels(arguments.mask, arguments.label)
    with store.open(arguments.case, arguments.rater):
        revision = store.save_revision(
            arguments.case,
            mask,
            arguments.rater,
            seconds=arguments.seconds,
            no_lesion=arguments.no_lesion,
            comment=arguments.comment,
            blind=arguments.blind,
        )
    text = f"{arguments.case}: saved as revision {revision.number}, {revision.lesion_ml:.1f} mL{_overlap(revision)}."
    return _tell(arguments, asdict(revision), text)


def _declare_approve(action: argparse.ArgumentParser) -> None:
    _declare_case(action)
    action.add_argument("--by", required=True, help="who approves")
    action.add_argument("--revision", type=int, help="which (default: the last one)")


def _approve(arguments: argparse.Namespace) -> int:
    case = Store(arguments.store).approve(arguments.case, arguments.by, arguments.revision)
    return _tell(arguments, {"case": case.id, "approved": case.approved}, f"Approved revision {case.approved}.")


def _declare_exclude(action: argparse.ArgumentParser) -> None:
    _declare_case(action)
    action.add_argument("--reason", required=True, help="why")


def _exclude(arguments: argparse.Namespace) -> int:
    case = Store(arguments.store).exclude(arguments.case, arguments.reason)
    return _tell(arguments, {"case": case.id, "state": case.state}, f"{case.id} is excluded: {case.exclusion}.")


def _include(arguments: argparse.Namespace) -> int:
    case = Store(arguments.store).include(arguments.case)
    return _tell(arguments, {"case": case.id, "state": case.state}, f"{case.id} is {case.state} again.")


def _declare_note(action: argparse.ArgumentParser) -> None:
    _declare_case(action)
    action.add_argument("text", metavar="TEXT", help='free text; "" removes it')


def _note(arguments: argparse.Namespace) -> int:
    case = Store(arguments.store).set_note(arguments.case, arguments.text)
    return _tell(arguments, {"case": case.id, "note": case.note}, f"{case.id}: {case.note}")


def _declare_patient(action: argparse.ArgumentParser) -> None:
    _declare_case(action)
    action.add_argument("patient", metavar="PATIENT", help="what tells patients apart, or another case of the patient")
    action.add_argument("--by", required=True, help="who says so")


def _patient(arguments: argparse.Namespace) -> int:
    case = Store(arguments.store).split.set_patient(arguments.case, arguments.patient, arguments.by)
    return _tell(arguments, {"case": case.id, "patient": case.patient}, f"{case.id} is of the patient {case.patient}.")


def _declare_label(action: argparse.ArgumentParser) -> None:
    _declare_case(action)
    action.add_argument("label", metavar="LABEL", help="latest, consensus, or a revision's number")


def _label(arguments: argparse.Namespace) -> int:
    case = Store(arguments.store).set_label(arguments.case, arguments.label)
    return _tell(arguments, {"case": case.id, "label": case.label}, f"{case.id} trains with its label {case.label}.")


def _unlock(arguments: argparse.Namespace) -> int:
    text = Store(arguments.store).unlock(arguments.case)
    return _tell(arguments, {"case": arguments.case, "was": text}, text)


def _declare_check(action: argparse.ArgumentParser) -> None:
    action.add_argument("--no-repair", action="store_true", help="look only")
    action.add_argument("--find", type=Path, metavar="FOLDER", help="look here for CTs that are not where they were")


def _check(arguments: argparse.Namespace) -> int:
    with ProgressBar("check", arguments.quiet) as bar:
        report = Store(arguments.store).check(not arguments.no_repair, arguments.find, bar)
    if arguments.json:
        values = {**asdict(report), "is_sound": report.is_sound}
        print(json.dumps(values, indent=2))
    else:
        for finding in report.findings:
            print(f"{finding.kind}: {finding.where}: {finding.text}")
        size = report.bytes / 1e6
        print(f"{report.cases} cases, {report.files} files ({size:.0f} MB) verified in {report.seconds:.1f} s.")
        print("The store is sound." if report.is_sound else "Something is broken; see above.")
    return 0 if report.is_sound else EXIT_SOME_FAILED


# --- printing --------------------------------------------------------------------------------------------------------


def _tell(arguments: argparse.Namespace, values: Mapping[str, Any], text: str) -> int:
    print(json.dumps(values, indent=2) if arguments.json else text)
    return 0


def _tell_many(
    arguments: argparse.Namespace,
    done: Mapping[str, str],
    failed: Mapping[str, str],
    known: Mapping[str, str] | None = None,
) -> int:
    known = known or {}
    if arguments.json:
        print(json.dumps({"done": dict(done), "known": dict(known), "failed": dict(failed)}, indent=2))
    else:
        for name, case_id in done.items():
            print(f"{case_id}: {name}")
        for name, case_id in known.items():
            print(f"{case_id} was there already: {name}")
        for name, reason in failed.items():
            print(f"left out: {name}: {reason}")
    return EXIT_SOME_FAILED if failed else 0


def _overlap(revision: Revision) -> str:
    return "" if revision.dice_to_prediction is None else f", Dice {revision.dice_to_prediction:.3f} to the prediction"


def _described(case: Case, sides: Mapping[str, str]) -> dict[str, Any]:
    lock = None if case.lock is None else {**asdict(case.lock), "token": ""}
    side = sides.get(case.patient, "train") if sides else None
    return {**to_json(case), "state": case.state, "split": side, "lock": lock, "unsaved": list(case.unsaved)}


def _nothing(_: argparse.ArgumentParser) -> None:
    """An action that takes the store alone."""


Action = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
_ACTIONS: dict[str, Action] = {
    "create": ("make an empty store", _nothing, _create),
    "add": ("add CTs as new cases", _declare_add, _add),
    "import": (
        "take in a data set: pairs of CT and mask, a manifest, nnU-Net, MONAI Label",
        _declare_import,
        _import,
    ),
    "export": ("write the labeled cases in nnU-Net's format", _declare_export, _export),
    "list": ("show the cases", _declare_list, _list),
    "show": ("show a case with its predictions and revisions", _declare_case, _show),
    "next": ("say which case to work on next, and why", _declare_next, _next),
    "submit": ("save a mask as the next revision of a case", _declare_submit, _submit),
    "approve": ("approve a revision", _declare_approve, _approve),
    "exclude": ("leave a case out", _declare_exclude, _exclude),
    "include": ("re-include an excluded case", _declare_case, _include),
    "note": ("write the note of a case", _declare_note, _note),
    "patient": ("say whose a case is, e.g. a follow-up of another case's patient", _declare_patient, _patient),
    "label": ("choose which revision of a case trains", _declare_label, _label),
    "unlock": ("close a case that somebody left open", _declare_case, _unlock),
    "check": ("verify everything by hash and repair what can be repaired", _declare_check, _check),
}
