"""The page Train: fine-tuning with an estimate and live curves, its validation, and the models of the store."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import mrml
from ..models.catalog import ModelEntry
from ..worker.job_tasks import ESTIMATE, VALIDATE
from ..worker.jobs import JobStatus
from .forms import Page, chooseKey, chosenData, chosenKey, fillCombo, fillList, loadForm, showProgress, showText
from .messages import Notice, attempt, noticeOf
from .store_client import StoreClient
from .task import Tasks
from .text import _, number_text, table_html
from .training import FINE_TUNE, JobWatch, TrainingLogic, endOf, jobText

if TYPE_CHECKING:
    from .session import Session

_FIGURES = ("dice", "relative_volume_error", "hausdorff_distance_95")


class TrainPage(Page):
    """Fine-tunes a model on the corrections of a store; jobs go on when Slicer ends.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.messages.Notice`.
        store: the store.
        training: starts the jobs.
    """

    def __init__(
        self,
        session: Session,
        scene: Any,
        note: Callable[[Notice], None],
        store: StoreClient,
        training: TrainingLogic,
    ) -> None:
        self._session, self._store, self._training, self._note = session, store, training, note
        self._tasks = Tasks(session.timer, lambda error: note(noticeOf(error)))
        # the fine-tuning, and what is asked besides: an estimate or a validation
        self.watch, self.helper = JobWatch(session), JobWatch(session)
        self._folder = ""
        self._installed: list[ModelEntry] = []
        # the settings that are being estimated, and those that the last estimate is of
        self._asked: tuple[Any, ...] = ()
        self._estimated: tuple[Any, ...] = ()
        self._estimate = ""
        self._charts: tuple[Any, Any] = (None, None)
        self._points = 0
        self.form, self.ui = loadForm("Train", scene)
        ui = self.ui
        ui.estimateButton.connect("clicked(bool)", self.onEstimate)
        ui.startButton.connect("clicked(bool)", self.onStart)
        ui.trainCancelButton.connect("clicked(bool)", self.onCancel)
        ui.resumeButton.connect("clicked(bool)", self.onResume)
        ui.curvesButton.connect("clicked(bool)", self.onCurves)
        ui.useButton.connect("clicked(bool)", self.onUse)
        ui.validateButton.connect("clicked(bool)", self.onValidate)
        ui.overrideButton.connect("clicked(bool)", self.onOverride)
        ui.storeModelList.connect("currentRowChanged(int)", lambda *_ignored: self._showChosen())
        ui.overrideEdit.connect("textChanged(QString)", lambda *_ignored: self._showButtons())
        for signal, widget in (("currentIndexChanged(int)", ui.baseCombo), ("valueChanged(int)", ui.stepsSpin)):
            widget.connect(signal, lambda *_ignored: self._showState())
        store.changed.connect(self.show)
        session.modelsChanged.connect(self._onInstalled)
        for watch in (self.watch, self.helper):
            watch.changed.connect(self._showState)
        self.watch.ended.connect(self._onTuned)
        self.helper.ended.connect(self._onHelped)
        self._onInstalled()

    def close(self) -> None:
        """Listen no more; jobs go on."""
        self._store.changed.disconnect(self.show)
        self._session.modelsChanged.disconnect(self._onInstalled)
        self._tasks.close()
        self.watch.stop()
        self.helper.stop()

    # ---- what there is ----------------------------------------------------------------------------------------------

    def _onInstalled(self) -> None:
        """Look which models the installation has."""
        self._try(self._readInstalled)
        self.show()

    def _readInstalled(self) -> None:
        self._installed = [entry for entry in self._session.registry.list() if entry.is_usable]

    def show(self) -> None:
        """Show the store's models; a fine-tuning of an earlier start of Slicer is found again."""
        store = self._store
        if store.folder != self._folder:
            self._folder, self._estimated = store.folder, ()
            jobs = self._training.jobs(store.folder, FINE_TUNE) if store.folder else []
            self.watch.follow(jobs[0] if jobs else None)
            helpers = self._training.jobs(store.folder, VALIDATE) if store.folder else []
            self.helper.follow(next((job for job in helpers if job.status().is_active), None))
            if self.watch.isActive:
                self._note(Notice(_("A fine-tuning of this store is on.")))
        overview = store.overview
        self._showModels(str(overview.get("default", "")))
        text = _("There are no validation patients yet: the first fine-tuning chooses them, for good.")
        if overview.get("frozen"):
            count = overview["validation_patients"]
            text = _("{count} validation patients, always the same ones; all others train.").format(count=count)
        elif not overview:
            text = _("Choose a case store on the page Cases.")
        showText(self.ui.splitLabel, text)
        self.ui.validationEdit.setEnabled(bool(overview) and not overview.get("frozen"))
        self._showState()

    def _showModels(self, default: str) -> None:
        ui, models = self.ui, list(self._store.overview.get("models", ()))
        bases = [("", _("Active model: {model}").format(model=default))]
        bases += [(model["id"], model["id"]) for model in reversed(models)]
        fillCombo(ui.baseCombo, bases + [(entry.id, entry.name) for entry in self._installed])
        # the installation's model stands first, so that one can go back to the beginning
        history = self._store.overview.get("history", ())
        shown = [{"id": history[0]["model"]}, *models] if history else models
        before = self.chosenModel
        fillList(ui.storeModelList, [(model["id"], _modelText(model, model["id"] == default)) for model in shown])
        if before not in (model["id"] for model in shown):
            chooseKey(ui.storeModelList, default)
        self._showChosen()

    @property
    def chosenModel(self) -> str:
        """Id of the model that is chosen in the list, or ""."""
        return chosenKey(self.ui.storeModelList)

    def _chosenFacts(self) -> Mapping[str, Any]:
        return next((m for m in self._store.overview.get("models", ()) if m["id"] == self.chosenModel), {})

    def _showChosen(self) -> None:
        gate = self._chosenFacts().get("gate")
        self.ui.gateBrowser.setVisible(bool(gate))
        self.ui.gateBrowser.setHtml(_gateHtml(gate) if gate else "")
        self._showButtons()

    # ---- jobs -------------------------------------------------------------------------------------------------------

    def _wanted(self) -> tuple[Any, ...]:
        ui = self.ui
        base, config = chosenData(ui.baseCombo) or None, ui.configPath.currentPath or None
        return self._store.folder, base, ui.stepsSpin.value, mrml.moduleParameters().device, config

    def onEstimate(self, *_ignored: Any) -> None:
        """Estimate the time."""
        self._asked = folder, base, steps, device, config = self._wanted()
        self._estimated, self._estimate = (), ""
        self._try(
            lambda: self.helper.follow(self._training.estimate(folder, base, steps=steps, config=config, device=device))
        )

    def onStart(self, *_ignored: Any) -> None:
        """Train, if it was said how long that takes; else say it first."""
        if self._estimated != self._wanted():
            self.onEstimate()
            return
        folder, base, steps, device, config = self._wanted()
        patients = self.ui.validationEdit.text.replace(",", " ").split()
        validation = [] if self._store.overview.get("frozen") else patients
        # the next one will have other labels, so it is measured anew
        self._estimated, self._estimate = (), ""
        self._charts, self._points = (None, None), 0
        self._try(
            lambda: self.watch.follow(
                self._training.fineTune(
                    folder,
                    base,
                    config=config,
                    device=device,
                    steps=steps,
                    replayShare=self.ui.replaySpin.value / 100,
                    validation=validation,
                    by=self._store.reader,
                )
            )
        )

    def onCancel(self, *_ignored: Any) -> None:
        """Stop; the best so far is kept."""
        for watch in (self.helper, self.watch):
            if watch.isActive and watch.job is not None:
                self._try(watch.job.cancel)
                return

    def onResume(self, *_ignored: Any) -> None:
        """Resume what was stopped."""
        job = self.watch.job
        if job is not None:
            self._try(lambda: self.watch.follow(self._training.resume(job)))

    def onValidate(self, *_ignored: Any) -> None:
        """Validate the chosen model."""
        model, device = self.chosenModel, mrml.moduleParameters().device
        self._try(lambda: self.helper.follow(self._training.validate(self._store.folder, model, device=device)))

    def onCurves(self, *_ignored: Any) -> None:
        """Show the curves in the layout."""
        self._points = 0
        self._fillCharts()
        chart = self._charts[1] or self._charts[0]
        if chart is None:
            self._note(Notice(_("There are no curves yet.")))
            return
        self._try(lambda: mrml.showChart(chart))

    def _fillCharts(self) -> None:
        status = self.watch.status
        count = 0 if status is None else sum(len(points) for points in status.curves.values())
        if status is None or count == self._points:
            return
        self._points = count
        # nodes go with a scene that is closed
        kept = [chart if chart is not None and chart.GetScene() is not None else None for chart in self._charts]
        self._charts = mrml.showTrainingCurves(status.curves, *kept)

    def _showState(self) -> None:
        ui, status = self.ui, self.watch.status
        helping, tuning = self.helper.isActive, self.watch.isActive
        text, fraction = "", None
        if helping and self.helper.status is not None:
            text, fraction = jobText(self.helper.status), _fraction(self.helper.status)
            if self.helper.job is not None and self.helper.job.task == ESTIMATE:
                text = _("Estimating the time. {text}").format(text=text)
        elif tuning and status is not None:
            text, fraction = jobText(status), _fraction(status)
        elif self._estimate and self._estimated == self._wanted():
            text = self._estimate
        elif status is not None:
            text = _ended(status)
        showText(ui.trainState, text)
        showProgress(ui.trainProgress, helping or tuning, fraction)
        if tuning and self._charts != (None, None):
            self._fillCharts()
        self._showButtons()

    def _showButtons(self) -> None:
        ui, status = self.ui, self.watch.status
        busy = self.helper.isActive or self.watch.isActive
        ready = bool(self._store.cases) and not busy
        ui.estimateButton.setEnabled(ready)
        ui.startButton.setEnabled(ready)
        ui.trainCancelButton.setEnabled(busy)
        ui.resumeButton.setVisible(not busy and status is not None and status.state in ("cancelled", "died", "failed"))
        ui.curvesButton.setEnabled(status is not None and bool(status.curves))
        facts, chosen = self._chosenFacts(), self.chosenModel
        gate = facts.get("gate")
        free = bool(chosen) and chosen != self._store.overview.get("default")
        refused = gate is not None and not gate["accepted"]
        ui.useButton.setEnabled(free and (not facts or (gate is not None and not refused)))
        ui.validateButton.setEnabled(bool(facts) and ready)
        ui.overrideButton.setEnabled(free and refused and bool(ui.overrideEdit.text.strip()))
        failed = gate is not None and gate["verdict"] == "failed"
        ui.overrideButton.setText(_("Use despite failed validation") if failed else _("Use this model"))
        for widget in (ui.overrideEdit, ui.overrideEditCaption, ui.overrideButton):
            widget.setVisible(free and refused)
        hasModels = bool(self._store.overview.get("models"))
        for widget in (ui.storeModelListCaption, ui.storeModelList, ui.useButton, ui.validateButton):
            widget.setVisible(hasModels)

    # ---- what came of it --------------------------------------------------------------------------------------------

    def _onHelped(self, status: JobStatus) -> None:
        job, result = self.helper.job, status.result
        if result is None:
            self._note(endOf(status))
        elif job is not None and job.task == ESTIMATE:
            self._estimated, self._estimate = self._asked, result["text"]
            self._note(Notice(result["text"] + " " + _("Press Start to begin.")))
        else:
            self._noteGate(result["gate"])
        if job is not None and job.task == ESTIMATE:
            self._try(job.remove)
            self.helper.follow(None)
        self._showState()
        self._store.refresh()

    def _onTuned(self, status: JobStatus) -> None:
        if status.result is not None:
            self._fillCharts()
            self._noteGate(status.result["gate"])
            count = status.result["review"]
            if count:
                self._note(
                    Notice(_("{count} labels look doubtful; see Label review on the page Cases.").format(count=count))
                )
            for text in status.result["notes"]:
                self._note(Notice(text))
        else:
            self._note(endOf(status))
        self._store.refresh()

    def _noteGate(self, gate: Mapping[str, Any]) -> None:
        words = " ".join(gate["reasons"])
        text = {
            "passed": _("{model} passed validation and is the active model now. {words}"),
            "failed": _("{model} failed validation and is not used. {words}"),
            "undecided": _("Validation can't decide about {model}: choose in the list of models. {words}"),
        }[gate["verdict"]]
        self._note(Notice(text.format(model=gate["new"], words=words)))
        for warning in gate["warnings"]:
            self._note(Notice(warning))

    def onUse(self, *_ignored: Any) -> None:
        """Make the chosen model the active one."""
        self._changeModel({"act": "default", "reason": "chosen in the panel"})

    def onOverride(self, *_ignored: Any) -> None:
        """Use the chosen model although it did not pass validation."""
        self._changeModel({"act": "override", "accept": True, "reason": self.ui.overrideEdit.text})

    def _changeModel(self, values: Mapping[str, Any]) -> None:
        self._tasks.start(self._change({**values, "model": self.chosenModel, "by": self._store.reader}))

    async def _change(self, values: Mapping[str, Any]) -> None:
        reply = await self._store.ask("store_model", values)
        self.ui.overrideEdit.setText("")
        self._note(Notice(_("{model} is the active model now.").format(model=reply.values["default"])))

    def _try(self, action: Callable[[], Any]) -> None:
        attempt(action, self._note)


def _modelText(model: Mapping[str, Any], is_default: bool) -> str:
    gate = model.get("gate")
    if "base" not in model:
        text = _("the model of the beginning")
    elif gate is None:
        text = _("not validated yet")
    elif gate["passed"]:
        text = _("passed validation")
    elif gate["accepted"]:
        text = _("used despite failed validation") if gate["verdict"] == "failed" else _("chosen by a person")
    else:
        text = _("failed validation") if gate["verdict"] == "failed" else _("a person has to choose")
    mark = _(", active") if is_default else ""
    return f"{model['id']}: {text}{mark}"


def _ended(status: JobStatus) -> str:
    if status.state == "done":
        return _("The last fine-tuning is done.")
    if status.state == "cancelled":
        return _("The last fine-tuning was cancelled; what was best is kept below, if it was validated on the way.")
    return "" if status.error is None else str(status.error)


def _fraction(status: JobStatus) -> float | None:
    return None if status.progress is None else status.progress.fraction


def _gateHtml(gate: Mapping[str, Any]) -> str:
    """The validation's verdict and each validation case under both models.

    Args:
        gate: what ``cases.GateDecision.told()`` gives.
    """
    rows = []
    for name, both in gate["cases"].items():
        case = _("{case} (does not count)").format(case=name) if name in gate["left_out"] else name
        old, new = both["old"], both["new"]
        if float(new["reference_ml"]) == 0:
            before, after = number_text(old["prediction_ml"]), number_text(new["prediction_ml"])
            rows.append((case, _("{old} \N{RIGHTWARDS ARROW} {new} mL false").format(old=before, new=after), "", ""))
        else:
            pairs = ((number_text(old[figure]), number_text(new[figure])) for figure in _FIGURES)
            rows.append((case, *(f"{before} \N{RIGHTWARDS ARROW} {after}" for before, after in pairs)))
    texts = (gate["text"], *gate["warnings"], str(gate["split"].get("text", "")))
    notes = "".join(f"<p>{html.escape(text)}</p>" for text in texts)
    return notes + table_html((_("Case"), _("Dice"), _("RVE"), _("HD95 [mm]")), rows)
