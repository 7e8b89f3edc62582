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


def normalize(picture: NDArray[np.uint8], lung: float, tissue: float) -> NDArray[np.uint8]:
    """Stretch a picture so that aerated lung and soft tissue have the same gray in every picture.

    Their grays are the two peaks of the histogram, one on each side of Otsu's threshold. Percentiles would not do: how
    much of a picture is trachea, lung or bone differs, and with them healthy lung takes the gray of a lesion in
    another window. Black and white do not count as peaks unless there is nothing else, for they are also what lies
    outside of the window and of the scanner's field of view.

    Args:
        picture: (H, W), 0 ... 255.
        lung: what the peak below the threshold becomes.
        tissue: what the peak above it becomes.

    Returns:
        (H, W), 0 ... 255.
    """
    dark, bright = _peaks(picture)
    stretched = (picture.astype(np.float64) - dark) / max(bright - dark, 1) * (tissue - lung) + lung
    return np.clip(np.rint(stretched), 0, 255).astype(np.uint8)


def _peaks(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """The most frequent gray below Otsu's threshold and that above it."""
    import SimpleITK as sitk
    from scipy import ndimage

    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(sitk.GetImageFromArray(picture))
    split = int(otsu.GetThreshold()) + 1
    counts = np.bincount(picture.ravel(), minlength=256).astype(np.float64)
    counts[[0, 255]] = 0
    smooth = ndimage.gaussian_filter1d(counts, _SMOOTHING, mode="constant")
    dark = int(smooth[:split].argmax()) if counts[:split].any() else 0
    bright = split + int(smooth[split:].argmax()) if counts[split:].any() else 255
    return dark, bright


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
