"""Label update: the other method that the noise-robust framework is compared with (TMI section III-E, Table IV).

Several networks are trained on the given labels; the mean of their probabilities, cut at 0.5, replaces the labels of
the training cases; one network is trained from scratch on those. One round; the given labels are not looked at again.
How the five models of the paper differ is not stated; here they differ in their seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import atomic_path
from ..inference.devices import choose_device
from ..models import load_checkpoint
from .config import TrainingConfig
from .distributed import process_group
from .log import TrainingCallback
from .trainer import Trainer, TrainingResult

Progress = Callable[[str, int, int], None]


def label_update(
    config: TrainingConfig,
    folder: Path | str,
    base_folder: Path | str = ".",
    count: int = 5,
    resume: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    callbacks: Sequence[TrainingCallback] = (),
) -> TrainingResult:
    """Train ``count`` networks, relabel the training cases with their mean, and train one network on the new labels.

    Args:
        config: of every one of the trainings.
        folder: gets ``member-N/`` for each network, ``labels/`` and ``final/``.
        base_folder: what relative names in the configuration count from.
        count: of networks, >= 2; 5 in the paper.
        resume: go on where an earlier call stopped.
        progress: called as progress(phase, done, total).
        cancelled: asked at each step.
        callbacks: who follows each of the trainings.

    Returns:
        The result of the last training.

    Raises:
        InputError: fewer than two networks, or what ``Trainer.run`` refuses.
    """
    if count < 2:
        raise InputError(f"Label update with {count} networks is no ensemble; at least 2 are needed.")
    folder, base = Path(folder), Path(base_folder)
    data = replace(
        config.data, cache=str((base / config.data.cache if config.data.cache else folder / "slices").resolve())
    )
    config = replace(config, data=data)
    # the processes of a launcher stay together from the first training to the last
    with process_group(choose_device(config.run.device).device):
        members = []
        for number in range(count):
            member = replace(config, run=replace(config.run, seed=config.run.seed + number))
            trainer = Trainer(member, folder / f"member-{number}", base, callbacks=callbacks)
            members.append(trainer.run(resume, progress, cancelled))
        trainer = Trainer(config, folder / "member-0", base)
        networks = [load_checkpoint(member.model).network for member in members]
        for case in trainer.training_cases():
            mean = np.mean([trainer.predict(network, case) for network in networks], axis=0)
            with atomic_path(folder / "labels" / f"{case}.npy") as path, path.open("wb") as file:
                np.save(file, (mean > 0.5).astype(np.uint8))
        final = replace(config, data=replace(config.data, training_labels=str((folder / "labels").resolve())))
        return Trainer(final, folder / "final", base, callbacks=callbacks).run(resume, progress, cancelled)
