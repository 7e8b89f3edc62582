"""Data sets into the store and out of it; the check of all its files; what is done to the store itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cases.exchange import LAYOUTS
from ..worker import Reply
from .adding_page import noteReport
from .forms import chosenData, connectPath, fillCombo, showText
from .notices import Notice, attempt
from .store_client import StoreClient
from .text import _


class StoreFilesPage:
    """Fills the part of the form about import, export, check and the split.

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
        ui.moveButton.connect("clicked(bool)", self.onMove)
        for path in (ui.importPath, ui.exportPath):
            connectPath(path, self.show)
        for widget, signal in (
            (ui.moveCombo, "currentIndexChanged(int)"),
            (ui.moveReasonEdit, "textChanged(QString)"),
            (ui.moveCheck, "toggled(bool)"),
        ):
            widget.connect(signal, lambda *_ignored: self.show())
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
        self._showSplit(ready)

    def _showSplit(self, ready: bool) -> None:
        ui = self._ui
        frozen = bool(self._store.overview.get("frozen"))
        cases = self._store.cases if frozen else {}
        entries = [(case["id"], f"{case['id']}, {_sideText(case['side'])}") for case in cases.values()]
        fillCombo(ui.moveCombo, entries)
        side = cases.get(chosenData(ui.moveCombo) or "", {}).get("side", "")
        texts = {"train": _("Move to validation set"), "validation": _("Move to training set")}
        ui.moveButton.setText(texts.get(side, _("Change sides")))
        for widget in (ui.moveCombo, ui.moveReasonEdit, ui.moveCheck):
            widget.setEnabled(ready and frozen)
        wanted = bool(ui.moveReasonEdit.text.strip()) and bool(ui.moveCheck.checked)
        ui.moveButton.setEnabled(ready and bool(side) and wanted)

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

    def onMove(self, *_ignored: Any) -> None:
        """Move a patient to the other side of the split; the store keeps who did it and why."""
        ui = self._ui
        case = chosenData(ui.moveCombo)
        side = "validation" if self._store.cases[case]["side"] == "train" else "train"

        def moved(reply: Reply) -> None:
            # the next one is decided anew
            ui.moveReasonEdit.setText("")
            ui.moveCheck.setChecked(False)
            text = _("{cases}: the patient validates from now on.")
            if reply.values["side"] == "train":
                text = _("{cases}: the patient trains from now on.")
            self._note(Notice(text.format(cases=", ".join(reply.values["cases"]))))

        values = {"case": case, "side": side, "by": self._store.rater, "reason": ui.moveReasonEdit.text.strip()}
        self._ask("store_move", values, moved)

    def _ask(self, task: str, values: dict[str, Any], done: Callable[[Reply], None]) -> None:
        attempt(lambda: self._store.ask(task, values, done, shown=True), self._note)


def _sideText(side: str) -> str:
    return _("validation") if side == "validation" else _("training")
