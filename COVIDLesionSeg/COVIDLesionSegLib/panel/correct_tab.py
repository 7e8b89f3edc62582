"""The tab that corrects: Slicer's segment editor, from lesion to lesion, and back to the network's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from .. import mrml
from ..errors import InputError
from ..mrml import ModuleParameters
from .forms import addShortcut, chosenData, loadForm, showText
from .notices import Notice, noticeOf
from .session import Session
from .steps import Steps
from .text import _, figure_text, number_text

_EDITOR_TAG = "COVIDLesionSeg.Editor"
_EFFECTS = ["Paint", "Erase", "Draw", "Threshold", "Islands", "Scissors", "Margin", "Smoothing", "Logical operators"]


class CorrectTab:
    """The segment editor on our segmentation, with the CT as source.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.notices.Notice`.
    """

    def __init__(self, session: Session, scene: Any, note: Callable[[Notice], None]) -> None:
        self._session, self._scene, self._note = session, scene, note
        self._parameters: ModuleParameters | None = None
        self._lesion = -1
        self._active = False
        self._steps = Steps(session.timer)
        self.form, self.ui = loadForm("Correct", scene)
        ui = self.ui
        self.editor = ui.editor
        self.editor.setMaximumNumberOfUndoStates(10)
        self.editor.setSegmentationNodeSelectorVisible(False)
        self.editor.setSourceVolumeNodeSelectorVisible(False)
        # what corrections need stands first; all other effects stay at hand
        self.editor.setEffectNameOrder(_EFFECTS)
        for value, text in (
            ("lesion", _("In this lesion")),
            ("slice", _("In the axial slice in view")),
            ("roi", _("In a region of interest")),
            ("all", _("Everywhere")),
        ):
            ui.regionCombo.addItem(text, value)
        ui.regionCombo.connect("currentIndexChanged(int)", lambda *_ignored: self._showRegion())
        ui.previousButton.connect("clicked(bool)", lambda *_ignored: self.goToLesion(-1))
        ui.nextButton.connect("clicked(bool)", lambda *_ignored: self.goToLesion(1))
        ui.restoreButton.connect("clicked(bool)", self.onRestore)
        self._shortcuts = [
            addShortcut("Alt+N", self.form, lambda: self.goToLesion(1)),
            addShortcut("Alt+P", self.form, lambda: self.goToLesion(-1)),
            addShortcut("Alt+R", self.form, self.onRestore),
        ]
        session.live.changed.connect(self.showLesions)
        self._useEditorNode()
        self._showRegion()

    def close(self) -> None:
        """Let go of the scene."""
        self.leave()
        self._steps.stop()
        self._session.live.changed.disconnect(self.showLesions)
        self.editor.setMRMLScene(None)
        self._parameters = None

    # ---- the editor ---------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """The tab is in view: the editor's shortcuts and brushes work."""
        if not self._active:
            self._active = True
            self.editor.setupViewObservations()
            self.editor.installKeyboardShortcuts()

    def leave(self) -> None:
        """The tab is out of view: brushes must not paint under another module."""
        if self._active:
            self._active = False
            self.editor.setActiveEffectByName("")
            self.editor.uninstallKeyboardShortcuts()
            self.editor.removeViewObservations()

    def undoFor(self, segmentationNode: Any) -> Any:
        """What saves a segmentation's state before it is replaced: the editor, whose undo then brings it back."""
        if self.editor.segmentationNode() is not segmentationNode:
            self.editor.setSegmentationNode(segmentationNode)
        return self.editor

    def undo(self) -> None:
        """The editor's undo."""
        if self.editor.segmentationNode() is not None:
            self.editor.undo()

    def showParameters(self, parameters: ModuleParameters) -> None:
        """Show the scene's choices: our segmentation, our segment, the CT."""
        self._parameters = parameters
        self._useEditorNode()
        segmentationNode, volumeNode = parameters.lesionSegmentation, parameters.inputVolume
        if self.editor.segmentationNode() is not segmentationNode:
            self.editor.setSegmentationNode(segmentationNode)
            self._lesion = -1
        usable = volumeNode if volumeNode is not None and not mrml.volumeProblem(volumeNode) else None
        if segmentationNode is not None and self.editor.sourceVolumeNode() is not usable:
            self.editor.setSourceVolumeNode(usable)
        if segmentationNode is not None:
            self._chooseSegment(segmentationNode, parameters.lesionSegmentId)
        ready = segmentationNode is not None
        self.ui.stateLabel.setVisible(not ready)
        self.editor.setEnabled(ready)
        self.ui.restoreButton.setEnabled(mrml.hasAnswer(segmentationNode))
        self.showLesions()

    def _chooseSegment(self, segmentationNode: Any, wanted: str) -> None:
        segmentation = segmentationNode.GetSegmentation()
        if segmentation.GetSegment(self.editor.currentSegmentID() or "") is not None:
            return
        ours = mrml.segmentsWithRole(segmentationNode)
        identity = wanted if segmentation.GetSegment(wanted) is not None else next(iter(ours), "")
        if identity:
            self.editor.setCurrentSegmentID(identity)

    def _useEditorNode(self) -> None:
        """One editor node a scene; a scene that is closed takes it along."""
        node = self._scene.GetSingletonNode(_EDITOR_TAG, "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.vtkMRMLSegmentEditorNode()
            node.SetSingletonTag(_EDITOR_TAG)
            node = self._scene.AddNode(node)
        if self.editor.mrmlSegmentEditorNode() is not node:
            self.editor.setMRMLSegmentEditorNode(node)

    # ---- lesions ------------------------------------------------------------------------------------------------

    def goToLesion(self, step: int) -> None:
        """Jump all views to the next or previous lesion, round and round."""
        lesions = self._session.live.lesions
        if not lesions:
            self._note(Notice(_("There are no measured lesions to go to.")))
            return
        if self._lesion < 0:
            self._lesion = 0 if step > 0 else len(lesions) - 1
        else:
            self._lesion = (self._lesion + step) % len(lesions)
        mrml.jumpTo(_ras(lesions[self._lesion]))
        self.showLesions()

    def showLesions(self) -> None:
        """Show which lesion the views are at."""
        lesions = self._session.live.lesions
        ui = self.ui
        ui.previousButton.setEnabled(bool(lesions))
        ui.nextButton.setEnabled(bool(lesions))
        if lesions:
            # while none are known, the place among them is kept
            self._lesion = min(self._lesion, len(lesions) - 1)
        if not lesions:
            showText(ui.lesionLabel, self._session.live.stateText() or _("No lesions measured yet."))
        elif self._lesion < 0:
            largest = figure_text(lesions[0]["volume_ml"], "mL")
            showText(
                ui.lesionLabel, _("{count} lesions, the largest {volume}").format(count=len(lesions), volume=largest)
            )
        else:
            lesion = lesions[self._lesion]
            text = _("Lesion {index} of {count}: {volume}, mean {hu} HU, {place}").format(
                index=self._lesion + 1,
                count=len(lesions),
                volume=figure_text(lesion["volume_ml"], "mL"),
                hu=number_text(lesion["mean_hu"]),
                place=lesion["place"],
            )
            showText(ui.lesionLabel, text)

    # ---- the network's answer -----------------------------------------------------------------------------------

    def _showRegion(self) -> None:
        self.ui.roiSelector.setVisible(chosenData(self.ui.regionCombo) == "roi")

    def onRestore(self, *_ignored: Any) -> None:
        """Put the network's answer back in the chosen region."""
        parameters = self._parameters
        if parameters is None or self._steps.busy:
            return
        segmentationNode, volumeNode = parameters.lesionSegmentation, parameters.inputVolume
        found: dict[str, Any] = {}
        steps = [
            *self._regionSteps(chosenData(self.ui.regionCombo), segmentationNode, volumeNode, found),
            lambda: mrml.restoreAnswer(
                segmentationNode, volumeNode, found.get("region"), self.undoFor(segmentationNode)
            ),
            self._restored,
        ]
        self._steps.start(steps, lambda error: self._note(noticeOf(error)))

    def _restored(self) -> None:
        self._note(Notice(_("The network's answer was restored."), "undo"))

    def _regionSteps(
        self, kind: str, segmentationNode: Any, volumeNode: Any, found: dict[str, Any]
    ) -> list[Callable[[], Any]]:
        """Pieces of work after which ``found["region"]`` is the region, absent for everywhere."""
        if kind == "slice":
            return [lambda: found.update(region=mrml.shownSlice(volumeNode))]
        if kind == "roi":
            node = self.ui.roiSelector.currentNode()
            return [lambda: found.update(region=mrml.insideROI(node, volumeNode))]
        if kind != "lesion":
            return []
        lesions = self._session.live.lesions
        if self._lesion < 0 or not lesions:
            return [_refuse]
        lesion = lesions[self._lesion]
        return [
            lambda: found.update(answer=mrml.answerMask(segmentationNode, volumeNode)),
            lambda: found.update(now=mrml.lesionMask(segmentationNode, volumeNode)),
            lambda: found.update(region=_lesionRegion(found["answer"], found["now"], volumeNode, lesion)),
        ]


def _refuse() -> None:
    raise InputError(_("No lesion is chosen."), _("Go to one with the buttons above first."))


def _ras(lesion: Mapping[str, Any]) -> tuple[float, float, float]:
    left, posterior, superior = lesion["centroid_lps_mm"]
    return -left, -posterior, superior


def _lesionRegion(
    answer: NDArray[np.bool_], now: NDArray[np.bool_], volumeNode: Any, lesion: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """The connected voxels, in the answer or as they are now, at a lesion's place; a lesion may be curved around it."""
    from ..measurement.components import bounding_box, find_components

    both = answer | now
    box = bounding_box(both)
    inside = np.ascontiguousarray(both[box])
    components = find_components(inside)
    region = np.zeros_like(both)
    if not components.count:
        return region
    geometry = mrml.gridOfNode(volumeNode)
    place = np.linalg.inv(geometry.ijk_to_lps) @ np.append(lesion["centroid_lps_mm"], 1.0)
    index = np.array([place[2], place[1], place[0]]) - [side.start for side in box]
    spacing = np.asarray(geometry.spacing_zyx)
    # the run of voxels nearest to the place says which component is meant
    along = np.clip(index[2], components.x, components.x + components.lengths - 1)
    runs = np.stack([components.z, components.y, along], axis=1)
    nearest = int(np.argmin((((runs - index) * spacing) ** 2).sum(axis=1)))
    chosen = np.zeros_like(inside)
    chosen[inside] = np.repeat(components.labels == components.labels[nearest], components.lengths)
    region[box] = chosen
    return region
