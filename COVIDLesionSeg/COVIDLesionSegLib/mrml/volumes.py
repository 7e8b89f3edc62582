"""Volume nodes to volumes and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from ..errors import COVIDLesionSegError, GeometryError, InputError
from ..imaging import Geometry, Volume, check_hounsfield
from ..imaging.masks import bounding_box
from ..imaging.plausibility import compact
from ..imaging.volume import LUNG_WINDOW_LEVEL, LUNG_WINDOW_WIDTH
from .nodes import addNode, array_of_matrix, matrix_of_array, nodesOfClass, requireNode, world_from_parent


def volumeFromNode(node: Any, *, name: str = "CT", check: bool = True) -> Volume:
    """A copy of a CT in the scene; the node may change or go away afterwards.

    A linear transform above the node is applied to the copy's grid (its voxels stay as they are), so that positions
    are the world's.

    Args:
        node: vtkMRMLScalarVolumeNode.
        name: what to call it in messages and records; the node's own name may hold a patient's.
        check: refuse voxels that cannot be Hounsfield units. A worker that checks anyhow can be spared this.

    Returns:
        Voxels (z, y, x) as int16, or as float32 where they have fractions.

    Raises:
        InputError: no volume, deleted, empty; a label map, vector volume, or frame of a sequence.
        GeometryError: a transform that is not linear, sheared axes.
        IntensityError: voxels that cannot be Hounsfield units.
    """
    _require_ct(node)
    geometry = _world_grid(node, "CT")
    stored = _voxels(node)
    array = compact(stored)
    if np.shares_memory(array, stored):
        array = array.copy()
    volume = Volume(array, geometry, name, {"format": "MRML"})
    return check_hounsfield(volume) if check else volume


def volumeProblem(node: Any) -> str:
    """Why a node can't be used as the CT, as a sentence for the panel; "" if it can. Voxels are not looked at."""
    try:
        _require_ct(node)
        _world_grid(node, "CT")
    except COVIDLesionSegError as error:
        return str(error)
    return ""


def gridOfNode(node: Any) -> Geometry:
    """The grid of a volume node in world coordinates.

    Raises:
        InputError: no volume, deleted, empty.
        GeometryError: a transform that is not linear, sheared axes.
    """
    requireNode(node, "vtkMRMLVolumeNode", "volume")
    _require_voxels(node, "volume")
    return _world_grid(node, "volume")


def nodeFromVolume(volume: Volume, name: str = "CT") -> Any:
    """A new vtkMRMLScalarVolumeNode with the voxels and the grid of a volume, shown in the lung window."""
    node = addNode("vtkMRMLScalarVolumeNode", name)
    fill_node(node, volume.array, volume.geometry)
    use_lung_window(node)
    return node


def valuesInside(node: Any, mask: NDArray[np.bool_]) -> NDArray[Any]:
    """The CT's voxels where a mask is true, one after the other.

    Args:
        node: the CT.
        mask: bool (z, y, x) on the CT's grid.

    Raises:
        InputError: no volume, deleted, empty.
        GridMismatchError: the mask is not on the CT's grid.
    """
    gridOfNode(node).require_shape(mask, "mask")
    box = bounding_box(mask, least=1)
    values: NDArray[Any] = _voxels(node)[box][mask[box]]
    return values


def fill_node(node: Any, array: NDArray[Any], geometry: Geometry) -> None:
    """Put voxels (z, y, x) and their grid into a volume node and give it a display node."""
    geometry.require_shape(array)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetIJKToRASMatrix(matrix_of_array(geometry.ijk_to_ras))
    node.CreateDefaultDisplayNodes()


def use_lung_window(node: Any) -> None:
    """Show a CT in the intensity window of both networks' input."""
    display = node.GetScalarVolumeDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(LUNG_WINDOW_WIDTH, LUNG_WINDOW_LEVEL)


def local_grid(node: Any) -> Geometry:
    """The grid of a volume node in the coordinates it is stored in, without its transform."""
    return Geometry.from_ijk_to_ras(_ijk_to_ras(node), node.GetImageData().GetDimensions())


def _require_ct(node: Any) -> None:
    if isinstance(node, slicer.vtkMRMLNode) and node.IsA("vtkMRMLSequenceNode"):
        raise InputError(
            "The chosen CT is a sequence of volumes; one volume is needed.",
            "Choose a single CT; a frame of a sequence can be copied with the data tree's Clone.",
        )
    requireNode(node, "vtkMRMLScalarVolumeNode", "CT")
    for class_name, kind in (
        ("vtkMRMLLabelMapVolumeNode", "a label map"),
        ("vtkMRMLVectorVolumeNode", "a color or vector volume"),
        ("vtkMRMLTensorVolumeNode", "a tensor volume"),
        ("vtkMRMLDiffusionWeightedVolumeNode", "a diffusion volume"),
        ("vtkMRMLMultiVolumeNode", "a series of volumes over time"),
    ):
        if node.IsA(class_name):
            raise InputError(f"The chosen volume is {kind}; a CT with one value a voxel is needed.")
    for browser in nodesOfClass("vtkMRMLSequenceBrowserNode"):
        sequence = browser.GetSequenceNode(node)
        if sequence is not None and sequence.GetNumberOfDataNodes() > 1:
            raise InputError(
                f"The chosen volume is the current one of a sequence of {sequence.GetNumberOfDataNodes()} volumes "
                "and changes with it.",
                "Copy the frame with the data tree's Clone, and choose the copy.",
            )
    _require_voxels(node, "CT")


def _require_voxels(node: Any, what: str) -> None:
    image = node.GetImageData()
    if image is None or min(image.GetDimensions()) < 1 or image.GetPointData().GetScalars() is None:
        raise InputError(f"The chosen {what} holds no voxels.", "Load it again.")
    components = image.GetNumberOfScalarComponents()
    if components != 1:
        raise InputError(f"The chosen {what} has {components} values a voxel; one is needed.")


def _voxels(node: Any) -> NDArray[Any]:
    """The node's own memory, (z, y, x)."""
    image = node.GetImageData()
    array: NDArray[Any] = vtk_to_numpy(image.GetPointData().GetScalars())
    return array.reshape(image.GetDimensions()[::-1])


def _world_grid(node: Any, what: str) -> Geometry:
    matrix = world_from_parent(node, what) @ _ijk_to_ras(node)
    try:
        return Geometry.from_ijk_to_ras(matrix, node.GetImageData().GetDimensions())
    except GeometryError as error:
        if node.GetParentTransformNode() is None:
            raise
        raise GeometryError(
            f"Under its transform the {what} is no regular grid.", f"Remove the transform. ({error})"
        ) from error


def _ijk_to_ras(node: Any) -> NDArray[np.float64]:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return array_of_matrix(matrix)
