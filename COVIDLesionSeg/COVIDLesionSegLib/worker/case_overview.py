"""A store as a work list shows it, in plain values; and the store that a child has open."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from ..cases.records import Case
from ..cases.review import center_ras
from ..cases.store import Store
from ..cases.store_models import StoredModel
from .tasks import Work


class OpenStore:
    """The store that requests name; it stays open from one to the next, since it remembers what it has read."""

    def __init__(self) -> None:
        self._folder = ""
        self._store: Store | None = None

    def of(self, work: Work) -> Store:
        """The store in the folder that the parameter ``store`` names."""
        return self.at(work.need("store", str))

    def at(self, folder: str) -> Store:
        """The store in a folder."""
        # a folder may hold another store by now, or none
        if self._store is None or folder != self._folder or not self._store.layout.store_file.is_file():
            return self.keep(folder, Store(folder))
        return self._store

    def keep(self, folder: str, store: Store) -> Store:
        """This one is open from now on."""
        self._folder, self._store = folder, store
        return store


def overview(store: Store, rater: str) -> dict[str, Any]:
    """What a work list shows.

    Returns:
        ``id``; ``cases`` (see :func:`described`); ``counts`` by state; ``frozen`` and ``validation_patients`` of the
        split; ``review`` (open items first, with the point to jump to); ``models`` (``id``, ``name``, ``base``,
        ``is_default``, ``gate``); ``default``; ``history`` of defaults.
    """
    cases, sides = store.cases(), store.split.sides()
    to_read = store.split.to_read_blind(cases)
    counts: dict[str, int] = {}
    for case in cases:
        counts[case.state] = counts.get(case.state, 0) + 1
    default = store.models.default()
    by_id = {case.id: case for case in cases}
    return {
        "id": store.id,
        "cases": [described(case, rater, sides, to_read) for case in cases],
        "counts": counts,
        "frozen": store.split.is_frozen,
        "validation_patients": sum(side == "validation" for side in sides.values()),
        "review": [
            {**asdict(item), "ras": center_ras(by_id[item.case], item.slice)} for item in store.review.items(None)
        ],
        "models": [_of_model(model, default) for model in store.models.list()],
        "default": default,
        "history": store.models.history(),
    }


def described(
    case: Case, rater: str, sides: Mapping[str, str] | None = None, to_read_blind: Collection[str] = ()
) -> dict[str, Any]:
    """A case as a list shows it.

    ``mine`` says whether the rater has saved a revision of it; ``read_blind``, whether it waits to be read without any
    model's prediction.
    """
    prediction = case.prediction
    return {
        "id": case.id,
        "state": case.state,
        # who is to read it blind is not told what a model, or a mask that one has drafted, says
        "lesion_ml": case.lesion_ml if case.id not in to_read_blind else None,
        "uncertainty": dict(prediction.uncertainty) if prediction and case.id not in to_read_blind else {},
        "model": prediction.model_id if prediction is not None else "",
        "raters": list(case.raters),
        "mine": rater in case.raters,
        "unsaved": list(case.unsaved),
        "lock": "" if case.lock is None else str(case.lock),
        "abandoned": case.lock is not None and case.lock.abandoned,
        "note": case.note,
        "exclusion": case.exclusion,
        "approved_by": case.approved_by if case.approved is not None else "",
        "label": case.label,
        "lesion_free": case.label_revision is not None and case.label_revision.lesion_free,
        "side": (sides or {}).get(case.patient, "train" if sides else ""),
        "read_blind": case.id in to_read_blind,
        "fix": [item.slice for item in case.slices_to_fix()],
        "open_reviews": len(case.open_reviews()),
    }


def _of_model(model: StoredModel, default: str) -> dict[str, Any]:
    gate = model.gate
    return {
        **asdict(replace(model, gate=None)),
        "is_default": model.id == default,
        "gate": None if gate is None else gate.told(),
    }
