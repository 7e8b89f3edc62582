"""The module's panel and the logic of the Python console: the only room that imports ``qt`` and ``ctk``.

Nothing of ours runs in a thread here, nothing takes longer than reading or writing one MRML node, and PyTorch is never
loaded: the worker does the work.
"""

from .logic import LesionLogic
from .module_panel import ModulePanel
from .training import TrainingLogic

__all__ = ["LesionLogic", "ModulePanel", "TrainingLogic"]
