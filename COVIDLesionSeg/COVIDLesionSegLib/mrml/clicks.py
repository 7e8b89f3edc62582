"""Clicks in the views: a point that is placed with the mouse, the voxel under it, and the mouse wheel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray
from slicer.util import VTKObservationMixin

from ..errors import InputError
from .nodes import addNode, removeNode
from .volumes import gridOfNode

_POINT = "vtkMRMLMarkupsFiducialNode"
_WHEEL = {"MouseWheelForwardEvent": 1, "MouseWheelBackwardEvent": -1}
# before the view's own, which scroll
_PRIORITY = 10.0


class PointPlacement(VTKObservationMixin):
    """Places one point after another with the mouse, in slice and 3-D views alike, until it is stopped.

    Args:
        placed: called with the world position, RAS mm, of each point, from inside the event that places it.
        ended: called where somebody else ends placing: another tool, another markup, the closing of the scene.
    """

    def __init__(self, placed: Callable[[NDArray[np.float64]], None], ended: Callable[[], None]) -> None:
        VTKObservationMixin.__init__(self)
        self._placed, self._ended = placed, ended
        self._node: Any = None

    @property
    def isOn(self) -> bool:
        """Whether the next click places a point."""
        return self._node is not None

    def start(self) -> None:
        """The next clicks place points."""
        if self.isOn:
            return
        self._node = node = addNode(_POINT, "Click", hidden=True)
        node.SetSaveWithScene(False)
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetPointLabelsVisibility(False)
        selection, interaction = _selection(), _interaction()
        selection.SetReferenceActivePlaceNodeClassName(_POINT)
        selection.SetActivePlaceNodeID(node.GetID())
        interaction.SwitchToPersistentPlaceMode()
        self.addObserver(node, node.PointPositionDefinedEvent, self._onDefined)
        self.addObserver(interaction, interaction.InteractionModeChangedEvent, self._onModeChanged)
        self.addObserver(selection, "ModifiedEvent", self._onModeChanged)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self._onModeChanged)

    def stop(self) -> None:
        """The next clicks are the views' again."""
        if not self.isOn:
            return
        self.removeObservers()
        node, self._node = self._node, None
        if self._isOurs(node):
            _interaction().SwitchToViewTransformMode()
        removeNode(node)

    def clear(self) -> None:
        """Take the points away that were placed; the one that follows the mouse stays."""
        node = self._node
        for index in reversed(range(0 if node is None else node.GetNumberOfControlPoints())):
            if node.GetNthControlPointPositionStatus(index) == node.PositionDefined:
                node.RemoveNthControlPoint(index)

    def _onDefined(self, node: Any, *_ignored: Any) -> None:
        position = [0.0, 0.0, 0.0]
        for index in range(node.GetNumberOfControlPoints()):
            if node.GetNthControlPointPositionStatus(index) == node.PositionDefined:
                node.GetNthControlPointPositionWorld(index, position)
        self._placed(np.array(position))

    def _onModeChanged(self, caller: Any, *_ignored: Any) -> None:
        if self.isOn and (caller is slicer.mrmlScene or not self._isOurs(self._node)):
            self.stop()
            self._ended()

    def _isOurs(self, node: Any) -> bool:
        interaction = _interaction()
        placing = interaction.GetCurrentInteractionMode() == interaction.Place
        return bool(placing and node.GetScene() and _selection().GetActivePlaceNodeID() == node.GetID())


class WheelListener:
    """Tells turns of the mouse wheel over slice views while Shift is held, in place of what the views do with them.

    Args:
        turned: called with 1 (away from the hand) or -1.
    """

    def __init__(self, turned: Callable[[int], None]) -> None:
        self._turned = turned
        self._observed: list[tuple[Any, int]] = []

    def start(self) -> None:
        """Listen to the slice views that the layout has now."""
        self.stop()
        layout = slicer.app.layoutManager()
        for name in () if layout is None else layout.sliceViewNames():
            interactor = layout.sliceWidget(name).sliceView().interactor()
            for event, step in _WHEEL.items():
                self._observe(interactor, event, step)

    def stop(self) -> None:
        """Listen no more."""
        observed, self._observed = self._observed, []
        for interactor, tag in observed:
            interactor.RemoveObserver(tag)

    def _observe(self, interactor: Any, event: str, step: int) -> None:
        tag = 0

        def onWheel(caller: Any, _event: str) -> None:
            if caller.GetShiftKey():
                caller.GetCommand(tag).SetAbortFlag(1)
                self._turned(step)

        tag = interactor.AddObserver(event, onWheel, _PRIORITY)
        self._observed.append((interactor, tag))


def voxelAt(volumeNode: Any, ras: NDArray[np.float64]) -> tuple[int, int, int]:
    """Index (z, y, x) of the CT's voxel at a world position, RAS mm.

    Raises:
        InputError: it lies outside the CT, or no CT.
        GeometryError: a transform that is not linear.
    """
    geometry = gridOfNode(volumeNode)
    position = np.linalg.inv(geometry.ijk_to_ras) @ [*ras, 1.0]
    x, y, z = (int(at) for at in np.floor(position[:3] + 0.5))
    if not all(0 <= at < n for at, n in zip((z, y, x), geometry.shape, strict=True)):
        raise InputError("The click lies outside the CT.", "Click on the CT.")
    return z, y, x


def _interaction() -> Any:
    return slicer.app.applicationLogic().GetInteractionNode()


def _selection() -> Any:
    return slicer.app.applicationLogic().GetSelectionNode()
