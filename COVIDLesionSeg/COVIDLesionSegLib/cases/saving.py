"""Answers of models and masks of people, saved as numbered folders that nothing replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.volume import LabelVolume
from .layout import CONSENSUS, check_rater, now
from .masks import as_labels, lesion_ml
from .records import Case, Prediction, Revision

if TYPE_CHECKING:
    from .store import Store

Mask = LabelVolume | NDArray[Any]


def set_prediction(
    store: Store,
    case_id: str,
    mask: Mask,
    model: str | Mapping[str, str],
    *,
    uncertainty: Mapping[str, float] | None = None,
    record: Mapping[str, Any] | None = None,
    lungs: Mask | None = None,
) -> Prediction:
    """Store a model's answer; earlier answers stay.

    Args:
        store: the store.
        case_id: which case.
        mask: (z, y, x) on the grid of the CT.
        model: its id, or what a run record says of it (id, name, weights_sha256, ...).
        uncertainty: "tta_entropy" (bits) and "disagreement" (0 ... 1), as far as they are known.
        record: the run record as JSON values, kept beside the mask.
        lungs: lung mask that the run used or found; kept where the case has none.

    Raises:
        InputError, GridMismatchError: a mask that does not fit the CT.
        OutputError: the store can't be written to, or the disk is full.
    """
    from .adding import write_lungs

    case = store.case(case_id)
    labels = as_labels(mask, case, "model's answer")
    facts = {"id": model} if isinstance(model, str) else {k: str(v) for k, v in model.items() if v is not None}
    values = {name: float(value) for name, value in (uncertainty or {}).items()}
    if any(not np.isfinite(value) for value in values.values()):
        raise InputError(f"The uncertainty of {case_id} is not finite; leave it out.")
    draft = Prediction(0, facts, lesion_ml(labels), values, saved=now())
    with store.locks.changing(case_id):
        prediction = store.files.write_numbered(
            store.layout.predictions(case_id),
            labels,
            lambda number: replace(draft, number=number, file=f"{case_id}_p{number:03d}.seg.nrrd"),
            {} if record is None else {"record": dict(record)},
        )
        found = None
        if lungs is not None and case.lungs is None:
            found = write_lungs(lungs, case.ct.geometry, store.layout.case(case_id), "found")
        with store.files.changed(case_id) as now_known:
            now_known["predictions"].append(asdict(prediction))
            if found is not None:
                now_known["lungs"] = asdict(found)
    return prediction


def save_revision(
    store: Store,
    case_id: str,
    mask: Mask,
    rater: str,
    *,
    seconds: float = 0.0,
    no_lesion: bool = False,
    comment: str = "",
    answer: NDArray[np.bool_] | None = None,
    is_import: bool = False,
) -> Revision:
    """Save a mask as the next revision of a case.

    Args:
        store: the store.
        case_id: which case.
        mask: (z, y, x) on the grid of the CT; every label of it is lesion.
        rater: who made it.
        seconds: time spent.
        no_lesion: says that the case has no lesion; needed for an empty mask, since a forgotten mask is empty, too.
        comment: free text.
        answer: the model's last answer as a mask, where the caller has it at hand; else it is read.
        is_import: the mask was made elsewhere.

    Returns:
        The revision, with its number and its Dice to the model's answer.

    Raises:
        InputError, GridMismatchError: a mask that does not fit the CT, or is empty without ``no_lesion``.
        OutputError: the store can't be written to, or the disk is full; nothing half-written stays.
    """
    case = store.case(case_id)
    rater = check_rater(rater)
    labels = as_labels(mask, case, "mask")
    volume = lesion_ml(labels)
    if volume == 0 and not no_lesion:
        raise InputError(f"The mask of {case_id} is empty; save it as 'no lesion' if the case has none.")
    if volume > 0 and no_lesion:
        raise InputError(
            f"{case_id} is to be saved as 'no lesion', but its mask holds {volume:.3g} mL; empty the mask first."
        )
    draft = Revision(
        0,
        rater,
        volume,
        no_lesion,
        round(max(0.0, float(seconds)), 1),
        comment=comment,
        kind="import" if is_import else "correction",
        saved=now(),
    )
    return _save(store, case, labels, draft, answer)


def save_consensus(store: Store, case_id: str, mask: Mask, sources: Sequence[Revision], method: str) -> Revision:
    """Save the consensus of several raters' revisions.

    Args:
        store: the store.
        case_id: which case.
        mask: bool (z, y, x).
        sources: the revisions that it was made of.
        method: how, for the comment.
    """
    case = store.case(case_id)
    labels = as_labels(mask, case, "consensus")
    volume = lesion_ml(labels)
    numbers = tuple(revision.number for revision in sources)
    draft = Revision(0, CONSENSUS, volume, volume == 0, kind="consensus", sources=numbers, comment=method, saved=now())
    return _save(store, case, labels, draft, None)


def _save(store: Store, case: Case, labels: LabelVolume, draft: Revision, answer: NDArray[np.bool_] | None) -> Revision:
    draft = _compared(store, case, labels, draft, answer)
    with store.locks.changing(case.id):
        revision = store.files.write_numbered(
            store.layout.revisions(case.id),
            labels,
            lambda number: replace(draft, number=number, file=f"{case.id}_r{number:03d}_{draft.rater}.seg.nrrd"),
        )
        with store.files.changed(case.id) as values:
            values["revisions"].append(asdict(revision))
            if revision.kind != CONSENSUS:
                values |= {"approved": None, "approved_by": ""}
    return revision


def _compared(
    store: Store, case: Case, labels: LabelVolume, draft: Revision, answer: NDArray[np.bool_] | None
) -> Revision:
    from ..measurement import dice

    if case.prediction is None:
        return draft
    if answer is None:
        answer = store.read_prediction(case.id).mask()
    overlap = round(dice(answer, labels.mask()), 6)
    return replace(draft, prediction=case.prediction.number, model=case.prediction.model_id, dice_to_prediction=overlap)
