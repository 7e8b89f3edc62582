"""The case that is open: out of the store into the scene, autosaved while it is edited, saved as a revision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from slicer.util import VTKObservationMixin

from .. import mrml
from ..errors import COVIDLesionSegError, InputError
from ..worker import Progress, Reply, WorkerError
from .case_answer import CaseAnswer, savedTexts
from .case_contents import CaseContents
from .case_hold import CaseHold
from .case_scene import CaseScene
from .events import Signal
from .notices import Notice, attempt, confirm, noticeOf
from .steps import Steps
from .store_client import StoreClient
from .text import _

if TYPE_CHECKING:
    from .session import Session


class CaseWork(VTKObservationMixin):
    """One case at a time.

    Args:
        session: shared by all panels.
        store: the store.
        undo: gives what saves the state of a segmentation before it is replaced.

    Attributes:
        changed: signal: another case or state.
        noted: signal: a :class:`.notices.Notice`.
        state: "", "opening", "predicting", "showing", "open", "saving" or "closing".
        case: what the overview says of the open case, or empty.
        reason: why it is this case, or "".
        startFrom: what the mask was at the beginning, as a phrase.
        recovered: when unsaved work that was brought back had been kept, or "".
        progress: of the model that answers, or None.
    """

    def __init__(self, session: Session, store: StoreClient, undo: Callable[[Any], mrml.UndoStates]) -> None:
        VTKObservationMixin.__init__(self)
        self._session, self._store, self._undo = session, store, undo
        self.changed, self.noted = Signal(), Signal()
        self.state = ""
        self.progress: Progress | None = None
        self._steps = Steps(session.timer)
        self._answer: CaseAnswer | None = None
        self._forget()
        scene = slicer.mrmlScene
        self._sceneEvents = {
            scene.StartCloseEvent: self._onSceneCloses,
            scene.NodeAboutToBeRemovedEvent: self._onNodeGoes,
            scene.NodeRemovedEvent: self._onNodesGone,
            scene.EndCloseEvent: self._onNodesGone,
        }

    def _forget(self) -> None:
        self.case: Mapping[str, Any] = {}
        self.reason = self.startFrom = self.recovered = self.model = ""
        self._contents: CaseContents | None = None
        self._voxels: tuple[Any, ...] = ()
        self._scene = CaseScene()
        self._hold = CaseHold(self._session, self._store, self._scene, self.noted.emit)
        self._then: Callable[[], None] | None = None

    # ---- what is so -------------------------------------------------------------------------------------------------

    @property
    def caseId(self) -> str:
        """Id of the case, or ""."""
        return str(self.case.get("id", ""))

    @property
    def isOpen(self) -> bool:
        """Whether a case is in the scene, ready to be edited."""
        return self.state in ("open", "saving")

    @property
    def isEdited(self) -> bool:
        """Whether there are edits that are no revision yet."""
        return self._hold.edits > 0 or bool(self.recovered)

    # ---- opening ----------------------------------------------------------------------------------------------------

    def openNext(self, by: str, states: Sequence[str]) -> None:
        """Put the open case aside and open the next one.

        Args:
            by: order of the queue.
            states: which cases wait.

        Raises:
            InputError: something is on, or no store.
        """
        self._open({"by": by, "states": list(states), "besides": self.caseId})

    def openCase(self, case: str, takeOver: bool = False, then: Callable[[], None] | None = None) -> None:
        """Put the open case aside and open this one; nothing but ``then`` is done where it is open already."""
        if self.isOpen and case == self.caseId:
            if then is not None:
                then()
            return
        self._open({"case": case, "take_over": takeOver}, then)

    def _open(self, wanted: Mapping[str, Any], then: Callable[[], None] | None = None) -> None:
        self.requireRest()
        if not self._store.rater:
            raise InputError(_("Nobody is named as the one who corrects."), _("Write a name or initials above."))
        self.putAside(lambda: self._ask(wanted, then))

    def _ask(self, wanted: Mapping[str, Any], then: Callable[[], None] | None) -> None:
        self._enter("opening")
        self._then = then
        try:
            self._store.ask(
                "case_open",
                {**wanted, "rater": self._store.rater},
                self._onOpened,
                failed=self._onNotOpened,
            )
        except COVIDLesionSegError:
            self._enter("")
            raise

    def _onNotOpened(self, error: WorkerError) -> None:
        self._forget()
        self._enter("")
        self.noted.emit(noticeOf(error))

    def _onOpened(self, reply: Reply) -> None:
        values = reply.values
        if not values["found"]:
            self._forget()
            self._enter("")
            self.noted.emit(Notice(_("No case waits.")))
            return
        if self.state != "opening":
            self._store.ask("case_close", {"case": values["case"]["id"], "token": values["token"]})
            return
        self.case, self.reason = values["case"], values["reason"]
        self.startFrom, self.recovered = values["start_from"], values["recovered"] or ""
        self.model = values.get("model", "")
        self._contents = contents = CaseContents(reply, self._scene)
        for text in values["skipped"]:
            self.noted.emit(Notice(text))
        self._hold.take(self.caseId, values["token"], float(values["seconds"]))
        self._enter("showing")
        rest = [self._predict] if values["is_untouched"] else [*contents.lesionSteps(), self._finish]
        self._steps.start([self._showVolume, contents.showLungs, *rest], self._onError)

    def _showVolume(self) -> None:
        assert self._contents is not None  # noqa: S101  # _onOpened has set it
        self._contents.showVolume(self.caseId)
        for event, slot in self._sceneEvents.items():
            self.addObserver(slicer.mrmlScene, event, slot)

    # ---- the model's answer -----------------------------------------------------------------------------------------

    def _predict(self) -> None:
        """The case has no answer yet: the store's default model gives one first."""
        contents = self._contents
        assert contents is not None  # noqa: S101  # _onOpened has set it
        self._answer = CaseAnswer(self._session, self._store, self.caseId)
        self._enter("predicting")
        outcomes = self._onProgress, self._onAnswer, self._onNoAnswer
        self._answer.ask(contents.geometry, contents.forModel(), *outcomes)

    def cancelPrediction(self) -> None:
        """Let the case be opened without an answer."""
        if self._answer is not None:
            self._answer.cancel()

    def _onProgress(self, progress: Progress) -> None:
        self.progress = progress
        self.changed.emit()

    def _onAnswer(self, reply: Reply) -> None:
        answer, self._answer, contents = self._answer, None, self._contents
        if self.state != "predicting" or answer is None or contents is None:
            return
        self.model = answer.keep(reply)
        self.startFrom = _("the answer of {model}").format(model=self.model)
        contents.takeAnswer(reply)
        steps = [] if self._scene.lungNode is not None else [contents.showLungs]
        self._enter("showing")
        self._steps.start([*steps, *contents.lesionSteps(), self._finish], self._onError)

    def _onNoAnswer(self, error: WorkerError) -> None:
        self._answer, contents = None, self._contents
        if self.state != "predicting" or contents is None:
            return
        self.noted.emit(noticeOf(error))
        self.noted.emit(Notice(_("The case is open without an answer of a model; draw, or segment it yourself.")))
        self._enter("showing")
        self._steps.start([*contents.lesionSteps(), self._finish], self._onError)

    def _finish(self) -> None:
        self._scene.choose()
        self._contents = None
        self._hold.begin()
        segmentation = self._scene.segmentationNode.GetSegmentation()
        self._voxels = mrml.voxelStamp(self._scene.segmentationNode)
        for event in mrml.EDITED:
            self.addObserver(segmentation, event, self._onEdited)
        self._enter("open")
        text = _("{case} is open, from {start}.").format(case=self.caseId, start=self.startFrom)
        self.noted.emit(Notice(" ".join(filter(None, [text, self.reason]))))
        then, self._then = self._then, None
        if then is not None:
            then()

    def _onError(self, error: Exception) -> None:
        self.noted.emit(noticeOf(error))
        self._close()

    # ---- while it is edited -----------------------------------------------------------------------------------------

    def _onEdited(self, *_ignored: Any) -> None:
        voxels = mrml.voxelStamp(self._scene.segmentationNode)
        if voxels == self._voxels:
            # another name or color
            return
        self._voxels = voxels
        self._hold.edited()
        if self._hold.edits == 1:
            self.changed.emit()

    def autosave(self) -> None:
        """Keep the edits without making a revision of them."""
        if self.isOpen:
            self._hold.keep()

    def startAgain(self) -> None:
        """Throw the unsaved work away, if that is wanted, and begin from what is saved."""
        self._requireOpen()
        consequence = _("The work that was not saved, of {when}, is removed from the store and replaced in the scene.")
        if not confirm(consequence.format(when=self.recovered or _("this session")), _("Discard it?")):
            return

        def restarted(reply: Reply) -> None:
            def show() -> None:
                self._scene.write(reply.arrays["mask"].view(bool), self._undo(self._scene.segmentationNode))
                self.recovered, self.startFrom = "", reply.values["start_from"]
                self._hold.saved(self._hold.edits)
                self.changed.emit()

            self._steps.start([show], self._onError)

        self._store.ask("case_restart", {**self._hold.where, "rater": self._store.rater}, restarted)

    # ---- saving and closing -----------------------------------------------------------------------------------------

    def save(
        self, *, noLesion: bool = False, close: bool = False, comment: str = "", then: Callable[[], None] | None = None
    ) -> None:
        """Save the lesions as the next revision of this rater.

        Args:
            noLesion: the case has no lesion. What the model marked is erased first; what a person has drawn only if
                that is wanted. The editor's undo brings it back.
            close: close the case then, unless it was edited meanwhile.
            comment: free text.
            then: called when it is saved, and closed if it is to be.

        Raises:
            InputError: no case is open.
        """
        self._requireOpen()
        mask = self._scene.mask()
        if noLesion and mask.any():
            if not self._scene.isAnswer(mask) and not self._mayErase(mask):
                return
            mask = np.zeros_like(mask)
            self._scene.write(mask, self._undo(self._scene.segmentationNode))
        others = self._scene.otherSegments()
        edits, seconds = self._hold.edits, self._hold.seconds
        self._hold.pause()
        self._enter("saving")
        values = {
            **self._hold.where,
            "rater": self._store.rater,
            "held": self._hold.token or None,
            "seconds": seconds,
            "no_lesion": noLesion,
            "comment": comment,
        }

        def saved(reply: Reply) -> None:
            if self._onSaved(reply, edits, close, others) and then is not None:
                then()

        self._store.ask("case_save", values, saved, arrays={"mask": mask.view(np.uint8)}, failed=self._onNotSaved)

    def _mayErase(self, mask: NDArray[np.bool_]) -> bool:
        """Ask whether lesions that a person has drawn may be erased."""
        volume = f"{np.count_nonzero(mask) * self._scene.voxelMl:.1f} mL"
        text = _("{volume} of lesion that somebody has drawn in {case} are erased, and it is saved as free of lesion.")
        return confirm(text.format(volume=volume, case=self.caseId), _("Is there no lesion?"))

    def _onSaved(self, reply: Reply, edits: int, close: bool, others: Sequence[str]) -> bool:
        """The revision is written; returns whether everything that was to be done is done."""
        for text in savedTexts(reply.values, others):
            self.noted.emit(Notice(text))
        if self.state != "saving":
            # its nodes were removed meanwhile
            return True
        if close and self._hold.edits == edits:
            self._hold.release()
            self._leave()
            return True
        self.case = reply.values["case"]
        self.recovered = ""
        # strokes that came while the file was written are edits of the next revision
        self._hold.saved(edits)
        self._enter("open")
        if close:
            text = _("{case} was edited while it was saved, so it stays open. Save it again.")
            self.noted.emit(Notice(text.format(case=self.caseId), is_error=True))
        return not close

    def _onNotSaved(self, error: WorkerError) -> None:
        self.noted.emit(noticeOf(error))
        if self.state != "saving":
            return
        self._enter("open")
        self._hold.goOn()

    def putAside(self, then: Callable[[], None] | None = None) -> None:
        """Close the case; what is not saved is kept, and brought back when it is opened again.

        Args:
            then: called when it is closed, at once where nothing is open; not where its edits could not be kept: then
                it stays open.

        Raises:
            InputError: a case is being opened, saved or closed.
        """
        self.requireRest()
        self._close(then)

    def _close(self, then: Callable[[], None] | None = None) -> None:
        if self._hold.hasUnkept:
            self._enter("closing")
            self._hold.keep(lambda: self._onKept(then), self._onNotKept)
            return
        if self.caseId:
            self._hold.release()
            self._leave()
        if then is not None:
            then()

    def _onKept(self, then: Callable[[], None] | None) -> None:
        # its nodes may have been removed meanwhile; strokes that came while the file was written are kept as well
        if self.state == "closing":
            attempt(lambda: self._close(then), self.noted.emit)

    def _onNotKept(self) -> None:
        if self.state == "closing":
            self._enter("open")
            self._hold.goOn()
            text = _("{case} stays open, because its edits could not be kept.").format(case=self.caseId)
            self.noted.emit(Notice(text, is_error=True))

    def close(self) -> None:
        """The panel goes: keep what is not saved, here and now, and let others open the case."""
        self._hold.endHere()
        self._leave(removeNodes=False)

    def _leave(self, removeNodes: bool = True) -> None:
        self._steps.stop()
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None
        self.removeObservers()
        self._hold.stop()
        if removeNodes:
            self._scene.remove()
        self._forget()
        self._enter("")

    def _onSceneCloses(self, *_ignored: Any) -> None:
        """The nodes are still there: keep what is in them, here and now."""
        self._hold.keepHere()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeGoes(self, _caller: Any, _event: str, node: Any) -> None:
        if node in (self._scene.volumeNode, self._scene.segmentationNode):
            self._hold.keepHere()

    def _onNodesGone(self, *_ignored: Any) -> None:
        if not self.caseId or not self._scene.isGone():
            return
        edited, case = self._hold.hasUnkept, self.caseId
        self._hold.release()
        self._leave()
        lost = " " + _("Edits of the last seconds are gone; earlier ones were kept.") if edited else ""
        text = _("{case} was closed, because its nodes were removed from the scene.").format(case=case)
        self.noted.emit(Notice(text + lost, is_error=edited))

    # ---- inside -----------------------------------------------------------------------------------------------------

    def requireRest(self) -> None:
        """Refuse what must not come between.

        Raises:
            InputError: a case is being opened, saved or closed.
        """
        if self.state not in ("", "open"):
            raise InputError(_("A case is being opened, saved or closed."), _("Wait a moment."))

    def _requireOpen(self) -> None:
        if self.state != "open":
            raise InputError(_("No case is open."), _("Open one first."))

    def _enter(self, state: str) -> None:
        self.state, self.progress = state, None
        self.changed.emit()
