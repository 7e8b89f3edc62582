"""Which patients train and which judge: frozen once, and only changed by an act that is recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..errors import InputError
from ..files import write_json
from .case_files import CaseFiles
from .layout import check_rater, counted, now, read_json
from .records import Case

Side = Literal["train", "validation"]


class StoreSplit:
    """The split of a store by patient.

    Args:
        files: the store's cases.
    """

    def __init__(self, files: CaseFiles) -> None:
        self._files = files

    @property
    def is_frozen(self) -> bool:
        """Whether the split was made."""
        return self._files.layout.split_file.is_file()

    def sides(self) -> dict[str, Side]:
        """Patient -> "train" or "validation"; empty before the split is frozen."""
        return dict(self._values()["patients"]) if self.is_frozen else {}

    def side(self, case: Case) -> Side | None:
        """The side of a case; patients that the split does not know train. None before the split is frozen."""
        return self.sides().get(case.patient, "train") if self.is_frozen else None

    def history(self) -> list[dict[str, Any]]:
        """Every act: freeze, add, move; with time, who, and why."""
        return list(self._values()["history"]) if self.is_frozen else []

    def freeze(
        self, validation: Sequence[str] = (), share: float = 0.2, seed: int = 0, by: str = "fine-tuning"
    ) -> dict[str, Side]:
        """Freeze the split of the patients whose cases have labels by now.

        Args:
            validation: patients who judge, each as its key or as the id of one of its cases; empty draws ``share`` of
                the patients with lesion, at least one.
            share: of the drawn patients, in (0, 1).
            seed: of the draw.
            by: who.

        Raises:
            InputError: frozen already; fewer than two patients, no lesion anywhere, nobody left to train.
        """
        from ..learning.data import choose_sets

        with self._files.locks.changing("split"):
            if self.is_frozen:
                raise InputError(
                    "The split of this store is frozen already; move single patients if you must.",
                    "`covid-lesion-seg cases split` shows it.",
                )
            cases = usable(self._files.cases())
            patients: dict[str, bool] = {}
            for case in cases:
                label = case.label_revision
                has_lesion = label is not None and not label.lesion_free
                patients[case.patient] = patients.get(case.patient, False) or has_lesion
            chosen = [self._patient(name, cases) for name in validation]
            sides: dict[str, Side] = dict(choose_sets(patients, chosen, share, seed))
            act = {"act": "freeze", "when": now(), "by": by, "seed": seed, "share": share, "chosen": sorted(chosen)}
            write_json(self._files.layout.split_file, {"version": 1, "patients": sides, "history": [act]})
        return sides

    def extend(self, by: str = "fine-tuning") -> list[str]:
        """Add the patients that are new since the split was frozen to the training side.

        Returns:
            The new patients.
        """
        with self._files.locks.changing("split"):
            values = self._values()
            new = sorted({case.patient for case in usable(self._files.cases())} - set(values["patients"]))
            if new:
                values["patients"] |= dict.fromkeys(new, "train")
                values["history"].append({"act": "add", "when": now(), "by": by, "patients": new})
                write_json(self._files.layout.split_file, values)
        return new

    def move(self, patient: str, side: Side, by: str, reason: str) -> None:
        """Move a patient to the other side; recorded, because figures from before no longer compare.

        Args:
            patient: key, or the id of one of the patient's cases.
            side: where to.
            by: who.
            reason: why.

        Raises:
            InputError: not frozen, unknown patient, no reason, there already, or a side would be empty.
        """
        check_rater(by)
        if side not in ("train", "validation"):
            raise InputError(f"The side {side!r} is unknown; use train or validation.")
        if not reason.strip():
            raise InputError("Say why the patient is moved; it is recorded, since earlier figures no longer compare.")
        with self._files.locks.changing("split"):
            values = self._values()
            key = self._patient(patient, self._files.cases())
            before = values["patients"].get(key)
            if before == side:
                raise InputError(f"The patient {key} is on the {side} side already.")
            values["patients"][key] = side
            if len(set(values["patients"].values())) < 2:
                raise InputError(f"Moving {key} would leave nobody for {before}; move another patient there first.")
            act = {"act": "move", "when": now(), "by": by, "patient": key, "from": before, "to": side, "why": reason}
            values["history"].append(act)
            write_json(self._files.layout.split_file, values)

    def statement(self, cases: Sequence[Case]) -> dict[str, Any]:
        """What a model card says about the split that its figures stand on.

        Args:
            cases: those that judged.
        """
        values = self._values()
        sides: Mapping[str, str] = values["patients"]
        digest = hashlib.sha256(json.dumps(sides, sort_keys=True).encode()).hexdigest()
        moves = [act for act in values["history"] if act["act"] == "move"]
        judges = sorted({case.patient for case in cases})
        moved = f"patients were moved {counted(len(moves), 'time')} since" if moves else "no patient was moved since"
        return {
            "store": self._files.id,
            "frozen": values["history"][0]["when"],
            "sha256": digest,
            "train_patients": sum(side == "train" for side in sides.values()),
            "validation_patients": len(judges),
            "validation_cases": [case.id for case in cases],
            "moves": moves,
            "text": (
                f"Figures stand on {counted(len(cases), 'case')} of {counted(len(judges), 'patient')} "
                f"kept from training since {values['history'][0]['when'][:10]}; {moved}."
            ),
        }

    def _values(self) -> dict[str, Any]:
        if not self.is_frozen:
            raise InputError(
                "The split of this store is not frozen yet.",
                "The first fine-tuning does it, or `cases split --freeze`.",
            )
        values: dict[str, Any] = read_json(self._files.layout.split_file)
        return values

    def _patient(self, name: str, cases: Sequence[Case]) -> str:
        patients = {case.patient for case in cases}
        found = name if name in patients else next((case.patient for case in cases if case.id == name), None)
        if found is None:
            raise InputError(
                f"{name!r} is neither a patient's key nor the id of a case that can be used.",
                "`covid-lesion-seg cases list` shows both.",
            )
        return found


def usable(cases: Sequence[Case]) -> list[Case]:
    """Cases that have a label and are not excluded."""
    return [case for case in cases if not case.exclusion and case.label_revision is not None]
