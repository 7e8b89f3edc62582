"""Who has which case open, on one computer or on several that share a folder.

A lock is a small file with owner, computer and process. It is a courtesy that keeps two people from doing the same
work; that nobody's mask is overwritten does not rest on it (each revision is a folder of its own, which appears once
and is never replaced).

Clocks of different computers differ and jump, so ages come from the file server alone, a negative one counts as none,
and a lock that this process has watched without a sign of life for long enough by its own monotonic clock is abandoned
whatever the clocks say.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from ..documents import read_object
from ..errors import CaseOpenError, OutputError, ReadError
from ..files import write_json
from ..locks import exclusive
from ..processes import boot_id, is_alive, start_time
from .layout import Layout, now
from .records import LockInfo

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

    def acquire(self, case_id: str, owner: str, take_over: bool = False) -> str:
        """Open a case.

        Args:
            case_id: which.
            owner: rater.
            take_over: also when somebody else has it open.

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
            self._write(case_id, owner, token, 0, now())
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
            self._write(case_id, values["owner"], token, values["renewals"] + 1, values["since"])

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

    def _write(self, case_id: str, owner: str, token: str, renewals: int, since: str) -> None:
        values = {"owner": owner, "token": token, "renewals": renewals, "since": since, **_this_process()}
        write_json(self._file(case_id), values)

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
        abandoned, why = self._judged(values, age)
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
        )

    def _judged(self, values: dict[str, Any], age: float) -> tuple[bool, str]:
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


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": boot_id(), "pid": pid, "started": start_time(pid)}
