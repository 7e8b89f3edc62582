"""What is known about each model: the list in Resources/Models.json, and records beside the user's own files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..documents import read_object
from ..errors import ModelError
from ..files import write_json

FOLDER_VARIABLE = "COVIDLESIONSEG_MODELS"
# Names that a model's file may end in, wherever it comes from; the loader looks at the content, not at the name.
FILE_ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".tar")
LONGEST_ID = 64
_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")

REMOVE = "`covid-lesion-seg models remove {}`"

BUNDLED = "bundled"
INSTALLED = "installed"
AVAILABLE = "available"
MANUAL = "manual"
DAMAGED = "damaged"


@dataclass(frozen=True)
class ModelEntry:
    """One model: what it is, what it may be used for, and whether it is here.

    Attributes:
        id: short name for commands; also the file's name in the user's folder.
        name: name for people.
        network: one of ``networks.NETWORKS``, or an import path.
        status: "bundled" (comes with the extension), "installed" (in the user's folder), "available" (can be
            downloaded), "manual" (the user fetches the file and imports it), "damaged" (see ``problem``).
        path: the file, when bundled or installed.
        is_default: taken when no model is named.
        description: one or two sentences.
        license: short name of the weights' license.
        license_notice: what a user must know before using the weights.
        code_license: license of the code that the authors published with them, or "".
        citation: what to cite, or "".
        source_page: where to read about it, or "".
        download_page: where a person finds the file, or "".
        download_url: where a program finds the file, or "".
        manual_instruction: what to do where there is no download_url, or "".
        file_name: name of the published file, or "".
        size_bytes: size of the file; None: unknown.
        sha256: hash of the file; None: unknown until it is installed.
        preprocessing: how the network wants its input, in words; what is obeyed stands in the model's card.
        expected: "cpu" and "gpu" -> seconds_per_slice, seconds_per_ct, memory_megabytes, measured_on (null: unknown).
        origin: "registry", or how it came into the user's folder: "downloaded", "imported", "trained".
        source: name of the imported file or address of the download, or "".
        added: when it came into the user's folder (UTC, ISO 8601), or "".
        problem: why a damaged model can't be used, or "".
    """

    id: str
    name: str
    network: str
    status: str
    path: Path | None = None
    is_default: bool = False
    description: str = ""
    license: str = ""
    license_notice: str = ""
    code_license: str = ""
    citation: str = ""
    source_page: str = ""
    download_page: str = ""
    download_url: str = ""
    manual_instruction: str = ""
    file_name: str = ""
    size_bytes: int | None = None
    sha256: str | None = None
    preprocessing: str = ""
    expected: Mapping[str, Any] | None = None
    origin: str = "registry"
    source: str = ""
    added: str = ""
    problem: str = ""

    @property
    def how_to_get(self) -> str:
        """What to do when its file is not here, as a sentence; "" for a bundled one."""
        if self.download_url:
            return f"Fetch it with `covid-lesion-seg models download {self.id}`."
        if self.manual_instruction or self.origin == "registry":
            return self.manual_instruction
        return f"Run {REMOVE.format(self.id)} and get it again."

    @property
    def is_usable(self) -> bool:
        """Whether its file is here."""
        return self.status in (BUNDLED, INSTALLED)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {**asdict(self), "path": str(self.path) if self.path else None}


def read_catalog(path: Path) -> list[ModelEntry]:
    """Models of a list such as Resources/Models.json, whether bundled or published elsewhere.

    The list is part of the installation and checked against Resources/Models.schema.json by a test, so that reading it
    needs no validator.

    Raises:
        ModelError: the list is missing or damaged.
    """
    try:
        models = read_object(path)["models"]
        return [_published(model, path.parent) for model in models]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"The list of models {path} is missing or damaged.", "Install the extension again.") from error


def _published(model: Mapping[str, Any], resources: Path) -> ModelEntry:
    if model["bundled_file"]:
        path = resources / model["bundled_file"]
        here = path.is_file()
        status, problem = (BUNDLED, "") if here else (DAMAGED, f"{path.name} is missing; install the extension again")
    else:
        path, problem = None, ""
        status = AVAILABLE if model["download_url"] else MANUAL
    return ModelEntry(
        id=model["id"],
        name=model["name"],
        network=model["network"],
        status=status,
        path=path if status == BUNDLED else None,
        is_default=model["default"],
        description=model["description"],
        license=model["license"],
        license_notice=model["license_notice"],
        code_license=model["code_license"],
        citation=model["citation"],
        source_page=model["source_page"] or "",
        download_page=model["download_page"] or "",
        download_url=model["download_url"] or "",
        manual_instruction=model["manual_instruction"] or "",
        file_name=model["file_name"] or "",
        size_bytes=model["size_bytes"],
        sha256=model["sha256"],
        preprocessing=model["preprocessing"],
        expected=model["expected"],
        problem=problem,
    )


# --- records of the user's own models -------------------------------------------------------------------------------

# A record holds these fields of an entry, its own version, and the file's name.
_RECORD_FIELDS = (
    "id",
    "name",
    "network",
    "license",
    "license_notice",
    "size_bytes",
    "sha256",
    "origin",
    "source",
    "added",
)
_RECORD_VERSION = 1


def record_path(folder: Path, model_id: str) -> Path:
    """Where a model's record stands in the user's folder."""
    return folder / f"{model_id}.json"


def write_record(folder: Path, entry: ModelEntry) -> None:
    """Put a model's record beside its file, whole or not at all; from then on the model is installed."""
    if entry.path is None:
        raise ModelError(f"{entry.id} has no file to record.")
    record = {name: getattr(entry, name) for name in _RECORD_FIELDS}
    write_json(record_path(folder, entry.id), {"record_version": _RECORD_VERSION, "file": entry.path.name, **record})


def read_records(folder: Path) -> list[ModelEntry]:
    """Models in the user's folder, by id; a record that can't be read gives an entry with status "damaged"."""
    if not folder.is_dir():
        return []
    # a name that is no id belongs to something else, such as the settings
    return [_read_record(path) for path in sorted(folder.glob("*.json")) if _ID.fullmatch(path.stem)]


def _read_record(path: Path) -> ModelEntry:
    model_id = path.stem
    try:
        record = read_object(path)
        file_name = record["file"]
        fields = {name: record[name] for name in _RECORD_FIELDS}
        # the record is the user's to edit, but no edit may lead out of the folder
        if record["id"] != model_id or file_name not in {model_id + ending for ending in FILE_ENDINGS}:
            raise ValueError("the record names another model's file")
        _require_record(fields)
        entry = ModelEntry(status=INSTALLED, path=path.with_name(file_name), **fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"its record {path.name} can't be read ({error})"
        return ModelEntry(id=model_id, name=model_id, network="", status=DAMAGED, origin="", problem=problem)
    if not path.with_name(file_name).is_file():
        return replace(entry, status=DAMAGED, path=None, problem=f"its file {file_name} is gone")
    return entry


def _require_record(fields: Mapping[str, Any]) -> None:
    """Raise ValueError unless the fields of a record are of the types that are shown and compared."""
    for name, value in fields.items():
        if name == "size_bytes":
            good = value is None or (isinstance(value, int) and 0 <= value < 1 << 62)
        else:
            good = isinstance(value, str) or (name == "sha256" and value is None)
        if not good:
            raise ValueError(f"its {name} is {str(value)[:40]}")


# --- ids and folders ------------------------------------------------------------------------------------------------


def check_id(model_id: str) -> str:
    """The id itself when it may name a file.

    Raises:
        ModelError: it has other characters than lower-case letters, digits, ".", "_" and "-", or is too long.
    """
    if not isinstance(model_id, str) or not _ID.fullmatch(model_id) or len(model_id) > LONGEST_ID:
        raise ModelError(
            f"{model_id!r} can't be a model's id: it needs 1 to {LONGEST_ID} lower-case letters, digits, "
            '".", "_" or "-", beginning and ending with a letter or digit.'
        )
    return model_id


def id_from_name(name: str) -> str:
    """An id made from a file's name, e.g. "Model (2).pt" -> "model-2"; "" when nothing usable is in it."""
    stem = Path(name).name.lower()
    # from the last ending inward: "model.pt.tar" has two
    for ending in reversed(FILE_ENDINGS):
        stem = stem.removesuffix(ending)
    return re.sub(r"[^a-z0-9._]+", "-", stem).strip("-._")[:LONGEST_ID].rstrip("-._")


def default_folder() -> Path:
    """The user's folder of models: COVIDLESIONSEG_MODELS, or where this system keeps a program's data.

    Raises:
        ModelError: neither is known.
    """
    named = os.environ.get(FOLDER_VARIABLE, "").strip()
    try:
        if named:
            return Path(named).expanduser()
        return _data_folder() / "covid-lesion-seg" / "models"
    except RuntimeError as error:
        raise ModelError("Your home folder is unknown.", f"Name a folder for models in {FOLDER_VARIABLE}.") from error


def _data_folder() -> Path:
    if sys.platform == "win32":
        named = os.environ.get("LOCALAPPDATA", "")
        return Path(named) if named else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    named = os.environ.get("XDG_DATA_HOME", "")
    # the XDG rules tell programs to ignore relative paths
    return Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "share"
