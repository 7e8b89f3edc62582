"""The radiologist's page: a CT in, lesions out, and what they come to in five lines."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

import slicer

from .. import mrml
from ..errors import COVIDLesionSegError, ModelError
from ..measurement.catalog import catalog, definition, key_of
from ..models.catalog import ModelEntry
from ..mrml import LESION_VIEWS, ModuleParameters
from .forms import DataConnector, Page, Shortcut, chooseData, chosenData, loadForm, showProgress, showText
from .messages import Notice, attempt, noticeOf
from .run import Choices, SegmentationRun
from .session import AUTOMATIC, Session
from .text import _, cardHtml, duration_text, figure_text, licenseText, number_text

# models whose license was in view when they were used: their ids, in the application's settings
_USED = "COVIDLesionSeg/usedModels"


class SegmentPage(Page):
    """CT, model, device and lungs in; lesions out.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.messages.Notice`.
        undo: gives what saves the state of a segmentation before it is replaced.
        go: leads on to "correct", "measure" or "export".
    """

    showsFigures = True

    def __init__(
        self,
        session: Session,
        scene: Any,
        note: Callable[[Notice], None],
        undo: Callable[[Any], Any],
        go: Callable[[str], None],
    ) -> None:
        self._session, self._note, self._undo = session, note, undo
        self._parameters: ModuleParameters | None = None
        # connects the widgets with the parameters
        self._connected: tuple[ModuleParameters, int] | None = None
        self.form, self.ui = loadForm("Segment", scene)
        ui = self.ui
        ui.lungsCombo.addItem(_("Find them in the CT"), True)
        ui.lungsCombo.addItem(_("Choose a segmentation"), False)
        for view, text in zip(
            LESION_VIEWS,
            (_("One segment"), _("Ground-glass opacity and consolidation"), _("Each lesion by itself")),
            strict=True,
        ):
            ui.viewCombo.addItem(text, view)
        ui.consolidationSpin.setToolTip(_consolidationTip())
        ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onInput)
        for combo, name in ((ui.modelCombo, "model"), (ui.deviceCombo, "device")):
            combo.connect("currentIndexChanged(int)", self._comboSetter(combo, name))
        ui.applyButton.connect("clicked(bool)", self.onApply)
        ui.cancelButton.connect("clicked(bool)", lambda *_ignored: session.run.cancel())
        for name in ("correct", "measure", "export"):
            button = getattr(ui, f"go{name.capitalize()}Button")
            button.connect("clicked(bool)", lambda *_ignored, name=name: go(name))
        session.run.changed.connect(self.showRun)
        session.live.changed.connect(self.showResult)
        session.modelsChanged.connect(self.showModels)
        session.devices.changed.connect(self.showDevices)
        self.shortcuts = (Shortcut("Ctrl+Return", _("Find the lesions"), self.onApply),)
        self.showModels()
        self.showDevices()
        self.showRun()
        self.showResult()

    def close(self) -> None:
        """Listen no more."""
        session = self._session
        session.run.changed.disconnect(self.showRun)
        session.live.changed.disconnect(self.showResult)
        session.modelsChanged.disconnect(self.showModels)
        session.devices.changed.disconnect(self.showDevices)
        self._connect(None)
        self._parameters = None

    # ---- what was chosen ----------------------------------------------------------------------------------------

    def showParameters(self, parameters: ModuleParameters) -> None:
        """Show the scene's choices."""
        self._connect(parameters)
        # while the widgets are set, nothing is written back
        self._parameters = None
        ui = self.ui
        ui.inputSelector.setCurrentNode(parameters.inputVolume)
        chooseData(ui.modelCombo, parameters.model or self._default())
        if ui.deviceCombo.findData(parameters.device) < 0:
            ui.deviceCombo.addItem(parameters.device, parameters.device)
        chooseData(ui.deviceCombo, parameters.device)
        ui.lungSelector.setVisible(not parameters.findLungs)
        ui.marginSpin.setEnabled(parameters.keepInsideLungs)
        ui.smoothingSpin.setEnabled(parameters.smoothAcrossSlices)
        ui.show3DButton.setSegmentationNode(parameters.lesionSegmentation)
        ui.show3DButton.setEnabled(parameters.lesionSegmentation is not None)
        chosen = parameters.inputVolume
        showText(ui.inputProblem, "" if chosen is None else mrml.volumeProblem(chosen))
        self._parameters = parameters
        self._showModel()
        self._showDevice()
        self.showRun()
        self.showResult()

    def release(self, node: Any) -> None:
        """Let go of a segmentation that is about to be removed."""
        if self.ui.show3DButton.segmentationNode() is node:
            self.ui.show3DButton.setSegmentationNode(None)

    def _connect(self, parameters: ModuleParameters | None) -> None:
        """Connect the widgets that are a parameter each; the parameters of a scene that was closed are others."""
        if self._connected is not None:
            before, tag = self._connected
            if before is parameters:
                return
            before.disconnectGui(tag)
        ui = self.ui
        mapping = {
            "lungSegmentation": ui.lungSelector,
            "lesionSegmentation": ui.segmentationSelector,
            "findLungs": DataConnector(ui.lungsCombo),
            "lesionView": DataConnector(ui.viewCombo),
            "consolidationFrom": ui.consolidationSpin,
            "showSurfaces": ui.surfacesCheck,
            "testTimeAugmentation": ui.ttaCheck,
            "keepProbability": ui.probabilityCheck,
            "keepUncertainty": ui.uncertaintyCheck,
            "keepInsideLungs": ui.limitCheck,
            "lungMargin": ui.marginSpin,
            "smoothAcrossSlices": ui.smoothCheck,
            "sliceSmoothing": ui.smoothingSpin,
            "minimumVolume": ui.minimumSpin,
        }
        self._connected = None if parameters is None else (parameters, parameters.connectParametersToGui(mapping))

    def _set(self, **values: Any) -> None:
        parameters = self._parameters
        if parameters is not None:
            attempt(lambda: parameters.update(**values), self._note)

    def _comboSetter(self, combo: Any, name: str) -> Callable[..., None]:
        def choose(*_ignored: Any) -> None:
            value = chosenData(combo)
            if value is not None:
                self._set(**{name: value})

        return choose

    def _onInput(self, node: Any = None, *_ignored: Any) -> None:
        if self._parameters is None or node is self._parameters.inputVolume:
            return
        self._set(inputVolume=node)
        if node is not None and not mrml.volumeProblem(node):
            mrml.showInViews(node)

    def chooseLoaded(self) -> None:
        """Choose the CT that is loaded where none is chosen."""
        if self._parameters is not None and self._parameters.inputVolume is None:
            loaded = mrml.loadedVolume()
            if loaded is not None:
                self._set(inputVolume=loaded)

    # ---- models and devices -------------------------------------------------------------------------------------

    def showModels(self) -> None:
        """List the models that are here."""
        combo = self.ui.modelCombo
        blocked = combo.blockSignals(True)
        combo.clear()
        try:
            self._models = {entry.id: entry for entry in self._session.registry.list() if entry.is_usable}
        except ModelError as error:
            self._models = {}
            self._note(noticeOf(error))
        for entry in self._models.values():
            combo.addItem(entry.name, entry.id)
        combo.blockSignals(blocked)
        wanted = (self._parameters.model if self._parameters else "") or self._default()
        if wanted and wanted not in self._models:
            # removed since it was chosen: said at once, not at the next run
            combo.addItem(_("{model} (not here any more)").format(model=wanted), wanted)
        chooseData(combo, wanted)
        self._showModel()

    def _default(self) -> str:
        try:
            return self._session.registry.default()
        except ModelError:
            # it was chosen and removed; the page Settings says so
            return next(iter(self._models), "")

    def _entry(self) -> ModelEntry | None:
        return self._models.get(chosenData(self.ui.modelCombo) or "")

    def _showModel(self) -> None:
        """The license until the model is used for the first time; then it is to be read in the model's card."""
        entry = self._entry()
        isNew = entry is not None and entry.id not in _usedModels()
        showText(self.ui.licenseLabel, licenseText(entry) if entry is not None and isNew else "")
        self.ui.cardBrowser.setHtml("" if entry is None else cardHtml(entry))

    def showDevices(self) -> None:
        """List the devices."""
        combo = self.ui.deviceCombo
        blocked = combo.blockSignals(True)
        combo.clear()
        names = self._session.devices.names()
        for name, text in names.items():
            combo.addItem(text, name)
        combo.blockSignals(blocked)
        wanted = self._parameters.device if self._parameters else AUTOMATIC
        if wanted not in names:
            combo.addItem(wanted, wanted)
        chooseData(combo, wanted)
        self._showDevice()

    def _showDevice(self) -> None:
        showText(self.ui.deviceLabel, self._session.devices.text(chosenData(self.ui.deviceCombo) or AUTOMATIC))

    # ---- the run ------------------------------------------------------------------------------------------------

    def onApply(self, *_ignored: Any) -> None:
        """Begin a run; nothing happens while one is on."""
        run, parameters = self._session.run, self._parameters
        if run.busy or parameters is None:
            return
        try:
            run.start(parameters.inputVolume, Choices.of(parameters), self._undo)
        except COVIDLesionSegError as error:
            self._note(noticeOf(error))
            return
        entry = self._entry()
        if entry is not None:
            _rememberUsed(entry.id)

    def showRun(self) -> None:
        """Show how far the run is."""
        ui, run = self.ui, self._session.run
        usable = self._parameters is not None and not mrml.volumeProblem(self._parameters.inputVolume)
        ui.applyButton.setEnabled(usable and not run.busy)
        ui.cancelButton.setVisible(run.busy)
        ui.cancelButton.setEnabled(run.state in ("reading", "computing"))
        showProgress(ui.progressBar, run.busy, None if run.progress is None else run.progress.fraction)
        showText(ui.phaseLabel, _runText(run))

    # ---- the result ---------------------------------------------------------------------------------------------

    def showResult(self) -> None:
        """Show what the lesions come to, as they are now."""
        live, parameters = self._session.live, self._parameters
        isThere = parameters is not None and parameters.lesionSegmentation is not None
        self.ui.resultButton.setVisible(isThere)
        if not isThere:
            return
        if live.quantities:
            rows = resultLines(live.quantities, live.caution)
            cells = (
                f"<tr><td>{html.escape(name)}&nbsp;&nbsp;</td><td><b>{html.escape(text)}</b></td></tr>"
                for name, text in rows
            )
            showText(self.ui.resultLabel, f"<table>{''.join(cells)}</table>")
        else:
            showText(self.ui.resultLabel, live.stateText() or _("Not measured yet."))
        for button in (self.ui.goMeasureButton, self.ui.goExportButton):
            button.setEnabled(bool(live.quantities))


def resultLines(quantities: Mapping[str, Any], caution: str = "") -> list[tuple[str, str]]:
    """What lesions come to, for a reader: volume, share of the lungs, composition, severity, warnings.

    Args:
        quantities: what ``measurement.quantify`` gives.
        caution: why the lungs are doubtful, or "".
    """

    def value(name: str, unit: str, region: str = "whole") -> str:
        entry = quantities.get(key_of(name, region), {"value": None})
        return figure_text(entry["value"], unit)

    count = number_text(quantities.get("lesion_count", {"value": None})["value"])
    score = number_text(quantities.get("severity_by_zones", {"value": None})["value"])
    highest = catalog()["severity"]["zones"]["maximum"]
    return [
        (_("Lesion"), _("{volume} in {count} lesions").format(volume=value("lesion_volume", "mL"), count=count)),
        (
            _("Of the lungs"),
            _("{whole} (right {right}, left {left})").format(
                whole=value("involvement", "%"),
                right=value("involvement", "%", "right_lung"),
                left=value("involvement", "%", "left_lung"),
            ),
        ),
        (
            _("By HU"),
            _("ground-glass {glass}, consolidation {dense}").format(
                glass=value("ground_glass_volume", "mL"), dense=value("consolidation_volume", "mL")
            ),
        ),
        (_("Severity"), _("{score} of {highest} by lung zones").format(score=score, highest=highest)),
        (_("Warnings"), caution or _("none")),
    ]


def _usedModels() -> list[str]:
    kept = slicer.app.settings().value(_USED, "")
    return kept.split(",") if isinstance(kept, str) else []


def _rememberUsed(model: str) -> None:
    used = _usedModels()
    if model not in used:
        slicer.app.settings().setValue(_USED, ",".join(filter(None, [*used, model])))


def _runText(run: SegmentationRun) -> str:
    if not run.busy:
        return ""
    progress = run.progress
    if run.state != "computing" or progress is None:
        return {
            "reading": _("Reading the CT"),
            "computing": _("Sending the CT"),
            "showing": _("Showing the result"),
        }[run.state]
    parts = [_phases().get(progress.phase, progress.phase.capitalize())]
    if progress.fraction is not None:
        parts.append(f"{100 * progress.fraction:.0f} %")
    if progress.seconds_left is not None:
        parts.append(_("{time} left").format(time=duration_text(progress.seconds_left)))
    return ", ".join(parts)


def _phases() -> dict[str, str]:
    return {
        "waiting": _("Waiting for the worker"),
        "starting": _("Starting the worker"),
        "sending": _("Sending the CT"),
        "receiving": _("Fetching the result"),
        "loading": _("Loading the model"),
        "lungs": _("Finding the lungs"),
        "network": _("Finding lesions"),
        "postprocess": _("Cleaning up"),
    }


def _consolidationTip() -> str:
    limit = catalog()["attenuation"]["consolidation_from"]
    return _("{definition} The usual limit is {limit} HU.").format(
        definition=definition("consolidation_volume"), limit=f"{limit:g}"
    )
