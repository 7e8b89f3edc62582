"""Models answer the cases that wait, with the uncertainty that the queue sorts by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CancelledError, COVIDLesionSegError
from .records import Prediction, State

if TYPE_CHECKING:
    from .store import Store

# bits; below it a voxel far from any lesion says nothing about the answer
_UNCERTAIN = 0.1


@dataclass(frozen=True)
class PredictionReport:
    """What came of a run over many cases.

    Attributes:
        done: case id -> the stored answer.
        failed: case id -> why there is none, as a sentence.
        skipped: cases that this model has answered already.
    """

    done: Mapping[str, Prediction]
    failed: Mapping[str, str]
    skipped: tuple[str, ...]


def predict_cases(
    store: Store,
    model: str | None = None,
    cases: Sequence[str] = (),
    states: Sequence[State] = ("new", "predicted"),
    device: str = "auto",
    uncertainty: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> PredictionReport:
    """Let a model answer cases and store answers, run records and uncertainty.

    The uncertainty is the entropy under test-time augmentation, see :func:`mean_entropy`, and, where the store has
    student and teacher of the model, 1 - Dice of their answers.

    Args:
        store: the store.
        model: id; None takes the store's default.
        cases: ids; empty takes all cases in ``states`` that this model has not answered yet.
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

    model = model or store.models.default()
    predictor = Predictor(store.models.path(model), device)
    partner_file = store.models.partner(model) if uncertainty else None
    partner = Predictor(partner_file, device) if partner_file is not None else None
    chosen = [store.case(name) for name in cases] if cases else store.cases(*states)
    weights = predictor.model.card.weights_sha256
    answered = {c.id for c in chosen if c.prediction and c.prediction.model.get("weights_sha256") == weights}
    waiting = [case for case in chosen if case.id not in answered or cases]
    done: dict[str, Prediction] = {}
    failed: dict[str, str] = {}
    for number, case in enumerate(waiting):
        if progress is not None:
            progress("predicting", number, len(waiting))
        try:
            volume = store.read_ct(case.id)
            lungs = store.read_lungs(case.id)
            result = predictor.segment(volume, lungs, cancelled=cancelled, uncertainty=uncertainty)
            values = {}
            if result.uncertainty is not None:
                values["tta_entropy"] = mean_entropy(result.uncertainty, result.mask)
            if partner is not None:
                other = partner.segment(volume, result.located_lungs, cancelled=cancelled)
                values["disagreement"] = 1.0 - dice(result.mask, other.mask)
            record: dict[str, Any] = result.record.to_json()
            done[case.id] = store.set_prediction(
                case.id, result.mask, record["model"], uncertainty=values, record=record, lungs=result.lungs
            )
        except CancelledError:
            raise
        except COVIDLesionSegError as error:
            failed[case.id] = str(error)
    if progress is not None:
        progress("predicting", len(waiting), len(waiting))
    skipped = tuple(sorted(answered)) if not cases else ()
    return PredictionReport(done, failed, skipped)


def mean_entropy(entropy: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """How uncertain an answer is, in bits, 0 ... 1.

    The mean of the voxels' entropy over all that the model marked or was unsure of (more than 0.1 bit), so that neither
    the size of the lungs nor that of the lesion decides; 0 where there is no such voxel.

    Args:
        entropy: (z, y, x), bits, of the mean over the copies of test-time augmentation.
        mask: bool (z, y, x), the answer.
    """
    region = mask | (entropy > _UNCERTAIN)
    return float(entropy[region].mean(dtype=np.float64)) if region.any() else 0.0
