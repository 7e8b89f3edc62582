"""Segmentation of one CT: from the scene to the worker and back, for the panel and for the Python console alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import slicer
from slicer.util import VTKObservationMixin

from .. import mrml
from ..errors import InputError
from ..imaging import Geometry, Volume
from ..inference import PostProcessing, ProbabilityLevels, RunRecord
from ..models import ModelRegistry
from ..models.catalog import INSTALLED
from ..mrml import LESION_VIEWS, ModuleParameters
from ..worker import Client, Progress, SharedArray, WorkerSettings
from ..worker.protocol import geometry_to_json
from .messages import Notice, noticeOf
from .task import Signal, Task, Tasks, turn
from .text import _

if TYPE_CHECKING:
    from .session import Session

Undo = Callable[[Any], Any]


@dataclass(frozen=True)
class Choices:
    """What to do with a CT; chosen when Apply is pressed, so that later changes count for the next run.

    Attributes:
        model: id or file; "" takes the default model.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        lungNode: a segmentation node with the lungs; None finds them.
        segmentationNode: where to show the lesions; None makes a new segmentation.
        view: "lesion", "attenuation" or "separate".
        consolidationFrom: HU from which lesion counts as consolidation; None takes the catalog's.
        tta: average over four flipped copies of each slice.
        probability: also make a volume of the probability.
        uncertainty: the same of the uncertainty.
        surfaces: make the surfaces for 3-D views.
        postprocessing: threshold and clean-up.
    """

    model: str = ""
    device: str = "auto"
    lungNode: Any = None
    segmentationNode: Any = None
    view: Any = LESION_VIEWS[0]
    consolidationFrom: float | None = None
    tta: bool = False
    probability: bool = False
    uncertainty: bool = False
    surfaces: bool = False
    postprocessing: PostProcessing = field(default_factory=PostProcessing)

    @classmethod
    def of(cls, parameters: ModuleParameters) -> Choices:
        """The choices in the scene's parameters.

        Raises:
            InputError: the lungs are to be chosen, and are not.
        """
        if not parameters.findLungs and parameters.lungSegmentation is None:
            raise InputError(_("No lung segmentation is chosen."), _("Choose one, or let the lungs be found."))
        return cls(
            parameters.model,
            parameters.device,
            None if parameters.findLungs else parameters.lungSegmentation,
            parameters.lesionSegmentation,
            parameters.lesionView,
            parameters.consolidationFrom,
            parameters.testTimeAugmentation,
            parameters.keepProbability,
            parameters.keepUncertainty,
            parameters.showSurfaces,
            PostProcessing(
                minimum_volume_ml=parameters.minimumVolume,
                keep_inside_lungs_mm=parameters.lungMargin if parameters.keepInsideLungs else None,
                smooth_across_slices_mm=parameters.sliceSmoothing if parameters.smoothAcrossSlices else None,
            ),
        )

    def check(self, volumeNode: Any) -> None:
        """Say what can't be done before the work, not after it.

        Raises:
            InputError: the CT can't be used, or no result can be put into the segmentation.
        """
        problem = mrml.volumeProblem(volumeNode)
        if problem:
            raise InputError(problem)
        if self.segmentationNode is not None:
            mrml.requireLabelmaps(self.segmentationNode)

    def request(self, geometry: Geometry, client: Client, registry: ModelRegistry, name: str = "CT") -> dict[str, Any]:
        """Parameters of the worker's task; the name stands in the run record, so it must be no patient's."""
        return {
            "geometry": geometry_to_json(geometry),
            "model": modelForWorker(self.model, client.settings, registry),
            "device": self.device,
            "tta": self.tta,
            "probability": self.probability,
            "levels": True,
            "uncertainty": "entropy" if self.uncertainty else None,
            "postprocessing": self.postprocessing.to_json(),
            "name": name,
        }


class SceneCt(VTKObservationMixin):
    """The CT of the scene that was read last, with its voxels as all children get them: read and written once."""

    def __init__(self) -> None:
        VTKObservationMixin.__init__(self)
        self._stamp: tuple[Any, ...] = ()
        self._read: tuple[Geometry, SharedArray] | None = None

    def read(self, volumeNode: Any) -> tuple[Geometry, SharedArray]:
        """Grid and voxels (z, y, x) of a CT, the same ones as long as neither it nor its place changes.

        Raises:
            InputError, GeometryError: see :func:`.mrml.volumeFromNode`; whether the voxels can be HU is not looked at.
        """
        # no two images have had the same time of change
        stamp = (mrml.gridOfNode(volumeNode), volumeNode.GetImageData().GetMTime())
        if self._read is None or stamp != self._stamp:
            self.forget()
            volume = mrml.volumeFromNode(volumeNode, check=False)
            self._stamp, self._read = stamp, (volume.geometry, SharedArray(volume.array))
            scene = slicer.mrmlScene
            for event in (scene.NodeRemovedEvent, scene.EndCloseEvent):
                self.addObserver(scene, event, lambda *_ignored: None if volumeNode.GetScene() else self.forget())
        return self._read

    def forget(self) -> None:
        """Remove what was written; children keep what they have."""
        self.removeObservers()
        if self._read is not None:
            self._read[1].release()
        self._stamp, self._read = (), None


@dataclass(frozen=True)
class Segmented:
    """What a run has brought into the scene.

    Attributes:
        segmentationNode: with the lesions.
        summary: what the worker says of the result: "lesion_ml" and more.
        messages: what the worker warned of.
        lungsWereKept: lungs that somebody corrected stay beside the new ones.
        isUndoable: the lesions have replaced earlier ones, and undo brings these back.
    """

    segmentationNode: Any
    summary: Mapping[str, Any]
    messages: tuple[str, ...]
    lungsWereKept: bool
    isUndoable: bool


async def segment(
    client: Client,
    registry: ModelRegistry,
    ct: SceneCt,
    volumeNode: Any,
    choices: Choices,
    undo: Undo | None = None,
    state: Callable[[str], None] = lambda _state: None,
    progress: Callable[[Progress], None] = lambda _progress: None,
) -> Segmented:
    """Find the lesions in a CT and show them as segments, in turns between which Slicer answers.

    Args:
        client: of the child that finds lesions.
        registry: the models of this computer.
        ct: reads the CT.
        volumeNode: the CT. The result is kept with it, whatever is chosen when it comes.
        choices: what to do.
        undo: called with the segmentation whose segments are about to be replaced; gives what saves its state.
        state: called with "reading", "computing" and "showing".
        progress: how far the worker is.

    Raises:
        InputError, ModelError, DeviceError, LungsNotFoundError, ...: see ``Predictor.segment``.
    """
    state("reading")
    choices.check(volumeNode)
    # the worker looks whether the voxels can be Hounsfield units
    grid, voxels = ct.read(volumeNode)
    arrays: dict[str, Any] = {"volume": voxels}
    await turn()
    if choices.lungNode is not None:
        arrays["lungs"] = mrml.lungsFromSegmentation(choices.lungNode, volumeNode)
        await turn()
    state("computing")
    if client.busy:
        # e.g. a model is being verified, or the devices are looked at
        progress(Progress("waiting", 0, 1))
    values = choices.request(grid, client, registry)
    reply = await client.request("segment", values, arrays, files=("model",), progress=progress)
    del arrays
    state("showing")
    mrml.requireNode(volumeNode, "vtkMRMLScalarVolumeNode", "CT")
    parameters = mrml.moduleParameters()
    node = choices.segmentationNode
    if node is not None and node.GetScene() is None:
        # it was deleted meanwhile
        node = None
    isReplaced = node is not None and bool(mrml.segmentsWithRole(node))
    if isReplaced and undo is not None and parameters.inputVolume is not volumeNode:
        # the editor, which could undo it, works on another CT by now
        node, isReplaced = None, False
    states = undo(node) if isReplaced and undo is not None else None
    node = mrml.showLesions(
        volumeNode,
        reply.arrays["mask"].view(bool),
        view=choices.view,
        segmentationNode=node,
        volume=Volume(voxels.array, grid, "CT"),
        undo=states,
        consolidationFrom=choices.consolidationFrom,
    )
    mrml.attachRecord(node, RunRecord.from_json(reply.values["record"]))
    await turn()
    mrml.keepPrediction(node)
    mrml.keepLevels(node, volumeNode, ProbabilityLevels.received(reply.values, reply.arrays))
    parameters.keepWith(volumeNode, lesionSegmentation=node, lesionSegmentId="")
    await turn()
    lungs, earlier = choices.lungNode, parameters.keptWith(volumeNode, "lungSegmentation")
    if lungs is None:
        lungs = mrml.showFoundLungs(volumeNode, reply.arrays["lungs"], earlier)
        await turn()
    parameters.keepWith(volumeNode, lungSegmentation=lungs)
    for name, show in (("probability", mrml.showProbability), ("uncertainty", mrml.showUncertainty)):
        if name in reply.arrays:
            held = f"{name}Volume"
            shown = show(volumeNode, reply.arrays[name], parameters.keptWith(volumeNode, held))
            parameters.keepWith(volumeNode, **{held: shown})
            await turn()
    if choices.surfaces:
        for surfaces in (node, lungs) if choices.lungNode is None else (node,):
            if surfaces.GetScene() is not None:
                mrml.showIn3D(surfaces, smooth=surfaces is node)
                await turn()
    areKept = choices.lungNode is None and earlier is not None and lungs is not earlier
    messages = tuple(dict.fromkeys(reply.messages))
    return Segmented(node, reply.values.get("summary") or {}, messages, areKept, states is not None)


class SegmentationRun(VTKObservationMixin):
    """The run of the panel: one at a time.

    Attributes:
        changed: signal: the state or the progress is another one.
        noted: signal: a :class:`.messages.Notice`.
        finished: signal: the result is in the scene; passes the CT and the segmentation node.
        state: "", "reading", "computing" or "showing".
        progress: how far the worker is, or None.
    """

    def __init__(self, session: Session) -> None:
        VTKObservationMixin.__init__(self)
        self._session = session
        self.changed, self.noted, self.finished = Signal(), Signal(), Signal()
        self.progress: Progress | None = None
        self.state = ""
        self._tasks = Tasks(session.timer, lambda error: self._end(noticeOf(error)))
        self._task: Task | None = None
        self._volumeNode: Any = None

    @property
    def busy(self) -> bool:
        """Whether a run is on."""
        return bool(self.state)

    def start(self, volumeNode: Any, choices: Choices, undo: Undo | None = None) -> None:
        """Begin.

        Args:
            volumeNode: the CT.
            choices: what to do.
            undo: see :func:`segment`.

        Raises:
            InputError: a run is on, there is no CT that can be used, or no result can be put into the segmentation.
        """
        if self.busy:
            raise InputError(_("Segmentation is already running."), _("Wait until it has finished, or cancel it."))
        choices.check(volumeNode)
        self._volumeNode = volumeNode
        scene = slicer.mrmlScene
        for event in (scene.NodeRemovedEvent, scene.EndCloseEvent):
            self.addObserver(scene, event, self._onNodesGone)
        self._enter("reading")
        self._task = self._tasks.start(self._run(volumeNode, choices, undo))

    def cancel(self) -> None:
        """Stop; nothing happens if no run is on. What is being shown already is shown to its end."""
        self._stop(Notice(_("Cancelled.")))

    def _stop(self, notice: Notice) -> None:
        if self.state in ("reading", "computing") and self._task is not None:
            self._task.cancel()
            self._end(notice)

    async def _run(self, volumeNode: Any, choices: Choices, undo: Undo | None) -> None:
        session = self._session
        outcome = await segment(
            session.client("lesions"),
            session.registry,
            session.ct,
            volumeNode,
            choices,
            undo,
            self._enter,
            self._onProgress,
        )
        # before the outcome, whose button would be hidden by them
        for text in outcome.messages:
            self.noted.emit(Notice(text))
        self._end(_described(outcome))
        # the worker is warm now
        session.devices.ask()
        self.finished.emit(volumeNode, outcome.segmentationNode)

    def _onProgress(self, progress: Progress) -> None:
        if self.state == "computing":
            self.progress = progress
            self.changed.emit()

    def _onNodesGone(self, *_ignored: Any) -> None:
        if self.busy and self._volumeNode.GetScene() is None:
            text = _("The CT was deleted, or its scene was closed, so the run was cancelled.")
            self._stop(Notice(text, is_error=True))

    def _enter(self, state: str) -> None:
        self.state = state
        self.progress = None
        self.changed.emit()

    def _end(self, notice: Notice) -> None:
        self.removeObservers()
        self._volumeNode = None
        self._enter("")
        self.noted.emit(notice)


def _described(outcome: Segmented) -> Notice:
    text = _("Done.")
    if "lesion_ml" in outcome.summary:
        text = _("Done: {volume} mL of lesion.").format(volume=f"{outcome.summary['lesion_ml']:.1f}")
    if outcome.lungsWereKept:
        text += " " + _("The corrected lungs stay as they are, beside the new ones.")
    if outcome.isUndoable:
        return Notice(text + " " + _("The earlier lesions were replaced; undo brings them back."), "undo")
    return Notice(text)


def modelForWorker(model: str, settings: WorkerSettings, registry: ModelRegistry) -> str | None:
    """What a worker is told of a model.

    Args:
        model: an id, a file, or "" for the default model.
        settings: of the worker.
        registry: the models of this computer.

    Returns:
        The model as it is named here, None for the default; behind a prefix the file of a model that is on this
        computer and does not come with the library: the other one may not have it. The request names it in ``files``.

    Raises:
        ModelError: behind a prefix: the default model is not installed any more, or a model's file was changed.
    """
    if not settings.prefix:
        return model or None
    name = model or registry.default()
    known = {entry.id: entry for entry in registry.list()}
    if name in known and known[name].status == INSTALLED:
        return str(registry.path(name))
    return name
