"""The card of a model that a training makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..models import ModelCard, Preprocessing
from .config import TrainingConfig
from .training_data import TrainingData
from .validation import Judgment


def trained_card(
    base: ModelCard | None,
    config: TrainingConfig,
    arguments: Mapping[str, Any],
    data: TrainingData,
    step: int,
    chosen: str,
    judgment: Judgment,
) -> ModelCard:
    """The card of a trained network.

    Args:
        base: what it says besides what the training knows (id, name, license, training data).
        config: of the training.
        arguments: of the network's constructor.
        data: that it was trained and judged on.
        step: after which the weights were taken.
        chosen: "student" or "teacher".
        judgment: on the validation cases.
    """
    preprocessing = Preprocessing(
        lung_crop_margin=None if config.data.margin < 0 else config.data.margin,
        resize=(config.data.resize[0], config.data.resize[1]) if config.data.resize else None,
    )
    facts = {
        "validation": judgment.to_dict(),
        "chosen": chosen,
        "step": step,
        "config": config.to_dict(),
        "data_sha256": data.sha256,
        "train_patients": sum(name == "train" for name in data.split.sets.values()),
        "validation_patients": sum(name == "validation" for name in data.split.sets.values()),
    }
    if data.noise:
        facts["label_noise"] = data.noise
    fields = asdict(base) if base is not None else {"id": "trained", "name": f"{config.network.name}, trained"}
    fields |= {
        "network": config.network.name,
        "network_arguments": arguments,
        "preprocessing": preprocessing,
        "metrics": facts,
        "weights_sha256": "",
    }
    return ModelCard(**fields)
