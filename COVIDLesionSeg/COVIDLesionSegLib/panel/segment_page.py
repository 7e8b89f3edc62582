"""The tab that finds lesions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .. import mrml
from ..errors import COVIDLesionSegError, ModelError
from ..models.catalog import ModelEntry
from ..mrml import LESION_VIEWS, ModuleParameters
from .devices import AUTOMATIC
from .forms import DOUBLE_CLICK_S, Page, Shortcut, chooseData, chosenData, loadForm, showText
from .model_text import cardHtml, licenseText
from .notices import Notice, attempt, noticeOf
from .run import Choices
from .session import Session
from .text import _, duration_text


class SegmentPage(Page):
    """CT, model, device and lungs in; lesions out.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.notices.Notice`.
        undo: gives what saves the state of a segmentation before it is replaced.
    """

    showsFigures = True

    def __init__(
        self, session: Session, scene: Any, note: Callable[[Notice], None], undo: Callable[[Any], Any]
    ) -> None:
        self._session, self._note, self._undo = session, note, undo
        self._parameters: ModuleParameters | None = None
        self._started = 0.0
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
        self._connect()
        self.shortcuts = (Shortcut("Ctrl+Return", _("Find the lesions, or cancel"), self.onApply),)
        self.showModels()
        self.showDevices()
        self.showRun()

    def _connect(self) -> None:
        ui, session = self.ui, self._session
        ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onInput)
        ui.lungSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._setter("lungSegmentation"))
        ui.segmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._setter("lesionSegmentation"))
        for combo, name in (
            (ui.modelCombo, "model"),
            (ui.deviceCombo, "device"),
            (ui.lungsCombo, "findLungs"),
            (ui.viewCombo, "lesionView"),
        ):
            combo.connect("currentIndexChanged(int)", self._comboSetter(combo, name))
        for check, name in self._checks():
            check.connect("toggled(bool)", self._setter(name))
        ui.consolidationSpin.connect("valueChanged(int)", lambda value: self._set(consolidationFrom=float(value)))
        ui.marginSpin.connect("valueChanged(double)", self._setter("lungMargin"))
        ui.smoothingSpin.connect("valueChanged(double)", self._setter("sliceSmoothing"))
        ui.minimumSpin.connect("valueChanged(double)", self._setter("minimumVolume"))
        ui.applyButton.connect("clicked(bool)", self.onApply)
        session.run.changed.connect(self.showRun)
        session.modelsChanged.connect(self.showModels)
        session.devices.changed.connect(self.showDevices)

    def close(self) -> None:
        """Listen no more."""
        run, session = self._session.run, self._session
        run.changed.disconnect(self.showRun)
        session.modelsChanged.disconnect(self.showModels)
        session.devices.changed.disconnect(self.showDevices)
        self._parameters = None

    # ---- what was chosen ----------------------------------------------------------------------------------------

    def showParameters(self, parameters: ModuleParameters) -> None:
        """Show the scene's choices."""
        # while the widgets are set, nothing is written back
        self._parameters = None
        ui = self.ui
        ui.inputSelector.setCurrentNode(parameters.inputVolume)
        ui.lungSelector.setCurrentNode(parameters.lungSegmentation)
        ui.segmentationSelector.setCurrentNode(parameters.lesionSegmentation)
        chooseData(ui.modelCombo, parameters.model or self._default())
        if ui.deviceCombo.findData(parameters.device) < 0:
            ui.deviceCombo.addItem(parameters.device, parameters.device)
        chooseData(ui.deviceCombo, parameters.device)
        chooseData(ui.lungsCombo, parameters.findLungs)
        chooseData(ui.viewCombo, parameters.lesionView)
        for check, name in self._checks():
            check.setChecked(getattr(parameters, name))
        ui.consolidationSpin.setValue(round(parameters.consolidationFrom))
        ui.marginSpin.setValue(parameters.lungMargin)
        ui.smoothingSpin.setValue(parameters.sliceSmoothing)
        ui.minimumSpin.setValue(parameters.minimumVolume)
        ui.lungSelector.setVisible(not parameters.findLungs)
        ui.marginSpin.setEnabled(parameters.keepInsideLungs)
        ui.smoothingSpin.setEnabled(parameters.smoothAcrossSlices)
        chosen = parameters.inputVolume
        showText(ui.inputProblem, "" if chosen is None else mrml.volumeProblem(chosen))
        self._parameters = parameters
        self._showModel()
        self._showDevice()
        self.showRun()

    def _checks(self) -> list[tuple[Any, str]]:
        ui = self.ui
        return [
            (ui.surfacesCheck, "showSurfaces"),
            (ui.ttaCheck, "testTimeAugmentation"),
            (ui.probabilityCheck, "keepProbability"),
            (ui.uncertaintyCheck, "keepUncertainty"),
            (ui.limitCheck, "keepInsideLungs"),
            (ui.smoothCheck, "smoothAcrossSlices"),
        ]

    def _set(self, **values: Any) -> None:
        parameters = self._parameters
        if parameters is not None:
            attempt(lambda: parameters.update(**values), self._note)

    def _setter(self, name: str) -> Callable[..., None]:
        return lambda value, *_ignored: self._set(**{name: value})

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
            # it was chosen and removed; the Learn tab says so
            return next(iter(self._models), "")

    def _entry(self) -> ModelEntry | None:
        return self._models.get(chosenData(self.ui.modelCombo) or "")

    def _showModel(self) -> None:
        entry = self._entry()
        showText(self.ui.licenseLabel, "" if entry is None else licenseText(entry))
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
        """Begin a run, or cancel the one that is on."""
        run = self._session.run
        if run.busy:
            if time.monotonic() - self._started > DOUBLE_CLICK_S:
                run.cancel()
            return
        if self._parameters is None:
            return
        self._started = time.monotonic()
        try:
            run.start(self._parameters.inputVolume, Choices.of(self._parameters), self._undo)
        except COVIDLesionSegError as error:
            self._note(noticeOf(error))

    def showRun(self) -> None:
        """Show how far the run is."""
        ui, run = self.ui, self._session.run
        ui.applyButton.setText(_("Cancel") if run.busy else _("Apply"))
        usable = self._parameters is not None and not mrml.volumeProblem(self._parameters.inputVolume)
        ui.applyButton.setEnabled(run.busy or usable)
        ui.progressBar.setVisible(run.busy)
        fraction = None if run.progress is None else run.progress.fraction
        # a bar from 0 to 0 shows that something goes on
        ui.progressBar.setRange(0, 0 if run.busy and fraction is None else 1000)
        if fraction is not None:
            ui.progressBar.setValue(round(1000 * fraction))
        showText(ui.phaseLabel, _runText(run))


def _runText(run: Any) -> str:
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
    from ..measurement.catalog import catalog, definition

    limit = catalog()["attenuation"]["consolidation_from"]
    return _("{definition} The usual limit is {limit} HU.").format(
        definition=definition("consolidation_volume"), limit=f"{limit:g}"
    )
