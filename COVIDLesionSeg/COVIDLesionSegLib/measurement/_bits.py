"""Masks with one bit for each voxel: 64 voxels are worked on at once."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ._checks import Mask
from ._parallel import run_all

# (z, y, words), contiguous, little-endian: voxel x of a row is bit x % 64, counted from the lowest, of word x // 64.
# Each row ends with an empty word, so that all rows can be moved along x at once and none of them meets the next.
Bits = NDArray[np.uint64]

VOXELS = 64
_WORD = np.dtype("<u8")
_ONE, _ALL_BUT_ONE = np.uint64(1), np.uint64(VOXELS - 1)
# Words worked on at a time: they and what is made of them stay in the processor's cache.
_SLAB = 30_000


def packed(prediction: Mask, reference: Mask) -> tuple[Bits, Bits]:
    """Two masks, bool (z, y, x) of one shape, as bits; edges that are empty in both are cut off."""
    first, second = run_all([partial(_words, prediction), partial(_words, reference)])
    # the largest word is 0 only where all are
    flat = first.max(axis=0) | second.max(axis=0)
    deep = [words.reshape(len(words), -1).max(axis=1) for words in (first, second)]
    filled = [np.flatnonzero(axis) for axis in (deep[0] | deep[1], flat.any(axis=1), flat.any(axis=0))]
    if not len(filled[0]):
        return np.zeros((0, 0, 1), _WORD), np.zeros((0, 0, 1), _WORD)
    box = tuple(slice(int(axis[0]), int(axis[-1]) + 1) for axis in filled)
    return _with_row_ends(first[box]), _with_row_ends(second[box])


def _words(mask: Mask) -> Bits:
    octets = np.packbits(mask, axis=-1, bitorder="little")
    missing = -octets.shape[-1] % _WORD.itemsize
    if missing:
        octets = np.pad(octets, ((0, 0), (0, 0), (0, missing)))
    # a transposed mask gives transposed octets
    return np.ascontiguousarray(octets).view(_WORD)


def _with_row_ends(words: Bits) -> Bits:
    depth, height, width = words.shape
    bits = np.zeros((depth, height, width + 1), _WORD)
    bits[..., :-1] = words
    return bits


def count(bits: NDArray[np.uint64]) -> int:
    """How many voxels there are."""
    if hasattr(np, "bitwise_count"):
        return int(np.bitwise_count(bits).sum(dtype=np.int64))
    # NumPy 1
    return int(np.count_nonzero(np.unpackbits(bits.view(np.uint8))))


def coordinates(bits: Bits) -> NDArray[np.int64]:
    """The voxels' indices z, y, x, (3, n)."""
    _, height, width = bits.shape
    words = bits.reshape(-1)
    filled = np.flatnonzero(words)
    found = np.flatnonzero(np.unpackbits(words[filled].view(np.uint8), bitorder="little"))
    word = filled[found // VOXELS]
    row = word // width
    z = row // height
    return np.stack([z, row - z * height, (word - row * width) * VOXELS + found % VOXELS])


def surface(bits: Bits) -> Bits:
    """The voxels that a 6-connected erosion takes away; what lies outside the array counts as background."""
    border = np.empty_like(bits)
    depth = len(bits)
    thickness = max(1, _SLAB * depth // bits.size) if bits.size else 1
    for start in range(0, depth, thickness):
        stop = min(start + thickness, depth)
        words = bits[start:stop]
        flat = words.reshape(-1)
        inside = np.zeros_like(words)
        along = inside.reshape(-1)
        along[:] = flat << _ONE
        along[1:] |= flat[:-1] >> _ALL_BUT_ONE
        after = flat >> _ONE
        after[:-1] |= flat[1:] << _ALL_BUT_ONE
        along &= after
        inside[:, 1:] &= words[:, :-1]
        inside[:, :-1] &= words[:, 1:]
        inside[:, [0, -1]] = 0
        # the neighbors along z may lie in another slab; the first and the last slice have but one
        first, last = max(start, 1), min(stop, depth - 1)
        inside[: first - start] = 0
        inside[last - start :] = 0
        if first < last:
            inside[first - start : last - start] &= bits[first - 1 : last - 1]
            inside[first - start : last - start] &= bits[first + 1 : last + 1]
        np.bitwise_and(words, ~inside, out=border[start:stop])
    return border
