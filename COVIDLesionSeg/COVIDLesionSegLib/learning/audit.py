"""Which labels look doubtful: what the noise-robust framework knows about every slice it trained on."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import write_text
from .noise_robust import LossWindow


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
