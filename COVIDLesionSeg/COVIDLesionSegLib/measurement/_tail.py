"""High percentiles of the distances between two surfaces, without most of the distances.

Only the farthest few percent of a surface's voxels decide on a high percentile. A sample tells where it lies; then it
is selected as in quickselect: how many voxels are within a radius tells on which side of the radius it is, and only
the voxels on that side are looked at further. The sample decides on the amount of work, never on the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._bits import Bits
from ._nearest import Distances, percentile_ranks
from ._parallel import run_all
from ._windows import Runs, Windows

# Voxels of the sample.
_SAMPLE = 2_500
# The radii that are tried, one after the other, where that still helps: what lies beyond them in the sample, in shares
# of what lies beyond the percentile.
_PIVOTS = (1.4, 0.7, 1.15, 0.85, 4.0, 0.3)
# Relative slack, far above rounding and far below a difference between two distances on a lattice.
_SLACK = 1e-9


def larger_percentile(surfaces: Sequence[Bits], spacing: tuple[float, float, float], percent: float) -> float | None:
    """The larger of both directions' percentiles of surface distances, linearly interpolated between ranks.

    Args:
        surfaces: of the prediction and of the reference, (z, y, words); neither empty.
        spacing: (z, y, x), mm.
        percent: a high percentage, e.g. 95.

    Returns:
        mm, exact; None where the surfaces lie too far apart to find it this way.
    """
    windows = run_all([lambda: Windows.of(surfaces[1], spacing), lambda: Windows.of(surfaces[0], spacing)])
    sides = [_Side(seen, seen.runs(bits), percent) for seen, bits in zip(windows, surfaces, strict=True)]
    # the larger surface mostly has the larger percentile, and then of the other one's only that is to be shown
    first, second = sorted(sides, key=lambda side: len(side.runs), reverse=True)
    larger = first.percentile()
    if larger is None or second.is_within(larger):
        return None if larger is None else larger.value
    other = second.percentile()
    return None if other is None else max(larger.value, other.value)


@dataclass(frozen=True)
class _Percentile:
    """A percentile, mm, and the squared distance, mm2, at the lower of its two ranks."""

    value: float
    square: float


class _Side:
    """A surface whose voxels ask for the nearest voxel of another one.

    Args:
        windows: on the other surface.
        runs: the voxels.
        percent: the percentile of distances that is wanted.
    """

    def __init__(self, windows: Windows, runs: Runs, percent: float) -> None:
        self.windows, self.runs = windows, runs
        self._beyond = 1 - percent / 100
        self._low, self._high, self._share = percentile_ranks(len(runs), percent)

    def is_within(self, percentile: _Percentile) -> bool:
        """Whether this side's percentile is surely not larger."""
        within, _ = self.windows.split(self.runs, percentile.square)
        return len(within) > self._high

    def percentile(self) -> _Percentile | None:
        """The percentile; None where it isn't found."""
        left, nearer = self.runs, 0
        least, most = -1.0, self.windows.reach
        for square in self._pivots():
            if not least < square < most:
                continue
            within, beyond = self.windows.split(left, square, least)
            count = nearer + len(within)
            if count > self._high:
                left, most = within, square
            elif count <= self._low:
                left, least, nearer = beyond, square, count
        found = self.windows.nearest(*left.voxels())
        ranks = self._low - nearer, self._high - nearer
        squares = np.partition(found, ranks)[list(ranks)]
        if not np.isfinite(squares[1]):
            return None
        low, high = np.sqrt(squares).tolist()
        return _Percentile(low + self._share * (high - low), float(squares[0]))

    def _pivots(self) -> list[float]:
        """Squared distances, mm2, around that at the percentile."""
        sample = self._sample()
        pivots = [float(sample[int((1 - share * self._beyond) * (len(sample) - 1))]) for share in _PIVOTS]
        # below the percentile a little less, so that not all voxels at exactly this distance are put aside
        return [square * (1 - _SLACK) if share > 1 else square for square, share in zip(pivots, _PIVOTS, strict=True)]

    def _sample(self) -> Distances:
        """Squared distances of some voxels, mm2, ascending; infinite for a few of the furthest."""
        at, place = self.runs.voxels(_SAMPLE)
        return np.sort(self.windows.nearest(at, place, until=int(len(at) * self._beyond / 4)))
