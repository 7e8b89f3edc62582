"""The predictor: a CT in, lesions out, on the CT's own grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, IntensityError, LungsNotFoundError
from ..imaging import (
    LabelVolume,
    LocatedLungs,
    LungQuality,
    Volume,
    assess_lungs,
    body_box,
    divide_lungs,
    lung_box,
)
from ..imaging.lungs.engines import NETWORK
from ..networks import NETWORKS
from .augmentation import binary_entropy, checked_uncertainty
from .devices import Choice, choose_device, choose_precision, device_name, precision_name
from .execution import TORCH, Execution, Plan, Sinks, Task
from .levels import ProbabilityLevels, levels_of
from .lung_engine import locate_lungs, lung_network
from .postprocess import PostProcessing, apply_postprocessing, smooth_across_slices
from .precision import fastest_way, ways_to_compute
from .record import RunRecord, describe_input

if TYPE_CHECKING:
    from ..models import LoadedModel

# The largest label of lungs that are told apart: 1 is the right one, 2 the left one.
_LEFT = 2


@dataclass(frozen=True, eq=False)
class Result:
    """What came of one CT; every array is on the CT's own grid.

    Attributes:
        mask: bool (z, y, x), lesion.
        probability: float32 (z, y, x) in [0, 1], 0 outside the crop that the network saw: what the threshold is applied
            to, so smoothed across slices where that is wanted, and before the mask's own post-processing; None if not
            asked for.
        uncertainty: float32 (z, y, x), bits in [0, 1], 0 outside the crop; None if not asked for.
        lungs: uint8 (z, y, x), 1 right, 2 left (1 for both where the given mask does not tell them apart).
        lung_quality: whether the lungs can be trusted, and why not; the given ones are judged as well.
        record: how the result was made.
        levels: the probability in 256 levels, within the reach around the lungs that the mask was limited to; None if
            not asked for.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32] | None
    uncertainty: NDArray[np.float32] | None
    lungs: NDArray[np.uint8]
    lung_quality: LungQuality
    record: RunRecord
    levels: ProbabilityLevels | None = None

    @property
    def located_lungs(self) -> LocatedLungs:
        """The lungs with their verdict, so that nobody judges them again."""
        return LocatedLungs(self.lungs, self.lung_quality)


class Predictor:
    """Finds lesions in CTs with one model on one device; stays warm from one CT to the next.

    The number of processor threads is left as the caller has set it. On the processor, the same input gives the same
    bits again with the same number of threads and the same batch size (the record holds both).

    Args:
        model: a loaded model, the id or file of one, or None for the default model.
        device: "auto" (a GPU that works, else the processor), "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto" (bfloat16 where the hardware has it, float16 on older GPUs, else float32; on a processor a
            measurement chooses, and between PyTorch and OpenVINO where that is installed), or "float32", "bfloat16" or
            "float16" by PyTorch.
        batch_size: slices computed at once; None takes what is fast and fits into memory.

    Attributes:
        model: the loaded model.
        device: the chosen device, with the reason.

    Raises:
        ModelError: no such model, or its file is damaged.
        DeviceError: an unknown device, or one that is not there or does not work.
        InputError: an unknown precision, or a batch size below 1.

    Example:
        >>> result = Predictor().segment(read_volume("ct.nii.gz"))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: LoadedModel | str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
            raise InputError(f"The batch size is {batch_size!r}; it must be 1 slice or more.")
        self.device: Choice = choose_device(device)
        self._dtype, self._precision_warning = choose_precision(precision, self.device.device)
        self._precision = precision
        self._batch_size = batch_size
        self.model: LoadedModel = _loaded(model)
        card = self.model.card
        self._execution = Execution(self.model.network, card.preprocessing, card.weights_sha256)
        self._engine = TORCH
        # a network that was never saved has no name to keep a measurement by
        if precision == "auto" and self.device.device.type == "cpu" and card.weights_sha256:
            # what another package's network computes is not known
            is_ours = card.network in NETWORKS
            ways = ways_to_compute(self._dtype == torch.bfloat16, is_ours)
            if len(ways) > 1:
                self._engine, self._dtype = fastest_way(self._execution, card, ways)

    def segment(
        self,
        volume: Volume,
        lungs: NDArray[Any] | LabelVolume | LocatedLungs | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        *,
        probability: bool = False,
        levels: bool = False,
        tta: bool = False,
        uncertainty: str | bool | None = None,
        postprocessing: PostProcessing | None = None,
        lung_engine: str | None = None,
    ) -> Result:
        """Find the lesions in a CT.

        The slices of the axial view nearest to the CT's axes are cropped to the lungs with the margin of the model
        card, windowed, resized if the card says so, padded by reflection, and run through the network in batches, with
        their neighbors as channels if the card names any.

        Nothing is thrown away for lungs that can't be trusted: on doubtful lungs the crop is the body's box instead,
        and the model's limit to the lungs is left out; a limit that the caller asks for is obeyed. A warning in the
        record says so.

        Args:
            volume: the CT, Hounsfield units; whether they can be is checked where volumes are read.
            lungs: (z, y, x) on the CT's grid: bool, 1 right and 2 left, or anything that is not 0 in the lungs; None
                finds them. They are judged, unless they bring their verdict.
            progress: called as progress(phase, done, total) in the phases "lungs", "network" and "postprocess".
            cancelled: asked between batches; True ends the run.
            probability: also return the probability.
            levels: also return the probability in levels, which is a fraction of its size: what corrections by a click
                and other thresholds need.
            tta: average the probability over four copies of each slice: as it is, flipped left-right,
                anterior-posterior, and both. Four times the work.
            uncertainty: also return the uncertainty over the four copies (turns ``tta`` on): True or "entropy" for
                the binary entropy of the mean, "mutual_information" for the copies' disagreement, see
                :func:`~.augmentation.mean_over_flips`. The entropy is that of the probability in the result; the
                disagreement is the network's in each slice, before the smoothing across slices.
            postprocessing: smoothing across slices, threshold and clean-up of the mask; what it leaves open, or all if
                it is None, is as the model card says.
            lung_engine: what finds lungs that are not given, see :func:`~.imaging.locate_lungs`; "none" does without
                lungs, for a chest in which none can be found. None takes the lung network where its weights are, and
                the classical finder where they are not, or where the network finds no lungs.

        Returns:
            The mask and what was asked for, on the CT's own grid.

        Raises:
            InputError: an argument that is not allowed.
            GridMismatchError: lungs on another grid.
            IntensityError: voxels that are NaN or infinite.
            LungsNotFoundError: no lungs, or the given mask is empty.
            CancelledError: ``cancelled`` said so.
            DeviceError: memory does not suffice for one slice.
            ModelError: the network's output is not finite.
        """
        if not isinstance(volume, Volume):
            raise InputError(f"The predictor takes a Volume, not {type(volume).__name__}; read_volume makes one.")
        card = self.model.card
        settings = (postprocessing or PostProcessing()).completed(card)
        threshold, deviation = settings.threshold, settings.smooth_across_slices_mm
        assert threshold is not None and deviation is not None  # noqa: S101  # the card leaves none open
        doubt = checked_uncertainty(uncertainty)
        seconds: dict[str, float] = {}
        _require_finite(volume)

        with _timed(seconds, "lungs"):
            if lungs is None:
                located = locate_lungs(volume, progress, cancelled, engine=lung_engine)
            else:
                located = _given_lungs(lungs, volume)
            found, quality = located.labels, located.quality
            caution = None
            if quality.is_doubtful:
                settings, caution = _without_limit(settings, postprocessing, located)
            view = volume.geometry.axial_view()
            margin = card.preprocessing.lung_crop_margin
            box: tuple[slice, ...] = (slice(None),) * 3
            if margin is not None:
                box = (
                    body_box(view.apply(volume.array), view.apply(found), view.geometry.spacing_zyx, margin)
                    if quality.is_doubtful
                    else lung_box(view.apply(found), margin)
                )

        with _timed(seconds, "network"):
            shape = volume.array.shape
            mask = np.zeros(shape, dtype=bool)
            maps = {
                name: np.zeros(shape, dtype=np.float32) if wanted else None
                for name, wanted in (("probability", probability), ("uncertainty", doubt is not None))
            }
            # views of the results on the CT's own grid: what is written into them needs no way back
            sinks = Sinks(
                view.apply(mask)[box], *(None if array is None else view.apply(array)[box] for array in maps.values())
            )
            if (deviation > 0 or levels) and sinks.probability is None:
                sinks.probability = np.empty(sinks.mask.shape, dtype=np.float32)
            most_lung = int(np.argmax(np.count_nonzero(view.apply(found)[box], axis=(1, 2))))
            slices = view.apply(volume.array)[box]
            wanted = sinks.probability is not None
            spacing = view.geometry.spacing_zyx[0]
            task = Task(slices, threshold, wanted, tta or doubt is not None, doubt, spacing, sample=most_lung)
            plan = self._plan(task)
            batch_size = plan.batch_size
            warnings = self._execution.run(task, plan, sinks, progress, cancelled)

        with _timed(seconds, "postprocess"):
            if progress is not None:
                progress("postprocess", 0, 1)
            if deviation > 0:
                _smooth(sinks, view.geometry.spacing_zyx[0], deviation, threshold, doubt)
            kept = None
            if levels:
                assert sinks.probability is not None  # noqa: S101  # made above
                on_grid = np.zeros(shape, dtype=np.uint8)
                view.apply(on_grid)[box] = levels_of(sinks.probability, threshold)
                kept = ProbabilityLevels.of(on_grid, threshold).limited(volume.geometry.spacing_zyx, settings, found)
            mask = apply_postprocessing(mask, volume.geometry.spacing_zyx, settings, found)
            if progress is not None:
                progress("postprocess", 1, 1)

        with _timed(seconds, "record"):
            facts = describe_input(volume)
            stayed = plan.device == self.device.device
        record = RunRecord(
            input=facts,
            model=_describe_model(card),
            device={
                "requested": self.device.requested,
                "used": str(plan.device),
                "name": self.device.name if stayed else device_name(plan.device),
                "reason": self.device.reason,
                "precision": precision_name(plan.dtype),
                "engine": plan.engine,
                "batch_size": batch_size,
                "threads": torch.get_num_threads(),
                "rungs": plan.rungs,
            },
            parameters={
                "probability": probability,
                "tta": task.tta,
                "uncertainty": doubt,
                "lungs": "found" if lungs is None else "given",
                "lung_model": _describe_lung_model() if quality.engine == NETWORK else None,
                "box": [list(s.indices(n)[:2]) for s, n in zip(box, view.geometry.shape, strict=True)],
                "slices": len(task.slices),
                "preprocessing": asdict(card.preprocessing),
            },
            postprocessing=settings.to_json(),
            seconds=seconds,
            warnings=tuple(filter(None, [caution, self._precision_warning, *plan.rungs, *warnings])),
            lung_quality=quality.to_json(),
        )
        return Result(mask, maps["probability"], maps["uncertainty"], found, quality, record, kept)

    def _plan(self, task: Task) -> Plan:
        device = self.device.device
        is_gpu = device.type != "cpu"
        batch_size = self._batch_size or self._execution.batch_size(task.size, device, is_gpu, self._dtype)
        return Plan(
            device,
            self._dtype,
            batch_size,
            keep_results=is_gpu,
            is_gpu=is_gpu,
            precision=self._precision,
            engine=self._engine,
        )


def _loaded(model: LoadedModel | str | Path | None) -> LoadedModel:
    if model is not None and not isinstance(model, str | Path):
        if not isinstance(getattr(model, "network", None), torch.nn.Module) or not hasattr(model, "card"):
            raise InputError(f"The model is {type(model).__name__}; a loaded model, an id or a file is needed.")
        return model
    from ..models import ModelRegistry, load_checkpoint

    registry = ModelRegistry()
    return load_checkpoint(registry.path(registry.default() if model is None else model))


def _describe_lung_model() -> dict[str, Any]:
    entry = lung_network()
    return {"id": entry.id, "sha256": entry.sha256}


def _without_limit(
    settings: PostProcessing, asked: PostProcessing | None, located: LocatedLungs
) -> tuple[PostProcessing, str]:
    """The settings on doubtful lungs, which only a caller's own limit may cut lesions off by, and a sentence on it."""
    own = None if asked is None else asked.keep_inside_lungs_mm
    if own is None:
        what = "the whole body was searched, and no lesion was dropped for lying outside the lungs."
        settings = replace(settings, keep_inside_lungs_mm=None)
    elif not located.labels.any():
        raise InputError(f"Lesions can't be kept within {own:g} mm of the lungs: there are no lungs.")
    else:
        what = (
            "the whole body was searched; lesion outside the lungs and further than "
            f"{own:g} mm from lesion in them was dropped, as asked."
        )
    return settings, f"{located.quality.line()} Therefore {what}"


def _given_lungs(lungs: NDArray[Any] | LabelVolume | LocatedLungs, volume: Volume) -> LocatedLungs:
    if isinstance(lungs, LocatedLungs):
        volume.geometry.require_shape(lungs.labels, "lung mask")
        return lungs
    labels = _labels_of(lungs, volume)
    sides = labels if labels.max() == _LEFT else divide_lungs(labels == 1, volume.geometry)
    quality = assess_lungs(volume, labels if sides is None else sides, sided=sides is not None)
    return LocatedLungs(labels, quality)


def _labels_of(lungs: NDArray[Any] | LabelVolume, volume: Volume) -> NDArray[np.uint8]:
    if isinstance(lungs, LabelVolume):
        lungs.geometry.require_same(volume.geometry, "lung mask", "CT")
        lungs = lungs.array
    lungs = np.asarray(lungs)
    volume.geometry.require_shape(lungs, "lung mask")
    if lungs.dtype.kind not in "buif":
        raise InputError(f"The lung mask holds {lungs.dtype}; numbers or yes and no are needed.")
    if lungs.dtype.kind == "f" and not np.isfinite(lungs).all():
        raise InputError(
            "The lung mask holds NaN or infinity; 0 outside the lungs and other numbers inside are needed."
        )
    if not lungs.any():
        raise LungsNotFoundError("The given lung mask is empty; give one that marks the lungs, or none to find them.")
    with np.errstate(invalid="ignore"):
        labels = lungs.astype(np.uint8)
    if labels.max() <= _LEFT and np.array_equal(labels, lungs):
        return labels
    return (lungs != 0).astype(np.uint8)


def _require_finite(volume: Volume) -> None:
    if volume.array.dtype.kind != "f":
        return
    # slice by slice: a mask of the whole volume would be a quarter of its size again
    bad = sum(part.size - np.count_nonzero(np.isfinite(part)) for part in volume.array)
    if bad:
        raise IntensityError(
            f"{bad} voxels of the CT are NaN or infinite; Hounsfield units are needed.",
            "Replace them by -1024 (air) if they lie outside of the scan.",
        )


def _smooth(sinks: Sinks, slice_spacing: float, deviation: float, threshold: float, doubt: str | None) -> None:
    """Smooth the probability across slices, and make anew what follows from it: the mask and the entropy."""
    assert sinks.probability is not None  # noqa: S101  # asked for by the caller
    smooth_across_slices(sinks.probability, slice_spacing, deviation)
    np.greater(sinks.probability, threshold, out=sinks.mask)
    if doubt == "entropy" and sinks.uncertainty is not None:
        for plane, entropy in zip(sinks.probability, sinks.uncertainty, strict=True):
            entropy[...] = binary_entropy(torch.from_numpy(np.ascontiguousarray(plane))).numpy()


def _describe_model(card: Any) -> Mapping[str, Any]:
    return {name: getattr(card, name) for name in ("id", "name", "version", "network", "weights_sha256", "license")}


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = round(time.perf_counter() - start, 4)
