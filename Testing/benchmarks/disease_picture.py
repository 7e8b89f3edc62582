"""The picture of synthetic disease in docs/augmentation.md, painted on the synthetic chest: shared CTs are not shown.

python Testing/benchmarks/disease_picture.py docs/synthetic-disease.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from COVIDLesionSegLib.imaging import lung_box
from COVIDLesionSegLib.learning.augmentation import paint_disease
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest

SEEDS = (1, 4, 8, 13, 16, 21)


def main() -> None:
    """Draw some seeds: above the slice, below it the same slice with the outline of its mask."""
    chest = synthetic_chest(0)
    view = chest.volume.geometry.axial_view()
    hu, lungs, lesion = (view.apply(array) for array in (chest.volume.array, chest.lungs, chest.lesion))
    spacing = view.geometry.spacing_zyx
    areas = np.count_nonzero(lungs, axis=(1, 2))
    free = np.flatnonzero(~lesion.any(axis=(1, 2)) & (areas > 0.6 * areas.max()))
    rows, columns = lung_box(lungs > 0, 6)[1:]
    figure, axes = pyplot.subplots(2, len(SEEDS), figsize=(2.6 * len(SEEDS), 4.2))
    for number, (seed, column) in enumerate(zip(SEEDS, axes.T, strict=True)):
        plane = free[[number * len(free) // len(SEEDS)]]
        places = (plane, *(np.arange(side) for side in hu.shape[1:]))
        positions = tuple(place * step for place, step in zip(places, spacing, strict=True))
        painted, mask = paint_disease(hu[plane], lungs[plane], positions, np.random.default_rng(seed))
        for axis in column:
            axis.imshow(painted[0][rows, columns], cmap="gray", vmin=-1350, vmax=150)
            axis.set_axis_off()
        column[1].contour(mask[0][rows, columns], [0.5], colors="tab:red", linewidths=0.7)
    figure.tight_layout(pad=0.2)
    figure.savefig(Path(sys.argv[1]), dpi=70)


if __name__ == "__main__":
    main()
