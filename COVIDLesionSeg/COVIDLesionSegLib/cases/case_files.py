"""The files of a case: what never changes, what does, and the numbered folders that are only ever added."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from ..documents import MOST_JSON_BYTES, parse_json
from ..errors import OutputError, ReadError
from ..files import atomic_folder, read_bytes, sha256_file, write_json
from ..imaging.volume import LabelVolume
from .layout import CONSENSUS, Layout, numbered, read_json
from .masks import lesion_names
from .records import Case, Prediction, Revision, from_mapping, revision_from_json

_log = logging.getLogger(__name__)
Numbered = TypeVar("Numbered", Prediction, Revision)


class CaseFiles:
    """Reads and writes the files of cases.

    ``case.json`` is an index with the things that change; what counts are the numbered folders of revisions and answers
    that appear whole and are never replaced. Where the two differ, a program was killed between them.

    Args:
        layout: of the store.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[str, tuple[tuple[int, int, int], Case]] = {}

    def read(self, case_id: str) -> Case:
        """A case as its file says; read again only when the file changed. A damaged one is rebuilt in memory.

        Raises:
            ReadError: the file can't be read now, or the files to rebuild it from are damaged, too.
        """
        path = self._layout.case_file(case_id)
        try:
            status = path.stat()
        except FileNotFoundError:
            return self.rebuilt(case_id)
        except OSError as error:
            raise _unreadable(path, error) from error
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._known.get(case_id)
        if known is not None and known[0] == state:
            return known[1]
        case = self.stored(case_id)
        if case is None:
            return self.rebuilt(case_id)
        self._known[case_id] = (state, case)
        return case

    def stored(self, case_id: str) -> Case | None:
        """A case as its file says this moment; None where the file is missing or damaged.

        A file that can't be read is not taken for damaged: rebuilt and written, it would lose what only it holds.

        Raises:
            ReadError: the file can't be read now.
        """
        path = self._layout.case_file(case_id)
        try:
            content = read_bytes(path, MOST_JSON_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            return Case.from_json(parse_json(content, path.name))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _log.warning("%s is damaged (%s); `cases check` repairs it.", path, error)
            return None

    def rebuilt(self, case_id: str) -> Case:
        """A case from what never changes; note, review, approval and choice of label are lost.

        Raises:
            ReadError: that is damaged, too.
        """
        origin = read_json(self._layout.origin_file(case_id))
        try:
            return self.complete(Case.from_json(origin))
        except (KeyError, TypeError, ValueError) as error:
            raise ReadError(f"The files of {case_id} are damaged; restore them from a backup of the store.") from error

    def complete(self, case: Case) -> Case:
        """The case with what was saved just before a program was killed."""
        revisions, predictions = self._layout.revisions(case.id), self._layout.predictions(case.id)
        if numbered(revisions) != [revision.number for revision in case.revisions]:
            records = [read_json(revisions / f"{number:04d}" / "revision.json") for number in numbered(revisions)]
            found = tuple(revision_from_json(record) for record in records)
            known = {revision.number for revision in case.revisions}
            if any(revision.number not in known and revision.kind != CONSENSUS for revision in found):
                # an approval is of the last revision that was known then
                case = replace(case, approved=None, approved_by="")
            case = replace(case, revisions=found)
        if numbered(predictions) != [prediction.number for prediction in case.predictions]:
            records = [read_json(predictions / f"{number:04d}" / "prediction.json") for number in numbered(predictions)]
            case = replace(case, predictions=tuple(from_mapping(Prediction, record) for record in records))
        return case

    @contextmanager
    def changed(self, case_id: str) -> Iterator[dict[str, Any]]:
        """The values of a case to change, written when the block ends well; only to be used while they are locked.

        A damaged ``case.json`` is kept beside the new one, as ``case.json.damaged``.
        """
        # not from the cache: file systems are coarse about times, and what is written replaces what others wrote
        stored = self.stored(case_id)
        values = (stored or self.rebuilt(case_id)).to_json()
        for name in ("predictions", "revisions", "review"):
            values[name] = list(values[name])
        yield values
        changed = self.complete(Case.from_json(values)).to_json()
        if stored is None:
            self._put_aside(case_id)
        write_json(self._layout.case_file(case_id), changed)

    def _put_aside(self, case_id: str) -> None:
        path = self._layout.case_file(case_id)
        try:
            with suppress(FileNotFoundError):
                path.replace(path.with_name(f"{path.name}.damaged"))
        except OSError as error:
            raise OutputError(f"The damaged {path} can't be renamed ({error.strerror or error}).") from error

    def read_mask(self, case: Case, path: Path, sha256: str) -> LabelVolume:
        """A mask of a case, on the grid of its CT.

        Raises:
            ReadError: missing, or not what was saved.
        """
        from ..imaging import read_labels

        if not path.is_file() or sha256_file(path) != sha256:
            raise ReadError(
                f"The mask {path.name} of {case.id} is missing or has changed since it was saved.",
                "Restore it from a backup of the store.",
            )
        labels = read_labels(path)
        labels.geometry.require_same(case.ct.geometry, "mask", "CT")
        return labels

    def write_numbered(
        self,
        folder: Path,
        labels: LabelVolume,
        named: Callable[[int], Numbered],
        more: Mapping[str, Any] | None = None,
    ) -> Numbered:
        """Write a mask and its record as the next numbered folder.

        Args:
            folder: of the numbered ones.
            labels: the mask.
            named: makes the record from the number, with the file's name.
            more: values that stand in the record's file only.
        """
        from ..imaging import write_labels

        while True:
            number = max(numbered(folder), default=0) + 1
            record = named(number)
            try:
                with atomic_folder(folder / f"{number:04d}") as place:
                    write_labels(lesion_names(labels), place / record.file, crop=True)
                    record = replace(record, sha256=sha256_file(place / record.file))
                    name = "revision.json" if isinstance(record, Revision) else "prediction.json"
                    write_json(place / name, {**asdict(record), **(more or {})})
            except FileExistsError:
                # somebody was faster, through a share whose locks do not work: take the next number
                continue
            return record


def _unreadable(path: Path, error: OSError) -> ReadError:
    return ReadError(
        f"{path} can't be read now ({error.strerror or error}); nothing was changed.",
        "Try again when the store can be reached and no other program holds the file.",
    )
