"""The tasks of a worker of kind "lesions", which needs PyTorch. Models stay loaded from one request to the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError
from ..imaging import Geometry, Volume
from .faults import require_torch
from .tasks import Answer, Work, find_lungs_in

if TYPE_CHECKING:
    from ..inference import Predictor

# models that stay loaded; more would fill a small GPU
_WARM = 2


class Lesions:
    """Tasks of kind "lesions".

    ``segment``: arrays ``volume`` (z, y, x; int16 or float32, HU) and, if given, ``lungs`` (uint8); parameters
    ``geometry`` and, if given, ``name``, ``rescale`` ([slope, intercept]), ``model`` (id or file), ``device``,
    ``precision``, ``batch_size``, ``tta``, ``probability``, ``uncertainty`` (true, "entropy", "mutual_information"),
    ``postprocessing`` (``PostProcessing.to_json()``), ``lung_engine`` (what finds lungs that do not come along).
    Answers arrays ``mask`` and ``lungs`` (uint8), ``probability`` and ``uncertainty`` (float32) where asked for; values
    ``record`` (``RunRecord.to_json()``) and ``summary`` (lesion_ml, lesion_percent_of_lung, seconds, warnings,
    lung_quality: ``LungQuality.to_json()``).

    ``lungs``: array ``volume``, parameters ``geometry``, ``name``, ``rescale``, ``lung_engine``; answers the array
    ``lungs`` (uint8, 1 right, 2 left) and the value ``lung_quality``.

    ``warm_up``: ``model``, ``device``, ``precision``: loads the model and computes once, so that the next run begins at
    once. Answers ``model`` (id, name, license) and ``device`` (used, name, reason).

    ``verify_model``: ``model``: hash and content of its file. Answers the ``card``.

    ``download_model``: ``model`` (id) and, if given, ``mirror``: fetches its file. ``import_model``: ``file`` and, if
    given, ``model`` (its id): takes a file in. Both answer ``card`` (id, weights_sha256).

    ``doctor``: ``device``, ``model``: what ``covid-lesion-seg doctor --json`` prints. It needs no PyTorch: it says so
    where PyTorch is missing.
    """

    def __init__(self) -> None:
        self.device = ""
        self._warm: OrderedDict[tuple[Any, ...], Predictor] = OrderedDict()
        self.tasks: Mapping[str, Callable[[Work], Answer]] = {
            "segment": self.segment,
            "lungs": self.lungs,
            "warm_up": self.warm_up,
            "verify_model": self.verify_model,
            "download_model": self.download_model,
            "import_model": self.import_model,
            "doctor": self.doctor,
        }

    def segment(self, work: Work) -> Answer:
        """Find the lesions."""
        from ..inference.postprocess import PostProcessing

        volume = work.volume()
        lungs = work.array("lungs")
        settings = PostProcessing.from_json(work.take("postprocessing", dict, {}))
        probability, tta = work.take("probability", bool, False), work.take("tta", bool, False)
        uncertainty = work.take("uncertainty", (str, bool))
        engine = work.take("lung_engine", str)
        choice = _Choice.of(work)
        work.finish()
        predictor = self._predictor(choice, work)
        result = predictor.segment(
            volume,
            lungs,
            lambda phase, done, total: work.progress(phase, done, total),
            work.is_cancelled,
            probability=probability,
            tta=tta,
            uncertainty=uncertainty,
            postprocessing=settings,
            lung_engine=engine,
        )
        for warning in (*volume.warnings, *result.record.warnings):
            work.note(warning)
        maps = {"probability": result.probability, "uncertainty": result.uncertainty}
        voxels = int(np.count_nonzero(result.mask))
        inside = int(np.count_nonzero(result.mask & (result.lungs != 0)))
        lung_voxels = int(np.count_nonzero(result.lungs))
        return Answer(
            {
                "record": result.record.to_json(),
                "summary": {
                    "lesion_ml": voxels * volume.geometry.voxel_ml,
                    "lesion_percent_of_lung": 100.0 * inside / lung_voxels if lung_voxels else None,
                    "seconds": round(sum(result.record.seconds.values()), 3),
                    "warnings": [*volume.warnings, *result.record.warnings],
                    "lung_quality": result.lung_quality.to_json(),
                },
            },
            {"mask": result.mask.view(np.uint8), "lungs": result.lungs}
            | {name: array for name, array in maps.items() if array is not None},
        )

    def lungs(self, work: Work) -> Answer:
        """Find the lungs; no PyTorch is needed for it."""
        return find_lungs_in(work)

    def warm_up(self, work: Work) -> Answer:
        """Load a model and compute once with it."""
        choice = _Choice.of(work)
        work.finish()
        predictor = self._predictor(choice, work)
        hu = np.full((1, 64, 64), -850, dtype=np.int16)
        predictor.segment(Volume(hu, Geometry((64, 64, 1))), np.ones(hu.shape, dtype=bool))
        card, device = predictor.model.card, predictor.device
        return Answer(
            {
                "model": {"id": card.id, "name": card.name, "license": card.license},
                "device": {"used": str(device.device), "name": device.name, "reason": device.reason},
            }
        )

    def verify_model(self, work: Work) -> Answer:
        """Check a model's hash, then load it."""
        model = work.need("model", str)
        work.finish()
        self._require_torch(work)
        from dataclasses import asdict

        from ..models import ModelRegistry, load_checkpoint

        registry = ModelRegistry()
        if any(entry.id == model for entry in registry.list()):
            registry.verify(model)
        card = load_checkpoint(registry.path(model)).card
        return Answer({"card": asdict(card)})

    def download_model(self, work: Work) -> Answer:
        """Fetch a published model; the one task that uses the network."""
        from ..models import ModelRegistry

        model, mirror = work.need("model", str), work.take("mirror", str)
        work.finish()
        entry = ModelRegistry().download(model, mirror, work.progress, work.is_cancelled)
        return Answer({"card": {"id": entry.id, "weights_sha256": entry.sha256 or ""}})

    def import_model(self, work: Work) -> Answer:
        """Take a model file into the user's folder."""
        from ..models import ModelRegistry

        file, model = work.need("file", str), work.take("model", str)
        work.finish()
        self._require_torch(work)
        entry = ModelRegistry().import_file(file, model)
        return Answer({"card": {"id": entry.id, "weights_sha256": entry.sha256 or ""}})

    def doctor(self, work: Work) -> Answer:
        """Say what is installed and whether it works."""
        from ..inference.diagnosis import examine

        device, model = work.take("device", str, "auto"), work.take("model", str)
        work.finish()
        return Answer(examine(device, model))

    # ---- warm models --------------------------------------------------------------------------------------------

    def _require_torch(self, work: Work) -> None:
        # the parent remembers this phase: a process that dies in it has a damaged PyTorch
        work.progress("loading", 0, 2)
        require_torch()

    def _predictor(self, choice: _Choice, work: Work) -> Predictor:
        self.device = choice.device if choice.device != "auto" else ""
        self._require_torch(work)
        work.check()
        work.progress("loading", 1, 2)
        from ..inference import Predictor
        from ..models import ModelRegistry

        registry = ModelRegistry()
        path = registry.path(registry.default() if choice.model is None else choice.model)
        key = (_state(path), choice.device, choice.precision, choice.batch_size)
        predictor = self._warm.pop(key, None)
        if predictor is None:
            # the same file with other content will not come back
            for old in [known for known in self._warm if known[0][0] == str(path) and known[0] != key[0]]:
                del self._warm[old]
            while len(self._warm) >= _WARM:
                self._warm.popitem(last=False)
            predictor = Predictor(path, choice.device, choice.precision, choice.batch_size)
        self._warm[key] = predictor
        self.device = str(predictor.device.device)
        work.progress("loading", 2, 2)
        return predictor


class _Choice:
    """Which model on which device."""

    def __init__(self, model: str | None, device: str, precision: str, batch_size: int | None) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.batch_size = batch_size

    @classmethod
    def of(cls, work: Work) -> _Choice:
        return cls(
            work.take("model", str),
            work.take("device", str, "auto"),
            work.take("precision", str, "auto"),
            work.take("batch_size", int),
        )


def _state(path: Path) -> tuple[str, int, int]:
    """A file as it is now; a changed or replaced one is another."""
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(
            f"The model file {path.name} can't be read: {error.strerror}.", "Choose another model, or get it again."
        ) from error
    return str(path), status.st_size, status.st_mtime_ns
