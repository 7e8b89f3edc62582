"""Lungs that somebody segmented, as right and left."""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LungsNotFoundError
from ..imaging.masks import Box
from .nodes import requireNode
from .segmentations import SEGMENTATION, createSegmentation, segmentMask, segmentsMask, showLungs, volumeOf
from .volumes import gridOfNode

_RIGHT, _LEFT = 1, 2
_LUNG = re.compile(r"lung|lobe", re.IGNORECASE)
_FOUND = "COVIDLesionSeg.LungsFound"
_SEE_THROUGH = 0.2
_SIDES = ((re.compile(r"right", re.IGNORECASE), _RIGHT), (re.compile(r"left", re.IGNORECASE), _LEFT))


def lungsFromSegmentation(segmentationNode: Any, volumeNode: Any) -> NDArray[np.uint8]:
    """The lungs in a segmentation, whoever made it.

    Segments whose name says lung or lobe and a side (ours, TotalSegmentator's, the Lung CT Segmenter's) count by name;
    where there are none, those whose name says lung count as both lungs, and where there are none of these either, all
    segments do.

    Args:
        segmentationNode: the segmentation.
        volumeNode: the CT.

    Returns:
        uint8 (z, y, x) on the CT's grid, 1 right lung and 2 left lung; 1 for both where the names don't tell.

    Raises:
        InputError: a node that is not what it should be.
        LungsNotFoundError: nothing is marked.
    """
    sided = _lung_segments(segmentationNode)
    lungs = np.zeros(gridOfNode(volumeNode).shape, np.uint8)
    for identity, side in sided.items():
        lungs[segmentMask(segmentationNode, identity, volumeNode)] = side
    if not lungs.any():
        raise LungsNotFoundError(
            "The chosen lung segmentation marks no lung on this CT.", "Choose another one, or let the lungs be found."
        )
    return lungs


def lungsInside(segmentationNode: Any, volumeNode: Any, box: Box) -> NDArray[np.bool_]:
    """Both lungs of a segmentation in a box (z, y, x) of the CT, bool; see :func:`lungsFromSegmentation`."""
    return segmentsMask(segmentationNode, _lung_segments(segmentationNode), volumeNode, box)


def _lung_segments(segmentationNode: Any) -> dict[str, int]:
    """Segment ID -> side of the segments that count as lungs."""
    requireNode(segmentationNode, SEGMENTATION, "lung segmentation")
    segmentation = segmentationNode.GetSegmentation()
    names = {identity: segmentation.GetSegment(identity).GetName() for identity in segmentation.GetSegmentIDs()}
    named = {identity: name for identity, name in names.items() if _LUNG.search(name)}
    sides = {identity: side for identity, name in named.items() for pattern, side in _SIDES if pattern.search(name)}
    return sides or dict.fromkeys(named or names, _RIGHT)


def showFoundLungs(volumeNode: Any, lungs: NDArray[Any], segmentationNode: Any = None) -> Any:
    """Show lungs that the program found: outlines in the slices, see-through in 3-D.

    Args:
        volumeNode: the CT.
        lungs: uint8 (z, y, x), 1 right lung and 2 left lung.
        segmentationNode: lungs that were shown before; filled again if the program found them in this CT and nobody
            has corrected them since, else left alone.

    Returns:
        The segmentation node with the lungs.
    """
    if segmentationNode is not None and not _is_as_found(segmentationNode, volumeNode):
        segmentationNode = None
    if segmentationNode is None:
        segmentationNode = createSegmentation(volumeNode, "Lungs")
        display = segmentationNode.GetDisplayNode()
        display.SetVisibility2DFill(False)
        display.SetOpacity3D(_SEE_THROUGH)
    elif segmentationNode.GetAttribute(_FOUND) == _checksum(lungs):
        # the surfaces of the lungs are large; the same lungs keep theirs
        return segmentationNode
    segmentationNode.SetAttribute(_FOUND, _checksum(lungs))
    return showLungs(volumeNode, lungs, segmentationNode=segmentationNode)


def _is_as_found(segmentationNode: Any, volumeNode: Any) -> bool:
    """Whether a segmentation has lungs of this CT as the program found them."""
    found = segmentationNode.GetAttribute(_FOUND)
    if not found or volumeOf(segmentationNode) is not volumeNode:
        return False
    try:
        return found == _checksum(lungsFromSegmentation(segmentationNode, volumeNode))
    except LungsNotFoundError:
        return False


def _checksum(lungs: NDArray[Any]) -> str:
    return f"{zlib.crc32(lungs.astype(np.uint8).tobytes()):08x}"
