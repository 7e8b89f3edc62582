"""The tasks of a worker of kind "measurement" that work on a case store as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from ..cases.agreement import agreement_table, make_consensus, summary
from ..cases.case_files import KnownCtError
from ..cases.split import unnamed
from ..cases.store import Store
from ..errors import COVIDLesionSegError, InputError
from ..imaging import dicom_files, image_suffix
from .case_overview import OpenStore, overview
from .tasks import Answer, Work


class StoreTasks:
    """Tasks about a case store. Each takes ``store``, its folder.

    ``store_create``: makes an empty store. ``store_overview``: answers what a work list shows, see
    :func:`.case_overview.overview`.
    ``store_add``: ``folder`` with CTs, ``copy``; answers ``done``, ``known`` and ``failed``.

    ``review_decide``: ``case``, ``slice``, ``decision``, ``by``. ``store_agreement``: ``rows``, ``summary``.
    ``case_consensus``: ``cases``. ``store_model``: ``act`` ("default", "override"), ``model``, ``by``, ``reason``,
    ``accept``. ``store_import``: ``source``, ``layout``, ``rater``, ``copy``, ``approve``, ``empty_is_lesion_free``,
    ``label``. ``store_export``: ``folder``, ``number``, ``name``. ``store_check``: ``repair``, ``find``.

    ``store_move``: moves the patient of ``case`` to the ``side`` "train" or "validation" of the split: ``by``,
    ``reason``. Answers ``patient``, ``side`` and ``cases``, the patient's.

    Args:
        stores: the store that is open.
    """

    def __init__(self, stores: OpenStore) -> None:
        self._stores = stores
        self.tasks: Mapping[str, Callable[[Work], Answer]] = {
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

    def create(self, work: Work) -> Answer:
        """Make a store."""
        folder = work.need("store", str)
        work.finish()
        return Answer(overview(self._stores.keep(folder, Store.create(folder)), ""))

    def overview(self, work: Work) -> Answer:
        """What there is."""
        folder, rater = work.need("store", str), work.take("rater", str, "")
        work.finish()
        return Answer(overview(self._stores.at(folder), rater))

    def add_folder(self, work: Work) -> Answer:
        """Add all CTs of a folder."""
        store, folder, copy = self._stores.of(work), Path(work.need("folder", str)), work.take("copy", bool, True)
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
        store, case_id, index = self._stores.of(work), work.need("case", str), work.need("slice", int)
        decision, by = work.need("decision", str), work.need("by", str)
        work.finish()
        return Answer({"item": asdict(store.review.decide(case_id, index, decision, by))})

    def agreement(self, work: Work) -> Answer:
        """How far raters agree."""
        store = self._stores.of(work)
        work.finish()
        rows = agreement_table(store)
        labels = {case.id: case.label for case in store.cases() if len(case.raters) > 1}
        return Answer({"rows": [asdict(row) for row in rows], "summary": summary(rows), "labels": labels})

    def consensus(self, work: Work) -> Answer:
        """Make the consensus of cases and let it train."""
        store, names = self._stores.of(work), work.need("cases", list)
        work.finish()
        made = {}
        for number, name in enumerate(names):
            work.check()
            work.progress("finding the consensus", number, len(names))
            made[name] = make_consensus(store, name).lesion_ml
        return Answer({"made": made})

    def model(self, work: Work) -> Answer:
        """Choose the default model, or decide against the gate."""
        store, act, model = self._stores.of(work), work.need("act", str), work.need("model", str)
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
        store, source = self._stores.of(work), work.need("source", str)
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
        store, folder = self._stores.of(work), work.need("folder", str)
        number, name = work.take("number", int, 501), work.take("name", str, "COVIDLesion")
        work.finish()
        target = store.export_nnunet(folder, number, name, work.progress, work.is_cancelled)
        return Answer({"folder": str(target)})

    def check(self, work: Work) -> Answer:
        """Verify everything."""
        store, repair, find = self._stores.of(work), work.take("repair", bool, True), work.take("find", str)
        work.finish()
        report = store.check(repair, find, work.progress)
        return Answer({**asdict(report), "is_sound": report.is_sound})

    def move(self, work: Work) -> Answer:
        """Move a patient to the other side of the split."""
        store, case_id, side = self._stores.of(work), work.need("case", str), work.need("side", str)
        by, reason = work.need("by", str), work.take("reason", str, "")
        work.finish()
        patient = store.case(case_id).patient
        store.split.move(patient, side, by, reason)
        cases = [case.id for case in store.cases() if case.patient == patient]
        return Answer({"patient": patient, "side": side, "cases": cases})


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
