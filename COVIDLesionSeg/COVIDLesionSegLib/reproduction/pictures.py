"""Pictures of slices brought to one scale of gray: public sets mix windows, and a network takes one for a lesion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_path
from ..learning.data import TrainingCase
from ..learning.store import read_picture

# Standard deviation of the smoothing of a histogram, in gray values: peaks stay apart, and single values that JPEG or a
# stretched window prefers do not count as peaks.
_SMOOTHING = 4.0
# A peak below the threshold counts from this share of the highest one on: ground-glass opacity can fill more of a
# picture than the aerated lung beside it, which is darker.
_LEAST_PEAK = 0.3


def normalize(picture: NDArray[np.uint8], lung: float, tissue: float) -> NDArray[np.uint8]:
    """Stretch a picture so that aerated lung and soft tissue have the same gray in every picture.

    Their grays are two peaks of the histogram: the darkest below Otsu's threshold and the highest above it. Percentiles
    would not do: how much of a picture is trachea, lung or bone differs, and with them healthy lung takes the gray of a
    lesion in another window. Black and white do not count as peaks unless there is nothing else, for they are also what
    lies outside of the window and of the scanner's field of view.

    Args:
        picture: (H, W), 0 ... 255.
        lung: what the darkest peak below the threshold becomes.
        tissue: what the highest peak above it becomes.

    Returns:
        (H, W), 0 ... 255.
    """
    dark, bright = _peaks(picture)
    stretched = (picture.astype(np.float64) - dark) / max(bright - dark, 1) * (tissue - lung) + lung
    return np.clip(np.rint(stretched), 0, 255).astype(np.uint8)


def _peaks(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """The gray of the darkest peak below Otsu's threshold, and that of the highest above it."""
    import SimpleITK as sitk
    from scipy import ndimage

    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(sitk.GetImageFromArray(picture))
    split = int(otsu.GetThreshold()) + 1
    counts = np.bincount(picture.ravel(), minlength=256).astype(np.float64)
    counts[[0, 255]] = 0
    smooth = ndimage.gaussian_filter1d(counts, _SMOOTHING, mode="constant")
    dark = _darkest_peak(smooth[:split]) if counts[:split].any() else 0
    bright = split + int(smooth[split:].argmax()) if counts[split:].any() else 255
    return dark, bright


def _darkest_peak(frequency: NDArray[np.float64]) -> int:
    """The first peak of a smooth histogram that is high enough; at its ends only the highest value of all is one."""
    rising, falling = frequency[1:-1] >= frequency[:-2], frequency[1:-1] > frequency[2:]
    high = frequency[1:-1] >= _LEAST_PEAK * frequency.max()
    peaks = np.flatnonzero(rising & falling & high) + 1
    return int(min(peaks.min(initial=len(frequency)), frequency.argmax()))


def normalized_cases(
    cases: Sequence[TrainingCase],
    grays: Sequence[float],
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[TrainingCase, ...]:
    """The cases with pictures that were normalized; those are written once.

    Args:
        cases: of pictures.
        grays: of lung and of soft tissue, see :func:`normalize`.
        folder: gets ``<id>.png``.
        progress: called as progress("normalizing pictures", done, total).
    """
    import SimpleITK as sitk

    found = []
    for number, case in enumerate(cases):
        path = folder / f"{case.id}.png"
        if not path.exists() or path.stat().st_mtime < case.image.stat().st_mtime:
            with atomic_path(path) as temporary:
                picture = normalize(read_picture(case.image), grays[0], grays[1])
                sitk.WriteImage(sitk.GetImageFromArray(picture), str(temporary))
        found.append(replace(case, image=path))
        if progress is not None:
            progress("normalizing pictures", number + 1, len(cases))
    return tuple(found)
