"""Manifests: CSV files that list the cases of a batch, one a row."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from .errors import InputError, ReadError
from .files import read_bytes, user_path

_log = logging.getLogger(__name__)
_EXTENSIONS = (".nii.gz", ".seg.nrrd")
_MOST_BYTES = 32 << 20
_LONGEST_ID = 100
# what a case is called where nobody named it
UNNAMED = "study"
# what no file system in use allows in a name, and a leading dot, which hides the file
_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]|^\.|^\s*$')


def read_manifest(
    path: Path | str,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    text: Collection[str] = (),
) -> list[dict[str, str]]:
    """Read the cases of a batch.

    The file is CSV in UTF-8 (a byte-order mark is fine) with a header; commas, semicolons or tabs separate the cells.
    Names of columns are read without regard to case. Unknown columns are named in a warning and ignored. A row whose
    files do not all exist stays in, so that the batch lists it as failed and does the others; a warning names it.

    Args:
        path: the manifest.
        required: columns that must be there and filled in every row; the first one names the case where there is no
            ``id`` column.
        optional: columns that may be there, and may be empty. ``id`` is always allowed.
        text: columns among these that are plain text; all others except ``id`` name files or folders, relative to the
            manifest's own folder.

    Returns:
        One dictionary a row: ``id`` and the wanted columns that are filled; files as absolute paths.

    Raises:
        ReadError: the manifest is missing, not text, or holds no row.
        InputError: missing or doubled columns, empty required cells, rows with too many cells, ids that occur twice or
            can't be part of a file name, or not a single file that exists.
    """
    path = Path(path)
    names, rows = _read_table(path)
    wanted = ["id", *(name for name in [*required, *optional] if name != "id")]
    _check_columns(path, names, required, wanted)

    cases: list[dict[str, str]] = []
    empty: list[str] = []
    for line, cells in rows:
        if any(cells[len(names) :]):
            raise InputError(
                f"{path.name}, line {line}: {len(cells)} cells, but the header names {len(names)} columns; "
                "put cells that hold a separator in quotes."
            )
        row = {name: cell for name, cell in zip(names, cells, strict=False) if name in wanted and cell}
        empty += [f"line {line}: {name}" for name in required if name not in row]
        for name in row:
            if name not in text and name != "id":
                row[name] = str(absolute_path(path.absolute().parent / user_path(row[name])))
        row.setdefault("id", case_id(row.get(required[0], "")))
        cases.append(row)
    if empty:
        raise InputError(f"{path.name} leaves required cells empty ({_listed(empty)}); fill them or delete the rows.")
    _check_ids(path, cases, [line for line, _ in rows], "id" in names)
    _check_files(path, cases, [name for name in wanted if name not in text and name != "id"])
    return cases


def absolute_path(path: Path) -> Path:
    """The path from the root, without "." and "..", links kept: a link's name may be a pseudonym for its target's."""
    return Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow the links


def case_id(path: Path | str) -> str:
    """What a case is called in tables and file names: the file's or folder's name without its extension."""
    name = Path(path).name
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return Path(name).stem if Path(name).suffix.lower() in _SUFFIXES else name


# only these are cut off: "study.1.2" is a name, not a name with the extension ".2"
_SUFFIXES = {".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".gz", ".csv", ".json", ".png", ".npz"}


def check_id(text: str) -> str:
    """The id itself, if it can be part of a file name.

    Raises:
        InputError: it can't.
    """
    if _UNSAFE.search(text) or len(text) > _LONGEST_ID:
        raise InputError(
            f"The id {text[:_LONGEST_ID]!r} can't be part of a file name; "
            "use letters, digits, '-', '_', '.' and no leading dot."
        )
    return text


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        if not path.is_file():
            raise ReadError(f"The manifest {path} is not there; give a CSV file with one case a row.")
        content = read_bytes(path, _MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(f"The manifest {path.name} is not UTF-8 text; save it as 'CSV UTF-8'.") from error
    except OSError as error:
        raise ReadError(f"The manifest {path.name} can't be read: {error.strerror}.") from error
    if "\0" in content:
        raise ReadError(f"The manifest {path.name} is not a text file; save it as 'CSV UTF-8'.")
    header = next((line for line in content.splitlines() if line.strip()), "")
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(content), delimiter=separator, skipinitialspace=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise ReadError(f"The manifest {path.name}, line {reader.line_num}, is not CSV: {error}.") from error
    lines = [(line, cells) for line, cells in lines if any(cells)]
    if len(lines) < 2:
        raise ReadError(f"The manifest {path.name} lists no case; it needs a header and at least one row.")
    return [name.lower() for name in lines[0][1]], lines[1:]


def _check_columns(path: Path, names: list[str], required: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        raise InputError(
            f"{path.name} has no column {_listed(missing)}; its columns are {_listed(names)}, "
            f"needed are {_listed(required)}, allowed besides: "
            f"{_listed([name for name in wanted if name not in required])}."
        )
    doubled = sorted({name for name in wanted if names.count(name) > 1})
    if doubled:
        raise InputError(f"{path.name} has the column {_listed(doubled)} more than once; keep one.")
    unknown = [name for name in names if name and name not in wanted]
    if unknown:
        _log.warning("%s: ignored unknown columns %s; known are %s.", path.name, _listed(unknown), _listed(wanted))


def _check_ids(path: Path, cases: list[dict[str, str]], lines: list[int], given: bool) -> None:
    first: dict[str, int] = {}
    for case, line in zip(cases, lines, strict=True):
        try:
            check_id(case["id"])
        except InputError as error:
            raise InputError(f"{path.name}, line {line}: {error}") from error
        # files of two ids that differ in case only would overwrite each other on Windows and macOS
        key = case["id"].casefold()
        if key in first:
            advice = "give each row its own id" if given else "add an 'id' column with a different id in each row"
            raise InputError(f"{path.name}: lines {first[key]} and {line} have the same id {case['id']!r}; {advice}.")
        first[key] = line


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110  # Path.exists() raises an error for one that can't be looked at


def _check_files(path: Path, cases: list[dict[str, str]], columns: Sequence[str]) -> None:
    missing = {
        case["id"]: [f"{name} {case[name]}" for name in columns if name in case and not _exists(case[name])]
        for case in cases
    }
    bad = [f"{key}: {', '.join(files)}" for key, files in missing.items() if files]
    if len(bad) == len(cases):
        raise InputError(
            f"None of the {len(cases)} cases of {path.name} has all its files ({_listed(bad)}); "
            "relative names count from the manifest's folder."
        )
    if bad:
        _log.warning(
            "%s: %d of %d cases name files that are not there: %s.", path.name, len(bad), len(cases), _listed(bad)
        )


def _listed(values: Iterable[str], most: int = 5) -> str:
    values = list(values)
    rest = f" and {len(values) - most} more" if len(values) > most else ""
    return (", ".join(values[:most]) + rest) or "none"
