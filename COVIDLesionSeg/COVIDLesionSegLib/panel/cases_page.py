"""The page of the cases: work list, adding, review, raters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .adding_page import AddingPage
from .case_work import CaseWork
from .forms import Page, Shortcut, loadForm
from .notices import Notice
from .review_page import ReviewPage
from .session import Session
from .store_client import StoreClient
from .store_files_page import StoreFilesPage
from .text import _
from .training import TrainingLogic
from .tuning_page import TuningPage
from .work_list import WorkList

_GROUPS = ("workListButton", "addButton", "tuneButton", "reviewButton", "ratersButton", "filesButton")


class CasesPage(Page):
    """The work with the cases of a store.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
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
        note: Callable[[Notice], None],
        undo: Callable[[Any], Any],
        training: TrainingLogic | None = None,
    ) -> None:
        self._note = note
        self.form, self.ui = loadForm("Cases", scene)
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
        for button in (getattr(self.ui, name) for name in _GROUPS):
            # unfolding shows what is hidden for the moment, too
            button.connect("contentsCollapsed(bool)", lambda *_ignored: self.show())
        # corrections are saved and reviewed while another page is in view
        self.shortcuts = tuple(
            Shortcut(keys, text, action, isEverywhere=True)
            for keys, text, action in (
                ("Alt+O", _("Open the next case"), self.list.openNext),
                ("Alt+S", _("Save the case"), self.list.save),
                ("Alt+D", _("Save the case and open the next one"), self.list.saveAndNext),
                ("Alt+J", _("Next doubtful label"), self.review.jumpToNext),
                ("Alt+Y", _("The label is right"), lambda: self.review.decide("right")),
                ("Alt+X", _("The label is to be fixed"), lambda: self.review.decide("fix")),
            )
        )
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
        self.store.noted.disconnect(self._note)
        self.work.noted.disconnect(self._note)
        self.store.close()
