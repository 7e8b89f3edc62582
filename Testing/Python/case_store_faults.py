"""Kills a process at every point at which the case store writes, and looks at what is left.

    python case_store_faults.py INPUTS SCRATCH STRIDE [OPERATION ...]

STRIDE 1 tries every point, 10 every tenth. INPUTS holds what :func:`case_fixtures.write_ct` and ``write_model`` wrote.
Each operation of the store runs in a child on a copy of a small store. A write point is a call that changes the file
system: making, renaming and removing files and folders, opening for writing, flushing to disk, an image written by ITK.
The child ends before the call, and, where a file is flushed, also with half of the file gone. Then another child opens
the store, and checks that all that was there before is there still, that a check leaves it sound, and that the same
operation can be done again.

Prints one JSON object: operation -> number of points, of trials, and the sentences of what went wrong.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from case_fixtures import decision, lesion

# imported before any fork, so that each child need not do it again
import COVIDLesionSegLib.cases.checking
import COVIDLesionSegLib.cases.queue
import COVIDLesionSegLib.imaging
import COVIDLesionSegLib.learning.data
import COVIDLesionSegLib.measurement.raters  # noqa: F401
from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.cases.agreement import make_consensus
from COVIDLesionSegLib.codec import to_json

INPUTS, SCRATCH = (Path(name) for name in sys.argv[1:3]) if len(sys.argv) > 2 else (Path(), Path())
FLUSH = "fsync"
Operation = Callable[[Store], Any]


class Points:
    """Counts the calls that change the file system, and ends the process at one of them."""

    def __init__(self, last: int = -1, torn: bool = False) -> None:
        self.names: list[str] = []
        self._last, self._torn = last, torn

    def reached(self, name: str, descriptor: int | None = None) -> None:
        if len(self.names) == self._last:
            if self._torn and descriptor is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os._exit(9)
        self.names.append(name)

    def watch(self) -> None:
        for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "link"):
            self._wrap(os, name)
        self._wrap(sitk, "WriteImage")
        self._wrap(shutil, "copyfile")
        flush, opened, low_level = os.fsync, io.open, os.open

        def watched_flush(descriptor: int) -> None:
            self.reached(FLUSH, descriptor)
            flush(descriptor)

        def watched_open(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if set(mode) & set("wax+"):
                self.reached("open")
            return opened(file, mode, *arguments, **named)

        def watched_low_level(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            if flags & os.O_CREAT:
                self.reached("create")
            return low_level(path, flags, *arguments, **named)

        os.fsync, os.open = watched_flush, watched_low_level
        io.open = builtins.open = watched_open

    def _wrap(self, module: Any, name: str) -> None:
        original = getattr(module, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            self.reached(name)
            return original(*arguments, **named)

        setattr(module, name, watched)


# --- what is done ----------------------------------------------------------------------------------------------------


def prepared(folder: Path) -> None:
    """A store in which everything occurs once."""
    store = Store.create(folder)
    for number in (1, 2, 3):
        store.add(INPUTS / f"{number}.nii.gz", patient=f"Patient {number}")
        store.set_prediction(f"case-000{number}", np.roll(lesion(number), 1, 2), "toy", record={"model": {}})
        store.save_revision(f"case-000{number}", lesion(number), "anna", seconds=60)
    store.save_revision("case-0001", np.roll(lesion(1), 1, 1), "bert")
    store.approve("case-0002", "chief")
    store.set_note("case-0003", "keep me")
    store.split.freeze(["case-0003"])
    store.models.add(
        INPUTS / "toy.safetensors",
        "toy",
        1,
        split=store.split.statement([store.case("case-0003")]),
        trained_on={"name": "cases"},
    )
    labels = {"case-0001": store.case("case-0001").label_revision.sha256}
    rows = [{"case": "case-0001", "slice": n, "score": 1.0, "reason": "loss"} for n in (1, 2)]
    store.review.add(rows, labels, 1)
    with store.open("case-0003", "bert") as session:
        session.autosave(lesion(5))


def gate_decision(store: Store) -> Any:
    return decision(model_id(store), "toy", [0.8], [0.8], split=store.split.statement([store.case("case-0003")]))


def model_id(store: Store) -> str:
    return f"{store.id[:6]}-round-001"


def worked(store: Store) -> None:
    with store.open("case-0002", "anna") as session:
        session.renew()
        session.autosave(lesion(4))
        session.save(lesion(6))


def recovered(store: Store) -> None:
    with store.open("case-0003", "bert") as session:
        assert session.recovered is not None or store.case("case-0003").latest("bert") is not None
        session.save(session.start_mask)


def without_split(folder: Path) -> None:
    (folder / "split.json").unlink()


def one_patient_new(folder: Path) -> None:
    values = json.loads((folder / "split.json").read_text())
    values["patients"].pop(Store(folder).case("case-0002").patient)
    (folder / "split.json").write_text(json.dumps(values))


def damaged(folder: Path) -> None:
    case = folder / "cases" / "case-0001" / "case.json"
    case.write_text(case.read_text()[:99])
    behind = folder / "cases" / "case-0002" / "case.json"
    values = json.loads(behind.read_text())
    behind.write_text(json.dumps({**values, "revisions": [], "predictions": []}))
    (folder / "autosave" / "case-0009.anna.0011aabb.seg.nrrd").write_bytes(b"half")
    (folder / "cases" / ".0011aabb.part.case-0004" / "revisions").mkdir(parents=True)
    lock = {"owner": "eve", "host": "gone", "pid": 1, "token": "t", "renewals": 0, "since": "then"}
    (folder / "locks" / "case-0001.lock").write_text(json.dumps(lock))
    os.utime(folder / "locks" / "case-0001.lock", (0, 0))
    model = next((folder / "models").glob("*/model.json"))
    store = Store(folder)
    gate = to_json(gate_decision(store))
    model.write_text(json.dumps({**json.loads(model.read_text()), "gate": gate}))


# operations whose store can't be opened before
WITHOUT_STORE = ("make a store",)
# what an operation begins with instead of the usual store
STARTS: dict[str, Callable[[Path], None]] = {
    "make a store": lambda folder: (shutil.rmtree(folder), folder.mkdir())[1],
    "freeze the split": without_split,
    "extend the split": one_patient_new,
    "check and repair": damaged,
}
OPERATIONS: dict[str, Operation] = {
    "make a store": lambda store: (store.folder / "store.json").exists() or Store.create(store.folder),
    "add a copy": lambda store: store.add(INPUTS / "4.nii.gz", patient="Patient 4"),
    "add a reference": lambda store: store.add(INPUTS / "4.nii.gz", copy=False, keep_identity=True),
    "store a prediction": lambda store: store.set_prediction("case-0002", lesion(7), "toy", lungs=lesion(8)),
    "open, autosave, save, close": worked,
    "recover and save": recovered,
    "save a revision": lambda store: store.save_revision("case-0002", lesion(9), "bert"),
    "save no lesion": lambda store: store.save_revision("case-0002", lesion(9) & False, "bert", no_lesion=True),
    "make a consensus": lambda store: make_consensus(store, "case-0001"),
    "approve": lambda store: store.approve("case-0003", "chief"),
    "exclude": lambda store: store.exclude("case-0002", "motion"),
    "write a note": lambda store: store.set_note("case-0001", "a note"),
    "choose a label": lambda store: store.set_label("case-0001", 1),
    "freeze the split": lambda store: store.split.is_frozen or store.split.freeze(["case-0003"]),
    "extend the split": lambda store: store.split.extend(),
    "say whose a case is": lambda store: store.split.set_patient("case-0002", "case-0003", "chief"),
    "move a patient": lambda store: (
        store.split.side(store.case("case-0002")) == "validation"
        or store.split.move("case-0002", "validation", "chief", "wanted")
    ),
    "review": lambda store: store.review.decide("case-0001", 1, "fix", "anna"),
    "extend the review": lambda store: store.review.add(
        [{"case": "case-0001", "slice": 4, "score": 1.0, "reason": "loss"}],
        {"case-0001": store.case("case-0001").label_revision.sha256},
        2,
    ),
    "take a model in": lambda store: store.models.add(
        INPUTS / "toy.safetensors", "toy", 2, split={}, trained_on={"name": "cases"}, partner=INPUTS / "toy.safetensors"
    ),
    "record the gate": lambda store: store.models.record_gate(model_id(store), gate_decision(store)),
    "choose the default": lambda store: (
        store.models.record_gate(model_id(store), replace(gate_decision(store), verdict="passed")),
        store.models.set_default(model_id(store), "chief"),
    ),
    "check and repair": lambda store: store.check(),
}


# --- what is looked at -----------------------------------------------------------------------------------------------


def facts(folder: Path) -> dict[str, Any]:
    """All that a store holds and that an operation may only add to; a check compares the files with their hashes."""
    store = Store(folder)
    found: dict[str, Any] = {}
    for case in store.cases():
        found[f"{case.id} patient"] = case.patient
        found[f"{case.id} note"] = case.note
        for revision in case.revisions:
            found[f"{case.id} r{revision.number}"] = (revision.rater, revision.seconds, revision.sha256)
        for prediction in case.predictions:
            found[f"{case.id} p{prediction.number}"] = (prediction.model_id, prediction.sha256)
        for item in case.review:
            found[f"{case.id} review {item.slice} {item.label_sha256}"] = item.reason
        found[f"{case.id} ct"] = case.ct.sha256
    found |= {f"split {patient}": True for patient in store.split.sides()}
    found |= {f"model {model.id}": model.weights_sha256 for model in store.models.list()}
    found |= {f"default {place}": act["model"] for place, act in enumerate(store.models.history())}
    # as it comes through a pipe
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


# what an operation is to change
CHANGES = {"write a note": "case-0001 note", "say whose a case is": "case-0002 patient"}


def lost(before: dict[str, Any], after: dict[str, Any], changed: str) -> list[str]:
    return [
        f"{key}: {value} became {after.get(key)}"
        for key, value in before.items()
        if after.get(key) != value and CHANGES.get(changed) != key
    ]


def looked_at(folder: Path, name: str, before: dict[str, Any]) -> list[str]:
    wrong = []
    if name in WITHOUT_STORE:
        OPERATIONS[name](_Folder(folder))
    wrong += [f"at once: {text}" for text in lost(before, facts(folder), name)]
    if name == "recover and save":
        store = Store(folder)
        if not store.case("case-0003").unsaved and store.case("case-0003").latest("bert") is None:
            wrong.append("the unsaved work is gone, and no revision holds it")
    report = Store(folder).check()
    wrong += [f"check: {finding.where}: {finding.text}" for finding in report.findings if finding.kind == "broken"]
    again = Store(folder).check()
    wrong += [f"second check: {finding.where}: {finding.text}" for finding in again.findings]
    wrong += [f"after the check: {text}" for text in lost(before, facts(folder), name)]
    try:
        OPERATIONS[name](Store(folder))
    except Exception as error:
        if "in the store already" not in str(error):
            wrong.append(f"again: {type(error).__name__}: {error}")
    return wrong


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Exit status of a child that does some work, and what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 0
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                json.dump(work(), pipe)
        except BaseException:
            traceback.print_exc()
            status = 1
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def counted(folder: Path, name: str) -> list[str]:
    points = Points()
    store = Store(folder) if name not in WITHOUT_STORE else _Folder(folder)
    points.watch()
    OPERATIONS[name](store)
    return points.names


def killed(folder: Path, name: str, point: int, torn: bool) -> None:
    points = Points(point, torn)
    store = Store(folder) if name not in WITHOUT_STORE else _Folder(folder)
    points.watch()
    OPERATIONS[name](store)


class _Folder:
    """In place of a store that can't be opened yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder


def main() -> int:
    base = SCRATCH / "base"
    status, _ = in_child(lambda: prepared(base))
    assert status == 0, "the store for the trials could not be made"
    _, whole = in_child(lambda: facts(base))
    stride = int(sys.argv[3])
    wanted = sys.argv[4:] or list(OPERATIONS)
    results = {}
    for name in wanted:
        start, before = SCRATCH / "start", whole
        shutil.copytree(base, start)
        if name in STARTS:
            in_child(lambda: STARTS[name](start))  # noqa: B023
        if name == "make a store":
            before = {}
        else:
            _, before = in_child(lambda: facts(start))  # noqa: B023
        trial = SCRATCH / "trial"
        shutil.copytree(start, trial)
        status, names = in_child(lambda: counted(trial, name))  # noqa: B023
        assert status == 0, f"{name} does not work without any fault"
        shutil.rmtree(trial)
        wrong = []
        trials = [(n, False) for n in range(len(names))] + [(n, True) for n, what in enumerate(names) if what == FLUSH]
        # another offset for each operation, so that a sparse run meets all kinds of points
        trials = trials[len(results) % stride :: stride]
        for point, torn in trials:
            shutil.copytree(start, trial)
            status, _ = in_child(lambda: killed(trial, name, point, torn))  # noqa: B023
            if status != 9:
                wrong.append(f"point {point} ({names[point]}): ended with {status} instead of being killed")
            status, found = in_child(lambda: looked_at(trial, name, before))  # noqa: B023
            if status:
                found = [f"the store could not be looked at (status {status})"]
            wrong += [f"point {point} ({names[point]}{', torn' if torn else ''}): {text}" for text in found]
            shutil.rmtree(trial)
        shutil.rmtree(start)
        results[name] = {"points": len(names), "trials": len(trials), "wrong": wrong}
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
