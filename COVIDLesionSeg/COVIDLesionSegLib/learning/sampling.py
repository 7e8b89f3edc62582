"""Which slices a step trains on, how each is cropped and augmented: all from (seed, step, place in the batch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .config import AugmentationSettings, DataSettings
from .randomness import Purpose, draw
from .store import SliceStore, slices_of

# Density of consolidation in the window: -50 to 80 HU at width 1500, level -650.
_DENSE = (0.90, 0.99)
# Width of the patches of a lesion that become dense, and of their soft border, pixels.
_PATCH, _BORDER = 10.0, 1.5
# Width of the details that sharpening brings out, pixels.
_SHARPENED = 1.0


@dataclass(frozen=True)
class Batch:
    """Training crops.

    Attributes:
        images: float32 (N, 1, H, W), windowed to [0, 1]; (N, 1, D, H, W) where crops are D > 1 slices deep.
        labels: uint8 (N, H, W) or (N, D, H, W), 0 or 1.
        slices: (case id, slice) of each.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.uint8]
    slices: list[tuple[str, int]]


class BatchSource:
    """Batches of a training, each computed from its step alone.

    Slices with and without lesion are two decks; each is shuffled once an epoch and dealt in order, so that every slice
    is seen equally often, and lesion-free ones make up their share of all slices exactly in the long run.

    Args:
        store: the slice store.
        labels: case id -> training mask (z, y, x), where it differs from the store's (synthetic noise).
        cases: ids of the training cases.
        batch_size: slices a step, over all ranks.
        data: crop size and shares.
        augmentation: random changes.
        window: (width, level) in HU.
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
        window: tuple[float, float],
        seed: int,
        labels: Mapping[str, NDArray[np.uint8]] | None = None,
        stream: int = 0,
        excluded: Set[tuple[str, int]] = frozenset(),
    ) -> None:
        self._store = store
        self._labels = dict(labels or {})
        self._data = data
        self._augmentation = augmentation
        self._window = window
        self._seed = seed
        self._stream = stream
        self.batch_size = batch_size
        stored = [store.cases[case] for case in cases]
        decks = [
            [place for place in slices_of(stored, with_lesion) if place not in excluded]
            for with_lesion in (True, False)
        ]
        total = len(decks[0]) + len(decks[1])
        if not decks[0]:
            raise InputError("The training cases hold no slice with lesion; there is nothing to learn.")
        if batch_size > total:
            raise InputError(f"run.batch_size is {batch_size}, but there are only {total} slices; make it smaller.")
        self._decks = decks
        # per deck: the epoch that was shuffled last, and its order
        self._shuffled = [(-1, np.empty(0, dtype=np.int64)) for _ in decks]
        self._free_share = data.lesion_free_share if decks[1] else 0.0

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
        images = np.stack([image for image, _ in samples])[:, None]
        return Batch(images, np.stack([label for _, label in samples]), [chosen[place] for place in places])

    def _deal(self, deck: int, position: int) -> tuple[str, int]:
        cards = self._decks[deck]
        epoch, place = divmod(position, len(cards))
        known, order = self._shuffled[deck]
        if known != epoch:
            order = draw(self._seed, Purpose.ORDER, self._stream, deck, epoch).permutation(len(cards))
            self._shuffled[deck] = (epoch, order)
        return cards[int(order[place])]

    def _sample(self, step: int, place: int, case: str, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        label = self._labels.get(case, self._store.label(case))[index]
        center = crop_center(draw(self._seed, Purpose.CROP, self._stream, step, place), label, self._data)
        if self._data.depth == 1:
            return self._plane(step, place, case, index, center)
        # every plane draws the same numbers, so that all of them are changed by one and the same transform
        depth, last = self._data.depth, self._store.cases[case].shape[0] - 1
        start = index - depth // 2
        within = [min(max(start + offset, 0), last) for offset in range(depth)]
        planes = [self._plane(step, place, case, near, center) for near in within]
        return np.stack([image for image, _ in planes]), np.stack([mask for _, mask in planes])

    def _plane(
        self, step: int, place: int, case: str, index: int, center: tuple[float, float]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """One slice of a sample."""
        label = self._labels.get(case, self._store.label(case))[index]
        generator = draw(self._seed, Purpose.AUGMENTATION, self._stream, step, place)
        shift = generator.uniform(-1, 1) * self._augmentation.window_shift_hu
        width, level = self._window
        windowed = self._store.windowed(case, self._slab(step, place, case, index), width, level + shift)
        return augment(windowed, label, center, self._data.crop, self._augmentation, generator, self._data.zoom)

    def _slab(self, step: int, place: int, case: str, index: int) -> NDArray[Any]:
        """The slice, or the mean of it and as many neighbors on either side as were drawn."""
        image = self._store.image(case)
        most = self._augmentation.neighbors
        if not most or self._store.cases[case].kind == "picture":
            return image[index]
        either = int(draw(self._seed, Purpose.THICKNESS, self._stream, step, place).integers(most + 1))
        either = min(either, index, len(image) - 1 - index)
        slab: NDArray[np.float32] = image[index - either : index + either + 1].mean(axis=0, dtype=np.float32)
        return slab


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


def augment(
    image: NDArray[np.float32],
    label: NDArray[np.uint8],
    center: tuple[float, float],
    size: tuple[int, int],
    settings: AugmentationSettings,
    generator: np.random.Generator,
    zoom: float = 1.0,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Crop a slice and change it at random, image (linear) and mask (nearest) by one and the same transform.

    What lies outside the slice is mirrored.

    Args:
        image: (rows, columns), windowed to [0, 1].
        label: (rows, columns), 0 or 1.
        center: of the crop.
        size: of the crop, (rows, columns).
        settings: how much may change.
        generator: of the draws.
        zoom: pixels of the crop per pixel of the slice, in (0, 1].

    Returns:
        image and label crops; the image stays in [0, 1].
    """
    from scipy import ndimage

    # every number is drawn whether it is used or not: switching one change off leaves the others as they were
    flips = generator.random(2) < 0.5
    angle = np.radians(generator.uniform(-1, 1) * settings.rotation_degrees)
    scale = 1 + generator.uniform(-1, 1) * settings.scale
    contrast, brightness = generator.uniform(-1, 1, 2) * settings.intensity
    gamma = 2 ** (generator.uniform(-1, 1) * settings.gamma)
    blur = generator.uniform(0, 1) * settings.blur_sd
    noise_sd = generator.uniform(0, 1) * settings.noise_sd

    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / (scale * zoom)
    if settings.flip:
        matrix = matrix * np.where(flips, -1.0, 1.0)
    offset = np.asarray(center) - matrix @ ((np.asarray(size) - 1) / 2)
    if np.allclose(np.abs(matrix), np.eye(2)):
        # whole pixels: flips alone must not blur
        offset = np.rint(offset)
    move = partial(ndimage.affine_transform, matrix=matrix, offset=offset, output_shape=size, mode="mirror")
    if zoom < 1:
        # what a coarser pixel can't show must not come back as a pattern
        image = ndimage.gaussian_filter(image, 0.4 * (1 / zoom - 1) + 0.1)
    out = move(image, order=1)
    mask = move(label, order=0)

    # drawn after all else, so that runs without these changes keep their numbers
    sharpening = generator.uniform(0, 1) * settings.sharpening
    grain = generator.uniform(0, 1) * settings.noise_grain
    if generator.random() < settings.consolidation and mask.any():
        out = _consolidated(out, mask, generator)
    if sharpening > 0:
        out = out + np.float32(sharpening) * (out - ndimage.gaussian_filter(out, _SHARPENED))
    if blur > 0:
        out = ndimage.gaussian_filter(out, blur)
    if contrast or brightness:
        middle = np.float32(0.5)
        out = (out - middle) * np.float32(1 + contrast) + middle + np.float32(brightness)
    if noise_sd > 0:
        out = out + np.float32(noise_sd) * _noise(out.shape, grain, generator)
    out = np.clip(out, 0, 1)
    return (out if gamma == 1 else out ** np.float32(gamma)).astype(np.float32), mask


def _consolidated(
    image: NDArray[np.float32], mask: NDArray[np.uint8], generator: np.random.Generator
) -> NDArray[np.float32]:
    """Parts of the lesions filled up to the density of soft tissue; what is denser already stays."""
    from scipy import ndimage

    field = ndimage.gaussian_filter(generator.standard_normal(image.shape, dtype=np.float32), _PATCH)
    share = generator.uniform(0.2, 1.0)
    inside = mask > 0
    patches = inside & (field <= np.quantile(field[inside], share))
    soft = ndimage.gaussian_filter(patches.astype(np.float32), _BORDER) * generator.uniform(0.6, 1.0)
    dense = np.maximum(image, np.float32(generator.uniform(*_DENSE)))
    return np.asarray(image + soft * (dense - image), dtype=np.float32)


def _noise(shape: tuple[int, ...], grain: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Gaussian noise of unit variance, correlated over ``grain`` pixels as in a reconstructed image."""
    from scipy import ndimage

    noise: NDArray[np.float32] = generator.standard_normal(shape, dtype=np.float32)
    if grain <= 0:
        return noise
    noise = ndimage.gaussian_filter(noise, grain, mode="wrap")
    return noise / max(float(noise.std()), 1e-6)
