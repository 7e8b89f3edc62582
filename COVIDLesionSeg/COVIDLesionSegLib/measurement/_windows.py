"""A surface given as bits, as the voxels of another one see it along the rows around them.

Rows are asked nearest first. Whether something lies within a radius is asked for 32 voxels of a row at once; how far
away the nearest is, for each voxel alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from ._bits import Bits, count
from ._nearest import Distances, Rows
from ._parallel import run_all

# Voxels along its row, either way, that a voxel sees, and voxels that see together: four times 16 are a word.
_ALONG_X = 16
_RUN = 32
_BEFORE, _FROM = (1 << _ALONG_X) - 1, (1 << (_ALONG_X + 1)) - 1
# Rows that are asked at most: from there on a tree is faster.
_ROWS = 500
# In how many steps the radius of a ball is divided by the rows that are asked first.
_SPREAD = 3
# Runs, and voxels, worked on at a time: their working arrays stay in the processor's cache.
_RUNS = 32_000
_CHUNK = 8_000


@dataclass(frozen=True, eq=False)
class Runs:
    """Voxels by runs of 32 along x.

    Attributes:
        at: where the runs are in :attr:`Windows.seen`.
        bits: the voxels of each, bits 16 to 47, never none.
    """

    at: NDArray[np.int64]
    bits: NDArray[np.int64]

    def __len__(self) -> int:
        return count(self.bits.view(np.uint64))

    def only(self, bits: NDArray[np.int64]) -> Runs:
        """Those of the voxels that ``bits`` has for each run."""
        kept = np.flatnonzero(bits)
        return Runs(self.at.take(kept), bits.take(kept))

    def voxels(self, most: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For all voxels, or at most so many from everywhere, where their run is and their place in it."""
        # runs hold a few voxels each; drawing from more of them than are needed makes neighbors rarer
        runs = slice(None, None, 1 if most is None else 1 + 2 * len(self.at) // most)
        runs_bits = (self.bits[runs] >> _ALONG_X).astype("<u4")
        found = np.flatnonzero(np.unpackbits(runs_bits.view(np.uint8), bitorder="little"))
        if most is not None:
            found = found[:: 1 + len(found) // most]
        return self.at[runs].take(found // _RUN), found % _RUN


@dataclass(frozen=True, eq=False)
class Windows:
    """What voxels see of a surface.

    Attributes:
        rows: the rows that are asked, nearest first.
        steps: the way to each of them in ``seen``.
        seen: for each run of 32 voxels its bits and those of 16 voxels before and after it; row after row, the first
            run of the first row at 2; what lies outside the grid is empty.
        spacing: (z, y, x), mm.
        height: rows of a slice in ``seen``.
        along: squared distance of 0 to 16 voxels along x, mm2.
        before: the same of the nearest voxel, for each pattern of the 16 voxels before the one that asks.
        since: the same for each pattern of that one and the 16 after it.
    """

    rows: Rows
    steps: list[int]
    seen: NDArray[np.int64]
    spacing: tuple[float, float, float]
    height: int
    along: Distances
    before: Distances
    since: Distances

    @classmethod
    def of(cls, bits: Bits, spacing: tuple[float, float, float]) -> Windows:
        """Windows on a surface (z, y, words) with spacing (z, y, x), mm."""
        rows = Rows.around(spacing, _ROWS, _ALONG_X)
        depth, given, width = bits.shape
        # between the slices there are empty rows, so that what is asked for before the first or behind the last row of
        # a slice is found empty; what is asked for before the first or behind the last slice is clipped to the ends
        height = given + rows.reach[1]
        words = np.zeros(depth * height * width + 4, np.uint64)
        words[2:-2].reshape(depth, height, width)[:, :given] = bits
        seen = np.empty((len(words) - 2, 2), np.uint64)
        near, far = np.uint64(16), np.uint64(48)
        for start in range(0, len(seen), _CHUNK):
            part = slice(start, min(start + _CHUNK, len(seen)))
            before, own, after = (words[part.start + way : part.stop + way] for way in (0, 1, 2))
            np.bitwise_or(own << near, before >> far, out=seen[part, 0])
            np.bitwise_or(own >> near, after << far, out=seen[part, 1])
        steps = ((rows.offsets[0] * height + rows.offsets[1]) * 2 * width).tolist()
        away = np.append(np.arange(_ALONG_X + 1) * spacing[2], np.inf)
        along = away * away
        before_it, since_it = (along.take(nearest) for nearest in _nearest_by_pattern())
        return cls(rows, steps, seen.reshape(-1).view(np.int64), spacing, height, along[:-1], before_it, since_it)

    @property
    def reach(self) -> float:
        """Squared distance, mm2, up to which everything is seen."""
        return self.rows.beyond[-1]

    def runs(self, bits: Bits) -> Runs:
        """The voxels (z, y, words) of another surface on the same grid."""
        _, given, width = bits.shape
        halves = bits.astype("<u8", copy=False).reshape(-1).view("<u4")
        filled = np.flatnonzero(halves)
        at = 2 + filled + filled // (2 * given * width) * 2 * (self.height - given) * width
        return Runs(at, halves.take(filled).astype(np.int64) << _ALONG_X)

    def split(self, runs: Runs, square: float, least: float = -1.0) -> tuple[Runs, Runs]:
        """Which voxels have something within a squared distance, mm2, of at most :attr:`reach`, and which have not.

        None of them has anything within the squared distance ``least``.
        """
        # how far, in voxels along x, a row is within the distance; the sums are those that distances are found by
        squares = np.add.outer(self.rows.squares, self.along)
        near, empty = ((squares <= limit).sum(axis=1) - 1 for limit in (square, least))
        # rows side by side see much the same: a few all over the ball find something for most voxels
        strides = [max(1, int(math.sqrt(square) / (_SPREAD * side))) for side in self.spacing[:2]]
        few = (self.rows.offsets % np.array(strides)[:, None] == 0).all(axis=0)
        left = runs.bits.copy()
        for some in (few, ~few):
            order = np.flatnonzero(some & (near > empty))
            asking = np.flatnonzero(left)
            parts = [asking[start : start + _RUNS] for start in range(0, len(asking), _RUNS)]
            found = run_all([partial(self._beyond, runs.at[part], left[part], order, near) for part in parts])
            for part, beyond in zip(parts, found, strict=True):
                left[part] = beyond
        return runs.only(runs.bits & ~left), runs.only(left)

    def _beyond(
        self, at: NDArray[np.int64], bits: NDArray[np.int64], order: NDArray[np.int64], near: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The voxels of runs that have nothing near, so many voxels along x, in some of the rows."""
        result = np.zeros_like(bits)
        asking = np.arange(len(at))
        check = 0
        for asked, row in enumerate(order.tolist()):
            seen = self.seen.take(at + self.steps[row], mode="clip")
            # what is seen grows by what is near; this comes wrong only where bits are lost, beyond those of the run
            reach, grown = int(near[row]), 0
            while grown < reach:
                step = min(2 * grown + 1, reach - grown)
                seen |= (seen << step) | (seen >> step)
                grown += step
            bits = bits & ~seen
            # looking who is done costs as much as some rows, so it is done ever more rarely
            if asked >= check:
                check = asked + 1 + asked // 4
                more = np.flatnonzero(bits)
                asking, at, bits = asking.take(more), at.take(more), bits.take(more)
        result[asking] = bits
        return result

    def nearest(self, at: NDArray[np.int64], place: NDArray[np.int64], until: int = 0) -> Distances:
        """Squared distances, mm2, of voxels (see :meth:`Runs.voxels`) to the nearest voxel of the surface.

        Infinite for what lies further away than is seen; and for the furthest, if it is known of all but at most
        ``until`` of each part that is worked on at a time.
        """
        parts = [slice(start, start + _CHUNK) for start in range(0, len(at), _CHUNK)]
        return np.concatenate(
            [np.empty(0), *run_all([partial(self._nearest, at[part], place[part], until) for part in parts])]
        )

    def _nearest(self, at: NDArray[np.int64], place: NDArray[np.int64], until: int) -> Distances:
        result = np.full(len(at), np.inf)
        asking, best = np.arange(len(at)), result.copy()
        check = 0
        for row, away in enumerate(self.rows.squares):
            seen = self.seen.take(at + self.steps[row], mode="clip")
            seen >>= place
            nearest = self.before.take(seen & _BEFORE)
            seen >>= _ALONG_X
            seen &= _FROM
            np.minimum(nearest, self.since.take(seen), out=nearest)
            nearest += away
            np.minimum(best, nearest, out=best)
            if row >= check or row == len(self.rows.squares) - 1:
                check = row + 1 + row // 4
                done = best <= self.rows.beyond[row]
                result[asking[done]] = best[done]
                more = np.flatnonzero(~done)
                asking, at, place, best = asking.take(more), at.take(more), place.take(more), best.take(more)
                if len(asking) <= until:
                    break
        return result


@cache
def _nearest_by_pattern() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """How far the nearest voxel is for each pattern of the 16 before one, and of that one and the 16 after it.

    17 where there is none.
    """
    before, since = (np.full(mask + 1, _ALONG_X + 1, np.uint8) for mask in (_BEFORE, _FROM))
    patterns = np.arange(_FROM + 1)
    for bit in range(_ALONG_X):
        before[(patterns[: _BEFORE + 1] >> bit & 1).astype(bool)] = _ALONG_X - bit
    for bit in range(_ALONG_X, -1, -1):
        since[(patterns >> bit & 1).astype(bool)] = bit
    return before, since
