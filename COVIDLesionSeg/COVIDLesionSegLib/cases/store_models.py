"""The models of a store: what was trained in it, which one is active, and how it came to be."""

from __future__ import annotations

import builtins
import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..codec import from_json, to_json
from ..errors import InputError, ModelError
from ..files import atomic_folder, write_json
from ..models.card import ModelCard, read_card, rewrite_card, tensors_sha256
from .gate import GateDecision
from .layout import check_rater, now, read_json
from .work import WorkLocks

MODEL_FILE = "model.safetensors"
PARTNER_FILE = "partner.safetensors"


@dataclass(frozen=True)
class StoredModel:
    """A model that was trained in a store.

    Attributes:
        id: unique, also among the models of other stores.
        name: for people.
        base: id of the model that it was trained from.
        round: of the training.
        weights_sha256: as on its card and in the run records of its predictions.
        tensors_sha256: of the file without its header.
        partner_sha256: the same of the other network of the self-ensembling, or "".
        created: when, UTC.
        gate: what the gate decided, or None before it was asked.
    """

    id: str
    name: str
    base: str
    round: int
    weights_sha256: str
    tensors_sha256: str
    partner_sha256: str = ""
    created: str = ""
    gate: GateDecision | None = None


class StoreModels:
    """The models of a store.

    Args:
        folder: of the models.
        locks: of the store.
        store_id: of the store.
        created: when the store was made, UTC.
    """

    def __init__(self, folder: Path, locks: WorkLocks, store_id: str, created: str) -> None:
        self._folder, self._locks, self._store_id, self._created = folder, locks, store_id, created

    def list(self) -> builtins.list[StoredModel]:
        """All models that were trained here, by round."""
        files = sorted(self._folder.glob("[!.]*/model.json")) if self._folder.is_dir() else []
        return sorted((self._read(file) for file in files), key=lambda model: (model.round, model.id))

    def get(self, model_id: str) -> StoredModel:
        """One of them.

        Raises:
            ModelError: there is no such model in the store.
        """
        file = self.folder(model_id) / "model.json"
        if not file.is_file():
            known = ", ".join(model.id for model in self.list()) or "none"
            raise ModelError(f"The store {self._folder.parent.name} has no model {model_id!r}; it has: {known}.")
        return self._read(file)

    def folder(self, model_id: str) -> Path:
        """Where a model of the store lies, or would lie."""
        # an id is a file name and nothing more
        return self._folder / Path(model_id).name

    def path(self, model: str | Path) -> Path:
        """The file of a model: of this store, else of the installation's registry, else the file itself.

        Raises:
            ModelError: no such model, or its file is damaged.
        """
        file = self.folder(str(model)) / MODEL_FILE
        if not isinstance(model, Path) and file.is_file():
            if tensors_sha256(file) != self.get(model).tensors_sha256:
                raise ModelError(f"The file of {model} in the store is damaged.", "Restore it from a backup.")
            return file
        from ..models import ModelRegistry

        return ModelRegistry().path(model)

    def partner(self, model_id: str) -> Path | None:
        """The other network of a model's self-ensembling, whose disagreement is an uncertainty; None without one."""
        file = self.folder(model_id) / PARTNER_FILE
        return file if file.is_file() else None

    def card(self, model: str) -> ModelCard:
        """The card of a model."""
        return read_card(self.path(model))

    # --- the active model ---------------------------------------------------------------------------------------------

    def default(self) -> str:
        """Id of the active model: it predicts and is trained from; at first the installation's default."""
        history = self.history()
        if history:
            return str(history[-1]["model"])
        from ..models import ModelRegistry

        return ModelRegistry().default()

    def best(self) -> str:
        """The best model so far: of those that were active, each that did as well or better on the same labels.

        A new model has to stand up to it, too: ten rounds that each lose a little, but less than is seen, would else
        add up.
        """
        history = self.history()
        return str(history[-1].get("best", history[0]["model"])) if history else self.default()

    def is_here(self, model: str) -> bool:
        """Whether a model's file can be found."""
        try:
            self.path(model)
        except ModelError:
            return False
        return True

    def history(self) -> builtins.list[dict[str, Any]]:
        """Every active model there was, oldest first: model, when, by, why, and the best so far."""
        file = self._folder / "default.json"
        return list(read_json(file)["history"]) if file.is_file() else []

    def set_default(self, model: str, by: str, why: str = "chosen", instead_of: str | None = None) -> bool:
        """Make a model the active one, e.g. go back to an earlier one; all others stay.

        Args:
            model: its id.
            by: who.
            why: what for.
            instead_of: id of the model that has to be active still; None: whatever is.

        Returns:
            Whether it is active now; False only where another one than ``instead_of`` was.

        Raises:
            ModelError: no such model.
            InputError: it did not pass validation, and nobody has decided otherwise.
        """
        check_rater(by)
        stored = next((known for known in self.list() if known.id == model), None)
        if stored is not None and stored.gate is None:
            raise InputError(f"{model} was not validated on the frozen validation cases yet; validate it first.")
        if stored is not None and stored.gate is not None and not stored.gate.accepted:
            raise InputError(
                f"{model} can't become the active model: {stored.gate.text}",
                "A person can decide otherwise, with a reason.",
            )
        self.path(model)
        with self._locks.changing("models"):
            act = {"model": model, "when": now(), "by": by, "why": why, "best": self._best_with(stored)}
            default = self.default()
            if instead_of is not None and default != instead_of:
                return False
            if not (history := self.history()):
                history = [{"model": default, "when": self._created, "by": "", "why": "at the beginning"}]
            write_json(self._folder / "default.json", {"history": [*history, act]})
        return True

    def _best_with(self, stored: StoredModel | None) -> str:
        """The best so far once this model is active."""
        best = self.best()
        gate = None if stored is None else stored.gate
        better = gate is not None and any(found.against == best and found.mean >= 0 for found in gate.differences)
        return gate.new if gate is not None and better else best

    # --- what training and the gate bring ------------------------------------------------------------------------

    def add(
        self,
        file: Path,
        base: str,
        training_round: int,
        *,
        split: Mapping[str, Any],
        trained_on: Mapping[str, Any],
        partner: Path | None = None,
        suffix: str = "",
    ) -> StoredModel:
        """Take a trained model in.

        Args:
            file: what the training wrote, with its card.
            base: id or file of the model that it was trained from.
            training_round: number of the training.
            split: what its figures stand on, see ``StoreSplit.statement``; goes onto the card.
            trained_on: the card's entry about the cases.
            partner: the other network of the self-ensembling.
            suffix: of the id, for what a cancelled training left.

        Returns:
            The model, with a number behind its id where the round has handed in another one before: a round that was
            cancelled twice, or went on for more steps.
        """
        card, tensors = read_card(file), tensors_sha256(file)
        model_id = wanted = f"{self._store_id[:6]}-round-{training_round:03d}{suffix}"
        for number in itertools.count(2):
            if not self.folder(model_id).exists():
                break
            if self.get(model_id).tensors_sha256 == tensors:
                # the round was resumed after it had handed this model in
                return self.get(model_id)
            model_id = f"{wanted}-{number}"
        card = replace(
            card,
            id=model_id,
            name=f"{_plain_name(card.name)}, fine-tuned in {training_round} rounds"
            if training_round > 1
            else f"{_plain_name(card.name)}, fine-tuned",
            training_data=(*card.training_data, dict(trained_on)),
            metrics={**_without_places(card.metrics), "split": dict(split)},
        )
        with atomic_folder(self.folder(model_id)) as folder:
            shutil.copyfile(file, folder / MODEL_FILE)
            rewrite_card(folder / MODEL_FILE, card)
            if partner is not None and partner.is_file():
                shutil.copyfile(partner, folder / PARTNER_FILE)
            model = StoredModel(
                model_id,
                card.name,
                _shown_id(base),
                training_round,
                card.weights_sha256,
                tensors,
                tensors_sha256(folder / PARTNER_FILE) if (folder / PARTNER_FILE).is_file() else "",
                now(),
            )
            write_json(folder / "model.json", to_json(model))
        return model

    def record_gate(self, model_id: str, decision: GateDecision) -> StoredModel:
        """Write what the gate decided, beside the model and on its card; what a person decided before stays."""
        with self._locks.changing("models"):
            earlier = self.get(model_id).gate
            if earlier is not None and earlier.override and not decision.override:
                decision = replace(
                    decision,
                    override=earlier.override,
                    override_by=earlier.override_by,
                    override_reason=earlier.override_reason,
                )
            return self._write_gate(model_id, decision)

    def override(self, model_id: str, accept: bool, by: str, reason: str) -> StoredModel:
        """Decide for the rule, or against it; who did and why stand on the model's card.

        Raises:
            InputError: no reason, or the gate has not decided yet.
            ModelError: no such model.
        """
        check_rater(by)
        with self._locks.changing("models"):
            gate = self.get(model_id).gate
            if gate is None:
                raise InputError(f"{model_id} was not validated yet; validate it first.")
            return self._write_gate(model_id, gate.overridden(accept, by, reason))

    def card_lacks_gate(self, model: StoredModel) -> bool:
        """Whether the card does not say what the record beside it says: a program was killed between the two."""
        return model.gate is not None and self._card_with_gate(model) is not None

    def write_gate_on_card(self, model: StoredModel) -> None:
        """Bring the card in line with the record beside it."""
        card = self._card_with_gate(model)
        if card is not None:
            rewrite_card(self.folder(model.id) / MODEL_FILE, card)

    def _write_gate(self, model_id: str, decision: GateDecision) -> StoredModel:
        """Only to be used while the models are locked."""
        model = replace(self.get(model_id), gate=decision)
        write_json(self.folder(model_id) / "model.json", to_json(model))
        self.write_gate_on_card(model)
        return model

    def _card_with_gate(self, model: StoredModel) -> ModelCard | None:
        """The card as it should be; None where it is so already."""
        if model.gate is None:
            return None
        card = read_card(self.folder(model.id) / MODEL_FILE)
        wanted = {**card.metrics, "gate": to_json(model.gate), "split": dict(model.gate.split)}
        return None if card.metrics == wanted else replace(card, metrics=wanted)

    def _read(self, file: Path) -> StoredModel:
        return from_json(StoredModel, read_json(file))


def _without_places(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A card's metrics whose configuration names files without the folders that they lie in."""
    config = metrics.get("config")
    if not isinstance(config, Mapping):
        return dict(metrics)
    shown = {name: dict(table) for name, table in config.items()}
    for table, key in (("data", "cases"), ("network", "base_model")):
        place = shown.get(table, {}).get(key)
        if place:
            shown[table][key] = Path(place).name
    return {**metrics, "config": shown}


def _shown_id(model: str) -> str:
    """An id as it is, and of a file the name alone: its folders may say more than a model should."""
    return Path(model).stem if model.endswith((".safetensors", ".pt", ".pth")) else model


def _plain_name(name: str) -> str:
    """What the model was called before it was fine-tuned, however often."""
    return name.split(", fine-tuned")[0]
