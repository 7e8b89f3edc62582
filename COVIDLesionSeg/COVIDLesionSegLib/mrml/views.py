"""Where the views look, what they show, and regions of the CT that people mark in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from ..errors import InputError
from .nodes import array_of_matrix, nodesOfClass, requireNode
from .volumes import gridOfNode, volumeProblem

# marks the color legends that this extension has made
_LEGEND = "COVIDLesionSeg.Legend"


def jumpTo(ras: Sequence[float]) -> None:
    """Center all slice views on a point, move the crosshair there, and turn 3-D views around it.

    Args:
        ras: world position, RAS mm.
    """
    scene = slicer.mrmlScene
    slice_class = slicer.vtkMRMLSliceNode
    slice_class.JumpAllSlices(scene, *ras, slice_class.CenteredJumpSlice)
    for crosshair in nodesOfClass("vtkMRMLCrosshairNode"):
        crosshair.SetCrosshairRAS(*ras)
    for camera in nodesOfClass("vtkMRMLCameraNode"):
        # the direction of view stays
        shift = np.subtract(ras, camera.GetFocalPoint())
        camera.SetPosition(*(np.asarray(camera.GetPosition()) + shift))
        camera.SetFocalPoint(*ras)


def showInViews(volumeNode: Any) -> None:
    """Show a CT in all slice views, in full, if another volume is there now."""
    requireNode(volumeNode, "vtkMRMLVolumeNode", "CT")
    shown = {node.GetBackgroundVolumeID() for node in nodesOfClass("vtkMRMLSliceCompositeNode")}
    if shown and shown != {volumeNode.GetID()}:
        slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)


def loadedVolume() -> Any:
    """The volume in view that can be used as the CT, else the one that was loaded last; None if there is none."""
    usable = [node for node in nodesOfClass("vtkMRMLScalarVolumeNode") if not volumeProblem(node)]
    shown = {node.GetBackgroundVolumeID() for node in nodesOfClass("vtkMRMLSliceCompositeNode")}
    return next((node for node in usable if node.GetID() in shown), usable[-1] if usable else None)


def showMapInViews(mapNode: Any, opacity: float = 0.5, legend: bool = False) -> None:
    """Lay a map, e.g. of probability, over the CT in all slice views; None takes it away.

    Args:
        mapNode: a volume with a color table.
        opacity: of the map, in [0, 1].
        legend: whether the views show which color stands for which value.
    """
    for composite in nodesOfClass("vtkMRMLSliceCompositeNode"):
        composite.SetForegroundVolumeID(None if mapNode is None else mapNode.GetID())
        composite.SetForegroundOpacity(opacity)
    for shown in nodesOfClass("vtkMRMLColorLegendDisplayNode"):
        if shown.GetAttribute(_LEGEND):
            shown.SetVisibility(False)
    if mapNode is not None and legend:
        made = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(mapNode)
        made.SetAttribute(_LEGEND, "1")
        made.SetTitleText(mapNode.GetName())
        made.SetVisibility(True)


def showChart(chartNode: Any) -> None:
    """Show a chart in the layout, beside the views.

    Raises:
        InputError: no chart.
    """
    requireNode(chartNode, "vtkMRMLPlotChartNode", "chart")
    slicer.modules.plots.logic().ShowChartInLayout(chartNode)


def shownSlice(volumeNode: Any) -> NDArray[np.bool_]:
    """The axial slice of the CT that is in view.

    Returns:
        bool (z, y, x) on the CT's grid.

    Raises:
        InputError: no axial view, or it shows no slice of the CT.
    """
    geometry = gridOfNode(volumeNode)
    views = [node for node in nodesOfClass("vtkMRMLSliceNode") if node.GetOrientation() == "Axial"]
    if not views:
        raise InputError("There is no axial view.", "Choose a layout with one.")
    center = array_of_matrix(views[0].GetSliceToRAS())[:, 3]
    view = geometry.axial_view()
    position = np.linalg.inv(view.geometry.ijk_to_ras) @ center
    index = int(np.floor(position[2] + 0.5))
    mask = np.zeros(geometry.shape, bool)
    axial = view.apply(mask)
    if not 0 <= index < len(axial):
        raise InputError("The axial view shows no slice of the CT.", "Scroll to the CT first.")
    axial[index] = True
    return mask


def insideROI(roiNode: Any, volumeNode: Any) -> NDArray[np.bool_]:
    """The voxels whose centers lie inside a box that was drawn as a region of interest.

    Returns:
        bool (z, y, x) on the CT's grid.

    Raises:
        InputError: no region, or none of the CT's voxels lies in it.
    """
    requireNode(roiNode, "vtkMRMLMarkupsROINode", "region of interest")
    geometry = gridOfNode(volumeNode)
    between = np.linalg.inv(array_of_matrix(roiNode.GetObjectToWorldMatrix())) @ geometry.ijk_to_ras
    half = np.asarray(roiNode.GetSize()) / 2 + 1e-6
    grid = np.ogrid[tuple(slice(0, n) for n in geometry.shape)]
    inside = np.ones(geometry.shape, bool)
    for axis in range(3):
        # ijk against the array's (z, y, x)
        along = between[axis, 3] + sum(between[axis, 2 - side] * grid[side] for side in range(3))
        inside &= np.abs(along) <= half[axis]
    if not inside.any():
        raise InputError("The region of interest holds no voxel of the CT.", "Move it over the CT.")
    return inside
