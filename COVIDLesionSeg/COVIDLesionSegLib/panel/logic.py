"""What the panel does, for the Python console and scripts: no dialogs, errors as exceptions."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import mrml
from ..errors import COVIDLesionSegError, InputError
from ..files import write_json, write_text
from ..imaging import image_stem, read_volume, write_labels
from ..imaging.volume import LabelVolume
from ..inference import PostProcessing
from ..measurement.catalog import consolidation_limit
from ..models import ModelRegistry
from ..worker import Client, Progress, Reply, WorkerSettings, blocking_client, wait
from ..worker.process import Kind
from ..worker.protocol import geometry_to_json
from ..worker.store_tasks import find_cts
from .live import segmentOrLesions
from .run import Choices, SceneCt, segment
from .session import readSettings, session
from .task import complete

_log = logging.getLogger("COVIDLesionSeg")
_STUDY = "console"


class LesionLogic:
    """Segments and measures from Python, with the same worker as the panel.

    All calls wait until they are done, and raise the exceptions of ``COVIDLesionSegLib.errors``. Slicer does not answer
    meanwhile; in the panel it does.

    Args:
        settings: how the worker is started; None takes the application's settings.
        progress: called with a ``worker.Progress`` now and then; None logs each phase.
    """

    def __init__(
        self, settings: WorkerSettings | None = None, progress: Callable[[Progress], None] | None = None
    ) -> None:
        self._settings = settings
        self._progress = progress or _PhaseLog()
        self._clients: dict[str, Client] = {}
        self._ct = SceneCt()

    def close(self) -> None:
        """End the worker; the next call starts a new one."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._ct.forget()

    def segment(
        self,
        volumeNode: Any,
        model: str | Path | None = None,
        device: str = "auto",
        *,
        lungs: Any = None,
        segmentationNode: Any = None,
        view: Any = "lesion",
        consolidationFrom: float | None = None,
        tta: bool = False,
        probability: bool = False,
        uncertainty: bool = False,
        postprocessing: PostProcessing | None = None,
        surfaces: bool = False,
        wait: bool = True,
    ) -> Any:
        """Find the lesions in a CT and show them as segments.

        Args:
            volumeNode: the CT, vtkMRMLScalarVolumeNode.
            model: id or file; None takes the default model.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            lungs: a segmentation node with the lungs; None finds them.
            segmentationNode: where to show the lesions; None makes a new segmentation.
            view: "lesion", "attenuation" or "separate".
            consolidationFrom: HU from which lesion counts as consolidation; None takes the catalog's.
            tta: average over four flipped copies of each slice.
            probability: also make a volume of the probability.
            uncertainty: the same of the uncertainty.
            postprocessing: threshold and clean-up; None leaves it to the model's card.
            surfaces: make the surfaces for 3-D views.
            wait: False begins the run in the background, as the panel does, and returns at once.

        Returns:
            The segmentation node, whose run record ``mrml.recordOf`` gives; with ``wait=False`` the
            :class:`.run.SegmentationRun`, which has ``busy``, ``cancel()`` and the signal ``finished``.

        Raises:
            InputError, ModelError, DeviceError, LungsNotFoundError, ...: see ``Predictor.segment``.
        """
        choices = Choices(
            "" if model is None else str(model),
            device,
            lungs,
            segmentationNode,
            view,
            consolidation_limit(consolidationFrom),
            tta,
            probability,
            uncertainty,
            surfaces,
            postprocessing or PostProcessing(),
        )
        choices.check(volumeNode)
        mrml.moduleParameters().inputVolume = volumeNode
        if not wait:
            shared = session().run
            shared.start(volumeNode, choices)
            return shared
        client = self._client("lesions")
        outcome = complete(
            segment(client, ModelRegistry(), self._ct, volumeNode, choices, progress=self._progress), client
        )
        self._warn(outcome.messages)
        return outcome.segmentationNode

    def measure(
        self,
        volumeNode: Any,
        segmentationNode: Any,
        lungs: Any = None,
        *,
        segmentId: str = "",
        consolidationFrom: float | None = None,
    ) -> dict[str, Any]:
        """Measure the lesions of a CT.

        Args:
            volumeNode: the CT.
            segmentationNode: with the lesions.
            lungs: a segmentation node with the lungs; None takes those that were found in this CT, if any.
            segmentId: one segment; "" takes all lesion segments.
            consolidationFrom: HU from which lesion counts as consolidation; None takes the catalog's.

        Returns:
            What ``measurement.quantify`` returns: key -> value, unit, status, title, definition, ...
        """
        grid, voxels = self._ct.read(volumeNode)
        lesions = segmentOrLesions(segmentationNode, segmentId, volumeNode)
        arrays: dict[str, Any] = {"volume": voxels, "lesion": lesions.view(np.uint8)}
        if lungs is None:
            lungs = next(reversed(mrml.resultsOn(volumeNode, "lungs")), None)
        if lungs is not None:
            arrays["lungs"] = mrml.lungsFromSegmentation(lungs, volumeNode)
        values = {"geometry": geometry_to_json(grid), "consolidation_from": consolidationFrom}
        return dict(self._ask("measurement", "quantify", values, arrays).values["quantities"])

    def evaluate(
        self,
        segmentationNode: Any,
        referenceNode: Any,
        volumeNode: Any = None,
        *,
        segmentId: str = "",
        referenceSegmentId: str = "",
    ) -> dict[str, Any]:
        """Compare lesions with a reference.

        Args:
            segmentationNode: the prediction.
            referenceNode: segmentation node of the reference.
            volumeNode: the CT, whose grid counts; None takes the one that the prediction was made on.
            segmentId: one segment of the prediction; "" takes all lesion segments, or the only segment.
            referenceSegmentId: the same of the reference.

        Returns:
            What ``measurement.evaluate`` returns: key -> value, unit, status.
        """
        mrml.requireNode(segmentationNode, "vtkMRMLSegmentationNode", "segmentation")
        volumeNode = mrml.volumeOf(segmentationNode) if volumeNode is None else volumeNode
        arrays = {
            "prediction": segmentOrLesions(segmentationNode, segmentId, volumeNode).view(np.uint8),
            "reference": segmentOrLesions(referenceNode, referenceSegmentId, volumeNode).view(np.uint8),
        }
        values = {"geometry": geometry_to_json(mrml.gridOfNode(volumeNode))}
        return dict(self._ask("measurement", "evaluate", values, arrays).values["evaluation"])

    def segmentFolder(
        self,
        folder: str | Path,
        output: str | Path,
        model: str | Path | None = None,
        device: str = "auto",
        *,
        resume: bool = False,
        postprocessing: PostProcessing | None = None,
    ) -> list[dict[str, str]]:
        """Segment every CT of a folder without loading it into the scene.

        Image files and subfolders that hold DICOM files are CTs, or the folder itself if it holds DICOM files.
        A study that fails does not end the batch.

        Args:
            folder: with the CTs.
            output: gets ``<case>_lesions.nii.gz`` and ``<case>_lesions.json`` (the run record) of each, and
                ``batch.csv``; made if absent.
            model: id or file; None takes the default model.
            device: see :meth:`segment`.
            resume: leave out studies whose files are there already.
            postprocessing: see :meth:`segment`.

        Returns:
            One dictionary a study: case, status ("done", "skipped" or "failed"), message (why it failed, or what is to
            be kept in mind), lesion [mL].

        Raises:
            InputError: no such folder, no CT in it, or two whose results would have one name.
            OutputError: a result can't be written.
        """
        output = Path(output)
        choices = Choices(
            "" if model is None else str(model), device, postprocessing=postprocessing or PostProcessing()
        )
        rows: list[dict[str, str]] = []
        for case, path in _studies(Path(folder)).items():
            mask, record = output / f"{case}_lesions.nii.gz", output / f"{case}_lesions.json"
            row = {"case": case, "status": "done", "message": "", "lesion [mL]": ""}
            if resume and mask.is_file() and record.is_file():
                row["status"] = "skipped"
            else:
                try:
                    volume = read_volume(path)
                    values = choices.request(volume.geometry, self._client("lesions"), ModelRegistry(), volume.name)
                    reply = self._ask("lesions", "segment", values, {"volume": volume.array})
                except COVIDLesionSegError as error:
                    row |= {"status": "failed", "message": str(error)}
                else:
                    lesions = reply.arrays["mask"].view(np.uint8)
                    write_labels(LabelVolume(lesions, volume.geometry, {1: "lesion"}), mask)
                    write_json(record, reply.values["record"])
                    row["message"] = " ".join(dict.fromkeys(reply.messages))
                    row["lesion [mL]"] = f"{np.count_nonzero(lesions) * volume.geometry.voxel_ml:.3f}"
            _log.info("%s: %s %s", case, row["status"], row["message"])
            rows.append(row)
            write_text(output / "batch.csv", _csv(rows))
        return rows

    def _workerSettings(self) -> WorkerSettings:
        return readSettings() if self._settings is None else self._settings

    def _client(self, kind: Kind) -> Client:
        if kind not in self._clients:
            self._clients[kind] = blocking_client(self._workerSettings(), kind)
        return self._clients[kind]

    def _ask(self, kind: Kind, task: str, values: Mapping[str, Any], arrays: Mapping[str, Any]) -> Reply:
        files = ("model",) if task == "segment" else ()
        reply = wait(self._client(kind).request(task, values, arrays, files=files, progress=self._progress))
        self._warn(reply.messages)
        return reply

    def _warn(self, messages: Iterable[str]) -> None:
        for text in messages:
            _log.warning("%s", text)


class _PhaseLog:
    """Logs each phase once."""

    def __init__(self) -> None:
        self._phase = ""

    def __call__(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self._phase = progress.phase
            _log.info("%s", progress.message or progress.phase)


def _studies(folder: Path) -> dict[str, Path]:
    """Case -> file or DICOM folder; the name of a case comes from the file's or folder's."""
    found: dict[str, Path] = {}
    for path in find_cts(folder):
        case = image_stem(path) if path.is_file() else path.name
        if case in found:
            raise InputError(f"The results of {found[case].name} and {path.name} would be the same files; rename one.")
        found[case] = path
    return found


def _csv(rows: list[dict[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
