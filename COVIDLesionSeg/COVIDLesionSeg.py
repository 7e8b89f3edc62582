"""COVIDLesionSeg: COVID-19 pneumonia lesions in chest CT, found, corrected, measured, learned from.

Slicer's entry to the module. Everything else is in COVIDLesionSegLib.
"""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

from COVIDLesionSegLib.panel import LesionLogic, ModulePanel, TrainingLogic
from COVIDLesionSegLib.panel.application import forgetLibrary, measureKnownLesions, registerAtStartup
from COVIDLesionSegLib.panel.text import _
from COVIDLesionSegLib.resources import resource


def resourcePath(name: str) -> str:
    """A file in Resources/: beside the module where it is installed, one folder up in the source tree."""
    return str(resource(name))


class COVIDLesionSeg(ScriptedLoadableModule):
    """What Slicer shows about the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "COVIDLesionSeg"
        # Slicer's own category, in its own words
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Volumes", "Plots", "Tables"]
        parent.contributors = ["COVIDLesionSeg developers"]
        parent.helpText = _(
            "Finds COVID-19 pneumonia lesions in a chest CT with COPLE-Net or CARes-UNet, lets you correct and measure "
            "them, and learns from the corrections. For research only: not a medical device."
        )
        parent.acknowledgementText = _(
            "COPLE-Net: Wang et al., IEEE Transactions on Medical Imaging 2020, doi 10.1109/TMI.2020.3000314. "
            "CARes-UNet: Xu et al., Medical Physics 2021, doi 10.1002/mp.15231."
        )
        parent.icon = qt.QIcon(self.resourcePath("Icons/COVIDLesionSeg.png"))
        # the modules that are needed may be made after this one
        slicer.app.connect("startupCompleted()", registerAtStartup)

    def resourcePath(self, name: str) -> str:
        """See :func:`resourcePath`."""
        return resourcePath(name)


class COVIDLesionSegWidget(ScriptedLoadableModuleWidget):
    """The module's panel."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.panel: ModulePanel | None = None

    def resourcePath(self, name: str) -> str:
        """See :func:`resourcePath`."""
        return resourcePath(name)

    def setup(self) -> None:
        """Make the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        self.panel = ModulePanel(self.layout)

    def enter(self) -> None:
        """The module is shown."""
        if self.panel is not None:
            self.panel.enter()

    def exit(self) -> None:
        """Another module is shown."""
        if self.panel is not None:
            self.panel.exit()

    def cleanup(self) -> None:
        """The application ends, or the module is loaded again."""
        if self.panel is not None:
            self.panel.cleanup()
            self.panel = None

    def onReload(self) -> None:
        """Load the whole library again, not this file alone."""
        self.cleanup()
        forgetLibrary()
        ScriptedLoadableModuleWidget.onReload(self)


class COVIDLesionSegLogic(LesionLogic, ScriptedLoadableModuleLogic):
    """Segments and measures from Python; see ``COVIDLesionSegLib.panel.LesionLogic``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        LesionLogic.__init__(self, *arguments, **options)


class COVIDLesionSegTrainingLogic(TrainingLogic):
    """Fine-tunes from Python; see ``COVIDLesionSegLib.panel.TrainingLogic``."""


class COVIDLesionSegTest(ScriptedLoadableModuleTest):
    """What Slicer's self-test runs: lesions of known volume, put into the scene, measured and taken out again."""

    def runTest(self, **_options: Any) -> None:
        """Run all."""
        slicer.mrmlScene.Clear(False)
        self.test_known_volumes_are_measured()

    def test_known_volumes_are_measured(self) -> None:
        """Through scene, worker and back."""
        found, known = measureKnownLesions(COVIDLesionSegLogic())
        self.assertAlmostEqual(found, known, delta=0.01 * known)
