"""CT severity scores: how much of each zone or lobe is involved, in steps, and their sum."""

from __future__ import annotations

from collections.abc import Iterable

from .catalog import catalog


def score(involvement: float | None, scale: str) -> int | None:
    """Score of one zone or lobe.

    Args:
        involvement: % of it that is lesion; None where it is not known.
        scale: "zones" (0 to 4; Zhou et al. 2020) or "lobes" (0 to 5; Pan et al. 2020); the steps are data in
            ``Resources/Quantities.json``.

    Returns:
        The score, 0 only where there is no lesion at all; None for None.
    """
    if involvement is None:
        return None
    if involvement <= 0:
        return 0
    for step in catalog()["severity"][scale]["steps"]:
        below = "below" in step and involvement < step["below"]
        up_to = "up_to" in step and involvement <= step["up_to"]
        if below or up_to or not step.keys() & {"below", "up_to"}:
            return step["score"]
    raise ValueError(f"the steps of {scale!r} have no last one")


def total(scores: Iterable[int | None]) -> int | None:
    """Sum of the scores; None if one of them is not known, since a part would look like less disease."""
    scores = list(scores)
    return None if None in scores else sum(score for score in scores if score is not None)
