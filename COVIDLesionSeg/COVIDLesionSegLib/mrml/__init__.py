"""Between MRML nodes and arrays: volumes, segmentations, maps, tables, plots, records, parameters.

The only room that imports ``slicer`` and ``vtk`` besides the panel. Nodes are made in ``slicer.mrmlScene``; an earlier
node that is given is filled again, so that repeated runs leave no nodes behind.
"""

from .contents import LESION_VIEWS, LesionView
from .hierarchy import placeUnderStudy, studyOf
from .maps import showErrors, showProbability, showUncertainty
from .nodes import removeNode, requireNode
from .parameters import ModuleParameters, NodeReference, Parameter, ParameterSet, moduleParameters
from .plots import showHistogram, showLossCurves, showZones
from .records import attachRecord, recordOf
from .segmentations import (
    UndoStates,
    createSegmentation,
    lesionMask,
    segmentMask,
    segmentsWithRole,
    showIn3D,
    showLesions,
    showLungs,
    writeSegment,
)
from .tables import showComparison, showLesionList, showRegions
from .terminology import loadTerminology
from .undo import UndoHistory
from .volumes import gridOfNode, labelsFromNode, nodeFromVolume, volumeFromNode, volumeProblem

__all__ = [
    "LESION_VIEWS",
    "LesionView",
    "ModuleParameters",
    "NodeReference",
    "Parameter",
    "ParameterSet",
    "UndoHistory",
    "UndoStates",
    "attachRecord",
    "createSegmentation",
    "gridOfNode",
    "labelsFromNode",
    "lesionMask",
    "loadTerminology",
    "moduleParameters",
    "nodeFromVolume",
    "placeUnderStudy",
    "recordOf",
    "removeNode",
    "requireNode",
    "segmentMask",
    "segmentsWithRole",
    "showComparison",
    "showErrors",
    "showHistogram",
    "showIn3D",
    "showLesionList",
    "showLesions",
    "showLossCurves",
    "showLungs",
    "showProbability",
    "showRegions",
    "showUncertainty",
    "showZones",
    "studyOf",
    "volumeFromNode",
    "volumeProblem",
    "writeSegment",
]
