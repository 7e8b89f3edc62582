"""Everything in a store verified by hash, and repaired where that is possible."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import COVIDLesionSegError, OutputError, ReadError
from ..files import is_unfinished, sha256_file, write_json
from ..locks import exclusive
from ..models.card import tensors_sha256
from .case_files import CaseFiles
from .layout import case_number, numbered
from .records import Case
from .split import StoreSplit
from .store_models import MODEL_FILE, PARTNER_FILE, StoredModel, StoreModels
from .training import folder_sha256

Progress = Callable[[str, int, int], None]
# something that is being written this moment is not what a killed program left
_LEFT_S = 3600.0
_THREADS = 4


@dataclass(frozen=True)
class Finding:
    """One thing that was not as it should be.

    Attributes:
        kind: "repaired", "repairable" (repair was not asked for) or "broken" (needs a person).
        where: case, model or file.
        text: what, and what to do, as a sentence.
    """

    kind: Literal["repaired", "repairable", "broken"]
    where: str
    text: str


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        findings: all that was not as it should be.
        cases: how many were checked.
        files: how many files were verified by hash.
        bytes: their size.
        seconds: that it took.
    """

    findings: tuple[Finding, ...]
    cases: int
    files: int
    bytes: int
    seconds: float

    @property
    def is_sound(self) -> bool:
        """Nothing is broken; what could be repaired was, or can be."""
        return not any(finding.kind == "broken" for finding in self.findings)


@dataclass(frozen=True)
class _Hashed:
    """A file to verify: which, how, and what its hash should be."""

    where: str
    path: Path
    sha256: str
    hashing: Callable[[Path], str] = sha256_file
    hint: str = "Restore it from a backup of the store."


def check(
    files: CaseFiles,
    split: StoreSplit,
    models: StoreModels,
    repair: bool = True,
    find: Path | str | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Verify a store.

    Repaired are: rests of killed programs, indexes that miss a saved revision or prediction, a damaged ``case.json``
    (note, approval, review and choice of label are lost then; the damaged file is kept beside it), locks of programs
    that have ended, cards that lack the gate's decision, and CTs that were referenced and have moved below ``find``.

    Args:
        files: the store's cases.
        split: its split.
        models: its models.
        repair: False only looks.
        find: folder in which CTs that are no longer where they were are looked for, by hash.
        progress: called as progress("checking", done, total), by files.

    Raises:
        OutputError: something is to be repaired, and the store can't be written to.
    """
    start = time.monotonic()
    # locks first: what was being written under one that nobody holds any more is a rest
    findings = [*_locks(files, repair), *_rests(files, repair)]
    cases, broken = _cases(files, repair)
    findings += broken
    stored, broken = _models(models, repair)
    findings += broken + _split(files, split, cases)
    wanted = [item for case in cases for item in _files_of(files, case, findings)] + _files_of_models(models, stored)
    size = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, (item, verdict) in enumerate(zip(wanted, pool.map(_verdict, wanted), strict=True)):
            if progress is not None:
                progress("checking", number, len(wanted))
            size += _size(item.path)
            if verdict:
                findings.append(Finding("broken", item.where, f"{item.path.name} {verdict}. {item.hint}"))
    if find is not None:
        findings = _found_again(files, findings, Path(find), repair)
    if progress is not None:
        progress("checking", len(wanted), len(wanted))
    return CheckReport(tuple(findings), len(cases), len(wanted), size, time.monotonic() - start)


def _verdict(item: _Hashed) -> str:
    try:
        if not item.path.exists():
            return "is missing"
        return "" if item.hashing(item.path) == item.sha256 else "has changed since it was saved"
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    except COVIDLesionSegError as error:
        return f"can't be read ({error})"


def _rests(files: CaseFiles, repair: bool) -> list[Finding]:
    """What programs left that were killed while they wrote."""
    found = []
    limit = time.time() - _LEFT_S
    gone = repair and _writer_is_gone(files)
    for folder, folders, names in os.walk(files.folder):
        # a training's own folder and its slices are the trainer's business
        own = {files.layout.slices, *files.layout.rounds.glob("*/run")}
        folders[:] = [name for name in folders if Path(folder) / name not in own]
        rests = [name for name in [*folders, *names] if is_unfinished(name) or name.endswith(".now")]
        for name in rests:
            path = Path(folder) / name
            if path.is_dir():
                folders.remove(name)
            # a clock that jumped back makes a rest look new: then it stays until the clock has caught up
            if repair and not gone and path.stat().st_mtime > limit:
                continue
            found.append(_done(repair, name, "Left by a program that was ended while it wrote", path))
    for path in files.autosaves.orphans():
        found.append(_done(repair, path.name, "A mask that no autosave names any more", path))
    return found


def _writer_is_gone(files: CaseFiles) -> bool:
    """Nobody has anything open, and nothing is being changed: whatever is unfinished stays unfinished."""
    busy = OutputError("somebody is at work")
    for path in files.layout.locks.iterdir():
        if path.suffix == ".lock":
            return False
        if path.suffix == ".mutex":
            try:
                with exclusive(path, busy):
                    pass
            except OutputError:
                return False
    return True


def _done(repair: bool, where: str, text: str, path: Path) -> Finding:
    if not repair:
        return Finding("repairable", where, f"{text}; it can be removed.")
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return Finding("repaired", where, f"{text}; removed.")


def _locks(files: CaseFiles, repair: bool) -> list[Finding]:
    found = []
    for case_id, lock in files.locks.all().items():
        if lock.abandoned:
            text = f"Left open by {lock.owner} on {lock.host} ({lock.why})"
            if repair:
                files.locks.remove(case_id)
            found.append(
                Finding("repaired" if repair else "repairable", case_id, f"{text}{'; closed' if repair else ''}.")
            )
    return found


def _cases(files: CaseFiles, repair: bool) -> tuple[list[Case], list[Finding]]:
    cases, findings = [], []
    names = sorted((p.name for p in files.layout.cases.iterdir() if case_number(p.name) > 0), key=case_number)
    for name in names:
        try:
            case, found = _case(files, name, repair)
        except ReadError as error:
            findings.append(Finding("broken", name, str(error)))
            continue
        cases.append(case)
        findings += found
    return cases, findings


def _case(files: CaseFiles, name: str, repair: bool) -> tuple[Case, list[Finding]]:
    word: Literal["repaired", "repairable"] = "repaired" if repair else "repairable"
    case = files.stored(name)
    if case is None:
        case = files.rebuilt(name)
        text = "case.json is damaged; it is made anew from the case's other files (note, approval and review are lost)"
        if repair:
            with files.locks.changing(name), files.changed(name):
                pass
        return case, [Finding(word, name, f"{text}.")]
    complete = files.complete(case)
    findings = []
    if complete != case:
        findings.append(Finding(word, name, "Something that was saved was missing from the index; it is there."))
        if repair:
            with files.locks.changing(name), files.changed(name):
                pass
    if complete.label not in ("latest", "consensus") and complete.label_revision is None:
        findings.append(Finding("broken", name, f"Its label is revision {complete.label}, which is not there."))
    return complete, findings


def _files_of(files: CaseFiles, case: Case, findings: list[Finding]) -> Iterator[_Hashed]:
    folder = files.layout.case(case.id)
    try:
        path, series = files.ct_path(case)
    except ReadError as error:
        findings.append(Finding("broken", case.id, str(error)))
    else:
        hint = (
            "Restore it, or add the changed CT as a new case."
            if case.ct.storage == "referenced"
            else "Restore it from a backup of the store."
        )

        def hashing(path: Path) -> str:
            return folder_sha256(path, series) if path.is_dir() else sha256_file(path)

        yield _Hashed(case.id, path, case.ct.sha256, hashing, hint)
    if case.lungs is not None:
        yield _Hashed(case.id, folder / case.lungs.file, case.lungs.sha256)
    for revision in case.revisions:
        yield _Hashed(case.id, files.revision_path(case, revision), revision.sha256)
    for prediction in case.predictions:
        yield _Hashed(case.id, files.prediction_path(case, prediction), prediction.sha256)
        if prediction.levels_sha256:
            yield _Hashed(case.id, files.levels_path(case, prediction), prediction.levels_sha256)


def _models(models: StoreModels, repair: bool) -> tuple[list[StoredModel], list[Finding]]:
    findings: list[Finding] = []
    try:
        stored = models.list()
        models.history()
    except (ReadError, KeyError, TypeError, ValueError) as error:
        return [], [Finding("broken", "models", f"The list of models can't be read: {error}")]
    for model in stored:
        try:
            stale = models.card_lacks_gate(model)
        except COVIDLesionSegError as error:
            findings.append(Finding("broken", model.id, str(error)))
            continue
        if stale:
            if repair:
                models.write_gate_on_card(model)
            findings.append(
                Finding("repaired" if repair else "repairable", model.id, "The gate's decision was not on its card.")
            )
    return stored, findings


def _files_of_models(models: StoreModels, stored: list[StoredModel]) -> list[_Hashed]:
    found = []
    for model in stored:
        folder = models.folder(model.id)
        found.append(_Hashed(model.id, folder / MODEL_FILE, model.tensors_sha256, tensors_sha256))
        if model.partner_sha256:
            found.append(_Hashed(model.id, folder / PARTNER_FILE, model.partner_sha256, tensors_sha256))
    return found


def _split(files: CaseFiles, split: StoreSplit, cases: list[Case]) -> list[Finding]:
    found = []
    if not files.layout.salt_file.is_file():
        found.append(
            Finding(
                "broken",
                "private",
                "private/patient-key.json is missing: no case can be added. Restore it from a backup.",
            )
        )
    try:
        sides = split.sides()
    except (ReadError, KeyError, TypeError, ValueError) as error:
        return [*found, Finding("broken", "split", f"The frozen split can't be read: {error}")]
    known = {case.patient for case in cases} | {act["from"] for act in split.history() if act["act"] == "patient"}
    for patient in sorted(set(sides) - known):
        found.append(Finding("broken", "split", f"The patient {patient} of the split has no case any more."))
    for number in numbered(files.layout.rounds):
        if not (files.layout.rounds / f"{number:04d}" / "round.json").is_file():
            found.append(Finding("repairable", f"round {number}", "It ended before it began; nothing is lost."))
    return found


def _found_again(files: CaseFiles, findings: list[Finding], folder: Path, repair: bool) -> list[Finding]:
    """Look for referenced CTs that are missing, by hash; only files of the right kind are read."""
    from ..imaging import image_suffix

    lost = {
        finding.where: files.case(finding.where)
        for finding in findings
        if finding.kind == "broken"
        and case_number(finding.where) > 0
        and files.case(finding.where).ct.storage == "referenced"
    }
    places: dict[str, Path] = {}
    wanted = {case.ct.sha256: name for name, case in lost.items()}
    for path, hashing in _candidates(folder, image_suffix):
        if not wanted.keys() - places.keys():
            break
        try:
            digest = hashing(path)
        except (OSError, COVIDLesionSegError):
            # not a CT, or not one that can be read: then it is not the one that is looked for
            continue
        if digest in wanted:
            places[digest] = path
    kept = []
    for finding in findings:
        case = lost.get(finding.where)
        if case is None or case.ct.sha256 not in places or finding.kind != "broken":
            kept.append(finding)
            continue
        if repair:
            location = {"path": str(places[case.ct.sha256].resolve()), "series": None}
            write_json(files.layout.location_file(case.id), location)
        kept.append(
            replace(finding, kind="repaired" if repair else "repairable", text="Its CT has moved and was found again.")
        )
    return kept


def _candidates(folder: Path, suffix: Callable[[Path], str]) -> Iterator[tuple[Path, Callable[[Path], str]]]:
    for path, _, names in os.walk(folder):
        files = [Path(path) / name for name in sorted(names)]
        yield from ((file, sha256_file) for file in files if suffix(file))
        if any(not suffix(file) for file in files):
            yield Path(path), folder_sha256


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0
