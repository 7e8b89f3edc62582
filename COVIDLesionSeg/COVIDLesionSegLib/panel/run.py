"""One run at a time: CT from the scene to the worker, result from the worker into the scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import slicer
from slicer.util import VTKObservationMixin

from .. import mrml
from ..errors import InputError
from ..imaging import Volume
from ..inference import PostProcessing, ProbabilityLevels, RunRecord
from ..mrml import ModuleParameters
from ..worker import Progress, Reply, Request, WorkerError
from ..worker.protocol import geometry_to_json
from .events import Signal
from .notices import Notice, noticeOf
from .steps import Steps
from .text import _

if TYPE_CHECKING:
    from .session import Session

Undo = Callable[[Any], Any]
_OF_ONE_RUN = (
    *("_parameters", "_choices", "_undo", "_volumeNode", "_lungNode", "_segmentationNode", "_ct", "_lungs"),
    *("_request", "_reply", "_reason", "_shownLungs", "_keptLungs", "_undoable"),
)


@dataclass(frozen=True)
class Choices:
    """What was chosen when Apply was pressed; later changes count for the next run."""

    model: str
    device: str
    tta: bool
    probability: bool
    uncertainty: bool
    view: Any
    consolidationFrom: float
    surfaces: bool
    postprocessing: PostProcessing

    @classmethod
    def of(cls, parameters: ModuleParameters) -> Choices:
        """The choices in the scene's parameters."""
        return cls(
            parameters.model,
            parameters.device,
            parameters.testTimeAugmentation,
            parameters.keepProbability,
            parameters.keepUncertainty,
            parameters.lesionView,
            parameters.consolidationFrom,
            parameters.showSurfaces,
            PostProcessing(
                minimum_volume_ml=parameters.minimumVolume,
                keep_inside_lungs_mm=parameters.lungMargin if parameters.keepInsideLungs else None,
                smooth_across_slices_mm=parameters.sliceSmoothing if parameters.smoothAcrossSlices else None,
            ),
        )

    def request(self, geometry: Any, model: str | None) -> dict[str, Any]:
        """Parameters of the worker's task; ``model`` is what the worker is told of the model."""
        return {
            "geometry": geometry_to_json(geometry),
            "model": model,
            "device": self.device,
            "tta": self.tta,
            "probability": self.probability,
            "levels": True,
            "uncertainty": "entropy" if self.uncertainty else None,
            "postprocessing": self.postprocessing.to_json(),
            "name": "CT",
        }


class SegmentationRun(VTKObservationMixin):
    """The run that is on, or none.

    Attributes:
        changed: signal: the state or the progress is another one.
        noted: signal: a :class:`.notices.Notice`.
        finished: signal: the result is in the scene; passes the CT and the segmentation node.
        progress: how far the worker is, or None.
    """

    def __init__(self, session: Session) -> None:
        VTKObservationMixin.__init__(self)
        self._session = session
        self.changed, self.noted, self.finished = Signal(), Signal(), Signal()
        self.progress: Progress | None = None
        #: "", "reading", "computing" or "showing"
        self.state = ""
        self._steps = Steps(session.timer)
        # of the run that is on
        self._parameters: Any = None
        self._choices: Any = None
        self._undo: Undo | None = None
        self._volumeNode: Any = None
        self._lungNode: Any = None
        self._segmentationNode: Any = None
        self._ct: Any = None
        self._lungs: Any = None
        self._request: Request | None = None
        self._reply: Any = None
        self._reason: Notice | None = None
        self._shownLungs: Any = None
        self._keptLungs: Any = None
        self._undoable: Any = None

    @property
    def busy(self) -> bool:
        """Whether a run is on."""
        return bool(self.state)

    def start(
        self, parameters: ModuleParameters, undo: Undo | None = None, postprocessing: PostProcessing | None = None
    ) -> None:
        """Begin.

        Args:
            parameters: what to do with what.
            undo: called with the segmentation whose segments are about to be replaced; gives what saves its state.
            postprocessing: in place of what the parameters say of the clean-up.

        Raises:
            InputError: a run is on, there is no CT that can be used, or no result can be put into the segmentation.
        """
        if self.busy:
            raise InputError(_("A run is on already."), _("Wait until it has finished, or cancel it."))
        problem = mrml.volumeProblem(parameters.inputVolume)
        if problem:
            raise InputError(problem)
        if parameters.lesionSegmentation is not None:
            # said before the work, not after it
            mrml.requireLabelmaps(parameters.lesionSegmentation)
        self._volumeNode = parameters.inputVolume
        self._lungNode = None if parameters.findLungs else parameters.lungSegmentation
        if not parameters.findLungs and self._lungNode is None:
            raise InputError(_("No lung segmentation is chosen."), _("Choose one, or let the lungs be found."))
        choices = Choices.of(parameters)
        if postprocessing is not None:
            choices = replace(choices, postprocessing=postprocessing)
        self._parameters, self._undo, self._choices = parameters, undo, choices
        # what the user had chosen; it may be deleted meanwhile
        self._segmentationNode = parameters.lesionSegmentation
        scene = slicer.mrmlScene
        for event in (scene.NodeRemovedEvent, scene.EndCloseEvent):
            self.addObserver(scene, event, self._onNodesGone)
        self._enter("reading")
        steps = (
            [self._readVolume, self._send]
            if self._lungNode is None
            else [self._readVolume, self._readLungs, self._send]
        )
        self._steps.start(steps, self._onError)

    def cancel(self) -> None:
        """Stop; nothing happens if no run is on. What is being shown already is shown to its end."""
        if self.state == "reading":
            self._end(Notice(_("Cancelled.")))
        elif self.state == "computing" and self._request is not None:
            self._request.cancel()

    # ---- to the worker ------------------------------------------------------------------------------------------

    def _readVolume(self) -> None:
        # the worker looks whether the voxels can be Hounsfield units
        self._ct = self._session.ct.read(self._volumeNode)

    def _readLungs(self) -> None:
        self._lungs = mrml.lungsFromSegmentation(self._lungNode, self._volumeNode)

    def _send(self) -> None:
        (grid, voxels), choices = self._ct, self._choices
        arrays = {"volume": voxels} if self._lungs is None else {"volume": voxels, "lungs": self._lungs}
        client = self._session.client("lesions")
        self._enter("computing")
        if client.busy:
            # e.g. a model is being verified, or the devices are looked at
            self._onProgress(Progress("waiting", 0, 1))
        self._request = client.request(
            "segment",
            choices.request(grid, self._session.modelFor(choices.model)),
            arrays,
            files=("model",),
            progress=self._onProgress,
            finished=self._onReply,
            failed=self._onFailed,
        )
        self._lungs = None

    def _onProgress(self, progress: Progress) -> None:
        if self.state == "computing":
            self.progress = progress
            self.changed.emit()

    def _onFailed(self, error: WorkerError) -> None:
        if self.state == "computing":
            self._end(self._reason or noticeOf(error))

    def _onReply(self, reply: Reply) -> None:
        if self.state != "computing":
            return
        self._reply = reply
        self._enter("showing")
        steps = [self._showLesions, self._keepAnswer, self._showLungs, self._showMaps]
        if self._choices.surfaces:
            steps += [lambda: self._showSurfaces("lesions"), lambda: self._showSurfaces("lungs")]
        self._steps.start([*steps, self._finish], self._onError)

    # ---- into the scene -----------------------------------------------------------------------------------------

    def _showLesions(self) -> None:
        mrml.requireNode(self._volumeNode, "vtkMRMLScalarVolumeNode", "CT")
        node = self._segmentationNode
        if node is not None and node.GetScene() is None:
            node = None
        replaced = node is not None and bool(mrml.segmentsWithRole(node))
        if replaced and not self._isChosen:
            # the editor, which could undo it, works on another CT by now
            node, replaced = None, False
        undo = self._undo(node) if replaced and self._undo is not None else None
        self._undoable = undo is not None
        grid, voxels = self._ct
        self._segmentationNode = mrml.showLesions(
            self._volumeNode,
            self._reply.arrays["mask"].view(bool),
            view=self._choices.view,
            segmentationNode=node,
            volume=Volume(voxels.array, grid, "CT"),
            undo=undo,
            consolidationFrom=self._choices.consolidationFrom,
        )
        mrml.attachRecord(self._segmentationNode, RunRecord.from_json(self._reply.values["record"]))

    def _keepAnswer(self) -> None:
        mrml.keepPrediction(self._segmentationNode)
        levels = ProbabilityLevels.received(self._reply.values, self._reply.arrays)
        mrml.keepLevels(self._segmentationNode, self._volumeNode, levels)
        self._choose(lesionSegmentation=self._segmentationNode, lesionSegmentId="")

    def _showLungs(self) -> None:
        if self._lungNode is None:
            earlier = self._earlier("lungSegmentation")
            self._shownLungs = mrml.showFoundLungs(self._volumeNode, self._reply.arrays["lungs"], earlier)
            self._keptLungs = earlier is not None and self._shownLungs is not earlier
            self._choose(lungSegmentation=self._shownLungs)

    def _showMaps(self) -> None:
        arrays = self._reply.arrays
        for name, show in (("probability", mrml.showProbability), ("uncertainty", mrml.showUncertainty)):
            if name in arrays:
                parameter = f"{name}Volume"
                self._choose(**{parameter: show(self._volumeNode, arrays[name], self._earlier(parameter))})

    def _earlier(self, name: str) -> Any:
        """The node that shows an earlier result and is filled again; another CT's is not."""
        return getattr(self._parameters, name) if self._isChosen else None

    def _choose(self, **values: Any) -> None:
        """Let the panel work on the result, now or once its CT is chosen again."""
        self._parameters.keepWith(self._volumeNode, **values)

    @property
    def _isChosen(self) -> bool:
        return self._parameters.inputVolume is self._volumeNode

    def _showSurfaces(self, which: str) -> None:
        node = self._segmentationNode if which == "lesions" else self._shownLungs
        if node is not None and node.GetScene() is not None:
            mrml.showIn3D(node, smooth=which == "lesions")

    def _finish(self) -> None:
        volumeNode, segmentationNode = self._volumeNode, self._segmentationNode
        summary = self._reply.values.get("summary") or {}
        # before the outcome, whose button would be hidden by them
        for text in dict.fromkeys(self._reply.messages):
            self.noted.emit(Notice(text))
        self._end(self._outcome(summary))
        # the worker is warm now
        self._session.devices.ask()
        self.finished.emit(volumeNode, segmentationNode)

    def _outcome(self, summary: Any) -> Notice:
        text = _("Done.")
        if "lesion_ml" in summary:
            text = _("Done: {volume} mL of lesion.").format(volume=f"{summary['lesion_ml']:.1f}")
        if self._keptLungs:
            text += " " + _("The corrected lungs stay as they are, beside the new ones.")
        if self._undoable:
            return Notice(text + " " + _("The earlier lesions were replaced; undo brings them back."), "undo")
        return Notice(text)

    # ---- ends ---------------------------------------------------------------------------------------------------

    def _onError(self, error: Exception) -> None:
        self._end(noticeOf(error))

    def _onNodesGone(self, *_ignored: Any) -> None:
        if not self.busy or self._volumeNode.GetScene() is not None:
            return
        reason = Notice(_("The CT was deleted, or its scene was closed, so the run was cancelled."), is_error=True)
        if self.state == "computing" and self._request is not None:
            self._reason = reason
            self._request.cancel()
        else:
            self._end(reason)

    def _enter(self, state: str) -> None:
        self.state = state
        self.progress = None
        self.changed.emit()

    def _end(self, notice: Notice) -> None:
        self._steps.stop()
        self.removeObservers()
        self._forget()
        self._enter("")
        self.noted.emit(notice)

    def _forget(self) -> None:
        """Let go of nodes and arrays."""
        for name in _OF_ONE_RUN:
            setattr(self, name, None)
