"""What becomes a segment: lesions as one, by attenuation, or one by one; the lungs."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging import SegmentStyle, Volume, segment_style
from ..imaging.masks import Box, bounding_box
from ..measurement.catalog import consolidation_limit
from ..measurement.lesions import find_components

LesionView = Literal["lesion", "attenuation", "separate"]
LESION_VIEWS: tuple[LesionView, ...] = ("lesion", "attenuation", "separate")
# More segments than this can't be told apart, and every one costs the scene a node's worth of work.
MOST_SEPARATE_LESIONS = 30
_ATTENUATION: dict[str, tuple[str, Callable[[NDArray[Any], float], NDArray[Any]]]] = {
    "ground_glass_opacity": ("below {limit} HU", np.less),
    "consolidation": ("from {limit} HU", np.greater_equal),
}


@dataclass(frozen=True, eq=False)
class SegmentContent:
    """One segment to be.

    Attributes:
        id: segment ID that it wants.
        role: "lesion" or "lungs": segments of a role are replaced together.
        name: what users read.
        style: color and codes.
        box: where in the CT's array (z, y, x) the mask lies.
        mask: bool (z, y, x), the size of the box.
    """

    id: str
    role: str
    name: str
    style: SegmentStyle
    box: Box
    mask: NDArray[np.bool_]


def lesion_contents(
    mask: NDArray[np.bool_],
    view: LesionView,
    volume: Volume | None = None,
    consolidation_from: float | None = None,
) -> list[SegmentContent]:
    """Lesions as segments.

    Args:
        mask: bool (z, y, x).
        view: "lesion": one segment; "attenuation": ground-glass opacity and consolidation, told apart by HU inside the
            lesion; "separate": one segment for each of the largest 26-connected lesions, largest first, and one for
            the rest.
        volume: the CT, needed for "attenuation", and for the volumes in the names of "separate".
        consolidation_from: HU from which lesion counts as consolidation; None takes the catalog's.

    Raises:
        InputError: a view that is not known, or no CT where one is needed.
    """
    if view not in LESION_VIEWS:
        raise InputError(f"There is no view {view!r} of lesions; choose one of {', '.join(LESION_VIEWS)}.")
    if view == "lesion":
        style = segment_style("lesion")
        return [_content("lesion", "lesion", style.name, style, mask)]
    if volume is None:
        raise InputError(f'The CT is needed to show lesions as "{view}".')
    volume.geometry.require_shape(mask, "lesion mask")
    if view == "separate":
        return _separate(mask, volume.geometry.voxel_ml)
    return _by_attenuation(mask, volume, consolidation_from)


def view_of(identities: Iterable[str]) -> LesionView:
    """The view that segments with these IDs show lesions in."""
    known = set(identities)
    if known >= set(_ATTENUATION):
        return "attenuation"
    return "separate" if "lesion_1" in known else "lesion"


def split_by_attenuation(
    mask: NDArray[np.bool_], hu: NDArray[Any], consolidation_from: float | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Lesion as ground-glass opacity and consolidation: segment ID -> mask.

    Args:
        mask: bool (z, y, x).
        hu: of the same shape.
        consolidation_from: HU from which lesion counts as consolidation; None takes the catalog's.
    """
    limit = consolidation_limit(consolidation_from)
    return {identity: mask & belongs(hu, limit) for identity, (_words, belongs) in _ATTENUATION.items()}


def lung_contents(lungs: NDArray[Any]) -> list[SegmentContent]:
    """Lungs as segments.

    Args:
        lungs: (z, y, x), 1 right lung, 2 left lung. Without a 2, as in a bool mask, the sides are not known, and there
            is one segment of both.
    """
    if not (lungs == 2).any():
        return [_content("lungs", "lungs", "lungs", segment_style("lungs"), lungs != 0)]
    sides = [(segment_style("right_lung"), 1), (segment_style("left_lung"), 2)]
    return [_content(style.id, "lungs", style.name, style, lungs == label) for style, label in sides]


def _content(
    identity: str, role: str, name: str, style: SegmentStyle, mask: NDArray[np.bool_], within: Box | None = None
) -> SegmentContent:
    box = bounding_box(mask, least=1)
    placed = box if within is None else _shifted(box, within)
    return SegmentContent(identity, role, name, style, placed, np.ascontiguousarray(mask[box]))


def _shifted(box: Box, within: Box) -> Box:
    z, y, x = (slice(b.start + w.start, b.stop + w.start) for b, w in zip(box, within, strict=True))
    return z, y, x


def _by_attenuation(mask: NDArray[np.bool_], volume: Volume, limit: float | None) -> list[SegmentContent]:
    limit = consolidation_limit(limit)
    box = bounding_box(mask, least=1)
    inside, hu = mask[box], volume.array[box]
    contents = []
    for identity, part in split_by_attenuation(inside, hu, limit).items():
        style = segment_style(identity)
        words = _ATTENUATION[identity][0].format(limit=f"{limit:g}")
        contents.append(_content(identity, "lesion", f"{style.name} ({words})", style, part, box))
    return contents


def _separate(mask: NDArray[np.bool_], voxel_ml: float) -> list[SegmentContent]:
    style = segment_style("lesion")
    box = bounding_box(mask, least=1)
    inside = np.ascontiguousarray(mask[box])
    found = find_components(inside)
    if not found.count:
        return [_content("lesion_1", "lesion", "lesion 1 (none found)", style, mask)]
    labels = found.image(inside)
    bounds = found.boxes()
    contents = []
    for index in range(min(found.count, MOST_SEPARATE_LESIONS)):
        part = bounds[index]
        name = f"lesion {index + 1} ({_ml(found.sizes[index], voxel_ml)})"
        content = SegmentContent(
            f"lesion_{index + 1}", "lesion", name, _shaded(style, index), _shifted(part, box), labels[part] == index + 1
        )
        contents.append(content)
    if found.count > MOST_SEPARATE_LESIONS:
        rest = found.count - MOST_SEPARATE_LESIONS
        name = f"{rest} smaller lesions ({_ml(found.sizes[MOST_SEPARATE_LESIONS:].sum(), voxel_ml)})"
        smaller = labels > MOST_SEPARATE_LESIONS
        contents.append(_content("lesions_smaller", "lesion", name, style, smaller, box))
    return contents


def _shaded(style: SegmentStyle, index: int) -> SegmentStyle:
    """The style with a hue of its own, a golden ratio from the one before; the first keeps its color."""
    hue, saturation, value = colorsys.rgb_to_hsv(*style.color)
    color = colorsys.hsv_to_rgb((hue + 0.618034 * index) % 1.0, saturation, value)
    return SegmentStyle(
        style.id, style.name, color, style.category, style.type, style.modifier, style.region, style.context
    )


def _ml(voxels: int, voxel_ml: float) -> str:
    return f"{voxels * voxel_ml:.3g} mL"
