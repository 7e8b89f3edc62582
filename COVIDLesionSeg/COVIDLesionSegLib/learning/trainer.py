"""One trainer for both papers' methods, which survives being killed at any moment.

Everything a step draws comes from (seed, step, index); the state of a run (weights, optimizer, teacher, loss window,
audit) is written whole or not at all. A resumed run on the CPU in float32 therefore ends with the same bits as an
uninterrupted one on the same number of threads, build of PyTorch and processor features.

Choosing is not judging: the step and student or teacher are chosen on cases of training patients that train no network;
the validation cases are looked at once, by the network that was chosen.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..cores import usable_cores
from ..errors import CancelledError, InputError, ReadError
from ..files import atomic_path, write_json, write_text
from ..inference.devices import choose_device, choose_precision, exact_float32
from ..models import LoadedModel, ModelCard, ModelRegistry, Preprocessing, load_checkpoint, save_model
from ..models.card import rewrite_card
from ..networks import create_network
from ..networks.factory import with_more_channels
from .config import TrainingConfig
from .distributed import Ranks, process_group
from .log import TrainingCallback, TrainingLog, followers, read_log
from .losses import make_criterion
from .machine import cpu_threads, deterministic_algorithms, environment, until_signal
from .noise_robust import LabelAudit
from .randomness import Purpose, draw_integer
from .sampling import Batch, ahead
from .step import DivergedError, StepResult, TrainingStep, batch_norms
from .training_data import TrainingData
from .validation import Judgment, WorstSlices, judge, predict_case, summarize, with_clean_statistics

__all__ = ["DivergedError", "Trainer", "TrainingResult"]

_logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
# From so many crops batch norms get the statistics that a network is used with.
_CLEAN_CROPS = 32


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves.

    Attributes:
        model: the chosen network's file, with its card.
        card: the card; None of an external network.
        folder: of the run: config.toml, state.pt, log.jsonl, log.csv, doubtful_labels.csv, result.json.
        steps: that were trained.
        best_step: whose weights the model holds.
        chosen: "student" or "teacher".
        selection: how it did on the cases by which it was chosen; of no case where nobody chooses.
        validation: its judgment on the validation cases; of no case where nobody validates.
        stopped: why the training ended: "steps" or "no improvement".
    """

    model: Path
    card: ModelCard | None
    folder: Path
    steps: int
    best_step: int
    chosen: str
    selection: Judgment
    validation: Judgment
    stopped: str


@dataclass
class _Best:
    """What is kept so far: whose network of which step, and what it was chosen by."""

    step: int
    chosen: str
    selection: Judgment


class Trainer:
    """Trains a network as a configuration says.

    Args:
        config: what to do.
        folder: of the run; made if absent.
        base_folder: what relative names in the configuration count from; the current folder by default.
        card: what the model's card should say besides what the training knows (id, name, license, training data).
        make_network: makes the network where ``config.network.name`` is "external": (N, C, H, W) with a channel for
            each of ``config.data.slice_offsets_mm``, or (N, 1, D, H, W) with ``config.data.depth`` above 1, to logits
            of two channels. Its tensors are saved as ``best.pt``, without a card.
        callbacks: who follows the training, besides TensorBoard where it is installed.

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
        callbacks: Sequence[TrainingCallback] = (),
    ) -> None:
        if (config.network.name == "external") != (make_network is not None):
            raise InputError(
                f'network.name is "{config.network.name}"; an external network, and no other, is made by the caller.'
            )
        held = config.regularization.name
        if held != "none" and not config.network.base_model:
            raise InputError(
                f'regularization.name is "{held}", but there is no base model to hold to; set network.base_model, or '
                'regularization.name = "none".'
            )
        self.config = config
        self.make_network = make_network
        self.folder = Path(folder)
        self._base_folder = Path(base_folder)
        self._card = card
        self._callbacks = followers(callbacks)
        self._ranks = Ranks()
        # settings that a constructor checks are checked before the data are prepared
        make_criterion(config.loss)
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
            process_group(self._device) as self._ranks,
            cpu_threads(run.threads),
            deterministic_algorithms(run.deterministic, self._device),
            exact_float32(self._device),
            until_signal() as stop,
        ):
            self._progress, self._cancelled = progress or _silent, lambda: stop() or asked()
            # what an earlier call prepared may have changed since
            for name in ("data", "_clean_batches"):
                self.__dict__.pop(name, None)
            self._begin(resume)
            return self._finish(self._steps())

    def judge(self, network: nn.Module) -> Judgment:
        """How a network does on this training's frozen validation cases; the split must have been made by a run."""
        self._cancelled = getattr(self, "_cancelled", _never)
        with process_group(self._device) as self._ranks:
            return self._judged(network.to(self._device), self.data.validation)

    def networks(self) -> dict[str, nn.Module]:
        """Student and, where there is one, teacher as they would be saved now, e.g. for a callback at a step."""
        return {name: self._settled(network) for name, network in self._learner.networks().items()}

    def training_cases(self) -> list[str]:
        """Ids of the cases that train."""
        return self.data.train

    def predict(self, network: nn.Module, case: str) -> NDArray[np.float32]:
        """A network's lesion probability (z, y, x) on the stored slices of a case."""
        network = network.to(self._device).eval()
        return predict_case(network, self.data.store, case, self.preprocessing, self._device, self._autocast)

    # ---- what it works with -------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> TrainingData:
        """Cases, split and slices; prepared when they are first asked for."""
        watched = (self._progress, self._cancelled) if hasattr(self, "_progress") else ()
        return TrainingData(self.config, self._base_folder, self.folder, self.preprocessing, self._ranks, *watched)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """How slices reach the network: box and size are the configuration's, all else is the base model's."""
        data = self.config.data
        base = self._base_model().card.preprocessing if self.config.network.base_model else Preprocessing()
        offsets = data.slice_offsets_mm or base.slice_offsets_mm
        if self.config.network.base_model and not set(base.slice_offsets_mm) <= set(offsets):
            raise InputError(
                f"data.slice_offsets_mm is {list(offsets)}, but the base model sees slices at "
                f"{list(base.slice_offsets_mm)} mm; name those, too, or leave it empty to train on as it is."
            )
        return replace(
            base,
            lung_crop_margin=None if data.margin < 0 else data.margin,
            resize=(data.resize[0], data.resize[1]) if data.resize else None,
            slice_offsets_mm=offsets,
        )

    def _base_model(self) -> LoadedModel:
        name = self.config.network.base_model
        file = self._base_folder / name
        path = file if file.is_file() else ModelRegistry().path(name)
        return load_checkpoint(path, network=self.config.network.name)

    def _network(self) -> nn.Module:
        settings = self.config.network
        if self.make_network is not None:
            return self.make_network()
        if settings.base_model:
            base, offsets = self._base_model(), self.preprocessing.slice_offsets_mm
            seen = base.card.preprocessing.slice_offsets_mm
            network = base.network
            if offsets != seen:
                network = with_more_channels(network, len(offsets), [offsets.index(offset) for offset in seen])
            return network.requires_grad_(True)
        channels = {"in_channels": len(self.preprocessing.slice_offsets_mm)}
        return create_network(settings.name, **channels | settings.arguments)

    def _begin(self, resume: bool) -> None:
        """Everything that a run needs, as new or as the last state has it."""
        config, ranks, settings = self.config, self._ranks, self.config.ensembling
        self._own_places = (ranks.share(config.run.batch_size), ranks.share(config.run.pseudo_batch_size))
        # pseudo-labeled images count behind all labeled ones
        behind = (config.run.batch_size + place for place in self._own_places[1])
        self._noise_places = [*self._own_places[0], *behind]
        state, notes = None, list[str]()
        # every process prepares its data here, whether there is a state or not
        sha256 = self._content_sha256
        if resume:
            found = load_state(self.folder, config, sha256, self._environment())
            state, notes = found or (None, [])
        if ranks.is_main and state is None:
            if has_state(self.folder):
                raise InputError(
                    f"The folder {self.folder} holds a training already; resume it or choose another folder."
                )
            write_text(self.folder / "config.toml", config.to_toml())
        ranks.barrier()
        torch.manual_seed(draw_integer(config.run.seed, Purpose.INITIALIZATION))
        network = self._network().to(self._device, self._dtype)
        share = config.base_share
        self._base_weights = {name: value.clone() for name, value in network.state_dict().items()} if share else {}
        self._learner = TrainingStep(network, config, self._device, self._autocast, ranks)
        self._audit = LabelAudit(settings.window, settings.percentile, settings.warm_up)
        self._step = 0
        self._best: _Best | None = None
        if state is not None:
            self._learner.load_state_dict(state)
            self._audit.load_state_dict(state["audit"])
            self._step = state["step"]
            if state["best"] is not None:
                best = state["best"]
                self._best = _Best(best["step"], best["chosen"], summarize(best["selection"]))
        self._log = None
        if ranks.is_main:
            self._log = TrainingLog(self.folder, self._step, config.to_dict(), self._callbacks)
            self._log.resumed(self._step, notes)
            for note in notes:
                _logger.warning("%s", note)

    def _environment(self) -> dict[str, Any]:
        return environment(self._device, self._autocast or self._dtype, self._ranks.count)

    def _save(self) -> None:
        if not self._ranks.is_main:
            return
        best = self._best
        parts = {
            **self._learner.state_dict(),
            "step": self._step,
            "audit": self._audit.state_dict(),
            "best": best and {"step": best.step, "chosen": best.chosen, "selection": best.selection.cases},
        }
        save_state(self.folder, self.config, self._content_sha256, self._environment(), parts)

    @property
    def _content_sha256(self) -> str:
        """Of the data and of the base model's weights."""
        if not self.config.network.base_model:
            return self.data.sha256
        both = self.data.sha256 + self._base_model().card.weights_sha256
        return hashlib.sha256(both.encode()).hexdigest()

    # ---- the loop -----------------------------------------------------------------------------------------------

    def _steps(self) -> str:
        """All steps that are left; why they ended."""
        run = self.config.run
        stopped = "steps"
        gpu = self._device.type == "cuda"
        batches = ahead(self._draw, range(self._step, run.steps), run.workers or (min(8, usable_cores()) if gpu else 1))
        with contextlib.closing(batches):
            while self._step < run.steps:
                if self._waited(run.patience):
                    stopped = "no improvement"
                    break
                if self._ranks.agree(self._cancelled(), self._device):
                    self._save()
                    raise CancelledError(
                        f"Stopped at step {self._step} of {run.steps}; the state is saved.", "Go on with --resume."
                    )
                started = time.perf_counter()
                batch, images, labels = next(batches)
                waited = time.perf_counter() - started
                entry = self._one_step(batch, images, labels)
                entry |= {"seconds": time.perf_counter() - started, "waiting_seconds": waited}
                if self._log is not None:
                    self._log.step(entry)
                self._step += 1
                if self._step % run.validation_interval == 0 or self._step == run.steps:
                    self._choose()
                if self._step % run.checkpoint_interval == 0 or self._step == run.steps:
                    self._save()
                self._progress("training", self._step, run.steps)
        if self._best is None:
            # resumed with no step left, before anything was chosen
            self._choose()
            self._save()
        elif stopped == "no improvement":
            self._save()
        return stopped

    def _waited(self, patience: int) -> bool:
        """Whether those who choose have found nothing better for so many steps."""
        best = self._best
        return best is not None and best.selection.counted > 0 and self._step - best.step >= patience

    def _draw(self, step: int) -> tuple[Batch, Tensor, Tensor]:
        """The labeled part of a step's batch, and all of its images and labels, pinned where they go to a GPU."""
        own, pseudo = self._own_places
        batch = self.data.source.batch(step, own)
        images, labels = batch.images, batch.labels
        if self.data.pseudo is not None:
            more = self.data.pseudo.batch(step, pseudo)
            images, labels = np.concatenate([images, more.images]), np.concatenate([labels, more.labels])
        tensors = torch.from_numpy(images), torch.from_numpy(labels)
        if self._device.type == "cuda":
            tensors = tensors[0].pin_memory(), tensors[1].pin_memory()
        return batch, *tensors

    def _one_step(self, batch: Batch, images: Tensor, labels: Tensor) -> dict[str, float]:
        result = self._learner.run(self._step, images, labels, self._noise_places[: len(images)], batch.slices)
        self._watch_labels(batch, result)
        return result.entry

    def _watch_labels(self, batch: Batch, result: StepResult) -> None:
        count = len(batch.slices)
        label = torch.from_numpy(batch.labels).to(self._device)
        teacher = result.teacher_logits[:count]
        with torch.no_grad():
            losses = self._learner.criterion.per_image(result.logits[:count], label.long())
            answer = (teacher[:, 1] > teacher[:, 0]).flatten(1)
            given = label.flatten(1) != 0
            size = answer.sum(1) + given.sum(1)
            overlap = 2 * (answer & given).sum(1) / size.clamp_min(1)
            disagreement = torch.where(size > 0, 1 - overlap, 0.0)
            both = self._ranks.gather(torch.stack([losses.float(), disagreement.float()], dim=1)).tolist()
        slices = [
            (case, index + self.data.store.cases[case].first_slice)
            for case, index in self.data.source.chosen(self._step)
        ]
        self._audit.add(slices, [loss for loss, _ in both], [value for _, value in both])

    # ---- choosing and judging -----------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Keep student or teacher of this step if one is the best so far; where nobody chooses, the teacher."""
        networks = self.networks()
        judgments = {}
        for number, (name, network) in enumerate(networks.items()):
            self._progress("choosing", number, len(networks))
            worst = self._watcher()
            judgments[name] = self._judged(network, self.data.selection, worst)
        self._progress("choosing", len(networks), len(networks))
        if self.data.selection:
            self._tell("selection", judgments, worst)
        # the later of equals: the teacher, which the paper's framework is about
        name = max(reversed(list(judgments)), key=lambda key: _order(judgments[key].dice))
        better = self._best is None or _order(judgments[name].dice) > _order(self._best.selection.dice)
        if better or not judgments[name].counted:
            self._best = _Best(self._step, name, judgments[name])
            if self._ranks.is_main:
                # the other network first: what stands beside a model always belongs to it or to an earlier one
                for other in networks.keys() - {name}:
                    self._save_network(networks[other], _Best(self._step, other, judgments[other]), "partner")
                self._save_network(networks[name], self._best, "best")
        self._ranks.barrier()

    def _settled(self, network: nn.Module) -> nn.Module:
        """The network as it will be used: mixed with the base, with batch-norm statistics of images without noise."""
        share = self.config.base_share
        if share:
            network = copy.deepcopy(network)
            for name, value in network.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(self._base_weights[name].to(value), share)
        if self.config.network.freezes_batch_norm or not batch_norms(network):
            return network
        return with_clean_statistics(network, (batch.to(self._device, self._dtype) for batch in self._clean_batches))

    @cached_property
    def _clean_batches(self) -> list[Tensor]:
        """Training crops as they are drawn, without noise and augmentation; the same at every call on every rank."""
        source = self.data.clean_source()
        return [torch.from_numpy(source.batch(step).images) for step in range(-(-_CLEAN_CROPS // source.batch_size))]

    def _watcher(self) -> WorstSlices | None:
        """What collects the worst slices, where somebody looks at them."""
        window = self.preprocessing.window_width, self.preprocessing.window_level
        return WorstSlices(self.data.store, window) if self._callbacks else None

    def _tell(self, stage: str, judgments: Mapping[str, Judgment], worst: WorstSlices | None) -> None:
        images = worst.images(self._ranks) if worst is not None else {}
        if self._log is not None:
            self._log.judgment(self._step, stage, {name: j.to_dict() for name, j in judgments.items()}, images)

    def _judged(self, network: nn.Module, cases: Sequence[str], worst: WorstSlices | None = None) -> Judgment:
        """On some cases, which the processes of a job share."""
        ranks = self._ranks
        own = judge(
            network,
            self.data.store,
            cases[ranks.rank :: ranks.count],
            self.preprocessing,
            self._device,
            self._autocast,
            self._cancelled,
            worst.add if worst is not None else None,
        )
        found = dict(ranks.gather_objects(list(own.items())))
        return summarize({case: found[case] for case in cases})

    def _save_network(self, network: nn.Module, facts: _Best, file: str) -> None:
        if self.make_network is None:
            save_model(network, self._model_card(network, facts), self.folder / f"{file}.safetensors")
        else:
            # some libraries' networks name a tensor twice, which safetensors refuse
            save_tensors(network.state_dict(), self.folder / f"{file}.pt")

    def _model_card(self, network: nn.Module, facts: _Best) -> ModelCard:
        """What the training knows, over what the caller or the base model says of itself."""
        config, data = self.config, self.data
        base = self._card or (self._base_model().card if config.network.base_model else None)
        metrics: dict[str, Any] = {
            "selection": facts.selection.to_dict(),
            "chosen": facts.chosen,
            "step": facts.step,
            "config": config.to_dict(),
            "data_sha256": data.sha256,
            "train_patients": sum(name == "train" for name in data.split.sets.values()),
            "validation_patients": sum(name == "validation" for name in data.split.sets.values()),
        }
        if data.noise:
            metrics["label_noise"] = data.noise
        # what a model has learned from, it can be made to remember; its base has not forgotten all of it
        learned = data.images | (base.training_images if base is not None else set())
        metrics["training_images"] = sorted(learned - {""})
        fields = asdict(base) if base is not None else {"id": "trained", "name": f"{config.network.name}, trained"}
        fields |= {
            "network": config.network.name,
            "network_arguments": getattr(network, "arguments", config.network.arguments),
            "preprocessing": self.preprocessing,
            "metrics": metrics,
            "weights_sha256": "",
        }
        return ModelCard(**fields)

    def _finish(self, stopped: str) -> TrainingResult:
        """Judge what was chosen, once, and write what the run leaves."""
        best = self._best
        assert best is not None  # noqa: S101  # the last step chooses
        own = self.make_network is None
        model = self.folder / ("best.safetensors" if own else "best.pt")
        card = None
        if own:
            loaded = load_checkpoint(model)
            network: nn.Module = loaded.network
        else:
            network = self._network()
            network.load_state_dict(torch.load(model, map_location="cpu", weights_only=True))
        self._progress("validating", 0, 1)
        worst = self._watcher()
        validation = self._judged(network.to(self._device, self._dtype).eval(), self.data.validation, worst)
        self._progress("validating", 1, 1)
        if self.data.validation:
            self._tell("validation", {best.chosen: validation}, worst)
        if own:
            card = replace(loaded.card, metrics={**loaded.card.metrics, "validation": validation.to_dict()})
        self._ranks.barrier()
        if self._ranks.is_main:
            if card is not None:
                rewrite_card(model, card)
            self._audit.write_csv(self.folder / "doubtful_labels.csv")
            log = read_log(self.folder)
            result = {
                "model": model.name,
                "steps": self._step,
                "best_step": best.step,
                "chosen": best.chosen,
                "stopped": stopped,
                "selection": best.selection.to_dict(),
                "validation": validation.to_dict(),
                "label_noise": self.data.noise,
                "environment": self._environment(),
                "resumed": [entry for entry in log if entry["kind"] == "resumed"],
                "overflows": sum(entry.get("overflows") or 0 for entry in log),
                "doubtful_cases": self._audit.cases(),
            }
            write_json(self.folder / "result.json", result)
            if self._log is not None:
                self._log.end(result)
        self._ranks.barrier()
        return TrainingResult(
            model, card, self.folder, self._step, best.step, best.chosen, best.selection, validation, stopped
        )


def _order(dice: float) -> float:
    """A mean that counts no case loses against any other."""
    return -1.0 if math.isnan(dice) else dice


def _never() -> bool:
    return False


def _silent(phase: str, done: int, total: int) -> None:
    """The progress of a run that nobody watches."""


def _autocast(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "float64":
        return None
    chosen, _ = choose_precision(precision, device)
    return None if chosen == torch.float32 else chosen


# ---- the state of a run on disk --------------------------------------------------------------------------------------

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
