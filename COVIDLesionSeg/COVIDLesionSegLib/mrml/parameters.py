"""The module's settings in the scene: one typed accessor over the parameter node.

What is stored by an older or newer version, or edited by hand, never breaks the panel: a value that can't be read, is
of another type or is not allowed counts as the default, and what is not known stays in the node.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, overload

import slicer

from ..documents import parse_json
from ..errors import InputError
from .contents import LESION_VIEWS
from .nodes import requireNode
from .segmentations import resultsOn

MODULE_NAME = "COVIDLesionSeg"
_NODE_CLASS = "vtkMRMLScriptedModuleNode"

T = TypeVar("T", bool, int, float, str)


class Parameter(Generic[T]):
    """A value of the parameter node, as JSON.

    Args:
        default: value where none is stored; its type is the parameter's.
        choices: allowed values, or none for any.
        limits: lowest and highest allowed number.
    """

    def __init__(self, default: T, choices: Sequence[T] = (), limits: tuple[float, float] | None = None) -> None:
        self.default: T = default
        self.choices: tuple[T, ...] = tuple(choices)
        self.limits = limits
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, parameters: None, owner: type) -> Parameter[T]: ...
    @overload
    def __get__(self, parameters: ParameterSet, owner: type) -> T: ...
    def __get__(self, parameters: ParameterSet | None, owner: type) -> Parameter[T] | T:
        if parameters is None:
            return self
        text = parameters.node.GetParameter(self.name)
        try:
            value = self._typed(parse_json(text, self.name))
        except ValueError:
            # versions before JSON wrote plain text
            value = text if text and isinstance(self.default, str) else None
        return self.default if value is None or self._fault(value) else value

    def __set__(self, parameters: ParameterSet, value: T) -> None:
        typed = self._typed(value)
        fault = f"must be {type(self.default).__name__}" if typed is None else self._fault(typed)
        if fault:
            raise InputError(f"The setting {self.name} {fault}; {value!r} is not allowed.")
        parameters.node.SetParameter(self.name, json.dumps(typed))

    def _typed(self, value: Any) -> Any:
        """The value in the parameter's type, or None: a bool is no number, an integer is a float too."""
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return value if type(value) is kind else None

    def _fault(self, value: Any) -> str:
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(map(str, self.choices))}"
        if self.limits and not self.limits[0] <= value <= self.limits[1]:
            return f"must lie from {self.limits[0]:g} to {self.limits[1]:g}"
        return ""


class NodeReference:
    """A reference to another node; None where there is none, or where it was deleted.

    Args:
        class_name: MRML class that it must have.
    """

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, parameters: ParameterSet | None, owner: type) -> Any:
        if parameters is None:
            return self
        node = parameters.node.GetNodeReference(self.name)
        return node if node is not None and node.IsA(self.class_name) else None

    def __set__(self, parameters: ParameterSet, node: Any) -> None:
        if node is not None:
            requireNode(node, self.class_name, self.name)
        parameters.node.SetNodeReferenceID(self.name, None if node is None else node.GetID())


class ChosenVolume(NodeReference):
    """The CT that is worked on. What belongs to a CT goes with it, and comes back when it is chosen again."""

    def __set__(self, parameters: ParameterSet, node: Any) -> None:
        if not isinstance(parameters, ModuleParameters) or node is parameters.inputVolume:
            return
        before = parameters.inputVolume
        if before is not None:
            _keep(before, {name: getattr(parameters, name) for name in OF_A_CT})
        super().__set__(parameters, node)
        for name, value in _belongings(node).items():
            setattr(parameters, name, value)


class ParameterSet:
    """Base of typed views of a parameter node; the node keeps the values, this class none.

    Args:
        node: vtkMRMLScriptedModuleNode.
    """

    def __init__(self, node: Any) -> None:
        self._node = requireNode(node, _NODE_CLASS, "parameter node")

    @property
    def node(self) -> Any:
        """The parameter node.

        Raises:
            InputError: it was deleted: get the parameters anew.
        """
        return requireNode(self._node, _NODE_CLASS, "parameter node")

    def update(self, **values: Any) -> None:
        """Set several at once, with one Modified event; all are set or, after an error, those before it.

        Raises:
            InputError: a name that is not known, a value that is not allowed.
        """
        modified = self.node.StartModify()
        try:
            # another CT first, which brings what belongs to it
            for name, value in sorted(values.items(), key=lambda item: item[0] != "inputVolume"):
                if not isinstance(getattr(type(self), name, None), Parameter | NodeReference):
                    raise InputError(f"There is no setting {name!r}.")
                setattr(self, name, value)
        finally:
            self._node.EndModify(modified)


class ModuleParameters(ParameterSet):
    """What the panel's choices are."""

    inputVolume = ChosenVolume("vtkMRMLScalarVolumeNode")
    lungSegmentation = NodeReference("vtkMRMLSegmentationNode")
    lesionSegmentation = NodeReference("vtkMRMLSegmentationNode")
    referenceSegmentation = NodeReference("vtkMRMLSegmentationNode")
    earlierVolume = NodeReference("vtkMRMLScalarVolumeNode")
    earlierSegmentation = NodeReference("vtkMRMLSegmentationNode")
    probabilityVolume = NodeReference("vtkMRMLScalarVolumeNode")
    uncertaintyVolume = NodeReference("vtkMRMLScalarVolumeNode")
    measurementTable = NodeReference("vtkMRMLTableNode")
    lesionTable = NodeReference("vtkMRMLTableNode")
    comparisonTable = NodeReference("vtkMRMLTableNode")
    changeTable = NodeReference("vtkMRMLTableNode")
    errorSegmentation = NodeReference("vtkMRMLSegmentationNode")
    histogramChart = NodeReference("vtkMRMLPlotChartNode")
    zoneChart = NodeReference("vtkMRMLPlotChartNode")

    model = Parameter("")
    device = Parameter("auto")
    findLungs = Parameter(True)
    testTimeAugmentation = Parameter(False)
    keepProbability = Parameter(False)
    keepUncertainty = Parameter(False)
    lesionView = Parameter(str(LESION_VIEWS[0]), choices=LESION_VIEWS)
    consolidationFrom = Parameter(-300.0, limits=(-1024.0, 3071.0))
    showSurfaces = Parameter(True)
    keepInsideLungs = Parameter(False)
    lungMargin = Parameter(3.0, limits=(0.0, 50.0))
    smoothAcrossSlices = Parameter(False)
    sliceSmoothing = Parameter(0.0, limits=(0.0, 20.0))
    minimumVolume = Parameter(0.0, limits=(0.0, 100.0))
    lesionSegmentId = Parameter("")
    referenceSegmentId = Parameter("")

    def release(self, node: Any) -> None:
        """Let go of a node that is about to be removed, wherever it is referred to, and do not touch it any more."""
        references = [name for name, value in vars(type(self)).items() if isinstance(value, NodeReference)]
        values: dict[str, Any] = {name: None for name in references if getattr(self, name) is node}
        if "inputVolume" in values:
            # what belongs to it goes with it and is kept nowhere
            values = {name: "" if name.endswith("Id") else None for name in OF_A_CT}
            self.node.SetNodeReferenceID("inputVolume", None)
        if values:
            self.update(**values)

    def keepWith(self, volumeNode: Any, **values: Any) -> None:
        """Set what belongs to a CT: among the choices if it is the chosen one, else with the CT.

        Args:
            volumeNode: the CT.
            values: names among :data:`OF_A_CT`.
        """
        if volumeNode is self.inputVolume:
            self.update(**values)
        else:
            _keep(volumeNode, values)

    def madeFrom(self, volumeNode: Any) -> list[Any]:
        """The maps, tables and charts that were made from a CT."""
        if volumeNode is self.inputVolume:
            found = [getattr(self, name) for name in _MADE]
        else:
            found = [volumeNode.GetNodeReference(_KEPT + name) for name in _MADE]
        return [node for node in found if node is not None]


#: What belongs to the chosen CT: other segmentations, maps, tables and charts than another CT's.
OF_A_CT = (
    *(name for name, value in vars(ModuleParameters).items() if type(value) is NodeReference),
    "lesionSegmentId",
    "referenceSegmentId",
)
_KEPT = f"{MODULE_NAME}."
_MADE = (
    *("probabilityVolume", "uncertaintyVolume", "errorSegmentation", "histogramChart", "zoneChart"),
    *("measurementTable", "lesionTable", "comparisonTable", "changeTable"),
)


def _keep(volumeNode: Any, values: dict[str, Any]) -> None:
    """Keep with a CT what belongs to it."""
    for name, value in values.items():
        if isinstance(getattr(ModuleParameters, name), NodeReference):
            volumeNode.SetNodeReferenceID(_KEPT + name, None if value is None else value.GetID())
        else:
            volumeNode.SetAttribute(_KEPT + name, value or None)


def _belongings(volumeNode: Any) -> dict[str, Any]:
    """What was kept with a CT; its last result and the lungs that were found in it where nothing was."""
    found: dict[str, Any] = {}
    for name in OF_A_CT:
        if isinstance(getattr(ModuleParameters, name), NodeReference):
            found[name] = None if volumeNode is None else volumeNode.GetNodeReference(_KEPT + name)
        else:
            found[name] = "" if volumeNode is None else volumeNode.GetAttribute(_KEPT + name) or ""
    if volumeNode is not None:
        for name, role in (("lesionSegmentation", "lesion"), ("lungSegmentation", "lungs")):
            found[name] = found[name] or next(reversed(resultsOn(volumeNode, role)), None)
    return found


def moduleParameters() -> ModuleParameters:
    """The module's parameters in the scene, made if there are none; get them again after the scene was closed."""
    scene = slicer.mrmlScene
    node = scene.GetSingletonNode(MODULE_NAME, _NODE_CLASS)
    if node is None:
        node = slicer.vtkMRMLScriptedModuleNode()
        node.SetSingletonTag(MODULE_NAME)
        node.SetName(MODULE_NAME)
        node = scene.AddNode(node)
    # closing a scene keeps the node, without its attributes
    if node.GetAttribute("ModuleName") != MODULE_NAME:
        node.SetAttribute("ModuleName", MODULE_NAME)
    return ModuleParameters(node)
