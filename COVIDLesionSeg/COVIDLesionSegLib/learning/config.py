"""What a training does, as one dataclass that reads and writes TOML and explains what is wrong with it.

Loads without PyTorch, so that Slicer's process and the command can check a configuration before anything starts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..documents import read_toml
from ..errors import ReadError
from ..models.card import are_slice_offsets
from ..networks import NETWORKS
from .augmentation import AugmentationSettings
from .settings import from_mapping, merged, refuse, require_named, to_plain, toml_value
from .settings import require as _require

LOSS_NAMES = (
    "noise_robust_dice",
    "dice",
    "sorensen_dice",
    "focal_dice",
    "cross_entropy",
    "focal",
    "mean_absolute_error",
    "generalized_cross_entropy",
    "dice_cross_entropy",
    "dice_mean_absolute_error",
    "cares",
)
# so much of the base costs the other patients at most 0.01 of Dice, see docs/case-store.md
KEPT_OF_BASE = 0.85


@dataclass(frozen=True)
class DataSettings:
    """Where training data are and how slices are drawn.

    Attributes:
        cases: a manifest (CSV: id, patient, ct, lesion and, if wanted, lungs, group) or a folder, see
            ``learning.data.read_cases``. Relative names count from the configuration's folder.
        split: the frozen split file; made at the first run if absent, then only read.
        validation_patients: patients to freeze for validation when the split is made; empty draws ``validation_share``.
        validation_share: fraction of patients for validation when the split is made, in [0, 1). With 0 and no
            ``validation_patients`` nobody validates.
        selection_patients: patients of the training side on whose cases the step and student or teacher are chosen;
            they do not train. Empty draws ``selection_fraction``.
        selection_fraction: fraction of the training patients with lesion that choose, rounded down, in [0, 1). Where
            that is nobody (fewer than five patients at 0.2), the teacher (without one the network) after the last step
            is kept.
        cache: folder of the memory-mapped slice store; beside the run if empty.
        pseudo_cases: more cases, whose masks a model made (see ``learning.pseudo_labels``); they train only.
        training_labels: folder with other masks for training cases (see ``learning.several.label_update``); empty uses
            the given ones.
        excluded_slices: CSV with the columns case and slice (index on the case's axial view, from the feet): slices
            whose label is known to be wrong; no batch draws them.
        margin: voxels kept around the lungs; -1 keeps whole slices.
        resize: (height, width) that every slice is resized to before anything else; empty keeps sizes.
        crop: (height, width) of training crops, multiples of 16; not larger than what slices are resized to.
        depth: slices of a training crop; above 1 the network is 3-D and not one of this project's.
        slice_offsets_mm: distances (mm) along the slices' axis, rising, at which a 2-D network sees slices as channels
            of its input; 0, the slice itself, is one of them. Empty takes the base model's; without one the slice
            alone. A base model learns to use those that it doesn't see yet.
        zoom: size of a training pixel's side the other way round, in (0, 1]: at 0.5 a crop covers four times the area
            in as much time. For the first part of a training; networks predict slices at full size.
        foreground_share: fraction of crops centered on a lesion voxel of their slice, in [0, 1].
        lesion_free_share: fraction of slices without lesion in a batch, in [0, 1); as far as there are any. -1 takes
            them as often as they are.
    """

    cases: str = ""
    split: str = "split.json"
    validation_patients: tuple[str, ...] = ()
    validation_share: float = 0.2
    selection_patients: tuple[str, ...] = ()
    selection_fraction: float = 0.2
    cache: str = ""
    pseudo_cases: str = ""
    training_labels: str = ""
    excluded_slices: str = ""
    margin: int = 8
    resize: tuple[int, ...] = ()
    crop: tuple[int, int] = (224, 224)
    depth: int = 1
    slice_offsets_mm: tuple[float, ...] = ()
    zoom: float = 1.0
    foreground_share: float = 0.5
    lesion_free_share: float = 0.1

    def __post_init__(self) -> None:
        _require(0 <= self.validation_share < 1, "data.validation_share", self.validation_share, "in [0, 1)")
        _require(0 <= self.selection_fraction < 1, "data.selection_fraction", self.selection_fraction, "in [0, 1)")
        _require(self.depth >= 1, "data.depth", self.depth, "at least 1")
        offsets = self.slice_offsets_mm
        _require(
            not offsets or are_slice_offsets(offsets),
            "data.slice_offsets_mm",
            list(offsets),
            "empty, or a rising list of distances in mm, one of which is 0",
        )
        _require(
            self.depth == 1 or len(offsets) <= 1,
            "data.slice_offsets_mm",
            list(offsets),
            "empty where data.depth is above 1: a 3-D network sees the slices anyway",
        )
        _require(0 < self.zoom <= 1, "data.zoom", self.zoom, "in (0, 1]")
        _require(0 <= self.foreground_share <= 1, "data.foreground_share", self.foreground_share, "in [0, 1]")
        share = self.lesion_free_share
        _require(0 <= share < 1 or share == -1, "data.lesion_free_share", share, "in [0, 1), or -1")
        _require(self.margin >= -1, "data.margin", self.margin, "0 or above, or -1 for whole slices")
        good = len(self.resize) in (0, 2) and all(side > 0 for side in self.resize)
        sized = _require(good, "data.resize", list(self.resize), "empty, or two positive numbers, [height, width]")
        good = len(self.crop) == 2 and all(side > 0 and side % 16 == 0 for side in self.crop)
        if _require(good, "data.crop", list(self.crop), "two positive multiples of 16, [height, width]") and sized:
            largest = self.largest_crop()
            fits = all(crop <= most for crop, most in zip(self.crop, largest, strict=True))
            _require(
                fits, "data.crop", list(self.crop), f"at most {list(largest)}: a larger crop mirrors the resized slice"
            )

    def largest_crop(self) -> tuple[float, float]:
        """Sides of the largest crop that a resized slice fills: multiples of 16; without resizing there is no limit."""
        if not self.resize:
            return math.inf, math.inf
        rows, columns = (max(16, int(side * self.zoom) // 16 * 16) for side in self.resize)
        return rows, columns


@dataclass(frozen=True)
class NetworkSettings:
    """The network to train.

    Attributes:
        name: "coplenet", "caresunet", or the import path of a network of another package ("package.module:Name", a
            module that maps slices (N, C, H, W) to logits (N, 2, H, W)); "external" is a network that the caller of
            ``Trainer`` makes.
        arguments: of its constructor, e.g. ``channels`` or ``base_channels``; of an external network what tells it from
            others.
        base_model: id or file of a model to start from; empty starts from random weights. It must be of the same
            network.
        batch_norm: "estimated" learns with the statistics of each batch, and estimates those that the network is used
            with anew on training crops without noise and augmentation; "frozen" learns with the base model's and keeps
            them; "auto" is frozen where there is a base model.
    """

    name: str = "coplenet"
    arguments: dict[str, Any] = field(default_factory=dict)
    base_model: str = ""
    batch_norm: Literal["auto", "estimated", "frozen"] = "auto"

    def __post_init__(self) -> None:
        require_named("network.name", self.name, (*NETWORKS, "external"))

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether the batch norms keep the base model's statistics."""
        return self.batch_norm == "frozen" or (self.batch_norm == "auto" and bool(self.base_model))


@dataclass(frozen=True)
class LossSettings:
    """The loss on the given labels.

    Attributes:
        name: which one, see ``learning.losses``, or the import path of a loss of another package: a
            ``learning.losses.SegmentationLoss``, or any module that takes logits (1, 2, H, W) and a label (1, H, W).
        arguments: of its constructor, e.g. ``gamma``.
    """

    name: str = "noise_robust_dice"
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_named("loss.name", self.name, LOSS_NAMES)
        gamma = self.arguments.get("gamma")
        if self.name == "noise_robust_dice" and gamma is not None:
            good = isinstance(gamma, (int, float)) and 1 <= gamma <= 2
            _require(good, "loss.arguments.gamma", gamma, "in [1, 2]")


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer and schedule; the defaults are the TMI paper's.

    Attributes:
        name: "adam" (coupled weight decay, as the TMI authors' code), "sgd" or "ranger".
        learning_rate: > 0; 1e-4 in the TMI paper, 5e-4 in the CARes-UNet paper.
        weight_decay: >= 0; 1e-5 and 1e-4.
        momentum: of sgd, and beta1 of ranger, in [0, 1).
        gradient_centralization: of ranger.
        schedule: "constant"; "halving", times ``factor`` every ``every`` steps (TMI: 0.5, 10 000); "milestones", times
            ``factor`` at each of ``milestones`` (CARes-UNet: 0.1); "one_cycle".
        factor: in (0, 1].
        every: steps, >= 1.
        milestones: steps at which the rate drops.
        gradient_clip: largest norm of the gradient; 0 does not clip.
    """

    name: Literal["adam", "sgd", "ranger"] = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    momentum: float = 0.9
    gradient_centralization: bool = True
    schedule: Literal["constant", "halving", "milestones", "one_cycle"] = "halving"
    factor: float = 0.5
    every: int = 10_000
    milestones: tuple[int, ...] = ()
    gradient_clip: float = 0.0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or above")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "in [0, 1)")
        _require(0 < self.factor <= 1, "optimizer.factor", self.factor, "in (0, 1]")
        _require(self.every >= 1, "optimizer.every", self.every, "at least 1")
        _require(self.gradient_clip >= 0, "optimizer.gradient_clip", self.gradient_clip, "0 or above")
        rising = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        _require(rising, "optimizer.milestones", list(self.milestones), "rising step numbers")


@dataclass(frozen=True)
class RunSettings:
    """How long, how many, how exactly.

    Attributes:
        seed: of every draw, >= 0.
        steps: most steps to train, >= 1.
        batch_size: slices a step over all ranks, >= 1; 30 in the TMI paper.
        pseudo_batch_size: pseudo-labeled slices a step besides, where there are any.
        precision: "float32", "bfloat16" or "float16" (GPU only), or "auto"; "float64" for comparisons.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        validation_interval: steps between two looks at the cases that choose the step, >= 1.
        checkpoint_interval: steps between two saved states, >= 1.
        patience: stop when the cases that choose have not improved for so many steps; 10 000 in the TMI paper.
        deterministic: same bits twice on the CPU (float32, same threads, torch build and processor).
        threads: CPU threads; 0 leaves PyTorch's default.
        workers: threads that prepare the batches of coming steps; 0 takes one where the CPU trains, and one a core, at
            most eight, where a GPU does.
    """

    seed: int = 0
    steps: int = 2000
    batch_size: int = 8
    pseudo_batch_size: int = 0
    precision: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    validation_interval: int = 200
    checkpoint_interval: int = 100
    patience: int = 10_000
    deterministic: bool = True
    threads: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validation_interval", "checkpoint_interval", "patience"):
            _require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")
        for name in ("seed", "pseudo_batch_size", "threads", "workers"):
            _require(getattr(self, name) >= 0, f"run.{name}", getattr(self, name), "0 or above")


@dataclass(frozen=True)
class EnsemblingSettings:
    """Settings of adaptive self-ensembling; the defaults are the TMI paper's, choices are marked.

    Attributes:
        enabled: off: plain training of one network.
        adaptive_teacher: Eq. 6: the teacher stands still at a step whose student loss is not below beta. Off: plain
            mean teacher.
        adaptive_student: Eq. 7: the consistency weight depends on who is better. Off: always ``weight_better``.
        alpha_early: alpha' before ``alpha_switch_step``.
        alpha_late: alpha' from there on.
        alpha_switch_step: the paper says "early" and "late" only; 10 000 is a choice.
        alpha_ramp: alpha' is at most 1 - 1 / (step + 1), as mean teachers usually start (choice); a frozen step stays
            frozen. Off for a literal run, and always off where a base model is fine-tuned: it would throw the base away
            in the first step.
        percentile: p of the loss threshold beta, in (0, 100).
        window: K, steps that beta looks back.
        warm_up: steps before beta counts (choice).
        weight_better: lambda', when the teacher's loss is below the student's.
        weight_worse: lambda'', otherwise.
        per_sample: decide lambda for each image instead of the mini-batch (choice: off).
        noise_sd: standard deviation of the Gaussian noise on the windowed image in [0, 1] (choice; 0.1 is 150 HU).
        noise_clip: largest absolute noise; 0 does not clip (choice).
        noise_varies: draw each image's standard deviation from [0, noise_sd) (choice). Off: always noise_sd; the
            network then never sees an image as clean as those that it will see, and misses the lesions in them.
    """

    enabled: bool = True
    adaptive_teacher: bool = True
    adaptive_student: bool = True
    alpha_early: float = 0.99
    alpha_late: float = 0.999
    alpha_switch_step: int = 10_000
    alpha_ramp: bool = True
    percentile: float = 90.0
    window: int = 100
    warm_up: int = 10
    weight_better: float = 0.1
    weight_worse: float = 0.01
    per_sample: bool = False
    noise_sd: float = 0.1
    noise_clip: float = 0.2
    noise_varies: bool = True

    def __post_init__(self) -> None:
        for name in ("alpha_early", "alpha_late"):
            _require(0 <= getattr(self, name) <= 1, f"ensembling.{name}", getattr(self, name), "in [0, 1]")
        for name in ("weight_better", "weight_worse", "noise_sd", "noise_clip", "alpha_switch_step"):
            _require(getattr(self, name) >= 0, f"ensembling.{name}", getattr(self, name), "0 or above")
        check_loss_window("ensembling", self.window, self.percentile, self.warm_up)


@dataclass(frozen=True)
class ReweightingSettings:
    """Data re-weighting of TMI Table IV: slices with lesion whose loss is above the percentile of such slices' losses
    are dropped from their step.

    Attributes:
        enabled: off by default.
        percentile: in (0, 100).
        window: steps that the percentile looks back.
        warm_up: steps before slices are dropped.
    """

    enabled: bool = False
    percentile: float = 90.0
    window: int = 100
    warm_up: int = 10

    def __post_init__(self) -> None:
        check_loss_window("reweighting", self.window, self.percentile, self.warm_up)


@dataclass(frozen=True)
class LabelNoiseSettings:
    """Synthetic errors in training labels, for experiments; validation labels stay clean.

    Attributes:
        kind: "none", "dilation", "erosion", "dropout" (whole lesions vanish), "shift", or "mixed" (one of them a case).
        strength: pixels of dilation, erosion and shift; fraction of lesions that vanish for "dropout", in [0, 1].
        share: fraction of cases (patients) whose labels get errors, in [0, 1].
        seed: of the errors alone, so that runs with other seeds learn from the same labels.
    """

    kind: Literal["none", "dilation", "erosion", "dropout", "shift", "mixed"] = "none"
    strength: float = 3.0
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.strength >= 0, "label_noise.strength", self.strength, "0 or above")
        if self.kind == "dropout":
            _require(self.strength <= 1, "label_noise.strength", self.strength, "in [0, 1] for dropout")
        _require(self.seed >= 0, "label_noise.seed", self.seed, "0 or above")
        _require(0 <= self.share <= 1, "label_noise.share", self.share, "in [0, 1]")


@dataclass(frozen=True)
class RegularizationSettings:
    """What holds a training to its base model, so that it forgets less of what it does not see again.

    Attributes:
        name: "none"; "weights": half of the squared distance between the weights and the base's, added to the loss
            (L2-SP, Li et al., ICML 2018); "predictions": mean absolute difference between the probabilities and the
            base's on the same images without noise (learning without forgetting, Li and Hoiem, ECCV 2016).
        weight: how much that counts beside the loss on the labels, >= 0.
        base_share: fraction of the base model in the weights of the network that is kept, in [0, 1): the
            average of both forgets less than the one that was trained (Wortsman et al., CVPR 2022). -1, the default of
            ``fine-tune``, is 0.85 where there is a base model and no case is replayed, or only some of those that it is
            known to have learned from (docs/case-store.md), else 0.
    """

    name: Literal["none", "weights", "predictions"] = "none"
    weight: float = 1.0
    base_share: float = 0.0

    def __post_init__(self) -> None:
        _require(self.weight >= 0, "regularization.weight", self.weight, "0 or above")
        share = self.base_share
        _require(0 <= share < 1 or share == -1, "regularization.base_share", share, "in [0, 1), or -1")


def check_loss_window(where: str, size: int, percentile: float, warm_up: int) -> None:
    """Raise InputError unless a loss window's size, percentile and warm-up are allowed."""
    _require(size >= 1, f"{where}.window", size, "at least 1")
    _require(0 < percentile < 100, f"{where}.percentile", percentile, "inside (0, 100)")
    _require(0 <= warm_up <= size, f"{where}.warm_up", warm_up, f"between 0 and the window's {size} steps")


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of a training, one table of the TOML file each.

    Raises:
        InputError: a value of the wrong type or outside its range, or an unknown key (with the nearest known one).
    """

    data: DataSettings = field(default_factory=DataSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    ensembling: EnsemblingSettings = field(default_factory=EnsemblingSettings)
    reweighting: ReweightingSettings = field(default_factory=ReweightingSettings)
    regularization: RegularizationSettings = field(default_factory=RegularizationSettings)
    label_noise: LabelNoiseSettings = field(default_factory=LabelNoiseSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        if self.reweighting.enabled and self.ensembling.enabled:
            refuse(
                "Data re-weighting and self-ensembling are both enabled; the paper compares one with the other. "
                "Set ensembling.enabled = false or reweighting.enabled = false."
            )
        if self.data.depth > 1 and self.network.name != "external":
            refuse(f"data.depth is {self.data.depth}, but {self.network.name} sees slices one by one; 1 is needed.")
        if bool(self.data.pseudo_cases) != bool(self.run.pseudo_batch_size):
            refuse(
                f'data.pseudo_cases is "{self.data.pseudo_cases}" and run.pseudo_batch_size is '
                f"{self.run.pseudo_batch_size}; both or neither are needed."
            )

    @property
    def base_share(self) -> float:
        """Share of the base model's weights in the network that is kept, as :class:`RegularizationSettings` says."""
        share = self.regularization.base_share
        if share >= 0 or not self.network.base_model:
            return max(share, 0.0)
        return 0.0 if self.data.pseudo_cases else KEPT_OF_BASE

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Read nested tables, as TOML or JSON give them; absent keys keep their defaults."""
        config: TrainingConfig = from_mapping(cls, values)
        return config

    @classmethod
    def from_toml(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> TrainingConfig:
        """Read a TOML file.

        Args:
            path: the file.
            overrides: nested tables that count instead of the file's, e.g. what a command line gives.

        Raises:
            ReadError: the file is missing or not TOML.
        """
        path = Path(path)
        try:
            values = read_toml(path)
        except FileNotFoundError as error:
            raise ReadError(f"The configuration {path} is not there.") from error
        except ReadError as error:
            raise ReadError(f"The configuration {error}") from error
        return cls.from_dict(merged(values, overrides or {}))

    def to_dict(self) -> dict[str, Any]:
        """Nested tables with every value, tuples as lists."""
        return to_plain(dataclasses.asdict(self))

    def to_toml(self) -> str:
        """TOML with every value, so that a run's file says what it did."""
        lines = []
        for table, values in self.to_dict().items():
            lines += [f"[{table}]", *(f"{key} = {toml_value(value)}" for key, value in values.items()), ""]
        return "\n".join(lines)

    def difference(self, other: TrainingConfig) -> list[str]:
        """What differs, one phrase a setting, e.g. "loss.name: dice -> focal"."""
        one, two = self.to_dict(), other.to_dict()
        return [
            f"{table}.{key}: {toml_value(one[table][key])} -> {toml_value(two[table][key])}"
            for table in one
            for key in one[table]
            if one[table][key] != two[table][key]
        ]
