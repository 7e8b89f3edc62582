"""The pictures of a report's page."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...imaging import Volume
from .. import zones
from ..catalog import catalog, key_of
from ..longitudinal import NEW, PERSISTING, RESOLVED
from ..quantification import Entries
from . import _html as html
from . import charts, pictures

if TYPE_CHECKING:
    from .document import Report

PICTURED_LESIONS = 4
# from the top of the right lung to the bottom of the left one
ZONES_SHOWN = tuple(f"{side}_{level}_zone" for side in zones.SIDES for level in reversed(zones.LEVELS))


class ReportPictures:
    """The figures of a page, as markup; those that there is nothing to show for are empty.

    Raises:
        InputError: matplotlib is not installed.
    """

    def __init__(self, report: Report) -> None:
        volume, lesion = report.study[:2]
        mask = np.asarray(getattr(lesion, "array", lesion)) != 0
        lungs = report.lungs.array if report.lungs.status == "ok" else None

        reference = report.reference
        what = "Lesion outlined in yellow" + (", reference dashed in blue" if reference is not None else "")
        sheet = _sheet(volume, mask, lungs, reference)
        self.overlay = html.picture(sheet, f"{what}, on the planes that hold most of it.", "wide")
        self.lesions = self._lesions(volume, mask, lungs)
        self.histogram = self._histogram(volume, mask, report.threshold)
        self.zones = self._zones(report.quantities)
        self.change, self.change_chart = "", ""
        if report.comparison is not None:
            self.change = self._change(volume, report.comparison["map"], lungs)
            self.change_chart = self._change_chart(report.comparison)
        self.error = ""
        if reference is not None:
            png = pictures.error_map_picture(volume, mask, reference, lungs)
            self.error = html.picture(png, "Agreement on the slice that holds most of both masks.", "wide")

    @staticmethod
    def _lesions(volume: Volume, mask: NDArray[np.bool_], lungs: NDArray[Any] | None) -> str:
        found = pictures.lesion_pictures(volume, mask, lungs, PICTURED_LESIONS)
        return html.tag("div", "\n".join(html.picture(one.png, one.caption) for one in found), class_="pictures")

    @staticmethod
    def _histogram(volume: Volume, mask: NDArray[np.bool_], limit: float) -> str:
        if not mask.any():
            return ""
        png = charts.histogram_picture(volume.array[mask], volume.geometry.voxel_ml, {"consolidation from": limit})
        return html.picture(png, "HU of the lesion voxels; the outermost bins hold what lies beyond.", "chart")

    @staticmethod
    def _zones(quantities: Entries) -> str:
        values = {region_title(region): quantities[key_of("involvement", region)]["value"] for region in ZONES_SHOWN}
        if all(value is None for value in values.values()):
            return ""
        return html.picture(charts.zone_chart(values), "Share of each lung zone that is lesion.", "chart")

    @staticmethod
    def _change(volume: Volume, change_map: NDArray[np.uint8], lungs: NDArray[Any] | None) -> str:
        if not change_map.any():
            return ""
        now = (change_map == PERSISTING) | (change_map == NEW)
        before = (change_map == PERSISTING) | (change_map == RESOLVED)
        png = pictures.error_map_picture(volume, now, before, lungs, names=("persisting", "new", "resolved"))
        return html.picture(png, "Change on the slice of the later CT that holds most lesion of both times.", "wide")

    @staticmethod
    def _change_chart(comparison: Mapping[str, Any]) -> str:
        bars = {}
        for name in ("earlier", "later"):
            entries = comparison[name]
            bars[name] = {"Whole study": entries["lesion_volume"]["value"]} | {
                region_title(region): entries[key_of("lesion_volume", region)]["value"] for region in ZONES_SHOWN
            }
        png = charts.change_chart(bars["earlier"], bars["later"], "mL of lesion", ("earlier", "later"))
        return html.picture(png, "Lesion volume at both times.", "chart")


def region_title(region: str) -> str:
    """A region as words."""
    return catalog()["regions"][region]["title"]


def _sheet(
    volume: Volume, mask: NDArray[np.bool_], lungs: NDArray[Any] | None, reference: NDArray[np.bool_] | None
) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return pictures.overlay_sheet(volume, mask, Path(folder) / "sheet.png", lungs, reference).read_bytes()
