"""What became of the lesions between two CTs of one patient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LungsNotFoundError, TwoPatientsError
from ..imaging import Geometry, LabelVolume, LocatedLungs, LungQuality, Volume
from ..imaging.masks import binary_mask, surface_points
from . import zones
from .catalog import catalog, consolidation_limit, entry, joint_status, key_of
from .lesions import Components, find_components
from .quantification import Entries, quantify
from .registration import Registration, identity, moved, register_lungs, same_image, unlike

# labels of the change map
PERSISTING, NEW, RESOLVED = 1, 2, 3
MAP_NAMES = {PERSISTING: "persisting lesion", NEW: "new lesion", RESOLVED: "resolved lesion"}
STATUSES = ("new", "grown", "stable", "shrunk", "resolved", "not_imaged")

# change of which quantity, and for which kinds of region
_DIFFERENCES = {
    "lesion_volume_change": "lesion_volume",
    "involvement_change": "involvement",
    "ground_glass_volume_change": "ground_glass_volume",
    "consolidation_volume_change": "consolidation_volume",
    "mean_hu_change": "mean_hu",
    "severity_by_zones_change": "severity_by_zones",
    "severity_by_lobes_change": "severity_by_lobes",
}
_PERCENTS = {"lesion_volume_change_percent": "lesion_volume", "lung_volume_change_percent": "lung_volume"}
# what is shown first of all changes, and of how many lesions did what
CHANGES = (
    "lesion_volume_change",
    "lesion_volume_change_percent",
    "involvement_change",
    "ground_glass_volume_change",
    "consolidation_volume_change",
    "severity_by_zones_change",
)
COUNTS = (
    "lesions_new",
    "lesions_grown",
    "lesions_stable",
    "lesions_shrunk",
    "lesions_resolved",
)


# LPS positions (mm, one row each) and labels of voxels
Surface = tuple[NDArray[np.float64], NDArray[np.int32]]


class TimePoint(NamedTuple):
    """One study: the CT, its lesion mask, its lungs (1 right, 2 left), and its lobes if there are any."""

    volume: Volume
    lesion: NDArray[Any] | LabelVolume
    lungs: NDArray[Any] | LabelVolume | LocatedLungs | zones.Lungs | None
    lobes: NDArray[Any] | LabelVolume | zones.Lobes | None = None

    def read(self, lobe_map: str | Mapping[int, str] | None = None) -> tuple[zones.Lungs, zones.Lobes | None]:
        """Lungs, judged if nobody has, and lobes; ``lobe_map`` as in :func:`.zones.lobe_values`."""
        lobes = None if self.lobes is None else zones.Lobes.read(self.lobes, self.volume, lobe_map)
        return zones.Lungs.read(self.lungs, lobes, self.volume), lobes


def compare_timepoints(
    earlier: TimePoint | tuple[Any, ...],
    later: TimePoint | tuple[Any, ...],
    registration: str = "rigid",
    *,
    lobe_map: str | Mapping[int, str] | None = None,
    consolidation_from: float | None = None,
    assume_same_patient: bool = False,
) -> dict[str, Any]:
    """Compare the lesions of two CTs of one patient.

    Volumes and percentages are measured on each CT by itself; registration only tells which lesions are the same and
    makes the map. All differences are later minus earlier: positive means more at the later time. Nothing in the
    images says which is earlier, so the order of the arguments does.

    Args:
        earlier: volume, lesion, lungs and, if there are any, lobes of the earlier study, each on the CT's grid.
        later: the same of the later study.
        registration: "rigid" or "affine".
        lobe_map: which label value of both lobe maps is which lobe, see :func:`.zones.lobe_values`; None finds out.
        consolidation_from: HU from which lesion counts as consolidation; None takes the catalog's.
        assume_same_patient: compare although the patient IDs or the chests differ as those of two people do; the
            result says so.

    Returns:
        ``changes``: key -> measurement, as :func:`.quantify` gives them, among them counts of new, resolved, grown,
        shrunk and stable lesions and the quality of the registration. ``earlier``, ``later``: what quantify gives.
        ``lesions``: groups of lesions that belong together, largest first, each with status, earlier_ml, later_ml,
        change_ml, change_percent, earlier_lesions and later_lesions (their indices in the lists of quantify) and place.
        ``lung_quality``: the verdicts on the lungs of ``earlier`` and ``later``. ``registration``: the
        :class:`.Registration` as plain values. ``same_patient``: ``assumed``, as it was asked for, and ``doubts``, a
        list of what speaks against it. ``map``: uint8 (z, y, x) on the later CT's grid, 1 persisting, 2 new, 3
        resolved. ``notes``: sentences on what to keep in mind.

    Raises:
        LungsNotFoundError: a study has no lungs.
        TwoPatientsError: studies that are hardly of one patient; the message says why.
        InputError: studies that can't be compared for another reason.
        GridMismatchError: a mask is not on its CT's grid.
    """
    threshold = consolidation_limit(consolidation_from)
    before, old_lungs, old_quality = _with_lungs(TimePoint(*earlier), "earlier", lobe_map)
    after, new_lungs, new_quality = _with_lungs(TimePoint(*later), "later", lobe_map)
    doubts: list[str] = []
    if same_image(before.volume, after.volume):
        found = identity(after.volume, old_lungs, new_lungs)
    else:
        ids = {before.volume.patient_id, after.volume.patient_id}
        if "" not in ids and len(ids) > 1:
            _doubt("the DICOM files name different patient IDs", doubts, assume_same_patient)
        found = register_lungs(before.volume, old_lungs, after.volume, new_lungs, registration)
        if reason := unlike(found):
            _doubt(reason, doubts, assume_same_patient)
    measured = [quantify(*study, consolidation_from=threshold) for study in (before, after)]
    qualities = {"earlier": old_quality, "later": new_quality}
    lesions, change_map, volumes = _match(before, after, measured, found)
    return {
        "changes": _changes(measured, lesions, volumes, found, threshold),
        "earlier": measured[0],
        "later": measured[1],
        "lesions": lesions,
        "lung_quality": {name: quality.to_json() for name, quality in qualities.items()},
        "registration": {
            "kind": found.kind,
            "later_to_earlier_lps": found.matrix.tolist(),
            "lung_dice": found.dice,
            "lung_surface_distance_mm": found.surface_distance_mm,
            "common_coverage_percent": found.coverage_percent,
            "correlation": found.correlation,
            "structure_correlation": found.structure,
            "rotation_deg": found.rotation_deg,
            "translation_mm": found.translation_mm,
            "volume_scale": found.volume_scale,
        },
        "same_patient": {"assumed": assume_same_patient, "doubts": doubts},
        "map": change_map,
        "notes": [
            *(f"Compared as CTs of one patient because that was asked for, although {doubt}." for doubt in doubts),
            *(f"{name.capitalize()} study: {one.line()}" for name, one in qualities.items() if one.is_doubtful),
            *_notes(measured, found),
        ],
    }


def _doubt(reason: str, doubts: list[str], assume_same_patient: bool) -> None:
    """Keep a reason to think of two patients, or refuse the comparison for it."""
    if not assume_same_patient:
        raise TwoPatientsError(
            f"The two studies are hardly of one patient: {reason}.",
            "If they are, compare them with --assume-same-patient (in Python assume_same_patient=True).",
        )
    doubts.append(reason)


def _with_lungs(
    study: TimePoint, name: str, lobe_map: str | Mapping[int, str] | None
) -> tuple[TimePoint, NDArray[np.bool_], LungQuality]:
    """The study with its masks read, so that nothing is read twice; its lungs, and the verdict on them."""
    lungs, lobes = study.read(lobe_map)
    if lungs.status != "ok" or lungs.quality is None:
        raise LungsNotFoundError(
            f"The {name} study has no lungs ({catalog()['statuses'][lungs.status]}); two time points are compared "
            "after registering the lungs, so both studies need them."
        )
    return study._replace(lungs=lungs, lobes=lobes), lungs.array != 0, lungs.quality


def _changes(
    measured: list[Entries],
    lesions: list[dict[str, Any]],
    volumes: dict[str, float],
    found: Registration,
    threshold: float,
) -> Entries:
    before, after = measured
    entries: Entries = {}

    def add(name: str, value: Any, status: str = "ok", region: str = "whole") -> None:
        entries[key_of(name, region)] = entry(name, value, status, region, consolidation_from=threshold)

    kinds = {region: data["kind"] for region, data in catalog()["regions"].items()}
    for name, of in (_DIFFERENCES | _PERCENTS).items():
        for region, kind in kinds.items():
            old, new = before.get(key_of(of, region)), after.get(key_of(of, region))
            wanted = catalog()["quantities"][name]["regions"]
            if kind not in wanted or old is None or new is None:
                continue
            unknown = next((one["status"] for one in (old, new) if one["value"] is None), "")
            odd = joint_status((old["status"], new["status"]))
            if unknown:
                add(name, None, unknown, region)
            elif name in _DIFFERENCES:
                add(name, new["value"] - old["value"], odd, region)
            elif old["value"]:
                add(name, 100.0 * (new["value"] - old["value"]) / old["value"], odd, region)
            else:
                add(name, None, "earlier_empty", region)
    for name, value in volumes.items():
        add(name, value)
    for status in STATUSES:
        add(f"lesions_{status}", sum(group["status"] == status for group in lesions))
    add("lung_dice", found.dice)
    add("lung_surface_distance", found.surface_distance_mm)
    add("common_coverage", found.coverage_percent)
    add("rotation", found.rotation_deg)
    add("translation", found.translation_mm)
    add("volume_scale", found.volume_scale)
    return entries


def _match(
    before: TimePoint, after: TimePoint, measured: list[Entries], found: Registration
) -> tuple[list[dict[str, Any]], NDArray[np.uint8], dict[str, float]]:
    """Which lesions belong together, the map of what changed, and the map's volumes."""
    geometry = after.volume.geometry
    old_lesions, old = _labeled(before)
    new_lesions, new = _labeled(after)
    arrived = _resampled(old, before.volume.geometry, geometry, found.matrix)
    change_map = np.zeros(new.shape, np.uint8)
    change_map[arrived != 0] = RESOLVED
    change_map[new != 0] = NEW
    change_map[(new != 0) & (arrived != 0)] = PERSISTING
    counts = np.bincount(change_map[change_map != 0], minlength=4)
    names = {PERSISTING: "persisting_volume", NEW: "new_volume", RESOLVED: "resolved_volume"}
    volumes = {names[label]: float(counts[label] * geometry.voxel_ml) for label in names}

    old_list, new_list = (measured[i]["lesions"]["value"] for i in (0, 1))
    points, owners = _surface(old, before.volume.geometry)
    links = _links((moved(np.linalg.inv(found.matrix), points), owners), arrived, new, geometry)
    groups = _groups(len(old_list), len(new_list), links)
    unseen_new = _unseen(new_lesions, geometry, before.volume.geometry, found.matrix)
    unseen_old = _unseen(old_lesions, before.volume.geometry, geometry, np.linalg.inv(found.matrix))
    lesions = [_group(ones, others, old_list, new_list, unseen_old, unseen_new) for ones, others in groups]
    lesions.sort(key=lambda group: -max(group["earlier_ml"], group["later_ml"]))
    return lesions, change_map, volumes


def _labeled(study: TimePoint) -> tuple[Components, NDArray[np.int32]]:
    """The lesions, and their labels (z, y, x) on the CT's own grid, numbered from 1 as quantify lists them."""
    view = study.volume.geometry.axial_view()
    mask = np.ascontiguousarray(view.apply(binary_mask(study.lesion, study.volume.geometry, "lesion mask")))
    lesions = find_components(mask)
    return lesions, np.ascontiguousarray(view.restore(lesions.image(mask)))


def _resampled(
    labels: NDArray[np.int32], source: Geometry, target: Geometry, matrix: NDArray[np.float64]
) -> NDArray[np.int32]:
    import SimpleITK as sitk

    transform = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(target.size)
    resampler.SetOutputSpacing(target.spacing)
    resampler.SetOutputOrigin(target.origin)
    resampler.SetOutputDirection(target.direction)
    resampler.SetTransform(transform)
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    resampler.SetDefaultPixelValue(0)
    return sitk.GetArrayFromImage(resampler.Execute(source.to_sitk(labels)))


def _links(
    surface: Surface, arrived: NDArray[np.int32], new: NDArray[np.int32], geometry: Geometry
) -> set[tuple[int, int]]:
    """Pairs (old, new) of lesions that overlap or come closer than the limit.

    Args:
        surface: of the old lesions, brought to the later CT: on its thick slices some have no voxel left.
        arrived: labels of the old lesions on the later CT's grid.
        new: labels of the new lesions.
        geometry: the later CT's grid.
    """
    from scipy.spatial import cKDTree

    both = (arrived != 0) & (new != 0)
    links = set(zip(arrived[both].tolist(), new[both].tolist(), strict=True))
    inside = _labels_at(surface[0], new, geometry)
    links |= set(zip(surface[1][inside != 0].tolist(), inside[inside != 0].tolist(), strict=True))
    surfaces = [surface, _surface(new, geometry)]
    limit = catalog()["longitudinal"]["match_distance_mm"]
    for near in (0, 1):
        (points, here), (others, there) = surfaces[near], surfaces[1 - near]
        if not len(points) or not len(others):
            continue
        distance, index = cKDTree(others).query(points, distance_upper_bound=limit)
        close = np.flatnonzero(np.isfinite(distance))
        partners = there[np.asarray(index)[close]].tolist()
        pair = (here[close].tolist(), partners) if near == 0 else (partners, here[close].tolist())
        links |= set(zip(*pair, strict=True))
    return links


def _labels_at(points: NDArray[np.float64], labels: NDArray[np.int32], geometry: Geometry) -> NDArray[np.int32]:
    """The label at each LPS position, 0 beyond the grid."""
    index = np.rint(moved(np.linalg.inv(geometry.ijk_to_lps), points)).astype(np.int64)
    within = ((index >= 0) & (index < geometry.size)).all(axis=1)
    found = np.zeros(len(points), np.int32)
    found[within] = labels[tuple(index[within, ::-1].T)]
    return found


def _surface(labels: NDArray[np.int32], geometry: Geometry) -> Surface:
    """The voxels on the surface of the lesions."""
    surface = surface_points(labels != 0)
    return moved(geometry.ijk_to_lps, surface[::-1].T), labels[tuple(surface)]


def _groups(old: int, new: int, links: set[tuple[int, int]]) -> list[tuple[list[int], list[int]]]:
    """Lesions that links hold together, as indices from 0: (old ones, new ones)."""
    from scipy import sparse

    if not old + new:
        return []
    pairs = np.array(sorted(links), np.int64).reshape(-1, 2)
    graph = sparse.coo_matrix((np.ones(len(pairs)), (pairs[:, 0] - 1, old + pairs[:, 1] - 1)), shape=(old + new,) * 2)
    count, label = sparse.csgraph.connected_components(graph, directed=False)
    members = [np.flatnonzero(np.equal(label, group)) for group in range(count)]
    return [([int(m) for m in group if m < old], [int(m) - old for m in group if m >= old]) for group in members]


def _unseen(lesions: Components, geometry: Geometry, other: Geometry, matrix: NDArray[Any]) -> NDArray[np.bool_]:
    """Which lesions lie mostly outside the other CT's field of view; the matrix leads there.

    Judged by the middles of their runs of voxels, each weighted by its length.
    """
    middles = np.stack([lesions.x + (lesions.lengths - 1) / 2, lesions.y, lesions.z, np.ones(len(lesions.x))])
    chain = np.linalg.inv(other.ijk_to_lps) @ matrix @ geometry.axial_view().geometry.ijk_to_lps
    there = (chain @ middles)[:3]
    inside = ((there >= -0.5) & (there <= np.array(other.size)[:, None] - 0.5)).all(axis=0)
    return np.bincount(lesions.labels, inside * lesions.lengths, lesions.count) < 0.5 * lesions.sizes


def _group(
    ones: list[int],
    others: list[int],
    old: list[dict[str, Any]],
    new: list[dict[str, Any]],
    unseen_old: NDArray[np.bool_],
    unseen_new: NDArray[np.bool_],
) -> dict[str, Any]:
    limits = catalog()["longitudinal"]
    before = sum((old[i]["volume_ml"] for i in ones), 0.0)
    after = sum((new[i]["volume_ml"] for i in others), 0.0)
    change = after - before
    percent = 100.0 * change / before if before else None
    if not others:
        status = "not_imaged" if unseen_old[ones].all() else "resolved"
    elif percent is None:
        status = "not_imaged" if unseen_new[others].all() else "new"
    elif abs(percent) < limits["least_change_percent"] or abs(change) < limits["least_change_ml"]:
        status = "stable"
    else:
        status = "grown" if change > 0 else "shrunk"
    largest = new[others[0]] if others else old[ones[0]]
    return {
        "status": status,
        "earlier_ml": before,
        "later_ml": after,
        "change_ml": change,
        "change_percent": percent,
        "earlier_lesions": [old[i]["index"] for i in ones],
        "later_lesions": [new[i]["index"] for i in others],
        "place": largest["place"],
    }


def _notes(measured: list[Entries], found: Registration) -> list[str]:
    limits = catalog()["longitudinal"]
    notes = []
    if found.kind == "identity":
        notes.append("Both CTs are the same image, so nothing was registered; only the masks can differ.")
    if found.coverage_percent < limits["full_coverage_percent"]:
        notes.append(
            f"Only {found.coverage_percent:.0f} % of the lungs are imaged at both times; each volume counts what its "
            "own CT shows, so part of the change can be coverage."
        )
    old, new = (one["lung_volume"]["value"] for one in measured)
    if abs(new - old) > 0.2 * old:
        notes.append(
            f"The lungs hold {old:.0f} mL earlier and {new:.0f} mL later: a different depth of breath changes HU and "
            "percentages without a change of disease."
        )
    return notes
