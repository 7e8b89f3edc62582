"""Settings of the methods that learn from noisy labels, and of the noise that experiments put in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .settings import require


@dataclass(frozen=True)
class EnsemblingSettings:
    """Settings of adaptive self-ensembling; the defaults are the TMI paper's, choices are marked.

    Attributes:
        enabled: off: plain training of one network.
        adaptive_teacher: Eq. 5: the teacher stands still at a step whose student loss is not below beta. Off: plain
            mean teacher.
        adaptive_student: Eq. 7: the consistency weight depends on who is better. Off: always ``weight_better``.
        alpha_early: alpha' before ``alpha_switch_step``.
        alpha_late: alpha' from there on.
        alpha_switch_step: the paper says "early" and "late" only; 10 000 is a choice.
        alpha_ramp: alpha' is at most 1 - 1 / (step + 1), as mean teachers usually start (choice); a frozen step stays
            frozen. Off for a literal run.
        percentile: p of the loss threshold beta, in (0, 100).
        window: K, steps that beta looks back.
        warm_up: steps before beta counts (choice).
        weight_better: lambda', when the teacher's loss is below the student's.
        weight_worse: lambda'', otherwise.
        per_sample: decide lambda for each image instead of the mini-batch (choice: off).
        noise_sd: standard deviation of the Gaussian noise on the windowed image in [0, 1] (choice; 0.1 is 150 HU).
        noise_clip: largest absolute noise; 0 does not clip (choice).
        noise_varies: draw each image's standard deviation from [0, noise_sd) (choice). Off: always noise_sd; the
            network then never sees an image as clean as those that it will judge, and misses the lesions in them.
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
            require(0 <= getattr(self, name) <= 1, f"ensembling.{name}", getattr(self, name), "in [0, 1]")
        for name in ("weight_better", "weight_worse", "noise_sd", "noise_clip", "alpha_switch_step"):
            require(getattr(self, name) >= 0, f"ensembling.{name}", getattr(self, name), "0 or above")
        check_loss_window("ensembling", self.window, self.percentile, self.warm_up)


@dataclass(frozen=True)
class ReweightingSettings:
    """Data re-weighting of TMI Table IV: slices with a loss above the percentile are dropped from their step.

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
        strength: pixels of dilation, erosion and shift; share of lesions that vanish for "dropout", in [0, 1].
        share: share of cases (patients) whose labels get errors, in [0, 1].
        seed: of the errors alone, so that runs with other seeds learn from the same labels.
    """

    kind: Literal["none", "dilation", "erosion", "dropout", "shift", "mixed"] = "none"
    strength: float = 3.0
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.strength >= 0, "label_noise.strength", self.strength, "0 or above")
        if self.kind == "dropout":
            require(self.strength <= 1, "label_noise.strength", self.strength, "in [0, 1] for dropout")
        require(self.seed >= 0, "label_noise.seed", self.seed, "0 or above")
        require(0 <= self.share <= 1, "label_noise.share", self.share, "in [0, 1]")


def check_loss_window(where: str, size: int, percentile: float, warm_up: int) -> None:
    """Raise InputError unless a loss window's size, percentile and warm-up are allowed."""
    require(size >= 1, f"{where}.window", size, "at least 1")
    require(0 < percentile < 100, f"{where}.percentile", percentile, "inside (0, 100)")
    require(0 <= warm_up <= size, f"{where}.warm_up", warm_up, f"between 0 and the window's {size} steps")
