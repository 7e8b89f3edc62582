"""What the panel does, for the Python console and scripts: no dialogs, errors as exceptions."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import mrml
from ..errors import COVIDLesionSegError, InputError
from ..files import write_json, write_text
from ..imaging import Volume, dicom_files, image_stem, image_suffix, read_volume, write_labels
from ..imaging.volume import LabelVolume
from ..inference import PostProcessing, ProbabilityLevels, RunRecord
from ..measurement.catalog import consolidation_limit
from ..models import ModelRegistry
from ..worker import Client, Progress, Reply, WorkerSettings, blocking_client, wait
from ..worker.protocol import geometry_to_json
from .live import segmentOrLesions
from .run import SegmentationRun
from .session import modelForWorker, readSettings, session

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

    def close(self) -> None:
        """End the worker; the next call starts a new one."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

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
        if not wait:
            return _inBackground(
                postprocessing or PostProcessing(),
                inputVolume=volumeNode,
                model="" if model is None else str(model),
                device=device,
                lungSegmentation=lungs,
                findLungs=lungs is None,
                lesionSegmentation=segmentationNode,
                lesionView=view,
                consolidationFrom=consolidation_limit(consolidationFrom),
                testTimeAugmentation=tta,
                keepProbability=probability,
                keepUncertainty=uncertainty,
                showSurfaces=surfaces,
            )
        if segmentationNode is not None:
            # said before the work, not after it
            mrml.requireLabelmaps(segmentationNode)
        volume = mrml.volumeFromNode(volumeNode, check=False)
        arrays: dict[str, Any] = {"volume": volume.array}
        if lungs is not None:
            arrays["lungs"] = mrml.lungsFromSegmentation(lungs, volumeNode)
        reply = self._segment(volume, arrays, model, device, tta, probability, uncertainty, postprocessing)
        node = mrml.showLesions(
            volumeNode,
            reply.arrays["mask"].view(bool),
            view=view,
            segmentationNode=segmentationNode,
            volume=volume,
            consolidationFrom=consolidationFrom,
        )
        mrml.attachRecord(node, RunRecord.from_json(reply.values["record"]))
        mrml.keepPrediction(node)
        mrml.keepLevels(node, volumeNode, ProbabilityLevels.received(reply.values, reply.arrays))
        if lungs is None:
            known = mrml.resultsOn(volumeNode, "lungs")
            lungs = mrml.showFoundLungs(volumeNode, reply.arrays["lungs"], known[-1] if known else None)
        parameters = mrml.moduleParameters()
        parameters.update(inputVolume=volumeNode, lesionSegmentation=node, lungSegmentation=lungs)
        if probability:
            parameters.probabilityVolume = mrml.showProbability(
                volumeNode, reply.arrays["probability"], parameters.probabilityVolume
            )
        if uncertainty:
            parameters.uncertaintyVolume = mrml.showUncertainty(
                volumeNode, reply.arrays["uncertainty"], parameters.uncertaintyVolume
            )
        if surfaces:
            mrml.showIn3D(node)
        return node

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
        volume = mrml.volumeFromNode(volumeNode, check=False)
        arrays = {
            "volume": volume.array,
            "lesion": segmentOrLesions(segmentationNode, segmentId, volumeNode).view(np.uint8),
        }
        if lungs is None:
            lungs = next(reversed(mrml.resultsOn(volumeNode, "lungs")), None)
        if lungs is not None:
            arrays["lungs"] = mrml.lungsFromSegmentation(lungs, volumeNode)
        values = {"geometry": geometry_to_json(volume.geometry), "consolidation_from": consolidationFrom}
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

        Image files and subfolders that hold DICOM files are CTs. A study that fails does not end the batch.

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
            InputError: no such folder, or no CT in it.
            OutputError: a result can't be written.
        """
        output = Path(output)
        rows: list[dict[str, str]] = []
        for case, path in _studies(Path(folder)).items():
            mask, record = output / f"{case}_lesions.nii.gz", output / f"{case}_lesions.json"
            row = {"case": case, "status": "done", "message": "", "lesion [mL]": ""}
            if resume and mask.is_file() and record.is_file():
                row["status"] = "skipped"
            else:
                try:
                    volume = read_volume(path)
                    arrays = {"volume": volume.array}
                    reply = self._segment(volume, arrays, model, device, False, False, False, postprocessing)
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

    def _segment(
        self,
        volume: Volume,
        arrays: Mapping[str, Any],
        model: str | Path | None,
        device: str,
        tta: bool,
        probability: bool,
        uncertainty: bool,
        postprocessing: PostProcessing | None,
    ) -> Reply:
        values = {
            "geometry": geometry_to_json(volume.geometry),
            "model": modelForWorker("" if model is None else str(model), self._workerSettings(), ModelRegistry()),
            "device": device,
            "tta": tta,
            "probability": probability,
            "levels": True,
            "uncertainty": "entropy" if uncertainty else None,
            "postprocessing": (postprocessing or PostProcessing()).to_json(),
            "name": volume.name,
        }
        return self._ask("lesions", "segment", values, arrays)

    def _workerSettings(self) -> WorkerSettings:
        return readSettings() if self._settings is None else self._settings

    def _ask(self, kind: Any, task: str, values: Mapping[str, Any], arrays: Mapping[str, Any]) -> Reply:
        if kind not in self._clients:
            self._clients[kind] = blocking_client(self._workerSettings(), kind)
        files = ("model",) if task == "segment" else ()
        reply = wait(self._clients[kind].request(task, values, arrays, files=files, progress=self._progress))
        for text in reply.messages:
            _log.warning("%s", text)
        return reply


class _PhaseLog:
    """Logs each phase once."""

    def __init__(self) -> None:
        self._phase = ""

    def __call__(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self._phase = progress.phase
            _log.info("%s", progress.message or progress.phase)


def _inBackground(postprocessing: PostProcessing, **choices: Any) -> SegmentationRun:
    parameters = mrml.moduleParameters()
    parameters.update(**choices)
    run = session().run
    run.start(parameters, postprocessing=postprocessing)
    return run


def _studies(folder: Path) -> dict[str, Path]:
    """Case -> file or DICOM folder; the name of a case comes from the file's or folder's."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file() and image_suffix(path):
            found[image_stem(path)] = path
        elif path.is_dir() and dicom_files(path):
            found[path.name] = path
    if not found:
        raise InputError(f"The folder {folder} holds no CT.", "Image files and subfolders of DICOM files count.")
    return found


def _csv(rows: list[dict[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
