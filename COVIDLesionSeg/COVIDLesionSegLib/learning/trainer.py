"""One trainer for both papers' methods, which survives being killed at any moment.

Everything a step draws comes from (seed, step, index); the state of a run (weights, optimizer, teacher, loss window,
audit) is written whole or not at all. A resumed run on the CPU in float32 therefore ends with the same bits as an
uninterrupted one on the same number of threads, build of PyTorch and processor features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import CancelledError, COVIDLesionSegError, InputError, ReadError
from ..files import atomic_path, write_json, write_text
from ..inference.devices import choose_device, choose_precision
from ..models import ModelCard, ModelRegistry, Preprocessing, load_checkpoint, save_model
from ..networks import create_network
from .audit import LabelAudit
from .building import learning_rate, make_criterion, make_optimizer
from .config import TrainingConfig
from .distributed import Ranks, process_group, use_global_batch_norm
from .log import TrainingLog
from .machine import cpu_threads, deterministic_algorithms, environment, until_signal
from .noise_robust import AdaptiveSelfEnsembling, DataReweighting
from .randomness import Purpose, draw, gaussian_noise
from .sampling import Batch
from .training_data import TrainingData
from .validation import Judgment, judge, predict_case, summarize

Progress = Callable[[str, int, int], None]
STATE_VERSION = 1
_WINDOW = (Preprocessing().window_width, Preprocessing().window_level)


class DivergedError(COVIDLesionSegError):
    """The loss or a gradient is no longer finite; the last saved state is good."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves.

    Attributes:
        model: the best model's file, with its card.
        card: the card; None of an external network.
        folder: of the run: config.toml, state.pt, log.jsonl, log.csv, doubtful_labels.csv, result.json.
        steps: that were trained.
        best_step: whose weights the model holds.
        best: its judgment on the validation cases; of no case where nobody validates.
        stopped: why it ended: "steps" or "no improvement".
    """

    model: Path
    card: ModelCard | None
    folder: Path
    steps: int
    best_step: int
    best: Judgment
    stopped: str


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
        run = self.config.run
        with (
            process_group(self._device.type) as ranks,
            cpu_threads(run.threads),
            deterministic_algorithms(run.deterministic, self._device),
        ):
            job = _Job(self, ranks, resume, progress, cancelled)
            with until_signal() as stop:
                return job.train(stop)

    def judge(self, network: nn.Module) -> Judgment:
        """How a network does on this training's frozen validation cases; the split must have been made by a run."""
        data = self._data()
        network = network.to(self._device)
        return summarize(judge(network, data.store, data.validation, _WINDOW, self._device, self._autocast))

    def training_cases(self) -> list[str]:
        """Ids of the cases on the training side of the split."""
        return self._data().train

    def predict(self, network: nn.Module, case: str) -> NDArray[np.float32]:
        """A network's lesion probability (z, y, x) on the stored slices of a case."""
        network = network.to(self._device).eval()
        return predict_case(network, self._data().store, case, _WINDOW, self._device, self._autocast)

    def _data(self) -> TrainingData:
        if self._prepared is None:
            self._prepared = TrainingData(self.config, self._base, self.folder, _WINDOW, Ranks())
        return self._prepared


class _Job:
    """One call of :meth:`Trainer.run`: the parts and the loop."""

    def __init__(
        self,
        trainer: Trainer,
        ranks: Ranks,
        resume: bool,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        self.trainer, self.config, self.folder = trainer, trainer.config, trainer.folder
        self.ranks, self.device, self.autocast = ranks, trainer._device, trainer._autocast
        self.progress = progress or _silent
        self.cancelled = cancelled or (lambda: False)
        config = self.config
        self.places = ranks.share(config.run.batch_size)
        self.pseudo_places = ranks.share(config.run.pseudo_batch_size)
        self.data = TrainingData(config, trainer._base, self.folder, _WINDOW, ranks, progress, cancelled)

        state = self._load_state() if resume else None
        self._start_folder(state)
        torch.manual_seed(_integer(config.run.seed, Purpose.INITIALIZATION))
        self.network = self._network().to(self.device, trainer._dtype)
        for parameter in self.network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        use_global_batch_norm(self.network, ranks)
        self.criterion = trainer._criterion
        self.criterion.reduce = ranks.sum
        self.optimizer = make_optimizer(config.optimizer, self.network.parameters())
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast == torch.float16)
        settings = config.ensembling
        self.ensembling = AdaptiveSelfEnsembling(self.network, settings) if settings.enabled else None
        weights = config.reweighting
        self.reweighting = (
            DataReweighting(weights.window, weights.percentile, weights.warm_up) if weights.enabled else None
        )
        self.audit = LabelAudit(settings.window, settings.percentile, settings.warm_up)
        self.step = 0
        self.best: Judgment | None = None
        self.best_step = -1
        if state is not None:
            self._restore(state)
        self.forward = ranks.wrap(self.network)
        self.log = TrainingLog(self.folder, self.step) if ranks.is_main else None

    def _network(self) -> nn.Module:
        settings = self.config.network
        if self.trainer.make_network is not None:
            return self.trainer.make_network()
        if not settings.base_model:
            return create_network(settings.name, **settings.arguments)
        file = self.trainer._base / settings.base_model
        path = file if file.is_file() else ModelRegistry().path(settings.base_model)
        loaded = load_checkpoint(path, network=settings.name)
        self.base_card = loaded.card
        return loaded.network.requires_grad_(True)

    # ---- the state on disk --------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, Any]:
        return environment(self.device, self.autocast or self.trainer._dtype, self.ranks.count)

    def _start_folder(self, state: dict[str, Any] | None) -> None:
        if self.ranks.is_main and state is None:
            if (self.folder / "state.pt").exists():
                raise InputError(
                    f"The folder {self.folder} holds a training already; resume it or choose another folder."
                )
            write_text(self.folder / "config.toml", self.config.to_toml())
        self.ranks.barrier()

    def _load_state(self) -> dict[str, Any] | None:
        path = self.folder / "state.pt"
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
        self._refuse_another_run(state)
        return state

    def _refuse_another_run(self, state: dict[str, Any]) -> None:
        before = TrainingConfig.from_dict(state["config"])
        # more steps extend a run; with a one-cycle rate they would change every step
        longer = self.config.optimizer.schedule != "one_cycle"
        steps = self.config.run.steps if longer else before.run.steps
        differences = replace(before, run=replace(before.run, steps=steps)).difference(self.config)
        if differences:
            raise InputError(
                f"The configuration differs from the run's: {'; '.join(differences)}.",
                "Resume with the run's config.toml, or start in a new folder.",
            )
        if state["data_sha256"] != self.data.sha256:
            raise InputError(
                "The training data differ from those that the run began with (cases, masks or split).",
                "Restore them, or start in a new folder.",
            )
        now, then = (
            self._environment(),
            state["environment"],
        )
        changed = [f"{key}: {then[key]} -> {now[key]}" for key in now if now[key] != then[key]]
        if changed and self.config.run.deterministic:
            raise InputError(
                f"This machine would not give the same bits ({'; '.join(changed)}).",
                "Resume where the run began, or set run.deterministic = false in a new run.",
            )

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ensembling is not None:
            self.ensembling.load_state_dict(state["ensembling"])
        if self.reweighting is not None:
            self.reweighting.load_state_dict(state["reweighting"])
        self.audit.load_state_dict(state["audit"])
        self.step, self.best_step = state["step"], state["best_step"]
        self.best = summarize(state["best"]) if state["best"] is not None else None

    def _save(self) -> None:
        if not self.ranks.is_main:
            return
        state = {
            "version": STATE_VERSION,
            "step": self.step,
            "config": self.config.to_dict(),
            "data_sha256": self.data.sha256,
            "environment": self._environment(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ensembling": self.ensembling.state_dict() if self.ensembling else None,
            "reweighting": self.reweighting.state_dict() if self.reweighting else None,
            "audit": self.audit.state_dict(),
            "best": self.best.cases if self.best else None,
            "best_step": self.best_step,
        }
        with atomic_path(self.folder / "state.pt") as path:
            torch.save(state, path)

    # ---- the loop -----------------------------------------------------------------------------------------------

    def train(self, stop: Callable[[], bool]) -> TrainingResult:
        run = self.config.run
        stopped = "steps"
        # one batch ahead, so that the network seldom waits for its data
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._draw, self.step) if self.step < run.steps else None
            while self.step < run.steps:
                if self.data.validation and self.best is not None and self.step - self.best_step >= run.patience:
                    stopped = "no improvement"
                    break
                if self.ranks.agree(stop() or self.cancelled(), self.device):
                    self._save()
                    raise CancelledError(
                        f"Stopped at step {self.step} of {run.steps}; the state is saved.", "Go on with --resume."
                    )
                started = time.perf_counter()
                assert coming is not None  # noqa: S101  # while there is a step, its batch is coming
                batch = coming.result()
                waited = time.perf_counter() - started
                if self.step + 1 < run.steps:
                    coming = ahead.submit(self._draw, self.step + 1)
                entry = self._one_step(*batch)
                entry |= {"seconds": time.perf_counter() - started, "waiting_seconds": waited}
                if self.log is not None:
                    self.log.step(entry)
                self.step += 1
                if self.step % run.validation_interval == 0 or self.step == run.steps:
                    self._validate()
                if self.step % run.checkpoint_interval == 0 or self.step == run.steps:
                    self._save()
                self.progress("training", self.step, run.steps)
        if self.best is None or stopped == "no improvement":
            self._save()
        return self._finish(stopped)

    def _draw(self, step: int) -> tuple[Batch, Batch | None]:
        pseudo = self.data.pseudo.batch(step, self.pseudo_places) if self.data.pseudo is not None else None
        return self.data.source.batch(step, self.places), pseudo

    def _one_step(self, batch: Batch, pseudo: Batch | None) -> dict[str, float]:
        config = self.config
        images, labels, slices = batch.images, batch.labels, batch.slices
        if pseudo is not None:
            images = np.concatenate([images, pseudo.images])
            labels = np.concatenate([labels, pseudo.labels])
        image = torch.from_numpy(images).to(self.device, self.trainer._dtype, non_blocking=True)
        if image.ndim == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        label = torch.from_numpy(labels).to(self.device, non_blocking=True).long()
        rate = learning_rate(config.optimizer, self.step, config.run.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_integer(config.run.seed, Purpose.DROPOUT, self.step, self.ranks.rank))
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)

        entry: dict[str, float] = {"step": self.step, "learning_rate": rate}
        weights: Tensor | None = None
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            if self.ensembling is not None:
                noises = [self._noise(purpose, image) for purpose in (Purpose.STUDENT_NOISE, Purpose.TEACHER_NOISE)]
                found = self.ensembling.losses(self.criterion, image, label, noises[0], noises[1], self.forward)
                total, segmentation, logits = found.total, found.segmentation, found.student_logits
                judge_logits = found.teacher_logits
                entry |= {
                    "teacher_loss": found.teacher.item(),
                    "consistency": self._mean(found.consistency),
                    "lambda": self._mean(torch.tensor(found.weight, device=self.device)),
                }
            else:
                logits = self.forward(image)
                judge_logits = logits.detach()
                if self.reweighting is not None:
                    weights = self._kept(logits.detach(), label, entry)
                total = self.criterion(logits, label, weights)
                segmentation = total.detach()
        entry |= {"loss": self._mean(total.detach()), "student_loss": segmentation.item()}
        if not all(math.isfinite(entry[name]) for name in ("loss", "student_loss")):
            self._diverged("loss", entry, slices, logits.detach())
        if weights is None or entry["kept"] > 0:
            self.scaler.scale(total).backward()
            self.scaler.unscale_(self.optimizer)
            largest = config.optimizer.gradient_clip or math.inf
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), largest)
            if not torch.isfinite(norm) and not self.scaler.is_enabled():
                self._diverged("gradient", entry, slices, logits.detach())
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.ensembling is not None:
            entry |= self.ensembling.update(entry["student_loss"])
        self._watch_labels(batch, logits.detach(), judge_logits, label)
        return entry

    def _noise(self, purpose: Purpose, images: Tensor) -> Tensor:
        settings, run = self.config.ensembling, self.config.run
        # places in the global batch; pseudo-labeled images count behind all labeled ones
        places = [*self.places, *(run.batch_size + place for place in self.pseudo_places)]
        shape, clip = tuple(images.shape[1:]), settings.noise_clip or None
        noise = gaussian_noise(
            run.seed, purpose, self.step, places, shape, settings.noise_sd, clip, settings.noise_varies
        )
        return torch.from_numpy(noise).to(images)

    def _kept(self, logits: Tensor, label: Tensor, entry: dict[str, float]) -> Tensor:
        assert self.reweighting is not None  # noqa: S101  # the caller looked
        with torch.no_grad():
            losses = self.ranks.gather(self.criterion.per_image(logits, label))
        kept, threshold = self.reweighting.keep(losses.tolist())
        entry |= {"kept": float(sum(kept)), "beta": threshold}
        own = slice(self.ranks.rank * len(logits), (self.ranks.rank + 1) * len(logits))
        return torch.tensor(kept[own], device=self.device, dtype=torch.float32)

    def _watch_labels(self, batch: Batch, student: Tensor, teacher: Tensor, label: Tensor) -> None:
        count = len(batch.slices)
        with torch.no_grad():
            losses = self.criterion.per_image(student[:count], label[:count])
            answer = (teacher[:count, 1] > teacher[:count, 0]).flatten(1)
            given = label[:count].flatten(1) != 0
            size = answer.sum(1) + given.sum(1)
            overlap = 2 * (answer & given).sum(1) / size.clamp_min(1)
            disagreement = torch.where(size > 0, 1 - overlap, 0.0)
            both = self.ranks.gather(torch.stack([losses.float(), disagreement.float()], dim=1)).tolist()
        slices = [
            (case, index + self.data.store.cases[case].first_slice)
            for case, index in self.data.source.chosen(self.step)
        ]
        self.audit.add(slices, [loss for loss, _ in both], [value for _, value in both])

    def _mean(self, value: Tensor) -> float:
        """Of a number that each rank computed on its share."""
        return float(self.ranks.sum(value.reshape(1)).item()) / self.ranks.count

    def _diverged(self, what: str, entry: dict[str, float], slices: list[tuple[str, int]], logits: Tensor) -> None:
        images = ", ".join(f"{case} slice {index}" for case, index in slices[:4])
        raise DivergedError(
            f"The {what} is not finite at step {self.step} (loss {entry['loss']}, rate {entry['learning_rate']:.3g}, "
            f"largest logit {float(logits.float().abs().max()):.3g}; slices {images}, ...). "
            "The last saved state is good.",
            "Try a lower learning rate, gradient clipping, or float32.",
        )

    # ---- judging and finishing ----------------------------------------------------------------------------------

    def _validate(self) -> None:
        judged = bool(self.data.validation)
        if not judged and self.step < self.config.run.steps:
            return
        networks = {"student": self.network}
        if self.ensembling is not None:
            networks["teacher"] = self.ensembling.teacher
        self.progress("validating", 0, len(networks))
        judgments = {}
        for number, (name, network) in enumerate(networks.items()):
            own = judge(
                network,
                self.data.store,
                self.data.validation[self.ranks.rank :: self.ranks.count],
                _WINDOW,
                self.device,
                self.autocast,
                self.cancelled,
            )
            judgments[name] = summarize(_merged(own, self.ranks, self.data.validation))
            self.progress("validating", number + 1, len(networks))
        if judged and self.log is not None:
            self.log.validation(self.step, {name: judgment.to_dict() for name, judgment in judgments.items()})
        # the later of equals: the teacher, which the paper's framework is about
        name = max(reversed(list(judgments)), key=lambda key: _order(judgments[key].dice))
        # where nobody judges, the network after the last step is the one to keep
        if self.best is None or not judged or _order(judgments[name].dice) > _order(self.best.dice):
            self.best, self.best_step = judgments[name], self.step
            if self.ranks.is_main:
                # the other network first: what stands beside a model always belongs to it or to an earlier one
                for other in networks.keys() - {name}:
                    self._save_network(networks[other], other, judgments[other], "partner")
                self._save_network(networks[name], name, judgments[name], "best")
        self.ranks.barrier()

    def _save_network(self, network: nn.Module, chosen: str, judgment: Judgment, file: str) -> None:
        if self.trainer.make_network is None:
            save_model(network, self._model_card(chosen, judgment), self.folder / f"{file}.safetensors")
        else:
            # some libraries' networks name a tensor twice, which safetensors refuse
            with atomic_path(self.folder / f"{file}.pt") as path:
                torch.save(network.state_dict(), path)

    def _model_card(self, chosen: str, judgment: Judgment) -> ModelCard:
        base = self.trainer._card or getattr(self, "base_card", None)
        config = self.config
        arguments = getattr(self.network, "arguments", config.network.arguments)
        preprocessing = Preprocessing(
            lung_crop_margin=None if config.data.margin < 0 else config.data.margin,
            resize=(config.data.resize[0], config.data.resize[1]) if config.data.resize else None,
        )
        facts = {
            "validation": judgment.to_dict(),
            "chosen": chosen,
            "step": self.step,
            "config": config.to_dict(),
            "data_sha256": self.data.sha256,
            "train_patients": sum(name == "train" for name in self.data.split.sets.values()),
            "validation_patients": sum(name == "validation" for name in self.data.split.sets.values()),
        }
        if self.data.noise:
            facts["label_noise"] = self.data.noise
        fields = asdict(base) if base is not None else {"id": "trained", "name": f"{config.network.name}, trained"}
        fields |= {
            "network": config.network.name,
            "network_arguments": arguments,
            "preprocessing": preprocessing,
            "metrics": facts,
            "weights_sha256": "",
        }
        return ModelCard(**fields)

    def _finish(self, stopped: str) -> TrainingResult:
        assert self.best is not None  # noqa: S101  # the last step validates
        own = self.trainer.make_network is None
        model = self.folder / ("best.safetensors" if own else "best.pt")
        if self.ranks.is_main:
            self.audit.write_csv(self.folder / "doubtful_labels.csv")
            write_json(
                self.folder / "result.json",
                {
                    "model": model.name,
                    "steps": self.step,
                    "best_step": self.best_step,
                    "stopped": stopped,
                    "best": self.best.to_dict(),
                    "label_noise": self.data.noise,
                    "environment": self._environment(),
                    "doubtful_cases": self.audit.cases(),
                },
            )
        if self.log is not None:
            self.log.close()
        self.ranks.barrier()
        card = None
        if own:
            card = load_checkpoint(model).card if model.exists() else self._model_card("", self.best)
        return TrainingResult(model, card, self.folder, self.step, self.best_step, self.best, stopped)


def _merged(own: dict[str, dict[str, float]], ranks: Ranks, order: Sequence[str]) -> dict[str, dict[str, float]]:
    found = dict(ranks.gather_objects(list(own.items())))
    return {case: found[case] for case in order}


def _order(dice: float) -> float:
    """A mean that counts no case loses against any other."""
    return -1.0 if math.isnan(dice) else dice


def _integer(seed: int, purpose: Purpose, *where: int) -> int:
    return int(draw(seed, purpose, *where).integers(2**63 - 1))


def _autocast(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "float64":
        return None
    chosen, _ = choose_precision(precision, device)
    return None if chosen == torch.float32 else chosen


def _silent(phase: str, done: int, total: int) -> None:
    """The progress of a run that nobody watches."""
