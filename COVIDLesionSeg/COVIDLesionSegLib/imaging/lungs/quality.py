"""Whether a lung mask can be trusted: the verdict that travels with every figure that needs the lungs.

The limits, each with its reason, are data: ``Resources/LungQuality.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...resources import load_json
from ..volume import Volume
from .masks import LEFT, RIGHT, body_box

OK, DOUBTFUL = "ok", "doubtful"
# the engine of lungs that somebody else made
GIVEN = "given"
NAMES = {RIGHT: "right", LEFT: "left"}


@dataclass(frozen=True)
class LungFinding:
    """One thing that speaks against a lung mask.

    Attributes:
        check: name of the check in ``Resources/LungQuality.json``.
        value: what was measured, in ``unit``; None where the check has no number.
        limit: the limit that it passed, in ``unit``; None where the check has none.
        unit: UCUM unit of both, "1" for a ratio.
        sentence: what was seen, for a radiologist, e.g. "The left lung is missing."
    """

    check: str
    value: float | None
    limit: float | None
    unit: str
    sentence: str


@dataclass(frozen=True)
class LungQuality:
    """The verdict on a lung mask and what it rests on.

    Attributes:
        verdict: "ok" or "doubtful".
        engine: what made the mask: the finder's engine ("classical", ...), or "given" for somebody else's.
        findings: what makes it doubtful; empty where the verdict is "ok".
        measures: name -> value of everything that was measured, whether it passed a limit or not; None where the
            volume does not show it.
    """

    verdict: str
    engine: str
    findings: tuple[LungFinding, ...] = ()
    measures: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def is_doubtful(self) -> bool:
        """Whether figures that need the lungs carry the status "lungs_doubtful"."""
        return self.verdict == DOUBTFUL

    def line(self) -> str:
        """One line for a person: "Lungs doubtful: ..." or "Lungs plausible."."""
        if not self.is_doubtful:
            return "Lungs plausible."
        return f"Lungs doubtful: {' '.join(finding.sentence for finding in self.findings)}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "verdict": self.verdict,
            "engine": self.engine,
            "findings": [asdict(finding) for finding in self.findings],
            "measures": dict(self.measures),
        }

    @classmethod
    def from_json(cls, value: Any) -> LungQuality:
        """The verdict from what :meth:`to_json` made.

        Raises:
            InputError: something else.
        """
        try:
            findings = tuple(LungFinding(**finding) for finding in value["findings"])
            return cls(str(value["verdict"]), str(value["engine"]), findings, dict(value["measures"]))
        except (KeyError, TypeError) as error:
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
    """
    limits = load_json("LungQuality.json")["checks"]
    counts = {side: np.count_nonzero(lungs == side) for side in (RIGHT, LEFT)} if sided else _halves(volume, lungs)
    ml = {side: count * volume.geometry.voxel_ml for side, count in counts.items()}
    measures: dict[str, float | None] = {f"{NAMES[side]}_ml": ml[side] if sided else None for side in ml}
    findings = []
    smaller = min(ml, key=lambda side: ml[side])
    ratio = ml[smaller] / ml[RIGHT + LEFT - smaller] if max(ml.values()) else 0.0
    measures["side_ratio"] = ratio
    limit = limits["side_ratio"]["limit"]
    if ratio < limit:
        sentence = f"The {NAMES[smaller]} lung is {'missing' if not ml[smaller] else 'far smaller than the other'}."
        findings.append(LungFinding("side_ratio", ratio, limit, "1", sentence))
    return LungQuality(DOUBTFUL if findings else OK, engine, tuple(findings), measures)


def _halves(volume: Volume, lungs: NDArray[np.uint8]) -> dict[int, int]:
    """Voxels of a mask on the right and on the left of the body's middle."""
    view = volume.geometry.axial_view()
    axial = view.apply(lungs)
    columns = body_box(view.apply(volume.array), axial, view.geometry.spacing_zyx, 0)[2]
    middle = (columns.start + columns.stop) // 2
    return {RIGHT: int(np.count_nonzero(axial[..., :middle])), LEFT: int(np.count_nonzero(axial[..., middle:]))}
