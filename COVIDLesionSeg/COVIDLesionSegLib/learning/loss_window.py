"""The losses of the last steps, and the threshold above which a label is doubted."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .config import check_loss_window


class LossWindow:
    """The losses of the last K steps and their percentile (beta in TMI Eq. 5).

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
        if len(self._steps) < max(self.warm_up, 1):
            return float("inf")
        return float(np.percentile(np.concatenate([np.asarray(step) for step in self._steps]), self.percentile))

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
