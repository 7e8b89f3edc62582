"""The models: what is here, under which terms; verify, fetch, take in, remove."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt

from ..errors import COVIDLesionSegError
from ..models.catalog import AVAILABLE, BUNDLED, DAMAGED, ModelEntry
from ..worker import Progress, Reply, Request, WorkerError
from .forms import connectPath, showText
from .model_text import cardHtml, statusText
from .notices import Notice, confirm, noticeOf
from .session import Session
from .text import _

# the entry's id in an item of the list
_ID = qt.Qt.UserRole


class ModelsPage:
    """Fills the models' part of the Learn tab.

    Whatever takes time, or needs the network or PyTorch, is done by a worker on this computer, for these are its
    models; one that works behind a prefix is sent what it has not got.

    Args:
        session: shared by all panels.
        ui: the form's widgets.
        note: shows a :class:`.notices.Notice`.
    """

    def __init__(self, session: Session, ui: Any, note: Callable[[Notice], None]) -> None:
        self._session, self._ui, self._note = session, ui, note
        self._entries: dict[str, ModelEntry] = {}
        self._request: Request | None = None
        ui.modelList.connect("currentRowChanged(int)", lambda *_ignored: self._showEntry())
        ui.verifyButton.connect("clicked(bool)", lambda *_ignored: self._ask("verify_model"))
        ui.downloadButton.connect("clicked(bool)", lambda *_ignored: self._ask("download_model"))
        ui.importButton.connect("clicked(bool)", self.onImport)
        ui.removeButton.connect("clicked(bool)", self.onRemove)
        ui.defaultButton.connect("clicked(bool)", self.onDefault)
        ui.modelCancelButton.connect("clicked(bool)", self.onCancel)
        connectPath(ui.importEdit, self._showBusy)
        session.modelsChanged.connect(self.showModels)
        self.showModels()
        self._showBusy()

    def close(self) -> None:
        """Listen no more."""
        self._session.modelsChanged.disconnect(self.showModels)

    @property
    def chosen(self) -> str:
        """Id of the chosen model, or ""."""
        item = self._ui.modelList.currentItem()
        return "" if item is None else str(item.data(_ID))

    def showModels(self) -> None:
        """List all models."""
        before, widget = self.chosen, self._ui.modelList
        try:
            self._entries = {entry.id: entry for entry in self._session.registry.list()}
        except COVIDLesionSegError as error:
            self._note(noticeOf(error))
            return
        blocked = widget.blockSignals(True)
        widget.clear()
        for entry in self._entries.values():
            mark = _(", taken by default") if entry.is_default else ""
            item = qt.QListWidgetItem(f"{entry.name}\n{statusText(entry)}{mark}")
            item.setData(_ID, entry.id)
            widget.addItem(item)
        widget.setCurrentRow(max(list(self._entries).index(before) if before in self._entries else 0, 0))
        widget.blockSignals(blocked)
        self._showEntry()

    def _showEntry(self) -> None:
        entry = self._entries.get(self.chosen)
        self._ui.modelBrowser.setHtml("" if entry is None else cardHtml(entry))
        self._showBusy()

    def _showBusy(self) -> None:
        ui, entry, busy = self._ui, self._entries.get(self.chosen), self._request is not None
        usable = entry is not None and entry.is_usable
        ui.verifyButton.setEnabled(usable and not busy)
        ui.defaultButton.setEnabled(entry is not None and usable and not busy and not entry.is_default)
        ui.downloadButton.setEnabled(entry is not None and entry.status == AVAILABLE and not busy)
        here = entry is not None and entry.status != BUNDLED and (usable or entry.status == DAMAGED)
        ui.removeButton.setEnabled(here and not busy)
        ui.importButton.setEnabled(bool(ui.importEdit.currentPath) and not busy)
        ui.modelProgress.setVisible(busy)
        ui.modelCancelButton.setVisible(busy)
        if not busy:
            showText(ui.modelState, "")

    # ---- what takes time ----------------------------------------------------------------------------------------

    def onImport(self, *_ignored: Any) -> None:
        """Check a file and take it in."""
        ui = self._ui
        self._ask("import_model", {"file": ui.importEdit.currentPath, "model": ui.importIdEdit.text.strip() or None})

    def _ask(self, task: str, parameters: Mapping[str, Any] | None = None) -> None:
        if self._request is not None:
            return
        self._ui.modelProgress.setRange(0, 0)
        self._request = self._session.clientHere().request(
            task,
            {"model": self.chosen} if parameters is None else parameters,
            progress=self._onProgress,
            finished=lambda reply: self._onDone(task, reply),
            failed=self._onFailed,
        )
        self._showBusy()

    def onCancel(self, *_ignored: Any) -> None:
        """Stop what is on."""
        if self._request is not None:
            self._request.cancel()

    def _onProgress(self, progress: Progress) -> None:
        known = progress.total > 1
        self._ui.modelProgress.setRange(0, 1000 if known else 0)
        if known:
            self._ui.modelProgress.setValue(round(1000 * progress.done / progress.total))
        showText(self._ui.modelState, progress.message or progress.phase.capitalize())

    def _onDone(self, task: str, reply: Reply) -> None:
        self._request = None
        text = {
            "verify_model": _("{model} is as it should be (weights {hash})."),
            "download_model": _("{model} was fetched (weights {hash})."),
            "import_model": _("{model} was imported (weights {hash})."),
        }[task]
        card = reply.values["card"]
        self._note(Notice(text.format(model=card["id"], hash=card["weights_sha256"][:12])))
        self._session.modelsChanged.emit()
        self._showBusy()

    def _onFailed(self, error: WorkerError) -> None:
        self._request = None
        self._note(noticeOf(error))
        self._session.modelsChanged.emit()
        self._showBusy()

    # ---- what does not ------------------------------------------------------------------------------------------

    def onRemove(self, *_ignored: Any) -> None:
        """Delete the chosen model's file, if that is wanted."""
        model = self.chosen
        text = _("The file of {model} is deleted from this computer; no other copy is kept.").format(model=model)
        if not confirm(text, _("Remove it?")):
            return
        self._change(lambda: self._session.registry.remove(model), _("{model} was removed.").format(model=model))

    def onDefault(self, *_ignored: Any) -> None:
        """Take the chosen model where none is named."""
        model = self.chosen
        text = _("{model} is taken by default now.").format(model=model)
        self._change(lambda: self._session.registry.set_default(model), text)

    def _change(self, action: Callable[[], None], text: str) -> None:
        try:
            action()
        except COVIDLesionSegError as error:
            self._note(noticeOf(error))
        else:
            self._note(Notice(text))
        self._session.modelsChanged.emit()
