"""The page that measures: figures that follow every edit, a reference, an earlier study, charts, files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import qt
from numpy.typing import NDArray

from .. import mrml
from ..errors import COVIDLesionSegError, InputError
from ..imaging import segment_style
from ..measurement import QUANTITIES
from ..measurement.catalog import catalog, display_unit, key_of, status_text
from ..mrml import ModuleParameters
from ..worker.measurement_tasks import REPORT_FILES
from .forms import Page, chooseData, chosenData, fillCombo, loadForm, showText
from .messages import Notice, attempt, confirm, noticeOf
from .session import Session
from .task import Tasks, turn
from .text import _, figure_text

Entries = Mapping[str, Mapping[str, Any]]

_SHOWN = (
    ("lesion_volume", "whole"),
    ("involvement", "whole"),
    ("involvement", "right_lung"),
    ("involvement", "left_lung"),
    ("ground_glass_volume", "whole"),
    ("consolidation_volume", "whole"),
    ("mean_hu", "whole"),
    ("lesion_count", "whole"),
    ("severity_by_zones", "whole"),
    ("lung_volume", "whole"),
    ("lesion_outside_lungs", "whole"),
)
_TABLES = ("measurementTable", "lesionTable", "comparisonTable", "changeTable")

_MAPS = ("probabilityVolume", "uncertaintyVolume")
# more segments than this are written as one
_MOST_SEGMENTS = 3
_CASE = re.compile(r"[\w][\w .-]{0,79}(?<![ .])")


class MeasurePage(Page):
    """Shows what :class:`.live.LiveMeasurement` measures.

    Args:
        session: shared by all panels.
        scene: the MRML scene.
        note: shows a :class:`.messages.Notice`.
    """

    showsFigures = True

    def __init__(self, session: Session, scene: Any, note: Callable[[Notice], None]) -> None:
        self._session, self._note = session, note
        self._parameters: ModuleParameters | None = None
        # the one that lies over the CT, its opacity, whether there is a legend
        self._map: tuple[Any, float, bool] | None = None
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
        ui.mapCombo.connect("currentIndexChanged(int)", lambda *_ignored: self._showMap())
        ui.opacitySlider.connect("valueChanged(int)", lambda *_ignored: self._showMap())
        ui.legendCheck.connect("toggled(bool)", lambda *_ignored: self._showMap())
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
        self._export.close()
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
        showText(ui.stateLabel, _("Writing files...") if self._export.busy else live.stateText())
        measured = bool(live.quantities)
        for button in (ui.histogramButton, ui.zonesButton, ui.saveButton):
            button.setEnabled(measured and not self._export.busy)
        ui.errorsButton.setEnabled(bool(live.evaluation) and not tools.busy)
        parameters = self._parameters
        self._showMap()
        self._showReference()
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
        """Lay the chosen map of the chosen CT over it, or take away the one that lies there."""
        parameters, ui = self._parameters, self.ui
        if parameters is None:
            return
        there = [name for name in _MAPS if getattr(parameters, name) is not None]
        fillCombo(ui.mapCombo, [("", _("none")), *((name, _mapTitle(name)) for name in there)])
        chosen = chosenData(ui.mapCombo)
        for widget in (ui.opacitySlider, ui.opacitySliderCaption, ui.legendCheck):
            widget.setEnabled(bool(chosen))
        wanted = (getattr(parameters, chosen), ui.opacitySlider.value / 100, ui.legendCheck.checked) if chosen else None
        if wanted != self._map:
            self._map = wanted
            mrml.showMapInViews(*(wanted or (None,)))

    def _showReference(self) -> None:
        """Say whose the reference is: the CT that it was made on."""
        text, parameters = "", self._parameters
        if parameters is not None and parameters.referenceSegmentation is not None:
            made = mrml.volumeOf(parameters.referenceSegmentation)
            if made is None:
                text = _("The scene does not say on which CT this reference was made.")
            elif made is not parameters.inputVolume:
                text = _("This reference was made on another CT: {name}.").format(name=made.GetName())
            else:
                text = _("This reference was made on the chosen CT.")
        showText(self.ui.referenceLabel, text)

    # ---- export -------------------------------------------------------------------------------------------------

    def showExport(self) -> None:
        """Unfold the part that writes files."""
        self.ui.exportButton.setProperty("collapsed", False)

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


def _mapTitle(name: str) -> str:
    return {"probabilityVolume": _("Lesion probability"), "uncertaintyVolume": _("Lesion uncertainty")}[name]


def _segmentEntries(segmentationNode: Any) -> list[tuple[str, str]]:
    """What a combo box of segments offers: all lesion segments together, as "", and each by itself."""
    entries = [("", _("All lesion segments"))]
    if segmentationNode is not None:
        segmentation = segmentationNode.GetSegmentation()
        entries += [(i, segmentation.GetSegment(i).GetName()) for i in segmentation.GetSegmentIDs()]
    return entries


class Export:
    """Writes the chosen kinds of files, one request after the other, by the worker's measurement child.

    Args:
        session: shared by all panels.
        note: shows a :class:`.messages.Notice`.
        changed: called when it begins and ends.
    """

    def __init__(self, session: Session, note: Callable[[Notice], None], changed: Callable[[], None]) -> None:
        self._live, self._note, self._changed = session.live, note, changed
        self._tasks = Tasks(session.timer, self._onError)
        #: whether files are being written
        self.busy = False

    def close(self) -> None:
        """Write no more."""
        self._tasks.close()

    def start(
        self,
        parameters: ModuleParameters,
        folder: Path,
        case: str,
        kinds: Sequence[str],
        dicomFolder: Path | None = None,
    ) -> None:
        """Begin.

        Args:
            parameters: the scene's.
            folder: where to; made if absent.
            case: what the files are called.
            kinds: "csv", "json", "html", "dicom".
            dicomFolder: the CT's DICOM files; None takes those that Slicer's database knows.

        Raises:
            InputError: no folder, no kind, a case that can't name files, no measurement, or already busy.
        """
        if self.busy:
            raise InputError(_("Files are being written already."), _("Wait until that has finished."))
        if str(folder) in ("", "."):
            raise InputError(_("No folder is chosen."), _("Choose where the files are to go."))
        if not kinds:
            raise InputError(_("No kind of file is chosen."), _("Choose at least one."))
        self._live.require()
        case = _checkedCase(case)
        if not _mayWrite(folder, case, kinds):
            return
        source: Any = None
        if "dicom" in kinds:
            source = str(dicomFolder.absolute()) if dicomFolder else mrml.dicomFilesOf(parameters.inputVolume)
        record = mrml.recordOf(parameters.lesionSegmentation)
        common = {
            "case": case,
            "folder": str(folder.absolute()),
            "record": None if record is None else record.to_json(),
        }
        self.busy = True
        self._tasks.start(self._write(parameters, common, kinds, source))
        self._changed()

    async def _write(
        self, parameters: ModuleParameters, common: Mapping[str, Any], kinds: Sequence[str], source: Any
    ) -> None:
        requests: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        files = [kind for kind in kinds if kind != "dicom"]
        if files:
            requests.append(("report", {"kinds": files}, {}))
        if "dicom" in kinds:
            segments, arrays = await self._segments(parameters)
            requests.append(("dicom_seg", {"source": source, "segments": segments}, arrays))
        written: list[str] = []
        for task, values, arrays in requests:
            found = (await self._live.ask(task, {**common, **values}, arrays)).values
            written += [Path(file).name for file in found["files"]]
            for text in found.get("notes", ()):
                self._note(Notice(text))
        self._note(Notice(_("Written: {files}.").format(files=", ".join(written))))
        self.busy = False
        self._changed()

    async def _segments(self, parameters: ModuleParameters) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
        """All lesions as one segment; the few of a view by attenuation each by itself."""
        node, volumeNode = parameters.lesionSegmentation, parameters.inputVolume
        ids = mrml.segmentsWithRole(node)
        apart = ids if not parameters.lesionSegmentId and 1 < len(ids) <= _MOST_SEGMENTS else []
        prediction = mrml.predictionMask(node, volumeNode) if mrml.hasPrediction(node) else None
        await turn()
        arrays: dict[str, NDArray[Any]] = {}
        for identity in apart:
            arrays[identity] = mrml.segmentMask(node, identity, volumeNode).view(np.uint8)
            await turn()
        _parameters, lesions = self._live.require()
        isEdited = prediction is None or not np.array_equal(prediction, lesions)
        names = {identity: segment_style(identity).name for identity in apart or ["lesion"]}
        return [{"name": name, "array": array, "edited": isEdited} for array, name in names.items()], arrays

    def _onError(self, error: Exception) -> None:
        self.busy = False
        self._note(noticeOf(error))
        self._changed()


def _mayWrite(folder: Path, case: str, kinds: Sequence[str]) -> bool:
    """Ask before files are replaced that are there already: they may be another patient's."""
    names = [f"{case}_{ending}" for kind in kinds for ending in REPORT_FILES[kind]]
    there = [name for name in names if (folder / name).exists()]
    text = _("These files are in the folder already and are replaced: {names}.")
    return not there or confirm(text.format(names=", ".join(there)), _("Replace them?"))


def _checkedCase(case: str) -> str:
    case = case.strip()
    if not _CASE.fullmatch(case):
        raise InputError(
            _("{case!r} can't be a part of file names.").format(case=case),
            _("Use letters, digits, spaces, dots, dashes and underscores, beginning with a letter or digit."),
        )
    return case


class FigureList:
    """Fills a table widget of two columns.

    Args:
        widget: QTableWidget.
    """

    def __init__(self, widget: Any) -> None:
        self._widget = widget
        widget.setHorizontalHeaderLabels([_("Quantity"), _("Value")])
        widget.verticalHeader().hide()
        widget.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header = widget.horizontalHeader()
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        header.setSectionResizeMode(1, qt.QHeaderView.ResizeToContents)

    def show(self, quantities: Entries, evaluation: Entries) -> None:
        """Show what was measured, the comparison with a reference first; empty mappings empty the list."""
        rows = [*_evaluationRows(evaluation), *_quantityRows(quantities)]
        self._widget.setRowCount(len(rows))
        for row, (name, value, tip) in enumerate(rows):
            for column, text in enumerate((name, value)):
                item = self._widget.item(row, column)
                if item is None:
                    item = qt.QTableWidgetItem()
                    self._widget.setItem(row, column, item)
                item.setText(text)
                item.setToolTip(tip)


def _quantityRows(entries: Entries) -> Iterable[tuple[str, str, str]]:
    for name, region in _SHOWN:
        entry = entries.get(key_of(name, region))
        if entry is not None:
            title = (
                entry["title"] if region == "whole" else f"{entry['title']}, {catalog()['regions'][region]['title']}"
            )
            yield _named(title, entry), _value(entry), _tip(entry["definition"], entry)


def _evaluationRows(entries: Entries) -> Iterable[tuple[str, str, str]]:
    for name, quantity in QUANTITIES.items():
        if name in entries:
            yield quantity.title, _value(entries[name]), _tip(quantity.definition, entries[name])


def _named(title: str, entry: Mapping[str, Any]) -> str:
    """The title, and beneath it what is to be kept in mind of a value that is not plainly right."""
    status = status_text(entry["status"])
    return f"{title}\n({status})" if status and entry["value"] is not None else title


def _value(entry: Mapping[str, Any]) -> str:
    return figure_text(entry["value"], display_unit(entry["unit"]))


def _tip(definition: str, entry: Mapping[str, Any]) -> str:
    unit = display_unit(entry["unit"])
    parts = [definition, _("Unit: {unit}.").format(unit=unit) if unit else ""]
    if entry["status"] != "ok":
        parts.append(_("Status: {status}.").format(status=status_text(entry["status"])))
    return " ".join(part for part in parts if part)
