"""Losses, optimizers, self-ensembling, noisy-label methods, data sets and the trainer.

Names load at first use: configurations and results can be read where PyTorch is not installed.
"""

from .._lazy import lazy_exports

_HOMES = {
    "AdaptiveSelfEnsembling": "noise_robust",
    "CAResLoss": "losses",
    "CrossEntropyLoss": "losses",
    "DiceCrossEntropyLoss": "losses",
    "DiceLoss": "losses",
    "DiceMeanAbsoluteErrorLoss": "losses",
    "DataReweighting": "noise_robust",
    "EnsemblingSettings": "config",
    "FocalDiceLoss": "losses",
    "FocalLoss": "losses",
    "GeneralizedCrossEntropyLoss": "losses",
    "MeanAbsoluteErrorLoss": "losses",
    "NoiseRobustDiceLoss": "losses",
    "Ranger": "optimizers",
    "SorensenDiceLoss": "losses",
    "Trainer": "trainer",
    "TrainingCallback": "log",
    "TrainingConfig": "config",
    "TrainingResult": "trainer",
    "cross_validate": "cross_validation",
    "fine_tune": "fine_tuning",
    "mean_entropy": "pseudo_labels",
    "pseudo_label": "pseudo_labels",
    "read_cases": "data",
}
__all__ = list(_HOMES)  # one list serves both
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
