"""The page Cases: the store, its work list, CTs that come into it, and labels that look doubtful."""

from __future__ import annotations

import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import mrml
from ..cases import ORDERS, STATES, is_store
from ..worker.job_tasks import PREDICT
from ..worker.jobs import JobStatus
from ..worker.protocol import geometry_to_json
from .case import CaseWork
from .forms import (
    DOUBLE_CLICK_S,
    Page,
    Shortcut,
    addEntry,
    chooseData,
    chosenData,
    chosenKey,
    connectPath,
    fillList,
    loadForm,
    showProgress,
    showText,
)
from .messages import Notice, attempt, confirm, noticeOf
from .store_client import StoreClient
from .task import Task, Tasks, turn
from .text import _, number_text, table_html
from .training import JobWatch, TrainingLogic, endOf, jobText

if TYPE_CHECKING:
    from collections.abc import Callable

    from .session import Session


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


class CasesPage(Page):
    """Chooses a store and a case; what is done with a case that is open is on the page Correct.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.messages.Notice`.
        store: the store.
        work: the case that is open.
        training: starts the jobs.
    """

    def __init__(
        self,
        session: Session,
        scene: Any,
        note: Callable[[Notice], None],
        store: StoreClient,
        work: CaseWork,
        training: TrainingLogic,
    ) -> None:
        self._store, self._work, self._training, self._note = store, work, training, note
        self._tasks = Tasks(session.timer, lambda error: note(noticeOf(error)))
        self.watch = JobWatch(session)
        self._folder = ""
        self._isReading = False
        # doubtful labels as they are listed; the one that was clicked last, and when
        self._items: list[Mapping[str, Any]] = []
        self._jumped = "", 0.0
        self._jumping: Task | None = None
        self._decided = ""
        self._agreement = ""
        self.form, self.ui = loadForm("Cases", scene)
        self._fill()
        self._connect()
        self._addEntries()
        # a label is decided where it is looked at, on the page Correct
        self.shortcuts = (
            Shortcut("Alt+J", _("Next doubtful label"), self.jumpToNext, isEverywhere=True),
            Shortcut("Alt+Y", _("The label is right"), lambda: self.decide("right"), isEverywhere=True),
            Shortcut("Alt+X", _("The label is to be fixed"), lambda: self.decide("fix"), isEverywhere=True),
        )
        if store.folder:
            store.refresh()
        self.show()

    def _fill(self) -> None:
        ui, store = self.ui, self._store
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
        chooseData(ui.orderCombo, store.order)
        ui.secondReadingCheck.setChecked(store.secondReading)
        ui.readerEdit.setText(store.reader)
        ui.storePath.setProperty("currentPath", store.folder)

    def _connect(self) -> None:
        ui = self.ui
        connectPath(ui.storePath, self._onPath)
        connectPath(ui.addPath, self.show)
        ui.readerEdit.connect("editingFinished()", self.onReader)
        ui.noteEdit.connect("returnPressed()", lambda: self._act("note", _("The note of {case} is saved.")))
        ui.stateCombo.connect("currentIndexChanged(int)", lambda *_ignored: self.show())
        ui.orderCombo.connect("currentIndexChanged(int)", self._onOrder)
        ui.secondReadingCheck.connect("toggled(bool)", self._onOrder)
        ui.decidedCheck.connect("toggled(bool)", lambda *_ignored: self.show())
        for widget in (ui.caseList, ui.reviewList):
            widget.connect("currentRowChanged(int)", lambda *_ignored: self._showButtons())
        ui.caseList.connect("itemActivated(QListWidgetItem*)", lambda *_ignored: self.openChosen())
        # a double click is a click, and activates the item as the return key does
        for signal in ("itemClicked(QListWidgetItem*)", "itemActivated(QListWidgetItem*)"):
            ui.reviewList.connect(signal, lambda *_ignored: self._onItem())
        for button, action in (
            (ui.createButton, lambda: self._start(self._create())),
            (ui.openNextButton, lambda: self._start(self._work.openNext())),
            (ui.addSceneButton, lambda: self._start(self._addScene())),
            (ui.addFolderButton, lambda: self._start(self._addFolder())),
            (ui.predictButton, self.onPredict),
            (ui.storeCancelButton, self.onCancel),
            (ui.rightButton, lambda: self.decide("right")),
            (ui.fixButton, lambda: self.decide("fix")),
        ):
            button.connect("clicked(bool)", lambda *_ignored, action=action: action())
        self._store.changed.connect(self.show)
        self._work.changed.connect(self.show)
        self.watch.changed.connect(self.show)
        self.watch.ended.connect(self._onPredicted)

    def _addEntries(self) -> None:
        entries = {
            "open": (_("Open"), _("Open the chosen case."), self.openChosen),
            "takeOver": (
                _("Take over"),
                _("Open the chosen case although somebody else has it open."),
                self.takeOver,
            ),
            "note": (
                _("Save the note"),
                _("Save the note with the chosen case."),
                lambda: self._act("note", _("The note of {case} is saved.")),
            ),
            "approve": (_("Approve"), _("Approve the last revision of the case."), self._approve),
            "exclude": (_("Exclude"), _("Leave the case out; the note says why."), self._exclude),
            "agreement": (
                _("Compare the readers"),
                _("Dice and HD95 of every two readers of a case, and of each with the model."),
                lambda: self._start(self._compare()),
            ),
            "consensus": (
                _("Train with the consensus"),
                _("Find the consensus (STAPLE) of the case's readers and train with it."),
                lambda: self._start(self._makeConsensus()),
            ),
            "latest": (
                _("Train with the last revision"),
                _("Train with the approved revision, else the last one."),
                lambda: self._start(self._store.ask("case_act", self._actOf("label", "latest"))),
            ),
            "refresh": (
                _("Refresh"),
                _("Look into the store again, e.g. for what others have done."),
                self._store.refresh,
            ),
        }
        self.entries = {name: addEntry(self.ui.caseList, *entry) for name, entry in entries.items()}
        for entry in self.entries.values():
            self.ui.caseActionsButton.addAction(entry)

    def close(self) -> None:
        """Listen no more; a job goes on."""
        self._store.changed.disconnect(self.show)
        self._work.changed.disconnect(self.show)
        self._tasks.close()
        self.watch.stop()

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks.start(work)

    # ---- the store --------------------------------------------------------------------------------------------------

    def _onPath(self) -> None:
        path = self.ui.storePath.currentPath
        if path != self._store.folder and (not path or is_store(path)):
            self._start(self._choose(path))
        self.show()

    async def _choose(self, path: str) -> None:
        """Put the open case aside, then work on another store."""
        try:
            await self._work.putAside()
            self._store.choose(path)
        finally:
            self.ui.storePath.setProperty("currentPath", self._store.folder)

    async def _create(self) -> None:
        path = self.ui.storePath.currentPath
        self._work.requireRest()
        await self._store.create(path)
        self._note(Notice(_("An empty store was made. Add cases to it below.")))
        await self._choose(path)

    def onReader(self, *_ignored: Any) -> None:
        """Another reader works here: the case that is open belongs to the one who has opened it."""
        name = self.ui.readerEdit.text
        self.ui.readerEdit.setText(self._store.reader)
        if name != self._store.reader:
            self._start(self._changeReader(name))

    async def _changeReader(self, name: str) -> None:
        await self._work.putAside()
        self._store.reader = name
        self.ui.readerEdit.setText(self._store.reader)
        self._store.refresh()

    def _onOrder(self, *_ignored: Any) -> None:
        self._store.order = chosenData(self.ui.orderCombo)
        self._store.secondReading = bool(self.ui.secondReadingCheck.checked)

    # ---- the work list ----------------------------------------------------------------------------------------------

    @property
    def chosen(self) -> str:
        """Id of the case that is chosen in the list, or ""."""
        return chosenKey(self.ui.caseList)

    def openChosen(self, takeOver: bool = False) -> None:
        """Open the case that is chosen in the list."""
        if self.chosen:
            self._start(self._work.openCase(self.chosen, takeOver))

    def takeOver(self) -> None:
        """Open the chosen case though somebody else has it open, if that is wanted."""
        lock = str(self._store.cases.get(self.chosen, {}).get("lock") or "")
        text = _("{case} is open elsewhere ({lock}); who works there can't go on with it, but can save.")
        if lock and confirm(text.format(case=self.chosen, lock=lock), _("Take it over?")):
            self.openChosen(takeOver=True)

    def _subject(self) -> str:
        """The chosen case, else the open one."""
        return self.chosen or self._work.caseId

    def _approve(self) -> None:
        if self._subject() == self._work.caseId and self._work.isEdited:
            self._note(Notice(_("There are unsaved edits. Save them first, then approve."), is_error=True))
        else:
            self._act("approve", _("{case} is approved."))

    def _exclude(self) -> None:
        case = self._subject()
        if self._store.cases.get(case, {}).get("state") == "excluded":
            self._act("include", _("{case} is re-included."))
        elif not self.ui.noteEdit.text.strip():
            self._note(Notice(_("Say in the note why the case is excluded, e.g. motion artifacts."), is_error=True))
        else:
            self._act("exclude", _("{case} is excluded."))

    def _act(self, act: str, said: str) -> None:
        self._start(self._doAct(self._actOf(act, self.ui.noteEdit.text), said))

    def _actOf(self, act: str, text: str) -> dict[str, str]:
        return {"case": self._subject(), "act": act, "text": text, "by": self._store.reader}

    async def _doAct(self, values: Mapping[str, str], said: str) -> None:
        if values["act"] == "exclude" and values["case"] == self._work.caseId:
            await self._work.putAside()
        await self._store.ask("case_act", values)
        self._note(Notice(said.format(case=values["case"])))

    async def _compare(self) -> None:
        """Compare the readers of all cases."""
        found = (await self._store.askLong("store_agreement", {})).values
        self._agreement = _agreementHtml(found["rows"], found["summary"])
        self.ui.agreementBrowser.setHtml(self._agreement)
        self.show()

    async def _makeConsensus(self) -> None:
        case = self.chosen
        made = (await self._store.askLong("case_consensus", {"cases": [case]})).values["made"]
        text = _("The consensus of {case} ({volume}) trains from now on.")
        self._note(Notice(text.format(case=case, volume=f"{made[case]:.1f} mL")))

    # ---- cases come in ----------------------------------------------------------------------------------------------

    async def _addScene(self) -> None:
        """Put the chosen CT into the store, with its lungs and the AI result."""
        self._isReading = True
        self.show()
        try:
            values, arrays = await self._readScene()
        finally:
            self._isReading = False
            self.show()
        noteReport((await self._store.askLong("case_add", values, arrays)).values, self._note)

    async def _readScene(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is sent of the scene, read piece by piece."""
        parameters = mrml.moduleParameters()
        volumeNode, lesions = parameters.inputVolume, parameters.lesionSegmentation
        volume = mrml.volumeFromNode(volumeNode, check=False)
        values: dict[str, Any] = {"name": "CT", "geometry": geometry_to_json(volume.geometry)}
        arrays: dict[str, Any] = {"volume": volume.array}
        patient = self.ui.patientEdit.text.strip() or mrml.patientOf(volumeNode)
        if patient:
            values["patient"] = patient
        await turn()
        lungs = mrml.resultsOn(volumeNode, "lungs")
        if lungs:
            arrays["lungs"] = mrml.lungsFromSegmentation(lungs[-1], volumeNode)
        await turn()
        record = None
        if lesions is not None and mrml.volumeOf(lesions) is volumeNode and mrml.hasPrediction(lesions):
            record = mrml.recordOf(lesions)
        if record is not None:
            values["record"] = record.to_json()
            arrays["answer"] = mrml.predictionMask(lesions, volumeNode).view(np.uint8)
            levels = mrml.levelsOf(lesions, volumeNode)
            if levels is not None:
                arrays["levels"], values["levels"] = levels.levels, levels.described()
                # the AI result is the model's, whatever threshold it is drawn at now
                values["record"]["postprocessing"]["threshold"] = levels.threshold
        return values, arrays

    async def _addFolder(self) -> None:
        """Put all CTs of a folder into the store."""
        values = {"folder": self.ui.addPath.currentPath, "copy": bool(self.ui.copyCheck.checked)}
        noteReport((await self._store.askLong("store_add", values)).values, self._note)

    def onPredict(self) -> None:
        """Run the store's active model on the waiting cases, as a job."""
        device, folder = mrml.moduleParameters().device, self._store.folder
        attempt(lambda: self.watch.follow(self._training.predict(folder, device=device)), self._note)

    def onCancel(self) -> None:
        """Stop what is shown."""
        if self._store.busy:
            self._store.cancel()
        elif self.watch.job is not None:
            attempt(self.watch.job.cancel, self._note)

    def _onPredicted(self, status: JobStatus) -> None:
        if status.result is None:
            self._note(endOf(status))
        else:
            for case, why in status.result["failed"].items():
                self._note(Notice(f"{case}: {why}", is_error=True))
            text = _("The model ran on {count} cases.").format(count=len(status.result["done"]))
            self._note(Notice(text))
        self._store.refresh()

    # ---- doubtful labels --------------------------------------------------------------------------------------------

    def _item(self) -> Mapping[str, Any] | None:
        row = self.ui.reviewList.currentRow
        return self._items[row] if 0 <= row < len(self._items) else None

    def _onItem(self) -> None:
        now, key = time.monotonic(), chosenKey(self.ui.reviewList)
        if key != self._jumped[0] or now - self._jumped[1] > DOUBLE_CLICK_S:
            self._jumped = key, now
            self.jump()

    def jump(self) -> None:
        """Open the chosen item's case and bring all views to its slice."""
        item, self._decided = self._item(), ""
        if item is not None:
            self._jumping = self._tasks.start(self._jump(item))

    async def _jump(self, item: Mapping[str, Any]) -> None:
        await self._work.openCase(item["case"])
        if self._work.caseId == item["case"]:
            mrml.jumpTo(item["ras"])

    def jumpToNext(self) -> None:
        """Choose the next item, round and round, and jump there."""
        if self._items:
            self.ui.reviewList.setCurrentRow((self.ui.reviewList.currentRow + 1) % len(self._items))
            self.jump()

    def _goOn(self) -> None:
        """After a decision: look at the item that has taken the decided one's place, or choose none.

        Nothing is decided unseen, and to open another case is the reader's own act.
        """
        item, self._decided = self._item(), ""
        if item is not None and self._work.isOpen and item["case"] == self._work.caseId:
            self.jump()
        else:
            self.ui.reviewList.setCurrentRow(-1)

    def decide(self, decision: str) -> None:
        """Remember what is thought of the chosen item, "right" or "fix"; the views go to the case's next one."""
        item = self._item()
        # what is still being opened was not seen yet
        if item is not None and (self._jumping is None or self._jumping.done):
            self._start(self._decide(item, decision))

    async def _decide(self, item: Mapping[str, Any], decision: str) -> None:
        self._decided = chosenKey(self.ui.reviewList)
        values = {"case": item["case"], "slice": item["slice"], "decision": decision, "by": self._store.reader}
        try:
            await self._store.ask("review_decide", values)
        except BaseException:
            self._decided = ""
            raise

    # ---- showing ----------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Show how the store stands; a job of an earlier start of Slicer is found again."""
        ui, store = self.ui, self._store
        if store.folder != self._folder:
            self._folder = store.folder
            jobs = self._training.jobs(store.folder, PREDICT) if store.folder else []
            self.watch.follow(jobs[0] if jobs else None)
        self._showStore()
        wanted = chosenData(ui.stateCombo)
        cases = [case for case in store.cases.values() if not wanted or case["state"] == wanted]
        fillList(ui.caseList, [(case["id"], _caseText(case)) for case in cases])
        decided = bool(ui.decidedCheck.checked)
        self._items = [item for item in store.overview.get("review", ()) if decided or not item["decision"]]
        fillList(ui.reviewList, [(f"{item['case']}/{item['slice']}", _itemText(item)) for item in self._items])
        if self._decided and self._decided != chosenKey(ui.reviewList):
            self._goOn()
        ui.agreementBrowser.setVisible(bool(self._agreement))
        self._showButtons()

    def _showStore(self) -> None:
        ui, store, path = self.ui, self._store, self.ui.storePath.currentPath
        ui.createButton.setVisible(bool(path) and path != store.folder and not is_store(path))
        ui.createButton.setEnabled(bool(path) and _mayBecomeStore(path))
        counts: Mapping[str, int] = store.overview.get("counts", {})
        total = sum(counts.values()) - counts.get("excluded", 0)
        ui.workProgress.setVisible(total > 0)
        ui.workProgress.setRange(0, max(total, 1))
        ui.workProgress.setValue(counts.get("corrected", 0) + counts.get("approved", 0))
        ui.workProgress.setFormat(store.progressText)
        if not store.folder:
            text = _("Choose the folder of a case store, or an empty one to make a new store in.")
        elif not store.overview:
            text = _("Looking into the store...")
        elif not counts:
            text = _("No case yet. Add some below.")
        else:
            text = ", ".join(f"{counts[state]} {stateName(state)}" for state in STATES if counts.get(state))
        showText(ui.storeState, text)
        text, fraction = "", None
        if store.busy:
            progress = store.progress
            text = _("Working...") if progress is None else progress.message or progress.phase.capitalize()
            if progress is not None and progress.total > 1:
                fraction = progress.done / progress.total
        elif self.watch.isActive and self.watch.status is not None:
            status = self.watch.status
            text, fraction = jobText(status), None if status.progress is None else status.progress.fraction
        showText(ui.storeProgressLabel, text)
        showProgress(ui.storeProgress, bool(text), fraction)
        ui.storeCancelButton.setVisible(bool(text))

    def _showButtons(self) -> None:
        ui, store, work = self.ui, self._store, self._work
        subject, chosen = store.cases.get(self._subject()), store.cases.get(self.chosen)
        ready = bool(store.folder) and work.state in ("", "open")
        other = chosen is not None and chosen["id"] != work.caseId
        several = chosen is not None and len(chosen["raters"]) > 1
        isReadable = bool(store.overview) and not store.busy
        for widget, enabled in (
            (ui.openNextButton, ready),
            (ui.addSceneButton, isReadable and not self._isReading),
            (ui.addFolderButton, isReadable and bool(ui.addPath.currentPath)),
            (ui.predictButton, bool(store.cases) and not self.watch.isActive),
            (ui.rightButton, self._item() is not None),
            (ui.fixButton, self._item() is not None),
            (self.entries["open"], ready and other),
            (self.entries["takeOver"], ready and other and chosen is not None and bool(chosen["lock"])),
            (self.entries["note"], subject is not None),
            (self.entries["approve"], subject is not None and bool(subject["raters"])),
            (self.entries["exclude"], subject is not None and work.state in ("", "open")),
            (self.entries["agreement"], any(len(case["raters"]) > 1 for case in store.cases.values())),
            (self.entries["consensus"], several),
            (self.entries["latest"], several),
        ):
            widget.setEnabled(enabled)
        excluded = subject is not None and subject["state"] == "excluded"
        self.entries["exclude"].setText(_("Re-include") if excluded else _("Exclude"))


def noteReport(values: Mapping[str, Any], note: Callable[[Notice], None]) -> None:
    """Say what came of adding or importing."""
    done, known, failed = values["done"], values["known"], values["failed"]
    for name, why in failed.items():
        note(Notice(f"{name}: {why}", is_error=True))
    for warning in values.get("warnings", ()):
        note(Notice(warning, is_error=True))
    text = _("{done} cases were added, {known} were there already, {failed} were left out.")
    note(Notice(text.format(done=len(done), known=len(known), failed=len(failed))))


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
    if len(case["raters"]) > 1:
        labels = {"latest": _("the approved or last revision trains"), "consensus": _("the consensus trains")}
        remarks.append(labels.get(case["label"], _("revision {number} trains").format(number=case["label"])))
    if case["unsaved"]:
        remarks.append(_("unsaved: {readers}").format(readers=", ".join(case["unsaved"])))
    if case["lock"] and not case["abandoned"]:
        remarks.append(_("open: {lock}").format(lock=case["lock"].split(" since ")[0]))
    remarks += [text for text in (case["exclusion"], case["note"]) if text]
    return "   ".join(parts) + ("\n    " + "; ".join(remarks) if remarks else "")


def _itemText(item: Mapping[str, Any]) -> str:
    decisions = {"right": _("label is right"), "fix": _("to be fixed")}
    decided = f" [{decisions[item['decision']]}, {item['by']}]" if item["decision"] else ""
    text = _("{case}, slice {slice}: {reason}").format(case=item["case"], slice=item["slice"], reason=item["reason"])
    return text + decided


def _agreementHtml(rows: list[Mapping[str, Any]], summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Every two readers of every case.

    Args:
        rows: of ``cases.agreement.AgreementRow``.
        summary: pair -> mean Dice and number of cases.
    """
    heads = (_("Case"), _("Readers"), _("Dice"), _("HD95 [mm]"))
    figures = ("dice", "hausdorff_distance_95")
    cells = [
        (row["case"], f"{row['first']} - {row['second']}", *(number_text(row[name]) for name in figures))
        for row in rows
    ]
    means = [
        (pair, _("mean of {count} cases").format(count=found["cases"]), number_text(found["mean_dice"]), "")
        for pair, found in summary.items()
    ]
    return table_html(heads, cells) + (table_html((_("Readers"), "", _("Dice"), ""), means) if means else "")


def _mayBecomeStore(path: str) -> bool:
    folder = Path(path)
    try:
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError:
        return False
