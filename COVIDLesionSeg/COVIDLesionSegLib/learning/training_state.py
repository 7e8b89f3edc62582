"""The state of a run on disk: whole or not at all, and only taken up by the run that it belongs to."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, ReadError
from ..files import atomic_path
from .config import TrainingConfig

STATE_VERSION = 3
_FILE = "state.pt"
# Where a run is, how it is computed and how often it is looked at: a resumed run may differ in these, and says so. What
# the files hold that are named here is compared by content.
_FREE = {
    *(f"data.{name}" for name in ("cases", "split", "cache", "pseudo_cases", "training_labels", "excluded_slices")),
    "network.base_model",
    *(f"run.{name}" for name in ("device", "workers", "deterministic")),
    *(f"run.{name}" for name in ("checkpoint_interval", "validation_interval", "patience")),
}


def has_state(folder: Path) -> bool:
    """Whether a run's folder holds a state."""
    return (folder / _FILE).exists()


def load_state(
    folder: Path, config: TrainingConfig, content_sha256: str, environment: dict[str, Any]
) -> tuple[dict[str, Any], list[str]] | None:
    """The last state of a run.

    Args:
        folder: of the run.
        config: of what goes on now.
        content_sha256: of the data and the base model that are there now.
        environment: what decides about the bits on this machine.

    Returns:
        What :func:`save_state` was given, and what is different from then without changing what is computed, one
        sentence each; None where there is no state.

    Raises:
        ReadError: damaged.
        InputError: of another version, or configuration, data or machine differ from the run's.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = state["version"]
    except Exception as error:
        reason = type(error).__name__
        raise ReadError(f"The state {path} can't be read ({reason}); start in a new folder.") from error
    if version != STATE_VERSION:
        raise InputError(f"The state {path} has version {version}; this program reads {STATE_VERSION}.")
    return state, _refuse_another_run(state, config, content_sha256, environment)


def save_state(
    folder: Path, config: TrainingConfig, content_sha256: str, environment: dict[str, Any], parts: dict[str, Any]
) -> None:
    """Replace a run's state.

    Raises:
        OutputError: the disk is full; the state before stays.
    """
    facts = {"config": config.to_dict(), "content_sha256": content_sha256, "environment": environment}
    save_tensors({"version": STATE_VERSION, **facts, **parts}, folder / _FILE)


def save_tensors(value: dict[str, Any], path: Path) -> None:
    """``torch.save``, whole or not at all.

    Raises:
        OutputError: the disk is full.
    """
    # PyTorch turns a full disk into a RuntimeError about its archive; in memory it has none
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _refuse_another_run(
    state: dict[str, Any], config: TrainingConfig, content_sha256: str, now: dict[str, Any]
) -> list[str]:
    """Raise InputError where a setting, file or machine changes the numbers; returns what differs besides."""
    before = TrainingConfig.from_dict(state["config"])
    # more steps extend a run; with a one-cycle rate they would change every step
    longer = config.optimizer.schedule != "one_cycle"
    steps = config.run.steps if longer else before.run.steps
    differences = replace(before, run=replace(before.run, steps=steps)).difference(config)
    free = [text for text in differences if text.partition(":")[0] in _FREE]
    bound = [text for text in differences if text not in free]
    if bound:
        raise InputError(
            f"The configuration differs from the run's: {'; '.join(bound)}.",
            "Resume with the run's config.toml, or start in a new folder.",
        )
    if state["content_sha256"] != content_sha256:
        raise InputError(
            "The training data differ from those that the run began with (cases, masks, split or base model).",
            "Restore them, or start in a new folder.",
        )
    then = state["environment"]
    changed = [f"{key}: {then[key]} -> {now[key]}" for key in now if now[key] != then[key]]
    # nothing else promises the same bits
    promised = then["device"] == now["device"] == "cpu" and config.run.deterministic
    if changed and promised:
        raise InputError(
            f"This machine would not give the same bits ({'; '.join(changed)}).",
            "Resume where the run began, or give up the same bits with run.deterministic = false.",
        )
    if free:
        changed = [*free, *changed]
    return [f"Resumed with {text}." for text in changed]
