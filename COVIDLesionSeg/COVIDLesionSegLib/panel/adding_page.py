"""Cases come into the store: the CT of the scene, a folder; and the model's answers to all that wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import mrml
from ..worker import Reply
from ..worker.job_tasks import PREDICT
from ..worker.jobs import JobStatus
from ..worker.protocol import geometry_to_json
from .forms import connectPath, showText
from .job_watch import JobWatch
from .notices import Notice, attempt, noticeOf
from .steps import Steps
from .store_client import StoreClient
from .text import _, duration_text
from .training import TrainingLogic

if TYPE_CHECKING:
    from .session import Session


class AddingPage:
    """Fills the part of the form that adds cases.

    Args:
        session: shared by all panels.
        store: the store.
        training: starts the job.
        ui: the form's widgets.
        note: shows a :class:`.notices.Notice`.
    """

    def __init__(
        self, session: Session, store: StoreClient, training: TrainingLogic, ui: Any, note: Callable[[Notice], None]
    ) -> None:
        self._store, self._training, self._ui, self._note = store, training, ui, note
        self._steps = Steps(session.timer)
        self.watch = JobWatch(session)
        self._folder = ""
        ui.addSceneButton.connect("clicked(bool)", self.onScene)
        ui.addFolderButton.connect("clicked(bool)", self.onFolder)
        ui.predictButton.connect("clicked(bool)", self.onPredict)
        ui.predictCancelButton.connect("clicked(bool)", self.onCancel)
        connectPath(ui.addPath, self.show)
        store.changed.connect(self.show)
        self.watch.changed.connect(self.showJob)
        self.watch.ended.connect(self._onEnded)
        self.showJob()

    def close(self) -> None:
        """Listen no more; a job goes on."""
        self._store.changed.disconnect(self.show)
        self._steps.stop()
        self.watch.stop()

    def show(self) -> None:
        """Show what can be done; a job of an earlier start of Slicer is found again."""
        ui, store = self._ui, self._store
        if store.folder != self._folder:
            self._folder = store.folder
            jobs = self._training.jobs(store.folder, PREDICT) if store.folder else []
            self.watch.follow(jobs[0] if jobs else None)
        ready = bool(store.overview) and not store.busy
        ui.addSceneButton.setEnabled(ready and not self._steps.busy)
        ui.addFolderButton.setEnabled(ready and bool(ui.addPath.currentPath))
        ui.predictButton.setEnabled(bool(store.cases) and not self.watch.isActive)

    # ---- adding -----------------------------------------------------------------------------------------------------

    def onScene(self, *_ignored: Any) -> None:
        """Put the chosen CT into the store, with its lungs and the model's answer."""
        parameters = mrml.moduleParameters()
        volumeNode = parameters.inputVolume
        values: dict[str, Any] = {"name": "CT"}
        arrays: dict[str, Any] = {}

        def readVolume() -> None:
            volume = mrml.volumeFromNode(volumeNode, check=False)
            values["geometry"], arrays["volume"] = geometry_to_json(volume.geometry), volume.array
            patient = self._ui.patientEdit.text.strip() or mrml.patientOf(volumeNode)
            if patient:
                values["patient"] = patient

        def readLungs() -> None:
            lungs = mrml.resultsOn(volumeNode, "lungs")
            if lungs:
                arrays["lungs"] = mrml.lungsFromSegmentation(lungs[-1], volumeNode)

        def readAnswer() -> None:
            lesions = parameters.lesionSegmentation
            if lesions is None or mrml.volumeOf(lesions) is not volumeNode or not mrml.hasPrediction(lesions):
                return
            record = mrml.recordOf(lesions)
            if record is not None:
                values["record"] = record.to_json()
                arrays["answer"] = mrml.predictionMask(lesions, volumeNode).view(np.uint8)

        def send() -> None:
            self._store.ask("case_add", values, self._onAdded, arrays=arrays, shown=True)

        self._steps.start([readVolume, readLungs, readAnswer, send], lambda error: self._note(noticeOf(error)))

    def onFolder(self, *_ignored: Any) -> None:
        """Put all CTs of a folder into the store."""
        values = {"folder": self._ui.addPath.currentPath, "copy": bool(self._ui.copyCheck.checked)}
        self._try(lambda: self._store.ask("store_add", values, self._onAdded, shown=True))

    def _onAdded(self, reply: Reply) -> None:
        noteReport(reply.values, self._note)

    # ---- the model's answers ----------------------------------------------------------------------------------------

    def onPredict(self, *_ignored: Any) -> None:
        """Let the store's default model answer all that wait, as a job."""
        device = mrml.moduleParameters().device
        self._try(lambda: self.watch.follow(self._training.predict(self._store.folder, device=device)))

    def onCancel(self, *_ignored: Any) -> None:
        """Stop the job."""
        if self.watch.job is not None:
            self.watch.job.cancel()

    def showJob(self) -> None:
        """Show how far the job is."""
        ui, status = self._ui, self.watch.status
        active = self.watch.isActive
        ui.predictProgress.setVisible(active)
        ui.predictCancelButton.setVisible(active)
        text = ""
        if active and status is not None:
            text = jobText(status)
            showProgress(ui.predictProgress, status)
        showText(ui.predictState, text)
        self.show()

    def _onEnded(self, status: JobStatus) -> None:
        if status.result is not None:
            done, failed = status.result["done"], status.result["failed"]
            text = _("The model answered {count} cases.").format(count=len(done))
            for case, why in failed.items():
                self._note(Notice(f"{case}: {why}", is_error=True))
            self._note(Notice(text))
        else:
            self._note(endOf(status))
        self._store.refresh()

    def _try(self, action: Callable[[], Any]) -> None:
        attempt(action, self._note)


def noteReport(values: Any, note: Callable[[Notice], None]) -> None:
    """Say what came of adding or importing."""
    done, known, failed = values["done"], values["known"], values["failed"]
    for name, why in failed.items():
        note(Notice(f"{name}: {why}", is_error=True))
    text = _("{done} cases were added, {known} were there already, {failed} were left out.")
    for warning in values.get("warnings", ()):
        note(Notice(warning, is_error=True))
    note(Notice(text.format(done=len(done), known=len(known), failed=len(failed))))


def jobText(status: JobStatus) -> str:
    """How far a job is, in words."""
    if status.state == "cancelling":
        return _("Stopping; what is best so far is kept.")
    if status.progress is None:
        return _("Starting...")
    progress = status.progress
    text = progress.message or progress.phase.capitalize()
    if progress.total > 1:
        text += f" {progress.done}/{progress.total}"
    if status.seconds_left is not None:
        text += ", " + _("{time} left").format(time=duration_text(status.seconds_left))
    return text


def showProgress(bar: Any, status: JobStatus) -> None:
    """Show how far a job is in a progress bar."""
    fraction = None if status.progress is None else status.progress.fraction
    bar.setRange(0, 0 if fraction is None else 1000)
    if fraction is not None:
        bar.setValue(round(1000 * fraction))


def endOf(status: JobStatus) -> Notice:
    """How a job ended that gave no result."""
    if status.error is not None:
        return noticeOf(status.error)
    return Notice(_("Cancelled."))
