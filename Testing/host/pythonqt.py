"""PySide6 made to look like PythonQt, which Slicer's ``qt`` is.

Differences that module code meets, and what is done here:

- Qt properties are attributes: ``w.text``, ``w.enabled = False``, sizes too: ``w.sizeHint``. Calling one is an error.
- ``w.connect("clicked(bool)", slot)`` takes signatures as text; an unknown signal prints a line and connects nothing.
  :data:`failed_connections` keeps them, so that a test sees what nobody reads.
- Texts and numbers are converted: ``setText(5)``, ``setText(None)``, ``setValue(2.7)`` of whole numbers, and
  ``setChecked(None)`` are taken. Arguments by keyword are an error.
- Lists of texts, and ``children()``, come as tuples.
- C++ objects take no new attributes.
- An enum compared with a number is an error: PythonQt's enums are numbers, PySide6's are not, and code must not depend
  on either.
"""

from __future__ import annotations

import enum
import sys
import types
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

MODULES = (QtCore, QtGui, QtWidgets)
# C++ virtuals that are properties too, and so attributes.
_VIRTUAL = {"sizeHint", "minimumSizeHint"}
# Setters whose argument PythonQt converts, and how.
_CONVERTED = {"setText": lambda value: "" if value is None else str(value), "setChecked": bool}
_WHOLE = (QtWidgets.QSpinBox, QtWidgets.QAbstractSlider, QtWidgets.QProgressBar)
#: Connections to signals that there are not: (class, signal).
failed_connections: list[tuple[str, str]] = []
# What signals of Slicer's widgets carry, and what stands for it in the stand-ins' signals.
_OBJECTS = ("vtkMRMLNode*", "vtkMRMLScene*", "vtkObject*", "vtkMRMLSegmentationNode*", "QItemSelection", "QStringList")
_VTK = "PyObject"


class QtProperty:
    """A Qt property as an attribute of its objects; of the class, what was there before (``QTimer.singleShot``)."""

    def __init__(self, name: str, before: Any) -> None:
        self.name = name
        self.before = before

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self if self.before is None else self.before
        return _as_tuple(instance.property(self.name))

    def __set__(self, instance: Any, value: Any) -> None:
        if not instance.setProperty(self.name, value):
            raise AttributeError(f"{type(instance).__name__}.{self.name} can't be set to {value!r}.")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def install() -> None:
    """Change PySide6 for this process."""
    classes: list[Any] = []
    for module in MODULES:
        for name in dir(module):
            item = getattr(module, name)
            if isinstance(item, type):
                if issubclass(item, QtCore.QObject):
                    _add_properties(item)
                    if "__getattribute__" in vars(item) or item is QtCore.QObject:
                        classes.append(item)
                    _refuse_new_attributes(item)
                _make_enums_strict(item)
                _convert_arguments(item)
    QtCore.QTimer.singleShot = QtProperty("singleShot", single_shot)
    # QObject's reaches all others, but those that tell static functions from methods of one name have their own
    for item in classes:
        _patch_access(item)
    cls = QtCore.QObject
    cls.name = property(lambda self: self.property("objectName"), lambda self, v: self.setProperty("objectName", v))
    cls.className = lambda self: self.metaObject().className()
    cls.delete = lambda self: self.deleteLater()
    children = cls.children
    cls.children = lambda self: tuple(children(self))


#: What Slicer's ``singleShot`` hangs its timers on, in Slicer the module manager.
timers: list[Any] = []


def single_shot(milliseconds: int, action: Any) -> None:
    """Slicer's ``qt.QTimer.singleShot``: a timer that is never deleted and keeps what it calls."""
    timer = QtCore.QTimer()
    timer.setSingleShot(True)
    timer.timeout.connect(action)
    timers.append(timer)
    timer.start(milliseconds)


def add_setters(cls: type) -> type:
    """Class decorator: ``setX`` for every property x that a Python widget declares, as its C++ model has it."""
    for name, value in list(vars(cls).items()):
        setter = f"set{name[0].upper()}{name[1:]}"
        if isinstance(value, QtCore.Property) and not hasattr(cls, setter):
            setattr(cls, setter, lambda self, new, declared=value: declared.fset(self, new))
    return cls


def setting(kind: Any, name: str, default: Any) -> QtCore.Property:
    """A property that a stand-in only keeps; ``_setting_changed`` of its class hears of changes."""

    def get(self: Any) -> Any:
        return _as_tuple(vars(self).get(f"_{name}", default))

    def put(self: Any, value: Any) -> None:
        vars(self)[f"_{name}"] = value
        self._setting_changed()

    return QtCore.Property(kind, get, put)


def _add_properties(cls: Any) -> None:
    meta = cls.staticMetaObject
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        present = cls.__dict__.get(name)
        if name not in _VIRTUAL and not isinstance(present, property | QtCore.Property | QtProperty):
            setattr(cls, name, QtProperty(name, getattr(cls, name, None)))


def _make_enums_strict(cls: type) -> None:
    candidates = [cls, *(value for value in vars(cls).values() if isinstance(value, type))]
    for item in candidates:
        if issubclass(item, enum.Enum) and "__eq__" not in vars(item):
            item.__eq__ = _enum_equals  # type: ignore[assignment]
            item.__ne__ = lambda self, other: not _enum_equals(self, other)  # type: ignore[assignment]
            item.__hash__ = lambda self: hash(self._name_)  # type: ignore[assignment]


def _enum_equals(self: Any, other: Any) -> bool:
    if isinstance(other, int | float) and not isinstance(other, enum.Enum):
        raise TypeError(f"{self} is compared with the number {other}; compare it with the enum's name.")
    return type(self) is type(other) and self._value_ == other._value_


def _convert_arguments(cls: type) -> None:
    setters: dict[str, Any] = dict(_CONVERTED)
    if issubclass(cls, _WHOLE):
        setters["setValue"] = int
    for name, convert in setters.items():
        if name in vars(cls) and not issubclass(cls, QtGui.QClipboard):
            setattr(cls, name, _converting(name, getattr(cls, name), convert))


def _converting(name: str, method: Any, convert: Any) -> Any:
    def put(self: Any, value: Any, **by_keyword: Any) -> Any:
        if by_keyword:
            raise ValueError(f"{name} takes no arguments by keyword.")
        return method(self, convert(value))

    return put


_asked: set[tuple[int, str]] = set()


def _size(get: Any, self: Any, name: str) -> Any:
    """The size that a virtual gives. PySide6 itself asks for the attribute meanwhile, to see if it is overridden."""
    method, key = get(self, name), (id(self), name)
    if key in _asked:
        return method
    _asked.add(key)
    try:
        return method()
    finally:
        _asked.discard(key)


def _patch_access(cls: Any) -> None:
    get = cls.__getattribute__

    def getattribute(self: Any, name: str) -> Any:
        if name in _VIRTUAL and isinstance(self, QtWidgets.QWidget):
            return _size(get, self, name)
        # PySide6 treats these two on an instance in a way of its own; an attribute of the class is not looked at
        if name == "connect":
            return types.MethodType(_connect, self)
        if name == "disconnect":
            return types.MethodType(_disconnect, self)
        return get(self, name)

    cls.__getattribute__ = getattribute


def _refuse_new_attributes(cls: Any) -> None:
    def setattribute(self: Any, name: str, value: Any) -> None:
        # object.__setattr__ refuses PySide6's types, so this is its work in Python
        present = next((vars(base)[name] for base in type(self).__mro__ if name in vars(base)), None)
        if isinstance(present, QtCore.Property):
            if present.fset is None:
                raise AttributeError(f"{type(self).__name__}.{name} can only be read.")
            present.fset(self, value)
        elif hasattr(type(present), "__set__"):
            present.__set__(self, value)
        elif isinstance(value, QtCore.QObject | QtCore.SignalInstance):
            # PySide6 itself keeps signals there, and its loader of forms a form's widgets
            vars(self)[name] = value
        elif type(self).__module__.startswith("PySide6.") or not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no property {name}; C++ objects take no new attributes.")
        else:
            # what stands for a C++ class keeps its own things under names that nobody else uses
            vars(self)[name] = value

    cls.__setattr__ = setattribute


def _connect(self: Any, signal: Any, *target: Any) -> Any:
    if isinstance(signal, QtCore.QObject):
        # PySide6 itself calls it like the static function, sender first
        return QtCore.QObject.connect(signal, *target)
    if len(target) == 2 and isinstance(target[1], str):
        target = (target[0], "1" + target[1].lstrip("12"))
    elif len(target) == 1 and not callable(target[0]):
        raise TypeError(f"{target[0]!r} can't be connected: it can't be called.")
    signature = _signature(self, signal)
    return False if signature is None else QtCore.QObject.connect(self, signature, *target)


def _disconnect(self: Any, signal: Any, *target: Any) -> Any:
    signature = _signature(self, signal)
    return False if signature is None else QtCore.QObject.disconnect(self, signature, *target)


def _signature(instance: Any, signal: Any) -> Any:
    if not isinstance(signal, str):
        return signal
    normalized = QtCore.QMetaObject.normalizedSignature(signal.removeprefix("2")).data().decode()
    python = normalized
    for kind in _OBJECTS:
        python = python.replace(kind, _VTK)
    for candidate in (normalized, python):
        if instance.metaObject().indexOfSignal(candidate) >= 0:
            return "2" + candidate
    print(f"{type(instance).__name__} has no signal {signal}.", file=sys.stderr)
    failed_connections.append((type(instance).__name__, signal))
    return None
