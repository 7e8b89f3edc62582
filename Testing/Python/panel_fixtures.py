"""The panel on the stand-in for Slicer, with a worker whose answers come from functions; small CTs; patience."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

SHAPE = (24, 64, 80)
SPACING = (2.5, 1.5, 1.5)
VOXEL_ML = np.prod(SPACING) / 1000


def wait_for(condition: Callable[[], Any], what: str = "it", seconds: float = 8.0) -> None:
    """Let Qt's events run until a condition holds."""
    import slicer

    end = time.monotonic() + seconds
    while not condition():
        slicer.app.processEvents()
        time.sleep(0.002)
        if time.monotonic() > end:
            pytest.fail(f"{what} did not happen within {seconds:g} s")


def let_run(seconds: float = 0.05) -> None:
    """Let Qt's events run for a while."""
    end = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= end)


def chest() -> tuple[np.ndarray, np.ndarray]:
    """A CT with two lungs and two lesions, and where they are."""
    rng = np.random.default_rng(5)
    hu = np.full(SHAPE, 40.0)
    lesion = np.zeros(SHAPE, bool)
    hu[3:-3, 12:-12, 8:36] = -860
    hu[3:-3, 12:-12, 44:72] = -860
    lesion[8:14, 20:34, 14:26] = True
    lesion[12:16, 30:36, 50:58] = True
    hu[lesion] = -450
    hu[8:11, 20:27, 14:20] = 0
    return (hu + rng.normal(0, 3, SHAPE)).astype(np.int16), lesion


def add_ct(name: str = "CT", array: np.ndarray | None = None) -> Any:
    """The chest in the scene."""
    from COVIDLesionSegLib import mrml
    from COVIDLesionSegLib.imaging import Geometry, Volume

    array = chest()[0] if array is None else array
    geometry = Geometry(array.shape[::-1], SPACING[::-1], (-60.0, -48.0, -30.0))
    return mrml.nodeFromVolume(Volume(array, geometry, name), name)


@pytest.fixture
def mrml(scene):
    from COVIDLesionSegLib import mrml

    return mrml


@pytest.fixture
def models_folder(tmp_path, monkeypatch):
    """An empty folder for the user's models."""
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def worker(slicer_gui):
    """A worker without a process; see fake_worker."""
    from fake_worker import FakeWorker

    from COVIDLesionSegLib.panel.process import QtTimer

    return FakeWorker(QtTimer)


@pytest.fixture
def shared_session(worker, models_folder):
    from COVIDLesionSegLib.panel.session import Session
    from COVIDLesionSegLib.worker import WorkerSettings

    session = Session(spawn=worker.spawn, settings=WorkerSettings(transport="file"))
    yield session
    session.close()
    let_run(0.02)


@pytest.fixture
def open_panel(shared_session, scene):
    """Function that opens one more panel of this Slicer."""
    import slicer

    opened = []
    slicer.app.settings().remove("COVIDLesionSeg/usedModels")

    def open_one():

        from COVIDLesionSegLib.panel import ModulePanel
        from host.scripted import show_panel

        widget = slicer.qSlicerScriptedLoadableModuleWidget()
        panel = ModulePanel(widget.layout(), shared_session)
        opened.append((panel, show_panel(widget)))
        panel.enter()
        return panel

    yield open_one
    for panel, window in opened:
        panel.cleanup()
        window.close()
        window.deleteLater()
    let_run(0.02)


@pytest.fixture
def panel(open_panel):
    """A panel in view."""
    return open_panel()


@pytest.fixture
def ct(panel):
    """A CT in the scene, chosen in the panel."""
    node = add_ct()
    panel.segment.ui.inputSelector.setCurrentNode(node)
    return node


@pytest.fixture
def answers(slicer_gui, monkeypatch):
    """Dialogs: ``answers.next`` is what is answered, ``answers.asked`` what was asked."""
    import types

    kept = types.SimpleNamespace(next=True, asked=[])

    def answer(text, *_arguments, **_options):
        kept.asked.append(text)
        return kept.next

    monkeypatch.setattr(slicer_gui.util, "confirmOkCancelDisplay", answer)
    return kept


@pytest.fixture
def views_with_wheel(scene, monkeypatch):
    """Slice views of a layout, as far as their events go: name -> interactor."""
    import types

    import slicer
    import vtk

    interactors = {name: vtk.vtkGenericRenderWindowInteractor() for name in ("Red", "Yellow", "Green")}

    def slice_widget(name):
        view = types.SimpleNamespace(interactor=lambda: interactors[name])
        return types.SimpleNamespace(sliceView=lambda: view)

    layout = types.SimpleNamespace(sliceViewNames=lambda: tuple(interactors), sliceWidget=slice_widget)
    monkeypatch.setattr(slicer.app, "_layout", layout)
    return interactors


def find(panel: Any, name: str) -> Any:
    """A widget of the panel by its object name."""
    import slicer

    return slicer.util.findChild(panel.form.window(), name)


def said(panel: Any) -> str:
    """All messages under the tabs."""
    return panel.messages.ui.messageText.toPlainText()


def wait_for_words(panel: Any, words: str, seconds: float = 8.0) -> None:
    """Let Qt's events run until the messages hold these words."""
    try:
        wait_for(lambda: words in said(panel), f"{words!r}", seconds)
    except pytest.fail.Exception:
        pytest.fail(f"{words!r} is not among the messages: {said(panel)!r}")


def apply_and_wait(panel: Any) -> Any:
    """Press Apply, wait for the result; returns the segmentation."""
    from COVIDLesionSegLib import mrml

    panel.segment.ui.applyButton.click()
    assert panel.session.run.busy, said(panel)
    wait_for(lambda: not panel.session.run.busy, "the end of the run")
    return mrml.moduleParameters().lesionSegmentation


def brush(panel, segmentation, box, erase=False):
    """What a stroke in Slicer's editor does: the real editor logic changes the segment by a modifier labelmap."""
    import slicer
    from vtk.util.numpy_support import vtk_to_numpy

    editor = panel.correct.editor
    editor.saveStateForUndo()
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
    logic.SetSegmentEditorNode(editor.mrmlSegmentEditorNode())
    logic.SetSegmentationNode(segmentation)
    logic.SetSourceVolumeNode(editor.sourceVolumeNode())
    logic.UpdateReferenceGeometryImage()
    logic.ResetModifierLabelmapToDefault()
    labelmap = logic.GetModifierLabelmap()
    array = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(labelmap.GetDimensions()[::-1])
    array[box] = 1
    labelmap.Modified()
    mode = logic.ModificationModeRemove if erase else logic.ModificationModeAdd
    logic.ModifySegmentByLabelmap(segmentation, editor.currentSegmentID(), labelmap, mode, False, False)


@pytest.fixture
def segmentation(panel, ct):
    """The lesions, found and measured; the page Measure in view."""
    node = apply_and_wait(panel)
    panel.show("measure")
    settle(panel)
    return node


def settle(panel):
    live = panel.session.live
    wait_for(lambda: live.quantities and not live.busy, "the figures")


def add_reference(ct: Any, mrml: Any, mask: np.ndarray) -> Any:
    """A segmentation of one segment, "expert", as other programs make them."""
    node = mrml.createSegmentation(ct, "reference")
    node.GetSegmentation().AddEmptySegment("expert", "expert")
    mrml.writeSegment(node, "expert", mask, ct)
    return node


def choose_reference(panel: Any, node: Any) -> None:
    """Choose it on the page Measure and wait for the comparison."""
    panel.measure.ui.referenceSelector.setCurrentNode(node)
    wait_for(lambda: panel.session.live.evaluation, "the comparison")
    settle(panel)
