"""Models run on the cases of a store: predictions for those that wait, figures on the validation cases, the gate."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..codec import from_json, to_json
from ..documents import read_object
from ..errors import CancelledError, COVIDLesionSegError, InputError, ReadError
from ..files import write_json
from ..resources import load_json
from .case_files import CaseFiles
from .gate import CaseFigures, GateDecision, GateRule, decide
from .records import Case, Prediction, State
from .split import StoreSplit, usable
from .store_models import StoreModels

if TYPE_CHECKING:
    from ..models import LoadedModel, ModelCard

_log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
Cancelled = Callable[[], bool]

# bits; below it a voxel far from any lesion says nothing about the prediction
_UNCERTAIN = 0.1


@dataclass(frozen=True)
class PredictionReport:
    """What came of a run over many cases.

    Attributes:
        done: case id -> the stored prediction.
        failed: case id -> why there is none, as a sentence.
        skipped: cases that this model has run on already.
    """

    done: Mapping[str, Prediction]
    failed: Mapping[str, str]
    skipped: tuple[str, ...]


def predict_cases(
    files: CaseFiles,
    split: StoreSplit,
    models: StoreModels,
    model: str | None = None,
    cases: Sequence[str] = (),
    states: Sequence[State] = ("new", "predicted"),
    device: str = "auto",
    uncertainty: bool = True,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> PredictionReport:
    """Run a model on cases and store its predictions, run records and uncertainty.

    The uncertainty is the entropy under test-time augmentation, see :func:`mean_entropy`, and, where the store has
    student and teacher of the model, 1 - Dice of their predictions.

    Args:
        files: the store's cases.
        split: its split; cases that are read blind get no prediction.
        models: its models.
        model: id; None takes the active one.
        cases: ids; empty takes all cases in ``states`` that this model has not run on yet.
        states: see there.
        device: see ``inference.Predictor``.
        uncertainty: also compute it; four to five times the work.
        progress: called as progress("predicting", done, total).
        cancelled: asked between cases and within them; what is done by then is stored.

    Raises:
        ModelError, DeviceError: a model or device that can't be used.
        CancelledError: asked to stop.
    """
    from ..inference import Predictor
    from ..measurement import dice

    model = model or models.default()
    predictor = Predictor(models.path(model), device)
    partner_file = models.partner(model) if uncertainty else None
    partner = Predictor(partner_file, device) if partner_file is not None else None
    chosen = [files.case(name) for name in cases] if cases else files.cases(*states)
    weights = predictor.model.card.weights_sha256
    done_before = {c.id for c in chosen if c.prediction and c.prediction.model.get("weights_sha256") == weights}
    blind = {case.id for case in chosen if split.reads_blind(case)}
    waiting = [case for case in chosen if case.id not in blind and (case.id not in done_before or cases)]
    done: dict[str, Prediction] = {}
    failed = {name: "It is a validation case that is read without a prediction." for name in cases if name in blind}
    for number, case in enumerate(waiting):
        if progress is not None:
            progress("predicting", number, len(waiting))
        try:
            volume = files.read_ct(case.id)
            lungs = files.read_lungs(case.id)
            result = predictor.segment(volume, lungs, cancelled=cancelled, uncertainty=uncertainty, levels=True)
            values = {}
            if result.uncertainty is not None:
                values["tta_entropy"] = mean_entropy(result.uncertainty, result.mask)
            if partner is not None:
                other = partner.segment(volume, result.located_lungs, cancelled=cancelled)
                values["disagreement"] = 1.0 - dice(result.mask, other.mask)
            record: dict[str, Any] = result.record.to_json()
            done[case.id] = files.set_prediction(
                case.id,
                result.mask,
                record["model"],
                uncertainty=values,
                record=record,
                lungs=result.lungs,
                levels=result.levels,
            )
        except CancelledError:
            raise
        except COVIDLesionSegError as error:
            failed[case.id] = str(error)
    if progress is not None:
        progress("predicting", len(waiting), len(waiting))
    skipped = tuple(sorted(done_before)) if not cases else ()
    return PredictionReport(done, failed, skipped)


def mean_entropy(entropy: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """How uncertain a prediction is, in bits, 0 ... 1.

    The mean of the voxels' entropy over all that the model marked or was unsure of (more than 0.1 bit), so that neither
    the size of the lungs nor that of the lesion decides; 0 where there is no such voxel.

    Args:
        entropy: (z, y, x), bits, of the mean over the copies of test-time augmentation.
        mask: bool (z, y, x), the prediction.
    """
    region = mask | (entropy > _UNCERTAIN)
    return float(entropy[region].mean(dtype=np.float64)) if region.any() else 0.0


@dataclass(frozen=True)
class Comparison:
    """Several models on the same frozen cases.

    Attributes:
        models: ids, in the order asked for.
        cases: case id -> model id -> figures.
        mean_dice: model id -> mean over the cases with lesion; NaN where there is none.
        left_out: case id -> why its label can't compare these models; it is in no mean.
        split: what the cases are, see ``StoreSplit.statement``.
    """

    models: tuple[str, ...]
    cases: Mapping[str, Mapping[str, CaseFigures]]
    mean_dice: Mapping[str, float]
    left_out: Mapping[str, str]
    split: Mapping[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """One row a case and model, for tables: case, model, dice, relative_volume_error, hausdorff_distance_95, ..."""
        return [
            {"case": case, "model": model, **to_json(figures), "lesion_free": figures.lesion_free}
            for case, found in self.cases.items()
            for model, figures in found.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return {**to_json(self), "cases": self.rows()}


class Validation:
    """Models on the validation cases of a store, run by the predictor that users run, and the gate.

    Args:
        files: the store's cases.
        split: which patients train and which validate.
        models: the store's models.
    """

    def __init__(self, files: CaseFiles, split: StoreSplit, models: StoreModels) -> None:
        self._files, self._split, self._models = files, split, models

    def cases(self) -> list[Case]:
        """The frozen validation cases that have a label.

        Raises:
            InputError: the split is not frozen, or no validation case has a label any more.
        """
        sides = self._split.sides()
        if not self._split.is_frozen:
            raise InputError("No model can be validated before the split is frozen; the first fine-tuning does it.")
        cases = [case for case in usable(self._files.cases()) if sides.get(case.patient) == "validation"]
        if not cases:
            raise InputError("No validation case of the store has a label that counts; approve or include one.")
        return cases

    def figures(
        self,
        model: str | Path,
        device: str = "auto",
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
        cases: Sequence[Case] | None = None,
    ) -> dict[str, CaseFigures]:
        """Figures of a model on every frozen validation case.

        What was measured before, with the same weights, settings of the card, CT, lungs and label, is not run again.

        Args:
            model: id in the store or of the installation's registry, or a file.
            device: see ``inference.Predictor``.
            progress: called as progress("validating MODEL", done, total).
            cancelled: asked between cases and within them.
            cases: what :meth:`cases` gave, so that several models are validated on the same labels; None asks it.

        Raises:
            InputError, ModelError, ReadError, CancelledError: no split, no model, a CT that changed, asked to stop.
        """
        from ..inference import Predictor
        from ..measurement import evaluate
        from ..models import load_checkpoint

        cases = self.cases() if cases is None else cases
        loaded: LoadedModel = load_checkpoint(self._models.path(model))
        file = self._files.layout.figures / f"{loaded.card.weights_sha256[:16]}.json"
        known = _known(file)
        predictor: Predictor | None = None
        figures: dict[str, CaseFigures] = {}
        phase = f"validating {loaded.card.id}"
        for number, case in enumerate(cases):
            if cancelled is not None and cancelled():
                raise CancelledError("Stopped while validating.")
            if progress is not None:
                progress(phase, number, len(cases))
            basis = _basis(case, loaded.card)
            entry = known.get(case.id)
            if entry is not None and entry["basis"] == basis:
                figures[case.id] = from_json(CaseFigures, entry["figures"])
                continue
            predictor = predictor or Predictor(loaded, device)
            volume = self._files.read_ct(case.id)
            lungs = None if case.lungs is None else self._files.read_lungs(case.id)
            result = predictor.segment(volume, lungs, cancelled=cancelled)
            label = case.label_revision
            assert label is not None  # noqa: S101  # usable cases have one
            reference = self._files.read_revision(case.id, label.number).mask()
            values = evaluate(result.mask, reference, volume.geometry.spacing_zyx)
            figures[case.id] = CaseFigures(
                values["dice"]["value"],
                values["relative_volume_error"]["value"],
                values["hausdorff_distance_95"]["value"],
                values["prediction_volume"]["value"],
                values["reference_volume"]["value"],
            )
            known[case.id] = {"basis": basis, "figures": to_json(figures[case.id])}
            write_json(file, {"model": loaded.card.id, "weights_sha256": loaded.card.weights_sha256, "cases": known})
        if progress is not None:
            progress(phase, len(cases), len(cases))
        return figures

    def compare(
        self,
        models: Sequence[str],
        device: str = "auto",
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> Comparison:
        """Validate models on the frozen validation cases and put the figures side by side.

        Raises:
            InputError: no model, or what :meth:`figures` refuses.
        """
        if not models:
            raise InputError("Name the models to compare, e.g. the active one and the one before it.")
        # somebody may correct a case or move a patient meanwhile: all models run on what one look at the store found
        validating = self.cases()
        found = {model: self.figures(model, device, progress, cancelled, validating) for model in models}
        cases = {case.id: {model: figures[case.id] for model, figures in found.items()} for case in validating}
        left_out = self.left_out(validating, models)
        means = {}
        for model, figures in found.items():
            counting = [f.dice for case, f in figures.items() if not f.lesion_free and case not in left_out]
            means[model] = math.fsum(counting) / len(counting) if counting else math.nan
        return Comparison(tuple(models), cases, means, left_out, self._split.statement(validating))

    def left_out(self, cases: Sequence[Case], models: Sequence[str]) -> dict[str, str]:
        """Those cases whose label can't compare models, with the reason: one of the models has drafted it.

        A mask that was saved as a model left it gives that model a Dice of 1, and a corrected one stays near it.

        Args:
            cases: with labels.
            models: ids or files.
        """
        weights = {self._models.card(model).weights_sha256: model for model in models}
        found = {}
        for case in cases:
            label = case.label_revision
            for prediction in () if label is None else case.drafted_by(label):
                same = prediction.model_id if prediction.model_id in models else None
                name = same or weights.get(prediction.model.get("weights_sha256", ""))
                if name is None and prediction.model_id != "unknown":
                    continue
                free = [revision.number for revision in case.revisions if not revision.drafts]
                way = f"choose revision {free[-1]}, drawn without a model" if free else "let it be read blind"
                found[case.id] = f"its label was drafted by {name or 'a model that is not known'}; {way}."
        return found

    def decide(
        self,
        model: str,
        against: str | None = None,
        device: str = "auto",
        rule: GateRule | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> GateDecision:
        """Validate a model against the active one and the best so far; make it the active one if it passes.

        The decision is written on the model's card. A person's earlier override stays and counts. Where the active
        model changed meanwhile, the model is validated against the new one, too.

        Args:
            model: id of a model of the store.
            against: id of the model to compare with; None takes the active one. Against any other one a model is
                validated, but does not become the active one.
            device: see ``inference.Predictor``.
            rule: of the gate; None takes ``Resources/Gate.json``.
            progress: called as progress(phase, done, total).
            cancelled: asked between cases.
        """
        while True:
            stored = self._models.get(model)
            active = self._models.default()
            old = against or active
            if old == model and stored.gate is not None:
                # validated anew while it is active: against the model that it replaced
                old = stored.gate.old
            best = self._models.best()
            if against is not None or not self._models.is_here(best):
                best = old
            wanted = list(dict.fromkeys([old, best, model]))
            both = self.compare(wanted, device, progress, cancelled)
            figures = {name: {case: found[name] for case, found in both.cases.items()} for name in both.models}
            patients = {case.id: case.patient for case in self._files.cases()}
            decision = decide(model, old, best, figures, patients, both.left_out, both.split, rule)
            gate = self._models.record_gate(model, decision).gate
            assert gate is not None  # noqa: S101  # it was recorded this moment
            if not gate.accepted or old != active:
                return gate
            if active == model or self._models.set_default(model, "gate", gate.text, active) or against is not None:
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
        _log.warning("Earlier figures in %s can't be read (%s); the cases are run again.", file.name, error)
        return {}
    return cases
