"""Make the pictures in ``Resources/Icons`` that are made from something else.

The icon's PNG comes from its SVG, the thumbnail of the sample data from the synthetic chest itself::

    python Testing/tools/draw_icons.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtGui import QGuiApplication, QImage, QPainter
from PySide6.QtSvg import QSvgRenderer

from COVIDLesionSegLib.imaging import apply_window
from COVIDLesionSegLib.phantom.synthetic import Phantom, synthetic_chest
from COVIDLesionSegLib.resources import resource

ICON_SIZE = 128
THUMBNAIL_SIZE = (192, 144)


def icon(svg: Path, png: Path) -> None:
    """Paint an SVG into a square PNG."""
    image = QImage(ICON_SIZE, ICON_SIZE, QImage.Format.Format_ARGB32)
    image.fill(0)
    painter = QPainter(image)
    QSvgRenderer(str(svg)).render(painter)
    painter.end()
    if not image.save(str(png)):
        raise OSError(f"{png} could not be written")


def thumbnail(chest: Phantom, png: Path) -> None:
    """The axial slice with the most lesion, in the lung window."""
    view = chest.volume.geometry.axial_view()
    k = int(view.apply(chest.lesion).sum(axis=(1, 2)).argmax())
    gray = (255 * apply_window(view.apply(chest.volume.array)[k], 1500, -650)).astype(np.uint8)
    width, height = THUMBNAIL_SIZE
    rows = np.linspace(0, gray.shape[0] - 1, height).round().astype(int)
    columns = np.linspace(0, gray.shape[1] - 1, width).round().astype(int)
    pixels = np.ascontiguousarray(gray[np.ix_(rows, columns)])
    image = QImage(pixels.data, width, height, width, QImage.Format.Format_Grayscale8)
    if not image.save(str(png)):
        raise OSError(f"{png} could not be written")


if __name__ == "__main__":
    application = QGuiApplication([])
    icon(resource("Icons/COVIDLesionSeg.svg"), resource("Icons/COVIDLesionSeg.png"))
    thumbnail(synthetic_chest(), resource("Icons/SyntheticChest.png"))
