"""Fine-tuning in one call: from a model and corrected cases to a better model with a card that says what was done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..inference.devices import choose_device
from ..models import LoadedModel, ModelCard, ModelRegistry, load_checkpoint
from ..models.card import rewrite_card
from .config import DataSettings, TrainingConfig
from .distributed import process_group
from .log import TrainingCallback, read_log
from .trainer import Trainer

Progress = Callable[[str, int, int], None]


def fine_tune(
    base_model: str | Path,
    cases: str | Path,
    config: TrainingConfig | None = None,
    folder: str | Path = "fine-tuning",
    resume: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    callbacks: Sequence[TrainingCallback] = (),
) -> LoadedModel:
    """Go on training a model on cases, judged before and after on the frozen validation patients.

    Args:
        base_model: id or file of the model to start from.
        cases: manifest or folder, see ``learning.data.read_cases``.
        config: settings; ``data.cases``, ``network.base_model`` and ``network.name`` are set from the arguments, the
            margin around the lungs and, if none is given, ``data.resize`` from the model's card (a crop that would be
            larger than that shrinks to it). By default
            noise-robust Dice loss with adaptive self-ensembling for 300 steps at a rate of 1e-4.
        folder: of the run; holds the model (``best.safetensors``), state, log and the list of doubtful labels.
        resume: go on with an interrupted run in the folder.
        progress: called as progress(phase, done, total).
        cancelled: asked at each step.
        callbacks: who follows the training.

    Returns:
        The model that was chosen (see ``data.selection_fraction``). Its card's ``metrics`` hold the validation before
        (``base``) and after (``validation``), the curves of loss and selection, the configuration, and the hash and
        split of the data; its license is the base model's.

    Raises:
        InputError, ModelError, CancelledError, DivergedError, OutputError: see ``Trainer.run``.
    """
    base_file = base_model_file(base_model)
    base = load_checkpoint(base_file)
    config = for_base_model(config or default_config(), base.card, base_file, cases)
    folder = Path(folder)
    card = replace(
        base.card,
        id=f"{base.card.id}-tuned",
        name=f"{base.card.name}, fine-tuned",
        notes=f"Fine-tuned from {base.card.id} ({base.card.weights_sha256[:12]}). {base.card.notes}".strip(),
    )
    with process_group(choose_device(config.run.device).device) as ranks:
        trainer = Trainer(config, folder, base_folder=folder, card=card, callbacks=callbacks)
        result = trainer.run(resume=resume, progress=progress, cancelled=cancelled)
        before = trainer.judge(base.network)
        if ranks.is_main:
            tuned = load_checkpoint(result.model)
            metrics: dict[str, Any] = {**tuned.card.metrics, "base": before.to_dict(), "curves": _curves(folder)}
            rewrite_card(result.model, replace(tuned.card, metrics=metrics))
        ranks.barrier()
    return load_checkpoint(result.model)


def base_model_file(base_model: str | Path) -> Path:
    """The file of a base model that is named by its id or by the file itself; raises ModelError where there is none."""
    return Path(base_model) if Path(base_model).is_file() else ModelRegistry().path(str(base_model))


def for_base_model(config: TrainingConfig, card: ModelCard, base_file: Path, cases: str | Path) -> TrainingConfig:
    """The whole configuration of a fine-tuning: with cases, base model, and slices as its card wants them."""
    return replace(
        config,
        data=as_prepared_for(card, replace(config.data, cases=str(Path(cases).resolve()))),
        network=replace(config.network, name=card.network, arguments={}, base_model=str(base_file.resolve())),
    )


def as_prepared_for(card: ModelCard, data: DataSettings) -> DataSettings:
    """Data settings by which slices reach the network as the model's card wants them.

    A network that learned on resized slices does not know lesions at full resolution.
    """
    preprocessing = card.preprocessing
    margin, resize = preprocessing.lung_crop_margin, data.resize or preprocessing.resize or ()
    # a default crop may be larger than what this model's slices are resized to
    largest = replace(data, crop=(16, 16), resize=resize).largest_crop()
    crop = (int(min(data.crop[0], largest[0])), int(min(data.crop[1], largest[1])))
    offsets = preprocessing.slice_offsets_mm
    return replace(
        data,
        margin=-1 if margin is None else margin,
        resize=resize,
        crop=crop,
        slice_offsets_mm=offsets if len(offsets) > 1 else (),
    )


def default_config() -> TrainingConfig:
    """A few hundred steps of the noise-robust framework at the paper's rate."""
    config = TrainingConfig()
    return replace(
        config,
        optimizer=replace(config.optimizer, schedule="constant"),
        run=replace(config.run, steps=300, validation_interval=100, checkpoint_interval=50),
    )


def _curves(folder: Path) -> dict[str, list[list[float | None]]]:
    """Every tenth training loss, and all looks at the cases that choose, as [step, value] pairs."""
    entries = read_log(folder)
    steps = [[e["step"], e["student_loss"]] for e in entries if e["kind"] == "step" and e["step"] % 10 == 0]
    curves = {"loss": steps}
    for name in ("student", "teacher"):
        found = [[e["step"], e[name]["dice"]] for e in entries if e["kind"] == "selection" and name in e]
        if found:
            curves[f"{name}_dice"] = found
    return curves
