"""What can be measured of the lesions without a reference: volumes, involvement, density, places, severity.

Definitions, units, codes, thresholds and their citations are data: ``Resources/Quantities.json``, explained in
docs/quantities.md. Nothing here is ever 0 because it could not be measured: such values are None and their status says
why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..imaging import LabelVolume, LocatedLungs, Volume
from ..imaging.masks import binary_mask, bounding_box
from . import zones
from .catalog import LUNGS_DOUBTFUL, catalog, consolidation_limit, entry, joint_status, key_of
from .lesions import Components, find_components

Entries = dict[str, dict[str, Any]]


def quantify(
    volume: Volume,
    lesion: NDArray[Any] | LabelVolume,
    lungs: NDArray[Any] | LabelVolume | LocatedLungs | zones.Lungs | None = None,
    lobes: NDArray[Any] | LabelVolume | zones.Lobes | None = None,
    *,
    lobe_map: str | Mapping[int, str] | None = None,
    consolidation_from: float | None = None,
) -> Entries:
    """Measure the lesions of one CT.

    Args:
        volume: the CT, HU.
        lesion: (z, y, x) on the CT's grid; any label is lesion.
        lungs: on the same grid, 1 right lung and 2 left lung with the lesions in them, or labels with such names; a
            mask with one label is divided into right and left where they can be told apart. None takes the lobes, if
            given. Lungs that come without a verdict are judged here, see :func:`~.imaging.assess_lungs`. What
            :meth:`.zones.Lungs.read` made of them saves the time where the same lungs are measured again.
        lobes: lobe labels on the same grid, e.g. lungmask's or TotalSegmentator's.
        lobe_map: which label value is which lobe, see :func:`.zones.lobe_values`; None finds out.
        consolidation_from: HU from which lesion counts as consolidation; None takes the catalog's.

    Returns:
        Key -> measurement. The key is the quantity's name for the whole study (``lesion_volume``) and name.region for
        lungs, zones and lobes (``involvement.right_upper_zone``). A measurement has name, region, value, unit (UCUM),
        status, title, definition and code. ``lesions`` has a list as value, largest first: index, volume_ml,
        share_percent, centroid_lps_mm (x, y, z), place (words), region, lobe and mean_hu of each. Whatever was computed
        from lungs that can't be trusted has the status ``lungs_doubtful``.

    Raises:
        GridMismatchError: a mask is on another grid.
        InputError: masks that are not masks, lung labels beyond 1 and 2, a lobe map that is not known, a
            ``consolidation_from`` that is not finite.
    """
    threshold = consolidation_limit(consolidation_from)
    view = volume.geometry.axial_view()
    mask = view.apply(binary_mask(lesion, volume.geometry, "lesion mask"))
    lobes_read = None if lobes is None else zones.Lobes.read(lobes, volume, lobe_map)
    lungs_read = zones.Lungs.read(lungs, lobes_read, volume)

    box = bounding_box(mask)
    inside = np.ascontiguousarray(mask[box])
    components = find_components(inside)
    found = _Lesion(
        components,
        view.apply(volume.array)[box][inside].astype(np.float64),
        lungs_read.zone_of(view, box, inside) if lungs_read.status == "ok" else None,
        None if lobes_read is None else lobes_read.lobe_of(view, box, inside),
    )
    centers = components.centroids() + np.array([side.start for side in box])
    lps = (view.geometry.ijk_to_lps @ np.column_stack([centers[:, ::-1], np.ones(len(centers))]).T)[:3].T

    report = _Measurements(volume.geometry.voxel_ml, threshold)
    parts = _parts(found, lungs_read, lobes_read)
    outside = None if found.zone is None else len(found.hu) - parts["whole"].count
    report.add("lesion_volume", report.ml(len(found.hu)))
    report.add("lesion_count", components.count)
    report.add("lesion_outside_lungs", report.ml(outside), _outside_status(parts["whole"].status))
    for region, part in parts.items():
        report.volumes(region, part)
        if region == "whole":
            report.density(region, found.hu, "ok")
        elif region in zones.LUNG_REGIONS:
            report.density(region, None if part.voxels is None else found.hu[part.voxels], part.status)
    report.scores(zones.ZONE_REGIONS, "zone_score", "severity_by_zones", "zones", parts["whole"].status)
    if lobes_read is None:
        report.add("severity_by_lobes", None, "lobes_missing")
    else:
        report.scores(zones.LOBE_REGIONS, "lobe_score", "severity_by_lobes", "lobes")
    places = LUNGS_DOUBTFUL if lungs_read.is_doubtful else "ok"
    report.add("lesions", _list(found, lps, volume.geometry.voxel_ml), places)
    return report.entries


def severity_score(involvement: float | None, lesion_ml: float | None, scale: str) -> int | None:
    """CT severity score of one zone or lobe: how much of it is involved, in steps.

    Args:
        involvement: % of it that is lesion; None where it is not known.
        lesion_ml: lesion in it, mL; too little counts as none, so that a stray voxel adds no point.
        scale: "zones" (0 to 4; Zhou et al. 2020) or "lobes" (0 to 5; Pan et al. 2020); the steps are data in
            ``Resources/Quantities.json``.

    Returns:
        The score, 0 only where there is no lesion or less than the catalog's least volume; None for None.
    """
    if involvement is None or lesion_ml is None:
        return None
    data = catalog()["severity"]
    # volumes are sums of binary fractions: exactly the least volume counts
    if involvement <= 0 or lesion_ml < data["least_scored_ml"] * (1 - 1e-9):
        return 0
    for step in data[scale]["steps"]:
        below = "below" in step and involvement < step["below"]
        up_to = "up_to" in step and involvement <= step["up_to"]
        if below or up_to or not step.keys() & {"below", "up_to"}:
            return step["score"]
    raise ValueError(f"the steps of {scale!r} have no last one")


@dataclass(frozen=True)
class _Lesion:
    """The lesion's voxels, in the order of ``array[mask]`` of the axial view.

    ``zone`` counts :data:`zones.ZONE_REGIONS`, ``lobe`` :data:`zones.LOBE_REGIONS`: -1 outside of them; zone is
    :data:`zones.SOMEWHERE` in lungs whose sides are not known. They are None where there is no mask to tell.
    """

    components: Components
    hu: NDArray[np.float64]
    zone: NDArray[np.int64] | None
    lobe: NDArray[np.int64] | None


@dataclass(frozen=True)
class _Part:
    """A region: which lesion voxels lie in it, how many voxels it has; None where that is not known."""

    voxels: NDArray[np.bool_] | None
    size: int | None
    status: str

    @property
    def count(self) -> int:
        return 0 if self.voxels is None else int(np.count_nonzero(self.voxels))


def _parts(found: _Lesion, lungs: zones.Lungs, lobes: zones.Lobes | None) -> dict[str, _Part]:
    parts = {}
    for region, (size, status) in lungs.sizes().items():
        here = None if found.zone is None or size is None else zones.inside(found.zone, region)
        parts[region] = _Part(here, size, status)
    whole = parts["whole"]
    limit = catalog()["outside"]["share"] * len(found.hu)
    if whole.voxels is not None and len(found.hu) - whole.count > limit:
        parts["whole"] = _Part(whole.voxels, whole.size, "lesion_outside_lungs")
    for region, size in (lobes.sizes() if lobes else {}).items():
        here = found.lobe == zones.LOBE_REGIONS.index(region) if found.lobe is not None and size else None
        parts[region] = _Part(here, size or None, "ok" if size else "region_empty")
    for region, part in parts.items():
        judged = lobes if region in zones.LOBE_REGIONS else lungs
        if part.size is not None and judged is not None and judged.is_doubtful:
            parts[region] = replace(part, status=LUNGS_DOUBTFUL)
    return parts


def _outside_status(whole: str) -> str:
    return "ok" if whole == "lungs_cut" else whole


class _Measurements:
    """Turns counts of voxels into entries."""

    def __init__(self, voxel_ml: float, threshold: float) -> None:
        self._voxel_ml = voxel_ml
        self._threshold = threshold
        self.entries: Entries = {}

    def ml(self, voxels: int | None) -> float | None:
        return None if voxels is None else voxels * self._voxel_ml

    def add(self, name: str, value: Any, status: str = "ok", region: str = "whole") -> None:
        self.entries[key_of(name, region)] = entry(name, value, status, region, consolidation_from=self._threshold)

    def volumes(self, region: str, part: _Part) -> None:
        known = part.voxels is not None and part.size is not None
        lesion, size = (part.count, part.size) if known else (None, None)
        free = size - lesion if size is not None and lesion is not None else None
        if region != "whole":
            self.add("lesion_volume", self.ml(lesion), part.status, region)
        self.add("lung_volume", self.ml(size), part.status, region)
        self.add("lesion_free_lung_volume", self.ml(free), part.status, region)
        self.add("involvement", 100.0 * lesion / size if size and lesion is not None else None, part.status, region)
        ratio = 100.0 * lesion / free if free and lesion is not None else None
        status = "no_lesion_free_lung" if free == 0 else part.status
        self.add("lesion_to_lesion_free_lung", ratio, status, region)

    def density(self, region: str, hu: NDArray[np.float64] | None, status: str) -> None:
        dense = None if hu is None else int(np.count_nonzero(hu >= self._threshold))
        light = None if hu is None or dense is None else len(hu) - dense
        self.add("ground_glass_volume", self.ml(light), status, region)
        self.add("consolidation_volume", self.ml(dense), status, region)
        if hu is not None and not len(hu):
            # the volume of nothing is 0 mL, but its mean and shares are not known
            hu, status = None, "lesion_empty"
        share = None if hu is None or dense is None else 100.0 * dense / len(hu)
        self.add("ground_glass_share", None if share is None else 100.0 - share, status, region)
        self.add("consolidation_share", share, status, region)
        self.add("mean_hu", None if hu is None else float(hu.mean()), status, region)
        self.add("sd_hu", None if hu is None else float(hu.std()), status, region)

    def scores(self, regions: tuple[str, ...], name: str, total: str, scale: str, whole: str = "ok") -> None:
        """Scores of the regions and their sum, which also carries what is to be said of the whole."""
        values: list[int | None] = []
        statuses = []
        for region in regions:
            involvement = self.entries[key_of("involvement", region)]
            lesion = self.entries[key_of("lesion_volume", region)]
            values.append(severity_score(involvement["value"], lesion["value"], scale))
            statuses.append(involvement["status"])
            self.add(name, values[-1], statuses[-1], region)
        # what makes the sum unknown is said before what is merely odd
        missing = [status for value, status in zip(values, statuses, strict=True) if value is None]
        # a part of the sum would look like less disease
        known = None if missing else sum(value for value in values if value is not None)
        self.add(total, known, joint_status([*missing, *statuses, whole]))


def _list(found: _Lesion, lps: NDArray[np.float64], voxel_ml: float) -> list[dict[str, Any]]:
    components = found.components
    if not components.count:
        return []
    label = components.voxel_labels
    regions = _winners(label, found.zone, zones.ZONE_REGIONS, components.count)
    lobes = _winners(label, found.lobe, zones.LOBE_REGIONS, components.count)
    means = np.bincount(label, found.hu, components.count) / components.sizes
    shares = 100.0 * components.sizes / components.sizes.sum()
    return [
        {
            "index": number + 1,
            "volume_ml": float(components.sizes[number] * voxel_ml),
            "share_percent": float(shares[number]),
            "centroid_lps_mm": [float(value) for value in lps[number]],
            "place": zones.place(regions[number], lobes[number]),
            "region": regions[number],
            "lobe": lobes[number],
            "mean_hu": float(means[number]),
        }
        for number in range(components.count)
    ]


def _winners(
    label: NDArray[np.int64], voxels: NDArray[np.int64] | None, regions: tuple[str, ...], count: int
) -> list[str | None]:
    """The region that holds most voxels of each component: "outside" where most lie in none, None if not known."""
    if voxels is None or (voxels == zones.SOMEWHERE).any():
        return [None] * count
    width = len(regions) + 1
    table = np.bincount(label * width + voxels + 1, minlength=count * width).reshape(count, width)
    return [("outside", *regions)[best] for best in table.argmax(axis=1)]
