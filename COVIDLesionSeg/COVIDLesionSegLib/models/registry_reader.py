"""Looking at the models of this installation: which there are, where their files lie, whether these are right."""

from __future__ import annotations

import builtins
import difflib
import os
from dataclasses import replace
from pathlib import Path

from ..documents import read_object
from ..errors import ModelError, ReadError
from ..files import sha256_file, user_path
from ..resources import resource
from .card import require_model_size
from .catalog import (
    BUNDLED,
    DAMAGED,
    FILE_ENDINGS,
    INSTALLED,
    REMOVE,
    ModelEntry,
    default_folder,
    read_catalog,
    read_records,
)

_LIST_HINT = "`covid-lesion-seg models list` shows all."


class RegistryReader:
    """The half of a :class:`~.registry.ModelRegistry` that looks; it changes nothing.

    Args:
        folder: the user's folder of models; None takes the environment variable COVIDLESIONSEG_MODELS, else the place
            where this system keeps a program's data.
        catalog: the list of known models; None takes Resources/Models.json.

    Raises:
        ModelError: the list of models is missing or damaged, or no folder is known.
    """

    def __init__(self, folder: Path | str | None = None, catalog: Path | str | None = None) -> None:
        self.folder = user_path(folder) if folder else default_folder()
        self._published = read_catalog(Path(catalog) if catalog else resource("Models.json"))
        self._right: dict[Path, tuple[int, int]] = {}

    def list(self) -> builtins.list[ModelEntry]:
        """All models: the known ones in the list's order, then the user's own by id."""
        records = {record.id: record for record in read_records(self.folder)}
        known = [_merged(model, records.pop(model.id, None)) for model in self._published]
        chosen = self._chosen() or self._shipped_default()
        return [replace(entry, is_default=entry.id == chosen) for entry in [*known, *records.values()]]

    def entry(self, model_id: str) -> ModelEntry:
        """One model.

        Raises:
            ModelError: there is no such model; the message names the nearest ids.
        """
        entries = {entry.id: entry for entry in self.list()}
        if model_id not in entries:
            near = difflib.get_close_matches(model_id.lower(), list(entries), n=3, cutoff=0.6)
            hint = f"Did you mean {' or '.join(near)}? {_LIST_HINT}" if near else _LIST_HINT
            raise ModelError(f"There is no model {model_id!r}.", hint)
        return entries[model_id]

    def default(self) -> str:
        """Id of the model that is taken when none is named.

        Raises:
            ModelError: the model that was chosen as default is not here any more. No other one is taken silently.
        """
        chosen = self._chosen()
        if chosen is None:
            return self._shipped_default()
        if not any(entry.id == chosen and entry.is_usable for entry in self.list()):
            raise ModelError(
                f"The default model {chosen} is not installed any more.",
                f"Choose another one, e.g. `covid-lesion-seg models default {self._shipped_default()}`.",
            )
        return chosen

    def path(self, model: str | Path) -> Path:
        """The file of a model, its hash checked when it is a registered one.

        Args:
            model: an id, or a path to any model file.

        Raises:
            ModelError: no such model or file; not installed (how to get it); damaged or with another hash than the
                one recorded.
        """
        file = user_path(model)
        is_id = isinstance(model, str) and any(entry.id == model for entry in self.list())
        if not is_id and file.is_file():
            return file
        if isinstance(model, Path) or (not is_id and _looks_like_a_file(model)):
            raise ModelError(f"There is no model file {file}.", f"Give a file or a model's id. {_LIST_HINT}")
        return self._usable_path(self.entry(model))

    def verify(self, model_id: str) -> ModelEntry:
        """Compare a model's file with the hash of the list or, where that has none, with the one recorded.

        Returns:
            The model, whose ``sha256`` is the file's.

        Raises:
            ModelError: not installed, damaged, or another hash.
        """
        entry = self.entry(model_id)
        if entry.path is not None:
            self._right.pop(entry.path, None)
        self._usable_path(entry)
        return entry

    @property
    def _settings(self) -> Path:
        # an underscore begins no id, so this name is no model's record
        return self.folder / "_settings.json"

    def _shipped_default(self) -> str:
        return next(model.id for model in self._published if model.is_default)

    def _chosen(self) -> str | None:
        try:
            return str(read_object(self._settings)["default"])
        except FileNotFoundError:
            return None
        except (ReadError, KeyError) as error:
            raise ModelError(f"The file {self._settings} is damaged ({error}).", "Delete it and try again.") from error

    def _usable_path(self, entry: ModelEntry) -> Path:
        if entry.status == DAMAGED:
            raise ModelError(f"{entry.id} can't be used: {entry.problem}.", entry.how_to_get)
        if entry.path is None:
            raise ModelError(f"{entry.id} is not installed.", entry.how_to_get)
        if entry.sha256 is not None:
            self._check_hash(entry, entry.path, entry.sha256)
        return entry.path

    def _check_hash(self, entry: ModelEntry, path: Path, sha256: str) -> None:
        try:
            status = path.stat()
        except OSError as error:
            raise ModelError(f"The model file {path} could not be read: {error.strerror or error}.") from error
        state = (status.st_size, status.st_mtime_ns)
        if self._right.get(path) == state:
            return
        found = hash_of(path)
        if found != sha256:
            bundled = entry.status == BUNDLED
            raise ModelError(
                f"{path.name} has the SHA-256 {found[:12]}... where {sha256[:12]}... is recorded: "
                "it was changed or damaged and is not used.",
                "Install the extension again." if bundled else f"Run {REMOVE.format(entry.id)} and get it again.",
            )
        self._right[path] = state


def _merged(model: ModelEntry, record: ModelEntry | None) -> ModelEntry:
    """A listed model with what the user's folder says about it."""
    if record is None or model.status == BUNDLED:
        return model
    if record.status == DAMAGED:
        return replace(model, status=DAMAGED, problem=record.problem)
    return replace(
        model,
        status=INSTALLED,
        path=record.path,
        sha256=model.sha256 or record.sha256,
        size_bytes=model.size_bytes or record.size_bytes,
        origin=record.origin,
        source=record.source,
        added=record.added,
        problem="",
    )


def _looks_like_a_file(name: str) -> bool:
    return "/" in name or os.sep in name or name.lower().endswith(FILE_ENDINGS)


def hash_of(path: Path) -> str:
    """SHA-256 of a model file.

    Raises:
        ModelError: not there, no file, unreadable, or larger than any model.
    """
    try:
        require_model_size(path)
        return sha256_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"There is no model file {path}.") from error
    except OSError as error:
        raise ModelError(f"The model file {path} could not be read: {error.strerror or error}.") from error
