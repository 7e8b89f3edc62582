"""The tasks of a worker of kind "measurement" that work on a case store, so that no window waits for a disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cases.agreement import agreement_table, make_consensus, summary
from ..cases.case_files import KnownCtError
from ..cases.queue import BLIND, Suggestion, next_case
from ..cases.records import Case
from ..cases.review import center_ras
from ..cases.session import starting_mask
from ..cases.split import unnamed
from ..cases.store import Store
from ..cases.store_models import StoredModel
from ..errors import COVIDLesionSegError, InputError, ReadError
from ..imaging import LabelVolume, dicom_files, image_suffix
from ..inference import ProbabilityLevels
from .protocol import geometry_from_json, geometry_to_json
from .tasks import Answer, Work


class StoreTasks:
    """Tasks on a case store. Each takes ``store``, its folder; masks are (z, y, x) on the CT's grid.

    The store stays open from one request to the next, since it remembers what it has read.

    On one case:

    ``case_open``: opens ``case``, or else the next one (``by``, ``states``, ``besides``: a case that is not meant), for
    ``rater``; ``take_over`` also where somebody else has it open. Answers ``found`` (false: nothing waits), ``case``,
    ``reason``, ``skipped``, ``token``, ``seconds``, ``start_from``, ``is_untouched`` (no model has answered, nobody has
    saved, and it is not read blind), ``blind`` (it is read without any prediction), ``recovered`` (when unsaved work
    was saved, or null), ``geometry``, ``record`` and ``model`` of the answer; arrays ``volume``, ``mask`` (what to
    edit), and as far as there are any ``answer``, ``lungs``, and ``levels`` of the answer's probability (with the value
    ``levels``: ``ProbabilityLevels.described()``).

    ``case_restart``: throws ``rater``'s unsaved work on ``case`` away: ``start_from``, array ``mask``.
    ``case_answer``: keeps a model's answer: ``case``, ``record``; arrays ``mask``, ``lungs`` and, with the value
    ``levels``, ``levels``.
    ``case_autosave``: ``case``, ``rater``, ``token``, ``seconds``; array ``mask``. ``case_renew``: ``case``, ``token``.
    ``case_save``: a revision: ``case``, ``rater``, ``seconds``, ``no_lesion``, ``comment``, ``held``
    (the token); array ``mask``; with ``token`` the case is closed. Answers ``revision``.
    ``case_close``: ``case``, ``token``.
    ``case_act``: ``case``, ``act``: "approve", "exclude", "include", "note", "label", "unlock"; ``text``, ``by``.
    ``case_add``: a CT: array ``volume``, ``geometry``; if given ``patient``, ``record`` and the arrays ``lungs``,
    ``answer``, ``levels``. Answers ``done``, ``known``, ``failed``.

    On the store as a whole:

    ``store_create``: makes an empty store. ``store_overview``: answers what a work list shows, see :func:`overview`.
    ``store_add``: ``folder`` with CTs, ``copy``; answers ``done``, ``known`` and ``failed``.

    ``review_decide``: ``case``, ``slice``, ``decision``, ``by``. ``store_agreement``: ``rows``, ``summary``.
    ``case_consensus``: ``cases``. ``store_model``: ``act`` ("default", "override"), ``model``, ``by``, ``reason``,
    ``accept``. ``store_import``: ``source``, ``layout``, ``rater``, ``copy``, ``approve``, ``empty_is_lesion_free``,
    ``label``. ``store_export``: ``folder``, ``number``, ``name``. ``store_check``: ``repair``, ``find``.

    ``store_move``: moves the patient of ``case`` to the ``side`` "train" or "validation" of the split: ``by``,
    ``reason``. Answers ``patient``, ``side`` and ``cases``, the patient's.
    """

    def __init__(self) -> None:
        self._folder = ""
        self._store: Store | None = None
        self.tasks: Mapping[str, Callable[[Work], Answer]] = {
            "case_open": self.open,
            "case_restart": self.restart,
            "case_answer": self.answer,
            "case_autosave": self.autosave,
            "case_renew": self.renew,
            "case_save": self.save,
            "case_close": self.close,
            "case_act": self.act,
            "case_add": self.add,
            "store_create": self.create,
            "store_overview": self.overview,
            "store_add": self.add_folder,
            "review_decide": self.decide,
            "store_agreement": self.agreement,
            "case_consensus": self.consensus,
            "store_model": self.model,
            "store_import": self.take_in,
            "store_export": self.export,
            "store_check": self.check,
            "store_move": self.move,
        }

    # ---- one case ---------------------------------------------------------------------------------------------------

    def open(self, work: Work) -> Answer:
        """Open a case for a rater."""
        store, rater = self._of(work), work.need("rater", str)
        case_id, take_over = work.take("case", str), work.take("take_over", bool, False)
        by, besides = work.take("by", str, "uncertainty"), work.take("besides", str, "")
        states = work.take("states", list, ["new", "predicted"])
        work.finish()
        reason = ""
        skipped: tuple[str, ...] = ()
        if case_id is None:
            cases = [case for case in store.cases() if case.id != besides]
            to_read = store.split.to_read_blind(cases)
            found: Suggestion | None = next_case(cases, rater, by, states, blind=to_read)
            if found is None:
                return Answer({"found": False})
            case_id, reason, skipped = found.case.id, found.reason, found.skipped
        session = store.open(case_id, rater, take_over)
        try:
            volume = session.read_ct()
            lungs = store.read_lungs(case_id)
        except COVIDLesionSegError:
            session.close()
            raise
        case = session.case
        if session.blind and BLIND not in reason:
            reason = f"{reason} {BLIND}".strip()
        values: dict[str, Any] = {
            "found": True,
            "case": _described(case, rater),
            "reason": reason,
            "skipped": list(skipped),
            "token": session.token,
            "seconds": session.seconds,
            "start_from": session.start_from,
            "is_untouched": not (session.blind or case.prediction or case.revisions or session.recovered),
            "blind": session.blind,
            "recovered": None if session.recovered is None else session.recovered.saved,
            "geometry": geometry_to_json(volume.geometry),
        }
        arrays = {"volume": volume.array, "mask": session.start_mask.mask().view(np.uint8)}
        if session.prediction is not None and case.prediction is not None:
            arrays["answer"] = session.prediction.view(np.uint8)
            values |= {"model": case.prediction.model_id, "record": store.run_record(case_id, case.prediction.number)}
            try:
                levels = store.read_levels(case_id, case.prediction.number)
            except ReadError as error:
                # the case can be corrected by hand all the same
                work.note(str(error))
                levels = None
            if levels is not None:
                arrays["levels"], values["levels"] = levels.levels, levels.described()
        if lungs is not None:
            arrays["lungs"] = lungs.array.astype(np.uint8)
        return Answer(values, arrays)

    def restart(self, work: Work) -> Answer:
        """Throw unsaved work away and begin anew."""
        store, case_id, rater = self._of(work), work.need("case", str), work.need("rater", str)
        work.finish()
        store.autosaves.remove(case_id, rater)
        case = store.case(case_id)
        blind = case.lock is not None and case.lock.blind
        prediction = None if case.prediction is None else store.read_prediction(case_id).mask()
        labels, text = starting_mask(store, case, rater, blind, prediction)
        return Answer({"start_from": text}, {"mask": labels.mask().view(np.uint8)})

    def answer(self, work: Work) -> Answer:
        """Keep a model's answer."""
        store, case_id = self._of(work), work.need("case", str)
        mask, lungs, record = _mask(work), work.array("lungs"), work.need("record", dict)
        levels = _levels(work)
        work.finish()
        made = store.set_prediction(case_id, mask, record["model"], record=record, lungs=lungs, levels=levels)
        return Answer({"number": made.number, "lesion_ml": made.lesion_ml})

    def autosave(self, work: Work) -> Answer:
        """Keep a mask that is being edited, and the lock."""
        store, case_id = self._of(work), work.need("case", str)
        rater, token = work.need("rater", str), work.need("token", str)
        seconds, mask = float(work.take("seconds", (int, float), 0.0)), _mask(work)
        work.finish()
        labels, blind = store.case(case_id).labels(mask, "mask"), store.locks.is_blind(case_id, token)
        saved = store.autosaves.write(case_id, rater, labels, seconds, blind)
        store.locks.renew(case_id, token)
        return Answer({"saved": saved.saved})

    def renew(self, work: Work) -> Answer:
        """Keep the lock."""
        store, case_id, token = self._of(work), work.need("case", str), work.need("token", str)
        work.finish()
        store.locks.renew(case_id, token)
        return Answer()

    def save(self, work: Work) -> Answer:
        """Save a revision."""
        store, case_id, rater = self._of(work), work.need("case", str), work.need("rater", str)
        seconds, comment = float(work.take("seconds", (int, float), 0.0)), work.take("comment", str, "")
        no_lesion, token, mask = work.take("no_lesion", bool, False), work.take("token", str), _mask(work)
        held = work.take("held", str, token)
        work.finish()
        # who has lost the lock may have seen what the next one was shown
        blind = store.locks.is_blind(case_id, held)
        revision = store.save_revision(
            case_id, mask, rater, seconds=seconds, no_lesion=no_lesion, comment=comment, blind=blind
        )
        store.autosaves.remove(case_id, rater)
        if token is not None:
            store.locks.release(case_id, token)
        return Answer({"revision": asdict(revision), "case": _described(store.case(case_id), rater)})

    def close(self, work: Work) -> Answer:
        """Let others open a case."""
        store, case_id, token = self._of(work), work.need("case", str), work.need("token", str)
        work.finish()
        store.locks.release(case_id, token)
        return Answer()

    def act(self, work: Work) -> Answer:
        """Change a case's state, note or label."""
        store, case_id, act = self._of(work), work.need("case", str), work.need("act", str)
        text, by = work.take("text", str, ""), work.take("by", str, "")
        work.finish()
        acts: dict[str, Callable[[], Any]] = {
            "approve": lambda: store.approve(case_id, by),
            "exclude": lambda: store.exclude(case_id, text),
            "include": lambda: store.include(case_id),
            "note": lambda: store.set_note(case_id, text),
            "label": lambda: store.set_label(case_id, text),
            "unlock": lambda: store.unlock(case_id),
        }
        if act not in acts:
            raise InputError(f"There is no act {act!r}; there are {', '.join(acts)}.")
        acts[act]()
        return Answer({"case": _described(store.case(case_id), by)})

    def add(self, work: Work) -> Answer:
        """Add a CT that is at hand."""
        store, patient = self._of(work), work.take("patient", str)
        record, lungs, answer = work.take("record", dict), work.array("lungs"), work.array("answer")
        levels = _levels(work)
        volume = work.volume()
        work.finish()
        volume = replace(volume, source={"format": "array", **volume.source})
        try:
            case = store.add(Path("CT"), patient, lungs=lungs, volume=volume)
        except KnownCtError as error:
            return Answer({"done": {}, "known": {"CT": error.case_id}, "failed": {}})
        if answer is not None and record is not None:
            store.set_prediction(case.id, answer != 0, record["model"], record=record, levels=levels)
        return Answer({"done": {"CT": case.id}, "known": {}, "failed": {}})

    # ---- the store as a whole ---------------------------------------------------------------------------------------

    def create(self, work: Work) -> Answer:
        """Make a store."""
        folder = work.need("store", str)
        work.finish()
        return Answer(overview(self._keep(folder, Store.create(folder)), ""))

    def overview(self, work: Work) -> Answer:
        """What there is."""
        folder, rater = work.need("store", str), work.take("rater", str, "")
        work.finish()
        return Answer(overview(self._at(folder), rater))

    def add_folder(self, work: Work) -> Answer:
        """Add all CTs of a folder."""
        store, folder, copy = self._of(work), Path(work.need("folder", str)), work.take("copy", bool, True)
        work.finish()
        done, known, failed = {}, {}, {}
        found = _cts(folder)
        for number, path in enumerate(found):
            work.check()
            work.progress("adding", number, len(found))
            try:
                done[path.name] = store.add(path, copy=copy).id
            except KnownCtError as error:
                known[path.name] = error.case_id
            except COVIDLesionSegError as error:
                failed[path.name] = str(error)
        warning = unnamed([store.case(name) for name in done.values()])
        return Answer({"done": done, "known": known, "failed": failed, "warnings": [warning] if warning else []})

    # ---- review, raters, models -------------------------------------------------------------------------------------

    def decide(self, work: Work) -> Answer:
        """Remember what somebody decided about a label."""
        store, case_id, index = self._of(work), work.need("case", str), work.need("slice", int)
        decision, by = work.need("decision", str), work.need("by", str)
        work.finish()
        return Answer({"item": asdict(store.review.decide(case_id, index, decision, by))})

    def agreement(self, work: Work) -> Answer:
        """How far raters agree."""
        store = self._of(work)
        work.finish()
        rows = agreement_table(store)
        labels = {case.id: case.label for case in store.cases() if len(case.raters) > 1}
        return Answer({"rows": [asdict(row) for row in rows], "summary": summary(rows), "labels": labels})

    def consensus(self, work: Work) -> Answer:
        """Make the consensus of cases and let it train."""
        store, names = self._of(work), work.need("cases", list)
        work.finish()
        made = {}
        for number, name in enumerate(names):
            work.check()
            work.progress("finding the consensus", number, len(names))
            made[name] = make_consensus(store, name).lesion_ml
        return Answer({"made": made})

    def model(self, work: Work) -> Answer:
        """Choose the default model, or decide against the gate."""
        store, act, model = self._of(work), work.need("act", str), work.need("model", str)
        by, reason = work.need("by", str), work.take("reason", str, "")
        accept = work.take("accept", bool, True)
        work.finish()
        if act == "override":
            store.models.override(model, accept, by, reason)
        if act == "default" or accept:
            store.models.set_default(model, by, reason or "chosen")
        return Answer({"default": store.models.default()})

    # ---- data sets and upkeep ---------------------------------------------------------------------------------------

    def take_in(self, work: Work) -> Answer:
        """Import a data set."""
        store, source = self._of(work), work.need("source", str)
        given = {
            "layout": work.take("layout", str, "auto"),
            "rater": work.take("rater", str, "imported"),
            "label": work.take("label", (int, str)),
            "copy": work.take("copy", bool, True),
            "approve": work.take("approve", bool, False),
            "empty_is_lesion_free": work.take("empty_is_lesion_free", bool, False),
        }
        work.finish()
        report = store.import_cases(source, **given, progress=work.progress, cancelled=work.is_cancelled)
        return Answer(
            {
                "done": dict(report.done),
                "known": dict(report.known),
                "failed": dict(report.failed),
                "warnings": list(report.warnings),
            }
        )

    def export(self, work: Work) -> Answer:
        """Write the labels for nnU-Net."""
        store, folder = self._of(work), work.need("folder", str)
        number, name = work.take("number", int, 501), work.take("name", str, "COVIDLesion")
        work.finish()
        target = store.export_nnunet(folder, number, name, work.progress, work.is_cancelled)
        return Answer({"folder": str(target)})

    def check(self, work: Work) -> Answer:
        """Verify everything."""
        store, repair, find = self._of(work), work.take("repair", bool, True), work.take("find", str)
        work.finish()
        report = store.check(repair, find, work.progress)
        return Answer({**asdict(report), "is_sound": report.is_sound})

    def move(self, work: Work) -> Answer:
        """Move a patient to the other side of the split."""
        store, case_id, side = self._of(work), work.need("case", str), work.need("side", str)
        by, reason = work.need("by", str), work.take("reason", str, "")
        work.finish()
        patient = store.case(case_id).patient
        store.split.move(patient, side, by, reason)
        cases = [case.id for case in store.cases() if case.patient == patient]
        return Answer({"patient": patient, "side": side, "cases": cases})

    # ---- the store that is open -------------------------------------------------------------------------------------

    def _of(self, work: Work) -> Store:
        """The store in the folder that the parameter ``store`` names."""
        return self._at(work.need("store", str))

    def _at(self, folder: str) -> Store:
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


def _cts(folder: Path) -> list[Path]:
    """Image files and DICOM folders, or the folder itself where its own files are DICOM."""
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


def _levels(work: Work) -> ProbabilityLevels | None:
    array, described = work.array("levels"), work.take("levels", dict)
    return None if array is None or described is None else ProbabilityLevels.rebuilt(array, described)


def _mask(work: Work) -> LabelVolume | np.ndarray[Any, Any]:
    array = work.array("mask")
    if array is None:
        raise InputError(f"The task {work.task} needs the array mask.")
    geometry = work.take("geometry", dict)
    mask = array != 0
    return mask if geometry is None else LabelVolume(mask.view(np.uint8), geometry_from_json(geometry))
