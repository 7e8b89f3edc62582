"""Every figure that is shown: masks against a reference, lesions without one, change over time, raters, cohorts."""

from .cohort import compare_models, summarize, volume_group
from .evaluation import QUANTITIES, evaluate
from .lesions import detect_lesions
from .live import LiveEvaluation
from .longitudinal import compare_timepoints
from .overlap import (
    ERROR_LABELS,
    confusion_counts,
    dice,
    error_map,
    error_overlay,
    precision,
    relative_volume_error,
    sensitivity,
    specificity,
    volume_ml,
)
from .quantification import quantify
from .raters import fleiss_kappa, majority_vote, pairwise_agreement, rater_agreement, staple
from .slices import enhanced_alignment_measure, mean_absolute_error, slice_scores, structure_measure
from .surface import (
    HD95_VARIANTS,
    average_surface_distance,
    hausdorff_distance,
    hausdorff_distance_95,
    normalized_surface_dice,
)

__all__ = [
    "ERROR_LABELS",
    "HD95_VARIANTS",
    "QUANTITIES",
    "LiveEvaluation",
    "average_surface_distance",
    "compare_models",
    "compare_timepoints",
    "confusion_counts",
    "detect_lesions",
    "dice",
    "enhanced_alignment_measure",
    "error_map",
    "error_overlay",
    "evaluate",
    "fleiss_kappa",
    "hausdorff_distance",
    "hausdorff_distance_95",
    "majority_vote",
    "mean_absolute_error",
    "normalized_surface_dice",
    "pairwise_agreement",
    "precision",
    "quantify",
    "rater_agreement",
    "relative_volume_error",
    "sensitivity",
    "slice_scores",
    "specificity",
    "staple",
    "structure_measure",
    "summarize",
    "volume_group",
    "volume_ml",
]
