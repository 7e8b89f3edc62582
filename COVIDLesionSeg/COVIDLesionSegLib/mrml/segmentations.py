"""Masks to segments of a vtkMRMLSegmentationNode and back: lesions as one, by attenuation, or one by one; the lungs.

Segments that this extension made carry a tag with their role; a new result replaces those of the same role and leaves
all others, whoever made them, as they are.
"""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..errors import GridMismatchError, InputError
from ..imaging import Geometry, SegmentStyle, Volume, segment_style
from ..imaging.masks import Box, bounding_box
from ..measurement.catalog import consolidation_limit
from ..measurement.lesions import find_components
from ..resources import resource
from .nodes import (
    addNode,
    array_of_matrix,
    matrix_of_array,
    nodesOfClass,
    placeUnderStudy,
    requireNode,
    world_from_parent,
)
from .volumes import gridOfNode, local_grid, volumeFromNode

ROLE_TAG = "COVIDLesionSeg.Role"
SEGMENTATION = "vtkMRMLSegmentationNode"
#: Events of a vtkSegmentation after which its voxels may be others; the editor's undo and redo tell the last one only.
EDITED = (
    slicer.vtkSegmentation.SourceRepresentationModified,
    slicer.vtkSegmentation.SegmentAdded,
    slicer.vtkSegmentation.SegmentRemoved,
    slicer.vtkSegmentation.SegmentModified,
)
LesionView = Literal["lesion", "attenuation", "separate"]
LESION_VIEWS: tuple[LesionView, ...] = ("lesion", "attenuation", "separate")
# More segments than this can't be told apart, and every one costs the scene a node's worth of work.
_MOST_SEPARATE_LESIONS = 30
_ATTENUATION: dict[str, tuple[str, Callable[[NDArray[Any], float], NDArray[Any]]]] = {
    "ground_glass_opacity": ("below {limit} HU", np.less),
    "consolidation": ("from {limit} HU", np.greater_equal),
}
TERMINOLOGY_FILE = "Terminologies/COVIDLesionSeg.term.json"
_VOLUME = "vtkMRMLScalarVolumeNode"
_LABELMAP = "Binary labelmap"
_SURFACE = "Closed surface"
# Surface nets, smoothed: as good to look at as Slicer's default, of half the triangles, in two thirds of the time.
_SURFACES = {"Conversion method": "1", "SurfaceNets smoothing": "0", "Smoothing factor": "0.5"}
_ROUGH_SURFACES = {"Conversion method": "0", "Smoothing factor": "0"}
# How far a segment's voxels may lie from the CT's, in voxels, to be taken as they are instead of resampled.
_SAME_LATTICE = 0.01


@dataclass(frozen=True, eq=False)
class _Content:
    """One segment to be.

    Attributes:
        id: segment ID that it wants.
        role: "lesion" or "lungs": segments of a role are replaced together.
        name: what users read.
        style: color and codes.
        box: where in the CT's array (z, y, x) the mask lies.
        mask: bool (z, y, x), the size of the box.
    """

    id: str
    role: str
    name: str
    style: SegmentStyle
    box: Box
    mask: NDArray[np.bool_]


class UndoStates(Protocol):
    """Something that remembers a segmentation: Slicer's segment editor widget does."""

    def saveStateForUndo(self) -> Any:
        """Remember the segmentation as it is."""


def createSegmentation(volumeNode: Any, name: str = "COVID-19 lesions") -> Any:
    """A new segmentation node on a CT's grid, under its transform and its study.

    Args:
        volumeNode: the CT.
        name: of the node; do not put a patient's name into it.

    Raises:
        InputError: no CT.
        GeometryError: the CT's transform is not linear.
    """
    gridOfNode(volumeNode)
    node = addNode(SEGMENTATION, name)
    node.CreateDefaultDisplayNodes()
    # first the transform: under another one than the CT's the grid would be taken in world coordinates
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    placeUnderStudy(node, volumeNode)
    return node


def requireLabelmaps(segmentationNode: Any) -> None:
    """Refuse a segmentation whose segments are not kept as binary labelmaps, e.g. imported surfaces.

    A mask that is written into one would take the place of what all its segments are made from.

    Raises:
        InputError: such a segmentation, or none.
    """
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    source = segmentationNode.GetSegmentation().GetSourceRepresentationName()
    if source != _LABELMAP:
        raise InputError(
            f"The segmentation keeps its segments as {source.lower()}; a result needs one that keeps binary labelmaps.",
            "Choose another one, or make the binary labelmap its source representation in the Segmentations module.",
        )


def showLesions(
    volumeNode: Any,
    mask: NDArray[np.bool_],
    *,
    box: Box | None = None,
    view: LesionView = "lesion",
    segmentationNode: Any = None,
    volume: Volume | None = None,
    undo: UndoStates | None = None,
    consolidationFrom: float | None = None,
) -> Any:
    """Show a result as segments: in a new segmentation, or in place of the earlier result in one.

    Args:
        volumeNode: the CT that the mask was made from.
        mask: bool (z, y, x) on the CT's grid.
        box: where in the CT the mask lies, (z, y, x); None: it has the CT's size.
        view: "lesion", "attenuation" (ground-glass opacity and consolidation by HU) or "separate" (one by one).
        segmentationNode: where to show it; None makes a new segmentation.
        volume: the CT's voxels where they are at hand; read from the node where they are needed and not given.
        undo: saves the state before segments are replaced.
        consolidationFrom: HU from which lesion counts as consolidation; None takes the catalog's.

    Returns:
        The segmentation node.

    Raises:
        InputError: a node that is not what it should be or was deleted meanwhile, an unknown view.
        GridMismatchError: the mask is not on the CT's grid.
    """
    if box is None or not mask.size:
        box, mask = None, mask if box is None else np.zeros(gridOfNode(volumeNode).shape, bool)
        _require_mask(mask, volumeNode, "lesion mask")
    else:
        gridOfNode(volumeNode).cropped(box).require_shape(mask, "lesion mask")
    if view != "lesion" and volume is None:
        volume = volumeFromNode(volumeNode, check=False)
    if box is not None and volume is not None:
        volume = replace(volume, array=volume.array[box], geometry=volume.geometry.cropped(box))
    made = _lesion_contents(mask, view, volume, consolidationFrom)
    if box is not None:
        made = [replace(content, box=_shifted(content.box, box)) for content in made]
    return _show(made, volumeNode, segmentationNode, undo)


def showLungs(
    volumeNode: Any, lungs: NDArray[Any], *, segmentationNode: Any = None, undo: UndoStates | None = None
) -> Any:
    """Show lungs as segments, like :func:`showLesions`.

    Args:
        volumeNode: the CT that the lungs were found in.
        lungs: (z, y, x) on the CT's grid, 1 right lung and 2 left lung; one label alone is shown as lungs in one.
        segmentationNode: where to show them; None makes a new segmentation.
        undo: saves the state before segments are replaced.
    """
    _require_mask(lungs, volumeNode, "lung mask")
    return _show(_lung_contents(lungs), volumeNode, segmentationNode, undo)


def segmentMask(segmentationNode: Any, segmentId: str, volumeNode: Any) -> NDArray[np.bool_]:
    """A segment on the CT's grid.

    Args:
        segmentationNode: the segmentation, e.g. after edits, or of another origin, such as a reference.
        segmentId: which segment.
        volumeNode: the CT.

    Returns:
        bool (z, y, x). Voxels that lie on the CT's are taken as they are; others are resampled, nearest neighbor.
        A segmentation of surfaces gets a labelmap on the CT's grid first.

    Raises:
        InputError: a node that is not what it should be, or no such segment.
        GeometryError: a transform that is not linear.
    """
    return segmentsMask(segmentationNode, [segmentId], volumeNode)


def segmentsMask(
    segmentationNode: Any, segmentIds: Iterable[str], volumeNode: Any, box: Box | None = None
) -> NDArray[np.bool_]:
    """Several segments together on the CT's grid, or in a box (z, y, x) of it, like :func:`segmentMask`."""
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    geometry = gridOfNode(volumeNode)
    if box is not None:
        geometry = geometry.cropped(box)
    if not segmentationNode.GetSegmentation().ContainsRepresentation(_LABELMAP):
        segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        segmentationNode.CreateBinaryLabelmapRepresentation()
    mask = np.zeros(geometry.shape, bool)
    for identity in segmentIds:
        _require_segment(segmentationNode, identity)
        _add(mask, segmentationNode, identity, geometry)
    return mask


def _add(mask: NDArray[np.bool_], segmentationNode: Any, segmentId: str, geometry: Geometry) -> None:
    """Put a segment into a mask on a grid."""
    # the labelmap itself, which other segments may share: a copy of it would take longer than all else
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    labelmap = segment.GetRepresentation(_LABELMAP)
    if labelmap is None or labelmap.IsEmpty():
        return
    stored = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(stored)
    world = world_from_parent(segmentationNode, "segmentation") @ array_of_matrix(stored)
    extent = np.reshape(labelmap.GetExtent(), (3, 2))
    shift = _shift(extent, world, geometry)
    if shift is None:
        alone = slicer.vtkOrientedImageData()
        segmentationNode.GetBinaryLabelmapRepresentation(segmentId, alone)
        mask |= _resampled(alone, world, geometry)
    else:
        values = vtk_to_numpy(labelmap.GetPointData().GetScalars())
        _paste(mask, values, segment.GetLabelValue(), extent, shift)


def _shift(extent: NDArray[Any], world: NDArray[np.float64], geometry: Geometry) -> NDArray[Any] | None:
    """By how many voxels (x, y, z) a labelmap's indices differ from a grid's; None where its voxels are others."""
    between = np.linalg.inv(geometry.ijk_to_ras) @ world
    shift = np.rint(between[:3, 3]).astype(int)
    corners = np.array(list(itertools.product(*extent))).T
    moved = between[:3, :3] @ corners + between[:3, 3:]
    return None if np.abs(moved - (corners + shift[:, None])).max() > _SAME_LATTICE else shift


def segmentsWithRole(segmentationNode: Any, role: str = "lesion") -> list[str]:
    """IDs of the segments that this extension made in a role ("lesion" or "lungs"), in their order."""
    segmentation = segmentationNode.GetSegmentation()
    return [
        segmentation.GetNthSegmentID(index)
        for index in range(segmentation.GetNumberOfSegments())
        if _role_of(segmentation.GetNthSegment(index)) == role
    ]


def voxelCount(segmentationNode: Any, segmentId: str) -> int:
    """How many voxels a segment has, of its own labelmap's grid."""
    _require_segment(segmentationNode, segmentId)
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    labelmap = segment.GetRepresentation(_LABELMAP)
    if labelmap is None or labelmap.IsEmpty():
        return 0
    return int(np.count_nonzero(vtk_to_numpy(labelmap.GetPointData().GetScalars()) == segment.GetLabelValue()))


def viewOf(segmentationNode: Any) -> LesionView:
    """The view in which the lesion segments of this extension show lesions."""
    known = set(segmentsWithRole(segmentationNode))
    if known >= set(_ATTENUATION):
        return "attenuation"
    return "separate" if "lesion_1" in known else "lesion"


def volumeOf(segmentationNode: Any) -> Any:
    """The CT that a segmentation was made on; None where it was deleted or is not known."""
    return segmentationNode.GetNodeReference(segmentationNode.GetReferenceImageGeometryReferenceRole())


def resultsOn(volumeNode: Any, role: str = "lesion") -> list[Any]:
    """The segmentations of a CT that have segments of this extension in a role, oldest first."""
    return [
        node
        for node in nodesOfClass(SEGMENTATION)
        if not node.GetHideFromEditors() and volumeOf(node) is volumeNode and segmentsWithRole(node, role)
    ]


def hideOthers(volumeNode: Any) -> list[Any]:
    """Hide what was segmented on other CTs, so that nothing of another patient lies over this one.

    Returns:
        The segmentation nodes that were visible until now.
    """
    others = []
    for node in nodesOfClass(SEGMENTATION):
        display = node.GetDisplayNode()
        if display is not None and display.GetVisibility() and volumeOf(node) is not volumeNode:
            display.SetVisibility(False)
            others.append(node)
    return others


def lesionMask(segmentationNode: Any, volumeNode: Any) -> NDArray[np.bool_]:
    """All lesion segments of a segmentation together, on the CT's grid.

    Returns:
        bool (z, y, x).

    Raises:
        InputError: a node that is not what it should be, or a segmentation without lesion segments.
        GeometryError: a transform that is not linear.
    """
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    ids = segmentsWithRole(segmentationNode)
    if not ids:
        raise InputError("The segmentation has no lesion segments of this extension.", "Choose the segment instead.")
    return segmentsMask(segmentationNode, ids, volumeNode)


def writeSegment(segmentationNode: Any, segmentId: str, mask: NDArray[np.bool_], volumeNode: Any) -> None:
    """Replace the voxels of a segment; its name and color, and all other segments, stay.

    Args:
        segmentationNode: the segmentation.
        segmentId: which segment.
        mask: bool (z, y, x) on the CT's grid.
        volumeNode: the CT.

    Raises:
        InputError: a node that is not what it should be, no such segment, surfaces, or not under the CT's transform.
        GridMismatchError: the mask is not on the CT's grid.
    """
    requireLabelmaps(segmentationNode)
    _require_segment(segmentationNode, segmentId)
    _require_mask(mask, volumeNode, "mask")
    _require_same_transform(segmentationNode, volumeNode)
    box = bounding_box(mask, least=1)
    _write(segmentationNode, segmentId, mask[box], box, local_grid(volumeNode))


def changeSegment(
    segmentationNode: Any, segmentId: str, box: Box, mask: NDArray[np.bool_], volumeNode: Any, *, add: bool
) -> None:
    """Add voxels to a segment, or take them away; only the box is touched, so that it is quick on a large CT.

    Args:
        segmentationNode: the segmentation.
        segmentId: which segment; all others stay.
        box: where in the CT, (z, y, x).
        mask: bool (z, y, x), the size of the box.
        volumeNode: the CT.
        add: False takes the voxels away.

    Raises:
        InputError: a node that is not what it should be, no such segment, surfaces, or not under the CT's transform.
        GridMismatchError: the mask has another size than the box.
    """
    requireLabelmaps(segmentationNode)
    _require_segment(segmentationNode, segmentId)
    _require_same_transform(segmentationNode, volumeNode)
    grid = local_grid(volumeNode)
    sides = tuple(side.stop - side.start for side in box)
    if mask.shape != sides:
        raise GridMismatchError(f"The mask has the shape {mask.shape} and its box {sides} (z, y, x).")
    segmentation = segmentationNode.GetSegmentation()
    labelmap = segmentation.GetSegment(segmentId).GetRepresentation(_LABELMAP)
    has = labelmap is not None and not labelmap.IsEmpty()
    if not mask.any() or not (add or has):
        return
    # segments of a file lie in one labelmap, where each would take the other's voxels
    sharing: list[str] = []
    segmentation.GetSegmentIDsSharingBinaryLabelmapRepresentation(segmentId, sharing, False)
    if sharing:
        segmentation.SeparateSegmentLabelmap(segmentId)
    shift, matrix = np.zeros(3, int), matrix_of_array(grid.ijk_to_ras)
    if has:
        stored = vtk.vtkMatrix4x4()
        labelmap.GetImageToWorldMatrix(stored)
        found = _shift(np.reshape(labelmap.GetExtent(), (3, 2)), array_of_matrix(stored), grid)
        if found is None:
            # of another grid than the CT's: the whole segment is put on the CT's
            whole = segmentMask(segmentationNode, segmentId, volumeNode)
            whole[box] = whole[box] | mask if add else whole[box] & ~mask
            writeSegment(segmentationNode, segmentId, whole, volumeNode)
            return
        shift, matrix = found, stored
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    label = segmentation.GetSegment(segmentId).GetLabelValue()
    change, extent = _labelmap((mask if add else ~mask) * np.uint8(label), box, matrix, shift)
    mode = logic.MODE_MERGE_MAX if add else logic.MODE_MERGE_MIN
    if not logic.SetBinaryLabelmapToSegment(change, segmentationNode, segmentId, mode, extent):
        raise InputError(f"Slicer could not write the segment {segmentId!r}; its log says why.")


def addLesion(
    segmentationNode: Any,
    segmentId: str,
    box: Box,
    mask: NDArray[np.bool_],
    volumeNode: Any,
    consolidationFrom: float | None = None,
) -> None:
    """Add lesion to a segment, or by HU to ground-glass opacity and consolidation where these are told apart.

    Args:
        segmentationNode: with lesion segments of this extension.
        segmentId: which of them.
        box: where in the CT, (z, y, x).
        mask: bool (z, y, x), the size of the box.
        volumeNode: the CT.
        consolidationFrom: HU from which lesion counts as consolidation; None takes the catalog's.

    Raises:
        InputError, GridMismatchError: as :func:`changeSegment`.
    """
    parts = {segmentId: mask}
    if viewOf(segmentationNode) == "attenuation":
        hu = slicer.util.arrayFromVolume(volumeNode)[box]
        parts = _split_by_attenuation(mask, hu, consolidationFrom)
    for identity, part in parts.items():
        changeSegment(segmentationNode, identity, box, part, volumeNode, add=True)


def takeSurfaces(segmentationNode: Any) -> bool:
    """Take the closed surfaces away, which would be made anew with each change; returns whether there were any."""
    if not segmentationNode.GetSegmentation().ContainsRepresentation(_SURFACE):
        return False
    segmentationNode.RemoveClosedSurfaceRepresentation()
    return True


def showIn3D(segmentationNode: Any, visible: bool = True, smooth: bool = True) -> None:
    """Make and show the closed surfaces of a segmentation, or remove them.

    Args:
        segmentationNode: the segmentation.
        visible: False removes them.
        smooth: False is three times as fast and shows the voxels' steps: enough for what is see-through.

    Raises:
        InputError: no segmentation, or one whose surfaces are its source and can't be removed.
    """
    requireNode(segmentationNode, SEGMENTATION, "segmentation")
    if not visible:
        requireLabelmaps(segmentationNode)
        segmentationNode.RemoveClosedSurfaceRepresentation()
        return
    for name, value in (_SURFACES if smooth else _ROUGH_SURFACES).items():
        segmentationNode.GetSegmentation().SetConversionParameter(name, value)
    segmentationNode.CreateClosedSurfaceRepresentation()
    segmentationNode.CreateDefaultDisplayNodes()
    segmentationNode.GetDisplayNode().SetVisibility3D(True)


def isIn3D(segmentationNode: Any) -> bool:
    """Whether a segmentation of label maps has surfaces beside them."""
    segmentation = segmentationNode.GetSegmentation()
    return bool(
        segmentation.ContainsRepresentation("Closed surface")
        and segmentation.GetSourceRepresentationName() != "Closed surface"
    )


def loadTerminology() -> str:
    """Make the terminology known to Slicer, so that its segment editor offers and understands our codes.

    Returns:
        The name under which Slicer lists it.

    Raises:
        InputError: the file is missing or Slicer did not take it.
    """
    logic = slicer.modules.terminologies.logic()
    name = logic.LoadTerminologyFromFile(str(resource(TERMINOLOGY_FILE)))
    if not name:
        raise InputError(f"{TERMINOLOGY_FILE} could not be loaded; install the extension again.")
    return str(name)


def _lesion_contents(
    mask: NDArray[np.bool_],
    view: LesionView,
    volume: Volume | None = None,
    consolidation_from: float | None = None,
) -> list[_Content]:
    """Lesions as segments.

    Args:
        mask: bool (z, y, x).
        view: "lesion": one segment; "attenuation": ground-glass opacity and consolidation, told apart by HU inside the
            lesion; "separate": one segment for each of the largest 26-connected lesions, largest first, and one for
            the rest.
        volume: the CT, needed for "attenuation", and for the volumes in the names of "separate".
        consolidation_from: HU from which lesion counts as consolidation; None takes the catalog's.

    Raises:
        InputError: a view that is not known, or no CT where one is needed.
    """
    if view not in LESION_VIEWS:
        raise InputError(f"There is no view {view!r} of lesions; choose one of {', '.join(LESION_VIEWS)}.")
    if view == "lesion":
        style = segment_style("lesion")
        return [_content("lesion", "lesion", style.name, style, mask)]
    if volume is None:
        raise InputError(f'The CT is needed to show lesions as "{view}".')
    volume.geometry.require_shape(mask, "lesion mask")
    if view == "separate":
        return _separate(mask, volume.geometry.voxel_ml)
    return _by_attenuation(mask, volume, consolidation_from)


def _split_by_attenuation(
    mask: NDArray[np.bool_], hu: NDArray[Any], consolidation_from: float | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Lesion as ground-glass opacity and consolidation: segment ID -> mask.

    Args:
        mask: bool (z, y, x).
        hu: of the same shape.
        consolidation_from: HU from which lesion counts as consolidation; None takes the catalog's.
    """
    limit = consolidation_limit(consolidation_from)
    return {identity: mask & belongs(hu, limit) for identity, (_words, belongs) in _ATTENUATION.items()}


def _lung_contents(lungs: NDArray[Any]) -> list[_Content]:
    """Lungs as segments.

    Args:
        lungs: (z, y, x), 1 right lung, 2 left lung. Without a 2, as in a bool mask, the sides are not known, and there
            is one segment of both.
    """
    if not (lungs == 2).any():
        return [_content("lungs", "lungs", "lungs", segment_style("lungs"), lungs != 0)]
    sides = [(segment_style("right_lung"), 1), (segment_style("left_lung"), 2)]
    return [_content(style.id, "lungs", style.name, style, lungs == label) for style, label in sides]


def _content(
    identity: str, role: str, name: str, style: SegmentStyle, mask: NDArray[np.bool_], within: Box | None = None
) -> _Content:
    box = bounding_box(mask, least=1)
    placed = box if within is None else _shifted(box, within)
    return _Content(identity, role, name, style, placed, np.ascontiguousarray(mask[box]))


def _shifted(box: Box, within: Box) -> Box:
    z, y, x = (slice(b.start + w.start, b.stop + w.start) for b, w in zip(box, within, strict=True))
    return z, y, x


def _by_attenuation(mask: NDArray[np.bool_], volume: Volume, limit: float | None) -> list[_Content]:
    limit = consolidation_limit(limit)
    box = bounding_box(mask, least=1)
    inside, hu = mask[box], volume.array[box]
    contents = []
    for identity, part in _split_by_attenuation(inside, hu, limit).items():
        style = segment_style(identity)
        words = _ATTENUATION[identity][0].format(limit=f"{limit:g}")
        contents.append(_content(identity, "lesion", f"{style.name} ({words})", style, part, box))
    return contents


def _separate(mask: NDArray[np.bool_], voxel_ml: float) -> list[_Content]:
    style = segment_style("lesion")
    box = bounding_box(mask, least=1)
    inside = np.ascontiguousarray(mask[box])
    found = find_components(inside)
    if not found.count:
        return [_content("lesion_1", "lesion", "lesion 1 (none found)", style, mask)]
    labels = found.image(inside)
    bounds = found.boxes()
    contents = []
    for index in range(min(found.count, _MOST_SEPARATE_LESIONS)):
        part = bounds[index]
        name = f"lesion {index + 1} ({_ml(found.sizes[index], voxel_ml)})"
        content = _Content(
            f"lesion_{index + 1}", "lesion", name, _shaded(style, index), _shifted(part, box), labels[part] == index + 1
        )
        contents.append(content)
    if found.count > _MOST_SEPARATE_LESIONS:
        rest = found.count - _MOST_SEPARATE_LESIONS
        name = f"{rest} smaller lesions ({_ml(found.sizes[_MOST_SEPARATE_LESIONS:].sum(), voxel_ml)})"
        smaller = labels > _MOST_SEPARATE_LESIONS
        contents.append(_content("lesions_smaller", "lesion", name, style, smaller, box))
    return contents


def _shaded(style: SegmentStyle, index: int) -> SegmentStyle:
    """The style with a hue of its own, a golden ratio from the one before; the first keeps its color."""
    hue, saturation, value = colorsys.rgb_to_hsv(*style.color)
    color = colorsys.hsv_to_rgb((hue + 0.618034 * index) % 1.0, saturation, value)
    return SegmentStyle(
        style.id, style.name, color, style.category, style.type, style.modifier, style.region, style.context
    )


def _ml(voxels: int, voxel_ml: float) -> str:
    return f"{voxels * voxel_ml:.3g} mL"


def _show(made: Sequence[_Content], volumeNode: Any, segmentationNode: Any, undo: UndoStates | None) -> Any:
    if segmentationNode is None:
        segmentationNode = createSegmentation(volumeNode)
    else:
        requireLabelmaps(segmentationNode)
        _require_same_transform(segmentationNode, volumeNode)
    segmentation = segmentationNode.GetSegmentation()
    earlier = segmentsWithRole(segmentationNode, made[0].role)
    if earlier and undo is not None:
        undo.saveStateForUndo()
    # surfaces once at the end instead of after each segment
    surfaces = segmentation.ContainsRepresentation(_SURFACE)
    if surfaces:
        segmentationNode.RemoveClosedSurfaceRepresentation()
    grid = local_grid(volumeNode)
    kept = set()
    for content in made:
        identity = content.id
        if identity not in earlier:
            identity = _add_segment(segmentation, content)
        segmentation.GetSegment(identity).SetName(content.name)
        _write(segmentationNode, identity, content.mask, content.box, grid)
        kept.add(identity)
    for identity in earlier:
        if identity not in kept:
            segmentation.RemoveSegment(identity)
    if surfaces:
        segmentationNode.CreateClosedSurfaceRepresentation()
    return segmentationNode


def _add_segment(segmentation: Any, content: _Content) -> str:
    # a segment of the user's may have this ID
    identity = segmentation.GenerateUniqueSegmentID(content.id)
    segmentation.AddEmptySegment(identity, content.name, content.style.color)
    segment = segmentation.GetSegment(identity)
    segment.SetTag(ROLE_TAG, content.role)
    if content.style.terminology_entry:
        segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), content.style.terminology_entry)
    return str(identity)


def _write(node: Any, identity: str, mask: NDArray[np.bool_], box: Box, grid: Geometry) -> None:
    if not mask.any():
        # VTK calls it an error to look for surfaces in a labelmap that is one voxel thick; what is outside the CT is 0
        mask, box = np.zeros((2, 2, 2), bool), (slice(0, 2),) * 3
    labelmap, _extent = _labelmap(mask, box, matrix_of_array(grid.ijk_to_ras))
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    if not logic.SetBinaryLabelmapToSegment(labelmap, node, identity, logic.MODE_REPLACE):
        raise InputError(f"Slicer could not write the segment {identity!r}; its log says why.")


def _labelmap(mask: NDArray[Any], box: Box, matrix: Any, shift: Any = (0, 0, 0)) -> tuple[Any, list[int]]:
    """A labelmap of the voxels in a box, its indices smaller by the shift (x, y, z); and its extent."""
    labelmap = slicer.vtkOrientedImageData()
    sides = zip(reversed(box), shift, strict=True)
    extent = [int(end - by) for side, by in sides for end in (side.start, side.stop - 1)]
    labelmap.SetExtent(*extent)
    labelmap.SetGeometryFromImageToWorldMatrix(matrix)
    scalars = numpy_to_vtk(np.ascontiguousarray(mask).view(np.uint8).ravel(), deep=True)
    labelmap.GetPointData().SetScalars(scalars)
    return labelmap, extent


def _resampled(labelmap: Any, world: NDArray[np.float64], geometry: Geometry) -> NDArray[np.bool_]:
    labelmap.SetGeometryFromImageToWorldMatrix(matrix_of_array(world))
    reference = slicer.vtkOrientedImageData()
    reference.SetExtent(0, geometry.size[0] - 1, 0, geometry.size[1] - 1, 0, geometry.size[2] - 1)
    reference.SetGeometryFromImageToWorldMatrix(matrix_of_array(geometry.ijk_to_ras))
    reference.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    out = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(labelmap, reference, out)
    values: NDArray[Any] = vtk_to_numpy(out.GetPointData().GetScalars())
    return values.reshape(geometry.shape) != 0


def _paste(
    mask: NDArray[np.bool_], values: NDArray[Any], label: int, extent: NDArray[Any], shift: NDArray[Any]
) -> None:
    """Put a label's voxels where they belong; what lies outside the CT is left out."""
    lengths = extent[:, 1] - extent[:, 0] + 1
    array = values.reshape(lengths[::-1])
    first = extent[:, 0] + shift
    size = np.array(mask.shape[::-1])
    low, high = np.maximum(first, 0), np.minimum(first + lengths, size)
    if (low >= high).any():
        return
    target = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
    source = tuple(slice(a, b) for a, b in zip((low - first)[::-1], (high - first)[::-1], strict=True))
    mask[target] |= array[source] == label


def _role_of(segment: Any) -> str:
    value = vtk.reference("")
    return str(value) if segment.GetTag(ROLE_TAG, value) else ""


def _require_segment(segmentationNode: Any, segmentId: str) -> None:
    if segmentationNode.GetSegmentation().GetSegment(segmentId) is None:
        raise InputError("The chosen segment is not there any more.", "Choose another one.")


def _require_mask(mask: NDArray[Any], volumeNode: Any, what: str) -> None:
    requireNode(volumeNode, _VOLUME, "CT")
    gridOfNode(volumeNode).require_shape(mask, what)


def _require_same_transform(segmentationNode: Any, volumeNode: Any) -> None:
    if segmentationNode.GetParentTransformNode() is not volumeNode.GetParentTransformNode():
        raise InputError(
            "The segmentation and the CT are under different transforms.",
            "Put both under the same one, or show the result in a new segmentation.",
        )
