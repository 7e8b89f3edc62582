"""Planes cut from a CT and its masks, and how they are drawn.

A plane belongs to the axial view nearest to the image's own grid: axes permuted and flipped, nothing resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...imaging import Volume, apply_window
from . import _figure as style

Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]
# Letters at the left, right, top and bottom of a picture.
_LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
# Letters of the position's sign: towards superior, posterior and left the LPS coordinate grows.
_SIGNS = {"axial": "SI", "coronal": "PA", "sagittal": "LR"}
AXES = {"axial": 0, "coronal": 1, "sagittal": 2}


@dataclass(frozen=True)
class Plane:
    """One picture's plane: the CT as gray in [0, 1] and its masks, rows downward, columns to the right, in mm."""

    name: str
    gray: NDArray[np.float32]
    masks: dict[str, Mask]
    spacing: tuple[float, float]
    label: str
    field: tuple[float, float, float, float]  # left, right, bottom, top in mm of the plane

    @property
    def width(self) -> float:
        """Width of the field, mm."""
        return self.field[1] - self.field[0]

    @property
    def height(self) -> float:
        """Height of the field, mm."""
        return self.field[2] - self.field[3]


class View:
    """A volume and its masks as axial slices, from which planes are cut.

    Attributes:
        geometry: the axial view's grid.
        array: HU, (z, y, x).
        masks: name -> bool (z, y, x); "lungs", "reference" and "lesion" are outlined.
        box: what the pictures show: the lungs and a margin of chest wall, or everything where they are not known.

    Raises:
        GridMismatchError: a mask has another shape than the volume.
    """

    def __init__(self, volume: Volume, **masks: NDArray[Any] | None) -> None:
        view = volume.geometry.axial_view()
        for name, mask in masks.items():
            if mask is not None:
                volume.geometry.require_shape(mask, f"{name} mask")
        self.geometry = view.geometry
        self.array = view.apply(volume.array)
        self.masks: dict[str, Mask] = {
            name: view.apply(np.asarray(mask) != 0) for name, mask in masks.items() if mask is not None
        }
        lungs = self.masks.get("lungs")
        everything = (slice(0, self.array.shape[0]), slice(0, self.array.shape[1]), slice(0, self.array.shape[2]))
        chest = bounding_box(lungs, 30.0, self.geometry.spacing_zyx) if lungs is not None else None
        self.box: Box = chest or everything

    def richest(self, mask: Mask, name: str) -> int:
        """Index of the plane with most of the mask; the grid's middle where it is empty."""
        axis = AXES[name]
        counts = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        return int(counts.argmax()) if counts.any() else mask.shape[axis] // 2

    def plane(self, name: str, index: int, box: Box | None = None) -> Plane:
        """The plane ``index`` of an orientation, its field limited to a box (z, y, x) of the axial view."""
        axis = AXES[name]
        rows, columns = (a for a in range(3) if a != axis)
        spacing = self.geometry.spacing_zyx
        upside_down = rows == 0

        def cut(array: NDArray[Any]) -> NDArray[Any]:
            plane = array.take(index, axis=axis)
            return plane[::-1] if upside_down else plane

        box = box or self.box
        first, last = box[rows].start, box[rows].stop
        if upside_down:
            first, last = self.array.shape[0] - last, self.array.shape[0] - first
        field = (
            (box[columns].start - 0.5) * spacing[columns],
            (box[columns].stop - 0.5) * spacing[columns],
            (last - 0.5) * spacing[rows],
            (first - 0.5) * spacing[rows],
        )
        return Plane(
            name,
            apply_window(cut(self.array)),
            {key: cut(mask) for key, mask in self.masks.items()},
            (spacing[rows], spacing[columns]),
            self.position(name, index),
            field,
        )

    def position(self, name: str, index: int) -> str:
        """Orientation, slice number and place of a plane's center in the patient, e.g. "axial 57/120, S 12 mm"."""
        axis = AXES[name]
        center = [(n - 1) / 2 for n in self.array.shape]
        center[axis] = index
        place = (self.geometry.ijk_to_lps @ [*center[::-1], 1.0])[2 - axis]
        letter = _SIGNS[name][0 if place >= 0 else 1]
        return f"{name} {index + 1}/{self.array.shape[axis]}, {letter} {abs(place):.0f} mm"


def draw(axes: Any, plane: Plane) -> None:
    """Draw the CT, its outlines, letters, scale and position into axes whose shape is the plane's."""
    axes.set_facecolor(style.PANEL)
    axes.axis("off")
    axes.imshow(plane.gray, cmap="gray", vmin=0, vmax=1, extent=extent(plane), interpolation="bilinear")
    for name, color, width, line in (
        ("lungs", style.LUNGS, 1.3, "dotted"),
        ("reference", style.REFERENCE, 2.0, "dashed"),
        ("lesion", style.LESION, 1.8, "solid"),
    ):
        mask = plane.masks.get(name)
        if mask is not None and mask.any():
            # one voxel of background around, so that a mask at the border is closed
            padded = np.pad(mask.astype(np.float32), 1)
            rows = (np.arange(padded.shape[0]) - 1) * plane.spacing[0]
            columns = (np.arange(padded.shape[1]) - 1) * plane.spacing[1]
            axes.contour(columns, rows, padded, levels=[0.5], colors=[color], linewidths=width, linestyles=line)
    show_field(axes, plane)
    _annotate(axes, plane)


def show_field(axes: Any, plane: Plane) -> None:
    """Limit the axes to the plane's field (what was drawn into them may have moved them)."""
    axes.set_xlim(plane.field[0], plane.field[1])
    axes.set_ylim(plane.field[2], plane.field[3])
    axes.set_aspect("equal")


def _annotate(axes: Any, plane: Plane) -> None:
    text: dict[str, Any] = {
        "color": style.TEXT,
        "fontsize": style.LARGE,
        "path_effects": style.outlined(),
        "transform": axes.transAxes,
    }
    left, right, top, bottom = tuple(_LETTERS[plane.name])
    axes.text(0.015, 0.5, left, ha="left", va="center", **text)
    axes.text(0.985, 0.5, right, ha="right", va="center", **text)
    axes.text(0.5, 0.985, top, ha="center", va="top", **text)
    axes.text(0.5, 0.015, bottom, ha="center", va="bottom", **text)

    # the longest of these that takes at most a third of the picture
    length = max((mm for mm in (5, 10, 20, 50, 100) if mm <= plane.width / 3), default=5)
    end = plane.field[1] - 0.03 * plane.width
    height = plane.field[2] - 0.03 * plane.height
    tick = 0.012 * plane.height
    bar: dict[str, Any] = {"color": style.TEXT, "linewidth": 2.5, "path_effects": style.outlined(width=5)}
    axes.plot([end - length, end - length, end, end], [height - tick, height, height, height - tick], **bar)
    scale = f"{length // 10} cm" if length >= 10 else f"{length} mm"
    axes.text(
        end - length / 2,
        height - 1.2 * tick,
        scale,
        ha="center",
        va="bottom",
        **{**text, "fontsize": style.SMALL, "transform": axes.transData},
    )


def bounding_box(mask: Mask, margin_mm: float, spacing: Sequence[float]) -> Box | None:
    """Smallest box (z, y, x) around a mask plus a margin, inside the array; None where the mask is empty."""
    if not mask.any():
        return None
    box = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(margin_mm / spacing[axis]))
        box.append(slice(max(int(filled[0]) - margin, 0), min(int(filled[-1]) + 1 + margin, mask.shape[axis])))
    return box[0], box[1], box[2]


def extent(plane: Plane) -> tuple[float, float, float, float]:
    """Where the outer borders of the plane's corner voxels lie: left, right, bottom, top, mm."""
    rows, columns = plane.gray.shape
    dy, dx = plane.spacing
    return -0.5 * dx, (columns - 0.5) * dx, (rows - 0.5) * dy, -0.5 * dy
