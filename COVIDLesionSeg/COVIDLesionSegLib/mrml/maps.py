"""Probability and uncertainty as volumes over the CT, prediction against reference as segments."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from ..errors import InputError
from ..measurement import ERROR_LABELS
from .nodes import addNode, placeUnderStudy, requireNode
from .segmentations import createSegmentation, writeSegment
from .volumes import fill_node, gridOfNode, local_grid

# Red, green, blue at equal steps from 0 to 1: samples of the color maps inferno and viridis, whose lightness rises
# evenly, so that they can be read in gray and with any color vision.
_COLORS = {
    "Lesion probability": (
        (0.00, 0.00, 0.01), (0.16, 0.04, 0.33), (0.40, 0.08, 0.43), (0.62, 0.17, 0.39), (0.83, 0.28, 0.26),
        (0.96, 0.49, 0.08), (0.98, 0.76, 0.15), (0.99, 1.00, 0.64),
    ),
    "Lesion uncertainty": (
        (0.27, 0.00, 0.33), (0.27, 0.20, 0.49), (0.21, 0.36, 0.55), (0.15, 0.50, 0.56), (0.12, 0.63, 0.53),
        (0.29, 0.76, 0.43), (0.63, 0.85, 0.22), (0.99, 0.91, 0.14),
    ),
}  # fmt: skip
_STEPS = 256
# Below this the map is clear, and the CT shows.
_SHOWN_FROM = 0.05


def showProbability(volumeNode: Any, probability: NDArray[Any], mapNode: Any = None) -> Any:
    """The probability of lesion as a volume node with a color map from 0 to 1, clear below 0.05.

    Args:
        volumeNode: the CT that it was made from.
        probability: (z, y, x) on the CT's grid, in [0, 1].
        mapNode: an earlier map to fill again; None makes a new node.

    Returns:
        The vtkMRMLScalarVolumeNode, float32.

    Raises:
        InputError: a node that is not what it should be, or values outside [0, 1].
        GridMismatchError: not on the CT's grid.
    """
    return _show(volumeNode, probability, mapNode, "Lesion probability")


def showUncertainty(volumeNode: Any, uncertainty: NDArray[Any], mapNode: Any = None) -> Any:
    """The uncertainty of a prediction in bits, like :func:`showProbability`."""
    return _show(volumeNode, uncertainty, mapNode, "Lesion uncertainty")


def showErrors(volumeNode: Any, errors: NDArray[np.uint8], segmentationNode: Any = None) -> Any:
    """Where a prediction and a reference agree and where not, as three segments.

    Args:
        volumeNode: the CT.
        errors: (z, y, x) on the CT's grid, labels of ``measurement.error_map``.
        segmentationNode: an earlier one to fill again; None makes a new node.

    Returns:
        The segmentation node.

    Raises:
        InputError: a node that is not what it should be.
        GridMismatchError: not on the CT's grid.
    """
    gridOfNode(volumeNode).require_shape(errors, "error map")
    if segmentationNode is None:
        segmentationNode = createSegmentation(volumeNode, "Prediction against reference")
    segmentation = requireNode(segmentationNode, "vtkMRMLSegmentationNode", "segmentation").GetSegmentation()
    for label, kind in ERROR_LABELS.items():
        identity = kind.name.replace(" ", "_")
        if segmentation.GetSegment(identity) is None:
            segmentation.AddEmptySegment(identity, kind.name, [value / 255 for value in kind.color])
        writeSegment(segmentationNode, identity, errors == label, volumeNode)
    return segmentationNode


def _show(volumeNode: Any, values: NDArray[Any], mapNode: Any, kind: str) -> Any:
    gridOfNode(volumeNode).require_shape(values, kind.lower())
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"The {kind.lower()} ranges from {low:g} to {high:g}; it must lie in [0, 1].")
    node = addNode("vtkMRMLScalarVolumeNode", kind) if mapNode is None else mapNode
    requireNode(node, "vtkMRMLScalarVolumeNode", "map")
    fill_node(node, values.astype(np.float32, copy=False), local_grid(volumeNode))
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    placeUnderStudy(node, volumeNode)
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(_color_node(kind).GetID())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0, 1)
    display.SetThreshold(_SHOWN_FROM, 1)
    display.SetApplyThreshold(True)
    display.SetInterpolate(False)
    return node


def _color_node(kind: str) -> Any:
    """One for each kind in the scene; saved with it, so that a scene looks the same where this extension is absent."""
    scene = slicer.mrmlScene
    tag = "COVIDLesionSeg" + kind.title().replace(" ", "")
    node = scene.GetSingletonNode(tag, "vtkMRMLColorTableNode")
    if node is None:
        node = slicer.vtkMRMLColorTableNode()
        node.SetSingletonTag(tag)
        node.SetName(f"{kind} colors")
        node.SetTypeToUser()
        node.SetNumberOfColors(_STEPS)
        stops = np.array(_COLORS[kind])
        for index, place in enumerate(np.linspace(0, len(stops) - 1, _STEPS)):
            color = [float(np.interp(place, range(len(stops)), stops[:, channel])) for channel in range(3)]
            node.SetColor(index, f"{index / (_STEPS - 1):.3f}", *color, 1.0)
        node = scene.AddNode(node)
    return node
