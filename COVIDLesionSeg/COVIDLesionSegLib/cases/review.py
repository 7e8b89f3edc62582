"""Labels that look doubtful: the trainer's audit list, and what people decided about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..codec import to_json
from ..errors import InputError
from .case_files import CaseFiles
from .layout import check_rater, now
from .records import Case, ReviewItem

# of all slices that a training saw, those worth a look: most doubtful first, this many at most, none below this score
MOST_ITEMS = 50
LEAST_SCORE = 0.5


class ReviewList:
    """The doubtful labels of a store.

    Args:
        files: the store's cases.
    """

    def __init__(self, files: CaseFiles) -> None:
        self._files = files

    def items(self, decided: bool | None = False) -> list[ReviewItem]:
        """Items about labels as they are now, the most doubtful first.

        Args:
            decided: False: those that wait for a decision; True: those with one; None: both.
        """
        found = [item for case in self._files.cases() if not case.exclusion for item in case.present_reviews()]
        wanted = [item for item in found if decided is None or bool(item.decision) == decided]
        return sorted(wanted, key=lambda item: (-item.score, item.case, item.slice))

    def decide(
        self, case_id: str, index: int, decision: Literal["right", "fix"], by: str, comment: str = ""
    ) -> ReviewItem:
        """Remember what somebody decided about a slice.

        "right": the label stays and is not asked about again. "fix": the slice is left out of training, and the case
        comes first in the queue, until a newer revision replaces the label.

        Args:
            case_id: which case.
            index: slice on its axial view, from the feet.
            decision: "right" or "fix"; a later decision replaces an earlier one.
            by: who.
            comment: free text.

        Raises:
            InputError: no such item, or another decision.
        """
        check_rater(by)
        if decision not in ("right", "fix"):
            raise InputError(f"The decision {decision!r} is unknown; use right or fix.")
        case = self._files.case(case_id)
        present = {item.slice: item for item in case.present_reviews()}
        if index not in present:
            listed = ", ".join(map(str, sorted(present))) or "none"
            raise InputError(f"Slice {index} of {case_id} is not on the review list; on it are: {listed}.")
        item = replace(present[index], decision=decision, by=by, decided=now(), comment=comment)
        with self._files.locks.changing(case_id), self._files.changed(case_id) as values:
            values["review"] = [
                to_json(item) if (old["slice"], old["label_sha256"]) == (item.slice, item.label_sha256) else old
                for old in values["review"]
            ]
        return item

    def add(
        self, doubtful: Iterable[Mapping[str, Any]], labels: Mapping[str, str], training_round: int
    ) -> list[ReviewItem]:
        """Take over a training's list.

        Args:
            doubtful: rows of ``doubtful_labels.csv``, most doubtful first.
            labels: case id -> SHA-256 of the label that trained.
            training_round: number of the training.

        Returns:
            The items that are new: an item that was decided, or is on the list, is not asked again.
        """
        wanted: dict[str, list[ReviewItem]] = {}
        count = 0
        for row in doubtful:
            case_id, index, score = str(row["case"]), int(row["slice"]), float(row["score"])
            if count >= MOST_ITEMS or score < LEAST_SCORE:
                break
            if case_id in labels:
                count += 1
                item = ReviewItem(case_id, index, score, str(row["reason"]), training_round, labels[case_id])
                wanted.setdefault(case_id, []).append(item)
        added = []
        for case_id, items in wanted.items():
            with self._files.locks.changing(case_id), self._files.changed(case_id) as values:
                known = {(old["slice"], old["label_sha256"]) for old in values["review"]}
                new = [item for item in items if (item.slice, item.label_sha256) not in known]
                values["review"] = [*values["review"], *(to_json(item) for item in new)]
                added += new
        return added


def center_ras(case: Case, index: int) -> tuple[float, float, float]:
    """The middle of an axial slice, RAS mm: where a viewer jumps to.

    Args:
        case: whose.
        index: slice on the case's axial view, from the feet.
    """
    view = case.ct.geometry.axial_view().geometry
    size = view.size
    right, anterior, superior = (view.ijk_to_ras @ np.array([(size[0] - 1) / 2, (size[1] - 1) / 2, index, 1.0]))[:3]
    return float(right), float(anterior), float(superior)
