"""What a store knows of a case, as plain values: nothing here reads or writes a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..codec import TRANSIENT
from ..errors import InputError
from ..imaging.geometry import Geometry
from ..imaging.volume import LabelVolume
from .layout import CONSENSUS, case_number

PatientFrom = Literal["given", "dicom", "name", "nothing"]
State = Literal["new", "predicted", "in work", "corrected", "approved", "excluded"]
STATES: tuple[State, ...] = ("new", "predicted", "in work", "corrected", "approved", "excluded")
_HINT = "Resample the mask to the CT's grid, or take the CT that it was drawn on."


@dataclass(frozen=True)
class CtFacts:
    """The CT of a case.

    Attributes:
        storage: "copied" into the store, or "referenced" where it lies.
        file: name in the case's folder; "" for a referenced CT.
        sha256: of the file; for a referenced DICOM folder, of the sorted hashes of its slices.
        voxels_sha256: of the voxels alone; the same CT has the same one in whatever format it comes.
        size: voxels along (i, j, k).
        spacing: mm along (i, j, k).
        origin: LPS, mm.
        direction: row-major.
    """

    storage: Literal["copied", "referenced"]
    file: str
    sha256: str
    voxels_sha256: str
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @property
    def geometry(self) -> Geometry:
        """The grid."""
        return Geometry(self.size, self.spacing, self.origin, self.direction)


@dataclass(frozen=True)
class LungsFacts:
    """The lung mask of a case: file in its folder, hash, and whether it was "given" or "found"."""

    file: str
    sha256: str
    source: str


#: The probability of a prediction, in its folder: ``inference.ProbabilityLevels.to_bytes()``.
LEVELS_FILE = "probability.npz"
MOST_LEVELS_BYTES = 1 << 30


@dataclass(frozen=True)
class Prediction:
    """A model's prediction.

    Attributes:
        number: 1, 2, ... within the case; the largest one is the one that counts.
        model: id, name and weights_sha256 of the model, as far as they are known.
        lesion_ml: volume of the lesion, mL.
        uncertainty: name -> value: "tta_entropy" (bits, 0 ... 1) and "disagreement" (1 - Dice of student and teacher),
            as far as they were computed.
        file: name in the prediction's folder.
        sha256: of the file.
        saved: when, UTC.
        levels_sha256: of the probability beside it, see :data:`LEVELS_FILE`; "" where none was kept.
    """

    number: int
    model: Mapping[str, str]
    lesion_ml: float
    uncertainty: Mapping[str, float] = field(default_factory=dict)
    file: str = ""
    sha256: str = ""
    saved: str = ""
    levels_sha256: str = ""

    @property
    def model_id(self) -> str:
        """Id of the model, or "unknown"."""
        return self.model.get("id") or "unknown"


@dataclass(frozen=True)
class Revision:
    """A mask that a person saved, or the consensus of several persons.

    Attributes:
        number: 1, 2, ... within the case, whoever saved it; the order in which they were saved.
        rater: who.
        lesion_ml: volume of the lesion, mL.
        lesion_free: the rater says that the case has no lesion.
        seconds: time spent on it.
        prediction: number of the case's last prediction when it was saved; None without one.
        model: id of the model of that prediction, or "".
        dice_to_prediction: overlap with that prediction, 0 ... 1; None without one.
        drafts: numbers of the case's predictions that drafted it: what the rater began from or could see, and what that
            in turn was drafted by; empty for a mask that was drawn without a model (read blind, drawn before any
            prediction, imported).
        kind: "correction", "import" or "consensus".
        sources: the revisions that a consensus was made of.
        comment: of the rater.
        file: name in the revision's folder.
        sha256: of the file.
        saved: when, UTC.
    """

    number: int
    rater: str
    lesion_ml: float
    lesion_free: bool = False
    seconds: float = 0.0
    prediction: int | None = None
    model: str = ""
    dice_to_prediction: float | None = None
    drafts: tuple[int, ...] = ()
    kind: Literal["correction", "import", "consensus"] = "correction"
    sources: tuple[int, ...] = ()
    comment: str = ""
    file: str = ""
    sha256: str = ""
    saved: str = ""


@dataclass(frozen=True)
class ReviewItem:
    """A slice whose label looks doubtful.

    Attributes:
        case: id.
        slice: index on the case's axial view, from the feet.
        score: how doubtful, see ``learning.noise_robust.DoubtfulLabel``.
        reason: as a sentence.
        round: of the training that found it.
        label_sha256: of the label that it is about; a newer label settles it.
        decision: "" (open), "right" or "fix".
        by: who decided.
        decided: when, UTC.
        comment: of who decided.
    """

    case: str
    slice: int
    score: float
    reason: str
    round: int
    label_sha256: str
    decision: Literal["", "right", "fix"] = ""
    by: str = ""
    decided: str = ""
    comment: str = ""


@dataclass(frozen=True)
class LockInfo:
    """Who has a case open.

    Attributes:
        case: id.
        owner: rater.
        host: name of the computer.
        pid: process there.
        since: when it was opened, UTC, by that computer's clock.
        age_s: seconds since the last sign of life, by the file server's clock.
        abandoned: the owner is known or presumed to be gone, so that the case may be taken over.
        why: what the owner's state is concluded from.
        token: tells this lock from any other.
        blind: it is read without any model's prediction.
    """

    case: str
    owner: str
    host: str
    pid: int
    since: str
    age_s: float
    abandoned: bool
    why: str
    token: str
    blind: bool = False

    def __str__(self) -> str:
        return f"{self.owner} on {self.host} since {self.since}, last seen {_duration(self.age_s)} ago"


@dataclass(frozen=True)
class Case:
    """A case as the store knew it when it was asked.

    Attributes:
        id: "case-0001", ...; carries no patient data.
        patient: opaque key; the cases of one patient share it.
        patient_from: what the patient is known by: "given" (by a person or a manifest), "dicom" (the PatientID), "name"
            (of its file or in its data set) or "nothing" (the case counts as a patient of its own). A follow-up can be
            told from another patient in the first two only.
        dicom_patient: the key of the DICOM PatientID, or "".
        added: when, UTC.
        ct: the CT.
        lungs: the lung mask, if there is one.
        note: free text.
        label: which revision trains: "latest" (the approved one, else the last), "consensus", or a revision's number.
        approved: number of the approved revision.
        approved_by: who approved it.
        exclusion: why the case is excluded, or "".
        predictions: of models, oldest first.
        revisions: what people saved, oldest first.
        review: doubtful slices and what was decided.
        lock: who has it open, or None.
        unsaved: raters with an autosave that was not saved as a revision.
    """

    id: str
    patient: str
    added: str
    ct: CtFacts
    lungs: LungsFacts | None = None
    note: str = ""
    label: str = "latest"
    approved: int | None = None
    approved_by: str = ""
    exclusion: str = ""
    predictions: tuple[Prediction, ...] = ()
    revisions: tuple[Revision, ...] = ()
    review: tuple[ReviewItem, ...] = ()
    lock: LockInfo | None = field(default=None, metadata=TRANSIENT)
    unsaved: tuple[str, ...] = field(default=(), metadata=TRANSIENT)
    patient_from: PatientFrom = "nothing"
    dicom_patient: str = ""

    @property
    def number(self) -> int:
        """Cases are numbered in the order in which they were added."""
        return case_number(self.id)

    @property
    def state(self) -> State:
        """The state: new, predicted, in work, corrected, approved or excluded."""
        if self.exclusion:
            return "excluded"
        if (self.lock is not None and not self.lock.abandoned) or self.unsaved:
            return "in work"
        if self.approved is not None:
            return "approved"
        if self.revisions:
            return "corrected"
        return "predicted" if self.predictions else "new"

    @property
    def prediction(self) -> Prediction | None:
        """The prediction that counts: the last one."""
        return self.predictions[-1] if self.predictions else None

    def revision(self, number: int) -> Revision | None:
        """A revision by its number."""
        return next((revision for revision in self.revisions if revision.number == number), None)

    def latest(self, rater: str | None = None) -> Revision | None:
        """The last revision that a person saved, or that this one saved."""
        found = [r for r in self.revisions if (r.kind != CONSENSUS if rater is None else r.rater == rater)]
        return found[-1] if found else None

    @property
    def raters(self) -> tuple[str, ...]:
        """Who saved a revision, in the order of their first one."""
        return tuple(dict.fromkeys(r.rater for r in self.revisions if r.kind != CONSENSUS))

    @property
    def label_revision(self) -> Revision | None:
        """The revision that trains and validates, or None where there is none (yet)."""
        if self.label == CONSENSUS:
            return self.latest(CONSENSUS)
        if self.label != "latest":
            return self.revision(int(self.label))
        return self.revision(self.approved) if self.approved is not None else self.latest()

    def drafted_by(self, revision: Revision) -> tuple[Prediction, ...]:
        """The predictions that drafted a revision; empty where it was drawn without a model."""
        return tuple(prediction for prediction in self.predictions if prediction.number in revision.drafts)

    @property
    def is_named(self) -> bool:
        """Whether the patient is known by more than a file's name, so that a follow-up is told from another patient."""
        return self.patient_from in ("given", "dicom")

    @property
    def consensus_is_current(self) -> bool:
        """Whether the stored consensus was made of every rater's last revision."""
        made = self.latest(CONSENSUS)
        wanted = {revision.number for rater in self.raters if (revision := self.latest(rater)) is not None}
        return made is not None and set(made.sources) == wanted

    @property
    def lesion_ml(self) -> float | None:
        """Volume of the lesion as far as it is known: of the label, else of the model's prediction, mL."""
        known = self.label_revision or self.latest() or self.prediction
        return None if known is None else known.lesion_ml

    def open_reviews(self) -> tuple[ReviewItem, ...]:
        """Doubtful slices of the present label that nobody has decided on."""
        return tuple(item for item in self.present_reviews() if not item.decision)

    def slices_to_fix(self) -> tuple[ReviewItem, ...]:
        """Slices of the present label that somebody marked "fix it"."""
        return tuple(item for item in self.present_reviews() if item.decision == "fix")

    def present_reviews(self) -> tuple[ReviewItem, ...]:
        """The items that are about the label as it is now."""
        label = self.label_revision
        return tuple(item for item in self.review if label is not None and item.label_sha256 == label.sha256)

    def labels(self, mask: LabelVolume | NDArray[Any], what: str) -> LabelVolume:
        """A mask on the grid of the CT; a mask without names is lesion.

        Args:
            mask: (z, y, x), bool or whole numbers from 0 to 65535; every label is lesion.
            what: how to call the mask in messages.

        Raises:
            GridMismatchError: another grid; the message names the difference.
            InputError: fractions, negative numbers, NaN.
        """
        grid = self.ct.geometry
        if isinstance(mask, LabelVolume):
            mask.geometry.require_same(grid, what, f"CT of {self.id}", _HINT)
            labels = mask
        else:
            array = np.asarray(mask)
            grid.require_shape(array, what)
            labels = LabelVolume(array, grid)
        array = labels.array
        if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
            array = array.astype(np.int64)
        if array.dtype.kind not in "biu" or (array.dtype.kind != "b" and (array.min() < 0 or array.max() > 65535)):
            raise InputError(
                f"The {what} of {self.id} holds {array.dtype} values that are no labels; "
                "whole numbers from 0 are needed.",
                "Compare a probability with a threshold first, e.g. probability > 0.5.",
            )
        if array.dtype.kind == "b":
            array = array.view(np.uint8)
        elif array.dtype.itemsize > 2:
            array = array.astype(np.uint16)
        return replace(labels, array=array, names=labels.names or {1: "lesion"})


def lesion_ml(labels: LabelVolume) -> float:
    """Volume of everything that is not background, mL."""
    return float(np.count_nonzero(labels.array)) * labels.geometry.voxel_ml


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
