"""Volumes and their geometry, reading and writing, the intensity window, finding the lungs."""

from ._image_file import image_stem, image_suffix
from .dicom import dicom_files
from .geometry import AxialView, Geometry
from .lung_masks import divide_lungs, lung_box, lungs_from_mask
from .lungs import find_lungs
from .plausibility import check_hounsfield
from .reading import read_labels, read_volume
from .segments import Code, SegmentStyle, segment_style, segment_styles
from .volume import LabelVolume, Volume
from .window import apply_window
from .writing import require_other_file, write_labels, write_volume

__all__ = [
    "AxialView",
    "Code",
    "Geometry",
    "LabelVolume",
    "SegmentStyle",
    "Volume",
    "apply_window",
    "check_hounsfield",
    "dicom_files",
    "divide_lungs",
    "find_lungs",
    "image_stem",
    "image_suffix",
    "lung_box",
    "lungs_from_mask",
    "read_labels",
    "read_volume",
    "require_other_file",
    "segment_style",
    "segment_styles",
    "write_labels",
    "write_volume",
]
