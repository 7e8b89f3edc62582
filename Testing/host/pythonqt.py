"""PySide6 made to look like PythonQt, which Slicer's ``qt`` is, and at least as strict.

Differences that module code meets, and what is done here:

- Qt properties are attributes: ``w.text``, ``w.enabled = False``. Calling one is an error.
- ``w.connect("clicked(bool)", slot)`` takes signatures as text; an unknown signal is an error (PythonQt prints one).
- C++ objects take no new attributes.
- An enum compared with a number is an error: PythonQt's enums are numbers, PySide6's are not, and code must not depend
  on either.
"""

from __future__ import annotations

import enum
import types
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

MODULES = (QtCore, QtGui, QtWidgets)
# C++ virtuals that are properties too: PySide6 would take the attribute for an override and call it for ever.
_VIRTUAL = {"sizeHint", "minimumSizeHint"}
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
        return instance.property(self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        if not instance.setProperty(self.name, value):
            raise AttributeError(f"{type(instance).__name__}.{self.name} can't be set to {value!r}.")


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
    # QObject's reaches all others, but those that tell static functions from methods of one name have their own
    for item in classes:
        _patch_access(item)
    cls = QtCore.QObject
    cls.name = property(lambda self: self.property("objectName"), lambda self, v: self.setProperty("objectName", v))
    cls.className = lambda self: self.metaObject().className()
    cls.delete = lambda self: self.deleteLater()


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
        return vars(self).get(f"_{name}", default)

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


def _patch_access(cls: Any) -> None:
    get = cls.__getattribute__

    def getattribute(self: Any, name: str) -> Any:
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
        elif type(self).__module__.startswith("PySide6."):
            raise AttributeError(f"{type(self).__name__} has no property {name}; C++ objects take no new attributes.")
        else:
            # Python's own subclasses may have attributes, in PythonQt too
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
    return QtCore.QObject.connect(self, _signature(self, signal), *target)


def _disconnect(self: Any, signal: Any, *target: Any) -> Any:
    return QtCore.QObject.disconnect(self, _signature(self, signal), *target)


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
    raise ValueError(f"{type(instance).__name__} has no signal {signal}.")
