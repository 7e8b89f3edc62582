"""Measurement that follows every edit, and what can be done with what was measured.

The worker's second child holds the study; only what changed travels.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from numpy.typing import NDArray
from slicer.util import VTKObservationMixin

from .. import mrml
from ..errors import CancelledError, COVIDLesionSegError, InputError, TwoPatientsError
from ..imaging import LungQuality
from ..imaging.masks import Box, bounding_box
from ..mrml import ModuleParameters
from ..worker import Client, Reply
from ..worker.protocol import geometry_to_json
from .messages import Notice, confirm, noticeOf, workerError
from .task import Signal, Task, Tasks, turn, until
from .text import _, figure_text

if TYPE_CHECKING:
    from .session import Session

STUDY = "study"
# Edits come in bursts, a brush stroke is one; the table is 0.5 s behind at most.
_PAUSE_MS = 50


class LiveMeasurement(VTKObservationMixin):
    """Figures of what the scene's parameters name, while somebody looks.

    Attributes:
        changed: signal: other figures or another state.
        noted: signal: a :class:`.messages.Notice`.
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
        self._tasks = Tasks(session.timer, self._onError)
        self._task: Task | None = None
        # what is measured, or read to be measured; empty where it has to be read anew
        self._study: tuple[Any, ...] = ()
        # the lesions as the child has them, and the child that has them
        self._mask: NDArray[np.bool_] | None = None
        self._generation = -1
        # edits that the figures do not show yet
        self._isDirty = self._isResting = False
        self._edit = Signal()
        # of the CT, the lungs and the reference when the last one looked away
        self._stamps: list[tuple[Any, ...]] = []
        # of the lungs and the reference when they were read
        self._voxels: dict[Any, tuple[Any, ...]] = {}
        self._problem = ""
        self._caution = ""

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
        self._forget()

    @property
    def lesions(self) -> list[Mapping[str, Any]]:
        """The lesions, largest first, as ``quantify`` lists them."""
        entry = self.quantities.get("lesions")
        return [] if entry is None else list(entry["value"])

    @property
    def busy(self) -> bool:
        """Whether figures or tables are on their way."""
        return self._task is not None and not self._task.done and not self._isResting

    @property
    def caution(self) -> str:
        """Why the lungs that were measured are doubtful, or ""."""
        return self._caution

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
        parameters = mrml.moduleParameters()
        nodes = self._nodes(parameters)
        wanted = (*nodes, parameters.lesionSegmentId, parameters.referenceSegmentId, parameters.consolidationFrom)
        if wanted == self._study and (self.busy or self._holds()):
            if self._task is None or self._task.done:
                # somebody looks again
                self._observe(nodes)
                self._start()
            return
        self._forget()
        if parameters.inputVolume is None or parameters.lesionSegmentation is None:
            self._problem = _("Nothing to measure: choose a CT, and segment it or choose its segmentation.")
            self.changed.emit()
            return
        self._study = wanted
        self._observe(nodes)
        self._start()
        self.changed.emit()

    def _nodes(self, parameters: ModuleParameters) -> tuple[Any, Any, Any, Any]:
        return (
            parameters.inputVolume,
            parameters.lesionSegmentation,
            parameters.lungSegmentation,
            parameters.referenceSegmentation,
        )

    def _currentStamps(self) -> list[tuple[Any, ...]]:
        """What tells a changed CT, lungs or reference; lesions are compared voxel by voxel."""
        volumeNode, _lesions, *others = self._nodes(mrml.moduleParameters())
        return [mrml.changeStamp(node) for node in (volumeNode, *others)]

    @property
    def _client(self) -> Client:
        """Of the child that measures."""
        return self._session.client("measurement")

    def _holds(self) -> bool:
        """Whether the child that was given the study is the one that runs now."""
        client = self._client
        return client.running and client.generation == self._generation and self._mask is not None

    def _observe(self, nodes: tuple[Any, Any, Any, Any]) -> None:
        self.removeObservers()
        volumeNode, lesions, lungs, reference = nodes
        for event in mrml.EDITED:
            self.addObserver(lesions.GetSegmentation(), event, self._onEdited)
        masks = {lungs, reference} - {None, lesions}
        self._voxels = {node: mrml.voxelStamp(node) for node in (volumeNode, *masks)}
        for node in masks:
            for event in mrml.EDITED:
                self.addObserver(node.GetSegmentation(), event, self._onVoxelsEdited)
        # arrayFromVolumeModified touches the array and then the node, not the image
        for event in (slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent, "ModifiedEvent"):
            self.addObserver(volumeNode, event, self._onVoxelsEdited)
        self.addObserver(volumeNode, slicer.vtkMRMLTransformableNode.TransformModifiedEvent, self._onOtherEdited)

    # ---- edits --------------------------------------------------------------------------------------------------

    def _onEdited(self, *_ignored: Any) -> None:
        self._isDirty = True
        if self._task is None or self._task.done:
            # it failed: the edit may have mended what was wrong
            self._onOtherEdited()
        else:
            self._edit.emit()

    def _onVoxelsEdited(self, *_ignored: Any) -> None:
        """The CT, the lungs or the reference are others, unless only a name or a color is."""
        if any(mrml.voxelStamp(node) != before for node, before in self._voxels.items()):
            self._onOtherEdited()

    def _onOtherEdited(self, *_ignored: Any) -> None:
        """The CT, the lungs or the reference is another one: everything is measured anew, after a pause."""
        self._study = ()

        async def again() -> None:
            await turn(_PAUSE_MS)
            self.refresh()

        self._become(self._tasks.start(again()))

    # ---- the work -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._become(self._tasks.start(self._measure()))

    def _become(self, task: Task) -> None:
        """One task at a time."""
        before, self._task = self._task, task
        self._isResting = False
        if before is not None:
            before.cancel()

    async def _measure(self) -> None:
        """Measure the study, then what becomes of it with every edit."""
        if self._holds():
            self._isDirty = True
        else:
            await self._open()
        while True:
            if not self._isDirty:
                self._isResting = True
                self.changed.emit()
                if not self._isDirty:
                    await until(self._edit)
                self._isResting = False
            while self._isDirty:
                # a stroke is a burst of edits
                self._isDirty = False
                await turn(_PAUSE_MS)
            if not self._holds():
                # the child was idle for long and has ended by itself
                await self._open()
            else:
                await self._update()

    async def _open(self) -> None:
        """Give the whole study to the child."""
        parameters = mrml.moduleParameters()
        volumeNode, _lesions, lungNode, referenceNode = self._nodes(parameters)
        self._problem = ""
        # the very one that the lesions were found in, unless it has changed
        grid, voxels = self._session.ct.read(volumeNode)
        await turn()
        # what is edited from now on brings an update of its own
        self._isDirty = False
        lesions = self._read()
        arrays: dict[str, Any] = {"volume": voxels, "lesion": lesions.view(np.uint8)}
        await turn()
        if lungNode is not None:
            arrays["lungs"] = mrml.lungsFromSegmentation(lungNode, volumeNode)
            await turn()
        if referenceNode is not None:
            mask = segmentOrLesions(referenceNode, parameters.referenceSegmentId, volumeNode)
            arrays["reference"] = mask.view(np.uint8)
            await turn()
        self._mask = None
        values = {
            "study": STUDY,
            "geometry": geometry_to_json(grid),
            "consolidation_from": parameters.consolidationFrom,
        }
        reply = await self._client.request("open", values, arrays)
        await self._show(reply, lesions)

    async def _update(self) -> None:
        """Tell the child what has become of the lesions."""
        before, now = self._mask, self._read()
        assert before is not None  # noqa: S101  # the child holds it
        await turn()
        box = changedBox(before, now)
        if box is None:
            return
        where = [[side.start, side.stop] for side in box]
        patch = np.ascontiguousarray(now[box]).view(np.uint8)
        # until it answers, nobody knows what the child has
        self._mask = None
        self.changed.emit()
        try:
            reply = await self._client.request("update", {"study": STUDY, "box": where}, {"lesion": patch})
        except COVIDLesionSegError as error:
            if not isNotOpen(error):
                raise
            await self._open()
        else:
            await self._show(reply, now)

    def _read(self) -> NDArray[np.bool_]:
        parameters = mrml.moduleParameters()
        return segmentOrLesions(parameters.lesionSegmentation, parameters.lesionSegmentId, parameters.inputVolume)

    async def _show(self, reply: Reply, mask: NDArray[np.bool_]) -> None:
        self._mask, self._generation = mask, self._client.generation
        self.quantities = reply.values["quantities"] or {}
        self.evaluation = reply.values.get("evaluation") or {}
        verdict = reply.values.get("lung_quality")
        quality = None if verdict is None else LungQuality.from_json(verdict)
        self._caution = quality.line() if quality is not None and quality.is_doubtful else ""
        self.changed.emit()
        await turn()
        parameters = mrml.moduleParameters()
        parameters.measurementTable = mrml.showRegions(self.quantities, parameters.measurementTable)
        await turn()
        parameters.lesionTable = mrml.showLesionList(self.lesions, parameters.lesionTable)
        if self.evaluation:
            await turn()
            parameters.comparisonTable = mrml.showComparison(self.evaluation, parameters.comparisonTable)
        self.measured.emit()

    # ---- for others ---------------------------------------------------------------------------------------------

    def require(self) -> tuple[ModuleParameters, NDArray[np.bool_]]:
        """The parameters and the lesions that were measured, bool (z, y, x).

        Raises:
            InputError: nothing is measured.
        """
        if self._mask is None or not self.quantities:
            raise InputError(_("Nothing is measured yet."), _("Wait for the figures first."))
        return mrml.moduleParameters(), self._mask

    async def ask(self, task: str, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Reply:
        """Ask the child about the study that is measured; a child that has lost it is given it again first.

        Args:
            task: of the measurement child.
            values: of the task; the study is added.
            arrays: of the task.

        Raises:
            InputError: nothing is measured.
            CancelledError: something else is measured by now.
        """
        self.require()
        await self._held()
        given = {"study": STUDY, **values}
        try:
            return await self._client.request(task, given, arrays)
        except COVIDLesionSegError as error:
            if not isNotOpen(error):
                raise
        # the child ended by itself as the request came
        await self._held()
        return await self._client.request(task, given, arrays)

    async def _held(self) -> None:
        study = self._study
        while not self._holds() or self.busy:
            if not self.busy:
                self._start()
            await until(self.changed)
            if study != self._study or self._problem:
                raise CancelledError(self._problem or _("Something else is measured by now."))

    # ---- the end ------------------------------------------------------------------------------------------------

    def _onError(self, error: Exception) -> None:
        """Nothing is known any more; the next edit tries again."""
        found = workerError(error)
        if found is not None and found.kind == "cancelled":
            return
        notice = noticeOf(error)
        self._forget()
        self._problem = notice.text
        if notice.action:
            self.noted.emit(notice)
        self.changed.emit()

    def _rest(self) -> None:
        """Nobody looks: no observers, no timers; the figures stay."""
        self.removeObservers()
        if self.busy:
            # the child may be in the middle of it
            self._study = ()
        self._tasks.cancel()
        self._isResting = False

    def _forget(self) -> None:
        self._tasks.cancel()
        self._study, self._mask, self._isDirty, self._problem, self._caution = (), None, False, "", ""
        self.quantities, self.evaluation = {}, {}
        self.forgotten.emit()


class MeasurementTools:
    """What can be done with measured lesions: charts, the error map, the comparison with an earlier study.

    Attributes:
        comparison: what ``measurement.compare_timepoints`` gives, without its map; empty before.
    """

    def __init__(self, session: Session) -> None:
        self._live = session.live
        self._tasks = Tasks(session.timer, self._onError)
        #: whether the error map or the comparison is on its way
        self.busy = False
        self._charts: Task | None = None
        self.comparison: Mapping[str, Any] = {}
        self._live.measured.connect(self._follow)
        self._live.forgotten.connect(self._forget)

    def close(self) -> None:
        """Stop what is on."""
        self._forget()
        self._live.changed.emit()

    def _forget(self) -> None:
        """Something else is measured from now on: what is on its way belongs to what was."""
        self._tasks.cancel()
        self.busy, self.comparison = False, {}

    def _onError(self, error: Exception) -> None:
        self._live.noted.emit(noticeOf(error))

    def _onFailed(self, error: Exception) -> None:
        self.busy = False
        self._onError(error)
        self._live.changed.emit()

    # ---- charts -------------------------------------------------------------------------------------------------

    def showHistogram(self) -> None:
        """Show the histogram of HU inside the lesions in the layout."""
        self._draw(self._histogram, show="histogramChart")

    def showZones(self) -> None:
        """Show the involvement of the lung zones in the layout."""
        self._draw(self._zones, show="zoneChart")

    def _follow(self) -> None:
        """Charts that were shown once follow the edits."""
        parameters = mrml.moduleParameters()
        charts = ((parameters.zoneChart, self._zones), (parameters.histogramChart, self._histogram))
        shown = [draw for chart, draw in charts if chart is not None]
        if shown and (self._charts is None or self._charts.done):
            self._draw(*shown)

    def _draw(self, *charts: Callable[[], None], show: str = "") -> None:
        async def draw() -> None:
            for chart in charts:
                chart()
                await turn()
            if show:
                mrml.showChart(getattr(mrml.moduleParameters(), show))

        self._charts = self._tasks.start(draw())

    def _histogram(self) -> None:
        parameters, mask = self._live.require()
        values = mrml.valuesInside(parameters.inputVolume, mask)
        voxel_ml = mrml.gridOfNode(parameters.inputVolume).voxel_ml
        limit = parameters.consolidationFrom
        parameters.histogramChart = mrml.showHistogram(
            values, voxel_ml, parameters.histogramChart, consolidationFrom=limit
        )

    def _zones(self) -> None:
        parameters, _mask = self._live.require()
        parameters.zoneChart = mrml.showZones(self._live.quantities, parameters.zoneChart)

    # ---- the error map and the comparison -----------------------------------------------------------------------

    def showErrors(self) -> None:
        """Show where lesions and reference agree, and where not, as segments."""
        self._begin(self._showErrors())

    def compare(self) -> None:
        """Compare with the earlier study that the parameters name; asks before two patients are compared."""
        self._begin(self._compare())

    def changeText(self) -> str:
        """The change since the earlier study in a sentence; "" before a comparison."""
        if self.busy:
            return _("Computing...")
        return _changeText(self.comparison["changes"]) if self.comparison else ""

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        if self.busy:
            work.close()
            return

        async def do() -> None:
            await work
            self.busy = False
            self._live.changed.emit()

        self.busy = True
        self._tasks.start(do(), self._onFailed)
        self._live.changed.emit()

    async def _showErrors(self) -> None:
        reply = await self._live.ask("error_map", {}, {})
        parameters, _mask = self._live.require()
        volumeNode, earlier = parameters.inputVolume, parameters.errorSegmentation
        if earlier is not None and mrml.volumeOf(earlier) is not volumeNode:
            mrml.removeNode(earlier)
            earlier = None
        parameters.errorSegmentation = mrml.showErrors(volumeNode, reply.arrays["map"], earlier)
        text = _("The error map is a segmentation of its own, which can be hidden like any other.")
        self._live.noted.emit(Notice(text))

    async def _compare(self) -> None:
        parameters, _mask = self._live.require()
        earlier, lesions = parameters.earlierVolume, parameters.earlierSegmentation
        values: dict[str, Any] = {}
        patients = {mrml.patientOf(node) for node in (parameters.inputVolume, earlier)}
        if "" not in patients and len(patients) > 1:
            if not _areOnePatients(_("The CTs have two patient IDs.")):
                return
            values["assume_same_patient"] = True
        volume = mrml.volumeFromNode(earlier, check=False)
        arrays: dict[str, NDArray[Any]] = {"volume": volume.array}
        values["geometry"] = geometry_to_json(volume.geometry)
        await turn()
        arrays["lesion"] = segmentOrLesions(lesions, "", earlier).view(np.uint8)
        await turn()
        known = mrml.resultsOn(earlier, "lungs")
        if known:
            arrays["lungs"] = mrml.lungsFromSegmentation(known[-1], earlier)
            await turn()
        try:
            reply = await self._live.ask("compare", values, arrays)
        except TwoPatientsError as error:
            # the worker tells two people's chests apart, whatever their files say
            if not _areOnePatients(Exception.__str__(error)):
                return
            values["assume_same_patient"] = True
            reply = await self._live.ask("compare", values, arrays)
        self.comparison = reply.values["comparison"]
        parameters = mrml.moduleParameters()
        parameters.changeTable = mrml.showChanges(self.comparison["changes"], parameters.changeTable)
        for text in self.comparison.get("notes", ()):
            self._live.noted.emit(Notice(text))


def _areOnePatients(reason: str) -> bool:
    """Whether two studies are to be compared as one patient's all the same."""
    return confirm(reason, _("Compare them as studies of one patient all the same?"))


def _changeText(changes: Mapping[str, Any]) -> str:
    counts = {name: changes[f"lesions_{name}"]["value"] for name in ("new", "grown", "stable", "shrunk", "resolved")}
    first = _("Lesion volume {change} ({percent} of the earlier).").format(
        change=_signed(changes["lesion_volume_change"]["value"], "mL"),
        percent=_signed(changes["lesion_volume_change_percent"]["value"], "%"),
    )
    second = _("Lesions: {new} new, {grown} grown, {stable} stable, {shrunk} shrunk, {resolved} resolved.")
    return f"{first} {second.format(**counts)}"


def _signed(value: float | None, unit: str) -> str:
    text = figure_text(value, unit)
    return f"+{text}" if value is not None and value > 0 else text


def isNotOpen(error: Exception) -> bool:
    """Whether the child does not hold the study: it has ended by itself meanwhile."""
    found = workerError(error)
    return found is not None and found.kind == "not_open"


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
