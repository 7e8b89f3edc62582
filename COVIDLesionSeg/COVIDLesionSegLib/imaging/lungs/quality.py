"""Whether a lung mask can be trusted: the verdict that travels with every figure that needs the lungs.

The limits, each with its reason, are data: ``Resources/LungQuality.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, LungsNotFoundError
from ...resources import load_json
from ..geometry import Geometry
from ..masks import Box, Mask, bounding_box
from ..volume import Volume
from ._cage import RibCage
from ._morphology import Pieces, dilate, erode
from .finder import ReducedVolume, find_lungs, free_gas, reduce_volume
from .masks import LEFT, RIGHT

OK, DOUBTFUL = "ok", "doubtful"
# the engine of lungs that somebody else made
GIVEN = "given"
NAMES = {RIGHT: "right", LEFT: "left"}

# A label holds both lungs when each side of the spine has this share of it.
_SHARE_OF_A_SIDE = 0.25
# Beside the lowest and the highest part of the lungs lie diaphragm and shoulders, mm.
_BASE, _APEX = 30.0, 35.0
# A lung reaches the ribs where it comes as near as this, mm.
_GAP = 12.0
# Of the wall, or the hull, so much must be seen to judge by it.
_KNOWN = 0.3
# What lies between is judged up to so far from the ribs, and not at the borders, mm; HU.
_DEPTH, _RIM = 30.0, 3.0
# The classical finder checks another engine on voxels of up to twice this, mm.
_COARSE = 2.6
# What stands for filling outside the field of view, HU.
_PADDING = -2000.0
_MOSTLY_GAS, _MOSTLY_AERATED = -900.0, -250.0


@dataclass(frozen=True)
class LungFinding:
    """One thing that speaks against a lung mask.

    Attributes:
        check: name of the check in ``Resources/LungQuality.json``; "not_looked_for" where nobody looked for lungs.
        value: what was measured, in ``unit``; None where the check has no number.
        limit: the limit that it passed, in ``unit``; None where the check has none.
        unit: UCUM unit of both, "1" for a ratio.
        sentence: what was seen, for a radiologist, e.g. "The left lung is missing."
        is_note: whether it only has to be said, and leaves the verdict as it is.
    """

    check: str
    value: float | None
    limit: float | None
    unit: str
    sentence: str
    is_note: bool = False


@dataclass(frozen=True)
class LungQuality:
    """The verdict on a lung mask and what it rests on.

    Attributes:
        verdict: "ok" or "doubtful".
        engine: what made the mask: the finder's engine ("classical", ...), or "given" for somebody else's.
        findings: what makes it doubtful; empty where the verdict is "ok".
        measures: name -> value of everything that was measured, whether it passed a limit or not; None where the
            volume does not show it.
        notes: what a reader has to know although it does not make the mask doubtful.
    """

    verdict: str
    engine: str
    findings: tuple[LungFinding, ...] = ()
    measures: Mapping[str, float | None] = field(default_factory=dict)
    notes: tuple[LungFinding, ...] = ()

    @property
    def is_doubtful(self) -> bool:
        """Whether figures that need the lungs carry the status "lungs_doubtful"."""
        return self.verdict == DOUBTFUL

    def line(self) -> str:
        """One line for a person: "Lungs doubtful: ..." or "Lungs plausible.", and the notes."""
        said = "Lungs doubtful:" if self.is_doubtful else "Lungs plausible."
        return " ".join([said, *(finding.sentence for finding in (*self.findings, *self.notes))])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "verdict": self.verdict,
            "engine": self.engine,
            "findings": [asdict(finding) for finding in self.findings],
            "measures": dict(self.measures),
            "notes": [asdict(finding) for finding in self.notes],
        }

    @classmethod
    def from_json(cls, value: Any) -> LungQuality:
        """The verdict from what :meth:`to_json` made.

        Raises:
            InputError: something else.
        """
        try:
            # the first records had no notes
            findings, notes = (
                tuple(LungFinding(**one) for one in given) for given in (value["findings"], value.get("notes", ()))
            )
            return cls(str(value["verdict"]), str(value["engine"]), findings, dict(value["measures"]), notes)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError("This is no record of the lungs' quality: keys are missing or unknown.") from error


def assess_lungs(volume: Volume, lungs: NDArray[np.uint8], engine: str = GIVEN, *, sided: bool = True) -> LungQuality:
    """Judge a lung mask by the CT that it belongs to.

    Args:
        volume: the CT, HU.
        lungs: uint8 (z, y, x) on its grid, 1 right lung and 2 left lung; 1 for both where they are not told apart.
        engine: what made the mask.
        sided: False where 1 stands for both lungs; what lies right and left of the body's middle is compared then.

    Returns:
        The verdict, "doubtful" where one of the checks of ``Resources/LungQuality.json`` passed its limit.

    Raises:
        GridMismatchError: lungs of another shape.
    """
    volume.geometry.require_shape(lungs, "lung mask")
    assessment = _Assessment(*_on_reduced_grid(volume, lungs), sided)
    ml = {side: float(np.count_nonzero(lungs == side)) * volume.geometry.voxel_ml for side in (RIGHT, LEFT)}
    assessment.sizes(ml)
    if assessment.shows_lungs:
        assessment.wall()
        assessment.hull(sum(ml.values()))
        assessment.gas()
        assessment.field_of_view()
        if engine == "classical":
            assessment.airless("the ribs")
        if engine == "network":
            assessment.airless("the lung's shape")
            assessment.finder()
    doubts, notes = (tuple(f for f in assessment.findings if f.is_note is is_note) for is_note in (False, True))
    return LungQuality(DOUBTFUL if doubts else OK, engine, doubts, assessment.measures, notes)


def _on_reduced_grid(volume: Volume, lungs: NDArray[np.uint8]) -> tuple[ReducedVolume, NDArray[np.uint8]]:
    """CT and lungs on the working grid of the axial view."""
    view = volume.geometry.axial_view()
    reduced, factors = reduce_volume(view.apply(volume.array), view.geometry.spacing_zyx)
    # the voxel in the middle of each block stands for it
    index = [
        np.minimum(np.arange(n) * f + f // 2, size - 1)
        for n, f, size in zip(reduced.hu.shape, factors, lungs.shape, strict=True)
    ]
    return reduced, np.ascontiguousarray(view.apply(lungs)[np.ix_(*index)])


def _block_means(array: NDArray[Any], factors: list[int]) -> NDArray[np.float32]:
    """Means of whole blocks of (z, y, x) voxels; what is over at the ends is left out."""
    shape = [n // factor for n, factor in zip(array.shape, factors, strict=True)]
    whole = array[tuple(slice(n * factor) for n, factor in zip(shape, factors, strict=True))]
    blocks = whole.reshape([length for pair in zip(shape, factors, strict=True) for length in pair])
    return np.asarray(blocks.mean(axis=(1, 3, 5)), np.float32)


class _Assessment:
    """The checks; each adds what it measured, and a finding where a limit is passed."""

    def __init__(self, volume: ReducedVolume, lungs: NDArray[np.uint8], sided: bool) -> None:
        self._volume, self._lungs = volume, lungs
        self._spacing = volume.spacing
        # a mask of few voxels may have none on the working grid
        self.shows_lungs = bool(lungs.any())
        self._cage = RibCage.seen(volume.hu, volume.spacing)
        self._sided = sided and not self._both_in_one_label()
        self._checks = load_json("LungQuality.json")["checks"]
        self.measures: dict[str, float | None] = {}
        self.findings: list[LungFinding] = []

    def _find(self, check: str, value: float | None, sentence: str) -> None:
        limit = self._checks[check]
        self.findings.append(
            LungFinding(check, value, limit["limit"], limit["unit"], sentence, limit["effect"] == "note")
        )

    def sizes(self, ml: Mapping[int, float]) -> None:
        """Whether both sides are there, told apart, and of comparable size."""
        self.measures |= {"right_ml": ml[RIGHT], "left_ml": ml[LEFT], "side_ratio": None}
        if not any(ml.values()):
            self._find("side_ratio", None, "The lung mask is empty.")
            return
        if not self._sided:
            right = self._share_on_the_right()
            if min(right, 1 - right) > _SHARE_OF_A_SIDE:
                self._find("sides", None, "Right and left lung are not told apart.")
                return
            # one label, all on one side: the other lung is missing, whatever the label was meant for
            total = sum(ml.values())
            ml = {RIGHT: right * total, LEFT: (1 - right) * total}
        smaller = min(ml, key=lambda side: ml[side])
        ratio = self.measures["side_ratio"] = ml[smaller] / ml[RIGHT + LEFT - smaller]
        if ratio < self._checks["side_ratio"]["limit"]:
            name = NAMES[smaller]
            if not self._in_view(smaller):
                sentence = f"The {name} half of the chest lies outside the field of view."
            elif not ml[smaller]:
                sentence = f"The {name} lung is missing."
            else:
                sentence = f"The {name} lung is far smaller than the other ({100 * ratio:.0f} % of its volume)."
            self._find("side_ratio", ratio, sentence)

    def _both_in_one_label(self) -> bool:
        """Whether the only label lies on both sides of the spine to like parts."""
        labels = [side for side in (RIGHT, LEFT) if (self._lungs == side).any()]
        if len(labels) != 1 or self._cage is None:
            return False
        return bool(self._cage.shares(self._lungs > 0).min() > _SHARE_OF_A_SIDE)

    def _share_on_the_right(self) -> float:
        """Share of the mask on the right of the spine, or of the body's middle where no ribs are seen."""
        if not self.shows_lungs:
            return 0.5
        if self._cage is not None:
            return float(self._cage.shares(self._lungs > 0)[0])
        body = np.flatnonzero((self._volume.hu > -500).any(axis=(0, 1)))
        return float(np.mean(np.nonzero(self._lungs)[2] < (body[0] + body[-1] + 1) / 2)) if len(body) else 0.5

    def _in_view(self, side: int) -> bool:
        """Whether the half of the chest reaches 60 mm from the spine into the field of view."""
        if self._cage is None:
            return True
        slices = np.flatnonzero((self._lungs > 0).any(axis=(1, 2)))
        shown = ~self._volume.padding[slices].all(axis=(0, 1))
        columns = np.flatnonzero(shown) * self._spacing[2] - float(np.median(self._cage.x[slices]))
        reach = -columns.min() if side == RIGHT else columns.max()
        return bool(reach > 60.0)

    def _heights(self) -> slice:
        """Slices between the bases and the apices; where the scan ends within the lungs, up to its end."""
        section = (self._lungs > 0).sum(axis=(1, 2))
        slices = np.flatnonzero(section)
        low, high = int(slices[0]), int(slices[-1]) + 1
        cut = section >= 0.1 * section.max()
        low += 0 if low == 0 and cut[0] else round(_BASE / self._spacing[0])
        high -= 0 if high == len(section) and cut[-1] else round(_APEX / self._spacing[0])
        return slice(low, max(high, low))

    def wall(self) -> None:
        """What lies between each lung and the ribs at its side and back."""
        self.measures |= {f"{name}_wall_uncovered": None for name in NAMES.values()}
        if self._cage is None:
            return
        heights = self._heights()
        outermost = self._cage.outermost(self._lungs > 0)
        for side, name in NAMES.items():
            if self._sided and not (self._lungs == side).any():
                continue
            directions = self._cage.directions(side)
            wall, reached = (radius[heights][:, directions] for radius in (self._cage.wall, outermost))
            known = np.isfinite(wall)
            if known.sum() < max(_KNOWN * known.size, 1):
                continue
            uncovered = known & (wall - reached > _GAP)
            share = self.measures[f"{name}_wall_uncovered"] = float(uncovered.sum() / known.sum())
            if share > self._checks["wall_uncovered"]["limit"]:
                inner = np.where(uncovered, np.maximum(reached, wall - _DEPTH), np.inf)
                what = self._between(heights, directions, inner, np.where(uncovered, wall, 0))
                sentence = f"{what} between the {name} lung and {100 * share:.0f} % of the ribs beside and behind it."
                self._find("wall_uncovered", share, sentence)

    def _between(self, heights: slice, directions: Mask, inner: NDArray[np.float32], outer: NDArray[np.float32]) -> str:
        """In words, what the HU between two radii by (height, direction) say."""
        assert self._cage is not None  # noqa: S101 - for the type checker
        z, y, x = np.ogrid[tuple(map(slice, self._lungs.shape))]
        radius, direction = self._cage.coordinates(z[heights], y, x)
        place = (np.arange(len(inner))[:, None, None], np.cumsum(directions)[direction] - 1)
        hit = directions[direction] & (radius > inner[place] + _RIM) & (radius < outer[place] - _RIM)
        values = self._volume.hu[heights][hit]
        middle = float(np.median(values)) if values.size else 0.0
        if middle < _MOSTLY_GAS:
            return "Gas lies"
        if middle < _MOSTLY_AERATED:
            return "Aerated tissue that is not in the mask lies"
        return "Dense tissue (consolidation or effusion) lies"

    def hull(self, lungs_ml: float) -> None:
        """The lungs' volume against that inside the ribs, from the lungs' base to their top."""
        self.measures["hull_share"] = None
        if self._cage is None:
            return
        slices = np.flatnonzero((self._lungs > 0).any(axis=(1, 2)))
        hull_ml = 0.0
        for side in NAMES:
            if self._in_view(side):
                area = self._cage.area(side)[slices[0] : slices[-1] + 1]
                if np.isnan(area).mean() > 1 - _KNOWN:
                    return
                hull_ml += float(np.nanmean(area)) * len(area) * self._spacing[0] / 1000
        if not hull_ml:
            return
        share = self.measures["hull_share"] = lungs_ml / hull_ml
        if share < self._checks["hull_share_low"]["limit"]:
            self._find("hull_share_low", share, f"The lungs fill only {100 * share:.0f} % of the rib cage.")
        elif share > self._checks["hull_share_high"]["limit"]:
            self._find(
                "hull_share_high", share, f"The mask fills {100 * share:.0f} % of the rib cage, more than lungs do."
            )

    def gas(self) -> None:
        """Gas without vessels inside the mask, or between it and the ribs: a pneumothorax, a large bulla, bowel."""
        box = bounding_box(self._lungs, 30.0 / np.array(self._spacing))
        inside = self._lungs[box] > 0
        volume = self._volume.cropped(box)
        gas, with_rim = free_gas(volume)
        beside = self._beside_lungs(with_rim & ~inside, inside, box)
        within, around = (np.count_nonzero(gas & where) * volume.voxel_ml for where in (inside, beside))
        self.measures |= {"gas_inside_ml": within, "gas_around_ml": around}
        for check, ml, place in (
            ("gas_inside", within, "are counted as lung: pneumothorax, a large bulla or bowel"),
            ("gas_around", around, "lie between lung and chest wall: pneumothorax"),
        ):
            if ml > self._checks[check]["limit"]:
                self._find(check, ml, f"{ml:.0f} mL of gas without lung tissue {place}.")

    def _beside_lungs(self, gas: Mask, lungs: Mask, box: Box) -> Mask:
        """The regions of gas that touch both lungs and ribs: bowel and trachea lie behind walls of their own."""
        pieces = Pieces(gas)
        if not pieces or self._cage is None:
            return np.zeros_like(gas)
        z, y, x = np.nonzero(gas)
        cage = self._cage.cropped(box)
        radius, direction = cage.coordinates(z, y, x)
        wall = cage.wall[z, direction]
        number, count = pieces.labels[z, y, x], len(pieces.size)
        within = np.bincount(number[radius < wall + _RIM], minlength=count) > 0.5 * pieces.size
        at_wall = np.bincount(number[np.abs(radius - wall) < _GAP], minlength=count) > 0.05 * pieces.size
        surface = gas & ~erode(gas, self._spacing, 1.01 * max(self._spacing))
        open_to_lungs = dilate(lungs, self._spacing, 1.5 * max(self._spacing))
        # so much of a pneumothorax's surface lies against the lung; bowel under the diaphragm touches it hardly
        at_lungs = pieces.within(surface & open_to_lungs) > 0.15 * pieces.within(surface)
        return pieces.those(within & at_wall & at_lungs)

    def airless(self, source: str) -> None:
        """How much of each lung holds no air: there an engine estimates the borders, and ``source`` says from what."""
        from scipy import ndimage

        dense = ndimage.uniform_filter(self._volume.hu, 3) > -200
        for side, name in NAMES.items():
            lung = self._lungs == side
            share = float(dense[lung].mean()) if lung.any() else None
            self.measures[f"{name}_airless"] = share
            if share is not None and share > self._checks["airless"]["limit"]:
                if share > 0.85:
                    sentence = f"The {name} lung holds no air: its border is estimated from {source}."
                else:
                    part = f"{100 * share:.0f} % of the {name} lung"
                    sentence = f"{part} holds no air: there its border is estimated from {source}."
                self._find("airless", share, sentence)

    def finder(self) -> None:
        """How far the lungs are those that the classical finder sees; on a coarser grid, where it takes no time."""
        factors = [
            2 if step < _COARSE and n > 1 else 1 for step, n in zip(self._spacing, self._lungs.shape, strict=True)
        ]
        hu = _block_means(np.where(self._volume.padding, _PADDING, self._volume.hu), factors)
        lungs = _block_means(self._lungs > 0, factors) > 0.5
        z, y, x = (step * factor for step, factor in zip(self._spacing, factors, strict=True))
        try:
            found = find_lungs(Volume(hu, Geometry(hu.shape[::-1], (x, y, z)))) > 0
        except LungsNotFoundError:
            found = np.zeros(hu.shape, bool)
        voxels = int(np.count_nonzero(found)) + int(np.count_nonzero(lungs))
        dice = self.measures["finder_dice"] = 2 * int(np.count_nonzero(found & lungs)) / max(voxels, 1)
        if dice < self._checks["finder_dice"]["limit"]:
            sees = f"disagrees with the network (Dice {dice:.2f})" if found.any() else "finds none here"
            self._find("finder_dice", dice, f"The classical finder, which sees lungs by their air, {sees}.")

    def field_of_view(self) -> None:
        """How much of the lungs' widest section the scan's first or last slice, and its sides, cut."""
        lung, spacing = self._lungs > 0, self._spacing
        section = np.count_nonzero(lung, axis=(1, 2))
        ends = max(int(section[0]), int(section[-1])) / int(section.max())
        edge = np.zeros(lung.shape[1:], bool)
        edge[[0, -1]] = edge[:, [0, -1]] = True
        beside = lung & edge
        if self._volume.padding.any():
            beside |= lung & dilate(self._volume.padding, spacing, 1.5 * max(spacing[1:]))
        sides = int(np.count_nonzero(beside.any(axis=(1, 2)))) / int(np.count_nonzero(section))
        self.measures |= {"cut_by_ends": ends, "cut_by_sides": sides}
        if ends > self._checks["cut_by_ends"]["limit"]:
            self._find("cut_by_ends", ends, "The scan ends within the lungs: figures are of the part that it shows.")
        if sides > self._checks["cut_by_sides"]["limit"]:
            self._find("cut_by_sides", sides, "The field of view cuts the lungs at the side.")
