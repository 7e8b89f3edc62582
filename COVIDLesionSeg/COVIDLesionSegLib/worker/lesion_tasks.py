"""The tasks of a worker of kind "lesions", which needs PyTorch. Models stay loaded from one request to the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import ModelError
from ..imaging import Geometry, Volume
from ..inference import PostProcessing
from .faults import require_torch
from .tasks import Answer, Array, Context, Makers, find_lungs_in, tasks_of

if TYPE_CHECKING:
    from ..inference import Predictor

# models that stay loaded; more would fill a small GPU
_WARM = 2


@dataclass(frozen=True)
class Choice:
    """Which model (id or file; None: the default one) on which device."""

    model: str | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None


def _postprocessing(value: dict[str, Any], /) -> PostProcessing:
    return PostProcessing.from_json(value)


class Lesions:
    """Tasks of kind "lesions": the public methods."""

    makers: Makers = {Choice: Choice, PostProcessing: _postprocessing}  # noqa: RUF012

    def __init__(self) -> None:
        self.device = ""
        self._warm: OrderedDict[tuple[Any, ...], Predictor] = OrderedDict()
        self.tasks: Mapping[str, Callable[..., Answer]] = {**tasks_of(self), "lungs": find_lungs_in}

    def segment(
        self,
        context: Context,
        volume: Volume,
        choice: Choice,
        lungs: Array | None = None,
        probability: bool = False,
        levels: bool = False,
        uncertainty: Literal["entropy", "mutual_information"] | bool | None = None,
        tta: bool = False,
        postprocessing: PostProcessing = PostProcessing(),  # noqa: B008  # frozen
        lung_engine: str | None = None,
    ) -> Answer:
        """Find the lesions.

        Args:
            context: of the request.
            volume: HU, int16 or float32.
            choice: model and device.
            lungs: uint8; None lets ``lung_engine`` find them.
            probability: also answer the array ``probability``.
            levels: also answer it in 256 levels: the array ``levels``, the value ``levels``.
            uncertainty: the same of ``uncertainty``; True is entropy.
            tta: average over four flipped copies of each slice.
            postprocessing: threshold and clean-up.
            lung_engine: what finds lungs that do not come along; None lets the predictor choose.

        Returns:
            Arrays ``mask`` and ``lungs`` (uint8); where asked for ``probability`` and ``uncertainty`` (float32), and
            ``levels`` (uint8, with the value ``levels``: ``ProbabilityLevels.described()``). Values ``record``
            (``RunRecord.to_json()``) and ``summary`` (lesion_ml, lesion_percent_of_lung, seconds, warnings,
            lung_quality: ``LungQuality.to_json()``).
        """
        predictor = self._predictor(choice, context)
        result = predictor.segment(
            volume,
            lungs,
            context.progress,
            context.is_cancelled,
            probability=probability,
            levels=levels,
            tta=tta,
            uncertainty=uncertainty,
            postprocessing=postprocessing,
            lung_engine=lung_engine,
        )
        warnings = [*volume.warnings, *result.record.warnings]
        for warning in warnings:
            context.note(warning)
        maps: dict[str, Any] = {"probability": result.probability, "uncertainty": result.uncertainty}
        described = {}
        if result.levels is not None:
            maps["levels"], described = result.levels.levels, {"levels": result.levels.described()}
        voxels = int(np.count_nonzero(result.mask))
        inside = int(np.count_nonzero(result.mask & (result.lungs != 0)))
        lung_voxels = int(np.count_nonzero(result.lungs))
        return Answer(
            {
                "record": result.record.to_json(),
                **described,
                "summary": {
                    "lesion_ml": voxels * volume.geometry.voxel_ml,
                    "lesion_percent_of_lung": 100.0 * inside / lung_voxels if lung_voxels else None,
                    "seconds": round(sum(result.record.seconds.values()), 3),
                    "warnings": warnings,
                    "lung_quality": result.lung_quality.to_json(),
                },
            },
            {"mask": result.mask.view(np.uint8), "lungs": result.lungs}
            | {name: array for name, array in maps.items() if array is not None},
        )

    def warm_up(self, context: Context, choice: Choice) -> Answer:
        """Load a model and compute once with it, so that the next run begins at once: ``model``, ``device``."""
        predictor = self._predictor(choice, context)
        hu = np.full((1, 64, 64), -850, dtype=np.int16)
        predictor.segment(Volume(hu, Geometry((64, 64, 1))), np.ones(hu.shape, dtype=bool))
        card, device = predictor.model.card, predictor.device
        return Answer(
            {
                "model": {"id": card.id, "name": card.name, "license": card.license},
                "device": {"used": str(device.device), "name": device.name, "reason": device.reason},
            }
        )

    def verify_model(self, context: Context, model: str) -> Answer:
        """Check a model's hash, then load it: its ``card``."""
        self._require_torch(context)
        from ..models import ModelRegistry, load_checkpoint

        registry = ModelRegistry()
        if any(entry.id == model for entry in registry.list()):
            registry.verify(model)
        return Answer({"card": asdict(load_checkpoint(registry.path(model)).card)})

    def download_model(self, context: Context, model: str, mirror: str | None = None) -> Answer:
        """Fetch a published model, the one task that uses the network: ``card`` (id, weights_sha256)."""
        from ..models import ModelRegistry

        entry = ModelRegistry().download(model, mirror, context.progress, context.is_cancelled)
        return Answer({"card": {"id": entry.id, "weights_sha256": entry.sha256 or ""}})

    def import_model(self, context: Context, file: str, model: str | None = None) -> Answer:
        """Take a model file into the user's folder, as ``model``: ``card`` (id, weights_sha256)."""
        from ..models import ModelRegistry

        self._require_torch(context)
        entry = ModelRegistry().import_file(file, model)
        return Answer({"card": {"id": entry.id, "weights_sha256": entry.sha256 or ""}})

    def doctor(self, device: str = "auto", model: str | None = None) -> Answer:
        """What ``covid-lesion-seg doctor --json`` prints; also where PyTorch is missing."""
        from ..inference.diagnosis import examine

        return Answer(examine(device, model))

    # ---- warm models --------------------------------------------------------------------------------------------

    def _require_torch(self, context: Context) -> None:
        # the parent remembers this phase: a process that dies in it has a damaged PyTorch
        context.progress("loading", 0, 2)
        require_torch()

    def _predictor(self, choice: Choice, context: Context) -> Predictor:
        self.device = choice.device if choice.device != "auto" else ""
        self._require_torch(context)
        context.check()
        context.progress("loading", 1, 2)
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
        context.progress("loading", 2, 2)
        return predictor


def _state(path: Path) -> tuple[str, int, int]:
    """A file as it is now; a changed or replaced one is another."""
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(
            f"The model file {path.name} can't be read: {error.strerror}.", "Choose another model, or get it again."
        ) from error
    return str(path), status.st_size, status.st_mtime_ns
