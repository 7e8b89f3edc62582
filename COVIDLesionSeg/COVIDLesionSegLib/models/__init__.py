"""Model cards, the registry of models, and the files that weights come in.

Names load at first use: cards and the registry work without PyTorch.
"""

from .._lazy import lazy_exports

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "LoadedModel": "checkpoints",
        "load_checkpoint": "checkpoints",
        "save_model": "checkpoints",
        "ModelCard": "card",
        "Preprocessing": "card",
        "read_card": "card",
        "ModelRegistry": "registry",
    },
)
