"""Which slices a step trains on and how each is cropped: all from (seed, step, place in the batch)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging import apply_window
from ..inference.slices import PICTURE_WINDOW, planes_at
from ..models.card import Preprocessing
from .augmentation import AugmentationSettings, Generators, Transform, augment
from .config import DataSettings
from .randomness import Purpose, draw
from .store import SliceStore


@dataclass(frozen=True)
class Batch:
    """Training crops.

    Attributes:
        images: float32 (N, C, H, W), windowed to [0, 1], a channel for each slice that the network sees;
            (N, 1, D, H, W) where crops are D > 1 slices deep.
        labels: uint8 (N, H, W) or (N, D, H, W), 0 or 1.
        slices: (case id, slice) of each.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.uint8]
    slices: list[tuple[str, int]]


class BatchSource:
    """Batches of a training, each computed from its step alone.

    Slices with and without lesion are two decks; each is shuffled once an epoch and dealt in order, so that every slice
    is seen equally often, and lesion-free ones make up their share of all slices exactly in the long run. Which deck a
    slice belongs to is what its training label says: nothing here knows a better one.

    Args:
        store: the slice store.
        labels: case id -> training mask (z, y, x), where it differs from the store's (synthetic noise).
        cases: ids of the training cases.
        batch_size: slices a step, over all ranks.
        data: crop size and shares.
        augmentation: random changes.
        preprocessing: of the network; its window and slice offsets.
        seed: of all draws.
        stream: keeps the draws of several sources with one seed apart.
        excluded: (case id, stored slice) that no batch draws.

    Raises:
        InputError: no slice to train on, or fewer slices than a batch.
    """

    def __init__(
        self,
        store: SliceStore,
        cases: Sequence[str],
        batch_size: int,
        data: DataSettings,
        augmentation: AugmentationSettings,
        preprocessing: Preprocessing,
        seed: int,
        labels: Mapping[str, NDArray[np.uint8]] | None = None,
        stream: int = 0,
        excluded: Set[tuple[str, int]] = frozenset(),
    ) -> None:
        self._store = store
        self._labels = dict(labels or {})
        self._data = data
        self._augmentation = augmentation
        self._window = preprocessing.window_width, preprocessing.window_level
        self._offsets = preprocessing.slice_offsets_mm
        self._seed = seed
        self._stream = stream
        self.batch_size = batch_size
        decks: list[list[tuple[str, int]]] = [[], []]
        for place, has_lesion in self._places(cases):
            if place not in excluded:
                decks[0 if has_lesion else 1].append(place)
        total = len(decks[0]) + len(decks[1])
        if not decks[0]:
            raise InputError("The training cases hold no slice with lesion; there is nothing to learn.")
        if batch_size > total:
            raise InputError(f"run.batch_size is {batch_size}, but there are only {total} slices; make it smaller.")
        self._decks = decks
        # per deck: the epoch that was shuffled last, and its order
        self._shuffled = [(-1, np.empty(0, dtype=np.int64)) for _ in decks]
        as_sampled = len(decks[1]) / total
        self._free_share = min(as_sampled if data.lesion_free_share < 0 else data.lesion_free_share, bool(decks[1]))

    def _places(self, cases: Sequence[str]) -> Iterator[tuple[tuple[str, int], bool]]:
        """Every slice of the cases, and whether its training label marks lesion."""
        for case in cases:
            stored = self._store.cases[case]
            given = self._labels.get(case)
            lesion = set(stored.lesion_slices if given is None else np.flatnonzero(given.any(axis=(1, 2))).tolist())
            for index in range(stored.shape[0]):
                yield (case, index), index in lesion

    def chosen(self, step: int) -> list[tuple[str, int]]:
        """(case id, slice) of the step's samples, lesion-free ones last."""
        free_before, free_after = (int((step + add) * self.batch_size * self._free_share) for add in (0, 1))
        lesion_before = step * self.batch_size - free_before
        lesion_after = (step + 1) * self.batch_size - free_after
        return [
            *(self._deal(0, position) for position in range(lesion_before, lesion_after)),
            *(self._deal(1, position) for position in range(free_before, free_after)),
        ]

    def batch(self, step: int, places: Sequence[int] | None = None) -> Batch:
        """The step's crops, or those at the given places of the global batch (a rank's share)."""
        chosen = self.chosen(step)
        places = range(len(chosen)) if places is None else places
        samples = [self._sample(step, place, *chosen[place]) for place in places]
        images, labels = np.stack([image for image, _ in samples]), np.stack([label for _, label in samples])
        if self._data.depth == 1:
            # neighbors are looked at, the slice itself is asked about
            labels = labels[:, self._offsets.index(0)]
        else:
            images = images[:, None]
        return Batch(images, labels, [chosen[place] for place in places])

    def _deal(self, deck: int, position: int) -> tuple[str, int]:
        cards = self._decks[deck]
        epoch, place = divmod(position, len(cards))
        known, order = self._shuffled[deck]
        if known != epoch:
            order = draw(self._seed, Purpose.ORDER, self._stream, deck, epoch).permutation(len(cards))
            self._shuffled[deck] = (epoch, order)
        return cards[int(order[place])]

    def _sample(self, step: int, place: int, case: str, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Images and labels (planes, rows, columns) of one sample, all planes changed by the same transforms."""
        where = (self._stream, step, place)
        volume = self._labels.get(case)
        volume = self._store.label(case) if volume is None else volume
        center = crop_center(draw(self._seed, Purpose.CROP, *where), volume[index], self._data)
        planes = self._planes(case, index)

        def generators(transform: Transform) -> np.random.Generator:
            return draw(self._seed, Purpose.AUGMENTATION, *where, transform.key())

        for transform in self._augmentation.transforms("planes"):
            planes = transform.planes(planes, index, generators(transform))
        images, masks = self._windowed(case, planes, volume[planes], generators)
        size = self._data.crop
        return augment(images, masks, center, size, self._augmentation, generators, self._data.zoom)

    def _planes(self, case: str, index: int) -> NDArray[np.intp]:
        """Slices of a case around one: as deep as a 3-D crop is, or those that the network sees as channels."""
        stored, depth = self._store.cases[case], self._data.depth
        if depth > 1:
            return np.clip(np.arange(depth) + index - depth // 2, 0, stored.shape[0] - 1)
        return planes_at(self._offsets, stored.spacing[0], [index], stored.shape[0])[0]

    def _windowed(
        self, case: str, planes: NDArray[np.intp], masks: NDArray[np.uint8], generators: Generators
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Slices of a case in [0, 1], and their masks."""
        image, window = self._store.image(case), self._window
        stored = self._store.cases[case]
        if stored.kind == "picture":
            # its window was chosen by somebody else, and it has no neighbors
            return apply_window(image[planes], *PICTURE_WINDOW), masks
        for transform in self._augmentation.transforms("window"):
            window = transform.window(window, generators(transform))
        thick = self._augmentation.thick_slices
        slabs = np.stack([thick.read(image, index, generators(thick)) for index in planes])
        places = (planes, *(np.arange(side) for side in stored.shape[1:]))
        positions = tuple(place * step for place, step in zip(places, stored.image_spacing, strict=True))
        for transform in self._augmentation.transforms("paint"):
            lungs = self._store.lungs(case)[planes]
            slabs, masks = transform.paint(slabs, masks, lungs, positions, generators(transform))
        return apply_window(slabs, *window), masks


def ahead(prepare: Callable[[int], Any], steps: range, workers: int) -> Generator[Any, None, None]:
    """What ``prepare`` gives for each step in order, while threads prepare that of coming ones.

    Threads do: what takes time in a slice (interpolation, filters, random numbers) lets go of the interpreter's lock.

    Args:
        prepare: called from several threads at once.
        steps: whose turn comes.
        workers: threads, >= 1; as many steps are prepared at once, and one more waits.
    """
    with ThreadPoolExecutor(workers) as pool:
        coming: deque[Future[Any]] = deque()
        try:
            for step in steps:
                coming.append(pool.submit(prepare, step))
                if len(coming) > workers:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def crop_center(generator: np.random.Generator, label: NDArray[np.uint8], data: DataSettings) -> tuple[float, float]:
    """Center (row, column) of a training crop.

    With probability ``data.foreground_share`` it is a random lesion voxel of the slice, where there is one; otherwise
    it is drawn evenly. Then it is moved so that the crop lies inside the slice (in its middle where that is smaller).
    """
    wants_lesion = generator.random() < data.foreground_share
    rows, columns = np.nonzero(label) if wants_lesion else (np.empty(0), np.empty(0))
    if len(rows):
        pick = int(generator.integers(len(rows)))
        wanted = [float(rows[pick]), float(columns[pick])]
    else:
        wanted = [generator.uniform(0, side - 1) for side in label.shape]
    # a crop that reaches over the border would be filled with mirrored tissue
    center = []
    for value, side, crop in zip(wanted, label.shape, data.crop, strict=True):
        half = (crop - 1) / 2 / data.zoom
        center.append((side - 1) / 2 if side <= 2 * half + 1 else float(np.clip(value, half, side - 1 - half)))
    return center[0], center[1]
