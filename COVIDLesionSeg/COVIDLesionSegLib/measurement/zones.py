"""Where in the lungs: right and left, thirds of each lung's height, lobes by label values or names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging import AxialView, LabelVolume, LocatedLungs, LungQuality, Volume, assess_lungs, divide_lungs
from ..imaging.lungs.masks import lungs_by_side, sides_by_name
from ..imaging.lungs.quality import GIVEN
from ..imaging.masks import Box, integer_labels
from .catalog import catalog

SIDES = ("right", "left")
LEVELS = ("lower", "middle", "upper")
LUNG_REGIONS = ("right_lung", "left_lung")
ZONE_REGIONS = tuple(f"{side}_{level}_zone" for side in SIDES for level in LEVELS)
LOBE_REGIONS = ("right_upper_lobe", "right_middle_lobe", "right_lower_lobe", "left_upper_lobe", "left_lower_lobe")
# zone of a voxel in lungs whose sides are not known
SOMEWHERE = len(ZONE_REGIONS)
# labels that two or fewer lobes would have can also be those of two lungs
_LEAST_LOBES = 3
# TotalSegmentator 1 has no label beyond; on a chest CT version 2 always has some, of ribs and costal cartilages
_LAST_OF_TOTALSEGMENTATOR1 = 104


@dataclass(frozen=True, eq=False)
class Lobes:
    """A lobe map.

    Attributes:
        array: labels (z, y, x) on the CT's own grid.
        values: label value -> lobe.
        counts: voxels of each label value.
        quality: whether the lobes together can be trusted as lungs; None where there is none of them.
    """

    array: NDArray[Any]
    values: Mapping[int, str]
    counts: NDArray[np.int64]
    quality: LungQuality | None = None

    @classmethod
    def read(
        cls,
        given: NDArray[Any] | LabelVolume | Lobes,
        volume: Volume,
        choice: str | Mapping[int, str] | None = None,
    ) -> Lobes:
        """Take what the user gave and judge it, or what was read before; ``choice`` as in :func:`lobe_values`."""
        if isinstance(given, Lobes):
            volume.geometry.require_shape(given.array, "lobe map")
            return given
        array = integer_labels(given, volume.geometry, "lobe map")
        counts = np.zeros(int(array.max()) + 1, np.int64)
        for part in array:
            counts += np.bincount(part.ravel(), minlength=len(counts))
        names = given.names if isinstance(given, LabelVolume) else {}
        found = cls(array, lobe_values(np.flatnonzero(counts[1:]) + 1, names, choice), counts)
        if not any(found.sizes().values()):
            return found
        return replace(found, quality=assess_lungs(volume, found.lungs()))

    @property
    def is_doubtful(self) -> bool:
        """Whether what was computed from the lobes can't be trusted."""
        return self.quality is not None and self.quality.is_doubtful

    def sizes(self) -> dict[str, int]:
        """Voxels of each lobe, 0 for a lobe that is not in the map."""
        index = self._index()
        return {lobe: int(self.counts[index == number].sum()) for number, lobe in enumerate(LOBE_REGIONS)}

    def lobe_of(self, view: AxialView, box: Box, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Index into LOBE_REGIONS of each voxel of ``mask`` in a box of the axial view; -1 outside the lobes."""
        return self._index()[view.apply(self.array)[box][mask]]

    def lungs(self) -> NDArray[np.uint8]:
        """The lobes of each side as lungs: 1 right, 2 left."""
        side = np.array([1 + SIDES.index(lobe.split("_")[0]) for lobe in LOBE_REGIONS] + [0], np.uint8)
        return side[self._index()][self.array]

    def _index(self) -> NDArray[np.int64]:
        """Label value -> index into LOBE_REGIONS, -1 for labels that are no lobe."""
        index = np.full(len(self.counts), -1, np.int64)
        for value, lobe in self.values.items():
            if value < len(index):
                index[value] = LOBE_REGIONS.index(lobe)
        return index


@dataclass(frozen=True, eq=False)
class Lungs:
    """A lung mask and where it lies.

    Attributes:
        array: labels (z, y, x) on the CT's own grid: 1 right, 2 left, or 1 where the sides are not known.
        counts: voxels of each label on each axial slice, (2, slices), from the feet upward.
        sided: whether right and left are known.
        status: ``ok``, ``lungs_missing`` or ``lungs_empty``.
        quality: whether they can be trusted; None where there are none.
    """

    array: NDArray[Any]
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 0), np.int64))
    sided: bool = True
    status: str = "ok"
    quality: LungQuality | None = None

    @classmethod
    def read(
        cls, given: NDArray[Any] | LabelVolume | LocatedLungs | Lungs | None, lobes: Lobes | None, volume: Volume
    ) -> Lungs:
        """Take what the user gave, or what was read before, else the lobes, else nothing; judge it if nobody has.

        Labels whose names say lung or lobe and a side count by name, else 1 is right and 2 is left; either is put right
        by position where it is the other way round, as :func:`.lungs_from_mask` does.

        Raises:
            InputError: labels other than 1 and 2 without such names.
            LungsNotFoundError: labels, but none of those named lung or lobe.
        """
        if isinstance(given, Lungs):
            return given
        geometry, quality = volume.geometry, None if lobes is None else lobes.quality
        if given is not None:
            quality = given.quality if isinstance(given, LocatedLungs) else None
        if isinstance(given, LocatedLungs):
            given = given.labels
        sides = sides_by_name(given.names) if isinstance(given, LabelVolume) else {}
        if given is not None:
            array = integer_labels(given, geometry, "lung mask")
            if sides and array.any():
                array = lungs_by_side(array, sides, geometry)
        elif lobes is not None:
            array = lobes.lungs()
        else:
            return cls(np.zeros((0, 0, 0), np.uint8), status="lungs_missing")
        view = geometry.axial_view()
        counts = _counts(view.apply(array))
        if not counts.any():
            return cls(array, counts, status="lungs_empty", quality=quality)
        if given is not None and not sides and counts.any(axis=1).all():
            array = lungs_by_side(array, {1: 1, 2: 2}, geometry)
            counts = _counts(view.apply(array))
        # of somebody else's mask with one label nobody knows; a finder's lone 1 is the right lung
        sided = bool(sides) or counts[1].any() or (quality is not None and quality.engine != GIVEN)
        divided = None if sided else divide_lungs(array == 1, geometry)
        if divided is not None:
            array, counts, sided = divided, _counts(view.apply(divided)), True
        quality = quality or assess_lungs(volume, array.astype(np.uint8, copy=False), sided=bool(sided))
        return cls(array, counts, bool(sided), quality=quality)

    @property
    def is_doubtful(self) -> bool:
        """Whether what was computed from the lungs can't be trusted."""
        return self.quality is not None and self.quality.is_doubtful

    def levels(self) -> NDArray[np.int8]:
        """The third of each lung's height that each axial slice belongs to, (2, slices), see :func:`levels`."""
        return np.stack([levels(side) for side in self.counts])

    def sizes(self) -> dict[str, tuple[int | None, str]]:
        """Voxels and status of the whole, each lung and each zone; None where it is not known."""
        sizes: dict[str, tuple[int | None, str]] = {}
        if self.status != "ok":
            return dict.fromkeys(("whole", *LUNG_REGIONS, *ZONE_REGIONS), (None, self.status))
        cut = self._cut()
        sizes["whole"] = int(self.counts.sum()), "lungs_cut" if cut.any() else "ok"
        if not self.sided:
            return sizes | dict.fromkeys((*LUNG_REGIONS, *ZONE_REGIONS), (None, "sides_unknown"))
        thirds = self.levels()
        for side, region in enumerate(LUNG_REGIONS):
            status = "lungs_cut" if cut[side] else "ok"
            parts = {region: int(self.counts[side].sum())}
            for level in range(len(LEVELS)):
                parts[ZONE_REGIONS[3 * side + level]] = int(self.counts[side][thirds[side] == level].sum())
            sizes |= {name: (size, status) if size else (None, "region_empty") for name, size in parts.items()}
        return sizes

    def zone_of(self, view: AxialView, box: Box, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Index into ZONE_REGIONS of each voxel of ``mask`` in a box of the axial view.

        -1 outside the lungs; SOMEWHERE in lungs whose sides are not known.
        """
        side = view.apply(self.array)[box][mask].astype(np.int64) - 1
        if not self.sided:
            return np.where(side >= 0, SOMEWHERE, -1)
        slices = np.repeat(np.arange(box[0].start, box[0].stop), mask.sum(axis=(1, 2)))
        level = self.levels()[np.maximum(side, 0), slices]
        return np.where(side >= 0, 3 * side + level, -1)

    def _cut(self) -> NDArray[np.bool_]:
        """Whether the image ends inside each lung."""
        limit = catalog()["coverage"]["cut_share"] * self.counts.max(axis=1)
        return np.maximum(self.counts[:, 0], self.counts[:, -1]) > limit


def inside(zone: NDArray[np.int64], region: str) -> NDArray[np.bool_]:
    """Which voxels, by their zone, lie in the whole of both lungs, in one lung, or in one zone."""
    if region == "whole":
        return zone >= 0
    if region in LUNG_REGIONS:
        return zone // 3 == LUNG_REGIONS.index(region)
    return zone == ZONE_REGIONS.index(region)


def levels(slice_counts: NDArray[np.int64]) -> NDArray[np.int8]:
    """The third of a lung's height that each axial slice belongs to.

    Args:
        slice_counts: voxels of the lung on each axial slice, from the feet upward.

    Returns:
        int8, one a slice: 0 lower, 1 middle, 2 upper, -1 below or above the lung. Thirds differ by a slice where the
        height is not divisible by three.
    """
    result = np.full(len(slice_counts), -1, np.int8)
    occupied = np.flatnonzero(slice_counts)
    if len(occupied):
        low, high = int(occupied[0]), int(occupied[-1]) + 1
        result[low:high] = 3 * np.arange(high - low) // (high - low)
    return result


def lobe_values(
    present: NDArray[np.int64], names: Mapping[int, str], choice: str | Mapping[int, str] | None = None
) -> dict[int, str]:
    """Which label value is which lobe.

    Args:
        present: the label values in the map, without 0.
        names: label value -> name, as far as the file knows them.
        choice: the id of a known label map ("lungmask", "totalsegmentator", "totalsegmentator1"), or label value ->
            lobe (:data:`LOBE_REGIONS`); None finds out from names, else from values.

    Returns:
        Label value -> lobe.

    Raises:
        InputError: an unknown choice, or labels that fit no known label map or more than one.
    """
    known = {lobe_map["id"]: _by_value(lobe_map) for lobe_map in catalog()["lobe_maps"]}
    if isinstance(choice, str):
        if choice not in known:
            raise InputError(f"The lobe map {choice!r} is not known; known are {', '.join(known)}.")
        return known[choice]
    if choice is not None:
        wrong = sorted(set(choice.values()) - set(LOBE_REGIONS))
        if wrong:
            raise InputError(f"{', '.join(wrong)} is no lobe; lobes are {', '.join(LOBE_REGIONS)}.")
        return {int(value): lobe for value, lobe in choice.items()}
    named = _by_name(names)
    if len(named) == len(LOBE_REGIONS):
        return named
    values = {int(value) for value in present}
    for candidate in known.values():
        if len(values) >= _LEAST_LOBES and values <= candidate.keys():
            return candidate
    # a whole TotalSegmentator map: the lobes among a hundred other organs, some of which have the numbers of the other
    # version's lobes
    newer, older = known["totalsegmentator"], known["totalsegmentator1"]
    is_newer = max(values, default=0) > _LAST_OF_TOTALSEGMENTATOR1
    if newer.keys() <= values and (is_newer or not values & (older.keys() - newer.keys())):
        return newer
    if older.keys() <= values and not is_newer and not values & (newer.keys() - older.keys()):
        return older
    either = not is_newer and (newer.keys() <= values or older.keys() <= values)
    raise InputError(
        f"The lobe map holds the labels {_some(sorted(values))}, which fit {'more than one' if either else 'no'} "
        f"known label map ({', '.join(known)}).",
        "Say which one it is, or give label values with lobes.",
    )


def place(region: str | None, lobe: str | None) -> str:
    """Zone and lobe as words, ``right lung, lower zone (right lower lobe)``; "" where nothing is known."""
    titles = {key: value["title"].lower() for key, value in catalog()["regions"].items()}
    titles["outside"] = "outside the lungs"
    if lobe == "outside" and region:
        lobe = None
    words = [titles[name] for name in (region, lobe) if name]
    return f"{words[0]} ({words[1]})" if len(words) == 2 else "".join(words)


def _counts(axial: NDArray[Any]) -> NDArray[np.int64]:
    counts = np.array([[np.count_nonzero(part == label) for part in axial] for label in (1, 2)], np.int64)
    beyond = sum(np.count_nonzero(part) for part in axial) - int(counts.sum())
    if beyond:
        raise InputError(
            f"The lung mask has {beyond} voxels with labels other than 1 (right lung) and 2 (left lung).",
            "Give a map of lobes as lobes; merge other labels first.",
        )
    return counts


def _by_value(lobe_map: Mapping[str, Any]) -> dict[int, str]:
    return {int(value): lobe for value, lobe in lobe_map["values"].items()}


def _by_name(names: Mapping[int, str]) -> dict[int, str]:
    wanted = {alias: lobe for lobe, aliases in catalog()["lobe_names"].items() for alias in [lobe, *aliases]}
    plain = {value: name.strip().lower() for value, name in names.items()}
    return {value: wanted[name] for value, name in plain.items() if name in wanted}


def _some(values: list[int], most: int = 8) -> str:
    return ", ".join(map(str, values[:most])) + (", ..." if len(values) > most else "") if values else "none"
