"""The work list: the store, its cases, open next, save and next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import qt

from ..cases import ORDERS, STATES, is_store
from .case_work import CaseWork
from .forms import chooseData, chosenData, connectPath, showText
from .notices import Notice, attempt, confirm
from .store_client import StoreClient
from .text import _

# the case's id in an item of the list
_ID = qt.Qt.UserRole
_ORDER, _AGAIN = "caseOrder", "caseAgain"


def stateName(state: str) -> str:
    """What a state is called."""
    names = {
        "new": _("new"),
        "predicted": _("predicted"),
        "in work": _("in work"),
        "corrected": _("corrected"),
        "approved": _("approved"),
        "excluded": _("excluded"),
    }
    return names.get(state, state)


class WorkList:
    """Fills the work list's part of the form.

    Args:
        store: the store.
        work: the case that is open.
        ui: the form's widgets.
        note: shows a :class:`.notices.Notice`.
    """

    def __init__(self, store: StoreClient, work: CaseWork, ui: Any, note: Callable[[Notice], None]) -> None:
        self._store, self._work, self._ui, self._note = store, work, ui, note
        self._rows: list[tuple[str, str]] = []
        ui.stateCombo.addItem(_("All cases"), "")
        for state in STATES:
            ui.stateCombo.addItem(stateName(state).capitalize(), state)
        orders = {
            "uncertainty": _("Most uncertain first"),
            "disagreement": _("Most disputed first"),
            "lesion-size": _("Largest lesion first"),
            "age": _("Oldest first"),
            "random": _("Random order"),
        }
        for order in ORDERS:
            ui.orderCombo.addItem(orders.get(order, order), order)
        chooseData(ui.orderCombo, store.setting(_ORDER) or next(iter(ORDERS)))
        ui.againCheck.setChecked(store.setting(_AGAIN) == "1")
        ui.raterEdit.setText(store.rater)
        ui.storePath.setProperty("currentPath", store.folder)
        self._connect()
        self.show()

    def _connect(self) -> None:
        ui = self._ui
        connectPath(ui.storePath, self._onPath)
        ui.raterEdit.connect("editingFinished()", self._onRater)
        ui.createButton.connect("clicked(bool)", self._doer(self._create))
        ui.refreshButton.connect("clicked(bool)", self._doer(self._store.refresh))
        ui.storeCancelButton.connect("clicked(bool)", self._doer(self._store.cancel))
        ui.stateCombo.connect("currentIndexChanged(int)", lambda *_ignored: self._showCases())
        ui.orderCombo.connect("currentIndexChanged(int)", self._onOrder)
        ui.againCheck.connect("toggled(bool)", self._onOrder)
        ui.caseList.connect("currentRowChanged(int)", lambda *_ignored: self._showButtons())
        ui.caseList.connect("itemActivated(QListWidgetItem*)", lambda *_ignored: self.openChosen())
        ui.nextButton.connect("clicked(bool)", lambda *_ignored: self.openNext())
        ui.openButton.connect("clicked(bool)", lambda *_ignored: self.openChosen())
        ui.takeOverButton.connect("clicked(bool)", lambda *_ignored: self.takeOver())
        ui.saveButton.connect("clicked(bool)", lambda *_ignored: self.save())
        ui.saveNextButton.connect("clicked(bool)", lambda *_ignored: self.saveAndNext())
        ui.noLesionButton.connect("clicked(bool)", lambda *_ignored: self.save(noLesion=True))
        ui.asideButton.connect("clicked(bool)", self._doer(self._work.putAside))
        ui.caseCancelButton.connect("clicked(bool)", self._doer(self._work.cancelPrediction))
        ui.restartButton.connect("clicked(bool)", self._doer(self._work.startAgain))
        ui.approveButton.connect("clicked(bool)", lambda *_ignored: self._approve())
        ui.noteButton.connect(
            "clicked(bool)", lambda *_ignored: self._act(self._subject(), "note", _("The note of {case} is kept."))
        )
        ui.excludeButton.connect("clicked(bool)", lambda *_ignored: self._exclude())
        self._store.changed.connect(self.show)
        self._work.changed.connect(self.show)

    def close(self) -> None:
        """Listen no more."""
        self._store.changed.disconnect(self.show)
        self._work.changed.disconnect(self.show)

    # ---- the store --------------------------------------------------------------------------------------------------

    def _onPath(self) -> None:
        path = self._ui.storePath.currentPath
        if path != self._store.folder and (not path or is_store(path)):
            self._doer(lambda: self._choose(path))()
        self._showStore()

    def _choose(self, path: str) -> None:
        """Put the open case aside, then work on another store."""

        def choose() -> None:
            self._store.choose(path)
            self._ui.storePath.setProperty("currentPath", path)

        try:
            self._work.putAside(choose)
        finally:
            if self._store.folder != path:
                # not yet, or not at all
                self._ui.storePath.setProperty("currentPath", self._store.folder)

    def _create(self) -> None:
        path = self._ui.storePath.currentPath
        self._work.requireRest()
        self._store.create(path, self._doer(lambda: self._choose(path)))

    def _onRater(self, *_ignored: Any) -> None:
        name = self._ui.raterEdit.text
        if name == self._store.rater:
            return

        def change() -> None:
            self._store.rater = name
            self._ui.raterEdit.setText(name)
            self._store.refresh()

        # a case belongs to the one who has opened it
        self._ui.raterEdit.setText(self._store.rater)
        self._doer(lambda: self._work.putAside(change))()

    def _onOrder(self, *_ignored: Any) -> None:
        self._store.setting(_ORDER, chosenData(self._ui.orderCombo))
        self._store.setting(_AGAIN, "1" if self._ui.againCheck.checked else "0")

    # ---- opening and saving -----------------------------------------------------------------------------------------

    @property
    def chosen(self) -> str:
        """Id of the case that is chosen in the list, or ""."""
        item = self._ui.caseList.currentItem()
        return "" if item is None else str(item.data(_ID))

    def openNext(self) -> None:
        """Open the case that comes next."""
        states = ["new", "predicted"] + (["corrected", "approved"] if self._ui.againCheck.checked else [])
        self._doer(lambda: self._work.openNext(str(chosenData(self._ui.orderCombo)), states))()

    def openChosen(self, takeOver: bool = False) -> None:
        """Open the case that is chosen in the list."""
        chosen = self.chosen
        if chosen:
            self._doer(lambda: self._work.openCase(chosen, takeOver))()

    def takeOver(self) -> None:
        """Open the chosen case though somebody else has it open, if that is wanted."""
        lock = str(self._store.cases.get(self.chosen, {}).get("lock") or "")
        text = _("{case} is open elsewhere ({lock}); who works there can't go on with it, but can save.")
        if lock and confirm(text.format(case=self.chosen, lock=lock), _("Take it over?")):
            self.openChosen(takeOver=True)

    def save(self, noLesion: bool = False) -> None:
        """Save the lesions; the case stays open."""
        self._doer(lambda: self._work.save(noLesion=noLesion))()

    def saveAndNext(self) -> None:
        """Save the lesions and open the case that comes next."""
        self._doer(lambda: self._work.save(close=True, then=self.openNext))()

    def _approve(self) -> None:
        case = self._subject()
        if case == self._work.caseId and self._work.isEdited:
            self._note(Notice(_("There are unsaved edits. Save them first, then approve."), is_error=True))
            return
        self._act(case, "approve", _("{case} is approved."))

    def _exclude(self) -> None:
        case = self._subject()
        if self._store.cases.get(case, {}).get("state") == "excluded":
            self._act(case, "include", _("{case} is re-included."))
            return
        if not self._ui.noteEdit.text.strip():
            self._note(Notice(_("Say in the note why the case is excluded, e.g. motion artifacts."), is_error=True))
            return

        def exclude() -> None:
            self._act(case, "exclude", _("{case} is excluded."))

        if case == self._work.caseId:
            self._doer(lambda: self._work.putAside(exclude))()
        else:
            exclude()

    def _act(self, case: str, act: str, said: str) -> None:
        values = {"case": case, "act": act, "text": self._ui.noteEdit.text, "by": self._store.rater}
        self._doer(lambda: self._store.ask("case_act", values, lambda _r: self._note(Notice(said.format(case=case)))))()

    def _subject(self) -> str:
        """The chosen case, else the open one."""
        return self.chosen or self._work.caseId

    def _doer(self, action: Callable[[], Any]) -> Callable[..., None]:
        """A slot that shows the error of what it does."""

        def do(*_ignored: Any) -> None:
            attempt(action, self._note)

        return do

    # ---- showing ----------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Show how the store and the open case stand."""
        self._showStore()
        self._showCases()
        self._showCase()
        self._showButtons()

    def _showStore(self) -> None:
        ui, store = self._ui, self._store
        path = ui.storePath.currentPath
        if not store.busy and path == store.folder:
            ui.createButton.setVisible(False)
        else:
            ui.createButton.setVisible(bool(path) and not is_store(path))
        ui.createButton.setEnabled(bool(path) and _mayBecomeStore(path))
        counts: Mapping[str, int] = store.overview.get("counts", {})
        done = counts.get("corrected", 0) + counts.get("approved", 0)
        total = sum(counts.values()) - counts.get("excluded", 0)
        ui.workProgress.setVisible(total > 0)
        ui.workProgress.setRange(0, max(total, 1))
        ui.workProgress.setValue(done)
        ui.workProgress.setFormat(_("{done} of {total} corrected").format(done=done, total=total))
        text = ", ".join(f"{counts[state]} {stateName(state)}" for state in STATES if counts.get(state))
        if store.progress is not None:
            text = store.progress.message or store.progress.phase.capitalize()
        elif not store.folder:
            text = _("Choose the folder of a case store, or an empty one to make a new store in.")
        elif not store.overview:
            text = _("Looking into the store...")
        elif not counts:
            text = _("No case yet. Add some below.")
        showText(ui.storeState, text)
        ui.storeProgress.setVisible(store.busy)
        ui.storeCancelButton.setVisible(store.busy)
        known = store.progress is not None and store.progress.total > 1
        ui.storeProgress.setRange(0, 1000 if known else 0)
        if store.progress is not None and known:
            ui.storeProgress.setValue(round(1000 * store.progress.done / store.progress.total))

    def _showCases(self) -> None:
        ui, wanted = self._ui, chosenData(self._ui.stateCombo)
        rows = [(c["id"], _caseText(c)) for c in self._store.cases.values() if not wanted or c["state"] == wanted]
        if rows == self._rows:
            return
        before = self.chosen
        blocked = ui.caseList.blockSignals(True)
        ui.caseList.clear()
        for case, text in rows:
            item = qt.QListWidgetItem(text)
            item.setData(_ID, case)
            ui.caseList.addItem(item)
        ids = [case for case, _text in rows]
        ui.caseList.setCurrentRow(ids.index(before) if before in ids else -1)
        ui.caseList.blockSignals(blocked)
        self._rows = rows

    def _showCase(self) -> None:
        ui, work = self._ui, self._work
        texts = {
            "": "",
            "opening": _("Opening..."),
            "showing": _("Showing {case}...").format(case=work.caseId),
            "saving": _("Saving {case}...").format(case=work.caseId),
            "closing": _("Closing {case}...").format(case=work.caseId),
        }
        if work.state == "predicting":
            phase = work.progress.message or work.progress.phase.capitalize() if work.progress is not None else ""
            text = " ".join(filter(None, [_("{case}: the model answers first.").format(case=work.caseId), phase]))
        elif work.state == "open":
            edited = _("edited") if work.isEdited else _("not edited")
            text = _("{case} is open, from {start}; {edited}.").format(
                case=work.caseId, start=work.startFrom, edited=edited
            )
            if work.model:
                text += " " + _("Answer by {model}.").format(model=work.model)
            if work.reason:
                text += " " + work.reason
            if work.case.get("fix"):
                slices = ", ".join(map(str, work.case["fix"]))
                text += " " + _("To be fixed: slices {slices}.").format(slices=slices)
        else:
            text = texts[work.state]
        showText(ui.caseLabel, text)
        predicting = work.state == "predicting"
        ui.caseProgress.setVisible(predicting)
        ui.caseCancelButton.setVisible(predicting)
        fraction = work.progress.fraction if work.progress is not None else None
        ui.caseProgress.setRange(0, 0 if fraction is None else 1000)
        if fraction is not None:
            ui.caseProgress.setValue(round(1000 * fraction))
        ui.restartButton.setVisible(work.state == "open" and bool(work.recovered))

    def _showButtons(self) -> None:
        ui, work, chosen = self._ui, self._work, self._store.cases.get(self.chosen)
        ready = bool(self._store.folder) and work.state in ("", "open")
        ui.nextButton.setEnabled(ready)
        ui.openButton.setEnabled(ready and chosen is not None and chosen["id"] != work.caseId)
        elsewhere = chosen is not None and bool(chosen["lock"]) and chosen["id"] != work.caseId
        ui.takeOverButton.setEnabled(ready and elsewhere)
        for button in (ui.saveButton, ui.saveNextButton, ui.noLesionButton, ui.asideButton):
            button.setEnabled(work.state == "open")
        subject = self._store.cases.get(self._subject())
        ui.approveButton.setEnabled(subject is not None and bool(subject["raters"]))
        ui.noteButton.setEnabled(subject is not None)
        ui.excludeButton.setEnabled(subject is not None and work.state in ("", "open"))
        excluded = subject is not None and subject["state"] == "excluded"
        ui.excludeButton.setText(_("Re-include") if excluded else _("Exclude"))


def _caseText(case: Mapping[str, Any]) -> str:
    parts = [case["id"], stateName(case["state"])]
    if case["lesion_free"]:
        parts.append(_("no lesion"))
    elif case["lesion_ml"] is not None:
        parts.append(f"{case['lesion_ml']:.1f} mL")
    entropy = case["uncertainty"].get("tta_entropy")
    if entropy is not None:
        parts.append(_("{entropy} bit").format(entropy=f"{entropy:.2f}"))
    if case["side"] == "validation":
        parts.append(_("validation, to be read blind") if case["read_blind"] else _("validation"))
    remarks = [*case["raters"]]
    if case["unsaved"]:
        remarks.append(_("unsaved: {raters}").format(raters=", ".join(case["unsaved"])))
    if case["lock"] and not case["abandoned"]:
        remarks.append(_("open: {lock}").format(lock=case["lock"].split(" since ")[0]))
    remarks += [text for text in (case["exclusion"], case["note"]) if text]
    return "   ".join(parts) + ("\n    " + "; ".join(remarks) if remarks else "")


def _mayBecomeStore(path: str) -> bool:
    folder = Path(path)
    try:
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError:
        return False
