"""Correct by a click: remove the lesion under it, grow one from it, or draw the whole result at another threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from slicer.util import VTKObservationMixin

from .. import mrml
from ..errors import InputError
from ..imaging import Geometry
from ..imaging.masks import Box
from ..inference.levels import MOST_SENSITIVE, ProbabilityLevels
from ..measurement.lesions import component_around, nearest_voxel
from ..mrml import ModuleParameters
from .forms import Page, Shortcut, loadForm
from .messages import Notice, noticeOf
from .task import Task, Tasks, turn
from .text import _, figure_text, number_text

if TYPE_CHECKING:
    from .session import Session

# A click this near to a lesion means it: thin lesions are hard to hit.
_REACH_MM = 3.0
# What grows beyond this at a threshold that nobody has chosen is the noise around what the network has seen.
_MOST_UNASKED_ML = 50.0
# Steps of the threshold for each turn of the wheel.
_WHEEL_STEPS = 2
# Surfaces take up to a second: they are made again when the hand rests.
_REST_MS = 1500
_PAUSE_MS = 200
_NOT_KEPT = _(
    "The probability of this result is not kept: run the model on the CT to add by clicks or change the sensitivity."
)
_EDITED = _("The result was edited, so its sensitivity stays. Correct it by clicks, or reset to AI result first.")


@dataclass
class _Growth:
    """The lesion that was added last, which the threshold still changes."""

    seed: tuple[int, int, int]
    box: Box
    region: NDArray[np.bool_]
    stamp: tuple[Any, ...]


class ClickCorrection(Page, VTKObservationMixin):
    """A group of widgets, for any page on which lesions are corrected; that page lists its shortcuts among its own.

    Args:
        session: shared by all panels.
        note: shows a :class:`.messages.Notice`.
        editorFor: gives the segment editor, showing a segmentation: its undo takes each click back.
    """

    def __init__(self, session: Session, note: Callable[[Notice], None], editorFor: Callable[[Any], Any]) -> None:
        VTKObservationMixin.__init__(self)
        self._note, self._editorFor = note, editorFor
        self._tasks = Tasks(session.timer, self._onError)
        self._run = session.run
        self._parameters: ModuleParameters | None = None
        self._shown: tuple[Any, Any] = (None, None)
        self._tool = ""
        self._growth: _Growth | None = None
        # what the segments are while nobody else has changed a result that was redrawn
        self._drawn: tuple[Any, ...] = ()
        self._answering: Task | None = None
        self._regrowing: Task | None = None
        self._redrawing: Task | None = None
        # the segmentation whose surfaces are to be made again, and the task that waits for it
        self._resting: tuple[Any, Task] | None = None
        self._placement = mrml.PointPlacement(self._onPlaced, lambda: self.use(""))
        self._wheel = mrml.WheelListener(lambda steps: self._move(_WHEEL_STEPS * steps))
        self.form, self.ui = loadForm("ClickCorrection")
        ui = self.ui
        ui.removeLesionButton.connect("clicked(bool)", lambda on=False, *_ignored: self.use("remove" if on else ""))
        ui.addLesionButton.connect("clicked(bool)", lambda on=False, *_ignored: self.use("add" if on else ""))
        ui.undoClickButton.connect("clicked(bool)", self.onUndo)
        ui.thresholdSlider.connect("valueChanged(int)", self._onThreshold)
        ui.insideCheck.connect("toggled(bool)", self._onThreshold)
        ui.sensitivitySlider.connect("valueChanged(int)", self._onSensitivity)
        self.shortcuts = (
            Shortcut("Alt+E", _("Remove lesions by clicks, or stop it"), lambda: self._toggle("remove")),
            Shortcut("Alt+A", _("Add lesions by clicks, or stop it"), lambda: self._toggle("add")),
            Shortcut("Alt+Up", _("Make the lesion that was added last larger"), lambda: self._move(_WHEEL_STEPS)),
            Shortcut("Alt+Down", _("Make the lesion that was added last smaller"), lambda: self._move(-_WHEEL_STEPS)),
        )
        session.run.finished.connect(self._onFinished)
        self._showState()
        self._showHint()

    @property
    def busy(self) -> bool:
        """Whether a click is being answered; surfaces that are to be made again do not count."""
        return any(task is not None and not task.done for task in (self._answering, self._regrowing, self._redrawing))

    def close(self) -> None:
        """Let go of the scene."""
        self.exit()
        self.removeObservers()
        self._run.finished.disconnect(self._onFinished)
        self._tasks.close()
        self._parameters = None

    def exit(self) -> None:
        """The page is out of view: clicks are the views' again."""
        self.use("")

    def showParameters(self, parameters: ModuleParameters) -> None:
        """Work on what the scene's parameters name."""
        self._parameters = parameters
        shown = parameters.lesionSegmentation, parameters.inputVolume
        if shown != self._shown:
            self._shown = shown
            self.use("")
            self._drawn = ()
            self.removeObservers()
            if shown[0] is not None:
                self.addObserver(shown[0], "ModifiedEvent", self._onKept)
        elif self._tool == "add" and self._levels() is None:
            self.use("")
        if not self.busy:
            self._followResult()

    def _onKept(self, *_ignored: Any) -> None:
        """The probability may have come after the result."""
        if (self._levels() is not None) != self.ui.addLesionButton.enabled:
            self._showState()
            self._showHint()

    def _onFinished(self, *_ignored: Any) -> None:
        """Another result is in the same nodes."""
        if self._parameters is not None:
            self._growth, self._drawn = None, ()
            self.showParameters(self._parameters)

    # ---- tools --------------------------------------------------------------------------------------------------

    def use(self, tool: str) -> None:
        """Let clicks "remove" or "add", or "" nothing."""
        self._tool, self._growth = tool, None
        ui = self.ui
        ui.removeLesionButton.setChecked(tool == "remove")
        ui.addLesionButton.setChecked(tool == "add")
        if tool:
            self._placement.start()
        else:
            self._placement.stop()
        if tool == "add":
            self._wheel.start()
        else:
            self._wheel.stop()
        self._showState()
        self._showHint()

    def _toggle(self, tool: str) -> None:
        button = self.ui.removeLesionButton if tool == "remove" else self.ui.addLesionButton
        if button.enabled:
            self.use("" if self._tool == tool else tool)

    def onUndo(self, *_ignored: Any) -> None:
        """Take the last change back."""
        segmentationNode = self._shown[0]
        if segmentationNode is None:
            return
        self._editorFor(segmentationNode).undo()
        self._growth = None
        self._say(_("The last change was taken back."))

    def _onPlaced(self, ras: NDArray[np.float64]) -> None:
        # the view is still busy with the point
        self._answering = self._tasks.start(self._answer(self._tool, ras))

    async def _answer(self, tool: str, ras: NDArray[np.float64]) -> None:
        self._placement.clear()
        if tool == self._tool == "remove":
            self._remove(ras)
        elif tool == self._tool == "add":
            self._add(ras)

    def _remove(self, ras: NDArray[np.float64]) -> None:
        segmentationNode, volumeNode, segments = self._target()
        geometry = mrml.gridOfNode(volumeNode)
        clicked = mrml.voxelAt(volumeNode, ras)
        lesion = self._lesion
        seed = nearest_voxel(lesion, clicked, geometry.shape, geometry.spacing_zyx, _REACH_MM)
        if seed is None:
            self._say(_("There is no lesion under the click."))
            return
        box, region = component_around(lesion, seed, geometry.shape)
        self._begin(segmentationNode)
        for identity in segments:
            mrml.changeSegment(segmentationNode, identity, box, region, volumeNode, add=False)
        self._say(_("Removed a lesion of {volume}.").format(volume=_volume(region, geometry)))

    def _add(self, ras: NDArray[np.float64]) -> None:
        segmentationNode, volumeNode, _segments = self._target()
        levels = mrml.levelsOf(segmentationNode, volumeNode)
        if levels is None:
            self._say(_NOT_KEPT)
            return
        geometry = mrml.gridOfNode(volumeNode)
        clicked = mrml.voxelAt(volumeNode, ras)
        one = slice(clicked[0], clicked[0] + 1), slice(clicked[1], clicked[1] + 1), slice(clicked[2], clicked[2] + 1)
        if not self._allowed(one).any():
            self._say(_("The click lies outside the lungs."))
            return
        seed, needed = levels.seed(clicked, self._allowed)
        chosen = self.ui.thresholdSlider.value
        if needed > MOST_SENSITIVE:
            self._say(_("The network sees no lesion here. Draw it with Paint."))
            return
        sensitivity = chosen
        if needed > chosen:
            # as wide as the spot is at half of its probability
            sensitivity = levels.sensitivity_of(levels.threshold_at(needed) / 2)
        box, region = levels.grown(seed, sensitivity, self._lesion, self._allowed)
        if sensitivity > chosen and region.sum() * geometry.voxel_ml > _MOST_UNASKED_ML:
            text = _("The network sees hardly any lesion here: at {probability} the region would fill {volume}.")
            found = _percent(levels.threshold_at(sensitivity))
            self._say(text.format(probability=found, volume=_volume(region, geometry)))
            return
        self._begin(segmentationNode)
        self._slideTo(self.ui.thresholdSlider, sensitivity)
        self._put(box, region)
        self._growth = _Growth(seed, box, region, mrml.voxelStamp(segmentationNode))
        self._tellGrowth(region)

    # ---- the lesion that grows ----------------------------------------------------------------------------------

    def _move(self, steps: int) -> None:
        """Change the threshold of what is added, as the slider does."""
        if self._tool == "add":
            slider = self.ui.thresholdSlider
            slider.setValue(max(slider.minimum, min(slider.maximum, slider.value + steps)))

    def _onThreshold(self, *_ignored: Any) -> None:
        self._showState()
        if self._growth is not None and (self._regrowing is None or self._regrowing.done):
            self._regrowing = self._tasks.start(self._regrow())

    async def _regrow(self) -> None:
        """Grow anew from the same voxel; a slider that moves on meanwhile is followed once for all its moves."""
        grown = None
        while self._growth is not None:
            wanted = self.ui.thresholdSlider.value, self.ui.insideCheck.checked
            if wanted == grown:
                return
            grown = wanted
            self._growAt(self._growth, wanted[0])
            await turn()

    def _growAt(self, growth: _Growth, sensitivity: int) -> None:
        segmentationNode, volumeNode, segments = self._target()
        levels = mrml.levelsOf(segmentationNode, volumeNode)
        if levels is None or growth.stamp != mrml.voxelStamp(segmentationNode):
            # somebody has edited or undone it: it stays as it is
            self._growth = None
            return

        def before(box: Box) -> NDArray[np.bool_]:
            return self._lesion(box) & ~_inside(growth.region, growth.box, box)

        box, region = levels.grown(growth.seed, sensitivity, before, self._allowed)
        self._takeSurfaces(segmentationNode)
        gone = growth.region & ~_inside(region, box, growth.box)
        for identity in segments:
            mrml.changeSegment(segmentationNode, identity, growth.box, gone, volumeNode, add=False)
        self._put(box, region & ~_inside(growth.region, growth.box, box))
        growth.box, growth.region = box, region
        growth.stamp = mrml.voxelStamp(segmentationNode)
        self._tellGrowth(region)

    def _put(self, box: Box, region: NDArray[np.bool_]) -> None:
        segmentationNode, volumeNode, segments = self._target()
        chosen = self._editorFor(segmentationNode).currentSegmentID()
        identity = chosen if chosen in segments else segments[0]
        limit = None if self._parameters is None else self._parameters.consolidationFrom
        mrml.addLesion(segmentationNode, identity, box, region, volumeNode, limit)

    def _tellGrowth(self, region: NDArray[np.bool_]) -> None:
        if region.any():
            volume = _volume(region, mrml.gridOfNode(self._shown[1]))
            text = _("Added {volume}. Shift and the mouse wheel change it; the next click keeps it.")
            self._say(text.format(volume=volume))
        else:
            self._say(_("At this threshold nothing is added. Move the slider to the right."))

    # ---- the whole result ---------------------------------------------------------------------------------------

    def _onSensitivity(self, *_ignored: Any) -> None:
        self._showState()
        if self._redrawing is None or self._redrawing.done:
            self._redrawing = self._tasks.start(self._redraw())

    async def _redraw(self) -> None:
        """Follow the slider, once for all its moves meanwhile."""
        shown = self._shown
        segmentationNode, volumeNode = shown
        while shown == self._shown and segmentationNode is not None:
            wanted = self.ui.sensitivitySlider.value
            if wanted == mrml.drawnSensitivity(segmentationNode):
                return
            undo = None
            if not self._drawn or self._drawn != mrml.voxelStamp(segmentationNode):
                self._drawn = ()
                if not mrml.unedited(segmentationNode, volumeNode):
                    self._followResult()
                    self._say(_EDITED)
                    return
                undo = self._editorFor(segmentationNode)
                await turn()
                if shown != self._shown:
                    return
            # its own changes are no edit
            self._growth, self._drawn = None, ()
            self._takeSurfaces(segmentationNode, undo)
            limit = None if self._parameters is None else self._parameters.consolidationFrom
            _box, mask = mrml.redrawAt(segmentationNode, volumeNode, wanted, consolidationFrom=limit)
            self._drawn = mrml.voxelStamp(segmentationNode)
            if undo is not None:
                self.removeObservers(self._onEdited)
                for event in mrml.EDITED:
                    self.addObserver(segmentationNode.GetSegmentation(), event, self._onEdited)
            volume = _volume(mask, mrml.gridOfNode(volumeNode))
            probability = self.ui.sensitivityLabel.text
            self._say(_("Lesion above {probability}: {volume}.").format(probability=probability, volume=volume))
            await turn()

    def _onEdited(self, *_ignored: Any) -> None:
        """Somebody has changed a result that was redrawn, or taken that back: the slider follows it."""
        segmentationNode = self._shown[0]
        if self._drawn and self._drawn != mrml.voxelStamp(segmentationNode):
            self._drawn = ()
            self.removeObservers(self._onEdited)
            self._tasks.start(self._followEdit(self._shown))

    async def _followEdit(self, shown: tuple[Any, Any]) -> None:
        await turn(_PAUSE_MS)
        if shown == self._shown and not self._drawn and not self.busy and self._levels() is not None:
            mrml.unedited(*shown)
            self._followResult()

    # ---- inside -------------------------------------------------------------------------------------------------

    def _target(self) -> tuple[Any, Any, list[str]]:
        """Segmentation, CT, and the segments that are lesion."""
        segmentationNode, volumeNode = self._shown
        mrml.requireNode(segmentationNode, "vtkMRMLSegmentationNode", _("result"))
        chosen = "" if self._parameters is None else self._parameters.lesionSegmentId
        known = list(segmentationNode.GetSegmentation().GetSegmentIDs())
        segments = [chosen] if chosen in known else mrml.segmentsWithRole(segmentationNode)
        if not segments and len(known) == 1:
            segments = known
        if not segments:
            raise InputError(_("The segmentation has no lesion segments."), _("Segment the CT first."))
        return segmentationNode, volumeNode, segments

    def _lesion(self, box: Box) -> NDArray[np.bool_]:
        segmentationNode, volumeNode, segments = self._target()
        return mrml.segmentsMask(segmentationNode, segments, volumeNode, box)

    def _allowed(self, box: Box) -> NDArray[np.bool_]:
        lungNode = None if self._parameters is None else self._parameters.lungSegmentation
        if lungNode is None or not self.ui.insideCheck.checked:
            return np.ones([side.stop - side.start for side in box], bool)
        return mrml.lungsInside(lungNode, self._shown[1], box)

    def _begin(self, segmentationNode: Any) -> None:
        """One step of undo begins."""
        self._growth = None
        self._takeSurfaces(segmentationNode, self._editorFor(segmentationNode))

    def _takeSurfaces(self, segmentationNode: Any, undo: mrml.UndoStates | None = None) -> None:
        """Save the state where one is to be saved, and change voxels without making surfaces anew each time."""
        if undo is not None:
            undo.saveStateForUndo()
        resting = self._resting
        waits = resting is not None and not resting[1].done and resting[0] is segmentationNode
        if resting is not None and waits:
            resting[1].cancel()
        if mrml.takeSurfaces(segmentationNode) or waits:
            self._resting = segmentationNode, self._tasks.start(self._remakeSurfaces(segmentationNode))

    async def _remakeSurfaces(self, segmentationNode: Any) -> None:
        await turn(_REST_MS)
        if segmentationNode.GetScene() is not None:
            segmentationNode.CreateClosedSurfaceRepresentation()

    def _slideTo(self, slider: Any, value: int) -> None:
        blocked = slider.blockSignals(True)
        slider.setValue(value)
        slider.blockSignals(blocked)

    def _say(self, text: str) -> None:
        self.ui.clickLabel.setText(text)

    def _onError(self, error: Exception) -> None:
        self._note(noticeOf(error))

    def _levels(self) -> ProbabilityLevels | None:
        segmentationNode, volumeNode = self._shown
        if segmentationNode is None or volumeNode is None or mrml.volumeProblem(volumeNode):
            return None
        return mrml.levelsOf(segmentationNode, volumeNode)

    def _showState(self) -> None:
        """Show what can be done, and at which thresholds."""
        ui, levels = self.ui, self._levels()
        segmentationNode, volumeNode = self._shown
        ready = segmentationNode is not None and volumeNode is not None and not mrml.volumeProblem(volumeNode)
        ui.removeLesionButton.setEnabled(ready)
        ui.undoClickButton.setEnabled(ready)
        for widget in (ui.addLesionButton, ui.insideCheck, ui.thresholdSlider, ui.sensitivitySlider):
            widget.setEnabled(levels is not None)
        for slider, label in (
            (ui.thresholdSlider, ui.thresholdLabel),
            (ui.sensitivitySlider, ui.sensitivityLabel),
        ):
            label.setText("" if levels is None else _percent(levels.threshold_at(slider.value)))

    def _showHint(self) -> None:
        """Say what the next click does."""
        if self._tool == "remove":
            self._say(_("Click on a lesion in a slice view to remove it."))
        elif self._tool == "add":
            self._say(_("Click in a slice view where a lesion was missed."))
        elif self._shown[0] is None:
            self._say(_("Segment a CT first."))
        elif self._levels() is None:
            self._say(_NOT_KEPT)
        else:
            self._say(_("Choose Remove or Add, then click in a slice view."))

    def _followResult(self) -> None:
        """Set the slider to the sensitivity of what is drawn."""
        segmentationNode = self._shown[0]
        drawn = 0 if segmentationNode is None else mrml.drawnSensitivity(segmentationNode)
        self._slideTo(self.ui.sensitivitySlider, drawn)
        self._showState()


def _percent(probability: float) -> str:
    return f"{number_text(100 * probability)} %"


def _volume(region: NDArray[np.bool_], geometry: Geometry) -> str:
    return figure_text(float(np.count_nonzero(region)) * geometry.voxel_ml, "mL")


def _inside(region: NDArray[np.bool_], box: Box, other: Box) -> NDArray[np.bool_]:
    """A region in a box of the CT as it is in another box, bool (z, y, x)."""
    found = np.zeros([side.stop - side.start for side in other], bool)
    common = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, other, strict=True)]
    if all(start < stop for start, stop in common):
        source = tuple(slice(start - a.start, stop - a.start) for (start, stop), a in zip(common, box, strict=True))
        target = tuple(slice(start - b.start, stop - b.start) for (start, stop), b in zip(common, other, strict=True))
        found[target] = region[source]
    return found
