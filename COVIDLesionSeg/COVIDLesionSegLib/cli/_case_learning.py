"""The actions of ``covid-lesion-seg cases`` about learning: predictions, split, review, raters, models."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..cases.agreement import agreement_table, make_consensus, summary
from ..cases.store import Store
from ..errors import InputError
from . import EXIT_SOME_FAILED
from ._progress import ProgressBar


def _declare_predict(action: argparse.ArgumentParser) -> None:
    action.add_argument("case", nargs="*", metavar="CASE", help="ids (default: all that wait for this model)")
    action.add_argument("--model", help="id (default: the store's default model)")
    action.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    action.add_argument("--fast", action="store_true", help="without uncertainty: a quarter of the work or less")


def _predict(arguments: argparse.Namespace) -> int:
    with ProgressBar("predict", arguments.quiet) as bar:
        report = Store(arguments.store).predict(
            arguments.model,
            arguments.case,
            device=arguments.device,
            uncertainty=not arguments.fast,
            progress=bar,
        )
    if arguments.json:
        done = {name: asdict(prediction) for name, prediction in report.done.items()}
        print(json.dumps({"done": done, "failed": dict(report.failed), "skipped": report.skipped}, indent=2))
    else:
        for name, prediction in report.done.items():
            doubt = "".join(f", {what} {value:.3f}" for what, value in prediction.uncertainty.items())
            print(f"{name}: {prediction.lesion_ml:.1f} mL{doubt}")
        for name, reason in report.failed.items():
            print(f"{name}: failed: {reason}")
        print(f"{len(report.done)} answered, {len(report.skipped)} had been, {len(report.failed)} failed.")
    return EXIT_SOME_FAILED if report.failed else 0


def _declare_split(action: argparse.ArgumentParser) -> None:
    action.add_argument("--freeze", action="store_true", help="freeze now instead of at the first fine-tuning")
    action.add_argument(
        "--validation", nargs="+", default=[], metavar="PATIENT", help="validation patients: keys or case ids"
    )
    action.add_argument(
        "--share", type=float, default=0.2, help="fraction of patients that are drawn (default: %(default)s)"
    )
    action.add_argument("--move", nargs=2, metavar=("PATIENT", "SIDE"), help="move a patient to train or validation")
    action.add_argument(
        "--choose",
        nargs="*",
        metavar="PATIENT",
        help="training patients by whom the step is chosen, and who train nothing; none: each training draws them",
    )
    action.add_argument("--by", default="", help="who moves or chooses")
    action.add_argument("--reason", default="", help="why")


def _split(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    if arguments.freeze:
        store.split.freeze(arguments.validation, arguments.share, by=arguments.by or "command")
    if arguments.move:
        patient, side = arguments.move
        store.split.move(patient, side, arguments.by, arguments.reason)
    if arguments.choose is not None:
        store.split.choose_by(arguments.choose, arguments.by, arguments.reason)
    cases: dict[str, list[str]] = {}
    blind = set()
    for case in store.cases():
        cases.setdefault(case.patient, []).append(case.id)
        if store.split.reads_blind(case):
            blind.add(case.patient)
    if arguments.json:
        values = {"frozen": store.split.is_frozen, "patients": store.split.sides(), "history": store.split.history()}
        values |= {"blind": sorted(blind), "choose": sorted(store.split.choosers())}
        print(json.dumps(values, indent=2))
        return 0
    if not store.split.is_frozen:
        print("The split is not frozen yet; the first fine-tuning does it.")
        return 0
    for patient, side in sorted(store.split.sides().items(), key=lambda item: (item[1], item[0])):
        mark = " (read blind)" if patient in blind else " (chooses)" if patient in store.split.choosers() else ""
        print(f"{side:<11} {patient}  {' '.join(cases.get(patient, []))}{mark}")
    for act in store.split.history():
        facts = ", ".join(
            f"{name} {value}" for name, value in act.items() if name not in ("act", "when") and value != ""
        )
        print(f"{act['when']} {act['act']}: {facts}")
    return 0


def _declare_review(action: argparse.ArgumentParser) -> None:
    action.add_argument("--all", action="store_true", help="also what was decided")
    action.add_argument(
        "--decide", nargs=3, metavar=("CASE", "SLICE", "DECISION"), help='"right": the label is right; "fix": fix it'
    )
    action.add_argument("--by", default="", help="who decides")
    action.add_argument("--comment", default="", help="free text")


def _review(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    if arguments.decide:
        case_id, index, decision = arguments.decide
        if not index.isdecimal():
            raise InputError(f"The slice is {index!r}; it must be a whole number.")
        item = store.review.decide(case_id, int(index), decision, arguments.by, arguments.comment)
        print(json.dumps(asdict(item), indent=2) if arguments.json else f"{case_id} slice {index}: {decision}.")
        return 0
    items = store.review.items(None if arguments.all else False)
    if arguments.json:
        print(json.dumps([asdict(item) for item in items], indent=2))
        return 0
    for item in items:
        decided = f" [{item.decision}, {item.by}]" if item.decision else ""
        print(f"{item.case} slice {item.slice}: {item.score:.2f}, {item.reason}{decided}")
    print(f"{len(items)} on the list.")
    return 0


def _declare_agreement(action: argparse.ArgumentParser) -> None:
    action.add_argument("case", nargs="*", metavar="CASE", help="ids (default: all cases with two or more raters)")
    action.add_argument("--consensus", action="store_true", help="make the STAPLE consensus and let it train")


def _agreement(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    if arguments.consensus:
        if not arguments.case:
            raise InputError("Name the cases whose consensus is to become the label.")
        for name in arguments.case:
            make_consensus(store, name)
    rows = agreement_table(store, arguments.case)
    if arguments.json:
        plain = [{k: _finite(v) for k, v in asdict(row).items()} for row in rows]
        print(json.dumps({"pairs": plain, "summary": summary(rows)}, indent=2))
        return 0
    for row in rows:
        print(f"{row.case} {row.first} - {row.second}: Dice {row.dice:.3f}, HD95 {row.hausdorff_distance_95:.1f} mm")
    for pair, found in summary(rows).items():
        print(f"{pair}: mean Dice {found['mean_dice']:.3f} over {found['cases']}")
    if not rows:
        print("No case was saved by two raters yet.")
    return 0


def _declare_models(action: argparse.ArgumentParser) -> None:
    action.add_argument("--default", metavar="ID", help="make this one the active model; go back to an earlier one")
    action.add_argument("--validate", metavar="ID", help="validate a model against the active one")
    action.add_argument(
        "--override", nargs=2, metavar=("ID", "DECISION"), help="accept a model despite failed validation, or reject it"
    )
    action.add_argument("--by", default="", help="who")
    action.add_argument("--reason", default="", help="why")
    action.add_argument("--device", default="auto", help="to validate on (default: %(default)s)")


def _models(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store)
    if arguments.validate:
        with ProgressBar("validate", arguments.quiet) as bar:
            store.validation.decide(arguments.validate, device=arguments.device, progress=bar)
    if arguments.override:
        model, decision = arguments.override
        if decision not in ("accept", "reject"):
            raise InputError(f"The decision {decision!r} is unknown; use accept or reject.")
        store.models.override(model, decision == "accept", arguments.by, arguments.reason)
    if arguments.default:
        store.models.set_default(arguments.default, arguments.by, arguments.reason or "chosen")
    default = store.models.default()
    if arguments.json:
        models = [
            {**asdict(m), "gate": m.gate.told() if m.gate else None, "is_default": m.id == default}
            for m in store.models.list()
        ]
        print(json.dumps({"default": default, "models": models, "history": store.models.history()}, indent=2))
        return 0
    print(f"active: {default}")
    for model in store.models.list():
        print(f"{model.id}: {model.name}, from {model.base}. {model.gate.text if model.gate else 'Not validated yet.'}")
    for act in store.models.history():
        print(f"{act['when']} active {act['model']}" + (f" by {act['by']}: {act['why']}" if act["by"] else ""))
    return 0


def _declare_compare(action: argparse.ArgumentParser) -> None:
    action.add_argument("model", nargs="+", metavar="MODEL", help="ids or files")
    action.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")


def _compare(arguments: argparse.Namespace) -> int:
    with ProgressBar("compare", arguments.quiet) as bar:
        found = Store(arguments.store).validation.compare(arguments.model, arguments.device, bar)
    if arguments.json:
        print(json.dumps(found.to_json(), indent=2))
        return 0
    for case, by_model in found.cases.items():
        for model, f in by_model.items():
            figures = (
                f"{f.prediction_ml:.1f} mL of false lesion"
                if f.lesion_free
                else f"Dice {f.dice:.3f}, RVE {f.relative_volume_error:.2f}, HD95 {f.hausdorff_distance_95:.1f} mm"
            )
            print(f"{case} {model}: {figures}")
    for model, mean in found.mean_dice.items():
        print(f"{model}: mean Dice {mean:.3f}")
    for case, why in found.left_out.items():
        print(f"{case} is in no mean: {why}")
    print(found.split["text"])
    return 0


def _nothing(_: argparse.ArgumentParser) -> None:
    """An action that takes the store alone."""


def _rounds(arguments: argparse.Namespace) -> int:
    found = Store(arguments.store).training.rounds()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for record in found:
        plan = record["plan"]
        print(
            f"round {record['number']}: {record['status']}, from {record['base']}, {len(plan['fresh'])} fresh and "
            f"{len(plan['replayed'])} replayed cases" + (f", {record['model']}" if "model" in record else "")
        )
    if not found:
        print("Nothing was trained here yet.")
    return 0


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


Action = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
LEARNING: dict[str, Action] = {
    "predict": ("run a model on waiting cases", _declare_predict, _predict),
    "split": ("show, freeze or change which patients train and which validate", _declare_split, _split),
    "review": ("show labels that look doubtful, or decide about one", _declare_review, _review),
    "agreement": ("compare the raters of cases; make a consensus", _declare_agreement, _agreement),
    "models": ("show the store's models; choose the active one; decide despite validation", _declare_models, _models),
    "compare": ("validate models on the frozen validation cases", _declare_compare, _compare),
    "rounds": ("show what was trained", _nothing, _rounds),
}
