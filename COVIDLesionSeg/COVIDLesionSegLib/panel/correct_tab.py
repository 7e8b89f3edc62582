"""The tab that corrects: Slicer's segment editor, from lesion to lesion, and back to the network's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from .. import mrml
from ..errors import InputError
from ..imaging.masks import bounding_box
from ..mrml import ModuleParameters
from ..worker import Reply, Request, WorkerError
from .forms import Page, Shortcut, chosenData, loadForm, setScene, showText
from .notices import Notice, noticeOf
from .session import Session
from .steps import Steps
from .text import _, figure_text, number_text

_EDITOR_TAG = "COVIDLesionSeg.Editor"
_EFFECTS = ["Paint", "Erase", "Draw", "Threshold", "Islands", "Scissors", "Margin", "Smoothing", "Logical operators"]


class CorrectTab(Page):
    """The segment editor on our segmentation, with the CT as source.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.notices.Notice`.
    """

    showsFigures = True

    def __init__(self, session: Session, scene: Any, note: Callable[[Notice], None]) -> None:
        self._session, self._scene, self._note = session, scene, note
        self._parameters: ModuleParameters | None = None
        self._lesion = -1
        self._active = False
        self._steps = Steps(session.timer)
        self._request: Request | None = None
        self.form, self.ui = loadForm("Correct")
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
        self.shortcuts = (
            Shortcut("Alt+N", _("Next lesion"), lambda: self.goToLesion(1)),
            Shortcut("Alt+P", _("Previous lesion"), lambda: self.goToLesion(-1)),
            Shortcut("Alt+R", _("Reset to the AI result"), self.onRestore),
        )
        session.live.changed.connect(self.showLesions)
        # the editor wants its node before its scene
        self._useEditorNode()
        setScene(self.form, scene)
        self._showRegion()

    def close(self) -> None:
        """Let go of the scene."""
        self.exit()
        self._steps.stop()
        if self._request is not None:
            self._request.cancel()
        self._session.live.changed.disconnect(self.showLesions)
        self.editor.setMRMLScene(None)
        self._parameters = None

    # ---- the editor ---------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """The tab is in view: the editor's shortcuts and brushes work."""
        if not self._active:
            self._active = True
            self.editor.updateWidgetFromMRML()
            self.editor.setupViewObservations()
            self.editor.installKeyboardShortcuts()

    def exit(self) -> None:
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
        self.ui.restoreButton.setEnabled(mrml.hasPrediction(segmentationNode))
        self.showLesions()

    def release(self, node: Any) -> None:
        """A node is about to be removed: no other takes its place."""
        if self.ui.roiSelector.currentNode() is node:
            self.ui.roiSelector.setCurrentNode(None)

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

    @property
    def busy(self) -> bool:
        """Whether the network's answer is being restored."""
        return self._steps.busy or self._request is not None

    def onRestore(self, *_ignored: Any) -> None:
        """Put the network's answer back in the chosen region."""
        parameters = self._parameters
        if parameters is None or self.busy:
            return
        segmentationNode, volumeNode = parameters.lesionSegmentation, parameters.inputVolume
        roiNode = self.ui.roiSelector.currentNode()
        kind = chosenData(self.ui.regionCombo)
        if kind == "lesion":
            self._findLesion(segmentationNode, volumeNode)
        elif kind == "slice":
            self._restore(segmentationNode, volumeNode, lambda: mrml.shownSlice(volumeNode))
        elif kind == "roi":
            self._restore(segmentationNode, volumeNode, lambda: mrml.insideROI(roiNode, volumeNode))
        else:
            self._restore(segmentationNode, volumeNode, lambda: None)

    def _restore(
        self, segmentationNode: Any, volumeNode: Any, findRegion: Callable[[], NDArray[np.bool_] | None]
    ) -> None:
        def restore() -> None:
            mrml.resetToPrediction(segmentationNode, volumeNode, findRegion(), self.undoFor(segmentationNode))

        self._steps.start([restore, self._restored], self._onError)

    def _onError(self, error: Exception) -> None:
        self._note(noticeOf(error))

    def _restored(self) -> None:
        self._note(Notice(_("The network's answer was restored."), "undo"))

    def _findLesion(self, segmentationNode: Any, volumeNode: Any) -> None:
        """Restore what is connected, in the answer or as it is now, at the chosen lesion's place."""
        lesions = self._session.live.lesions
        if self._lesion < 0 or not lesions:
            self._onError(InputError(_("No lesion is chosen."), _("Go to one with the buttons above first.")))
            return
        place = lesions[self._lesion]["centroid_lps_mm"]
        found: dict[str, Any] = {}

        def readAnswer() -> None:
            found["both"] = mrml.predictionMask(segmentationNode, volumeNode)

        def readLesions() -> None:
            found["both"] |= mrml.lesionMask(segmentationNode, volumeNode)
            found["box"] = bounding_box(found["both"], least=1)

        def ask() -> None:
            part = mrml.gridOfNode(volumeNode).cropped(found["box"])
            index = np.linalg.inv(part.ijk_to_lps) @ [*place, 1.0]
            values = {"place": list(index[2::-1]), "spacing": list(part.spacing_zyx)}
            mask = np.ascontiguousarray(found["both"][found["box"]]).view(np.uint8)
            self._request = self._session.client("measurement").request(
                "component", values, {"mask": mask}, finished=answered, failed=self._onFailed
            )

        def answered(reply: Reply) -> None:
            self._request = None
            self._restore(segmentationNode, volumeNode, lambda: region(reply))

        def region(reply: Reply) -> NDArray[np.bool_]:
            inside = np.zeros_like(found["both"])
            inside[found["box"]] = reply.arrays["component"]
            return inside

        self._steps.start([readAnswer, readLesions, ask], self._onError)

    def _onFailed(self, error: WorkerError) -> None:
        self._request = None
        if error.kind != "cancelled":
            self._note(noticeOf(error))


def _ras(lesion: Mapping[str, Any]) -> tuple[float, float, float]:
    left, posterior, superior = lesion["centroid_lps_mm"]
    return -left, -posterior, superior
