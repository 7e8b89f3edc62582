"""Pictures of a CT with its lesions: the overview sheet, the largest lesions, the error map.

All of them show the axial view nearest to the image's own grid (axes permuted and flipped, nothing resampled) in the
radiological convention: the patient's right is on the left of axial and coronal pictures, anterior is on the left of
sagittal ones. Outlines are the voxel masks' own borders. A picture carries no text but what the caller passes as a
title and what is measured here, so no patient data gets in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...files import atomic_path
from ...imaging import Volume, apply_window
from ...imaging.masks import Box, Mask, bounding_box
from ..lesions import find_components
from . import _figure as style

# Letters at the left, right, top and bottom of a picture.
_LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
# Letters of the position's sign: towards superior, posterior and left the LPS coordinate grows.
_SIGNS = {"axial": "SI", "coronal": "PA", "sagittal": "LR"}
AXES = {"axial": 0, "coronal": 1, "sagittal": 2}
# Chest wall that is shown around the lungs.
_CHEST_MM = 30.0


@dataclass(frozen=True)
class LesionPicture:
    """One lesion's picture.

    Attributes:
        png: the picture's bytes.
        caption: one line: rank, milliliters, side, slice.
        volume_ml: the lesion's volume, mL.
    """

    png: bytes
    caption: str
    volume_ml: float


def overlay_sheet(
    volume: Volume,
    lesion: NDArray[Any],
    path: Path | str,
    lungs: NDArray[Any] | None = None,
    reference: NDArray[Any] | None = None,
    title: str = "",
) -> Path:
    """Write the overview picture: the axial, coronal and sagittal planes that hold most lesion, with outlines.

    Args:
        volume: the CT.
        lesion: the segmentation, bool or 0 / 1, (z, y, x) on the volume's grid.
        path: the PNG to make.
        lungs: lung mask on the same grid (any non-zero); it also limits the pictures to the chest.
        reference: a second segmentation to compare with, same grid.
        title: a line above the pictures, free of patient data.

    Returns:
        The path of the PNG.

    Raises:
        GridMismatchError: a mask has another shape than the volume.
        InputError: matplotlib is not installed.
        OutputError: the file can't be written.
    """
    view = View(volume, lungs=lungs, reference=reference, lesion=lesion)
    wanted = view.masks["lesion"]
    if not wanted.any():
        wanted = view.masks.get("reference", wanted)
    if not wanted.any():
        wanted = view.masks.get("lungs", wanted)
    axial, coronal, sagittal = (view.plane(name, view.richest(wanted, name)) for name in AXES)

    # pixels: the axial plane takes the width, the other two share it at one scale; each has its caption above
    width, gap, header, caption = 1080, 12, 92 if title else 50, 40
    upper = (width - 2 * gap) / axial.width
    lower = (width - 3 * gap) / (coronal.width + sagittal.width)
    second_row = header + caption + axial.height * upper
    height = round(second_row + caption + coronal.height * lower + 44)
    figure = style.new_figure(width, height)

    def write(text: str, left: float, middle: float, size: int, color: str = style.TEXT) -> None:
        figure.text(left / width, 1 - middle / height, text, color=color, fontsize=size, va="center")

    for plane, left, top, scale in (
        (axial, gap, header, upper),
        (coronal, gap, second_row, lower),
        (sagittal, 2 * gap + coronal.width * lower, second_row, lower),
    ):
        write(plane.label, left, top + caption / 2, style.SMALL, style.MUTED)
        size = (plane.width * scale / width, plane.height * scale / height)
        draw(figure.add_axes((left / width, 1 - (top + caption) / height - size[1], *size)), plane)
    if title:
        write(title, gap, 30, style.LARGE)
    _legend(figure, view, (gap / width, 1 - (header - 20) / height))
    write("Window 1500 / -650 HU. Research use only.", gap, height - 20, style.SMALL - 2, style.MUTED)
    target = Path(path)
    with atomic_path(target) as temporary:
        temporary.write_bytes(style.png_bytes(figure))
    return target


def lesion_pictures(
    volume: Volume, lesion: NDArray[Any], lungs: NDArray[Any] | None = None, count: int = 4
) -> list[LesionPicture]:
    """One axial picture of each of the largest lesions, where its area is largest.

    Args:
        volume: the CT.
        lesion: the segmentation (z, y, x) on the volume's grid; its 26-connected components are the lesions.
        lungs: lungs on the same grid, 1 right and 2 left, which name the side; or both with one label.
        count: how many pictures at most.

    Returns:
        Pictures, largest lesion first; empty where there is no lesion.

    Raises:
        GridMismatchError: a mask has another shape than the volume.
        InputError: matplotlib is not installed.
    """
    view = View(volume, lungs=lungs, lesion=lesion)
    sides = None if lungs is None else volume.geometry.axial_view().apply(np.asarray(lungs))
    if sides is not None and not (sides == 2).any():
        sides = None  # one label for both lungs says nothing about the side
    found = find_components(view.masks["lesion"])
    labels, boxes = found.image(view.masks["lesion"]), found.boxes()
    pictures = []
    for rank, here in enumerate(boxes[:count], start=1):
        part = labels[here] == rank
        index = here[0].start + int(part.sum(axis=(1, 2)).argmax())
        volume_ml = float(found.sizes[rank - 1]) * volume.geometry.voxel_ml
        words = [f"{rank}: {volume_ml:.1f} mL"]
        side = _side(sides[here][part]) if sides is not None else ""
        if side:
            words.append(side)
        plane = view.plane("axial", index, _square(here, 40.0, 140.0, view))
        width, header = 640, 64
        height = round(header + width * plane.height / plane.width)
        figure = style.new_figure(width, height)
        axes = figure.add_axes((0, 0, 1, 1 - header / height))
        draw(axes, plane)
        middle = 1 - header / 2 / height
        figure.text(12 / width, middle, ", ".join(words), color=style.TEXT, fontsize=style.LARGE, va="center")
        figure.text(
            1 - 12 / width, middle, plane.label, color=style.MUTED, fontsize=style.SMALL, va="center", ha="right"
        )
        caption = ", ".join([*words, plane.label])
        pictures.append(LesionPicture(style.png_bytes(figure), caption, volume_ml))
    return pictures


def error_map_picture(
    volume: Volume,
    prediction: NDArray[Any],
    reference: NDArray[Any],
    lungs: NDArray[Any] | None = None,
    index: int | None = None,
    names: tuple[str, str, str] = ("true positive", "false positive", "false negative"),
) -> bytes:
    """Where a segmentation and its reference agree and differ, on one axial slice.

    Args:
        volume: the CT.
        prediction: (z, y, x) on the volume's grid.
        reference: (z, y, x) on the volume's grid.
        lungs: lungs on the same grid; they limit the picture to the chest.
        index: slice of the axial view, counted from the feet; None takes the one with most of both masks.
        names: what to call what is in both, in the prediction only, and in the reference only.

    Returns:
        PNG: true positive green, false positive orange, false negative blue.

    Raises:
        GridMismatchError: a mask has another shape than the volume.
        InputError: the slice does not exist, or matplotlib is not installed.
    """
    view = View(volume, lungs=lungs, prediction=prediction, reference=reference)
    predicted, expected = view.masks.pop("prediction"), view.masks.pop("reference")
    if index is None:
        index = view.richest(predicted | expected, "axial")
    if not 0 <= index < view.array.shape[0]:
        raise InputError(f"Slice {index} does not exist; the volume has slices 0 to {view.array.shape[0] - 1}.")
    plane = view.plane("axial", index)
    ml = volume.geometry.voxel_ml
    parts = [
        (names[0], style.TRUE_POSITIVE, predicted & expected),
        (names[1], style.FALSE_POSITIVE, predicted & ~expected),
        (names[2], style.FALSE_NEGATIVE, ~predicted & expected),
    ]
    width, header = 1080, 104
    height = round(header + width * plane.height / plane.width)
    figure = style.new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1 - header / height))
    from matplotlib.colors import to_rgba

    colored = np.zeros((*plane.gray.shape, 4), np.float32)
    for _, color, mask in parts:
        colored[mask[index]] = to_rgba(color, 0.55)
    draw(axes, plane)
    axes.imshow(colored, extent=extent(plane), interpolation="nearest", zorder=1.5)
    show_field(axes, plane)
    for position, (name, color, mask) in enumerate(parts):
        left = 0.012 + 0.33 * position
        middle = 1 - 34 / height
        figure.text(left, middle, "\N{BLACK SQUARE}", color=color, fontsize=style.LARGE, va="center")
        figure.text(
            left + 0.025,
            middle,
            f"{name} {mask.sum() * ml:.1f} mL",
            color=style.TEXT,
            fontsize=style.SMALL,
            va="center",
        )
    figure.text(0.012, 1 - 80 / height, plane.label, color=style.MUTED, fontsize=style.SMALL, va="center")
    return style.png_bytes(figure)


def _legend(figure: Any, view: View, corner: tuple[float, float]) -> None:
    from matplotlib.lines import Line2D

    ml = view.geometry.voxel_ml
    handles = []
    for name, color, line in (
        ("lesion", style.LESION, "solid"),
        ("reference", style.REFERENCE, "dashed"),
        ("lungs", style.LUNGS, "dotted"),
    ):
        if name in view.masks:
            label = f"{name} {view.masks[name].sum() * ml:,.0f} mL".replace(",", " ")
            handles.append(Line2D([], [], color=color, linestyle=line, linewidth=3, label=label))
    figure.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=corner,
        ncols=len(handles),
        frameon=False,
        labelcolor=style.TEXT,
        fontsize=style.SMALL,
        handlelength=1.6,
        borderpad=0,
        borderaxespad=0,
    )


def _square(here: tuple[slice, ...], margin: float, least: float, view: View) -> Box:
    """A box (z, y, x) around one lesion, square in the axial plane and at least ``least`` mm wide."""
    spacing = view.geometry.spacing_zyx
    side = max(least, *((here[a].stop - here[a].start) * spacing[a] + margin for a in (1, 2)))
    box = [here[0]]
    for axis in (1, 2):
        n = view.array.shape[axis]
        wide = min(n, int(np.ceil(side / spacing[axis])))
        start = (here[axis].start + here[axis].stop - wide) // 2
        start = min(max(start, 0), n - wide)
        box.append(slice(start, start + wide))
    return box[0], box[1], box[2]


def _side(labels: NDArray[Any]) -> str:
    right, left = int((labels == 1).sum()), int((labels == 2).sum())
    if not right and not left:
        return ""
    return "right lung" if right >= left else "left lung"


# Planes cut from the axial view


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
        z, y, x = self.array.shape
        self.box: Box = slice(0, z), slice(0, y), slice(0, x)
        if "lungs" in self.masks and self.masks["lungs"].any():
            self.box = bounding_box(self.masks["lungs"], _CHEST_MM / np.array(self.geometry.spacing_zyx))

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


def extent(plane: Plane) -> tuple[float, float, float, float]:
    """Where the outer borders of the plane's corner voxels lie: left, right, bottom, top, mm."""
    rows, columns = plane.gray.shape
    dy, dx = plane.spacing
    return -0.5 * dx, (columns - 0.5) * dx, (rows - 0.5) * dy, -0.5 * dy
