"""Where things lie in a store, and its version; ``docs/case-store.md`` is the description for people."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import documents
from ..errors import InputError, ReadError

FORMAT = "covid-lesion-seg case store"
VERSION = 3
_RATER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_CASE = re.compile(r"case-(\d{4,})")
CONSENSUS = "consensus"


class Layout:
    """The paths of a store.

    Attributes:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store_file = root / "store.json"
        self.split_file = root / "split.json"
        self.cases = root / "cases"
        self.locks = root / "locks"
        self.autosave = root / "autosave"
        self.models = root / "models"
        self.figures = root / "figures"
        self.rounds = root / "rounds"
        # what trainings have cut out of the cases; may be removed at any time, and is made again
        self.slices = root / "slices"
        # everything that may lead back to a person; a store is given away without it
        self.private = root / "private"
        self.salt_file = self.private / "patient-key.json"

    def case(self, case_id: str) -> Path:
        """Folder of a case.

        Raises:
            InputError: the id is none, and might lead out of the store.
        """
        if not _CASE.fullmatch(case_id):
            raise InputError(f"{case_id!r} is no case's id; they are called case-0001 and so on.")
        return self.cases / case_id

    def case_file(self, case_id: str) -> Path:
        """What is known of a case; rewritten at each change."""
        return self.case(case_id) / "case.json"

    def origin_file(self, case_id: str) -> Path:
        """What never changes about a case."""
        return self.case(case_id) / "origin.json"

    def revisions(self, case_id: str) -> Path:
        """Folder of a case's revisions."""
        return self.case(case_id) / "revisions"

    def predictions(self, case_id: str) -> Path:
        """Folder of the predictions of models for a case."""
        return self.case(case_id) / "predictions"

    def location_file(self, case_id: str) -> Path:
        """Where the CT of a case lies that was not copied."""
        return self.private / "locations" / f"{case_id}.json"

    def identity_file(self, case_id: str) -> Path:
        """Who a case is, kept only when that was asked for."""
        return self.private / "identity" / f"{case_id}.json"

    def mutex(self, name: str) -> Path:
        """Lock file that is held while a file of the store is changed."""
        return self.locks / f"{name}.mutex"


def read_json(path: Path) -> Any:
    """A JSON file of the store.

    Raises:
        ReadError: not there, or damaged.
    """
    try:
        return documents.read_json(path)
    except FileNotFoundError as error:
        raise ReadError(f"{path} is not there.", "Run `covid-lesion-seg cases check` on the store.") from error
    except ReadError as error:
        raise ReadError(
            f"{path} is damaged or can't be read ({error}).", "Run `covid-lesion-seg cases check` on the store."
        ) from error


def store_values(root: Path) -> dict[str, Any]:
    """Content of ``store.json``.

    Raises:
        ReadError: no store there, or its file is damaged.
        InputError: the store's version is not the one that this program reads and writes.
    """
    path = root / "store.json"
    if not path.is_file():
        raise ReadError(
            f"{root} is no case store: it has no store.json.", f"`covid-lesion-seg cases create {root}` makes one."
        )
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("version"), int):
        raise ReadError(f"{path} is not the file of a case store.")
    version = values["version"]
    if version > VERSION:
        raise InputError(
            f"The case store {root.name} has version {version}; this program works with version {VERSION}.",
            "Update COVIDLesionSeg to work with it; nothing was changed.",
        )
    if version < VERSION:
        raise InputError(
            f"The case store {root.name} has version {version}, which was never released; "
            f"this program works with version {VERSION}.",
            "Make a new store and import the masks into it; nothing was changed.",
        )
    return values


def is_store(path: Path | str) -> bool:
    """Whether a folder is a case store, of whatever version."""
    try:
        values = documents.read_json(Path(path) / "store.json")
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("format") == FORMAT


def check_rater(rater: str) -> str:
    """The rater's name, if it can be part of a file name.

    Raises:
        InputError: it can't, or it is the name of the consensus.
    """
    if not _RATER.fullmatch(rater):
        raise InputError(
            f"The rater {rater!r} is not allowed; use up to 40 letters, digits, '-' and '_', e.g. initials."
        )
    if rater.lower() == CONSENSUS:
        raise InputError(f"The name {CONSENSUS!r} is kept for the consensus of several raters; choose another one.")
    return rater


def case_number(case_id: str) -> int:
    """The number in a case's id, or -1 for a name that is no case id."""
    match = _CASE.fullmatch(case_id)
    return int(match[1]) if match else -1


def case_name(number: int) -> str:
    """The id of the case with this number."""
    return f"case-{number:04d}"


def numbered(folder: Path) -> list[int]:
    """Numbers of the finished folders ``0001``, ``0002``, ... in a folder."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def now() -> str:
    """The time for people to read, UTC; nothing is ordered by it, because clocks jump."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 slice", "2 slices"."""
    return f"{number} {what}" + ("" if number == 1 else "s")
