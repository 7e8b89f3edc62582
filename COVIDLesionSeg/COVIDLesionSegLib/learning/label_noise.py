"""Synthetic errors in lesion masks, for experiments on robustness to label noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .config import LabelNoiseSettings
from .randomness import Purpose, draw

KINDS = ("dilation", "erosion", "dropout", "shift")


def add_label_noise(mask: NDArray[np.uint8], settings: LabelNoiseSettings, case: int) -> tuple[NDArray[np.uint8], str]:
    """A lesion mask with errors such as annotators make.

    Each lesion (26-connected component) gets its own strength, drawn evenly up to twice the set one, so that errors are
    not one constant that a network could learn to undo.

    Args:
        mask: (z, y, x), 0 or 1.
        settings: kind, strength, share of cases and seed.
        case: the case's number, so that every case has its own errors.

    Returns:
        The mask with errors (the mask itself where this case is spared), and what was done, e.g. "dilation".
    """
    from scipy import ndimage

    generator = draw(settings.seed, Purpose.LABEL_NOISE, case)
    if settings.kind == "none" or generator.random() >= settings.share or not mask.any():
        return mask, "none"
    kind = KINDS[int(generator.integers(len(KINDS)))] if settings.kind == "mixed" else settings.kind
    # a mixed setting's strength is in pixels; as a share of vanishing lesions it is a tenth of it
    vanish = min(settings.strength / 10, 1.0) if settings.kind == "mixed" else settings.strength
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    noisy = np.zeros_like(mask)
    disk = ndimage.generate_binary_structure(2, 1)[None]
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        lesion = labels[box] == number
        pixels = round(generator.uniform(0, 2) * settings.strength)
        if kind == "dropout":
            if generator.random() >= vanish:
                noisy[box] |= lesion
            continue
        if kind == "shift":
            angle = generator.uniform(0, 2 * np.pi)
            z, y, x = np.nonzero(lesion)
            y = y + box[1].start + round(pixels * np.sin(angle))
            x = x + box[2].start + round(pixels * np.cos(angle))
            inside = (y >= 0) & (y < mask.shape[1]) & (x >= 0) & (x < mask.shape[2])
            noisy[z[inside] + box[0].start, y[inside], x[inside]] = 1
            continue
        if pixels == 0:
            noisy[box] |= lesion
            continue
        # in plane only: annotators draw slice by slice, and slices may be far apart
        padded = np.pad(lesion, ((0, 0), (pixels, pixels), (pixels, pixels)))
        change = ndimage.binary_dilation if kind == "dilation" else ndimage.binary_erosion
        padded = change(padded, disk, iterations=pixels)
        rows = slice(max(box[1].start - pixels, 0), min(box[1].stop + pixels, mask.shape[1]))
        columns = slice(max(box[2].start - pixels, 0), min(box[2].stop + pixels, mask.shape[2]))
        top, left = rows.start - (box[1].start - pixels), columns.start - (box[2].start - pixels)
        part = padded[:, top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]
        noisy[box[0], rows, columns] |= part
    return noisy, kind
