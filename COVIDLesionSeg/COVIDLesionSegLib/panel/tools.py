"""What can be done with measured lesions: charts, the error map, the comparison with an earlier study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import mrml
from ..errors import TwoPatientsError
from ..worker import Reply, WorkerError
from ..worker.protocol import geometry_to_json
from .live import StudyRequest, segmentOrLesions
from .notices import Notice, attempt, confirm, noticeOf
from .steps import Steps
from .text import _, figure_text

if TYPE_CHECKING:
    from .session import Session

_KINDS = ("new", "grown", "stable", "shrunk", "resolved")


class MeasurementTools:
    """Works on what :class:`.live.LiveMeasurement` has measured.

    Attributes:
        comparison: what ``measurement.compare_timepoints`` gives, without its map; empty before.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._live = session.live
        self._steps = Steps(session.timer)
        self._request: StudyRequest | None = None
        self.comparison: Mapping[str, Any] = {}
        self._live.measured.connect(self._follow)
        self._live.forgotten.connect(self._forget)

    @property
    def busy(self) -> bool:
        """Whether the error map or the comparison is on its way."""
        return self._request is not None

    def close(self) -> None:
        """Stop what is on."""
        self._forget()
        self._live.changed.emit()

    def _forget(self) -> None:
        """Something else is measured from now on: what is on its way belongs to what was."""
        self._steps.stop()
        request, self._request = self._request, None
        if request is not None:
            request.cancel()
        self.comparison = {}

    def _follow(self) -> None:
        """Charts that were shown once follow the edits."""
        parameters, steps = mrml.moduleParameters(), []
        if parameters.zoneChart is not None:
            steps.append(self._zones)
        if parameters.histogramChart is not None:
            steps.append(self._histogram)
        if steps and not self._steps.busy:
            self._steps.start(steps, self._onError)

    def _onError(self, error: Exception) -> None:
        self._live.noted.emit(noticeOf(error))

    def showHistogram(self) -> None:
        """Show the histogram of HU inside the lesions in the layout."""
        self._steps.start([self._histogram, lambda: self._showInLayout("histogramChart")], self._onError)

    def showZones(self) -> None:
        """Show the involvement of the lung zones in the layout."""
        self._steps.start([self._zones, lambda: self._showInLayout("zoneChart")], self._onError)

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

    def _showInLayout(self, name: str) -> None:
        mrml.showChart(getattr(self._live.require()[0], name))

    def showErrors(self) -> None:
        """Show where lesions and reference agree, and where not, as segments."""
        attempt(lambda: self._ask("error_map", {}, {}, self._onErrors), self._live.noted.emit)

    def _onErrors(self, reply: Reply) -> None:
        def show() -> None:
            parameters, _mask = self._live.require()
            volumeNode, earlier = parameters.inputVolume, parameters.errorSegmentation
            if earlier is not None and mrml.volumeOf(earlier) is not volumeNode:
                mrml.removeNode(earlier)
                earlier = None
            parameters.errorSegmentation = mrml.showErrors(volumeNode, reply.arrays["map"], earlier)
            text = _("The error map is a segmentation of its own, which can be hidden like any other.")
            self._live.noted.emit(Notice(text))

        self._steps.start([show], self._onError)

    def compare(self) -> None:
        """Compare with the earlier study that the parameters name; asks before two patients are compared."""
        if self._request is not None:
            return
        arrays: dict[str, NDArray[Any]] = {}
        values: dict[str, Any] = {}
        parameters = mrml.moduleParameters()
        patients = {mrml.patientOf(node) for node in (parameters.inputVolume, parameters.earlierVolume)}
        if "" not in patients and len(patients) > 1 and not self._assumed(_("The CTs have two patient IDs."), values):
            return

        def readVolume() -> None:
            parameters, _mask = self._live.require()
            volume = mrml.volumeFromNode(parameters.earlierVolume, check=False)
            arrays["volume"] = volume.array
            values["geometry"] = geometry_to_json(volume.geometry)

        def readLesions() -> None:
            parameters, _mask = self._live.require()
            mask = segmentOrLesions(parameters.earlierSegmentation, "", parameters.earlierVolume)
            arrays["lesion"] = mask.view(np.uint8)

        def readLungs() -> None:
            parameters, _mask = self._live.require()
            known = mrml.resultsOn(parameters.earlierVolume, "lungs")
            if known:
                arrays["lungs"] = mrml.lungsFromSegmentation(known[-1], parameters.earlierVolume)

        def send() -> None:
            self._ask("compare", values, arrays, self._onCompared, refused)

        def refused(error: WorkerError) -> bool:
            # the worker tells two people's chests apart, whatever their files say
            if error.error_class != TwoPatientsError.__name__:
                return False
            self._request = None
            if self._assumed(error.message, values):
                send()
            else:
                self._live.changed.emit()
            return True

        self._steps.start([readVolume, readLesions, readLungs, send], self._onError)

    def _assumed(self, reason: str, values: dict[str, Any]) -> bool:
        """Whether two studies are to be compared as one patient's all the same."""
        values["assume_same_patient"] = confirm(reason, _("Compare them as studies of one patient all the same?"))
        return bool(values["assume_same_patient"])

    def _ask(
        self,
        task: str,
        values: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        finished: Callable[[Reply], None],
        refused: Callable[[WorkerError], bool] = lambda _error: False,
    ) -> None:
        def done(reply: Reply) -> None:
            if self._request is request:
                self._request = None
                finished(reply)
                self._live.changed.emit()

        def failed(error: WorkerError) -> None:
            if self._request is request and not refused(error):
                self._onFailed(error)

        self._request = request = StudyRequest(self._live, task, values, arrays, done, failed)
        self._live.changed.emit()

    def _onCompared(self, reply: Reply) -> None:
        self.comparison = reply.values["comparison"]
        parameters = mrml.moduleParameters()
        parameters.changeTable = mrml.showChanges(self.comparison["changes"], parameters.changeTable)
        for text in self.comparison.get("notes", ()):
            self._live.noted.emit(Notice(text))

    def _onFailed(self, error: WorkerError) -> None:
        self._request = None
        self._live.noted.emit(noticeOf(error))
        self._live.changed.emit()

    def changeText(self) -> str:
        """The change since the earlier study in a sentence; "" before a comparison."""
        if self._request is not None:
            return _("Computing...")
        if not self.comparison:
            return ""
        changes = self.comparison["changes"]
        counts = {
            name: changes[f"lesions_{name}"]["value"] for name in ("new", "grown", "stable", "shrunk", "resolved")
        }
        first = _("Lesion volume {change} ({percent} of the earlier).").format(
            change=_signed(changes["lesion_volume_change"]["value"], "mL"),
            percent=_signed(changes["lesion_volume_change_percent"]["value"], "%"),
        )
        second = _("Lesions: {new} new, {grown} grown, {stable} stable, {shrunk} shrunk, {resolved} resolved.")
        return f"{first} {second.format(**counts)}"


def _signed(value: float | None, unit: str) -> str:
    text = figure_text(value, unit)
    return f"+{text}" if value is not None and value > 0 else text
