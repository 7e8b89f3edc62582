"""Between MRML nodes and arrays: volumes, segmentations, maps, tables, plots, records, parameters.

The only room that imports ``slicer`` and ``vtk`` besides the panel. Nodes are made in ``slicer.mrmlScene``; an earlier
node that is given is filled again, so that repeated runs leave no nodes behind.
"""

from .charts import showHistogram, showTrainingCurves, showZones
from .contents import LESION_VIEWS, LesionView
from .lungs import lungsFromSegmentation, showFoundLungs
from .maps import showErrors, showProbability, showUncertainty
from .nodes import (
    attachRecord,
    caseName,
    changeStamp,
    dicomFilesOf,
    nameCase,
    patientOf,
    placeUnderStudy,
    recordOf,
    removeNode,
    requireNode,
    voxelStamp,
)
from .parameters import OF_A_CT, ModuleParameters, moduleParameters
from .predictions import hasPrediction, keepPrediction, predictionMask, removeLostPredictions, resetToPrediction
from .segmentations import (
    EDITED,
    UndoStates,
    createSegmentation,
    hideOthers,
    lesionMask,
    loadTerminology,
    requireLabelmaps,
    resultsOn,
    segmentMask,
    segmentsMask,
    segmentsWithRole,
    showIn3D,
    showLesions,
    showLungs,
    volumeOf,
    writeSegment,
)
from .tables import showChanges, showComparison, showLesionList, showRegions
from .views import insideROI, jumpTo, showChart, showInViews, showMapInViews, shownSlice
from .volumes import gridOfNode, nodeFromVolume, valuesInside, volumeFromNode, volumeProblem

__all__ = [
    "EDITED",
    "LESION_VIEWS",
    "OF_A_CT",
    "LesionView",
    "ModuleParameters",
    "UndoStates",
    "attachRecord",
    "caseName",
    "changeStamp",
    "createSegmentation",
    "dicomFilesOf",
    "gridOfNode",
    "hasPrediction",
    "hideOthers",
    "insideROI",
    "jumpTo",
    "keepPrediction",
    "lesionMask",
    "loadTerminology",
    "lungsFromSegmentation",
    "moduleParameters",
    "nameCase",
    "nodeFromVolume",
    "patientOf",
    "placeUnderStudy",
    "predictionMask",
    "recordOf",
    "removeLostPredictions",
    "removeNode",
    "requireLabelmaps",
    "requireNode",
    "resetToPrediction",
    "resultsOn",
    "segmentMask",
    "segmentsMask",
    "segmentsWithRole",
    "showChanges",
    "showChart",
    "showComparison",
    "showErrors",
    "showFoundLungs",
    "showHistogram",
    "showIn3D",
    "showInViews",
    "showLesionList",
    "showLesions",
    "showLungs",
    "showMapInViews",
    "showProbability",
    "showRegions",
    "showTrainingCurves",
    "showUncertainty",
    "showZones",
    "shownSlice",
    "valuesInside",
    "volumeFromNode",
    "volumeOf",
    "volumeProblem",
    "voxelStamp",
    "writeSegment",
]
