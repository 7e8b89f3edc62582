"""CT severity scores: how much of each zone or lobe is involved, in steps, and their sum."""

from __future__ import annotations

from collections.abc import Iterable

from .catalog import catalog


def score(involvement: float | None, lesion_ml: float | None, scale: str) -> int | None:
    """Score of one zone or lobe.

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


def total(scores: Iterable[int | None]) -> int | None:
    """Sum of the scores; None if one of them is not known, since a part would look like less disease."""
    scores = list(scores)
    return None if None in scores else sum(score for score in scores if score is not None)
