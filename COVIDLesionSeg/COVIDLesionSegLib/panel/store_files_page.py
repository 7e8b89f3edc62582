"""Data sets into the store and out of it; the check of all its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cases.importing import LAYOUTS
from ..worker import Reply
from .adding_page import noteReport
from .forms import chosenData, showText
from .notices import Notice, attempt
from .store_client import StoreClient
from .text import _


class StoreFilesPage:
    """Fills the part of the form about import, export and check.

    Args:
        store: the store.
        ui: the form's widgets.
        note: shows a :class:`.notices.Notice`.
    """

    def __init__(self, store: StoreClient, ui: Any, note: Callable[[Notice], None]) -> None:
        self._store, self._ui, self._note = store, ui, note
        names = {
            "auto": _("Look what it is"),
            "pairs": _("Pairs of CT and mask"),
            "manifest": _("Manifest (CSV)"),
            "nnunet": _("nnU-Net data set"),
            "monai-label": _("MONAI Label data store"),
        }
        for layout in LAYOUTS:
            ui.layoutCombo.addItem(names[layout], layout)
        ui.importButton.connect("clicked(bool)", self.onImport)
        ui.exportButton.connect("clicked(bool)", self.onExport)
        ui.checkButton.connect("clicked(bool)", self.onCheck)
        for edit in (ui.importPath, ui.exportPath):
            edit.connect("currentPathChanged(QString)", lambda *_ignored: self.show())
        showText(ui.reportLabel, "")
        store.changed.connect(self.show)
        self.show()

    def close(self) -> None:
        """Listen no more."""
        self._store.changed.disconnect(self.show)

    def show(self) -> None:
        """Show what can be done."""
        ui, ready = self._ui, bool(self._store.overview) and not self._store.busy
        ui.importButton.setEnabled(ready and bool(ui.importPath.currentPath))
        ui.exportButton.setEnabled(ready and bool(ui.exportPath.currentPath))
        ui.checkButton.setEnabled(ready)
        ui.reportLabel.setVisible(bool(ui.reportLabel.text))

    def onImport(self, *_ignored: Any) -> None:
        """Take a data set in."""
        ui, label = self._ui, self._ui.importLabelEdit.text.strip()
        values: dict[str, Any] = {
            "source": ui.importPath.currentPath,
            "layout": chosenData(ui.layoutCombo),
            "rater": self._store.rater,
            "copy": bool(ui.copyCheck.checked),
            "approve": bool(ui.importApproveCheck.checked),
            "empty_is_lesion_free": bool(ui.importEmptyCheck.checked),
        }
        if label:
            values["label"] = int(label) if label.isdecimal() else label
        self._ask("store_import", values, lambda reply: noteReport(reply.values, self._note))

    def onExport(self, *_ignored: Any) -> None:
        """Write the labels for nnU-Net."""

        def written(reply: Reply) -> None:
            self._note(Notice(_("Written: {name}.").format(name=Path(reply.values["folder"]).name)))

        self._ask("store_export", {"folder": self._ui.exportPath.currentPath}, written)

    def onCheck(self, *_ignored: Any) -> None:
        """Verify everything."""

        def checked(reply: Reply) -> None:
            found = reply.values
            lines = [f"{item['where']}: {item['text']}" for item in found["findings"]]
            text = _("{cases} cases, {files} files verified in {seconds} s.").format(
                cases=found["cases"], files=found["files"], seconds=f"{found['seconds']:.1f}"
            )
            verdict = _("The store is sound.") if found["is_sound"] else _("Something is broken.")
            showText(self._ui.reportLabel, "\n".join([text, verdict, *lines]))
            self._note(Notice(f"{text} {verdict}", is_error=not found["is_sound"]))

        self._ask("store_check", {}, checked)

    def _ask(self, task: str, values: dict[str, Any], done: Callable[[Reply], None]) -> None:
        attempt(lambda: self._store.ask(task, values, done, shown=True), self._note)
