"""Measurement that follows every edit: the worker's second child holds the study, only what changed travels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from numpy.typing import NDArray
from slicer.util import VTKObservationMixin

from .. import mrml
from ..errors import InputError
from ..imaging import LungQuality
from ..imaging.masks import Box, bounding_box
from ..mrml import ModuleParameters
from ..worker import Client, Reply, Request, Timer, WorkerError
from ..worker.faults import CANCELLED
from ..worker.protocol import geometry_to_json
from .events import Signal
from .notices import Notice, noticeOf
from .steps import Steps
from .text import _

if TYPE_CHECKING:
    from .session import Session

STUDY = "study"
# Edits come in bursts, a brush stroke is one; the table is 0.5 s behind at most.
_PAUSE_MS = 50


class StudyRequest:
    """A request about the study that is measured; a child that has lost it is given it again first.

    Args:
        live: what measures.
        task: of the measurement child.
        parameters: of the task; the study is added.
        arrays: of the task.
        finished: called with the answer.
        failed: called with what went wrong.
    """

    def __init__(
        self,
        live: LiveMeasurement,
        task: str,
        parameters: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        finished: Callable[[Reply], None],
        failed: Callable[[WorkerError], None],
    ) -> None:
        self._live, self._finished, self._failed = live, finished, failed
        self._asked = task, {"study": STUDY, **parameters}, arrays
        self._request: Request | None = None
        self._isAgain = self._isCancelled = False
        live.whenHeld(self._send, self._onFailed)

    def cancel(self) -> None:
        """Do without it."""
        self._isCancelled = True
        if self._request is not None:
            self._request.cancel()

    def _send(self) -> None:
        if self._isCancelled:
            return
        task, parameters, arrays = self._asked
        client = self._live.client
        self._request = client.request(task, parameters, arrays, finished=self._finished, failed=self._onFailed)

    def _onFailed(self, error: WorkerError) -> None:
        if error.kind == "not_open" and not self._isAgain:
            # the child ended by itself as the request came
            self._isAgain = True
            self._live.whenHeld(self._send, self._failed)
        else:
            self._failed(error)


class LiveMeasurement(VTKObservationMixin):
    """Figures of what the scene's parameters name, while somebody looks.

    Attributes:
        changed: signal: other figures or another state.
        noted: signal: a :class:`.notices.Notice`.
        quantities: what ``measurement.quantify`` gives; empty before.
        evaluation: what ``measurement.evaluate`` gives against the reference; empty without one.
        measured: signal: new figures are in the tables.
        forgotten: signal: the figures are gone; something else is measured from now on.
    """

    def __init__(self, session: Session) -> None:
        VTKObservationMixin.__init__(self)
        self._session = session
        self.changed, self.noted, self.measured, self.forgotten = Signal(), Signal(), Signal(), Signal()
        self.quantities: Mapping[str, Any] = {}
        self.evaluation: Mapping[str, Any] = {}
        self._followers: list[Any] = []
        self._steps, self._tables = Steps(session.timer), Steps(session.timer)
        self._pause: Timer | None = None
        # the one whose answer is waited for; the answer of an earlier one is not looked at
        self._request: Request | None = None
        # what is measured, or read to be measured; empty where it has to be read anew
        self._study: tuple[Any, ...] = ()
        # of the CT, the lungs and the reference when the last one looked away
        self._stamps: list[tuple[Any, ...]] = []
        self._generation = -1
        self._parameters: ModuleParameters | None = None
        # the lesions that were sent last; none before the study was sent
        self._mask: NDArray[np.bool_] | None = None
        self._dirty = False
        self._problem = ""
        self._caution = ""
        # what is done once the child has the study again, and what is told where it can't get it
        self._waiting: list[tuple[Callable[[], None], Callable[[WorkerError], None]]] = []
        # of the lungs and the reference when they were read
        self._voxels: dict[Any, tuple[Any, ...]] = {}

    # ---- who looks ----------------------------------------------------------------------------------------------

    def follow(self, user: Any) -> None:
        """Somebody looks from now on."""
        if user not in self._followers:
            if not self._followers and self._stamps != self._currentStamps():
                self._study = ()
            self._followers.append(user)
            self.refresh()

    def unfollow(self, user: Any) -> None:
        """Somebody looks no more; after the last one nothing is measured."""
        if user in self._followers:
            self._followers.remove(user)
            self._stamps = self._currentStamps()
        if not self._followers:
            self._rest()

    def close(self) -> None:
        """Stop, and forget what was measured."""
        self._rest()
        if self._request is not None:
            self._request.cancel()
        self._forget()

    @property
    def lesions(self) -> list[Mapping[str, Any]]:
        """The lesions, largest first, as ``quantify`` lists them."""
        entry = self.quantities.get("lesions")
        return [] if entry is None else list(entry["value"])

    @property
    def busy(self) -> bool:
        """Whether figures are on their way."""
        return self._steps.busy or self._request is not None or self._pause is not None

    def stateText(self) -> str:
        """What goes on, or why nothing is measured, or why the lungs that were measured are doubtful."""
        if self._problem:
            return self._problem
        return _("Measuring...") if self.busy else self._caution

    # ---- the study ----------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look what is to be measured now, and measure it if it is something else."""
        if not self._followers or slicer.mrmlScene.IsClosing():
            return
        self._parameters = parameters = mrml.moduleParameters()
        nodes = self._nodes(parameters)
        wanted = (*(None if node is None else node.GetID() for node in nodes), *self._segments(parameters))
        if wanted == self._study and (self._request is not None or self._holds()):
            self._observe(nodes)
            self._edited()
            return
        self._forget()
        if parameters.inputVolume is None or parameters.lesionSegmentation is None:
            self._problem = _("Nothing to measure: choose a CT, and segment it or choose its segmentation.")
            self.changed.emit()
            return
        self._study = wanted
        self._observe(nodes)
        self._open()

    def _nodes(self, parameters: ModuleParameters) -> tuple[Any, ...]:
        return (
            parameters.inputVolume,
            parameters.lesionSegmentation,
            parameters.lungSegmentation,
            parameters.referenceSegmentation,
        )

    def _segments(self, parameters: ModuleParameters) -> tuple[Any, ...]:
        return parameters.lesionSegmentId, parameters.referenceSegmentId, parameters.consolidationFrom

    def _currentStamps(self) -> list[tuple[Any, ...]]:
        """What tells a changed CT, lungs or reference; lesions are compared voxel by voxel."""
        volumeNode, _lesions, *others = self._nodes(mrml.moduleParameters())
        return [mrml.changeStamp(node) for node in (volumeNode, *others)]

    @property
    def client(self) -> Client:
        """The child that measures."""
        return self._session.client("measurement")

    def whenHeld(self, then: Callable[[], None], failed: Callable[[WorkerError], None]) -> None:
        """Do something once the child has the study: at once, or after it was given to a new child.

        Args:
            then: what to do.
            failed: called where the child can't get the study, or something else is measured meanwhile.

        Raises:
            InputError: nothing is measured.
        """
        self.require()
        if self._holds() and not self._waiting:
            then()
            return
        self._waiting.append((then, failed))
        if not self.busy:
            # a child that was idle for long has ended by itself
            self._open()

    def _holds(self) -> bool:
        """Whether the child that was given the study is the one that runs now."""
        client = self.client
        return client.running and client.generation == self._generation and self._mask is not None

    def _observe(self, nodes: tuple[Any, ...]) -> None:
        self.removeObservers()
        volumeNode, lesions, lungs, reference = nodes
        if lesions is not None:
            for event in mrml.EDITED:
                self.addObserver(lesions.GetSegmentation(), event, self._onEdited)
        self._voxels = {node: mrml.voxelStamp(node) for node in (lungs, reference) if node not in (None, lesions)}
        for node in self._voxels:
            for event in mrml.EDITED:
                self.addObserver(node.GetSegmentation(), event, self._onMaskEdited)
        if volumeNode is not None:
            self.addObserver(volumeNode, slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent, self._onOtherEdited)
            self.addObserver(volumeNode, slicer.vtkMRMLTransformableNode.TransformModifiedEvent, self._onOtherEdited)

    def _open(self) -> None:
        """Give the whole study to the child."""
        parameters = self._parameters
        assert parameters is not None  # noqa: S101  # refresh has set it
        volumeNode, _lesions, lungNode, referenceNode = self._nodes(parameters)
        arrays: dict[str, Any] = {}
        geometry: dict[str, Any] = {}

        def readVolume() -> None:
            # the very one that the lesions were found in, unless it has changed
            grid, arrays["volume"] = self._session.ct.read(volumeNode)
            geometry.update(geometry_to_json(grid))

        def readLesions() -> None:
            # what is edited from now on brings an update of its own
            self._dirty = False
            arrays["lesion"] = self._read().view(np.uint8)

        def readLungs() -> None:
            arrays["lungs"] = mrml.lungsFromSegmentation(lungNode, volumeNode)

        def readReference() -> None:
            mask = segmentOrLesions(referenceNode, parameters.referenceSegmentId, volumeNode)
            arrays["reference"] = mask.view(np.uint8)

        def send() -> None:
            self._mask = arrays["lesion"].view(np.bool_)
            self._ask(
                "open",
                {"study": STUDY, "geometry": geometry, "consolidation_from": parameters.consolidationFrom},
                arrays,
            )

        steps = [readVolume, readLesions]
        if lungNode is not None:
            steps.append(readLungs)
        if referenceNode is not None:
            steps.append(readReference)
        self._problem = ""
        self._steps.start([*steps, send], self._onError)
        self.changed.emit()

    def _read(self) -> NDArray[np.bool_]:
        parameters = self._parameters
        assert parameters is not None  # noqa: S101  # refresh has set it
        return segmentOrLesions(parameters.lesionSegmentation, parameters.lesionSegmentId, parameters.inputVolume)

    # ---- edits --------------------------------------------------------------------------------------------------

    def _onEdited(self, *_ignored: Any) -> None:
        self._edited()

    def _onMaskEdited(self, *_ignored: Any) -> None:
        """Lungs or reference are others, unless only a name or a color is."""
        if any(mrml.voxelStamp(node) != before for node, before in self._voxels.items()):
            self._onOtherEdited()

    def _onOtherEdited(self, *_ignored: Any) -> None:
        """The CT, the lungs or the reference is another one: everything is measured anew."""
        self._study = ()
        self._restartPause(self.refresh)

    def _edited(self) -> None:
        if self._steps.busy or self._request is not None:
            self._dirty = True
        else:
            self._restartPause(self._update)

    def _restartPause(self, action: Callable[[], None]) -> None:
        self._endPause()

        def go() -> None:
            self._pause = None
            action()

        self._pause = self._session.timer(_PAUSE_MS, go)

    def _endPause(self) -> None:
        if self._pause is not None:
            self._pause.stop()
            self._pause = None

    def _update(self) -> None:
        # an edit that follows a change of the CT, the lungs or the reference takes the place of that change's pause
        if not self._study or self._mask is None or not self._holds():
            self._study = ()
            self.refresh()
            return
        before, found = self._mask, {}

        def read() -> None:
            self._dirty = False
            found["now"] = self._read()

        def send() -> None:
            self._mask = now = found["now"]
            box = changedBox(before, now)
            if box is None:
                # told when this step is over
                self._session.timer(0, self.changed.emit)
                if self._dirty:
                    self._restartPause(self._update)
                return
            where = [[side.start, side.stop] for side in box]
            patch = np.ascontiguousarray(now[box]).view(np.uint8)
            self._ask("update", {"study": STUDY, "box": where}, {"lesion": patch})

        self._steps.start([read, send], self._onError)

    # ---- answers ------------------------------------------------------------------------------------------------

    def _ask(self, task: str, parameters: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        client = self._session.client("measurement")

        def finished(reply: Reply) -> None:
            if self._request is request:
                self._onFigures(reply)

        def failed(error: WorkerError) -> None:
            if self._request is request:
                self._onFailed(error)

        self._request = request = client.request(task, parameters, arrays, finished=finished, failed=failed)
        self.changed.emit()

    def _onFigures(self, reply: Reply) -> None:
        self._request = None
        self._generation = self._session.client("measurement").generation
        if not self._study:
            return
        self.quantities = reply.values["quantities"] or {}
        self.evaluation = reply.values.get("evaluation") or {}
        verdict = reply.values.get("lung_quality")
        quality = None if verdict is None else LungQuality.from_json(verdict)
        self._problem, self._caution = "", quality.line() if quality is not None and quality.is_doubtful else ""
        waiting, self._waiting = self._waiting, []
        for then, _failed in waiting:
            then()
        self._tables.start(
            [self._showRegions, self._showLesionList, self._showComparison, self.measured.emit], self._onTableError
        )
        self.changed.emit()
        if self._dirty:
            self._restartPause(self._update)

    def _onFailed(self, error: WorkerError) -> None:
        self._request = None
        if error.kind == "not_open" and self._study:
            self._study = ()
            self.refresh()
        elif error.kind != "cancelled":
            self._fail(noticeOf(error))

    def _onError(self, error: Exception) -> None:
        self._fail(noticeOf(error))

    def _fail(self, notice: Notice) -> None:
        self._forget()
        self._problem = notice.text
        if notice.action:
            self.noted.emit(notice)
        self.changed.emit()

    def _showRegions(self) -> None:
        parameters = mrml.moduleParameters()
        parameters.measurementTable = mrml.showRegions(self.quantities, parameters.measurementTable)

    def _showLesionList(self) -> None:
        parameters = mrml.moduleParameters()
        parameters.lesionTable = mrml.showLesionList(self.lesions, parameters.lesionTable)

    def _showComparison(self) -> None:
        parameters = mrml.moduleParameters()
        if self.evaluation:
            parameters.comparisonTable = mrml.showComparison(self.evaluation, parameters.comparisonTable)

    def _onTableError(self, error: Exception) -> None:
        self.noted.emit(noticeOf(error))

    # ---- inside -------------------------------------------------------------------------------------------------

    def require(self) -> tuple[ModuleParameters, NDArray[np.bool_]]:
        """The parameters and the lesions that were measured, bool (z, y, x).

        Raises:
            InputError: nothing is measured.
        """
        if self._parameters is None or self._mask is None or not self.quantities:
            raise InputError(_("Nothing is measured yet."), _("Wait for the figures first."))
        return self._parameters, self._mask

    def _rest(self) -> None:
        """Nobody looks: no observers, no timers; the figures stay."""
        self.removeObservers()
        self._steps.stop()
        self._endPause()

    def _forget(self) -> None:
        self._steps.stop()
        self._tables.stop()
        self._endPause()
        self._request = None
        self._study, self._mask, self._dirty, self._problem, self._caution = (), None, False, "", ""
        self.quantities, self.evaluation = {}, {}
        waiting, self._waiting = self._waiting, []
        for _then, failed in waiting:
            failed(CANCELLED)
        self.forgotten.emit()


def changedBox(before: NDArray[np.bool_], now: NDArray[np.bool_]) -> Box | None:
    """The smallest box around what differs between two masks (z, y, x) of one shape; None if nothing does."""
    planes = [index for index in range(len(now)) if not np.array_equal(before[index], now[index])]
    if not planes:
        return None
    z = slice(planes[0], planes[-1] + 1)
    _, y, x = bounding_box(before[z] != now[z])
    return z, y, x


def segmentOrLesions(segmentationNode: Any, identity: str, volumeNode: Any) -> NDArray[np.bool_]:
    """One segment, or all lesion segments; the only segment where none is marked as ours."""
    mrml.requireNode(segmentationNode, "vtkMRMLSegmentationNode", "segmentation")
    if identity:
        return mrml.segmentMask(segmentationNode, identity, volumeNode)
    segments = list(segmentationNode.GetSegmentation().GetSegmentIDs())
    if len(segments) == 1 and not mrml.segmentsWithRole(segmentationNode):
        return mrml.segmentMask(segmentationNode, segments[0], volumeNode)
    return mrml.lesionMask(segmentationNode, volumeNode)
