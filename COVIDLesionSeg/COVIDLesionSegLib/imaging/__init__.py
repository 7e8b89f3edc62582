"""Volumes and their geometry, reading and writing, the intensity window, finding the lungs."""

from ._image_file import image_stem, image_suffix
from .dicom.seg_reading import common_grid, is_dicom_seg, read_dicom_seg
from .dicom.seg_writing import (
    PATIENT_NOTICE,
    DicomSegment,
    SegmentAlgorithm,
    SegSource,
    read_seg_source,
    write_dicom_seg,
)
from .dicom.series import dicom_files
from .geometry import AxialView, Geometry
from .lungs.engines import LocatedLungs, judged_lungs, locate_lungs
from .lungs.finder import find_lungs
from .lungs.masks import body_box, divide_lungs, lung_box, lungs_from_mask
from .lungs.quality import LungFinding, LungQuality, assess_lungs
from .plausibility import check_hounsfield
from .reading import read_labels, read_volume
from .segments import Code, SegmentStyle, segment_style, segment_styles
from .volume import LabelVolume, Volume, apply_window
from .writing import require_other_file, write_labels, write_volume

__all__ = [
    "PATIENT_NOTICE",
    "AxialView",
    "Code",
    "DicomSegment",
    "Geometry",
    "LabelVolume",
    "LocatedLungs",
    "LungFinding",
    "LungQuality",
    "SegSource",
    "SegmentAlgorithm",
    "SegmentStyle",
    "Volume",
    "apply_window",
    "assess_lungs",
    "body_box",
    "check_hounsfield",
    "common_grid",
    "dicom_files",
    "divide_lungs",
    "find_lungs",
    "image_stem",
    "image_suffix",
    "is_dicom_seg",
    "judged_lungs",
    "locate_lungs",
    "lung_box",
    "lungs_from_mask",
    "read_dicom_seg",
    "read_labels",
    "read_seg_source",
    "read_volume",
    "require_other_file",
    "segment_style",
    "segment_styles",
    "write_dicom_seg",
    "write_labels",
    "write_volume",
]
