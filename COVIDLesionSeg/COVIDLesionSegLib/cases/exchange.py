"""Data sets into a store and out of it: pairs of CT and mask, nnU-Net's and MONAI Label's folders, manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..documents import read_object
from ..errors import CancelledError, COVIDLesionSegError, InputError, OutputError, ReadError
from ..files import atomic_folder, user_path, write_json
from ..imaging import image_stem, image_suffix
from ..manifest import read_manifest
from .case_files import CaseFiles, KnownCtError
from .layout import check_rater
from .split import StoreSplit, unnamed, usable

Layout = Literal["auto", "pairs", "manifest", "nnunet", "monai-label"]
LAYOUTS: tuple[Layout, ...] = ("auto", "pairs", "manifest", "nnunet", "monai-label")
# what a manifest writes for a case that is known to have no lesion
NO_LESION = "none"
_FOLDERS = {"ct": ("ct", "cts", "image", "images"), "lesion": ("lesion", "lesions", "mask", "masks", "label", "labels")}


@dataclass(frozen=True)
class ImportItem:
    """One case of a data set.

    Attributes:
        name: what the data set calls it; it is shown to the user and not kept in the store.
        ct: its CT.
        mask: an expert's mask; None without one.
        lesion_free: the data set says that there is no lesion.
        prediction: of a model in the other program; None without one.
        lungs: lung mask.
        patient: whose it is; where it is not said, the DICOM PatientID counts, else the name.
    """

    name: str
    ct: Path
    mask: Path | None = None
    lesion_free: bool = False
    prediction: Path | None = None
    lungs: Path | None = None
    patient: str = ""


@dataclass(frozen=True)
class ImportReport:
    """What came of an import; names are the data set's.

    Attributes:
        done: name -> id of the case that it became, or whose first mask it is.
        known: name -> id of the case that has this CT already, and a mask or none to get.
        failed: name -> why it was left out, as a sentence.
        warnings: what a person should know, one sentence each.
    """

    done: Mapping[str, str]
    known: Mapping[str, str]
    failed: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def import_cases(
    files: CaseFiles,
    source: Path | str,
    layout: Layout = "auto",
    *,
    rater: str = "imported",
    label: int | str | None = None,
    copy: bool = True,
    approve: bool = False,
    empty_is_lesion_free: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> ImportReport:
    """Take a data set in; each mask becomes the first revision of its case.

    A case that can't be taken in is reported and does not stop the others. Running the import again takes in what is
    new: also the mask of a CT that the store has without any.

    Args:
        files: the store's cases.
        source: one of

            - "pairs": ``<id>_ct`` and ``<id>_lesion`` (and ``<id>_lungs``) volumes, or the folders ``images/`` and
              ``masks/`` (``ct/``, ``labels/``, ...) with files of the same name;
            - "manifest": a CSV with the columns ct and, if wanted, lesion ("none": known to have none), id, patient,
              lungs;
            - "nnunet": a folder with ``imagesTr/`` and ``labelsTr/`` (``dataset.json`` beside them);
            - "monai-label": a data store of MONAI Label: images, ``labels/final/``, and ``labels/original/``, which
              become models' predictions.
        layout: which of these; "auto" looks.
        rater: who made the masks.
        label: which label of the masks is lesion, by value or name; needed where a data set has several.
        copy: keep copies of the CTs; False refers to them where they are.
        approve: approve the masks, too.
        empty_is_lesion_free: an empty mask says that there is no lesion; else the case is left out, since it may be
            forgotten work.
        progress: called as progress("importing", done, total).
        cancelled: asked between cases; what is done stays.

    Raises:
        ReadError: nothing there that is one of these.
        InputError: several labels and no choice, or a name that is not allowed.
        OutputError: the store can't be written to, or the disk is full.
        CancelledError: asked to stop.
    """
    check_rater(rater)
    source = Path(source)
    items = _READERS[_detected(source) if layout == "auto" else _known_layout(layout)](source, label)
    if not items:
        raise ReadError(f"{source} holds no case that can be imported as {layout}.")
    done: dict[str, str] = {}
    known: dict[str, str] = {}
    failed: dict[str, str] = {}
    for number, item in enumerate(items):
        if cancelled is not None and cancelled():
            raise CancelledError(f"Stopped after {len(done)} of {len(items)} cases; run the import again to go on.")
        if progress is not None:
            progress("importing", number, len(items))
        try:
            done[item.name] = _import_one(files, item, rater, label, copy, approve, empty_is_lesion_free)
        except KnownCtError as error:
            known[item.name] = error.case_id
        except OutputError:
            raise
        except COVIDLesionSegError as error:
            failed[item.name] = str(error)
    if progress is not None:
        progress("importing", len(items), len(items))
    warning = unnamed([case for case in files.cases() if case.id in set(done.values())])
    return ImportReport(done, known, failed, (warning,) if warning else ())


def _import_one(
    files: CaseFiles,
    item: ImportItem,
    rater: str,
    label: int | str | None,
    copy: bool,
    approve: bool,
    empty_is_lesion_free: bool,
) -> str:
    from ..imaging import read_labels, read_volume

    # everything that can be wrong is found before anything is written
    volume = read_volume(item.ct)
    masks = {}
    for role, path in (("mask", item.mask), ("model's prediction", item.prediction)):
        if path is not None:
            masks[role] = read_labels(path, label)
            masks[role].geometry.require_same(volume.geometry, role, "CT")
    mask = masks.get("mask")
    no_lesion = item.lesion_free or (mask is not None and not mask.array.any())
    if no_lesion and not item.lesion_free and not empty_is_lesion_free:
        raise InputError("Its mask is empty.", "If that means 'no lesion', say so with --empty-is-lesion-free.")
    try:
        case = files.add(item.ct, item.patient, copy=copy, lungs=item.lungs, volume=volume, fallback=item.name)
    except KnownCtError as error:
        case = files.case(error.case_id)
        if case.revisions or (mask is None and not item.lesion_free):
            raise
        # an import that was ended before the mask was saved, or a CT that was added alone; equal voxels may lie on
        # another grid
        volume.geometry.require_same(case.ct.geometry, "CT", f"CT of {case.id}")
    if "model's prediction" in masks and case.prediction is None:
        files.set_prediction(case.id, masks["model's prediction"].mask(), {"id": "unknown", "name": "MONAI Label"})
    if mask is not None or item.lesion_free:
        array = np.zeros(volume.array.shape, dtype=bool) if mask is None else mask.mask()
        files.save_revision(case.id, array, rater, no_lesion=no_lesion, is_import=True)
        if approve:
            files.approve(case.id, rater)
    return case.id


def export_nnunet(
    files: CaseFiles,
    split: StoreSplit,
    folder: Path | str,
    number: int = 501,
    name: str = "COVIDLesion",
    progress: Callable[[str, int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Write the labeled cases in the format of nnU-Net version 2, with the frozen split as its only fold.

    Args:
        files: the store's cases.
        split: which patients train and which validate.
        folder: in which ``Dataset501_COVIDLesion`` is made (nnU-Net's ``nnUNet_raw``).
        number: of the data set, 1 ... 999.
        name: of the data set.
        progress: called as progress("exporting", done, total).
        cancelled: asked between cases.

    Returns:
        The data set's folder: ``imagesTr``, ``labelsTr`` (1 is lesion), ``dataset.json``, and ``splits_final.json``,
        which belongs into nnU-Net's folder of preprocessed data. The names are the store's ids; nothing private is
        written.

    Raises:
        InputError: no labels yet, a folder that is there already, a number or name that is not allowed.
        ReadError: a CT or mask that changed or is missing.
        OutputError: the folder can't be written to.
        CancelledError: asked to stop; nothing stays.
    """
    from ..imaging import LabelVolume, write_labels, write_volume

    if not 1 <= number <= 999 or not name.isidentifier():
        raise InputError(f"Dataset{number:03d}_{name} is no name of nnU-Net's; a number from 1 to 999 and letters are.")
    cases = usable(files.cases())
    if not cases:
        raise InputError("No case has a label yet; there is nothing to export.")
    target = Path(folder) / f"Dataset{number:03d}_{name}"
    if target.exists():
        raise InputError(f"{target} is there already; choose another folder, number or name.")
    with atomic_folder(target) as place:
        for done, case in enumerate(cases):
            if cancelled is not None and cancelled():
                raise CancelledError(f"Stopped after {done} of {len(cases)} cases; nothing was written.")
            if progress is not None:
                progress("exporting", done, len(cases))
            volume, mask = files.read_ct(case.id), files.read_revision(case.id).mask()
            write_volume(volume, place / "imagesTr" / f"{case.id}_0000.nii.gz")
            write_labels(LabelVolume(mask.view("uint8"), volume.geometry), place / "labelsTr" / f"{case.id}.nii.gz")
        if split.is_frozen:
            sides = split.sides()
            fold = {
                part: [case.id for case in cases if sides.get(case.patient, "train") == side]
                for part, side in (("train", "train"), ("val", "validation"))
            }
            write_json(place / "splits_final.json", [fold])
        description = {
            "name": name,
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "lesion": 1},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        }
        write_json(place / "dataset.json", description)
    if progress is not None:
        progress("exporting", len(cases), len(cases))
    return target


# --- what data sets look like ----------------------------------------------------------------------------------------


def _detected(source: Path) -> Layout:
    if source.is_file():
        return "manifest"
    if not source.is_dir():
        raise ReadError(f"{source} is not there; give a folder or a manifest (CSV).")
    if (source / "imagesTr").is_dir():
        return "nnunet"
    if (source / "datastore_v2.json").is_file() or (source / "labels" / "final").is_dir():
        return "monai-label"
    return "pairs"


def _known_layout(layout: str) -> Layout:
    for known in LAYOUTS:
        if known == layout:
            return known
    raise InputError(f"The layout {layout!r} is unknown; use one of {', '.join(LAYOUTS)}.")


def _from_manifest(source: Path, _: int | str | None) -> list[ImportItem]:
    items = []
    for row in read_manifest(source, ["ct"], ["lesion", "patient", "lungs"], text=["lesion", "patient"]):
        lesion = row.get("lesion", "")
        none = lesion.lower() == NO_LESION
        mask = None if none or not lesion else (source.absolute().parent / user_path(lesion)).resolve()
        lungs = Path(row["lungs"]) if "lungs" in row else None
        items.append(ImportItem(row["id"], Path(row["ct"]), mask, none, lungs=lungs, patient=row.get("patient", "")))
    return items


def _from_pairs(source: Path, _: int | str | None) -> list[ImportItem]:
    folders = {
        role: next((source / name for name in names if (source / name).is_dir()), None)
        for role, names in _FOLDERS.items()
    }
    if folders["ct"] is not None:
        cts = dict(_images(folders["ct"]))
        masks = {} if folders["lesion"] is None else dict(_images(folders["lesion"]))
        _require_cts(source, sorted(masks.keys() - cts.keys()))
        return [ImportItem(name, path, masks.get(name)) for name, path in cts.items()]
    found: dict[str, dict[str, Path]] = {}
    for stem, path in _images(source):
        for role in ("ct", "lesion", "lungs"):
            if stem.endswith(f"_{role}"):
                found.setdefault(stem[: -len(role) - 1], {})[role] = path
    _require_cts(source, sorted(name for name, files in found.items() if "ct" not in files), empty=not found)
    return [ImportItem(name, f["ct"], f.get("lesion"), lungs=f.get("lungs")) for name, f in sorted(found.items())]


def _require_cts(source: Path, lonely: Sequence[str], empty: bool = False) -> None:
    if lonely or empty:
        what = f"{len(lonely)} masks have no CT ({', '.join(lonely[:5])})" if lonely else "no CT was found"
        raise ReadError(
            f"{source.name}: {what}; needed are <id>_ct and <id>_lesion files, or images/ and masks/ with equal names."
        )


def _from_nnunet(source: Path, label: int | str | None) -> list[ImportItem]:
    if not (source / "imagesTr").is_dir():
        raise ReadError(f"{source.name} has no imagesTr/, so it is no data set of nnU-Net.")
    description = _json(source / "dataset.json") if (source / "dataset.json").is_file() else {}
    _require_choice(source, description.get("labels", {}), label)
    images: dict[str, Path] = {}
    for stem, path in _images(source / "imagesTr"):
        name, _, channel = stem.rpartition("_")
        if channel == "0000":
            images[name] = path
        elif channel.isdecimal() and len(channel) == 4:
            raise InputError(f"{source.name} has several channels ({path.name}); a CT has one.")
        else:
            # the first version of the format had data sets of one channel without its number
            images[stem] = path
    masks = dict(_images(source / "labelsTr")) if (source / "labelsTr").is_dir() else {}
    return [ImportItem(name, path, masks.get(name)) for name, path in sorted(images.items())]


def _from_monai_label(source: Path, _: int | str | None) -> list[ImportItem]:
    config = source / "datastore_v2.json"
    description = _json(config) if config.is_file() else {}
    images = dict(_images(source / description.get("images_dir", ".")))
    labels = source / description.get("labels_dir", "labels")
    final, original = (dict(_images(labels / tag)) if (labels / tag).is_dir() else {} for tag in ("final", "original"))
    return [ImportItem(name, path, final.get(name), prediction=original.get(name)) for name, path in images.items()]


_READERS: dict[Layout, Callable[[Path, int | str | None], list[ImportItem]]] = {
    "manifest": _from_manifest,
    "pairs": _from_pairs,
    "nnunet": _from_nnunet,
    "monai-label": _from_monai_label,
}


def _images(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name without ending, file) of the volumes in a folder, and of DICOM folders, sorted."""
    if not folder.is_dir():
        raise ReadError(f"The folder {folder} is not there.")
    for path in sorted(folder.iterdir()):
        if path.is_file() and image_suffix(path) and not path.name.startswith("."):
            yield image_stem(path), path


def _require_choice(source: Path, labels: Any, label: int | str | None) -> None:
    # version 1 maps numbers to names, version 2 names to numbers
    pairs = labels.items() if isinstance(labels, dict) else ()
    names = [str(key) for key, value in pairs if value != 0 and key != "0"]
    if len(names) > 1 and label is None:
        shown = ", ".join(f"{name}: {labels[name]}" for name in names)
        raise InputError(f"{source.name} has several labels ({shown}); say which is lesion with --label VALUE.")


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError as error:
        raise ReadError(f"{path} is not there.") from error
