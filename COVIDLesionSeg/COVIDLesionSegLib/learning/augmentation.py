"""Random changes of training slices: a list of transforms, each with its settings on it and draws of its own.

A transform is a small dataclass: its fields are its settings, its method is what it does. The generator that it gets
comes from (seed, step, place in the batch, transform) alone. To add one, write its class and its line in
:class:`AugmentationSettings`; a run with the same settings keeps its numbers, since no draw is shared.

There are three kinds, applied in this order: those that change how a slice is read from its volume, those that move it
(all of them are one matrix, so that a slice is interpolated once), and those that change its intensities.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imports import import_class, is_import_path
from .settings import require

Images = NDArray[np.float32]
Masks = NDArray[np.uint8]


@dataclass(frozen=True)
class Transform:
    """Base of the transforms; each setting is 0 or above, and 0 leaves a slice as it is."""

    # settings with a largest value
    LIMITS: ClassVar[dict[str, float]] = {}

    def __post_init__(self) -> None:
        for item in fields(self):
            value, limit = getattr(self, item.name), self.LIMITS.get(item.name, np.inf)
            allowed = "0 or above" if limit == np.inf else f"in [0, {limit:g}]"
            require(bool(0 <= value <= limit), f"augmentation.{type(self).__name__}.{item.name}", value, allowed)

    @classmethod
    def key(cls) -> int:
        """What keeps its draws apart from those of all others: its name, not its place in the list."""
        return zlib.crc32(cls.__name__.encode())


Generators = Callable[[Transform], np.random.Generator]

# ---- how a slice is read --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThickSlices(Transform):
    """Thicker slices: the mean of a slice and of as many neighbors on either side as are drawn; not for 8-bit slices.

    Attributes:
        neighbors: most on either side.
    """

    neighbors: int = 0

    def read(self, volume: NDArray[Any], index: int, generator: np.random.Generator) -> NDArray[Any]:
        """One slice of a volume (z, y, x), or the mean of some; the label stays that of the middle one."""
        if not self.neighbors:
            return volume[index]
        either = min(int(generator.integers(self.neighbors + 1)), index, len(volume) - 1 - index)
        slab: NDArray[np.float32] = volume[index - either : index + either + 1].mean(axis=0, dtype=np.float32)
        return slab


@dataclass(frozen=True)
class NeighborDropout(Transform):
    """A slice without its neighbors on one side or on both, as at the ends of a CT, in thick or 8-bit slices.

    Attributes:
        probability: fraction of the slices to which that happens, to both sides and to either one equally often.
    """

    LIMITS: ClassVar[dict[str, float]] = {"probability": 1.0}
    probability: float = 0.0

    def planes(self, planes: NDArray[np.intp], index: int, generator: np.random.Generator) -> NDArray[np.intp]:
        """The slices (C,) that are channels; those that are missing are replaced by the slice itself."""
        if generator.random() >= self.probability:
            return planes
        side = int(generator.integers(3))
        kept = planes < index if side == 0 else planes > index if side == 1 else np.zeros(len(planes), dtype=bool)
        return np.where(kept, planes, index)


@dataclass(frozen=True)
class SyntheticDisease(Transform):
    """Disease painted on lung without lesion, see :func:`paint_disease`; not on 8-bit slices.

    Attributes:
        probability: fraction of the slices without lesion that get disease.
    """

    LIMITS: ClassVar[dict[str, float]] = {"probability": 1.0}
    probability: float = 0.0

    def paint(
        self,
        hu: NDArray[Any],
        masks: Masks,
        lungs: NDArray[np.uint8],
        positions: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
        generator: np.random.Generator,
    ) -> tuple[NDArray[Any], Masks]:
        """Planes in HU and their masks, with disease; as they are where there is lesion or no lung.

        Args:
            hu: (planes, rows, columns).
            masks: of the same shape, 0 or 1.
            lungs: of the same shape, 0 outside.
            positions: of planes, rows and columns, mm.
            generator: of its draws.
        """
        if generator.random() >= self.probability or masks.any():
            return hu, masks
        return paint_disease(hu, lungs, positions, generator)


@dataclass(frozen=True)
class Inflation(Transform):
    """Lungs that hold less air or more, as in expiration and emphysema: :func:`inflate`; not on 8-bit slices.

    Attributes:
        probability: fraction of the slices to which that happens.
    """

    LIMITS: ClassVar[dict[str, float]] = {"probability": 1.0}
    probability: float = 0.0

    def paint(
        self,
        hu: NDArray[Any],
        masks: Masks,
        lungs: NDArray[np.uint8],
        positions: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
        generator: np.random.Generator,
    ) -> tuple[NDArray[Any], Masks]:
        """Planes in HU with other lungs, and their masks as they are; arguments as of :class:`SyntheticDisease`."""
        if generator.random() >= self.probability:
            return hu, masks
        return inflate(hu, masks, lungs, positions, generator), masks


@dataclass(frozen=True)
class WindowShift(Transform):
    """Another level of the intensity window (other scanners and calibrations); not for 8-bit slices.

    Attributes:
        hu: largest shift either way, HU.
    """

    hu: float = 0.0

    def window(self, window: tuple[float, float], generator: np.random.Generator) -> tuple[float, float]:
        """(width, level) with another level."""
        width, level = window
        return width, level + generator.uniform(-1, 1) * self.hu


# ---- where a slice goes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flip(Transform):
    """Flips left-right and front-back.

    Attributes:
        probability: of each of the two.
    """

    LIMITS: ClassVar[dict[str, float]] = {"probability": 1.0}
    probability: float = 0.5

    def matrix(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """From (row, column) of the crop to those of the slice, both from their centers."""
        return np.diag(np.where(generator.random(2) < self.probability, -1.0, 1.0))


@dataclass(frozen=True)
class Rotation(Transform):
    """Rotation in the plane of the slice.

    Attributes:
        degrees: largest angle either way.
    """

    degrees: float = 10.0

    def matrix(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """From (row, column) of the crop to those of the slice, both from their centers."""
        angle = np.radians(generator.uniform(-1, 1) * self.degrees)
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


@dataclass(frozen=True)
class Scale(Transform):
    """Another size.

    Attributes:
        change: largest relative change either way, below 1.
    """

    LIMITS: ClassVar[dict[str, float]] = {"change": 0.99}
    change: float = 0.1

    def matrix(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """From (row, column) of the crop to those of the slice, both from their centers."""
        return np.eye(2) / (1 + generator.uniform(-1, 1) * self.change)


# ---- how bright it is: images (planes, rows, columns) in [0, 1], masks of the same shape ----------------------------


@dataclass(frozen=True)
class Consolidation(Transform):
    """Patches of the lesions as dense as soft tissue; what is denser already stays.

    Attributes:
        probability: fraction of the slices in which lesions get such patches.
    """

    LIMITS: ClassVar[dict[str, float]] = {"probability": 1.0}
    # density of consolidation in the window: -50 to 80 HU at width 1500, level -650
    DENSE: ClassVar[tuple[float, float]] = (0.90, 0.99)
    # width of the patches, and of their soft border, pixels
    PATCH: ClassVar[float] = 10.0
    BORDER: ClassVar[float] = 1.5
    probability: float = 0.0

    def apply(self, images: Images, masks: Masks, generator: np.random.Generator) -> Images:
        """Fill a random part of each lesion."""
        from scipy import ndimage

        if generator.random() >= self.probability or not masks.any():
            return images
        field = ndimage.gaussian_filter(generator.standard_normal(images.shape[1:], dtype=np.float32), self.PATCH)
        share, strength = generator.uniform(0.2, 1.0), generator.uniform(0.6, 1.0)
        dense = np.maximum(images, np.float32(generator.uniform(*self.DENSE)))
        inside = masks > 0
        patches = inside & (field <= np.quantile(np.broadcast_to(field, masks.shape)[inside], share))
        soft = ndimage.gaussian_filter(patches.astype(np.float32), (0, self.BORDER, self.BORDER)) * strength
        return np.asarray(images + soft * (dense - images), dtype=np.float32)


@dataclass(frozen=True)
class Sharpening(Transform):
    """Sharp reconstruction kernels: details of about a pixel are amplified.

    Attributes:
        share: largest fraction of the difference to a blurred copy that is added.
    """

    share: float = 0.0

    def apply(self, images: Images, masks: Masks, generator: np.random.Generator) -> Images:  # noqa: ARG002
        """Add a fraction of the details."""
        from scipy import ndimage

        share = np.float32(generator.uniform(0, 1) * self.share)
        return images if not share else images + share * (images - ndimage.gaussian_filter(images, (0, 1, 1)))


@dataclass(frozen=True)
class Blur(Transform):
    """Soft reconstruction kernels.

    Attributes:
        sd: largest standard deviation of the Gaussian, pixels.
    """

    sd: float = 0.0

    def apply(self, images: Images, masks: Masks, generator: np.random.Generator) -> Images:  # noqa: ARG002
        """Blur each plane."""
        from scipy import ndimage

        sd = generator.uniform(0, 1) * self.sd
        return images if not sd else ndimage.gaussian_filter(images, (0, sd, sd))


@dataclass(frozen=True)
class Contrast(Transform):
    """Another contrast about the middle of the window, and another brightness.

    Attributes:
        contrast: largest relative change either way.
        brightness: largest shift either way, of a window that is 1 wide.
    """

    contrast: float = 0.1
    brightness: float = 0.1

    def apply(self, images: Images, masks: Masks, generator: np.random.Generator) -> Images:  # noqa: ARG002
        """(image - 1/2) (1 + contrast) + 1/2 + brightness."""
        contrast, brightness = generator.uniform(-1, 1, 2) * (self.contrast, self.brightness)
        if not contrast and not brightness:
            return images
        middle = np.float32(0.5)
        return (images - middle) * np.float32(1 + contrast) + middle + np.float32(brightness)


@dataclass(frozen=True)
class Noise(Transform):
    """Gaussian noise, correlated as in a reconstructed image.

    Attributes:
        sd: largest standard deviation.
        grain: largest width of the noise's grain, pixels; the standard deviation stays ``sd``'s.
    """

    sd: float = 0.0
    grain: float = 0.0

    def apply(self, images: Images, masks: Masks, generator: np.random.Generator) -> Images:  # noqa: ARG002
        """Add noise, other noise to each plane."""
        from scipy import ndimage

        sd, grain = generator.uniform(0, 1, 2) * (self.sd, self.grain)
        if not sd:
            return images
        noise = generator.standard_normal(images.shape, dtype=np.float32)
        if grain:
            noise = ndimage.gaussian_filter(noise, (0, grain, grain), mode="wrap")
            noise /= max(float(noise.std()), 1e-6)
        return images + np.float32(sd) * noise


@dataclass(frozen=True)
class Gamma(Transform):
    """A gamma curve on the windowed image.

    Attributes:
        log2: largest |log2| of gamma.
    """

    log2: float = 0.0

    def apply(self, images: Images, masks: Masks, generator: np.random.Generator) -> Images:  # noqa: ARG002
        """image ** gamma; the image is brought into [0, 1] first."""
        gamma = np.float32(2 ** (generator.uniform(-1, 1) * self.log2))
        return images if gamma == 1 else np.clip(images, 0, 1) ** gamma


# ---- the list -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AugmentationSettings:
    """The transforms, in the order in which they are applied; a table of the configuration each.

    Attributes:
        thick_slices: thicker slices.
        neighbor_dropout: slices without neighbors.
        synthetic_disease: disease on healthy lung.
        inflation: lungs that hold less air or more.
        window_shift: other calibrations.
        flip: left-right and front-back.
        rotation: in the plane.
        scale: another size.
        consolidation: dense patches in lesions.
        sharpening: sharp kernels.
        blur: soft kernels.
        contrast: contrast and brightness.
        noise: dose, and the grain of the noise.
        gamma: other curves of gray.
        imported: transforms of other packages, after all others; a table each, with ``path`` ("package.module:Name" of
            a class derived from ``learning.augmentation.Transform``) and its settings.
    """

    thick_slices: ThickSlices = ThickSlices()
    neighbor_dropout: NeighborDropout = NeighborDropout()
    synthetic_disease: SyntheticDisease = SyntheticDisease()
    inflation: Inflation = Inflation()
    window_shift: WindowShift = WindowShift()
    flip: Flip = Flip()
    rotation: Rotation = Rotation()
    scale: Scale = Scale()
    consolidation: Consolidation = Consolidation()
    sharpening: Sharpening = Sharpening()
    blur: Blur = Blur()
    contrast: Contrast = Contrast()
    noise: Noise = Noise()
    gamma: Gamma = Gamma()
    imported: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for table in self.imported:
            require(is_import_path(str(table.get("path"))), "augmentation.imported", table, 'a table with a "path"')

    @classmethod
    def none(cls) -> AugmentationSettings:
        """No change at all: every setting is 0."""
        own = cls()
        still: dict[str, Any] = {}
        for item in fields(own):
            transform = getattr(own, item.name)
            if item.name == "imported":
                continue
            still[item.name] = replace(transform, **{setting.name: 0 for setting in fields(transform)})
        return cls(**still)

    def transforms(self, method: str) -> list[Any]:
        """Those with a method, "read", "planes", "paint", "window", "matrix" or "apply", in order."""
        own = [getattr(self, item.name) for item in fields(self) if item.name != "imported"]
        more = [_imported(table) for table in self.imported]
        return [transform for transform in [*own, *more] if hasattr(transform, method)]


def _imported(table: Mapping[str, Any]) -> Any:
    """A transform of another package.

    Raises:
        InputError: a class that is not there or is no transform, or settings that it does not have.
    """
    settings = {name: value for name, value in table.items() if name != "path"}
    try:
        return import_class(table["path"], Transform, "transform")(**settings)
    except TypeError as error:
        raise InputError(f"The transform {table['path']} can't be made: {error}.") from error


def augment(
    images: Images,
    masks: Masks,
    center: tuple[float, float],
    size: tuple[int, int],
    settings: AugmentationSettings,
    generators: Generators,
    zoom: float = 1.0,
) -> tuple[Images, Masks]:
    """Crop slices and change them at random, images (linear) and masks (nearest) by one and the same transform.

    What lies outside the slices is mirrored.

    Args:
        images: (planes, rows, columns), windowed to [0, 1]; all planes are moved alike.
        masks: (planes, rows, columns), 0 or 1.
        center: of the crop, (row, column).
        size: of the crop, (rows, columns).
        settings: the transforms.
        generators: a transform's generator.
        zoom: pixels of the crop per pixel of the slice, in (0, 1].

    Returns:
        Crops of images and masks; the images stay in [0, 1].
    """
    from scipy import ndimage

    matrix = np.eye(2) / zoom
    for transform in settings.transforms("matrix"):
        matrix = matrix @ transform.matrix(generators(transform))
    if zoom < 1:
        # what a coarser pixel can't show must not come back as a pattern
        sd = 0.4 * (1 / zoom - 1) + 0.1
        images = ndimage.gaussian_filter(images, (0, sd, sd))
    out, mask = cut(images, center, size, matrix, order=1), cut(masks, center, size, matrix, order=0)
    for transform in settings.transforms("apply"):
        out = transform.apply(out, mask, generators(transform))
    return np.clip(out, 0, 1).astype(np.float32, copy=False), mask


def cut(
    planes: NDArray[Any],
    center: tuple[float, float],
    size: tuple[int, int],
    matrix: NDArray[np.float64],
    order: Literal[0, 1],
) -> NDArray[Any]:
    """Crops of planes whose pixels are moved by a matrix, mirrored where they end.

    Args:
        planes: (n, rows, columns).
        center: of the crop in the planes, (row, column).
        size: of the crop, (rows, columns).
        matrix: (2, 2), from (row, column) of the crop to those of the planes, both from their centers.
        order: 1 interpolates linearly, 0 takes the nearest pixel.

    Returns:
        (n, *size), of the planes' type.
    """
    from scipy import ndimage

    offset = np.asarray(center) - matrix @ ((np.asarray(size) - 1) / 2)
    if np.array_equal(np.abs(matrix), np.eye(2)):
        # whole pixels: flips alone must not blur
        rows, columns = (
            _mirrored(np.rint(start + matrix[axis, axis] * np.arange(count)).astype(np.intp), planes.shape[1 + axis])
            for axis, (start, count) in enumerate(zip(offset, size, strict=True))
        )
        return planes[:, rows[:, None], columns]
    moved = [ndimage.affine_transform(p, matrix, offset, output_shape=size, order=order, mode="mirror") for p in planes]
    return np.stack(moved)


def _mirrored(places: NDArray[np.intp], side: int) -> NDArray[np.intp]:
    """Places on an axis of ``side`` pixels, reflected about its first and last one."""
    period = max(2 * (side - 1), 1)
    places = places % period
    return np.minimum(places, period - places)


# ---- synthetic disease -----------------------------------------------------------------------------------------------
#
# Whoever has few labeled patients has no severely ill ones. What is painted here has a mask that is exactly known, in
# any amount up to most of the lung. Everything is a function of the position in mm, so planes that are painted together
# agree with one another as slices of one patient do. The forms are those that radiologists describe in COVID-19
# (Hansell et al., Fleischner Society glossary, Radiology 2008; Bernheim et al., Radiology 2020): patches at the back
# and beneath the pleura, one-sided or on both sides, haze through which vessels stay visible, a pattern of lines on
# haze, and dense lung in which bronchi stay full of air.

Field = NDArray[np.float32]

# fraction of the lung that is diseased, drawn evenly on a logarithmic scale
LEAST_DISEASED, MOST_DISEASED = 0.01, 0.7
ONE_SIDED = 0.25
# size of the patches, mm
_PATCH_MM = (12.0, 40.0)
# how much likelier disease is at the back and beneath the pleura, in standard deviations of the patches' noise
_BACK, _PLEURA = (0.0, 2.0), (-0.3, 1.5)
# depth of what counts as beneath the pleura, mm
_PLEURA_MM = 12.0
# width over which disease sets in, in standard deviations of the patches' noise
_BORDER = (0.03, 0.15)
# Lift of aerated lung by haze, HU. The faintest that experts outlined lies about 100 HU above healthy lung, and the
# mask ends where half of this is reached: less must not be taught as lesion.
_HAZE_HU = (130.0, 500.0)
_TEXTURE_MM, _TEXTURE = (2.0, 5.0), 0.35
_HAS_PAVING, _PAVING_MM, _PAVING_HU = 0.35, (4.0, 8.0), (80.0, 250.0)
_HAS_CONSOLIDATION, _CONSOLIDATED = 0.5, (0.1, 1.0)
_DENSE_HU, _DENSE_NOISE_HU = (-40.0, 60.0), 15.0
_HAS_BRONCHOGRAM, _BRONCHOGRAM_MM, _AIR_HU = 0.6, (10.0, 18.0), -850.0
# tissue as dense as this, vessels and walls, is not lifted by haze; air is lifted by all of it
_TISSUE_HU, _AERATED_HU = 0.0, -800.0


def paint_disease(
    hu: NDArray[Any],
    lungs: NDArray[np.uint8],
    positions: tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
    generator: np.random.Generator,
) -> tuple[Field, NDArray[np.uint8]]:
    """Paint disease on planes of one CT.

    Args:
        hu: (planes, rows, columns), Hounsfield units, rows to the back.
        lungs: of the same shape; 0 outside, 1 right, 2 left (1 for both where they are not told apart).
        positions: of planes, rows and columns, mm.
        generator: of everything that is drawn.

    Returns:
        The planes with disease, float32, unchanged outside the lungs; and its mask, 0 or 1. Without lung nothing is
        painted.
    """
    planes = np.asarray(hu, dtype=np.float32)
    sick = lungs != 0
    if generator.random() < ONE_SIDED and (lungs == 1).any() and (lungs == 2).any():
        sick = lungs == generator.integers(1, 3)
    fraction = float(np.exp(generator.uniform(np.log(LEAST_DISEASED), np.log(MOST_DISEASED))))
    if not sick.any():
        return planes, np.zeros(planes.shape, dtype=np.uint8)
    likely = _likeliness(sick, positions, generator)
    onset = np.quantile(likely[sick], 1 - fraction)
    weight = _soft(likely - np.float32(onset), generator.uniform(*_BORDER)) * sick

    out = _with_haze(planes, weight, positions, generator)
    if generator.random() < _HAS_CONSOLIDATION:
        out = _with_consolidation(out, weight, sick, positions, generator)
    return out, (weight > 0.5).astype(np.uint8)


def _likeliness(sick: NDArray[np.bool_], positions: Any, generator: np.random.Generator) -> Field:
    """Where disease comes first: smooth noise of two sizes, more at the back and beneath the pleura."""
    from scipy import ndimage

    patch = generator.uniform(*_PATCH_MM)
    noise = smooth_noise(positions, patch, generator) + np.float32(0.35) * smooth_noise(positions, patch / 3, generator)
    back = _to_the_back(sick)
    steps = [_step(axis) for axis in positions[1:]]
    inner = ndimage.gaussian_filter(sick.astype(np.float32), (0, *(_PLEURA_MM / step for step in steps)))
    pleura = 2 * (1 - inner)
    return np.asarray(
        noise
        + np.float32(generator.uniform(*_BACK)) * back[None, :, None]
        + np.float32(generator.uniform(*_PLEURA)) * pleura,
        dtype=np.float32,
    )


def _to_the_back(lungs: NDArray[np.bool_]) -> Field:
    """For each row of planes (planes, rows, columns) how far back it lies: 0 in front of the lungs, 1 behind them."""
    rows = np.flatnonzero(lungs.any(axis=(0, 2)))
    if not rows.size:
        return np.zeros(lungs.shape[1], dtype=np.float32)
    return np.clip((np.arange(lungs.shape[1]) - rows[0]) / max(np.ptp(rows), 1), 0, 1).astype(np.float32)


def _with_haze(planes: Field, weight: Field, positions: Any, generator: np.random.Generator) -> Field:
    """Ground-glass opacity, a textured lift of what is aerated; sometimes with the ridges of crazy paving."""
    texture = smooth_noise(positions, generator.uniform(*_TEXTURE_MM), generator)
    lift = np.float32(generator.uniform(*_HAZE_HU)) * np.clip(1 + np.float32(_TEXTURE) * texture, 0.4, 2)
    if generator.random() < _HAS_PAVING:
        # the surfaces on which smooth noise is zero enclose cells, as thickened septa do
        ridges = np.exp(-np.square(smooth_noise(positions, generator.uniform(*_PAVING_MM), generator) / 0.25))
        lift = lift + np.float32(generator.uniform(*_PAVING_HU)) * ridges
    return np.asarray(planes + weight * lift * _aerated(planes), dtype=np.float32)


def _aerated(planes: Field) -> Field:
    """How much of each voxel is air, as far as its density tells: 0 in tissue, 1 in lung."""
    return np.asarray(np.clip((_TISSUE_HU - planes) / (_TISSUE_HU - _AERATED_HU), 0, 1), dtype=np.float32)


def _with_consolidation(
    planes: Field, weight: Field, sick: NDArray[np.bool_], positions: Any, generator: np.random.Generator
) -> Field:
    """Part of the disease as dense as soft tissue, with soft borders; some of it with bronchi that stay full of air."""
    inside = weight > 0.5
    noise = smooth_noise(positions, generator.uniform(*_PATCH_MM), generator)
    share, border = generator.uniform(*_CONSOLIDATED), generator.uniform(*_BORDER)
    onset = np.quantile(noise[inside], 1 - share) if inside.any() else np.inf
    dense = weight * _soft(noise - np.float32(onset), border)
    grain = np.float32(_DENSE_NOISE_HU) * smooth_noise(positions, 2.0, generator)
    target = np.float32(generator.uniform(*_DENSE_HU)) + grain
    if generator.random() < _HAS_BRONCHOGRAM:
        # two smooth noises are zero together on winding lines: tubes around them
        scale = generator.uniform(*_BRONCHOGRAM_MM)
        squares = sum(np.square(smooth_noise(positions, scale, generator)) for _ in range(2))
        tubes = np.exp(-squares / np.float32(0.2**2))
        target = target + tubes * (np.float32(_AIR_HU) - target)
        # a bronchus is darker than the haze that was there
        return np.asarray(planes + dense * sick * (target - planes) * ((planes < target) | (tubes > 0.3)), np.float32)
    return np.asarray(planes + dense * sick * np.maximum(target - planes, 0), dtype=np.float32)


# ---- lungs that hold less air or more --------------------------------------------------------------------------------
#
# Haze is what is denser than the lung around it. A network that knows lungs at full inspiration alone (about -850 HU)
# takes those that are not, and what emphysema leaves of healthy lung, for haze.

_EXPIRED = 0.6
# lift of aerated lung in expiration, HU; how it varies over the lung, and from the front to the back
_EXPIRATION_HU, _EXPIRATION_MM, _VARIES, _DEPENDENT = (20.0, 150.0), (60.0, 150.0), 0.25, (-0.3, 1.0)
# loss of density in emphysema all over, in patches and in holes of a few mm, HU; size and share of both
_INFLATION_HU, _THIN_HU, _HOLE_HU = (0.0, 50.0), (30.0, 130.0), (30.0, 120.0)
_THIN_MM, _THIN = (10.0, 50.0), (0.1, 0.9)
_HAS_HOLES, _HOLE_MM, _HOLES = 0.5, (4.0, 10.0), (0.02, 0.2)
# what lies as near to a lesion is thinned less, mm
_SPARED_MM = 4.0
_AIR_ALONE_HU = -1000.0


def inflate(
    hu: NDArray[Any],
    masks: Masks,
    lungs: NDArray[np.uint8],
    positions: tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
    generator: np.random.Generator,
) -> Field:
    """Lift the density of both lungs as expiration does, or lower it outside of lesions as emphysema does.

    Vessels and walls stay, and neither is a lesion.

    Args:
        hu: (planes, rows, columns), Hounsfield units, rows to the back.
        masks: of the same shape, 0 or 1: lesions.
        lungs: of the same shape, 0 outside.
        positions: of planes, rows and columns, mm.
        generator: of everything that is drawn.

    Returns:
        The planes, float32, unchanged outside the lungs.
    """
    planes = np.asarray(hu, dtype=np.float32)
    if generator.random() < _EXPIRED:
        change = _expiration(lungs, positions, generator)
    else:
        change = -_emphysema(masks, lungs, positions, generator)
    changed = np.maximum(planes + change * _aerated(planes), np.minimum(planes, _AIR_ALONE_HU))
    return np.where(lungs != 0, changed, planes)


def _expiration(lungs: NDArray[np.uint8], positions: Any, generator: np.random.Generator) -> Field:
    """Lift, HU: varies slowly over the lung, and is mostly larger at the back."""
    varies = np.float32(_VARIES) * smooth_noise(positions, generator.uniform(*_EXPIRATION_MM), generator)
    back = _to_the_back(lungs != 0)[None, :, None] - np.float32(0.5)
    lift = np.clip(1 + varies + np.float32(generator.uniform(*_DEPENDENT)) * back, 0, 2)
    return np.asarray(np.float32(generator.uniform(*_EXPIRATION_HU)) * lift, dtype=np.float32)


def _emphysema(masks: Masks, lungs: NDArray[np.uint8], positions: Any, generator: np.random.Generator) -> Field:
    """Loss of density, HU, none in lesions."""
    from scipy import ndimage

    loss = np.full(lungs.shape, generator.uniform(*_INFLATION_HU), dtype=np.float32)
    kinds = [(_THIN_MM, _THIN, _THIN_HU)]
    if generator.random() < _HAS_HOLES:
        kinds.append((_HOLE_MM, _HOLES, _HOLE_HU))
    for size, share, depth in kinds:
        noise = smooth_noise(positions, generator.uniform(*size), generator)
        onset = np.quantile(noise, 1 - generator.uniform(*share))
        loss += np.float32(generator.uniform(*depth)) * _soft(noise - np.float32(onset), generator.uniform(*_BORDER))
    near = (0.0, *(_SPARED_MM / 2 / _step(axis) for axis in positions[1:]))
    spared = np.maximum(ndimage.gaussian_filter(masks.astype(np.float32), near), masks)
    return np.asarray(loss * (1 - spared), dtype=np.float32)


def smooth_noise(positions: Any, scale: float, generator: np.random.Generator) -> Field:
    """Noise of unit standard deviation that is smooth over a distance: cubic B-splines on a grid of random numbers.

    Args:
        positions: of planes, rows and columns, mm.
        scale: distance of the grid's nodes, mm.
        generator: draws the nodes.

    Returns:
        float32 (planes, rows, columns).
    """
    bases = [_spline_basis(np.asarray(axis, dtype=np.float64) / scale) for axis in positions]
    field = generator.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    for axis, basis in enumerate(bases):
        field = np.moveaxis(np.tensordot(basis, field, axes=(1, axis)), 0, axis)
    # sum of squared weights of the nodes, mean over the cell: (151 / 315) per axis
    return np.asarray(field * np.float32((315 / 151) ** 1.5), dtype=np.float32)


def _spline_basis(places: NDArray[np.float64]) -> Field:
    """Weights (n, nodes) of a uniform cubic B-spline's nodes at some places, in nodes."""
    cell = np.floor(places - places.min()).astype(np.intp)
    t = (places - places.min()) - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    basis = np.zeros((len(places), cell.max() + 4), dtype=np.float32)
    for node in range(4):
        basis[np.arange(len(places)), cell + node] = weights[:, node]
    return basis


def _soft(distance: Field, width: float) -> Field:
    """A step from 0 to 1 of a width, by half at 0."""
    return np.asarray(1 / (1 + np.exp(-np.clip(distance / np.float32(width), -30, 30))), dtype=np.float32)


def _step(positions: NDArray[np.floating[Any]]) -> float:
    return float(abs(positions[1] - positions[0])) if len(positions) > 1 else 1.0
