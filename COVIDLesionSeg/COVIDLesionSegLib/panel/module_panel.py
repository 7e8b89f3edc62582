"""The module's panel: pages that follow the work, and the messages under them, which stay in view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from slicer.util import VTKObservationMixin

from .. import mrml
from ..mrml import ModuleParameters
from ..worker import Timer
from .cases_page import CasesPage
from .correct_page import CorrectPage
from .forms import Page, addShortcut, loadForm, setScene, stacked
from .measure_page import MeasurePage
from .messages import Messages
from .segment_page import SegmentPage
from .session import Session, session
from .settings_page import SettingsPage
from .store_client import StoreClient
from .text import _
from .train_page import TrainPage
from .training import TrainingLogic

# a volume that is loaded is added to the scene first, and filled then
_LOADED_MS = 100
_TO_THE_END = 100_000


class ModulePanel(VTKObservationMixin):
    """Puts the pages together and tells them what the scene holds.

    Slicer's panel scrolls what is higher than it. The pages scroll by themselves, so that the buttons above and the
    messages below are never out of view.

    Args:
        layout: of the module's widget.
        shared: the session; None takes that of this process.

    Attributes:
        pages: name -> page, in their order.
        current: name of the page in view.
    """

    def __init__(self, layout: Any, shared: Session | None = None) -> None:
        VTKObservationMixin.__init__(self)
        self.session = shared or session()
        self.session.attach(self)
        self._shown = False
        self._loading: Timer | None = None
        self._surfaces: Any = None
        self._parameters: ModuleParameters | None = None
        scene = slicer.mrmlScene
        actions = {"undo": self.onUndo, "set_up_pytorch": self.onSetUp, "use_cpu": self.onUseProcessor}
        self.messages = Messages(actions, self.session.report)
        note = self.messages.note
        self.form, self._ui = loadForm("Panel")
        self.store, training = StoreClient(self.session), TrainingLogic()
        self.correct = CorrectPage(self.session, scene, note, self.store)
        self.segment = SegmentPage(self.session, scene, note, self.correct.undoFor, self.show)
        self.measure = MeasurePage(self.session, scene, note)
        self.cases = CasesPage(self.session, scene, note, self.store, self.correct.work, training)
        self.train = TrainPage(self.session, scene, note, self.store, training)
        self.settings = SettingsPage(self.session, scene, note, self.store)
        self.pages: dict[str, Page] = {
            "segment": self.segment,
            "measure": self.measure,
            "correct": self.correct,
            "cases": self.cases,
            "train": self.train,
            "settings": self.settings,
        }
        self.current = "segment"
        # how far each page was scrolled when it was left
        self._scrolled: dict[str, int] = {}
        contents = stacked(self._ui.pageContents)
        for name, page in self.pages.items():
            contents.addWidget(page.form)
            button = getattr(self._ui, f"{name}PageButton")
            button.connect("clicked(bool)", self._goer(name))
        contents.addStretch(1)
        layout.addWidget(self.form)
        stacked(self._ui.messageContainer).addWidget(self.messages.form)
        self.shortcuts = self._addShortcuts()
        for teller in self._tellers():
            teller.noted.connect(note)
        self.session.run.finished.connect(self._onFinished)
        # a case is corrected where it was opened
        self.correct.work.opened.connect(self._goer("correct"))
        # loading and closing a scene are batches, at whose end the segment editor takes what its selectors have
        self.addObserver(scene, scene.EndBatchProcessEvent, self._onBatchEnded)
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeGoes)
        self.addObserver(scene, scene.NodeRemovedEvent, self._onNodeRemoved)
        self.addObserver(scene, scene.NodeAddedEvent, self._onNodeAdded)
        self._useParameters()
        self._showPage()

    # ---- Slicer's calls -----------------------------------------------------------------------------------------

    def enter(self) -> None:
        """The module is shown."""
        self._shown = True
        self._useParameters()
        self.segment.chooseLoaded()
        # a model may have been removed or trained meanwhile
        self.session.modelsChanged.emit()
        self._showPage()

    def exit(self) -> None:
        """Another module is shown."""
        self._shown = False
        self._showPage()

    def cleanup(self) -> None:
        """The panel goes: let go of everything."""
        self.exit()
        self.removeObservers()
        if self._loading is not None:
            self._loading.stop()
        for teller in self._tellers():
            teller.noted.disconnect(self.messages.note)
        self.session.run.finished.disconnect(self._onFinished)
        for shortcut in self.shortcuts:
            shortcut.setEnabled(False)
        for page in self.pages.values():
            page.close()
            setScene(page.form, None)
        self.store.close()
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
        for page in self.pages.values():
            page.showParameters(self._parameters)
        self.session.live.refresh()

    def _onBatchEnded(self, *_ignored: Any) -> None:
        mrml.removeLostPredictions()
        self._useParameters()

    @vtk.calldata_type(vtk.VTK_OBJECT)  # type: ignore[untyped-decorator, unused-ignore]
    def _onNodeGoes(self, _caller: Any, _event: str, node: Any) -> None:
        """Let go of a node before the selectors do: they would choose its neighbor in its place."""
        if slicer.mrmlScene.IsClosing():
            return
        parameters = mrml.moduleParameters()
        if self._loading is not None and node is parameters.inputVolume:
            # nothing takes the place of a CT that was deleted: it could be another patient's
            self._loading.stop()
            self._loading = None
        parameters.release(node)
        for page in self.pages.values():
            page.release(node)

    def _onNodeRemoved(self, *_ignored: Any) -> None:
        if not slicer.mrmlScene.IsBatchProcessing():
            mrml.removeLostPredictions()
            self._onParameters()

    @vtk.calldata_type(vtk.VTK_OBJECT)  # type: ignore[untyped-decorator, unused-ignore]
    def _onNodeAdded(self, _caller: Any, _event: str, node: Any) -> None:
        if self._shown and self._loading is None and node.IsA("vtkMRMLScalarVolumeNode"):
            # it has its voxels in a moment
            self._loading = self.session.timer(_LOADED_MS, self._onLoaded)

    def _onLoaded(self) -> None:
        self._loading = None
        self.segment.chooseLoaded()

    # ---- pages and buttons --------------------------------------------------------------------------------------

    def show(self, name: str) -> None:
        """Bring a page into view.

        Args:
            name: one of :attr:`pages`, or "export", a part of the page Measure.
        """
        if name == "export":
            name = "measure"
            self.measure.showExport()
            self._scrolled[name] = _TO_THE_END
        if name != self.current:
            bar = self._ui.pageArea.verticalScrollBar()
            self._scrolled[self.current] = bar.value
            self.current = name
            self._showPage()
            # once the page has its height
            self.session.timer(0, lambda: self._scrollTo(name))

    def _scrollTo(self, name: str) -> None:
        if name == self.current:
            self._ui.pageArea.verticalScrollBar().setValue(self._scrolled.get(name, 0))

    def _goer(self, name: str) -> Callable[..., None]:
        return lambda *_ignored: self.show(name)

    def _showPage(self) -> None:
        current = self.pages[self.current]
        getattr(self._ui, f"{self.current}PageButton").setChecked(True)
        # first what goes: two editors never work at once
        for page in self.pages.values():
            if page is not current or not self._shown:
                page.exit()
            page.form.setVisible(page is current)
        self._restSurfaces(self._shown and current is self.correct)
        if self._shown:
            current.enter()
        if self._shown and current.showsFigures:
            self.session.live.follow(self)
        else:
            self.session.live.unfollow(self)

    def _restSurfaces(self, isEdited: bool) -> None:
        """Surfaces would be made anew with each stroke: there are none while lesions are edited."""
        lesions = mrml.moduleParameters().lesionSegmentation
        if isEdited and lesions is not None and mrml.isIn3D(lesions):
            self._surfaces = lesions
            mrml.showIn3D(lesions, visible=False)
        elif not isEdited and self._surfaces is not None:
            rested, self._surfaces = self._surfaces, None
            if rested.GetScene() is not None:
                mrml.showIn3D(rested)

    def _addShortcuts(self) -> list[Any]:
        """Install the shortcuts of all pages, and list them on the settings page."""
        made, rows = [], []
        for number, name in enumerate(self.pages, 1):
            title = getattr(self._ui, f"{name}PageButton").text
            made.append(addShortcut(f"Alt+{number}", self.form, self._goer(name)))
            rows.append((f"Alt+{number}", _("Show the page {title}").format(title=title)))
        for page in self.pages.values():
            for shortcut in page.shortcuts:
                holder = self.form if shortcut.isEverywhere else page.form
                made.append(addShortcut(shortcut.keys, holder, shortcut.action))
                rows.append((shortcut.keys, shortcut.text))
        self.settings.listShortcuts(rows)
        return made

    def _onFinished(self, volumeNode: Any, *_ignored: Any) -> None:
        # another CT may have been chosen while the run was on
        if self._shown and mrml.moduleParameters().inputVolume is volumeNode:
            mrml.showInViews(volumeNode)

    def onUndo(self) -> None:
        """Bring back what a result replaced."""
        self.correct.undo()

    def onSetUp(self) -> None:
        """Go to the page that sets PyTorch up."""
        self.show("settings")
        self.settings.showTorch()

    def onUseProcessor(self) -> None:
        """Run again on the processor."""
        if self._parameters is not None:
            self._parameters.device = "cpu"
            self.segment.onApply()
