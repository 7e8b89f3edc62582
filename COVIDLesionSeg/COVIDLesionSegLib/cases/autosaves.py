"""Unsaved work, kept while somebody edits, so that a crash costs a minute and not an afternoon."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ReadError
from ..files import is_unfinished, sha256_file, write_json
from ..imaging.volume import LabelVolume
from .layout import Layout, now, read_json
from .masks import lesion_names
from .records import from_mapping

_log = logging.getLogger(__name__)


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
    """

    case: str
    rater: str
    seconds: float
    file: str
    sha256: str
    saved: str


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
            if name.endswith(".json") and not is_unfinished(name):
                case, rater = name.removesuffix(".json").split(".", 1)
                found[case] = (*found.get(case, ()), rater)
        return found

    def write(self, case_id: str, rater: str, labels: LabelVolume, seconds: float) -> Autosave:
        """Keep unsaved work in place of the rater's earlier one on this case.

        Raises:
            OutputError: the disk is full or read-only; the earlier autosave stays.
        """
        from ..imaging import write_labels

        before = self.read(case_id, rater)
        name = f"{case_id}.{rater}.{secrets.token_hex(4)}.seg.nrrd"
        write_labels(lesion_names(labels), self._folder / name, crop=True)
        saved = Autosave(case_id, rater, round(seconds, 1), name, sha256_file(self._folder / name), now())
        # the record is what counts: until it is there, the earlier mask is the autosave
        write_json(self._record(case_id, rater), asdict(saved))
        if before is not None:
            (self._folder / before.file).unlink(missing_ok=True)
        return saved

    def read(self, case_id: str, rater: str) -> Autosave | None:
        """A rater's unsaved work on a case, or None; what is damaged is logged and counts as none."""
        path = self._record(case_id, rater)
        if not path.exists():
            return None
        try:
            return from_mapping(Autosave, read_json(path))
        except (ReadError, TypeError) as error:
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
