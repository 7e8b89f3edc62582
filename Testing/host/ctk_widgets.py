"""Stand-ins for the ctk widgets that the panel uses, with their properties and signals."""

from __future__ import annotations

import fnmatch
import math
import re
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Qt, Signal

from .pythonqt import add_setters, setting

_HEADER = 24
_UNLIMITED = 16777215


@add_setters
class ctkCollapsibleButton(QtWidgets.QWidget):  # noqa: N801
    """A header that shows or hides what lies below it."""

    contentsCollapsed = Signal(bool)
    toggled = Signal(bool)
    clicked = Signal(bool)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(next((a for a in arguments if isinstance(a, QtWidgets.QWidget)), None))
        self._text = next((a for a in arguments if isinstance(a, str)), "")
        self._collapsed = False
        self.setContentsMargins(2, _HEADER + 2, 2, 2)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Minimum)

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    def _set_collapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        for child in self.findChildren(QtWidgets.QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(not collapsed)
        self.setMaximumHeight(_HEADER + 2 if collapsed else _UNLIMITED)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)
        self.toggled.emit(not collapsed)

    text = Property(str, lambda self: self._text, _set_text)
    collapsed = Property(bool, lambda self: self._collapsed, _set_collapsed)
    checked = Property(bool, lambda self: not self._collapsed, lambda self, v: self._set_collapsed(not v))
    flat = setting(bool, "flat", False)
    collapsedHeight = setting(int, "collapsedHeight", 0)
    contentsFrameShape = setting(int, "contentsFrameShape", 0)

    def _setting_changed(self) -> None:
        self.update()

    def click(self) -> None:
        self._set_collapsed(not self._collapsed)
        self.clicked.emit(not self._collapsed)

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        if event.position().y() < _HEADER:
            self.click()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtGui.QPainter(self)
        header = QtCore.QRect(0, 0, self.width, _HEADER)
        painter.fillRect(header, self.palette.color(QtGui.QPalette.ColorRole.Button).darker(105))
        painter.setPen(self.palette.color(QtGui.QPalette.ColorRole.ButtonText))
        painter.drawText(header.adjusted(22, 0, 0, 0), Qt.AlignmentFlag.AlignVCenter, self._text)
        option = QtWidgets.QStyleOption()
        option.initFrom(self)
        option.rect = QtCore.QRect(4, 4, 16, 16)
        element = QtWidgets.QStyle.PrimitiveElement
        arrow = element.PE_IndicatorArrowRight if self._collapsed else element.PE_IndicatorArrowDown
        self.style().drawPrimitive(arrow, option, painter, self)
        painter.end()


@add_setters
class ctkSliderWidget(QtWidgets.QWidget):  # noqa: N801
    """A slider with a spin box."""

    valueChanged = Signal(float)
    _TICKS = 1000

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(Qt.Orientation.Horizontal)
        self._slider.setRange(0, self._TICKS)
        self._box = QtWidgets.QDoubleSpinBox()
        _row(self, self._slider, self._box)
        self._box.valueChanged.connect(self._box_changed)
        self._slider.sliderMoved.connect(self._slider_moved)

    def _box_changed(self, value: float) -> None:
        span = self._box.maximum - self._box.minimum
        self._slider.setValue(round(self._TICKS * (value - self._box.minimum) / span) if span else 0)
        self.valueChanged.emit(value)

    def _slider_moved(self, tick: int) -> None:
        self._box.setValue(self._box.minimum + tick / self._TICKS * (self._box.maximum - self._box.minimum))

    def _setting_changed(self) -> None:
        """Kept only."""

    value = Property(float, lambda self: self._box.value, lambda self, v: self._box.setValue(v))
    minimum = Property(float, lambda self: self._box.minimum, lambda self, v: self._box.setMinimum(v))
    maximum = Property(float, lambda self: self._box.maximum, lambda self, v: self._box.setMaximum(v))
    singleStep = Property(float, lambda self: self._box.singleStep, lambda self, v: self._box.setSingleStep(v))
    decimals = Property(int, lambda self: self._box.decimals, lambda self, v: self._box.setDecimals(v))
    suffix = Property(str, lambda self: self._box.suffix, lambda self, v: self._box.setSuffix(v))
    pageStep = setting(float, "pageStep", 1.0)
    tracking = setting(bool, "tracking", True)


@add_setters
class ctkPathLineEdit(QtWidgets.QWidget):  # noqa: N801
    """A path with a button to browse; as ctk's, it tells only paths that it takes for valid."""

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)
    Dirs, Drives, Files, NoDot, NoDotDot = 1, 4, 2, 8192, 16384
    Readable, Writable, Executable = 16, 32, 64

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._edit, self._button = QtWidgets.QLineEdit(), QtWidgets.QToolButton()
        self._button.setText("...")
        _row(self, self._edit, self._button)
        self._was_valid = False
        self._edit.textChanged.connect(lambda _: self._tell())

    def _setting_changed(self) -> None:
        """Kept only."""

    def _is_valid(self) -> bool:
        """Not empty; with an ending of the name filters, if they name any: "All files (*)" beside them adds nothing."""
        path = self._edit.text
        patterns = re.findall(r"\*\.[\w.]+", " ".join(self.nameFilters))
        return bool(path) and (not patterns or any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns))

    def _tell(self) -> None:
        valid = self._is_valid()
        if valid:
            self.currentPathChanged.emit(self._edit.text)
        if valid != self._was_valid:
            self._was_valid = valid
            self.validInputChanged.emit(valid)

    currentPath = Property(str, lambda self: self._edit.text, lambda self, v: self._edit.setText(str(v)))
    filters = setting(int, "filters", 2)
    nameFilters = setting("QStringList", "nameFilters", [])
    settingKey = setting(str, "settingKey", "")
    label = setting(str, "label", "")
    showHistoryButton = setting(bool, "showHistoryButton", True)

    def addCurrentPathToHistory(self) -> None:
        """There is no history."""


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):  # noqa: N801
    """A group box that can be checked, and then folds its contents."""

    def _get(self) -> bool:
        return bool(vars(self).get("_collapsed", False))

    def _set(self, collapsed: bool) -> None:
        vars(self)["_collapsed"] = collapsed
        for child in self.findChildren(QtWidgets.QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(not collapsed)

    collapsed = Property(bool, _get, _set)


class ctkComboBox(QtWidgets.QComboBox):  # noqa: N801
    """A combo box."""


class ctkPushButton(QtWidgets.QPushButton):  # noqa: N801
    """A button."""


class ctkFittedTextBrowser(QtWidgets.QTextBrowser):  # noqa: N801
    """A text browser that is as high as its text and never scrolls."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.textChanged.connect(self._fit)

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        QtWidgets.QTextBrowser.resizeEvent(self, event)
        if event.size().width() != event.oldSize().width():
            self._fit()

    def _fit(self) -> None:
        self.setFixedHeight(math.ceil(self.document.size.height()) + 2 * self.frameWidth)


CLASSES = {
    cls.__name__: cls
    for cls in (
        ctkCollapsibleButton,
        ctkCollapsibleGroupBox,
        ctkComboBox,
        ctkFittedTextBrowser,
        ctkPathLineEdit,
        ctkPushButton,
        ctkSliderWidget,
    )
}


def _row(widget: QtWidgets.QWidget, *children: QtWidgets.QWidget) -> None:
    layout = QtWidgets.QHBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    for child in children:
        layout.addWidget(child)
