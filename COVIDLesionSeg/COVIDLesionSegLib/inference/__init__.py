"""From a CT to lesions: the predictor, its device, post-processing, and the record of a run.

Names load at first use: post-processing and the run record work without PyTorch.
"""

from .._lazy import lazy_exports

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "PostProcessing": "postprocess",
        "Predictor": "predictor",
        "ProbabilityLevels": "levels",
        "Result": "predictor",
        "RunRecord": "record",
        "apply_postprocessing": "postprocess",
        "describe_devices": "devices",
    },
)
