"""The tasks of a worker of kind "measurement" that work on a case store, so that no window waits for a disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cases.adding import KnownCtError, add_case
from ..cases.agreement import agreement_table, make_consensus, summary
from ..cases.exporting import export_nnunet
from ..cases.importing import import_cases
from ..cases.masks import as_labels
from ..cases.queue import Suggestion, next_case
from ..cases.records import Case, Revision
from ..cases.review import center_ras
from ..cases.store import Store
from ..cases.store_models import StoredModel
from ..errors import COVIDLesionSegError, InputError
from ..imaging import LabelVolume, dicom_files, image_suffix
from .protocol import geometry_from_json, geometry_to_json
from .tasks import Answer, Work


class CaseTasks:
    """Tasks about a case store. Each takes ``store``, the folder of the store; masks are (z, y, x) on the CT's grid.

    ``store_create``: makes an empty store. ``store_overview``: answers what a work list shows, see :func:`overview`.

    ``case_open``: opens ``case``, or else the next one (``by``, ``states``, ``besides``: a case that is not meant), for
    ``rater``; ``take_over`` also where somebody else has it open. Answers ``found`` (false: nothing waits), ``case``,
    ``reason``, ``skipped``, ``token``, ``seconds``, ``start_from``, ``is_untouched`` (no model has answered, nobody has
    saved), ``recovered`` (when unsaved work was saved, or null), ``geometry``, ``record`` and ``model`` of the answer;
    arrays ``volume``, ``mask`` (what to edit), and as far as there are any ``answer`` and ``lungs``.

    ``case_restart``: throws ``rater``'s unsaved work on ``case`` away: ``start_from``, array ``mask``.
    ``case_answer``: keeps a model's answer: ``case``, ``record``; arrays ``mask``, ``lungs``.
    ``case_autosave``: ``case``, ``rater``, ``token``, ``seconds``; array ``mask``. ``case_renew``: ``case``, ``token``.
    ``case_save``: a revision: ``case``, ``rater``, ``seconds``, ``no_lesion``, ``comment``; array ``mask``; with
    ``token`` the case is closed. Answers ``revision``. ``case_close``: ``case``, ``token``.
    ``case_act``: ``case``, ``act``: "approve", "exclude", "include", "note", "label", "unlock"; ``text``, ``by``.
    ``case_add``: a CT: array ``volume``, ``geometry``; if given ``patient``, ``record`` and the arrays ``lungs``,
    ``answer``. ``store_add``: ``folder`` with CTs, ``copy``. Both answer ``done``, ``known``, ``failed``.

    ``review_decide``: ``case``, ``slice``, ``decision``, ``by``. ``store_agreement``: ``rows``, ``summary``.
    ``case_consensus``: ``cases``. ``store_model``: ``act`` ("default", "override"), ``model``, ``by``, ``reason``,
    ``accept``. ``store_import``: ``source``, ``layout``, ``rater``, ``copy``, ``approve``, ``empty_is_lesion_free``,
    ``label``. ``store_export``: ``folder``, ``number``, ``name``. ``store_check``: ``repair``, ``find``.
    """

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}
        self.tasks: Mapping[str, Callable[[Work], Answer]] = {
            "store_create": self.create,
            "store_overview": self.overview,
            "case_open": self.open,
            "case_restart": self.restart,
            "case_answer": self.answer,
            "case_autosave": self.autosave,
            "case_renew": self.renew,
            "case_save": self.save,
            "case_close": self.close,
            "case_act": self.act,
            "case_add": self.add,
            "store_add": self.add_folder,
            "review_decide": self.decide,
            "store_agreement": self.agreement,
            "case_consensus": self.consensus,
            "store_model": self.model,
            "store_import": self.take_in,
            "store_export": self.export,
            "store_check": self.check,
        }

    # ---- the list ---------------------------------------------------------------------------------------------------

    def create(self, work: Work) -> Answer:
        """Make a store."""
        folder = work.need("store", str)
        work.finish()
        return Answer(overview(self._keep(folder, Store.create(folder)), ""))

    def overview(self, work: Work) -> Answer:
        """What there is."""
        store, rater = self._store(work), work.take("rater", str, "")
        work.finish()
        return Answer(overview(store, rater))

    # ---- one case ---------------------------------------------------------------------------------------------------

    def open(self, work: Work) -> Answer:
        """Open a case for a rater."""
        store, rater = self._store(work), work.need("rater", str)
        case_id, take_over = work.take("case", str), work.take("take_over", bool, False)
        by, besides = work.take("by", str, "uncertainty"), work.take("besides", str, "")
        states = work.take("states", list, ["new", "predicted"])
        work.finish()
        reason = ""
        skipped: tuple[str, ...] = ()
        if case_id is None:
            found: Suggestion | None = next_case([c for c in store.cases() if c.id != besides], rater, by, states)
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
        values: dict[str, Any] = {
            "found": True,
            "case": described(case, rater),
            "reason": reason,
            "skipped": list(skipped),
            "token": session.token,
            "seconds": session.seconds,
            "start_from": session.start_from,
            "is_untouched": case.prediction is None and not case.revisions and session.recovered is None,
            "recovered": None if session.recovered is None else session.recovered.saved,
            "geometry": geometry_to_json(volume.geometry),
        }
        arrays = {"volume": volume.array, "mask": session.start_mask.mask().view(np.uint8)}
        if session.answer is not None and case.prediction is not None:
            arrays["answer"] = session.answer.view(np.uint8)
            values |= {"model": case.prediction.model_id, "record": store.run_record(case_id, case.prediction.number)}
        if lungs is not None:
            arrays["lungs"] = lungs.array.astype(np.uint8)
        return Answer(values, arrays)

    def restart(self, work: Work) -> Answer:
        """Throw unsaved work away and begin anew."""
        store, case_id, rater = self._store(work), work.need("case", str), work.need("rater", str)
        work.finish()
        store.autosaves.remove(case_id, rater)
        case = store.case(case_id)
        revision = case.latest(rater) or case.latest()
        if revision is not None:
            mask, text = store.read_revision(case_id, revision.number).mask(), _named(revision)
        elif case.prediction is not None:
            mask, text = store.read_prediction(case_id).mask(), f"the answer of {case.prediction.model_id}"
        else:
            mask, text = np.zeros(case.ct.geometry.shape, bool), "an empty mask"
        return Answer({"start_from": text}, {"mask": mask.view(np.uint8)})

    def answer(self, work: Work) -> Answer:
        """Keep a model's answer."""
        store, case_id = self._store(work), work.need("case", str)
        mask, lungs, record = _mask(work), work.array("lungs"), work.need("record", dict)
        work.finish()
        made = store.set_prediction(case_id, mask, record["model"], record=record, lungs=lungs)
        return Answer({"number": made.number, "lesion_ml": made.lesion_ml})

    def autosave(self, work: Work) -> Answer:
        """Keep a mask that is being edited, and the lock."""
        store, case_id = self._store(work), work.need("case", str)
        rater, token = work.need("rater", str), work.need("token", str)
        seconds, mask = float(work.take("seconds", (int, float), 0.0)), _mask(work)
        work.finish()
        saved = store.autosaves.write(case_id, rater, as_labels(mask, store.case(case_id), "mask"), seconds)
        store.locks.renew(case_id, token)
        return Answer({"saved": saved.saved})

    def renew(self, work: Work) -> Answer:
        """Keep the lock."""
        store, case_id, token = self._store(work), work.need("case", str), work.need("token", str)
        work.finish()
        store.locks.renew(case_id, token)
        return Answer()

    def save(self, work: Work) -> Answer:
        """Save a revision."""
        store, case_id, rater = self._store(work), work.need("case", str), work.need("rater", str)
        seconds, comment = float(work.take("seconds", (int, float), 0.0)), work.take("comment", str, "")
        no_lesion, token, mask = work.take("no_lesion", bool, False), work.take("token", str), _mask(work)
        work.finish()
        revision = store.save_revision(case_id, mask, rater, seconds=seconds, no_lesion=no_lesion, comment=comment)
        store.autosaves.remove(case_id, rater)
        if token is not None:
            store.locks.release(case_id, token)
        return Answer({"revision": asdict(revision), "case": described(store.case(case_id), rater)})

    def close(self, work: Work) -> Answer:
        """Let others open a case."""
        store, case_id, token = self._store(work), work.need("case", str), work.need("token", str)
        work.finish()
        store.locks.release(case_id, token)
        return Answer()

    def act(self, work: Work) -> Answer:
        """Change a case's state, note or label."""
        store, case_id, act = self._store(work), work.need("case", str), work.need("act", str)
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
        return Answer({"case": described(store.case(case_id), by)})

    def add(self, work: Work) -> Answer:
        """Add a CT that is at hand."""
        store, patient = self._store(work), work.take("patient", str)
        record, lungs, answer = work.take("record", dict), work.array("lungs"), work.array("answer")
        volume = work.volume()
        work.finish()
        volume = replace(volume, source={"format": "array", **volume.source})
        try:
            case = add_case(store, Path("CT"), patient, lungs=lungs, volume=volume)
        except KnownCtError as error:
            return Answer({"done": {}, "known": {"CT": error.case_id}, "failed": {}})
        if answer is not None and record is not None:
            store.set_prediction(case.id, answer != 0, record["model"], record=record)
        return Answer({"done": {"CT": case.id}, "known": {}, "failed": {}})

    def add_folder(self, work: Work) -> Answer:
        """Add all CTs of a folder."""
        store, folder, copy = self._store(work), Path(work.need("folder", str)), work.take("copy", bool, True)
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
        return Answer({"done": done, "known": known, "failed": failed})

    # ---- review, raters, models -------------------------------------------------------------------------------------

    def decide(self, work: Work) -> Answer:
        """Remember what somebody decided about a label."""
        store, case_id, index = self._store(work), work.need("case", str), work.need("slice", int)
        decision, by = work.need("decision", str), work.need("by", str)
        work.finish()
        return Answer({"item": asdict(store.review.decide(case_id, index, decision, by))})

    def agreement(self, work: Work) -> Answer:
        """How far raters agree."""
        store = self._store(work)
        work.finish()
        rows = agreement_table(store)
        labels = {case.id: case.label for case in store.cases() if len(case.raters) > 1}
        return Answer({"rows": [asdict(row) for row in rows], "summary": summary(rows), "labels": labels})

    def consensus(self, work: Work) -> Answer:
        """Make the consensus of cases and let it train."""
        store, names = self._store(work), work.need("cases", list)
        work.finish()
        made = {}
        for number, name in enumerate(names):
            work.check()
            work.progress("finding the consensus", number, len(names))
            made[name] = make_consensus(store, name).lesion_ml
        return Answer({"made": made})

    def model(self, work: Work) -> Answer:
        """Choose the default model, or decide against the gate."""
        store, act, model = self._store(work), work.need("act", str), work.need("model", str)
        by, reason = work.need("by", str), work.take("reason", str, "")
        accept = work.take("accept", bool, True)
        work.finish()
        if act == "override":
            store.models.override(model, accept, by, reason)
        if act == "default" or accept:
            store.models.set_default(model, by, reason or "chosen")
        return Answer({"default": store.models.default()})

    # ---- the store as a whole ---------------------------------------------------------------------------------------

    def take_in(self, work: Work) -> Answer:
        """Import a data set."""
        store, source = self._store(work), work.need("source", str)
        given = {
            "layout": work.take("layout", str, "auto"),
            "rater": work.take("rater", str, "imported"),
            "label": work.take("label", (int, str)),
            "copy": work.take("copy", bool, True),
            "approve": work.take("approve", bool, False),
            "empty_is_lesion_free": work.take("empty_is_lesion_free", bool, False),
        }
        work.finish()
        report = import_cases(store, source, **given, progress=work.progress, cancelled=work.is_cancelled)
        return Answer({"done": dict(report.done), "known": dict(report.known), "failed": dict(report.failed)})

    def export(self, work: Work) -> Answer:
        """Write the labels for nnU-Net."""
        store, folder = self._store(work), work.need("folder", str)
        number, name = work.take("number", int, 501), work.take("name", str, "COVIDLesion")
        work.finish()
        target = export_nnunet(store, folder, number, name, work.progress, work.is_cancelled)
        return Answer({"folder": str(target)})

    def check(self, work: Work) -> Answer:
        """Verify everything."""
        store, repair, find = self._store(work), work.take("repair", bool, True), work.take("find", str)
        work.finish()
        report = store.check(repair, find, work.progress)
        return Answer({**asdict(report), "is_sound": report.is_sound})

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _store(self, work: Work) -> Store:
        folder = work.need("store", str)
        known = self._stores.get(folder)
        # a folder may hold another store by now, or none
        if known is None or not known.layout.store_file.is_file():
            known = self._keep(folder, Store(folder))
        return known

    def _keep(self, folder: str, store: Store) -> Store:
        self._stores = {folder: store}
        return store


def overview(store: Store, rater: str) -> dict[str, Any]:
    """What a work list shows.

    Returns:
        ``id``; ``cases`` (see :func:`described`); ``counts`` by state; ``frozen`` and ``validation_patients`` of the
        split; ``review`` (open items first, with the point to jump to); ``models`` (``id``, ``name``, ``base``,
        ``is_default``, ``gate``); ``default``; ``history`` of defaults.
    """
    cases, sides = store.cases(), store.split.sides()
    counts: dict[str, int] = {}
    for case in cases:
        counts[case.state] = counts.get(case.state, 0) + 1
    default = store.models.default()
    by_id = {case.id: case for case in cases}
    return {
        "id": store.id,
        "cases": [described(case, rater, sides) for case in cases],
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


def described(case: Case, rater: str, sides: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A case as a list shows it; ``mine`` says whether the rater has saved a revision of it."""
    prediction = case.prediction
    return {
        "id": case.id,
        "state": case.state,
        "lesion_ml": case.lesion_ml,
        "uncertainty": dict(prediction.uncertainty) if prediction is not None else {},
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
        "fix": [item.slice for item in case.slices_to_fix()],
        "open_reviews": len(case.open_reviews()),
    }


def _of_model(model: StoredModel, default: str) -> dict[str, Any]:
    gate = model.gate
    return {
        **asdict(replace(model, gate=None)),
        "is_default": model.id == default,
        "gate": None if gate is None else {**gate.to_json(), "text": gate.text, "accepted": gate.accepted},
    }


def _mask(work: Work) -> LabelVolume | np.ndarray[Any, Any]:
    array = work.array("mask")
    if array is None:
        raise InputError(f"The task {work.task} needs the array mask.")
    geometry = work.take("geometry", dict)
    mask = array != 0
    return mask if geometry is None else LabelVolume(mask.view(np.uint8), geometry_from_json(geometry))


def _named(revision: Revision) -> str:
    return f"revision {revision.number} of {revision.rater}"


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
