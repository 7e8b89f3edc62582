"""The tasks of a worker of kind "measurement" that work on a case store, so that no window waits for a disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..cases.agreement import agreement_table, make_consensus, summary
from ..cases.case_files import KnownCtError
from ..cases.queue import BLIND, Suggestion, next_case
from ..cases.records import Case, State
from ..cases.review import center_ras
from ..cases.session import Session, starting_mask
from ..cases.split import Side, unnamed
from ..cases.store import Store
from ..cases.store_models import StoredModel
from ..errors import COVIDLesionSegError, InputError, ReadError
from ..imaging import Geometry, LabelVolume, Volume, dicom_files, image_suffix
from ..imaging.masks import Mask
from ..inference import ProbabilityLevels
from .protocol import geometry_to_json
from .tasks import Answer, Array, Context, Makers


@dataclass(frozen=True, eq=False)
class Drawing:
    """A mask on a case's grid; where ``geometry`` comes along, the grid is looked at, too."""

    mask: Mask
    geometry: Geometry | None = None

    @property
    def labels(self) -> LabelVolume | Mask:
        """As the store takes it."""
        return self.mask if self.geometry is None else LabelVolume(self.mask.view(np.uint8), self.geometry)


def _levels(described: dict[str, Any], /, levels: Array) -> ProbabilityLevels:
    return ProbabilityLevels.rebuilt(levels, described)


class StoreTasks:
    """Tasks on a case store: the public methods. ``store`` is its folder; masks are (z, y, x) on the CT's grid.

    The store stays open from one request to the next, since it remembers what it has read.
    """

    def __init__(self) -> None:
        self._folder = ""
        self._store: Store | None = None
        self.makers: Makers = {Store: self._at, Drawing: Drawing, ProbabilityLevels: _levels}

    # ---- one case ---------------------------------------------------------------------------------------------------

    def case_open(
        self,
        context: Context,
        store: Store,
        rater: str,
        case: str | None = None,
        take_over: bool = False,
        by: str = "uncertainty",
        states: list[State] = ["new", "predicted"],  # noqa: B006  # never changed
        besides: str = "",
    ) -> Answer:
        """Open a case for a rater.

        Args:
            context: of the request.
            store: of the case.
            rater: who edits.
            case: None takes the next one.
            take_over: also where somebody else has it open.
            by: order of the next one.
            states: of the next one.
            besides: a case that is not meant by the next one.

        Returns:
            ``found`` (false: nothing waits), ``case``, ``reason``, ``skipped``, ``token``, ``seconds``, ``start_from``,
            ``is_untouched`` (no model has answered, nobody has saved, and it is not read blind), ``blind`` (it is read
            without any prediction), ``recovered`` (when unsaved work was saved, or null), ``geometry``, ``record`` and
            ``model`` of the prediction; arrays ``volume``, ``mask`` (what to edit), and as far as there are any
            ``answer`` (the prediction), ``lungs``, and ``levels`` of the prediction's probability (with the value
            ``levels``: ``ProbabilityLevels.described()``).
        """
        reason = ""
        skipped: tuple[str, ...] = ()
        if case is None:
            cases = [known for known in store.cases() if known.id != besides]
            to_read = store.split.to_read_blind(cases)
            found: Suggestion | None = next_case(cases, rater, by, states, blind=to_read)
            if found is None:
                return Answer({"found": False})
            case, reason, skipped = found.case.id, found.reason, found.skipped
        session = store.open(case, rater, take_over)
        try:
            return self._opened(context, store, session, reason, skipped)
        except BaseException:
            # nobody has the token of its lock
            session.close()
            raise

    def _opened(
        self, context: Context, store: Store, session: Session, reason: str, skipped: tuple[str, ...]
    ) -> Answer:
        opened, rater = session.case, session.rater
        case = opened.id
        volume, lungs = session.read_ct(), store.read_lungs(case)
        if session.blind and BLIND not in reason:
            reason = f"{reason} {BLIND}".strip()
        values: dict[str, Any] = {
            "found": True,
            "case": _described(opened, rater),
            "reason": reason,
            "skipped": list(skipped),
            "token": session.token,
            "seconds": session.seconds,
            "start_from": session.start_from,
            "is_untouched": not (session.blind or opened.prediction or opened.revisions or session.recovered),
            "blind": session.blind,
            "recovered": None if session.recovered is None else session.recovered.saved,
            "geometry": geometry_to_json(volume.geometry),
        }
        arrays = {"volume": volume.array, "mask": session.start_mask.mask().view(np.uint8)}
        if session.prediction is not None and opened.prediction is not None:
            arrays["answer"] = session.prediction.view(np.uint8)
            values |= {"model": opened.prediction.model_id, "record": store.run_record(case, opened.prediction.number)}
            try:
                levels = store.read_levels(case, opened.prediction.number)
            except ReadError as error:
                # the case can be corrected by hand all the same
                context.note(str(error))
                levels = None
            if levels is not None:
                arrays["levels"], values["levels"] = levels.levels, levels.described()
        if lungs is not None:
            arrays["lungs"] = lungs.array.astype(np.uint8)
        return Answer(values, arrays)

    def case_restart(self, store: Store, case: str, rater: str) -> Answer:
        """Throw unsaved work away and begin anew: ``start_from``, array ``mask``."""
        store.autosaves.remove(case, rater)
        known = store.case(case)
        blind = known.lock is not None and known.lock.blind
        prediction = None if known.prediction is None else store.read_prediction(case).mask()
        labels, text = starting_mask(store, known, rater, blind, prediction)
        return Answer({"start_from": text}, {"mask": labels.mask().view(np.uint8)})

    def case_answer(
        self,
        store: Store,
        case: str,
        drawing: Drawing,
        record: dict[str, Any],
        lungs: Array | None = None,
        levels: ProbabilityLevels | None = None,
    ) -> Answer:
        """Keep a model's prediction, with the record of its run: ``number``, ``lesion_ml``."""
        made = store.set_prediction(case, drawing.labels, record["model"], record=record, lungs=lungs, levels=levels)
        return Answer({"number": made.number, "lesion_ml": made.lesion_ml})

    def case_autosave(
        self, store: Store, case: str, rater: str, token: str, drawing: Drawing, seconds: float = 0.0
    ) -> Answer:
        """Keep a mask that is being edited, and the lock: ``saved``."""
        labels, blind = store.case(case).labels(drawing.labels, "mask"), store.locks.is_blind(case, token)
        saved = store.autosaves.write(case, rater, labels, float(seconds), blind)
        store.locks.renew(case, token)
        return Answer({"saved": saved.saved})

    def case_renew(self, store: Store, case: str, token: str) -> Answer:
        """Keep the lock."""
        store.locks.renew(case, token)
        return Answer()

    def case_save(
        self,
        store: Store,
        case: str,
        rater: str,
        drawing: Drawing,
        seconds: float = 0.0,
        comment: str = "",
        no_lesion: bool = False,
        token: str | None = None,
        held: str | None = None,
    ) -> Answer:
        """Save a revision: ``revision``, ``case``. With ``token`` the case is closed, with ``held`` it stays open."""
        # who has lost the lock may have seen what the next one was shown
        blind = store.locks.is_blind(case, token if held is None else held)
        revision = store.save_revision(
            case, drawing.labels, rater, seconds=float(seconds), no_lesion=no_lesion, comment=comment, blind=blind
        )
        store.autosaves.remove(case, rater)
        if token is not None:
            store.locks.release(case, token)
        return Answer({"revision": asdict(revision), "case": _described(store.case(case), rater)})

    def case_close(self, store: Store, case: str, token: str) -> Answer:
        """Let others open a case."""
        store.locks.release(case, token)
        return Answer()

    def case_act(
        self,
        store: Store,
        case: str,
        act: Literal["approve", "exclude", "include", "note", "label", "unlock"],
        text: str = "",
        by: str = "",
    ) -> Answer:
        """Change a case's state, note or label: ``case``."""
        acts: dict[str, Callable[[], Any]] = {
            "approve": lambda: store.approve(case, by),
            "exclude": lambda: store.exclude(case, text),
            "include": lambda: store.include(case),
            "note": lambda: store.set_note(case, text),
            "label": lambda: store.set_label(case, text),
            "unlock": lambda: store.unlock(case),
        }
        acts[act]()
        return Answer({"case": _described(store.case(case), by)})

    def case_add(
        self,
        store: Store,
        volume: Volume,
        patient: str | None = None,
        record: dict[str, Any] | None = None,
        lungs: Array | None = None,
        answer: Mask | None = None,
        levels: ProbabilityLevels | None = None,
    ) -> Answer:
        """Add a CT that is at hand, and a prediction with the record of its run: ``done``, ``known``, ``failed``."""
        volume = replace(volume, source={"format": "array", **volume.source})
        try:
            case = store.add(Path("CT"), patient, lungs=lungs, volume=volume)
        except KnownCtError as error:
            return Answer({"done": {}, "known": {"CT": error.case_id}, "failed": {}})
        if answer is not None and record is not None:
            store.set_prediction(case.id, answer, record["model"], record=record, levels=levels)
        return Answer({"done": {"CT": case.id}, "known": {}, "failed": {}})

    def case_consensus(self, context: Context, store: Store, cases: list[str]) -> Answer:
        """Make the consensus of cases and let it train: ``made``, case -> mL."""
        made = {}
        for number, name in enumerate(cases):
            context.check()
            context.progress("finding the consensus", number, len(cases))
            made[name] = make_consensus(store, name).lesion_ml
        return Answer({"made": made})

    def review_decide(
        self,
        store: Store,
        case: str,
        slice: int,  # noqa: A002  # the request's name
        decision: Literal["right", "fix"],
        by: str,
    ) -> Answer:
        """Remember what somebody decided about a label: ``item``."""
        return Answer({"item": asdict(store.review.decide(case, slice, decision, by))})

    # ---- the store as a whole ---------------------------------------------------------------------------------------

    def store_create(self, store: str) -> Answer:
        """Make an empty store: its overview."""
        return Answer(overview(self._keep(store, Store.create(store)), ""))

    def store_overview(self, store: Store, rater: str = "") -> Answer:
        """What a work list shows, see :func:`overview`."""
        return Answer(overview(store, rater))

    def store_add(self, context: Context, store: Store, folder: Path, copy: bool = True) -> Answer:
        """Add all CTs of a folder: ``done``, ``known``, ``failed``, ``warnings``."""
        done, known, failed = {}, {}, {}
        found = find_cts(folder)
        for number, path in enumerate(found):
            context.check()
            context.progress("adding", number, len(found))
            try:
                done[path.name] = store.add(path, copy=copy).id
            except KnownCtError as error:
                known[path.name] = error.case_id
            except COVIDLesionSegError as error:
                failed[path.name] = str(error)
        warning = unnamed([store.case(name) for name in done.values()])
        return Answer({"done": done, "known": known, "failed": failed, "warnings": [warning] if warning else []})

    def store_agreement(self, store: Store) -> Answer:
        """How far raters agree: ``rows``, ``summary``, ``labels``."""
        rows = agreement_table(store)
        labels = {case.id: case.label for case in store.cases() if len(case.raters) > 1}
        return Answer({"rows": [asdict(row) for row in rows], "summary": summary(rows), "labels": labels})

    def store_model(
        self,
        store: Store,
        act: Literal["default", "override"],
        model: str,
        by: str,
        reason: str = "",
        accept: bool = True,
    ) -> Answer:
        """Choose the default model, or decide against the gate: ``default``."""
        if act == "override":
            store.models.override(model, accept, by, reason)
        if act == "default" or accept:
            store.models.set_default(model, by, reason or "chosen")
        return Answer({"default": store.models.default()})

    def store_import(
        self,
        context: Context,
        store: Store,
        source: str,
        layout: str = "auto",
        rater: str = "imported",
        label: int | str | None = None,
        copy: bool = True,
        approve: bool = False,
        empty_is_lesion_free: bool = False,
    ) -> Answer:
        """Import a data set, see ``Store.import_cases``: ``done``, ``known``, ``failed``, ``warnings``."""
        report = store.import_cases(
            source,
            layout=layout,
            rater=rater,
            label=label,
            copy=copy,
            approve=approve,
            empty_is_lesion_free=empty_is_lesion_free,
            progress=context.progress,
            cancelled=context.is_cancelled,
        )
        return Answer(
            {
                "done": dict(report.done),
                "known": dict(report.known),
                "failed": dict(report.failed),
                "warnings": list(report.warnings),
            }
        )

    def store_export(
        self, context: Context, store: Store, folder: str, number: int = 501, name: str = "COVIDLesion"
    ) -> Answer:
        """Write the labels for nnU-Net: ``folder``."""
        target = store.export_nnunet(folder, number, name, context.progress, context.is_cancelled)
        return Answer({"folder": str(target)})

    def store_check(self, context: Context, store: Store, repair: bool = True, find: str | None = None) -> Answer:
        """Verify everything: what ``Store.check`` finds, ``is_sound``."""
        report = store.check(repair, find, context.progress)
        return Answer({**asdict(report), "is_sound": report.is_sound})

    def store_move(self, store: Store, case: str, side: Side, by: str, reason: str = "") -> Answer:
        """Move a case's patient to the other side of the split: ``patient``, ``side``, ``cases`` of the patient."""
        patient = store.case(case).patient
        store.split.move(patient, side, by, reason)
        cases = [known.id for known in store.cases() if known.patient == patient]
        return Answer({"patient": patient, "side": side, "cases": cases})

    # ---- the store that is open -------------------------------------------------------------------------------------

    def _at(self, folder: str, /) -> Store:
        # a folder may hold another store by now, or none
        if self._store is None or folder != self._folder or not self._store.layout.store_file.is_file():
            return self._keep(folder, Store(folder))
        return self._store

    def _keep(self, folder: str, store: Store) -> Store:
        self._folder, self._store = folder, store
        return store


def overview(store: Store, rater: str) -> dict[str, Any]:
    """What a work list shows.

    Returns:
        ``id``; ``cases`` (see :func:`_described`); ``counts`` by state; ``frozen`` and ``validation_patients`` of the
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
        "cases": [_described(case, rater, sides, to_read) for case in cases],
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


def _described(
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


def find_cts(folder: Path) -> list[Path]:
    """Image files and DICOM folders in a folder, or the folder itself where its own files are DICOM.

    Raises:
        InputError: no such folder, or no CT in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder.name}.", "Choose a folder with CTs.")
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    images = [path for path in found if path.is_file() and image_suffix(path)]
    folders = [path for path in found if path.is_dir() and _has_dicom(path)]
    if not images and not folders and _has_dicom(folder):
        return [folder]
    if not images and not folders:
        raise InputError(f"The folder {folder.name} holds no CT.", "Needed are image files, or folders of DICOM files.")
    return [*images, *folders]


def _has_dicom(folder: Path) -> bool:
    try:
        return bool(dicom_files(folder))
    except COVIDLesionSegError:
        # several series, or none that can be read: adding it says what is wrong
        return any(path.suffix.lower() == ".dcm" for path in folder.iterdir())
