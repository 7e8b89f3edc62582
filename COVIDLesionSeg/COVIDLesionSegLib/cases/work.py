"""Work in progress: who has which case open, on one computer or on several that share a folder, and what is not saved.

A lock is a small file with owner, computer and process. It is a courtesy that keeps two people from doing the same
work; that nobody's mask is overwritten does not rest on it (each revision is a folder of its own, which appears once
and is never replaced).

Clocks of different computers differ and jump, so ages come from the file server alone, a negative one counts as none,
and a lock that this process has watched without a sign of life for long enough by its own monotonic clock is abandoned
whatever the clocks say.

Autosaves are kept while somebody edits, so that a crash costs a minute and not an afternoon.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..codec import from_json, to_json
from ..documents import read_object
from ..errors import CaseOpenError, OutputError, ReadError
from ..files import sha256_file, write_json
from ..imaging.volume import LabelVolume
from ..locks import exclusive
from ..processes import boot_id, is_alive, start_time
from .layout import Layout, case_number, now, read_json
from .records import LockInfo

_log = logging.getLogger(__name__)
# the owner's program renews its lock each minute
RENEW_S = 60.0
ABANDONED_S = 15 * 60.0
_WAIT_S = 20.0


class WorkLocks:
    """The locks of a store.

    Args:
        layout: of the store.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._watched: dict[str, tuple[int, float]] = {}

    def changing(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Be the only one who changes the files of a case (or of the store, by another name) inside the block."""
        busy = OutputError(f"Another program is changing {name} of the store; try again in a moment.")
        hint = "The store is read-only here: you can look at it, but save nothing. Ask for write access."
        return exclusive(self._layout.mutex(name), busy, _WAIT_S, hint)

    def all(self) -> dict[str, LockInfo]:
        """The locks there are, by case."""
        try:
            names = [entry.name for entry in os.scandir(self._layout.locks) if entry.name.endswith(".lock")]
        except FileNotFoundError:
            return {}
        clock = self._server_time() if names else 0.0
        found = [self._read(name.removesuffix(".lock"), clock) for name in sorted(names)]
        return {lock.case: lock for lock in found if lock is not None}

    def of(self, case_id: str) -> LockInfo | None:
        """The lock of a case."""
        return self._read(case_id, self._server_time()) if self._file(case_id).exists() else None

    def acquire(self, case_id: str, owner: str, take_over: bool = False, blind: bool = False) -> str:
        """Open a case.

        Args:
            case_id: which.
            owner: rater.
            take_over: also when somebody else has it open.
            blind: it is read without any model's prediction.

        Returns:
            The token that :meth:`renew` and :meth:`release` need.

        Raises:
            CaseOpenError: somebody has it open who is not known to be gone.
            OutputError: the store can't be written to.
        """
        with self.changing(case_id):
            lock = self.of(case_id)
            if lock is not None and not lock.abandoned and not take_over:
                raise CaseOpenError(
                    f"{case_id} is open: {lock} ({lock.why}).",
                    "Take another case, or take it over if you know that nobody works on it.",
                )
            token = secrets.token_hex(8)
            self._write(case_id, {"owner": owner, "token": token, "renewals": 0, "since": now(), "blind": blind})
            return token

    def renew(self, case_id: str, token: str) -> None:
        """Give a sign of life.

        Raises:
            CaseOpenError: somebody else has taken the case over meanwhile.
        """
        with self.changing(case_id):
            values = self._values(case_id)
            if values is None or values["token"] != token:
                by = "somebody removed its lock" if values is None else f"{values['owner']} took it over"
                raise CaseOpenError(
                    f"{case_id} is no longer open for you: {by}.",
                    "What you save becomes a revision of its own; nobody's work is overwritten.",
                )
            self._write(case_id, {**values, "renewals": values["renewals"] + 1})

    def release(self, case_id: str, token: str) -> None:
        """Close a case; nothing happens when somebody else has it by now."""
        with self.changing(case_id):
            values = self._values(case_id)
            if values is not None and values["token"] == token:
                self._file(case_id).unlink(missing_ok=True)

    def remove(self, case_id: str) -> LockInfo | None:
        """Remove the lock of a case, whoever holds it; returns what it was."""
        with self.changing(case_id):
            lock = self.of(case_id)
            self._file(case_id).unlink(missing_ok=True)
            return lock

    def _file(self, case_id: str) -> Path:
        return self._layout.locks / f"{case_id}.lock"

    def is_blind(self, case_id: str, token: str | None) -> bool:
        """Whether who holds this token reads the case blind; False for one that no longer holds."""
        values = self._values(case_id)
        return values is not None and values["token"] == token and bool(values.get("blind"))

    def _write(self, case_id: str, values: Mapping[str, Any]) -> None:
        write_json(self._file(case_id), {**values, **_this_process()})

    def _values(self, case_id: str) -> dict[str, Any] | None:
        try:
            values = read_object(self._file(case_id))
            values["token"], values["owner"], values["renewals"], values["host"], values["pid"], values["since"]
        except FileNotFoundError:
            return None
        except (ReadError, KeyError):
            # locks appear whole or not at all: one that can't be read was damaged by something else
            return {"owner": "unknown", "token": "", "renewals": 0, "host": "unknown", "pid": 0, "since": "unknown"}
        return values

    def _read(self, case_id: str, clock: float) -> LockInfo | None:
        values = self._values(case_id)
        if values is None:
            return None
        try:
            changed = self._file(case_id).stat().st_mtime
        except FileNotFoundError:
            return None
        age = max(0.0, clock - changed)
        abandoned, why = self._state(values, age)
        return LockInfo(
            case_id,
            str(values["owner"]),
            str(values["host"]),
            int(values["pid"]),
            str(values["since"]),
            age,
            abandoned,
            why,
            str(values["token"]),
            bool(values.get("blind")),
        )

    def _state(self, values: dict[str, Any], age: float) -> tuple[bool, str]:
        here = _this_process()
        # where the system does not tell one computer from another, the process may be another computer's
        if here["machine"] and all(values.get(name) == here[name] for name in ("host", "machine")):
            pid = int(values["pid"])
            alive = is_alive(pid) and values.get("started") in (None, start_time(pid))
            return not alive, "the program still runs on this computer" if alive else "its program has ended"
        token, renewals, clock = str(values["token"]), int(values["renewals"]), time.monotonic()
        seen = self._watched.get(token)
        if seen is None or seen[0] != renewals:
            seen = self._watched[token] = (renewals, clock)
        silent = max(age, clock - seen[1])
        if silent > ABANDONED_S:
            return True, f"no sign of life for more than {ABANDONED_S / 60:.0f} minutes"
        return False, "its program gave a sign of life not long ago"

    def _server_time(self) -> float:
        """Now, by the clock that stamps the files of the store."""
        probe = self._layout.locks / f".{secrets.token_hex(4)}.now"
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            # a store that is read-only here: this computer's clock has to do
            return time.time()
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


@dataclass(frozen=True)
class Autosave:
    """One piece of unsaved work.

    Attributes:
        case: id.
        rater: whose.
        seconds: time spent so far.
        file: name of the mask in the store's folder of autosaves.
        sha256: of the file.
        saved: when, UTC.
        blind: it was begun without any model's prediction.
    """

    case: str
    rater: str
    seconds: float
    file: str
    sha256: str
    saved: str
    blind: bool = False


class Autosaves:
    """The autosaves of a store: at most one for each case and rater.

    Args:
        layout: of the store.
    """

    def __init__(self, layout: Layout) -> None:
        self._folder = layout.autosave

    def raters(self) -> Mapping[str, tuple[str, ...]]:
        """Case -> raters who have unsaved work on it."""
        found: dict[str, tuple[str, ...]] = {}
        try:
            names = sorted(entry.name for entry in os.scandir(self._folder))
        except FileNotFoundError:
            return {}
        for name in names:
            case, _, rater = name.removesuffix(".json").partition(".")
            # other programs leave files of their own in any folder
            if name.endswith(".json") and case_number(case) > 0 and rater:
                found[case] = (*found.get(case, ()), rater)
        return found

    def write(self, case_id: str, rater: str, labels: LabelVolume, seconds: float, blind: bool = False) -> Autosave:
        """Keep unsaved work in place of the rater's earlier one on this case.

        Raises:
            OutputError: the disk is full or read-only; the earlier autosave stays.
        """
        from ..imaging import write_labels

        before = self.read(case_id, rater)
        name = f"{case_id}.{rater}.{secrets.token_hex(4)}.seg.nrrd"
        write_labels(labels, self._folder / name, crop=True)
        saved = Autosave(case_id, rater, round(seconds, 1), name, sha256_file(self._folder / name), now(), blind)
        # the record is what counts: until it is there, the earlier mask is the autosave
        write_json(self._record(case_id, rater), to_json(saved))
        if before is not None:
            (self._folder / before.file).unlink(missing_ok=True)
        return saved

    def read(self, case_id: str, rater: str) -> Autosave | None:
        """A rater's unsaved work on a case, or None; what is damaged is logged and counts as none."""
        path = self._record(case_id, rater)
        if not path.exists():
            return None
        try:
            return from_json(Autosave, read_json(path))
        except ValueError as error:
            _log.warning("The autosave %s can't be read: %s", path.name, error)
            return None

    def mask(self, autosave: Autosave) -> LabelVolume | None:
        """The mask of an autosave, or None where its file is damaged."""
        from ..imaging import read_labels

        path = self._folder / autosave.file
        if not path.is_file() or sha256_file(path) != autosave.sha256:
            _log.warning("The autosave %s is damaged and left aside.", path.name)
            return None
        return read_labels(path)

    def remove(self, case_id: str, rater: str) -> None:
        """Forget unsaved work, because it was saved or is not wanted."""
        saved = self.read(case_id, rater)
        self._record(case_id, rater).unlink(missing_ok=True)
        if saved is not None:
            (self._folder / saved.file).unlink(missing_ok=True)

    def orphans(self) -> list[Path]:
        """Masks that no record names: what a killed program left."""
        named = {
            saved.file
            for case, raters in self.raters().items()
            for rater in raters
            if (saved := self.read(case, rater)) is not None
        }
        if not self._folder.is_dir():
            return []
        return sorted(p for p in self._folder.iterdir() if p.name.endswith(".seg.nrrd") and p.name not in named)

    def _record(self, case_id: str, rater: str) -> Path:
        return self._folder / f"{case_id}.{rater}.json"


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": boot_id(), "pid": pid, "started": start_time(pid)}
