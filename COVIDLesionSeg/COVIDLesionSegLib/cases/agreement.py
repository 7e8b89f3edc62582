"""Several raters of one case: how far they agree, and a consensus that may become the training label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .case_files import CaseFiles
from .layout import CONSENSUS
from .records import Case, Revision

if TYPE_CHECKING:
    from ..measurement.raters import RaterAgreement


@dataclass(frozen=True)
class AgreementRow:
    """Two masks of one case, for a table.

    Attributes:
        case: id.
        first: rater, or "consensus" or "model".
        second: rater, or "consensus" or "model".
        dice: overlap.
        hausdorff_distance_95: mm.
        status: "ok", "both_empty", "first_empty" or "second_empty".
    """

    case: str
    first: str
    second: str
    dice: float
    hausdorff_distance_95: float
    status: str


def agreement_table(files: CaseFiles, cases: Sequence[str] = (), with_model: bool = True) -> list[AgreementRow]:
    """Every pair of raters of every case that two or more have saved; with the model's prediction and the consensus.

    Args:
        files: the store's cases.
        cases: ids; empty takes all cases with two or more raters.
        with_model: also compare each rater with the model's prediction.

    Raises:
        InputError: a named case with fewer than two raters.
    """
    from ..measurement.raters import pairwise_agreement

    rows = []
    for case in _cases(files, cases):
        masks = {r.rater: files.read_revision(case.id, r.number).mask() for r in latest_of_each(case)}
        made = case.latest(CONSENSUS)
        if made is not None and case.consensus_is_current:
            masks[CONSENSUS] = files.read_revision(case.id, made.number).mask()
        if with_model and case.prediction is not None:
            masks["model"] = files.read_prediction(case.id).mask()
        for pair in pairwise_agreement(masks, case.ct.geometry.spacing_zyx):
            rows.append(
                AgreementRow(case.id, pair.first, pair.second, pair.dice, pair.hausdorff_distance_95, pair.status)
            )
    return rows


def agreement(files: CaseFiles, case_id: str) -> RaterAgreement:
    """All that ``measurement.rater_agreement`` says about the raters of a case.

    Raises:
        InputError: fewer than two raters.
    """
    from ..measurement.raters import rater_agreement

    (case,) = _cases(files, [case_id])
    masks = {r.rater: files.read_revision(case.id, r.number).mask() for r in latest_of_each(case)}
    return rater_agreement(masks, case.ct.geometry.spacing_zyx)


def make_consensus(files: CaseFiles, case_id: str, use_as_label: bool = True) -> Revision:
    """Save the STAPLE consensus of every rater's last revision.

    Args:
        files: the store's cases.
        case_id: a case with two or more raters.
        use_as_label: let the consensus train from now on; it is made anew when a rater saves a later revision.

    Raises:
        InputError: fewer than two raters.
    """
    from ..measurement.raters import staple

    (case,) = _cases(files, [case_id])
    sources = latest_of_each(case)
    made = case.latest(CONSENSUS)
    if made is None or not case.consensus_is_current:
        found = staple({r.rater: files.read_revision(case.id, r.number).mask() for r in sources})
        made = files.save_consensus(case_id, found.consensus, sources, f"STAPLE, {found.status}")
    if use_as_label:
        files.set_label(case_id, CONSENSUS)
    return made


def latest_of_each(case: Case) -> list[Revision]:
    """The last revision of every rater."""
    return [revision for rater in case.raters if (revision := case.latest(rater)) is not None]


def summary(rows: Sequence[AgreementRow]) -> dict[str, Any]:
    """Mean Dice of each pair over the cases that are not both empty, and how many those are."""
    pairs: dict[str, list[float]] = {}
    for row in rows:
        if row.status != "both_empty":
            pairs.setdefault(f"{row.first} - {row.second}", []).append(row.dice)
    return {pair: {"mean_dice": sum(found) / len(found), "cases": len(found)} for pair, found in pairs.items()}


def _cases(files: CaseFiles, names: Sequence[str]) -> list[Case]:
    if not names:
        return [case for case in files.cases() if len(case.raters) > 1 and not case.exclusion]
    found = [files.case(name) for name in names]
    for case in found:
        if len(case.raters) < 2:
            raise InputError(
                f"{case.id} was saved by {' and '.join(case.raters) or 'nobody'}; "
                "agreement and consensus need two or more raters."
            )
    return found
