"""The models that can be used here: bundled ones, the user's own, and those that can be fetched.

Everything in this module works without PyTorch but the check that an imported or downloaded file loads.
"""

from __future__ import annotations

import builtins
import contextlib
import difflib
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ..documents import read_object
from ..errors import DownloadError, ModelError, OutputError, ReadError
from ..files import atomic_path, sha256_file, user_path, write_json
from ..resources import resource
from .card import ModelCard, no_lesion_model, require_model_size
from .catalog import (
    BUNDLED,
    DAMAGED,
    FILE_ENDINGS,
    INSTALLED,
    REMOVE,
    ModelEntry,
    check_id,
    default_folder,
    read_catalog,
    read_records,
    record_path,
    write_record,
)
from .download import configured_mirror, download_file, exclusive

_LIST_HINT = "`covid-lesion-seg models list` shows all."
_NO_LICENSE_NOTICE = (
    "No license is stated for this file: whether and how it may be used is for you to judge. Research use only."
)
_LOCK_WAIT_S = 30.0


class ModelRegistry:
    """The models of this installation and of one user.

    Safe for several processes at once: records and files appear whole or not at all, and changes take turns.

    Args:
        folder: the user's folder of models; None takes the environment variable COVIDLESIONSEG_MODELS, else the place
            where this system keeps a program's data. It is made at the first change.
        catalog: the list of known models; None takes Resources/Models.json.
        check: loads a model file and returns its card, or raises ModelError; None takes
            ``models.checkpoints.load_checkpoint``, which needs PyTorch.

    Raises:
        ModelError: the list of models is missing or damaged, or no folder is known.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        catalog: Path | str | None = None,
        check: Callable[[Path], ModelCard] | None = None,
    ) -> None:
        self.folder = user_path(folder) if folder else default_folder()
        self._published = read_catalog(Path(catalog) if catalog else resource("Models.json"))
        self._check = check or load_card
        self._right: dict[Path, tuple[int, int]] = {}

    # --- looking -----------------------------------------------------------------------------------------------------

    def list(self) -> builtins.list[ModelEntry]:
        """All models: the known ones in the list's order, then the user's own by id."""
        records = {record.id: record for record in read_records(self.folder)}
        known = [_merged(model, records.pop(model.id, None)) for model in self._published]
        chosen = self._chosen() or self._shipped_default()
        return [replace(entry, is_default=entry.id == chosen) for entry in [*known, *records.values()]]

    def entry(self, model_id: str) -> ModelEntry:
        """One model.

        Raises:
            ModelError: there is no such model; the message names the nearest ids. Or it is the network for lungs.
        """
        entries = {entry.id: entry for entry in self.list()}
        if model_id not in entries:
            if any(network.id == model_id for network in read_catalog(resource("LungModels.json"))):
                raise no_lesion_model(model_id)
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

    # --- changing ----------------------------------------------------------------------------------------------------

    def download(
        self,
        model_id: str,
        mirror: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> ModelEntry:
        """Fetch a published model, unless it is here already; the one method that uses the network.

        A file whose hash the list doesn't know is loaded once as a check (PyTorch needed), and its hash is recorded.

        Args:
            model_id: a model of the list.
            mirror: base address that replaces the scheme and host; None takes COVIDLESIONSEG_MIRROR. A model without an
                address of its own is looked for on the mirror under its file name.
            progress: called as progress("download", bytes done, bytes in all or 0).
            cancelled: see :func:`~.download.download_file`.

        Raises:
            ModelError: no such model, or the file is none.
            DownloadError: see :func:`~.download.download_file`; or the model can only be fetched by hand.
            OutputError: the disk is full or the folder read-only.
            CancelledError: ``cancelled`` said so.
        """
        entry = self.entry(model_id)
        if entry.is_usable:
            self._usable_path(entry)
            return entry
        mirror = configured_mirror() if mirror is None else mirror
        url = entry.download_url or (f"/{entry.file_name}" if mirror and entry.file_name else "")
        if not url:
            raise DownloadError(f"{entry.id} can't be fetched by a program.", entry.how_to_get)
        if entry.sha256 is None and self._check is load_card:
            _require_torch()
        incoming = self._downloads / f"{entry.id}{_ending(entry.file_name or url)}"
        download_file(
            url,
            incoming,
            sha256=entry.sha256,
            size_bytes=entry.size_bytes,
            mirror=mirror,
            by_hand=entry.manual_instruction,
            progress=progress,
            cancelled=cancelled,
        )
        try:
            return self._install_listed(incoming, entry, "downloaded", url)
        finally:
            incoming.unlink(missing_ok=True)

    def import_file(self, path: Path | str, model_id: str | None = None) -> ModelEntry:
        """Copy a model file into the user's folder after loading it once as a check (PyTorch needed).

        Args:
            path: any checkpoint that ``load_checkpoint`` reads.
            model_id: a model of the list that this file is, or a new id; None takes the listed model with this hash,
                else the card's id, which is made from the file's name where the file has no card.

        Returns:
            The model; the existing one when the same file is installed under this id already.

        Raises:
            ModelError: no such file, not a model, another hash or network than the listed model has, an id that is
                taken or not allowed.
            OutputError: the disk is full or the folder read-only.
        """
        source = user_path(path)
        digest = hash_of(source)
        listed = self._listed(model_id, digest)
        if listed is not None:
            return self._install_listed(source, listed, "imported", source.name)
        card = self._check(source)
        return self._install_own(source, digest, model_id or card.id, card, origin="imported")

    def register(self, path: Path | str, card: ModelCard) -> ModelEntry:
        """Copy a model made here, e.g. by fine-tuning, into the user's folder under its card's id.

        Args:
            path: what ``save_model`` wrote.
            card: its card.

        Raises:
            ModelError: no such file, or an id that is taken or not allowed.
            OutputError: the disk is full or the folder read-only.
        """
        source = Path(path)
        return self._install_own(source, hash_of(source), card.id, card, origin="trained")

    def remove(self, model_id: str) -> None:
        """Delete a model's file and record from the user's folder, and what an unfinished download left.

        Raises:
            ModelError: no such model, a bundled one, or one that is not installed.
            OutputError: a file is in use or the folder read-only.
        """
        entry = self.entry(model_id)
        if any(model.id == entry.id and model.status == BUNDLED for model in self._published):
            raise ModelError(f"{entry.id} comes with the extension and can't be removed.")
        # the record goes first: without it the model is not installed any more
        record = record_path(self.folder, entry.id)
        files = [self.folder / (entry.id + ending) for ending in FILE_ENDINGS]
        rests = ("", ".part", ".part.json")
        unfinished = [self._downloads / (entry.id + ending + rest) for ending in FILE_ENDINGS for rest in rests]
        present = [file for file in [record, *files, *unfinished] if file.is_file() or file.is_symlink()]
        if not present:
            raise ModelError(f"{entry.id} is not installed; there is nothing to remove.")
        with self._turn():
            try:
                for file in present:
                    file.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{entry.id} could not be removed: {error.strerror or error}.") from error
            if self._chosen() == entry.id:
                self._settings.unlink(missing_ok=True)

    def set_default(self, model_id: str) -> None:
        """Choose the model that is taken when none is named.

        Raises:
            ModelError: no such model, or not installed.
        """
        self._usable_path(self.entry(model_id))
        with self._turn():
            write_json(self._settings, {"default": model_id})

    # --- inside ----------------------------------------------------------------------------------------------------

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

    @property
    def _downloads(self) -> Path:
        return self.folder / "downloads"

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        busy = f"Another process is changing the models in {self.folder}; try again when it has finished."
        return exclusive(self.folder / ".lock", busy, _LOCK_WAIT_S)

    def _listed(self, model_id: str | None, digest: str) -> ModelEntry | None:
        for model in self._published:
            if model.id == model_id or (model_id is None and model.sha256 == digest):
                return model
        return None

    def _install_listed(self, source: Path, model: ModelEntry, origin: str, origin_name: str) -> ModelEntry:
        digest = hash_of(source)
        if model.sha256 is None:
            card = self._check(source)
            if card.network != model.network:
                raise ModelError(f"{source.name} is a {card.network} model; {model.id} is a {model.network} one.")
        elif digest != model.sha256:
            raise ModelError(
                f"{source.name} has the SHA-256 {digest[:12]}... where {model.id} has {model.sha256[:12]}...: "
                "it is another file, or damaged.",
                "To use it all the same, import it under an id of its own with --id.",
            )
        return self._install(source, digest, replace(model, origin=origin, source=origin_name))

    def _install_own(self, source: Path, digest: str, model_id: str, card: ModelCard, origin: str) -> ModelEntry:
        if any(model.id == model_id for model in self._published):
            raise _taken(model_id)
        entry = ModelEntry(
            id=check_id(model_id),
            name=card.name,
            network=card.network,
            status=INSTALLED,
            license=card.license,
            license_notice=card.license_notice or (_NO_LICENSE_NOTICE if card.license == "unknown" else ""),
            origin=origin,
            source=source.name if origin == "imported" else "",
        )
        return self._install(source, digest, entry)

    def _install(self, source: Path, digest: str, entry: ModelEntry) -> ModelEntry:
        target = self.folder / f"{entry.id}{_ending(source.name)}"
        with self._turn():
            existing = next((other for other in self.list() if other.id == entry.id and other.is_usable), None)
            if existing is not None and existing.path is not None:
                if existing.sha256 != digest:
                    raise _taken(entry.id)
                if existing.status == BUNDLED or hash_of(existing.path) == digest:
                    return existing
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
                if sha256_file(temporary) != digest:
                    raise ModelError(f"{source.name} was changed while it was being copied; try again.")
            added = datetime.now(UTC).isoformat(timespec="seconds")
            size_bytes = target.stat().st_size
            write_record(self.folder, replace(entry, path=target, sha256=digest, size_bytes=size_bytes, added=added))
        return self.entry(entry.id)


def load_card(path: Path) -> ModelCard:
    """Load a model file completely and return its card; the check before a file is taken in.

    Raises:
        ModelError: PyTorch is not installed, or the file is no model; see ``load_checkpoint``.
    """
    _require_torch()
    # only here, so that everything else works without PyTorch
    from .checkpoints import load_checkpoint

    return load_checkpoint(path).card


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ModelError("To check a model file PyTorch is needed, which is not installed here.")


def _taken(model_id: str) -> ModelError:
    return ModelError(
        f"The id {model_id} belongs to another model file.",
        f"Give another id with --id, or first run {REMOVE.format(model_id)}.",
    )


def _ending(name: str) -> str:
    """How the copy's name ends; the loader looks at the content, so any known ending will do."""
    return next((ending for ending in FILE_ENDINGS if name.lower().endswith(ending)), ".pt")


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
