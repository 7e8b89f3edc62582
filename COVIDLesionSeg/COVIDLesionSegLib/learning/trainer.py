"""One trainer for both papers' methods, which survives being killed at any moment.

Everything a step draws comes from (seed, step, index); the state of a run (weights, optimizer, teacher, loss window,
audit) is written whole or not at all. A resumed run on the CPU in float32 therefore ends with the same bits as an
uninterrupted one on the same number of threads, build of PyTorch and processor features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import InputError
from ..inference.devices import choose_device, choose_precision, exact_float32
from ..models import ModelCard
from .building import make_criterion
from .config import TrainingConfig
from .distributed import Ranks, process_group
from .machine import cpu_threads, deterministic_algorithms, until_signal
from .training_data import TrainingData
from .training_job import WINDOW, Progress, TrainingJob
from .training_result import DivergedError, TrainingResult
from .validation import Judgment, judge, predict_case, summarize

__all__ = ["DivergedError", "Trainer", "TrainingResult"]


class Trainer:
    """Trains a network as a configuration says.

    Args:
        config: what to do.
        folder: of the run; made if absent.
        base_folder: what relative names in the configuration count from; the current folder by default.
        card: what the model's card should say besides what the training knows (id, name, license, training data).
        make_network: makes the network where ``config.network.name`` is "external": (N, 1, H, W), or (N, 1, D, H, W)
            with ``config.data.depth`` above 1, to logits of two channels. Its
            tensors are saved as ``best.pt``, without a card.

    Raises:
        InputError: a configuration or data that can't be trained on; the sentence says why.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path | str,
        base_folder: Path | str = ".",
        card: ModelCard | None = None,
        make_network: Callable[[], nn.Module] | None = None,
    ) -> None:
        if (config.network.name == "external") != (make_network is not None):
            raise InputError(
                f'network.name is "{config.network.name}"; an external network, and no other, is made by the caller.'
            )
        self.config = config
        self.make_network = make_network
        self.folder = Path(folder)
        self._base = Path(base_folder)
        self._card = card
        self._prepared: TrainingData | None = None
        # settings that a constructor checks are checked before the data are prepared
        self._criterion = make_criterion(config.loss)
        self._device = choose_device(config.run.device).device
        self._dtype = torch.float64 if config.run.precision == "float64" else torch.float32
        self._autocast = _autocast(config.run.precision, self._device)

    def run(
        self,
        resume: bool = False,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> TrainingResult:
        """Train.

        Args:
            resume: go on from the folder's last state; without one, start.
            progress: called as progress("training", step, steps), and for other phases.
            cancelled: asked at each step; the state is saved before CancelledError is raised.

        Raises:
            InputError: the data can't be used, or (with ``resume``) configuration, data or machine differ from before.
            DivergedError: the loss is no longer finite.
            CancelledError: asked to stop, also by SIGTERM; the run can be resumed.
            OutputError: the disk is full; the last whole state stays.
            RankLostError: another process of a distributed training ended.
        """
        run, asked = self.config.run, cancelled or _never
        with (
            process_group(self._device) as ranks,
            cpu_threads(run.threads),
            deterministic_algorithms(run.deterministic, self._device),
            exact_float32(self._device),
            until_signal() as stop,
        ):
            return TrainingJob(self, ranks, resume, progress, lambda: stop() or asked()).train()

    def judge(self, network: nn.Module) -> Judgment:
        """How a network does on this training's frozen validation cases; the split must have been made by a run."""
        data = self._data()
        network = network.to(self._device)
        return summarize(judge(network, data.store, data.validation, WINDOW, self._device, self._autocast))

    def training_cases(self) -> list[str]:
        """Ids of the cases on the training side of the split."""
        return self._data().train

    def predict(self, network: nn.Module, case: str) -> NDArray[np.float32]:
        """A network's lesion probability (z, y, x) on the stored slices of a case."""
        network = network.to(self._device).eval()
        return predict_case(network, self._data().store, case, WINDOW, self._device, self._autocast)

    def _data(self) -> TrainingData:
        if self._prepared is None:
            self._prepared = TrainingData(self.config, self._base, self.folder, WINDOW, Ranks())
        return self._prepared


def _never() -> bool:
    return False


def _autocast(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "float64":
        return None
    chosen, _ = choose_precision(precision, device)
    return None if chosen == torch.float32 else chosen
