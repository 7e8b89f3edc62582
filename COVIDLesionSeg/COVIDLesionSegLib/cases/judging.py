"""Models judged on the frozen validation cases, by the predictor that users run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..documents import read_object
from ..errors import CancelledError, InputError, ReadError
from ..files import write_json
from ..resources import load_json
from .gate import CaseFigures, GateDecision, GateRule, decide
from .records import Case
from .split import usable

if TYPE_CHECKING:
    from ..models import LoadedModel, ModelCard
    from .store import Store

_log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class Comparison:
    """Several models on the same frozen cases.

    Attributes:
        models: ids, in the order asked for.
        cases: case id -> model id -> figures.
        mean_dice: model id -> mean over the cases with lesion; NaN where there is none.
        split: what the cases are, see ``StoreSplit.statement``.
    """

    models: tuple[str, ...]
    cases: Mapping[str, Mapping[str, CaseFigures]]
    mean_dice: Mapping[str, float]
    split: Mapping[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """One row a case and model, for tables: case, model, dice, relative_volume_error, hausdorff_distance_95, ..."""
        return [
            {"case": case, "model": model, **figures.to_json(), "lesion_free": figures.lesion_free}
            for case, found in self.cases.items()
            for model, figures in found.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        means = {model: value if math.isfinite(value) else None for model, value in self.mean_dice.items()}
        return {"models": list(self.models), "mean_dice": means, "cases": self.rows(), "split": dict(self.split)}


def validation_cases(store: Store) -> list[Case]:
    """The frozen validation cases that have a label.

    Raises:
        InputError: the split is not frozen, or no validation case has a label any more.
    """
    sides = store.split.sides()
    if not store.split.is_frozen:
        raise InputError("No model can be judged before the split is frozen; the first fine-tuning does it.")
    cases = [case for case in usable(store.cases()) if sides.get(case.patient) == "validation"]
    if not cases:
        raise InputError("No validation case of the store has a label that counts; approve or include one.")
    return cases


def judge_model(
    store: Store,
    model: str | Path,
    device: str = "auto",
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
    cases: Sequence[Case] | None = None,
) -> dict[str, CaseFigures]:
    """Figures of a model on every frozen validation case.

    What was judged before, with the same weights, settings of the card, CT, lungs and label, is not judged again.

    Args:
        store: the store.
        model: id in the store or of the installation's registry, or a file.
        device: see ``inference.Predictor``.
        progress: called as progress("judging MODEL", done, total).
        cancelled: asked between cases and within them.
        cases: what :func:`validation_cases` gave, so that several models are judged on the same labels; None asks it.

    Raises:
        InputError, ModelError, ReadError, CancelledError: no split, no model, a CT that changed, asked to stop.
    """
    from ..inference import Predictor
    from ..measurement import evaluate
    from ..models import load_checkpoint

    cases = validation_cases(store) if cases is None else cases
    loaded: LoadedModel = load_checkpoint(store.models.path(model))
    file = store.layout.judgments / f"{loaded.card.weights_sha256[:16]}.json"
    known = _known(file)
    predictor: Predictor | None = None
    figures: dict[str, CaseFigures] = {}
    phase = f"judging {loaded.card.id}"
    for number, case in enumerate(cases):
        if cancelled is not None and cancelled():
            raise CancelledError("Stopped while judging.")
        if progress is not None:
            progress(phase, number, len(cases))
        basis = _basis(case, loaded.card)
        entry = known.get(case.id)
        if entry is not None and entry["basis"] == basis:
            figures[case.id] = CaseFigures.from_json(entry["figures"])
            continue
        predictor = predictor or Predictor(loaded, device)
        volume = store.read_ct(case.id)
        lungs = None if case.lungs is None else store.read_lungs(case.id)
        result = predictor.segment(volume, lungs, cancelled=cancelled)
        label = case.label_revision
        assert label is not None  # noqa: S101  # usable cases have one
        reference = store.read_revision(case.id, label.number).mask()
        values = evaluate(result.mask, reference, volume.geometry.spacing_zyx)
        figures[case.id] = CaseFigures(
            values["dice"]["value"],
            values["relative_volume_error"]["value"],
            values["hausdorff_distance_95"]["value"],
            values["prediction_volume"]["value"],
            values["reference_volume"]["value"],
        )
        known[case.id] = {"basis": basis, "figures": figures[case.id].to_json()}
        write_json(file, {"model": loaded.card.id, "weights_sha256": loaded.card.weights_sha256, "cases": known})
    if progress is not None:
        progress(phase, len(cases), len(cases))
    return figures


def compare(
    store: Store,
    models: Sequence[str],
    device: str = "auto",
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Comparison:
    """Judge models on the frozen validation cases and put the figures side by side.

    Raises:
        InputError: no model, or what :func:`judge_model` refuses.
    """
    if not models:
        raise InputError("Name the models to compare, e.g. the default and the one before it.")
    # somebody may correct a case or move a patient meanwhile: all models answer what one look at the store found
    judges = validation_cases(store)
    found = {model: judge_model(store, model, device, progress, cancelled, judges) for model in models}
    cases = {case: {model: figures[case] for model, figures in found.items()} for case in next(iter(found.values()))}
    means = {}
    for model, figures in found.items():
        dices = [value.dice for value in figures.values() if not value.lesion_free]
        means[model] = math.fsum(dices) / len(dices) if dices else math.nan
    return Comparison(tuple(models), cases, means, store.split.statement(judges))


def pass_gate(
    store: Store,
    model: str,
    against: str | None = None,
    device: str = "auto",
    rule: GateRule | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> GateDecision:
    """Judge a model against the default one, write the decision on its card, and make it the default if it passed.

    A person's earlier override of the gate stays and counts. Where the default changed while the model was judged, it
    is judged against the new one, too.

    Args:
        store: the store.
        model: id of a model of the store.
        against: id of the model to compare with; None takes the present default. Against any other one a model is
            judged, but does not become the default.
        device: see ``inference.Predictor``.
        rule: the limits; None takes ``Resources/Gate.json``.
        progress: called as progress(phase, done, total).
        cancelled: asked between cases.
    """
    while True:
        stored = store.models.get(model)
        default = store.models.default()
        old = against or default
        if old == model and stored.gate is not None:
            # judged anew while it is the default: by the model that it replaced
            old = stored.gate.old
        both = compare(store, [old, model] if old != model else [model], device, progress, cancelled)
        figures = {name: {case: found[name] for case, found in both.cases.items()} for name in both.models}
        decision = decide(old, model, figures[old], figures[model], both.split, rule)
        gate = store.models.record_gate(model, decision).gate
        assert gate is not None  # noqa: S101  # it was recorded this moment
        if not gate.accepted or old != default:
            return gate
        if default == model or store.models.set_default(model, "gate", gate.text, default) or against is not None:
            return gate


def _basis(case: Case, card: ModelCard) -> dict[str, str]:
    label = case.label_revision
    settings = {
        "threshold": card.threshold,
        "keep_inside_lungs_mm": card.keep_inside_lungs_mm,
        "smooth_across_slices_mm": card.smooth_across_slices_mm,
        "preprocessing": asdict(card.preprocessing),
        # where the lungs are doubtful, crop and limit are others
        "lung_checks": load_json("LungQuality.json"),
    }
    return {
        "ct": case.ct.sha256,
        "label": "" if label is None else label.sha256,
        "lungs": "" if case.lungs is None else case.lungs.sha256,
        # as text, which is the same after JSON has made lists of tuples
        "settings": json.dumps(settings, sort_keys=True),
    }


def _known(file: Path) -> dict[str, Any]:
    try:
        cases: dict[str, Any] = read_object(file)["cases"]
    except FileNotFoundError:
        return {}
    except (ReadError, KeyError) as error:
        _log.warning("Earlier judgments in %s can't be read (%s); the cases are judged again.", file.name, error)
        return {}
    return cases
