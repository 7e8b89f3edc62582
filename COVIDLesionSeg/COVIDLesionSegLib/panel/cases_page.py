"""The work with cases in the Learn tab, in its order: work list, adding, fine-tuning, review, raters, files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from .adding_page import AddingPage
from .case_work import CaseWork
from .forms import addShortcut, loadForm
from .notices import Notice
from .review_page import ReviewPage
from .session import Session
from .store_client import StoreClient
from .store_files_page import StoreFilesPage
from .training import TrainingLogic
from .tuning_page import TuningPage
from .work_list import WorkList

_GROUPS = ("workListButton", "addButton", "tuneButton", "reviewButton", "ratersButton", "filesButton")


class CasesPage:
    """Fills the Learn tab's container.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        container: an empty widget.
        note: shows a :class:`.notices.Notice`.
        undo: gives what saves the state of a segmentation before it is replaced.
        training: starts jobs; None takes one with the session's settings.

    Attributes:
        store: the store that was chosen.
        work: the case that is open.
    """

    def __init__(
        self,
        session: Session,
        scene: Any,
        container: Any,
        note: Callable[[Notice], None],
        undo: Callable[[Any], Any],
        training: TrainingLogic | None = None,
    ) -> None:
        self._note = note
        self.form, self.ui = loadForm("Cases", scene)
        layout = qt.QVBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        container.setLayout(layout)
        layout.addWidget(self.form)
        self.store = StoreClient(session)
        self.work = CaseWork(session, self.store, undo)
        self.training = training or TrainingLogic()
        self.list = WorkList(self.store, self.work, self.ui, note)
        self.adding = AddingPage(session, self.store, self.training, self.ui, note)
        self.tuning = TuningPage(session, self.store, self.training, self.ui, note)
        self.review = ReviewPage(self.store, self.work, self.ui, note)
        self.files = StoreFilesPage(self.store, self.ui, note)
        self.store.noted.connect(note)
        self.work.noted.connect(note)
        self._shortcuts: list[Any] = []
        for button in (getattr(self.ui, name) for name in _GROUPS):
            # unfolding shows what is hidden for the moment, too
            button.connect("contentsCollapsed(bool)", lambda *_ignored: self.show())
        # once the tab stands in the panel: corrections are saved while another tab is in front
        session.timer(0, self._addShortcuts)
        if self.store.folder:
            self.store.refresh()

    def show(self) -> None:
        """Show how everything stands."""
        self.list.show()
        self.adding.showJob()
        self.tuning.show()
        self.review.show()
        self.files.show()

    def close(self) -> None:
        """Keep what is not saved, and let go of everything; jobs go on."""
        self.work.close()
        for page in (self.list, self.adding, self.tuning, self.review, self.files):
            page.close()
        for shortcut in self._shortcuts:
            shortcut.setEnabled(False)
        self.store.noted.disconnect(self._note)
        self.work.noted.disconnect(self._note)
        self.store.close()

    def _addShortcuts(self) -> None:
        holder = self.form
        while holder.parentWidget() is not None and not holder.inherits("QTabWidget"):
            holder = holder.parentWidget()
        actions: dict[str, Callable[[], None]] = {
            "Alt+O": self.list.openNext,
            "Alt+S": self.list.save,
            "Alt+D": self.list.saveAndNext,
            "Alt+J": self.review.jumpToNext,
            "Alt+Y": lambda: self.review.decide("right"),
            "Alt+X": lambda: self.review.decide("fix"),
        }
        self._shortcuts = [addShortcut(keys, holder, action) for keys, action in actions.items()]
