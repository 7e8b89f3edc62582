"""Stand-in for ``slicer.parameterNodeWrapper``, which slicer-core's wheel lacks: a parameter node with typed members.

Members may be ``bool``, ``int``, ``float``, ``str`` and MRML nodes, with validators, a default and a serializer of
their own; Slicer also knows paths, enums, lists, unions and packs. What a caller sees is as in Slicer:

- A wrapper writes the default of each member that the node lacks, at once.
- A value is validated when it is set, not when it is read. What can't be converted is a ValueError at reading.
- Values are kept, and read again when the node says that it was modified: between ``StartModify`` and ``EndModify`` a
  wrapper does not see what others write into the node.
- A widget that is connected gets range, choices or node types from the member's annotations, then its value. It is
  written again, like all others, whenever the node was modified.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import sys
import types
import typing
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import slicer
import slicer.util

SlicerParameterNamePropertyName = "SlicerParameterName"
_UNBOUNDED_INT = (-(2**31), 2**31 - 1)


# ---- annotations ----------------------------------------------------------------------------------------------------


class Default:
    """The value of a member that the node lacks."""

    def __init__(self, value: Any = None, *, generator: Callable[[], Any] | None = None) -> None:
        self._value, self._generator = value, generator

    @property
    def value(self) -> Any:
        return self._generator() if self._generator else self._value


@dataclasses.dataclass
class Decimals:
    """Decimals of a connected spin box or slider."""

    value: int


@dataclasses.dataclass
class SingleStep:
    """Single step of a connected spin box or slider."""

    value: float


class Validator(abc.ABC):
    """Says which values may be set."""

    @abc.abstractmethod
    def validate(self, value: Any) -> None:
        """Raise an exception for a value that may not."""


class NotNone(Validator):
    """None may not."""

    def validate(self, value: Any) -> None:
        if value is None:
            raise ValueError("Value must not be None")


class IsInstance(Validator):
    """None and instances may."""

    def __init__(self, classtype: Any) -> None:
        self.classtype = classtype

    def validate(self, value: Any) -> None:
        if value is not None and not isinstance(value, self.classtype):
            raise TypeError(f"Value must be of type {self.classtype}, is {value!r}")


@dataclasses.dataclass
class WithinRange(Validator):
    """Numbers from a minimum to a maximum may."""

    minimum: float
    maximum: float

    def validate(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within [{self.minimum}, {self.maximum}], is {value}")


@dataclasses.dataclass
class Minimum(Validator):
    """Numbers from a minimum may."""

    minimum: float

    def validate(self, value: Any) -> None:
        if value < self.minimum:
            raise ValueError(f"Value must be at least {self.minimum}, is {value}")


@dataclasses.dataclass
class Maximum(Validator):
    """Numbers up to a maximum may."""

    maximum: float

    def validate(self, value: Any) -> None:
        if value > self.maximum:
            raise ValueError(f"Value must be at most {self.maximum}, is {value}")


@dataclasses.dataclass
class Choice(Validator):
    """Certain values may."""

    choices: Sequence[Any]

    def validate(self, value: Any) -> None:
        if value not in self.choices:
            raise ValueError(f"Value is {value}, but must be one of {self.choices}")


def splitAnnotations(datatype: Any) -> tuple[Any, list[Any]]:
    """A type and what it is annotated with."""
    kind, *annotations = typing.get_args(Annotated[datatype, None])
    return kind, annotations[:-1]


def unannotatedType(datatype: Any) -> Any:
    return splitAnnotations(datatype)[0]


def findFirstAnnotation(annotations: Sequence[Any], kind: type) -> Any:
    return next((annotation for annotation in annotations if isinstance(annotation, kind)), None)


def isNodeOrUnionOfNodes(datatype: Any) -> bool:
    kind = unannotatedType(datatype)
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


def getNodeTypes(datatype: Any) -> tuple[str, ...]:
    if not isNodeOrUnionOfNodes(datatype):
        raise TypeError(f"Cannot handle type {datatype}")
    return (unannotatedType(datatype)().GetClassName(),)


# ---- between values and the node ------------------------------------------------------------------------------------


class Serializer(abc.ABC):
    """Writes values of a type into a parameter node, and reads them."""

    @staticmethod
    @abc.abstractmethod
    def canSerialize(type_: Any) -> bool: ...

    @staticmethod
    @abc.abstractmethod
    def create(type_: Any) -> Any: ...

    @abc.abstractmethod
    def default(self) -> Any: ...

    @abc.abstractmethod
    def isIn(self, parameterNode: Any, name: str) -> bool: ...

    @abc.abstractmethod
    def write(self, parameterNode: Any, name: str, value: Any) -> None: ...

    @abc.abstractmethod
    def read(self, parameterNode: Any, name: str) -> Any: ...

    @abc.abstractmethod
    def remove(self, parameterNode: Any, name: str) -> None: ...

    def supportsCaching(self) -> bool:
        return False


class _TextSerializer(Serializer):
    """A value as a text parameter."""

    kind: Any
    #: what may be set
    accepted: Any

    @classmethod
    def canSerialize(cls, type_: Any) -> bool:  # type: ignore[override]
        return bool(type_ == cls.kind)

    @classmethod
    def create(cls, type_: Any) -> Any:  # type: ignore[override]
        return ValidatedSerializer(cls(), [NotNone(), IsInstance(cls.accepted)])

    def default(self) -> Any:
        return self.kind()

    def isIn(self, parameterNode: Any, name: str) -> bool:
        return bool(parameterNode.HasParameter(name))

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        parameterNode.SetParameter(name, str(value))

    def read(self, parameterNode: Any, name: str) -> Any:
        return self.kind(parameterNode.GetParameter(name))

    def remove(self, parameterNode: Any, name: str) -> None:
        parameterNode.UnsetParameter(name)

    def supportsCaching(self) -> bool:
        return True


class _IntSerializer(_TextSerializer):
    kind = accepted = int


class _FloatSerializer(_TextSerializer):
    kind, accepted = float, (int, float)

    def default(self) -> int:
        return 0


class StringSerializer(_TextSerializer):
    kind = accepted = str


class BoolSerializer(_TextSerializer):
    kind = accepted = bool

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        parameterNode.SetParameter(name, "True" if value else "False")

    def read(self, parameterNode: Any, name: str) -> bool:
        return bool(parameterNode.GetParameter(name) == "True")


class NodeSerializer(Serializer):
    """A node as a reference; a parameter of the same name, without text, tells that it was set, be it to None."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return isNodeOrUnionOfNodes(type_)

    @staticmethod
    def create(type_: Any) -> Any:
        return ValidatedSerializer(NodeSerializer(), [IsInstance(type_)])

    def default(self) -> None:
        return None

    def isIn(self, parameterNode: Any, name: str) -> bool:
        return bool(parameterNode.HasParameter(name))

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        parameterNode.SetParameter(name, "")
        parameterNode.SetNodeReferenceID(name, None if value is None else value.GetID())

    def read(self, parameterNode: Any, name: str) -> Any:
        return parameterNode.GetNodeReference(name)

    def remove(self, parameterNode: Any, name: str) -> None:
        parameterNode.UnsetParameter(name)
        parameterNode.RemoveNodeReferenceIDs(name)

    def supportsCaching(self) -> bool:
        return True


class ValidatedSerializer(Serializer):
    """A serializer that validates first."""

    def __init__(self, serializer: Any, validators: Sequence[Validator]) -> None:
        inner = serializer.validators if isinstance(serializer, ValidatedSerializer) else []
        self.serializer = serializer.serializer if isinstance(serializer, ValidatedSerializer) else serializer
        self.validators = [*inner, *validators]

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return False

    @staticmethod
    def create(type_: Any) -> Any:
        raise TypeError("ValidatedSerializer does not support create.")

    def default(self) -> Any:
        return self.serializer.default()

    def isIn(self, parameterNode: Any, name: str) -> bool:
        return bool(self.serializer.isIn(parameterNode, name))

    def validate(self, value: Any) -> None:
        for validator in self.validators:
            validator.validate(value)

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        self.validate(value)
        self.serializer.write(parameterNode, name, value)

    def read(self, parameterNode: Any, name: str) -> Any:
        return self.serializer.read(parameterNode, name)

    def remove(self, parameterNode: Any, name: str) -> None:
        self.serializer.remove(parameterNode, name)

    def supportsCaching(self) -> bool:
        return bool(self.serializer.supportsCaching())


_SERIALIZERS = (_IntSerializer, _FloatSerializer, StringSerializer, BoolSerializer, NodeSerializer)


@dataclasses.dataclass
class ParameterInfo:
    """A member: its name, how it is written, its default, its annotated type."""

    basename: str
    serializer: ValidatedSerializer
    default: Default
    unalteredType: Any


def _member(name: str, datatype: Any, given: Sequence[Any]) -> ParameterInfo:
    """A member of a class.

    Args:
        given: the value after the equals sign, if there is one.
    """
    kind, annotations = splitAnnotations(datatype)
    validators = [a for a in annotations if isinstance(a, Validator)]
    serializer = findFirstAnnotation(annotations, Serializer)
    if serializer is None:
        made = [known.create(kind) for known in _SERIALIZERS if known.canSerialize(kind)]
        if not made:
            raise TypeError(f"Unable to create serializer for type: {kind}")
        serializer = made[0]
    validated = ValidatedSerializer(serializer, validators)
    default = findFirstAnnotation(annotations, Default)
    if given:
        default = Default(given[0])
    elif default is None:
        default = Default(validated.default())
    unused = [a for a in annotations if not isinstance(a, Validator | Serializer) and (given or a is not default)]
    if unused:
        logging.warning("Unused annotations: %s", unused)
    return ParameterInfo(name, validated, default, datatype)


# ---- the wrapper ----------------------------------------------------------------------------------------------------


class _Value:
    """A member's value in a node, kept until the node is modified."""

    def __init__(self, info: ParameterInfo, name: str, parameterNode: Any) -> None:
        self.info, self.name, self.parameterNode = info, name, parameterNode
        if not info.serializer.isIn(parameterNode, name):
            info.serializer.write(parameterNode, name, info.default.value)
        self._writing = False
        self._tag = None
        if info.serializer.supportsCaching():
            self._kept = self._read()
            myself = weakref.ref(self)
            self._tag = parameterNode.AddObserver("ModifiedEvent", lambda *_ignored: myself()._modified())  # type: ignore[union-attr]

    def __del__(self) -> None:
        if getattr(self, "_tag", None) is not None:
            self.parameterNode.RemoveObserver(self._tag)

    def read(self) -> Any:
        return self._read() if self._tag is None else self._kept

    def write(self, value: Any) -> None:
        if self._tag is None:
            self.info.serializer.write(self.parameterNode, self.name, value)
            return
        self._writing = True
        try:
            # whoever hears of it finds the new value
            with slicer.util.NodeModify(self.parameterNode):
                self.info.serializer.write(self.parameterNode, self.name, value)
                self._kept = self._read()
        finally:
            self._writing = False

    def _read(self) -> Any:
        if not self.info.serializer.isIn(self.parameterNode, self.name):
            self.info.serializer.write(self.parameterNode, self.name, self.info.default.value)
        return self.info.serializer.read(self.parameterNode, self.name)

    def _modified(self) -> None:
        if not self._writing:
            self._kept = self._read()


class _Wrapper:
    """What :func:`parameterNodeWrapper` gives a class."""

    allParameters: dict[str, ParameterInfo]
    _is_parameter_node_wrapper = True

    def __init__(self, parameterNode: Any, prefix: str | None = None) -> None:
        self.parameterNode = parameterNode
        self._connected: dict[int, tuple[dict[str, GuiConnector], int]] = {}
        self._next_tag = 0
        self._showing = False
        self._values = {
            name: _Value(info, f"{prefix or ''}{name}", parameterNode) for name, info in self.allParameters.items()
        }

    def default(self, name: str) -> Default:
        return self._value(name).info.default

    def isCached(self, name: str) -> bool:
        return self._value(name).info.serializer.supportsCaching()

    def getValue(self, name: str) -> Any:
        return self._value(name).read()

    def setValue(self, name: str, value: Any) -> None:
        self._value(name).write(value)

    def _value(self, name: str) -> _Value:
        self.dataType(name)
        return self._values[name]

    @classmethod
    def dataType(cls, name: str) -> Any:
        if name not in cls.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {name}")
        return cls.allParameters[name].unalteredType

    def connectParametersToGui(self, mapping: Mapping[str, Any]) -> int:
        """Connect members with widgets, or with connectors of them; returns what :meth:`disconnectGui` wants."""
        for name in mapping:
            self.dataType(name)
        connectors = {
            name: widget if isinstance(widget, GuiConnector) else createGuiConnector(widget, self.dataType(name))
            for name, widget in mapping.items()
        }
        tag, self._next_tag = self._next_tag, self._next_tag + 1
        observer = self.AddObserver("ModifiedEvent", lambda *_ignored: self._show())
        self._connected[tag] = connectors, observer
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.onChanged(self._taker(name, connector))
        return tag

    def connectGui(self, gui: Any) -> int:
        """Connect all widgets that have a property SlicerParameterName.

        Args:
            gui: a widget, or what ``slicer.util.childWidgetVariables`` gives.
        """
        is_widget = getattr(gui, "isWidgetType", lambda: False)()
        widgets = gui.findChildren(sys.modules["qt"].QWidget) if is_widget else vars(gui).values()
        named = [(widget.property(SlicerParameterNamePropertyName), widget) for widget in widgets]
        return self.connectParametersToGui({name: widget for name, widget in named if name})

    def disconnectGui(self, tag: int) -> None:
        connectors, observer = self._connected.pop(tag, ({}, None))
        for connector in connectors.values():
            connector.onChanged(None)
        if observer is not None:
            self.RemoveObserver(observer)

    def _taker(self, name: str, connector: GuiConnector) -> Callable[[], None]:
        def take() -> None:
            with slicer.util.NodeModify(self):
                if not self._showing:
                    self.setValue(name, connector.read())

        return take

    def _show(self) -> None:
        if self._showing:
            return
        self._showing = True
        try:
            with slicer.util.NodeModify(self):
                for connectors, _observer in list(self._connected.values()):
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._showing = False

    def StartModify(self) -> Any:
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified: Any) -> Any:
        return self.parameterNode.EndModify(wasModified)

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> Any:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> Any:
        return self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> Any:
        return self.parameterNode.Modified()


def parameterNodeWrapper(classtype: Any = None) -> Any:
    """Class decorator: the annotated members are those of a parameter node, which the class is made with."""
    return _wrap if classtype is None else _wrap(classtype)


def _wrap(classtype: Any) -> Any:
    members = typing.get_type_hints(classtype, include_extras=True)
    parameters = {}
    for name, datatype in members.items():
        given = [getattr(classtype, name)] if hasattr(classtype, name) else []
        parameters[name] = _member(name, datatype, given)
        setattr(classtype, name, property(_getter(name), _setter(name)))
    for name, method in [*vars(_Wrapper).items(), ("allParameters", parameters)]:
        if name.startswith("__") and name != "__init__":
            continue
        if name != "__init__" and hasattr(classtype, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        setattr(classtype, name, method)
    return classtype


def _getter(name: str) -> Callable[[Any], Any]:
    return lambda self: self.getValue(name)


def _setter(name: str) -> Callable[[Any, Any], None]:
    return lambda self, value: self.setValue(name, value)


def isParameterNodeWrapper(classOrObj: Any) -> bool:
    return bool(getattr(classOrObj, "_is_parameter_node_wrapper", False))


# ---- widgets --------------------------------------------------------------------------------------------------------


class GuiConnector(abc.ABC):
    """Between a widget and values of a type."""

    def __init__(self) -> None:
        self._callback: Callable[[], None] | None = None

    @staticmethod
    @abc.abstractmethod
    def canRepresent(widget: Any, datatype: Any) -> bool: ...

    @staticmethod
    @abc.abstractmethod
    def create(widget: Any, datatype: Any) -> Any: ...

    def onChanged(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        if callback is None:
            self._disconnect()
        else:
            self._connect()

    def changed(self, *_ignored: Any) -> None:
        if self._callback:
            self._callback()

    @abc.abstractmethod
    def _connect(self) -> None: ...

    @abc.abstractmethod
    def _disconnect(self) -> None: ...

    @abc.abstractmethod
    def widget(self) -> Any: ...

    @abc.abstractmethod
    def read(self) -> Any: ...

    @abc.abstractmethod
    def write(self, value: Any) -> None: ...


_connectors: list[type[GuiConnector]] = []


def parameterNodeGuiConnector(classtype: Any = None) -> Any:
    """Class decorator: :func:`createGuiConnector` may take it."""

    def register(cls: Any) -> Any:
        if not issubclass(cls, GuiConnector):
            raise TypeError("Must be a GuiConnector subclass")
        _connectors.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def createGuiConnector(widget: Any, datatype: Any) -> GuiConnector:
    for connector in _connectors:
        if connector.canRepresent(widget, datatype):
            return typing.cast(GuiConnector, connector.create(widget, datatype))
    raise RuntimeError(f"Unable to create GUI connector from datatype '{datatype}' to widget type '{type(widget)}'.")


class _PropertyConnector(GuiConnector):
    """A widget whose value is a Qt property that a signal tells of."""

    #: exact classes of widgets: a subclass is another widget
    widgets: tuple[str, ...]
    kinds: tuple[Any, ...]
    signal: str
    value: str

    def __init__(self, widget: Any, datatype: Any) -> None:
        super().__init__()
        self._widget = widget
        self._type, self._annotations = splitAnnotations(datatype)
        self._prepare()

    @classmethod
    def canRepresent(cls, widget: Any, datatype: Any) -> bool:  # type: ignore[override]
        return type(widget).__name__ in cls.widgets and unannotatedType(datatype) in cls.kinds

    @classmethod
    def create(cls, widget: Any, datatype: Any) -> Any:  # type: ignore[override]
        return cls(widget, datatype)

    def _prepare(self) -> None:
        """Give the widget what the annotations say."""

    def _connect(self) -> None:
        getattr(self._widget, self.signal).connect(self.changed)

    def _disconnect(self) -> None:
        getattr(self._widget, self.signal).disconnect(self.changed)

    def widget(self) -> Any:
        return self._widget

    def read(self) -> Any:
        return getattr(self._widget, self.value)

    def write(self, value: Any) -> None:
        setattr(self._widget, self.value, value)

    def _annotation(self, kind: type) -> Any:
        return findFirstAnnotation(self._annotations, kind)

    def _bounds(self) -> tuple[Any, Any]:
        """Minimum and maximum as annotated; None where there is none."""
        within, least, most = (self._annotation(kind) for kind in (WithinRange, Minimum, Maximum))
        if within is not None:
            return within.minimum, within.maximum
        return None if least is None else least.minimum, None if most is None else most.maximum


@parameterNodeGuiConnector
class _CheckBox(_PropertyConnector):
    widgets, kinds, signal, value = ("QCheckBox", "ctkCheckBox"), (bool,), "stateChanged", "checked"


@parameterNodeGuiConnector
class _CheckableButton(_PropertyConnector):
    widgets, kinds, signal, value = ("QPushButton",), (bool,), "toggled", "checked"

    def _prepare(self) -> None:
        self._widget.checkable = True


@parameterNodeGuiConnector
class _WholeNumber(_PropertyConnector):
    widgets, kinds, signal, value = ("QSlider", "QSpinBox"), (int,), "valueChanged", "value"

    def _prepare(self) -> None:
        low, high = self._bounds()
        if type(self._widget).__name__ == "QSlider" and None in (low, high):
            raise RuntimeError("Cannot have a connection to QSlider where the int type is unbounded.")
        step = self._annotation(SingleStep)
        if step is not None:
            self._widget.singleStep = step.value
        self._widget.setRange(_UNBOUNDED_INT[0] if low is None else low, _UNBOUNDED_INT[1] if high is None else high)


@parameterNodeGuiConnector
class _Number(_PropertyConnector):
    widgets = ("QDoubleSpinBox", "ctkSliderWidget", "qMRMLSliderWidget", "ctkDoubleSpinBox", "qMRMLSpinBox")
    kinds, signal, value = (float, int), "valueChanged", "value"

    def _prepare(self) -> None:
        low, high = self._bounds()
        if type(self._widget).__name__.endswith("SliderWidget") and None in (low, high):
            raise RuntimeError("Cannot have a connection to ctkSliderWidget where the float types is unbounded.")
        decimals, step = self._annotation(Decimals), self._annotation(SingleStep)
        if self._type is int:
            self._widget.decimals = 0
        elif decimals is not None:
            self._widget.decimals = decimals.value
        if step is not None:
            self._widget.singleStep = step.value
        self._widget.minimum = float("-inf") if low is None else low
        self._widget.maximum = float("inf") if high is None else high

    def read(self) -> Any:
        return self._type(self._widget.value)

    def write(self, value: Any) -> None:
        self._widget.value = self._type(value)


@parameterNodeGuiConnector
class _Choice(_PropertyConnector):
    widgets, kinds = ("QComboBox", "ctkComboBox"), (int, float, str, bool)
    signal, value = "currentIndexChanged", "currentIndex"

    def _prepare(self) -> None:
        choice = self._annotation(Choice)
        if choice is None:
            raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
        self._choices = list(choice.choices)
        self._widget.clear()
        for known in self._choices:
            self._widget.addItem(str(known))

    def read(self) -> Any:
        return self._choices[self._widget.currentIndex]

    def write(self, value: Any) -> None:
        if value not in self._choices:
            raise ValueError(f"Unable to find value {value} in choices {self._choices}")
        self._widget.currentIndex = self._choices.index(value)


@parameterNodeGuiConnector
class _Line(_PropertyConnector):
    widgets, kinds, signal, value = ("QLineEdit",), (str,), "textChanged", "text"

    def write(self, value: Any) -> None:
        # the cursor stays where a user types
        if value != self._widget.text:
            self._widget.text = value


@parameterNodeGuiConnector
class _NodeChoice(_PropertyConnector):
    widgets, signal = ("qMRMLNodeComboBox",), "currentNodeChanged"

    @classmethod
    def canRepresent(cls, widget: Any, datatype: Any) -> bool:
        return type(widget).__name__ in cls.widgets and isNodeOrUnionOfNodes(datatype)

    def _prepare(self) -> None:
        self._widget.nodeTypes = getNodeTypes(self._type)

    def read(self) -> Any:
        return self._widget.currentNode()

    def write(self, value: Any) -> None:
        self._widget.setCurrentNode(value)


_PUBLIC = (
    *(
        Choice,
        Decimals,
        Default,
        GuiConnector,
        IsInstance,
        Maximum,
        Minimum,
        NotNone,
        SingleStep,
        Validator,
        WithinRange,
    ),
    *(BoolSerializer, NodeSerializer, Serializer, StringSerializer, ValidatedSerializer),
    *(createGuiConnector, findFirstAnnotation, getNodeTypes, isNodeOrUnionOfNodes, isParameterNodeWrapper),
    *(parameterNodeGuiConnector, parameterNodeWrapper, splitAnnotations, unannotatedType),
)


def install() -> None:
    """Make ``from slicer.parameterNodeWrapper import *`` work."""
    module = types.ModuleType("slicer.parameterNodeWrapper")
    names = {item.__name__: item for item in _PUBLIC}
    vars(module).update(names, SlicerParameterNamePropertyName=SlicerParameterNamePropertyName)
    module.__all__ = [*names, "SlicerParameterNamePropertyName"]  # type: ignore[attr-defined]
    sys.modules["slicer.parameterNodeWrapper"] = slicer.parameterNodeWrapper = module
