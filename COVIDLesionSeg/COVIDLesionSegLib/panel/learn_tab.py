"""The pages of training and of the settings."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import qt

from .cases_page import CasesPage
from .forms import Page, loadForm, stacked
from .models_page import ModelsPage
from .notices import Notice
from .session import Session
from .torch_page import TorchPage


class TrainPage(Page):
    """Fine-tuning on the cases of the store that is chosen.

    Args:
        cases: the page of the cases.
    """

    def __init__(self, cases: CasesPage) -> None:
        self.form = qt.QWidget()
        stacked(self.form).addWidget(cases.ui.tuneButton)


class SettingsPage(Page):
    """Models, PyTorch, the upkeep of the case store, the list of shortcuts.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.notices.Notice`.
        cases: the page of the cases.
    """

    def __init__(self, session: Session, scene: Any, note: Callable[[Notice], None], cases: CasesPage) -> None:
        self.form, self.ui = loadForm("Settings", scene)
        self.models = ModelsPage(session, self.ui, note)
        self.torch = TorchPage(session, self.ui, note)
        stacked(self.ui.storeContainer).addWidget(cases.ui.filesButton)

    def close(self) -> None:
        """Listen no more."""
        self.models.close()
        self.torch.close()

    def showTorchPage(self) -> None:
        """Unfold the part that sets PyTorch up."""
        self.ui.torchButton.setChecked(True)
        self.ui.torchButton.setProperty("collapsed", False)

    def listShortcuts(self, rows: Sequence[tuple[str, str]]) -> None:
        """List all shortcuts of the panel: (keys, what they do)."""
        cells = "".join(
            f"<tr><td>{html.escape(keys)}&nbsp;</td><td>{html.escape(text)}</td></tr>" for keys, text in rows
        )
        self.ui.shortcutsBrowser.setHtml(f"<table>{cells}</table>")
