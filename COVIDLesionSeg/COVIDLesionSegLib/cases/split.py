"""Which patients train and which validate: frozen once, and only changed by an act that is recorded."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..errors import InputError
from ..files import write_json
from .case_files import CaseFiles
from .gate import GateRule
from .layout import check_rater, counted, now, read_json
from .records import Case

Side = Literal["train", "validation"]
_log = logging.getLogger(__name__)


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

    def reads_blind(self, case: Case) -> bool:
        """Whether a case is to be read without any model's prediction, so that its label can compare models."""
        return self.is_frozen and case.patient in self._values()["blind"]

    def to_read_blind(self, cases: Sequence[Case]) -> list[str]:
        """Ids of those cases that are to be read blind and have no mask yet that no model has drafted."""
        blind = set(self._values()["blind"]) if self.is_frozen else set()
        return [
            case.id
            for case in cases
            if case.patient in blind and not case.exclusion and all(revision.drafts for revision in case.revisions)
        ]

    def choosers(self) -> set[str]:
        """Training patients by whose cases the step and student or teacher are chosen; empty: trainings draw them."""
        return set(self._values().get("choose", ())) if self.is_frozen else set()

    def history(self) -> list[dict[str, Any]]:
        """Every act: freeze, add, move, choose; with time, who, and why."""
        return list(self._values()["history"]) if self.is_frozen else []

    def freeze(
        self,
        validation: Sequence[str] = (),
        share: float = 0.2,
        seed: int = 0,
        by: str = "fine-tuning",
        blind_fraction: float | None = None,
    ) -> dict[str, Side]:
        """Freeze the split of the patients whose cases have labels by now.

        Args:
            validation: validation patients, each as its key or as the id of one of its cases; empty draws ``share`` of
                the patients with lesion, at least one.
            share: fraction of the drawn patients, in (0, 1).
            seed: of the draws.
            by: who.
            blind_fraction: of the validation patients, rounded up, that are read without any model's prediction; None
                takes that of ``Resources/Gate.json``.

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
            fraction = GateRule.shipped().blind_fraction if blind_fraction is None else blind_fraction
            validating = sorted(patient for patient, side in sides.items() if side == "validation")
            blind = sorted(random.Random(seed).sample(validating, math.ceil(fraction * len(validating))))
            act = {"act": "freeze", "when": now(), "by": by, "seed": seed, "share": share, "chosen": sorted(chosen)}
            values = {"version": 2, "patients": sides, "blind": blind, "history": [{**act, "blind": fraction}]}
            write_json(self._files.layout.split_file, values)
            if warning := unnamed(cases):
                _log.warning("%s", warning)
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
            # who validates from now on was corrected from predictions like all that train
            values["choose"] = sorted({*values.get("choose", ())} - {key})
            values["blind"] = sorted(({*values["blind"], key}) if side == "validation" else {*values["blind"]} - {key})
            act = {"act": "move", "when": now(), "by": by, "patient": key, "from": before, "to": side, "why": reason}
            values["history"].append(act)
            write_json(self._files.layout.split_file, values)

    def choose_by(self, patients: Sequence[str], by: str, reason: str = "") -> None:
        """Name the training patients by whose cases the step and student or teacher are chosen; recorded.

        They train no network from the next round on, and no model is validated on them: choosing is not judging.

        Args:
            patients: keys, or ids of their cases; none lets each training draw them again.
            by: who.
            reason: why.

        Raises:
            InputError: not frozen, an unknown patient or one who validates, or nobody with lesion is left to train.
        """
        check_rater(by)
        with self._files.locks.changing("split"):
            values, cases = self._values(), usable(self._files.cases())
            keys = {self._patient(name, cases) for name in patients}
            if validating := sorted(key for key in keys if values["patients"].get(key) == "validation"):
                raise InputError(
                    f"{', '.join(validating)} validates, and can't choose as well.",
                    "Name training patients, or move the patient to train first.",
                )
            training = {
                case.patient
                for case in cases
                if values["patients"].get(case.patient, "train") == "train"
                and not (case.label_revision and case.label_revision.lesion_free)
            }
            if keys and not training - keys:
                raise InputError("No training patient with lesion would be left to train; name fewer patients.")
            act = {"act": "choose", "when": now(), "by": by, "patients": sorted(keys), "why": reason}
            values |= {"choose": sorted(keys), "history": [*values["history"], act]}
            write_json(self._files.layout.split_file, values)

    def set_patient(self, case_id: str, patient: str, by: str) -> Case:
        """Say whose a case is, e.g. that it is a follow-up of another case's patient; recorded.

        The case goes to that patient's side; what earlier trainings saw of it stays on their cards.

        Args:
            case_id: which.
            patient: what tells patients apart (it is not kept), or the key of a patient or the id of one of its cases.
            by: who.

        Raises:
            InputError: no such case, or no patient.
        """
        check_rater(by)
        if not patient.strip():
            raise InputError(f"Say whose {case_id} is, e.g. with the id of another case of the same patient.")
        with self._files.locks.changing("split"):
            cases = self._files.cases()
            case, known = (
                self._files.case(case_id),
                {c.id: c.patient for c in cases} | {c.patient: c.patient for c in cases},
            )
            key = known.get(patient) or self._files.patient_key(patient)
            if self.is_frozen and key != case.patient:
                values = self._values()
                # the key that the case had stays: a program may be killed before the case is written
                side = values["patients"].setdefault(key, values["patients"].get(case.patient, "train"))
                if side == "validation" and case.patient in values["blind"]:
                    values["blind"] = sorted({*values["blind"], key})
                act = {"act": "patient", "when": now(), "by": by, "case": case_id, "from": case.patient, "to": key}
                values["history"].append(act)
                write_json(self._files.layout.split_file, values)
            return self._files.name_patient(case_id, key)

    def statement(self, cases: Sequence[Case]) -> dict[str, Any]:
        """What a model card says about the split that its figures stand on.

        Args:
            cases: the validation cases.
        """
        values = self._values()
        sides: Mapping[str, str] = values["patients"]
        digest = hashlib.sha256(json.dumps(sides, sort_keys=True).encode()).hexdigest()
        # whose a case is may change its side, too
        moves = [act for act in values["history"] if act["act"] in ("move", "patient")]
        patients = {case.patient for case in cases}
        moved = f"patients were moved {counted(len(moves), 'time')} since" if moves else "no patient was moved since"
        return {
            "store": self._files.id,
            "frozen": values["history"][0]["when"],
            "sha256": digest,
            "train_patients": sum(side == "train" for side in sides.values()),
            "validation_patients": len(patients),
            "validation_cases": [case.id for case in cases],
            "moves": moves,
            "warning": unnamed([case for case in self._files.cases() if case.patient in sides]),
            "text": (
                f"Figures stand on {counted(len(cases), 'case')} of {counted(len(patients), 'patient')} "
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


def unnamed(cases: Sequence[Case]) -> str:
    """A warning where a follow-up could stand on both sides of the split, since a patient is a file's name; else ""."""
    count = sum(not case.is_named for case in cases)
    if not count:
        return ""
    return (
        f"{counted(count, 'case')} of {len(cases)} {'is' if count == 1 else 'are'} known by a file's name only: a "
        "follow-up of the same patient may stand on both sides of the split. Name the patients "
        "(`cases patient`, or the column patient of a manifest); the DICOM PatientID counts by itself."
    )


def usable(cases: Sequence[Case]) -> list[Case]:
    """Cases that have a label and are not excluded."""
    return [case for case in cases if not case.exclusion and case.label_revision is not None]
