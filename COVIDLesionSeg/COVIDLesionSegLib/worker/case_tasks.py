"""The tasks of a worker of kind "measurement" that work on one case of a store, so that no window waits for a disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cases.case_files import KnownCtError
from ..cases.queue import BLIND, Suggestion, next_case
from ..cases.session import starting_mask
from ..errors import COVIDLesionSegError, InputError
from ..imaging import LabelVolume
from .case_overview import OpenStore, described
from .protocol import geometry_from_json, geometry_to_json
from .tasks import Answer, Work


class CaseTasks:
    """Tasks about one case. Each takes ``store``, the folder of the store; masks are (z, y, x) on the CT's grid.

    ``case_open``: opens ``case``, or else the next one (``by``, ``states``, ``besides``: a case that is not meant), for
    ``rater``; ``take_over`` also where somebody else has it open. Answers ``found`` (false: nothing waits), ``case``,
    ``reason``, ``skipped``, ``token``, ``seconds``, ``start_from``, ``is_untouched`` (no model has answered, nobody has
    saved, and it is not read blind), ``blind`` (it is read without any prediction), ``recovered`` (when unsaved work
    was saved, or null), ``geometry``, ``record`` and ``model`` of the answer; arrays ``volume``, ``mask`` (what to
    edit), and as far as there are any ``answer`` and ``lungs``.

    ``case_restart``: throws ``rater``'s unsaved work on ``case`` away: ``start_from``, array ``mask``.
    ``case_answer``: keeps a model's answer: ``case``, ``record``; arrays ``mask``, ``lungs``.
    ``case_autosave``: ``case``, ``rater``, ``token``, ``seconds``; array ``mask``. ``case_renew``: ``case``, ``token``.
    ``case_save``: a revision: ``case``, ``rater``, ``seconds``, ``no_lesion``, ``comment``, ``held``
    (the token); array ``mask``; with ``token`` the case is closed. Answers ``revision``.
    ``case_close``: ``case``, ``token``.
    ``case_act``: ``case``, ``act``: "approve", "exclude", "include", "note", "label", "unlock"; ``text``, ``by``.
    ``case_add``: a CT: array ``volume``, ``geometry``; if given ``patient``, ``record`` and the arrays ``lungs``,
    ``answer``. Answers ``done``, ``known``, ``failed``.

    Args:
        stores: the store that is open.
    """

    def __init__(self, stores: OpenStore) -> None:
        self._stores = stores
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
        }

    def open(self, work: Work) -> Answer:
        """Open a case for a rater."""
        store, rater = self._stores.of(work), work.need("rater", str)
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
            "case": described(case, rater),
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
        if lungs is not None:
            arrays["lungs"] = lungs.array.astype(np.uint8)
        return Answer(values, arrays)

    def restart(self, work: Work) -> Answer:
        """Throw unsaved work away and begin anew."""
        store, case_id, rater = self._stores.of(work), work.need("case", str), work.need("rater", str)
        work.finish()
        store.autosaves.remove(case_id, rater)
        case = store.case(case_id)
        blind = case.lock is not None and case.lock.blind
        prediction = None if case.prediction is None else store.read_prediction(case_id).mask()
        labels, text = starting_mask(store, case, rater, blind, prediction)
        return Answer({"start_from": text}, {"mask": labels.mask().view(np.uint8)})

    def answer(self, work: Work) -> Answer:
        """Keep a model's answer."""
        store, case_id = self._stores.of(work), work.need("case", str)
        mask, lungs, record = _mask(work), work.array("lungs"), work.need("record", dict)
        work.finish()
        made = store.set_prediction(case_id, mask, record["model"], record=record, lungs=lungs)
        return Answer({"number": made.number, "lesion_ml": made.lesion_ml})

    def autosave(self, work: Work) -> Answer:
        """Keep a mask that is being edited, and the lock."""
        store, case_id = self._stores.of(work), work.need("case", str)
        rater, token = work.need("rater", str), work.need("token", str)
        seconds, mask = float(work.take("seconds", (int, float), 0.0)), _mask(work)
        work.finish()
        labels, blind = store.case(case_id).labels(mask, "mask"), store.locks.is_blind(case_id, token)
        saved = store.autosaves.write(case_id, rater, labels, seconds, blind)
        store.locks.renew(case_id, token)
        return Answer({"saved": saved.saved})

    def renew(self, work: Work) -> Answer:
        """Keep the lock."""
        store, case_id, token = self._stores.of(work), work.need("case", str), work.need("token", str)
        work.finish()
        store.locks.renew(case_id, token)
        return Answer()

    def save(self, work: Work) -> Answer:
        """Save a revision."""
        store, case_id, rater = self._stores.of(work), work.need("case", str), work.need("rater", str)
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
        return Answer({"revision": asdict(revision), "case": described(store.case(case_id), rater)})

    def close(self, work: Work) -> Answer:
        """Let others open a case."""
        store, case_id, token = self._stores.of(work), work.need("case", str), work.need("token", str)
        work.finish()
        store.locks.release(case_id, token)
        return Answer()

    def act(self, work: Work) -> Answer:
        """Change a case's state, note or label."""
        store, case_id, act = self._stores.of(work), work.need("case", str), work.need("act", str)
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
        store, patient = self._stores.of(work), work.take("patient", str)
        record, lungs, answer = work.take("record", dict), work.array("lungs"), work.array("answer")
        volume = work.volume()
        work.finish()
        volume = replace(volume, source={"format": "array", **volume.source})
        try:
            case = store.add(Path("CT"), patient, lungs=lungs, volume=volume)
        except KnownCtError as error:
            return Answer({"done": {}, "known": {"CT": error.case_id}, "failed": {}})
        if answer is not None and record is not None:
            store.set_prediction(case.id, answer != 0, record["model"], record=record)
        return Answer({"done": {"CT": case.id}, "known": {}, "failed": {}})


def _mask(work: Work) -> LabelVolume | np.ndarray[Any, Any]:
    array = work.array("mask")
    if array is None:
        raise InputError(f"The task {work.task} needs the array mask.")
    geometry = work.take("geometry", dict)
    mask = array != 0
    return mask if geometry is None else LabelVolume(mask.view(np.uint8), geometry_from_json(geometry))
