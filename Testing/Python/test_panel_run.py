"""What happens to CT, scene and choices while a run is on. The worker's answers come from functions."""

from __future__ import annotations

import numpy as np
import pytest
from fake_worker import HOLD, segment_by_threshold
from panel_fixtures import add_ct, apply_and_wait, chest, said, wait_for


@pytest.fixture
def parameters(panel, mrml):
    return mrml.moduleParameters()


@pytest.fixture
def held(panel, ct, worker):
    """A run that waits in the worker."""
    worker.tasks["segment"] = lambda *_: HOLD
    panel.segment.ui.applyButton.click()
    wait_for(lambda: worker.named("segment"), "the request")
    return worker.named("segment")[0]


def finish(worker, held):
    worker.children[0].release(*segment_by_threshold(held.parameters, held.arrays))


def test_a_deleted_ct_ends_its_run(panel, ct, held, scene):
    scene.RemoveNode(ct)
    wait_for(lambda: not panel.session.run.busy, "the end", seconds=1)
    assert "The CT was deleted" in said(panel)
    assert not panel.segment.ui.applyButton.isEnabled()


def test_a_closed_scene_ends_the_run(panel, held, scene, worker, mrml):
    scene.Clear(False)
    wait_for(lambda: not panel.session.run.busy, "the end", seconds=1)
    assert "The CT was deleted, or its scene was closed" in said(panel)
    panel.segment.ui.inputSelector.setCurrentNode(add_ct())
    del worker.tasks["segment"]
    assert apply_and_wait(panel) is not None


def test_a_result_whose_segmentation_was_deleted_gets_a_new_one(panel, ct, worker, scene, mrml, parameters):
    first = apply_and_wait(panel)
    worker.tasks["segment"] = lambda *_: HOLD
    panel.segment.ui.applyButton.click()
    wait_for(lambda: len(worker.named("segment")) == 2, "the request")
    mrml.removeNode(first)
    finish(worker, worker.named("segment")[1])
    wait_for(lambda: not panel.session.run.busy, "the end")
    assert parameters.lesionSegmentation is not None and parameters.lesionSegmentation is not first


def test_another_ct_is_not_given_the_first_ones_result(panel, ct, mrml, parameters):
    first = apply_and_wait(panel)
    second_ct = add_ct("second")
    panel.segment.ui.inputSelector.setCurrentNode(second_ct)
    assert parameters.lesionSegmentation is None
    second = apply_and_wait(panel)
    assert second is not first and mrml.volumeOf(second) is second_ct
    panel.segment.ui.inputSelector.setCurrentNode(ct)
    assert parameters.lesionSegmentation is first


def test_a_run_that_ends_after_another_ct_was_chosen_leaves_that_one_alone(panel, ct, worker, scene, mrml, parameters):
    composite = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    panel.segment.ui.probabilityCheck.click()
    worker.tasks["segment"] = lambda *_: HOLD
    panel.segment.ui.applyButton.click()
    wait_for(lambda: worker.named("segment"), "the request")
    second = add_ct("second")
    panel.segment.ui.inputSelector.setCurrentNode(second)
    finish(worker, worker.named("segment")[0])
    wait_for(lambda: not panel.session.run.busy, "the end")
    assert (parameters.lesionSegmentation, parameters.lungSegmentation, parameters.probabilityVolume) == (None,) * 3
    assert composite.GetBackgroundVolumeID() == second.GetID()
    panel.segment.ui.inputSelector.setCurrentNode(ct)
    assert np.array_equal(mrml.lesionMask(parameters.lesionSegmentation, ct), chest()[1])
    assert mrml.volumeOf(parameters.lungSegmentation) is ct


def test_a_result_that_nobody_looks_at_replaces_none(panel, ct, worker, mrml, parameters):
    """Its undo would be the editor's, which works on another CT by then."""
    first = apply_and_wait(panel)
    worker.tasks["segment"] = lambda *_: HOLD
    panel.segment.ui.applyButton.click()
    wait_for(lambda: len(worker.named("segment")) == 2, "the request")
    panel.segment.ui.inputSelector.setCurrentNode(add_ct("second"))
    finish(worker, worker.named("segment")[1])
    wait_for(lambda: not panel.session.run.busy, "the end")
    assert panel.correct.editor.segmentationNode() is None
    assert mrml.resultsOn(ct)[0] is first and len(mrml.resultsOn(ct)) == 2


def test_surfaces_that_are_chosen_for_the_result_are_refused_before_the_run(panel, ct, worker, mrml, parameters):
    surfaces = apply_and_wait(panel)
    surfaces.SetSourceRepresentationToClosedSurface()
    panel.segment.ui.applyButton.click()
    assert "keeps its segments as closed surface" in said(panel)
    assert not panel.session.run.busy and len(worker.named("segment")) == 1
