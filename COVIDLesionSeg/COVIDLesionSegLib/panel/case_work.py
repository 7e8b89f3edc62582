"""The case that is open: out of the store into the scene, autosaved while it is edited, saved as a revision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from numpy.typing import NDArray
from slicer.util import VTKObservationMixin

from ..errors import COVIDLesionSegError, InputError
from ..worker import Progress, Reply, WorkerError
from ..worker.protocol import geometry_from_json
from .case_answer import CaseAnswer, savedTexts
from .case_hold import CaseHold
from .case_scene import CaseScene
from .events import Signal
from .notices import Notice, noticeOf
from .steps import Steps
from .store_client import StoreClient
from .text import _

if TYPE_CHECKING:
    from .session import Session

_EDITED = ("SourceRepresentationModified", "SegmentAdded", "SegmentRemoved")


class CaseWork(VTKObservationMixin):
    """One case at a time.

    Args:
        session: shared by all panels.
        store: the store.

    Attributes:
        changed: signal: another case or state.
        noted: signal: a :class:`.notices.Notice`.
        state: "", "opening", "predicting", "showing", "open" or "saving".
        case: what the overview says of the open case, or empty.
        reason: why it is this case, or "".
        startFrom: what the mask was at the beginning, as a phrase.
        recovered: when unsaved work that was brought back had been kept, or "".
        progress: of the model that answers, or None.
    """

    def __init__(self, session: Session, store: StoreClient) -> None:
        VTKObservationMixin.__init__(self)
        self._session, self._store = session, store
        self.changed, self.noted = Signal(), Signal()
        self.state = ""
        self.progress: Progress | None = None
        self._steps = Steps(session.timer)
        self._answer: CaseAnswer | None = None
        self._forget()
        scene = slicer.mrmlScene
        self._sceneEvents = (scene.NodeRemovedEvent, scene.EndCloseEvent)

    def _forget(self) -> None:
        self.case: Mapping[str, Any] = {}
        self.reason = self.startFrom = self.recovered = self.model = ""
        self._reply: Reply | None = None
        self._arrays: dict[str, NDArray[Any]] = {}
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
        if self.state not in ("", "open"):
            raise InputError(_("A case is being opened or saved."), _("Wait a moment."))
        if not self._store.rater:
            raise InputError(_("Nobody is named as the one who corrects."), _("Write a name or initials above."))
        self.putAside()
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
        self._reply, self._arrays = reply, dict(reply.arrays)
        for text in values["skipped"]:
            self.noted.emit(Notice(text))
        self._hold.take(self.caseId, values["token"], float(values["seconds"]))
        self._enter("showing")
        steps = [self._showVolume, self._showLungs]
        waits = values["is_untouched"]
        self._steps.start([*steps, self._predict] if waits else [*steps, *self._maskSteps()], self._onError)

    def _maskSteps(self) -> list[Callable[[], Any]]:
        return [self._showAnswer, self._keepAnswer, self._showMask, self._finish]

    def _showVolume(self) -> None:
        assert self._reply is not None  # noqa: S101  # _onOpened has set it
        geometry = geometry_from_json(self._reply.values["geometry"])
        self._scene.showVolume(self._arrays["volume"], geometry, self.caseId)
        for event in self._sceneEvents:
            self.addObserver(slicer.mrmlScene, event, self._onNodesGone)

    def _showLungs(self) -> None:
        if "lungs" in self._arrays:
            self._scene.showLungs(self._arrays["lungs"])

    # ---- the model's answer -----------------------------------------------------------------------------------------

    def _predict(self) -> None:
        """The case has no answer yet: the store's default model gives one first."""
        assert self._reply is not None  # noqa: S101  # _onOpened has set it
        arrays = {name: array for name, array in self._arrays.items() if name in ("volume", "lungs")}
        self._answer = CaseAnswer(self._session, self._store, self.caseId)
        self._enter("predicting")
        self._answer.ask(self._reply.values["geometry"], arrays, self._onProgress, self._onAnswer, self._onNoAnswer)

    def cancelPrediction(self) -> None:
        """Let the case be opened without an answer."""
        if self._answer is not None:
            self._answer.cancel()

    def _onProgress(self, progress: Progress) -> None:
        self.progress = progress
        self.changed.emit()

    def _onAnswer(self, reply: Reply) -> None:
        answer, self._answer = self._answer, None
        if self.state != "predicting" or answer is None:
            return
        self.model = answer.keep(reply)
        self.startFrom = _("the answer of {model}").format(model=self.model)
        mask, lungs = reply.arrays["mask"], reply.arrays["lungs"]
        self._arrays |= {"answer": mask, "mask": mask} | ({} if "lungs" in self._arrays else {"lungs": lungs})
        assert self._reply is not None  # noqa: S101  # _onOpened has set it
        self._reply.values["record"] = reply.values["record"]
        steps = [] if self._scene.lungNode is not None else [self._showLungs]
        self._enter("showing")
        self._steps.start([*steps, *self._maskSteps()], self._onError)

    def _onNoAnswer(self, error: WorkerError) -> None:
        self._answer = None
        if self.state != "predicting":
            return
        self.noted.emit(noticeOf(error))
        self.noted.emit(Notice(_("The case is open without an answer of a model; draw, or segment it yourself.")))
        self._enter("showing")
        self._steps.start(self._maskSteps(), self._onError)

    # ---- into the scene ---------------------------------------------------------------------------------------------

    def _showAnswer(self) -> None:
        assert self._reply is not None  # noqa: S101  # _onOpened has set it
        first = self._arrays.get("answer", self._arrays["mask"])
        self._scene.showLesions(first.view(bool), self._reply.values.get("record"))

    def _keepAnswer(self) -> None:
        if "answer" in self._arrays:
            self._scene.keepAnswer()

    def _showMask(self) -> None:
        if "answer" in self._arrays:
            self._scene.write(self._arrays["mask"].view(bool))

    def _finish(self) -> None:
        self._scene.choose()
        self._reply, self._arrays = None, {}
        self._hold.begin()
        segmentation = self._scene.segmentationNode.GetSegmentation()
        for event in _EDITED:
            self.addObserver(segmentation, getattr(slicer.vtkSegmentation, event), self._onEdited)
        self._enter("open")
        text = _("{case} is open, from {start}.").format(case=self.caseId, start=self.startFrom)
        self.noted.emit(Notice(" ".join(filter(None, [text, self.reason]))))
        then, self._then = self._then, None
        if then is not None:
            then()

    def _onError(self, error: Exception) -> None:
        self.noted.emit(noticeOf(error))
        self.putAside()

    # ---- while it is edited -----------------------------------------------------------------------------------------

    def _onEdited(self, *_ignored: Any) -> None:
        self._hold.edited()
        if self._hold.edits == 1:
            self.changed.emit()

    def autosave(self) -> None:
        """Keep the edits without making a revision of them."""
        if self.isOpen:
            self._hold.keep()

    def startAgain(self) -> None:
        """Throw the unsaved work away and begin from what is saved."""
        self._requireOpen()

        def restarted(reply: Reply) -> None:
            def show() -> None:
                self._scene.write(reply.arrays["mask"].view(bool))
                self.recovered, self.startFrom = "", reply.values["start_from"]
                self._hold.saved(self._hold.edits)
                self.changed.emit()

            self._steps.start([show], self._onError)

        self._store.ask("case_restart", {"case": self.caseId, "rater": self._store.rater}, restarted)

    # ---- saving and closing -----------------------------------------------------------------------------------------

    def save(
        self, *, noLesion: bool = False, close: bool = False, comment: str = "", then: Callable[[], None] | None = None
    ) -> None:
        """Save the lesions as the next revision of this rater.

        Args:
            noLesion: the case has no lesion. What the model marked is erased first; what a person has drawn is not.
            close: close the case then.
            comment: free text.
            then: called when it is saved.

        Raises:
            InputError: no case is open, or edits of a case that is to have no lesion.
        """
        self._requireOpen()
        mask = self._scene.mask()
        if noLesion and mask.any():
            if self._hold.edits and not self._scene.isAnswer(mask):
                raise InputError(
                    _("There are edited lesions in this case."), _("Erase them before you say that it has no lesion.")
                )
            mask = np.zeros_like(mask)
            self._scene.write(mask)
        others = self._scene.otherSegments()
        edits, seconds = self._hold.edits, self._hold.seconds
        self._hold.pause()
        self._enter("saving")
        values = {
            "case": self.caseId,
            "rater": self._store.rater,
            "seconds": seconds,
            "no_lesion": noLesion,
            "comment": comment,
        } | ({"token": self._hold.token} if close else {})

        def saved(reply: Reply) -> None:
            self._onSaved(reply, edits, close, others)
            if then is not None:
                then()

        self._store.ask("case_save", values, saved, arrays={"mask": mask.view(np.uint8)}, failed=self._onNotSaved)

    def _onSaved(self, reply: Reply, edits: int, close: bool, others: Sequence[str]) -> None:
        for text in savedTexts(reply.values, others):
            self.noted.emit(Notice(text))
        if self.state != "saving":
            # its nodes were removed meanwhile
            return
        if close:
            self._leave()
            return
        self.case = reply.values["case"]
        self.recovered = ""
        # strokes that came while the file was written are edits of the next revision
        self._hold.saved(edits)
        self._enter("open")

    def _onNotSaved(self, error: WorkerError) -> None:
        self.noted.emit(noticeOf(error))
        if self.state != "saving":
            return
        self._enter("open")
        self._hold.goOn()

    def putAside(self) -> None:
        """Close the case; what is not saved is kept, and brought back when it is opened again."""
        if not self.caseId:
            return
        if self.isOpen:
            self.autosave()
        self._hold.release()
        self._leave()

    def close(self) -> None:
        """The panel goes: keep what is not saved, here and now, and let others open the case."""
        self._hold.endHere(keep=self.isOpen)
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

    def _requireOpen(self) -> None:
        if self.state != "open":
            raise InputError(_("No case is open."), _("Open one first."))

    def _enter(self, state: str) -> None:
        self.state, self.progress = state, None
        self.changed.emit()
