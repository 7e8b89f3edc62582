"""The module's settings in the scene: a parameter node with typed members, which widgets connect to.

What another version stored, or a hand wrote, never breaks the panel: a value that can't be read or is not allowed gives
way to the default, and what is not known stays in the node.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import slicer
from slicer.parameterNodeWrapper import (
    Choice,
    IsInstance,
    NodeSerializer,
    WithinRange,
    isNodeOrUnionOfNodes,
    parameterNodeWrapper,
)

from ..errors import InputError
from .nodes import requireNode
from .segmentations import LESION_VIEWS, resultsOn

MODULE_NAME = "COVIDLesionSeg"
_NODE_CLASS = "vtkMRMLScriptedModuleNode"
_KEPT = f"{MODULE_NAME}."
_MADE = (
    *("probabilityVolume", "uncertaintyVolume", "errorSegmentation", "histogramChart", "zoneChart"),
    *("measurementTable", "lesionTable", "comparisonTable", "changeTable"),
)

if TYPE_CHECKING:

    class _Wrapper:
        """What the decorator adds."""

        allParameters: Mapping[str, Any]

        def __init__(self, parameterNode: Any) -> None:
            self.parameterNode = parameterNode

        @staticmethod
        def dataType(name: str) -> Any: ...
        def getValue(self, name: str) -> Any: ...
        def setValue(self, name: str, value: Any) -> None: ...
        def connectGui(self, gui: Any) -> int: ...
        def connectParametersToGui(self, mapping: Mapping[str, Any]) -> int: ...
        def disconnectGui(self, tag: int) -> None: ...

else:
    _Wrapper = object


class _ChosenVolume(NodeSerializer):  # type: ignore[misc, unused-ignore]  # of Any, where slicer is not typed
    """The CT that is worked on. What belongs to a CT goes with it, and comes back when it is chosen again."""

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        before = self.read(parameterNode, name)
        with slicer.util.NodeModify(parameterNode):
            if before is not None and value is not before:
                _keep(before, {name: _serializer(name).read(parameterNode, name) for name in OF_A_CT})
            super().write(parameterNode, name, value)
            if value is not before:
                for belonging, kept in _belongings(value).items():
                    _serializer(belonging).write(parameterNode, belonging, kept)


@parameterNodeWrapper
class ModuleParameters(_Wrapper):
    """What the panel's choices are.

    Widgets are connected by ``connectParametersToGui({"model": widget})``, or all of a form that have the property
    SlicerParameterName by ``connectGui(form)``; ``disconnectGui`` wants the number that either returns.
    """

    inputVolume: Annotated[slicer.vtkMRMLScalarVolumeNode, _ChosenVolume(), IsInstance(slicer.vtkMRMLScalarVolumeNode)]
    lungSegmentation: slicer.vtkMRMLSegmentationNode
    lesionSegmentation: slicer.vtkMRMLSegmentationNode
    referenceSegmentation: slicer.vtkMRMLSegmentationNode
    earlierVolume: slicer.vtkMRMLScalarVolumeNode
    earlierSegmentation: slicer.vtkMRMLSegmentationNode
    probabilityVolume: slicer.vtkMRMLScalarVolumeNode
    uncertaintyVolume: slicer.vtkMRMLScalarVolumeNode
    measurementTable: slicer.vtkMRMLTableNode
    lesionTable: slicer.vtkMRMLTableNode
    comparisonTable: slicer.vtkMRMLTableNode
    changeTable: slicer.vtkMRMLTableNode
    errorSegmentation: slicer.vtkMRMLSegmentationNode
    histogramChart: slicer.vtkMRMLPlotChartNode
    zoneChart: slicer.vtkMRMLPlotChartNode

    model: str
    device: str = "auto"
    findLungs: bool = True
    testTimeAugmentation: bool = False
    keepProbability: bool = False
    keepUncertainty: bool = False
    lesionView: Annotated[str, Choice(LESION_VIEWS)] = LESION_VIEWS[0]
    consolidationFrom: Annotated[float, WithinRange(-1024.0, 3071.0)] = -300.0
    showSurfaces: bool = True
    keepInsideLungs: bool = False
    lungMargin: Annotated[float, WithinRange(0.0, 50.0)] = 3.0
    smoothAcrossSlices: bool = False
    sliceSmoothing: Annotated[float, WithinRange(0.0, 20.0)] = 0.0
    minimumVolume: Annotated[float, WithinRange(0.0, 100.0)] = 0.0
    lesionSegmentId: str
    referenceSegmentId: str

    def update(self, **values: Any) -> None:
        """Set several at once, with one Modified event; all are set or, after an error, those before it.

        Raises:
            InputError: a name that is not known, a value that is not allowed, a node that was deleted.
        """
        with slicer.util.NodeModify(self.parameterNode):
            # another CT first, which brings what belongs to it
            for name, value in sorted(values.items(), key=lambda item: item[0] != "inputVolume"):
                if name not in self.allParameters:
                    raise InputError(f"There is no setting {name!r}.")
                if isinstance(value, slicer.vtkMRMLNode):
                    requireNode(value, "vtkMRMLNode", name)
                try:
                    self.setValue(name, value)
                except (TypeError, ValueError) as error:
                    raise InputError(f"The setting {name} can't be {value!r}: {error}") from error

    def release(self, node: Any) -> None:
        """Let go of a node that is about to be removed, wherever it is referred to, and do not touch it any more."""
        values: dict[str, Any] = {name: None for name in _NODES if self.parameterNode.GetNodeReference(name) is node}
        with slicer.util.NodeModify(self.parameterNode):
            if "inputVolume" in values:
                # what belongs to it goes with it and is kept nowhere
                self.parameterNode.SetNodeReferenceID("inputVolume", None)
                values |= {name: "" if name.endswith("Id") else None for name in OF_A_CT}
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

    def keptWith(self, volumeNode: Any, name: str) -> Any:
        """What belongs to a CT: the choice if it is the chosen one, else what was kept with it.

        Args:
            volumeNode: the CT.
            name: among :data:`OF_A_CT`.
        """
        return getattr(self, name) if volumeNode is self.inputVolume else _belongings(volumeNode)[name]

    def madeFrom(self, volumeNode: Any) -> list[Any]:
        """The maps, tables and charts that were made from a CT."""
        if volumeNode is self.inputVolume:
            found = [getattr(self, name) for name in _MADE]
        else:
            found = [volumeNode.GetNodeReference(_KEPT + name) for name in _MADE]
        return [node for node in found if node is not None]


_NODES = tuple(name for name in ModuleParameters.allParameters if isNodeOrUnionOfNodes(ModuleParameters.dataType(name)))
#: What belongs to the chosen CT: other segmentations, maps, tables and charts than another CT's.
OF_A_CT = (*(name for name in _NODES if name != "inputVolume"), "lesionSegmentId", "referenceSegmentId")
# One for all who hold it: each reads the whole node whenever it was modified.
_held: weakref.WeakValueDictionary[str, ModuleParameters] = weakref.WeakValueDictionary()


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
    for name in ModuleParameters.allParameters:
        if not _is_readable(node, name):
            _serializer(name).remove(node, name)
    parameters = _held.get(node.GetID())
    if parameters is None or parameters.parameterNode is not node:
        parameters = _held[node.GetID()] = ModuleParameters(node)
    elif any(parameters.getValue(name) is not node.GetNodeReference(name) for name in _NODES):
        # a scene that is read brings the parameters before the nodes that they refer to, and tells nothing of these
        node.Modified()
    return parameters


def _serializer(name: str) -> Any:
    return ModuleParameters.allParameters[name].serializer


def _is_readable(node: Any, name: str) -> bool:
    """Whether a parameter is not in the node, or has a value that is allowed."""
    serializer = _serializer(name)
    try:
        if serializer.isIn(node, name):
            serializer.validate(serializer.read(node, name))
    except (TypeError, ValueError):
        return False
    return True


def _keep(volumeNode: Any, values: dict[str, Any]) -> None:
    """Keep with a CT what belongs to it."""
    for name, value in values.items():
        if name in _NODES:
            volumeNode.SetNodeReferenceID(_KEPT + name, None if value is None else value.GetID())
        else:
            volumeNode.SetAttribute(_KEPT + name, value or None)


def _belongings(volumeNode: Any) -> dict[str, Any]:
    """What was kept with a CT; its last result and the lungs that were found in it where nothing was."""
    found: dict[str, Any] = {name: None if name in _NODES else "" for name in OF_A_CT}
    if volumeNode is not None:
        for name in OF_A_CT:
            kept = volumeNode.GetNodeReference if name in _NODES else volumeNode.GetAttribute
            found[name] = kept(_KEPT + name) or found[name]
        for name, role in (("lesionSegmentation", "lesion"), ("lungSegmentation", "lungs")):
            found[name] = found[name] or next(reversed(resultsOn(volumeNode, role)), None)
    return found
