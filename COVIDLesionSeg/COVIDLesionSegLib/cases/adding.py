"""A CT becomes a case: read and checked, its identity left behind, copied or referenced by hash."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import atomic_folder, sha256_file, write_json
from ..imaging.geometry import Geometry
from ..imaging.volume import LabelVolume, Volume
from ..inference.record import sha256_array
from .layout import case_name, case_number, now
from .records import Case, CtFacts, LungsFacts

if TYPE_CHECKING:
    from .store import Store

_log = logging.getLogger(__name__)
Mask = LabelVolume | NDArray[Any]
# DICOM tags that are kept beside a case when somebody asks for it
_IDENTITY = {
    "PatientID": "0010|0020",
    "StudyInstanceUID": "0020|000d",
    "SeriesInstanceUID": "0020|000e",
    "StudyDate": "0008|0020",
}


class KnownCtError(InputError):
    """The CT is in the store already.

    Attributes:
        case_id: as this case.
    """

    def __init__(self, case_id: str) -> None:
        super().__init__(f"This CT is in the store already, as {case_id}.")
        self.case_id = case_id


def add_case(
    store: Store,
    ct: Path | str,
    patient: str | None = None,
    *,
    copy: bool = True,
    lungs: Mask | Path | str | None = None,
    series: str | None = None,
    rescale: Sequence[float] | None = None,
    keep_identity: bool = False,
    note: str = "",
    volume: Volume | None = None,
    fallback: str = "",
) -> Case:
    """Add a CT as a new case.

    A copy holds voxels and grid only, as ``ct.nrrd``: names, dates and comments of the original's header stay behind. A
    referenced CT stays where it is; the store keeps its hash, and its path in ``private/``.

    Args:
        store: the store.
        ct: file or DICOM folder.
        patient: what tells patients apart (it is not kept, see ``Store.patient_key``); by default the DICOM patient ID,
            else ``fallback``, else the case counts as a patient of its own.
        copy: keep a copy in the store; False keeps a reference.
        lungs: lung mask on the CT's grid, or its file.
        series: SeriesInstanceUID, for a DICOM folder with several.
        rescale: (slope, intercept) for values that are not HU; needs a copy.
        keep_identity: keep the DICOM patient ID, study date and UIDs, or the file's name, in ``private/``.
        note: free text.
        volume: the CT, where it was read already.
        fallback: what tells patients apart where neither ``patient`` nor the CT says it.

    Raises:
        ReadError, GeometryError, IntensityError: no CT that can be used, see ``imaging.read_volume``.
        KnownCtError: this CT is in the store already.
        InputError: it can't be referenced.
        OutputError: the store can't be written to.
    """
    from ..imaging import read_volume, write_volume

    path = Path(ct)
    if rescale is not None and not copy:
        raise InputError("A CT whose values are rescaled can't be referenced; let the store keep a copy.")
    volume = volume or read_volume(path, series, rescale)
    facts = {
        "voxels_sha256": sha256_array(volume.array),
        **{name: getattr(volume.geometry, name) for name in ("size", "spacing", "origin", "direction")},
    }
    identity = _identity(path, series) if volume.source["format"] == "DICOM" else {}
    known_as = patient or identity.get("PatientID") or fallback
    key = store.patient_key(known_as or f"case {facts['voxels_sha256']}")
    if not known_as:
        _log.info("No patient is known for this CT; it counts as a patient of its own.")
    with store.locks.changing("store"):
        known = next((c for c in store.cases() if c.ct.voxels_sha256 == facts["voxels_sha256"]), None)
        if known is not None:
            raise KnownCtError(known.id)
        while True:
            case_id = case_name(max((case_number(p.name) for p in store.layout.cases.iterdir()), default=0) + 1)
            # what is private comes first: a case without it could not be found again
            if not copy:
                write_json(store.layout.location_file(case_id), {"path": str(path.resolve()), "series": series})
            if keep_identity:
                write_json(store.layout.identity_file(case_id), identity or {"file": path.name})
            try:
                with atomic_folder(store.layout.case(case_id)) as folder:
                    if copy:
                        write_volume(volume, folder / "ct.nrrd")
                        stored = CtFacts("copied", "ct.nrrd", sha256_file(folder / "ct.nrrd"), **facts)
                    else:
                        stored = CtFacts("referenced", "", str(volume.source["sha256"]), **facts)
                    mask = (
                        None if lungs is None else write_lungs(_lungs(lungs, volume), volume.geometry, folder, "given")
                    )
                    case = Case(case_id, key, now(), stored, mask, note)
                    values = case.to_json()
                    write_json(
                        folder / "origin.json",
                        {name: values[name] for name in ("id", "patient", "added", "ct", "lungs")},
                    )
                    write_json(folder / "case.json", values)
            except FileExistsError:
                continue
            return store.case(case_id)


def write_lungs(lungs: Mask, geometry: Geometry, folder: Path, source: str) -> LungsFacts:
    """Write a lung mask into a case's folder.

    Args:
        lungs: (z, y, x), 1 right and 2 left, or 1 for both.
        geometry: grid of the CT.
        folder: of the case.
        source: "given" or "found".
    """
    from ..imaging import write_labels

    if not isinstance(lungs, LabelVolume):
        array = np.asarray(lungs)
        geometry.require_shape(array, "lung mask")
        array = array.astype(np.uint8)
        names = {1: "right lung", 2: "left lung"} if array.max(initial=0) == 2 else {1: "lungs"}
        lungs = LabelVolume(array, geometry, names)
    lungs.geometry.require_same(geometry, "lung mask", "CT")
    target = folder / "lungs.seg.nrrd"
    write_labels(lungs, target, crop=True)
    return LungsFacts(target.name, sha256_file(target), source)


def _lungs(lungs: Mask | Path | str, volume: Volume) -> Mask:
    from ..imaging import lungs_from_mask, read_labels

    if isinstance(lungs, Path | str):
        labels = read_labels(lungs)
        labels.geometry.require_same(volume.geometry, "lung mask", "CT")
        return lungs_from_mask(labels, volume)
    return lungs


def _identity(path: Path, series: str | None) -> dict[str, str]:
    """What a DICOM series says about whose it is; read only to group by patient unless more is asked for."""
    import SimpleITK as sitk

    from ..imaging import dicom_files

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(dicom_files(path, series)[0]))
    reader.LoadPrivateTagsOff()
    reader.ReadImageInformation()
    present = {name: tag for name, tag in _IDENTITY.items() if reader.HasMetaDataKey(tag)}
    return {name: text for name, tag in present.items() if (text := reader.GetMetaData(tag).strip())}
