"""The case that is open: its nodes in the scene, and its way out of the store and back as a revision."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from slicer.util import VTKObservationMixin

from .. import mrml
from ..cases import RENEW_S, Store
from ..errors import CancelledError, CaseOpenError, COVIDLesionSegError, InputError
from ..imaging import Volume
from ..inference import PostProcessing, ProbabilityLevels, RunRecord
from ..worker import Progress, Reply, Request, Timer
from ..worker.protocol import geometry_from_json
from .messages import Notice, attempt, confirm, noticeOf
from .store_client import StoreClient
from .task import Signal, Tasks, turn
from .text import _

if TYPE_CHECKING:
    from .session import Session

Mask = NDArray[np.bool_]
# edits are kept this long after the first of them
AUTOSAVE_MS = 20_000
# nobody works that long on one stroke: a longer pause counts as this much
_LONGEST_PAUSE_S = 300.0


class CaseScene:
    """CT, lungs and lesions of one case in the scene; each method reads or writes one node.

    Attributes:
        volumeNode: the CT, or None.
        lungNode: the lungs, or None.
        segmentationNode: the lesions, or None.
    """

    def __init__(self) -> None:
        self.volumeNode: Any = None
        self.lungNode: Any = None
        self.segmentationNode: Any = None
        self._hidden: list[Any] = []

    def showVolume(self, array: NDArray[Any], geometry: Mapping[str, Any], name: str) -> None:
        """Show the CT, and nothing that belongs to another one; the geometry is as the worker's protocol has it."""
        self.volumeNode = mrml.nodeFromVolume(Volume(array, geometry_from_json(geometry), name), name)
        mrml.nameCase(self.volumeNode, name)
        self._hidden = mrml.hideOthers(self.volumeNode)
        mrml.showInViews(self.volumeNode)

    def showLungs(self, lungs: NDArray[Any]) -> None:
        """Show the lungs."""
        self.lungNode = mrml.showFoundLungs(self.volumeNode, lungs)

    def showLesions(self, mask: NDArray[Any], record: Mapping[str, Any] | None) -> None:
        """Show lesions in a new segmentation; the record says which model made them."""
        self.segmentationNode = mrml.showLesions(self.volumeNode, mask.view(bool))
        if record:
            mrml.attachRecord(self.segmentationNode, RunRecord.from_json(record))

    def keepResult(self, levels: ProbabilityLevels | None) -> None:
        """Remember what is shown as the AI result, and its probability, so that it can be reset and corrected."""
        mrml.keepPrediction(self.segmentationNode)
        mrml.keepLevels(self.segmentationNode, self.volumeNode, levels)

    def write(self, mask: NDArray[Any], undo: mrml.UndoStates | None = None) -> None:
        """Put other lesions in place of those that are shown; ``undo`` saves the state before."""
        if undo is not None:
            undo.saveStateForUndo()
        segments = mrml.segmentsWithRole(self.segmentationNode)
        if len(segments) == 1:
            # keeps the name and color that somebody has given it
            mrml.writeSegment(self.segmentationNode, segments[0], mask.view(bool), self.volumeNode)
        else:
            mrml.showLesions(self.volumeNode, mask.view(bool), segmentationNode=self.segmentationNode)

    def choose(self) -> None:
        """Let all pages work on the case."""
        mrml.moduleParameters().update(
            inputVolume=self.volumeNode,
            lesionSegmentation=self.segmentationNode,
            lungSegmentation=self.lungNode,
            referenceSegmentation=None,
            lesionSegmentId="",
            referenceSegmentId="",
        )

    def mask(self) -> Mask:
        """All lesion segments as they are now, bool (z, y, x); nothing where they were deleted."""
        if not mrml.segmentsWithRole(self.segmentationNode):
            return np.zeros(mrml.gridOfNode(self.volumeNode).shape, bool)
        return mrml.lesionMask(self.segmentationNode, self.volumeNode)

    def milliliters(self, mask: Mask) -> float:
        """Volume of a mask."""
        return float(np.count_nonzero(mask) * mrml.gridOfNode(self.volumeNode).voxel_ml)

    def isResult(self, mask: Mask) -> bool:
        """Whether a mask is the AI result."""
        node = self.segmentationNode
        return mrml.hasPrediction(node) and np.array_equal(mask, mrml.predictionMask(node, self.volumeNode))

    def otherSegments(self) -> list[str]:
        """Names of the segments that are no lesion segments of ours."""
        segmentation = self.segmentationNode.GetSegmentation()
        ours = mrml.segmentsWithRole(self.segmentationNode)
        return [segmentation.GetSegment(i).GetName() for i in segmentation.GetSegmentIDs() if i not in ours]

    def isGone(self) -> bool:
        """Whether somebody has removed CT or lesions from the scene."""
        return any(node is not None and node.GetScene() is None for node in (self.volumeNode, self.segmentationNode))

    def remove(self) -> None:
        """Take the nodes out of the scene; what was hidden for them is visible again."""
        made = [] if self.volumeNode is None else mrml.moduleParameters().madeFrom(self.volumeNode)
        for node in (*made, self.segmentationNode, self.lungNode, self.volumeNode):
            mrml.removeNode(node)
        mrml.removeLostPredictions()
        for node in self._hidden:
            if node.GetScene() is not None and node.GetDisplayNode() is not None:
                node.GetDisplayNode().SetVisibility(True)
        self._hidden = []


class CaseWork(VTKObservationMixin):
    """One case at a time: opened, autosaved while it is edited, saved as a revision, closed.

    What takes time is a coroutine; it raises what goes wrong, and leaves the case as it was.

    Args:
        session: shared by all panels.
        store: the store.
        undo: gives what saves the state of a segmentation before it is replaced.

    Attributes:
        changed: signal: another case or state.
        opened: signal: a case comes into the scene, or is asked for that is there.
        noted: signal: a :class:`.messages.Notice`.
        state: "", "opening", "predicting", "showing", "open", "saving" or "closing".
        case: what the overview says of the open case, or empty.
        reason: why it is this case, or "".
        startFrom: what the mask was at the beginning, as a phrase.
        model: whose AI result can be reset to, or "".
        recovered: when unsaved work that was brought back had been kept, or "".
        progress: of the model that runs, or None.
    """

    def __init__(self, session: Session, store: StoreClient, undo: Callable[[Any], mrml.UndoStates]) -> None:
        VTKObservationMixin.__init__(self)
        self._session, self._store, self._undo = session, store, undo
        self.changed, self.opened, self.noted = Signal(), Signal(), Signal()
        self._tasks = Tasks(session.timer, lambda error: self.noted.emit(noticeOf(error)))
        self._timers: dict[str, Timer] = {}
        self.state = ""
        self.progress: Progress | None = None
        self._forget()

    def _forget(self) -> None:
        self.case: Mapping[str, Any] = {}
        self.reason = self.startFrom = self.recovered = self.model = ""
        # who waits for something knows by it whether the case is still the same
        self._scene = CaseScene()
        self._prediction: Request | None = None
        self._voxels: tuple[Any, ...] = ()
        # the token of the lock is "" once somebody else has taken the case over
        self._folder = self._token = ""
        self._isRevision = False
        # edits since it was opened; how many of them are in a revision or thrown away, and in an autosave
        self._edits = self._saved = self._kept = 0
        self._seconds, self._last = 0.0, time.monotonic()

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
        return self._edits > self._saved or bool(self.recovered)

    @property
    def isSaved(self) -> bool:
        """Whether what is in the scene was saved as a revision since the case was opened."""
        return self._isRevision and not self.isEdited

    @property
    def seconds(self) -> float:
        """Time spent since the case was opened or last saved; of a pause five minutes at most."""
        return self._seconds + min(time.monotonic() - self._last, _LONGEST_PAUSE_S)

    @property
    def _hasUnkept(self) -> bool:
        """Whether there are edits that were neither saved nor autosaved."""
        return self._edits > max(self._saved, self._kept)

    @property
    def _where(self) -> Mapping[str, Any]:
        """The case, in the store that it was opened from, as requests name it."""
        return {"store": self._folder, "case": self.caseId}

    def requireRest(self) -> None:
        """Refuse what must not come between.

        Raises:
            InputError: a case is being opened, saved or closed.
        """
        if self.state not in ("", "open"):
            raise InputError(_("A case is being opened, saved or closed."), _("Wait a moment."))

    def _requireOpen(self) -> None:
        self.requireRest()
        if not self.state:
            raise InputError(_("No case is open."), _("Open one first."))

    def _enter(self, state: str) -> None:
        self.state, self.progress = state, None
        self.changed.emit()

    # ---- opening ----------------------------------------------------------------------------------------------------

    async def openNext(self) -> None:
        """Put the open case aside and open the one that comes next, in the order that the store's client keeps.

        Raises:
            InputError: a case is being opened, saved or closed; no reader; no store.
        """
        states = ["new", "predicted", *(["corrected", "approved"] if self._store.secondReading else [])]
        await self._open({"by": self._store.order, "states": states, "besides": self.caseId})

    async def openCase(self, case: str, takeOver: bool = False) -> None:
        """Put the open case aside and open this one, unless it is open already.

        Raises:
            InputError: as :meth:`openNext`; somebody else has it open, unless it is to be taken over.
        """
        if self.isOpen and case == self.caseId:
            self.opened.emit()
        else:
            await self._open({"case": case, "take_over": takeOver})

    async def _open(self, wanted: Mapping[str, Any]) -> None:
        self.requireRest()
        if not self._store.reader:
            raise InputError(_("No reader is named."), _("Write a name or initials on the page Cases."))
        await self.putAside()
        self._enter("opening")
        try:
            reply = await self._store.ask("case_open", {**wanted, "rater": self._store.reader})
        except COVIDLesionSegError:
            self._enter("")
            raise
        if not reply.values["found"]:
            self._enter("")
            self.noted.emit(Notice(_("No cases are waiting.")))
            return
        scene, token = self._scene, reply.values["token"]
        try:
            await self._show(reply)
        except Exception:
            # whatever it is, nothing half-open stays
            if self._scene is scene:
                where = self._where
                self._leave()
                await self._release(where, token)
            raise

    async def _show(self, reply: Reply) -> None:
        """Put what the store says of a case into the scene, piece by piece; a model runs first where none has yet."""
        values, arrays, scene = reply.values, dict(reply.arrays), self._scene
        self.case, self.reason = values["case"], values["reason"]
        self.startFrom, self.recovered = values["start_from"], values["recovered"] or ""
        self.model, record = values.get("model", ""), values.get("record")
        levels = ProbabilityLevels.received(values, arrays)
        self._folder, self._token, self._seconds = self._store.folder, values["token"], float(values["seconds"])
        self._later("renew", RENEW_S * 1000, self._renew)
        for text in values["skipped"]:
            self.noted.emit(Notice(text))
        self._enter("showing")
        self.opened.emit()
        await self._pause(scene)
        scene.showVolume(arrays["volume"], values["geometry"], self.caseId)
        events = slicer.mrmlScene
        self.addObserver(events, events.StartCloseEvent, self._onSceneCloses)
        self.addObserver(events, events.NodeAboutToBeRemovedEvent, self._onNodeGoes)
        for event in (events.NodeRemovedEvent, events.EndCloseEvent):
            self.addObserver(events, event, self._onNodesGone)
        if values["is_untouched"]:
            found = await self._predict(values["geometry"], arrays)
            if found is not None:
                record, levels = found.values["record"], ProbabilityLevels.received(found.values, found.arrays)
                # lungs that are known already stay
                arrays = {"lungs": found.arrays["lungs"]} | arrays
                arrays |= {"answer": found.arrays["mask"], "mask": found.arrays["mask"]}
            self._enter("showing")
        if "lungs" in arrays:
            await self._pause(scene)
            scene.showLungs(arrays["lungs"])
        await self._pause(scene)
        scene.showLesions(arrays.get("answer", arrays["mask"]), record)
        if "answer" in arrays:
            await self._pause(scene)
            scene.keepResult(levels)
            await self._pause(scene)
            scene.write(arrays["mask"])
        await self._pause(scene)
        scene.choose()
        self._begin()

    async def _pause(self, scene: CaseScene) -> None:
        """Let Slicer paint, and go on unless the case was closed meanwhile."""
        await turn()
        self._requireSame(scene)

    def _requireSame(self, scene: CaseScene) -> None:
        if self._scene is not scene:
            raise CancelledError("The case was closed meanwhile.")

    async def _predict(self, geometry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Reply | None:
        """Run the store's active model on the case and keep its result; None where there is none."""
        scene = self._scene
        self._enter("predicting")
        try:
            model = self._store.modelFile(str(self._store.overview.get("default") or ""))
            values = {
                "geometry": geometry,
                "model": self._session.modelFor(model),
                "device": mrml.moduleParameters().device,
                "postprocessing": PostProcessing().to_json(),
                "name": self.caseId,
                "levels": True,
            }
            given = {name: array for name, array in arrays.items() if name in ("volume", "lungs")}
            self._prediction = self._session.client("lesions").request(
                "segment", values, given, files=("model",), progress=self._onProgress
            )
            reply = await self._prediction
        except COVIDLesionSegError as error:
            self._requireSame(scene)
            self.noted.emit(noticeOf(error))
            self.noted.emit(Notice(_("The case is open without an AI result; draw, or segment it yourself.")))
            return None
        self._requireSame(scene)
        self._prediction = None
        record = reply.values["record"]
        self.model = str(record["model"].get("id") or record["model"].get("name") or "")
        self.startFrom = _("the AI result of {model}").format(model=self.model)
        known: tuple[str, ...] = ("mask", "lungs", "levels")
        result = {name: reply.arrays[name] for name in known if name in reply.arrays}
        kept = {**self._where, "record": record, "levels": reply.values.get("levels")}
        self._tasks.start(self._store.ask("case_answer", kept, result))
        return reply

    def cancelPrediction(self) -> None:
        """Let the case be opened without an AI result."""
        if self._prediction is not None:
            self._prediction.cancel()

    def _onProgress(self, progress: Progress) -> None:
        self.progress = progress
        self.changed.emit()

    def _begin(self) -> None:
        """The case is shown; what changes from now on is an edit."""
        self._last = time.monotonic()
        segmentation = self._scene.segmentationNode.GetSegmentation()
        self._voxels = mrml.voxelStamp(self._scene.segmentationNode)
        for event in mrml.EDITED:
            self.addObserver(segmentation, event, self._onEdited)
        self._enter("open")
        text = _("{case} is open, from {start}.").format(case=self.caseId, start=self.startFrom)
        self.noted.emit(Notice(" ".join(filter(None, [text, self.reason]))))

    # ---- while it is edited -----------------------------------------------------------------------------------------

    def _onEdited(self, *_ignored: Any) -> None:
        voxels = mrml.voxelStamp(self._scene.segmentationNode)
        if voxels == self._voxels:
            # another name or color
            return
        self._voxels = voxels
        now = time.monotonic()
        self._seconds, self._last = self._seconds + min(now - self._last, _LONGEST_PAUSE_S), now
        self._edits += 1
        if "autosave" not in self._timers:
            self._later("autosave", AUTOSAVE_MS, self._keep)
        if self._edits == self._saved + 1:
            self.changed.emit()

    def autosave(self) -> None:
        """Keep the edits without making a revision of them."""
        if self.isOpen:
            self._tasks.start(self._keep())

    async def _keep(self) -> None:
        self._stop("autosave")
        if not self._hasUnkept:
            return
        scene, edits, token = self._scene, self._edits, self._token
        values = {**self._where, "rater": self._store.reader, "token": token, "seconds": self.seconds}
        try:
            mask = scene.mask().view(np.uint8)
            await self._store.ask("case_autosave", values, {"mask": mask}, refresh=False)
        except CaseOpenError as error:
            # the edits are written all the same
            self._loseLock(token, error)
        if self._scene is scene:
            self._kept = edits

    async def _renew(self) -> None:
        """Keep the lock; what fails, e.g. a share that is away for a moment, is tried again."""
        token = self._token
        if not token:
            return
        self._later("renew", RENEW_S * 1000, self._renew)
        try:
            await self._store.ask("case_renew", {**self._where, "token": token}, refresh=False)
        except CaseOpenError as error:
            self._loseLock(token, error)

    def _loseLock(self, token: str, error: CaseOpenError) -> None:
        """Somebody has taken the case over, said once; what is saved is a revision of its own all the same."""
        if token and token == self._token:
            self._token = ""
            self.noted.emit(noticeOf(error))

    async def startAgain(self) -> None:
        """Throw the unsaved work away, if that is wanted, and begin from what is saved; undo brings it back."""
        self._requireOpen()
        consequence = _("The work that was not saved, of {when}, is removed from the store and replaced in the scene.")
        if not confirm(consequence.format(when=self.recovered or _("this session")), _("Discard it?")):
            return
        scene = self._scene
        reply = await self._store.ask("case_restart", {**self._where, "rater": self._store.reader})
        await self._pause(scene)
        scene.write(reply.arrays["mask"], self._undo(scene.segmentationNode))
        self.recovered, self.startFrom = "", reply.values["start_from"]
        self._haveSaved(self._edits)
        self.changed.emit()

    # ---- saving and closing -----------------------------------------------------------------------------------------

    async def save(self, *, noLesion: bool = False, close: bool = False) -> bool:
        """Save the lesions as the next revision of this reader.

        Args:
            noLesion: the case has no lesion. What the model marked is erased first; what a person has drawn only if
                that is wanted. The editor's undo brings it back.
            close: close the case then, unless it was edited meanwhile.

        Returns:
            Whether all that was asked for was done.

        Raises:
            InputError: no case is open; an empty mask that is not said to be without lesion.
            OutputError: it could not be written.
        """
        self._requireOpen()
        scene, mask = self._scene, self._scene.mask()
        if noLesion and mask.any():
            if not scene.isResult(mask) and not self._mayErase(mask):
                return False
            mask = np.zeros_like(mask)
            scene.write(mask, self._undo(scene.segmentationNode))
        others, edits = scene.otherSegments(), self._edits
        values = {
            **self._where,
            "rater": self._store.reader,
            "held": self._token or None,
            "seconds": self.seconds,
            "no_lesion": noLesion,
        }
        self._stop("autosave")
        self._enter("saving")
        try:
            reply = await self._store.ask("case_save", values, {"mask": mask.view(np.uint8)})
        except COVIDLesionSegError:
            if self._scene is scene:
                self._stayOpen()
            raise
        for text in _savedTexts(reply.values, others):
            self.noted.emit(Notice(text))
        if self._scene is not scene:
            # its nodes were removed meanwhile
            return True
        if close and self._edits == edits:
            await self._closeCase()
            return True
        self.case, self.recovered, self._isRevision = reply.values["case"], "", True
        # strokes that came while the file was written are edits of the next revision
        self._haveSaved(edits)
        self._enter("open")
        if close:
            text = _("{case} was edited while it was saved, so it stays open. Save it again.")
            self.noted.emit(Notice(text.format(case=self.caseId), is_error=True))
        return not close

    def _mayErase(self, mask: Mask) -> bool:
        """Ask whether lesions that a person has drawn may be erased."""
        text = _("{volume} of lesion that somebody has drawn in {case} are erased, and it is saved as free of lesion.")
        volume = f"{self._scene.milliliters(mask):.1f} mL"
        return confirm(text.format(volume=volume, case=self.caseId), _("Is there no lesion?"))

    def _haveSaved(self, edits: int) -> None:
        """So many edits are saved, or thrown away; later ones are not."""
        self._stop("autosave")
        self._seconds, self._last = 0.0, time.monotonic()
        self._saved = edits
        self._goOn()

    def _goOn(self) -> None:
        """Keep what is not kept."""
        if self._hasUnkept:
            self._later("autosave", AUTOSAVE_MS, self._keep)

    def _stayOpen(self) -> None:
        self._enter("open")
        self._goOn()

    async def putAside(self) -> None:
        """Close the case, if one is open; what is not saved is kept, and brought back when it is opened again.

        Raises:
            InputError: a case is being opened, saved or closed; its edits could not be kept: then it stays open.
        """
        self.requireRest()
        scene = self._scene
        # strokes that come while the file is written are kept as well
        while self._scene is scene and self._hasUnkept:
            self._enter("closing")
            try:
                await self._keep()
            except COVIDLesionSegError as error:
                self._requireSame(scene)
                self._stayOpen()
                self.noted.emit(noticeOf(error))
                text = _("{case} stays open, because its edits could not be kept.")
                raise InputError(text.format(case=self.caseId)) from error
        if self._scene is scene and self.caseId:
            await self._closeCase()

    async def _closeCase(self) -> None:
        where, token = self._where, self._token
        self._leave()
        await self._release(where, token)

    async def _release(self, where: Mapping[str, Any], token: str) -> None:
        """Let others open the case."""
        if token:
            try:
                await self._store.ask("case_close", {**where, "token": token})
            except COVIDLesionSegError as error:
                self.noted.emit(noticeOf(error))

    def close(self) -> None:
        """The panel goes, and the child may end before it takes another request: keep and release in this process."""
        self._keepHere()
        if self._token:
            attempt(lambda: Store(self._folder).locks.release(self.caseId, self._token), self.noted.emit)
        self._leave(removeNodes=False)
        self._tasks.close()

    def _leave(self, removeNodes: bool = True) -> None:
        self.cancelPrediction()
        self.removeObservers()
        for name in list(self._timers):
            self._stop(name)
        if removeNodes:
            self._scene.remove()
        self._forget()
        self._enter("")

    # ---- its nodes go -----------------------------------------------------------------------------------------------

    def _onSceneCloses(self, *_ignored: Any) -> None:
        """The nodes are still there: keep what is in them, here and now."""
        self._keepHere()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeGoes(self, _caller: Any, _event: str, node: Any) -> None:
        if node in (self._scene.volumeNode, self._scene.segmentationNode):
            self._keepHere()

    def _onNodesGone(self, *_ignored: Any) -> None:
        if not self.caseId or not self._scene.isGone():
            return
        case, lost, where, token = self.caseId, self._hasUnkept, self._where, self._token
        self._leave()
        self._tasks.start(self._release(where, token))
        text = _("{case} was closed, because its nodes were removed from the scene.").format(case=case)
        if lost:
            text += " " + _("Edits of the last seconds are gone; earlier ones were kept.")
        self.noted.emit(Notice(text, is_error=lost))

    def _keepHere(self) -> None:
        """Keep the edits that are not kept, in this process: their nodes go."""

        def keep() -> None:
            store = Store(self._folder)
            labels = store.case(self.caseId).labels(self._scene.mask(), "mask")
            blind = store.locks.is_blind(self.caseId, self._token)
            store.autosaves.write(self.caseId, self._store.reader, labels, self.seconds, blind)
            self._kept = self._edits

        if self._hasUnkept:
            attempt(keep, self.noted.emit)

    # ---- timers -----------------------------------------------------------------------------------------------------

    def _later(self, name: str, milliseconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._stop(name)

        def go() -> None:
            self._timers.pop(name, None)
            self._tasks.start(work())

        self._timers[name] = self._session.timer(round(milliseconds), go)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.stop()


def _savedTexts(saved: Mapping[str, Any], others: Sequence[str]) -> list[str]:
    """What is said about a revision.

    Args:
        saved: what the task ``case_save`` answers.
        others: names of segments that are no lesion.
    """
    revision = saved["revision"]
    volume = _("no lesion") if revision["lesion_free"] else f"{revision['lesion_ml']:.1f} mL"
    text = _("{case}: saved as revision {number} of {reader}, {volume}.").format(
        case=saved["case"]["id"], number=revision["number"], reader=revision["rater"], volume=volume
    )
    if revision["dice_to_prediction"] is not None:
        overlap = f"{revision['dice_to_prediction']:.3f}"
        text += " " + _("Dice {dice} to the AI result.").format(dice=overlap)
    if not others:
        return [text]
    names = ", ".join(others)
    return [text, _("Segments of your own are not lesion and were not saved: {names}.").format(names=names)]
