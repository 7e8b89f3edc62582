"""The tab of the models and of PyTorch; the work with cases has its own place in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .cases_page import CasesPage
from .forms import loadForm
from .models_page import ModelsPage
from .notices import Notice
from .session import Session
from .torch_page import TorchPage


class LearnTab:
    """Cases, models, PyTorch.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.notices.Notice`.
        undo: gives what saves the state of a segmentation before it is replaced.

    Attributes:
        cases: the work with cases.
    """

    def __init__(
        self, session: Session, scene: Any, note: Callable[[Notice], None], undo: Callable[[Any], Any]
    ) -> None:
        self.form, self.ui = loadForm("Learn", scene)
        self.cases = CasesPage(session, scene, self.ui.casesContainer, note, undo)
        self.models = ModelsPage(session, self.ui, note)
        self.torch = TorchPage(session, self.ui, note)

    def close(self) -> None:
        """Listen no more."""
        self.cases.close()
        self.models.close()
        self.torch.close()

    def showTorchPage(self) -> None:
        """Unfold the page that sets PyTorch up."""
        self.ui.torchButton.setChecked(True)
        self.ui.torchButton.setProperty("collapsed", False)
