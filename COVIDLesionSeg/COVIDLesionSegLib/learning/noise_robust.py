"""Learning from noisy labels: adaptive self-ensembling and data re-weighting.

Both watch the same thing: how the loss on the given labels compares with the last K steps. A loss above the p-th
percentile suggests that the label is wrong. Self-ensembling then keeps the teacher from learning of it; re-weighting
drops the slice.

Source: Wang et al., IEEE TMI 39(8), 2020, section II-C (Eqs. 4-7) and III-E. No code of the authors exists for this;
where the paper leaves something open, the docstrings state the choice.
"""

from __future__ import annotations

import copy
import csv
import io
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..files import write_text
from .config import EnsemblingSettings, check_loss_window
from .losses import Criterion


class LossWindow:
    """The losses of the last K steps and their percentile (beta in TMI Eq. 6).

    Args:
        size: K, steps to remember, >= 1; 100 in the paper.
        percentile: p in (0, 100); 90 in the paper.
        warm_up: steps below which the threshold is +inf, so that nothing is judged by a handful of losses.

    Raises:
        InputError: a value outside its range.
    """

    def __init__(self, size: int = 100, percentile: float = 90.0, warm_up: int = 10) -> None:
        check_loss_window("loss window", size, percentile, warm_up)
        self.percentile = float(percentile)
        self.warm_up = int(warm_up)
        self._steps: deque[list[float]] = deque(maxlen=int(size))

    def threshold(self) -> float:
        """The percentile (linear interpolation) of all remembered losses; +inf during the warm-up."""
        losses = [loss for step in self._steps for loss in step]
        if len(self._steps) < max(self.warm_up, 1) or not losses:
            return float("inf")
        return float(np.percentile(losses, self.percentile))

    def append(self, losses: float | Sequence[float]) -> None:
        """Remember one step: its loss, or the losses of its slices."""
        self._steps.append([float(losses)] if isinstance(losses, (int, float)) else [float(loss) for loss in losses])

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on exactly."""
        return {"steps": [list(step) for step in self._steps]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._steps.clear()
        self._steps.extend([float(loss) for loss in step] for step in state["steps"])


@dataclass(frozen=True)
class EnsemblingLosses:
    """What one step computes before the backward pass.

    Attributes:
        total: L_seg(student) + lambda L_c, to be minimized (Eq. 5).
        segmentation: L_seg(student), detached scalar.
        teacher: L_seg(teacher), detached scalar.
        consistency: L_c without its weight, detached scalar.
        weight: lambda of the mini-batch (mean over images with ``per_sample``).
        student_logits: (N, C, ...), with their gradient.
        teacher_logits: (N, C, ...), detached.
    """

    total: Tensor
    segmentation: Tensor
    teacher: Tensor
    consistency: Tensor
    weight: float
    student_logits: Tensor
    teacher_logits: Tensor


class AdaptiveSelfEnsembling:
    """Adaptive mean teacher (TMI section II-C).

    A step is: :meth:`losses` (student and teacher forward, each with its own noise), backward, the optimizer's step,
    then :meth:`update`, which moves the teacher with the new weights and logs what it decided. Eq. 7 as printed gives
    the large weight when the teacher is worse; the text says the opposite and is followed here: the student listens
    when the teacher's loss is the lower one.

    The teacher starts as a copy of the student. It runs in eval mode (dropout off, its own batch-norm statistics), its
    floating-point buffers move with the same alpha as its weights, integer buffers are copied.

    Args:
        student: the network being trained; not changed here.
        settings: see :class:`EnsemblingSettings`.
        from_base: the student starts from a trained network; the teacher keeps it (no ramp of alpha).

    Attributes:
        teacher: the ensembled network, without gradients.
    """

    def __init__(self, student: nn.Module, settings: EnsemblingSettings | None = None, from_base: bool = False) -> None:
        self.settings = settings or EnsemblingSettings()
        self._ramps = self.settings.alpha_ramp and not from_base
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self._student = student
        self._window = LossWindow(self.settings.window, self.settings.percentile, self.settings.warm_up)
        self._steps = 0
        self._frozen = 0

    def losses(
        self,
        criterion: Criterion,
        images: Tensor,
        label: Tensor,
        student_noise: Tensor,
        teacher_noise: Tensor,
        forward: nn.Module | None = None,
    ) -> EnsemblingLosses:
        """Losses of one mini-batch (Eqs. 5 and 7).

        Args:
            criterion: L_seg, on logits and labels.
            images: (N, C, H, W), windowed to [0, 1].
            label: (N, H, W), integer.
            student_noise: added to the student's images, same shape.
            teacher_noise: added to the teacher's images, same shape.
            forward: how the student is called, e.g. its distributed wrapper; the student itself by default.
        """
        student_logits = (forward or self._student)(images + student_noise)
        with torch.no_grad():
            teacher_logits = self.teacher(images + teacher_noise)
            teacher_loss = criterion(teacher_logits, label)
        segmentation = criterion(student_logits, label)

        dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
        with torch.autocast(images.device.type, enabled=False):
            p_student = torch.softmax(student_logits.to(dtype), dim=1)
            p_teacher = torch.softmax(teacher_logits.to(dtype), dim=1)
            consistency = (p_student - p_teacher).abs().flatten(1).mean(1)

        if not self.settings.adaptive_student:
            weights = torch.full_like(consistency, self.settings.weight_better)
        elif self.settings.per_sample:
            with torch.no_grad():
                better = criterion.per_image(teacher_logits, label) < criterion.per_image(student_logits, label)
            weights = self._weights(better).to(dtype)
        else:
            weights = self._weights(teacher_loss < segmentation.detach()).to(dtype).expand_as(consistency)
        return EnsemblingLosses(
            total=segmentation + (weights * consistency).mean(),
            segmentation=segmentation.detach(),
            teacher=teacher_loss,
            consistency=consistency.detach().mean(),
            weight=float(weights.mean()),
            student_logits=student_logits,
            teacher_logits=teacher_logits,
        )

    def update(self, segmentation: float) -> dict[str, float]:
        """Move the teacher (Eqs. 4 and 6) after the optimizer's step, and remember the loss.

        beta looks at the previous steps only, and the comparison is strict.

        Args:
            segmentation: L_seg(student) of this step.

        Returns:
            alpha, beta (+inf during the warm-up) and the fraction of frozen steps so far, for the log.
        """
        beta = self._window.threshold()
        frozen = self.settings.adaptive_teacher and not segmentation < beta
        alpha = 1.0 if frozen else self._alpha(self._steps)
        if not frozen:
            self._move_teacher(alpha)
        self._window.append(segmentation)
        self._steps += 1
        self._frozen += frozen
        return {"alpha": alpha, "beta": beta, "frozen_fraction": self._frozen / self._steps}

    def state_dict(self) -> dict[str, Any]:
        """Teacher, loss window and counters: what :meth:`load_state_dict` needs to go on exactly."""
        return {
            "teacher": self.teacher.state_dict(),
            "window": self._window.state_dict(),
            "steps": self._steps,
            "frozen": self._frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.teacher.load_state_dict(state["teacher"])
        self._window.load_state_dict(state["window"])
        self._steps, self._frozen = int(state["steps"]), int(state["frozen"])

    def _alpha(self, step: int) -> float:
        s = self.settings
        alpha = s.alpha_early if step < s.alpha_switch_step else s.alpha_late
        return min(1 - 1 / (step + 1), alpha) if self._ramps else alpha

    def _weights(self, teacher_is_better: Tensor) -> Tensor:
        return torch.where(teacher_is_better, self.settings.weight_better, self.settings.weight_worse)

    @torch.no_grad()
    def _move_teacher(self, alpha: float) -> None:
        student = dict(self._student.named_parameters()) | dict(self._student.named_buffers())
        for name, value in [*self.teacher.named_parameters(), *self.teacher.named_buffers()]:
            if value.is_floating_point():
                value.lerp_(student[name], 1 - alpha)
            else:
                value.copy_(student[name])


class DataReweighting:
    """Drop slices whose loss is above the percentile of the last K steps (TMI section III-E, Table IV).

    The paper does not say what a sample's loss is compared with. A Dice loss over both classes is about 0.5 on any
    slice without lesion, whatever the network says there, and far lower on a slice with lesion that is learned well:
    one threshold for all would drop slices without lesion and little else. So slices with lesion are compared among
    themselves; slices without are always kept, since their loss tells nothing.

    Other choices where the paper is silent: losses are per slice; the threshold looks at the previous K steps; a step
    in which no slice remains is skipped.

    Args:
        window: K, steps to look back.
        percentile: p.
        warm_up: steps before slices are dropped.
    """

    def __init__(self, window: int = 100, percentile: float = 90.0, warm_up: int = 10) -> None:
        self._window = LossWindow(window, percentile, warm_up)

    def keep(self, slice_losses: Sequence[float], with_lesion: Sequence[bool]) -> tuple[list[bool], float]:
        """Which slices of this step take part, and the threshold; the losses are remembered.

        Args:
            slice_losses: loss of each slice of the global batch.
            with_lesion: whether the label of each marks lesion.
        """
        threshold = self._window.threshold()
        pairs = list(zip(slice_losses, with_lesion, strict=True))
        self._window.append([loss for loss, lesion in pairs if lesion])
        return [not lesion or loss <= threshold for loss, lesion in pairs], threshold

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on exactly."""
        return self._window.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._window.load_state_dict(state)


# ---- which labels look doubtful --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DoubtfulLabel:
    """One slice of the ranked list.

    Attributes:
        case: id.
        slice: index on the case's axial view, from the feet.
        score: share_above + disagreement, 0 ... 2; the list is sorted by it.
        seen: how often training drew the slice.
        share_above: share of those visits in which its loss was above the threshold of all slices' recent losses.
        disagreement: mean of 1 - Dice between the teacher's answer and the label over the visits, 0 ... 1.
        reason: the same as a sentence.
    """

    case: str
    slice: int
    score: float
    seen: int
    share_above: float
    disagreement: float
    reason: str


class LabelAudit:
    """Collects, for every slice, how often its loss stayed above beta and how much teacher and annotator disagree.

    The threshold is the percentile of slice losses over the last K steps: the framework's own beta (TMI Eq. 6), taken
    per slice.

    Args:
        window: K.
        percentile: p.
        warm_up: steps before visits count.
    """

    def __init__(self, window: int = 100, percentile: float = 90.0, warm_up: int = 10) -> None:
        self._window = LossWindow(window, percentile, warm_up)
        self._visits: dict[tuple[str, int], list[float]] = {}

    def add(self, slices: Sequence[tuple[str, int]], losses: Sequence[float], disagreements: Sequence[float]) -> None:
        """Remember one step.

        Args:
            slices: (case id, slice on the axial view) of the global batch.
            losses: the student's loss on each.
            disagreements: 1 - Dice between teacher and label on each.
        """
        threshold = self._window.threshold()
        if threshold != float("inf"):
            for key, loss, disagreement in zip(slices, losses, disagreements, strict=True):
                visit = self._visits.setdefault(key, [0, 0, 0.0])
                visit[0] += 1
                visit[1] += float(loss > threshold)
                visit[2] += float(disagreement)
        self._window.append(losses)

    def ranked(self) -> list[DoubtfulLabel]:
        """All visited slices, the most doubtful first."""
        found = []
        for (case, index), (seen, above, disagreement) in self._visits.items():
            share, mean = above / seen, disagreement / seen
            reason = (
                f"loss above the threshold in {int(above)} of {int(seen)} visits; "
                f"teacher and label overlap with Dice {1 - mean:.2f}"
            )
            found.append(DoubtfulLabel(case, index, share + mean, int(seen), share, mean, reason))
        return sorted(found, key=lambda item: (-item.score, item.case, item.slice))

    def cases(self) -> list[dict[str, Any]]:
        """One row a case, the most doubtful first: visits, mean share above, mean disagreement, its worst slice."""
        rows: dict[str, list[DoubtfulLabel]] = {}
        for item in self.ranked():
            rows.setdefault(item.case, []).append(item)
        table = []
        for case, items in rows.items():
            seen = sum(item.seen for item in items)
            table.append(
                {
                    "case": case,
                    "score": sum(item.score * item.seen for item in items) / seen,
                    "seen": seen,
                    "share_above": sum(item.share_above * item.seen for item in items) / seen,
                    "disagreement": sum(item.disagreement * item.seen for item in items) / seen,
                    "worst_slice": items[0].slice,
                }
            )
        return sorted(table, key=lambda row: (-row["score"], row["case"]))

    def write_csv(self, path: Path | str) -> None:
        """Write the ranked slices, whole or not at all."""
        buffer = io.StringIO()
        names = list(DoubtfulLabel.__dataclass_fields__)
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        for item in self.ranked():
            row = asdict(item)
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
        write_text(path, buffer.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on exactly."""
        visits = [[case, index, *values] for (case, index), values in self._visits.items()]
        return {"window": self._window.state_dict(), "visits": visits}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._window.load_state_dict(state["window"])
        self._visits = {(case, int(index)): list(values) for case, index, *values in state["visits"]}
