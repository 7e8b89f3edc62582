"""What happens in one run of a training: network, steps, validation, the model that is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CancelledError, InputError
from ..files import write_json, write_text
from ..models import ModelCard, ModelRegistry, Preprocessing, load_checkpoint, save_model
from ..networks import create_network
from .audit import LabelAudit
from .building import learning_rate, make_optimizer
from .distributed import Ranks, use_global_batch_norm
from .log import TrainingLog
from .machine import environment
from .noise_robust import AdaptiveSelfEnsembling, DataReweighting
from .randomness import Purpose, draw, gaussian_noise
from .sampling import Batch
from .trained_card import trained_card
from .training_data import TrainingData
from .training_result import DivergedError, TrainingResult
from .training_state import has_state, load_state, save_state, save_tensors
from .validation import Judgment, judge, summarize

if TYPE_CHECKING:
    from .trainer import Trainer

Progress = Callable[[str, int, int], None]
WINDOW = (Preprocessing().window_width, Preprocessing().window_level)


class TrainingJob:
    """One call of :meth:`.Trainer.run`: the parts and the loop."""

    def __init__(
        self,
        trainer: Trainer,
        ranks: Ranks,
        resume: bool,
        progress: Progress | None,
        cancelled: Callable[[], bool],
    ) -> None:
        self.trainer, self.config, self.folder = trainer, trainer.config, trainer.folder
        self.ranks, self.device, self.autocast = ranks, trainer._device, trainer._autocast
        self.progress = progress or _silent
        self.cancelled = cancelled
        config = self.config
        self.places = ranks.share(config.run.batch_size)
        self.pseudo_places = ranks.share(config.run.pseudo_batch_size)
        self.data = TrainingData(config, trainer._base, self.folder, WINDOW, ranks, progress, cancelled)

        state = None
        if resume:
            state = load_state(self.folder, config, self.data.sha256, self._environment())
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
            if has_state(self.folder):
                raise InputError(
                    f"The folder {self.folder} holds a training already; resume it or choose another folder."
                )
            write_text(self.folder / "config.toml", self.config.to_toml())
        self.ranks.barrier()

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        # empty where the run was not in float16
        if state["scaler"]:
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
        parts = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ensembling": self.ensembling.state_dict() if self.ensembling else None,
            "reweighting": self.reweighting.state_dict() if self.reweighting else None,
            "audit": self.audit.state_dict(),
            "best": self.best.cases if self.best else None,
            "best_step": self.best_step,
        }
        save_state(self.folder, self.config, self.data.sha256, self._environment(), parts)

    # ---- the loop -----------------------------------------------------------------------------------------------

    def train(self) -> TrainingResult:
        """All steps that are left."""
        run = self.config.run
        stopped = "steps"
        # one batch ahead, so that the network seldom waits for its data
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._draw, self.step) if self.step < run.steps else None
            while self.step < run.steps:
                if self.data.validation and self.best is not None and self.step - self.best_step >= run.patience:
                    stopped = "no improvement"
                    break
                if self.ranks.agree(self.cancelled(), self.device):
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
        if self.best is None:
            # resumed with no step left, before anybody has judged
            self._validate()
            self._save()
        elif stopped == "no improvement":
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
        teaches = True
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
                    # a step that keeps no slice teaches nothing; its loss is told all the same
                    teaches = entry["kept"] > 0
                    weights = weights if teaches else None
                total = self.criterion(logits, label, weights)
                segmentation = total.detach()
        entry |= {"loss": self._mean(total.detach()), "student_loss": segmentation.item()}
        if not all(math.isfinite(entry[name]) for name in ("loss", "student_loss")):
            self._diverged("loss", entry, slices, logits.detach())
        if teaches:
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
                WINDOW,
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
            save_tensors(network.state_dict(), self.folder / f"{file}.pt")

    def _model_card(self, chosen: str, judgment: Judgment) -> ModelCard:
        base = self.trainer._card or getattr(self, "base_card", None)
        arguments = getattr(self.network, "arguments", self.config.network.arguments)
        return trained_card(base, self.config, arguments, self.data, self.step, chosen, judgment)

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


def _silent(phase: str, done: int, total: int) -> None:
    """The progress of a run that nobody watches."""
