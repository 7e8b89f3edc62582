"""The tab that measures: figures that follow every edit, comparisons, charts, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import mrml
from ..errors import COVIDLesionSegError
from ..mrml import ModuleParameters
from .export import Export
from .figure_list import FigureList
from .forms import Page, chooseData, chosenData, fillCombo, loadForm, showText
from .notices import Notice, attempt, noticeOf
from .session import Session
from .steps import Steps
from .text import _

_TABLES = ("measurementTable", "lesionTable", "comparisonTable", "changeTable")


class MeasureTab(Page):
    """Shows what :class:`.live.LiveMeasurement` measures.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.notices.Notice`.
    """

    showsFigures = True

    def __init__(self, session: Session, scene: Any, note: Callable[[Notice], None]) -> None:
        self._session, self._note = session, note
        self._parameters: ModuleParameters | None = None
        # the one that lies over the CT
        self._map: Any = None
        self._steps = Steps(session.timer)
        self._export = Export(session, note, self.showState)
        self.form, self.ui = loadForm("Measure", scene)
        ui = self.ui
        self.figures = FigureList(ui.figureTable)
        texts = (_("By region"), _("Lesion list"), _("Against the reference"), _("Change since the earlier study"))
        for name, text in zip(_TABLES, texts, strict=True):
            ui.tableCombo.addItem(text, name)
        ui.lesionCombo.connect("currentIndexChanged(int)", self._onLesions)
        ui.referenceSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onReference)
        ui.referenceCombo.connect("currentIndexChanged(int)", self._onReferenceSegment)
        ui.tableCombo.connect("currentIndexChanged(int)", lambda *_ignored: self._showTable())
        ui.histogramButton.connect("clicked(bool)", lambda *_ignored: self._session.tools.showHistogram())
        ui.zonesButton.connect("clicked(bool)", lambda *_ignored: self._session.tools.showZones())
        ui.errorsButton.connect("clicked(bool)", lambda *_ignored: self._session.tools.showErrors())
        ui.mapButton.connect("toggled(bool)", lambda *_ignored: self._showMap())
        for selector, name in (
            (ui.earlierSelector, "earlierVolume"),
            (ui.earlierSegmentationSelector, "earlierSegmentation"),
        ):
            selector.connect("currentNodeChanged(vtkMRMLNode*)", self._setter(name))
        ui.compareButton.connect("clicked(bool)", lambda *_ignored: self._session.tools.compare())
        ui.saveButton.connect("clicked(bool)", self.onExport)
        ui.caseEdit.connect("editingFinished()", self._keepCaseName)
        ui.dicomCheck.connect("toggled(bool)", lambda *_ignored: self._showDicomNote())
        session.live.changed.connect(self.showState)
        self._showDicomNote()
        self.showState()

    def close(self) -> None:
        """Listen no more."""
        self._steps.stop()
        self._session.live.changed.disconnect(self.showState)
        self.ui.tableView.setMRMLTableNode(None)
        self._parameters = None

    # ---- what was chosen ----------------------------------------------------------------------------------------

    def showParameters(self, parameters: ModuleParameters) -> None:
        """Show the scene's choices."""
        self._parameters = None
        ui = self.ui
        ui.referenceSelector.setCurrentNode(parameters.referenceSegmentation)
        ui.earlierSelector.setCurrentNode(parameters.earlierVolume)
        ui.earlierSegmentationSelector.setCurrentNode(parameters.earlierSegmentation)
        ui.caseEdit.setText("" if parameters.inputVolume is None else mrml.caseName(parameters.inputVolume))
        self._parameters = parameters
        self.showState()

    def _listSegments(self, parameters: ModuleParameters) -> None:
        """Offer the segments; a chosen one that is gone leaves nothing chosen, so that no other takes its place."""
        ui, reference = self.ui, parameters.referenceSegmentation
        for combo, node, chosen in (
            (ui.lesionCombo, parameters.lesionSegmentation, parameters.lesionSegmentId),
            (ui.referenceCombo, reference, parameters.referenceSegmentId),
        ):
            fillCombo(combo, _segmentEntries(node))
            chooseData(combo, chosen)
        ui.referenceCombo.setEnabled(reference is not None)

    def _setter(self, name: str) -> Callable[..., None]:
        return lambda value=None, *_ignored: self._set(**{name: value})

    def _set(self, **values: Any) -> None:
        parameters = self._parameters
        if parameters is not None:
            attempt(lambda: parameters.update(**values), self._note)

    def _onLesions(self, *_ignored: Any) -> None:
        self._set(lesionSegmentId=chosenData(self.ui.lesionCombo) or "")

    def _onReference(self, node: Any = None, *_ignored: Any) -> None:
        parameters = self._parameters
        # the selector tells the same node again where its place in the list has changed
        if parameters is not None and (node is None or node is not parameters.referenceSegmentation):
            self._set(referenceSegmentation=node, referenceSegmentId="")

    def _onReferenceSegment(self, *_ignored: Any) -> None:
        self._set(referenceSegmentId=chosenData(self.ui.referenceCombo) or "")

    def _keepCaseName(self) -> None:
        if self._parameters is not None and self._parameters.inputVolume is not None:
            mrml.nameCase(self._parameters.inputVolume, self.ui.caseEdit.text.strip())

    # ---- what was measured --------------------------------------------------------------------------------------

    def showState(self) -> None:
        """Show the figures, and what can be done now."""
        live, tools, ui = self._session.live, self._session.tools, self.ui
        self.figures.show(live.quantities, live.evaluation)
        showText(ui.stateLabel, self._export.text or live.stateText())
        measured = bool(live.quantities)
        for button in (ui.histogramButton, ui.zonesButton, ui.saveButton):
            button.setEnabled(measured and not self._export.busy)
        ui.errorsButton.setEnabled(bool(live.evaluation) and not tools.busy)
        parameters = self._parameters
        maps = parameters is not None and (
            parameters.probabilityVolume is not None or parameters.uncertaintyVolume is not None
        )
        ui.mapButton.setEnabled(bool(maps))
        self._showMap()
        earlier = parameters is not None and None not in (parameters.earlierVolume, parameters.earlierSegmentation)
        ui.compareButton.setEnabled(measured and earlier and not tools.busy)
        showText(ui.changeLabel, tools.changeText())
        if parameters is not None:
            self._listSegments(parameters)
            self._showTable()

    def _showTable(self) -> None:
        if self._parameters is None:
            return
        node = getattr(self._parameters, chosenData(self.ui.tableCombo))
        if self.ui.tableView.mrmlTableNode() is not node:
            self.ui.tableView.setMRMLTableNode(node)
            self.ui.tableView.resizeColumnsToContents()

    def _showMap(self) -> None:
        """Lay the chosen CT's map over it, or take away the one that lies there."""
        parameters, wanted = self._parameters, None
        if parameters is not None and self.ui.mapButton.checked:
            wanted = parameters.probabilityVolume or parameters.uncertaintyVolume
            if wanted is None:
                self.ui.mapButton.setChecked(False)
        if wanted is not self._map:
            self._map = wanted
            mrml.showMapInViews(wanted)

    # ---- export -------------------------------------------------------------------------------------------------

    def _showDicomNote(self) -> None:
        text = _("A DICOM SEG holds the patient's name and identifiers, as its CT does.")
        wanted = self.ui.dicomCheck.checked
        showText(self.ui.dicomNote, text if wanted else "")
        for widget in (self.ui.dicomEdit, self.ui.dicomEditCaption):
            widget.setVisible(wanted)

    def onExport(self, *_ignored: Any) -> None:
        """Write the chosen files."""
        ui = self.ui
        if self._parameters is None:
            return
        self._keepCaseName()
        kinds = [
            name
            for name, check in (
                ("csv", ui.csvCheck),
                ("json", ui.jsonCheck),
                ("html", ui.htmlCheck),
                ("dicom", ui.dicomCheck),
            )
            if check.checked
        ]
        try:
            source = Path(ui.dicomEdit.currentPath) if ui.dicomEdit.currentPath else None
            self._export.start(self._parameters, Path(ui.folderEdit.currentPath), ui.caseEdit.text, kinds, source)
        except COVIDLesionSegError as error:
            self._note(noticeOf(error))


def _segmentEntries(segmentationNode: Any) -> list[tuple[str, str]]:
    """What a combo box of segments offers: all lesion segments together, as "", and each by itself."""
    entries = [("", _("All lesion segments"))]
    if segmentationNode is not None:
        segmentation = segmentationNode.GetSegmentation()
        entries += [(i, segmentation.GetSegment(i).GetName()) for i in segmentation.GetSegmentIDs()]
    return entries
