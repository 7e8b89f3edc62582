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

STATE_VERSION = 2
_FILE = "state.pt"


def has_state(folder: Path) -> bool:
    """Whether a run's folder holds a state."""
    return (folder / _FILE).exists()


def load_state(
    folder: Path, config: TrainingConfig, data_sha256: str, environment: dict[str, Any]
) -> dict[str, Any] | None:
    """The last state of a run.

    Args:
        folder: of the run.
        config: of what goes on now.
        data_sha256: of the data that are there now.
        environment: what decides about the bits on this machine.

    Returns:
        What :func:`save_state` was given, None where there is none.

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
    _refuse_another_run(state, config, data_sha256, environment)
    return state


def save_state(
    folder: Path, config: TrainingConfig, data_sha256: str, environment: dict[str, Any], parts: dict[str, Any]
) -> None:
    """Replace a run's state.

    Raises:
        OutputError: the disk is full; the state before stays.
    """
    facts = {"config": config.to_dict(), "data_sha256": data_sha256, "environment": environment}
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


def _refuse_another_run(state: dict[str, Any], config: TrainingConfig, data_sha256: str, now: dict[str, Any]) -> None:
    before = TrainingConfig.from_dict(state["config"])
    # more steps extend a run; with a one-cycle rate they would change every step
    longer = config.optimizer.schedule != "one_cycle"
    steps = config.run.steps if longer else before.run.steps
    differences = replace(before, run=replace(before.run, steps=steps)).difference(config)
    if differences:
        raise InputError(
            f"The configuration differs from the run's: {'; '.join(differences)}.",
            "Resume with the run's config.toml, or start in a new folder.",
        )
    if state["data_sha256"] != data_sha256:
        raise InputError(
            "The training data differ from those that the run began with (cases, masks or split).",
            "Restore them, or start in a new folder.",
        )
    then = state["environment"]
    changed = [f"{key}: {then[key]} -> {now[key]}" for key in now if now[key] != then[key]]
    if changed and config.run.deterministic:
        raise InputError(
            f"This machine would not give the same bits ({'; '.join(changed)}).",
            "Resume where the run began, or set run.deterministic = false in a new run.",
        )
