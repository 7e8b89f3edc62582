"""Training cases, and the split by patient that is frozen once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..documents import read_json
from ..errors import InputError, ReadError
from ..files import sha256_file, user_path, write_json
from ..manifest import case_id, read_manifest
from .randomness import Purpose, draw

SetName = Literal["train", "validation"]
# what a manifest writes in the column `lesion` of a case that is known to have none
NO_LESION = "none"
_VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
SPLIT_VERSION = 1


@dataclass(frozen=True)
class TrainingCase:
    """One labeled CT, or one labeled slice of an image folder.

    Attributes:
        id: unique name.
        patient: whose it is; cases of one patient never stand on both sides of a split.
        image: CT volume (HU), or an 8-bit picture of a slice.
        lesion: mask on the image's grid; None: known to be free of lesion.
        lungs: lung mask on the image's grid; None: found by the lung finder.
        kind: "volume" or "picture".
    """

    id: str
    patient: str
    image: Path
    lesion: Path | None
    lungs: Path | None = None
    kind: Literal["volume", "picture"] = "volume"

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each of its files."""
        files = {"image": self.image, "lesion": self.lesion, "lungs": self.lungs}
        return {name: _hash(path) for name, path in files.items() if path is not None}


def read_cases(path: Path | str) -> list[TrainingCase]:
    """Find the training cases of a manifest or folder.

    Args:
        path: one of
            - a CSV manifest with the columns ct and lesion, and if wanted id, patient and lungs; ``none`` in the column
              lesion says that the case is known to have no lesion; patient is the id where it is absent;
            - a folder with ``<id>_ct``, ``<id>_lesion`` and, if wanted, ``<id>_lungs`` volumes; each id is a patient;
            - a folder with ``images/`` and ``masks/`` of 8-bit pictures of the same name (the layout of COVID-SemiSeg);
              each picture counts as a patient of its own, since such folders do not say.

    Returns:
        Cases, sorted by id.

    Raises:
        ReadError: nothing there that is one of these.
        InputError: a CT without mask or the reverse, or what ``read_manifest`` refuses.
    """
    path = Path(path)
    if path.is_file():
        cases = _from_manifest(path)
    elif (path / "images").is_dir() and (path / "masks").is_dir():
        cases = _from_pictures(path)
    elif path.is_dir():
        cases = _from_volumes(path)
    else:
        raise ReadError(f"The training data {path} are not there; give a manifest (CSV) or a folder.")
    return sorted(cases, key=lambda case: case.id)


def read_pictures(path: Path | str) -> list[TrainingCase]:
    """The pictures of a folder, as cases without masks, sorted by id.

    Raises:
        ReadError: no such folder, or no picture in it.
    """
    path = Path(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _IMAGE_ENDINGS) if path.is_dir() else []
    if not files:
        raise ReadError(f"{path} is not a folder with pictures ({', '.join(_IMAGE_ENDINGS)}).")
    return [TrainingCase(file.stem, file.stem, file, None, kind="picture") for file in files]


def _from_manifest(path: Path) -> list[TrainingCase]:
    cases = []
    for row in read_manifest(path, ["ct", "lesion"], ["patient", "lungs"], text=["lesion", "patient"]):
        none = row["lesion"].lower() == NO_LESION
        lesion = None if none else (path.absolute().parent / user_path(row["lesion"])).resolve()
        lungs = Path(row["lungs"]) if "lungs" in row else None
        image = Path(row["ct"])
        missing = [str(p) for p in (image, lesion, lungs) if p is not None and not p.is_file() and not p.is_dir()]
        if missing:
            raise InputError(
                f"The case {row['id']} of {path.name} names files that are not there: {', '.join(missing)}."
            )
        kind: Literal["volume", "picture"] = "picture" if image.suffix.lower() in _IMAGE_ENDINGS else "volume"
        cases.append(TrainingCase(row["id"], row.get("patient", row["id"]), image, lesion, lungs, kind))
    return cases


def _from_volumes(path: Path) -> list[TrainingCase]:
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(path.iterdir()):
        stem = case_id(file)
        for role in ("ct", "lesion", "lungs"):
            if file.name.lower().endswith(_VOLUME_ENDINGS) and stem.endswith(f"_{role}"):
                found.setdefault(stem[: -len(role) - 1], {})[role] = file
    if not found:
        raise ReadError(
            f"{path.name} holds no training case; <id>_ct and <id>_lesion volumes, or images/ and masks/, are needed."
        )
    _refuse_halves(path, {key: set(files) for key, files in found.items()}, "ct", "lesion")
    return [TrainingCase(key, key, files["ct"], files["lesion"], files.get("lungs")) for key, files in found.items()]


def _from_pictures(path: Path) -> list[TrainingCase]:
    found: dict[str, dict[str, Path]] = {}
    for role in ("images", "masks"):
        for file in sorted((path / role).iterdir()):
            if file.suffix.lower() in _IMAGE_ENDINGS:
                found.setdefault(file.stem, {})[role] = file
    if not found:
        raise ReadError(f"{path.name} has images/ and masks/, but no picture in them.")
    _refuse_halves(path, {key: set(files) for key, files in found.items()}, "images", "masks")
    return [TrainingCase(k, k, files["images"], files["masks"], kind="picture") for k, files in found.items()]


def _refuse_halves(path: Path, roles: dict[str, set[str]], image: str, mask: str) -> None:
    for wanted, other in ((image, mask), (mask, image)):
        bad = sorted(key for key, there in roles.items() if other in there and wanted not in there)
        if bad:
            raise InputError(
                f"{path.name}: {len(bad)} cases have {other} but no {wanted} ({', '.join(bad[:5])}); "
                f"a case without lesion is listed in a manifest with {NO_LESION} as lesion."
            )


@dataclass(frozen=True)
class Split:
    """Which patients train and which judge, with the hashes of their files.

    Attributes:
        sets: patient -> "train" or "validation".
        hashes: case id -> file role -> SHA-256, as they were when the case was added.
    """

    sets: dict[str, SetName]
    hashes: dict[str, dict[str, str]]

    def cases(self, cases: Sequence[TrainingCase], name: SetName) -> list[TrainingCase]:
        """Those of the cases that are on one side."""
        return [case for case in cases if self.sets[case.patient] == name]

    def to_dict(self) -> dict[str, Any]:
        """As :func:`save_split` writes it."""
        return {"version": SPLIT_VERSION, "patients": self.sets, "sha256": self.hashes}


def make_split(
    cases: Sequence[TrainingCase], validation_patients: Sequence[str] = (), share: float = 0.2, seed: int = 0
) -> Split:
    """Split patients into training and validation.

    Args:
        cases: all cases.
        validation_patients: who validates; empty draws ``share`` of those patients that have lesion, at least one.
        share: of the drawn patients, in [0, 1); 0 draws nobody.
        seed: of the draw.

    Raises:
        InputError: fewer than two patients, no lesion anywhere, unknown patients, or nobody left to train.
    """
    patients: dict[str, bool] = {}
    for case in cases:
        patients[case.patient] = patients.get(case.patient, False) or case.lesion is not None
    sets = choose_sets(patients, validation_patients, share, seed)
    return Split(sets, {case.id: case.hashes() for case in cases})


def choose_sets(
    patients: Mapping[str, bool], validation_patients: Sequence[str] = (), share: float = 0.2, seed: int = 0
) -> dict[str, SetName]:
    """Put patients on the two sides of a split; arguments and errors as in :func:`make_split`.

    Args:
        patients: patient -> whether there is a case of theirs with lesion.
        validation_patients: who validates; empty draws ``share`` of those that have lesion, at least one.
        share: of the drawn patients, in [0, 1); 0 draws nobody.
        seed: of the draw.
    """
    if len(patients) < 2 and share > 0:
        raise InputError(
            f"There is one patient only ({', '.join(patients) or 'none'}); at least two are needed, "
            "one to train on and one to judge by."
        )
    diseased = sorted(patient for patient, has_lesion in patients.items() if has_lesion)
    if not diseased:
        raise InputError("No case has a lesion mask; there is nothing to learn.")
    unknown = sorted(set(validation_patients) - set(patients))
    if unknown:
        raise InputError(f"The validation patients {', '.join(unknown)} are not among the cases' patients.")
    chosen = set(validation_patients)
    if not chosen and share > 0:
        count = min(max(1, round(share * len(diseased))), max(1, len(diseased) - 1))
        chosen = set(draw(seed, Purpose.ORDER).permutation(diseased)[:count].tolist())
    if not set(diseased) - chosen:
        raise InputError("Every patient with lesion is chosen for validation; leave at least one to train on.")
    return {patient: "validation" if patient in chosen else "train" for patient in sorted(patients)}


def fold_sets(cases: Sequence[TrainingCase], folds: int, fold: int, seed: int = 0) -> dict[str, SetName]:
    """Patients of a fold; those with and without lesion are dealt separately, so that each fold has of both.

    Args:
        cases: all cases.
        folds: how many there are.
        fold: which one, from 0.
        seed: of the order in which patients are dealt.

    Raises:
        InputError: fewer patients with lesion than folds.
    """
    patients: dict[str, bool] = {}
    for case in cases:
        patients[case.patient] = patients.get(case.patient, False) or case.lesion is not None
    diseased = sorted(patient for patient, has_lesion in patients.items() if has_lesion)
    if len(diseased) < folds:
        raise InputError(
            f"{folds} folds need as many patients with lesion; there are {len(diseased)}. Ask for fewer folds."
        )
    free = sorted(patients.keys() - set(diseased))
    order = [*draw(seed, Purpose.ORDER, folds).permutation(diseased).tolist(), *free]
    return {patient: "validation" if place % folds == fold else "train" for place, patient in enumerate(order)}


def save_split(split: Split, path: Path | str) -> None:
    """Write a split file, whole or not at all."""
    write_json(path, split.to_dict())


def load_split(path: Path | str) -> Split:
    """Read a split file.

    Raises:
        ReadError: not there, or not a split file.
        InputError: of a newer version, or a patient stands on both sides.
    """
    path = Path(path)
    try:
        # a JSON object with a key twice would silently keep the last: that is how a patient stands on both sides
        values = read_json(path, _unique_keys)
        if values["version"] > SPLIT_VERSION:
            raise InputError(
                f"{path.name} is a split of version {values['version']}; this program knows {SPLIT_VERSION}. Update it."
            )
        sets, hashes = dict(values["patients"]), dict(values["sha256"])
    except InputError:
        raise
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReadError(f"{path} can't be read as a split file: {error}.") from error
    bad = sorted(patient for patient, name in sets.items() if name not in ("train", "validation"))
    if bad:
        raise ReadError(f'{path.name}: the set of {bad[0]} must be "train" or "validation".')
    return Split(sets, hashes)


def extend_split(split: Split, cases: Sequence[TrainingCase], judged: bool = True) -> Split:
    """Check that a frozen split still holds for the cases, and add new patients to the training side.

    Args:
        split: the frozen one.
        cases: all cases.
        judged: somebody must validate.

    Raises:
        InputError: a file of a known case has changed since it was frozen, or nobody validates or trains.
    """
    hashes = dict(split.hashes)
    for case in cases:
        now = case.hashes()
        before = hashes.setdefault(case.id, now)
        changed = sorted(role for role in now.keys() | before.keys() if now.get(role) != before.get(role))
        if changed:
            raise InputError(
                f"The {' and '.join(changed)} of case {case.id} changed since the split was frozen; "
                "restore the file, or give the corrected case a new id."
            )
    sets = split.sets | {case.patient: "train" for case in cases if case.patient not in split.sets}
    extended = replace(split, sets=sets, hashes=hashes)
    for name in ("train", "validation") if judged else ("train",):
        if not extended.cases(cases, name):
            raise InputError(f"The split leaves no case for {name}; add cases or make a new split file.")
    return extended


def _hash(path: Path) -> str:
    """Of a file, or of all files of a DICOM folder, whatever they are called."""
    if path.is_file():
        return sha256_file(path)
    parts = sorted(sha256_file(file) for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise InputError(f"The split lists {twice[0]} twice; a patient stands on one side only.")
    return dict(pairs)
