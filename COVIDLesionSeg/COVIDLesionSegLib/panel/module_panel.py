"""The module's panel: four tabs that follow the work, and the messages under them."""

from __future__ import annotations

from typing import Any

import qt
import slicer
import vtk
from slicer.util import VTKObservationMixin

from .. import mrml
from ..mrml import ModuleParameters
from .correct_tab import CorrectTab
from .forms import addShortcut, setScene
from .learn_tab import LearnTab
from .measure_tab import MeasureTab
from .messages import Messages
from .segment_tab import SegmentTab
from .session import Session, session
from .text import _


class ModulePanel(VTKObservationMixin):
    """Puts the tabs together and tells them what the scene holds.

    Args:
        layout: of the module's widget.
        shared: the session; None takes that of this process.
    """

    def __init__(self, layout: Any, shared: Session | None = None) -> None:
        VTKObservationMixin.__init__(self)
        self.session = shared or session()
        self.session.attach(self)
        self._shown = False
        self._parameters: ModuleParameters | None = None
        scene = slicer.mrmlScene
        actions = {"undo": self.onUndo, "set_up_pytorch": self.onSetUp, "use_cpu": self.onUseProcessor}
        self.messages = Messages(actions, self.session.report)
        note = self.messages.note
        self.correct = CorrectTab(self.session, scene, note)
        self.segment = SegmentTab(self.session, scene, note, self.correct.undoFor)
        self.measure = MeasureTab(self.session, scene, note)
        self.learn = LearnTab(self.session, scene, note, self.correct.undoFor)
        self.tabs = qt.QTabWidget()
        self._pages = (self.segment, self.correct, self.measure, self.learn)
        for index, title in enumerate((_("Segment"), _("Correct"), _("Measure"), _("Learn"))):
            # only the form of the page in view is shown: a tab widget is as high as the highest of its pages needs
            page = qt.QWidget()
            layoutOfPage = qt.QVBoxLayout(page)
            layoutOfPage.setContentsMargins(0, 0, 0, 0)
            layoutOfPage.addWidget(self._pages[index].form)
            self.tabs.addTab(page, title)
            self.tabs.setTabToolTip(index, f"Alt+{index + 1}")
        layout.addWidget(self.tabs)
        layout.addWidget(self.messages.form)
        layout.addStretch(1)
        self._shortcuts = [
            addShortcut(f"Alt+{index + 1}", self.tabs, self._goer(index)) for index in range(self.tabs.count)
        ]
        self.tabs.connect("currentChanged(int)", lambda *_ignored: self._tabChanged())
        for teller in self._tellers():
            teller.noted.connect(note)
        self.session.run.finished.connect(self._onFinished)
        # loading and closing a scene are batches, at whose end the segment editor takes what its selectors have
        self.addObserver(scene, scene.EndBatchProcessEvent, self._onBatchEnded)
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeGoes)
        self.addObserver(scene, scene.NodeRemovedEvent, self._onNodeRemoved)
        self._useParameters()
        self._tabChanged()

    # ---- Slicer's calls -----------------------------------------------------------------------------------------

    def enter(self) -> None:
        """The module is shown."""
        self._shown = True
        self._useParameters()
        # a model may have been removed or trained meanwhile
        self.session.modelsChanged.emit()
        self._tabChanged()

    def exit(self) -> None:
        """Another module is shown."""
        self._shown = False
        self._tabChanged()

    def cleanup(self) -> None:
        """The panel goes: let go of everything."""
        self.exit()
        self.removeObservers()
        for teller in self._tellers():
            teller.noted.disconnect(self.messages.note)
        self.session.run.finished.disconnect(self._onFinished)
        for page in self._pages:
            page.close()
            setScene(page.form, None)
        self._parameters = None
        self.session.detach(self)

    def _tellers(self) -> tuple[Any, ...]:
        """Whose notices are shown."""
        return self.session.run, self.session.live, self.session.devices

    # ---- the scene ----------------------------------------------------------------------------------------------

    def _useParameters(self) -> None:
        """Follow the scene's parameters; after the scene was closed they are others."""
        parameters = mrml.moduleParameters()
        known = self._parameters
        if known is None or known.parameterNode is not parameters.parameterNode:
            if known is not None:
                self.removeObserver(known.parameterNode, "ModifiedEvent", self._onParameters)
            self._parameters = parameters
            self.addObserver(parameters.parameterNode, "ModifiedEvent", self._onParameters)
        self._onParameters()

    def _onParameters(self, *_ignored: Any) -> None:
        if self._parameters is None or slicer.mrmlScene.IsBatchProcessing():
            return
        for tab in (self.segment, self.correct, self.measure):
            tab.showParameters(self._parameters)
        self.session.live.refresh()

    def _onBatchEnded(self, *_ignored: Any) -> None:
        mrml.removeLostPredictions()
        self._useParameters()

    @vtk.calldata_type(vtk.VTK_OBJECT)  # type: ignore[untyped-decorator, unused-ignore]
    def _onNodeGoes(self, _caller: Any, _event: str, node: Any) -> None:
        """Let go of a node before the selectors do: they would choose its neighbor in its place."""
        if slicer.mrmlScene.IsClosing():
            return
        mrml.moduleParameters().release(node)
        self.correct.release(node)

    def _onNodeRemoved(self, *_ignored: Any) -> None:
        if not slicer.mrmlScene.IsBatchProcessing():
            mrml.removeLostPredictions()
            self._onParameters()

    # ---- tabs and buttons ---------------------------------------------------------------------------------------

    def _goer(self, index: int) -> Any:
        return lambda: self.tabs.setCurrentIndex(index)

    def _tabChanged(self) -> None:
        current = self._pages[self.tabs.currentIndex]
        for page in self._pages:
            page.form.setVisible(page is current)
        if self._shown and current is self.correct:
            self.correct.enter()
        else:
            self.correct.leave()
        if self._shown and current in (self.correct, self.measure):
            self.session.live.follow(self)
        else:
            self.session.live.unfollow(self)

    def _onFinished(self, volumeNode: Any, *_ignored: Any) -> None:
        # another CT may have been chosen while the run was on
        if self._shown and mrml.moduleParameters().inputVolume is volumeNode:
            mrml.showInViews(volumeNode)

    def onUndo(self) -> None:
        """Bring back what a result replaced."""
        self.correct.undo()

    def onSetUp(self) -> None:
        """Go to the page that sets PyTorch up."""
        self.tabs.setCurrentIndex(self._pages.index(self.learn))
        self.learn.showTorchPage()

    def onUseProcessor(self) -> None:
        """Run again on the processor."""
        if self._parameters is not None:
            self._parameters.device = "cpu"
            self.segment.onApply()
