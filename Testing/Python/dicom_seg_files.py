"""A CT series, masks on it, and a DICOM SEG of them, for the tests that write and read such files."""

from __future__ import annotations

import numpy as np
from synthetic_dicom import write_series

from COVIDLesionSegLib.imaging import (
    DicomSegment,
    SegmentAlgorithm,
    read_seg_source,
    write_dicom_seg,
)

AI = SegmentAlgorithm("COPLE-Net baseline", "3", parameters={"weights_sha256": "ab" * 32})
FRAME = "1.2.3.4.5.6"


def scanned(folder):
    """A series whose files stand in another order than its slices, with a frame of reference."""
    write_series(folder / "ct", names="{:d}.dcm".format, change=reversed_numbers, FrameOfReferenceUID=FRAME)
    return folder / "ct"


def reversed_numbers(dataset, k):
    dataset.InstanceNumber = 12 - k


def spotted(shape, seed=0, share=0.1):
    """A mask that differs in every slice; the first and last are empty."""
    mask = np.random.default_rng(seed).random(shape) < share
    mask[[0, -1]] = False
    return mask


def a_segment(mask, name="lesion", algorithm=AI):
    return DicomSegment(name, mask, algorithm)


def written(folder, segments, geometry=None):
    source = read_seg_source(folder)
    path = folder.parent / "out" / "seg.dcm"
    notes = write_dicom_seg(path, segments, geometry or source.geometry, source)
    return path, notes
