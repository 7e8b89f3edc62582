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
class ctkCollapsibleButton(QtWidgets.QAbstractButton):  # noqa: N801
    """A button above what it shows while it is checked."""

    contentsCollapsed = Signal(bool)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(next((a for a in arguments if isinstance(a, QtWidgets.QWidget)), None))
        self.setText(next((a for a in arguments if isinstance(a, str)), ""))
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(2, _HEADER + 2, 2, 2)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Minimum)
        self.toggled.connect(self._show_contents)

    def _show_contents(self, shown: bool) -> None:
        for child in self.findChildren(QtWidgets.QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(shown)
        self.setMaximumHeight(_UNLIMITED if shown else _HEADER + 2)
        self.updateGeometry()
        self.contentsCollapsed.emit(not shown)

    collapsed = Property(bool, lambda self: not self.checked, lambda self, v: self.setChecked(not v))
    flat = setting(bool, "flat", False)
    collapsedHeight = setting(int, "collapsedHeight", 14)
    contentsFrameShape = setting(int, "contentsFrameShape", 0)

    def _setting_changed(self) -> None:
        self.update()

    def hitButton(self, position: QtCore.QPoint) -> bool:
        return position.y() < _HEADER

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtGui.QPainter(self)
        header = QtCore.QRect(0, 0, self.width, _HEADER)
        painter.fillRect(header, self.palette.color(QtGui.QPalette.ColorRole.Button).darker(105))
        painter.setPen(self.palette.color(QtGui.QPalette.ColorRole.ButtonText))
        painter.drawText(header.adjusted(22, 0, 0, 0), Qt.AlignmentFlag.AlignVCenter, self.text)
        option = QtWidgets.QStyleOption()
        option.initFrom(self)
        option.rect = QtCore.QRect(4, 4, 16, 16)
        element = QtWidgets.QStyle.PrimitiveElement
        arrow = element.PE_IndicatorArrowRight if self.collapsed else element.PE_IndicatorArrowDown
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
    """A text browser that asks for the height of its text at the width that it gets, whatever that is."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        policy = QtWidgets.QSizePolicy
        self.setSizePolicy(policy.Policy.Ignored, policy.Policy.Preferred)
        self.textChanged.connect(self._fit)

    def hasHeightForWidth(self) -> bool:
        return True

    def heightForWidth(self, width: int) -> int:
        frame, document = 2 * self.frameWidth, self.document
        kept = document.textWidth
        document.setTextWidth(width - frame)
        height = math.ceil(document.size.height())
        document.setTextWidth(kept)
        return max(height, QtGui.QFontMetrics(document.defaultFont).lineSpacing()) + frame

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        QtWidgets.QTextBrowser.resizeEvent(self, event)
        self._fit()

    def _fit(self) -> None:
        # CTK's is a minimum size hint, a virtual that can't be overridden here
        self.setMinimumHeight(self.heightForWidth(self.width))


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
