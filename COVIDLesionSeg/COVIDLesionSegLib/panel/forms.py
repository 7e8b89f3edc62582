"""Forms from ``Resources/UI``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import qt
import slicer
from slicer.parameterNodeWrapper import GuiConnector

from ..errors import InputError
from ..mrml import ModuleParameters
from ..resources import resource

# A second press this soon after the first is a double click, not another wish.
DOUBLE_CLICK_S = 0.5
# where an item of a list keeps its key
_KEY = qt.Qt.UserRole


@dataclass(frozen=True)
class Shortcut:
    """A key that does what a button does.

    Attributes:
        keys: e.g. "Ctrl+Return".
        text: what it does, as the list of shortcuts says it.
        action: what to call.
        isEverywhere: whether it works on every page, or on its own only.
    """

    keys: str
    text: str
    action: Callable[[], Any]
    isEverywhere: bool = False


class Page:
    """What the panel asks of a page.

    Attributes:
        form: the page's widget; shown while the page is in view.
        shortcuts: the panel installs and lists them.
        showsFigures: whether the lesions are measured while the page is in view.
    """

    form: Any
    shortcuts: Sequence[Shortcut] = ()
    showsFigures = False

    def showParameters(self, parameters: ModuleParameters) -> None:
        """Show the scene's choices."""

    def release(self, node: Any) -> None:
        """A node is about to be removed: let go of it before the selectors do."""

    def enter(self) -> None:
        """The page comes into view; called again where it is in view already."""

    def exit(self) -> None:
        """The page is out of view; called again where it is already."""

    def close(self) -> None:
        """The panel goes: listen no more."""


def loadForm(name: str, scene: Any = None) -> tuple[Any, Any]:
    """Load a form and hand the scene to its widgets.

    Args:
        name: of the file in ``Resources/UI``, without ending.
        scene: the MRML scene; None leaves the widgets without one.

    Returns:
        The form's widget, and an object that has its named widgets as attributes.

    Raises:
        InputError: the file is missing: the installation is not complete.
    """
    path = resource(f"UI/{name}.ui")
    if not path.is_file():
        raise InputError(f"{path.name} is missing.", "Install the extension again.")
    form = slicer.util.loadUI(str(path))
    widgets = slicer.util.childWidgetVariables(form)
    if scene is not None:
        setScene(form, scene)
    return form, widgets


def setScene(form: Any, scene: Any) -> None:
    """Give the scene to all widgets of a form that want one."""
    for widget in slicer.util.findChildren(form):
        if hasattr(widget, "setMRMLScene") and widget is not form:
            widget.setMRMLScene(scene)


def stacked(widget: Any) -> Any:
    """A layout, without margins, that puts what is added to a widget below each other."""
    layout = qt.QVBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    return layout


def addShortcut(keys: str, parent: Any, action: Any) -> Any:
    """A shortcut that works while the parent is visible; keep what is returned."""
    shortcut = qt.QShortcut(qt.QKeySequence(keys), parent)
    shortcut.connect("activated()", action)
    return shortcut


def connectPath(edit: Any, changed: Any) -> None:
    """Call whenever a path field has another path. The field tells valid paths; that it was emptied it tells apart."""
    edit.connect("currentPathChanged(QString)", lambda *_ignored: changed())
    edit.connect("validInputChanged(bool)", lambda valid=False, *_ignored: None if valid else changed())


def chooseData(combo: Any, value: Any) -> None:
    """Choose the entry of a combo box that carries this value; signals are not sent."""
    index = combo.findData(value)
    if index != combo.currentIndex:
        blocked = combo.blockSignals(True)
        combo.setCurrentIndex(index)
        combo.blockSignals(blocked)


def chosenData(combo: Any) -> Any:
    """The value of the chosen entry of a combo box."""
    return combo.itemData(combo.currentIndex)


def fillCombo(combo: Any, entries: list[tuple[Any, str]]) -> None:
    """Offer these (value, text); the chosen value stays chosen if it is among them. Signals are not sent."""
    if [(combo.itemData(index), combo.itemText(index)) for index in range(combo.count)] == entries:
        return
    chosen = chosenData(combo)
    blocked = combo.blockSignals(True)
    combo.clear()
    for value, text in entries:
        combo.addItem(text, value)
    combo.setCurrentIndex(max(combo.findData(chosen), 0) if entries else -1)
    combo.blockSignals(blocked)


def addEntry(widget: Any, text: str, tip: str, action: Any) -> Any:
    """An entry of the widget's context menu, or of what a tool button unfolds; its text and state can be changed."""
    entry = qt.QAction(text, widget)
    entry.setToolTip(tip)
    entry.connect("triggered(bool)", lambda *_ignored: action())
    widget.addAction(entry)
    return entry


def fillList(widget: Any, rows: list[tuple[str, str]]) -> None:
    """Offer these (key, text); the chosen row stays, or the one that takes its place. Signals are not sent."""
    items = [widget.item(index) for index in range(widget.count)]
    if [(str(item.data(_KEY)), item.text()) for item in items] == rows:
        return
    row, before = widget.currentRow, chosenKey(widget)
    blocked = widget.blockSignals(True)
    widget.clear()
    for key, text in rows:
        item = qt.QListWidgetItem(text)
        item.setData(_KEY, key)
        widget.addItem(item)
    keys = [key for key, _text in rows]
    widget.setCurrentRow(keys.index(before) if before in keys else min(row, len(rows) - 1))
    widget.blockSignals(blocked)


def chosenKey(widget: Any) -> str:
    """The key of the chosen row of a list, or ""."""
    item = widget.currentItem()
    return "" if item is None else str(item.data(_KEY))


def chooseKey(widget: Any, key: str) -> None:
    """Choose the row with this key, or none."""
    rows = [row for row in range(widget.count) if str(widget.item(row).data(_KEY)) == key]
    widget.setCurrentRow(rows[0] if rows else -1)


def showProgress(bar: Any, isOn: bool, fraction: float | None) -> None:
    """Show a progress bar while something is on; None is on its way, nobody knows how far."""
    bar.setVisible(isOn)
    bar.setRange(0, 0 if fraction is None else 1000)
    if fraction is not None:
        bar.setValue(round(1000 * fraction))


def showText(label: Any, text: str) -> None:
    """Show a text, or hide the label where there is none."""
    label.setText(text)
    label.setVisible(bool(text))


class DataConnector(GuiConnector):  # type: ignore[misc, unused-ignore]  # of Any, where slicer is not typed
    """Connects a parameter with a combo box whose entries carry its values, e.g. with translated texts::

        parameters.connectParametersToGui({"model": DataConnector(ui.modelCombo)})

    A value that no entry carries leaves nothing chosen; that nothing is chosen is not written back.
    """

    def __init__(self, combo: Any) -> None:
        super().__init__()
        self._combo = combo

    @staticmethod
    def canRepresent(widget: Any, datatype: Any) -> bool:  # noqa: ARG004
        """Never by itself: the kind of combo box does not show from its class."""
        return False

    @staticmethod
    def create(widget: Any, datatype: Any) -> DataConnector:  # noqa: ARG004
        """A connector of a combo box."""
        return DataConnector(widget)

    def _connect(self) -> None:
        self._combo.connect("currentIndexChanged(int)", self._onChosen)

    def _disconnect(self) -> None:
        self._combo.disconnect("currentIndexChanged(int)", self._onChosen)

    def _onChosen(self, index: int = -1, *_ignored: Any) -> None:
        if index >= 0:
            self.changed()

    def widget(self) -> Any:
        """The combo box."""
        return self._combo

    def read(self) -> Any:
        """The value of the chosen entry."""
        return chosenData(self._combo)

    def write(self, value: Any) -> None:
        """Choose the entry of a value."""
        chooseData(self._combo, value)
