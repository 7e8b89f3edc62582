"""The page Correct: the case that is open, Slicer's segment editor, from lesion to lesion, back to the AI result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from numpy.typing import NDArray

from .. import mrml
from ..errors import InputError
from ..imaging.masks import bounding_box
from ..mrml import ModuleParameters
from .case import CaseWork
from .click_correction import ClickCorrection
from .forms import Page, Shortcut, addEntry, chosenData, loadForm, setScene, showProgress, showText, stacked
from .messages import Notice, noticeOf
from .store_client import StoreClient
from .task import Task, Tasks, turn
from .text import _, figure_text, number_text

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .session import Session

_EDITOR_TAG = "COVIDLesionSeg.Editor"
_EFFECTS = ["Paint", "Erase", "Draw", "Threshold", "Islands", "Scissors", "Margin", "Smoothing", "Logical operators"]


class CaseBar:
    """The case that is open, above the editor: saved, said to be without lesion, put aside, the next one.

    Args:
        ui: the form's widgets.
        store: the store.
        work: the case that is open.
        start: runs a coroutine.
        note: shows a :class:`.messages.Notice`.
    """

    def __init__(
        self,
        ui: Any,
        store: StoreClient,
        work: CaseWork,
        start: Callable[[Coroutine[Any, Any, Any]], Any],
        note: Callable[[Notice], None],
    ) -> None:
        self._ui, self._store, self._work, self._start, self._note = ui, store, work, start, note
        for button, action in (
            (ui.nextCaseButton, self.openNext),
            (ui.saveCaseButton, self.save),
            (ui.saveNextButton, self.saveAndNext),
            (ui.noLesionButton, self.saveWithoutLesion),
            (ui.caseCancelButton, work.cancelPrediction),
        ):
            button.connect("clicked(bool)", lambda *_ignored, action=action: action())
        entries = {
            "aside": (
                _("Put aside"),
                _("Close the case; what is not saved is kept and brought back when it is opened again."),
                lambda: start(work.putAside()),
            ),
            "discard": (
                _("Discard the unsaved work"),
                _("Begin again from what is saved."),
                lambda: start(work.startAgain()),
            ),
            "skip": (_("Open next"), _("Put the case aside and open the next one (Alt+O)."), self.openNext),
        }
        self.entries = {name: addEntry(ui.caseMenuButton, *entry) for name, entry in entries.items()}
        store.changed.connect(self.show)
        work.changed.connect(self.show)
        work.noted.connect(note)
        store.noted.connect(note)
        self.show()

    def close(self) -> None:
        """Listen no more; keep what is not saved."""
        self._work.close()
        self._store.changed.disconnect(self.show)
        self._work.changed.disconnect(self.show)
        self._work.noted.disconnect(self._note)
        self._store.noted.disconnect(self._note)

    def openNext(self) -> None:
        """Open the case that comes next."""
        self._start(self._work.openNext())

    def save(self) -> None:
        """Save the lesions; the case stays open."""
        self._start(self._work.save())

    def saveAndNext(self) -> None:
        """Save the lesions and open the case that comes next."""
        self._start(self._saveAndNext())

    async def _saveAndNext(self) -> None:
        # what was just saved, e.g. as free of lesion, is no revision again
        if self._work.isSaved or await self._work.save(close=True):
            await self._work.openNext()

    def saveWithoutLesion(self) -> None:
        """Save that there is no lesion."""
        self._start(self._work.save(noLesion=True))

    def show(self) -> None:
        """Show the case, or that none is open."""
        ui, work, store = self._ui, self._work, self._store
        ui.caseBar.setVisible(bool(store.folder or work.state))
        title = work.caseId or (_("Opening...") if work.state else _("No case is open"))
        reader = _("reader {reader}").format(reader=store.reader or "?")
        showText(ui.caseTitle, ", ".join(filter(None, [title, reader, store.progressText])))
        showText(ui.caseLabel, self._text())
        predicting, isThere = work.state == "predicting", bool(work.state)
        showProgress(ui.caseProgress, predicting, None if work.progress is None else work.progress.fraction)
        ui.caseCancelButton.setVisible(predicting)
        ui.nextCaseButton.setVisible(not isThere)
        for button in (ui.saveCaseButton, ui.saveNextButton, ui.noLesionButton, ui.caseMenuButton):
            button.setVisible(isThere)
            button.setEnabled(work.state == "open")
        self.entries["discard"].setVisible(work.isEdited)

    def _text(self) -> str:
        """What goes on with the case, where it begins from, and why it is this one."""
        work = self._work
        texts = {
            "showing": _("Showing..."),
            "saving": _("Saving..."),
            "closing": _("Closing..."),
            "predicting": _("The model runs first."),
        }
        parts = [texts.get(work.state, "")]
        if work.progress is not None:
            parts.append(work.progress.message or work.progress.phase.capitalize())
        if work.state == "open":
            edited = _("edited") if work.isEdited else _("not edited")
            parts.append(_("From {start}; {edited}.").format(start=work.startFrom, edited=edited))
            if work.model and work.model not in work.startFrom:
                parts.append(_("AI result of {model}.").format(model=work.model))
            parts.append(work.reason)
            if work.case.get("fix"):
                slices = ", ".join(map(str, work.case["fix"]))
                parts.append(_("To be fixed: slices {slices}.").format(slices=slices))
        return " ".join(filter(None, parts))


class CorrectPage(Page):
    """The segment editor on our segmentation, with the CT as source, for a fresh result and an opened case alike.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.messages.Notice`.
        store: the store of the cases.

    Attributes:
        work: the case that is open.
    """

    showsFigures = True

    def __init__(self, session: Session, scene: Any, note: Callable[[Notice], None], store: StoreClient) -> None:
        self._session, self._scene, self._note = session, scene, note
        self._parameters: ModuleParameters | None = None
        self._lesion = -1
        self._active = False
        self._tasks = Tasks(session.timer, lambda error: note(noticeOf(error)))
        self._reset: Task | None = None
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
        ui.previousLesionButton.connect("clicked(bool)", lambda *_ignored: self.goToLesion(-1))
        ui.nextLesionButton.connect("clicked(bool)", lambda *_ignored: self.goToLesion(1))
        ui.resetButton.connect("clicked(bool)", self.onReset)
        session.live.changed.connect(self.showLesions)
        self.work = CaseWork(session, store, self.undoFor)
        self.clicks = ClickCorrection(session, note, self.undoFor)
        # its title stands on the section, which can be folded
        self.clicks.form.setTitle("")
        stacked(ui.clickContainer).addWidget(self.clicks.form)
        self.bar = CaseBar(ui, store, self.work, self._tasks.start, note)
        # a case is opened and saved whichever page is in view
        self.shortcuts = (
            Shortcut("Alt+N", _("Next lesion"), lambda: self.goToLesion(1)),
            Shortcut("Alt+P", _("Previous lesion"), lambda: self.goToLesion(-1)),
            Shortcut("Alt+R", _("Reset to the AI result"), self.onReset),
            *self.clicks.shortcuts,
            Shortcut("Alt+O", _("Open the next case"), self.bar.openNext, isEverywhere=True),
            Shortcut("Alt+S", _("Save the case"), self.bar.save, isEverywhere=True),
            Shortcut("Alt+D", _("Save the case and open the next one"), self.bar.saveAndNext, isEverywhere=True),
        )
        # the editor wants its node before its scene
        self._useEditorNode()
        setScene(self.form, scene)
        self._showRegion()

    def close(self) -> None:
        """Keep what is not saved, and let go of the scene."""
        self.exit()
        self.clicks.close()
        self.bar.close()
        self._tasks.close()
        self._session.live.changed.disconnect(self.showLesions)
        self.editor.setMRMLScene(None)
        self._parameters = None

    # ---- the editor ---------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """The page is in view: the editor's shortcuts and brushes work."""
        if not self._active:
            self._active = True
            self.editor.updateWidgetFromMRML()
            self.editor.setupViewObservations()
            self.editor.installKeyboardShortcuts()

    def exit(self) -> None:
        """The page is out of view: brushes must not paint under another module."""
        self.clicks.exit()
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
        self.ui.editorStateLabel.setVisible(not ready)
        self.editor.setEnabled(ready)
        self.clicks.showParameters(parameters)
        self.ui.resetButton.setEnabled(mrml.hasPrediction(segmentationNode))
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
        ui.previousLesionButton.setEnabled(bool(lesions))
        ui.nextLesionButton.setEnabled(bool(lesions))
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

    # ---- the AI result ------------------------------------------------------------------------------------------

    def _showRegion(self) -> None:
        self.ui.roiSelector.setVisible(chosenData(self.ui.regionCombo) == "roi")

    @property
    def busy(self) -> bool:
        """Whether it is being reset to the AI result."""
        return self._reset is not None and not self._reset.done

    def onReset(self, *_ignored: Any) -> None:
        """Put the AI result back in the chosen region."""
        parameters = self._parameters
        if parameters is not None and not self.busy:
            nodes = parameters.lesionSegmentation, parameters.inputVolume
            self._reset = self._tasks.start(self._resetTo(*nodes, chosenData(self.ui.regionCombo)))

    async def _resetTo(self, segmentationNode: Any, volumeNode: Any, kind: str) -> None:
        region: NDArray[np.bool_] | None = None
        if kind == "lesion":
            region = await self._lesionRegion(segmentationNode, volumeNode)
        elif kind == "slice":
            region = mrml.shownSlice(volumeNode)
        elif kind == "roi":
            region = mrml.insideROI(self.ui.roiSelector.currentNode(), volumeNode)
        await turn()
        mrml.resetToPrediction(segmentationNode, volumeNode, region, self.undoFor(segmentationNode))
        self._note(Notice(_("Reset to the AI result."), "undo"))

    async def _lesionRegion(self, segmentationNode: Any, volumeNode: Any) -> NDArray[np.bool_]:
        """What is connected, in the AI result or as it is now, at the chosen lesion's place."""
        lesions = self._session.live.lesions
        if self._lesion < 0 or not lesions:
            raise InputError(_("No lesion is chosen."), _("Go to one with Next or Previous first."))
        place = lesions[self._lesion]["centroid_lps_mm"]
        both = mrml.predictionMask(segmentationNode, volumeNode)
        await turn()
        both |= mrml.lesionMask(segmentationNode, volumeNode)
        box = bounding_box(both, least=1)
        await turn()
        part = mrml.gridOfNode(volumeNode).cropped(box)
        index = np.linalg.inv(part.ijk_to_lps) @ [*place, 1.0]
        values = {"place": list(index[2::-1]), "spacing": list(part.spacing_zyx)}
        mask = np.ascontiguousarray(both[box]).view(np.uint8)
        reply = await self._session.client("measurement").request("component", values, {"mask": mask})
        inside = np.zeros_like(both)
        inside[box] = reply.arrays["component"]
        return inside


def _ras(lesion: Mapping[str, Any]) -> tuple[float, float, float]:
    left, posterior, superior = lesion["centroid_lps_mm"]
    return -left, -posterior, superior
