"""Small DICOM series with known voxels and known faults, made with pydicom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"
# what an export holds beside the images: a presentation state, key objects, the directory
WITHOUT_IMAGE = {
    "PR": "1.2.840.10008.5.1.4.1.1.11.1",
    "KO": "1.2.840.10008.5.1.4.1.1.88.59",
    "DICOMDIR": "1.2.840.10008.1.3.10",
}
PATIENT = "Mustermann^Erika"


def small_chest(shape: tuple[int, int, int] = (12, 24, 20)) -> np.ndarray:
    """Hounsfield units (z, y, x): air, a body, two lungs of different size, and a value that differs per slice."""
    z, y, x = shape
    array = np.full(shape, -1000, np.int16)
    array[:, y // 6 : -y // 6, x // 10 : -x // 10] = 40
    array[:, y // 3 : -y // 3, x // 5 : x // 2 - 1] = -850
    array[:, y // 3 : -y // 4, x // 2 + 1 : -x // 5] = -870
    array[:, 0, 0] = -1000 + np.arange(z)
    array[:, 0, 1] = -990
    return array


def write_series(
    folder: Path,
    array: np.ndarray | None = None,
    positions: Sequence[Sequence[float]] | None = None,
    spacing: float = 2.0,
    uid: str | None = None,
    names: Callable[[int], str] = "IM{:04d}.dcm".format,
    change: Callable[[Dataset, int], None] | None = None,
    **tags: Any,
) -> str:
    """Write one CT slice a file.

    Args:
        folder: made if absent.
        array: Hounsfield units (z, y, x), slices in the order they are written.
        positions: ImagePositionPatient of each slice; by default along z, ``spacing`` mm apart.
        spacing: mm, where no positions are given.
        uid: SeriesInstanceUID.
        names: file name of slice k.
        change: called with each data set and k before it is written.
        **tags: DICOM keywords and values for every slice; None removes one.

    Returns:
        The SeriesInstanceUID.
    """
    array = small_chest() if array is None else array
    uid = uid or generate_uid()
    folder.mkdir(parents=True, exist_ok=True)
    for k, pixels in enumerate(array):
        dataset = _dataset(tags.get("SOPClassUID", CT))
        dataset.SeriesInstanceUID = uid
        dataset.Modality = "CT"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = list(positions[k]) if positions is not None else [-50.0, -60.0, k * spacing]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [0.8, 0.7]
        dataset.SliceThickness = spacing
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        _set_pixels(dataset, (pixels.astype(np.int32) + 1024).astype(np.uint16))
        for keyword, value in tags.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        if change is not None:
            change(dataset, k)
        dataset.save_as(folder / names(k), enforce_file_format=True)
    return uid


def write_enhanced(path: Path, array: np.ndarray, heights: Sequence[float], rescale: Sequence[float] = ()) -> str:
    """Write one multi-frame Enhanced CT; rescale gives an intercept for each frame instead of one for all."""
    dataset = _dataset(ENHANCED_CT)
    dataset.Modality, dataset.SeriesInstanceUID = "CT", generate_uid()
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames = len(array)
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(PixelSpacing=[0.8, 0.7], SliceThickness=2.0)
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    if not rescale:
        shared.PixelValueTransformationSequence = _item(RescaleIntercept=-1024, RescaleSlope=1, RescaleType="HU")
    frames = []
    for k, height in enumerate(heights):
        frame = Dataset()
        frame.PlanePositionSequence = _item(ImagePositionPatient=[-50.0, -60.0, height])
        if rescale:
            values = {"RescaleIntercept": rescale[k], "RescaleSlope": 1, "RescaleType": "HU"}
            frame.PixelValueTransformationSequence = _item(**values)
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    _set_pixels(dataset, (array.astype(np.int32) + 1024).astype(np.uint16))
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return str(dataset.SeriesInstanceUID)


def write_report(path: Path, sop_class: str = REPORT) -> None:
    """Write a DICOM file without an image that refers to a CT image."""
    dataset = _dataset(sop_class)
    dataset.Modality, dataset.SeriesInstanceUID = "SR", generate_uid()
    dataset.ReferencedImageSequence = _item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID="1.2.3")
    dataset.save_as(path, enforce_file_format=True)


def _dataset(sop_class: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = "1.2.3.4.5"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = PATIENT, "MRN-4711", "19600102"
    dataset.SeriesDescription = f"Thorax {PATIENT}"
    return dataset


def _set_pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelData = pixels.tobytes()


def _item(**values: Any) -> DicomSequence:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return DicomSequence([dataset])
