"""The page Settings: the models, PyTorch and the worker, and the upkeep of the case store."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cases.exchange import LAYOUTS
from ..errors import COVIDLesionSegError
from ..models.catalog import AVAILABLE, BUNDLED, DAMAGED, ModelEntry
from ..resources import resource
from ..worker import Progress, Request
from .cases_page import noteReport
from .forms import (
    Page,
    chosenData,
    chosenKey,
    connectPath,
    fillCombo,
    fillList,
    loadForm,
    showProgress,
    showText,
)
from .messages import Notice, attempt, confirm, noticeOf
from .session import settingsTexts, writeSettings
from .store_client import StoreClient
from .task import Tasks
from .text import _, cardHtml, statusText, table_html

if TYPE_CHECKING:
    from .session import Session

_SECTIONS = ("modelsButton", "torchSection", "importSection", "upkeepSection", "splitSection", "shortcutsSection")


class SettingsPage(Page):
    """What is set up once: one section is unfolded at a time.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.messages.Notice`.
        store: the case store.
    """

    def __init__(self, session: Session, scene: Any, note: Callable[[Notice], None], store: StoreClient) -> None:
        self.form, self.ui = loadForm("Settings", scene)
        self._session, self._store = session, store
        for name in _SECTIONS:
            button = getattr(self.ui, name)
            button.connect("contentsCollapsed(bool)", lambda collapsed, name=name: self._onFolded(name, collapsed))
        tasks = Tasks(session.timer, lambda error: note(noticeOf(error)))
        self._tasks = tasks
        self.models = ModelSettings(session, self.ui, note, tasks)
        self.torch = TorchSettings(session, self.ui, note)
        self.upkeep = StoreUpkeep(store, self.ui, note, tasks)
        self.ui.settingsCancelButton.connect("clicked(bool)", self.onCancel)
        store.changed.connect(self._showProgress)
        self.models.changed = self._showProgress
        self._showProgress()

    def close(self) -> None:
        """Listen no more."""
        self._store.changed.disconnect(self._showProgress)
        self._tasks.close()
        self.models.close()
        self.torch.close()
        self.upkeep.close()

    def showTorch(self) -> None:
        """Unfold what sets PyTorch up."""
        self.ui.torchSection.setProperty("collapsed", False)

    def listShortcuts(self, rows: Sequence[tuple[str, str]]) -> None:
        """List all shortcuts of the panel: (keys, what they do)."""
        self.ui.shortcutsBrowser.setHtml(table_html((_("Keys"), _("What they do")), rows))

    def _onFolded(self, unfolded: str, collapsed: bool) -> None:
        if collapsed:
            return
        for name in _SECTIONS:
            if name != unfolded:
                getattr(self.ui, name).setProperty("collapsed", True)
        # unfolding shows what is hidden for the moment, too
        self.upkeep.show()

    def onCancel(self, *_ignored: Any) -> None:
        """Stop what is shown."""
        if self.models.request is not None:
            self.models.request.cancel()
        else:
            self._store.cancel()

    def _showProgress(self) -> None:
        ui, busy = self.ui, self.models.request is not None
        progress = self.models.progress if busy else self._store.progress
        isOn = busy or self._store.busy
        text = "" if progress is None else progress.message or progress.phase.capitalize()
        known = progress is not None and progress.total > 1
        showText(ui.settingsState, text)
        showProgress(ui.settingsProgress, isOn, progress.done / progress.total if progress and known else None)
        ui.settingsCancelButton.setVisible(isOn)


class ModelSettings:
    """The models: what is here, under which terms; verify, download, import, remove.

    Whatever takes time, or needs the network or PyTorch, is done by a worker on this computer, for these are its
    models; one that works behind a prefix is sent what it has not got.

    Args:
        session: shared by all panels.
        ui: the form's widgets.
        note: shows a :class:`.messages.Notice`.
        tasks: runs coroutines.

    Attributes:
        request: what is on, or None.
        progress: of it, or None.
        changed: called when they are others.
    """

    def __init__(self, session: Session, ui: Any, note: Callable[[Notice], None], tasks: Tasks) -> None:
        self._session, self._ui, self._note, self._tasks = session, ui, note, tasks
        self._entries: dict[str, ModelEntry] = {}
        self.request: Request | None = None
        self.progress: Progress | None = None
        self.changed: Callable[[], None] = lambda: None
        ui.modelList.connect("currentRowChanged(int)", lambda *_ignored: self._showEntry())
        for button, action in (
            (ui.verifyButton, lambda: self._ask("verify_model", _("{model} is as it should be (weights {hash})."))),
            (ui.downloadButton, lambda: self._ask("download_model", _("{model} was downloaded (weights {hash})."))),
            (ui.modelImportButton, self.onImport),
            (ui.removeButton, self.onRemove),
            (ui.defaultButton, self.onDefault),
        ):
            button.connect("clicked(bool)", lambda *_ignored, action=action: action())
        connectPath(ui.modelPath, self._showButtons)
        session.modelsChanged.connect(self.show)
        self.show()

    def close(self) -> None:
        """Listen no more."""
        self._session.modelsChanged.disconnect(self.show)

    @property
    def chosen(self) -> str:
        """Id of the chosen model, or ""."""
        return chosenKey(self._ui.modelList)

    def show(self) -> None:
        """List all models."""
        try:
            self._entries = {entry.id: entry for entry in self._session.registry.list()}
        except COVIDLesionSegError as error:
            self._note(noticeOf(error))
            return
        marks = {True: _(", taken by default"), False: ""}
        rows = [(e.id, f"{e.name}\n{statusText(e)}{marks[e.is_default]}") for e in self._entries.values()]
        fillList(self._ui.modelList, rows)
        if not self.chosen and rows:
            self._ui.modelList.setCurrentRow(0)
        self._showEntry()

    def _showEntry(self) -> None:
        entry = self._entries.get(self.chosen)
        self._ui.modelBrowser.setHtml("" if entry is None else cardHtml(entry))
        self._showButtons()

    def _showButtons(self) -> None:
        ui, entry, free = self._ui, self._entries.get(self.chosen), self.request is None
        usable = entry is not None and entry.is_usable
        own = entry is not None and entry.status != BUNDLED and (usable or entry.status == DAMAGED)
        ui.verifyButton.setEnabled(free and usable)
        ui.defaultButton.setEnabled(free and entry is not None and usable and not entry.is_default)
        ui.downloadButton.setEnabled(free and entry is not None and entry.status == AVAILABLE)
        ui.removeButton.setEnabled(free and own)
        ui.modelImportButton.setEnabled(free and bool(ui.modelPath.currentPath))
        self.changed()

    def onImport(self) -> None:
        """Check a file and copy it to the user's models."""
        values = {"file": self._ui.modelPath.currentPath, "model": self._ui.modelIdEdit.text.strip() or None}
        self._ask("import_model", _("{model} was imported (weights {hash})."), values)

    def _ask(self, task: str, said: str, values: Mapping[str, Any] | None = None) -> None:
        if self.request is None:
            given = {"model": self.chosen} if values is None else values
            self.request = self._session.clientHere().request(task, given, progress=self._onProgress)
            self._showButtons()
            self._tasks.start(self._finish(self.request, said))

    async def _finish(self, request: Request, said: str) -> None:
        try:
            card = (await request).values["card"]
            self._note(Notice(said.format(model=card["id"], hash=card["weights_sha256"][:12])))
        finally:
            self.request = self.progress = None
            self._session.modelsChanged.emit()

    def _onProgress(self, progress: Progress) -> None:
        self.progress = progress
        self.changed()

    def onRemove(self) -> None:
        """Delete the chosen model's file, if that is wanted."""
        model = self.chosen
        text = _("The file of {model} is deleted from this computer; no other copy is kept.").format(model=model)
        if confirm(text, _("Remove it?")):
            self._change(lambda: self._session.registry.remove(model), _("{model} was removed.").format(model=model))

    def onDefault(self) -> None:
        """Take the chosen model where none is named."""
        model = self.chosen
        text = _("{model} is taken by default now.").format(model=model)
        self._change(lambda: self._session.registry.set_default(model), text)

    def _change(self, action: Callable[[], None], said: str) -> None:
        def change() -> None:
            action()
            self._note(Notice(said))

        attempt(change, self._note)
        self._session.modelsChanged.emit()


class TorchSettings:
    """PyTorch: what is there, what installs it, which computer does the work. Nothing is installed without a press.

    Args:
        session: shared by all panels.
        ui: the form's widgets.
        note: shows a :class:`.messages.Notice`.
    """

    def __init__(self, session: Session, ui: Any, note: Callable[[Notice], None]) -> None:
        self._session, self._ui, self._note = session, ui, note
        ui.torchCheckButton.connect("clicked(bool)", lambda *_ignored: session.devices.ask(again=True))
        ui.installButton.connect("clicked(bool)", self.onInstall)
        ui.packagesButton.connect("clicked(bool)", self.onPackages)
        ui.workerButton.connect("clicked(bool)", self.onApply)
        session.devices.changed.connect(self.show)
        python, prefix, minutes = settingsTexts()
        ui.pythonPath.setProperty("currentPath", python)
        ui.prefixEdit.setText(prefix)
        ui.idleSpin.setValue(minutes)
        self.show()

    def close(self) -> None:
        """Listen no more."""
        self._session.devices.changed.disconnect(self.show)

    def show(self) -> None:
        """Show what the worker said of PyTorch and the devices."""
        showText(self._ui.torchLabel, self._session.devices.summary())

    def onInstall(self, *_ignored: Any) -> None:
        """Install PyTorch through its extension, which asks before it downloads."""
        try:
            utilities = importlib.import_module("PyTorchUtils")
        except ImportError:
            text = _("The PyTorch extension is not installed. Install it in the Extensions Manager and restart Slicer.")
            self._note(Notice(text, is_error=True))
            return
        self._install(lambda: utilities.PyTorchUtilsLogic().installTorch(askConfirmation=True) is not None)

    def onPackages(self, *_ignored: Any) -> None:
        """Install what the worker needs besides PyTorch; Slicer asks first."""
        try:
            packaging = importlib.import_module("slicer.packaging")
        except ImportError:
            self._note(Notice(_("This Slicer can't install packages; 5.12 or newer is needed."), is_error=True))
            return
        file = resource("requirements.txt")

        def ensure() -> bool:
            packaging.pip_ensure(packaging.load_requirements(str(file)), requester="COVIDLesionSeg")
            return True

        self._install(ensure)

    def _install(self, install: Callable[[], bool]) -> None:
        """Install once no child holds a library any more.

        Args:
            install: asks and installs; False where it was declined.
        """
        if self._session.run.busy:
            self._note(
                Notice(_("A CT is being segmented. Wait for it, or cancel it, before installing."), is_error=True)
            )
            return

        def go() -> None:
            try:
                done = install()
            except Exception as error:  # whatever pip and its callers raise; the sentence is for people
                # how Slicer's packaging says it
                done = "declined" not in str(error)
                if done:
                    self._note(Notice(_("The installation failed: {error}").format(error=error), is_error=True))
                    return
            if done:
                self._session.devices.ask(again=True)
            else:
                self._note(Notice(_("Nothing was installed.")))

        self._session.whenEnded(go)

    def onApply(self, *_ignored: Any) -> None:
        """Keep the settings and start the worker anew with the next request."""
        ui = self._ui

        def apply() -> None:
            writeSettings(ui.pythonPath.currentPath.strip(), ui.prefixEdit.text.strip(), ui.idleSpin.value)
            self._session.restart()
            self._note(Notice(_("The next run starts the worker with these settings.")))
            self._session.devices.ask(again=True)

        attempt(apply, self._note)


class StoreUpkeep:
    """Data sets into the store and out of it, the check of its files, and who trains and who validates.

    Args:
        store: the store.
        ui: the form's widgets.
        note: shows a :class:`.messages.Notice`.
        tasks: runs coroutines.
    """

    def __init__(self, store: StoreClient, ui: Any, note: Callable[[Notice], None], tasks: Tasks) -> None:
        self._store, self._ui, self._note, self._tasks = store, ui, note, tasks
        names = {
            "auto": _("Detect automatically"),
            "pairs": _("Pairs of CT and mask"),
            "manifest": _("Manifest (CSV)"),
            "nnunet": _("nnU-Net data set"),
            "monai-label": _("MONAI Label data store"),
        }
        for layout in LAYOUTS:
            ui.layoutCombo.addItem(names[layout], layout)
        works: tuple[tuple[Any, Callable[[], Coroutine[Any, Any, None]]], ...] = (
            (ui.importButton, self._takeIn),
            (ui.storeExportButton, self._export),
            (ui.checkButton, self._check),
            (ui.moveButton, self._move),
        )
        for button, work in works:
            button.connect("clicked(bool)", lambda *_ignored, work=work: self._tasks.start(work()))
        for path in (ui.importPath, ui.exportPath):
            connectPath(path, self.show)
        for widget, signal in (
            (ui.moveCombo, "currentIndexChanged(int)"),
            (ui.moveReasonEdit, "textChanged(QString)"),
            (ui.moveCheck, "toggled(bool)"),
        ):
            widget.connect(signal, lambda *_ignored: self.show())
        store.changed.connect(self.show)
        self.show()

    def close(self) -> None:
        """Listen no more."""
        self._store.changed.disconnect(self.show)

    def show(self) -> None:
        """Show what can be done."""
        ui, ready = self._ui, bool(self._store.overview) and not self._store.busy
        ui.importButton.setEnabled(ready and bool(ui.importPath.currentPath))
        ui.storeExportButton.setEnabled(ready and bool(ui.exportPath.currentPath))
        ui.checkButton.setEnabled(ready)
        ui.reportLabel.setVisible(bool(ui.reportLabel.text))
        frozen = bool(self._store.overview.get("frozen"))
        cases = self._store.cases if frozen else {}
        sides = {"validation": _("validation")}
        entries = [(id_, f"{id_}, {sides.get(case['side'], _('training'))}") for id_, case in cases.items()]
        fillCombo(ui.moveCombo, entries)
        side = cases.get(chosenData(ui.moveCombo) or "", {}).get("side", "")
        texts = {"train": _("Move to validation set"), "validation": _("Move to training set")}
        ui.moveButton.setText(texts.get(side, _("Move")))
        for widget in (ui.moveCombo, ui.moveReasonEdit, ui.moveCheck):
            widget.setEnabled(ready and frozen)
        wanted = bool(ui.moveReasonEdit.text.strip()) and bool(ui.moveCheck.checked)
        ui.moveButton.setEnabled(ready and bool(side) and wanted)

    async def _takeIn(self) -> None:
        """Import a data set."""
        ui, label = self._ui, self._ui.importLabelEdit.text.strip()
        values: dict[str, Any] = {
            "source": ui.importPath.currentPath,
            "layout": chosenData(ui.layoutCombo),
            "rater": self._store.reader,
            "copy": bool(ui.importCopyCheck.checked),
            "approve": bool(ui.importApproveCheck.checked),
            "empty_is_lesion_free": bool(ui.importEmptyCheck.checked),
        }
        if label:
            values["label"] = int(label) if label.isdecimal() else label
        noteReport((await self._store.askLong("store_import", values)).values, self._note)

    async def _export(self) -> None:
        """Write the labels for nnU-Net."""
        reply = await self._store.askLong("store_export", {"folder": self._ui.exportPath.currentPath})
        self._note(Notice(_("Written: {name}.").format(name=Path(reply.values["folder"]).name)))

    async def _check(self) -> None:
        """Verify everything."""
        found = (await self._store.askLong("store_check", {})).values
        lines = [f"{item['where']}: {item['text']}" for item in found["findings"]]
        text = _("{cases} cases, {files} files verified in {seconds} s.").format(
            cases=found["cases"], files=found["files"], seconds=f"{found['seconds']:.1f}"
        )
        verdict = _("The store is sound.") if found["is_sound"] else _("Something is broken.")
        showText(self._ui.reportLabel, "\n".join([text, verdict, *lines]))
        self._note(Notice(f"{text} {verdict}", is_error=not found["is_sound"]))

    async def _move(self) -> None:
        """Move a patient to the other side of the split; the store keeps who did it and why."""
        ui = self._ui
        case = chosenData(ui.moveCombo)
        side = "validation" if self._store.cases[case]["side"] == "train" else "train"
        values = {"case": case, "side": side, "by": self._store.reader, "reason": ui.moveReasonEdit.text.strip()}
        reply = await self._store.askLong("store_move", values)
        # the next one is decided anew
        ui.moveReasonEdit.setText("")
        ui.moveCheck.setChecked(False)
        text = _("{cases}: the patient is in the validation set from now on.")
        if reply.values["side"] == "train":
            text = _("{cases}: the patient is in the training set from now on.")
        self._note(Notice(text.format(cases=", ".join(reply.values["cases"]))))
