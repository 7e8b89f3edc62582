"""A store's labels as a data set for nnU-Net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CancelledError, InputError
from ..files import write_json
from .split import usable

if TYPE_CHECKING:
    from .store import Store


def export_nnunet(
    store: Store,
    folder: Path | str,
    number: int = 501,
    name: str = "COVIDLesion",
    progress: Callable[[str, int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Write the labeled cases in the format of nnU-Net version 2, with the frozen split as its only fold.

    Args:
        store: the store.
        folder: in which ``Dataset501_COVIDLesion`` is made (nnU-Net's ``nnUNet_raw``).
        number: of the data set, 1 ... 999.
        name: of the data set.
        progress: called as progress("exporting", done, total).
        cancelled: asked between cases; without ``dataset.json``, which is written last, the rest is no data set.

    Returns:
        The data set's folder: ``imagesTr``, ``labelsTr`` (1 is lesion), ``dataset.json``, and ``splits_final.json``,
        which belongs into nnU-Net's folder of preprocessed data. The names are the store's ids; nothing private is
        written.

    Raises:
        InputError: no labels yet, a folder that is there already, a number or name that is not allowed.
        ReadError: a CT or mask that changed or is missing.
        OutputError: the folder can't be written to.
    """
    from ..imaging import LabelVolume, write_labels, write_volume

    if not 1 <= number <= 999 or not name.isidentifier():
        raise InputError(f"Dataset{number:03d}_{name} is no name of nnU-Net's; a number from 1 to 999 and letters are.")
    cases = usable(store.cases())
    if not cases:
        raise InputError("No case has a label yet; there is nothing to export.")
    target = Path(folder) / f"Dataset{number:03d}_{name}"
    if target.exists():
        raise InputError(f"{target} is there already; choose another folder, number or name.")
    for done, case in enumerate(cases):
        if cancelled is not None and cancelled():
            raise CancelledError(f"Stopped after {done} of {len(cases)} cases; {target} is not complete.")
        if progress is not None:
            progress("exporting", done, len(cases))
        volume = store.read_ct(case.id)
        label = case.label_revision
        assert label is not None  # noqa: S101  # usable cases have one
        mask = store.read_revision(case.id, label.number).mask()
        write_volume(volume, target / "imagesTr" / f"{case.id}_0000.nii.gz")
        write_labels(LabelVolume(mask.view("uint8"), volume.geometry), target / "labelsTr" / f"{case.id}.nii.gz")
    if store.split.is_frozen:
        sides = store.split.sides()
        fold = {
            part: [case.id for case in cases if sides.get(case.patient, "train") == side]
            for part, side in (("train", "train"), ("val", "validation"))
        }
        write_json(target / "splits_final.json", [fold])
    description = {
        "name": name,
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    write_json(target / "dataset.json", description)
    if progress is not None:
        progress("exporting", len(cases), len(cases))
    return target
